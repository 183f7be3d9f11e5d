"""Value vectors and classes: plain loops, folding, random directions, planted memories, top images."""

from __future__ import annotations

import base64
from io import BytesIO
from statistics import NormalDist

import numpy as np
import pytest
import torch
from PIL import Image

from analyses import class_values
from analyses.controls.random_weights import with_random_weights
from analyses.questions.class_space.class_values.figure import class_figure, memory_figure
from analyses.questions.class_space.class_values.value_agreement import measure_value_agreement, value_agreement
from analyses.questions.class_space.measures.memories import (
    TopImage,
    class_vectors,
    coefficient_site,
    expected_largest_cosine,
    promotion,
    roles_with,
    top_images,
    value_vectors,
)
from analyses.questions.class_space.measures.projection import Rules
from analyses.running.catalogue import get_analysis
from analyses.running.results import Result
from hooked_vit import HookedViT
from hooked_vit.config import ViTConfig
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


def test_agreement_is_that_of_the_plain_reference() -> None:
    model, plain, _, _ = beside_reference()
    rows = measure_value_agreement(model, random_seeds=())
    for layer in range(2):
        for part in PARTS:
            want = plain.class_value_agreement(layer, part)
            found = [r["value"] for r in by(rows, measure="agreement_of_class", layer=layer, part=part)]
            np.testing.assert_allclose(found, want)
            row = only(rows, measure="agreement", control="trained", layer=layer, part=part)
            assert row["value"] == pytest.approx(want.mean())


@pytest.mark.parametrize("name", HEADED)
@pytest.mark.parametrize("part", PARTS)
def test_coefficients_times_value_vectors_are_what_the_branch_adds(name: str, part: str) -> None:
    """So the value vectors, their order and their coefficients belong together, LayerScale included."""
    model = make(name)
    x, _ = labelled(model, 2)
    site, out = coefficient_site(1, part), f"blocks.1.hook_{part}_out"
    norm = f"blocks.1.ln{PARTS.index(part) + 1}.hook_scale"
    wanted = [site, out, *([norm] if model.cfg.post_norm else [])]
    with torch.no_grad():
        kept = model.run_with_cache(x, names_filter=wanted)[1]
    block = model.blocks[1]
    bias = block.attn.b_O if part == "attn" else block.mlp.b_out
    vectors = value_vectors(model, 1, part, fold_gain=True)
    if not model.cfg.post_norm:
        torch.testing.assert_close(kept[site].flatten(2) @ vectors + bias, kept[out])
        return
    # behind a norm the branch is the centred sum over the scale, times the gain that was folded in, plus its offset
    ln = block.ln1 if part == "attn" else block.ln2
    branch = kept[site].flatten(2) @ value_vectors(model, 1, part) + bias
    folded = kept[site].flatten(2) @ vectors + (bias - branch.mean(-1, keepdim=True)) * ln.weight
    torch.testing.assert_close(folded / kept[norm] + ln.bias, kept[out])


@pytest.mark.parametrize("name", ["dinov2", "beit-mean-both", "vit", "clip-classifier"])
def test_folding_gains_is_what_folding_the_weights_is(name: str) -> None:
    model, folded = make(name), make(name)
    folded.fold_layer_scale_()
    for layer in range(2):
        for part in PARTS:
            torch.testing.assert_close(
                value_vectors(model, layer, part, fold_gain=True), value_vectors(folded, layer, part)
            )
    role = model.cfg.sources[0]
    gain = model.ln_final.weight
    want = class_vectors(model, role) * gain
    torch.testing.assert_close(class_vectors(model, role, fold_gain=True), want)
    if name == "vit":
        folded.fold_layer_norm_()
        torch.testing.assert_close(class_vectors(folded, role), want)


def test_layer_scale_and_final_gain_do_not_count_unless_asked_for() -> None:
    model = make("dinov2")
    before = [value_agreement(model), value_agreement(model, fold_gain=True)]
    with torch.no_grad():
        model.blocks[0].mlp.ls.mul_(torch.linspace(0.1, 3, 32))
        model.ln_final.weight.mul_(torch.linspace(2, 0.1, 32))
    after = [value_agreement(model), value_agreement(model, fold_gain=True)]
    assert all(np.array_equal(before[0][key], after[0][key]) for key in before[0])
    assert not np.allclose(before[1][0, "mlp", "cls"], after[1][0, "mlp", "cls"])


