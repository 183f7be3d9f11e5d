"""What docs/precision.md is written from: its rows are there, and halves are as far off as their digits say."""

from __future__ import annotations

import pytest
import torch

from hooked_vit import architectures
from tests import precision
from tests.tiny import FAMILIES

# half of the last place of a number near 1
PLACE = {"bfloat16": 2**-9, "float16": 2**-12, precision.AUTOCAST: 2**-9}


def test_the_page_has_every_family_in_every_way():
    """Where it has not, `python -m tests.precision` writes it anew."""
    found = precision.families_on(precision.PAGE.read_text(encoding="utf-8"))
    assert found == {(family, way) for family in architectures.registered() for way in precision.WAYS}


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_are_of_the_size_that_the_digits_say(family):
    """In every way the family computes, and far from float32 by some last places: neither none nor many."""
    for way, place in PLACE.items():
        found = precision.of_tiny(family, way)
        assert 0.1 * place < found.errors.mean < 20 * place, way
        assert found.errors.mean < found.errors.largest
        assert found.errors.same_order > 0.95


def test_errors_of_known_outputs():
    full = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    assert precision.errors(full, full) == (0.0, 0.0, 1.0, 1.0)
    swapped = torch.tensor([[0.0, 2.0, 1.0], [2.0, 1.0, 0.0]])
    spread = float(full.double().std())
    assert precision.errors(swapped, full) == pytest.approx((1 / spread, 2 / 6 / spread, 1 / 2, 5 / 6))
