"""A bundle that is loaded and ready to work: the object behind `edgemm.load()`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from edgemm.bundle.opening import Bundle, open_bundle
from edgemm.errors import BundleError
from edgemm.results import Answer, Caption, Labels, Transcript
from edgemm.runtimes import registry
from edgemm.runtimes.base import SessionOptions
from edgemm.tasks.graphs import Graphs
from edgemm.tasks.registry import create

if TYPE_CHECKING:
    from edgemm.tasks.voice import VoiceActivity


def default_bundle_path() -> str:
    """The bundle that the package carries."""
    import importlib.resources

    return str(importlib.resources.files("edgemm") / "default" / "bundle")


class Model:
    """The tasks of one bundle. Every method may be called from any thread; calls to one model wait for each other.

    `runtimes` and `precisions` say, per component, what it runs on and how its numbers are stored.
    """

    def __init__(self, bundle: Bundle, *, runtime: str = "auto", options: SessionOptions | None = None) -> None:
        if runtime not in registry.CHOICES:
            registry.choose(runtime, "")
        self.bundle = bundle
        self._graphs = {m.name: Graphs(bundle, m, runtime, options or SessionOptions()) for m in bundle.manifest.models}
        self._tasks: dict[str, Any] = {}
        self._locks = {m.name: threading.RLock() for m in bundle.manifest.models}
        self._building = threading.RLock()

    @property
    def name(self) -> str:
        return self.bundle.name

    @property
    def tasks(self) -> tuple[str, ...]:
        """What this bundle can do."""
        return self.bundle.tasks

    @property
    def precisions(self) -> dict[str, str]:
        """component → precision."""
        return {c.name: c.precision for c in self.bundle.manifest.components}

    @property
    def runtimes(self) -> dict[str, str]:
        """component → runtime."""
        return {
            name: self._graphs[model.name].runtime_of(role)
            for model in self.bundle.manifest.models
            for role, name in model.components.items()
        }

    def classify(self, image: Any = None, *, top: int = 5) -> Labels:
        """The `top` likeliest classes of a picture: uint8 RGB [H, W, 3], a PIL image or a path."""
        with self._lock("classify"):
            result: Labels = self._task("classify")(image, top=top)
            return result

    def transcribe(self, samples: Any, *, sample_rate_hz: int = 16_000, language: str | None = None) -> Transcript:
        """What was said in `samples`: float32 [samples] in -1…1 (or int16, or [samples, channels])."""
        with self._lock("transcribe"):
            result: Transcript = self._task("transcribe")(samples, sample_rate_hz=sample_rate_hz, language=language)
            return result

    def answer(
        self,
        frames: Any,
        question: str,
        *,
        max_new_tokens: int = 64,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer `question` about one picture or a list of pictures.

        `on_text` is given each new piece of text as it is made; what it raises ends the generation.
        """
        with self._lock("answer"):
            result: Answer = self._task("answer")(frames, question, max_new_tokens=max_new_tokens, on_text=on_text)
            return result

    def caption(self, image: Any, *, max_new_tokens: int = 64) -> Caption:
        """Describe one picture in words."""
        with self._lock("caption"):
            result: Caption = self._task("caption").caption(image, max_new_tokens=max_new_tokens)
            return result

    def voice_activity(self) -> VoiceActivity:
        """A new stream of speech probabilities."""
        from edgemm.tasks.voice import VoiceActivity

        entry = self.bundle.model_for("voice_activity")
        return VoiceActivity(self._graphs[entry.name])

    def task(self, name: str) -> Any:
        """The object that does a task, loaded; TaskUnavailable where the bundle can't."""
        with self._lock(name):
            return self._task(name)

    def warm_up(self, tasks: Sequence[str] = ()) -> None:
        """Load what `tasks` need (all by default) and run it once."""
        for name in tasks or self.tasks:
            if name == "voice_activity":
                self.voice_activity()
            else:
                with self._lock(name):
                    self._task(name).warm_up()

    def close(self) -> None:
        """Free every graph."""
        for graphs in self._graphs.values():
            graphs.close()
        self._tasks = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock(self, task: str) -> threading.RLock:
        return self._locks[self.bundle.model_for(task).name]

    def _task(self, task: str) -> Any:
        with self._building:
            if task not in self._tasks:
                graphs = self._graphs[self.bundle.model_for(task).name]
                self._tasks[task] = create(task, graphs)
            return self._tasks[task]


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    runtime: str = "auto",
    device: str = "CPU",
    threads: int = 0,
    exact: bool = True,
) -> Model:
    """Open a bundle and give its tasks. Without `path`, the default bundle that edgemm carries.

    `runtime` is `auto` or one of `edgemm.runtimes.registry.RUNTIMES`; `threads` 0 lets it decide; without `exact`
    it may compute in reduced precision. Raises BundleError, RuntimeUnavailable or UsageError.
    """
    if path is None and not os.path.isdir(default_bundle_path()):
        raise BundleError("this edgemm carries no default bundle", hint="run: edgemm export --int8 -o bundle")
    bundle = open_bundle(path if path is not None else default_bundle_path())
    options = SessionOptions(device=device, threads=threads, exact=exact)
    return Model(bundle, runtime=runtime, options=options)
