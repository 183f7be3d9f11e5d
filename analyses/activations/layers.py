"""Which layers an analysis measures, where it was told to measure some: checked before anything runs, and said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

from analyses.running.notice import remark
from analyses.running.registry import meanwhile
from hooked_vit import HookedViT
from hooked_vit.components.watching import watched
from interventions.vocabulary import layers_of


def measured_layers(model: HookedViT, layers: Sequence[int] | None) -> list[int]:
    """The layers that are measured, in their order, each once; all of them where None is named.

    >>> measured_layers(vit, (-1, 0))  # doctest: +SKIP
    [0, 11]

    Raises ValueError for a layer the model has not.
    """
    return sorted(layers_of(model, layers))


def said_layers(meta: Mapping[str, Any]) -> list[str]:
    """Where a result is of some layers, a sentence that says so: findings name first and last ones.

    >>> said_layers({"layers": [3]})
    ['Only layer 3 was measured: where a first or a last layer is named, it is the first or last of these.']
    """
    named = meta.get("layers")
    layers = [named] if isinstance(named, Integral) else list(named or ())
    if not layers:
        return []
    spoken = f"layer {layers[0]} was" if len(layers) == 1 else f"layers {', '.join(map(str, layers))} were"
    return [f"Only {spoken} measured: where a first or a last layer is named, it is the first or last of these."]


def stop_behind(model: HookedViT, layers: Sequence[int]) -> int | None:
    """Where a run that is read at these layers, and gives no answer, stops: behind the last of them.

    >>> model(pixels, stop_at_layer=stop_behind(model, (1, 3)))  # 4 blocks  # doctest: +SKIP

    Where hooks are attached to the model it goes on to its end, as some may wait there.
    """
    return None if any(watched(point) for point in model.hook_points()) else max(layers) + 1


def _as_int(layer: Any) -> Any:
    return layer if isinstance(layer, bool) or not isinstance(layer, Integral) else int(layer)


@contextmanager
def layers_in_use(layers: int | Sequence[int], models: Mapping[str, HookedViT] | None) -> Iterator[list[int]]:
    """Refuse layers that a model has not before any of them runs, and note which were measured.

    Raises what `measured_layers` raises, with the model's name.
    """
    named: Any = layers  # numpy's whole numbers are some too, but none of ours
    layers = [_as_int(layer) for layer in ([named] if isinstance(named, Integral) else named)]
    for name, model in (models or {}).items():
        try:
            measured_layers(model, layers)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    for sentence in said_layers({"layers": layers}):
        remark(sentence)
    yield layers


meanwhile("layers", layers_in_use)
