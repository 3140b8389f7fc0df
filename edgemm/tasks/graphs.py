"""The loaded graphs of one model of a bundle."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgemm.bundle.manifest import SMALL, Component, ModelEntry
from edgemm.bundle.opening import Bundle
from edgemm.errors import BundleError
from edgemm.runtimes import registry
from edgemm.runtimes.base import Decoder, Session, SessionOptions, Shapes, StatePort, as_numpy, state_port
from edgemm.runtimes.choice import Question, choose
from edgemm.runtimes.engines import engines_of, graph_hash
from edgemm.runtimes.rebuilding import Rebuild, rebuild
from edgemm.tasks.trial import compare

T = TypeVar("T")


@dataclass
class Graphs:
    """Loads the components of `entry` when they are first asked for, each on its runtime.

    `load_decoder` stands in for the runtime's own, where somebody wants to watch the decoder. `remark` is told in words
    what takes its time: a trial of runtimes, an engine that is built again. `rebuilds` has the latter, by component.
    `shared` is where tasks of one model keep what they share.
    """

    bundle: Bundle
    entry: ModelEntry
    runtime: str
    options: SessionOptions
    chosen: dict[str, str] = field(default_factory=dict)
    load_decoder: Callable[[Path, tuple[StatePort, ...], int, SessionOptions], Decoder] | None = None
    remark: Callable[[str], None] = lambda _: None
    rebuilds: dict[str, Rebuild] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    _engines: dict[str, Path] = field(default_factory=dict)
    _sessions: dict[str, Session] = field(default_factory=dict)
    _decoder: Decoder | None = None
    _aligned: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def runtime_of(self, role: str) -> str:
        """The name of the runtime that `role` runs on."""
        component = self._component(role)
        if component.name not in self.chosen:
            runtime = self._choose(component)
            if registry.RUNTIMES[runtime].runs_engines:
                runtime = self._with_engine(component, runtime)
            self.chosen[component.name] = runtime
        return self.chosen[component.name]

    def _with_engine(self, component: Component, runtime: str) -> str:
        """`runtime` where an engine of it is fresh. Where one was once, the fallback, until it is built again."""
        from edgemm.runtimes.tensorrt_engine import find_engine

        try:
            self._engines[component.name] = find_engine(self.bundle, component, runtime, self.options)
        except BundleError as error:
            return self._fall_back(component, runtime, error)
        return runtime

    def _fall_back(self, component: Component, runtime: str, error: BundleError) -> str:
        """The fallback, while an engine of `runtime` is built again. Raises `error` where there never was one."""
        from edgemm.runtimes.tensorrt_engine import open_device

        if next(engines_of(self.bundle, component=component.name, target=runtime), None) is None:
            raise error
        gpus = (open_device(self.options).sm,)
        self.rebuilds[component.name] = rebuild(self.bundle, component, runtime, gpus)
        at_once = f" ({error.hint} at once)" if error.hint else ""
        self.remark(f"{error.message}: {registry.FALLBACK} serves until it is built again{at_once}")
        return registry.FALLBACK

    def _choose(self, component: Component) -> str:
        options = self.options
        stateful = component.role == "decoder" and bool(self.bundle.manifest.states_of(component.name))
        question = Question(
            graph_sha256=graph_hash(self.bundle, component),
            role=component.role,
            precision=component.precision,
            device=options.device,
            threads=options.threads,
            exact=self._exact(component),
        )

        def load(runtime: str) -> Session | Decoder:
            graphs = Graphs(self.bundle, self.entry, runtime, options)
            return graphs.decoder() if stateful else graphs.session(component.role)

        def trial(names: Sequence[str]) -> dict[str, float]:
            self.remark(f"trying which runtime is faster for {component.name}: once on this machine")
            return compare(component, names, load, stateful=stateful)

        return choose(self.runtime, question, options, trial, any_length=self._hears_any_length(component))

    def _hears_any_length(self, component: Component) -> bool:
        """Whether its inputs are as long as the sound is."""
        if self.entry.processing.audio is None:
            return False
        heard = (i for i in component.inputs if i.name.startswith(("input_values", "input_features", "cross.")))
        return any(d.min < d.max for i in heard for d in i.dims if d.name != "batch")

    def session(self, role: str) -> Session:
        """The stateless graph of `role`."""
        with self._lock:
            if role not in self._sessions:
                self._sessions[role] = self._loaded(role, lambda: self._load_session(role))
            return self._sessions[role]

    def decoder(self, *, alignment: bool = False) -> Decoder:
        """The decoder with an empty state. One caller at a time.

        With `alignment` it can say what it attends to, for which it is loaded anew where it was loaded without.
        """
        with self._lock:
            if self._decoder is not None and alignment and not self._aligned:
                self._decoder.close()
                self._decoder = None
            if self._decoder is None:
                self._decoder = self._loaded("decoder", lambda: self._load_decoder(alignment))
            self._decoder.reset()
            return self._decoder

    def _loaded(self, role: str, load: Callable[[], T]) -> T:
        """What `load` makes; once more on the fallback where the library refuses an engine that looked fresh."""
        component, runtime = self._component(role), self.runtime_of(role)
        try:
            return load()
        except BundleError as error:
            if not registry.RUNTIMES[runtime].runs_engines:
                raise
            self.chosen[component.name] = self._fall_back(component, runtime, error)
            return load()

    def _load_session(self, role: str) -> Session:
        return registry.module(self.runtime_of(role)).load_session(self._file(role), self._options(role))

    def _load_decoder(self, alignment: bool) -> Decoder:
        component, runtime = self._component("decoder"), self.runtime_of("decoder")
        states = tuple(map(state_port, self.bundle.manifest.states_of(component.name)))
        self._aligned = alignment or not registry.RUNTIMES[runtime].fuses_attention
        options = replace(self._options("decoder"), alignment=self._aligned)
        load = self.load_decoder or registry.module(runtime).load_decoder
        return load(self._file("decoder"), states, self.entry.context, options)

    def _file(self, role: str) -> Path:
        """What the runtime of `role` loads: the portable graph, or an engine that was built of it."""
        component, runtime = self._component(role), self.runtime_of(role)
        runs_engines = registry.RUNTIMES[runtime].runs_engines
        return self._engines[component.name] if runs_engines else self.bundle.file(component.file)

    def _options(self, role: str) -> SessionOptions:
        component = self._component(role)
        runs_int8 = registry.RUNTIMES[self.runtime_of(role)].int8_operators
        small = component.precision in SMALL
        computes = bool(component.int8_operators) and component.int8_operators[0] in runs_int8
        shapes = _opt_shapes(component) if self.options.device.startswith("NPU") else ()
        weights_alone = small and not computes
        return replace(self.options, exact=self._exact(component), int8_weights=weights_alone, shapes=shapes)

    def _exact(self, component: Component) -> bool:
        return component.precision not in SMALL if self.options.exact is None else self.options.exact

    def labels(self, task: str) -> tuple[str, ...]:
        """The labels of a task; BundleError where the model has none."""
        file = self.entry.task_labels.get(task, self.entry.labels)
        if file is None:
            raise BundleError(f"{self.entry.name} lacks its labels", hint="export it again")
        return tuple(json.loads(self.bundle.file(file).read_text()))

    def embed(self) -> Callable[[NDArray[np.int64]], NDArray[Any]]:
        """ids [B, S] → embeddings [B, S, hidden]."""
        session = self.session("embed_tokens")

        def embed(ids: NDArray[np.int64]) -> NDArray[Any]:
            return as_numpy(session.run({"input_ids": ids})["inputs_embeds"])

        return embed

    def inputs_of(self, role: str) -> tuple[str, ...]:
        """Names of a graph's inputs, from the manifest."""
        return tuple(t.name for t in self._component(role).inputs)

    def outputs_of(self, role: str) -> tuple[str, ...]:
        """Names of a graph's outputs, from the manifest."""
        return tuple(t.name for t in self._component(role).outputs)

    def dims_of(self, role: str, name: str) -> tuple[int, ...]:
        """The most that each dimension of a graph's input may be, from the manifest."""
        return next(tuple(d.max for d in t.dims) for t in self._component(role).inputs if t.name == name)

    def longest(self, role: str, dim: str = "source") -> int:
        """The most that a graph's symbolic dimension may be, from the manifest."""
        return next(d.max for t in self._component(role).inputs for d in t.dims if d.name == dim)

    def _component(self, role: str) -> Component:
        if role not in self.entry.components:
            raise BundleError(
                f"the model {self.entry.name} of {self.bundle.name} has no {role}",
                hint="export it again",
            )
        return self.bundle.component(self.entry, role)

    def close(self) -> None:
        """Free every graph."""
        with self._lock:
            for session in self._sessions.values():
                session.close()
            if self._decoder is not None:
                self._decoder.close()
            self._sessions, self._decoder = {}, None
            self.shared.clear()


def _opt_shapes(component: Component) -> Shapes:
    """The usual sizes of the inputs, for devices that take fixed ones alone."""
    return tuple((i.name, tuple(d.opt for d in i.dims)) for i in component.inputs)
