"""ViT-Prisma's layout: a folder of `config.json` and the weights, as safetensors or as torch.save writes tensors."""

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

CONFIG = "config.json"
WEIGHTS = ("weights.safetensors", "model.safetensors", "weights.pt")
TENSORS = {
    "standard": {**COMMON, "b_enc": "b_enc"},
    # a gated one has a b_enc that nothing reads
    "gated": {**COMMON, "b_enc": "", "b_gate": "b_enc", "b_mag": "b_mag", "r_mag": "r_mag"},
}
TRAINING = (
    *("model_class_name", "model_name", "vit_model_cfg", "model_path", "context_size", "image_size"),
    *("use_cached_activations", "cached_activations_path", "b_dec_init_method", "from_pretrained_path"),
    *("transcoder_with_skip_connection", "out_hook_point_layer", "layer_out_subtype", "d_out"),
    *("_device", "device", "seed", "max_grad_norm", "initialization_method", "is_training"),
    *("n_batches_in_buffer", "store_batch_size", "num_workers", "num_epochs", "verbose"),
    *("l1_coefficient", "lp_norm", "lr", "lr_scheduler_name", "lr_warm_up_steps", "train_batch_size"),
    *("min_l0", "min_explained_variance", "dataset_name", "dataset_path", "dataset_train_path", "dataset_val_path"),
    *("use_ghost_grads", "feature_sampling_window", "dead_feature_window", "dead_feature_threshold"),
    *("log_to_wandb", "wandb_project", "wandb_entity", "wandb_log_frequency", "n_validation_runs", "n_checkpoints"),
    *("checkpoint_path", "total_training_images", "total_training_tokens"),
)
"""How it was trained, which changes nothing of what it computes."""


def load(path: Path) -> Sae:
    """The dictionary of a folder that ViT-Prisma saved.

    Raises ValueError for an architecture, activation, field, tensor or site that is not known, for a transcoder, and
    for weights that are pickled together with a config.
    """
    where = str(path / CONFIG)
    fields = Fields(read_json(path / CONFIG), where)
    fields.expect(
        "is_transcoder", False, "a transcoder writes elsewhere than it reads, and is no dictionary of one site"
    )
    fields.expect("hook_point_head_index", None, "a dictionary of one head has no site")
    form = fields.word("architecture", {name: name for name in TENSORS}, "standard")
    d_in, factor = fields.take("d_in"), fields.take("expansion_factor", None)
    d_sae = fields.take("d_sae", None)
    kind = fields.word("activation_fn_str", {name: name for name in ("relu", "tanh-relu", "topk")})
    inside = Fields(fields.take("activation_fn_kwargs", None) or {}, f"{where}, activation_fn_kwargs")
    k = inside.whole("k") if kind == "topk" else None
    inside.done()
    norm = fields.word("normalize_activations", NORMS, "none")
    dtype = fields.word("_dtype", {p + name: dt for name, dt in DTYPES.items() for p in ("", "torch.")}, "float32")
    only = [
        role for name, role in (("cls_token_only", "cls"), ("use_patches_only", "patches")) if fields.truth(name, False)
    ]
    layer, site = place_of(f"blocks.{fields.take('hook_point_layer')}.{fields.take('layer_subtype')}", where)
    fields.ignore(*TRAINING)
    fields.done()
    if form == "gated" and kind == "tanh-relu":
        raise ValueError(f"{where}: a gated dictionary of tanh-relu is not known")
    weights = one_file(path, WEIGHTS)
    tensors = tensors_named(read_tensors(weights), TENSORS[form], weights)
    check_size(where, {"d_in": d_in, **_features(d_in, factor, d_sae)}, tensors["W_dec"])
    activation = "gated" if form == "gated" else kind.replace("-", "_")
    made: dict[str, Any] = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    made |= {"activation": activation, "k": k, "norm": norm, "tokens": only[0] if only else None}
    return Sae(**made, layer=layer, site=site, source=f"prisma {form}")


def _features(d_in: Any, factor: Any, d_sae: Any) -> dict[str, Any]:
    """How many features the config says there are, under the name it says it by."""
    if factor is not None and isinstance(d_in, int):
        return {"d_in × expansion_factor": d_in * factor}
    return {} if d_sae is None else {"d_sae": d_sae}
