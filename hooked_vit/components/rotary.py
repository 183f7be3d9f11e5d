"""Rotary positions: queries and keys turned by the row and column of their patch, looked up by token id."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hooked_vit.config import RotaryPositions, ViTConfig
from hooked_vit.tokens import TokenLayout


class Rotary(nn.Module):
    """Turns the queries or keys of patches, pair by pair of dimensions; tokens without a place stay as they are.

    Heo et al. 2024 (rotary positions for ViT, axial and mixed); numbers and their order as in transformers' DINOv3 and
    timm's Eva.
    """

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        assert cfg.rotary is not None
        self.positions, self.d_head, self.n_prefix = cfg.rotary, cfg.d_head, len(cfg.prefix)
        if cfg.rotary.learned:
            self.freqs = nn.Parameter(torch.zeros(2, cfg.n_heads, cfg.d_head // 2))

    def forward(self, x: Float[Tensor, "b t h d_head"], tokens: TokenLayout) -> Float[Tensor, "b t h d_head"]:
        """The same vectors, each turned by the place of the native token it came from, or of its donor."""
        if self.positions.learned:
            cos, sin = self._learned_turns(tokens.grid, x)
        else:
            cos, sin = turns(self.positions, self.d_head, self.n_prefix, tokens.grid, x.dtype, x.device)
        if tokens.is_native:
            cos, sin = cos[:-1], sin[:-1]
        else:
            # a token without a donor takes the last row, which turns nothing
            places = tokens.donors.clamp(min=-1).to(x.device)
            cos, sin = cos[places], sin[places]
        return x * cos + self._partners(x) * sin

    def _learned_turns(self, grid: tuple[int, int], x: Tensor) -> tuple[Tensor, Tensor]:
        """What `turns` gives, for each head; at least in float32, in which timm finds them."""
        freqs = self.freqs.to(torch.promote_types(self.freqs.dtype, torch.float32))
        first, second = coordinates(self.positions, grid, x.device)[:, :, None, None].unbind(1)
        return _cos_sin((first * freqs[0] + second * freqs[1]).repeat_interleave(2, -1), self.n_prefix, x.dtype)

    def _partners(self, x: Float[Tensor, "b t h d_head"]) -> Float[Tensor, "b t h d_head"]:
        """Every dimension's partner in its pair, the first one's with a minus."""
        if self.positions.interleaved:
            return torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([-second, first], dim=-1)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # they are kept, and a later run may ask for gradients
def turns(
    positions: RotaryPositions,
    d_head: int,
    n_prefix: int,
    grid: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Float[Tensor, "after 1 d_head"], Float[Tensor, "after 1 d_head"]]:
    """Cosine and sine of each dimension's angle: a row per native token, and one more for tokens without a place.

    Found in float32 whatever the dtype, as in a checkpoint that transformers loads in that dtype.
    """
    frequencies = 1 / positions.base ** torch.arange(0, 1, 4 / d_head, dtype=torch.float32, device="cpu")
    angles = coordinates(positions, grid, device)[:, :, None] * frequencies.to(device)
    angles = angles.flatten(1)
    angles = angles.repeat_interleave(2, -1) if positions.interleaved else angles.tile(2)
    return _cos_sin(angles[:, None], n_prefix, dtype)


def _cos_sin(angles: Float[Tensor, "p #h d_head"], n_prefix: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of patches, between rows of zeros for the tokens in front of them and one more."""
    angles = F.pad(angles, (0, 0, 0, 0, n_prefix, 1))
    return angles.cos().to(dtype), angles.sin().to(dtype)


def coordinates(
    positions: RotaryPositions, grid: tuple[int, int], device: torch.device
) -> Float[Tensor, "rows_x_columns 2"]:
    """Where each patch stands: its row and column, or column and row, as the family counts them."""

    def along(axis: int) -> Float[Tensor, "n"]:
        n = grid[axis]
        if not positions.indices:
            return 2 * math.pi * (2 * (torch.arange(0.5, n, dtype=torch.float32, device=device) / n) - 1)
        places = torch.arange(n, dtype=torch.float32, device=device) + positions.offset
        return places if positions.reference is None else places / n * positions.reference[axis]

    row, column = torch.meshgrid(along(0), along(1), indexing="ij")
    both = (column, row) if positions.columns_first else (row, column)
    return torch.stack(both, dim=-1).flatten(0, 1)
