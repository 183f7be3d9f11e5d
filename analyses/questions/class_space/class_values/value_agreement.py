"""Whether a layer holds a value vector that points at each class: from the weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from analyses.activations.layers import measured_layers
from analyses.controls.random_weights import with_random_weights
from analyses.questions.class_space.measures.image_means import interval_rows
from analyses.questions.class_space.measures.memories import PARTS, expected_largest_cosine, promotion, value_vectors
from analyses.questions.class_space.measures.projection import AS_TRAINED, Rules, check_rules
from analyses.questions.class_space.measures.random_prototypes import with_random_prototypes
from analyses.statistics.significance import holm, sign_flip_test
from hooked_vit import HookedViT

Scores = dict[tuple[int, str, str], np.ndarray]


def value_agreement(
    model: HookedViT, rules: Rules = AS_TRAINED, *, layers: Sequence[int] | None = None, fold_gain: bool = False
) -> Scores:
    """(layer, part, role) -> for every class the largest cosine that any value vector of the layer has with it.

    >>> value_agreement(model)[11, "mlp", "cls"].mean()  # doctest: +SKIP

    Roles are those the readout reads, each with its own class vectors. Weights only: no norm, no bias, no LayerScale
    (but see `fold_gain` of `value_vectors`). `layers` are all where none are named. Source: methods §17.
    """
    at = measured_layers(model, layers)
    return {
        (layer, part, role): promotion(model, layer, part, role, rules, fold_gain=fold_gain, unit=True)
        .amax(1).double().cpu().numpy()
        for layer in at for part in PARTS for role in model.cfg.sources
    }  # fmt: skip


@torch.no_grad()
def measure_value_agreement(
    model: HookedViT,
    *,
    layers: Sequence[int] | None = None,
    random_seeds: Sequence[int] = (0, 1, 2),
    fold_gain: bool = False,
    rules: Rules = AS_TRAINED,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Everything §17 asks of one model, at `layers` or at all; no images.

    >>> rows = measure_value_agreement(model)  # doctest: +SKIP

    Rows hold measure, control, seed, layer, part, tokens, value, low, high, n (classes): `agreement` is the mean over
    classes, with an interval over classes and, against the mean of the random models, the one-sided sign-flip
    test over classes (`p`, and `p_adjusted` by Holm over layers); `agreement_of_class` one value per class. Control
    `random` are models with random weights and a head of their own, `chance` random directions.
    """
    check_rules(model, rules)
    asked: dict[str, Any] = {"layers": layers, "fold_gain": fold_gain}
    trained = value_agreement(model, rules, **asked)
    random = {
        s: value_agreement(with_random_weights(model, s), with_random_prototypes(rules, s), **asked)
        for s in random_seeds
    }
    p_values = {key: _above(values, [r[key] for r in random.values()], seed) for key, values in trained.items()}
    adjusted = _adjusted(p_values) if random else {}
    rows: list[dict[str, Any]] = []
    for key, row in interval_rows(trained):
        at = {"seed": None, "layer": key[0], "part": key[1], "tokens": key[2]}
        tested = {"p": p_values[key], "p_adjusted": adjusted[key]} if random else {}
        rows.append({"measure": "agreement", "control": "trained", **at, **row, **tested})
        luck = expected_largest_cosine(len(value_vectors(model, key[0], key[1])), model.cfg.d_model)
        flat = {"value": luck, "low": luck, "high": luck, "n": row["n"]}
        rows.append({"measure": "agreement", "control": "chance", **at, **flat})
        each = {"measure": "agreement_of_class", "control": "trained", **at, "n": 1}
        rows += [{**each, "class": c, "value": float(value)} for c, value in enumerate(trained[key])]
    for s, scores in random.items():
        for (layer, part, role), row in interval_rows(scores):
            at = {"seed": s, "layer": layer, "part": part, "tokens": role}
            rows.append({"measure": "agreement", "control": "random", **at, **row})
    return rows


def _above(trained: np.ndarray, random: Sequence[np.ndarray], seed: int) -> float:
    if not random:
        return float("nan")
    return sign_flip_test(trained - np.mean(random, axis=0), seed=seed)


def _adjusted(p: dict[tuple[int, str, str], float]) -> dict[tuple[int, str, str], float]:
    """Holm over the layers of each part and role."""
    found: dict[tuple[int, str, str], float] = {}
    for series in dict.fromkeys(key[1:] for key in p):
        keys = [key for key in p if key[1:] == series]
        found |= dict(zip(keys, holm([p[key] for key in keys]), strict=True))
    return found
