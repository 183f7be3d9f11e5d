"""Many interventions in one pass: runs that begin alike share that beginning.

The network is walked once, carrying the states that are alive. A state forks where an intervention begins, states
with the same history are one, and states that merely pass a block pass it as one folded batch. For twelve layers and
one intervention per layer that is 66 + 12 evaluations of a block instead of 144. Of those of the last block, the ones
of which no more is seen than what a readout of few tokens pools are for these tokens alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_vit import HookedViT, HookPoint, TokenLayout
from hooked_vit.components.narrowing import BEHIND_POOLING, can_narrow, rows_pooled
from hooked_vit.components.pieces import in_pieces
from hooked_vit.components.watching import watched
from hooked_vit.config.numbers import in_full_digits
from hooked_vit.hook_table import SPLICED
from hooked_vit.loading.progress import ahead, tick
from interventions.apply import AppliedRun, InterventionNotFired, brought
from interventions.core import Edit, Intervention, flatten, registered
from interventions.sources import shared_runs

FOLD_TOKENS = 1024
"""Tokens that pass a block as one batch: on a CPU more of them cost more than their fewer calls save."""

History = tuple[tuple[str, int], ...]
Look = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Step:
    """One edit of one variant: the part of the network it belongs to, and a key equal edits share."""

    depth: int
    name: str
    edit: Edit
    key: tuple[str, int]


@dataclass
class State:
    """A residual stream on its way through the network."""

    resid: Float[Tensor, "b t d"]
    tokens: TokenLayout
    rows: slice | None = None
    """The tokens it holds alone, behind the last block; None where it holds all of them."""


@dataclass
class Variant:
    """One intervention of the sweep, its edits, and the history of the state it is in."""

    intervention: Intervention
    steps: list[Step]
    run: AppliedRun
    brought: dict[str, HookPoint]
    history: History = ()


@dataclass
class Fork:
    """Variants that agree up to here: the state they come from, the edits they make now, the state they get."""

    old: History
    new: History
    steps: list[Step]
    run: AppliedRun


def sweep(
    model: HookedViT,
    pixels: Float[Tensor, "b c h w"],
    interventions: Iterable[Intervention],
    *,
    memory_budget: int = 2 * 2**30,
    fold_tokens: int = FOLD_TOKENS,
    undisturbed: Look | None = None,
) -> Iterator[tuple[Intervention, Float[Tensor, "b n"]]]:
    """Yield (intervention, logits) for each, as separate runs would give them, sharing all that runs have in common.

    >>> for iv, logits in sweep(model, pixels, [shuffle_cls(layer=l) for l in range(12)]):  # doctest: +SKIP
    ...     ...

    At most `memory_budget` bytes of residual streams are alive at once; beyond that the list is walked in parts.
    Streams of up to `fold_tokens` tokens together pass a block as one batch, large ones in pieces, and the last block
    for the tokens alone that the readout pools where no hook sees the others (0: none of it; then results are those of
    separate runs bit by bit, otherwise up to the rounding of other matrix products).
    `undisturbed` is called with each layer and the stream behind it [b, t, d] in a run without any edit, which costs
    nothing where a variant has none in front of the readout; of no interventions nothing runs. No gradients. Random
    generators start anew with every sweep, so that over many batches each wants seeds of its own.
    Raises what `apply` raises, before the first run; and RuntimeError where hooks are attached to the model already.
    """
    _refuse_hooks(model)
    layout = model.check_pixels(pixels)
    with torch.no_grad(), shared_runs():
        variants = [_resolve(model, iv) for iv in interventions]
    per_state = len(pixels) * layout.n_tokens * model.cfg.d_model * model.embed.patch.weight.element_size()
    at_once = max(1, memory_budget // max(1, 2 * per_state))
    return _in_parts(model, pixels, variants, at_once, fold_tokens, undisturbed)


def _in_parts(
    model: HookedViT, pixels: Tensor, variants: list[Variant], at_once: int, fold_tokens: int, look: Look | None
) -> Iterator[tuple[Intervention, Tensor]]:
    parts = [variants[first : first + at_once] for first in range(0, len(variants), at_once)]
    ahead(sum(_passes(part, model.cfg.n_layers) for part in parts))
    for number, part in enumerate(parts):
        _refuse_hooks(model)
        points = {name: point for variant in part for name, point in variant.brought.items()}
        with torch.no_grad(), model.more_hooks(points):
            outputs = _walk(model, pixels, part, fold_tokens, None if number else look)
        for variant, logits in zip(part, outputs, strict=True):
            yield variant.intervention, logits


def _refuse_hooks(model: HookedViT) -> None:
    if any(watched(point) for point in model.hook_points()):
        raise RuntimeError(
            "hooks are attached to the model, and a sweep shares runs between variants; add what they do to each "
            "variant instead: sweep(model, pixels, [outer + iv for iv in interventions])"
        )


def _resolve(model: HookedViT, intervention: Intervention) -> Variant:
    run = AppliedRun()
    steps: list[Step] = []
    found = brought(model, intervention)
    with model.more_hooks(found):
        parts = [(part, part.hooks(model)) for part in flatten((intervention,))]
    for part, hooks in parts:
        # edits that remember their run are no other variant's, however equal
        key = f"{part.key} of {id(run)}" if registered()[part.name].whole_run else part.key
        for i, (name, edit) in enumerate(hooks):
            steps.append(Step(depth_of(model, name), name, run.watch(part, name, edit), (key, i)))
    return Variant(intervention, steps, run, found)


def depth_of(model: HookedViT, name: str) -> int:
    """The part of the network a hook lies in: -1 embedding, 0.. blocks, n_layers readout."""
    if block := re.match(r"blocks\.(\d+)\.", name):
        return int(block[1])
    embedding = ("hook_pixels", "embed.", "hook_embed", "hook_pos_embed", "ln_pre.")
    return -1 if name.startswith(embedding) else model.cfg.n_layers


def _place(name: str) -> str:
    """Where in its block a hook lies: the edges can be edited from outside, so that the block itself is shared."""
    name = name.removesuffix(SPLICED)
    if name.endswith("hook_resid_pre"):
        return "pre"
    return "post" if name.endswith("hook_resid_post") else "inside"


def _forks(variants: list[Variant], depth: int, place: str | None = None) -> list[Fork]:
    """Group variants by what they do here, and move each to the history it then has."""
    forks: dict[History, Fork] = {}
    for variant in variants:
        steps = [s for s in variant.steps if s.depth == depth and place in (None, _place(s.name))]
        new = variant.history + tuple(s.key for s in steps)
        # the first of equal variants acts for all: its random draws are those of a run of its own
        forks.setdefault(new, Fork(variant.history, new, steps, variant.run))
        variant.history = new
    return list(forks.values())


def _passes(variants: list[Variant], n_layers: int) -> int:
    """How many evaluations of a block these variants are: as many at each layer as differ in what is done so far."""

    def so_far(variant: Variant, layer: int) -> History:
        return tuple(s.key for s in variant.steps if (s.depth, _place(s.name) == "post") <= (layer, False))

    return sum(len({so_far(variant, layer) for variant in variants}) for layer in range(n_layers))


def _walk(
    model: HookedViT, pixels: Tensor, variants: list[Variant], fold_tokens: int, look: Look | None
) -> list[Tensor]:
    layout = model.check_pixels(pixels)
    asked = variants
    if look is not None:  # one more variant, without an edit
        variants = [*variants, Variant(variants[0].intervention, [], AppliedRun(), {})]
    model.run.n_forwards += 1
    states: dict[History, State] = {}
    for fork in _forks(variants, -1):
        with _attached(model, fork, layout):
            states[fork.new] = State(model.embed_pixels(pixels), model.run.tokens)
    for layer, block in enumerate(model.blocks):
        states = _edit_outside(model, states, _forks(variants, layer, "pre"))
        forks = _forks(variants, layer, "inside")
        narrow = _unseen(model, asked, look) if layer == model.cfg.n_layers - 1 and fold_tokens else set()
        states = _pass_block(model, block, states, forks, fold_tokens, narrow)
        states = _edit_outside(model, states, _forks(variants, layer, "post"))
        if look is not None:
            look(layer, states[()].resid.clone())  # his own: what he writes into it reaches nothing else
    outputs: dict[History, Tensor] = {}
    for fork in _forks(asked, model.cfg.n_layers):
        state = states[fork.old]
        with _attached(model, fork, state.tokens):
            outputs[fork.new] = _answer(model, state)
    return [outputs[v.history] for v in asked]


def _answer(model: HookedViT, state: State) -> Tensor:
    """Logits; hooks behind the pooling are shown what they always are, and the layout of all tokens."""
    if state.rows is None:
        return model.readout(state.resid)
    with model.running(state.tokens.part(state.rows)):
        pooled = model.pool(state.resid)
    return model.answer_of(model.hook_pooled(pooled))


def _unseen(model: HookedViT, variants: list[Variant], look: Look | None) -> set[History]:
    """The states behind the last block of whose tokens none is edited inside it or later."""
    if not can_narrow(model.blocks[-1], model.ln_final):
        return set()
    last = model.cfg.n_layers - 1
    free = {*BEHIND_POOLING, f"blocks.{last}.hook_resid_pre"}
    seen = {v.history for v in variants for s in v.steps if s.depth >= last and s.name not in free}
    return {v.history for v in variants} - seen - ({()} if look is not None else set())


@contextmanager
def _attached(model: HookedViT, fork: Fork, tokens: TokenLayout) -> Iterator[None]:
    """A part of the network under the edits of a fork, every one of which must fire."""
    hooks = [(s.name, s.edit) for s in fork.steps]
    with model.running(tokens), model.hooks(fwd_hooks=hooks):
        yield
    if missed := [name for name in fork.run.missed if name in {s.name for s in fork.steps}]:
        raise InterventionNotFired(f"{', '.join(missed)} was never reached in its part of the network")


def _edit_outside(model: HookedViT, states: dict[History, State], forks: list[Fork]) -> dict[History, State]:
    """Edits of the stream between blocks, made by hand."""
    after: dict[History, State] = {}
    for fork in forks:
        state = states[fork.old]
        resid = state.resid
        # what a dictionary shows is edited while the edit of the stream that spliced it in is made
        spliced = Fork(fork.old, fork.new, [s for s in fork.steps if s.name.endswith(SPLICED)], fork.run)
        with _attached(model, spliced, state.tokens), in_full_digits(resid.device.type):  # as at the hook itself
            for step in [s for s in fork.steps if not s.name.endswith(SPLICED)]:
                new = step.edit(resid, hook=model.hook_dict[step.name])
                resid = resid if new is None else new
            after[fork.new] = State(resid, model.run.tokens, state.rows)
    return after


def _pass_block(
    model: HookedViT,
    block: torch.nn.Module,
    states: dict[History, State],
    forks: list[Fork],
    fold_tokens: int,
    narrow: set[History],
) -> dict[History, State]:
    """All states through one block: those it is edited in one by one, the others folded into batches."""
    after: dict[History, State] = {}
    for fork in forks:
        if fork.steps:
            state = states[fork.old]
            with _attached(model, fork, state.tokens):
                after[fork.new] = State(block(state.resid), model.run.tokens)
            tick()
    passing = [(fork.new, states[fork.old]) for fork in forks if not fork.steps]
    for alone in (False, True):
        for fold in _folds([each for each in passing if (each[0] in narrow) == alone], fold_tokens):
            tokens = fold[0][1].tokens
            rows = rows_pooled(model.cfg, tokens) if alone else None
            run = block if rows is None else partial(block, rows=rows)
            resid = torch.cat([state.resid for _, state in fold]) if len(fold) > 1 else fold[0][1].resid
            with model.running(tokens):
                whole = tokens.ragged or fold_tokens == 0
                parts = (run(resid) if whole else in_pieces(run, model.cfg, (), resid)).chunk(len(fold))
            after |= {new: State(part, tokens, rows) for (new, _), part in zip(fold, parts, strict=True)}
            tick(len(fold))
    return after


def _folds(states: list[tuple[History, State]], fold_tokens: int) -> Iterator[list[tuple[History, State]]]:
    """States that can pass a block as one batch: the same tokens, together no more than `fold_tokens` of them."""
    fold: list[tuple[History, State]] = []
    for history, state in states:
        rows = state.resid.shape[0] * state.resid.shape[1]
        fits = (len(fold) + 1) * rows <= fold_tokens and not state.tokens.ragged
        if fold and not (fits and state.tokens.same_as(fold[0][1].tokens)):
            yield fold
            fold = []
        fold.append((history, state))
    if fold:
        yield fold
