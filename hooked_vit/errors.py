"""What the library refuses, by name, so that callers can tell refusals apart."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UnsupportedModelError(ValueError):
    """A checkpoint or class this library has no faithful graph for."""


class CheckpointError(ValueError):
    """A checkpoint whose tensors or config attributes do not all have a place in the graph."""


class UnknownHookError(KeyError):
    """A hook name that no hook point has."""

    def __str__(self) -> str:
        return str(self.args[0])


class NoHeadError(ValueError):
    """Class scores asked of a model that has no classifier."""


class NonlinearReadoutError(ValueError):
    """The linear part of a readout asked of one that has none."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known name, or nothing.

    >>> nearest("blocks.0.hook_resid_prr", ["blocks.0.hook_resid_pre"])
    "; did you mean 'blocks.0.hook_resid_pre'?"
    """
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
