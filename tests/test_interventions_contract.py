"""The contract of every registered intervention on every family."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from hooked_vit.components import watched
from interventions import apply, check_intervention, registered
from tests.intervention_cases import CASES, OURS, Setting, cases, setting
from tests.tiny import FAMILIES

EVERY = [(name, family) for name in OURS for family in FAMILIES]


def test_every_intervention_has_cases():
    assert set(CASES) == set(OURS)


@pytest.mark.parametrize(("name", "family"), EVERY)
def test_keeps_its_promises(name, family):
    """Fires, round-trips, repeats, is nothing where `where` is nowhere, is idempotent if it says so, sweeps alike."""
    s = setting(family)
    for make in cases(name).valid:
        made = make(s)
        run = check_intervention(s.model, s.x, made)
        assert made.name in repr(made)
        if made.params.get("source") in (None, *s.model.cfg.sources[1:]):
            assert any(map(any, run.changes.values())) or name == "new_head", made


def state_of(s: Setting) -> tuple:
    return s.model.run.n_forwards, s.model.run.tokens, [p._version for p in s.model.parameters()]


@pytest.mark.parametrize(("name", "family"), EVERY)
def test_refuses_before_any_run(name, family):
    s = setting(family)
    for number, make in enumerate(cases(name).refused):
        before = state_of(s)
        with pytest.raises((ValueError, TypeError)):
            with apply(s.model, make(s)):
                pytest.fail(f"{name}: case {number} was let through: {make(s)}")
        assert state_of(s) == before, (name, number)
        assert not any(watched(point) for point in s.model.hook_points()), (name, number)
