"""timm's checkpoints as files: what a name or a config.json says of a model, and of how images are prepared."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

from PIL import Image

from hooked_vit.errors import CheckpointError, UnsupportedModelError, nearest
from hooked_vit.processing import centre_cropping

PLAIN, DISTILLED, EVA = "VisionTransformer", "VisionTransformerDistilled", "Eva"
# VisionTransformer's own defaults, of everything that inference depends on; `eps` is its norm layer's.
DEFAULTS: dict[str, Any] = {
    "img_size": 224,
    "patch_size": 16,
    "in_chans": 3,
    "num_classes": 1000,
    "global_pool": "token",
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "init_values": None,
    "class_token": True,
    "no_embed_class": False,
    "reg_tokens": 0,
    "pre_norm": False,
    "final_norm": True,
    "fc_norm": None,
    "pool_include_prefix": False,
    "mlp_layer": "Mlp",
    "act_layer": "gelu",
    "eps": 1e-6,
    "block_fn": "Block",
    "label_names": None,
}


EVA_DEFAULTS: dict[str, Any] = {
    "img_size": 224,
    "patch_size": 16,
    "in_chans": 3,
    "num_classes": 1000,
    "global_pool": "avg",
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "qkv_bias": True,
    "qkv_fused": True,
    "mlp_ratio": 4.0,
    "swiglu_mlp": False,
    "swiglu_align_to": 0,
    "scale_mlp": False,
    "scale_attn_inner": False,
    "attn_type": "eva",
    "init_values": None,
    "class_token": True,
    "num_reg_tokens": 0,
    "no_embed_class": False,
    "use_abs_pos_emb": True,
    "use_rot_pos_emb": False,
    "rope_type": "cat",
    "rope_grid_offset": 0.0,
    "rope_grid_indexing": "ij",
    "rope_temperature": 10000.0,
    "rope_rotate_half": False,
    "ref_feat_shape": None,
    "use_post_norm": False,
    "use_pre_transformer_norm": False,
    "use_post_transformer_norm": None,
    "use_fc_norm": None,
    "attn_pool_num_heads": None,
    "attn_pool_mlp_ratio": None,
    "eps": 1e-6,
    "label_names": None,
}


# what a config.json says besides: where the file came from, and how images were prepared
TOLD_ELSEWHERE = ("architecture", "num_features", "pretrained_cfg", "label_descriptions", "model_args", "model_type")


class Settings(SimpleNamespace):
    """timm's keyword arguments, as a config that can be read and listed."""

    def to_dict(self) -> dict[str, Any]:
        """All of them by name."""
        return dict(vars(self))


@cache
def known() -> dict[str, dict[str, Any]]:
    """timm's name of a model -> what it builds it with, beside the defaults."""
    names = {"models.json": PLAIN, "eva_models.json": EVA}
    read = {file: json.loads(files(__package__).joinpath(file).read_text(encoding="utf-8")) for file in names}
    return {name: {"class": names[file]} | built for file, models in read.items() for name, built in models.items()}


def settings(source: Mapping[str, Any] | str, **changes: Any) -> tuple[str, Settings]:
    """The class and the settings of a config.json, or of a model of this name, with some of them changed.

    Raises UnsupportedModelError for a model whose graph is not known here, CheckpointError for a setting it has not.
    """
    config: dict[str, Any] = {"architecture": source} if isinstance(source, str) else dict(source)
    name = str(config.get("architecture")).partition(".")[0]  # behind the dot: which weights, not which graph
    if name not in known():
        raise UnsupportedModelError(
            f"timm builds {name!r} from parts this version has no graph for, or under settings it does not know"
            f"{nearest(name, known())}. Known are: {', '.join(known())}"
        )
    built = dict(known()[name])
    their_class = DISTILLED if built.pop("distilled", False) else built["class"]
    del built["class"]
    defaults = EVA_DEFAULTS if their_class == EVA else DEFAULTS
    if strange := sorted(set(config) - set(defaults) - set(TOLD_ELSEWHERE)):
        raise CheckpointError(f"timm's config.json holds entries nobody here knows: {', '.join(strange)}")
    given = config.get("pretrained_cfg") or {}
    if size := given.get("input_size"):
        built |= {"in_chans": size[0], "img_size": tuple(size[1:])}
    arguments = {key: value for key, value in (config.get("model_args") or {}).items() if value is not None}
    root = {key: config[key] for key in ("num_classes", "label_names") if config.get(key) is not None}
    found = defaults | built | root | arguments | changes
    said = config.get("global_pool", found["global_pool"])
    if said != found["global_pool"] and "global_pool" not in changes:
        raise CheckpointError(
            f"config.json says global_pool={said!r}, and timm builds {name} with {found['global_pool']!r}: say "
            "which it was trained with, global_pool=…"
        )
    return their_class, Settings(**found)


RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def processor(config: Mapping[str, Any]) -> Any:
    """timm's evaluation transform of a config.json: resize, centre crop, scale to 0..1, normalise.

    Raises CheckpointError where the file does not say how, or says it in a way that is not known here.
    """
    how = config.get("pretrained_cfg") or {}
    needs = ("input_size", "mean", "std", "interpolation", "crop_pct")
    if missing := [key for key in needs if how.get(key) is None]:
        raise CheckpointError(f"timm's config.json does not say how images are prepared: no {', '.join(missing)}")
    mode = how.get("crop_mode") or "center"
    height, width = how["input_size"][1:]
    is_known = mode in ("center", "squash") and (mode == "squash" or height == width)
    if not is_known or how["interpolation"] not in RESAMPLING or not 0 < how["crop_pct"] <= 1:
        raise CheckpointError(
            f"images prepared with crop_mode={mode!r}, crop_pct={how['crop_pct']}, "
            f"interpolation={how['interpolation']!r} to {height} x {width} pixels are not known here"
        )
    resized = [math.floor(side / how["crop_pct"]) for side in (height, width)]
    return centre_cropping(
        size={"shortest_edge": resized[0]} if mode == "center" else {"height": resized[0], "width": resized[1]},
        crop=(height, width),
        resample=RESAMPLING[how["interpolation"]],
        mean=list(how["mean"]),
        std=list(how["std"]),
    )


def sizes_of(model: Any) -> dict[str, Any]:
    """The sizes that all models in memory spell alike."""
    embed = model.patch_embed
    return {
        "img_size": tuple(embed.img_size),
        "patch_size": tuple(embed.patch_size),
        "in_chans": embed.proj.in_channels,
        "num_classes": model.num_classes,
        "global_pool": model.global_pool,
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
    }
