"""Reading the weights of a linear layer, where they are all there is to it."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrize import is_parametrized


def plain(linear: nn.Module) -> nn.Linear:
    """The layer itself.

    Raises TypeError for one that computes something else than its weight and bias say: with adapters, or quantised.
    """
    if isinstance(linear, nn.Linear) and (type(linear) is nn.Linear or is_parametrized(linear)):
        return linear
    raise TypeError(
        f"a {type(linear).__module__}.{type(linear).__name__} has taken the place of a linear layer, and its weight "
        "alone is not what it computes; merge adapters (peft: merge_and_unload()) or do not quantise the model"
    )
