"""Active memories and what they promote: against plain loops, by enumeration, and where published settings differ."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest
import torch

from analyses import key_values
from analyses.questions.class_space.key_values.agreement import KeyValues, difference, measure_key_values, published_p
from analyses.questions.class_space.key_values.figure import difference_figure, match_figure, text_figure
from analyses.questions.class_space.measures.image_means import ImageMeans
from analyses.questions.class_space.measures.memories import coefficient_site, memory_table, none_drawn, promotion
from analyses.questions.class_space.measures.projection import Rules, project_tokens
from analyses.running.catalogue import get_analysis
from analyses.running.results import Result
from analyses.statistics.significance import permutation_test
from hooked_vit import HookedViT
from hooked_vit.errors import NoHeadError
from tests.analyses.questions.class_space.cases import (
    HEADED,
    beside_reference,
    by,
    labelled,
    noisy,
    only,
    with_processor,
)
from tests.tiny import make, tiny

PARTS = ("attn", "mlp")


def macro(values: np.ndarray, labels: torch.Tensor) -> float:
    """Mean over classes of the mean over a class's images and their tokens."""
    return float(np.mean([values[(labels == c).numpy()].mean() for c in labels.unique()]))


def test_agreement_and_match_are_those_of_the_plain_reference() -> None:
    model, plain, x, y = beside_reference(8)
    rows, _ = measure_key_values(model, [(x, y)], draws=1, n_permutations=9)
    run = plain.run(x.numpy())
    for layer, part in itertools.product(range(2), PARTS):
        at = {"layer": layer, "part": part, "control": "trained"}
        for definition in "AB":
            want = plain.agrees(run, y.numpy(), layer, part, definition)
            here = {**at, "measure": "agreement", "definition": definition}
            assert only(rows, tokens="all", **here)["value"] == pytest.approx(macro(want, y), abs=1e-6)
            assert only(rows, tokens="cls", **here)["value"] == pytest.approx(macro(want[:, :1], y), abs=1e-6)
        want = plain.memory_match(run, layer, part)
        assert only(rows, measure="match", tokens="all", **at)["value"] == pytest.approx(want.mean(), abs=1e-6)
        for label in y.unique().tolist():
            found = only(rows, measure="agreement_of_class", **{"class": label}, **at)
            mine = plain.agrees(run, y.numpy(), layer, part, "A")[(y == label).numpy()]
            assert (found["value"], found["n"]) == (pytest.approx(mine.mean(), abs=1e-6), len(mine))


@pytest.mark.parametrize("name", HEADED)
def test_every_family_against_plain_loops(name: str) -> None:
    model, top = tiny(name)[1], 3
    x, y = labelled(model, 4)
    rows, _ = measure_key_values(model, [(x, y)], top=top, draws=2, n_permutations=9, seed=5)
    wrong = KeyValues(model, top=top, draws=2, seed=5).wrong
    assert ((wrong != torch.arange(5)) & (wrong >= 0) & (wrong < 5)).all()
    part, layer = "mlp" if "swiglu" in name else "attn", 1
    with torch.no_grad():
        names = [coefficient_site(layer, part), f"blocks.{layer}.hook_{part}_out"]
        kept = model.run_with_cache(x, names_filter=names)[1]
        coefficients, predicted = kept[names[0]].flatten(2), project_tokens(model, kept[names[1]]).argmax(-1)
    for role in model.tokens.roles:
        places = model.tokens.mask(role).nonzero().flatten().tolist()
        p = promotion(model, layer, part, role)
        found = {key: torch.zeros(4, len(places)) for key in ("A", "B", "wrong", "match")}
        for j, (at, t) in itertools.product(range(4), enumerate(places)):
            active = set(coefficients[j, t].topk(top).indices.tolist())
            found["A"][j, at] = bool(active & set(p[y[j]].topk(top).indices.tolist()))
            found["B"][j, at] = any(y[j] in p[:, k].topk(top).indices for k in active)
            others = [set(p[draw[y[j]]].topk(top).indices.tolist()) for draw in wrong]
            found["wrong"][j, at] = sum(bool(active & other) for other in others) / 2
            found["match"][j, at] = any(p[:, k].argmax() == predicted[j, t] for k in active)
        here = {"layer": layer, "part": part, "tokens": role}
        for key, measure, control in (
            ("A", "agreement", "trained"),
            ("B", "agreement", "trained"),
            ("wrong", "agreement", "random_class"),
            ("match", "match", "trained"),
        ):
            definition = {"match": None, "wrong": "A"}.get(key, key)
            row = only(rows, measure=measure, control=control, definition=definition, **here)
            want = found[key].mean().item() if key == "match" else macro(found[key].numpy(), y)
            assert row["value"] == pytest.approx(want, abs=1e-6)


