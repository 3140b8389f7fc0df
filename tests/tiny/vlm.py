"""Tiny vision–language checkpoints: one tile scheme, one picture, soft tokens, prefixes, grids of any resolution."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, processors
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.checkpoints import byte_level, widen
from tests.tiny.registry import Tiny

LAYERS = 2
_GRAPHS = ("vision_encoder", "decoder", "embed_tokens")
IDEFICS3_TEMPLATE = (
    "<|begin_of_text|>{% for turn in messages %}{{ turn['role'] | capitalize }}"
    "{% if turn['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in turn['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def tokenizer_with(specials: list[str], first: str | None = None, size: int = 300) -> tuple[Tokenizer, dict[str, int]]:
    """A byte-level tokenizer and the ids of its special tokens; `first` begins every text, as Llama's does."""
    tokenizer = byte_level(size, specials)
    ids = {name: tokenizer.token_to_id(name) for name in specials}
    if first is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", pair=f"{first} $A {first} $B", special_tokens=[(first, ids[first])]
        )
    return tokenizer, ids


def save(model: Any, path: Path, tokenizer: Tokenizer, template: str | None, **special: Any) -> None:
    """Weights, generation config, tokenizer with its `bos_token`, `eos_token` and `pad_token`, chat template."""
    path.mkdir(parents=True, exist_ok=True)
    ids = {
        f"{k}_id": tokenizer.token_to_id(v) for k, v in special.items() if k in ("bos_token", "eos_token", "pad_token")
    }
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)
    if template is not None:
        (path / "chat_template.jinja").write_text(template)


def llama(size: int, **more: Any) -> dict[str, Any]:
    """A Llama with grouped-query attention."""
    return {
        "model_type": "llama",
        "vocab_size": size,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        **more,
    }


def tower(image_px: int, patch_px: int, **more: Any) -> dict[str, Any]:
    """A vision transformer of two layers."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "image_size": image_px,
        "patch_size": patch_px,
        **more,
    }


def idefics3(path: Path, *, seed: int = 0) -> Path:
    """Idefics3: 50 px tiles of 25 × 25 patches (a side where its positions are not 0, 1, 2, …) in 25 tokens."""
    names = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
    specials = [
        "<|begin_of_text|>", "<|pad|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>",
        *names,
    ]  # fmt: skip
    tokenizer, ids = tokenizer_with(specials, "<|begin_of_text|>", 400)
    text = llama(
        tokenizer.get_vocab_size(),
        bos_token_id=ids["<|begin_of_text|>"],
        eos_token_id=ids["<end_of_utterance>"],
        pad_token_id=ids["<|pad|>"],
    )
    config = Idefics3Config(
        text_config=text,
        vision_config=tower(50, 2),
        image_token_id=ids["<image>"],
        scale_factor=5,
    )
    model = Idefics3ForConditionalGeneration(config).eval()
    widen(model, seed, gain=3.0, table=0.6)
    save(
        model, path, tokenizer, IDEFICS3_TEMPLATE,
        bos_token="<|begin_of_text|>", eos_token="<end_of_utterance>", pad_token="<|pad|>",
    )  # fmt: skip
    Idefics3ImageProcessorPil(
        size={"longest_edge": 100}, max_image_size={"longest_edge": 50}, do_image_splitting=True
    ).save_pretrained(path)
    return path


LLAVA_TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] | upper }}: {% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def llava(path: Path, *, siglip: bool = False, seed: int = 0) -> Path:
    """LLaVA 1.5: CLIP's next-to-last layer without its class token, Llama; or SigLIP, two layers joined, Qwen2."""
    specials = ["<s>", "</s>", "<pad>", "<image>"]
    tokenizer, ids = tokenizer_with(specials, None if siglip else "<s>")
    special = {"bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"], "pad_token_id": ids["<pad>"]}
    text = llama(tokenizer.get_vocab_size(), model_type="qwen2" if siglip else "llama", **special)
    vision = {"model_type": "siglip_vision_model", "vision_use_head": False} if siglip else {"projection_dim": 32}
    config = LlavaConfig(
        text_config=text,
        vision_config=tower(32, 8, **({"model_type": "clip_vision_model"} | vision)),
        image_token_index=ids["<image>"],
        vision_feature_layer=[1, -1] if siglip else -2,
        vision_feature_select_strategy="full" if siglip else "default",
        tie_word_embeddings=siglip,
    )
    model = LlavaForConditionalGeneration(config).eval()
    widen(model, seed, gain=3.0, table=0.6)
    save(model, path, tokenizer, LLAVA_TEMPLATE, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    processor = SiglipImageProcessorPil if siglip else CLIPImageProcessorPil
    sizes = {"size": {"height": 32, "width": 32}} if siglip else {"size": {"shortest_edge": 32}, "crop_size": 32}
    processor(**sizes).save_pretrained(path)
    return path


GEMMA3_TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}{{ '<start_of_turn>' + turn['role'] + '\n' }}"
    "{% for part in turn['content'] %}{% if part['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def gemma(size: int, **more: Any) -> dict[str, Any]:
    """A Gemma: heads wider than hidden / heads, one key head for two."""
    return llama(size, head_dim=16, tie_word_embeddings=True, **more)


