"""Overcomplete's layout: the state_dict() of an SAE with its linear encoder, saved as safetensors or with torch.save.

The library saves whole modules, which cannot be loaded without running code, and its state says neither which
activation there is nor how large k: those are settings here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interventions.dictionaries.reading import read_tensors, tensors_named
from interventions.dictionaries.sae import Sae

ENCODER = {"encoder.final_block.0.weight": "W_enc", "encoder.final_block.0.bias": "b_enc"}
DICTIONARY = {"dictionary._weights": "W_dec", "dictionary.multiplier": "multiplier"}
ACTIVATIONS = ("relu", "topk", "jump", "batch_topk")
NORMALISATIONS = ("l2", "max_l2", "l1", "max_l1", "identity")


def load(
    path: Path,
    *,
    activation: str,
    k: int | None = None,
    threshold: float | None = None,
    normalization: str = "l2",
    input_mean: Tensor | None = None,
    input_scale: float = 1.0,
    layer: int | None = None,
    site: str | None = None,
) -> Sae:
    """The dictionary of an SAE ("relu"), TopKSAE ("topk" and `k`), JumpSAE ("jump") or BatchTopKSAE ("batch_topk").

    A BatchTopKSAE keeps its `running_threshold` beside its state: give it as `threshold`. `normalization` is that of
    the dictionary layer, `input_mean` and `input_scale` those of the activations it was trained on, where they were
    normalised. There is no decoder bias, and nothing else is subtracted from the input.
    Raises ValueError for a tensor that has no place, such as of another encoder than the linear one, and for settings
    that an activation lacks or has no use for.
    """
    for value, known, what in (
        (activation, ACTIVATIONS, "activation"),
        (normalization, NORMALISATIONS, "normalization"),
    ):
        if value not in known:
            raise ValueError(f"{what} is one of {', '.join(known)}; got {value!r}")
    if (threshold is not None) != (activation == "batch_topk"):
        raise ValueError(f"the running_threshold of a BatchTopKSAE, and of nothing else, is given; got {threshold!r}")
    names = ENCODER | DICTIONARY | ({"thresholds": "threshold"} if activation == "jump" else {})
    tensors = tensors_named(read_tensors(path), names, path)
    directions = _normalised(tensors["W_dec"], normalization) * tensors.pop("multiplier").exp()
    if activation == "jump":
        tensors["threshold"] = tensors["threshold"].exp()
    elif threshold is not None:
        # what is at the threshold is kept there, and above it here
        bound = torch.full_like(tensors["b_enc"], threshold)
        tensors["threshold"] = bound.nextafter(torch.full_like(bound, -torch.inf))
    made: dict[str, Any] = {**tensors, "W_enc": tensors["W_enc"].T.contiguous(), "W_dec": directions}
    made |= {"b_dec": directions.new_zeros(directions.shape[-1]), "centred": False, "k": k}
    made |= {"activation": {"jump": "jumprelu", "batch_topk": "jumprelu"}.get(activation, activation)}
    if input_mean is not None:
        made["input_mean"] = torch.as_tensor(input_mean, dtype=directions.dtype)
    made["input_scale"] = float(input_scale)
    return Sae(**made, layer=layer, site=site, source=f"overcomplete {activation}")


def _normalised(weights: Tensor, how: str) -> Tensor:
    """The directions as the dictionary layer brings them to their length."""
    if how == "identity":
        return weights
    lengths = weights.norm(p=1 if how.endswith("l1") else 2, dim=1, keepdim=True)
    return weights / (lengths.amax() if how.startswith("max") else lengths + 1e-8)
