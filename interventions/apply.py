"""Running a model under interventions: everything resolved first, always detached, silent no-ops refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hooked_vit import HookedViT, HookPoint
from hooked_vit.config.showing import Displayed, one_line
from interventions.core import Composed, Edit, Hooks, Intervention, flatten
from interventions.storing import version

SHOWN_EDITS = 4


class InterventionNotFired(RuntimeError):
    """A run was made under an intervention, and one of its hooks was never reached."""


@dataclass
class WatchedEdit:
    """One edit of a run: what it belongs to, and how far it moved its activation each time it fired."""

    intervention: Intervention
    hook: str
    norms: list[Tensor] = field(default_factory=list)

    @property
    def fired(self) -> int:
        """How often the edit was reached."""
        return len(self.norms)

    @property
    def changes(self) -> list[float]:
        """Euclidean norm of what it added, per firing; NaN where it changed the shape, infinity where it cut scores."""
        return [float(norm) for norm in self.norms]


@dataclass(repr=False)
class AppliedRun(Displayed):
    """What happened under `apply`: how often each hook fired, how far it moved its activation, what was drawn.

    `fired` is {hook name: times}. `changes` is {hook name: [norm of the edit, one number per firing]}: 0.0 is a no-op,
    NaN an edit that changed the number of tokens. `record` holds random draws, such as permutations, in order.
    `edits` tells several edits of one hook apart, and `report()` is all of it as a table.
    """

    edits: list[WatchedEdit] = field(default_factory=list)
    record: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def fired(self) -> dict[str, int]:
        """Hook name -> times its edits were reached."""
        return {name: sum(e.fired for e in self.edits if e.hook == name) for name in self._names()}

    @property
    def changes(self) -> dict[str, list[float]]:
        """Hook name -> norm of what each of its edits added to the activation, per firing."""
        return {name: [c for e in self.edits if e.hook == name for c in e.changes] for name in self._names()}

    @property
    def missed(self) -> list[str]:
        """Hooks with an edit that was never reached."""
        return list(dict.fromkeys(e.hook for e in self.edits if not e.fired))

    def report(self) -> list[dict[str, Any]]:
        """A row per edit, ready for a data frame: intervention, hook, fired, and the mean norm of its change.

        >>> pd.DataFrame(run.report())  # doctest: +SKIP
        """
        return [
            {
                "intervention": repr(e.intervention),
                "hook": e.hook,
                "fired": e.fired,
                "change": sum(e.changes) / e.fired if e.fired else float("nan"),
            }
            for e in self.edits
        ]

    def __repr__(self) -> str:
        rows = self.report()
        shown = [f"{r['intervention']} at {r['hook']}: fired {r['fired']} times" for r in rows[:SHOWN_EDITS]]
        more = [f"{len(rows) - SHOWN_EDITS} more, see .report()"] * (len(rows) > SHOWN_EDITS)
        return one_line(f"AppliedRun({'; '.join(shown + more)})")

    def _rows(self) -> dict[str, object]:
        return {
            f"{number}. {edit['hook']}": f"{edit['intervention']}: moved {edit['change']:.3g}, {edit['fired']} times"
            for number, edit in enumerate(self.report(), start=1)
        }

    def watch(self, intervention: Intervention, name: str, edit: Edit) -> Edit:
        """The same edit, counted and measured; one that writes into its activation is refused."""
        seen = WatchedEdit(intervention, name)
        self.edits.append(seen)

        def watched_edit(activation: Tensor, hook: Any) -> Tensor | None:
            before = version(activation)
            token = _ACTIVE.set(self)
            try:
                new = edit(activation, hook=hook)
            finally:
                _ACTIVE.reset(token)
            if version(activation) != before:
                raise RuntimeError(
                    f"{intervention.name} wrote into the activation of {name}, which other parts of the run and a "
                    "cache share; return a new tensor instead"
                )
            seen.norms.append(_distance(activation, new))
            return new

        return watched_edit

    def _names(self) -> list[str]:
        return list(dict.fromkeys(e.hook for e in self.edits))


_ACTIVE: ContextVar[AppliedRun | None] = ContextVar("active_run", default=None)


def note(key: str, value: Any) -> None:
    """Inside an edit: keep a random draw in the record of the run, where there is one.

    >>> note("shuffle_cls", torch.tensor([1, 0]))
    """
    run = _ACTIVE.get()
    if run is not None:
        run.record.setdefault(key, []).append(value)


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
    run = AppliedRun()
    with model.more_hooks(brought(model, *interventions)):
        hooks = [(name, run.watch(part, name, edit)) for part, name, edit in _parts(model, *interventions)]
        before = model.run.n_forwards
        with model.hooks(fwd_hooks=hooks):
            yield run
    if run.missed and model.run.n_forwards > before:
        raise InterventionNotFired(
            f"a run was made, but {', '.join(run.missed)} was never reached: the run started after it, stopped before "
            "it, or another intervention took it out of the path"
        )


def resolve(model: HookedViT, *interventions: Intervention) -> Hooks:
    """The hooks of interventions on this model, in the order written, every name checked."""
    with model.more_hooks(brought(model, *interventions)):
        return [(name, edit) for _, name, edit in _parts(model, *interventions)]


def brought(model: HookedViT, *interventions: Intervention) -> dict[str, HookPoint]:
    """The hook points these interventions bring; the model has them inside `with model.more_hooks(...)`."""
    return Composed(tuple(flatten(interventions))).brings(model)


def _parts(model: HookedViT, *interventions: Intervention) -> list[tuple[Intervention, str, Edit]]:
    """(single intervention, hook name, edit), in the order written."""
    return [(part, name, edit) for part in flatten(interventions) for name, edit in part.hooks(model)]


def _distance(old: Tensor, new: Tensor | None) -> Tensor:
    if new is None or new is old:
        return torch.zeros((), device="cpu")
    if new.shape != old.shape:
        return torch.full((), float("nan"), device="cpu")
    # a score that was minus infinity already has not moved, and infinity minus infinity is no number
    old, new = old.detach(), new.detach()
    moved = torch.where(new == old, torch.zeros_like(old), new - old)
    return moved.norm(dtype=torch.promote_types(moved.dtype, torch.float32))
