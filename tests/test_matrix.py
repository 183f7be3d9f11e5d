"""Every analysis runs on every family that it makes sense for, and a page of the docs says so cell by cell."""

from __future__ import annotations

import pytest

from analyses.running.catalogue import in_source, registered_analyses
from hooked_vit import architectures
from tests import matrix
from tests.interventions.cases import unchecked_types

PAGE = matrix.read()


def test_the_page_has_every_family_and_every_analysis():
    assert [*PAGE] == [*matrix.variants()]
    assert matrix.families() == set(architectures.registered())
    assert all([*cells] == [*registered_analyses()] for cells in PAGE.values())


@pytest.mark.parametrize("name", matrix.variants())
def test_what_happens_is_what_the_page_says(name):
    """Where it is not, `python -m tests.matrix` writes the page anew; read what changed."""
    with unchecked_types():  # every analysis has tests of its own that check them, and here they take two thirds
        assert matrix.row(name) == PAGE[name]


def test_a_refusal_says_what_the_model_lacks():
    """No cell says that the settings or the images of this test were wrong."""
    lacks = ("no CLS", "no cls", "no 'cls'", "no classifier", "needs a classifier", "no head", "with an embedding")
    lacks += ("a norm of their sum is added", "gate", "needs a readout that is a sum over tokens")
    told = {reason for cells in PAGE.values() for reason in cells.values() if reason != matrix.RUNS}
    assert [reason for reason in told if not any(word in reason for word in lacks)] == []


def test_a_model_without_a_head_is_refused_only_where_there_are_no_images_to_fit_one_on():
    """Counts are no labels; the others are given pairs of pictures. Every refusal names the call that fits a head."""
    asks = {name for name, source in in_source().items() if source.is_command} - {"counting"}
    for name, cells in PAGE.items():
        lacking = {a: told for a, told in cells.items() if "classifier" in told or "no head" in told}
        assert not asks & lacking.keys(), name
        assert all("with_ridge_head" in told for told in lacking.values()), lacking


def test_the_table_is_read_as_it_is_written():
    rows = {name: dict.fromkeys(registered_analyses(), matrix.RUNS) for name in ("vit", "ijepa")}
    rows["ijepa"] |= dict.fromkeys([*registered_analyses()][::5], "no CLS: nothing to shuffle")
    text = matrix.table(rows)
    assert text.count("refused: no CLS: nothing to shuffle") == 1
    assert f"| {' | '.join(registered_analyses())} |" in text
