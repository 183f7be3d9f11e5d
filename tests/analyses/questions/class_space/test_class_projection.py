"""What tokens know of the class: projections, ranks and their controls, against the model and plain NumPy."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import wilcoxon
from transformers import ViTImageProcessorPil

from analyses import class_projection
from analyses.controls.random_weights import with_random_weights
from analyses.data import ImageData, as_data
from analyses.questions.class_space.class_projection.figure import (
    box_figure,
    change_figure,
    evolution_figure,
    normalised,
    rate_figure,
)
from analyses.questions.class_space.class_projection.identifiability import TESTED, Identifiability, Key
from analyses.questions.class_space.class_projection.measuring import measure_identifiability
from analyses.questions.class_space.measures.projection import (
    Rules,
    check_rules,
    class_answers,
    image_tokens,
    project_role,
    project_tokens,
    text_prototypes,
    token_ranks,
)
from analyses.questions.class_space.measures.random_prototypes import permuted_classes
from analyses.questions.class_space.measures.rank_counts import RankCounts, SignedRankCounts
from analyses.questions.class_space.measures.updates import Scores
from analyses.statistics.significance import holm
from hooked_vit import HookedViT, TokenLayout, ViTConfig
from hooked_vit.errors import NoHeadError, UnsupportedModelError
from tests.tiny import CLASSES, FAMILIES, IMAGE, Letters, make_hf, pixels, tiny

PROCESSOR = ViTImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
CLASSIFIERS = tuple(name for name in FAMILIES if name != "clip-projection")
LAST = 1


def model(name: str) -> HookedViT:
    return HookedViT.from_hf(make_hf(name), processor=PROCESSOR)


def no_cls(**changes: object) -> HookedViT:
    """A model without CLS that pools its image tokens, as ViT-GAP."""
    torch.manual_seed(3)
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_mlp": 32, "image_size": (16, 16), "patch_size": 8}
    readout = {"has_cls": False, "sources": ("patches",), "final_norm": "pooled", "n_classes": 4}
    found = HookedViT(ViTConfig(**sizes | readout | changes))
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return found


def prototypes(name: str, seed: int = 0) -> torch.Tensor:
    return torch.randn(7, tiny(name)[1].cfg.d_out, generator=torch.Generator().manual_seed(seed))


def noise(n: int, seed: int = 0, classes: int = CLASSES) -> ImageData:
    rng = np.random.default_rng(seed)
    pictures = [Image.fromarray(rng.integers(0, 256, (IMAGE, IMAGE, 3), dtype=np.uint8)) for _ in range(n)]
    return as_data((pictures, (np.arange(n) % classes).tolist()))


def rows_of(rows: list[dict], **equal: object) -> list[dict]:
    return [row for row in rows if all(row.get(key) == value for key, value in equal.items())]


def value_of(rows: list[dict], **equal: object) -> float:
    (row,) = rows_of(rows, **equal)
    return row["value"]


@pytest.mark.parametrize("name", CLASSIFIERS)
@torch.no_grad()
def test_the_last_tokens_that_are_read_give_the_logits(name: str) -> None:
    """Exactly for a readout of CLS; through the family's own pooling for the others."""
    _, net = tiny(name)
    logits, kept = net.run_with_cache(pixels(net))
    resid = kept["resid_post", LAST]
    scores = project_tokens(net, resid)
    cls, patches = scores[:, net.tokens.cls].squeeze(1), scores[:, net.tokens.patches]
    if net.cfg.sources == ("cls",):
        assert torch.equal(cls, logits)
    elif net.cfg.sources == ("cls", "dist"):
        assert torch.allclose((cls + scores[:, net.tokens.dist].squeeze(1)) / 2, logits, atol=1e-5)
    elif net.cfg.sources == ("cls", "patches"):  # one head side by side: its bias is in both parts
        assert torch.allclose(cls + patches.mean(1) - net.head.bias, logits, atol=1e-4)
    elif net.cfg.final_norm == "tokens":
        assert torch.allclose(patches.mean(1), logits, atol=1e-5)
    else:
        pooled = resid[:, net.tokens.patches].mean(1)
        assert torch.allclose(project_role(net, pooled, "patches"), logits, atol=1e-5)


