"""Some layers of the analyses of class space: what is not run, and what is said and drawn of one layer or of two."""

from __future__ import annotations

from typing import Any

import pytest

from analyses import Result, load_data
from analyses.questions.class_space.attention_knockouts.figure import layers_figure, places_figure
from analyses.questions.class_space.class_embedding import class_embedding
from analyses.questions.class_space.class_embedding.class_embedding import _run as run_part
from analyses.questions.class_space.class_projection.figure import box_figure, evolution_figure
from analyses.questions.class_space.context_tokens.figure import change_figure
from analyses.questions.class_space.gradient_explanations.figure import heads_figure
from analyses.questions.class_space.residual_updates.figure import composition_figure, partition_figure
from analyses.questions.class_space.token_removal.figure import layers_figure as removal_layers
from hooked_vit import HookedViT
from tests.analyses import everything
from tests.analyses.questions.test_some_layers import COMMANDS, check_rows, model, run, takes_layers

NAMES = (
    *("attention-knockouts", "class-embedding", "class-projection", "class-values", "context-tokens"),
    *("gradient-explanations", "key-values", "residual-updates", "token-removal"),
)
PUBLISHED = tuple(name for name in NAMES if name not in ("class-embedding", "class-values", "gradient-explanations"))
BEHIND_THE_LAST = ("attention-knockouts", "token-removal")


def test_they_are_those_that_take_layers() -> None:
    assert all(takes_layers(name) for name in NAMES)


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> list[tuple[HookedViT, int]]:
    """Every model that runs meanwhile, and the block it stops in front of."""
    found: list[tuple[HookedViT, int]] = []
    passing = HookedViT._pass

    def noted(self: HookedViT, x: Any, start: int, stop: int, whole: Any) -> Any:
        found.append((self, stop))
        return passing(self, x, start, stop, whole)

    monkeypatch.setattr(HookedViT, "_pass", noted)
    return found


def with_its_own_head(name: str, **options: Any) -> Result:
    """No head is fitted where the classes have the names it knows."""
    entry = COMMANDS[name]
    return entry.run({"tiny": model()}, load_data("scenes:test", n=40), **everything.arguments(entry) | options)


@pytest.mark.parametrize("name", ["context-tokens", "residual-updates", "class-values"])
def test_nothing_is_run_behind_the_last_layer_that_is_read(name: str, stops: list[tuple[HookedViT, int]]) -> None:
    with_its_own_head(name, layers=(0, 1))
    assert stops
    assert {stop for _, stop in stops} <= {1, 2}


@pytest.mark.parametrize("name", ["class-projection", "gradient-explanations"])
def test_beside_answers_nothing_is_run_behind_it(name: str, stops: list[tuple[HookedViT, int]]) -> None:
    """The model is asked for its answer once a batch; controls, maps and patterns are not."""
    with_its_own_head(name, layers=(1,))
    whole = [net for net, stop in stops if stop == 4]
    assert [stop for _, stop in stops if stop < 4] == [2] * (len(stops) - len(whole))
    assert len(whole) == 2 < len(stops)  # two batches


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_published_too_some_layers_have_the_numbers_they_have_among_all(name: str) -> None:
    every = {"layers": (0, 1, 2, 3)} if name in BEHIND_THE_LAST else {}
    whole, some = run(name, repro=True, **every), run(name, repro=True, layers=(-1, 1))
    check_rows(name, some.frame, whole.frame, [1, 3])


def test_the_first_layer_alone_is_not_in_the_published_setting(stops: list[tuple[HookedViT, int]]) -> None:
    with pytest.raises(ValueError, match="leaves the first layer out, and no other is measured"):
        run("residual-updates", repro=True, layers=(0,))
    assert not stops
    result = run("context-tokens", repro=True, layers=(0,))
    assert not (result.frame.measure == "logit_change").any()
    change_figure(result)


@pytest.fixture(scope="module", params=[name for name in NAMES if name != "class-embedding"])
def of_two_depths(request: pytest.FixtureRequest) -> tuple[str, Result]:
    entry = COMMANDS[request.param]
    models = {"deep": model(), "shallow": everything.model()}
    options = everything.arguments(entry) | {"layers": (-1,)}
    return request.param, entry.run(models, everything.scenes(), **options)


def test_the_last_layer_of_models_of_different_depth_is_drawn_and_said(of_two_depths: tuple[str, Result]) -> None:
    name, result = of_two_depths
    layers = result.frame.dropna(subset="layer").groupby("model").layer.unique()
    assert {of: list(found) for of, found in layers.items()} == {"deep": [3], "shallow": [1]}
    assert result.meta["summary"]
    for draw in (Result.figure, *COMMANDS[name].figures(result).values()):
        fig = draw(result)
        for trace in fig.data:  # a line from a point to itself is none
            if trace.type == "scatter" and trace.mode == "lines" and trace.x is not None:
                assert len({x for x in trace.x if x is not None}) > 1, (name, trace.name)


def test_depth_is_the_models_own_whichever_layers_were_measured() -> None:
    result = run("class-projection", layers=(1, -1))
    trained = [trace for trace in evolution_figure(result).data if trace.mode == "lines+markers"]
    assert {tuple(trace.x) for trace in trained} == {(6, 12)}
    text = " ".join(result.meta["summary"])
    assert "from layer" not in text


