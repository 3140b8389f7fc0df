"""Each verb once on real files, its JSON held by a schema."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import av
import jsonschema
import numpy as np
import pytest

from edgemm.live.event_schema import event_schema
from tests.cli.cli_runner import CHECKPOINT, CLIP, Cli, own_process
from tests.export.exported import exported

NUMBER = {"type": "number"}
TEXT = {"type": "string"}
MAYBE = {"type": ["number", "null"]}


def _object(**properties: Any) -> dict[str, Any]:
    """An object that has these fields; more may be added."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: Any, at_least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": at_least}


def _map(values: Any, at_least: int = 0) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values, "minProperties": at_least}


EXPORT = _object(
    bundle=TEXT,
    seconds=NUMBER,
    bytes=NUMBER,
    checkpoint_bytes_fp32=NUMBER,
    peak_rss_mb=NUMBER,
    components=_list(
        _object(name=TEXT, precision=TEXT, bytes=NUMBER, parity_max_abs=MAYBE, parity_cosine=MAYBE),
        1,
    ),
    tokens_equal=_map(NUMBER),
    gate=_object(metric={"type": ["string", "null"]}, before=MAYBE, after=MAYBE, restored=_list(TEXT)),
    speedup=_map(NUMBER),
)
INSPECT = _object(
    kind={"enum": ["bundle", "checkpoint"]},
    model_type=TEXT,
    tasks=_list(TEXT, 1),
    components=_list(_object(name=TEXT, precision=TEXT, bytes=NUMBER, parameters=NUMBER), 1),
    engines=_list(_object()),
    bytes=NUMBER,
    problems=_list(TEXT),
)
TIMES = _object(precision=TEXT, median_ms=NUMBER, p99_ms=NUMBER)
BENCH = _object(components=_map(_map(TIMES, 1), 1), tasks=_map(_map(NUMBER, 1), 1), peak_rss_mb=NUMBER)
EVAL = _object(metrics=_map(NUMBER, 1), n=NUMBER, per_example=TEXT)
LABEL_SCORES = _object(precision=NUMBER, recall=NUMBER, f1=NUMBER, support=NUMBER)
EVAL_REPORT = _object(report=_object(labels=_map(LABEL_SCORES, 1), macro=LABEL_SCORES, weighted=LABEL_SCORES))
DEVICES = _object(cameras=_list(_object(spec=TEXT)), microphones=_list(_object(spec=TEXT)))
DOCTOR = _object(
    runtimes=_list(_object(name=TEXT, installed={"type": "boolean"}, devices=_list(TEXT)), 1),
    gpus=_list(TEXT),
    cameras=_list(_object()),
    microphones=_list(_object()),
    codecs=_map(TEXT, 1),
    gui=_object(available={"type": "boolean"}, detail=TEXT),
    problems=_list(_object(what=TEXT, detail=TEXT, fix=TEXT)),
)
LABELS_AT = _object(t_s=NUMBER, labels=_list(_object(label=TEXT, score=NUMBER), 1), model_ms=NUMBER)
PREDICT = _object(
    bundle=TEXT,
    results=_list(
        _object(
            file=TEXT,
            kind={"enum": ["image", "audio", "video"]},
            labels=_list(LABELS_AT),
            transcript={"oneOf": [{"type": "null"}, _object(text=TEXT, tokens=_list(NUMBER))]},
        ),
        1,
    ),
)
RECORD = _object(path=TEXT, duration_s=NUMBER, frames=NUMBER, audio_s=NUMBER, bytes=NUMBER)


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first frame of the clip, a cup of coffee, as a picture."""
    import cv2

    with av.open(str(CLIP)) as container:
        image = next(container.decode(video=0)).to_ndarray(format="bgr24")
    path = tmp_path_factory.mktemp("frame") / "cup.png"
    assert cv2.imwrite(str(path), image)
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip's first six seconds of speech as a WAV file."""
    import soundfile

    from edgemm.processing.audio import load_audio, to_mono_16k

    path = tmp_path_factory.mktemp("sound") / "speech.wav"
    soundfile.write(path, to_mono_16k(*load_audio(CLIP))[: 6 * 16_000], 16_000)
    return path


