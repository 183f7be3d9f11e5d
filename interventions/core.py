"""What an intervention is: a named, serialisable value that turns into hooks when it meets a model."""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, update_wrapper
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hooked_vit import ActivationCache, HookedViT
from hooked_vit.errors import nearest

Edit = Callable[..., Tensor | None]
Hooks = list[tuple[str, Edit]]

_REGISTRY: dict[str, Factory] = {}


class Intervention:
    """A named edit of a run, not yet bound to a model.

    >>> from interventions import shuffle_cls, readout
    >>> both = shuffle_cls(layer=8, seed=0) + readout("cls")
    >>> [part.name for part in both.parts]
    ['shuffle_cls', 'readout']

    Compare with ==, print with repr (the constructor call), store with `to_dict`, add with +: parts act in the order
    written. `hooks(model)` resolves names, layers and roles against a model, and raises before anything is attached.
    """

    def __init__(self, factory: Factory, params: Mapping[str, Any]) -> None:
        self._factory = factory
        self.name = factory.name
        self.params = {key: _plain(value) for key, value in params.items()}

    @property
    def parts(self) -> tuple[Intervention, ...]:
        """The single interventions this one is made of."""
        return (self,)

    def hooks(self, model: HookedViT) -> Hooks:
        """(hook name, edit) pairs for this model.

        Raises ValueError where the model has no such layer, role or width.
        """
        return self._factory.function(model, **self.params)

    def __add__(self, other: Intervention) -> Intervention:
        return Composed((*self.parts, *other.parts))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description; `from_dict` reads it back.

        Raises TypeError for a parameter that has no JSON form.
        """
        return {"name": self.name, "params": {k: _encode(v) for k, v in self.params.items()}}

    @cached_property
    def key(self) -> str:
        """Equal for equal interventions; what `==` and `hash` compare."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervention) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        defaults = self._factory.defaults
        shown = [
            f"{name}={_show(value)}"
            for name, value in self.params.items()
            if name not in defaults or _encode(value) != _encode(defaults[name])
        ]
        return f"{self.name}({', '.join(shown)})"


