"""Small trained models that ship with the package, one per family: `zoo.load("vit")`.

They were trained on digit scenes by `zoo_training/train_zoo.py`; they show how the tools work, not how large models do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooked_vit.errors import UnsupportedModelError, nearest

if TYPE_CHECKING:
    from hooked_vit.model import HookedViT

__all__ = ["info", "load", "names", "path"]
FOLDER = Path(__file__).parent


def info() -> dict[str, dict[str, Any]]:
    """What is known of each model: its target, its accuracy on handwriting never seen in training, its recipe."""
    index = FOLDER / "zoo.json"
    return json.loads(index.read_text()) if index.exists() else {}


def names(target: str | None = None) -> list[str]:
    """Names of the models, or of those trained for one target ("label" or "count").

    >>> names("label")  # doctest: +SKIP
    ['beit', 'clip', 'deit', 'dinov2', 'vit']
    """
    return [name for name, entry in info().items() if target in (None, entry["target"])]


def path(name: str) -> Path:
    """Folder of a model, in `save_pretrained` layout.

    Raises UnsupportedModelError for a name the zoo has not.
    """
    if name not in names():
        raise UnsupportedModelError(f"the zoo has no {name!r}{nearest(name, names())}; it has {', '.join(names())}")
    return FOLDER / name


def load(name: str, **kw: Any) -> HookedViT:
    """A model of the zoo, loaded as any checkpoint is; keywords as in `HookedViT.from_pretrained`.

    >>> model = load("vit")  # doctest: +SKIP
    """
    from hooked_vit.model import HookedViT

    model = HookedViT.from_pretrained(path(name), **kw)
    model.cfg = model.cfg.replace(name=f"zoo:{name}")
    return model


def __dir__() -> list[str]:
    """What there is to use."""
    return sorted(__all__)
