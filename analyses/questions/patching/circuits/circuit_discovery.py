"""Which edges between the parts of a model carry the difference between two images, and how few of them suffice?

Every edge, from the embedding, a head or an MLP to the queries, keys or values of a head, an MLP or the readout, is
scored by what cutting it would do. Then only the k edges with the largest scores are kept, and all others carry what is
put in their place: *faithfulness* is how much of the way from the fully cut model back to the whole one they lead, on
pairs the scores have not seen. Beside it: as many edges at random, those that merely move their reader's input most,
and the order of exact cuts where they are affordable. Syed et al. 2023, Hanna et al. 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.questions.patching.circuits.edge_scores import ALONG, cut_logits, edge_scores, exact_effects
from analyses.questions.patching.circuits.figure import faithfulness_figure, graph_figure, in_words, summary_table
from analyses.questions.patching.circuits.pairs import ABLATIONS, Pairs, make_pairs
from analyses.questions.patching.pair_tally import Tally, check_eps, dropped_notes
from analyses.questions.patching.patch_sites import pair_pixels
from analyses.questions.patching.patched_runs import refuse_hooks
from analyses.questions.patching.patching_metrics import (
    EPS,
    Metric,
    MetricLike,
    as_metric,
    check_answers,
    check_classes,
    recovery,
)
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.intervals import mean_intervals
from analyses.statistics.ranks import rank_correlation
from hooked_vit import HookedViT
from hooked_vit.config.showing import counted
from hooked_vit.loading.progress import tqdm
from interventions.circuits import Circuit, Graph, identity
from interventions.vocabulary import check_choice

N_SIZES = 10


@analysis(figure=faithfulness_figure, more_figures={"The circuit": graph_figure})
def circuit_discovery(
    model: HookedViT, clean: Float[Tensor, "b c h w"] | Sequence[Any],
    corrupt: Float[Tensor, "_ _ _ _"] | Sequence[Any], *,
    ablation: str = "counterfactual", steps: int = 5, along: str = "edges", metric: MetricLike = "logit_diff",
    classes: tuple[Int[Tensor, "_"], Int[Tensor, "_"]] | None = None, sizes: Sequence[int] | None = None,
    exact: int | None = 64, draws: int = 3, eps: float = EPS, seed: int = 0, batch_size: int = 8,
) -> Result:  # fmt: skip
    """Which edges carry the difference between two images, and how few of them suffice?

    >>> result = circuit_discovery(model, clean, corrupt)  # doctest: +SKIP
    >>> circuit = circuit_of(result, 50); circuit.save("circuit.json")  # doctest: +SKIP
    >>> with apply(model, only(circuit, value=corrupt)): logits = model(clean)  # doctest: +SKIP

    A cut edge carries what its sender says of the other image of the pair ("counterfactual"), of another clean image
    ("resample"), on average over all corrupt images at this token ("mean"), or zeros ("zero"). `steps`, `along` as in
    `edge_scores`: with 0 steps edge attribution, otherwise integrated gradients. `metric` has a gradient, and `classes`
    are the two it is about, by default what the model predicts for either image. Every second pair is for the scores,
    the others for what they are worth. `exact` edges, half of them the strongest and half at random, are cut in earnest
    (None: all, which then make an order of their own). `sizes` are numbers of edges, by default ten from one to all.

    The result has two parts. "edges", a row each: mean `score` over pairs with its 95 % interval, `size` (share of the
    norm of what the reader reads), `exact` (NaN where it was not cut). "faithfulness", a row per `order` (score, exact,
    size, random) and number of `edges`, with columns as `Tally.rows` explains. `meta["agreement"]` compares the scores
    with exact cuts and between the two halves of the pairs. Pairs in which cutting everything changes nothing are
    dropped and counted.
    Raises ValueError for fewer than two pairs, none with an effect, a metric without a gradient, and a model whose
    norms stand behind its branches.
    """
    clean, corrupt = pair_pixels(model, clean, corrupt)
    check_answers(model, [as_metric(metric)])
    check_classes(classes, len(clean))
    refuse_hooks(model)
    check_eps(eps)
    study = _Study(model, as_metric(metric), eps, seed, batch_size)
    _check_options(study.metric, len(clean), ablation, along, steps, draws, exact)
    wanted = _sizes(study.n_edges, sizes)
    pairs = make_pairs(
        model, clean, corrupt, study.metric, ablation, classes, eps=eps, seed=seed, batch_size=batch_size
    )
    effects, moved = study.scores(pairs, steps, along)
    chosen = study.sample(exact, np.abs(effects.mean(0)))
    cuts = study.cut_in_earnest(pairs, chosen)
    fit = np.arange(len(pairs.clean)) % 2 == 0
    orders = study.orders(effects[fit].mean(0), moved[fit].mean(0), cuts[fit].mean(0), draws, exact is None)
    curve = study.faithfulness(pairs.take(~fit), orders, wanted)
    edges = study.table(effects, moved, cuts)
    meta = {
        "model": identity(model),
        "ablation": ablation,
        "method": f"integrated gradients along the {along}, {counted(steps, 'step')}" if steps else "edge attribution",
        "metric": study.metric.name,
        "classes": "the model's predictions" if classes is None else "given",
        "n_pairs": len(pairs.clean),
        "n_dropped": len(clean) - len(pairs.clean),
        "n_edges": study.n_edges,
        "draws": draws,
        "eps": eps,
        "seed": seed,
        "agreement": _agreement(effects, cuts, fit),
    }
    result = Result.joined({"edges": Result(edges), "faithfulness": Result(curve)}, meta)
    result.meta["table"] = summary_table(result).to_dict("records")
    result.meta["summary"], notes = in_words(result)
    result.meta["notes"] = [*notes, *dropped_notes(curve)]
    return result


def circuit_of(result: Result, n_edges: int) -> Circuit:
    """The `n_edges` edges with the largest scores, in either direction, as a circuit of the model they were found in.

    >>> circuit_of(result, 50)  # doctest: +SKIP
    <circuit of 50 edges in zoo:vit>

    Raises ValueError for a number of edges there is not.
    """
    edges = result.part("edges").frame
    if not 0 <= n_edges <= len(edges):
        raise ValueError(f"this model has {len(edges)} edges; got n_edges={n_edges}")
    order = np.argsort(-edges.score.abs().to_numpy(), kind="stable")[:n_edges]
    kept = edges.iloc[np.sort(order)]
    return Circuit(tuple(zip(kept.sender, kept.receiver, strict=True)), result.meta["model"])


class _Study:
    """One model, one metric: the pairs, the scores, the orders and what they are worth."""

    def __init__(self, model: HookedViT, metric: Metric, eps: float, seed: int, batch_size: int) -> None:
        self.model, self.metric, self.eps, self.seed, self.batch_size = model, metric, eps, seed, batch_size
        self.graph = Graph.of(model)
        self.places = [(s, r) for s, r in self.graph.exists.nonzero().tolist()]
        self.n_edges = len(self.places)

    def _batches(self, pairs: Pairs, what: str) -> Any:
        starts = range(0, len(pairs.clean), self.batch_size)
        return (pairs.take(slice(i, i + self.batch_size)) for i in tqdm(starts, desc=what, delay=2, leave=False))

    def scores(self, pairs: Pairs, steps: int, along: str) -> tuple[np.ndarray, np.ndarray]:
        """(effect, size) per pair and edge."""
        found = []
        for part in self._batches(pairs, "scoring edges"):
            judge = self._judge(part)
            scores = edge_scores(self.model, part.clean, part.values(self.model), judge, steps=steps, along=along)
            found.append([x[:, self.graph.exists].numpy() for x in (scores.effect, scores.size)])
        effect, size = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return effect, size

    def _judge(self, pairs: Pairs) -> Any:
        return lambda logits: self.metric(logits, pairs.reference)

    def sample(self, exact: int | None, strength: np.ndarray) -> list[int]:
        """Edges to cut in earnest: half of them those with the largest scores, the rest drawn at random."""
        if exact is None:
            return list(range(self.n_edges))
        ranked = np.argsort(-strength, kind="stable")
        first, rest = ranked[: exact // 2], ranked[exact // 2 :]
        drawn = np.random.default_rng(self.seed).permutation(rest)[: exact - len(first)]
        return sorted([*first.tolist(), *drawn.tolist()])

    def cut_in_earnest(self, pairs: Pairs, chosen: list[int]) -> np.ndarray:
        """Exact effects per pair and edge; NaN for edges that were not chosen."""
        found = np.full((len(pairs.clean), self.n_edges), np.nan)
        first = 0
        for part in self._batches(pairs, "exact cuts"):
            places = [self.places[i] for i in chosen]
            effects = exact_effects(self.model, part.clean, part.values(self.model), self._judge(part), places)
            for i, effect in zip(chosen, effects, strict=True):
                found[first : first + len(effect), i] = effect.numpy()
            first += len(part.clean)
        return found

    def orders(
        self, score: np.ndarray, size: np.ndarray, cut: np.ndarray, draws: int, has_exact: bool
    ) -> dict[tuple[str, int | None], np.ndarray]:
        """(order, draw) -> edges, the most important first; those that tie come as they are drawn."""
        rng = np.random.default_rng(self.seed + 1)
        found: dict[tuple[str, int | None], np.ndarray] = {}
        by = {"score": score, **({"exact": cut} if has_exact else {}), "size": size}
        for name, values in by.items():
            shuffled = rng.permutation(self.n_edges)
            found[name, None] = shuffled[np.argsort(-np.abs(values[shuffled]), kind="stable")]
        return found | {("random", draw): rng.permutation(self.n_edges) for draw in range(draws)}

    def faithfulness(self, pairs: Pairs, orders: Mapping[tuple[str, int | None], np.ndarray], sizes: list[int]) -> Any:
        """One row per order, draw and number of edges."""
        tally = Tally([recovery(self.metric)], self.eps)
        where = torch.tensor(self.places)
        for part in self._batches(pairs, "keeping edges"):
            values = part.values(self.model)
            for (order, draw), edges in orders.items():
                for k in sizes:
                    kept = where[torch.from_numpy(edges[:k].copy())]
                    cut = self.graph.exists.float()
                    cut[kept[:, 0], kept[:, 1]] = 0
                    logits = cut_logits(self.model, part.clean, cut, values)
                    tally.add((order, draw, k), logits, part.reference)
        rows = [{"order": order, "draw": draw, "edges": k, **measured} for (order, draw, k), measured in tally.rows()]
        return pd.DataFrame(rows).astype({"draw": "Int64"})

    def table(self, effects: np.ndarray, sizes: np.ndarray, cuts: np.ndarray) -> pd.DataFrame:
        """One row per edge."""
        ends = mean_intervals({i: effects[:, i] for i in range(self.n_edges)})
        senders, receivers = zip(*self.graph.edges, strict=True)
        return pd.DataFrame(
            {
                "sender": senders,
                "receiver": receivers,
                "score": effects.mean(0),
                "low": [ends[i][0] for i in range(self.n_edges)],
                "high": [ends[i][1] for i in range(self.n_edges)],
                "size": sizes.mean(0),
                "exact": cuts.mean(0),
                "n": len(effects),
            }
        )


def _sizes(n_edges: int, asked: Sequence[int] | None) -> list[int]:
    """Numbers of edges to keep, none and all among them."""
    wanted = np.geomspace(1, n_edges, N_SIZES).round().astype(int).tolist() if asked is None else list(asked)
    if bad := [k for k in wanted if not 0 <= k <= n_edges]:
        raise ValueError(f"a circuit of this model has 0 to {n_edges} edges; got {bad}")
    return sorted({0, n_edges, *wanted})


def _agreement(effects: np.ndarray, cuts: np.ndarray, fit: np.ndarray) -> dict[str, Any]:
    """Rank correlation of scores with exact cuts and between halves, and the share of their first tenth in common."""
    score, exact = effects.mean(0), cuts.mean(0)
    known = np.isfinite(exact)
    halves = [effects[rows].mean(0) for rows in (fit, ~fit)]
    first = [set(np.argsort(-np.abs(half), kind="stable")[: max(1, len(half) // 10)].tolist()) for half in halves]
    return {
        "exact": rank_correlation(score[known], exact[known]) if known.sum() > 1 else None,
        "n_exact": int(known.sum()),
        "mean_error": float(np.abs(score - exact)[known].mean()) if known.any() else None,
        "halves": rank_correlation(*halves),
        "shared": len(first[0] & first[1]) / len(first[0]),
    }


def _check_options(
    metric: Metric, n: int, ablation: str, along: str, steps: int, draws: int, exact: int | None
) -> None:
    check_choice(ablation, ABLATIONS, "ablation")
    check_choice(along, ALONG, "along")
    if not metric.smooth or metric.normalised:
        raise ValueError(
            f"edges are scored by a metric with a gradient, in its own unit; {metric.name} is none (logit_diff is one)"
        )
    if n < 2:
        raise ValueError(f"a circuit is found on one half of the pairs and judged on the other; got {n} pair")
    if steps < 0 or draws < 1 or (exact is not None and exact < 0):
        raise ValueError(f"steps and exact are 0 or more, draws 1 or more; got {steps}, {exact} and {draws}")
    if steps and along == "embedding" and ablation not in ("counterfactual", "resample"):
        raise ValueError(f'along="embedding" goes from one image to another, and {ablation} has none; use "edges"')
