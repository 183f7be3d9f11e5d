"""Episodes are what they are said to be, their answers those of a plain loop, and the intervals hold the truth."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from analyses import Result
from analyses.data import ImageData, as_data, load_data
from analyses.questions.signal.cls_parameter import initial_cls
from analyses.questions.signal.few_shot_transfer.episodes import deal, draw, of_groups, share_right
from analyses.questions.signal.few_shot_transfer.few_shot_transfer import few_shot_transfer, other_scenes
from analyses.questions.signal.few_shot_transfer.transfer_study import matched_cls
from analyses.running.catalogue import get_analysis
from analyses.statistics.intervals import RATE, mean_interval
from hooked_vit import HookedViT
from tests.tiny import CLASSES, IMAGE, make_hf, processor_of

FAMILIES = ("deit-teacher", "registers", "beit-mean-both")
TASK = {"ways": 3, "shots": 2, "queries": 2, "episodes": 4}
LEAST = {"ways": 2, "shots": 1, "queries": 1}


def model(name: str) -> HookedViT:
    return HookedViT.from_hf(make_hf(name), processor=processor_of((IMAGE, IMAGE)))


def coloured(n: int, seed: int, *, repeat: int = 0) -> ImageData:
    """Noise about a colour of its class; the first `repeat` pictures come once more."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % CLASSES)
    base = np.random.default_rng(0).uniform(60, 200, (CLASSES, 3))
    arrays = [np.clip(base[y] + rng.normal(0, 60, (IMAGE, IMAGE, 3)), 0, 255).astype(np.uint8) for y in labels]
    pictures = [Image.fromarray(array) for array in arrays]
    return as_data(
        (pictures + pictures[:repeat], [*labels.tolist(), *labels[:repeat].tolist()]), name=f"colours {seed}"
    )


@pytest.fixture(scope="module")
def result() -> Result:
    models = {name: model(name) for name in FAMILIES}
    return few_shot_transfer(models, coloured(62, 1, repeat=3), source_data=coloured(50, 2), batch_size=20, **TASK)


def value(result: Result, name: str, measure: str, **where: object) -> float:
    rows = result.frame[(result.frame.model == name) & (result.frame.measure == measure)]
    for column, wanted in where.items():
        rows = rows[rows[column].isna() if wanted is None else (rows[column] == wanted).fillna(False)]
    (found,) = rows.value
    return found


def test_groups_and_episodes_share_no_image() -> None:
    labels = torch.tensor([0] * 9 + [1] * 23 + [2] * 8 + [3] * 3)
    dealt = deal(labels, ways=2, each=4, seed=5)
    assert dealt.left_out == [3]
    assert len(dealt.groups) == 2
    places = np.concatenate([part for group in dealt.groups for part in group.values()])
    assert sorted(places) == [*range(40)]  # all of the others, each once
    drawn = draw(dealt.groups[1], 1, ways=2, shots=3, queries=1, episodes=30, seed=5)
    assert drawn.support.shape == (30, 2, 3)
    assert drawn.query.shape == (30, 2, 1)
    for support, query in zip(drawn.support, drawn.query, strict=True):
        assert len({*support.flat, *query.flat}) == 8
        of = [{int(labels[i]) for i in (*shown, *asked)} for shown, asked in zip(support, query, strict=True)]
        assert all(len(one) == 1 for one in of)
        assert of[0] != of[1]
        assert {*support.flat, *query.flat} <= {*np.concatenate([*dealt.groups[1].values()])}
    assert len({tuple(one.flat) for one in drawn.support}) > 20


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("variant", ["learned", "normal", "zeros"])
def test_answers_are_those_of_a_plain_loop(result: Result, name: str, variant: str) -> None:
    """Straight down the page: another parameter in the model itself, the published distance, one query at a time."""
    one = model(name)
    (batch,) = coloured(62, 1).batches(62)
    with torch.no_grad():
        if variant == "normal":
            one.embed.cls.copy_(initial_cls(one.embed.cls.flatten(), 1).view_as(one.embed.cls))
        if variant == "zeros":
            one.embed.cls.zero_()
        last = f"blocks.{one.cfg.n_layers - 1}.hook_resid_post"
        stream = one.run_with_cache(one.preprocess(batch.images), names_filter=last)[1][last]
        tokens = {"cls": stream[:, 0], "patches": stream[:, one.tokens.patches]}
        if one.cfg.final_norm == "pooled":
            tokens["patches"] = tokens["patches"].mean(1)
        tokens = {role: one.ln_final(x) for role, x in tokens.items()}
        if one.cfg.final_norm != "pooled":
            tokens["patches"] = tokens["patches"].mean(1)
    groups = deal(batch.labels, ways=3, each=4, seed=0).groups
    for role, x in tokens.items():
        right, asked = 0, 0
        for number, group in enumerate(groups):
            episodes = draw(group, number, seed=0, **TASK)
            for support, query in zip(episodes.support, episodes.query, strict=True):
                prototypes = [sum(x[i].double() for i in shown) / len(shown) for shown in support]
                for truth, images in enumerate(query):
                    for i in images:
                        distances = [float(((x[i].double() - p) ** 2).sum()) for p in prototypes]
                        right += distances.index(min(distances)) == truth
                        asked += 1
        seed = 1 if variant == "normal" else None
        got = value(result, name, "accuracy", token=role, variant=variant, seed=seed, domain="target")
        assert got == pytest.approx(right / asked, abs=1e-9), (role, len(groups))


