"""What the families that name a letter in every frame share (wav2vec 2.0, HuBERT)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel, Wav2Vec2CTCTokenizer

from edgemm.bundle.manifest import Processing
from edgemm.bundle.spec import CtcSpec, RawAudioSpec, TokensSpec
from edgemm.errors import CheckpointError
from edgemm.export.checkpoint import Checkpoint
from edgemm.export.graph import GraphPlan, Port
from edgemm.export.loading import from_pretrained
from edgemm.export.model_plan import Example, ModelPlan, Original, Reference
from edgemm.export.plans import BATCH
from edgemm.export.taggers import Arrays, Logits, hear
from edgemm.export.tracing import use_plain_attention

# Long sound is cut at quiet places into stretches of at most this.
LONGEST_S = 30.0


def ctc_plan(checkpoint: Checkpoint, model_type: str, cls: type[PreTrainedModel]) -> ModelPlan:
    """One graph: input_values [B, samples] → logits [B, frames, tokens].

    It has no mask: what is heard on a device comes alone, so nothing is padded.
    """
    # Not a pair: what removes a parametrization takes it from the class that copies share.
    original, traced = from_pretrained(cls, checkpoint), from_pretrained(cls, checkpoint)
    use_plain_attention(traced)
    for module in traced.modules():
        for name in list(getattr(module, "parametrizations", {})):
            parametrize.remove_parametrizations(module, name)
    tokens, spec = vocabulary(checkpoint, original.config)
    audio = raw_spec(checkpoint, original.config)
    graph = _graph(Logits(traced, "input_values"), audio, original.config)

    def feeds(example: Example) -> dict[str, Arrays]:
        made = hear(example, audio)
        return {"model": made} if made else {}

    def reference(example: Example) -> Reference:
        with torch.no_grad():
            ids = original(torch.from_numpy(feeds(example)["model"]["input_values"])).logits[0].argmax(-1).tolist()
        return Reference(tokens=collapsed(ids, spec.blank))

    return ModelPlan(
        model_type=model_type,
        tasks=("transcribe",),
        graphs=(graph,),
        processing=Processing(audio=audio, ctc=spec, functions={"transcribe": "ctc"}),
        tokens=TokensSpec(vocab_size=len(tokens), pad=spec.blank),
        labels=tokens,
        feeds=feeds,
        reference=reference,
        original=Original(original),
        takes="audio",
    )


def collapsed(ids: list[int], blank: int) -> tuple[int, ...]:
    """What the likeliest token of every frame says: repetitions joined, blanks left out."""
    return tuple(i for place, i in enumerate(ids) if i != blank and (place == 0 or ids[place - 1] != i))


def _graph(module: nn.Module, audio: RawAudioSpec, config: Any) -> GraphPlan:
    rate, least = audio.sample_rate_hz, receptive_field(config)
    longest = int(audio.max_s * rate)
    hop = least + 12 * _stride(config)
    return GraphPlan(
        role="model",
        module=module,
        inputs=(Port("input_values", torch.float32, ("batch", "samples")),),
        outputs=(Port("logits", torch.float32, ("batch", "frames", config.vocab_size)),),
        ranges={
            "batch": BATCH,
            "samples": (least, min(5 * rate, longest), longest),
            "frames": (1, min(5 * rate, longest) // _stride(config), longest // _stride(config) + 1),
        },
        trace={"batch": 2, "samples": hop},
        checks=({"batch": 1, "samples": least}, {"batch": 1, "samples": 2 * hop + 1}, {"batch": 3, "samples": hop + 7}),
        # Over raw sound the stem's activations have outliers: int8 of either side is heard.
        half_ops=("Conv",),
    )


def _stride(config: Any) -> int:
    stride = 1
    for step in config.conv_stride:
        stride *= step
    return stride


def receptive_field(config: Any) -> int:
    """The samples that one frame sees: the shortest sound that gives one."""
    samples = 1
    for kernel, step in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * step + kernel
    return samples


def raw_spec(checkpoint: Checkpoint, config: Any) -> RawAudioSpec:
    """How sound becomes `input_values`. Raises CheckpointError without a preprocessor_config.json."""
    extractor = checkpoint.json("preprocessor_config.json")
    if not extractor:
        raise CheckpointError(
            f"{checkpoint.path} has no preprocessor_config.json", hint="copy it from the model that was fine-tuned"
        )
    rate = int(extractor.get("sampling_rate", 16_000))
    return RawAudioSpec(
        sample_rate_hz=rate,
        normalize=bool(extractor.get("do_normalize", True)),
        min_s=receptive_field(config) / rate,
        max_s=LONGEST_S,
    )


def vocabulary(checkpoint: Checkpoint, config: Any) -> tuple[tuple[str, ...], CtcSpec]:
    """The token of every id, and the rules of its tokenizer."""
    try:
        tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(checkpoint.path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{checkpoint.path} has no vocabulary that can be read: {str(error).splitlines()[0][:120]}",
            hint="copy vocab.json and tokenizer_config.json from the model that was fine-tuned",
        ) from error
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= config.vocab_size:
        raise CheckpointError(f"the tokenizer of {checkpoint.path} has no padding token, which stands for the blank")
    tokens = tuple(tokenizer.convert_ids_to_tokens(i) for i in range(config.vocab_size))
    return tokens, CtcSpec(
        blank=tokenizer.pad_token_id,
        delimiter=tokenizer.word_delimiter_token,
        space=tokenizer.replace_word_delimiter_char,
        lower_case=bool(tokenizer.do_lower_case),
        clean_up=bool(tokenizer.clean_up_tokenization_spaces),
    )
