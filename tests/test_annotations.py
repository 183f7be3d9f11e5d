"""Annotations are checked while tests run: those of functions in modules and of methods, and no others."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

import analyses
import interventions
from analyses.questions.signal.few_shot_transfer.transfer_study import matched_cls
from hooked_vit import HookedViT
from tests.tiny import tiny


def test_a_wrong_shape_and_a_wrong_type_are_refused_by_the_annotation():
    _, model = tiny("vit")
    with pytest.raises(jaxtyping.TypeCheckError, match="pixels"):
        model.embed(torch.zeros(2, 3))
    with pytest.raises(jaxtyping.TypeCheckError, match="n"):
        analyses.load_data("scenes:test", n="many")


def test_every_package_is_checked_and_nothing_inside_a_function_is():
    """What stands inside one is made anew at each call, and its checks would be compiled anew each time."""
    for public in (HookedViT.forward, interventions.apply, analyses.load_data):
        assert public.__wrapped__.__code__ is not public.__code__

    @jaxtyping.jaxtyped(typechecker=None)
    def inner(x: int) -> int:
        return x

    assert inner.__code__.co_filename == __file__


def test_a_name_is_one_size_throughout_a_call():
    with pytest.raises(jaxtyping.TypeCheckError, match="size of dimension d is 3"):
        matched_cls(torch.zeros(2), torch.zeros(3), seed=0)