@torch.no_grad()
def test_an_embedding_is_scored_by_cosines_with_prototypes() -> None:
    _, net = tiny("clip-projection")
    given = prototypes("clip-projection")
    rules = Rules(prototypes=given)
    embedding, kept = net.run_with_cache(pixels(net))
    want = [
        [float(np.dot(e, p) / np.linalg.norm(e) / np.linalg.norm(p)) for p in given.numpy()] for e in embedding.numpy()
    ]
    scores = project_tokens(net, kept["resid_post", LAST], rules=rules)
    assert check_rules(net, rules) == 7
    assert torch.allclose(scores[:, 0], torch.tensor(want), atol=1e-5)
    assert torch.equal(scores[:, 0], class_answers(net, embedding, rules))


def test_prototypes_come_from_a_text_tower() -> None:
    """Padded as its family was trained: SigLIP reads pads too. Which family how: test_zero_shot."""
    whole = make_hf("siglip-full")
    found = text_prototypes(whole, SimpleNamespace(tokenizer=Letters()), ["cat", "dog"], ("a {}", "the {}"))
    for row, name in zip(found, ("cat", "dog"), strict=True):
        texts = [f"a {name}", f"the {name}"]
        asked = Letters()(texts, padding="max_length", max_length=64, return_tensors="pt")
        with torch.no_grad():
            each = torch.nn.functional.normalize(whole.get_text_features(asked["input_ids"]).pooler_output, dim=-1)
        assert torch.allclose(row, torch.nn.functional.normalize(each.mean(0), dim=-1), atol=1e-6)
    with pytest.raises(ValueError, match="a sentence with {}"):
        text_prototypes(whole, Letters(), ["cat"], ("a cat",))
    with pytest.raises(UnsupportedModelError, match="no text tower"):
        text_prototypes(make_hf("clip-model"), Letters(), ["cat"])


@torch.no_grad()
def test_two_heads_read_their_own_tokens_and_image_tokens_the_first_or_the_mean() -> None:
    _, net = tiny("deit-teacher")
    x = torch.randn(2, net.tokens.n_tokens, net.cfg.d_model)
    normed = torch.nn.functional.layer_norm(x, (32,), net.ln_final.weight, net.ln_final.bias, net.cfg.eps)
    first, second = net.head(normed), net.head_dist(normed)
    scores = project_tokens(net, x)
    assert torch.allclose(scores[:, 0], first[:, 0], atol=1e-5)
    assert torch.allclose(scores[:, 1], second[:, 1], atol=1e-5)
    assert torch.allclose(scores[:, 2:], first[:, 2:], atol=1e-5)
    mean = project_tokens(net, x, rules=Rules(image_head="mean"))
    assert torch.allclose(mean[:, 2:], (first + second)[:, 2:] / 2, atol=1e-5)
    assert torch.equal(mean[:, :2], scores[:, :2])


@torch.no_grad()
def test_norm_and_bias_can_be_left_out() -> None:
    _, net = tiny("dinov2")
    x = torch.randn(2, net.tokens.n_tokens, net.cfg.d_model)
    raw = project_tokens(net, x, rules=Rules(norm=False, bias=False))
    assert torch.allclose(raw[:, 0], x[:, 0] @ net.head.weight[:, :32].T, atol=1e-5)
    assert torch.allclose(raw[:, 1:], x[:, 1:] @ net.head.weight[:, 32:].T, atol=1e-5)
    with_norm = project_tokens(net, x, rules=Rules(bias=False))
    assert torch.allclose(with_norm + net.head.bias, project_tokens(net, x), atol=1e-5)


@torch.no_grad()
def test_tokens_are_known_after_a_removal_that_differs_from_image_to_image() -> None:
    _, net = tiny("registers")
    x = torch.randn(2, net.tokens.n_tokens, net.cfg.d_model)
    places = torch.tensor([[0, 4, 5, -1], [0, 1, 9, 7]])
    layout = net.tokens.keep(places)
    kept = x.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, 32))
    whole = project_tokens(net, x)
    scores = project_tokens(net, kept, layout)
    for image, row in enumerate(places.tolist()):
        for at, place in enumerate(row):
            want = whole[image, place] if place >= 0 else torch.zeros(CLASSES)
            assert torch.allclose(scores[image, at], want, atol=1e-5)


