"""The engine of every patching analysis: many patched runs of the same pairs, sharing all they have in common.

Both members of a pair are run once. Each patch then resumes from the stream in front of it, and patches of one place
pass the rest of the network as one batch. All batches have the same shape, and the unpatched runs they are compared
with have it too: so a patch of everything gives the donor's logits bit by bit, and a patch of nothing the base's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.activations.token_groups import Groups
from analyses.questions.patching.patch_sites import INNER, STREAM, Patch, axes
from hooked_vit import HookedViT
from hooked_vit.components.watching import watched
from hooked_vit.loading.progress import tqdm
from interventions import Intervention, apply, resolve
from interventions.sweep import FOLD_TOKENS
from interventions.vocabulary import blend


class PatchedRun(NamedTuple):
    """Logits of one patch for some of the pairs, and of the two unpatched runs, computed in the same batch."""

    patch: Patch
    images: slice
    logits: Float[Tensor, "b c"]
    base: Float[Tensor, "b c"]
    donor: Float[Tensor, "b c"]


def patched_runs(
    model: HookedViT,
    base: Float[Tensor, "b c h w"],
    donor: Float[Tensor, "b c h w"],
    patches: Sequence[Patch],
    groups: Groups,
    *,
    cumulative: bool = False,
    under: Intervention | None = None,
    fold_tokens: int = FOLD_TOKENS,
    memory_budget: int = 2 * 2**30,
    desc: str = "patching",
) -> Iterator[PatchedRun]:
    """Yield every patch of `base` by activations of `donor`, for all pairs, in parts that fit the memory.

    >>> runs = patched_runs(model, corrupt, clean, [Patch("resid", 3, "cls")], {"cls": mask})  # doctest: +SKIP

    Patches come in no particular order; of each, the pairs come in order. A `cumulative` patch acts at its own layer
    and at all before it. `under` is an intervention that all runs are under; then nothing is folded, as it may mix the
    images of a batch. Raises RuntimeError where hooks are attached to the model already.
    """
    refuse_hooks(model)
    if unknown := {p.group for p in patches} - set(groups):
        raise ValueError(f"patches name token groups that were not given: {sorted(unknown)}")
    if not patches:
        return
    layout = model.layout_for(*base.shape[2:])
    cfg = model.cfg
    eager = any(axes(p.site) == "scores" for p in patches)
    per_image = 2 * (cfg.n_layers + 1) * layout.n_tokens * cfg.d_model * base.element_size()
    at_once = min(len(base), max(1, memory_budget // per_image))
    widest = max((len(cells) for cells in _by_place(patches, cumulative).values()), default=1)
    rows = at_once * layout.n_tokens
    fold = 1 if under is not None else max(1, min(widest, fold_tokens // rows, memory_budget // (per_image * at_once)))
    fold = -(-widest // -(-widest // fold))  # batches of equal size
    parts = [slice(i, i + at_once) for i in range(0, len(base), at_once)]
    with tqdm(total=len(parts) * len(patches), desc=desc, delay=2, leave=False) as bar:
        for images in parts:
            n = len(base[images])
            masks = {name: mask.expand(len(base), -1)[images] for name, mask in groups.items()}
            runs = _Runs(model, base[images], donor[images], fold, under, eager)
            for patch, logits, at in runs.all(patches, masks, cumulative):
                bar.update()
                ends = [side[at * n : (at + 1) * n] for side in (runs.base_logits, runs.donor_logits)]
                yield PatchedRun(patch, images, logits, *ends)


def refuse_hooks(model: HookedViT) -> None:
    """Raise RuntimeError where hooks are attached to the model: runs that share batches would share them too."""
    if any(watched(point) for point in model.hook_points()):
        raise RuntimeError("hooks are attached to the model; give what they do as an intervention: under=...")


def _by_place(patches: Sequence[Patch], cumulative: bool) -> dict[tuple, list[Patch]]:
    """Patches that may share a batch: those of one site and layer; cumulative ones of one site."""
    places: dict[tuple, list[Patch]] = defaultdict(list)
    for patch in patches:
        place = (patch.site,) if cumulative else (patch.site, patch.layer)
        known = places[place]
        if not cumulative or (patch.group, patch.heads) not in {(p.group, p.heads) for p in known}:
            known.append(patch)
    return places


class _Runs:
    """The two runs of some pairs, and patched runs between them; every batch holds `fold` copies of the pairs."""

    def __init__(
        self, model: HookedViT, base: Tensor, donor: Tensor, fold: int, under: Intervention | None, eager: bool
    ) -> None:
        self.model, self.fold, self.n = model, fold, len(base)
        self.layout = model.layout_for(*base.shape[2:])
        self.eager = eager and model.run.attention == "auto"
        self.under: list = []
        if under is not None:
            with apply(model, under):  # so that one that never fires is noticed
                model(base)
            self.under = resolve(model, under)
        self.base, self.base_logits = self._walk(base)
        self.donor, self.donor_logits = self._walk(donor)

    @contextmanager
    def computing(self) -> Iterator[None]:
        model, before = self.model, self.model.run.attention
        if self.eager:  # patterns are patched: the runs they are compared with use the same kernel
            model.set_attention("eager")
        try:
            with torch.no_grad(), model.running(self.layout), model.hooks(fwd_hooks=self.under):
                yield
        finally:
            model.set_attention(before)

    def _walk(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """The stream at every depth, and the logits."""
        with self.computing():
            streams = [self.model.embed_pixels(pixels.repeat(self.fold, 1, 1, 1))]
            for block in self.model.blocks:
                streams.append(block(streams[-1]))
            logits = self.model.readout(streams[-1])
        if streams[-1].shape[1] != self.layout.n_tokens:
            raise ValueError(
                "token groups are groups of the image's own tokens; patch without inserting or removing any"
            )
        return streams, logits

    def all(self, patches: Sequence[Patch], masks: Groups, cumulative: bool) -> Iterator[tuple[Patch, Tensor, int]]:
        """(patch, its logits, its place in the batch) for every patch."""
        wanted = set(patches)
        for cells in _by_place(patches, cumulative).values():
            for first in range(0, len(cells), self.fold):
                yield from self._track(cells[first : first + self.fold], masks, wanted, cumulative)

    def _track(
        self, cells: list[Patch], masks: Groups, wanted: set[Patch], cumulative: bool
    ) -> Iterator[tuple[Patch, Tensor, int]]:
        """One batch of patches at one layer, or growing layer by layer."""
        site, n, where = cells[0].site, self.n, self._where(cells, masks)
        cell_of = [(cell.group, cell.heads) for cell in cells]
        last = max(p.layer for p in wanted if p.site == site) if cumulative else cells[0].layer
        state: Tensor | None = None
        for layer in range(0 if cumulative else last, last + 1):
            with self.computing():
                depth = layer + STREAM.get(site, 0)
                state, behind = self._patched(site, depth, self.base[depth] if state is None else state, where)
                here = [(at, Patch(site, layer, *cell)) for at, cell in enumerate(cell_of)]
                here = [(at, patch) for at, patch in here if patch in wanted]
                logits = self._rest(state, behind) if here else None
            for at, patch in here:
                assert logits is not None
                yield patch, logits[at * n : (at + 1) * n], at

    def _patched(self, site: str, depth: int, start: Tensor, where: Tensor) -> tuple[Tensor, int]:
        """The stream behind the patched block, and its depth."""
        block = self.model.blocks[depth] if depth < self.model.cfg.n_layers else None
        if site in STREAM:
            state = blend(start, self.donor[depth], where)
            return (state, depth) if block is None else (block(state), depth + 1)
        assert block is not None
        value = self._donor_activation(site, depth)
        name = f"blocks.{depth}.{INNER[site][0]}"
        with self.model.hooks(fwd_hooks=[(name, lambda act, hook: blend(act, value, where))]):
            return block(start), depth + 1

    def _donor_activation(self, site: str, layer: int) -> Tensor:
        """Made again when it is needed: keeping all of them would take many times the memory of the streams."""
        seen: list[Tensor] = []
        with self.model.hooks(fwd_hooks=[(f"blocks.{layer}.{INNER[site][0]}", lambda act, hook: seen.append(act))]):
            self.model.blocks[layer](self.donor[layer])
        return seen[0]

    def _rest(self, state: Tensor, depth: int) -> Tensor:
        for block in self.model.blocks[depth:]:
            state = block(state)
        return self.model.readout(state)

    def _where(self, cells: list[Patch], masks: Groups) -> Bool[Tensor, "..."]:
        """What the batch replaces; places no patch uses replace nothing."""
        tokens = torch.zeros(self.fold, self.n, self.layout.n_tokens, dtype=torch.bool)
        heads = torch.zeros(self.fold, self.model.cfg.n_heads, dtype=torch.bool)
        for at, cell in enumerate(cells):
            tokens[at] = masks[cell.group]
            heads[at, list(cell.heads) if cell.heads is not None else slice(None)] = True
        tokens, by_head = tokens.flatten(0, 1), heads.repeat_interleave(self.n, dim=0)
        tokens, by_head = tokens.to(self.base_logits.device), by_head.to(self.base_logits.device)
        kind = axes(cells[0].site)
        if kind == "stream":
            return tokens[:, :, None]
        if kind == "heads":
            return tokens[:, :, None, None] & by_head[:, None, :, None]
        return tokens[:, None, :, None] & by_head[:, :, None, None]
