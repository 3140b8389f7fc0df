"""Which runtime a component runs on where the user leaves it open: the fastest here, by a trial that is remembered.

Without a trial (`EDGEMM_NO_MICROBENCH`, `SessionOptions.microbench`, a component that is not worth one) the rule holds:
the runtime that prefers the role (`edgemm.runtimes.registry`).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from edgemm.bundle.files import cache_dir, write_atomically
from edgemm.errors import RuntimeUnavailable, StorageError
from edgemm.runtimes import providers, registry
from edgemm.runtimes.base import SessionOptions

SWITCH = "EDGEMM_NO_MICROBENCH"
Trial = Callable[[Sequence[str]], Mapping[str, float]]
"""Names of runtimes → milliseconds of each that could run the component."""

CLEARLY = 0.9
"""A runtime takes the place of the rule's where it needs less than this share of its time: trials are short."""

_FORM = 2
# A table that is looked up, and a network of a few thousand weights: nothing to choose.
_NEVER = ("embed_tokens", "voice_activity")


@dataclass(frozen=True)
class Question:
    """What a choice depends on: the component, and how it is run."""

    graph_sha256: str
    role: str
    precision: str
    device: str
    threads: int
    exact: bool


def candidates(role: str, device: str, precision: str = "") -> tuple[str, ...]:
    """The runtimes that could run a component here, the rule's first.

    Raises UsageError where no runtime knows the device, RuntimeUnavailable where none that does is installed.
    """
    known = providers.runtimes_for(device)
    able = [r for r in map(registry.RUNTIMES.__getitem__, known) if r.installed]
    able = [r for r in able if not precision or precision in r.precisions]
    if not able:
        names = " and ".join(known)
        extra = next((registry.RUNTIMES[n].extra for n in known if registry.RUNTIMES[n].extra), "")
        hint = f'run: pip install "edgemm[{extra}]"' if extra else "run: edgemm doctor"
        raise RuntimeUnavailable(f"the device {device} needs {names}, which is not installed", hint=hint)
    names_able = [r.name for r in able]
    first = registry.choose("auto", role, only=names_able)
    return (first, *(n for n in names_able if n != first)) if first in names_able else tuple(names_able)


def choose(runtime: str, question: Question, options: SessionOptions, trial: Trial, *, any_length: bool = False) -> str:
    """The runtime for a component; `trial` is called at most once for a question on one machine.

    What takes sound of `any_length` runs on the fallback where the user leaves it open: OpenVINO makes and keeps code
    for each length, 6 to 9 MB and more time than the run itself, and a trial, of one length, shows neither.
    Raises UsageError or RuntimeUnavailable for a runtime or a device that is not known or not here.
    """
    if runtime != "auto":
        name = registry.choose(runtime, question.role)
        providers.require_device(name, options.device)
        return name
    names = candidates(question.role, question.device, question.precision)
    if any_length and registry.FALLBACK in names:
        return registry.FALLBACK
    if len(names) == 1 or question.role in _NEVER or not options.microbench or os.environ.get(SWITCH):
        return names[0]
    memory = cache_dir("choices", f"{_key(question, names)}.json")
    known = _remembered(memory, names)
    if known is not None:
        return known
    times = dict(trial(names))
    best = fastest(names, times)
    _remember(memory, best, times, question)
    return best


def fastest(names: Sequence[str], times: Mapping[str, float]) -> str:
    """The first of `names`, unless another is clearly faster. Where the first could not run, nothing was compared."""
    if names[0] not in times:
        return names[0]
    best = min(times, key=times.__getitem__)
    return best if times[best] < CLEARLY * times[names[0]] else names[0]


def _key(question: Question, names: Sequence[str]) -> str:
    about = {
        "form": _FORM,
        "versions": {name: registry.RUNTIMES[name].version for name in names},
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        **asdict(question),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


@cache
def processor() -> str:
    """The processor by its own name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, "") or platform.processor() or platform.machine()


def _remembered(memory: Path, names: Sequence[str]) -> str | None:
    try:
        name = json.loads(memory.read_bytes())["runtime"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return name if name in names else None


def _remember(memory: Path, best: str, times: Mapping[str, float], question: Question) -> None:
    record = {"runtime": best, "median_ms": dict(times), **asdict(question)}
    # Where there is no place for it, it is measured again the next time.
    with suppress(OSError, StorageError):
        write_atomically(memory, json.dumps(record, indent=1).encode())
