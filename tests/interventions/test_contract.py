"""The contract of every registered intervention on every family."""

from __future__ import annotations

import re

import pytest
import torch

from hooked_vit.components.watching import watched
from interventions import apply, check_intervention
from tests.interventions.cases import CASES, FULL, OURS, Make, Setting, cases, setting, unchecked_types
from tests.tiny import FAMILIES

POST_NORM = "timm-rpn-cls"
NEED_SUMS = ("only",)  # heads that add up to what attention adds to the stream
EVERY = [
    (name, family) for name in OURS for family in (*FAMILIES, POST_NORM) if family != POST_NORM or name not in NEED_SUMS
]


def test_every_intervention_has_cases():
    assert set(CASES) == set(OURS)


def share(makes: list[Make], family: str) -> list[Make]:
    """The first case on every family, each other one on every second of those that differ in kind."""
    turn = FULL.index(family) % 2 if family in FULL else len(makes)
    return [make for number, make in enumerate(makes) if number == 0 or (number % 2 == turn)]


@pytest.mark.parametrize("name", OURS)
def test_annotations_are_true(name):
    s = setting("vit")
    for make in cases(name).valid:
        with torch.no_grad(), apply(s.model, make(s)):
            s.model(s.x)


@pytest.mark.parametrize(("name", "family"), EVERY)
def test_keeps_its_promises(name, family):
    """Fires, round-trips, repeats, is nothing where `where` is nowhere, is idempotent if it says so, sweeps alike."""
    s = setting(family)
    with unchecked_types():
        for make in share(cases(name).valid, family):
            made = make(s)
            run = check_intervention(s.model, s.x, made)
            reads_all = name == "readout" and (made.params["source"] == "full" or len(s.model.cfg.sources) == 1)
            assert reads_all or any(map(any, run.changes.values())), made


# larger than native and smaller, square and not; one of each kind of position, of prefix and of readout
FOREIGN = (
    ("vit", (48, 48)),
    ("beit-mean-both", (24, 48)),
    ("registers", (48, 40)),
    ("deit-teacher", (24, 24)),
)


@pytest.mark.parametrize(("family", "size"), FOREIGN)
@pytest.mark.parametrize("name", OURS)
def test_keeps_its_promises_where_the_processor_makes_another_size_than_the_native_one(name, family, size):
    s = setting(family, size)
    assert s.model.tokens.grid == tuple(side // s.model.cfg.patch_size for side in size)
    with unchecked_types():
        for make in share(cases(name).valid, family):
            run = check_intervention(s.model, s.x, made := make(s))
            assert name == "readout" or any(map(any, run.changes.values())), made


@pytest.mark.parametrize("name", OURS)
def test_without_cls_it_keeps_its_promises_or_says_that_there_is_none(name):
    """On a model whose probe pools patches: what asks for CLS is refused before any run, all else holds as anywhere."""
    s = setting("timm-map")
    with unchecked_types():
        for make in share(cases(name).valid, "timm-map"):
            before, refusal = state_of(s), None
            try:
                made = make(s)
                made.hooks(s.model)
            except ValueError as error:
                refusal = error
            if refusal is not None:
                assert re.search(r"'cls'|no CLS", str(refusal)), refusal
                assert state_of(s) == before
                continue
            assert any(map(any, check_intervention(s.model, s.x, made).changes.values())) or name == "readout", made


def state_of(s: Setting) -> tuple:
    return s.model.run.n_forwards, s.model.run.tokens, [p._version for p in s.model.parameters()]


@pytest.mark.parametrize("family", FULL)
@pytest.mark.parametrize("name", OURS)
def test_refuses_before_any_run(name, family):
    s = setting(family)
    for number, make in enumerate(share(cases(name).refused, family)):
        before = state_of(s)
        with unchecked_types(), pytest.raises((ValueError, TypeError)) as refusal, apply(s.model, make(s)):
            pytest.fail(f"{name}: case {number} was let through: {make(s)}")
        assert len(str(refusal.value)) > 20, (name, number, refusal.value)
        assert state_of(s) == before, (name, number)
        assert not any(watched(point) for point in s.model.hook_points()), (name, number)


WITHOUT_CLS = ("ijepa", "aimv2-model", "timm-rpn")


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("family", WITHOUT_CLS)
def test_keeps_its_promises_without_cls_or_refuses_it_by_name(name, family):
    """No case asks for what is not there and is answered."""
    s = setting(family)
    refusals = []
    with unchecked_types():
        for make in cases(name).valid:
            try:
                check_intervention(s.model, s.x, make(s))
            except ValueError as refusal:
                refusals.append(str(refusal))
    lacks = ("cls", "CLS", "a norm of their sum")
    assert [said for said in refusals if not any(word in said for word in lacks)] == []


@pytest.mark.parametrize("name", NEED_SUMS)
def test_what_needs_sums_refuses_a_norm_behind_the_branches(name):
    s = setting(POST_NORM)
    with pytest.raises(ValueError, match="takes a branch apart"):
        cases(name).valid[0](s)
