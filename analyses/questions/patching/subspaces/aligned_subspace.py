"""Which few directions of a token carry what the answer goes by?

A subspace behind one block is learned such that giving an image what another one has there makes the answer the other
one's (distributed alignment search, Geiger et al. 2024), and is judged on pairs it has not seen. A search over
subspaces finds something on any data, so its placebos stand beside it: random subspaces of the same dimension, and the
same with their change made as long as the learned one's; a subspace learned with the answers of the pairs shuffled; and
the closed form, the directions in which the two runs differ most. The whole token is the most a subspace can do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.drawing.colours import BLUE, FLOOR, GREEN, MIDGREY, ORANGE, PURPLE, RED, UNTOUCHED
from analyses.drawing.panels import curve, level, panels, place
from analyses.drawing.rows import picked
from analyses.questions.patching.patch_sites import pair_pixels
from analyses.questions.patching.patched_runs import refuse_hooks
from analyses.questions.patching.patching_metrics import METRICS, check_answers
from analyses.questions.patching.subspaces.alignment import (
    Change,
    Interchange,
    Streams,
    as_long_as,
    inside,
    learn_basis,
    main_differences,
    random_basis,
)
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.intervals import rate_row
from hooked_vit import HookedViT
from hooked_vit.config.showing import counted
from hooked_vit.loading.progress import tqdm
from hooked_vit.tokens import Tokens
from interventions.vocabulary import check_tokens, layer_of

SPOKEN = {
    "learned": ("learned", BLUE),
    "differences": ("where the runs differ most", GREEN),
    "shuffled": ("learned with shuffled answers", RED),
    "random": ("random", ORANGE),
    "random_same_length": ("random, as long a change", PURPLE),
}


def main_figure(result: Result) -> go.Figure:
    """Answers that become the other image's against the dimension of the subspace, placebos beside the learned one."""
    frame = result.frame
    fig = panels(
        [f"{result.meta['model']}, layer {result.meta['layer']}, {result.meta['tokens']}"],
        "How many directions make the answer the other image's?",
        "Share of pairs the search has not seen whose answer is the target after patching the subspace; bars: 95 % "
        "intervals, over several draws the widest.",
        x="dimensions", y="answers that are the target", columns=1, height=420,
    )  # fmt: skip
    at, dims = place(fig, 0), [int(frame.dims.min()), int(frame.dims.max())]
    for name, (label, colour) in SPOKEN.items():
        curve(fig, at, picked(frame, subspace=name), label, colour, x="dims")
    for name, label, line in (
        ("whole", "the whole token", UNTOUCHED),
        ("none", "nothing patched", {**FLOOR, "color": MIDGREY}),
    ):
        level(fig, at, dims, float(picked(frame, subspace=name).value.iloc[0]), label, line)
    return fig


@analysis(figure=main_figure)
def aligned_subspace(
    model: HookedViT, clean: Float[Tensor, "b c h w"] | Sequence[Any],
    corrupt: Float[Tensor, "_ _ _ _"] | Sequence[Any], *,
    layer: int, tokens: Tokens = "cls", dims: int | Sequence[int] = (1, 2, 4), targets: Int[Tensor, "_"] | None = None,
    steps: int = 150, rate: float = 0.02, draws: int = 5, seed: int = 0, batch_size: int = 32,
) -> Result:  # fmt: skip
    """Which few directions of a token carry what the answer goes by?

    >>> result = aligned_subspace(model, clean, corrupt, layer=5)  # doctest: +SKIP
    >>> patch_subspace(layer=5, tokens="cls", basis=basis_of(result, 2), value=corrupt)  # doctest: +SKIP

    Clean images get what the corrupt ones have in a subspace of `tokens` after block `layer`. `targets` are the classes
    the answers should then be, one per pair: by default what the model predicts for the corrupt image. Every second
    pair is learned from, with `steps` of Adam at `rate`, the others are measured.

    A row per `subspace` (learned, differences, shuffled, random, random_same_length; whole and none without `dims`),
    `dims` and `draw`: the share `value` of pairs whose answer is the target, with its 95 % Wilson interval, and
    `change`, the mean length of what was added to a token. `meta["losses"]` has the curves of the search. Pairs whose
    answer is the target already are dropped and counted.
    Raises ValueError for fewer than two pairs with something to change, a layer or token there is not, and dimensions
    that are not 1 to the width of the model.
    """
    clean, corrupt = pair_pixels(model, clean, corrupt)
    refuse_hooks(model)
    check_answers(model, [METRICS["flip_rate"]])
    layer = layer_of(model, layer)
    check_tokens(model, tokens)
    wanted = sorted({dims} if isinstance(dims, int) else set(dims))
    _check_options(model, wanted, targets, len(clean), steps, draws)
    layout = model.layout_for(*clean.shape[2:])
    interchange = Interchange(model, layer, layout.mask(tokens), layout)
    streams, n_dropped = _streams(interchange, clean, corrupt, targets, batch_size)
    fit, held_out = (streams.take(torch.arange(start, len(streams), 2)) for start in (0, 1))
    kw: Any = {"steps": steps, "rate": rate, "batch_size": batch_size, "seed": seed}
    rows = [_judged(interchange, held_out, change, batch_size, subspace=name) for name, change in _ends()]
    bases: dict[str, Any] = {}
    losses: dict[str, Any] = {}
    for k in tqdm(wanted, desc="learning subspaces", delay=2, leave=False):
        learned, losses[str(k)] = learn_basis(interchange, fit, k, **kw)
        bases[str(k)] = learned.tolist()
        for name, draw, change in _changes(interchange, fit, learned, draws, kw):
            rows.append(_judged(interchange, held_out, change, batch_size, subspace=name, dims=k, draw=draw))
    frame = pd.DataFrame(rows).astype({"dims": "Int64", "draw": "Int64"})
    meta = {
        "model": model.cfg.name or model.cfg.architecture,
        "layer": layer,
        "tokens": tokens if isinstance(tokens, (str, int)) else list(tokens),
        "n_pairs": len(streams),
        "n_dropped": n_dropped,
        "targets": "the model's predictions for the corrupt images" if targets is None else "given",
        "steps": steps,
        "rate": rate,
        "draws": draws,
        "seed": seed,
        "bases": bases,
        "losses": losses,
        "interventions": ["patch_subspace"],
        "notes": [f"{n_dropped} of {counted(len(clean), 'pair')} had the target as an answer already: left out."]
        * (n_dropped > 0),
    }
    result = Result(frame, meta)
    result.meta["table"] = _table(frame)
    result.meta["summary"] = _in_words(frame)
    return result


