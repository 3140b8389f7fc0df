"""Every error that edgemm raises on purpose.

    EdgemmError
    ├── BundleError (ValueError)         a bundle is torn, foreign, from the future, or unsafe
    ├── CheckpointError (ValueError)     a checkpoint cannot be exported as it is
    ├── CheckFailed (ValueError)         parity, an accuracy gate or a speed gate did not hold (exit code 3)
    ├── InputError (ValueError)          a picture, a sound or an argument is not usable
    ├── UsageError (ValueError)          options that contradict each other (exit code 2)
    ├── TaskUnavailable (LookupError)    the bundle has no model for this task
    ├── SourceError (OSError)            a camera, a microphone or a file cannot be opened or read
    ├── RuntimeUnavailable (ImportError) a runtime or an extra is not installed
    ├── ContextFull (OverflowError)      the decoder's state has no room for another token
    ├── StorageError (OSError)           the disk is full or not writable
    └── SinkError (OSError)              an address for events cannot be served or reached

The message says what was wrong and what was expected; `hint` says what to run or change next.
"""

from __future__ import annotations


class EdgemmError(Exception):
    """Root of the errors that edgemm raises on purpose. `str(error)` is one line; `details` may be a table."""

    code = "error"
    exit_code = 1
    details = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def as_dict(self) -> dict[str, str]:
        """The `error` object of `--json`."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class BundleError(EdgemmError, ValueError):
    """A bundle is torn, foreign, written by a newer edgemm, or points outside itself."""

    code = "bundle"


class CheckpointError(EdgemmError, ValueError):
    """A checkpoint cannot be exported as it is."""

    code = "checkpoint"


class CheckFailed(EdgemmError, ValueError):
    """Parity, an accuracy gate or a speed gate did not hold."""

    code = "check"
    exit_code = 3


class InputError(EdgemmError, ValueError):
    """A picture, a sound or an argument is not usable."""

    code = "input"


class UsageError(EdgemmError, ValueError):
    """Options that contradict each other or that this command cannot serve."""

    code = "usage"
    exit_code = 2


class TaskUnavailable(EdgemmError, LookupError):
    """The bundle has no model for this task."""

    code = "task"


class SourceError(EdgemmError, OSError):
    """A camera, a microphone or a media file cannot be opened or read. Where the reason is known, `code`
    tells it: source_auth, source_not_found, source_refused, source_unreachable, source_dns, source_tls,
    source_codec, source_timeout."""

    code = "source"

    def __init__(self, message: str, *, hint: str = "", code: str = "source") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class RuntimeUnavailable(EdgemmError, ImportError):
    """A runtime or an optional dependency is not installed or cannot load."""

    code = "runtime"


class ContextFull(EdgemmError, OverflowError):
    """The decoder's state has no room for another token."""

    code = "context"


class StorageError(EdgemmError, OSError):
    """The disk is full or the place is not writable."""

    code = "storage"


class SinkError(EdgemmError, OSError):
    """Where events go over a network: an address that cannot be served or reached, a client that was dropped."""

    code = "sink"


def missing_extra(package: str, extra: str, cause: Exception | None = None) -> RuntimeUnavailable:
    """The error for an optional dependency that is absent: it prints the pip command."""
    why = f": {cause}" if cause and not isinstance(cause, ModuleNotFoundError) else ""
    return RuntimeUnavailable(f"{package} is not available{why}", hint=f'run: pip install "edgemm[{extra}]"')
