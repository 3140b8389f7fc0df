"""The kinds of sources. This table is the only list of them; the order decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgemm.errors import SourceError
from edgemm.live import microphone
from edgemm.live.sources import (
    browser,
    encoded,
    file,
    folder,
    gstreamer,
    network,
    none,
    recording,
    screen,
    testing,
    v4l2,
)
from edgemm.live.sources.base import AudioReader, SourceKind, VideoReader, Wish, redact

_MEDIA = frozenset(
    [
        ".mp4",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".m4v",
        ".mpg",
        ".mpeg",
        ".ts",
        ".mts",
        ".flv",
        ".wmv",
        ".gif",
        ".h264",
        ".264",
        ".hevc",
        ".mjpeg",
        ".wav",
        ".mp3",
        ".flac",
        ".ogg",
        ".opus",
        ".m4a",
        ".aac",
        ".wma",
    ]
)


def _is_path(spec: str) -> bool:
    path = Path(spec)
    return "://" not in spec and (path.suffix.lower() in _MEDIA or path.exists() or "/" in spec)


KINDS: tuple[SourceKind, ...] = (
    SourceKind(
        "none",
        "none",
        lambda spec: spec == "none",
        live=False,
        video=lambda spec, wish: none.NoVideo(),
        audio=lambda spec: none.NoSound(),
    ),
    SourceKind(
        "test",
        "test:// (a moving pattern, a tone)",
        lambda spec: spec.startswith("test://"),
        live=True,
        video=testing.PatternReader,
        audio=testing.ToneReader,
        honours_fps=True,
    ),
    SourceKind(
        "network",
        "rtsp://… or http://… (MJPEG)",
        lambda spec: spec.startswith(("rtsp://", "rtsps://", "http://", "https://")),
        live=True,
        video=network.network_video,
        audio=network.network_audio,
        encoded=lambda url: encoded.EncodedContainer(network.NetworkContainer(url, "video")),
        probe=network.answers,
    ),
    SourceKind(
        "v4l2",
        "0, /dev/video2 or a part of a camera's name",
        v4l2.is_v4l2,
        live=True,
        video=v4l2.V4l2Reader,
        probe=v4l2.plugged_in,
        lasting=v4l2.lasting_path,
    ),
    SourceKind(
        "csi",
        "csi://0 (a Jetson's camera port)",
        lambda spec: spec.startswith("csi://"),
        live=True,
        video=gstreamer.csi_video,
        honours_fps=True,
    ),
    SourceKind(
        "screen",
        "screen:// (an X display)",
        lambda spec: spec.startswith("screen://"),
        live=True,
        video=screen.screen_video,
        honours_fps=True,
    ),
    SourceKind(
        "browser",
        "browser:// (of whoever looks at the live page, --web)",
        lambda spec: spec.startswith(browser.SPEC),
        live=True,
        video=browser.BrowserVideo,
        audio=browser.BrowserSound,
        honours_fps=True,
        waits=True,
    ),
    SourceKind(
        "recording",
        "file.mcap (a recording)",
        lambda spec: spec.lower().endswith(".mcap"),
        live=False,
        video=recording.RecordedVideo,
        audio=recording.RecordedAudio,
    ),
    SourceKind(
        "folder",
        "a folder of pictures",
        lambda spec: Path(spec).is_dir(),
        live=False,
        video=folder.FolderReader,
        honours_fps=True,
    ),
    SourceKind(
        "file",
        "a media file (file.mp4, file.wav)",
        _is_path,
        live=False,
        video=file.file_video,
        audio=file.file_audio,
        encoded=lambda path: encoded.EncodedContainer(file.FileContainer(path, "video")),
    ),
    SourceKind(
        "microphone",
        "default, an index or a part of a microphone's name",
        microphone.is_microphone,
        live=True,
        audio=microphone.MicrophoneReader,
    ),
)


def find_kind(spec: str, *, video: bool) -> SourceKind:
    """The kind that a spec is of. Raises SourceError that lists what is accepted."""
    kinds = [kind for kind in KINDS if (kind.video if video else kind.audio) is not None]
    for kind in kinds:
        if kind.matches(spec):
            return kind
    what, verb = ("camera", "--camera") if video else ("microphone", "--mic")
    raise SourceError(
        f"{redact(spec)!r} is no {what} that edgemm knows; {verb} takes: " + ", ".join(kind.accepts for kind in kinds),
        hint="run: edgemm devices",
    )


def need_video(kind: SourceKind, spec: str) -> Callable[[str, Wish], VideoReader]:
    """The kind's opener of pictures. Raises SourceError where it has none."""
    if kind.video is None:
        raise SourceError(f"{redact(spec)} ({kind.name}) has no pictures")
    return kind.video


def need_audio(kind: SourceKind, spec: str) -> Callable[[str], AudioReader]:
    """The kind's opener of sound. Raises SourceError where it has none."""
    if kind.audio is None:
        raise SourceError(f"{redact(spec)} ({kind.name}) has no sound")
    return kind.audio
