"""Where the project's own checkpoint lies. One function decides it."""

from __future__ import annotations

from pathlib import Path

from edgemm.errors import CheckpointError

NAME = "frambicus"
_CHECKPOINT = Path("samples") / "checkpoint" / NAME
_TOWERS = Path("samples") / "checkpoint"


def located(name: str | Path) -> str | Path:
    """`name` as it is, and `"frambicus"` as the directory of the trained checkpoint in the repository.

    A directory of that name in the working directory does not shadow it: write `./frambicus` for one.
    Raises CheckpointError where edgemm runs from no clone, or the clone has no such checkpoint.
    """
    return _in_clone(_CHECKPOINT) if name == NAME else name


def towers() -> Path:
    """The directory of the composite checkpoint whose `speech` and `labels` are the towers. Raises as `located`."""
    return _in_clone(_TOWERS)


def _in_clone(path: Path) -> Path:
    import edgemm.export

    clones = (Path(edgemm.export.__file__).resolve().parent.parent, Path.cwd())
    for clone in clones:
        if (clone / path / "config.json").is_file():
            return clone / path
    raise CheckpointError(
        f"{path} is not here: the checkpoint of Frambicus is in the repository of edgemm, not in its wheel",
        hint="run in a clone of the repository, or give a checkpoint's directory",
    )
