"""A bundle that is loaded and ready to work: the object behind `edgemm.load()`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, Unpack

from edgemm.bundle.opening import Bundle, open_bundle
from edgemm.decoding.options import Generation, GenerationKeywords, chosen
from edgemm.errors import BundleError, InputError
from edgemm.results import Answer, Caption, Description, Detections, Embedding, Labels, Ranking, Transcript
from edgemm.runtimes import registry
from edgemm.runtimes.base import SessionOptions
from edgemm.tasks.graphs import Graphs
from edgemm.tasks.registry import create

if TYPE_CHECKING:
    from edgemm.bundle.manifest import ModelEntry
    from edgemm.runtimes.rebuilding import Rebuild
    from edgemm.tasks.conversation import Conversation
    from edgemm.tasks.voice import VoiceActivity


def default_bundle_path() -> str:
    """The bundle that the package carries."""
    import importlib.resources

    return str(importlib.resources.files("edgemm") / "default" / "bundle")


class Model:
    """The tasks of one bundle. Every method may be called from any thread; calls to one model wait for each other.

    `runtimes` and `precisions` say, per component, what it runs on and how its numbers are stored. `remark` is told in
    words what takes its time: a trial of runtimes, an engine that is built again.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        runtime: str = "auto",
        options: SessionOptions | None = None,
        remark: Callable[[str], None] = lambda _: None,
    ) -> None:
        if runtime not in registry.CHOICES:
            registry.choose(runtime, "")
        self.bundle = bundle
        how = options or SessionOptions()
        models = bundle.manifest.models
        self._graphs = {m.name: Graphs(bundle, m, runtime, how, remark=remark) for m in models}
        self._tasks: dict[tuple[str, str], Any] = {}
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

    @property
    def rebuilds(self) -> dict[str, Rebuild]:
        """component → the engine of it that is being built again, because the one that there was does not fit."""
        return {name: made for graphs in self._graphs.values() for name, made in graphs.rebuilds.items()}

    def classify(
        self,
        image: Any = None,
        *,
        frames: Sequence[Any] | None = None,
        audio: Any = None,
        sample_rate_hz: int = 16_000,
        labels: Sequence[str] | None = None,
        template: str | None = None,
        top: int = 5,
    ) -> Labels:
        """The `top` likeliest classes of a picture, of a clip's `frames`, or of a sound.

        Pictures are uint8 RGB [H, W, 3], PIL images or paths; sound is float32 [samples]. A model without classes of
        its own is given `labels` in words, and `template` to make them sentences ("a photo of {}").
        """
        given = {"frames": frames, "audio": audio, "labels": labels, "template": template}
        options = {name: value for name, value in given.items() if value is not None}
        if audio is not None:
            options["sample_rate_hz"] = sample_rate_hz
        takes = "audio" if audio is not None else "image" if frames is None else "video"
        kind = "zero_shot" if labels is not None else ""
        with self._lock("classify", takes, kind):
            result: Labels = self._task("classify", takes, kind)(image, top=top, **options)
            return result

    def embed(
        self, image: Any = None, *, text: str | None = None, audio: Any = None, sample_rate_hz: int = 16_000
    ) -> Embedding:
        """Where a picture, a text or a sound lies in the model's space: a vector of unit length."""
        takes = "text" if text is not None else "image" if audio is None else "audio"
        with self._lock("embed", takes):
            result: Embedding = self._task("embed", takes).embed(
                image, text=text, audio=audio, sample_rate_hz=sample_rate_hz
            )
            return result

    def retrieve(self, query: Any, items: Sequence[Any], *, top: int | None = None) -> Ranking:
        """`items` by their likeness to `query`, best first, each with its cosine to it.

        Both are texts (`str`), pictures (arrays, PIL images, `pathlib.Path`), sounds (samples, sample_rate_hz) or
        embeddings, of any kinds that the model knows.
        """
        with self._lock("retrieve"):
            result: Ranking = self._task("retrieve").rank(query, items, top=top)
            return result

    def recommend(self, image: Any, items: Sequence[Any], *, top: int | None = None) -> Ranking:
        """`items` that go best with a picture, or with a list of pictures and texts that someone liked.

        Items are as for `retrieve`, and so is what is given in place of a picture; a `str` is a text, not a path.
        """
        with self._lock("recommend"):
            result: Ranking = self._task("recommend").rank(image, items, top=top)
            return result

    def detect(self, image: Any, *, score_min: float = 0.5) -> Detections:
        """The objects of a picture whose score is above `score_min`, best first, with boxes in its own pixels."""
        with self._lock("detect"):
            result: Detections = self._task("detect")(image, score_min=score_min)
            return result

    def transcribe(
        self,
        samples: Any,
        *,
        sample_rate_hz: int = 16_000,
        language: str | None = None,
        words: bool = False,
        generation: Generation | None = None,
        **options: Unpack[GenerationKeywords],
    ) -> Transcript:
        """What was said in `samples`: float32 [samples] in -1…1 (or int16, or [samples, channels]).

        With `words` the transcript has `words`, each with its times; TaskUnavailable where the bundle has none.
        Generation options as for `answer`, but nothing that is drawn, stops at strings or follows a schema.
        """
        how = chosen(generation, options)
        with self._lock("transcribe"):
            result: Transcript = self._task("transcribe")(
                samples, sample_rate_hz=sample_rate_hz, language=language, words=words, generation=how
            )
            return result

    def answer(
        self,
        frames: Any,
        question: str,
        *,
        audio: Any = None,
        sample_rate_hz: int = 16_000,
        on_text: Callable[[str], None] | None = None,
        generation: Generation | None = None,
        **options: Unpack[GenerationKeywords],
    ) -> Answer:
        """Answer `question` about one picture, a list of pictures or, where the model hears, a sound.

        Without a question `audio` is the question, which a bundle that transcribes hears for a model that does not.
        `frames` may be `[]`. `audio` is float32 [samples]. `on_text` is given each new piece of text as it is
        made; what it raises ends the generation. How to generate is said by a `Generation`, by its fields as
        keywords (`max_new_tokens=32, beams=3`), or both.
        """
        how = chosen(generation, options)
        if audio is not None and not question.strip() and not self.hears("answer") and "transcribe" in self.tasks:
            return self._answer_spoken(frames, audio, sample_rate_hz, how, on_text)
        with self._lock("answer"):
            heard = {} if audio is None else {"audio": audio, "sample_rate_hz": sample_rate_hz}
            result: Answer = self._task("answer")(frames, question, generation=how, on_text=on_text, **heard)
            return result

    def hears(self, task: str) -> bool:
        """Whether the model that does `task` takes sound."""
        return self._entry(task).processing.audio is not None

    def _answer_spoken(
        self, frames: Any, audio: Any, rate_hz: int, how: Generation, on_text: Callable[[str], None] | None
    ) -> Answer:
        """The answer to a question that is transcribed first; its times begin with the transcription."""
        said = self.transcribe(audio, sample_rate_hz=rate_hz)
        if not said.text.strip():
            raise InputError("no question was heard", hint="ask it in words, or speak up")
        found = self.answer(frames, said.text, on_text=on_text, generation=how)
        before_ms = said.model_ms
        return replace(found, heard=said.text, ttft_ms=found.ttft_ms + before_ms, model_ms=found.model_ms + before_ms)

    def chat(self, *, system: str = "") -> Conversation:
        """A conversation of several turns, whose beginning is not read again for each of them.

        `system` are instructions that come before the first turn, for chat templates that take them.
        """
        from edgemm.tasks.conversation import Conversation

        with self._lock("answer"):
            return Conversation(self._task("answer"), self._lock("answer"), system)

    def caption(
        self, image: Any, *, generation: Generation | None = None, **options: Unpack[GenerationKeywords]
    ) -> Caption:
        """Describe one picture in words. Generation options are as for `answer`."""
        how = chosen(generation, options)
        with self._lock("caption"):
            result: Caption = self._task("caption").caption(image, generation=how)
            return result

    def describe(
        self,
        frames: Sequence[Any],
        times_s: Sequence[float] | None = None,
        *,
        generation: Generation | None = None,
        **options: Unpack[GenerationKeywords],
    ) -> Description:
        """Say what happens in a clip: its frames in order, `times_s` in seconds on any clock.

        Generation options are as for `answer`.
        """
        how = chosen(generation, options)
        with self._lock("describe"):
            result: Description = self._task("describe").describe(frames, times_s, generation=how)
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

    def _entry(self, task: str, takes: str = "", kind: str = "") -> ModelEntry:
        """The first model that does `task` with what `takes` names ("audio") and as `kind`; else the first of all."""

        def fits(entry: ModelEntry) -> bool:
            processing = entry.processing
            found = not takes or getattr(processing, takes) is not None
            return found and (not kind or processing.functions.get(task) == kind)

        entries = [m for m in self.bundle.manifest.models if task in m.tasks and fits(m)]
        return entries[0] if entries else self.bundle.model_for(task)

    def _lock(self, task: str, takes: str = "", kind: str = "") -> threading.RLock:
        return self._locks[self._entry(task, takes, kind).name]

    def _task(self, task: str, takes: str = "", kind: str = "") -> Any:
        entry = self._entry(task, takes, kind)
        with self._building:
            key = (task, entry.name)
            if key not in self._tasks:
                self._tasks[key] = create(task, self._graphs[entry.name])
            return self._tasks[key]


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    runtime: str = "auto",
    device: str = "CPU",
    threads: int = 0,
    exact: bool | None = None,
    microbench: bool = True,
) -> Model:
    """Open a bundle and give its tasks. Without `path`, the default bundle that edgemm carries.

    `runtime` is `auto` or one of `edgemm.runtimes.registry.RUNTIMES`; `threads` 0 lets it decide. Without `exact` it
    may compute in reduced precision; None means so where weights are int8 or int4. With `auto` the faster runtime of
    each component is found by a trial of a second or two, once on a machine; without `microbench`, or with
    EDGEMM_NO_MICROBENCH set, a rule decides.
    Raises BundleError, RuntimeUnavailable or UsageError.
    """
    if path is None and not os.path.isdir(default_bundle_path()):
        raise BundleError("this edgemm carries no default bundle", hint="run: edgemm export --int8 -o bundle")
    bundle = open_bundle(path if path is not None else default_bundle_path())
    options = SessionOptions(device=device, threads=threads, exact=exact, microbench=microbench)
    return Model(bundle, runtime=runtime, options=options)