def test_classes_with_few_images_count_as_much_as_the_others() -> None:
    model = tiny("vit")[1]
    x, y = labelled(model, 5)
    y[:] = torch.tensor([0, 0, 0, 0, 1])
    rows, _ = measure_key_values(model, [(x, y)], draws=1, n_permutations=9)
    each = {row["class"]: row["value"] for row in by(rows, measure="agreement_of_class", layer=1, part="attn")}
    row = only(rows, measure="agreement", control="trained", definition="A", tokens="all", layer=1, part="attn")
    assert row["value"] == pytest.approx((each[0] + each[1]) / 2)


def test_chance_is_that_of_all_choices_of_random_memories() -> None:
    p = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    table, top = memory_table(p, top=3), 3
    choices = list(itertools.combinations(range(8), top))
    for c in range(4):
        hits = sum(any(p[:, k].argmax() == c for k in chosen) for chosen in choices)
        assert table.luck[c].item() == pytest.approx(hits / len(choices))
        best = set(p[c].topk(3).indices.tolist())
        assert 1 - none_drawn(8, 3, 3) == pytest.approx(sum(bool(best & set(k)) for k in choices) / len(choices))
    assert none_drawn(3072, 5, 5) == pytest.approx(comb(3067, 5) / comb(3072, 5), abs=1e-10)
    assert none_drawn(4, 3, 2) == 0


def test_published_chances_for_a_base_model_are_25_over_memories_and_classes() -> None:
    assert 1 - none_drawn(3072, 5, 5) == pytest.approx(25 / 3072, rel=0.01)
    assert 1 - none_drawn(768, 5, 5) == pytest.approx(25 / 768, rel=0.02)
    model = tiny("vit")[1]
    tally = KeyValues(model, top=1)
    assert tally.chance(0, "mlp", "A") == pytest.approx(1 / 64)
    assert tally.chance(0, "attn", "A") == pytest.approx(1 / 32)
    assert tally.chance(0, "attn", "B") == pytest.approx(1 / 5)


def test_the_nonlinearity_changes_no_choice_where_five_units_are_positive() -> None:
    model = make("vit")
    x, _ = labelled(model, 6)
    with torch.no_grad():
        kept = model.run_with_cache(x, names_filter=["blocks.1.mlp.hook_pre", "blocks.1.mlp.hook_post"])[1]
    pre, post = kept["blocks.1.mlp.hook_pre"], kept["blocks.1.mlp.hook_post"]
    enough = (pre > 0).sum(-1) >= 5
    assert enough.any()
    assert torch.equal(pre.topk(5).indices[enough], post.topk(5).indices[enough])


def negative() -> HookedViT:
    """All units of the last MLP are negative, -1 to -4: those that GELU leaves largest are the most negative ones."""
    model = with_processor("vit")
    mlp = model.blocks[1].mlp
    with torch.no_grad():
        mlp.fc_in.weight.zero_()
        mlp.fc_in.bias.copy_(torch.linspace(-1, -4, 64))
        mlp.fc_out.weight.mul_(1e-3)
        mlp.fc_out.weight[:, :5] = model.head.weight[0][:, None] - model.head.weight[1:].mean(0)[:, None]
    return model


def test_published_coefficients_differ_where_no_unit_is_positive() -> None:
    model = negative()
    x, y = labelled(model, 4)
    y[:] = 0
    found = {}
    for published in (False, True):
        rows, _ = measure_key_values(model, [(x, y)], published=published, draws=1, n_permutations=9)
        at = {"layer": 1, "part": "mlp", "tokens": "all", "definition": "A"}
        found[published] = only(rows, measure="agreement", control="trained", **at)["value"]
    assert found == {False: 0, True: 1}


def test_gated_coefficients_are_those_the_output_matrix_reads_and_have_no_published_form() -> None:
    model = tiny("dinov2-swiglu")[1]
    with pytest.raises(ValueError, match="gated"):
        KeyValues(model, before_activation=True)
    rows, tied = measure_key_values(model, [labelled(model, 3)], draws=1, n_permutations=9)
    assert 0 <= tied <= 1
    assert by(rows, part="mlp", measure="match")


def test_arbitrary_choices_are_counted() -> None:
    model = make("vit", torch.float32)
    for block in model.blocks:
        block.mlp.fc_in.weight.data.zero_()
        block.mlp.fc_in.bias.data.fill_(0.5)  # every unit the same
    _, tied = measure_key_values(model, [labelled(model, 2)], draws=1, n_permutations=9)
    assert tied == pytest.approx(0.5)  # all tokens of the MLPs, none of attention


