"""Where tokens are: the patch and position embedding, and BEiT's relative position bias, both looked up by token id."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooked_vit.components.watching import HookPoint
from hooked_vit.config import ViTConfig
from hooked_vit.tokens import TokenLayout


class PositionEmbedding(nn.Module):
    """A learned position per native token, resampled to other grids exactly as the family resamples it."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, cfg.n_positions, cfg.d_model))
        self.grid, self.antialias, self.float32 = cfg.grid, cfg.position_antialias, cfg.position_float32
        self.placed = [role not in cfg.positionless for role in cfg.prefix]

    def forward(self, grid: tuple[int, int]) -> Float[Tensor, "1 t d"]:
        """What is added to the prefix, zero for a token without a position, and to rows x columns patches."""
        pos = self._learned(grid)
        if all(self.placed):
            return pos
        n = sum(self.placed)
        learned, none = iter(pos[:, :n].split(1, dim=1)), pos.new_zeros(1, 1, pos.shape[-1])
        return torch.cat([*(next(learned) if placed else none for placed in self.placed), pos[:, n:]], dim=1)

    def _learned(self, grid: tuple[int, int]) -> Float[Tensor, "1 p d"]:
        if grid == self.grid:
            return self.weight
        if self.grid[0] != self.grid[1]:
            raise ValueError(f"positions are resampled from square native grids only; this model's grid is {self.grid}")
        n_patches = self.grid[0] * self.grid[1]
        prefix, patches = self.weight[:, :-n_patches], self.weight[:, -n_patches:]
        picture = rearrange(patches, "1 (rows cols) d -> 1 d rows cols", rows=self.grid[0])
        picture = picture.float() if self.float32 else picture
        picture = F.interpolate(picture, size=grid, mode="bicubic", align_corners=False, antialias=self.antialias)
        patches = rearrange(picture.to(self.weight.dtype), "1 d rows cols -> 1 (rows cols) d")
        return torch.cat([prefix, patches], dim=1)


class RelativePositionBias(nn.Module):
    """BEiT's bias on attention scores: one number per head for each offset between patches, three more for CLS.

    Bao et al. 2021 (BEiT); resampling to other grids as in transformers, after MiDaS v3.1.
    """

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.grid = cfg.grid
        self.table = nn.Parameter(torch.zeros((2 * self.grid[0] - 1) * (2 * self.grid[1] - 1) + 3, cfg.n_heads))

    def forward(self, tokens: TokenLayout) -> Float[Tensor, "#b h t t"]:
        """The bias between the tokens as they are now; a token without a donor gets none."""
        bias = self._table(tokens.grid)[offsets(tokens.grid).to(self.table.device)].permute(2, 0, 1)
        if tokens.is_native:
            return bias[None]
        donors = tokens.donors.to(bias.device).reshape(-1, tokens.n_tokens)
        placed = donors.clamp(min=0)
        bias = bias[:, placed[:, :, None], placed[:, None, :]].transpose(0, 1)
        known = donors >= 0
        return bias * (known[:, None, :, None] & known[:, None, None, :])

    def _table(self, grid: tuple[int, int]) -> Float[Tensor, "n h"]:
        if grid == self.grid:
            return self.table
        between, cls = self.table[:-3], self.table[-3:]
        picture = between.unflatten(0, (2 * self.grid[0] - 1, 2 * self.grid[1] - 1)).permute(2, 0, 1)[None]
        picture = F.interpolate(picture, size=(2 * grid[0] - 1, 2 * grid[1] - 1), mode="bilinear")
        return torch.cat([picture[0].permute(1, 2, 0).flatten(0, 1), cls])


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # it is kept, and a later run may ask for gradients
def offsets(grid: tuple[int, int]) -> Int[Tensor, "t t"]:
    """The table row for every (query, key): patches by offset; then CLS to token, token to CLS, CLS to CLS."""
    rows, cols = grid
    row, col = torch.meshgrid(torch.arange(rows, device="cpu"), torch.arange(cols, device="cpu"), indexing="ij")
    row, col = row.flatten(), col.flatten()
    between = (row[:, None] - row + rows - 1) * (2 * cols - 1) + (col[:, None] - col + cols - 1)
    n = (2 * rows - 1) * (2 * cols - 1) + 3
    index = torch.empty(rows * cols + 1, rows * cols + 1, dtype=torch.long, device="cpu")
    index[1:, 1:] = between
    index[0, :] = n - 3
    index[:, 0] = n - 2
    index[0, 0] = n - 1
    return index


class Embedding(nn.Module):
    """Pixels to patch embeddings, with the learned prefix tokens beside them."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.patch = nn.Conv2d(cfg.n_channels, cfg.d_model, cfg.patch_size, cfg.patch_size, bias=cfg.patch_bias)
        self.cls = nn.Parameter(torch.zeros(1, 1, cfg.d_model)) if cfg.has_cls else None
        self.dist = nn.Parameter(torch.zeros(1, 1, cfg.d_model)) if cfg.has_dist else None
        self.registers = nn.Parameter(torch.zeros(1, cfg.n_registers, cfg.d_model)) if cfg.n_registers else None
        self.hook_patch = HookPoint()

    def forward(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        patches = self.hook_patch(rearrange(self.patch(pixels), "b d rows cols -> b (rows cols) d"))
        prefix = [p.expand(len(pixels), -1, -1) for p in (self.cls, self.dist, self.registers) if p is not None]
        return torch.cat([*prefix, patches], dim=1)
