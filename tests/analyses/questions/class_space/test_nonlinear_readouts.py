"""Class space where the readout is no sum over tokens: what needs scores alone runs, what needs a class's vector says
why it cannot be had."""

from __future__ import annotations

import pytest
import torch

from analyses import (
    attention_knockouts,
    class_embedding,
    class_projection,
    class_values,
    gradient_explanations,
    key_values,
    logit_attribution,
    residual_updates,
)
from analyses.questions.class_space.measures.projection import Rules, check_rules
from hooked_vit import HookedViT, zero_shot_head
from hooked_vit.errors import NonlinearReadoutError
from tests.analyses.questions.class_space.cases import noisy, with_processor
from tests.tiny import Letters, make_hf

READOUTS = {"probe": "a probe attends", "prompts": "its length is divided out"}
SCORES = (class_projection, residual_updates, attention_knockouts)
VECTORS = (class_values, key_values)


@pytest.fixture(scope="module", params=READOUTS)
def case(request: pytest.FixtureRequest) -> tuple[str, HookedViT]:
    if request.param == "probe":
        return request.param, with_processor("timm-map")
    processor = with_processor("vit").processor
    model = zero_shot_head(make_hf("clip-full"), "abcde", tokenizer=Letters(), processor=processor)
    model.cfg = model.cfg.replace(class_names=None)  # the noise has numbers for classes
    return request.param, model


@pytest.mark.parametrize("analysis", SCORES, ids=lambda f: f.__name__)
def test_scores_are_those_of_project(case: tuple[str, HookedViT], analysis) -> None:
    name, model = case
    assert len(analysis({name: model}, noisy(8)).frame)


@pytest.mark.parametrize("analysis", VECTORS, ids=lambda f: f.__name__)
def test_a_vector_per_class_is_refused_with_what_to_use_instead(case: tuple[str, HookedViT], analysis) -> None:
    name, model = case
    before = model.run.n_forwards
    with pytest.raises(NonlinearReadoutError, match=rf"{READOUTS[name]}.*model.project\(x, role\)"):
        analysis({name: model}, noisy(8))
    assert model.run.n_forwards == before


def test_a_logit_is_not_attributed_to_parts_of_the_stream(case: tuple[str, HookedViT]) -> None:
    name, model = case
    before = model.run.n_forwards
    with pytest.raises(NonlinearReadoutError, match=READOUTS[name]):
        logit_attribution(model, torch.zeros(1, 3, *model.cfg.image_size))
    assert model.run.n_forwards == before


def test_the_study_leaves_out_what_needs_a_vector_per_class(case: tuple[str, HookedViT]) -> None:
    name, model = case
    result = class_embedding({name: model}, noisy(8), parts=("class-projection", "key-values"))
    assert set(result.frame.study) == {"class-projection"}
    assert (
        f"key-values: without {name}, which has no vector per class: its readout is no sum over tokens."
        in (result.meta["notes"])
    )


def test_a_gradient_of_class_scores_needs_cls(case: tuple[str, HookedViT]) -> None:
    name, model = case
    if name == "prompts":
        assert len(gradient_explanations({name: model}, noisy(8)).frame)
    else:
        with pytest.raises(ValueError, match="has no CLS token"):
            gradient_explanations({name: model}, noisy(8))


@pytest.mark.parametrize("rules", [Rules(norm=False), Rules(bias=False)], ids=["no norm", "no bias"])
def test_rules_that_take_the_readout_apart_are_refused(case: tuple[str, HookedViT], rules: Rules) -> None:
    with pytest.raises(NonlinearReadoutError, match="head_for needs"):
        check_rules(case[1], rules)
