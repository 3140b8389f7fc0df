"""The runtimes that edgemm knows: the only list of their names.

The command line's choices, the documentation and the tests are derived from it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from edgemm.errors import RuntimeUnavailable, UsageError, missing_extra
from edgemm.runtimes.base import Decoder, Session, SessionOptions, StatePort
from edgemm.runtimes.cuda import why_no_gpu
from edgemm.runtimes.tensorrt_api import DISTRIBUTIONS


@dataclass(frozen=True)
class Capabilities:
    """What a runtime can do: data that choices are made from, never an if-chain.

    `fuses_attention`: weights that nobody asks for are never computed, so a decoder is faster without `alignment`.
    `runs_engines`: it loads what `edgemm build` made of a graph, never the graph. `module` implements it, by default
    the one of its name.
    """

    name: str
    distributions: tuple[str, ...]
    package: str
    extra: str
    precisions: tuple[str, ...]
    max_opset: int
    needs_gpu: bool
    builds_ahead: bool
    prefers: tuple[str, ...]
    int8_operators: tuple[str, ...] = ()
    fuses_attention: bool = False
    runs_engines: bool = False
    module: str = ""

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    @property
    def missing(self) -> str:
        """Why it cannot run here although it is installed; empty where it can."""
        return why_no_gpu() if self.needs_gpu else ""

    @property
    def version(self) -> str:
        """Version of the installed distribution; empty where there is none."""
        for distribution in self.distributions:
            try:
                return importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
        return ""


class _Module(Protocol):
    def load_session(self, path: Path, options: SessionOptions) -> Session: ...

    def load_decoder(
        self, path: Path, states: tuple[StatePort, ...], capacity: int, options: SessionOptions
    ) -> Decoder: ...


_ENCODERS = ("vision_encoder", "audio_encoder", "text_encoder", "model")

RUNTIMES: dict[str, Capabilities] = {
    c.name: c
    for c in (
        Capabilities(
            name="onnxruntime",
            distributions=("onnxruntime", "onnxruntime-gpu"),
            package="onnxruntime",
            extra="",
            precisions=("fp32", "fp16", "int8", "int4"),
            max_opset=24,
            needs_gpu=False,
            builds_ahead=False,
            prefers=("decoder", "embed_tokens", "voice_activity"),
            # Convolutions would need quantized outputs too, which costs accuracy.
            int8_operators=("MatMul", "Gemm"),
        ),
        Capabilities(
            name="openvino",
            distributions=("openvino",),
            package="openvino",
            extra="openvino",
            precisions=("fp32", "fp16", "int8", "int4"),
            max_opset=23,
            needs_gpu=False,
            builds_ahead=True,
            prefers=_ENCODERS,
            int8_operators=("MatMul", "Gemm", "Conv"),
            # Whisper tiny.en: 3 % a step in fp32, 5 % in int8 (docs/PERFORMANCE.md).
            fuses_attention=True,
        ),
        # Preferred for nothing as long as no engine of ours was timed on a GPU: `auto` never takes it.
        *(
            Capabilities(
                name=name,
                distributions=distributions,
                package=name.replace("-", "_"),
                extra=name,
                precisions=("fp32", "fp16", "int8", "int4"),
                max_opset=21,
                needs_gpu=True,
                builds_ahead=name == "tensorrt-rtx",
                prefers=(),
                runs_engines=True,
                module="tensorrt",
            )
            for name, distributions in DISTRIBUTIONS.items()
        ),
    )
}
CHOICES = ("auto", *RUNTIMES)
FALLBACK = "onnxruntime"
_ELSEWHERE = f"use --runtime auto or {FALLBACK}; an engine runs on the machine with the GPU"


def choose(runtime: str, role: str, *, only: Sequence[str] = ()) -> str:
    """The runtime for a component that plays `role`. `only` restricts the choice.

    `auto` takes the runtime that prefers the role (measured on x86: OpenVINO for encoders, ONNX Runtime for
    decoding) where it is installed. Raises UsageError for an unknown name, RuntimeUnavailable for one
    that is not installed or has no GPU here.
    """
    if runtime not in CHOICES:
        raise UsageError(f"no runtime is called {runtime!r}", hint=f"use {', '.join(CHOICES)}")
    if runtime != "auto":
        if not RUNTIMES[runtime].installed:
            raise missing_extra(runtime, RUNTIMES[runtime].extra)
        if RUNTIMES[runtime].missing:
            raise RuntimeUnavailable(f"{runtime} cannot run here: {RUNTIMES[runtime].missing}", hint=_ELSEWHERE)
        return runtime
    preferred = [c for c in RUNTIMES.values() if role in c.prefers and (not only or c.name in only)]
    # Whether there is a GPU is asked last: starting its driver takes a moment.
    return next((c.name for c in preferred if c.installed and not c.missing), FALLBACK)


def module(runtime: str) -> _Module:
    """The module that implements `runtime`."""
    return cast(_Module, importlib.import_module(f"edgemm.runtimes.{RUNTIMES[runtime].module or runtime}"))
