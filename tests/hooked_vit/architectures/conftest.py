"""timm itself, to hold our reading of its layout to."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers

APART = Path(sys.prefix) / "timm"
"""Where `make` puts timm and torchvision, out of reach of everything else."""

OPERATORS = ("nms", "qnms")


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    """timm, from the environment or from the folder of its own that `make test` fills."""
    transformers.utils.is_torchvision_available()  # remembers its answer: it must not change in the middle of a run
    try:
        return import_module("timm")
    except ModuleNotFoundError:
        sys.path.append(str(APART))
    _torchvision()
    return import_module("timm")


def _torchvision() -> None:
    """Beside a torch of another build torchvision's compiled operators cannot be loaded, and it refuses to be imported
    as long as nobody has declared two of them. timm's models use none."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in OPERATORS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT.append(library)  # forgotten with the object
        import_module("torchvision")


KEPT: list[torch.library.Library] = []
