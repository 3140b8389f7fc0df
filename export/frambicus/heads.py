"""The tasks: thin classes over one model, all of which load the same file of weights."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin

from edgemm.export.families.moonshine import TOKENS_PER_S
from edgemm.export.frambicus.detector import Target
from edgemm.export.frambicus.embedding import contrastive_loss
from edgemm.export.frambicus.modeling import FrambicusCore
from edgemm.export.frambicus.outputs import FrambicusOutput, Memory

SENSES = (
    "pixel_values",
    "grids",
    "frame_times_s",
    "frame_mask",
    "input_values",
    "input_values_mask",
    "audio_features",
    "audio_features_mask",
)
"""The arguments from which a memory is made."""


class _Speaker(FrambicusCore, GenerationMixin):
    """What writes text over a memory."""

    task: ClassVar[str]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        grids: Sequence[torch.Tensor] | None = None,
        frame_times_s: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        input_values_mask: torch.Tensor | None = None,
        audio_features: torch.Tensor | None = None,
        audio_features_mask: torch.Tensor | None = None,
        memory: torch.Tensor | None = None,
        memory_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        cache: EncoderDecoderCache | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        loss_only: bool = False,
        **_: Any,
    ) -> FrambicusOutput:
        """input_ids [B, S]: prompt and text, as the processor makes them; without them the task's bare prompt.

        `labels` [B, S] are the ids that the model should have said, −100 where it is not asked; they are shifted here.
        `memory` [B, T, D] with its mask, from an earlier output, spares the encoders. `logits_to_keep` last positions
        (0: all) have logits. `cache`, called `past_key_values` before transformers 5.24, is filled in place. With
        `loss_only` there are no logits but those that the loss needs: the table is long, and over prompts it is most
        of a small model's work.
        """
        if memory is None or memory_mask is None:
            given = (pixel_values, grids, frame_times_s, frame_mask)
            heard = (input_values, input_values_mask, audio_features, audio_features_mask)
            known = self._memory(given, heard, input_ids)
        else:
            known = Memory(memory, memory_mask)
        if input_ids is None:
            input_ids = self.bare_prompt(len(known.states))
        states = self.speak(input_ids, known, attention_mask, past_key_values if cache is None else cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return FrambicusOutput(
            loss=None if labels is None else self.loss_of(states[:, :-1], labels[:, 1:]),
            logits=None if loss_only else self.write(states[:, kept]),
            last_hidden_state=states,
            memory=known.states,
            memory_mask=known.mask,
        )

    def _memory(self, given: Any, heard: Any, input_ids: torch.Tensor | None) -> Memory:
        sees = given[0] is not None or given[1] is not None
        return self.remember(
            self.see(*given) if sees else None, self.hear(*heard), 1 if input_ids is None else len(input_ids)
        )

    def bare_prompt(self, batch: int = 1) -> torch.Tensor:
        """The start token and the task's token, [B, 2]."""
        ids = [self.config.bos_token_id, self.config.task_tokens[self.task]]
        return torch.tensor([ids] * batch, device=self.nulls.device)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def generate(self, input_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """transformers' `generate` over the memory of what is given (see `SENSES`), which is made once.

        `memory` and `memory_mask` of before spare that. Prompts of different lengths are padded on the left.
        """
        given = [kwargs.pop(name, None) for name in SENSES]
        states, mask = kwargs.pop("memory", None), kwargs.pop("memory_mask", None)
        made = states is None or mask is None
        memory = self._memory(given[:4], given[4:], input_ids) if made else Memory(states, mask)
        if input_ids is None:
            input_ids = self.bare_prompt(len(memory.states))
        if kwargs.get("use_cache", True):
            kwargs.setdefault(_cache_name(), EncoderDecoderCache(DynamicCache(), DynamicCache()))
        return super().generate(input_ids, memory=memory.states, memory_mask=memory.mask, **kwargs)


def _cache_name() -> str:
    known = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    return "cache" if "cache" in known else "past_key_values"


class FrambicusForImageCaptioning(_Speaker):
    """A picture → a sentence."""

    task = "caption"


class FrambicusForQuestionAnswering(_Speaker):
    """A question, typed in the prompt or spoken in `input_values`, about 0…N frames → an answer."""

    task = "answer"


class FrambicusForVideoDescription(_Speaker):
    """Frames with their times → what happened."""

    task = "describe"


class FrambicusForSpeechRecognition(FrambicusCore):
    """Speech → text: Moonshine, untouched. `forward` takes what `MoonshineForConditionalGeneration` takes."""

    main_input_name = "input_values"

    def forward(self, input_values: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Logits bit for bit those of the speech model."""
        return self.speech(input_values=input_values, **kwargs)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def generate(self, input_values: torch.Tensor, **kwargs: Any) -> Any:
        """Greedy unless asked otherwise, and no longer than speech can be (the published bound of 6.5 tokens/s)."""
        limit = int(input_values.shape[1] / 16_000 * TOKENS_PER_S) + 1
        kwargs.setdefault("max_new_tokens", min(limit, self.config.speech_config.max_position_embeddings - 1))
        return self.speech.generate(input_values=input_values, **kwargs)


class FrambicusForDetection(FrambicusCore):
    """A picture, or the newest frame of several → classes and boxes."""

    main_input_name = "pixel_values"

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        grids: Sequence[torch.Tensor] | None = None,
        frame_mask: torch.Tensor | None = None,
        labels: Sequence[Target] | None = None,
        **_: Any,
    ) -> FrambicusOutput:
        """`logits` [B, Q, labels + 1], `pred_boxes` [B, Q, 4]; `labels` as `detector.Target`, one for each picture."""
        found = self._grids(pixel_values, grids)
        if frame_mask is None:
            frame_mask = torch.ones(found[-1].shape[:2], device=found[-1].device)
        seen = self.detector(self.newest(found, frame_mask))
        loss, parts = (None, None) if labels is None else self.detector.loss(seen, labels)
        return FrambicusOutput(loss=loss, logits=seen.logits, pred_boxes=seen.boxes, loss_dict=parts)


class FrambicusForRecommendation(FrambicusCore):
    """Pictures (or clips) and texts as vectors whose dot product says how well they go together."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        grids: Sequence[torch.Tensor] | None = None,
        frame_times_s: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        return_loss: bool = False,
        **_: Any,
    ) -> FrambicusOutput:
        """`image_embeds` and `text_embeds` of what is given; with both, `logits` [images, texts].

        Texts end with the task's token. With `return_loss` picture i belongs to text i.
        """
        sees = pixel_values is not None or grids is not None
        image = self.embed_images(pixel_values, grids, frame_times_s, frame_mask) if sees else None
        text = None if input_ids is None else self.embed_texts(input_ids, attention_mask)
        logits = None if image is None or text is None else self.embedder.logits(image, text)
        loss = contrastive_loss(logits) if return_loss and logits is not None else None
        return FrambicusOutput(loss=loss, logits=logits, image_embeds=image, text_embeds=text)
