"""What was published is compared, whole: numbers printed by the authors against what the recipes say."""

from __future__ import annotations

import pytest

from analyses.reproductions.beside import claims_beside, rows_beside
from analyses.reproductions.entries import KINDS, READ_BY_EYE, Claim, PublishedValue, Side
from analyses.reproductions.recipe import load_recipe, names
from analyses.reproductions.tables import RecipeError
from tests.analyses.reproductions.test_reproduce import VALUE, frame, own

# (recipe, step, words of what is compared, model, published values in their order)
PRINTED = [
    ("class-embedding", "knockouts", "attend to themselves", "vit-b32", [0.001257]),
    ("class-embedding", "knockouts", "do not see CLS", "vit-b32", [0.607134]),
    ("class-embedding", "perturbation", "least important first, 10-shot probes", "vit-b32", [0.7385]),
    ("class-embedding", "perturbation", "most important first, 10-shot probes", "vit-b32", [0.6832]),
    ("class-embedding", "perturbation", "least important first, gradients", "vit-b32", [0.8363]),
    ("cls-not-used", "shuffle", "what BEiT's classifier reads", "beit", [0.70898]),
    ("cls-not-used", "shuffle", "Accuracy, nothing changed", "beit", [0.7054]),
    ("multiple-readouts", "restoration", "first layer's CLS", "vit", [0.0057, 0.2216, 0.3204, 0.3894, 0.4485]),
    ("multiple-readouts", "restoration", "last layer's CLS", "vit", [0.6030, 0.6603, 0.7150, 0.8004, 0.0419]),
]
BEIT = [0.70554, 0.70510, 0.70504, 0.70502, 0.70518, 0.70514, 0.70424, 0.69996, 0.68586, 0.63926, 0.63304, 0.00626]
CHANGE = [
    0.007023,
    0.029557,
    0.12719,
    0.215745,
    0.231144,
    0.232179,
    0.343491,
    0.435765,
    -0.409439,
    -0.563637,
    -6.543204,
]
PRINTED += [("cls-not-used", "shuffle", "CLS exchanged, as printed", "beit", BEIT)]
PRINTED += [("class-embedding", "context", "class minus context", "vit-b32", CHANGE)]


def find(recipe: str, step: str, words: str) -> PublishedValue:
    (step_told,) = [s for s in load_recipe(recipe).steps if s.name == step]
    (value,) = [v for v in step_told.published if words in v.what]
    return value


@pytest.mark.parametrize(("recipe", "step", "words", "model", "numbers"), PRINTED)
def test_what_the_authors_code_printed_is_compared(recipe, step, words, model, numbers):
    value = find(recipe, step, words)
    assert [number for _, number in value.pairs(model)] == pytest.approx(numbers, abs=1e-9)
    assert value.kind == "notebook"
    last = max(len(f"{number * (100 if value.percent else 1):.6g}".partition(".")[2]) for number in numbers)
    assert 0 < value.reading <= 0.5 * 10**-last * 10  # half of the last digit that is printed


# (step, words, models with values, points of one of them)
FIGURES = [
    ("table-1", "Identifiability behind each block, CLS", ("vit-b32", "vit-b16", "vit-l16", "miil", "refinement"), 5),
    ("table-1", "Identifiability behind each block, image tokens", ("gap", "refinement", "miil"), 10),
    ("table-1", "class score grows", ("vit-b32", "vit-b16", "vit-l16", "miil", "refinement", "gap"), 11),
    ("context", "Median identifiability of class tokens", ("vit-b32", "vit-b16", "miil", "refinement", "gap"), 8),
    ("context", "Median identifiability of context tokens", ("vit-b32", "vit-b16", "miil", "refinement", "gap"), 8),
    ("updates", "Attention raises the class, CLS", ("vit-b32", "vit-b16", "vit-l16", "miil", "refinement"), 10),
    ("updates", "Attention raises the class, image tokens", ("vit-b16", "vit-l16", "miil", "refinement", "gap"), 8),
    ("updates", "Top class behind a block is attention's", ("vit-b16", "vit-l16", "miil", "refinement", "gap"), 1),
    ("class-values", "of the MLP, at its peak", ("vit-b32", "vit-b16", "vit-l16", "miil", "refinement", "gap"), 1),
    ("key-values", "Key-value agreement of the MLP", ("vit-b32", "vit-b16", "vit-l16", "miil", "refinement", "gap"), 1),
    ("key-values", "right minus wrong images, attention", ("vit-b32", "vit-l16", "miil", "refinement", "gap"), 12),
    ("key-values", "right minus wrong images, the MLP", ("vit-b32", "vit-l16", "miil", "refinement", "gap"), 11),
    ("key-values", "strong memory, attention", ("vit-b32", "vit-b16", "vit-l16", "miil", "refinement"), 8),
]


@pytest.mark.parametrize(("step", "words", "models", "points"), FIGURES)
def test_figures_are_compared_for_every_variant(step, words, models, points):
    value = find("class-embedding", step, words)
    assert all(len(value.pairs(model)) >= points for model in models)
    assert value.kind in READ_BY_EYE