@pytest.fixture(scope="module")
def vad_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A bundle of one small graph, and what export said of it."""
    target = tmp_path_factory.mktemp("exported") / "vad"
    ran = own_process("export", CHECKPOINT / "vad", "-o", target, "--json")
    assert ran.code == 0, ran.err
    assert ran.err == ""
    return target, ran.json


def _held(ran: Any, schema: dict[str, Any]) -> Any:
    assert ran.code == 0, ran.err
    document = ran.json
    jsonschema.validate(document, schema)
    return document


def test_export(cli: Cli, vad_bundle: tuple[Path, Any]) -> None:
    target, document = vad_bundle
    jsonschema.validate(document, EXPORT)
    assert document["bundle"] == str(target)
    assert document["bytes"] == sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    found = _held(cli("inspect", target, "--json"), INSPECT)
    assert found["model_type"] == "silero-vad"
    assert cli("inspect", target).code == 0


def test_list_families(cli: Cli) -> None:
    document = cli("export", "--list-families", "--json").json
    known = {f["model_type"]: f["tasks"] for f in document["families"]}
    assert known["moonshine"] == ["transcribe"]


@pytest.mark.slow
def test_export_of_the_projects_own_checkpoint(cli: Cli, tmp_path: Path) -> None:
    document = _held(cli("export", "--int8", "-o", tmp_path / "b", "--json"), EXPORT)
    assert document["bytes"] <= 0.32 * document["checkpoint_bytes_fp32"]
    assert document["gate"]["metric"]


def test_inspect_of_a_bundle(cli: Cli, bundle: Path) -> None:
    document = _held(cli("inspect", bundle, "--json"), INSPECT)
    assert document["kind"] == "bundle"
    assert document["bytes"] == sum(
        p.stat().st_size for p in bundle.rglob("*") if p.is_file() and p.suffix != ".sha256"
    )
    assert set(document["tasks"]) >= {"classify", "transcribe", "voice_activity"}
    shown = cli("inspect", bundle)
    assert all(c["name"] in shown.out for c in document["components"])


def test_inspect_of_a_checkpoint(cli: Cli) -> None:
    document = _held(cli("inspect", CHECKPOINT, "--json"), INSPECT)
    assert document["kind"] == "checkpoint"
    assert document["problems"] == []
    parts = (
        *("vision_encoder", "connector", "detector", "decoder"),
        *("audio_encoder", "speech_decoder", "shared"),
    )
    assert {c["name"]: c["model_type"] for c in document["components"]} == {
        **{f"frambicus.{part}": "frambicus" for part in parts},
        "vad.model": "silero-vad",
    }
    assert sum(c["parameters"] for c in document["components"]) == document["parameters"] > 30e6
    sizes = document["bytes_per_precision"]
    assert sizes["fp32"] == pytest.approx(2 * sizes["fp16"], abs=1)
    assert sizes["fp16"] > sizes["int8"] > sizes["int4"] > 0


def test_doctor(cli: Cli) -> None:
    document = _held(cli("doctor", "--json"), DOCTOR)
    states = {r["name"]: r for r in document["runtimes"]}
    assert states["onnxruntime"]["installed"]
    assert "CPU" in states["onnxruntime"]["devices"]
    assert "decodes" in document["codecs"]["h264"]
    assert "onnxruntime" in cli("doctor").out


def test_devices(cli: Cli) -> None:
    _held(cli("devices", "--json"), DEVICES)
    assert "test://" in cli("devices").out


def test_predict(cli: Cli, bundle: Path, frame: Path, sound: Path) -> None:
    document = _held(cli("predict", bundle, frame, sound, "--json", "--top", "3"), PREDICT)
    seen, heard = document["results"]
    assert (seen["kind"], heard["kind"]) == ("image", "audio")
    assert len(seen["labels"][0]["labels"]) == 3
    assert seen["labels"][0]["labels"][0]["label"] == "espresso"
    assert seen["transcript"] is None
    assert "might" in heard["transcript"]["text"]


def test_predict_on_a_video_with_the_default_bundle(cli: Cli) -> None:
    ran = cli("predict", CLIP)
    assert ran.code == 0
    assert ran.errors == ["using the embedded default bundle"]
    assert "espresso" in ran.out
    assert "amiable" in ran.out


def test_predict_says_what_does_not_fit(cli: Cli, bundle: Path, sound: Path, frame: Path) -> None:
    assert "classify" in cli.refused("predict", bundle, sound, "--task", "classify")
    assert "answer" in cli.refused("predict", exported("efficientnet").bundle, frame, "--question", "what is it?")
    assert "--question" in cli.refused("predict", bundle, frame, "--task", "answer")
    cli.refused("predict", bundle, code=2)


def test_eval(cli: Cli, bundle: Path, frame: Path, sound: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in (frame, sound):
        shutil.copy(path, data)
    rows = [
        {"image": frame.name, "label": "Espresso"},
        {"file_name": frame.name, "label": "tench"},
        {"audio": sound.name, "text": "He might even have been made amiable himself."},
    ]
    (data / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = tmp_path / "examples.jsonl"
    argv = ("eval", bundle, "--data", data, "--against", bundle, "--per-example", out)
    document = _held(cli(*argv, "--json"), EVAL)
    assert document["metrics"]["top1"] == 50.0
    assert document["metrics"]["wer"] < 60.0
    assert document["n"] == 3
    assert document["drop"] == {"wer": 0.0, "top1": 0.0}
    jsonschema.validate(document, EVAL_REPORT)
    assert document["report"]["labels"]["espresso"] == {"precision": 50.0, "recall": 100.0, "f1": 200 / 3, "support": 1}
    lines = [json.loads(line) for line in Path(document["per_example"]).read_text().splitlines()]
    assert [line["expected"] for line in lines[:2]] == ["espresso", "tench"]
    assert all(line["said"] == line["other"] for line in lines)


def test_bench(cli: Cli, bundle: Path, sound: Path) -> None:
    document = _held(cli("bench", bundle, "--rounds", "1", "--data", sound, "--json"), BENCH)
    assert document["tasks"]["classify"]["fps"] > 1
    assert 0 < document["tasks"]["transcribe"]["rtf"] < 2
    assert document["input"] == str(sound)


def test_bench_against_another(cli: Cli, vad_bundle: tuple[Path, Any]) -> None:
    target, _ = vad_bundle
    ran = cli("bench", target, "--against", target, "--rounds", "50", "--json")
    document = ran.json
    assert set(document["against"]["components"]) == set(document["components"])
    [ratios] = document["ratio"].values()
    assert set(ratios) == {"onnxruntime", "openvino"}
    assert all(0.2 < ratio < 5 for ratio in ratios.values())
    assert "times faster" in cli("bench", target, "--against", target, "--rounds", "1").out


def test_run_in_json(cli: Cli, tmp_path: Path) -> None:
    picture, film = tmp_path / "out.jpg", tmp_path / "out.mp4"
    argv = ("run", "--camera", CLIP, "--max-frames", "20", "--as-fast-as-possible", "--json")
    ran = cli(*argv, "--task", "classify", "--mic", "none", "--record", picture, "--record", film)
    assert ran.code == 0, ran.err
    validator = jsonschema.Draft202012Validator(event_schema())
    events = [json.loads(line) for line in ran.out.splitlines()]
    for event in events:
        validator.validate(event)
    assert [events[0]["type"], events[-1]["type"]] == ["started", "summary"]
    assert events[-1]["processed"] == 20
    assert picture.stat().st_size > 1000
    with av.open(str(film)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 20


def test_run_tells_the_labels_that_it_was_asked_for(cli: Cli) -> None:
    argv = ("run", "--camera", CLIP, "--max-frames", "3", "--as-fast-as-possible", "--json", "--task", "classify")
    ran = cli(*argv, "--mic", "none", "--labels", "TENCH, eggnog")
    assert ran.code == 0, ran.err
    events = [json.loads(line) for line in ran.out.splitlines()]
    assert events[0]["config"]["labels"] == ["tench", "eggnog"]
    told = [e["labels"] for e in events if e["type"] == "labels"]
    assert len(told) == 3
    assert all({x["label"] for x in labels} == {"tench", "eggnog"} for labels in told)
    assert all(labels[0]["score"] >= labels[1]["score"] for labels in told)


def test_run_refuses_labels_and_languages_that_the_model_lacks(cli: Cli, bundle: Path) -> None:
    argv = ("run", bundle, "--quiet", "--camera", CLIP)
    assert "nearest are espresso" in cli.refused(*argv, "--labels", "expresso")
    assert "one language" in cli.refused(*argv, "--language", "de")


def test_run_prefers_the_bundle_here(cli: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = (
        "run",
        "--camera",
        "test://",
        "--max-frames",
        "2",
        "--task",
        "classify",
        "--mic",
        "none",
        "--no-show",
    )
    assert cli(*argv).errors == ["using the embedded default bundle"]
    (tmp_path / "bundle").symlink_to(bundle)
    ran = cli(*argv)
    assert ran.code == 0
    assert ran.errors == ["using ./bundle"]
    assert "ran for" in ran.out
    assert cli(*argv, "--quiet").err == ""


def test_run_says_why_there_is_no_window(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    argv = ("run", "--camera", "test://", "--max-frames", "1", "--task", "classify", "--mic", "none")
    assert any("no display" in line for line in cli(*argv).errors)


def test_record_and_replay(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "clip.mcap"
    argv = ("record", "--camera", CLIP, "--mic", CLIP, "--duration", "3s", "-o", target)
    document = _held(cli(*argv, "--json"), RECORD)
    assert document["bytes"] == target.stat().st_size
    assert document["duration_s"] == pytest.approx(3.0, abs=0.2)
    replay = ("run", "--camera", target, "--mic", "none", "--as-fast-as-possible", "--json")
    ran = cli(*replay, "--task", "classify", "--max-frames", "3")
    assert json.loads(ran.out.splitlines()[-1])["processed"] == 3


def test_no_colour_or_bar_where_there_is_no_terminal(cli: Cli, frame: Path, bundle: Path) -> None:
    ran = cli("predict", bundle, frame)
    assert "\x1b" not in ran.out + ran.err
    assert np.char.find(ran.out, "espresso") >= 0
