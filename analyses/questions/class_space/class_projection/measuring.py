"""One pass over images for a model and one for each of its controls, by running them or from stored activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from analyses.activations.store.plan import hook_behind
from analyses.activations.store.serving import Serving, in_use
from analyses.activations.streams import read_layers
from analyses.controls.random_weights import with_random_weights
from analyses.data import ImageData
from analyses.processes.walking import numbered
from analyses.questions.class_space.class_projection.identifiability import SITES, Identifiability
from analyses.questions.class_space.measures.projection import (
    AS_TRAINED,
    EMBEDDING,
    KINDS,
    Rules,
    check_rules,
    class_answers,
    project_tokens,
    token_ranks,
)
from analyses.questions.class_space.measures.random_prototypes import with_random_prototypes
from analyses.questions.class_space.measures.updates import Scores, ShownBlock, read_updates
from hooked_vit import HookedViT, TokenLayout

NEEDED = ("pre", *SITES)
"""Of `Scores`; what stands between attention and MLP is not read."""
INSIDE = ("attn_out", "mlp_out", "resid_post")
"""What is read of a block, in its order, besides what enters it."""


@dataclass(frozen=True)
class StoredRun:
    """A run of a model over images as a store has it: every token at some hooks, and what its readout pooled."""

    model: HookedViT
    serving: Serving
    names: Mapping[str, str]
    layout: TokenLayout
    pooled: Callable[[Tensor], Tensor] | None

    def read(self, hooks: Sequence[str], rows: Int64[Tensor, "b"]) -> list[Float[Tensor, "b t d"]]:
        """Every token at these hooks, of these images of the data."""
        names = [self.names[hook] for hook in hooks]
        held = self.serving.store.read(names, self.serving.rows[rows])
        return [held[name].to(self.model.device) for name in names]

    @torch.no_grad()
    def updates(self, rows: Int64[Tensor, "b"], layers: Sequence[int], block: ShownBlock) -> None:
        """Show what `read_updates` shows of these images."""
        for layer in layers:
            entering = [] if block.knows_what_enters(layer) else [hook_behind(layer - 1)]
            inside = [f"blocks.{layer}.hook_{site}" for site in INSIDE]
            sites = [*["resid_pre"] * len(entering), *INSIDE]
            for site, x in zip(sites, self.read([*entering, *inside], rows), strict=True):
                block.note(layer, site, x, self.layout)

    @torch.no_grad()
    def answers(self, rows: Int64[Tensor, "b"]) -> Float[Tensor, "b c"]:
        """What the model answers to these images."""
        assert self.pooled is not None
        return self.model.answer_of(self.pooled(rows))


def stored_runs(
    model: HookedViT, data: ImageData, random_seeds: Sequence[int], layers: Sequence[int] | None
) -> dict[int | None, StoredRun]:
    """The model (None) and its controls of random weights by their seed, as far as the stores in use are of them.

    Raises ValueError where such a store lacks what is read.
    """
    if (used := in_use()) is None:
        return {}
    found: dict[int | None, StoredRun] = {}
    for seed in (None, *random_seeds):
        one = model if seed is None else with_random_weights(model, seed)
        if (serving := used.serving(one, data)) is None:
            continue
        hooks, pooled = [hook_behind(layer) for layer in _streams(model, layers)], None
        if seed is None:
            blocks = _blocks(model, layers)
            hooks += [hook_behind(layer - 1) for layer in blocks]
            hooks += [f"blocks.{layer}.hook_{site}" for layer in blocks for site in INSIDE]
            pooled = serving.pooled(one)
        whole = {hook: serving.whole(hook) for hook in hooks}
        layout = next(layout for _, layout in whole.values())
        found[seed] = StoredRun(one, serving, {hook: name for hook, (name, _) in whole.items()}, layout, pooled)
    return found


def measure_identifiability(
    model: HookedViT,
    batches: Iterable[tuple[Tensor | None, Tensor]],
    *,
    rules: Rules = AS_TRAINED,
    layers: Sequence[int] | None = None,
    random_seeds: Sequence[int] = (0, 1, 2),
    permuted_seeds: Sequence[int] = (0,),
    published: bool = False,
    full_range: bool = False,
    seed: int = 0,
    stored: Mapping[int | None, StoredRun] | None = None,
) -> list[dict[str, Any]]:
    """Everything §7–11 ask of one model, from one pass over batches of (pixels, classes of the head).

    >>> rows = measure_identifiability(model, [(pixels, labels)], random_seeds=(0,))  # doctest: +SKIP

    Rows hold measure, control, seed, site, layer (−1 for the stream that enters block 0), tokens, value, low, high, n.
    Measures: identifiability and its box plot, rate, at_least_one, change_rate, accuracy, at_least_one_when_wrong,
    and with p and p_adjusted above_random, rate_above_random, rate_above_chance, at_least_one_above_random and
    at_least_one_above_chance. Controls: random weights, a permuted head, chance. With `layers` it is these blocks
    alone, and not what enters block 0. Of `stored_runs` nothing is run, and pixels are needed for none of them.
    Raises NoHeadError for a model without a head, ValueError for a label that is no class of it.
    """
    stored = stored or {}
    blocks = _blocks(model, layers)
    tally = Identifiability(
        check_rules(model, rules),
        has_cls=model.cfg.has_cls,
        permuted=permuted_seeds,
        published=published,
        full_range=full_range,
        embedding=layers is None,
    )
    controls = {s: stored[s].model if s in stored else with_random_weights(model, s) for s in random_seeds}
    random_rules = {s: with_random_prototypes(rules, s) for s in random_seeds}
    for _, first, (pixels, labels) in numbered(batches, tally):
        rows, where = torch.arange(first, first + len(labels)), labels.to(model.device)

        def see(layer: int, role: str, scores: Scores, labels: Tensor = where) -> None:
            if role in KINDS:
                tally.add(layer, role, scores, labels)

        if None in stored:
            stored[None].updates(rows, blocks, ShownBlock(model, see, rules, NEEDED))
            output = stored[None].answers(rows)
        else:
            output = read_updates(model, pixels, see, rules, layers=blocks, sites=NEEDED)
        tally.add_answers(class_answers(model, output, rules), labels)
        for s, control in controls.items():
            kept = stored.get(s)
            layout = control.layout_for(pixels) if kept is None else kept.layout
            ranks = partial(_ranks, model=control, layout=layout, rules=random_rules[s], labels=where)
            tally.add_random(s, dict(_control(control, kept, pixels, rows, layers, ranks)), layout)
    return list(tally.rows(seed))


@torch.no_grad()
def _ranks(x: Tensor, model: HookedViT, layout: TokenLayout, rules: Rules, labels: Tensor) -> Tensor:
    return token_ranks(project_tokens(model, x, layout, rules), labels)


def _control(
    model: HookedViT,
    stored: StoredRun | None,
    pixels: Tensor | None,
    rows: Tensor,
    layers: Sequence[int] | None,
    read: Callable[[Tensor], Tensor],
) -> Iterator[tuple[int, Tensor]]:
    """Each layer of a control, and what is read of the stream there."""
    at = _streams(model, layers)
    if stored is not None:
        yield from ((layer, read(*stored.read([hook_behind(layer)], rows))) for layer in at)
    else:
        assert pixels is not None
        kept = read_layers(model, pixels, read, layers=_blocks(model, layers), embedding=layers is None)
        yield from zip(at, kept, strict=True)


def _blocks(model: HookedViT, layers: Sequence[int] | None) -> list[int]:
    return list(range(model.cfg.n_layers)) if layers is None else sorted(layers)


def _streams(model: HookedViT, layers: Sequence[int] | None) -> list[int]:
    """The layers whose stream is read: what enters block 0 is one where none are named."""
    return [*([EMBEDDING] if layers is None else []), *_blocks(model, layers)]
