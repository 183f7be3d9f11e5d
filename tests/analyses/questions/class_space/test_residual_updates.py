"""Updates against their input, and where a block's top class comes from: against plain loops and by construction."""

from __future__ import annotations

import itertools

import pytest
import torch

from analyses import residual_updates
from analyses.questions.class_space.measures.projection import Rules, project_tokens
from analyses.questions.class_space.measures.updates import ClassSimilarity, Scores, read_updates, top_class
from analyses.questions.class_space.residual_updates.composition import (
    MATCHES,
    PARTITION,
    Composition,
    measure_residual_updates,
)
from analyses.questions.class_space.residual_updates.figure import composition_figure, partition_figure
from analyses.running.catalogue import get_analysis
from analyses.running.results import Result
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

SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


@pytest.mark.parametrize("reference", ["layer_input", "block_input"])
def test_both_studies_are_those_of_the_plain_reference(reference: str) -> None:
    model, plain, x, y = beside_reference()
    rows = measure_residual_updates(model, [(x, y)], reference=reference, random_seeds=())
    run = plain.run(x.numpy())
    for (part, role), rates in plain.similarity_change(run, y.numpy(), reference).items():
        for layer, rate in enumerate(rates):
            row = only(rows, measure="class_similarity", layer=layer, part=part, tokens=role)
            assert row["value"] == pytest.approx(rate)
    for layer, want in enumerate(plain.composition(run)):
        at = {"layer": layer, "tokens": "all", "control": "trained"}
        for part in ("prev", "attn", "mlp"):
            assert only(rows, measure="match", part=part, **at)["value"] == pytest.approx(want[part])
        parts = {row["part"].replace(" ", "_"): row["value"] for row in by(rows, measure="partition", **at)}
        assert parts.pop("composition") == pytest.approx(want["comp"])
        assert parts == pytest.approx({part: want[part] for part in parts})


def test_the_published_setting_is_that_of_the_plain_reference() -> None:
    model, plain, x, y = beside_reference()
    rows = measure_residual_updates(model, [(x, y)], random_seeds=(), published=True)
    run = plain.run(x.numpy())
    assert {row["layer"] for row in rows} == {1}  # the first block is not in the published figures
    assert not by(rows, measure="partition")
    want = plain.composition(run)[1]
    found = only(rows, measure="match", part="composition", tokens="all", control="trained")["value"]
    assert found == pytest.approx(want["comp_repro"])
    assert want["comp_repro"] > want["comp"]  # otherwise this shows nothing
    rates = plain.similarity_change(run, y.numpy(), "block_input")
    row = only(rows, measure="class_similarity", part="mlp", tokens="patches")
    assert row["value"] == pytest.approx(rates["mlp", "patches"][1])


@pytest.mark.parametrize("name", HEADED)
def test_every_family_against_plain_comparisons(name: str) -> None:
    model = tiny(name)[1]
    x, y = labelled(model, 5)
    rows = measure_residual_updates(model, [(x, y)], random_seeds=())
    with torch.no_grad():
        cache = model.run_with_cache(x, names_filter=lambda hook: hook.endswith(SITES))[1]
    for layer in range(model.cfg.n_layers):
        pre, attn, mid, mlp, post = (project_tokens(model, cache[site, layer]) for site in SITES)
        true = [s[torch.arange(5), :, y] for s in (pre, attn, mid, mlp)]
        raised = {"attn": true[1] > true[0], "mlp": true[3] > true[2]}
        for role in model.tokens.roles:
            here = model.tokens.mask(role)
            for part, where in raised.items():
                row = only(rows, measure="class_similarity", layer=layer, part=part, tokens=role)
                assert row["value"] == pytest.approx(where[:, here].float().mean().item())
        top = post.argmax(-1)
        same = torch.stack([s.argmax(-1) == top for s in (pre, attn, mlp)])
        counted = ~model.tokens.mask("registers", missing_ok=True)
        at = {"layer": layer, "tokens": "all", "control": "trained"}
        for i, part in enumerate(("prev", "attn", "mlp")):
            assert only(rows, measure="match", part=part, **at)["count"] == int(same[i][:, counted].sum())
        none = only(rows, measure="partition", part="composition", **at)
        assert none["count"] == int((~same.any(0))[:, counted].sum())


