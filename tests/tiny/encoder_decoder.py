"""Tiny encoder–decoders that see: TrOCR and ViT–GPT2, BLIP for captions and questions, Florence-2."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    DeiTConfig,
    GPT2Config,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
)

from tests.checkpoints import CORPUS, _save, byte_level, widen
from tests.tiny.registry import Tiny

LAYERS = 2
SEES = ("vision_encoder", "decoder", "embed_tokens")
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


def trocr(path: Path, *, seed: int = 5, sinusoidal: bool = False) -> Path:
    """TrOCR over a ViT with untied head, scaled embeddings and learned positions; or over a DeiT, which has one token
    more, with tied head, sinusoidal positions and no norm over the embeddings.
    """
    tokenizer = byte_level(300, ["<s>", "<pad>", "</s>"])
    ids = {n: tokenizer.token_to_id(n) for n in ("<s>", "<pad>", "</s>")}
    encoder = (DeiTConfig if sinusoidal else ViTConfig)(**_TOWER)
    decoder = TrOCRConfig(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=48,
        cross_attention_hidden_size=_TOWER["hidden_size"],
        decoder_layers=LAYERS,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        max_position_embeddings=96,
        scale_embedding=not sinusoidal,
        use_learned_position_embeddings=not sinusoidal,
        layernorm_embedding=not sinusoidal,
        activation_function="relu" if sinusoidal else "gelu",
        tie_word_embeddings=sinusoidal,
        pad_token_id=ids["<pad>"],
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
    )
    generation = {
        "decoder_start_token_id": ids["</s>"],
        "pad_token_id": ids["<pad>"],
        "eos_token_id": ids["</s>"],
        "no_repeat_ngram_size": 3,
        "num_beams": 4,
    }
    return _write(path, tokenizer, (encoder, decoder), generation, seed)


def vit_gpt2(path: Path, *, seed: int = 3) -> Path:
    """ViT–GPT2: a projection between the two, one token that starts, ends and pads."""
    tokenizer = byte_level(300, ["<|endoftext|>"])
    end = tokenizer.token_to_id("<|endoftext|>")
    decoder = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_embd=48,
        n_layer=LAYERS,
        n_head=4,
        n_positions=96,
        add_cross_attention=True,
        is_decoder=True,
        bos_token_id=end,
        eos_token_id=end,
    )
    generation = {"decoder_start_token_id": end, "pad_token_id": end, "eos_token_id": end, "bos_token_id": end}
    return _write(path, tokenizer, (ViTConfig(**_TOWER), decoder), generation, seed)


def blip(path: Path, *, asks: bool = False, seed: int = 4) -> Path:
    """BLIP for captions, or for questions: WordPiece, a start token of its own after the vocabulary."""
    tokenizer = word_piece(300, ["[DEC]", "[ENC]"])
    ids = {n: tokenizer.token_to_id(n) for n in ("[DEC]", "[SEP]", "[PAD]")}
    # Picture and question are both attended to through the same width.
    tower = _TOWER | ({"hidden_size": 48} if asks else {})
    config = BlipConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 48,
            "encoder_hidden_size": tower["hidden_size"],
            "intermediate_size": 64,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "max_position_embeddings": 96,
            "is_decoder": True,
            "bos_token_id": ids["[DEC]"],
            "eos_token_id": ids["[SEP]"],
            "sep_token_id": ids["[SEP]"],
            "pad_token_id": ids["[PAD]"],
        },
        vision_config=tower,
    )
    model = (BlipForQuestionAnswering if asks else BlipForConditionalGeneration)(config).eval()
    widen(model, seed, gain=3.0, table=0.6)
    _never_pad(model, ids["[PAD]"])
    with torch.no_grad():
        # What all positions have in common would drown the last word, and the text would be a loop.
        for layer in model.text_decoder.bert.encoder.layer:
            layer.attention.output.dense.weight.mul_(0.3)
            layer.crossattention.output.dense.weight.mul_(0.3)
    _save(model, path, tokenizer, {})
    edge = _TOWER["image_size"]
    BlipImageProcessorPil(size={"height": edge, "width": edge}).save_pretrained(path)
    return path


def word_piece(size: int, specials: list[str]) -> Tokenizer:
    """BERT's kind: lower case, word pieces, [CLS] before and [SEP] behind; `specials` after the words."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=first, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.add_special_tokens(specials)
    ends = [(n, tokenizer.token_to_id(n)) for n in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def _write(path: Path, tokenizer: Tokenizer, configs: tuple[Any, Any], generation: dict[str, Any], seed: int) -> Path:
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(*configs, tie_word_embeddings=False)
    config.decoder_start_token_id = generation["decoder_start_token_id"]
    config.pad_token_id = generation["pad_token_id"]
    model = VisionEncoderDecoderModel(config=config).eval()
    widen(model, seed, gain=3.0, table=0.6)
    _never_pad(model, config.pad_token_id)
    _save(model, path, tokenizer, generation)
    edge = _TOWER["image_size"]
    ViTImageProcessorPil(size={"height": edge, "width": edge}).save_pretrained(path)
    return path


def _never_pad(model: nn.Module, pad: int) -> None:
    """A trained model has no embedding for padding and never says it."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx == pad:
                module.weight[pad] = 0.0


TINY = {
    "trocr": Tiny(trocr, SEES),
    "trocr_small": Tiny(partial(trocr, sinusoidal=True), SEES),
    "vit_gpt2": Tiny(vit_gpt2, SEES),
}
