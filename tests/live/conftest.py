"""Media that the pipeline's tests play, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.live_fakes import moving_frames, speech_like, write_video


@pytest.fixture(scope="session")
def talking_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 s at 30 fps, 320 x 240, with two bursts of "speech"."""
    path = tmp_path_factory.mktemp("media") / "talking.mp4"
    sound = speech_like(3.0, [(0.3, 0.9), (1.7, 2.4)])
    return write_video(path, moving_frames(90), sound=sound)


@pytest.fixture(scope="session")
def silent_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 s at 30 fps, 320 x 240, no sound."""
    return write_video(tmp_path_factory.mktemp("media") / "silent.mp4", moving_frames(60))
