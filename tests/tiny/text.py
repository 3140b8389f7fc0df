"""Tiny sentence encoders as sentence-transformers writes them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tests.checkpoints import widen
from tests.tiny.encoder_decoder import word_piece
from tests.tiny.registry import Tiny

LONGEST = 24


def bert(path: Path, *, pooling: str = "mean_tokens", seed: int = 0) -> Path:
    """BERT of two layers, and how its states are pooled."""
    tokenizer = word_piece(300, [])
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
        pad_token_id=tokenizer.token_to_id("[PAD]"),
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    widen(model, seed, gain=1.5, table=0.6)
    model.save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(path)
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LONGEST, "do_lower_case": False}))
    return path


TINY = {
    "bert": Tiny(bert, ("text_encoder",)),
    "bert_first": Tiny(partial(bert, pooling="cls_token", seed=1), ("text_encoder",)),
}