def test_image_tokens_never_include_a_prefix_and_published_code_drops_whatever_is_first() -> None:
    without = TokenLayout.native((), (1, 3))
    assert image_tokens(without).tolist() == [True, True, True]
    assert image_tokens(without, published=True).tolist() == [False, True, True]
    with_cls = TokenLayout.native(("cls",), (1, 3))
    assert torch.equal(image_tokens(with_cls), image_tokens(with_cls, published=True))


def test_a_tie_is_neither_first_nor_last() -> None:
    scores = torch.tensor([[[1.0, 1.0, 1.0], [2.0, 2.0, 0.0], [0.0, 3.0, 1.0]]])
    assert token_ranks(scores, torch.tensor([0])).tolist() == [[1.0, 0.5, 2.0]]


@pytest.mark.parametrize(
    ("name", "rules", "error", "says"),
    [
        ("vit-model", Rules(), NoHeadError, "needs a classifier"),
        ("clip-projection", Rules(), NoHeadError, "prototypes"),
        ("clip-projection", Rules(prototypes=torch.ones(3, 5)), ValueError, "width"),
        ("vit", Rules(prototypes=torch.ones(3, 5)), ValueError, "has a classifier"),
    ],
)
def test_what_cannot_be_projected_is_refused(name: str, rules: Rules, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        check_rules(tiny(name)[1], rules)


def reference(net: HookedViT, x: torch.Tensor, labels: torch.Tensor) -> dict[tuple, float]:
    """Rates, mean r and change rates of classifiers, from the cache, token by token."""
    _, kept = net.run_with_cache(x)
    layout = net.tokens

    def place(head: torch.nn.Linear, part: int) -> np.ndarray:
        return head.weight[:, part * 32 : part * 32 + 32].detach().numpy().astype(np.float64)

    def scores(vector: torch.Tensor, token: int) -> np.ndarray:
        v = vector.numpy().astype(np.float64)
        if net.cfg.final_norm != "none":
            v = (v - v.mean()) / np.sqrt(v.var() + net.cfg.eps)
            v = v * net.ln_final.weight.detach().numpy() + net.ln_final.bias.detach().numpy()
        patch = token >= len(net.cfg.prefix)
        if net.cfg.sources == ("cls", "patches"):
            return place(net.head, int(patch)) @ v + net.head.bias.detach().numpy()
        head = net.head_dist if net.cfg.sources == ("cls", "dist") and token == 1 else net.head
        return place(head, 0) @ v + head.bias.detach().numpy()

    table: dict[tuple, list] = {}
    streams = {-1: kept["resid_pre", 0], 0: kept["resid_post", 0], 1: kept["resid_post", 1]}
    for kind in ("cls", "patches"):
        tokens = [t for t in range(layout.n_tokens) if layout.mask(kind)[t]]
        before: dict[tuple, float] = {}
        for layer, stream in streams.items():
            r, first, some, grown = [], [], [], []
            for image, label in enumerate(labels.tolist()):
                hits = 0
                for t in tokens:
                    p = scores(stream[image, t], t)
                    pos = sum(p > p[label]) + (sum(p == p[label]) - 1) / 2
                    r.append(1 - pos / len(p))
                    first.append(pos == 0)
                    hits += pos == 0
                    if layer >= 0:
                        grown.append(p[label] > before[image, t])
                    before[image, t] = p[label]
                some.append(hits > 0)
            for measure, found in (("identifiability", r), ("rate", first), ("change_rate", grown)):
                if found:
                    table[measure, layer, kind] = np.mean(found)
            if kind == "patches":
                table["at_least_one", layer, kind] = np.mean(some)
    return table


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_measure_agrees_with_a_plain_reference(name: str) -> None:
    _, net = tiny(name)
    x, labels = pixels(net, n=6), torch.arange(6) % CLASSES
    batches = [(x[:4], labels[:4]), (x[4:], labels[4:])]
    rows = measure_identifiability(net, batches, random_seeds=(), permuted_seeds=())
    for (measure, layer, kind), want in reference(net, x, labels).items():
        got = value_of(rows, measure=measure, layer=layer, tokens=kind, site="resid_post", control="trained")
        assert got == pytest.approx(want, abs=1e-6), (measure, layer, kind)
    logits = net(x).detach()
    right = (logits.argmax(-1) == labels).float().mean().item()
    assert value_of(rows, measure="accuracy") == pytest.approx(right)


def test_what_a_branch_adds_is_scored_alone() -> None:
    _, net = tiny("dinov2")
    x, labels = pixels(net, n=4), torch.arange(4)
    rows = measure_identifiability(net, [(x, labels)], random_seeds=(), permuted_seeds=())
    with torch.no_grad():
        _, kept = net.run_with_cache(x)
        for site in ("attn_out", "mlp_out"):
            pos = token_ranks(project_tokens(net, kept[site, 1]), labels)[:, net.tokens.patches]
            want = (1 - pos / CLASSES).mean().item()
            got = value_of(rows, measure="identifiability", site=site, layer=1, tokens="patches")
            assert got == pytest.approx(want, abs=1e-6)


def test_prototypes_are_used_everywhere_and_random_models_get_random_ones() -> None:
    _, net = tiny("clip-projection")
    x, labels = pixels(net, n=5), torch.arange(5)
    rules = Rules(prototypes=prototypes("clip-projection"))
    rows = measure_identifiability(net, [(x, labels)], rules=rules, random_seeds=(0,), permuted_seeds=())
    with torch.no_grad():
        pos = token_ranks(project_role(net, net(x, stop_at_layer=2)[:, :1], "cls", rules), labels)
    assert value_of(rows, measure="accuracy") == pytest.approx((pos == 0).double().mean().item())
    last = {"measure": "rate", "tokens": "cls", "layer": LAST, "site": "resid_post"}
    assert value_of(rows, control="trained", **last) == value_of(rows, measure="accuracy")
    assert len(rows_of(rows, control="random", **last)) == 1


def test_random_weights_are_their_own_and_leave_the_generator_alone() -> None:
    _, net = tiny("dinov2")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = (with_random_weights(net, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.cfg == net.cfg
    for a, b, c in zip(one.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c)
    assert 0.015 < one.head.weight.std() < 0.021
    assert not one.head.bias.any()


def test_a_head_of_zeros_ties_every_class_and_is_never_right() -> None:
    net = no_cls()
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.zero_()
    x = torch.randn(3, 3, 16, 16)
    rows = measure_identifiability(net, [(x, torch.arange(3))], random_seeds=(), permuted_seeds=())
    last = {"site": "resid_post", "layer": 1, "tokens": "patches", "control": "trained"}
    assert value_of(rows, measure="identifiability", **last) == pytest.approx(0.5 + 1 / 8)
    assert value_of(rows, measure="rate", **last) == 0
    assert value_of(rows, measure="identifiability", control="chance") == pytest.approx(0.5 + 1 / 8)


@torch.no_grad()
def test_a_permuted_head_is_the_model_with_its_rows_permuted() -> None:
    _, net = tiny("vit")
    x, labels = pixels(net, n=4), torch.arange(4)
    rows = measure_identifiability(net, [(x, labels)], random_seeds=(), permuted_seeds=(2,))
    order = permuted_classes(CLASSES, 2)
    permuted = model("vit")
    permuted.head.weight.copy_(net.head.weight[order])
    permuted.head.bias.copy_(net.head.bias[order])
    other = measure_identifiability(permuted, [(x, labels)], random_seeds=(), permuted_seeds=())
    where = {"measure": "identifiability", "site": "resid_post", "layer": LAST, "tokens": "patches"}
    assert value_of(rows, control="permuted_head", **where) == pytest.approx(
        value_of(other, control="trained", **where)
    )


def test_full_range_starts_at_zero() -> None:
    rows = measure_identifiability(
        no_cls(),
        [(torch.randn(8, 3, 16, 16), torch.arange(8) % 4)],
        random_seeds=(),
        permuted_seeds=(),
        full_range=True,
    )
    assert value_of(rows, measure="identifiability", control="chance") == pytest.approx(0.5)


def one_block(post: list[list[list[float]]], pre: list[list[list[float]]] | None = None) -> Scores:
    after = torch.tensor(post)
    before = torch.zeros_like(after) if pre is None else torch.tensor(pre)
    return Scores(before, after, before, after, after)


@pytest.mark.parametrize(("published", "rate"), [(False, 1 / 3), (True, 0.0)])
def test_published_code_loses_the_first_image_token_of_a_model_without_cls(published: bool, rate: float) -> None:
    """Only the first of three tokens names the class."""
    tally = Identifiability(2, has_cls=False, published=published)
    tally.add(1, "patches", one_block([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]]), torch.tensor([0]))
    where = {"layer": 1, "site": "resid_post", "tokens": "patches"}
    rows = list(tally.rows())
    assert value_of(rows, measure="rate", **where) == pytest.approx(rate)
    assert value_of(rows, measure="change_rate", **where) == pytest.approx(rate)
    assert value_of(rows, measure="at_least_one", **where) == float(rate > 0)


def test_published_change_starts_at_the_second_block() -> None:
    _, net = tiny("vit")
    batch = [(pixels(net, n=2), torch.arange(2))]
    for published, layers in ((False, {0, 1}), (True, {1})):
        rows = measure_identifiability(net, batch, random_seeds=(), permuted_seeds=(), published=published)
        assert {row["layer"] for row in rows_of(rows, measure="change_rate", control="trained")} == layers


def test_published_test_counts_tokens_and_calls_everything_significant() -> None:
    """Tokens of four images agree; over images nothing can be significant with four of them, over tokens it is."""
    net = no_cls(image_size=(64, 64))
    with torch.no_grad():  # the true class always comes first
        net.head.weight.zero_()
        net.head.bias.copy_(torch.tensor([3.0, 2.0, 1.0, 0.0]))
    batch = [(torch.randn(4, 3, 64, 64), torch.zeros(4, dtype=torch.long))]
    for published, clear in ((False, False), (True, True)):
        rows = measure_identifiability(net, batch, random_seeds=(0, 1), permuted_seeds=(), published=published)
        (row,) = rows_of(rows, measure="above_random", layer=1, tokens="patches")
        assert (row["p_adjusted"] < 0.05) == clear


@pytest.mark.parametrize("seed", range(3))
def test_counted_ranks_have_numpys_quantiles_and_scipys_signed_rank_test(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 19, 60) / 2, np.minimum(9, rng.integers(0, 19, 60) / 2 + 0.5)
    counts, pairs = RankCounts(10), SignedRankCounts(10)
    for part in (slice(0, 25), slice(25, 60)):
        counts.add(a[part])
        pairs.add(b[part], a[part])
    assert counts.mean == pytest.approx(a.mean())
    for q in (0, 0.1, 0.25, 0.5, 0.75, 0.99, 1):
        assert counts.quantile(q) == pytest.approx(np.quantile(a, q))
    want = wilcoxon(b, a, alternative="greater", method="asymptotic", correction=False).pvalue
    assert pairs.p_greater() == pytest.approx(want, abs=1e-9)
    r = 1 - a / 10
    low, high = np.quantile(r, [0.25, 0.75])
    inside = r[(r >= low - 1.5 * (high - low)) & (r <= high + 1.5 * (high - low))]
    box = counts.box(10)
    assert (box.quartile_low, box.quartile_high) == pytest.approx((low, high))
    assert (box.whisker_low, box.whisker_high) == pytest.approx((inside.min(), inside.max()))
    assert math.isnan(SignedRankCounts(3).p_greater())


def test_deeper_models_are_averaged_in_twelve_groups_and_shallower_ones_spread_out() -> None:
    def curve(n: int) -> pd.DataFrame:
        rows = pd.DataFrame({"layer": range(n), "value": np.arange(n) * 1.0, "low": 0.0, "high": 1.0})
        return normalised(rows, n)

    assert curve(12).block.tolist() == list(range(1, 13))
    assert curve(24).value.tolist() == [0.5 + 2 * i for i in range(12)]
    assert curve(4).block.tolist() == [3, 6, 9, 12]


@pytest.fixture(scope="module")
def result():
    models = {"vit": model("vit"), "dinov2": model("dinov2"), "features": model("vit-model")}
    return class_projection(models, noise(24), fit_data=noise(30, 1), random_models=2, batch_size=10)


def test_the_analysis_holds_models_controls_and_intervals(result) -> None:
    frame = result.frame
    assert set(frame.control) == {"trained", "random", "permuted_head", "chance"}
    assert set(frame[frame.control == "random"].seed) == {0, 1}
    known = frame.dropna(subset=["low", "high"])
    assert ((known.low <= known.value + 1e-9) & (known.value <= known.high + 1e-9)).all()
    assert (frame[frame.measure.isin(["rate", "at_least_one", "accuracy"]) & (frame.control != "chance")].n == 24).all()
    assert "ridge head" in result.meta["models"]["features"]["head"]
    assert any("features" in note for note in result.meta["notes"])
    assert len(result.meta["table"]) == 3
    assert all(name in " ".join(result.meta["summary"]) for name in ("vit", "dinov2", "features"))


@pytest.mark.parametrize("draw", [evolution_figure, box_figure, rate_figure, change_figure])
def test_figures_hold_every_model(result, draw) -> None:
    text = draw(result).to_json()
    assert all(name in text for name in ("vit", "dinov2", "features"))


def test_the_last_blocks_cls_rate_is_the_accuracy_where_cls_is_what_is_read(result) -> None:
    rows = result.frame[result.frame.model == "vit"]
    at_end = rows[
        (rows.layer == 1) & (rows.tokens == "cls") & (rows.site == "resid_post") & (rows.control == "trained")
    ]
    accuracy = rows[rows.measure == "accuracy"].value.iloc[0]
    assert at_end[at_end.measure == "rate"].value.iloc[0] == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("name", "data", "options", "says"),
    [
        ("vit", noise(6), {"random_models": 0}, "at least one random model"),
        ("vit", noise(12, classes=6), {}, "label 5"),
        ("vit-model", noise(6), {"head": "own"}, "no classifier"),
        ("clip-projection", noise(8), {"prototypes": {"other": torch.ones(2, 24)}}, "models' names"),
        ("clip-projection", noise(8), {"prototypes": {"mine": torch.ones(4, 24)}}, "one per class"),
    ],
)
def test_bad_input_is_refused_before_any_run(name: str, data: ImageData, options: dict, says: str) -> None:
    net = model(name)
    with pytest.raises(ValueError, match=says):
        class_projection({"mine": net}, data, **options)
    assert net.run.n_forwards == 0


def test_registers_are_left_out_of_models_and_controls_alike() -> None:
    frame = class_projection({"mine": model("registers")}, noise(6), random_models=1, batch_size=6).frame
    assert set(frame.tokens.dropna()) == {"cls", "patches"}
    assert set(frame.control) >= {"trained", "random"}


@pytest.mark.parametrize("better", [True, False])
def test_rates_are_tested_against_chance_and_random_weights(better: bool) -> None:
    """Of 60 images either every token names the class, or one in five hundred of ten classes, as chance has it."""
    tally = Identifiability(10)
    rng = np.random.default_rng(0)
    for _ in range(60):
        scores = rng.normal(size=(1, 4, 10))
        if better:
            scores[..., 0] += 10
        tally.add(1, "patches", one_block(scores.tolist()), torch.tensor([0]))
        random = torch.from_numpy(np.argsort(np.argsort(-rng.normal(size=(1, 4, 10))))[..., 0]).double()
        tally._note(Key("random", 0, "resid_post", 1, "patches"), random)
    rows = [row for row in tally.rows() if row["measure"] in TESTED]
    assert {row["measure"] for row in rows} == set(TESTED)
    for row in rows:
        assert (row["p_adjusted"] < 0.01) == better, row
        assert row["p"] <= row["p_adjusted"] <= 1
        assert row["low"] <= row["value"] <= row["high"]
        assert (row["low"] > 0) == better, row


def test_tests_of_one_measure_are_corrected_over_its_layers() -> None:
    _, net = tiny("vit")
    rows = measure_identifiability(net, [(pixels(net, n=4), torch.arange(4) % 2)], random_seeds=(0,))
    for measure in TESTED:
        for role in ("cls", "patches"):
            family = rows_of(rows, measure=measure, tokens=role)
            assert [r["p_adjusted"] for r in family] == pytest.approx(holm([r["p"] for r in family]))
    assert rows_of(rows, measure="rate_above_chance", tokens="cls")
    assert not rows_of(rows, measure="at_least_one_above_chance", tokens="cls")
