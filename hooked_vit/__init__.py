"""Vision Transformers as one graph of hooks: see what a model contains, change it, learn what it uses.

>>> from hooked_vit import HookedViT  # doctest: +SKIP
>>> model = HookedViT.from_pretrained("google/vit-base-patch16-224")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hooked_vit import architectures, zoo
    from hooked_vit.cache import ActivationCache
    from hooked_vit.components.watching import HookPoint
    from hooked_vit.config import ViTConfig
    from hooked_vit.loading import published
    from hooked_vit.loading.in_place import in_place
    from hooked_vit.loading.zero_shot import zero_shot_head
    from hooked_vit.model import HookedViT
    from hooked_vit.running import NumberedImages
    from hooked_vit.tokens import TokenLayout

__version__ = "0.2.0"
__all__ = ["ActivationCache", "HookPoint", "HookedViT", "NumberedImages", "TokenLayout", "ViTConfig"]
__all__ += ["architectures", "in_place", "published", "zero_shot_head", "zoo"]

_HOMES = {
    "HookedViT": "hooked_vit.model",
    "ViTConfig": "hooked_vit.config",
    "ActivationCache": "hooked_vit.cache",
    "HookPoint": "hooked_vit.components.watching",
    "zero_shot_head": "hooked_vit.loading.zero_shot",
    "NumberedImages": "hooked_vit.running",
    "TokenLayout": "hooked_vit.tokens",
    "in_place": "hooked_vit.loading.in_place",
}
_ROOMS = {
    "architectures": "hooked_vit.architectures",
    "published": "hooked_vit.loading.published",
    "zoo": "hooked_vit.zoo",
}


def __getattr__(name: str) -> Any:
    """Names are looked up on first use: printing a command's help must not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return import_module(_ROOMS[name])
    raise AttributeError(f"module 'hooked_vit' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What there is to use; the modules inside are found by their own names."""
    return sorted([*__all__, "__version__"])
