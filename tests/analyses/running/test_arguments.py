"""What people try first with every analysis: a model without a dictionary, no models, data of another kind."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.running.arguments import FORMER, Range, former_names
from analyses.running.catalogue import get_analysis, in_source, registered_analyses
from analyses.running.registry import analysis
from analyses.running.results import Result
from tests.analyses.everything import asked, model
from tests.tiny import make_hf

COMMANDS = sorted(name for name, source in in_source().items() if source.is_command)
PICTURES = np.zeros((2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("name", COMMANDS)
def test_models_that_are_none(name):
    for models, says in (
        (model(), 'compares models by name: give {"a": model'),
        ([model()], "got a list"),
        ("zoo:vit", "got a str"),
        (None, "got a NoneType"),
        ({}, "at least one model"),
        ({"a": "zoo:vit"}, "a is no HookedViT but a str: HookedViT.from_pretrained"),
        ({"a": make_hf("vit")}, "a is no HookedViT but a ViTForImageClassification"),
        ({"a": None}, "a is no HookedViT but a NoneType"),
        ({3: model()}, "a model's name is a text; got 3"),
        ({"": model()}, "a model's name is a text"),
        ({"a\x1b[2J": model()}, "holds the character"),
        ({"a\ud800": model()}, "is no UTF-8"),
    ):
        if models is None and signature(get_analysis(name).run).parameters["models"].default is None:
            continue  # it chooses its own
        with pytest.raises((TypeError, ValueError)) as caught:
            get_analysis(name).run(models, None)
        assert says in str(caught.value)


@pytest.mark.parametrize("name", COMMANDS)
def test_data_that_are_none(name):
    """Refused in a sentence that says what data are, or what is wrong with these."""
    entry = get_analysis(name)
    for data, says in (
        (3, "data is a datasets.Dataset, a stream, (images, labels) or a spec; got a int"),
        ([], "got a list"),
        ({}, "got a dict"),
        (torch.zeros(2, 3, 48, 48), "got a Tensor"),
        (model(), "got a HookedViT"),
        (b"x", "got a bytes"),
        ("holiday", "data is one of scenes:SPLIT"),
        ("", "data is one of scenes:SPLIT"),
        ("scenes:tset", "train, validation, test"),
        ("imagefolder:/nowhere", "there is no folder"),
        (([], []), "is empty"),
        ((PICTURES, [0]), "every image has a label; got 2 images and 1 labels"),
        ((PICTURES, [0.5, 1.5]), "labels are whole numbers"),
        ((PICTURES, ["a", "b"]), "labels are whole numbers"),
        ((PICTURES, [-1, 0]), "labels start at 0"),
        ((PICTURES, None), "got a tuple"),
        ((1, 2, 3), "got a tuple"),
    ):
        with pytest.raises((TypeError, ValueError, FileNotFoundError)) as caught:
            entry.run({"m": asked(entry)}, data)
        assert says in str(caught.value), data


@pytest.mark.parametrize(("value", "kind"), [(0, int), (11, int), (float("nan"), float), (float("inf"), float)])
def test_a_range_says_what_it_holds(value, kind):
    assert Range(1, 10).fault(value, kind).endswith("number from 1 to 10")
    assert Range(0, 1, above=True).fault(0, float) == "a number above 0 and up to 1"
    assert Range(0, 1, above=True).fault(1, float) is None


# --- one thing has one name, and the former one is taken


@pytest.fixture
def fitting(own_registry: None) -> Callable[..., Result]:
    @analysis
    def fitting(models: object, data: object, *, fit_data: object = None, seeds: int = 1) -> Result:
        """What was given to fit on?"""
        return Result(pd.DataFrame({"seeds": [seeds]}), {"given": fit_data})

    return fitting


def test_the_images_to_fit_on_have_one_name_in_every_analysis() -> None:
    for name, entry in registered_analyses().items():
        takes = signature(entry.run).parameters
        assert not {*FORMER} & {*takes}, name
        assert former_names(entry.run) == ({"probe_data": "fit_data"} if "fit_data" in takes else {}), name


def test_a_former_name_is_taken_with_a_notice(fitting: Callable[..., Result], capsys: pytest.CaptureFixture) -> None:
    models = {"m": model()}
    assert fitting(models, None, fit_data="images").meta["given"] == "images"
    assert "called" not in capsys.readouterr().err
    assert fitting(models, None, probe_data="images").meta["given"] == "images"
    assert "note: probe_data is called fit_data now, on the command line --fit-data" in capsys.readouterr().err
    with pytest.raises(ValueError, match="fit_data is given twice, once as probe_data"):
        fitting(models, None, probe_data=1, fit_data=2)