@pytest.mark.parametrize("name", ["vit", "registers", "timm-rpn"])
def test_the_partition_counts_every_token_once(name: str) -> None:
    model = tiny(name)[1]
    rows = measure_residual_updates(model, [labelled(model, 4)], random_seeds=())
    for layer, role in itertools.product(range(model.cfg.n_layers), [*model.tokens.roles, "all"]):
        mine = by(rows, measure="partition", layer=layer, tokens=role)
        n = sum(int(model.tokens.mask(r).sum()) for r in model.tokens.roles if role in (r, "all"))
        n -= int(model.tokens.mask("registers", missing_ok=True).sum()) if role == "all" else 0
        assert sum(row["count"] for row in by(mine, control="trained")) == 4 * n
        assert sum(row["value"] for row in by(mine, control="trained")) == pytest.approx(1, abs=1e-12)
        assert sum(row["value"] for row in by(mine, control="chance")) == pytest.approx(1, abs=1e-12)
    assert sorted(cell for part in PARTITION.values() for cell in part) == list(range(8))


def scores_of(generator: torch.Generator, n: int, t: int, c: int) -> Scores:
    return Scores(*(torch.randn(n, t, c, generator=generator) for _ in Scores._fields))


def test_chance_is_the_mean_over_all_pairs_of_images() -> None:
    n, t, c = 7, 3, 3
    parts = [scores_of(torch.Generator().manual_seed(seed), k, t, c) for seed, k in ((0, 4), (1, 3))]
    tally = Composition()
    for scores in parts:  # in two batches: pairs across batches count as well
        tally.add(0, "patches", scores, torch.zeros(len(scores.pre), dtype=torch.long))
    pre, attn, mlp, post = (
        torch.cat([getattr(s, site) for s in parts]).argmax(-1) for site in ("pre", "attn", "mlp", "post")
    )
    cells = torch.zeros(8, dtype=torch.float64)
    for i, j in itertools.permutations(range(n), 2):
        same = [(source[j] == post[i]).long() << bit for bit, source in enumerate((pre, attn, mlp))]
        cells += torch.bincount(sum(same), minlength=8)
    torch.testing.assert_close(tally.chance()[0, "patches"], cells / (n * (n - 1) * t))
    assert MATCHES["prev"] == (1, 3, 5, 7)


def test_identical_images_match_as_well_as_their_own_sources() -> None:
    scores = scores_of(torch.Generator().manual_seed(0), 1, 5, 4)
    tally = Composition()
    tally.add(0, "patches", Scores(*(s.expand(3, -1, -1) for s in scores)), torch.zeros(3, dtype=torch.long))
    own = tally.cells()[0, "patches"].sum(0).double() / 15
    torch.testing.assert_close(tally.chance()[0, "patches"], own)


def fixed(pre: float, attn: float, mid: float, mlp: float, post: float) -> Scores:
    """One token of one image; class 1 has these scores, class 0 has 1."""
    return Scores(*(torch.tensor([[[1.0, score]]]) for score in (pre, attn, mid, mlp, post)))


def test_the_published_reference_differs_where_attention_has_raised_the_class_already() -> None:
    scores, label = fixed(0, 3, 2, 1.5, 3), torch.tensor([1])
    found = {}
    for reference in ("layer_input", "block_input"):
        tally = ClassSimilarity(reference)
        tally.add(0, "cls", scores, label)
        found[reference] = {row["part"]: row["value"] for row in tally.rows()}
    assert found == {"layer_input": {"attn": 1, "mlp": 0}, "block_input": {"attn": 1, "mlp": 1}}


def test_the_published_composition_counts_what_only_the_mlp_matches() -> None:
    scores, label = fixed(0, 0, 0, 2, 2), torch.tensor([1])
    found = {}
    for published in (False, True):
        tally = Composition(published)
        tally.add(0, "cls", scores, label)
        found[published] = {row["part"]: row["value"] for row in tally.rows() if row["measure"] == "match"}
    assert found[False] == {"prev": 0, "attn": 0, "mlp": 1, "composition": 0}
    assert found[True] == {"prev": 0, "attn": 0, "mlp": 1, "composition": 1}
    assert sum(found[True].values()) == 2  # the published bars pass 100 %


def test_a_tie_is_no_top_class_and_raises_nothing() -> None:
    assert top_class(torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0]])).tolist() == [-1, 1]
    scores, label = fixed(1, 1, 1, 1, 1), torch.tensor([1])
    parts, similarity = Composition(), ClassSimilarity()
    for tally in (parts, similarity):
        tally.add(0, "cls", scores, label)
    assert parts.cells()[0, "cls"].tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]]
    assert [row["value"] for row in similarity.rows()] == [0, 0]


