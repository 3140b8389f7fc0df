"""A media file as a camera and a microphone (PyAV)."""

from __future__ import annotations

from pathlib import Path

from edgemm.errors import SourceError
from edgemm.live.sources.base import Wish
from edgemm.live.sources.container import Container, ContainerAudio, ContainerVideo


class FileContainer(Container):
    """A container on the disk, looked at before it is opened."""

    def __init__(self, path: str, media: str) -> None:
        super().__init__(path, media, ({},), live=False)
        self._path = Path(path)

    def open(self) -> None:
        """Raises SourceError: missing, a folder, empty, no media, no such stream."""
        path = self._path
        if not path.exists():
            raise SourceError(f"{path} does not exist", hint="check the path; test:// needs no file")
        if path.is_dir():
            raise SourceError(f"{path} is a folder, and a media file was expected")
        if path.stat().st_size == 0:
            raise SourceError(f"{path} is empty (0 bytes)", hint="copy or record it again")
        super().open()
        if self.stream.codec_context.name == "ansi":  # FFmpeg would draw a .txt file
            self.close()
            raise SourceError(f"{path} is text, and a media file was expected")


def file_video(path: str, wish: Wish) -> ContainerVideo:
    """Pictures of a file."""
    return ContainerVideo(FileContainer(path, "video"), wish)


def file_audio(path: str) -> ContainerAudio:
    """Sound of a file."""
    return ContainerAudio(FileContainer(path, "audio"))
