"""What a Frambicus is made of: two frozen towers, a connector, a text decoder, a detector."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import MoonshineConfig, PreTrainedConfig

from edgemm.errors import UsageError

TASKS = ("caption", "answer", "describe", "recommend", "mask")
"""What a task token can ask for; `mask` stands for a hidden word while the decoder is pretrained."""

CONNECTORS = ("resampler", "qformer", "grid")
_FIRST_RESERVED_ID = 32_000


class FrambicusVisionConfig(PreTrainedConfig):
    """EfficientNet-lite0. `grid_blocks` are the blocks whose outputs are kept beside the last grid.

    Block 10 gives 112 channels every 16 pixels: colour and place, which the last grid (1,280 channels every 32 pixels)
    has given up for meaning. `id2label` names the classes.
    """

    model_type = "frambicus_vision"
    base_config_key = "vision_config"

    image_size: int = 224
    grid_blocks: tuple[int, ...] | list[int] = (10,)


class FrambicusConnectorConfig(PreTrainedConfig):
    """Grids → visual tokens. `kind` is one of CONNECTORS; `frame_period_s` is assumed where frames come without times.

    `resampler` is Flamingo's (arXiv 2204.14198): `latents` that attend to the grids and to themselves. `qformer` has
    queries with layers of their own for both (BLIP-2, arXiv 2301.12597); with masked grids and contrast trained
    together it is X-Former's idea (ECCV 2024). `grid` hands the grids over as they are, one token a cell.
    A first look, one run each, at questions about 3,000 scenes, asked on backgrounds never seen: `grid` after 280 steps
    of 32 knew 98 % of colours and 62 % of places, `resampler` after 400 steps 97 % and 50 %.
    """

    model_type = "frambicus_connector"
    base_config_key = "connector_config"

    kind: str = "grid"
    latents: int = 32
    layers: int = 2
    heads: int = 8
    inner: int = 576
    frame_period_s: float = 0.5

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.kind not in CONNECTORS:
            raise UsageError(f"a connector cannot be {self.kind}: expected one of {', '.join(CONNECTORS)}")


class FrambicusTextConfig(PreTrainedConfig):
    """The text decoder. Width and vocabulary are the speech model's, whose table it shares.

    `concepts` classes of the vision tower and `finds` objects of the detector (`finds_in_clips` of each frame where
    there are several), each with up to `concept_tokens` tokens of its name, go into the memory; beside each find
    stands what follows of all of them (`edgemm.processing.objects`).
    """

    model_type = "frambicus_text"
    base_config_key = "text_config"

    vocab_size: int = 32_768
    hidden_size: int = 288
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    intermediate_size: int = 576
    max_position_embeddings: int = 194
    rope_theta: float = 10_000.0
    dropout: float = 0.0
    concepts: int = 6
    finds: int = 8
    finds_in_clips: int = 4
    concept_tokens: int = 4
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    pad_token_id: int | None = 2


class FrambicusDetectorConfig(PreTrainedConfig):
    """The head of set prediction. `id2label` names what it finds; the class after the last one is "nothing".

    The names of costs and weights are DETR's in transformers, whose loss reads them.
    """

    model_type = "frambicus_detector"
    base_config_key = "detector_config"

    width: int = 256
    heads: int = 8
    decoder_layers: int = 3
    inner: int = 512
    auxiliary_loss: bool = True
    class_cost: float = 1.0
    bbox_cost: float = 5.0
    giou_cost: float = 2.0
    bbox_loss_coefficient: float = 5.0
    giou_loss_coefficient: float = 2.0
    eos_coefficient: float = 0.1


class FrambicusConfig(PreTrainedConfig):
    """One configuration for all classes. `task_tokens` are ids of the tokenizer's reserved tokens.

    The reserved tokens `<<ST_0>>`… of the speech model's vocabulary were there before and nothing spoken needs them:
    no row is added to the table, so Moonshine's logits stay as long as they were. With `freeze_towers` a new or loaded
    model trains none of the towers' weights, the shared table included, until `freeze(…, frozen=False)`. `towers` is
    the composite checkpoint that has them, relative to this one, where `building.save_without_towers` left them out.
    """

    model_type = "frambicus"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "vision_config": FrambicusVisionConfig,
        "speech_config": MoonshineConfig,
        "connector_config": FrambicusConnectorConfig,
        "text_config": FrambicusTextConfig,
        "detector_config": FrambicusDetectorConfig,
    }

    vision_config: Any = None
    speech_config: Any = None
    connector_config: Any = None
    text_config: Any = None
    detector_config: Any = None
    task_tokens: dict[str, int] | None = None
    embedding_size: int = 256
    freeze_towers: bool = True
    towers: str | None = None
    label_smoothing: float = 0.0
    initializer_range: float = 0.02
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    pad_token_id: int | None = 2
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.task_tokens is None:
            self.task_tokens = {task: _FIRST_RESERVED_ID + i for i, task in enumerate(TASKS)}
        speech, text = self.speech_config, self.text_config
        if (speech.hidden_size, speech.vocab_size) != (text.hidden_size, text.vocab_size):
            raise UsageError("the text decoder shares the speech model's table: expected the same width and vocabulary")
