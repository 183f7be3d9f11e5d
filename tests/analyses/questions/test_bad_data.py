"""Every analysis on data that are not as they should be: a refusal in words or a result that says so, nothing else."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import datasets
import pytest
import torch

from analyses.command_line.options import options_of
from analyses.data import ImageData, as_data, load_data
from analyses.probes.classifier_heads import ready_for_head
from analyses.running.catalogue import get_analysis, in_source
from analyses.running.results import Result
from hooked_vit import HookedViT
from tests.analyses import everything
from tests.analyses.everything import CLASSES, MODEL, SMALL, asked
from tests.interventions.cases import unchecked_types

COMMANDS = [name for name, source in in_source().items() if source.is_command]
EXCHANGE = (
    *("causality-vs-decodability", "cls-causality", "head-ablation", "intervention-sweep", "register-controls"),
    *("registers", "restoration"),
)
PROBES = (
    *(name for name in EXCHANGE if name != "intervention-sweep"),
    "cls-attention",
    "decodability",
    "low-frequency",
    "lenses",
)
EXTRA = ("mask", "pair", "count", "removed")
N = 24


@cache
def scenes() -> Any:
    """Two dozen scenes and all their columns."""
    return next(load_data("scenes:test", n=N).batches(N, extra=EXTRA))


def chosen(places: list[int], labels: list[int] | None = None) -> ImageData:
    """Some of the scenes, under labels of their own or others."""
    batch = scenes()
    told = [int(batch.labels[i]) for i in places] if labels is None else labels
    extra = {column: [batch.extra[column][i] for i in places] for column in EXTRA}
    return as_data(datasets.Dataset.from_dict({"image": [batch.images[i] for i in places], "label": told, **extra}))


def one_of_each() -> ImageData:
    """One scene of every digit there is among them."""
    return chosen([*{label: i for i, label in enumerate(scenes().labels.tolist())}.values()])


BAD = {
    "one class": lambda: chosen([*range(N)], [3] * N),
    "one image per class": one_of_each,
    "one image": lambda: chosen([0]),
    "two images": lambda: chosen([0, 1], [0, 1]),
    "two of one class": lambda: chosen([0, 1], [0, 0]),
}


def run(name: str, data: ImageData, model: HookedViT | None = None, **more: Any) -> Result:
    entry = get_analysis(name)
    takes = inspect.signature(entry.run).parameters
    small = {option.name: SMALL[option.name] for option in options_of(entry.run) if option.name in SMALL}
    parts = {"parts": ("class-projection",)} if "parts" in takes else {}
    told = {**small, "batch_size": 8, **parts, **{name: value for name, value in more.items() if name in takes}}
    return entry.run({MODEL: model if model and entry.zoo_target == "label" else asked(entry)}, data, **told)


def said(result: Result) -> list[str]:
    """Every sentence of a result, each once and none of a number that is not there."""
    meta = result.meta
    sentences = [*meta.get("summary", []), *meta["notes"], *meta["small"], *meta.get("corrected", [])]
    assert len(set(sentences)) == len(sentences)
    assert not [sentence for sentence in sentences if re.search(r"\b(nan|inf|None)\b|\(\('", sentence)]
    assert not [sentence for sentence in sentences if sentence.startswith("ridge probes of")], "of which model?"
    return sentences


@cache
def divided() -> tuple[HookedViT, list[int]]:
    """A model whose answers to the scenes are of many classes, and these."""
    model = ready_for_head(everything.model())
    features = model(model.preprocess(scenes().images)).detach()
    centred = features - features.mean(0)
    weight = torch.randn(len(CLASSES), features.shape[1], generator=torch.Generator().manual_seed(3))
    weight = weight @ torch.linalg.pinv(torch.cov(centred.T))
    weight = weight / weight.norm(dim=1, keepdim=True)
    model.set_head_(weight, -weight @ features.mean(0), tuple(CLASSES), "a head of random directions")
    return model, model(model.preprocess(scenes().images)).argmax(-1).tolist()


def fit() -> dict[str, ImageData]:
    data = load_data("scenes:train", n=30)
    return {"fit_data": data}


@pytest.fixture(autouse=True)
def _as_users_run_it() -> Iterator[None]:
    """What is annotated is checked where each analysis is tested; here it would take half of the time."""
    with unchecked_types():
        yield


@pytest.mark.parametrize("name", COMMANDS)
def test_bad_data_end_in_a_sentence_or_in_numbers_that_are_none_too_many(name: str) -> None:
    for what, make in BAD.items():
        data = make()
        for more in ({}, fit()) if name in PROBES else ({},) if name != "counting" or what == "two images" else ():
            try:
                result = run(name, data, **more)
            except ValueError as refusal:
                refused = str(refusal)
            else:
                assert name not in EXCHANGE or what in ("one image per class", "two images"), (what, "was not refused")
                assert len(result.frame), what
                assert said(result), what
                continue
            assert " " in refused, what
            assert "\n" not in refused, what


@pytest.mark.parametrize("shift", [0, 1], ids=["all right", "all wrong"])
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "counting"])
def test_a_model_that_is_always_right_or_never_ends_in_numbers_and_pictures(name: str, shift: int) -> None:
    """Nobody is wrong, or right, to compare with: that is no crash, no width of zero, and no NaN in a sentence."""
    model, answers = divided()
    result = run(name, chosen([*range(N)], [(a + shift) % len(CLASSES) for a in answers]), model, **fit())
    said(result)
    rows = result.frame
    if "accuracy" in set(rows.get("measure", ())):
        whole = rows[(rows.measure == "accuracy") & (rows.value == 1 - shift) & (rows.n == N)]
        assert (whole.low < whole.high).all()
    entry = get_analysis(name)
    for draw in ([entry.figure] if entry.figure else []) + list(entry.figures(result).values()):
        draw(result)


@pytest.mark.parametrize("name", EXCHANGE)
def test_images_in_the_order_of_their_labels_are_refused_where_tokens_are_exchanged(name: str) -> None:
    order = sorted(range(N), key=lambda i: i % 3)
    with pytest.raises(ValueError, match="batches have to mix classes"):
        run(name, chosen(order, [i % 3 for i in order]), **fit())
    rows = datasets.Dataset.from_dict({"image": [scenes().images[i] for i in order], "label": [i % 3 for i in order]})
    flowing = as_data(rows.cast_column("label", datasets.ClassLabel(names=CLASSES)).to_iterable_dataset())
    named = everything.scenes("train", 30)
    with pytest.raises(ValueError, match="batches have to mix classes"):
        run(name, flowing, fit_data=named)


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_is_not_asked_about_classes_it_cannot_know(name: str) -> None:
    with pytest.raises(ValueError, match="none of the . that are measured is among the . of|at least 2 classes"):
        run(name, one_of_each(), lens_images=20)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "counting"])
def test_the_same_photo_under_two_names_is_counted_and_never_on_both_sides(name: str) -> None:
    twice = chosen([*range(N), 0, 1])
    result = run(name, twice, **fit())
    parts = result.meta["parts"].values() if "parts" in result.meta else [{"meta": result.meta}]
    assert [part["meta"]["data"]["duplicates"] for part in parts] == [2] * len(parts)
    assert any("2 images are copies of others, to the pixel" in note for note in result.meta["notes"])
    if "fit_data" in inspect.signature(get_analysis(name).run).parameters and name in PROBES:
        with pytest.raises(ValueError, match="probes are measured on images they were not fitted on"):
            run(name, twice, fit_data=chosen([1, 2, 3]))
