"""Frambicus: frozen towers, a connector, a memory of what is seen and heard, a text decoder and a detector.

Every class has the same modules under the same names, and the heads of the tasks are methods over them: one file of
weights serves all classes, none is missing and none is left over. `transcribe` is the speech model as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import MoonshineForConditionalGeneration, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import EncoderDecoderCache

from edgemm.errors import InputError
from edgemm.export.frambicus.concepts import Concepts
from edgemm.export.frambicus.configuration import FrambicusConfig
from edgemm.export.frambicus.connectors import Connector, GridReconstructor
from edgemm.export.frambicus.detector import Detector, Target
from edgemm.export.frambicus.embedding import Embedder
from edgemm.export.frambicus.finds import Finds
from edgemm.export.frambicus.locate import located
from edgemm.export.frambicus.outputs import FrambicusOutput, Memory, Sight
from edgemm.export.frambicus.stages import freeze
from edgemm.export.frambicus.text import TextDecoder
from edgemm.export.frambicus.vision import Grids, VisionTower

IGNORED = -100
"""The label of what the model is not asked to say."""

_ROUND = 64  # positions that have logits in training are so many, or twice that…: CPUs compile kernels by shape

_LOOSE = ("latents", "hidden", "query", "order", "nulls", "pool")
"""Parameters that belong to no linear layer and are drawn as an embedding is."""


def _with_towers(place: Path, config: Any) -> tuple[Any, dict[str, torch.Tensor]] | None:
    """The configuration and all weights of a checkpoint that names where its towers are, None for a whole one."""
    from edgemm.export.frambicus.building import tower_weights

    if not (place / "config.json").is_file():
        return None
    config = config or FrambicusConfig.from_pretrained(place)
    if config.towers is None:
        return None
    weights = load_file(place / "model.safetensors") | tower_weights(place / config.towers)
    config.towers = None
    return config, weights


class FrambicusPreTrainedModel(PreTrainedModel):
    """Loading, saving and drawing weights."""

    config_class = FrambicusConfig
    base_model_prefix = "frambicus"
    main_input_name = "input_ids"
    input_modalities = ("image", "audio", "text")
    _supports_sdpa = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(cls, name: str | Path, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, and `"frambicus"` is the checkpoint of the repository.

        In fp32 unless `dtype` says otherwise. Raises CheckpointError where there is no repository, or no towers where a
        checkpoint without them says.
        """
        kwargs.setdefault("dtype", torch.float32)
        place = located(name)
        with_towers = _with_towers(Path(place), kwargs.get("config"))
        if with_towers is None:
            loaded = super().from_pretrained(place, *args, **kwargs)
        else:
            kwargs["config"], kwargs["state_dict"] = with_towers
            loaded = super().from_pretrained(None, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.freeze_towers:
            freeze(model, "towers")
        return loaded

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            # Variance 1 / fan-in: with transformers' 0.02 what is seen fades on its way through narrow layers.
            gain = getattr(module, "gain", 1.0)
            init.normal_(module.weight, std=gain * module.in_features**-0.5)
        for name, parameter in module.named_parameters(recurse=False):
            if name in _LOOSE:
                init.normal_(parameter, std=self.config.initializer_range)
        draw = getattr(module, "draw", None)
        if draw is not None:
            draw()


class FrambicusCore(FrambicusPreTrainedModel):
    """All of Frambicus. `see`, `hear`, `remember` and `speak` are its steps; the task classes put them together."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width = config.text_config.hidden_size
        self.vision = VisionTower(config.vision_config)
        self.speech = MoonshineForConditionalGeneration(config.speech_config)
        self.connector = Connector(config, self.vision.channels, self.vision.scales)
        self.concepts, self.finds = Concepts(config), Finds(config)
        self.audio = nn.Sequential(nn.Linear(config.speech_config.hidden_size, width), nn.LayerNorm(width))
        self.nulls = nn.Parameter(torch.zeros(2, width))
        self.text = TextDecoder(config)
        self.detector = Detector(config, self.vision.channels, self.vision.scales)
        self.embedder = Embedder(width, config.embedding_size)
        self.reconstructor = GridReconstructor(config, self.vision.channels[-1])
        self.post_init()
        if config.freeze_towers:
            freeze(self, "towers")

    @classmethod
    def from_towers(cls, path: Path | None = None, **settings: Any) -> Any:
        """An untrained one over the repository's towers, or those at `path`: see `building.from_towers`."""
        from edgemm.export.frambicus.building import from_towers

        return from_towers(cls, path, **settings)

    def get_input_embeddings(self) -> nn.Embedding:
        """The speech model's table, which is the text decoder's too."""
        return self.speech.get_input_embeddings()

    @property
    def table(self) -> torch.Tensor:
        """[vocabulary, D]"""
        weight: torch.Tensor = self.get_input_embeddings().weight
        return weight

    def see(
        self,
        pixel_values: torch.Tensor | None = None,
        grids: Grids | None = None,
        frame_times_s: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        hidden: torch.Tensor | None = None,
        told: Mapping[int, Target] | None = None,
    ) -> Sight:
        """One run of the vision half. pixel_values [B, F, 3, H, W] or [B, 3, H, W], or the tower's grids of before.

        `frame_mask` [B, F] is 0 for frames that only fill up, `frame_times_s` [B, F] any clock. `hidden` as in
        `GridTokens`. `told` has what really is in some of the B · F frames, and stands for what is found there. Raises
        InputError for neither, or another number of dimensions.
        """
        grids = self._grids(pixel_values, grids)
        batch, frames = grids[-1].shape[:2]
        if frame_mask is None:
            frame_mask = torch.ones(batch, frames, dtype=torch.long, device=grids[-1].device)
        times_s = self._before_newest(frame_times_s, frame_mask)
        visual, visual_mask = self.connector(grids, times_s, frame_mask, hidden)
        probabilities = self.vision.cell_probabilities(grids[-1].flatten(0, 1)).unflatten(0, (batch, frames))
        height, columns = grids[-1].shape[-2:]
        where = self.connector.tokens.where(height, columns, grids[-1].device)
        concepts, concept_mask, concept_ids = self.concepts(probabilities, frame_mask, where, self.table)
        found = self.detector([grid.flatten(0, 1) for grid in grids])
        said = found if not told else found.corrected(told, (height, columns))
        finds, find_mask, labels = self.finds(said, frame_mask, self.connector.tokens.when(times_s), self.table)
        spelled = torch.cat((self.finds.speller.tokens_of(labels), concept_ids), dim=1)
        return Sight(
            grids, visual, visual_mask, finds, find_mask, concepts, concept_mask, spelled, labels, frame_mask,
            probabilities, found,
        )  # fmt: skip

    def _grids(self, pixel_values: torch.Tensor | None, grids: Grids | None) -> Grids:
        if grids is not None:
            return [grid if grid.ndim == 5 else grid[:, None] for grid in grids]
        if pixel_values is None or pixel_values.ndim not in (4, 5):
            shape = None if pixel_values is None else list(pixel_values.shape)
            raise InputError(f"cannot see {shape}: expected pixel_values [B, F, 3, H, W] or [B, 3, H, W], or grids")
        frames = pixel_values if pixel_values.ndim == 5 else pixel_values[:, None]
        made = self.vision.grids(frames.flatten(0, 1))
        return [grid.unflatten(0, frames.shape[:2]) for grid in made]

    def _before_newest(self, times_s: torch.Tensor | None, frame_mask: torch.Tensor) -> torch.Tensor:
        """[B, F] with the newest frame that is shown at 0 and all others before it."""
        if times_s is None:
            period = self.config.connector_config.frame_period_s
            times_s = torch.arange(frame_mask.shape[1], device=frame_mask.device) * period
            times_s = times_s.expand_as(frame_mask)
        shown = frame_mask != 0
        newest = times_s.masked_fill(~shown, -torch.inf).amax(1, keepdim=True)
        return torch.where(shown, times_s - newest, 0.0)

    def hear(
        self,
        input_values: torch.Tensor | None = None,
        input_values_mask: torch.Tensor | None = None,
        audio_features: torch.Tensor | None = None,
        audio_features_mask: torch.Tensor | None = None,
    ) -> Memory | None:
        """Sound as memory: input_values [B, samples] at 16 kHz, or the encoder's features [B, T', D] of before.

        Masks are 0 at padding; a row of zeros has no sound. None where there is neither.
        """
        if audio_features is None and input_values is not None:
            heard = self.speech.model.encoder(input_values, attention_mask=input_values_mask)
            audio_features, audio_features_mask = heard.last_hidden_state, heard.attention_mask
        if audio_features is None:
            return None
        if audio_features_mask is None:
            audio_features_mask = torch.ones(audio_features.shape[:2], dtype=torch.long, device=audio_features.device)
        return Memory(self.audio(audio_features), audio_features_mask)

    def remember(self, sight: Sight | None, heard: Memory | None, batch: int = 1) -> Memory:
        """Visual tokens, concepts and sound as one memory; a learned vector stands in for each sense that has nothing.

        A row without a picture or without sound in a batch that has some is as if it were alone.
        """
        parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        if sight is not None:
            parts += [
                (sight.visual, sight.visual_mask),
                (sight.finds, sight.find_mask),
                (sight.concepts, sight.concept_mask),
            ]
        parts.append(self._null(0, parts[0] if parts else None, batch if heard is None else len(heard.states)))
        sound = None if heard is None else (heard.states, heard.mask)
        parts.append(self._null(1, sound, len(parts[-1][0])))
        if sound is not None:
            parts.append(sound)
        states, masks = zip(*parts, strict=True)
        return Memory(torch.cat(states, dim=1), torch.cat([mask.long() for mask in masks], dim=1))

    def _null(
        self, sense: int, there: tuple[torch.Tensor, torch.Tensor] | None, batch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The stand-in [B, 1, D] for a sense, seen where the sense has nothing."""
        null = self.nulls[sense : sense + 1]
        if there is None:
            return null.expand(batch, 1, -1), torch.ones(batch, 1, dtype=torch.long, device=null.device)
        absent = (there[1] != 0).sum(1, keepdim=True) == 0
        return null.to(there[0].dtype).expand(len(absent), 1, -1), absent.long()

    def speak(
        self,
        input_ids: torch.Tensor,
        memory: Memory,
        attention_mask: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        *,
        causal: bool = True,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """input_ids [B, S] → the text decoder's states [B, S, D]; `rows` [B] says whose memory is which."""
        if attention_mask is None:
            past = cache.get_seq_length() if cache is not None else 0
            attention_mask = torch.ones(len(input_ids), past + input_ids.shape[1], device=input_ids.device)
        embeds = self.get_input_embeddings()(input_ids)
        states: torch.Tensor = self.text(
            embeds, memory.states, memory.mask, attention_mask, cache=cache, causal=causal, rows=rows
        )
        return states

    def write(self, states: torch.Tensor) -> torch.Tensor:
        """states [B, S, D] → logits [B, S, vocabulary], by the speech model's table."""
        return nn.functional.linear(states, self.table)

    def loss_of(self, states: torch.Tensor, labels: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Cross-entropy of states [B, S, D] to labels [B, S] where these are not −100: only there logits are made.

        With `tokens`, sorted ids that every label is one of, these alone compete: on a CPU most of a step is the table.
        """
        states, labels = states.flatten(0, 1), labels.flatten()
        asked = (labels != IGNORED).nonzero()[:, 0]
        more = -len(asked) % _ROUND
        targets = nn.functional.pad(labels[asked], (0, more), value=IGNORED)
        states = states[nn.functional.pad(asked, (0, more))]
        if tokens is None:
            logits = self.write(states).float()
        else:
            logits = nn.functional.linear(states, self.table[tokens]).float()
            targets = torch.where(targets == IGNORED, IGNORED, torch.searchsorted(tokens, targets))
        return nn.functional.cross_entropy(logits, targets, label_smoothing=self.config.label_smoothing)

    def transcribe(self, input_values: torch.Tensor, **kwargs: Any) -> Any:
        """The speech model's own forward: nothing of Frambicus takes part."""
        return self.speech(input_values=input_values, **kwargs)

    def newest(self, sight_grids: Grids, frame_mask: torch.Tensor) -> list[torch.Tensor]:
        """The grids [B, C, h, w] of each row's last frame that is shown."""
        places = torch.arange(frame_mask.shape[1], device=frame_mask.device)
        last = torch.where(frame_mask != 0, places, 0).amax(1)
        rows = torch.arange(len(last), device=last.device)
        return [grid[rows, last] for grid in sight_grids]

    def embed_images(self, *given: Any) -> torch.Tensor:
        """What `see` takes → vectors of length 1, [B, embedding]."""
        sight = self.see(*given)
        embeds: torch.Tensor = self.embedder.of_image(*sight.seen)
        return embeds

    def embed_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """input_ids [B, S], which end with the task's token → [B, embedding], read without any picture or sound."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        states = self.speak(input_ids, self.remember(None, None, len(input_ids)), attention_mask)
        embeds: torch.Tensor = self.embedder.of_text(states, attention_mask)
        return embeds


class FrambicusModel(FrambicusCore):
    """The bare model."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        grids: Sequence[torch.Tensor] | None = None,
        frame_times_s: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        input_values_mask: torch.Tensor | None = None,
        audio_features: torch.Tensor | None = None,
        audio_features_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> FrambicusOutput:
        """The memory of what is given, and the decoder's states where there are `input_ids`."""
        sees = pixel_values is not None or grids is not None
        sight = self.see(pixel_values, grids, frame_times_s, frame_mask) if sees else None
        heard = self.hear(input_values, input_values_mask, audio_features, audio_features_mask)
        memory = self.remember(sight, heard, 1 if input_ids is None else len(input_ids))
        states = None if input_ids is None else self.speak(input_ids, memory, attention_mask)
        return FrambicusOutput(last_hidden_state=states, memory=memory.states, memory_mask=memory.mask)
