"""The manifest of a bundle: `edgemm.json`, as data.

A manifest is outside text, so every field is typed, bounded and closed: an unknown field, an absurd
number or a path that leaves the bundle is refused here, before any file is opened.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from edgemm.bundle.spec import (
    AudioSpec,
    ChatSpec,
    CtcSpec,
    GenerationSpec,
    ImageSpec,
    MaskSpec,
    MemorySpec,
    RegionsSpec,
    SimilaritySpec,
    TextSpec,
    TokensSpec,
    VideoSpec,
)

SCHEMA_VERSION: Literal[1] = 1
MANIFEST_NAME = "edgemm.json"
MANIFEST_HASH_NAME = "edgemm.json.sha256"

Precision = Literal["fp32", "fp16", "int8", "int4"]
SMALL: tuple[Precision, ...] = ("int8", "int4")
"""What weights are stored in as integers."""
DType = Literal["float32", "float16", "int64", "int32", "int8", "uint8", "bool"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or "\0" in path:
        raise ValueError(f"{path!r} is not a relative path")
    if any(part in ("..", ".") for part in path.split("/")):
        raise ValueError(f"{path!r} leaves the bundle")
    return path


RelativePath = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_inside)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Dim(_Part):
    """One dimension of a tensor; it is fixed where `min == max`."""

    name: str = ""
    min: int = Field(ge=0, le=2**31)
    opt: int = Field(ge=0, le=2**31)
    max: int = Field(ge=0, le=2**31)


class TensorInfo(_Part):
    """An input or an output of a graph."""

    name: str
    dtype: DType
    dims: tuple[Dim, ...]


class Component(_Part):
    """One graph of the bundle. `bytes` counts the graph and the weight files that it alone owns.

    `int8_operators` are those whose activations are int8 too, the most frequent first.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")
    model: str
    role: str
    precision: Precision
    int8_operators: tuple[str, ...] = ()
    file: RelativePath
    weights: tuple[RelativePath, ...] = ()
    sha256: Sha256
    bytes: int = Field(ge=0, le=2**41)
    parameters: int = Field(ge=0, le=2**41)
    opset: int = Field(ge=1, le=64)
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class State(_Part):
    """One tensor that a decoder carries from call to call."""

    component: str
    input: str
    output: str
    kind: Literal["kv", "conv", "recurrent"]
    shape: tuple[Dim, ...]
    growth_axis: int | None = None


class Processing(_Part):
    """The constants of the host side of one model. `functions` names host functions by role."""

    image: ImageSpec | None = None
    audio: AudioSpec | None = None
    video: VideoSpec | None = None
    text: TextSpec | None = None
    chat: ChatSpec | None = None
    regions: RegionsSpec | None = None
    mask: MaskSpec | None = None
    similarity: SimilaritySpec | None = None
    ctc: CtcSpec | None = None
    memory: MemorySpec | None = None
    functions: dict[str, str] = {}


class Source(_Part):
    """Where the weights came from. `sha256` covers every weight file, in the order of their names."""

    id: str
    revision: str = ""
    sha256: Sha256
    model_type: str
    tasks: tuple[str, ...]
    licence: str = ""
    parameters: int = Field(default=0, ge=0)
    bytes_fp32: int = Field(default=0, ge=0)


class ModelEntry(_Part):
    """One model of the bundle: what it can do, its graphs by role, its host side.

    `labels` is the file of its labels, `task_labels` that of tasks which have others.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    source: Source
    tasks: tuple[str, ...]
    components: dict[str, str]
    processing: Processing
    tokens: TokensSpec | None = None
    generation: GenerationSpec | None = None
    labels: RelativePath | None = None
    task_labels: dict[str, RelativePath] = {}
    context: int = Field(default=0, ge=0, le=2**24)


class Calibration(_Part):
    """The data that activation ranges came from."""

    n: int = Field(ge=0)
    sha256: Sha256 | None = None
    what: str = ""


class NodeNote(_Part):
    """A node or a group of nodes that the recipe left alone, and why."""

    component: str
    node: str
    reason: str


class Quantization(_Part):
    """How each component came to its precision."""

    recipe: dict[str, str] = {}
    calibration: dict[str, Calibration] = {}
    restored: tuple[NodeNote, ...] = ()
    excluded: tuple[NodeNote, ...] = ()


class ParityCheck(_Part):
    """A graph against the original module in fp32, over several shapes (the worst one stands here)."""

    component: str
    precision: Precision
    max_abs: float
    cosine: float
    shapes: int


class TaskCheck(_Part):
    """A task's metric of the original and of the bundle on the same examples."""

    model: str
    task: str
    metric: str
    before: float
    after: float
    n: int


class GateCheck(_Part):
    """The metric, in percent, on the user's data that decided: of the fp32 bundle and of this one.

    `max_drop` is how many points worse it was allowed to be.
    """

    metric: str
    before: float
    after: float
    max_drop: float
    n: int


class SpeedCheck(_Part):
    """A component's median time in fp32 and in this bundle, in the same rounds on the machine of `checks`.

    `low` is the lower end of the 95 % interval of `ratio`, before / after. Not `judged`: too little of the whole.
    """

    component: str
    runtime: str
    before_ms: float
    after_ms: float
    ratio: float
    low: float
    judged: bool = True


class Checks(_Part):
    """What was verified before the bundle was written.

    With `layers` the comparisons are of a copy at full width with so many layers of each stack, since the whole did not
    fit into memory twice; `weights_equal` weights of the whole then have the hash of the checkpoint's.
    """

    layers: int | None = None
    weights_equal: int | None = None
    parity: tuple[ParityCheck, ...] = ()
    tokens_equal: dict[str, float] = {}
    tasks: tuple[TaskCheck, ...] = ()
    gate: GateCheck | None = None
    speed: tuple[SpeedCheck, ...] = ()
    machine: str = ""
    tools: dict[str, str] = {}


class Engine(_Part):
    """A compiled engine beside the portable graphs."""

    component: str
    target: str
    gpu: tuple[str, ...] = ()
    builder: str
    driver: str = ""
    sha256: Sha256
    options_sha256: Sha256
    seconds: float
    bytes: int = Field(ge=0)


class FileEntry(_Part):
    """Size and hash of one file of the bundle."""

    sha256: Sha256
    bytes: int = Field(ge=0, le=2**41)


class Manifest(_Part):
    """`edgemm.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    edgemm_version: str
    source: Source
    models: tuple[ModelEntry, ...] = Field(min_length=1, max_length=64)
    components: tuple[Component, ...] = Field(min_length=1, max_length=1024)
    state: tuple[State, ...] = Field(default=(), max_length=65536)
    quantization: Quantization = Quantization()
    checks: Checks = Checks()
    engines: tuple[Engine, ...] = ()
    files: dict[RelativePath, FileEntry]

    def component(self, name: str) -> Component:
        """The component called `name`; KeyError where there is none."""
        return {c.name: c for c in self.components}[name]

    def states_of(self, component: str) -> tuple[State, ...]:
        """The state tensors of one decoder, in graph order."""
        return tuple(s for s in self.state if s.component == component)