def test_batches_change_nothing() -> None:
    model = make("deit-teacher")
    x, y = labelled(model, 6)
    whole = measure_residual_updates(model, [(x, y)], random_seeds=(3,))
    split = measure_residual_updates(model, [(x[:1], y[:1]), (x[1:4], y[1:4]), (x[4:], y[4:])], random_seeds=(3,))
    assert whole == split
    assert only(whole, control="random", layer=1, part="mlp", tokens="dist")["seed"] == 3


def test_the_first_block_is_compared_with_the_embedding_and_updates_are_scored_once() -> None:
    model = make("vit")
    x, _ = labelled(model, 2)
    seen = {}
    logits = read_updates(model, x, lambda layer, role, scores: seen.update({(layer, role): scores}))
    assert list(seen) == [(0, "cls"), (0, "patches"), (1, "cls"), (1, "patches")]
    torch.testing.assert_close(seen[1, "cls"].post[:, 0], logits)
    embedded = model(x, stop_at_layer=0)
    torch.testing.assert_close(seen[0, "patches"].pre, model.project(embedded[:, 1:], "patches"))
    assert seen[1, "cls"].pre is seen[0, "cls"].post


def test_prototypes_stand_for_classes_where_the_model_answers_with_an_embedding() -> None:
    model = make("clip-projection", torch.float32)
    x, _ = labelled(model, 3)
    y = torch.tensor([0, 1, 2])
    rules = Rules(prototypes=torch.randn(4, model.cfg.d_out))
    rows = measure_residual_updates(model, [(x, y)], random_seeds=(), rules=rules)
    assert by(rows, measure="class_similarity", tokens="patches")
    with pytest.raises(NoHeadError, match="prototypes"):
        measure_residual_updates(model, [(x, y)], random_seeds=())


def test_untrained_models_have_untrained_prototypes() -> None:
    """What was learned of the classes must not reach the control: it is the same whatever the prototypes are."""
    model = make("clip-projection", torch.float32)
    x, y = labelled(model, 3)[0], torch.tensor([0, 1, 2])

    def control(seed: int) -> list[dict]:
        prototypes = torch.randn(4, model.cfg.d_out, generator=torch.Generator().manual_seed(seed))
        rows = measure_residual_updates(model, [(x, y)], random_seeds=(7,), rules=Rules(prototypes=prototypes))
        return by(rows, control="random")

    assert control(0) == control(1)
    assert len(control(0)) > 0


@pytest.fixture(scope="module")
def result() -> Result:
    models = {name: with_processor(name) for name in ("vit", "timm-rpn")}
    return residual_updates(models, noisy(12), batch_size=5)


def test_the_analysis_has_everything_for_a_report(result: Result) -> None:
    frame = result.frame
    assert set(frame.model) == {"vit", "timm-rpn"}
    assert set(frame[frame.model == "timm-rpn"].tokens) == {"patches", "all"}
    assert set(frame.measure) == {"class_similarity", "match", "partition"}
    inside = (frame.low <= frame.value + 1e-9) & (frame.value <= frame.high + 1e-9)
    assert inside.all()
    assert (frame.n == 12).all()
    assert any("top class" in sentence for sentence in result.meta["summary"])
    assert {row["model"] for row in result.meta["table"]} == {"vit", "timm-rpn"}
    assert len(result.figure().data) == 2 + 2 * 4 + 2 * 2
    assert composition_figure(result).layout.barmode == "group"
    assert partition_figure(result).layout.barmode == "stack"
    assert get_analysis("residual-updates").more_figures


def test_repro_is_reported_and_drawn_stacked() -> None:
    published = residual_updates({"vit": with_processor("vit")}, noisy(6), repro=True, random_models=0)
    assert published.meta["reference"] == "block_input"
    assert set(published.frame.layer) == {1}
    assert composition_figure(published).layout.barmode == "stack"
    assert any("Published" in note for note in published.meta["notes"])


def test_refusals_come_before_any_run() -> None:
    model = with_processor("vit")
    with pytest.raises(ValueError, match="layer_input, block_input"):
        ClassSimilarity("mine")
    with pytest.raises(ValueError, match="0 or more"):
        residual_updates({"vit": model}, noisy(4), random_models=-1)
    with pytest.raises(ValueError, match="no classifier"):
        residual_updates({"m": with_processor("vit-model")}, noisy(4), head="own")
    assert model.run.n_forwards == 0
    broken = make("vit")
    broken.blocks[0].mlp.fc_out.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="block 0 holds NaN"):
        measure_residual_updates(broken, [labelled(broken, 2)], random_seeds=())