class Composed(Intervention):
    """Several interventions as one, in the order written."""

    def __init__(self, parts: tuple[Intervention, ...]) -> None:
        self._parts = parts
        self.name = " + ".join(p.name for p in parts)
        self.params = {}

    @property
    def parts(self) -> tuple[Intervention, ...]:
        """The single interventions this one is made of."""
        return self._parts

    def hooks(self, model: HookedViT) -> Hooks:
        """The hooks of all parts, in order."""
        return [hook for part in self._parts for hook in part.hooks(model)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description."""
        return {"parts": [part.to_dict() for part in self._parts]}

    def __repr__(self) -> str:
        return " + ".join(map(repr, self._parts))


class Factory:
    """What `@intervention` makes of a function: call it with parameters, get an Intervention."""

    def __init__(self, function: Callable[..., Hooks], canonical: Callable[..., dict[str, Any]] | None) -> None:
        self.function, self.canonical = function, canonical
        self.name = function.__name__
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters or parameters[0].name != "model":
            raise TypeError(f"an intervention is a function (model, **parameters) -> hooks; {self.name} does not take model")
        self.signature = inspect.Signature(parameters[1:])
        self.defaults = {p.name: _plain(p.default) for p in parameters[1:] if p.default is not p.empty}
        update_wrapper(self, function)
        self.__signature__ = self.signature

    def __call__(self, *args: Any, **kw: Any) -> Intervention:
        try:
            bound = self.signature.bind(*args, **kw)
        except TypeError as error:
            raise TypeError(f"{self.name}{self.signature}: {error}") from None
        bound.apply_defaults()
        params = dict(bound.arguments)
        return Intervention(self, self.canonical(**params) if self.canonical else params)

    def __repr__(self) -> str:
        return f"{self.name}{self.signature}"


def intervention(function: Callable[..., Hooks] | None = None, *, canonical: Callable[..., dict] | None = None) -> Any:
    """Register a function (model, **parameters) -> [(hook name, edit)] as an intervention of its own name.

    >>> @intervention
    ... def mean_cls(model, *, layer, mean):
    ...     def edit(resid, hook):
    ...         return torch.where(model.tokens.mask("cls")[:, None], mean, resid)
    ...     return [(f"blocks.{layer}.hook_resid_post", edit)]
    >>> mean_cls(layer=3, mean=0.0)
    mean_cls(layer=3, mean=0.0)

    An edit is `(activation, hook) -> new activation` and must not write into the activation it is given. `canonical`
    may bring parameters into a form that can be stored. Raises ValueError where another function has the name.
    """
    if function is None:
        return lambda f: intervention(f, canonical=canonical)
    factory = Factory(function, canonical)
    known = _REGISTRY.get(factory.name)
    # a notebook cell may be run again; two different homes for one name are a mistake
    if known is not None and known.function.__module__ != function.__module__:
        raise ValueError(f"{factory.name!r} is registered already, by {known.function.__module__}")
    _REGISTRY[factory.name] = factory
    return factory


def registered() -> dict[str, Factory]:
    """Every intervention by name."""
    return dict(sorted(_REGISTRY.items()))


def get(name: str, **params: Any) -> Intervention:
    """The intervention of this name with these parameters.

    >>> get("shuffle_cls", layer=8, seed=0)
    shuffle_cls(layer=8)

    Raises ValueError for an unknown name, TypeError for a parameter it does not take.
    """
    if name not in _REGISTRY:
        raise ValueError(f"no intervention is called {name!r}{nearest(name, _REGISTRY)} There are {', '.join(registered())}")
    return _REGISTRY[name](**params)


def from_dict(description: Mapping[str, Any]) -> Intervention:
    """The intervention that `to_dict` described.

    Raises ValueError for an unknown name, parameter or field.
    """
    if set(description) == {"parts"}:
        return Composed(tuple(from_dict(part) for part in description["parts"]))
    if set(description) != {"name", "params"}:
        raise ValueError(f"an intervention is stored as name and params (or as parts), got the fields {sorted(description)}")
    try:
        return get(description["name"], **{k: _decode(v) for k, v in description["params"].items()})
    except TypeError as error:
        raise ValueError(str(error)) from None


def flatten(interventions: tuple[Intervention, ...]) -> Iterator[Intervention]:
    """The single interventions of several, in order.

    Raises TypeError for something that is no intervention, saying what was probably meant.
    """
    for item in interventions:
        if not isinstance(item, Intervention):
            hint = f"; call it with its parameters: {item!r}" if isinstance(item, Factory) else ""
            raise TypeError(f"expected an intervention, got {type(item).__name__}{hint}")
        yield from item.parts


def _plain(value: Any) -> Any:
    """Parameters compare and store by value: sequences become tuples, arrays tensors."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple, range)) else value


def _encode(value: Any) -> Any:
    if isinstance(value, Tensor):
        raw = value.cpu().contiguous()
        bits = base64.b64encode(raw.reshape(-1).view(torch.uint8).numpy().tobytes()).decode()
        return {"tensor": bits, "dtype": str(raw.dtype).removeprefix("torch."), "shape": list(raw.shape)}
    if isinstance(value, tuple):
        return [_encode(v) for v in value]
    if isinstance(value, Mapping):
        return {"mapping": {str(k): _encode(v) for k, v in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Intervention):
        return {"intervention": value.to_dict()}
    if isinstance(value, ActivationCache):
        raise TypeError("a cache is no stored value; pass the activation you mean, cache[name, layer]")
    raise TypeError(f"a parameter of type {type(value).__name__} cannot be stored")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(v) for v in value)
    if not isinstance(value, Mapping):
        return value
    if "tensor" in value:
        bits = bytearray(base64.b64decode(value["tensor"]))
        flat = torch.frombuffer(bits, dtype=torch.uint8) if bits else torch.empty(0, dtype=torch.uint8)
        return flat.view(getattr(torch, value["dtype"])).reshape(value["shape"])
    if "mapping" in value:
        return {k: _decode(v) for k, v in value["mapping"].items()}
    if "intervention" in value:
        return from_dict(value["intervention"])
    raise ValueError(f"a stored parameter has the unknown form {sorted(value)}")


def _show(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    if value.numel() <= 64 and value.dtype.is_floating_point or value.numel() <= 64:
        return f"torch.tensor({value.tolist()!r}, dtype={value.dtype})"
    digest = hashlib.sha256(json.dumps(_encode(value)).encode()).hexdigest()[:8]
    return f"<tensor {'x'.join(map(str, value.shape))} {digest}>"
