"""From the grids of 1…N frames to visual tokens, and back: what is hidden in the grids is guessed from the tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgemm.export.frambicus.attention import Attention, FeedForward, bias_of
from edgemm.export.frambicus.vision import Grids, GridTokens, cells_of


class ResamplerLayer(nn.Module):
    """Latents attend to the tokens and to themselves in one go, then a feed-forward (arXiv 2204.14198, figure 5)."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        connector = config.connector_config
        self.latent_norm, self.token_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(config, width, connector.heads)
        self.inner_norm = nn.LayerNorm(width)
        self.inner = FeedForward(width, connector.inner)

    def forward(self, latents: torch.Tensor, tokens: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """latents [B, L, D], tokens [B, T, D], bias [B, 1, 1, T] → [B, L, D]."""
        query = self.latent_norm(latents)
        source = torch.cat((self.token_norm(tokens), query), dim=1)
        bias = nn.functional.pad(bias, (0, latents.shape[1]))
        latents = latents + self.attention(query, source, bias)
        y: torch.Tensor = latents + self.inner(self.inner_norm(latents))
        return y


class QueryLayer(nn.Module):
    """Queries attend to themselves, then to the tokens, then a feed-forward (arXiv 2301.12597)."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        connector = config.connector_config
        self.own_norm, self.cross_norm, self.token_norm = (nn.LayerNorm(width) for _ in range(3))
        self.own = Attention(config, width, connector.heads)
        self.cross = Attention(config, width, connector.heads)
        self.inner_norm = nn.LayerNorm(width)
        self.inner = FeedForward(width, connector.inner)

    def forward(self, latents: torch.Tensor, tokens: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """As `ResamplerLayer`."""
        latents = latents + self.own(self.own_norm(latents))
        latents = latents + self.cross(self.cross_norm(latents), self.token_norm(tokens), bias)
        y: torch.Tensor = latents + self.inner(self.inner_norm(latents))
        return y


_LAYERS = {"resampler": ResamplerLayer, "qformer": QueryLayer}


class Connector(nn.Module):
    """Grids of F frames → visual tokens [B, L, D] and their mask [B, L]. See `FrambicusConnectorConfig`."""

    def __init__(self, config: Any, channels: tuple[int, ...], scales: tuple[int, ...]) -> None:
        super().__init__()
        connector, width = config.connector_config, config.text_config.hidden_size
        self.tokens = GridTokens(channels, scales, width)
        self.latents = None
        if connector.kind in _LAYERS:
            self.latents = nn.Parameter(torch.zeros(connector.latents, width))
            self.layers = nn.ModuleList(_LAYERS[connector.kind](config, width) for _ in range(connector.layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        grids: Grids,
        times_s: torch.Tensor,
        frame_mask: torch.Tensor,
        hidden: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """times_s and frame_mask [B, F]; `hidden` bool [B, F, h, w], the cells of the last grid that are not shown."""
        return self.read(self.tokens(grids, times_s, hidden), cells_of(frame_mask, grids), frame_mask)

    def read(
        self, tokens: torch.Tensor, mask: torch.Tensor, frame_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of the cells [B, F · cells, D] with their mask → visual tokens and theirs."""
        if self.latents is None:
            return self.norm(tokens), mask
        states = self.latents.to(tokens.dtype).expand(len(tokens), -1, -1)
        bias = bias_of(mask, tokens.dtype)
        for layer in self.layers:
            states = layer(states, tokens, bias)
        return self.norm(states), frame_mask.amax(1, keepdim=True).expand(-1, states.shape[1])


class GridReconstructor(nn.Module):
    """Visual tokens → the last grid's features at every cell of every frame (masked image and video modelling).

    The towers are frozen, so the target is not pixels but what the tower saw, each cell normalised (arXiv 2111.06377).
    Needed while the connector is pretrained and in no graph.
    """

    def __init__(self, config: Any, channels: int) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.query = nn.Parameter(torch.zeros(width))
        self.attention = Attention(config, width, config.connector_config.heads)
        self.norm = nn.LayerNorm(width)
        self.inner = FeedForward(width, config.connector_config.inner)
        self.out = nn.Linear(width, channels)

    def forward(self, visual: torch.Tensor, mask: torch.Tensor, where_and_when: torch.Tensor) -> torch.Tensor:
        """visual [B, L, D], mask [B, L], where_and_when [B, cells, D] → [B, cells, channels]."""
        states = self.attention(self.query + where_and_when, visual, bias_of(mask, visual.dtype))
        states = states + self.inner(self.norm(states))
        y: torch.Tensor = self.out(states)
        return y

    def loss(self, guessed: torch.Tensor, grid: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Mean squared error of guessed [B, F·h·w, C] to grid [B, F, C, h, w] over the cells hidden [B, F, h, w]."""
        target = grid.flatten(3).transpose(2, 3).flatten(1, 2)
        target = nn.functional.layer_norm(target, target.shape[-1:])
        error = (guessed - target).square().mean(-1)
        chosen = hidden.flatten(1).to(error.dtype)
        return (error * chosen).sum() / chosen.sum().clamp(min=1)
