"""SAELens' layout, of version 6: a folder of `cfg.json` and `sae_weights.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interventions.dictionaries.reading import (
    COMMON,
    DTYPES,
    NORMS,
    Fields,
    check_size,
    one_file,
    place_of,
    read_json,
    read_tensors,
    tensors_named,
)
from interventions.dictionaries.sae import Sae

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
AVERAGE = "expected_average_only_in"
TENSORS = {
    "standard": {**COMMON, "b_enc": "b_enc"},
    "topk": {**COMMON, "b_enc": "b_enc"},
    "jumprelu": {**COMMON, "b_enc": "b_enc", "threshold": "threshold"},
    "gated": {**COMMON, "b_gate": "b_enc", "b_mag": "b_mag", "r_mag": "r_mag"},
}
ACTIVATIONS = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}


def load(path: Path, *, input_scale: float | None = None) -> Sae:
    """The dictionary of a folder that SAELens saved for inference; BatchTopK is saved as JumpReLU.

    `input_scale` is what inputs are divided by, for a file that says "expected_average_only_in" and leaves it open.
    Raises ValueError for an architecture, field or tensor that is not known, and for sizes that disagree.
    """
    where = str(path / CONFIG)
    fields = Fields(read_json(path / CONFIG), where)
    if "metadata" not in fields.left:
        raise ValueError(
            f"{where} has no field 'metadata': it is older than SAELens 6; load and save it with a newer one"
        )
    form = fields.word("architecture", {name: name for name in TENSORS})
    size = {"d_in": fields.whole("d_in"), "d_sae": fields.whole("d_sae")}
    centred = fields.truth("apply_b_dec_to_input", True)
    norms = NORMS if input_scale is None else {AVERAGE: "none"}
    norm = fields.word("normalize_activations", norms, "none")
    reshaped = fields.word("reshape_activations", {"none": False, "hook_z": True}, "none")
    k = fields.whole("k") if form == "topk" else None
    by_norm = fields.truth("rescale_acts_by_decoder_norm", False) if form == "topk" else False
    dtype = fields.word(
        "dtype", {prefix + name: dt for name, dt in DTYPES.items() for prefix in ("", "torch.")}, "float32"
    )
    metadata = Fields(fields.take("metadata"), f"{where}, metadata").left
    fields.ignore("device")
    fields.done()
    tensors = tensors_named(read_tensors(one_file(path, [WEIGHTS])), TENSORS[form], path / WEIGHTS)
    check_size(where, size, tensors["W_dec"])
    if by_norm:
        # activations are those along directions of length 1
        lengths = tensors["W_dec"].norm(dim=-1)
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * lengths, tensors["b_enc"] * lengths
        tensors["W_dec"] = tensors["W_dec"] / lengths[:, None]
    made: dict[str, Any] = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    made |= {"activation": ACTIVATIONS[form], "k": k, "centred": centred, "norm": norm}
    made |= {"input_scale": input_scale or 1.0, **_place(metadata, reshaped, where)}
    return Sae(**made, source=f"saelens {form}")


def _place(about: dict[str, Any], reshaped: bool, where: str) -> dict[str, Any]:
    """Layer and site; of the metadata only what says where the dictionary reads and writes is understood."""
    hook, out = about.get("hook_name"), about.get("hook_name_out")
    if out not in (None, hook):
        raise ValueError(f"{where}: it reads {hook!r} and writes {out!r}: a transcoder is no dictionary of one site")
    if about.get("hook_head_index") is not None:
        raise ValueError(
            f"{where}: hook_head_index={about['hook_head_index']!r}; a dictionary of one head is not known"
        )
    if hook is None:
        return {}
    layer, site = place_of(hook, where)
    if reshaped != (site == "z"):
        raise ValueError(f"{where}: heads are read side by side at hook_z alone; it says hook_name={hook!r}")
    return {"layer": layer, "site": site}
