"""Data sets for training: rows as the Hugging Face folder convention has them, kept in Arrow files, media read late.

A directory with `metadata.jsonl`, or with a folder of each split (`train`, `validation`, `test`), a folder a class,
what `datasets` saved, or a recording (see `recordings`). Fields are those of the command line's documents: `image`,
`audio`, `video` (or `file_name`), `text`, `question`, `answer`, `label`, `objects`, `user`, `item`, `score`; `split`
names a row's split.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemm.errors import InputError, SourceError
from edgemm.export.train.recordings import EVENTS, is_recording, rows_of
from edgemm.processing.audio import load_audio, to_mono_16k
from edgemm.processing.image import to_rgb
from edgemm.processing.media import iter_video, sniff
from edgemm.tasks.metadata import METADATA, lines_of

SPLITS = {"train": ("train",), "validation": ("validation", "val", "dev", "valid"), "test": ("test",)}
_HELD_OUT = 0.1  # of the rows, for validation and for the test each, where the data set names no splits


@dataclass(frozen=True)
class Sample:
    """One row. `where` names it in errors; `root` is what paths begin at."""

    values: Mapping[str, Any]
    root: Path
    where: str

    def get(self, name: str) -> Any:
        """The value of a field. Raises InputError where the row has none."""
        value = self.values.get(name)
        if value is None:
            known = ", ".join(k for k, v in self.values.items() if v is not None)
            raise InputError(f"{self.where} has no {name}", hint=f"it has {known}")
        return value

    def has(self, *names: str) -> bool:
        return all(self.values.get(name) is not None for name in names)

    def texts(self, name: str = "text") -> list[str]:
        """A field that is a text or a list of them."""
        value = self.get(name)
        return [value] if isinstance(value, str) else [str(v) for v in value]

    def picture(self) -> NDArray[np.uint8]:
        """The row's picture, uint8 [H, W, 3] RGB."""
        return as_picture(self._media("image"), self.root)

    def sound(self, rate_hz: int) -> NDArray[np.float32]:
        """The row's sound, float32 [samples] at `rate_hz`."""
        value = self._media("audio")
        if isinstance(value, dict) and value.get("array") is not None:
            samples, rate = np.asarray(value["array"], np.float32), int(value["sampling_rate"])
        else:
            with _file(value, self.root) as path:
                samples, rate = load_audio(path)
        return to_mono_16k(samples, rate, rate_hz)

    def frames(self, count: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """`count` pictures spread evenly over the row's video, uint8 [N, H, W, 3] RGB, and their times in seconds."""
        seen = [(f.image, f.t_s) for f in iter_video(_path(self._media("video"), self.root))]
        if not seen:
            raise InputError(f"{self.where}: its video has no picture")
        chosen = [seen[round(i)] for i in np.linspace(0, len(seen) - 1, count)]
        return np.stack([f for f, _ in chosen]), np.array([t for _, t in chosen], np.float32)

    def _media(self, kind: str) -> Any:
        if self.values.get(kind) is not None:
            return self.values[kind]
        name = self.values.get("file_name")
        if name is not None and sniff(_path(name, self.root)) == kind:
            return name
        return self.get(kind)


def as_picture(value: Any, root: Path) -> NDArray[np.uint8]:
    """A path, an encoded file, an array or a PIL image → uint8 [H, W, 3] RGB."""
    if isinstance(value, (str, dict)):
        with _file(value, root) as path:
            return to_rgb(path)
    return to_rgb(value if hasattr(value, "convert") else np.asarray(value))


@contextmanager
def _file(value: Any, root: Path) -> Iterator[Path]:
    """A file that holds what a path, or what `datasets` keeps of an encoded file ({bytes, path}), means."""
    if not isinstance(value, dict):
        yield _path(value, root)
    elif value.get("bytes") is None:
        yield _path(value["path"], root)
    else:
        with tempfile.NamedTemporaryFile(suffix=Path(value.get("path") or "").suffix) as file:
            file.write(value["bytes"])
            file.flush()
            yield Path(file.name)


def _path(value: Any, root: Path) -> Path:
    path = root / str(value)
    if not path.is_file():
        raise InputError(f"{path} is missing", hint=f"paths begin at {root}")
    return path


class Samples(Sequence[Sample]):
    """Rows of an Arrow table that is read from the disk as it is needed."""

    def __init__(self, table: Any, root: Path, name: str) -> None:
        self.table, self.root, self.name = table, root, name

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Samples(self.table.select(range(*index.indices(len(self)))), self.root, self.name)
        return Sample(self.table[int(index)], self.root, f"{self.name} row {int(index) + 1}")

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(self.table.column_names)

    def column(self, name: str) -> list[Any]:
        """All values of a field, without the media."""
        return list(self.table[name])


class Groups(Sequence[list[Sample]]):
    """Rows that have the same value in one of `fields`, together, in the order in which the first of each stands."""

    def __init__(self, rows: Samples, fields: Sequence[str]) -> None:
        self.rows = rows
        known = [rows.column(name) for name in fields if name in rows.fields]
        found: dict[Any, list[int]] = {}
        for i in range(len(rows)):
            value = next((column[i] for column in known if isinstance(column[i], str)), i)
            found.setdefault(value, []).append(i)
        self.members = list(found.values())

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: Any) -> Any:
        return [self.rows[i] for i in self.members[index]]


