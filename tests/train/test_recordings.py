"""Recordings as training data: of a real run, and of every kind of event; what is no use is refused with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile

from edgemm.cli.app import invoke
from edgemm.errors import SourceError
from edgemm.export.train.data import load, named_splits
from edgemm.export.train.finetune import finetune
from edgemm.export.train.options import TrainOptions
from edgemm.export.train.recordings import rows_of
from edgemm.live.frames import AudioBlock, Frame
from edgemm.live.mcap_file import McapRecorder
from tests.export.exported import checkpoint

CLIP = Path(__file__).resolve().parents[2] / "samples" / "clip" / "clip.mp4"
RATE_HZ = 16_000
FPS = 4


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def wave():
    """Ten seconds in which every sample says when it is."""
    t = np.arange(10 * RATE_HZ) / RATE_HZ
    return (t / 20).astype(np.float32)


def recorded(path, events, *, pictures=True, sound=True):
    """Ten seconds: grey pictures whose level says when they are, sound, and events."""
    recorder = McapRecorder(path, wall_offset_s=1_700_000_000.25)
    samples = wave()
    for i in range(10 * FPS):
        t_s = i / FPS
        if pictures:
            recorder.write_frame(Frame(i, "camera", np.full((32, 48, 3), 5 * i, np.uint8), t_s))
        if sound:
            block = samples[round(t_s * RATE_HZ) : round((t_s + 1 / FPS) * RATE_HZ)]
            recorder.write_audio(AudioBlock("microphone", block, RATE_HZ, t_s))
    for event in events:
        recorder.write_event({"id": 0, "t_s": 9.0, **event}, 9.0)
    recorder.close()
    return path


def transcript(start_s, end_s, text, **more):
    return {"type": "transcript", "text": text, "final": True, "t_start_s": start_s, "t_end_s": end_s, **more}


EVENTS = [
    transcript(1.03, 2.51, "one"),
    transcript(2.0, 6.2, "two overlaps"),
    transcript(3.0, 4.0, "not yet", final=False),
    transcript(9.5, 30.0, "to the end"),
    {"type": "caption", "text": "a grey wall", "t_capture_s": 3.3},
    {"type": "caption", "text": " ", "t_capture_s": 3.3},
    {"type": "answer", "question": "what colour?", "text": "grey", "t_capture_s": 7.0},
    {"type": "labels", "labels": []},
]


def test_every_event_has_what_it_is_about(tmp_path):
    place = rows_of(recorded(tmp_path / "a.mcap", EVENTS))
    rows = [json.loads(line) for line in (place / "metadata.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k not in ("audio", "image")} for row in rows] == [
        {"text": "one"},
        {"text": "two overlaps"},
        {"text": "to the end"},
        {"text": "a grey wall"},
        {"question": "what colour?", "answer": "grey"},
    ]
    for row, (start_s, end_s) in zip(rows, [(1.03, 2.51), (2.0, 6.2), (9.5, 10.0)], strict=False):
        samples, rate = soundfile.read(place / row["audio"], dtype="float32")
        expected = wave()[round(start_s * rate) : round(end_s * rate)]
        np.testing.assert_allclose(samples, expected, atol=1e-4)
    for row, t_s in zip(rows[3:], (3.25, 7.0), strict=True):
        assert cv2.imread(str(place / row["image"])).mean() == pytest.approx(5 * t_s * FPS, abs=1.5)
    # Read once: the second time it is there.
    stamp = (place / "metadata.jsonl").stat().st_mtime_ns
    assert rows_of(tmp_path / "a.mcap") == place
    assert (place / "metadata.jsonl").stat().st_mtime_ns == stamp


def test_a_task_reads_its_own_events(tmp_path):
    path = recorded(tmp_path / "a.mcap", EVENTS)
    assert [row.get("text") for row in named_splits(path, ("transcript",))["train"]] == [
        "one",
        "two overlaps",
        "to the end",
    ]
    assert [row.get("answer") for row in named_splits(path, ("answer",))["train"]] == ["grey"]
    options = TrainOptions(steps=2, batch=2, max_new_tokens=2)
    report = finetune(checkpoint("moonshine"), path, tmp_path / "tuned", options=options)
    assert sum(report.rows.values()) == 3


@pytest.mark.parametrize(
    ("events", "more", "message"),
    [
        ([], {}, "no transcript, caption, answer.*edgemm run --record"),
        ([{"type": "labels", "labels": []}], {}, "it has labels"),
        (EVENTS[:1], {"sound": False}, "not the sound or the frames"),
        (EVENTS[4:5], {"pictures": False}, "not the sound or the frames"),
    ],
)
def test_recordings_that_teach_nothing(events, more, message, tmp_path):
    with pytest.raises(SourceError, match=message):
        load(recorded(tmp_path / "a.mcap", events, **more))
    assert not list((tmp_path / "cache").rglob("metadata.jsonl"))


def test_what_is_no_recording(tmp_path):
    (tmp_path / "a.mcap").write_bytes(b"nothing of the kind")
    with pytest.raises(SourceError, match="not a recording"):
        load(tmp_path / "a.mcap")
    with pytest.raises(SourceError, match="not this task"):
        load(recorded(tmp_path / "b.mcap", EVENTS), events=())


def test_a_torn_recording_gives_what_is_whole(tmp_path):
    path = recorded(tmp_path / "a.mcap", EVENTS)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * 0.97)])
    assert len(named_splits(path)["train"]) <= 5


def test_a_real_run_becomes_rows(tmp_path, capsys):
    path = tmp_path / "seen.mcap"
    sources = ["--camera", str(CLIP), "--mic", str(CLIP), "--every", "2s", "--as-fast-as-possible"]
    assert invoke(["run", *sources, "--record", str(path), "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    said = [e["text"] for e in events if e["type"] == "transcript" and e["final"] and e["text"]]
    rows = named_splits(path)["train"]
    heard = [row for row in rows if row.has("audio")]
    assert [row.get("text") for row in heard] == said
    assert said
    seen = {row.get("text") for row in rows if row.has("image")}
    assert seen
    assert seen <= {e["text"] for e in events if e["type"] == "caption"}
    for row, event in zip(heard, (e for e in events if e["type"] == "transcript" and e["final"]), strict=True):
        seconds = len(row.sound(RATE_HZ)) / RATE_HZ
        assert seconds == pytest.approx(event["t_end_s"] - event["t_start_s"], abs=0.3)