def test_right_minus_wrong_compares_images_and_says_how_many() -> None:
    values, right = np.array([1.0, 0.5, 0.0, 0.25]), np.array([True, True, False, False])
    row = difference(values, right)
    assert (row["value"], row["n_right"], row["n_wrong"]) == (0.625, 2, 2)
    assert row["low"] < 0.625 < row["high"]
    assert np.isnan(difference(values, np.ones(4, bool))["value"])


def test_published_p_values_are_strict_and_can_be_zero() -> None:
    same, right = np.ones(10), np.arange(10) < 4
    assert published_p(same, right) == 0
    assert permutation_test(same, right, n_draws=99) == 1
    apart = np.where(right, 1.0, 0.0)
    assert published_p(apart, right) == 0
    assert permutation_test(apart, right, n_draws=99) > 0
    assert published_p(-apart, right) == pytest.approx(1, abs=0.02)
    noise = np.random.default_rng(1).normal(size=10)
    assert published_p(noise, right) < permutation_test(noise, right) + 0.1


@pytest.mark.parametrize("name", ["vit", "timm-rpn"])
def test_the_published_comparison_takes_token_0_whatever_it_is(name: str) -> None:
    model = tiny(name)[1]
    x, y = labelled(model, 12)
    with torch.no_grad():
        answers = model(x).argmax(-1)
    y[:5], y[5:] = answers[:5], (answers[5:] + 1) % 5
    kw = {"draws": 1, "n_permutations": 99}
    published, _ = measure_key_values(model, [(x, y)], published=True, **kw)
    correct, _ = measure_key_values(model, [(x, y)], **kw)
    assert {row["tokens"] for row in by(published, measure="right_minus_wrong")} == {"first"}
    assert {row["tokens"] for row in by(correct, measure="right_minus_wrong")} == {*model.tokens.roles, "all"}
    for row in by(correct, measure="right_minus_wrong"):
        assert (row["n_right"], row["n_wrong"]) == (5, 7)
        assert row["p_adjusted"] >= row["p"] >= 0.01
    at = {"measure": "right_minus_wrong", "layer": 1, "part": "attn"}
    p = promotion(model, 1, "attn", model.tokens.roles[0])
    with torch.no_grad():
        z = model.run_with_cache(x, names_filter="blocks.1.attn.hook_z")[1]["blocks.1.attn.hook_z"].flatten(2)
    best, active = p.topk(5).indices, z.topk(5).indices
    agrees = (active[..., None] == best[y][:, None, None]).flatten(2).any(-1).float()
    want = (agrees[:5, 0].mean() - agrees[5:, 0].mean()).item()
    assert only(published, **at)["value"] == pytest.approx(want, abs=1e-6)
    if name == "vit":
        assert only(correct, tokens="cls", **at)["value"] == pytest.approx(want, abs=1e-6)
    else:  # without CLS it is the upper left image token, one of many
        patches = (agrees[:5].mean() - agrees[5:].mean()).item()
        assert only(correct, tokens="patches", **at)["value"] == pytest.approx(patches, abs=1e-6)
        assert patches != pytest.approx(want, abs=1e-3)


def test_batches_change_nothing() -> None:
    model = tiny("registers")[1]
    x, y = labelled(model, 6)
    whole = measure_key_values(model, [(x, y)], draws=2, n_permutations=9)
    split = measure_key_values(model, [(x[:2], y[:2]), (x[2:], y[2:])], draws=2, n_permutations=9)
    for one, other in zip(whole[0], split[0], strict=True):
        assert one == pytest.approx(other, nan_ok=True, abs=1e-6)


def test_gains_are_folded_into_what_memories_promote_when_asked_for() -> None:
    model = make("dinov2", torch.float32)
    x, y = labelled(model, 4)
    tables = {fold: KeyValues(model, fold_gain=fold).tables[1, "mlp", "cls"] for fold in (False, True)}
    for fold, table in tables.items():
        best = promotion(model, 1, "mlp", "cls", fold_gain=fold).topk(5).indices
        assert torch.equal(table.best_memories, best)
    assert not torch.equal(tables[False].best_memories, tables[True].best_memories)
    rows, _ = measure_key_values(model, [(x, y)], fold_gain=True, draws=1, n_permutations=9)
    assert rows