@dataclass(frozen=True)
class Splits:
    """What is trained on, what a run is steered by, and what it is judged by."""

    train: Samples
    validation: Samples
    test: Samples


def load(
    data: Path,
    *,
    validation: Path | None = None,
    test: Path | None = None,
    seed: int = 0,
    events: Sequence[str] = EVENTS,
) -> Splits:
    """Read a data set; what it does not name is cut from `train`, a tenth each, the same for a seed.

    `events` are what is read of a recording.
    Raises SourceError where there is none, InputError that names a torn line.
    """
    found = named_splits(data, events)
    for name, path in (("validation", validation), ("test", test)):
        if path is not None:
            found[name] = _table(path, events)
    train = found.get("train")
    if train is None:
        raise SourceError(f"{data} has no training rows", hint=f"give a directory with {METADATA} or a folder train")
    for name in ("test", "validation"):
        if name not in found:
            train, found[name] = _cut(train, seed)
    return Splits(train, found["validation"], found["test"])


def named_splits(data: Path, events: Sequence[str] = EVENTS) -> dict[str, Samples]:
    """The splits that a data set names itself; all of it is `train` where it names none. Raises as `load` does."""
    folders = {
        split: data / name for split, names in SPLITS.items() for name in names if (data / name / METADATA).is_file()
    }
    if folders:
        return {split: _table(path) for split, path in folders.items()}
    if (data / "dataset_dict.json").is_file():
        import datasets

        saved = datasets.load_from_disk(str(data))
        return {s: _undecoded(saved[n], data) for s, names in SPLITS.items() for n in names if n in saved}
    whole = _table(data, events)
    if "split" not in whole.fields:
        return {"train": whole}
    asked = whole.column("split")
    rows = {s: [i for i, word in enumerate(asked) if word in names] for s, names in SPLITS.items()}
    return {s: Samples(whole.table.select(r), whole.root, whole.name) for s, r in rows.items() if r}


def _cut(rows: Samples, seed: int) -> tuple[Samples, Samples]:
    if len(rows) < 2:
        raise SourceError(f"{rows.name} has {len(rows)} rows", hint="training and a test need two at least")
    order = np.random.default_rng(seed).permutation(len(rows))
    held = max(1, round(_HELD_OUT * len(rows)))
    parts = (sorted(order[held:].tolist()), sorted(order[:held].tolist()))
    kept, out = (Samples(rows.table.select(p), rows.root, rows.name) for p in parts)
    return kept, out


def _table(path: Path, events: Sequence[str] = EVENTS) -> Samples:
    import datasets

    if is_recording(path):
        place = rows_of(path, events)
        return Samples(_from_lines(place), place, path.name)
    if (path / METADATA).is_file():
        return Samples(_from_lines(path), path, f"{path.name}/{METADATA}")
    if (path / "state.json").is_file():
        return _undecoded(datasets.load_from_disk(str(path)), path)
    if path.is_dir() and (rows := list(_classes(path))):
        return Samples(datasets.Dataset.from_list(rows), path, path.name)
    what = "does not exist" if not path.exists() else "is no data set"
    raise SourceError(f"{path} {what}", hint=f"give a directory with {METADATA}, a folder a class, or a saved data set")


def _from_lines(path: Path) -> Any:
    import datasets

    rows = [values for values, _ in lines_of(path)]
    if not rows:
        raise SourceError(f"{path / METADATA} has no rows")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return datasets.Dataset.from_list([{name: row.get(name) for name in names} for row in rows])


def _classes(path: Path) -> Iterator[dict[str, str]]:
    for folder in sorted(p for p in path.iterdir() if p.is_dir()):
        for file in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
            yield {"file_name": f"{folder.name}/{file.name}", "label": folder.name}


def _undecoded(table: Any, path: Path) -> Samples:
    """Media stay encoded until a row is needed: pictures and sounds are decoded by our own readers."""
    import datasets

    for name, feature in table.features.items():
        if isinstance(feature, (datasets.Image, datasets.Audio)):
            table = table.cast_column(name, type(feature)(decode=False))
    return Samples(table, path, path.name)
