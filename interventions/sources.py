"""Activations of another run, as the value of an edit: from a cache, a tensor, or the pixels to run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hooked_vit import ActivationCache, HookedViT
from hooked_vit.components.watching import watched
from hooked_vit.tokens import Tokens
from interventions.vocabulary import site_hook, site_shape

_SHARED: ContextVar[dict[Any, dict[str, Tensor]] | None] = ContextVar("shared_source_runs", default=None)


def from_cache(value: Any, site: str, layer: int, tokens: Tokens) -> Any:
    """A cache becomes the tokens it holds of a site, so that the intervention can be stored; a tensor stays.

    Raises ValueError where the cache does not hold it.
    """
    if not isinstance(value, ActivationCache):
        return value
    try:
        return value.at(site, layer, tokens=tokens)
    except KeyError as missing:
        raise ValueError(str(missing)) from None


def source_value(model: HookedViT, value: Tensor, site: str, layer: int, tokens: Tokens) -> Tensor:
    """The value itself, or where it is pixels [b c h w] the activation they have at this site, of these tokens.

    Raises ValueError for pixels where hooks are attached to the model: whose run is meant could not be told.
    """
    per_head = len(site_shape(model, site)) == 2
    if value.ndim != 4 or (per_head and value.shape[-2:] == site_shape(model, site)):
        return value
    name = site_hook(model, site, layer)
    key = id(model), id(value), site, tokens
    shared = _SHARED.get()
    if shared is None:
        return run_pixels(model, value, [name], tokens, stop_at_layer=layer + 1)[name]
    if key not in shared:
        shared[key] = run_pixels(model, value, [site_hook(model, site, l) for l in range(model.cfg.n_layers)], tokens)
    return shared[key][name]


def run_pixels(
    model: HookedViT,
    pixels: Float[Tensor, "b c h w"],
    names: Sequence[str],
    tokens: Tokens | None = None,
    *,
    stop_at_layer: int | None = None,
) -> dict[str, Tensor]:
    """Activations of a clean run by name, of some tokens or whole.

    Raises ValueError where hooks are attached to the model.
    """
    if any(watched(point) for point in model.hook_points()):
        raise ValueError(
            "pixels to patch from are run through the model as it is, and hooks are attached to it; make the "
            "intervention outside, or give the activation itself"
        )
    kept: dict[str, Tensor] = {}

    def keep(act: Tensor, hook: Any) -> None:
        kept[hook.name] = act if tokens is None else act[:, model.tokens.mask(tokens)]

    with torch.no_grad(), model.hooks([(name, keep) for name in names]):
        model(pixels, stop_at_layer=stop_at_layer)
    return kept


def mean_over_images(runs: Iterable[Mapping[str, Float[Tensor, "b ..."]]]) -> dict[str, Float64[Tensor, "1 ..."]]:
    """Activations by name on average over the images of all batches, as a batch of one; in float64.

    >>> mean_over_images([{"x": torch.tensor([[1.0], [2.0]])}, {"x": torch.tensor([[6.0]])}])["x"].tolist()
    [[3.0]]

    Raises ValueError for no images.
    """
    total: dict[str, Tensor] = {}
    n = 0
    for run in runs:
        for name, x in run.items():
            summed = x.double().sum(0, keepdim=True)
            total[name] = total[name] + summed if name in total else summed
        n += len(next(iter(run.values())))
    if not n:
        raise ValueError("a mean is over at least one image; got none")
    return {name: summed / n for name, summed in total.items()}


@contextmanager
def shared_runs() -> Iterator[None]:
    """While this lasts, the same pixels are run once for all layers they are patched into."""
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)
