"""Circuits against the sums they must add up to, path patching, and a model whose circuit is known by construction."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import pandas as pd
import pytest
import torch

from analyses import Result, aligned_subspace, attribution_patching, circuit_discovery, logit_attribution
from analyses.questions.patching.circuits.circuit_discovery import circuit_of
from analyses.questions.patching.circuits.edge_scores import cut_logits, edge_scores, exact_effects
from analyses.questions.patching.circuits.figure import graph_figure
from analyses.questions.patching.path_patching import Receiver, Sender, path_patching
from hooked_vit import HookedViT
from interventions import Circuit, apply, only, patch_tokens, readout, sweep
from interventions.circuits import Graph
from interventions.wiring import Outputs, mean_outputs, outputs_of
from tests.interventions.cases import unchecked_types
from tests.tiny import make, pixels, tiny

ZERO_AND_ONE = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long)
SHOWN = ("vit", "deit", "dinov2", "clip-classifier")


def logit(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 0] - logits[:, 1]


def put_in(model: HookedViT, donor: torch.Tensor, kind: str) -> Outputs | None:
    """What cut edges carry, as each ablation has it."""
    values = outputs_of(model, donor)
    return {"zero": None, "mean": mean_outputs(model, [donor]), "counterfactual": values}[kind]


KINDS = [*(("counterfactual", family) for family in SHOWN), ("mean", "vit"), ("zero", "vit")]


@pytest.mark.parametrize(("kind", "family"), [*KINDS, ("zero", "dinov2"), ("mean", "clip-classifier")])
def test_scores_add_up_to_the_slope_of_cutting_everything(kind: str, family: str) -> None:
    model = make(family)
    x, values = pixels(model), put_in(model, pixels(model, seed=1), kind)
    where = torch.zeros((), dtype=torch.float64, requires_grad=True)
    with apply(model, only(Circuit.of(model, []), value=values, where=where)):
        slope = torch.autograd.grad(logit(model(x)).sum(), where)[0]
    scores = edge_scores(model, x, values, logit)
    assert scores.effect.sum().item() == pytest.approx(slope.item(), rel=1e-9)
    assert not scores.effect[:, ~Graph.of(model).exists].any()


@pytest.mark.parametrize(("kind", "family"), KINDS)
def test_integrated_scores_add_up_to_the_whole_change(kind: str, family: str) -> None:
    """Of all edges along the edges; of the embedding's along the embedding."""
    model = make(family)
    x, values = pixels(model), put_in(model, pixels(model, seed=1), kind)
    whole = logit(cut_logits(model, x, Graph.of(model).exists.double(), values)) - logit(model(x).detach())
    along_edges = edge_scores(model, x, values, logit, steps=100).effect.sum((1, 2))
    assert torch.allclose(along_edges, whole, rtol=0, atol=1e-3)
    if kind == "counterfactual":
        embedded = edge_scores(model, x, values, logit, steps=100, along="embedding").effect
        assert torch.allclose(embedded[:, 0].sum(1), whole, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", SHOWN)
def test_each_score_is_the_slope_of_its_own_cut(family: str) -> None:
    model = make(family)
    x, values, graph = pixels(model), put_in(model, pixels(model, seed=1), "counterfactual"), Graph.of(model)
    scores, before = edge_scores(model, x, values, logit).effect, logit(model(x)).detach()
    for s, r in graph.exists.nonzero()[::7].tolist():
        cut = torch.zeros(graph.exists.shape, dtype=torch.float64)
        cut[s, r] = 1e-6
        slope = (logit(cut_logits(model, x, cut, values)) - before) / 1e-6
        assert torch.allclose(scores[:, s, r], slope, atol=1e-4), (graph.senders[s], graph.receivers[r])


@pytest.mark.parametrize("family", SHOWN)
def test_cutting_one_edge_is_path_patching(family: str) -> None:
    model = make(family)
    x, donor, graph = pixels(model), pixels(model, seed=1), Graph.of(model)
    ends = {
        ("embed", "L0H1.q"): (Sender("embed"), Receiver("q", 0, heads=1)),
        ("L0H2", "L1H0.v"): (Sender("attn_out", 0, heads=2), Receiver("v", 1, heads=0)),
        ("L0H2", "L0.mlp"): (Sender("attn_out", 0, heads=2), Receiver("mlp_in", 0)),
        ("L0.mlp", "L1H3.k"): (Sender("mlp_out", 0), Receiver("k", 1, heads=3)),
        ("L1H1", "logits"): (Sender("attn_out", 1, heads=1), Receiver("logits")),
    }
    places = [(graph.senders.index(s), graph.receivers.index(r)) for s, r in ends]
    ours = exact_effects(model, x, outputs_of(model, donor), logit, places)
    classes = torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long)
    for change, (sender, receiver) in zip(ours, ends.values(), strict=True):
        kw = {"senders": [sender], "receiver": receiver, "metric": "logit_diff", "classes": classes}
        theirs = path_patching(model, x, donor, **kw).frame.value[0]
        assert (logit(model(x)).detach() + change).mean().item() == pytest.approx(theirs, abs=1e-10)