def test_prototypes_decide_what_is_promoted_and_which_images_are_right() -> None:
    model = make("clip-projection", torch.float32)
    x, _ = labelled(model, 4)
    rules = Rules(prototypes=torch.randn(6, 24, generator=torch.Generator().manual_seed(0)))
    unit = torch.nn.functional.normalize
    with torch.no_grad():
        y = (unit(model(x), dim=1) @ unit(rules.prototypes, dim=1).T).argmax(1)
    y[0] = (y[0] + 1) % 6
    rows, _ = measure_key_values(model, [(x, y)], rules=rules, draws=1, n_permutations=9)
    assert {(row["n_right"], row["n_wrong"]) for row in by(rows, measure="right_minus_wrong")} == {(3, 1)}
    with pytest.raises(NoHeadError, match="prototypes"):
        KeyValues(model)


@pytest.fixture(scope="module")
def result() -> Result:
    models = {name: with_processor(name) for name in ("vit", "timm-rpn")}
    return key_values(models, noisy(14), batch_size=5, draws=2, n_permutations=49)


def test_the_analysis_has_everything_for_a_report(result: Result) -> None:
    frame = result.frame
    assert set(frame.measure) == {"agreement", "agreement_of_class", "right_minus_wrong", "match"}
    rates = frame[frame.measure.isin(["agreement", "match"])]
    assert rates.value.between(0, 1 + 1e-12).all()
    assert ((rates.low <= rates.value + 1e-9) & (rates.value <= rates.high + 1e-9)).all()
    assert len(result.meta["table"]) == 4
    assert any("Definition B says little for vit, timm-rpn" in note for note in result.meta["notes"])
    sizes = frame[frame.measure == "right_minus_wrong"]
    assert (sizes.n_right + sizes.n_wrong == 14).all()
    assert len(result.figure().data) == 2 * 2 * 4
    assert len(text_figure(result).data) == 2 * 2 * 4
    assert len(match_figure(result).data) == 2 * 2 * 2
    assert len(difference_figure(result).data) >= 2
    assert len(get_analysis("key-values").more_figures) == 3


def test_repro_says_what_it_is() -> None:
    published = key_values({"vit": with_processor("vit")}, noisy(6), draws=1, repro=True)
    assert set(published.frame[published.frame.measure == "right_minus_wrong"].tokens) == {"first"}
    assert any("p-values that can be 0" in note for note in published.meta["notes"])
    assert difference_figure(published).data


def test_refusals_come_before_any_run() -> None:
    model = with_processor("vit")
    for wrong in ({"top": 0}, {"draws": 0}, {"n_permutations": 0}):
        with pytest.raises(ValueError, match="at least one"):
            key_values({"vit": model}, noisy(4), **wrong)
    gated = with_processor("dinov2-swiglu")
    with pytest.raises(ValueError, match="gated"):
        key_values({"vit": model, "gated": gated}, noisy(4), repro=True)
    assert model.run.n_forwards == gated.run.n_forwards == 0
    with pytest.raises(ValueError, match="0 to 4; got"):
        measure_key_values(model, [(labelled(model, 2)[0], torch.tensor([1, 5]))])


def test_means_over_classes_are_as_uncertain_as_classes_and_their_images() -> None:
    """Images of a class are all alike; the former interval, of images within their class, had no width then."""
    labels = torch.arange(20).repeat_interleave(torch.tensor([40, 10]).repeat(10))
    of_class = torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = ImageMeans()
    means.add("by class", of_class[labels])
    means.add("one image in two", (torch.arange(len(labels)) % 2).double())
    rows = dict(means.rows(labels=labels))
    assert rows["by class"]["value"] == pytest.approx(float(of_class.mean()))
    error = float(of_class.std()) / 20**0.5  # k − 1 in the denominator
    assert rows["by class"]["high"] - rows["by class"]["low"] == pytest.approx(2 * 2.093 * error, rel=0.1)
    assert rows["one image in two"]["value"] == 0.5
    assert rows["one image in two"]["high"] > 0.5
    alone = dict(means_of_one_class().rows(labels=torch.zeros(50, dtype=torch.long)))
    assert np.isnan(alone["a"]["high"])


def means_of_one_class() -> ImageMeans:
    means = ImageMeans()
    means.add("a", torch.arange(50) / 50)
    return means


def test_few_wrong_images_leave_the_difference_open() -> None:
    """With three wrong images that agree alike, Welch's interval was as narrow as the right ones make it."""
    right = np.repeat([True, False], [50, 3])
    values = np.where(right, np.arange(53) % 2, 1.0)
    row = difference(values, right)
    assert (row["n_right"], row["n_wrong"]) == (50, 3)
    assert row["low"] < -0.6
    assert row["high"] > 0.1
