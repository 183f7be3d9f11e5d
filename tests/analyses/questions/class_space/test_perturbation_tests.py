"""Deletion curves, orders and probes against straight-line references, and on a model whose evidence is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import ViTImageProcessorPil

from analyses import load_data
from analyses.activations.relevance import (
    attention_patterns,
    gradient_weighted,
    raw_attention,
    read_roles,
    read_row,
    rollout,
)
from analyses.data import ImageData, as_data
from analyses.questions.class_space.measures.explanations import gradient_maps
from analyses.questions.class_space.perturbation_tests.figure import areas_figure, curves_figure, probes_figure
from analyses.questions.class_space.perturbation_tests.lrp import lrp_rollout, propagate
from analyses.questions.class_space.perturbation_tests.perturbation import (
    area,
    permutations,
    published_area,
    ranked,
    removal_grid,
    right_after_removal,
)
from analyses.questions.class_space.perturbation_tests.perturbation_tests import perturbation_tests
from analyses.questions.class_space.perturbation_tests.position_probes import (
    Positions,
    fit_position_probes,
    measure_positions,
    places,
)
from analyses.running.results import Result
from hooked_vit import HookedViT, ViTConfig
from interventions import apply, remove_tokens
from tests.analyses.questions.cls_use.test_cls_causality import coloured
from tests.tiny import FAMILIES, IMAGE, make, make_hf, pixels, tiny

CLASSIFIERS = [name for name in FAMILIES if name != "clip-projection"]
N = 16


def logits_without(model: HookedViT, x: Tensor, gone: Tensor) -> Tensor:
    """The same deletion by the intervention: `gone` is [b, patches]."""
    at = torch.zeros(len(x), model.tokens.n_tokens, dtype=torch.bool)
    at[:, model.tokens.patches] = gone
    with torch.no_grad(), apply(model, remove_tokens("all", where=at)):
        return model(x)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_deleting_many_at_once_is_deleting_one_by_one(name: str) -> None:
    model = make(name)
    x, index = pixels(model), torch.arange(3)
    orders = {str(seed): permutations(N, index, seed) for seed in range(2)}
    for k in (1, 7, 15):
        answers = {}
        for name_of, order in orders.items():
            gone = torch.zeros(3, N, dtype=torch.bool).scatter(1, order[:, :k], True)
            answers[name_of] = logits_without(model, x, gone).argmax(-1)
        for name_of, answer in answers.items():
            for fold in (1, 16384):
                assert right_after_removal(model, x, answer, orders, [k], fold_tokens=fold)[name_of].all()
            assert not right_after_removal(model, x, (answer + 1) % 5, orders, [k])[name_of].any()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_ends_of_a_curve_are_the_clean_run_and_the_prefix_alone(name: str) -> None:
    model = make(name)
    x = pixels(model, n=5)
    grid = removal_grid(model, N)
    orders = {"a": permutations(N, torch.arange(5), 0), "b": permutations(N, torch.arange(5), 1)}
    with torch.no_grad():
        clean = model(x).argmax(-1)
    right = right_after_removal(model, x, clean, orders, grid)
    assert all(curve[:, 0].all() for curve in right.values())
    if "patches" in model.cfg.sources:
        assert grid[-1] == N - 1
        return
    assert grid[-1] == N
    with torch.no_grad(), apply(model, remove_tokens("patches")):
        alone = model(x).argmax(-1)
    right = right_after_removal(model, x, alone, orders, grid)
    assert all(curve[:, -1].all() for curve in right.values())


def evidence() -> tuple[HookedViT, Tensor, Tensor]:
    """A model that counts colours: each patch speaks for the class of its colour, black ones say nothing.

    The picture has two patches of the label's colour, one of another's and one black one.
    """
    sizes = {"d_model": 8, "n_layers": 1, "n_heads": 2, "d_mlp": 4, "image_size": (8, 8), "patch_size": 4}
    model = HookedViT(ViTConfig(**sizes, n_classes=3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for norm in (model.blocks[0].ln1, model.blocks[0].ln2, model.ln_final):
            norm.weight.fill_(1)
        for colour in range(3):
            model.embed.patch.weight[colour, colour] = 1 / 16
            model.head.weight[colour, colour] = 1
        model.blocks[0].attn.v.weight.copy_(torch.eye(8))
        model.blocks[0].attn.o.weight.copy_(torch.eye(8))
    x = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    x[0, 1, :4, :4] = 1  # patch 0
    x[0, 2, :4, 4:] = 1  # patch 1: against
    x[0, 1, 4:, 4:] = 1  # patch 3; patch 2 is black
    return model, x, torch.tensor([1])


def test_where_the_evidence_is_known_the_map_orders_it_and_the_curves_follow() -> None:
    model, x, label = evidence()
    importance = gradient_maps(model, x, label).sum((1, 2))
    assert importance[0, 0] == pytest.approx(importance[0, 3].item())
    assert importance[0, 1] < 0 == importance[0, 2] < importance[0, 0]
    order = ranked(importance, torch.tensor([0]))
    assert order[0, :2].tolist() == [1, 2]
    grid = removal_grid(model, 4)
    assert grid == [0, 1, 2, 3, 4]
    right = right_after_removal(model, x, label, {"negative": order, "positive": order.flip(1)}, grid)
    # two against one; a tie is not right, and without patches every class ties
    assert right["negative"][0].tolist() == [True, True, True, True, False]
    assert right["positive"][0].tolist() == [True, False, False, False, False]
    fractions = np.array(grid) / 4
    assert area(right["negative"][0].double().numpy(), fractions) == 0.875
    assert area(right["positive"][0].double().numpy(), fractions) == 0.125


def test_the_other_rules_find_the_evidence_too() -> None:
    """Uniform attention: raw attention and rollout know nothing, attention times gradient knows what speaks for it."""
    model, x, label = evidence()
    layout, patterns = model.tokens, attention_patterns(model, x)
    assert raw_attention(patterns, layout)[0].tolist() == pytest.approx([0.2] * 4)
    assert read_row(model, layout, rollout(patterns))[0].tolist() == pytest.approx([0.1] * 4)
    relevance = read_row(model, layout, gradient_weighted(model, x, label))[0]
    assert relevance[0] > 0 == relevance[1] == relevance[2] < relevance[3]


def test_rows_are_those_of_the_tokens_that_are_read() -> None:
    """One probe that reads CLS and patches alike makes the answer of both, and not of CLS alone."""
    for name, roles in (("timm-pe-core", ("cls", "patches")), ("dinov2", ("cls",)), ("timm-map", ("patches",))):
        model = tiny(name)[1]
        layout = model.tokens
        relevance = torch.rand(1, layout.n_tokens, layout.n_tokens)
        read = torch.stack([layout.mask(role) for role in roles]).any(0)
        want = relevance[:, read].mean(1)[:, layout.patches]
        assert read_roles(model) == roles
        assert torch.equal(read_row(model, layout, relevance), want)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_rollout_is_a_product_whose_rows_sum_to_one(name: str) -> None:
    model = make(name)
    patterns = attention_patterns(model, pixels(model))
    rolled = rollout(patterns)
    want: NDArray = np.eye(patterns[0].shape[-1])
    for a in patterns:
        want = (0.5 * a[1].numpy().mean(0) + 0.5 * np.eye(len(want))) @ want
    assert rolled[1].numpy() == pytest.approx(want, abs=1e-12)
    assert rolled.sum(-1).numpy() == pytest.approx(1, abs=1e-12)
    assert float(raw_attention(patterns, model.tokens).sum(1).max()) < 1


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_attention_times_gradient_is_its_formula(name: str) -> None:
    model = make(name)
    x, classes = pixels(model), torch.tensor([1, 0, 4])
    kept: list[Tensor] = []
    hooks = [(f"blocks.{layer}.attn.hook_pattern", lambda a, hook: kept.append(a)) for layer in range(2)]
    logits = model.run_with_hooks(x, fwd_hooks=hooks)
    gradients = [torch.autograd.grad(logits[torch.arange(3), classes].sum(), a, retain_graph=True)[0] for a in kept]
    t = kept[0].shape[-1]
    want: NDArray = np.stack([np.eye(t)] * 3)
    for a, g in zip(kept, gradients, strict=True):
        bar = np.maximum(0, (a * g).detach().numpy()).mean(1)
        want = want + bar @ want
    assert gradient_weighted(model, x, classes).numpy() == pytest.approx(want, abs=1e-10)
    with pytest.raises(ValueError, match="0 to 4"):
        gradient_weighted(model, x, torch.tensor([1, 0, 5]))


@pytest.mark.parametrize("name", ["vit", "deit"])
def test_propagated_relevance_is_conserved_at_every_depth(name: str) -> None:
    model = make(name)
    relevance = propagate(model, pixels(model), torch.tensor([1, 0, 4]))
    for stream in relevance.stream:
        assert stream.sum((1, 2)).numpy() == pytest.approx(1, abs=1e-8)


def test_propagated_relevance_is_its_rules_written_out() -> None:
    """One block, one image, loops over single units, from the head down to the attention weights and the input."""
    model = HookedViT(
        ViTConfig(d_model=6, n_layers=1, n_heads=2, d_mlp=5, image_size=(8, 8), patch_size=4, n_classes=3)
    )
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.normal_()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    _, cache = model.run_with_cache(x)
    block = model.blocks[0]

    def at(name: str) -> NDArray:
        return cache[name][0].detach().numpy()

    def linear(inputs: NDArray, weight: Tensor, out: NDArray) -> NDArray:
        w, back = weight.detach().numpy(), np.zeros_like(inputs)
        for o in range(len(w)):
            terms = np.maximum(inputs * w[o], 0)
            back += terms / terms.sum() * out[o] if terms.sum() else 0
        return back

    def add(a: NDArray, b: NDArray, out: NDArray) -> tuple[NDArray, NDArray]:
        ra, rb = a * out / (a + b), b * out / (a + b)
        whole = abs(ra.sum()) + abs(rb.sum())
        return tuple(r / r.sum() * abs(r.sum()) / whole * out.sum() for r in (ra, rb))

    def tokens(inputs: NDArray, weight: Tensor, out: NDArray) -> NDArray:
        return np.stack([linear(*pair) for pair in zip(inputs, [weight] * len(inputs), out, strict=True)])

    ln = {n: at(f"blocks.0.{n}.hook_normalized") * m.weight.detach().numpy() + m.bias.detach().numpy()
          for n, m in (("ln1", block.ln1), ("ln2", block.ln2))}  # fmt: skip
    top = np.zeros((5, 6))
    top[0] = linear(at("hook_pooled"), model.head.weight, np.eye(3)[2])
    skip, branch = add(at("blocks.0.hook_resid_mid"), at("blocks.0.hook_mlp_out"), top)
    hidden = tokens(at("blocks.0.mlp.hook_post"), block.mlp.fc_out.weight, branch)
    mid = skip + tokens(ln["ln2"], block.mlp.fc_in.weight, hidden)
    skip, branch = add(at("blocks.0.hook_resid_pre"), at("blocks.0.hook_attn_out"), mid)
    z = tokens(at("blocks.0.attn.hook_z").reshape(5, 6), block.attn.o.weight, branch).reshape(5, 2, 3)
    a, q, k, v = (at(f"blocks.0.attn.hook_{n}") for n in ("pattern", "q", "k", "v"))
    of_a, of_q, of_k, of_v = (np.zeros_like(y) for y in (a, q, k, v))
    for h in range(2):
        for i in range(5):
            for e in range(3):
                terms = a[h, i] * v[:, h, e]
                of_a[h, i] += terms / terms.sum() * z[i, h, e] / 2
                of_v[:, h, e] += terms / terms.sum() * z[i, h, e] / 2
        for i in range(5):
            for j in range(5):
                terms = q[i, h] * k[j, h]
                of_q[i, h] += terms / terms.sum() * of_a[h, i, j] / 2
                of_k[j, h] += terms / terms.sum() * of_a[h, i, j] / 2
    inner = sum(
        tokens(ln["ln1"], linear_of.weight, part.reshape(5, 6))
        for linear_of, part in ((block.attn.q, of_q), (block.attn.k, of_k), (block.attn.v, of_v))
    )
    relevance = propagate(model, x, torch.tensor([2]))
    assert relevance.attention[0][0].numpy() == pytest.approx(of_a, abs=1e-9)
    assert relevance.stream[0][0].numpy() == pytest.approx(skip + inner, abs=1e-9)


def test_relevance_is_not_propagated_where_there_is_no_rule() -> None:
    for name, what in (
        ("dinov2", "cls and patches"),
        ("beit-cls-shared-abs", "position bias"),
        ("vit-model", "has 0 heads"),
        ("timm-eva02-inner", "norms inside the branches"),
        ("timm-pe", "turns queries and keys by position"),
    ):
        model = make(name)
        with pytest.raises(ValueError, match=what):
            lrp_rollout(model, pixels(model), torch.tensor([0, 1, 2]))


def test_random_order_is_as_good_forwards_as_backwards() -> None:
    model = make("vit", torch.float32)
    x = pixels(model, n=60)
    with torch.no_grad():
        labels = model(x).argmax(-1)
    drawn = {f"{seed} +": permutations(N, torch.arange(60), seed) for seed in range(6)}
    orders = drawn | {f"{seed} -": drawn[f"{seed} +"].flip(1) for seed in range(6)}
    grid = removal_grid(model, N)
    areas = {
        name: area(hits.double().numpy(), np.array(grid) / N)
        for name, hits in right_after_removal(model, x, labels, orders, grid).items()
    }
    apart = np.mean([areas[f"{seed} +"] - areas[f"{seed} -"] for seed in range(6)], axis=0)
    assert apart.std() > 0
    assert abs(apart.mean()) < 4 * apart.std(ddof=1) / 60**0.5


def test_an_order_is_the_images_own_whatever_its_batch() -> None:
    importance = torch.tensor([[0.0, 2.0, 1.0], [3.0, 3.0, 3.0], [1.0, 1.0, 0.0]])
    index = torch.tensor([4, 9, 2])
    whole = ranked(importance, index, seed=3)
    assert whole[0].tolist() == [0, 2, 1]
    assert whole[2, 0] == 2
    assert torch.equal(whole[1:], ranked(importance[1:], index[1:], seed=3))
    ties = ranked(torch.zeros(200, 3), torch.arange(200))
    assert set(ties[:, 0].tolist()) == {0, 1, 2}  # not always the top left first
    with pytest.raises(ValueError, match="finite"):
        ranked(torch.tensor([[0.0, torch.nan]]), torch.tensor([0]))


def test_published_random_orders_are_shared_by_all_images() -> None:
    index = torch.arange(8)
    shared, own = (permutations(N, index, 0, shared=s) for s in (True, False))
    assert (shared == shared[0]).all()
    assert not (own == own[0]).all()


def test_the_published_area_leaves_out_both_ends_and_divides_by_the_best() -> None:
    """49 tokens, kept n = 1 to 48: Σ acc / (max acc · 49); a model that keeps all its accuracy reaches 48/49, not 1."""
    grid = list(range(50))
    flat = np.full(50, 0.6)
    assert published_area(flat, grid, 49) == pytest.approx(48 / 49)
    assert area(flat, np.array(grid) / 49) == pytest.approx(0.6)
    falling = np.linspace(0.9, 0.1, 50)
    total = sum(falling[49 - kept] for kept in range(1, 49))
    assert published_area(falling, grid, 49) == pytest.approx(total / (falling[1] * 49))
    assert area(falling, np.array(grid) / 49) == pytest.approx(0.5)


def test_many_tokens_are_deleted_in_steps() -> None:
    model = make("vit")
    grid = removal_grid(model, 196)
    assert (grid[0], grid[-1], len(grid)) == (0, 196, 21)
    assert len(removal_grid(model, 196, points=40)) == 41
    assert removal_grid(make("dinov2"), 196)[-1] == 195
    with pytest.raises(ValueError, match="2 points"):
        removal_grid(model, 196, points=1)


def shots_of(model: HookedViT, n: int, seed: int) -> tuple[Tensor, Tensor]:
    return pixels(model, n=n, seed=seed), torch.arange(n) % 5


def test_a_probe_at_a_position_is_the_ridge_regression_of_its_features() -> None:
    model = make("vit")
    x, y = shots_of(model, 20, 1)
    halves = [(x[:9], y[:9]), (x[9:], y[9:])]
    probes = fit_position_probes(model, lambda: halves, 5, [("mlp", 1), ("block", 0)])
    _, cache = model.run_with_cache(x)
    test = pixels(model, n=4, seed=2)
    _, there = model.run_with_cache(test)
    for (site, layer), hook in {("mlp", 1): "mlp_out", ("block", 0): "resid_post"}.items():
        for t in (0, 5, 16):
            features = cache[hook, layer][:, t].detach().numpy()
            targets = 2 * np.eye(5)[y.numpy()] - 1
            mean, offset = features.mean(0), targets.mean(0)
            gram = (features - mean).T @ (features - mean) + np.eye(32)
            weight = np.linalg.solve(gram, (features - mean).T @ (targets - offset))
            want = (there[hook, layer][:, t].detach().numpy() - mean) @ weight + offset
            got = probes[site, layer].scores(there[hook, layer].detach())[:, t]
            assert got.numpy() == pytest.approx(want, abs=1e-7)


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_ranks_are_summed_over_blocks_and_passes_change_nothing(name: str) -> None:
    model = make(name)
    shots, (x, y) = shots_of(model, 20, 1), shots_of(model, 10, 2)
    swap = torch.tensor([4, 3, 2, 1, 0])

    def measured(memory: int) -> Positions:
        parts = [(x[:4], y[:4]), (x[4:], y[4:])]
        return measure_positions(model, lambda: [shots], lambda: parts, 5, lambda labels: swap[labels], memory=memory)

    found, slow = measured(2**31), measured(1)
    assert found.right.keys() == slow.right.keys() == {(k, *p) for k in ("probe", "projection") for p in places(model)}
    assert all((found.right[key] == slow.right[key]).all() for key in found.right)
    assert all(torch.equal(found.ranks[kind], slow.ranks[kind]) for kind in found.ranks)
    _, cache = model.run_with_cache(x)
    probes = fit_position_probes(model, lambda: [shots], 5, places(model))
    total = np.zeros((2, 10, N))
    for layer in range(model.cfg.n_layers):
        stream = cache["resid_post", layer].detach()[:, model.tokens.patches]
        scores = [probes["block", layer].scores(cache["resid_post", layer].detach())[:, model.tokens.patches]]
        scores.append(model.project(stream, "patches").detach())
        for kind, labels in enumerate((y, swap[y])):
            for image in range(10):
                for t in range(N):
                    p = scores[kind][image, t]
                    total[kind, image, t] += int((p > p[labels[image]]).sum())
    assert found.ranks["probe"].numpy() == pytest.approx(total[0])
    assert found.ranks["projection"].numpy() == pytest.approx(total[1])


@pytest.fixture(scope="module")
def models() -> dict[str, HookedViT]:
    processor = ViTImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
    return {name: HookedViT.from_hf(make_hf(name), processor=processor) for name in ("vit", "dinov2")}


@pytest.fixture(scope="module")
def data(models: dict[str, HookedViT]) -> ImageData:
    """Images whose label is what the first model makes of them."""
    batch = next(coloured(24, 1).batches(24))
    with torch.no_grad():
        labels = models["vit"](models["vit"].preprocess(batch.images)).argmax(-1)
    return as_data((batch.images, labels.tolist()))


@pytest.fixture(scope="module")
def result(models: dict[str, HookedViT], data: ImageData) -> Result:
    return perturbation_tests(models, data, fit_data=coloured(60, 2), seeds=2, shots=4, batch_size=16)


def test_every_order_has_its_curves_and_areas(result: Result) -> None:
    for name, steps in (("vit", 17), ("dinov2", 16)):
        rows = result.frame[result.frame.model == name]
        curves = rows[rows.measure == "accuracy"].groupby(["order", "direction"], dropna=False).size()
        assert len(curves) == 2 * 7 + 1
        assert set(curves) == {steps}
        assert len(rows[rows.measure == "auc"]) == len(rows[rows.measure == "auc_published"]) == 15
        assert len(rows[rows.measure == "probe_accuracy"]) == len(rows[rows.measure == "projection_accuracy"]) == 12
    measured = result.frame.dropna(subset="low")
    assert (measured.low <= measured.value + 1e-12).all()
    assert (measured.value <= measured.high + 1e-12).all()


def test_a_curve_begins_at_the_accuracy_of_the_model(
    result: Result, models: dict[str, HookedViT], data: ImageData
) -> None:
    for name, model in models.items():
        batch = next(data.batches(24))
        with torch.no_grad():
            right = (model(model.preprocess(batch.images)).argmax(-1) == batch.labels).double().mean().item()
        rows = result.frame[result.frame.model == name]
        starts = rows[(rows.measure == "accuracy") & (rows.removed == 0)].value
        assert set(starts) == {right} == set(rows[rows.measure == "clean"].value)
        assert right == 1 or name != "vit"


def test_an_area_is_that_of_its_curve(result: Result) -> None:
    rows = result.frame[(result.frame.model == "vit") & (result.frame.order == "rollout")]
    rows = rows[rows.direction == "positive"]
    curve = rows[rows.measure == "accuracy"].sort_values("removed")
    y, x = curve.value.to_numpy(), curve.fraction.to_numpy()
    trapezoids = sum((y[i] + y[i + 1]) / 2 * (x[i + 1] - x[i]) for i in range(16))
    assert rows[rows.measure == "auc"].value.iloc[0] == pytest.approx(trapezoids)
    published = y[1:16].sum() / (y[1:16].max() * 16)
    assert rows[rows.measure == "auc_published"].value.iloc[0] == pytest.approx(published)


def test_batches_change_nothing(result: Result, models: dict[str, HookedViT], data: ImageData) -> None:
    given = {"fit_data": coloured(60, 2), "orders": ("rollout",), "seeds": 2}
    again = perturbation_tests({"vit": models["vit"]}, data, batch_size=7, **given)
    first = result.frame[(result.frame.model == "vit") & result.frame.order.isin(["rollout", "random"])]
    mine, theirs = (f[f.measure == "accuracy"].value.to_numpy() for f in (first, again.frame))
    assert mine == pytest.approx(theirs)


def test_the_published_setting_is_another_one(models: dict[str, HookedViT], data: ImageData) -> None:
    given = {"fit_data": coloured(60, 2), "orders": ("gradient",), "seeds": 2}
    runs = [perturbation_tests({"vit": models["vit"]}, data, repro=repro, **given) for repro in (False, True)]
    areas = [run.frame[run.frame.measure == "auc"].set_index(["order", "direction"]).value for run in runs]
    for order in ("gradient", "random"):
        assert not np.allclose(*(a[order].to_numpy() for a in areas))
    assert any("softmax is taken twice" in note for note in runs[1].meta["notes"])


def test_the_figures_draw_and_the_words_name_every_order(result: Result) -> None:
    assert len(curves_figure(result).data) == 2 * 2 * (2 + 2 * 8)
    assert len(areas_figure(result).data) == 4
    assert len(probes_figure(result).data) == 4 * 4
    assert any("like for like" in sentence for sentence in result.meta["summary"])
    assert any("dinov2" in note and "one of them always stays" in note for note in result.meta["notes"])


def test_what_cannot_be_done_is_refused_before_a_run(models: dict[str, HookedViT], data: ImageData) -> None:
    with pytest.raises(ValueError, match="got shap"):
        perturbation_tests(models, data, orders=("shap",))
    with pytest.raises(ValueError, match="at least one random order"):
        perturbation_tests(models, data, seeds=0)
    with pytest.raises(ValueError, match="number of images asked for"):
        perturbation_tests(models, data, fit_data=coloured(20, 2), shots=5)
    with pytest.raises(ValueError, match="LABEL|classes"):
        perturbation_tests(models, load_data("scenes:test", n=10), orders=("rollout",), head="own")
    wrong = torch.zeros(3, N, dtype=torch.long)
    model = make("vit")
    with pytest.raises(ValueError, match="no permutation"):
        right_after_removal(model, pixels(model), torch.zeros(3, dtype=torch.long), {"a": wrong}, [0])


def test_few_images_of_every_class_are_drawn() -> None:
    data = coloured(60, 2)
    few = data.per_class(4, seed=1)
    assert torch.bincount(few.labels).tolist() == [4] * 5
    assert few.fingerprint() == data.per_class(4, seed=1).fingerprint() != data.per_class(4, seed=2).fingerprint()
    assert len(as_data(few)) == 20
