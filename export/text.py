"""Tokenizer and chat template of a checkpoint, as the bundle holds them."""

from __future__ import annotations

from edgemm.bundle.spec import ChatSpec, TextSpec
from edgemm.errors import CheckpointError
from edgemm.export.checkpoint import Checkpoint


def tokenizer_files(checkpoint: Checkpoint) -> tuple[TextSpec, dict[str, bytes]]:
    """The fast tokenizer's file, as the bundle holds it."""
    path = checkpoint.path / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{checkpoint.path} has no tokenizer.json",
            hint="save the fast tokenizer beside the weights: AutoTokenizer.from_pretrained(…).save_pretrained",
        )
    return TextSpec(tokenizer="tokenizer.json"), {"tokenizer.json": path.read_bytes()}


def chat_spec(checkpoint: Checkpoint) -> ChatSpec:
    """The checkpoint's own chat template (chat_template.jinja, or inside a JSON file) and its special tokens."""
    settings = checkpoint.json("tokenizer_config.json")
    file = checkpoint.path / "chat_template.jinja"
    template = (
        file.read_text()
        if file.is_file()
        else checkpoint.json("chat_template.json").get("chat_template")
        or checkpoint.json("processor_config.json").get("chat_template")
        or settings.get("chat_template")
    )
    if not template:
        raise CheckpointError(
            f"{checkpoint.path} has no chat template",
            hint="copy chat_template.jinja from the model that was fine-tuned",
        )
    special = {
        k: v["content"] if isinstance(v, dict) else str(v)
        for k, v in settings.items()
        if k in ("bos_token", "eos_token", "pad_token", "unk_token") and v
    }
    return ChatSpec(template=template, special_tokens=special)
