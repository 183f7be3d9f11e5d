"""Every analysis that goes through layers can be asked for some, and then gives the numbers it gives among all."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import pandas as pd
import pytest
import torch
import transformers

from analyses.running.catalogue import Analysis, registered_analyses
from analyses.running.models import default_models, load_model
from analyses.running.results import Result
from hooked_vit import HookedViT
from tests.analyses.everything import arguments, scenes

COMMANDS = {name: entry for name, entry in registered_analyses().items() if entry.is_command}
ASKED = (-1, 1)
MEASURED = (1, 3)
OF_NO_LAYER: dict[str, str] = {
    "few-shot-transfer": "prototypes are made of tokens behind the last block and the final norm alone",
    "register-controls": "tokens are replaced behind every block at once, and no number is of one",
    "intervention-sweep": "layers are those of the interventions it is given",
}
"""Analyses with no layers to choose from, and why."""
NOT_YET = {
    "attention-knockouts",
    "causality-vs-decodability",
    "class-embedding",
    "class-projection",
    "class-values",
    "context-tokens",
    "counting",
    "decodability",
    "gradient-explanations",
    "head-ablation",
    "head-words",
    "key-values",
    "lenses",
    "perturbation-tests",
    "register-neurons",
    "residual-updates",
    "restoration",
    "token-removal",
}
ANOTHER_DEFAULT = ("random-readouts", "sparse-features")
"""They measure some layers unless told which, so all of them have to be named."""
OVER_LAYERS: dict[str, tuple[str, ...]] = {
    "cls-attention": ("contrast",),  # differences of means over the early, middle and late layers that were measured
}
"""Measures whose rows without a layer are of all layers that were measured."""


@cache
def model() -> HookedViT:
    """Four blocks, a class for every digit."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        **{"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24},
        **{"image_size": 48, "patch_size": 16, "id2label": {i: str(i) for i in range(10)}},
    )
    net = HookedViT.from_hf(transformers.ViTForImageClassification(config).eval())
    net.processor = transformers.ViTImageProcessorPil(size={"height": 48, "width": 48})
    return net


def asked(entry: Analysis) -> HookedViT:
    """Where an analysis compares counts, a model that can count."""
    return model() if entry.zoo_target == "label" else load_model(default_models(entry.zoo_target)[0])


def run(name: str, **options: Any) -> Result:
    entry = COMMANDS[name]
    return entry.run({"tiny": asked(entry)}, scenes(), **arguments(entry) | options)


def takes_layers(name: str) -> bool:
    return "layers" in inspect.signature(COMMANDS[name].run).parameters


def test_every_analysis_is_asked_for_layers_or_has_none_to_choose_from() -> None:
    assert {name for name in COMMANDS if not takes_layers(name)} == OF_NO_LAYER.keys() | NOT_YET


@pytest.mark.parametrize("name", [name for name in COMMANDS if takes_layers(name)])
def test_some_layers_alone_have_the_numbers_they_have_among_all(name: str) -> None:
    every = {"layers": tuple(range(asked(COMMANDS[name]).cfg.n_layers))} if name in ANOTHER_DEFAULT else {}
    whole, some = run(name, **every), run(name, layers=ASKED)
    deep = asked(COMMANDS[name]).cfg.n_layers
    chosen = sorted(layer % deep for layer in ASKED)
    frame = some.frame
    assert sorted(frame["layer"].dropna().unique()) == chosen
    of_all = frame["layer"].isna() & frame.get("measure", pd.Series("", frame.index)).isin(OVER_LAYERS.get(name, ()))
    expected = whole.frame[whole.frame["layer"].isin(chosen) | whole.frame["layer"].isna()]
    of_all_there = expected["layer"].isna() & expected.get("measure", pd.Series("", expected.index)).isin(
        OVER_LAYERS.get(name, ())
    )
    pd.testing.assert_frame_equal(
        frame[~of_all].reset_index(drop=True), expected[~of_all_there].reset_index(drop=True), rtol=0, atol=1e-6
    )
    assert [n for n in some.meta["notes"] if n.startswith("Only layers -1, 1 were measured")]
    for draw in COMMANDS[name].figures(some).values():
        draw(some)


@pytest.mark.parametrize("name", [name for name in COMMANDS if takes_layers(name)])
@pytest.mark.parametrize(("layers", "said"), [((40,), "tiny: layers are 0 to"), ((), "no layer is named")])
def test_layers_there_are_not_are_refused_before_any_image_is_read(
    name: str, layers: tuple[int, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyses.data.ImageData.batches", lambda *_, **__: pytest.fail("images were read"))
    with pytest.raises(ValueError, match=said):
        run(name, layers=layers)
