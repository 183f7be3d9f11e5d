"""A ridge head reads what the checkpoint reads, or what was asked for, and the result says which."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.linear_model import Ridge

import analyses
from analyses import cls_causality, intervention_sweep, register_controls, register_neurons, with_ridge_head
from analyses.data import as_data
from analyses.probes.classifier_heads import fit_head, own_head, ready_for_head
from analyses.questions.patching.paths import Receiver
from analyses.running.results import Result
from hooked_vit import HookedViT
from hooked_vit.errors import NoHeadError
from interventions import shuffle_cls
from tests.analyses.questions.cls_use.test_cls_causality import coloured, model, values
from tests.tiny import CLASSES, make, pixels, tiny

OTHER = CLASSES + 2
"""More classes than the tiny heads know, so that a ridge head is fitted."""

# what a ridge head reads of a checkpoint with a classifier is what that reads; of one without, what its family's does
READ = {
    "vit": (("cls",), "tokens"),
    "vit-model": (("cls",), "tokens"),
    "beit-cls-none": (("cls",), "tokens"),
    "beit-mean-both": (("patches",), "pooled"),
    "beit-model-cls": (("cls",), "tokens"),
    "beit-model": (("patches",), "pooled"),
    "beit-masked": (("cls",), "tokens"),
    "data2vec-cls": (("cls",), "tokens"),
    "data2vec": (("patches",), "pooled"),
    "deit": (("cls",), "tokens"),
    "deit-model": (("cls",), "tokens"),
    "deit-teacher": (("cls", "dist"), "tokens"),
    "dinov2": (("cls", "patches"), "tokens"),
    "dinov2-model": (("cls", "patches"), "tokens"),
    "clip-classifier": (("patches",), "none"),
    "clip-full": (("patches",), "none"),
    "siglip": (("patches",), "tokens"),
    "timm-avg": (("patches",), "pooled"),
}


@pytest.mark.parametrize("name", READ)
def test_a_ridge_head_reads_what_the_checkpoint_reads(name: str) -> None:
    ready = ready_for_head(tiny(name)[1])
    assert (ready.cfg.sources, ready.cfg.final_norm) == READ[name]
    assert ready.cfg.is_feature_model


@pytest.mark.parametrize("name", ["beit-cls-none", "deit-teacher", "timm-map", "clip-classifier", "timm-avg"])
def test_its_input_is_the_input_of_the_classifier_there_was(name: str) -> None:
    ours = tiny(name)[1]
    x = pixels(ours)
    pooled = ours.run_with_cache(x, names_filter="hook_pooled")[1]["hook_pooled"]
    torch.testing.assert_close(ready_for_head(ours)(x), pooled, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["dinov2-model", "clip-full", "beit-mean-both", "siglip"])
def test_a_readout_that_was_set_stays(name: str) -> None:
    mine = make(name)
    mine.set_readout_(sources=("cls",) if mine.cfg.has_cls else ("patches",), final_norm="none")
    ready = ready_for_head(mine)
    assert (ready.cfg.sources, ready.cfg.final_norm) == (mine.cfg.sources, "none")
    assert torch.equal(ready(pixels(mine)), mine(pixels(mine)))


def test_shuffling_cls_costs_a_cls_pooled_beit_with_a_ridge_head_what_it_must() -> None:
    """Behind the last block every answer is another image's: the floor over all orders, not the clean accuracy."""
    run = cls_causality({"beit": model("beit-cls-none")}, coloured(60, 1), fit_data=coloured(150, 2), head="ridge")
    assert run.meta["read"]["beit"].endswith(" on cls behind the final norm")
    assert values(run, "beit", "shuffled", 1).max() < values(run, "beit", "clean").iloc[0] - 0.2


def test_both_readouts_of_clip_stand_in_one_result() -> None:
    """The mean patch of its family's classifier, which CLS cannot matter to at the end, and its own projected CLS."""
    data, fit_data = coloured(60, 1), coloured(150, 2)
    run = cls_causality({"clip": model("clip-full")}, data, fit_data=fit_data, reads=("auto", "own"), seeds=1)
    assert list(run.frame.model.unique()) == ["clip", "clip (own)"]
    assert run.meta["read"]["clip"].endswith(" on the mean of the patches, without a norm")
    assert run.meta["read"]["clip (own)"].endswith(", behind the projection) on cls behind the final norm")
    assert values(run, "clip", "shuffled", 1).tolist() == values(run, "clip", "clean").tolist()
    assert values(run, "clip (own)", "shuffled", 1).iloc[0] < values(run, "clip (own)", "clean").iloc[0]


def test_a_head_behind_the_projection_is_scikit_learns_ridge_on_the_embedding() -> None:
    mine, data = model("clip-full"), coloured(80, 2)
    (batch,) = data.batches(80)
    x = mine.preprocess(batch.images)
    with torch.no_grad():
        embedding, logits = mine(x).double(), fit_head("clip", mine, data, CLASSES, 80, "own").model(x)
        alpha = float(fit_head("clip", mine, data, CLASSES, 80, "own").note.partition("penalty ")[2].split(",")[0])
    targets = 2.0 * torch.nn.functional.one_hot(batch.labels, CLASSES) - 1
    theirs = Ridge(alpha=alpha).fit(embedding.numpy(), targets.numpy()).predict(embedding.numpy())
    torch.testing.assert_close(logits.double(), torch.from_numpy(theirs), atol=1e-4, rtol=0)


