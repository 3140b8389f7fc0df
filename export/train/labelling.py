"""What a teacher says to every row: made once, kept line by line as it comes, and gone on with after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edgemm.bundle.files import storage_errors
from edgemm.export.train.data import Sample, Samples
from edgemm.export.train.objectives.base import Objective

Progress = Callable[[str, float], None]
Fields = Mapping[str, Any]


class Kept:
    """The fields that a teacher gave to rows, by their numbers: `said-*.jsonl`, a line a row, a file a writer."""

    def __init__(self, place: Path, writer: int = 0) -> None:
        self.place, self._own = place, place / f"said-{writer}.jsonl"
        self._is_whole = False

    def read(self) -> dict[int, dict[str, Any]]:
        """Everything that any writer kept. A line that a kill tore is left out."""
        found: dict[int, dict[str, Any]] = {}
        for path in sorted(self.place.glob("said-*.jsonl")):
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    row = json.loads(line)
                    found[int(row["row"])] = row["fields"]
        return found

    def add(self, found: Mapping[int, Fields]) -> None:
        """Keep more, on the disk before this returns. Raises StorageError."""
        with storage_errors(str(self._own)):
            self.place.mkdir(parents=True, exist_ok=True)
            with self._own.open("ab+") as file:
                if not self._is_whole:
                    _cut_torn_line(file)
                self._is_whole = True
                for number, fields in found.items():
                    file.write(json.dumps({"row": number, "fields": fields}, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())


def _cut_torn_line(file: Any) -> None:
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    file.truncate(whole)


def answers(
    objective: Objective, rows: Sequence[Sample], numbers: Sequence[int]
) -> Iterator[dict[int, dict[str, Any]]]:
    """The fields that the objective's model gives to the rows of these numbers, a batch at a time."""
    model, size = objective.model.eval(), objective.options.batch
    for start in range(0, len(numbers), size):
        own = numbers[start : start + size]
        samples = [rows[i] for i in own]
        with torch.no_grad():
            said = objective.say(model, samples)
        yield {i: objective.told(s, words) for i, s, words in zip(own, samples, said, strict=True)}


def keep_answers(
    objective: Objective, rows: Sequence[Sample], kept: Kept, *, share: tuple[int, int] = (0, 1), progress: Progress
) -> None:
    """Have every row answered that is not yet, of `share` (number, of how many processes).

    Shares are of all rows, not of those that are left: another process may be ahead when this one looks.
    """
    done, own = kept.read(), range(share[0], len(rows), share[1])
    left = [i for i in own if i not in done]
    behind = len(own) - len(left)
    for found in answers(objective, rows, left):
        kept.add(found)
        behind += len(found)
        progress(f"the teacher answers row {behind} of {len(own)}", behind / len(own))


class Told(Samples):
    """Rows in which what a teacher said stands in the place of what people did."""

    def __init__(self, rows: Samples, fields: Sequence[Fields]) -> None:
        super().__init__(rows.table, rows.root, rows.name)
        self._fields = fields

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Told(super().__getitem__(index), self._fields[index])
        sample: Sample = super().__getitem__(index)
        return Sample({**sample.values, **self._fields[int(index)]}, sample.root, sample.where)


def told_rows(objective: Objective, rows: Samples, place: Path, *, progress: Progress) -> Told:
    """`rows` with the words of the objective's model as their targets, which are kept in `place`.

    Every process of a run answers its share.
    """
    from accelerate import PartialState

    state = PartialState()
    objective.model.to(state.device)
    share = (state.process_index, state.num_processes)
    keep_answers(objective, rows, Kept(place, share[0]), share=share, progress=progress)
    state.wait_for_everyone()
    found = Kept(place).read()
    return Told(rows, [found[i] for i in range(len(rows))])