def test_compositionality_is_compared_as_the_range_that_was_reported():
    value = find("class-embedding", "key-values", "50 to 70 %")
    assert (value.values["vit-b32"], value.reading, value.percent, value.kind) == ({"-2": 60}, 10, True, "text")


@pytest.mark.parametrize("name", names())
def test_every_source_says_what_it_is(name):
    for step in load_recipe(name).steps:
        for value in step.published:
            assert value.kind in KINDS
            assert value.reading > 0
            assert ("figure" in KINDS[value.kind]) == (value.kind in READ_BY_EYE)
        assert all(claim.kind in KINDS for claim in step.claims)


@pytest.mark.parametrize("name", ["counting", "low-frequency", "registers"])
def test_studies_of_which_no_number_is_known_are_compared_by_their_claims(name):
    recipe = load_recipe(name)
    assert not any(step.published for step in recipe.steps)
    assert sum(len(step.claims) for step in recipe.steps) >= 2
    assert "Numbers: " in recipe.not_reproduced[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            VALUE.replace("table", "paper") + 'rows = "a == 1"\nvalues = { m = 1 }',
            "kind says what the source is",
        ),
        (VALUE.replace("table", "figure") + 'rows = "a == 1"\nvalues = { m = 1 }', "above 0 where it was read by eye"),
        (VALUE + 'rows = "a == 1"\npoints = 3\nvalues = { m = 1 }', "points are those of a curve"),
        (VALUE + 'rows = "a == 1"\nby = "layer"\nvalues = { m = { last = 1 } }', "'last' of m is no layer"),
        (VALUE + 'rows = "a == 1"\nby = "layer"\nvalues = { m = { 1 = "x" } }', "'x' of m is no number"),
        ("CLAIMmore = 3", "more: is a table"),
        ('CLAIMmore = { rows = "oops" }', "rows are conditions"),
        ('CLAIMmore = { rows = "a == 1", by = "layer" }', "give both or none"),
        ('CLAIMmore = { rows = "a == 1", by = "layer", within = [0.5, 2] }', "shares of the depth, 0 to 1"),
        ('CLAIMmore = { rows = "a == 1", model = "n" }', "a side of n, which the step does not run"),
        ('CLAIMmodels = ["n"]\nmore = { rows = "a == 1" }', "a claim about n, which the step does not run"),
        ("CLAIM", "lacks more"),
    ],
)
def test_values_and_claims_that_mean_nothing(text, says, tmp_path):
    text = text.replace("CLAIM", '[[steps.claims]]\nwhat = "w"\nsource = "p"\nkind = "text"\n')
    with pytest.raises(RecipeError, match=says):
        load_recipe(own(tmp_path, text))


OURS = frame(
    *(("m", "a", layer, 0.1 * layer, 0.1 * layer - 0.02, 0.1 * layer + 0.02, 8) for layer in range(5)),
    *(("n", "a", layer, 0.1, 0.0, 0.2, 8) for layer in range(5)),
).frame


def test_a_claim_by_hand():
    late = Side("measure == 'a'", "layer", (0.5, 1.0))
    claim = Claim("w", late, "s", "text", less=Side("measure == 'a' and layer == 1"))
    (row,) = claims_beside("r", claim, ["m"], OURS)
    assert row["difference"] == pytest.approx((0.2 + 0.3 + 0.4) / 3 - 0.1)
    assert (row["low"], row["high"]) == pytest.approx((0.3 - 0.02 - 0.12, 0.3 + 0.02 - 0.08))
    assert row["agrees"] is True
    assert row["published"] != row["published"]
    # of another model; left out where that is not run; the other way round it does not hold
    other = Side(late.rows, late.by, late.within, "n")
    beside = Claim("w", Side("measure == 'a' and layer == 0"), "s", "text", less=other, models=("m",))
    (row,) = claims_beside("r", beside, ["m", "n"], OURS)
    assert (row["difference"], row["agrees"]) == (pytest.approx(-0.1), False)
    assert list(claims_beside("r", beside, ["m"], OURS)) == []


def test_a_claim_without_rows_is_an_error_unless_they_are_rare():
    nothing = Side("measure == 'b'")
    with pytest.raises(RecipeError, match="means no row of m"):
        list(claims_beside("r", Claim("w", nothing, "s", "text"), ["m"], OURS))
    (row,) = claims_beside("r", Claim("w", nothing, "s", "text", rare=True), ["m"], OURS)
    assert row["difference"] != row["difference"]
    assert row["agrees"] is False


def test_a_row_that_lacks_in_a_model_of_the_same_depth_is_an_error():
    value = PublishedValue("w", "measure == 'a'", {"m": {"4": 0.4, "5": 0.5}}, "s", "table", by="layer")
    with pytest.raises(RecipeError, match="means 0 rows of m at layer 5"):
        list(rows_beside("r", value, ["m"], OURS, depths={"m": (6, 6)}))
    rows = list(rows_beside("r", value, ["m"], OURS, depths={"m": (6, 5)}))
    assert [(row["at"], row["layers"], row["value"]) for row in rows] == [
        (4, "3", pytest.approx(0.3)),
        (5, "4", pytest.approx(0.4)),
    ]
