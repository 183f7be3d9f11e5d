"""Running a circuit alone: every edge outside it carries something else than what its sender says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hooked_vit import HookedViT
from interventions.circuits import Circuit, Graph
from interventions.core import Hooks, intervention
from interventions.vocabulary import Where, check_where
from interventions.wiring import Outputs, Wiring, check_outputs, outputs_of


def _stored(**params: Any) -> dict[str, Any]:
    """The circuit and the values of its parts as mappings, so that the intervention can be stored."""
    circuit, value = params["circuit"], params["value"]
    circuit = circuit.to_dict() if isinstance(circuit, Circuit) else circuit
    return params | {"circuit": circuit, "value": value._asdict() if isinstance(value, Outputs) else value}


@intervention(canonical=_stored, whole_run=True)
def only(
    model: HookedViT,
    circuit: Mapping[str, Any],
    value: Tensor | Mapping[str, Tensor] | None = None,
    where: Where = True,
) -> Hooks:
    """Keep the edges of a circuit; on all others, what the sender writes is replaced before the receiver reads it.

    >>> only(Circuit.load("circuit.json"), value=other_images)  # doctest: +SKIP

    `value` is None for zeros, the pixels [b c h w] of other images, one per image (one extra run), or `Outputs` such
    as means. A circuit of all edges is the model itself, bit by bit; with one of none the readout reads the values
    alone. `where` is one number, or one per image [b]: how far the edges outside are replaced; the gradient in it is
    edge attribution (Syed et al. 2023).
    Raises ValueError for a circuit of another model, and for values of another width or number of images.
    """
    mask = Circuit.from_dict(circuit).on(model)
    weight = check_where(where)
    if isinstance(value, Tensor):
        model.check_pixels(value)
        values: Outputs | None = outputs_of(model, value)
    else:
        values = None if value is None else check_outputs(model, value)
    outside = (Graph.of(model).exists & ~mask).to(torch.get_default_dtype())
    if not weight.requires_grad and not weight.any():
        outside = torch.zeros_like(outside)
    whole = weight.ndim == 0 and not weight.requires_grad and bool(weight == 1)
    return Wiring(model, outside, values, None if whole else weight).hooks()
