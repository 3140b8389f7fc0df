"""What the detector finds, spelled for the text decoder: name, box, time, and how the thing looks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgemm.export.frambicus.attention import fourier
from edgemm.export.frambicus.detector import BANDS, WIDEST, Found
from edgemm.export.frambicus.spelling import Speller
from edgemm.processing.objects import FACTS, objects_of

_LOUD = 2.0


class Finds(nn.Module):
    """Up to k objects of each frame, the surest, as memory [B, F · k · J, D].

    The detector's box and class are taken as they are: words teach how to speak of objects, not how to find them. What
    the detector knows of an object's look (`Found.states`) may be moved by both.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        text, detector = config.text_config, config.detector_config
        width = text.hidden_size
        self.count, self.in_clips = text.finds, text.finds_in_clips
        self.speller = Speller(len(detector.id2label), text.concept_tokens, width)
        self.state, self.place, self.score = (
            nn.Linear(detector.width, width),
            nn.Linear(8 * BANDS, width),
            nn.Linear(2, width),
        )
        self.facts = nn.Linear(FACTS, width, bias=False)
        self.facts.gain = _LOUD

    def forward(
        self, found: Found, frame_mask: torch.Tensor, when: torch.Tensor, table: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`found` of B · F frames, frame_mask [B, F], `when` [B, F, D] → tokens [B, F·k·J, D], mask [B, F·k·J] and the
        labels [B, F·k], −1 where there is none."""
        batch, frames = frame_mask.shape
        scores, classes = judged(found.logits.detach())
        picked, shown, facts = self._picked(found, frame_mask)
        scores = scores.gather(1, picked[..., None].expand(-1, -1, 2))
        boxes = found.boxes.detach().gather(1, picked[..., None].expand(-1, -1, 4))
        states = found.states.gather(1, picked[..., None].expand(-1, -1, found.states.shape[-1]))
        known = self.known(states, boxes, scores)
        known = known + when.flatten(0, 1)[:, None].to(known.dtype)
        known = known + self.facts(facts.to(known.dtype))
        named = classes.gather(1, picked)
        tokens, mask = self.speller(named, known, shown, table)
        labels = torch.where(shown != 0, named, -1)
        whole = [part.unflatten(0, (batch, frames)).flatten(1, 2) for part in (tokens, mask, labels)]
        return whole[0], whole[1].to(frame_mask.dtype), whole[2]

    def _picked(self, found: Found, frame_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Which k queries of each of B · F frames, whether they are shown [B · F, k], and the facts of each."""
        batch, frames = frame_mask.shape
        count = min(self.count if frames == 1 else self.in_clips, found.boxes.shape[1])
        device = frame_mask.device
        queries = torch.zeros(batch, frames, count, dtype=torch.long)
        shown, facts = torch.zeros_like(queries), torch.zeros(batch, frames, count, FACTS)
        both = [x.detach().float().cpu().unflatten(0, (batch, frames)) for x in (found.logits, found.boxes)]
        for i, mask in enumerate(frame_mask.cpu() != 0):
            objects = objects_of([*both[0][i, mask].numpy()], [*both[1][i, mask].numpy()], count)
            queries[i, mask], shown[i, mask] = torch.from_numpy(objects.queries), torch.from_numpy(objects.there)
            facts[i, mask] = torch.from_numpy(objects.facts)
        return queries.flatten(0, 1).to(device), shown.flatten(0, 1).to(device), facts.flatten(0, 1).to(device)

    def known(self, states: torch.Tensor, boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """What is known of each object beside its name and time, [B, N, D]; `scores` [B, N, 2] are `judged`'s."""
        place = fourier(boxes, BANDS, WIDEST).flatten(2).to(states.dtype)
        y: torch.Tensor = self.state(states) + self.place(place) + self.score(scores.to(states.dtype))
        return y


def judged(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [B, Q, labels + 1] → [B, Q, 2], how surely there is something and how surely it is the best class, and
    that class.
    """
    probabilities = logits.float().softmax(-1)
    best = probabilities[..., :-1].max(-1)
    return torch.stack((1 - probabilities[..., -1], best.values), dim=-1), best.indices