def test_everything_is_there_and_paired(result: Result) -> None:
    for name in FAMILIES:
        rows = result.frame[result.frame.model == name]
        roles = [*model(name).tokens.roles]
        accuracy = rows[rows.measure == "accuracy"]
        assert len(accuracy) == 2 * len(roles) * (3 + 2 * 2)
        assert set(accuracy[accuracy.domain == "target"].n_groups) == {3}
        assert set(accuracy[accuracy.domain == "target"].n) == {62}
        for role in roles:
            mean = accuracy[(accuracy.token == role) & (accuracy.domain == "target")].groupby("variant").value.mean()
            gain = {v: value(result, name, "gain", token=role, variant=v, domain="target") for v in ("normal", "zeros")}
            assert gain["normal"] == pytest.approx(mean["normal"] - mean["learned"])
            beyond = value(result, name, "gain_over_matched", token=role, domain="target")
            assert beyond == pytest.approx(mean["normal"] - mean["matched"])
            own = value(result, name, "gain", token=role, variant="zeros", domain="source")
            apart = value(result, name, "gain_beyond_source", token=role, variant="zeros")
            assert apart == pytest.approx(gain["zeros"] - own)
        assert value(result, name, "chance") == 1 / 3
    known = result.frame.dropna(subset=["low"])
    assert ((known.low <= known.value) & (known.value <= known.high)).all()
    assert result.meta["left_out"]["target"] == {"classes": [], "copies": 3}
    assert any("3 images have the pixels of another one" in note for note in result.meta["notes"])


def test_what_changes_nothing_gains_nothing() -> None:
    """Zeros in the place of zeros, and the draw that is there already; batches do not matter."""
    one = model("registers")
    one.embed.cls.data.zero_()
    told = few_shot_transfer({"m": one}, coloured(40, 1), seeds=1, batch_size=7, **TASK)
    again = few_shot_transfer({"m": one}, coloured(40, 1), seeds=1, batch_size=40, **TASK)
    assert told.frame.value.tolist() == pytest.approx(again.frame.value.tolist())
    assert set(told.frame[(told.frame.measure == "gain") & (told.frame.variant == "zeros")].value) == {0.0}
    one.embed.cls.data.copy_(initial_cls(one.embed.cls.flatten(), 0).view_as(one.embed.cls))
    told = few_shot_transfer({"m": one}, coloured(40, 1), seeds=1, **TASK)
    assert set(told.frame[(told.frame.measure == "gain") & (told.frame.variant == "normal")].value) == {0.0}


def test_the_control_is_as_far_away_in_another_direction() -> None:
    learned, drawn = torch.randn(64, generator=torch.Generator().manual_seed(0)), torch.zeros(64)
    moved = matched_cls(learned, drawn, seed=1)
    assert float((moved - learned).norm()) == pytest.approx(float((drawn - learned).norm()), rel=1e-5)
    assert float(torch.cosine_similarity(moved - learned, drawn - learned, dim=0).abs()) < 0.4
    assert share_right(torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 4, 3)) == 0.0  # a tie is no answer