def test_each_class_is_normalised_by_itself() -> None:
    """A class whose vector is long is no better served; normalised over classes it would be."""
    model = make("vit")
    before = value_agreement(model)[1, "mlp", "cls"]
    with torch.no_grad():
        model.head.weight[2] *= 100
        model.blocks[1].mlp.fc_out.weight[:, 7] *= 0.01
    np.testing.assert_allclose(value_agreement(model)[1, "mlp", "cls"], before)


def test_every_token_that_is_read_has_class_vectors_of_its_own() -> None:
    dinov2, deit = tiny("dinov2")[1], tiny("deit-teacher")[1]
    halves = torch.cat([class_vectors(dinov2, "cls"), class_vectors(dinov2, "patches")], dim=1)
    torch.testing.assert_close(halves, dinov2.head.weight)
    assert roles_with(dinov2, "cls") == ["cls"]
    assert {key[2] for key in value_agreement(dinov2)} == {"cls", "patches"}
    assert {key[2] for key in value_agreement(deit)} == {"cls", "dist"}
    assert roles_with(deit, "cls") == ["cls", "patches"]
    both = class_vectors(deit, "patches", Rules(image_head="mean"))
    torch.testing.assert_close(both, (class_vectors(deit, "cls") + class_vectors(deit, "dist")) / 2)


def test_prototypes_go_through_the_models_own_projection() -> None:
    model = make("clip-projection", torch.float32)
    rules = Rules(prototypes=3 * torch.randn(4, 24))
    unit = torch.nn.functional.normalize(rules.prototypes, dim=1)
    torch.testing.assert_close(class_vectors(model, "cls", rules), unit @ model.head_for("cls")[0])
    assert value_agreement(model, rules)[0, "attn", "cls"].shape == (4,)
    other = Rules(prototypes=torch.randn(4, 24))
    one, two = (
        by(measure_value_agreement(model, random_seeds=(0,), rules=r), control="random") for r in (rules, other)
    )
    assert one == two  # what has learned nothing has no prototypes of its own either


def largest_normal(n: int) -> float:
    """Mean of the largest of n standard normals, by its integral."""
    x = np.linspace(-10, 10, 20_001)
    below = np.array([NormalDist().cdf(v) for v in x])
    return float(np.trapezoid(x * n * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) * below ** (n - 1), x))


@pytest.mark.parametrize(("n", "d", "published"), [(768, 768, 0.115), (3072, 768, 0.129), (1024, 1024, 0.1)])
def test_random_directions_reach_what_theory_says(n: int, d: int, published: float) -> None:
    found = expected_largest_cosine(n, d)
    assert found == pytest.approx(largest_normal(n) / d**0.5, rel=0.01)
    assert found == pytest.approx(published, abs=0.0025)


@pytest.mark.parametrize(("n", "d"), [(1, 5), (20, 2), (20, 3), (64, 32)])
def test_random_directions_reach_what_drawing_them_gives(n: int, d: int) -> None:
    drawn = torch.randn(4000, n, d, generator=torch.Generator().manual_seed(0))
    largest = torch.nn.functional.normalize(drawn, dim=-1)[..., 0].amax(1)
    error = (largest.std() / len(largest) ** 0.5).item()
    assert abs(expected_largest_cosine(n, d) - largest.mean().item()) < 4 * error


def test_a_random_model_is_at_chance_and_a_trained_one_above_it() -> None:
    cfg = ViTConfig(d_model=64, n_layers=2, n_heads=4, d_mlp=128, image_size=(16, 16), patch_size=8, n_classes=60)
    model = with_random_weights(HookedViT(cfg), 0)
    with torch.no_grad():  # layer 1 gets a value vector along every class
        model.blocks[1].mlp.fc_out.weight[:, :60] += 0.5 * model.head.weight.T
    rows = measure_value_agreement(model, random_seeds=(1, 2, 3))
    luck = only(rows, measure="agreement", control="chance", layer=0, part="mlp")["value"]
    for row in by(rows, measure="agreement", control="random", part="mlp"):
        assert row["value"] == pytest.approx(luck, abs=0.03)
    planted = only(rows, measure="agreement", control="trained", layer=1, part="mlp")
    other = only(rows, measure="agreement", control="trained", layer=0, part="mlp")
    assert planted["p_adjusted"] < 1e-3
    assert other["p_adjusted"] > 0.01
    assert planted["p_adjusted"] == pytest.approx(2 * planted["p"])  # two layers
    assert planted["low"] > luck + 0.05


def planted(name: str = "vit") -> HookedViT:
    """Memory 9 of the last MLP points at class 3 exactly, and is active only where images are bright."""
    model = with_processor(name)
    with torch.no_grad():
        model.blocks[1].mlp.fc_out.weight[:, 9] = 2 * class_vectors(model, model.cfg.sources[0])[3]
    return model


