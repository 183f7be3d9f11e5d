"""A sparse autoencoder as a value: what it makes of an activation, and of its own activations an activation again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_vit.config.showing import Displayed, counted, one_line
from hooked_vit.errors import nearest
from interventions.storing import digest

ACTIVATIONS = ("relu", "tanh_relu", "topk", "signed_topk", "jumprelu", "gated")
NORMS = ("none", "rescale", "layer_norm")
EPS = 1e-5
"""Added to the standard deviation on the way in, and not on the way out, as SAELens and ViT-Prisma do."""


class Frame(NamedTuple):
    """How an activation is brought to the dictionary and back: (x − centre) / before, and · after + centre."""

    centre: Tensor | float
    before: Tensor | float
    after: Tensor | float


@dataclass(frozen=True, eq=False)
class Sae(Displayed):
    """A dictionary of `n_features` directions, and how the activations along them are read off.

    >>> Sae(torch.eye(2), torch.zeros(2), torch.eye(2), torch.zeros(2)).encode(torch.tensor([3.0, -1.0]))
    tensor([3., 0.])

    `W_enc` is [d, f], `W_dec` [f, d]. What is read is the input brought into its frame (`norm`, `input_mean`,
    `input_scale`), minus `b_dec` where `centred`, times `W_enc`, plus `b_enc`; then `activation`: "relu", "tanh_relu",
    "topk" (the `k` largest, those below zero dropped), "signed_topk" (kept), "jumprelu" (above `threshold` [f]) or
    "gated" (`b_enc` is the gate's bias; `r_mag` and `b_mag` [f] make the size, of the `k` largest where k is given).
    `layer`, `site` and `tokens` say what it was trained on, where that is known.
    Raises ValueError for shapes that do not fit, and for parameters an activation lacks or has no use for.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    activation: str = "relu"
    k: int | None = None
    threshold: Tensor | None = None
    r_mag: Tensor | None = None
    b_mag: Tensor | None = None
    centred: bool = True
    norm: str = "none"
    input_mean: Tensor | None = None
    input_scale: float = 1.0
    layer: int | None = None
    site: str | None = None
    tokens: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for value, known, what in ((self.activation, ACTIVATIONS, "activation"), (self.norm, NORMS, "norm")):
            if value not in known:
                raise ValueError(f"the {what} of a dictionary is one of {', '.join(known)}; got {value!r}")
        self._check_shapes()
        wanted = {"topk": ("k",), "signed_topk": ("k",), "jumprelu": ("threshold",), "gated": ("r_mag", "b_mag")}
        needs = wanted.get(self.activation, ())
        has = [name for name in ("k", "threshold", "r_mag", "b_mag") if getattr(self, name) is not None]
        optional = {"k"} if self.activation == "gated" else set()
        if set(has) - optional != set(needs):
            takes = ", ".join(needs) or "none of k, threshold, r_mag and b_mag"
            raise ValueError(
                f"a dictionary of activation {self.activation!r} takes {takes}; got {', '.join(has) or 'none'}"
            )
        if self.k is not None and (type(self.k) is not int or not 1 <= self.k <= self.n_features):
            raise ValueError(f"k is 1 to {self.n_features}, the number of features; got {self.k!r}")
        if not 0 < self.input_scale < float("inf"):
            raise ValueError(f"an input is divided by a finite number above 0; got input_scale={self.input_scale!r}")

    def _check_shapes(self) -> None:
        if self.W_dec.ndim != 2:
            raise ValueError(f"W_dec is [features, width]; got {tuple(self.W_dec.shape)}")
        f, d = self.W_dec.shape
        wanted = {"W_enc": (d, f), "W_dec": (f, d), "b_dec": (d,), "input_mean": (d,)}
        wanted |= dict.fromkeys(("b_enc", "threshold", "r_mag", "b_mag"), (f,))
        for name, shape in wanted.items():
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{name} is {list(shape)}, as W_dec has {f} features of width {d}; got {_shape(tensor)}"
                )
            if not tensor.is_floating_point() or not tensor.isfinite().all():
                raise ValueError(f"{name} holds finite numbers; got {tensor.dtype}, and numbers that are not finite")
            if tensor.dtype != self.W_dec.dtype:
                raise ValueError(f"a dictionary is of one dtype; {name} is {tensor.dtype}, W_dec {self.W_dec.dtype}")

    @property
    def n_features(self) -> int:
        """How many directions there are."""
        return self.W_dec.shape[0]

    @property
    def width(self) -> int:
        """How many numbers of a token it reads."""
        return self.W_dec.shape[1]

    def encode(self, x: Float[Tensor, "*any d"]) -> Float[Tensor, "*any f"]:
        """Activations of the features."""
        frame = self.frame(x)
        own = self._like(x)
        read = (x.to(own.W_dec.dtype) - frame.centre) / frame.before
        if own.centred:
            read = read - own.b_dec
        pre = read @ own.W_enc
        if own.r_mag is not None and own.b_mag is not None:
            size = _kept(pre * own.r_mag.exp() + own.b_mag, self.k)
            return size * (pre + own.b_enc > 0)
        pre = pre + own.b_enc
        if own.threshold is not None:
            return pre.relu() * (pre > own.threshold)
        if self.activation == "signed_topk":
            return _largest(pre, self.k or 0)
        acts = _kept(pre, self.k)
        return acts.tanh() if self.activation == "tanh_relu" else acts

    def decode(self, acts: Float[Tensor, "*any f"], x: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
        """What activations stand for, in the frame of the input `x` they were read from."""
        own, frame = self._like(x), self.frame(x)
        return (acts @ own.W_dec + own.b_dec) * frame.after + frame.centre

    def moved(self, change: Float[Tensor, "*any f"], x: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
        """How far a change of the activations moves what is decoded: exactly nothing for no change."""
        return (change @ self._like(x).W_dec) * self.frame(x).after

    def frame(self, x: Float[Tensor, "*any d"]) -> Frame:
        """How this input is brought to the dictionary and back."""
        own = self._like(x)
        x = x.to(own.W_dec.dtype)
        if self.norm == "layer_norm":
            centre = x.mean(-1, keepdim=True)
            # of the centred input, as it is computed where such dictionaries are trained
            spread = (x - centre).std(-1, keepdim=True)
            return Frame(centre, spread + EPS, spread)
        if self.norm == "rescale":
            size = x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny) / self.width**0.5
            return Frame(0.0, size, size)
        return Frame(0.0 if own.input_mean is None else own.input_mean, self.input_scale, self.input_scale)

    def replace(self, **changes: Any) -> Sae:
        """The same dictionary with other fields.

        >>> sae.replace(layer=None, site=None)  # to be spliced in anywhere  # doctest: +SKIP
        """
        return replace(self, **changes)

    def to(self, dtype: torch.dtype) -> Sae:
        """The same dictionary in another dtype."""
        return self.replace(**{name: tensor.to(dtype) for name, tensor in self._tensors().items()})

    def fingerprint(self) -> str:
        """Sixteen digits that differ where any number or field does, but for where it is spliced in and comes from."""
        fields = digest({**self.to_dict(), **dict.fromkeys(("layer", "site", "tokens", "source"))})
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Every field by name; `from_dict` reads it back."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any] | Sae) -> Sae:
        """The dictionary that `to_dict` described.

        Raises ValueError for a field that is not known or missing, TypeError for something that is no description.
        """
        if isinstance(stored, Sae):
            return stored
        if not isinstance(stored, Mapping):
            raise TypeError(f"a dictionary is an Sae, or what its to_dict gave; got {type(stored).__name__}")
        names = [field.name for field in fields(cls)]
        if unknown := [str(name) for name in stored if name not in names]:
            raise ValueError(f"a dictionary has no field {unknown[0]!r}{nearest(unknown[0], names)}")
        if missing := [name for name in names[:4] if not isinstance(stored.get(name), Tensor)]:
            raise ValueError(f"a dictionary has the tensors {', '.join(names[:4])}; there is no {missing[0]}")
        return cls(**stored)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.to_dict().items() if isinstance(value, Tensor)}

    def _like(self, x: Tensor) -> Sae:
        """On the device of the input; itself where it is there."""
        if x.device == self.W_dec.device:
            return self
        moved = object.__new__(Sae)
        for name, value in self.to_dict().items():  # what was checked once is not checked again in every run
            object.__setattr__(moved, name, value.to(x.device) if isinstance(value, Tensor) else value)
        return moved

    def __repr__(self) -> str:
        where = "" if self.site is None else f", layer={self.layer}, site={self.site!r}"
        kind = self.activation if self.k is None else f"{self.activation} of {self.k}"
        return one_line(f"Sae({counted(self.n_features, 'feature')} of width {self.width}, {kind}{where})")

    def _rows(self) -> dict[str, object]:
        about = {"features": self.n_features, "width": self.width, "activation": self.activation, "k": self.k or ""}
        trained = {"layer": self.layer, "site": self.site, "tokens": self.tokens}
        return {**about, **{name: "not said" if value is None else value for name, value in trained.items()}}


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _kept(pre: Tensor, k: int | None) -> Tensor:
    return pre.relu() if k is None else _largest(pre, k).relu()


def _largest(pre: Tensor, k: int) -> Tensor:
    """The k largest of the last axis where they are, zero elsewhere."""
    found = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, found.indices, found.values)
