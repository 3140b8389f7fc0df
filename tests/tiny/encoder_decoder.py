"""Tiny encoder–decoders that see: TrOCR and ViT–GPT2, BLIP for captions and questions, Florence-2."""

from __future__ import annotations

import json
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
    CLIPImageProcessorPil,
    DeiTConfig,
    Florence2Config,
    Florence2ForConditionalGeneration,
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
FLORENCE_SPECIALS = [
    "<s>", "<pad>", "</s>", "<unk>", "<image>", "<poly>", "</poly>", "<sep>", "<od>", "</od>",
    *(f"<loc_{i}>" for i in range(1000)),
]  # fmt: skip
FLORENCE_RULES = {
    "ocr": {"PATTERN": r"(.+?)" + r"<loc_(\d+)>" * 8, "AREA_THRESHOLD": 0.01},
    "phrase_grounding": {"banned_grounding_tokens": ["it", "the picture"]},
    "pure_text": {},
    "description_with_bboxes": {},
    "polygons": {},
    "bboxes": {},
    "description_with_bboxes_or_polygons": {},
}
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


def blip(path: Path, *, asks: bool = False, seed: int = 0) -> Path:
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
    widen(model, seed, gain=2.0, table=0.6)
    _never_pad(model, ids["[PAD]"])
    bert = model.text_decoder.bert
    with torch.no_grad():
        bert.embeddings.position_embeddings.weight.mul_(2.0)
        # What all positions have in common would drown the last word, and the text would be a loop.
        for layer in bert.encoder.layer:
            layer.attention.output.dense.weight.mul_(0.3)
            layer.crossattention.output.dense.weight.mul_(0.1)
    _save(model, path, tokenizer, {})
    edge = _TOWER["image_size"]
    BlipImageProcessorPil(size={"height": edge, "width": edge}).save_pretrained(path)
    return path


def florence2(path: Path, *, seed: int = 1) -> Path:
    """Florence-2: DaViT of two stages whose windows do not divide the map, place tokens, a tied head."""
    tokenizer = byte_level(300, FLORENCE_SPECIALS)
    ids = {n: tokenizer.token_to_id(n) for n in FLORENCE_SPECIALS}
    config = Florence2Config(
        text_config={
            "model_type": "bart",
            "vocab_size": tokenizer.get_vocab_size(),
            "d_model": 48,
            "encoder_layers": LAYERS,
            "decoder_layers": LAYERS,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 128,
            "bos_token_id": ids["<s>"],
            "pad_token_id": ids["<pad>"],
            "eos_token_id": ids["</s>"],
            "decoder_start_token_id": ids["</s>"],
        },
        vision_config={
            "depths": (1, 1),
            "patch_size": (7, 3),
            "patch_stride": (4, 2),
            "patch_padding": (3, 1),
            "patch_prenorm": (False, True),
            "embed_dim": (16, 32),
            "num_heads": (2, 4),
            "num_groups": (2, 4),
            "window_size": 3,
            "projection_dim": 48,
            "max_position_embeddings": 8,
        },
        image_token_id=ids["<image>"],
    )
    model = Florence2ForConditionalGeneration(config).eval()
    widen(model, seed, gain=3.0, table=0.6)
    _never_pad(model, ids["<pad>"])
    generation = {
        "decoder_start_token_id": ids["</s>"],
        "bos_token_id": ids["<s>"],
        "eos_token_id": ids["</s>"],
        "pad_token_id": ids["<pad>"],
        "forced_bos_token_id": ids["<s>"],
        "forced_eos_token_id": ids["</s>"],
        "no_repeat_ngram_size": 3,
        "num_beams": 3,
        "early_stopping": True,
    }
    _save(model, path, tokenizer, generation)
    images = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False, resample=3)
    settings = {"image_processor": images.to_dict(), "post_processor_config": FLORENCE_RULES}
    (path / "processor_config.json").write_text(json.dumps(settings))
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
    "florence2": Tiny(florence2, ("vision_encoder", "text_encoder", "decoder", "embed_tokens")),
    "blip": Tiny(blip, SEES),
    "blip_vqa": Tiny(partial(blip, asks=True, seed=0), ("vision_encoder", "text_encoder", "decoder", "embed_tokens")),
    "trocr": Tiny(trocr, SEES),
    "trocr_small": Tiny(partial(trocr, sinusoidal=True), SEES),
    "vit_gpt2": Tiny(vit_gpt2, SEES),
}