def test_intervals_over_groups_hold_the_truth_and_those_over_episodes_do_not() -> None:
    """Classes as normal clusters; the truth is the mean over many draws."""
    centres = np.random.default_rng(0).normal(0, 0.5, (5, 4))
    labels = np.repeat(np.arange(5), 32)
    means, groups, episodes = [], [], []
    for seed in range(150):
        x = (centres[labels] + np.random.default_rng([1, seed]).normal(size=(160, 4))).astype(np.float32)
        dealt = deal(torch.from_numpy(labels), ways=3, each=4, seed=seed).groups
        drawn = [draw(g, i, ways=3, shots=1, queries=3, episodes=25, seed=seed) for i, g in enumerate(dealt)]
        values = of_groups(x, drawn)
        each = np.concatenate([
            of_groups(x, [type(one)(one.support[e : e + 1], one.query[e : e + 1]) for e in range(25)]) for one in drawn
        ])  # fmt: skip
        means.append(values.mean())
        groups.append(mean_interval(values, bounds=RATE))
        episodes.append(mean_interval(each, bounds=RATE))
    truth = np.mean(means)
    covered = [np.mean([i.low <= truth <= i.high for i in kind]) for kind in (groups, episodes)]
    # give or take three standard errors of 150 draws: .95 and what episodes hold, .62
    assert covered[0] > 0.9
    assert covered[1] < 0.74


def test_what_cannot_be_an_episode_is_refused() -> None:
    one = {"m": model("registers")}
    with pytest.raises(ValueError, match="2 images of each of 6 classes, .*; 5 of the 5 classes here have so many"):
        few_shot_transfer(one, coloured(40, 1), **LEAST | {"ways": 6})
    with pytest.raises(ValueError, match="takes 10 images of each of 5 classes, .*; 0 of the 5 classes"):
        few_shot_transfer(one, coloured(40, 1), shots=5, queries=5)
    with pytest.raises(ValueError, match="two domains share no image, and 12 are both in"):
        few_shot_transfer(one, coloured(40, 1), source_data=coloured(40, 1).without(range(12, 40)), **LEAST)
    with pytest.raises(ValueError, match="m: there is no CLS embedding to swap; this model has patches"):
        few_shot_transfer({"m": model("ijepa")}, coloured(40, 1))
    for option, number in {"ways": 1, "shots": 0, "queries": 0, "episodes": 0, "seeds": 0}.items():
        with pytest.raises(ValueError, match=f"need {option} of at least"):
            few_shot_transfer(one, coloured(40, 1), **{option: number})
    rows = datasets.Dataset.from_dict({"image": next(coloured(20, 1).batches(20)).images, "label": [0, 1] * 10})
    with pytest.raises(ValueError, match="the labels of a stream are not known beforehand; save stream as parquet"):
        few_shot_transfer(one, as_data(rows.to_iterable_dataset()), **LEAST)


def test_of_built_in_scenes_the_negatives_are_another_domain() -> None:
    scenes = load_data("scenes:validation", n=12)
    assert other_scenes(scenes).name == "scenes:test"
    told = few_shot_transfer({"m": model("registers")}, load_data("scenes:test", n=40), seeds=1, **LEAST)
    assert told.meta["data"]["name"] == "negatives of scenes:test"
    assert told.meta["source_data"]["name"] == "scenes:validation"


def test_the_figures_are_drawn_of_one_and_of_two_domains(result: Result) -> None:
    entry = get_analysis("few-shot-transfer")
    alone = Result(result.frame[result.frame.domain == "target"], result.meta)
    for of in (result, alone):
        for draw_one in (entry.figure, *entry.figures(of).values()):
            assert draw_one is not None
            assert len(draw_one(of).data) > len(FAMILIES)
    *found, few = result.meta["summary"]
    assert len(found) == len(FAMILIES)
    fewest = int(result.frame[result.frame.measure == "accuracy"].n_groups.min())
    assert few.startswith(f"These intervals are over no more than {fewest} groups of images")
