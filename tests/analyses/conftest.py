"""What tests of analyses share."""

from __future__ import annotations

import pytest
import torch

from analyses.running.catalogue import REGISTERED, registered_analyses
from hooked_vit import HookedViT
from tests.analyses.questions.cls_use.test_cls_causality import model


@pytest.fixture
def own_registry():
    """What a test registers is forgotten; our own analyses are imported only once, so they are remembered first."""
    before = dict(registered_analyses())
    yield
    REGISTERED.clear()
    REGISTERED.update(before)


@pytest.fixture(scope="module")
def vit() -> HookedViT:
    """A tiny ViT that tells colours apart, on one thread: what is compared to the last bit depends on their number."""
    torch.set_num_threads(1)
    return model("vit")
