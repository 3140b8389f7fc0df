"""Everything that users give by mistake: one line, the right exit code, nothing left behind."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemm.bundle.manifest import MANIFEST_NAME
from tests.cli.cli_runner import (
    CHECKPOINT,
    CLIP,
    Cli,
    change_manifest,
    copy_of,
    own_process,
)


@pytest.fixture
def text_mp4(tmp_path: Path) -> Path:
    path = tmp_path / "notes.mp4"
    path.write_text("these are only words\n" * 50)
    return path


@pytest.fixture
def empty_wav(tmp_path: Path) -> Path:
    path = tmp_path / "silence.wav"
    path.touch()
    return path


def _safetensors(path: Path, names: list[str]) -> None:
    header = {n: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, n in enumerate(names)}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4 * len(names)))


def _checkpoint(path: Path, model_type: str, weights: list[str]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    _safetensors(path / "model.safetensors", weights)
    return path


def test_missing_file(cli: Cli, tmp_path: Path) -> None:
    assert "does not exist" in cli.refused("predict", "--quiet", tmp_path / "gone.jpg")
    assert "gone.mp4" in cli.refused("run", "--quiet", "--camera", tmp_path / "gone.mp4")
    assert not list(tmp_path.iterdir())


def test_text_named_mp4(cli: Cli, text_mp4: Path, tmp_path: Path) -> None:
    assert "text" in cli.refused("predict", "--quiet", text_mp4)
    out = tmp_path / "out.mp4"
    cli.refused("run", "--quiet", "--camera", text_mp4, "--record", out)
    assert not out.exists()


def test_empty_wav(cli: Cli, empty_wav: Path) -> None:
    assert "empty" in cli.refused("predict", "--quiet", empty_wav)
    cli.refused("run", "--quiet", "--mic", empty_wav)


def test_torn_picture_in_a_process_of_its_own(tmp_path: Path) -> None:
    import cv2

    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = tmp_path / "torn.png"
    assert cv2.imwrite(str(path), noise)
    path.write_bytes(path.read_bytes()[:900])
    ran = own_process("predict", "--quiet", path)
    assert ran.code == 1
    assert len(ran.errors) == 1, ran.err
    assert "torn.png" in ran.errors[0]


def test_no_camera(cli: Cli) -> None:
    if list(Path("/sys/class/video4linux").glob("video*")):
        pytest.skip("this machine has a camera")
    line = cli.refused("run", "--quiet", "--camera", "0")
    assert "camera" in line
    assert "(" in line  # a hint: what to try
    assert "edgemm devices" in line


@pytest.mark.parametrize(
    ("option", "spec", "word"),
    [
        ("--camera", "/dev/video77", "/dev/video77"),
        ("--camera", "no such camera", "is no camera"),
        ("--mic", "no such microphone", "is no microphone"),
        ("--mic", "gone.wav", "gone.wav does not exist"),
    ],
)
def test_sources_that_are_not_there(cli: Cli, tmp_path: Path, option: str, spec: str, word: str) -> None:
    for argv in (("run", "--record", tmp_path / "o.mcap"), ("record", "-o", tmp_path / "o.mcap")):
        line = cli.refused(*argv, "--quiet", option, spec)
        assert word in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["rtsp://someone:secret@127.0.0.1:9/x", "http://someone:secret@127.0.0.1:9/x"])
def test_cameras_that_do_not_answer(cli: Cli, tmp_path: Path, address: str) -> None:
    line = cli.refused("record", "--quiet", "--camera", address, "-o", tmp_path / "o.mcap")
    assert "127.0.0.1:9/x" in line
    assert "secret" not in line
    assert not list(tmp_path.iterdir())


def test_sources_that_cannot_be_read_leave_no_recording(
    cli: Cli, text_mp4: Path, empty_wav: Path, tmp_path: Path
) -> None:
    cli.refused("record", "--quiet", "--camera", text_mp4, "-o", tmp_path / "o.mcap")
    assert "empty" in cli.refused("record", "--quiet", "--mic", empty_wav, "-o", tmp_path / "o.mcap")
    assert not (tmp_path / "o.mcap").exists()


def test_a_recording_is_not_lost_to_a_camera_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "o.mcap"
    assert cli("record", "--quiet", "--camera", "test://", "--duration", "0.3s", "-o", path).code == 0
    before = path.read_bytes()
    cli.refused("record", "--quiet", "--camera", "/dev/video77", "-o", path)
    assert path.read_bytes() == before


def test_data_that_is_not_there(cli: Cli, text_mp4: Path, tmp_path: Path) -> None:
    assert "does not exist" in cli.refused("eval", "--quiet", "--data", tmp_path / "gone")
    assert "is a file" in cli.refused("eval", "--quiet", "--data", text_mp4)
    assert "text file" in cli.refused("bench", "--quiet", "--rounds", "1", "--data", text_mp4)
    argv = ("export", CHECKPOINT / "labels", "--int8", "-o", tmp_path / "out", "--calib")
    assert "does not exist" in cli.refused(*argv, tmp_path / "gone.png")
    assert "text file" in cli.refused(*argv, text_mp4)
    assert [p.name for p in tmp_path.iterdir()] == [text_mp4.name]


def test_neither_bundle_nor_checkpoint(cli: Cli, text_mp4: Path, tmp_path: Path) -> None:
    for path, word in ((tmp_path / "gone", "does not exist"), (text_mp4, "not a bundle"), (tmp_path, "not a bundle")):
        assert word in cli.refused("inspect", path)
    assert "does not exist" in cli.refused("export", tmp_path / "gone", "-o", tmp_path / "out")
    assert "is a file" in cli.refused("export", text_mp4, "-o", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == [text_mp4.name]


def test_every_flipped_byte_is_noticed(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    files = sorted(p.relative_to(bundle) for p in bundle.rglob("*") if p.is_file())
    torn = copy_of(bundle, tmp_path / "torn")
    for number, name in enumerate(files):
        whole = (torn / name).read_bytes()
        at = (len(whole) * (number + 1)) // (len(files) + 2)
        (torn / name).unlink()  # it may be a link to the real one
        (torn / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        cli.refused("inspect", torn)
        (torn / name).write_bytes(whole)
    assert cli("inspect", torn).code == 0


def test_every_verb_notices_a_torn_bundle(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    torn = copy_of(bundle, tmp_path / "torn")
    name = next(iter(sorted(torn.rglob("*.onnx"))))
    whole = name.read_bytes()
    name.unlink()
    name.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    out = tmp_path / "out.mp4"
    for argv in (
        ("predict", torn, CLIP),
        ("run", torn, "--quiet", "--camera", CLIP, "--record", out),
        ("bench", torn),
        ("eval", torn, "--data", tmp_path),
    ):
        assert "was changed" in cli.refused(*argv)
    assert not out.exists()


def test_truncated_bundle(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    torn = copy_of(bundle, tmp_path / "torn")
    name = max(torn.rglob("*.data"), key=lambda p: p.stat().st_size)
    whole = name.read_bytes()
    name.unlink()
    name.write_bytes(whole[: len(whole) // 2])
    assert "torn" in cli.refused("predict", torn, CLIP)


def test_path_out_of_the_bundle(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    def escape(manifest: dict[str, Any]) -> None:
        manifest["components"][0]["file"] = "../outside.onnx"

    bad = copy_of(bundle, tmp_path / "bad")
    change_manifest(bad, escape)
    assert "leaves the bundle" in cli.refused("inspect", bad)


def test_newer_schema(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    newer = copy_of(bundle, tmp_path / "newer")
    change_manifest(newer, lambda m: m.update(schema_version=99))
    assert "pip install --upgrade edgemm" in cli.refused("inspect", newer)


def test_no_bundle_at_all(cli: Cli, tmp_path: Path) -> None:
    cli.refused("bench", tmp_path / "gone")
    cli.refused("run", tmp_path, "--camera", "test://")


def test_pickle_checkpoint(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "pickle"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "whisper"}')
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    out = tmp_path / "out"
    assert "safe_serialization" in cli.refused("export", source, "-o", out)
    ran = cli("inspect", source)
    assert ran.code == 3
    assert "--allow-pickle" in ran.errors[0]
    assert [p.name for p in tmp_path.iterdir()] == ["pickle"]


def test_unknown_model_type(cli: Cli, tmp_path: Path) -> None:
    source = _checkpoint(tmp_path / "odd", "whisperr", ["w"])
    line = cli.refused("export", source, "-o", tmp_path / "out")
    assert "whisper" in line
    assert "--list-families" in line
    ran = cli("inspect", source, "--json")
    assert ran.code == 3
    assert "whisperr" in ran.json["problems"][0]
    assert [p.name for p in tmp_path.iterdir()] == ["odd"]


def test_modality_without_weights(cli: Cli, tmp_path: Path) -> None:
    from edgemm.export import families

    needs = families.find("moonshine").NEEDS
    source = _checkpoint(tmp_path / "half", "moonshine", [f"{p}0" for p in needs["decoder"]])
    line = cli.refused("export", source, "-o", tmp_path / "out")
    assert "audio encoder" in line
    ran = cli("inspect", source)
    assert ran.code == 3
    assert any("audio encoder" in line for line in ran.errors)
    assert [p.name for p in tmp_path.iterdir()] == ["half"]


def test_int8_without_examples(cli: Cli, tmp_path: Path) -> None:
    argv = ("export", CHECKPOINT / "labels", "--int8", "-o", tmp_path / "out")
    assert "--calib" in cli.refused(*argv)


def test_no_default_checkpoint(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemm.cli.export.samples", lambda: None)
    assert "clone" in cli.refused("export", "--int8", "-o", tmp_path / "out")


def test_export_without_its_extra(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("edgemm.export.pipeline", "torch"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    line = cli.refused("export", CHECKPOINT / "vad", "-o", tmp_path / "out")
    assert 'pip install "edgemm[export]"' in line


def test_target_that_is_no_bundle_is_not_touched(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    argv = ("export", CHECKPOINT / "vad", "-o", tmp_path, "--overwrite")
    assert "no bundle" in cli.refused(*argv)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    ran = own_process("export", CHECKPOINT / "vad", "-o", tmp_path / "out", preexec_fn=small_files_only)
    assert ran.code == 1
    assert len(ran.errors) == 1, ran.err
    assert "no space left" in ran.errors[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_forbidden_place(cli: Cli, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "not writable" in cli.refused("export", CHECKPOINT / "vad", "-o", tmp_path / "out")


def test_a_bundle_is_not_replaced_by_accident(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.copy(bundle / MANIFEST_NAME, mine)
    assert "--overwrite" in cli.refused("export", CHECKPOINT / "vad", "-o", mine)
