"""Names as tokens of the memory, so that the text decoder can copy them word by word.

Each of the first J tokens of a name is one vector of the memory that knows the token, its number, the whole name (by
the mean of its tokens, so that tokens of one name find each other) and what else is known of the thing. A mean over
the name alone would have to be unmixed again, which works for names seen in training only; copying one token after the
other works for any name (arXiv 1603.06393).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init

_LOUD = 4.0  # rows of the table have a fifth of the length of what is added to them


class Speller(nn.Module):
    """Classes [B, K] with what is known of each [B, K, D] → memory [B, K · J, D].

    `names` int64 [classes, J] are the tokens of the classes' names, −1 after the last; it travels with the weights.
    """

    names: torch.Tensor

    def __init__(self, classes: int, tokens: int, width: int) -> None:
        super().__init__()
        self.register_buffer("names", torch.full((classes, tokens), -1))
        self.token, self.name = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.token.gain = self.name.gain = _LOUD
        self.order = nn.Parameter(torch.zeros(tokens, width))
        self.norm = nn.LayerNorm(width)

    def draw(self) -> None:
        """Without a tokenizer there are no names; a drawn model has none until `name_classes`."""
        init.constant_(self.names, -1)

    def name_classes(self, ids: Sequence[Sequence[int]]) -> None:
        """Set the tokens of the classes' names, in the order of the classes; longer names are cut."""
        for row, tokens in zip(self.names, ids, strict=True):
            row.fill_(-1)
            cut = torch.tensor(tokens[: len(row)], dtype=row.dtype)
            row[: len(cut)] = cut

    def tokens_of(self, classes: torch.Tensor) -> torch.Tensor:
        """Classes [B, K], −1 for none → the tokens of their names [B, K · J], −1 where there is none."""
        return self.names[classes.clamp(min=0)].masked_fill(classes[..., None] < 0, -1).flatten(1)

    def forward(
        self, classes: torch.Tensor, known: torch.Tensor, shown: torch.Tensor, table: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """→ tokens [B, K·J, D] and their mask [B, K·J]; `shown` [B, K] is 0 where nothing is to be said.

        `table` [vocabulary, D] are the embeddings of tokens.
        """
        ids = self.names[classes]
        return self.spell(nn.functional.embedding(ids.clamp(min=0), table), ids >= 0, known, shown)

    def spell(
        self, embeds: torch.Tensor, spelled: torch.Tensor, known: torch.Tensor, shown: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `forward`, from the embeddings [B, K, J, D] of the names' tokens; `spelled` [B, K, J] says which exist."""
        embeds = embeds * spelled[..., None]
        mean = embeds.sum(2) / spelled.sum(2).clamp(min=1)[..., None]
        around = known + self.name(mean)
        tokens = self.norm(self.token(embeds) + self.order + around[:, :, None])
        return tokens.flatten(1, 2), (spelled & (shown != 0)[..., None]).flatten(1)
