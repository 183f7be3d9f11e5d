"""What the library refuses, by name, so that callers can tell refusals apart."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


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


def token_indices(tokens: Any) -> list[int]:
    """Indices of tokens, one or several, as whole numbers.

    >>> token_indices(3), token_indices(range(2))
    ([3], [0, 1])

    Raises TypeError for anything else: a slice or a mask says where tokens stand in one layout, which in another one,
    as of images of another size, is where others do.
    """
    held = tokens.tolist() if hasattr(tokens, "tolist") else tokens
    found = list(held) if isinstance(held, Iterable) else [held]
    if any(isinstance(t, bool) or not hasattr(t, "__index__") for t in found):
        raise TypeError(
            "tokens are a role such as 'patches', 'all', or the indices they have in a run without edits, wherever "
            f"they are now; a slice or a mask says where they stand in one layout alone: got {tokens!r}"
        )
    return [int(t) for t in found]
