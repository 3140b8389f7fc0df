"""Which parameters a run changes: stages by name, patterns, and adapters of low rank."""

from __future__ import annotations

import fnmatch
import warnings
from typing import Any

from torch import nn

from edgemm.errors import UsageError
from edgemm.export.train.options import TrainOptions

STAGES = {
    "all": ("*",),
    "vision": ("*vision*", "*visual*", "*image_encoder*", "*pixel*"),
    "audio": ("*audio*", "*speech*", "*feature_extractor*"),
    "text": ("*text_model*", "*language_model*"),
    "encoder": ("*encoder*", "*backbone*"),
    "decoder": ("*decoder*",),
    "embeddings": ("*embed*",),
    "norms": ("*norm*", "*layernorm*", "*ln_*", "*.bn*"),
    "head": (
        "*classifier*",
        "*lm_head*",
        "*proj_out*",
        "*class_embed*",
        "*bbox_*",
        "*class_labels_classifier*",
        "*_fc.*",
    ),
}
"""Stage → patterns of the names that transformers gives its parameters."""


def apply(model: nn.Module, options: TrainOptions) -> Any:
    """Freeze, unfreeze and adapt as `options` say; return the model to train, wrapped where it has adapters.

    Raises UsageError for a word that meets no parameter, and where nothing would be trained.
    """
    for words, trains in ((options.freeze, False), (options.unfreeze, True)):
        for word in words:
            for parameter in _named(model, word):
                parameter.requires_grad_(trains)
    if options.lora:
        return _adapted(model, options)
    if not any(p.requires_grad for p in model.parameters()):
        raise UsageError("every parameter is frozen", hint="add --unfreeze head, or freeze less")
    return model


def _named(model: nn.Module, word: str) -> list[nn.Parameter]:
    patterns = STAGES.get(word) or (word if any(c in word for c in "*?[") else f"*{word}*",)
    found = [p for n, p in model.named_parameters() if any(fnmatch.fnmatchcase(n, each) for each in patterns)]
    if not found:
        names = sorted({n.split(".")[0] for n, _ in model.named_parameters()})
        raise UsageError(
            f"no parameter is called {word!r}",
            hint=f"a stage ({', '.join(STAGES)}) or a pattern; the model's parts are {', '.join(names[:8])}",
        )
    return found


def _adapted(model: nn.Module, options: TrainOptions) -> Any:
    """Adapters (Hu et al., arXiv 2106.09685) in the linear layers named, by default in all of them but the head."""
    from peft import LoraConfig, get_peft_model

    targets: Any = list(options.lora_targets) or _linear_names(model)
    wanted = [p for word in options.unfreeze for p in _named(model, word)]
    kept = [n for n, p in model.named_parameters() if any(p is other for other in wanted)]
    settings = LoraConfig(r=options.lora, lora_alpha=2 * options.lora, target_modules=targets, bias="none")
    try:
        with warnings.catch_warnings():
            # peft still asks transformers by a name that is going away.
            warnings.simplefilter("ignore", FutureWarning)
            adapted = get_peft_model(model, settings)
    except ValueError as error:
        raise UsageError(
            f"no layer for adapters is called {', '.join(targets)}", hint="leave --lora-targets out"
        ) from error
    unfrozen = {f"base_model.model.{n}" for n in kept}
    for name, parameter in adapted.named_parameters():
        if name in unfrozen:
            parameter.requires_grad_(True)
    return adapted


def _linear_names(model: nn.Module) -> list[str]:
    """The last parts of the names of all linear layers but those of the head."""
    heads = STAGES["head"]
    names = [n for n, module in model.named_modules() if isinstance(module, nn.Linear)]
    return sorted({n.split(".")[-1] for n in names if not any(fnmatch.fnmatchcase(n, h) for h in heads)})


def merged(model: Any) -> Any:
    """The model without adapters, their change in its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def trainable(model: nn.Module) -> tuple[int, int]:
    """How many weights are trained, and how many there are."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)


def set_dropout(model: nn.Module, share: float) -> None:
    """Set every dropout of a model: modules, and the shares that its own layers keep as numbers."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = share
            continue
        for name, value in list(vars(module).items()):
            if name.endswith(("dropout", "dropout_p", "dropout_prob")) and isinstance(value, (int, float)):
                setattr(module, name, share)
