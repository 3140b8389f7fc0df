"""The plan of what another exporter made: one ready graph, and the host side from its preprocessor_config.json."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper
from transformers import AutoConfig

from edgemm.bundle.manifest import Precision, Processing
from edgemm.bundle.spec import AudioSpec, KaldiMelSpec, RawAudioSpec, ResizeCropSpec, TokensSpec
from edgemm.errors import CheckFailed, CheckpointError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.ctc import collapsed, raw_spec, vocabulary
from edgemm.export.families.audio_spectrogram_transformer import mel_spec
from edgemm.export.foreign import FEATURES, Foreign
from edgemm.export.image_spec import image_spec, share_spec, twice_normalized_spec
from edgemm.export.model_plan import Example, ModelPlan, ReadyGraph, Reference
from edgemm.export.speech import log_mel_spec
from edgemm.export.taggers import Sight, functions, hear, labels_of

Spec = ResizeCropSpec | AudioSpec
Answer = Callable[[Example], NDArray[np.float32]]

_BICUBIC = 3
# Processors by their name without "ImageProcessor", "FeatureExtractor" and what says how fast they are.
_PICTURES: dict[str, Callable[[dict[str, Any], int], ResizeCropSpec]] = {
    "ViT": image_spec,
    **dict.fromkeys(("Bit", "CLIP", "DeiT", "Siglip"), lambda c, size: image_spec({"resample": _BICUBIC} | c, size)),
    "ConvNext": lambda c, size: share_spec({"size": size} | c),
    "EfficientNet": twice_normalized_spec,
}
_SOUNDS: dict[str, Callable[[Checkpoint, Any], AudioSpec]] = {
    "Wav2Vec2": raw_spec,
    "AST": mel_spec,
    "Whisper": log_mel_spec,
}
# Models whose first token stands for the whole picture.
_CLASS_TOKEN = ("deit", "dinov2", "dinov2_with_registers", "vit")


def foreign_plan(made: Foreign) -> ModelPlan:
    """One graph, adapted to the contract's names: a classifier, a CTC model or a feature extractor of pictures.

    The original is the graph itself, on ONNX Runtime. Raises CheckpointError for what no bundle can be made of.
    """
    if made.refusal:
        raise CheckpointError(f"{made.checkpoint.path} was made by {made.maker}: {made.refusal}", hint=made.advice)
    _check_portable(made)
    checkpoint = made.checkpoint
    try:
        config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise CheckpointError(f"{checkpoint.path / 'config.json'} is unknown to transformers: {reason}") from error
    spec = _spec(made, config)
    answer = _own_answers(made, spec)
    _check_alive(made, answer)
    if made.tasks[0] == "embed":
        return _embedder(made, spec, answer)
    plan = _listener if isinstance(spec, RawAudioSpec) and made.tasks[0] == "transcribe" else _tagger
    return plan(made, config, spec, answer)


def _check_portable(made: Foreign) -> None:
    model = onnx.load(made.graphs[0].path, load_external_data=False)
    foreign = sorted({n.domain for n in model.graph.node} - {"", "ai.onnx"})
    if foreign:
        raise CheckpointError(
            f"{made.graphs[0].path} has operators of {', '.join(foreign)}: expected portable ONNX", hint=made.advice
        )


def _spec(made: Foreign, config: Any) -> Spec:
    settings = made.checkpoint.json("preprocessor_config.json")
    written = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", written)
    pictures = made.graphs[0].inputs[0].name == "pixel_values"
    known: dict[str, Any] = dict(_PICTURES if pictures else _SOUNDS)
    if kind not in known:
        raise CheckpointError(
            f"{made.checkpoint.path} prepares its input with {written or 'nothing that it names'}: expected a "
            f"preprocessor_config.json of {', '.join(known)}",
            hint="copy it from the model that was fine-tuned" if not written else made.advice,
        )
    if not pictures:
        return cast(AudioSpec, known[kind](made.checkpoint, config))
    size = getattr(config, "image_size", 224)
    spec: ResizeCropSpec = known[kind](settings, size[0] if isinstance(size, (list, tuple)) else size)
    _check_size(made, spec)
    return spec


def _check_size(made: Foreign, spec: ResizeCropSpec) -> None:
    traced = made.graphs[0].inputs[0].dims[2:]
    given = (spec.height_px, spec.width_px)
    if any(isinstance(t, int) and t != g for t, g in zip(traced, given, strict=True)):
        raise CheckpointError(
            f"{made.graphs[0].path} takes pictures of {' × '.join(map(str, traced))} px, and preprocessor_config.json "
            f"makes them {given[0]} × {given[1]} px",
            hint=made.advice,
        )


def _adapter(made: Foreign, spec: Spec) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """Make a graph's names and layouts those of the contract, its pictures' size fixed, with one answer."""

    def adapt(model: onnx.ModelProto) -> onnx.ModelProto:
        graph = model.graph
        entry = next(v for v in graph.input if v.name == made.graphs[0].inputs[0].name)
        if isinstance(spec, ResizeCropSpec):
            for dim, size in zip(entry.type.tensor_type.shape.dim[1:], (3, spec.height_px, spec.width_px), strict=True):
                dim.dim_value = size
        if isinstance(spec, KaldiMelSpec):
            _transpose_input(graph, entry)
        answer = next(v for v in graph.output if v.name == _answer_name(made))
        del graph.output[:]
        graph.output.append(answer if answer.name == "logits" else _pooled(graph, answer))
        return model

    return adapt


def _transpose_input(graph: onnx.GraphProto, entry: onnx.ValueInfoProto) -> None:
    """input_values [B, T, mel] → the contract's input_features [B, mel, T]."""
    dims = entry.type.tensor_type.shape.dim
    last, middle = onnx.TensorShapeProto.Dimension(), onnx.TensorShapeProto.Dimension()
    middle.CopyFrom(dims[1])
    last.CopyFrom(dims[2])
    dims[1].CopyFrom(last)
    dims[2].CopyFrom(middle)
    inner = entry.name
    entry.name = "input_features"
    if inner == entry.name:
        inner = "frames"
        for node in graph.node:
            node.input[:] = [inner if i == "input_features" else i for i in node.input]
    graph.node.insert(0, helper.make_node("Transpose", [entry.name], [inner], name="to_frames", perm=[0, 2, 1]))


