"""Loading a checkpoint into its transformers class, whole and in fp32."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from edgemm.bundle.spec import TokensSpec
from edgemm.errors import CheckpointError
from edgemm.export.checkpoint import Checkpoint


def from_pretrained(cls: type[PreTrainedModel], checkpoint: Checkpoint, unused: tuple[str, ...] = ()) -> Any:
    """An evaluating fp32 model with every weight from the checkpoint.

    `unused` are prefixes of weights that no graph takes, and that published checkpoints lack.
    Raises CheckpointError where a weight is missing: transformers would draw it at random and go on.
    """
    quieten()
    try:
        model, info = cls.from_pretrained(
            checkpoint.path,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise CheckpointError(f"{checkpoint.path} cannot be loaded: {reason}") from error
    missing = sorted(k for k in info["missing_keys"] if not k.startswith(unused))
    mismatched = sorted(str(m[0]) for m in info["mismatched_keys"])
    if missing or mismatched:
        names = ", ".join((missing + mismatched)[:3])
        raise CheckpointError(
            f"{checkpoint.path} lacks {len(missing + mismatched)} weights of its model: {names}",
            hint="export the whole checkpoint; an adapter is merged first",
        )
    return model.eval()


def quieten() -> None:
    """Let transformers say errors only: what is worth a word is said by us."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_pair(cls: type[PreTrainedModel], checkpoint: Checkpoint, unused: tuple[str, ...] = ()) -> tuple[Any, Any]:
    """The model as it is, and one to change and trace. They share their weights: none may be changed in place."""
    original = from_pretrained(cls, checkpoint, unused)
    return original, shared_copy(original)


def shared_copy(model: PreTrainedModel) -> Any:
    """A copy with modules and configuration of its own, over the same parameters and buffers."""
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


def token_ids(model: PreTrainedModel, **more: int | None) -> TokensSpec:
    """Special ids from the generation configuration, else from the configuration."""
    text_config = model.config.get_text_config(decoder=True)

    def first(name: str) -> Any:
        for config in (model.generation_config, model.config, text_config):
            value = getattr(config, name, None)
            if value is not None:
                return value
        return None

    eos = first("eos_token_id")
    return TokensSpec(
        vocab_size=text_config.vocab_size,
        bos=first("bos_token_id"),
        eos=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        pad=first("pad_token_id"),
        decoder_start=first("decoder_start_token_id"),
        **more,
    )