def test_tokens_by_name_and_what_there_is_not() -> None:
    assert ready_for_head(tiny("clip-classifier")[1], "cls").cfg.sources == ("cls",)
    assert ready_for_head(tiny("registers")[1], "cls+registers").cfg.sources == ("cls", "registers")
    with pytest.raises(ValueError, match=r"of those there are \(cls, patches\); got 'dist'"):
        cls_causality({"vit": model("vit")}, coloured(20, 1), reads=("auto", "dist"))
    with pytest.raises(ValueError, match="a head reads something"):
        cls_causality({"vit": model("vit")}, coloured(20, 1), reads=())
    with pytest.raises(ValueError, match="under a name of its own"):
        cls_causality({"vit": model("vit"), "vit (cls)": model("vit")}, coloured(20, 1), reads=("auto", "cls"))


def test_one_call_gives_a_model_the_head_that_analyses_fit() -> None:
    mine, data, fit_data = model("dinov2-model"), coloured(40, 1, OTHER), coloured(100, 2, OTHER)
    headed = with_ridge_head(mine, fit_data)
    assert (mine.cfg.is_feature_model, headed.cfg.n_classes) == (True, OTHER)
    inside = intervention_sweep({"m": mine}, data, fit_data=fit_data)
    outside = intervention_sweep({"m": headed}, data)
    assert inside.frame.equals(outside.frame)
    assert inside.meta["read"] == outside.meta["read"]
    assert inside.meta["read"]["m"].startswith("a ridge head (fitted on 100 images, penalty ")
    assert inside.meta["models"]["m"]["head_fitted"]
    assert analyses.with_ridge_head is with_ridge_head


def test_a_head_is_not_asked_about_the_images_it_was_fitted_on() -> None:
    fit, others = coloured(40, 2, OTHER), coloured(30, 1, OTHER)
    headed = with_ridge_head(model("dinov2-model"), fit)
    pictures = [p for data in (others, fit) for batch in data.batches(40) for p in batch.images]
    mixed = as_data((pictures[:31], [*others.labels.tolist(), int(fit.labels[0])]))
    for asked in (headed, headed.shared_copy()):
        for run in (
            lambda asked=asked: intervention_sweep({"m": asked}, mixed, interventions=[shuffle_cls(layer=0)]),
            lambda asked=asked: cls_causality({"m": asked}, mixed, fit_data=coloured(40, 3, OTHER), seeds=1),
            lambda asked=asked: own_head(asked, fit),
        ):
            with pytest.raises(ValueError, match=r"has the pixels of an image that the head of this model was fitted"):
                run()
    assert intervention_sweep({"m": headed}, others, interventions=[shuffle_cls(layer=0)]).frame.n.max() == 30
    headed.set_head_(torch.zeros(OTHER, headed.cfg.d_pooled), torch.zeros(OTHER))
    assert intervention_sweep({"m": headed}, mixed, interventions=[shuffle_cls(layer=0)]).frame.n.max() == 31


def test_whose_head_it_is_goes_with_the_model() -> None:
    mine = make("vit")
    assert mine.cfg.head_set is None
    mine.set_head_(torch.zeros(3, 32), torch.zeros(3))
    assert mine.cfg.head_set == "a head that was set"
    mine.set_readout_(sources=("cls", "patches"))
    assert (mine.cfg.head_set, mine.cfg.readout_set) == (None, True)


def test_who_needs_a_head_and_cannot_fit_one_says_how_to_get_it() -> None:
    """They are given pairs of pictures, without labels."""
    headless: HookedViT = tiny("vit-model")[1]
    pair = pixels(headless, n=1), pixels(headless, n=1, seed=1)
    for ask in (
        lambda: analyses.activation_patching(headless, *pair),
        lambda: analyses.attribution_patching(headless, *pair),
        lambda: analyses.path_patching(headless, *pair, receiver=Receiver("logits")),
        lambda: analyses.circuit_discovery(headless, *pair),
        lambda: analyses.aligned_subspace(headless, *pair, layer=0, dims=1),
        lambda: analyses.logit_attribution(headless, pair[0]),
    ):
        with pytest.raises(NoHeadError, match=r"no classifier|has none.*with_ridge_head"):
            ask()
    own = analyses.activation_patching(headless, *pair, metric=lambda features, reference: features[:, 0], layers=[0])
    assert own.meta["read"] == {"model": "its features: cls behind the final norm"}


@pytest.mark.parametrize("ask", [register_controls, register_neurons, cls_causality])
def test_a_head_that_was_fitted_is_what_was_read(ask: Callable[..., Result]) -> None:
    """Not the features of the model that came without one."""
    few = {"seeds": 1, "neurons": 1, "calibration": 8}
    few = {name: value for name, value in few.items() if name in inspect.signature(ask).parameters}
    run = ask({"m": model("vit-model")}, coloured(20, 1), fit_data=coloured(40, 2), **few)
    assert run.meta["models"]["m"]["head_fitted"]
    assert run.meta["read"]["m"].startswith("a ridge head (fitted on 40 images")


@pytest.mark.parametrize(("ask", "reads"), [(register_controls, "cls"), (cls_causality, ("auto", "own"))])
def test_its_own_head_reads_nothing_else(ask: Callable[..., Result], reads: Any) -> None:
    with pytest.raises(ValueError, match="a model's own head reads what it reads; head='own' and 'cls' of|'own' of"):
        ask({"m": model("vit")}, coloured(20, 1), reads=reads, head="own")
