"""One small file per family: what its config means, where its tensors go, how it reads out.

A family is a module of this package that calls `register(Architecture(...))`; nothing else needs to know of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from hooked_vit.architectures.base import ALL, Architecture, CheckpointFiles, register
from hooked_vit.config import ViTConfig
from hooked_vit.errors import UnsupportedModelError, nearest

__all__ = ["Architecture", "by_config", "by_name", "class_readout", "for_class", "get", "register", "registered"]
__all__ += ["supported_classes", "with_texts"]

OTHER_GRAPHS = {
    "Siglip2": "NaFlex, images of any shape as padded rows of patches; fixed-size SigLIP 2 is saved as SiglipModel",
    "Swin": "attention in shifted windows, and patches merged from stage to stage",
    "Hiera": "attention inside mask units, and tokens pooled from stage to stage",
    "Qwen": "attention in windows over images of any shape, inside a language model",
    "VJEPA2": "tokens of a video, tubes of pixels over several frames",
}
"""How the names of classes begin that no family can read, and what their graph is instead."""


@cache
def _discover() -> None:
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")


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

    Raises UnsupportedModelError for a class without a faithful graph, naming those that have one.
    """
    known = supported_classes()
    if hf_class not in known:
        if graph := next((what for start, what in OTHER_GRAPHS.items() if hf_class.startswith(start)), None):
            raise UnsupportedModelError(f"{hf_class} is another graph than a Vision Transformer's here: {graph}")
        if "TextModel" in hf_class:
            raise UnsupportedModelError(
                f"{hf_class} is a text tower without a vision tower, so there is no image to hook; load a class of "
                f"both, such as {' or '.join(with_texts())}"
            )
        raise UnsupportedModelError(
            f"no hook graph for {hf_class}{nearest(hf_class, known)} Supported: {', '.join(sorted(known))}"
        )
    return get(known[hf_class])


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
    """What the family's classifier reads, for models that came without one; CLS, else patches, for a custom model.

    >>> cfg = ViTConfig(d_model=8, n_layers=1, n_heads=1, d_mlp=8, image_size=(8, 8), patch_size=8, n_classes=2)
    >>> class_readout(cfg)
    {'sources': ('cls',)}
    """
    if cfg.architecture in registered():
        readout = get(cfg.architecture).class_readout
        return dict(readout(cfg) if callable(readout) else readout)
    return {"sources": ("cls",) if cfg.has_cls else ("patches",)}