@pytest.mark.parametrize("family", SHOWN)
@torch.no_grad()
def test_all_edges_are_the_model_and_none_the_ablated_one(family: str) -> None:
    model = make(family)
    x, donor = pixels(model), pixels(model, seed=1)
    every, none = Circuit.of(model, Graph.of(model).edges), Circuit.of(model, [])
    with apply(model, only(every)):
        assert torch.equal(model(x), model.shared_copy()(x))
    with apply(model, only(none, value=donor)):
        assert torch.allclose(model(x), model.shared_copy()(donor), atol=1e-10)
    for kind in ("zero", "mean"):
        values = put_in(model, donor, kind) or Outputs(*map(torch.zeros_like, outputs_of(model, donor)))
        names = {"blocks.0.hook_resid_pre": values.embed}
        for l in range(model.cfg.n_layers):
            names |= {f"blocks.{l}.attn.hook_z": values.z[l], f"blocks.{l}.hook_mlp_out": values.mlp[l]}
        by_hand = [(name, lambda act, hook, v=value: v.expand_as(act)) for name, value in names.items()]
        ablated = model.run_with_hooks(x, fwd_hooks=by_hand)
        with apply(model, only(none, value=put_in(model, donor, kind))):
            assert torch.allclose(model(x), ablated, atol=1e-10)


def test_a_sweep_keeps_the_memories_of_runs_apart() -> None:
    """Two variants that part behind the circuit's first edits each go on with what they themselves have seen."""
    model = tiny("vit")[1]
    x, other = pixels(model), pixels(model, seed=1)
    circuit = only(Circuit.of(model, Graph.of(model).edges[::2]), value=other)
    moved = patch_tokens(layer=0, tokens="patches", value=other)
    variants = [circuit + readout("cls"), circuit, moved + circuit, circuit + moved]
    for variant, logits in sweep(model, x, variants, fold_tokens=0):
        with apply(model, variant), torch.no_grad():
            assert torch.equal(logits, model(x)), variant


PLANTED = {
    *(("embed", f"L0H1.{kind}") for kind in "qkv"),
    ("embed", "L1.mlp"),
    ("L0H1", "L1.mlp"),
    ("L0H1", "logits"),
    ("L1.mlp", "logits"),
}


def planted() -> HookedViT:
    """A tiny ViT in which head 1 of layer 0 and the last MLP alone write; what they read stands in `PLANTED`.

    The readout reads CLS, which holds nothing of the image at first: there is no edge from the embedding to it, and
    the MLP's from there does nothing either.
    """
    model = make("vit")
    with torch.no_grad():
        for l, block in enumerate(model.blocks):
            for h in range(model.cfg.n_heads):
                if (l, h) != (0, 1):
                    block.attn.o.weight[:, h * model.cfg.d_head : (h + 1) * model.cfg.d_head] = 0
        model.blocks[0].mlp.fc_out.weight.zero_()
        model.blocks[0].attn.o.weight.mul_(3)
    return model