def basis_of(result: Result, dims: int) -> Float[Tensor, "k d"]:
    """The learned subspace of a result, as `patch_subspace` takes it.

    Raises ValueError for a dimension that was not learned.
    """
    bases = result.meta["bases"]
    if str(dims) not in bases:
        raise ValueError(f"this result learned subspaces of {', '.join(bases)} dimensions; got {dims}")
    return torch.tensor(bases[str(dims)], dtype=torch.float64)


def _check_options(model: HookedViT, dims: list[int], targets: Tensor | None, n: int, steps: int, draws: int) -> None:
    if not dims or not all(1 <= k <= model.cfg.d_model for k in dims):
        raise ValueError(f"a subspace of this model has 1 to {model.cfg.d_model} dimensions; got {dims}")
    if targets is not None and (targets.shape != (n,) or targets.is_floating_point()):
        raise ValueError(f"targets are class numbers, one per pair: {n} pairs, got {tuple(targets.shape)}")
    if steps < 1 or draws < 1:
        raise ValueError(f"at least one step and one draw are needed; got {steps} and {draws}")


@torch.no_grad()
def _streams(
    interchange: Interchange, clean: Tensor, corrupt: Tensor, targets: Tensor | None, batch_size: int
) -> tuple[Streams, int]:
    """Pairs whose answer is not the target yet, and how many are."""
    model, parts = interchange.model, [slice(i, i + batch_size) for i in range(0, len(clean), batch_size)]
    answers = torch.cat([model(clean[part]).argmax(-1) for part in parts]).cpu()
    if targets is None:
        targets = torch.cat([model(corrupt[part]).argmax(-1) for part in parts])
    kept = (answers != targets.cpu()).nonzero().flatten()
    if len(kept) < 2:
        same = f"{len(clean) - len(kept)} of {len(clean)}"
        raise ValueError(
            f"the answer to {same} pairs is the target already; a subspace is learned from one half of the others and "
            "judged on the rest: give pairs with different answers"
        )
    each = [interchange.streams(clean[rows], corrupt[rows], targets.cpu()[rows]) for rows in kept.split(batch_size)]
    joined = (torch.cat([getattr(part, name) for part in each]) for name in ("base", "difference", "targets"))
    return Streams(*joined), len(clean) - len(kept)


def _ends() -> list[tuple[str, Change]]:
    return [("none", torch.zeros_like), ("whole", lambda difference: difference)]


def _changes(
    interchange: Interchange, fit: Streams, learned: Tensor, draws: int, kw: dict[str, Any]
) -> Iterator[tuple[str, int | None, Change]]:
    """(subspace, draw, what is patched), the learned one first, then its placebos."""
    k, d = learned.shape
    yield "learned", None, inside(learned)
    closed = main_differences(fit, k)
    yield "differences", None, inside(closed)
    order = torch.arange(len(fit)).roll(max(1, len(fit) // 2))
    shuffled = Streams(fit.base, fit.difference, fit.targets[order])
    yield "shuffled", None, inside(learn_basis(interchange, shuffled, k, **kw)[0])
    for draw in range(draws):
        basis = random_basis(d, k, kw["seed"] + 1 + draw)
        yield "random", draw, inside(basis)
        yield "random_same_length", draw, as_long_as(basis, learned)


@torch.no_grad()
def _judged(interchange: Interchange, streams: Streams, change: Change, batch_size: int, **at: Any) -> dict[str, Any]:
    """How many answers are the target, and how long the change of a patched token is."""
    hits, length = 0, 0.0
    for rows in torch.arange(len(streams)).split(batch_size):
        part = streams.take(rows)
        hits += int((interchange.logits(part, change).argmax(-1).cpu() == part.targets).sum())
        length += float(change(part.difference)[:, interchange.mask].norm(dim=-1).mean(1).sum())
    where = {"dims": None, "draw": None, **at}
    return {**where, **rate_row(hits, len(streams)), "change": length / len(streams)}


def _table(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per subspace and dimension, the mean over draws."""
    means = frame.groupby(["subspace", "dims"], sort=False, dropna=False)[["value", "change"]].mean().reset_index()
    table = means.astype(object)
    return table.where(table.notna(), None).to_dict("records")


def _in_words(frame: pd.DataFrame) -> list[str]:
    of = frame.groupby(["subspace", "dims"], dropna=False).value.mean()
    whole = float(frame[frame.subspace == "whole"].value.iloc[0])
    return [
        f"{counted(k, 'dimension makes', 'dimensions make')} {of['learned', k]:.0%} of unseen answers the target (the "
        f"whole token {whole:.0%}); learned with shuffled answers {of['shuffled', k]:.0%}, at random "
        f"{of['random', k]:.0%}, at random with as long a change {of['random_same_length', k]:.0%}, where the runs "
        f"differ most {of['differences', k]:.0%}."
        for k in sorted(frame.dims.dropna().unique())
    ]
