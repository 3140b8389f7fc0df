"""A teacher on a Ray cluster: rows go out by their numbers, answers come back as they are made."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemm.errors import EdgemmError, missing_extra
from edgemm.export.train.data import named_splits
from edgemm.export.train.labelling import Kept, Progress, answers
from edgemm.export.train.objectives.registry import events_for

if TYPE_CHECKING:
    from edgemm.export.train.label import Teacher

_MOST_BLOCKS = 2000


class Answerer:
    """What each worker is: the teacher, loaded once."""

    def __init__(self, teacher: Teacher, data: Path) -> None:
        from edgemm.export.train.label import Every

        objective = teacher.ready()
        events = events_for(objective.checkpoint.model_type, teacher.task)
        self._objective, self._rows = objective, Every(named_splits(data, events))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`row` numbers → `row` and `fields`, as JSON."""
        found: dict[int, dict[str, Any]] = {}
        for some in answers(self._objective, self._rows, [int(i) for i in batch["row"]]):
            found |= some
        return {"row": list(found), "fields": [json.dumps(fields) for fields in found.values()]}


def keep_answers_on_ray(
    teacher: Teacher, data: Path, kept: Kept, count: int, *, workers: int, progress: Progress
) -> None:
    """Have every one of `count` rows answered that is not yet, by `workers` of the cluster.

    Raises RuntimeUnavailable where Ray is not installed, and what a worker raised.
    """
    done = kept.read()
    left = [{"row": i} for i in range(count) if i not in done]
    if not left:
        return
    with cluster() as ray:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        workers = workers or gpus or max(1, int(ray.cluster_resources().get("CPU", 1)) // 2)
        size = teacher.options.batch
        blocks = max(workers, min(_MOST_BLOCKS, -(-len(left) // size)))
        progress(f"loading {workers} teachers", len(done) / count)
        rows = ray.data.from_items(left, override_num_blocks=min(blocks, len(left))).map_batches(
            Answerer,
            fn_constructor_args=(teacher, data),
            batch_size=size,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
        )
        behind = len(done)
        with _own_errors():
            for batch in rows.iter_batches(batch_size=None):
                found = {int(i): json.loads(str(f)) for i, f in zip(batch["row"], batch["fields"], strict=True)}
                kept.add(found)
                behind += len(found)
                progress(f"{workers} teachers answer row {behind} of {count}", behind / count)


@contextmanager
def cluster() -> Iterator[Any]:
    """Ray, connected to the cluster of `RAY_ADDRESS`, else to one of this machine that ends with the block."""
    try:
        ray: Any = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ImportError as error:
        raise missing_extra("ray", "ray", error) from error
    own = not ray.is_initialized()
    if own:
        ray.init(include_dashboard=None, configure_logging=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()


@contextmanager
def _own_errors() -> Iterator[None]:
    """What a worker raised, as it raised it."""
    try:
        yield
    except EdgemmError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, EdgemmError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        raise cause from error