def _widen_gemma(model: Any, seed: int, table: float) -> None:
    """As `widen`. Gemma multiplies its embeddings by √hidden and ties them: wide ones would say themselves for ever."""
    widen(model, seed, gain=3.0, table=1.0)
    with torch.no_grad():
        model.lm_head.weight.mul_(table / model.lm_head.weight.std())


def gemma3(path: Path, *, seed: int = 0) -> Path:
    """Gemma 3: 64 patches in 16 soft tokens, more than the window of the sliding layer, which has its own rope base."""
    specials = [
        "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>",
        "<image_soft_token>",
    ]  # fmt: skip
    tokenizer, ids = tokenizer_with(specials, "<bos>")
    text = gemma(
        tokenizer.get_vocab_size(),
        model_type="gemma3_text",
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=12,
        query_pre_attn_scalar=24,
        bos_token_id=ids["<bos>"],
        eos_token_id=ids["<end_of_turn>"],
        pad_token_id=ids["<pad>"],
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=tower(32, 4, model_type="siglip_vision_model", vision_use_head=False),
        mm_tokens_per_image=16,
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        image_token_index=ids["<image_soft_token>"],
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    _widen_gemma(model, seed, 0.1)
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    save(
        model, path, tokenizer, GEMMA3_TEMPLATE,
        bos_token="<bos>", eos_token="<end_of_turn>", pad_token="<pad>", extra_special_tokens=named,
    )  # fmt: skip
    Gemma3ImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


def paligemma(path: Path, *, second: bool = False, seed: int = 0) -> Path:
    """PaliGemma over Gemma; the second over Gemma 2, with bounded scores and logits and a window after the prompt."""
    specials = ["<pad>", "<eos>", "<bos>", "<image>"]
    tokenizer, ids = tokenizer_with(specials, "<bos>")
    more = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 1.0, "sliding_window": 12}
    text = gemma(
        tokenizer.get_vocab_size(),
        model_type="gemma2" if second else "gemma",
        num_key_value_heads=2 if second else 1,
        bos_token_id=ids["<bos>"],
        eos_token_id=ids["<eos>"],
        pad_token_id=ids["<pad>"],
        **(more | {"query_pre_attn_scalar": 24} if second else {}),
    )
    config = PaliGemmaConfig(
        text_config=text,
        vision_config=tower(32, 8, model_type="siglip_vision_model", vision_use_head=False),
        image_token_index=ids["<image>"],
        projection_dim=48,
        hidden_size=48,
    )
    model = PaliGemmaForConditionalGeneration(config).eval()
    _widen_gemma(model, seed + 3 * second, 0.03 if second else 0.1)
    save(model, path, tokenizer, None, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


ONEVISION_TEMPLATE = (
    "{% for turn in messages %}{{ '<|im_start|>' + turn['role'] + ' ' }}{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% for part in turn['content'] %}"
    "{% if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PINPOINTS = [[32 * h, 32 * w] for h in range(1, 5) for w in range(1, 5) if h * w <= 8]


def llava_onevision(path: Path, *, seed: int = 0) -> Path:
    """LLaVA-OneVision: 32 px tiles of 4 × 4 features, up to 8 of them, shrunk above 2 tiles' worth; Qwen2."""
    specials = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<image>", "<video>"]
    tokenizer, ids = tokenizer_with(specials)
    text = llama(
        tokenizer.get_vocab_size(),
        model_type="qwen2",
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"],
    )
    config = LlavaOnevisionConfig(
        text_config=text,
        vision_config=tower(32, 8, model_type="siglip_vision_model", vision_use_head=False),
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_2",
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    widen(model, seed, gain=3.0, table=0.6)
    save(model, path, tokenizer, ONEVISION_TEMPLATE, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=PINPOINTS).save_pretrained(
        path
    )
    return path


TINY = {
    "gemma3": Tiny(gemma3, _GRAPHS),
    "paligemma": Tiny(paligemma, _GRAPHS),
    "paligemma2": Tiny(partial(paligemma, second=True), _GRAPHS),
    "llava_onevision": Tiny(llava_onevision, _GRAPHS),
    "llava": Tiny(llava, _GRAPHS),
    "llava_siglip": Tiny(partial(llava, siglip=True), _GRAPHS),
    "idefics3": Tiny(idefics3, _GRAPHS),
}