def _pooled(graph: onnx.GraphProto, answer: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """`image_features` [B, D]: the features themselves, or the first token of [B, T, D]."""
    kind = answer.type.tensor_type
    dims = [d.dim_value or d.dim_param or None for d in kind.shape.dim]
    name = "image_features"
    if len(dims) == 3:
        graph.initializer.append(helper.make_tensor("first_token", onnx.TensorProto.INT64, [], [0]))
        graph.node.append(helper.make_node("Gather", [answer.name, "first_token"], [name], name=name, axis=1))
    else:
        graph.node.append(helper.make_node("Identity", [answer.name], [name], name=name))
    return helper.make_tensor_value_info(name, kind.elem_type, [dims[0], dims[-1]])


def _answer_name(made: Foreign) -> str:
    """The output that is the answer: the logits, else the best features that there are."""
    outputs = {p.name: p for p in made.graphs[0].outputs}
    name = next(n for n in ("logits", *FEATURES) if n in outputs)
    if name == "logits":
        return name
    if len(outputs[name].dims) == 3 and made.checkpoint.model_type not in _CLASS_TOKEN:
        raise CheckpointError(
            f"the features of a {made.checkpoint.model_type} are {len(outputs[name].dims)}-dimensional, and which of "
            f"them stand for the whole is known for {', '.join(_CLASS_TOKEN)} alone",
            hint=made.advice,
        )
    return name


def _own_answers(made: Foreign, spec: Spec) -> Answer:
    """The graph's own answer [...] to one example, as it came, on ONNX Runtime."""
    source, output = made.graphs[0], _answer_name(made)

    @cache
    def session() -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(str(source.path), providers=["CPUExecutionProvider"])

    def answer(example: Example) -> NDArray[np.float32]:
        values = next(iter(_prepare(spec, example).values()))
        values = values.transpose(0, 2, 1) if isinstance(spec, KaldiMelSpec) else values
        half = session().get_inputs()[0].type == "tensor(float16)"
        feeds = {source.inputs[0].name: values.astype(np.float16) if half else values}
        return np.asarray(session().run([output], feeds)[0][0], np.float32)

    return answer


def _check_alive(made: Foreign, answer: Answer) -> None:
    rng = np.random.default_rng(99)
    pictures = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    sounds = rng.uniform(-0.5, 0.5, (2, 16_000)).astype(np.float32)
    one, other = (answer(Example(image=image, audio=sound)) for image, sound in zip(pictures, sounds, strict=True))
    if np.allclose(one, other, atol=1e-6):
        raise CheckFailed(
            f"{made.graphs[0].path} does not listen to its input {made.graphs[0].inputs[0].name}: a modality is dead",
            hint=made.advice,
        )


def _prepare(spec: Spec, example: Example) -> dict[str, NDArray[Any]]:
    if isinstance(spec, ResizeCropSpec):
        return Sight(spec).prepare(example)
    return hear(example, cast("KaldiMelSpec | RawAudioSpec", spec))


def _ready(made: Foreign, role: str, spec: Spec) -> tuple[ReadyGraph, ...]:
    graph = made.graphs[0]
    precision = cast(Precision, graph.precision if graph.precision in ("fp16", "int8", "int4") else "fp32")
    return (ReadyGraph(role, graph.path, precision, _adapter(made, spec)),)


def _host(spec: Spec, **more: Any) -> Processing:
    seen = isinstance(spec, ResizeCropSpec)
    return Processing(image=spec if seen else None, audio=None if seen else spec, **more)


def _tagger(made: Foreign, config: Any, spec: Spec, answer: Answer) -> ModelPlan:
    how = functions(config)

    def reference(example: Example) -> Reference:
        logits = answer(example)
        weights = np.exp(logits - logits.max())
        several = how.get("scores") == "sigmoid"
        scores = 1 / (1 + np.exp(-logits)) if several else weights / weights.sum()
        return Reference(probabilities=np.asarray(scores, np.float32))

    return ModelPlan(
        model_type=made.checkpoint.model_type,
        tasks=("classify",),
        graphs=(),
        processing=_host(spec, functions=how),
        ready=_ready(made, "model", spec),
        labels=labels_of(config),
        reference=reference,
        takes="image" if isinstance(spec, ResizeCropSpec) else "audio",
    )


def _listener(made: Foreign, config: Any, spec: Spec, answer: Answer) -> ModelPlan:
    tokens, ctc = vocabulary(made.checkpoint, config)
    return ModelPlan(
        model_type=made.checkpoint.model_type,
        tasks=("transcribe",),
        graphs=(),
        processing=_host(spec, ctc=ctc, functions={"transcribe": "ctc"}),
        tokens=TokensSpec(vocab_size=len(tokens), pad=ctc.blank),
        ready=_ready(made, "model", spec),
        labels=tokens,
        reference=lambda example: Reference(tokens=collapsed(answer(example).argmax(-1).tolist(), ctc.blank)),
        takes="audio",
    )


def _embedder(made: Foreign, spec: Spec, answer: Answer) -> ModelPlan:
    def reference(example: Example) -> Reference:
        features = answer(example)
        features = features[0] if features.ndim == 2 else features
        return Reference(values=features / np.linalg.norm(features))

    return ModelPlan(
        model_type=made.checkpoint.model_type,
        tasks=("embed", "retrieve", "recommend"),
        graphs=(),
        processing=_host(spec),
        ready=_ready(made, "vision_encoder", spec),
        reference=reference,
    )
