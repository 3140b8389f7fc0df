"""transformers' own Florence-2 processor over a tiny tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast
from transformers.models.florence2.processing_florence2 import Florence2Processor

from tests.tiny.encoder_decoder import FLORENCE_RULES, FLORENCE_SPECIALS

IMAGE_TOKENS = 17


def florence_processor(path: Path, monkeypatch: Any) -> Florence2Processor:
    """The processor of the checkpoint at `path`, its pictures 32 pixels squared."""
    monkeypatch.setattr(Florence2Processor, "check_argument_for_proper_class", lambda *_: None)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(path / "tokenizer.json"),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=FLORENCE_SPECIALS[5:],
        extra_special_tokens={"image_token": "<image>"},
    )
    images = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False, resample=3)
    images.image_seq_length = IMAGE_TOKENS
    return Florence2Processor(images, tokenizer, post_processor_config=FLORENCE_RULES)
