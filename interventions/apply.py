"""Running a model under interventions: everything resolved first, always detached, silent no-ops refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hooked_vit import HookedViT
from interventions.core import Edit, Hooks, Intervention, flatten


class InterventionNotFired(RuntimeError):
    """A run was made under an intervention, and one of its hooks was never reached."""


@dataclass
class AppliedRun:
    """What happened under `apply`: how often each hook fired, how far it moved its activation, what was drawn.

    `fired` is {hook name: times}. `changes` is {hook name: [norm of the edit, one number per firing]}: 0.0 is a no-op,
    NaN an edit that changed the number of tokens. `record` holds random draws, such as permutations, in order.
    """

    fired: dict[str, int] = field(default_factory=dict)
    record: dict[str, list[Any]] = field(default_factory=dict)
    _changes: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def changes(self) -> dict[str, list[float]]:
        """Euclidean norm of what each edit added to its activation, summed over nothing: one number per firing."""
        return {name: [float(change) for change in norms] for name, norms in self._changes.items()}

    def watch(self, name: str, edit: Edit) -> Edit:
        """The same edit, counted."""
        self.fired[name] = 0
        self._changes[name] = []

        def watched_edit(activation: Tensor, hook: Any) -> Tensor | None:
            new = edit(activation, hook=hook)
            self.fired[name] += 1
            self._changes[name].append(_distance(activation, new))
            return new

        return watched_edit


_ACTIVE: ContextVar[AppliedRun | None] = ContextVar("active_run", default=None)


def note(key: str, value: Any) -> None:
    """Inside an edit: keep a random draw in the record of the run, where there is one.

    >>> note("shuffle_cls.permutation", torch.tensor([1, 0]))
    """
    run = _ACTIVE.get()
    if run is not None:
        run.record.setdefault(key, []).append(value)


@contextmanager
def recording(run: AppliedRun) -> Iterator[AppliedRun]:
    """Make a run the one that `note` writes to."""
    token = _ACTIVE.set(run)
    try:
        yield run
    finally:
        _ACTIVE.reset(token)


@contextmanager
def apply(model: HookedViT, *interventions: Intervention) -> Iterator[AppliedRun]:
    """Run the model under interventions for the length of a `with`.

    >>> with apply(model, shuffle_cls(layer=8, seed=0) + readout("cls")) as run:  # doctest: +SKIP
    ...     logits = model(pixels)
    >>> run.fired  # doctest: +SKIP
    {'blocks.8.hook_resid_post': 1, 'hook_pooled': 1}

    Every name, layer and role is resolved before the first hook is attached; all are detached whatever happens.
    Raises ValueError (or UnknownHookError) for an intervention this model cannot have, and InterventionNotFired on
    leaving where a run was made and a hook was never reached.
    """
    resolved = resolve(model, *interventions)
    run = AppliedRun()
    hooks = [(name, run.watch(name, edit)) for name, edit in resolved]
    before = model.run.n_forwards
    with model.hooks(fwd_hooks=hooks), recording(run):
        yield run
    missed = [name for name, times in run.fired.items() if not times]
    if missed and model.run.n_forwards > before:
        raise InterventionNotFired(
            f"a run was made, but {', '.join(missed)} was never reached: the run started after it, stopped before it, "
            "or another intervention took it out of the path"
        )


def resolve(model: HookedViT, *interventions: Intervention) -> Hooks:
    """The hooks of interventions on this model, in the order written, every name checked."""
    hooks = [hook for part in flatten(interventions) for hook in part.hooks(model)]
    for name, _ in hooks:
        model.resolve_hooks(name)
    return hooks


def _distance(old: Tensor, new: Tensor | None) -> Tensor:
    if new is None or new is old:
        return torch.zeros(())
    if new.shape != old.shape:
        return torch.full((), float("nan"))
    return (new - old).detach().norm()
