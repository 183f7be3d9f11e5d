"""What an intervention is: a named, serialisable value that turns into hooks when it meets a model."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from functools import update_wrapper
from typing import Any

from torch import Tensor

from hooked_vit import HookedViT, HookPoint
from hooked_vit.config.showing import Displayed
from hooked_vit.errors import nearest
from interventions.storing import decode, digest, encode, plain, show, tensors, version

Edit = Callable[..., Tensor | None]
Hooks = list[tuple[str, Edit]]

_REGISTRY: dict[str, Factory] = {}


class Intervention(Displayed):
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
        self.params = {key: plain(value) for key, value in params.items()}
        self._known_key: tuple[Any, str] | None = None

    @property
    def parts(self) -> tuple[Intervention, ...]:
        """The single interventions this one is made of."""
        return (self,)

    def _rows(self) -> dict[str, object]:
        return {str(number): part for number, part in enumerate(self.parts, start=1)}

    @property
    def made_by(self) -> Callable[..., Hooks]:
        """The function that turns this intervention into hooks."""
        return self._factory.function

    def hooks(self, model: HookedViT) -> Hooks:
        """(hook name, edit) pairs for this model, every name checked.

        Raises ValueError where the model has no such layer, role or width, UnknownHookError for a hook it has not.
        """
        hooks = self._factory.function(model, **self.params)
        if not hooks:
            raise ValueError(f"{self!r} makes no hook on this model, so it would do nothing")
        return [(found, edit) for name, edit in hooks for found in model.resolve_hooks(name)]

    def brings(self, model: HookedViT) -> dict[str, HookPoint]:
        """Hook points the model has while this intervention is applied, such as those of a spliced dictionary."""
        return {} if self._factory.brings is None else self._factory.brings(model, **self.params)

    def replace(self, **changes: Any) -> Intervention:
        """The same intervention with other parameters.

        >>> from interventions import shuffle_cls
        >>> shuffle_cls(layer=8).replace(seed=1)
        shuffle_cls(layer=8, seed=1)

        Raises TypeError for a parameter it does not take.
        """
        return self._factory(**self.params | changes)

    def __add__(self, other: Intervention) -> Intervention:
        return Composed((*self.parts, *other.parts)) if isinstance(other, Intervention) else NotImplemented

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description; `from_dict` reads it back.

        Raises TypeError for a parameter that has no JSON form.
        """
        return {"name": self.name, "params": {k: encode(v) for k, v in self.params.items()}}

    @property
    def key(self) -> str:
        """Equal for equal interventions; what `==` and `hash` compare."""
        versions = [(id(t), version(t)) for t in tensors(self.params)]
        if self._known_key is None or self._known_key[0] != versions:
            description = {"name": self.name, "params": {k: digest(v) for k, v in self.params.items()}}
            text = json.dumps(description, sort_keys=True)
            self._known_key = versions, hashlib.sha256(text.encode()).hexdigest()
        return self._known_key[1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervention) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __reduce__(self) -> Any:
        return from_dict, (self.to_dict(),)

    def __repr__(self) -> str:
        defaults = self._factory.defaults
        shown = [
            f"{name}={show(value)}"
            for name, value in self.params.items()
            if name not in defaults or digest(value) != digest(defaults[name])
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

    def replace(self, **changes: Any) -> Intervention:
        """Other parameters for every part that takes them.

        Raises TypeError for a parameter no part takes.
        """
        if unknown := [name for name in changes if not any(name in part.params for part in self._parts)]:
            raise TypeError(f"no part of {self!r} takes {', '.join(unknown)}")
        return Composed(
            tuple(part.replace(**{k: v for k, v in changes.items() if k in part.params}) for part in self._parts)
        )

    def hooks(self, model: HookedViT) -> Hooks:
        """The hooks of all parts, in order."""
        with model.more_hooks(self.brings(model)):
            return [hook for part in self._parts for hook in part.hooks(model)]

    def brings(self, model: HookedViT) -> dict[str, HookPoint]:
        """The hook points of all parts.

        Raises ValueError where two bring the same.
        """
        found: dict[str, HookPoint] = {}
        for part in self._parts:
            for name, point in part.brings(model).items():
                if name in found:
                    raise ValueError(f"{name} would be brought twice: a site holds one dictionary at a time")
                found[name] = point
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description."""
        return {"parts": [part.to_dict() for part in self._parts]}

    @property
    def key(self) -> str:
        """Equal for equal parts in the same order."""
        return "+".join(part.key for part in self._parts)

    def __repr__(self) -> str:
        return " + ".join(map(repr, self._parts))


class Factory:
    """What `@intervention` makes of a function: call it with parameters, get an Intervention."""

    def __init__(
        self,
        function: Callable[..., Hooks],
        canonical: Callable[..., dict[str, Any]] | None,
        idempotent: bool,
        whole_run: bool = False,
        brings: Callable[..., dict[str, HookPoint]] | None = None,
    ) -> None:
        self.function, self.canonical, self.idempotent, self.whole_run = function, canonical, idempotent, whole_run
        self.brings = brings
        self.name = function.__name__
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters or parameters[0].name != "model":
            raise TypeError(
                f"an intervention is a function (model, **parameters) -> hooks; {self.name} does not take model first"
            )
        if loose := [str(p) for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]:
            raise TypeError(f"every parameter of an intervention has a name; {self.name} takes {', '.join(loose)}")
        self.signature = inspect.Signature(parameters[1:])
        self.defaults = {p.name: plain(p.default) for p in parameters[1:] if p.default is not p.empty}
        update_wrapper(self, function)
        self.__signature__ = self.signature

    def __call__(self, *args: Any, **kw: Any) -> Intervention:
        if unknown := [name for name in kw if name not in self.signature.parameters]:
            raise TypeError(f"{self!r} takes no {unknown[0]}{nearest(unknown[0], self.signature.parameters)}")
        try:
            bound = self.signature.bind(*args, **kw)
        except TypeError as error:
            raise TypeError(f"{self!r}: {error}") from None
        bound.apply_defaults()
        params = dict(bound.arguments)
        return Intervention(self, self.canonical(**params) if self.canonical else params)

    def __repr__(self) -> str:
        bare = [p.replace(annotation=p.empty) for p in self.signature.parameters.values()]
        return f"{self.name}{inspect.Signature(bare)}"


def intervention(
    function: Callable[..., Hooks] | None = None,
    *,
    canonical: Callable[..., dict] | None = None,
    idempotent: bool = False,
    whole_run: bool = False,
    brings: Callable[..., dict[str, HookPoint]] | None = None,
) -> Any:
    """Register a function (model, **parameters) -> [(hook name, edit)] as an intervention of its own name.

    >>> @intervention  # doctest: +SKIP
    ... def mean_cls(model, *, layer, mean):
    ...     def edit(resid, hook):
    ...         return torch.where(model.tokens.mask("cls")[:, None], mean, resid)
    ...     return [(f"blocks.{layer}.hook_resid_post", edit)]
    >>> mean_cls(layer=3, mean=0.0)  # doctest: +SKIP
    mean_cls(layer=3, mean=0.0)

    An edit is `(activation, hook) -> new activation`; it must not write into the activation it is given, nor share
    state (a random generator) with the edit of another hook. `canonical` may bring parameters into a form that can be
    stored; `idempotent` promises that twice is the same as once, and `check_intervention` holds it to that. `whole_run`
    says that edits remember what earlier ones saw in the same run, which a sweep then shares with no other. `brings` is
    a function of the same arguments that gives the hook points the model has only while the intervention is applied.
    Raises ValueError where another function has the name.
    """
    if function is None:
        return lambda f: intervention(f, canonical=canonical, idempotent=idempotent, whole_run=whole_run, brings=brings)
    factory = Factory(function, canonical, idempotent, whole_run, brings)
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
        there = ", ".join(registered())
        raise ValueError(f"no intervention is called {name!r}{nearest(name, _REGISTRY)} (there are {there})")
    return _REGISTRY[name](**params)


def from_dict(description: Mapping[str, Any]) -> Intervention:
    """The intervention that `to_dict` described.

    Raises ValueError for an unknown name, parameter or field.
    """
    fields = sorted(map(str, description)) if isinstance(description, Mapping) else type(description).__name__
    if fields == ["parts"] and description["parts"]:
        return Composed(tuple(from_dict(part) for part in description["parts"]))
    if fields != ["name", "params"] or not isinstance(description["params"], Mapping):
        raise ValueError(f"an intervention is stored as its name and params, or as its parts; got {fields}")
    try:
        return get(description["name"], **{k: decode(v, from_dict) for k, v in description["params"].items()})
    except TypeError as error:
        raise ValueError(str(error)) from None


def flatten(interventions: tuple[Any, ...]) -> Iterator[Intervention]:
    """The single interventions of several, in order.

    Raises TypeError for something that is no intervention, saying what was probably meant.
    """
    for item in interventions:
        if not isinstance(item, Intervention):
            hint = f"; call it with its parameters: {item!r}" if isinstance(item, Factory) else ""
            raise TypeError(f"expected an intervention, got {type(item).__name__}{hint}")
        yield from item.parts