def test_boxes_and_bars_of_distant_layers_are_as_wide_as_of_neighbours() -> None:
    near, far = (run("class-projection", layers=layers) for layers in ((0, 1), (0, 3)))
    widths = [{box.width for box in box_figure(result).data if box.type == "box"} for result in (near, far)]
    assert widths[0] == widths[1]
    result = run("residual-updates", layers=(0, 3))
    fig = composition_figure(result)
    bars = [trace for trace in fig.data if trace.type == "bar"]
    marks = [trace for trace in fig.data if trace.type == "scatter"]
    for bar, mark in zip(bars, marks, strict=True):  # of chance, over its own bar
        lefts = [layer + bar.offset for layer in (0, 3)]
        ends = [end for left in lefts for end in (left, left + bar.width)]
        assert [x for x in mark.x if x is not None] == pytest.approx(ends)
    assert all(trace.offset is None and trace.width == bars[0].width * 4 for trace in partition_figure(result).data)


def test_global_maps_are_of_the_layers_measured_and_said_to_be() -> None:
    result = run("gradient-explanations", layers=(1, 3))
    maps = result.frame[(result.frame.measure == "map") & (result.frame.of == "label")]
    whole, parts = maps[maps.layer.isna()], maps[maps.layer.notna() & maps["head"].isna()]
    summed = parts.groupby(["image", "token"]).value.sum()
    assert summed.tolist() == pytest.approx(whole.sort_values(["image", "token"]).value.tolist(), abs=1e-6)
    shares = result.frame[(result.frame.measure == "strength") & result.frame["head"].notna()]
    assert shares.value.sum() == pytest.approx(1)
    assert any("sums over the layers that were measured" in note for note in result.meta["notes"])
    titles = {note.text for note in heads_figure(result).layout.annotations}
    assert {title for title in titles if title.startswith("layer")} == {"layer 1", "layer 3"}


@pytest.mark.parametrize(("name", "draw"), [("attention-knockouts", layers_figure), ("token-removal", removal_layers)])
def test_tokens_are_followed_through_the_layers_they_are_read_behind(name: str, draw: Any) -> None:
    alone, several = run(name), run(name, layers=(1, -1))
    assert list(alone.frame.layer.dropna().unique()) == [3]
    assert "behind layer 3 " in alone.meta["summary"][0]
    assert several.meta["summary"] == alone.meta["summary"]  # of the last of them
    assert several.meta["table"] == alone.meta["table"]
    assert "read behind one layer alone" in draw(alone).layout.annotations[0].text
    assert {tuple(trace.x) for trace in draw(several).data} == {(1, 3)}
    assert "tokens behind the last layer measured" in several.figure().layout.title.text
    assert "tokens behind the last layer measured" not in alone.figure().layout.title.text
    early = run(name, layers=(1,))
    assert "behind layer 1 " in early.meta["summary"][0]


def test_where_attention_is_cut_does_not_depend_on_where_tokens_are_read() -> None:
    options = {"window": 1, "variants": ("no_cls",)}
    alone, several = (run("attention-knockouts", layers=layers, **options) for layers in ((-1,), (0, 2, -1)))
    cut = ["layer_first", "layer_last"]
    assert several.frame[cut].drop_duplicates().values.tolist() == [[0, 3], [0, 0], [1, 1], [2, 2], [3, 3]]
    for a, b in zip(places_figure(alone).data, places_figure(several).data, strict=True):
        assert list(a.y) == list(b.y)
    changes = several.frame[several.frame.measure == "rate_change"]
    behind_it = changes[(changes.layer_first > changes.layer) & (changes.control == "knockout")]
    assert len(behind_it) > 0
    assert (behind_it.value == 0).all()  # nothing was cut in front of these tokens


def test_the_study_says_once_which_layers_it_is_of_and_which_part_is_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {"orders": ("projection",), "shots": 1, "seeds": 1, "points": 2, "variants": ("no_cls",)}

    def quickly(name: str, models: Any, data: Any, settings: dict[str, Any]) -> Result:
        return run_part(name, models, data, settings | quick)

    monkeypatch.setattr(class_embedding, "_run", quickly)
    parts = ("class-projection", "attention-knockouts", "perturbation-tests")
    result = with_its_own_head("class-embedding", layers=(1,), parts=parts)
    notes = result.meta["notes"]
    assert len([note for note in notes if "Only layer 1 was measured" in note]) == 1
    assert "perturbation-tests: has no layers to choose from, and is of all of them." in notes
    layers = result.frame.dropna(subset="layer").groupby("study").layer.unique()
    assert {study: list(found) for study, found in layers.items()} == {
        "attention-knockouts": [1],
        "class-projection": [1],
        "perturbation-tests": [0, 1, 2, 3],
    }
    assert result.meta["published"] == []


def test_what_is_published_of_all_layers_stands_beside_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows ask for the last layer, which the last of some is not."""
    monkeypatch.setattr(class_embedding, "published_beside", lambda *_: [{"what": "Accuracy"}])
    options = {"parts": ("class-projection",)}
    assert run("class-embedding", **options).meta["published"]
    assert not run("class-embedding", layers=(1,), **options).meta["published"]


def test_of_layers_that_were_not_measured_nothing_is_said() -> None:
    whole, few = (" ".join(run("context-tokens", **some).meta["summary"]) for some in ({}, {"layers": (1,)}))
    assert "than context tokens in no layer (−1 is the embedding)" in whole
    assert "than context tokens in no layer measured;" in few
