"""saev's layout: one file, a line of JSON and behind it the tensors as torch.save writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interventions.dictionaries.reading import Fields, check_size, fields_of, read_tensors, tensors_named
from interventions.dictionaries.sae import Sae

TENSORS = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
TRAINING = (
    *("n_reinit_samples", "remove_parallel_grads", "normalize_w_dec", "seed", "reinit_blend"),
    *("reinit_enc_dec_tranpose", "sparsity_coeff", "ghost_grads", "l1_coeff", "use_ghost_grads"),
)
CURRENT = (2, 3, 4, 5)
ACTIVATIONS = {"Relu": "relu", "TopK": "signed_topk", "BatchTopK": "jumprelu"}


def load(
    path: Path,
    *,
    input_mean: Tensor | None = None,
    input_scale: float = 1.0,
    layer: int | None = None,
    site: str | None = None,
) -> Sae:
    """The dictionary of a file that saev saved: schemas 2 to 5, and the first one, which has no schema and `d_vit`.

    The first one subtracts the decoder's bias from its input, the others do not; TopK keeps values below zero;
    BatchTopK is what it is at inference, a threshold. `input_mean` and `input_scale` are those of the activations it
    was trained on, where they were normalised (`scale_mean`, `scale_norm`); the file does not hold them, nor layer and
    site.
    Raises ValueError for an unknown schema, field, activation or tensor, and for sizes that disagree.
    """
    with path.open("rb") as opened:
        fields = Fields(fields_of(opened.readline(), path), str(path))
        found = read_tensors(path, opened)
    if first := "schema" not in fields.left and "d_vit" in fields.left:
        activation, inside, size = "Relu", Fields({}, str(path)), _size(fields, "d_vit")
    else:
        if (schema := fields.take("schema")) not in CURRENT:
            raise ValueError(f"{path}: schema {schema!r} is not known; {', '.join(map(str, CURRENT))} are")
        fields.ignore("commit", "lib")
        outer = fields
        fields = Fields(outer.take("cfg"), f"{path}, cfg")
        outer.done()
        kind = Fields(fields.take("activation"), f"{path}, activation")
        activation = kind.word("cls", {name: name for name in ACTIVATIONS})
        inside = Fields(kind.take("params"), f"{path}, activation")
        kind.done()
        size = _size(fields, "d_model")
    k = inside.whole("top_k") if activation in ("TopK", "BatchTopK") else None
    inside.ignore("key", "kind", "sparsity", "aux", "momentum")
    inside.done()
    fields.ignore(*TRAINING)
    fields.done()
    batched = activation == "BatchTopK"
    names = TENSORS | ({"activation.threshold": "threshold"} if batched else {})
    tensors = tensors_named(found, names, path)
    check_size(str(path), size, tensors["W_dec"])
    if batched:
        bound = tensors["threshold"].clamp(min=0).to(tensors["b_enc"])
        tensors["threshold"] = bound.expand_as(tensors["b_enc"]).clone()
    made: dict[str, Any] = {**tensors, "activation": ACTIVATIONS[activation], "centred": first}
    made |= {"k": k if activation == "TopK" else None, "input_scale": float(input_scale)}
    if input_mean is not None:
        made["input_mean"] = torch.as_tensor(input_mean, dtype=tensors["W_dec"].dtype)
    return Sae(**made, layer=layer, site=site, source=f"saev {activation}")


def _size(fields: Fields, width: str) -> dict[str, Any]:
    d = fields.whole(width)
    if "d_sae" in fields.left:
        return {width: d, "d_sae": fields.whole("d_sae")}
    return {width: d, "exp_factor": d * fields.whole("exp_factor")}
