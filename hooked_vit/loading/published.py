"""Models of published studies by name: which weights, what of them is left out, and how images were prepared.

`published.toml` says it of each. Where a study used weights that are on no hub, their file has to be given.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooked_vit.config.showing import Displayed, told
from hooked_vit.errors import UnsupportedModelError, nearest

if TYPE_CHECKING:
    from hooked_vit.model import HookedViT


__all__ = ["Published", "get", "load", "names", "needs_weights"]


@dataclass(frozen=True, repr=False)
class Published(Displayed):
    """One model of a study; the fields are those of `published.toml`."""

    name: str
    about: str
    images: Mapping[str, Any]
    checkpoint: str | None = None
    weights: str | None = None
    architecture: str | None = None
    prefix: str = ""
    drop: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def _rows(self) -> Mapping[str, object]:
        return told(self)

    @property
    def graph(self) -> str:
        """The name of the graph that a file of weights fills."""
        return self.architecture or str(self.checkpoint).rpartition("/")[2]


@cache
def _all() -> dict[str, Published]:
    text = files(__package__).joinpath("published.toml").read_text(encoding="utf-8")
    told = tomllib.loads(text)
    return {name: Published(name, **entry | {"drop": tuple(entry.get("drop", ()))}) for name, entry in told.items()}


def names() -> list[str]:
    """Names of the models.

    >>> "vilas2023-gap" in names()
    True
    """
    return list(_all())


def get(name: str) -> Published:
    """What is known of a model.

    Raises UnsupportedModelError for a name there is not.
    """
    if name not in _all():
        raise UnsupportedModelError(
            f"no published model is called {name!r}{nearest(name, names())}; there are {', '.join(names())}"
        )
    return _all()[name]


def needs_weights(name: str) -> str | None:
    """Which file of weights has to be given for a model; None where its checkpoint is on the hub."""
    return get(name).weights


def load(name: str, weights: str | Path | None = None, **kw: Any) -> HookedViT:
    """A model of a study with the image processing of that study; keywords as in `HookedViT.from_pretrained`.

    >>> model = load("vilas2023-refinement", weights="deit_base_trm.pth")  # doctest: +SKIP

    `weights` is a file of tensors, or a local copy of the checkpoint. Raises UnsupportedModelError where the study's
    weights are on no hub and none are given, CheckpointError for weights that do not fit.
    """
    from hooked_vit.model import HookedViT
    from hooked_vit.processing import centre_cropping

    known = get(name)
    place = weights if weights is not None else known.checkpoint
    if place is None:
        raise UnsupportedModelError(f"{name} needs a file of weights, which is on no hub: {known.weights}")
    if weights is not None and Path(weights).is_file():
        device = kw.pop("device", "cpu")
        if strange := sorted(set(kw) - {"dtype", "local_files_only", "cache_dir", "token"}):
            raise TypeError(f"a file of weights is loaded with dtype and device; got {', '.join(strange)}")
        kw = {key: kw[key] for key in kw if key == "dtype"}
        model = HookedViT.from_state_dict(
            weights, known.graph, prefix=known.prefix, drop=known.drop, **known.settings, **kw
        ).to(device)
    else:
        model = HookedViT.from_pretrained(place, **kw)
    how = known.images
    both = {"height": how["size"], "width": how["size"]}
    channels = model.cfg.n_channels
    model.processor = centre_cropping(
        size=both if how.get("squash") else {"shortest_edge": how["size"]},
        crop=(how["crop"], how["crop"]),
        resample={"bilinear": 2, "bicubic": 3}[how["resample"]],
        **{key: how[key] if isinstance(how[key], list) else [how[key]] * channels for key in ("mean", "std")},
    )
    model.cfg = model.cfg.replace(name=name)
    return model


def __dir__() -> list[str]:
    """What there is to use."""
    return sorted(__all__)
