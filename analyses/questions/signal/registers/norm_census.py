"""Norms of tokens, block by block: which image tokens are outliers, where they lie and what they lie on.

Some large models give a few patches of little information ten times the norm of the others from the middle blocks on,
and keep global information there (Darcet et al. 2024, arXiv 2309.16588; methods §27).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from analyses.questions.signal.norms import NormRule
from analyses.questions.signal.spectrum import luminance
from analyses.statistics.intervals import mean_intervals, rate_row
from hooked_vit import TokenLayout

EDGES = torch.logspace(-6, 9, 481, dtype=torch.float64)
"""Of the bins of every histogram, 32 to a factor of ten, whatever the model, its layers and its images."""
TRAITS = ("object", "low contrast", "border")


def patch_traits(
    shown: Float[Tensor, "b c h w"], layout: TokenLayout, objects: Tensor | None = None
) -> dict[str, Bool[Tensor, "b p"]]:
    """What each patch lies on: an object, the quarter of its picture with the least contrast, the border.

    `shown` holds pixels from 0 to 1, `objects` [b, h, w] is 0 on the background. Contrast is the standard deviation of
    luminance within the patch.
    """
    brightness = _cells(luminance(shown).cpu(), layout.grid)
    contrast = brightness.std(-1, correction=0)
    k = max(1, contrast.shape[1] // 4)
    least = torch.zeros_like(contrast, dtype=torch.bool)
    least.scatter_(1, contrast.argsort(dim=1, stable=True)[:, :k], True)
    rows, cols = layout.grid
    border = torch.ones(rows, cols, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    traits = {"low contrast": least, "border": border.flatten().expand(len(shown), -1)}
    if objects is not None:
        traits["object"] = (_cells(objects.cpu(), layout.grid) > 0).any(-1)
    return traits


def patch_contents(shown: Float[Tensor, "b c h w"], layout: TokenLayout) -> Float64[Tensor, "b p k"]:
    """Mean of each channel and standard deviation of luminance in each patch: what its token can hold of it."""
    means = torch.stack([_cells(shown[:, c].cpu().double(), layout.grid).mean(-1) for c in range(shown.shape[1])], -1)
    contrast = _cells(luminance(shown).cpu(), layout.grid).std(-1, correction=0)
    return torch.cat([means, contrast[..., None]], dim=-1)


class NormCensus:
    """Counts that stream: a histogram and a map per block; per image a few shares."""

    PASSING = ("rule",)

    def __init__(self, rule: NormRule, grid: tuple[int, int]) -> None:
        self.rule, self.grid = rule, grid
        # beyond the edges stands one open bin on either side
        self.histogram: dict[tuple[str, int], np.ndarray] = defaultdict(lambda: np.zeros(len(EDGES) + 1, np.int64))
        self.map: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(grid[0] * grid[1], np.int64))
        self.columns: dict[tuple, list[np.ndarray]] = defaultdict(list)
        self.n = 0

    def update(
        self,
        norms: list[Float64[Tensor, "b t"]],
        layout: TokenLayout,
        traits: Mapping[str, Bool[Tensor, "b p"]] | None = None,
    ) -> None:
        """Take in a batch: the norms of every token behind every block the rule is for."""
        self.n += len(norms[0])
        for layer, of_tokens in zip(self.rule.layers, norms, strict=True):
            for role in layout.roles:
                of_role = of_tokens[:, layout.where(role)]
                bins = torch.bucketize(of_role.contiguous(), EDGES, right=True).flatten()
                self.histogram[role, layer] += np.bincount(bins.numpy(), minlength=len(EDGES) + 1)
                if role != "patches":
                    self._add(("robust_z", role, layer, None), self.rule.z(of_role, layer).mean(1))
            outliers = self.rule.outliers(of_tokens[:, layout.where("patches")], layer)
            self.map[layer] += outliers.sum(0).numpy()
            self._add(("outlier_share", "patches", layer, None), outliers.double().mean(1))
            for trait, there in (traits or {}).items():
                for token, chosen in (("outlier", outliers), ("other", ~outliers)):
                    # images without an outlier say nothing; 0 / 0 is NaN, which is left out
                    share = (there & chosen).sum(1) / chosen.sum(1)
                    self._add(("overlap", token, layer, trait), share.where(outliers.any(1), torch.nan).double())

    def _add(self, key: tuple, values: Tensor) -> None:
        self.columns[key].append(values.numpy())

    def rows(self, seed: int) -> Iterator[dict[str, Any]]:
        """The census in rows."""
        columns = {key: np.concatenate(parts) for key, parts in self.columns.items()}
        intervals = mean_intervals(columns)
        for (measure, token, layer, trait), x in columns.items():
            known = x[np.isfinite(x)]
            low, high = intervals[measure, token, layer, trait]
            if len(known):
                numbers = {"value": known.mean(), "low": low, "high": high, "n": len(known)}
                yield {"measure": measure, "token": token, "layer": layer, "trait": trait, **numbers}
            if measure == "outlier_share":
                yield {"measure": "images_with_outliers", "layer": layer, **rate_row(int((x > 0).sum()), len(x))}
        for layer, counts in self.map.items():
            for place, count in enumerate(counts):
                where = {"row": place // self.grid[1], "col": place % self.grid[1]}
                yield {"measure": "outlier_position", "layer": layer, **where, **rate_row(int(count), self.n)}
        for row, layer in enumerate(self.rule.layers):
            for measure in ("median", "scale", "threshold"):
                value = float(getattr(self.rule, measure)[row])
                yield {"measure": f"norm_{measure}", "token": "patches", "layer": layer, "value": value}

    def histogram_rows(self) -> Iterator[dict[str, Any]]:
        """Share of each role's tokens in each bin of norms that holds any; open bins end at 0 and infinity."""
        edges = [0.0, *EDGES.tolist(), float("inf")]
        for (role, layer), counts in self.histogram.items():
            for k in np.flatnonzero(counts):
                span = {"norm_low": edges[k], "norm_high": edges[k + 1]}
                share = {"value": counts[k] / counts.sum(), "n": int(counts.sum())}
                yield {"measure": "norm_histogram", "token": role, "layer": layer, **span, **share}


def _cells(pictures: Tensor, grid: tuple[int, int]) -> Tensor:
    """[b, h, w] as [b, patches, pixels of a patch]."""
    b, height, width = pictures.shape
    rows, cols = grid
    cells = pictures.reshape(b, rows, height // rows, cols, width // cols).transpose(2, 3)
    return cells.reshape(b, rows * cols, -1)