def test_top_images_are_those_of_the_whole_cache() -> None:
    model = tiny("registers")[1]
    x, y = labelled(model, 9)
    memories = [(0, "attn", 5), (1, "mlp", 9), (1, "mlp", 2)]
    batches = [(x[:4], y[:4]), (x[4:5], y[4:5]), (x[5:], y[5:])]
    found = top_images(model, batches, memories, k=3)
    with torch.no_grad():
        kept = model.run_with_cache(x, names_filter=[coefficient_site(*memory[:2]) for memory in memories])[1]
    for layer, part, number in memories:
        coefficient = kept[coefficient_site(layer, part)].flatten(2)[..., number]
        best = coefficient.amax(1).argsort(descending=True)[:3].tolist()
        want = [(i, int(y[i]), int(coefficient[i].argmax())) for i in best]
        assert [each[:3] for each in found[layer, part, number]] == want
        assert found[layer, part, number][0].coefficient == pytest.approx(coefficient.max().item(), rel=1e-5)
    of_cls = top_images(model, [(x, y)], memories, k=2, roles=["cls"])
    assert all(isinstance(each, TopImage) and each.token == 0 for found in of_cls.values() for each in found)


def test_memories_there_are_not_are_refused() -> None:
    model = tiny("vit")[1]
    with pytest.raises(ValueError, match="0 to 63; got 64"):
        top_images(model, [], [(0, "mlp", 64)])
    with pytest.raises(ValueError, match="0 to 31; got 32"):
        top_images(model, [], [(0, "attn", 32)])
    with pytest.raises(ValueError, match="at least one memory"):
        top_images(model, [], [])
    with pytest.raises(ValueError, match="attn or mlp"):
        value_vectors(model, 0, "head")
    with pytest.raises(ValueError, match="layers are 0 to 1"):
        value_vectors(model, 2, "mlp")
    blank = make("vit")
    blank.head.weight.data.zero_()
    with pytest.raises(ValueError, match="never trained"):
        promotion(blank, 0, "mlp", "cls")


@pytest.fixture(scope="module")
def result() -> Result:
    models = {"vit": planted(), "timm-rpn": with_processor("timm-rpn"), "dinov2": with_processor("dinov2")}
    return class_values(models, noisy(10), memories=1, images=3, batch_size=4, random_models=1)


def test_a_planted_value_vector_is_found_with_its_class_and_images(result: Result) -> None:
    frame = result.frame[(result.frame.model == "vit") & (result.frame.part == "mlp") & (result.frame.layer == 1)]
    first = frame[(frame.measure == "promoted_class") & (frame["rank"] == 0)].iloc[0]
    assert (first.memory, first["class"]) == (9, 3)
    assert first.value == pytest.approx(1, abs=1e-5)
    shown = frame[frame.measure == "top_image"]
    assert len(shown) == 3
    assert shown.value.is_monotonic_decreasing
    assert shown.image.between(0, 9).all()
    data = noisy(10)
    assert [data.labels[i] for i in shown.image] == shown["class"].tolist()
    picture = Image.open(BytesIO(base64.b64decode(shown.picture.iloc[0].partition(",")[2])))
    assert picture.size == (96, 96)


def test_the_analysis_has_everything_for_a_report(result: Result) -> None:
    agreement = result.frame[result.frame.measure == "agreement"]
    assert set(agreement.control) == {"trained", "chance", "random"}
    assert set(agreement[agreement.model == "dinov2"].tokens) == {"cls", "patches"}
    assert set(agreement[agreement.model == "timm-rpn"].tokens) == {"patches"}
    assert len(result.meta["table"]) == 2 * 4
    assert any("memory 9 of the MLP" in sentence for sentence in result.meta["summary"])
    assert len(result.figure().data) > 3 * 2
    assert len(class_figure(result).data) == 3 * 2
    drawn = memory_figure(result)
    assert len(drawn.layout.images) == 3 * 2 * 3
    assert sum("memory 9 promotes LABEL_3 (1.00)" in str(a.text) for a in drawn.layout.annotations) == 1
    assert get_analysis("class-values").more_figures


def test_weights_alone_need_no_image() -> None:
    model = with_processor("vit")
    found = class_values({"vit": model}, noisy(5), memories=0, random_models=0)
    assert model.run.n_forwards == 0
    assert set(found.frame.measure) == {"agreement", "agreement_of_class"}
    assert len(memory_figure(found).layout.images) == 0
    with pytest.raises(ValueError, match="images=0"):
        class_values({"vit": model}, noisy(5), images=0)
