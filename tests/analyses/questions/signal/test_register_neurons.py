"""A neuron that is built to make an outlier is found, and moving it takes the outlier away; random neurons do not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from analyses import Result
from analyses.data import ImageData, as_data
from analyses.questions.signal.register_neurons.register_neurons import register_neurons
from analyses.running.catalogue import get_analysis
from hooked_vit import HookedViT
from interventions import ablate_neurons, add_registers, apply
from tests.tiny import CLASSES, IMAGE, make_hf, processor_of

PLANTED, NEURON = 5, 7  # the patch whose token becomes an outlier, and the neuron of block 0 that makes it one
FAMILIES = ("vit", "registers", "clip-classifier", "deit-teacher")


def pictures(n: int, seed: int) -> ImageData:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % CLASSES)
    images = [Image.fromarray(rng.integers(0, 255, (IMAGE, IMAGE, 3), np.uint8)) for _ in labels]
    return as_data((images, labels.tolist()))


@torch.no_grad()
def planted(name: str, **changes: int) -> HookedViT:
    """At one position the embedding points along a direction; the neuron fires there alone, and writes a large norm."""
    model = HookedViT.from_hf(make_hf(name, **changes), processor=processor_of((IMAGE, IMAGE)))
    block, along = model.blocks[0], torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    along = (along - along.mean()) / (along - along.mean()).norm()
    n_embedded = model.pos_embed.weight.shape[-2] - model.cfg.grid[0] * model.cfg.grid[1]
    model.pos_embed.weight[..., n_embedded + PLANTED, :] += 12 * along
    block.ln2.weight.fill_(1)
    block.ln2.bias.zero_()
    block.mlp.fc_in.weight[NEURON] = 8 * along
    block.mlp.fc_in.bias[NEURON] = -16
    block.mlp.fc_out.weight[:, NEURON] = 30 * torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture(scope="module")
def result() -> Result:
    models = {name: planted(name) for name in FAMILIES}
    return register_neurons(
        models, pictures(20, 1), fit_data=pictures(30, 2), neurons=1, n_registers=2, calibration=20, batch_size=10
    )


def value(result: Result, name: str, measure: str, variant: str, **where: object) -> float:
    rows = result.frame.query("model == @name and measure == @measure and variant == @variant")
    for column, wanted in where.items():
        rows = rows[(rows[column] == wanted).fillna(False)]
    return float(rows.value.mean())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_neuron_is_found_and_moved(result: Result, name: str) -> None:
    about = result.meta["models"][name]
    assert about["neurons"] == [[0, NEURON]]
    assert about["has_outliers"]
    norms = {v: value(result, name, "largest_norm", v, layer=0) for v in result.frame.variant.dropna().unique()}
    assert norms["untouched"] > 3 * norms["register neurons"]
    assert norms["register neurons"] == pytest.approx(norms["switched off"], rel=0.2)
    assert norms["random neurons"] == pytest.approx(norms["untouched"], rel=0.2)
    assert norms["empty token"] == pytest.approx(norms["untouched"], rel=0.2)
    # what the patch loses the added token has
    variants = ("register neurons", "random neurons", "empty token")
    added = {v: value(result, name, "token_norm", v, token="inserted", layer=0) for v in variants}
    assert added["register neurons"] > 3 * max(added["random neurons"], added["empty token"])


def test_rows_are_those_of_a_separate_run(result: Result) -> None:
    model = planted("vit")
    (batch,) = pictures(20, 1).batches(20)
    pixels = model.preprocess(batch.images)
    (clean,) = pictures(30, 2).batches(30)
    for variant, edit in (
        ("register neurons", add_registers([(0, NEURON)], n=2)),
        ("switched off", ablate_neurons(0, [NEURON], tokens="patches")),
    ):
        with torch.no_grad(), apply(model, edit):
            _, cache = model.run_with_cache(pixels, names_filter="blocks.1.hook_resid_post")
        norms = cache.at("blocks.1.hook_resid_post", tokens="patches").double().norm(dim=-1)
        with torch.no_grad():
            _, cache = model.run_with_cache(
                model.preprocess(clean.images[:20]), names_filter="blocks.1.hook_resid_post"
            )
        median = np.median(cache.at("blocks.1.hook_resid_post", tokens="patches").double().norm(dim=-1).numpy())
        want = float(norms.amax(1).mean()) / median
        assert value(result, "vit", "largest_norm", variant, layer=1) == pytest.approx(want, rel=1e-5)


def test_every_variant_is_measured_on_every_image(result: Result) -> None:
    rows = result.frame[result.frame.measure.isin(["accuracy", "probe", "largest_norm"])]
    assert (rows.n == 20).all()
    draws = rows[rows.measure == "accuracy"].groupby(["model", "variant"]).size().unstack()
    assert (draws["random neurons"] == 2).all()
    assert (draws.drop(columns="random neurons") == 1).all(axis=None)
    probes = rows[(rows.measure == "probe") & (rows.model == "registers")].groupby("variant").token.agg(set)
    assert probes["untouched"] == {"cls", "registers", "patches"}
    assert probes["register neurons"] == {"cls", "registers", "patches", "inserted"}


def test_a_model_without_outliers_says_so() -> None:
    model = HookedViT.from_hf(make_hf("vit"), processor=processor_of((IMAGE, IMAGE)))
    told = register_neurons(
        {"vit": model}, pictures(20, 1), fit_data=pictures(30, 2), cutoff=1e6, neurons=2, seeds=1, calibration=10
    )
    assert not told.meta["models"]["vit"]["has_outliers"]
    assert any("no patch is an outlier by this rule" in note for note in told.meta["notes"])
    assert (told.frame[told.frame.measure == "outlier_share"].value == 0).all()
    assert len(told.meta["models"]["vit"]["neurons"]) == 2


@pytest.mark.parametrize("layers", [(0,), (-1,), (1, -1)])
def test_some_layers_leave_the_neurons_as_they_are_and_probes_to_the_last(layers: tuple[int, ...]) -> None:
    """The neuron is of block 0: of a model of two blocks and one of five, whatever is measured of them."""
    models = {"two": planted("registers"), "five": planted("vit", num_hidden_layers=5)}
    some = register_neurons(
        models, pictures(20, 1), fit_data=pictures(30, 2), neurons=1, calibration=20, batch_size=10, layers=layers
    )
    for name, model in models.items():
        n, about, rows = model.cfg.n_layers, some.meta["models"][name], some.frame[some.frame.model == name]
        measured = {layer % n for layer in layers}
        assert about["neurons"] == [[0, NEURON]]
        assert set(rows.layer.dropna()) == measured
        assert (rows.measure == "probe").any() == (n - 1 in measured)
        assert (rows.measure == "activation").any() == (0 in measured)
        told = " ".join(sentence for sentence in some.meta["summary"] if sentence.startswith(name))
        assert ("a probe reads the class" in told) == (n - 1 in measured)
        assert f"behind layer {about['described']} the largest norm" in told
        assert about["described"] in measured
        assert sum(f"{name}: its neurons were sought in all layers" in note for note in some.meta["notes"]) == 1
        assert all(row["largest_norm"] > 0 for row in some.meta["table"] if row["model"] == name)
    entry = get_analysis("register-neurons")
    _, neurons = (draw(some) for draw in entry.figures(some).values())
    lacking = [note for note in neurons.layout.annotations if note.text == "none in the layers measured"]
    assert len(lacking) == (0 if 0 in layers else 2)
    assert {trace.xaxis for trace in neurons.data} == {"x", "x2"}
    assert entry.figure is not None
    assert len(entry.figure(some).data)


def test_random_neurons_are_others_of_the_same_layers(result: Result) -> None:
    (entry,) = [e for e in [get_analysis("register-neurons")] if e.is_command]
    for draw in (entry.figure, *entry.figures(result).values()):
        assert draw is not None
        draw(result)
    assert pd.DataFrame(result.meta["table"]).groupby("model").size().eq(5).all()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"neurons": 33}, "at most half of a layer's are moved: 32 of vit"),
        ({"neurons": 0}, "neurons is at least 1"),
        ({"n_registers": 0}, "n_registers is at least 1"),
        ({"calibration": 0}, "calibration is at least 1"),
        ({"seeds": 0}, "seeds is at least 1"),
        ({"z": -1.0}, "an outlier's z is above 0"),
        ({"cutoff": 0.0}, "an outlier's cutoff is above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(option: dict, says: str) -> None:
    model = HookedViT.from_hf(make_hf("vit"), processor=processor_of((IMAGE, IMAGE)))
    with pytest.raises(ValueError, match=says):
        register_neurons({"vit": model}, pictures(20, 1), fit_data=pictures(30, 2), **option)
