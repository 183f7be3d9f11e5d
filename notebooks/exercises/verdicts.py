"""What a check of an exercise says."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor

from analyses import digit_scenes
from hooked_vit import HookedViT, zoo


class Verdict:
    """A sentence about an answer; true where the answer is right."""

    def __init__(self, right: bool, says: str) -> None:
        self.right, self.says = right, says

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return f"{'✓' if self.right else '✗'} {self.says}"


class NotYet(Exception):
    """Why an answer is not the right one."""


def check(function: Callable[[Any], str]) -> Callable[[Any], Verdict]:
    """A check, of a function that raises NotYet or says what there is to say of a right answer."""

    @wraps(function)
    def checked(answer: Any = ...) -> Verdict:
        try:
            if answer is None or answer is ...:
                raise NotYet("no answer yet")
            return Verdict(True, function(answer))
        except NotYet as why:
            return Verdict(False, str(why))

    return checked


def given(value: Any) -> Any:
    """What a reader's function returned. Raises NotYet where that is nothing, as the empty one does."""
    if value is None or value is ...:
        raise NotYet("no answer yet: the function returns nothing")
    return value


def tensor(value: Any, shape: tuple[int, ...]) -> Tensor:
    """The same, as numbers of a shape."""
    found = torch.as_tensor(given(value))
    if found.shape != shape:
        raise NotYet(f"expected the shape {list(shape)}, got {list(found.shape)}")
    return found.detach()


def demand(holds: Any, otherwise: str) -> None:
    """Raise NotYet, in these words, unless something holds."""
    if not bool(holds):
        raise NotYet(otherwise)


def close(a: Tensor, b: Tensor, by: float = 1e-4) -> bool:
    """Whether two tensors are equal, up to rounding."""
    return torch.allclose(a.double(), b.double(), rtol=by, atol=by)


@cache
def scenes(name: str, n: int = 24, column: str = "image") -> tuple[HookedViT, Tensor, Tensor]:
    """A model of the zoo, pixels of scenes that no notebook shows, and their labels."""
    model, drawn = zoo.load(name), digit_scenes("test", n=n, seed=1234)
    return model, model.preprocess(drawn[column]), torch.tensor(drawn["label"])
