"""What tests of analyses share."""

from __future__ import annotations

import pytest

from analyses.running.catalogue import REGISTERED, registered_analyses


@pytest.fixture
def own_registry():
    """What a test registers is forgotten; our own analyses are imported only once, so they are remembered first."""
    before = dict(registered_analyses())
    yield
    REGISTERED.clear()
    REGISTERED.update(before)