@cache
def found() -> Result:
    model = planted()
    return circuit_discovery(model, pixels(model, n=8), pixels(model, n=8, seed=1), exact=None, batch_size=5)


def test_the_planted_circuit_is_found() -> None:
    edges = found().part("edges").frame.set_index(["sender", "receiver"])
    alive = set(edges.index[edges.exact.abs() > 1e-12])
    assert alive == PLANTED - {("embed", "L0H1.q"), ("embed", "L1.mlp")}  # of CLS, whose embedding is always the same
    assert set(edges.index[edges.score.abs() > 1e-12]) == alive
    assert found().meta["agreement"]["exact"] > 0.8
    circuit = circuit_of(found(), len(alive))
    assert set(circuit.edges) == alive
    model = planted()
    x, other = pixels(model, n=8), pixels(model, n=8, seed=1)
    with apply(model, only(circuit, value=other)), torch.no_grad():
        alone = model(x)
    assert torch.allclose(alone, model(x), atol=1e-10)


def test_fewer_edges_of_the_order_do_what_many_others_do_not() -> None:
    curve = found().part("faithfulness").frame
    ends = curve[curve.edges.isin([0, curve.edges.max()])]
    assert (ends.value - (ends.edges > 0)).abs().max() < 1e-9
    n = len(PLANTED) - 2
    reached = curve[curve.edges >= n].groupby("order").value
    assert reached.min()["score"] == pytest.approx(1, abs=1e-9)
    assert reached.min()["exact"] == pytest.approx(1, abs=1e-9)
    at = curve[(curve.edges >= n) & (curve.edges <= 4 * n)].groupby("order").value.max()
    assert at["size"] < 0.9
    assert at["random"] < 0.9


def test_the_result_is_kept_drawn_and_says_what_it_found(tmp_path) -> None:
    found().save(tmp_path)
    again = Result.load(tmp_path)
    assert circuit_of(again, 5) == circuit_of(found(), 5)
    pd.testing.assert_frame_equal(again.part("edges").frame, found().part("edges").frame)
    assert len(again.figure().data) >= 4
    assert len(graph_figure(again, 12).data) == 12 + 1
    assert any("edges are the fewest tried" in sentence for sentence in again.meta["summary"])


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_every_ablation_and_family(ablation: str) -> None:
    for family in ("dinov2", "clip-classifier"):
        model = tiny(family)[1]
        result = circuit_discovery(
            model,
            pixels(model, n=4),
            pixels(model, n=4, seed=1),
            ablation=ablation,
            steps=2,
            exact=4,
            draws=1,
            sizes=[9],
            classes=ZERO_AND_ONE,
        )
        curve = result.part("faithfulness").frame
        assert sorted(curve.edges.unique()) == [0, 9, result.meta["n_edges"]]
        assert (curve[curve.edges == result.meta["n_edges"]].value - 1).abs().max() < 1e-4
        assert result.meta["agreement"]["n_exact"] == 4


