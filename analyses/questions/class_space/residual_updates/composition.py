"""Where a block's top class comes from: the stream before it, attention, the MLP, several of them, or none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.activations.layers import measured_layers
from analyses.controls.random_weights import with_random_weights
from analyses.processes.walking import filling
from analyses.questions.class_space.measures.image_means import ImageMeans
from analyses.questions.class_space.measures.projection import AS_TRAINED, Rules
from analyses.questions.class_space.measures.random_prototypes import with_random_prototypes
from analyses.questions.class_space.measures.updates import ClassSimilarity, Scores, read_updates, showing, top_class
from hooked_vit import HookedViT

SOURCES = ("prev", "attn", "mlp")
"""What the top class after a block is compared with; source i has bit 2**i in a membership cell."""
PARTITION = {"composition": (0,), "prev only": (1,), "attn only": (2,), "mlp only": (4,), "several": (3, 5, 6, 7)}
"""Which of the 8 membership cells make up each exclusive part."""
MATCHES = {source: tuple(cell for cell in range(8) if cell >> i & 1) for i, source in enumerate(SOURCES)}
PUBLISHED = {**MATCHES, "composition": (0, 4)}
"""As published: composition asks attention twice and the MLP never, so that MLP-only matches count as composition."""


class Composition:
    """For each token, which of stream, attention update and MLP update have the top class of the block's output.

    A token is in one of 8 membership cells (methods §16); a vector whose top score is tied matches nothing. Chance is
    the same comparison with the sources of another image at the same position, exactly, over all pairs of images.
    With `published` the third source is never asked for composition, as in the code of Vilas et al. 2023 (figure 3c).
    """

    PASSING = ("_positions",)

    def __init__(self, published: bool = False) -> None:
        self.published = published
        self._cells: dict[tuple[int, str], list[Tensor]] = defaultdict(list)
        self._positions: dict[tuple[int, str], int] = {}
        self._tops: dict[tuple[int, str], _Counts] = defaultdict(_Counts)
        self._sources: dict[tuple[int, str], _Counts] = defaultdict(_Counts)

    def add(self, layer: int, role: str, scores: Scores, labels: Int[Tensor, "b"]) -> None:
        """Take in one block's scores."""
        top, *sources = (top_class(s) for s in (scores.post, scores.pre, scores.attn, scores.mlp))
        cells = torch.stack([((s == top) & (top >= 0)).long() << i for i, s in enumerate(sources)]).sum(0)
        key, (n_positions, n_classes) = (layer, role), scores.post.shape[1:]
        self._cells[key].append(torch.nn.functional.one_hot(cells, 8).sum(1).to(torch.int32).cpu())
        self._positions[key] = n_positions
        place = torch.arange(n_positions, device=top.device).expand_as(top)
        self._tops[key].add((place * n_classes + top)[top >= 0])
        for i, source in enumerate(sources):
            # each class among a token's sources is counted once, under the cell it would put a match in
            same = [source == other for other in sources]
            cell = sum(s.long() << j for j, s in enumerate(same))
            first = ~torch.stack([torch.zeros_like(top, dtype=torch.bool), *same[:i]]).any(0) & (source >= 0)
            self._sources[key].add(((place * n_classes + source) * 8 + cell)[first])

    def cells(self) -> dict[tuple[int, str], Int[Tensor, "n 8"]]:
        """(layer, role) -> tokens of each image in each membership cell; role "all" holds all but registers."""
        found = {key: torch.cat(parts) for key, parts in self._cells.items()}
        for layer in dict.fromkeys(layer for layer, _ in found):
            counted = [x for (at, role), x in found.items() if at == layer and role != "registers"]
            found[layer, "all"] = torch.stack(counted).sum(0)
        return found

    def chance(self) -> dict[tuple[int, str], Float[Tensor, "8"]]:
        """(layer, role) -> share of tokens in each cell if sources came from another image; empty for one image."""
        found: dict[tuple[int, str], Tensor] = {}
        for key, counts in self.cells().items():
            n = len(counts)
            if n < 2 or key[1] == "all":
                continue
            keys, times = self._sources[key].items()
            pairs = torch.zeros(8, dtype=torch.float64)
            pairs.index_add_(0, keys % 8, times.double() * self._tops[key].of(keys // 8).double())
            pairs -= counts.double().sum(0)  # an image is not another image
            pairs[0] = 0.0
            found[key] = pairs / (n * (n - 1) * self._positions[key])
            found[key][0] = 1 - found[key].sum()
        for layer in dict.fromkeys(layer for layer, _ in found):
            parts = [(self._positions[k], x) for k, x in found.items() if k[0] == layer and k[1] != "registers"]
            shares = torch.stack([n * share for n, share in parts])
            found[layer, "all"] = shares.sum(0) / sum(n for n, _ in parts)
        return found

    def rows(self, seed: int = 0) -> Iterator[dict[str, Any]]:
        """One row per layer, role and part, and its chance.

        `match` are shares that overlap (prev, attn, mlp) and composition, what is left; `partition` shares that do not,
        and sum to 1. `count` is the number of tokens. Intervals come from resampling images.
        """
        kinds = {"match": PUBLISHED} if self.published else {"match": MATCHES, "partition": PARTITION}
        if not self.published:
            kinds["match"] = {**MATCHES, "composition": (0,)}
        cells, chance = self.cells(), self.chance()
        shares = ImageMeans()
        for (layer, role), counts in cells.items():
            for kind, parts in kinds.items():
                for part, members in parts.items():
                    shares.add((layer, role, kind, part), counts[:, members].sum(1) / counts.sum(1))
        for (layer, role, kind, part), row in shares.rows():
            at = {"layer": layer, "part": part, "tokens": role}
            members = kinds[kind][part]
            count = int(cells[layer, role][:, members].sum())
            row["value"] = count / int(cells[layer, role].sum())  # of whole numbers, so that a partition sums to 1
            yield {"measure": kind, "control": "trained", **at, **row, "count": count}
            if (layer, role) in chance:
                luck = float(chance[layer, role][list(members)].sum())
                flat = {"value": luck, "low": luck, "high": luck, "n": row["n"]}
                yield {"measure": kind, "control": "chance", **at, **flat}


class _Counts:
    """How often each whole number occurred; holds only those that did."""

    def __init__(self) -> None:
        self.keys = torch.zeros(0, dtype=torch.long)
        self.times = torch.zeros(0, dtype=torch.long)

    def add(self, keys: Tensor) -> None:
        new, times = keys.cpu().unique(return_counts=True)
        self.keys, place = torch.cat([self.keys, new]).unique(return_inverse=True)
        self.times = torch.zeros_like(self.keys).index_add_(0, place, torch.cat([self.times, times]))

    def fresh(self) -> _Counts:
        return _Counts()

    def merge(self, other: _Counts) -> _Counts:
        merged = _Counts()
        merged.keys, place = torch.cat([self.keys, other.keys]).unique(return_inverse=True)
        merged.times = torch.zeros_like(merged.keys).index_add_(0, place, torch.cat([self.times, other.times]))
        return merged

    def items(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.times

    def of(self, keys: Tensor) -> Tensor:
        if not len(self.keys):
            return torch.zeros_like(keys)
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return self.times[place].where(self.keys[place] == keys, 0)


def compared_layers(model: HookedViT, layers: Sequence[int] | None, published: bool) -> list[int]:
    """The layers that are measured: of those named, or of all, the first is left out as `published`.

    Raises ValueError where nothing is left.
    """
    found = [layer for layer in measured_layers(model, layers) if layer > 0 or not published]
    if not found:
        raise ValueError("the published setting leaves the first layer out, and no other is measured; name one")
    return found


def measure_residual_updates(
    model: HookedViT,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    reference: str = "layer_input",
    layers: Sequence[int] | None = None,
    random_seeds: Sequence[int] = (0,),
    published: bool = False,
    seed: int = 0,
    rules: Rules = AS_TRAINED,
) -> list[dict[str, Any]]:
    """Everything §15 and §16 ask of one model, from one pass over batches of (pixels, classes of the head).

    >>> rows = measure_residual_updates(model, [(pixels, labels)], random_seeds=())  # doctest: +SKIP

    Rows hold measure (class_similarity, match, partition), control (trained, random, chance), seed, layer, part,
    tokens, value, low, high, n. `layers` are all where none are named. With `published` both updates are compared with
    the block's input, composition never asks the MLP, and the first block is left out. Raises what `compared_layers`
    raises.
    """
    layers = compared_layers(model, layers, published)
    similarity = ClassSimilarity("block_input" if published else reference)
    parts = Composition(published)
    controls = {s: (with_random_weights(model, s), ClassSimilarity(similarity.reference)) for s in random_seeds}
    for pixels, labels in filling(batches, similarity, parts, *(tally for _, tally in controls.values())):
        read_updates(model, pixels, showing([similarity, parts], labels), rules, layers=layers, answers=False)
        for s, (control, tally) in controls.items():
            see, untrained = showing([tally], labels), with_random_prototypes(rules, s)
            read_updates(control, pixels, see, untrained, layers=layers, answers=False)
    rows = [{"control": "trained", "seed": None, **row} for row in similarity.rows(seed)]
    rows += [{"seed": None, **row} for row in parts.rows(seed)]
    for s, (_, tally) in controls.items():
        rows += [{"control": "random", "seed": s, **row} for row in tally.rows(seed)]
    return rows
