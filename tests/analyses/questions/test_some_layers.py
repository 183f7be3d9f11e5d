"""Every analysis that goes through layers can be asked for some, and then gives the numbers it gives among all."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from analyses.running.catalogue import Analysis, registered_analyses
from analyses.running.models import default_models, load_model
from analyses.running.results import Result
from hooked_vit import HookedViT
from interventions import shuffle_cls
from tests.analyses.everything import arguments, scenes
from tests.interventions.cases import unchecked_types

COMMANDS = {name: entry for name, entry in registered_analyses().items() if entry.is_command}
ASKED = (-1, 1)
OF_NO_LAYER: dict[str, str] = {
    "few-shot-transfer": "prototypes are made of tokens behind the last block and the final norm alone",
    "register-controls": "tokens are replaced behind every block at once, and no number is of one",
    "intervention-sweep": "layers are those of the interventions it is given",
    "perturbation-tests": "an order of importance is of the whole network, whose maps and ranks are summed in it",
}
"""Analyses with no layers to choose from, and why."""
ANOTHER_DEFAULT = ("attention-knockouts", "random-readouts", "sparse-features", "token-removal")
"""They measure some layers unless told which, so all of them have to be named."""
OVER_LAYERS: dict[str, tuple[str, ...]] = {
    # maps are of the heads of these layers; what all others add to the answer is one more contribution
    "head-words": ("contribution", "map", "on_object"),
    "cls-attention": ("contrast",),  # differences of means over the early, middle and late layers that were measured
    "gradient-explanations": ("attention", "map", "on_object", "other_class"),  # the global map is a sum over layers
    # correlations over the heads there are, and so many of these ablated together
    "head-ablation": (
        *("stability", "seed_agreement", "way_agreement", "effect_agreement"),
        *("together_drop", "together_accuracy"),
    ),
}
"""Measures whose rows without a layer are of all layers that were measured."""
CLEAREST = ("promoted_class", "top_image")
"""Of the layer with the greatest agreement."""
AMONG_LAYERS: dict[str, tuple[str, ...]] = {
    "gradient-explanations": ("strength",),  # a share of what the layers have together
    "class-values": CLEAREST,
    "class-embedding": CLEAREST,
}
"""Measures whose rows with a layer depend on which others were measured."""
COLUMN = {
    "restoration": ("shuffled_layer", 0),
    "counting": ("depth", 1),  # 0 is in front of the first block
}
"""In which column a layer stands where that is another than `layer`, and what layer 0 is called there."""
READ_FROM = {"restoration": "probe_layer"}
"""Layers that are read behind those asked for: all, from the first of these on."""


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


def by_layer(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    column, first = COLUMN.get(name, ("layer", 0))
    return frame.assign(layer=frame[column] - first)


def takes_layers(name: str) -> bool:
    return "layers" in inspect.signature(COMMANDS[name].run).parameters


def test_every_analysis_is_asked_for_layers_or_has_none_to_choose_from() -> None:
    assert {name for name in COMMANDS if not takes_layers(name)} == OF_NO_LAYER.keys()


@pytest.mark.parametrize("name", [name for name in COMMANDS if takes_layers(name)])
def test_some_layers_alone_have_the_numbers_they_have_among_all(name: str) -> None:
    every = {"layers": tuple(range(asked(COMMANDS[name]).cfg.n_layers))} if name in ANOTHER_DEFAULT else {}
    whole, some = run(name, **every), run(name, layers=ASKED)
    deep = asked(COMMANDS[name]).cfg.n_layers
    chosen = sorted(layer % deep for layer in ASKED)
    found, among_all = (by_layer(name, result.frame) for result in (some, whole))
    if name in READ_FROM:
        among_all = among_all[(among_all[READ_FROM[name]] >= chosen[0]).fillna(True)]
    check_rows(name, found, among_all, chosen)
    assert some.meta["layers"] == list(ASKED)
    assert [n for n in some.meta["notes"] if n.startswith("Only layers -1, 1 were measured")]
    some.figure()
    for draw in COMMANDS[name].figures(some).values():
        draw(some)


def check_rows(name: str, some: pd.DataFrame, whole: pd.DataFrame, chosen: list[int]) -> None:
    """The rows of some layers are those they are among all, and the rows without a layer are the same."""
    assert sorted(some["layer"].dropna().unique()) == chosen
    among = whole[whole["layer"].isin(chosen) | whole["layer"].isna()]
    found, expected = (rows[~_of_the_layers(name, rows)].reset_index(drop=True) for rows in (some, among))
    corrected = [rows.get("p_adjusted", pd.Series(dtype=float)) for rows in (found, expected)]
    pd.testing.assert_frame_equal(_uncorrected(found), _uncorrected(expected), rtol=0, atol=1e-6)
    _check_corrected(found.get("p"), *corrected)


def _of_the_layers(name: str, rows: pd.DataFrame) -> pd.Series:
    """Rows that say something of all layers that were measured."""
    measure = rows.get("measure", pd.Series("", rows.index))
    over = rows["layer"].isna() & measure.isin(OVER_LAYERS.get(name, ()))
    return over | measure.isin(AMONG_LAYERS.get(name, ()))


def _uncorrected(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.drop(columns="p_adjusted", errors="ignore")


def _check_corrected(p: pd.Series | None, some: pd.Series, among_all: pd.Series) -> None:
    """Holm's correction is for the layers that are tested: above the p-value itself, and not above that for all."""
    assert some.isna().equals(among_all.isna())
    if p is not None and some.notna().any():
        tested = some.notna()
        assert (p[tested] - 1e-9 <= some[tested]).all()
        assert (some[tested] <= among_all[tested] + 1e-9).all()


@pytest.mark.parametrize("name", [name for name in COMMANDS if takes_layers(name)])
@pytest.mark.parametrize(("layers", "said"), [((40,), "tiny: layers are 0 to"), ((), "no layer is named")])
def test_layers_there_are_not_are_refused_before_any_image_is_read(
    name: str, layers: tuple[int, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyses.data.ImageData.batches", lambda *_, **__: pytest.fail("images were read"))
    with pytest.raises(ValueError, match=said):
        run(name, layers=layers)


def test_layers_are_whole_numbers_of_any_kind() -> None:
    plain = run("decodability", layers=(1, 3), roles=("cls",))
    with unchecked_types():  # annotations say what is usual
        for layers in (np.array([1, 3]), range(1, 4, 2), [np.int64(1), -1]):
            same = run("decodability", layers=layers, roles=("cls",))
            pd.testing.assert_frame_equal(same.frame, plain.frame)
            assert same.meta["layers"] == [int(layer) for layer in layers]
        for layers in (3, np.int64(3)):
            assert run("class-embedding", layers=layers, parts=("class-projection",)).meta["layers"] == [3]
    with pytest.raises(TypeError, match="layers is a whole number"):
        run("decodability", layers=(True,), roles=("cls",))


def test_only_what_is_done_is_asked_for_and_said() -> None:
    """Of an intervention of one's own, which may be defined behind no other layer."""
    own = run("cls-causality", layers=(3,), disturb=lambda layer: {3: shuffle_cls(layer=3, seed=0)}[layer])
    assert own.meta["interventions"] == ["shuffle_cls(layer=…)", "readout(source='cls')"]
    assert run("cls-causality", layers=(1, 3)).meta["interventions"] == own.meta["interventions"]