def test_pairs_without_an_effect_are_dropped_and_counted() -> None:
    model = tiny("vit")[1]
    clean, corrupt = pixels(model, n=5), pixels(model, n=5, seed=1)
    corrupt[2] = clean[2]
    classes = torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.long)
    kw = {"classes": classes, "exact": 0, "draws": 1, "sizes": [], "steps": 0}
    result = circuit_discovery(model, clean, corrupt, **kw)
    assert (result.meta["n_pairs"], result.meta["n_dropped"]) == (4, 1)
    assert any("for 1 of 5 pairs" in note for note in result.meta["notes"])
    with pytest.raises(ValueError, match="in 0 of 5 pairs"):
        circuit_discovery(model, clean, clean, **kw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ablation": "noise"}, "ablation is one of"),
        ({"along": "site"}, "along is one of"),
        ({"along": "embedding", "ablation": "mean"}, "from one image to another"),
        ({"metric": "flip_rate"}, "a metric with a gradient"),
        ({"metric": "recovery"}, "in its own unit"),
        ({"sizes": [10**6]}, "has 0 to"),
        ({"steps": -1}, "steps and exact are 0 or more"),
        ({"n": 1}, "judged on the other"),
        ({"eps": float("nan")}, "eps, which is above 0; got nan"),
        ({"family": "timm-rpn-cls"}, "a circuit takes a branch apart"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    model = tiny(change.pop("family", "vit"))[1]
    n = change.pop("n", 2)
    with pytest.raises(ValueError, match=message):
        circuit_discovery(model, pixels(model, n=n), pixels(model, n=n, seed=1), **change)


def test_a_circuit_belongs_to_its_model(tmp_path) -> None:
    model, other = tiny("vit")[1], tiny("deit")[1]
    circuit = Circuit.of(model, [("L0H1", "logits"), ("embed", "L0H1.v")])
    circuit.save(tmp_path / "circuit.json")
    assert Circuit.load(tmp_path / "circuit.json") == circuit
    with pytest.raises(ValueError, match=r"was found in vit .*moved_to"):
        only(circuit).hooks(other)
    assert only(circuit.moved_to(other)).hooks(other)
    (tmp_path / "other.json").write_text('{"edges": []}')
    with pytest.raises(ValueError, match="a circuit is stored as"):
        Circuit.load(tmp_path / "other.json")
    with pytest.raises(ValueError, match="did you mean 'L0H1'"):
        Circuit.of(model, [("L0H1x", "logits")])
    with pytest.raises(ValueError, match="edges; got n_edges=-1"):
        circuit_of(found(), -1)
    for junk in ({"model": 3, "edges": []}, {"model": dict(circuit.model), "edges": 3}, {}):
        with pytest.raises(ValueError, match="a circuit is stored as"):
            Circuit.from_dict(junk)
    with unchecked_types():
        with pytest.raises(ValueError, match="an edge is a pair"):
            Circuit.of(model, ["embed -> logits"])
        with pytest.raises(ValueError, match="values are None for zeros, pixels, or Outputs"):
            only(circuit, value="zero").hooks(model)


@torch.no_grad()
def test_heads_that_changed_places_make_another_model() -> None:
    """Which computes the same, but for the names of its heads; nor do signs go unnoticed."""
    model = tiny("vit")[1]
    swapped, turned = deepcopy(model), deepcopy(model)
    order = torch.arange(model.cfg.d_model).reshape(model.cfg.n_heads, -1).flip(0).flatten()
    for block in swapped.blocks:
        for part in (block.attn.q, block.attn.k, block.attn.v):
            part.weight.copy_(part.weight[order])
            part.bias.copy_(part.bias[order])
        block.attn.o.weight.copy_(block.attn.o.weight[:, order])
    turned.blocks[1].attn.v.weight.mul_(-1)
    x = pixels(model, n=2)
    assert torch.allclose(swapped(x), model(x), atol=1e-5)
    circuit = Circuit.of(model, [("L0H1", "logits")])
    for other in (swapped, turned):
        with pytest.raises(ValueError, match="this circuit was found in"):
            circuit.on(other)


@pytest.mark.parametrize("run", [attribution_patching, circuit_discovery, logit_attribution, aligned_subspace])
@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "8"])
def test_a_batch_holds_whole_images(run, wrong) -> None:
    """Of every analysis, also of those that take tensors, whose kinds are their own."""
    model = tiny("vit")[1]
    given = [pixels(model, n=2)] * (1 if run is logit_attribution else 2)
    with pytest.raises((ValueError, TypeError), match="batch_size is a whole number from 1"):
        run(model, *given, batch_size=wrong, **({"layer": 1} if run is aligned_subspace else {}))
