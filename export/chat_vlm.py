"""What vision–language families share: the decoder's shape, and the original's answer to a question."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedConfig

from edgemm.export.checkpoint import Checkpoint
from edgemm.export.model_plan import Example, Original, Reference
from edgemm.export.plans import DecoderShape
from edgemm.tasks.prompts import make_prompt
from edgemm.tasks.prompts.base import Context, Prompt, user

STEPS = 24

Inputs = dict[str, Any]


def language_shape(config: PreTrainedConfig) -> DecoderShape:
    """The decoder's ports, from the language model's configuration."""
    return DecoderShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
    )


def image_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The image processor's constants: a file of their own, or inside transformers 5's `processor_config.json`."""
    inside = checkpoint.json("processor_config.json").get("image_processor")
    return checkpoint.json("preprocessor_config.json") or (inside if isinstance(inside, dict) else {})


def chat_original(original: Any, context: Context, inputs_of: Callable[[Prompt, Example], Inputs]) -> dict[str, Any]:
    """A plan's `original` and its `reference`: what `generate` says to an example.

    `inputs_of` gives what the model takes beside the prompt's ids.
    """

    def reference(example: Example) -> Reference:
        images = [] if example.image is None else [example.image]
        prompt = make_prompt([user(example.question, images, example.audio)], context)
        ids = torch.tensor([prompt.ids])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **inputs_of(prompt, example)}
        with torch.no_grad():
            said = original.generate(**inputs, max_new_tokens=STEPS, do_sample=False)[0, ids.shape[1] :]
        return Reference(tokens=tuple(i for i in said.tolist() if i not in context.tokens.eos))

    return {"reference": reference, "original": Original(original, context=context, inputs_of=inputs_of)}
