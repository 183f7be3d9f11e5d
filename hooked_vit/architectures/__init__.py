"""One small file per family: what its config means, where its tensors go, how it reads out.

A family is a module of this package, or of a folder in it, that calls `register(Architecture(...))`; nothing else needs
to know of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import walk_packages
from typing import Any

from torch import nn

from hooked_vit.architectures._other_graphs import why_not
from hooked_vit.architectures.base import ALL, Architecture, CheckpointFiles, register
from hooked_vit.config import ViTConfig
from hooked_vit.errors import UnsupportedModelError, nearest

__all__ = ["Architecture", "by_config", "by_name", "class_readout", "for_class", "get", "register", "registered"]
__all__ += ["supported_classes", "towers", "with_texts"]


@cache
def _discover() -> None:
    for module in walk_packages(__path__, f"{__name__}."):
        import_module(module.name)


def registered() -> tuple[str, ...]:
    """Names of the families.

    >>> "vit" in registered()
    True
    """
    _discover()
    return tuple(sorted(ALL))


def get(name: str) -> Architecture:
    """The family of this name.

    Raises UnsupportedModelError for a name no family has.
    """
    _discover()
    if name not in ALL:
        raise UnsupportedModelError(f"no architecture is called {name!r}; there are {', '.join(registered())}")
    return ALL[name]


def supported_classes() -> dict[str, str]:
    """transformers class name -> family name."""
    return {cls: name for name in registered() for cls in ALL[name].classes}


def with_texts() -> tuple[str, ...]:
    """The classes that hold a text tower beside the vision tower."""
    families = map(get, registered())
    return tuple(sorted(cls for family in families if family.texts is not None for cls in family.texts.classes))


def for_class(hf_class: str) -> Architecture:
    """The family that reads a transformers class.

    Raises UnsupportedModelError for a class without a faithful graph, saying why where that is known, and naming those
    that have one.
    """
    known = supported_classes()
    if hf_class not in known:
        # a class that transformers has was meant, however near another one's name is
        meant = "." if hf_class in _transformers_classes() else nearest(hf_class, known)
        why = f": {reason}." if (reason := why_not(hf_class)) else meant
        raise UnsupportedModelError(f"no hook graph for {hf_class}{why} Supported: {', '.join(sorted(known))}")
    return get(known[hf_class])


def towers(model: nn.Module) -> dict[str, str]:
    """Parts of a model in memory that have a graph: where each stands -> its class, the outermost alone.

    >>> towers(vlm)  # doctest: +SKIP
    {'model.vision_tower': 'CLIPVisionModel'}
    """
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        if type(module).__name__ in supported_classes() and not any(path.startswith(f"{outer}.") for outer in found):
            found[path] = type(module).__name__
    return found


@cache
def _transformers_classes() -> frozenset[str]:
    import transformers

    return frozenset(dir(transformers))


def by_config(config: Mapping[str, Any]) -> tuple[Architecture, CheckpointFiles] | None:
    """The family that reads checkpoints with such a config.json, where they are not saved by transformers."""
    families = [get(name) for name in registered()]
    return next(((f, f.files) for f in families if f.files is not None and f.files.reads(config)), None)


def by_name(model: str) -> tuple[Architecture, CheckpointFiles]:
    """The family that knows a model by this name.

    Raises UnsupportedModelError for a name no family knows.
    """
    families = [(f, f.files) for f in map(get, registered()) if f.files is not None]
    for family, files in families:
        if model.partition(".")[0] in files.named():
            return family, files
    every = [name for _, files in families for name in files.named()]
    raise UnsupportedModelError(f"no architecture is called {model!r}{nearest(model, every)} Known: {', '.join(every)}")


def class_readout(cfg: ViTConfig) -> dict[str, Any]:
    """What a new head is to read in place of what the model reads now: nothing else, for most.

    >>> cfg = ViTConfig(d_model=8, n_layers=1, n_heads=1, d_mlp=8, image_size=(8, 8), patch_size=8, n_classes=2)
    >>> class_readout(cfg)
    {}

    A classifier's tokens stay, and so does what `set_readout_` chose. A checkpoint that came without a classifier is
    read as its family's classifier would read it, where that is said.
    """
    classifies = bool(cfg.heads) and cfg.outputs == "classes"
    if classifies or cfg.readout_set or cfg.architecture not in registered():
        return {}
    return dict(get(cfg.architecture).class_readout)


def __dir__() -> list[str]:
    """What there is to use."""
    return sorted(__all__)
