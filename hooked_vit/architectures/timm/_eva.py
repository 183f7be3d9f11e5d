"""timm's Eva: EVA-02, Perception Encoder, DINOv3 and other models with rotary positions, told apart by its arguments.

Beside VisionTransformer it has gated MLPs, norms inside a branch, keys without a bias, and rotary positions.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from torch import Tensor

from hooked_vit.architectures.base import ConfigReader, linears
from hooked_vit.architectures.timm._files import EVA, EVA_DEFAULTS, Settings, sizes_of
from hooked_vit.architectures.timm._pool import acts, pool_settings, pooling, strange_pool
from hooked_vit.config import Role, RotaryPositions, ViTConfig
from hooked_vit.errors import UnsupportedModelError

ROPES = {"RotaryEmbeddingCat": "cat", "RotaryEmbeddingDinoV3": "dinov3", "RotaryEmbeddingMixed": "mixed"}
MLPS = ("Mlp", "GluMlp", "SwiGLU")
BLOCKS = ("EvaBlock", "EvaBlockPostNorm")

KEYS = linears(
    {
        "blocks.{l}.attn.ln": "blocks.{l}.attn.norm",
        "blocks.{l}.mlp.fc_in": "blocks.{l}.mlp.fc1|blocks.{l}.mlp.fc1_x",
        "blocks.{l}.mlp.fc_gate": "blocks.{l}.mlp.fc1_g",
        "blocks.{l}.mlp.ln": "blocks.{l}.mlp.norm",
    }
) | {"blocks.{l}.attn.rotary.freqs": "blocks.{l}.attn.rope.freqs"}
# tables that follow from the settings, in files of older versions; how weights lie in the file
IRRELEVANT_TENSORS = ("rope.bands", "rope.periods", "rope.pos_embed*")
IRRELEVANT_SETTINGS = ("qkv_fused",)


def settings_of(model: Any) -> Settings:
    """The settings of an Eva in memory, read off its modules.

    Raises UnsupportedModelError for a module that the graph has no place for.
    """
    block, rope = model.blocks[0], model.rope
    attn, mlp = block.attn, block.mlp
    every = [norm for b in model.blocks for norm in (b.norm1, b.norm2, b.attn.norm, b.mlp.norm)]
    others = (model.norm, model.fc_norm, model.norm_pre, getattr(model.attn_pool, "norm", None))
    norms = [norm for norm in (*every, *others) if acts(norm)]
    scales = [getattr(block, name, None) for name in ("gamma_1", "gamma_2")]
    unknown = [
        *(f"{part} of blocks" for part in ("q_norm", "k_norm", "gate") if acts(getattr(attn, part, None))),
        *(["fewer keys than queries"] if getattr(attn, "num_kv_groups", 1) != 1 else []),
        *(["heads of another width"] if attn.head_dim * attn.num_heads != model.embed_dim else []),
        *(["LayerScale on one branch"] if (scales[0] is None) != (scales[1] is None) else []),
        *strange_pool(model, "GELU"),
        *(f"{name} for layer norm" for name in sorted({type(n).__name__ for n in norms} - {"LayerNorm"})),
        *(f"{name} for blocks" for name in sorted({type(b).__name__ for b in model.blocks} - set(BLOCKS))),
        *([f"{type(mlp).__name__} for the MLP"] if type(mlp).__name__ not in MLPS else []),
        *([f"activation {type(mlp.act).__name__}"] if type(mlp.act).__name__ not in ("GELU", "SiLU") else []),
        *([f"{type(rope).__name__} for positions"] if rope is not None and type(rope).__name__ not in ROPES else []),
    ]
    if unknown:
        raise UnsupportedModelError(f"no hook graph for an {EVA} with {', '.join(unknown)}")
    if len(eps := {norm.eps for norm in norms}) != 1:
        raise UnsupportedModelError(f"no hook graph for norms that differ in their eps: {sorted(eps)}")
    return Settings(
        **EVA_DEFAULTS
        | sizes_of(model)
        | {
            "num_heads": attn.num_heads,
            "qkv_bias": any(key.endswith(("q_bias", "q_proj.bias", "qkv.bias")) for key, _ in attn.named_parameters()),
            "mlp_ratio": Fraction(mlp.fc2.in_features, model.embed_dim),
            "swiglu_mlp": type(mlp).__name__ != "Mlp",
            "scale_mlp": acts(mlp.norm),
            "scale_attn_inner": acts(attn.norm),
            "attn_type": "rope" if type(attn).__name__ == "AttentionRope" else "eva",
            "init_values": 1.0 if scales[0] is not None else None,
            "class_token": model.cls_token is not None,
            "num_reg_tokens": 0 if model.reg_token is None else model.reg_token.shape[1],
            "no_embed_class": bool(model.no_embed_class),
            "use_abs_pos_emb": model.pos_embed is not None,
            "use_post_norm": type(block).__name__ == "EvaBlockPostNorm",
            "use_pre_transformer_norm": acts(model.norm_pre),
            "use_post_transformer_norm": acts(model.norm),
            "use_fc_norm": acts(model.fc_norm),
            "eps": eps.pop(),
            **pool_settings(model),
            **({"use_rot_pos_emb": True} | _rope_of(rope) if rope is not None else {}),
        }
    )


def _rope_of(rope: Any) -> dict[str, Any]:
    usual = {"in_pixels": False, "grid_type": "index", "normalize_coords": "separate", "min_period": None}
    if other := {name: found for name in usual if (found := getattr(rope, name, usual[name])) != usual[name]}:
        raise UnsupportedModelError(f"no hook graph for rotary positions with {other}")
    return {
        "rope_type": ROPES[type(rope).__name__],
        "rope_grid_offset": getattr(rope, "grid_offset", 0.0),
        "rope_grid_indexing": rope.grid_indexing,
        "rope_temperature": rope.temperature,
        "rope_rotate_half": getattr(rope, "rotate_half", False),
        "ref_feat_shape": getattr(rope, "ref_feat_shape", None),
    }


def config_from(timm: ConfigReader, timm_class: str) -> ViTConfig:
    """Eva: with a norm behind its tokens, behind what is pooled of them, or none; its probe reads the prefix too."""
    pool, bias = timm.global_pool, timm.qkv_bias
    prefix: tuple[Role, ...] = (
        *(("cls",) if timm.class_token else ()),
        *(("registers",) if timm.num_reg_tokens else ()),
    )
    pooled_norm = pool == "avg" if timm.use_fc_norm is None else timm.use_fc_norm
    token_norm = not pooled_norm if timm.use_post_transformer_norm is None else timm.use_post_transformer_norm
    rules = [
        (pool in ("token", "avg", "map"), f"global_pool={pool!r}"),
        (
            pool != "map" or not (pooled_norm or timm.swiglu_mlp),
            "attention pooling with a norm behind it or gated MLPs",
        ),
        (pool != "token" or timm.class_token, "global_pool='token' without a class token"),
        (timm.attn_type in ("eva", "rope"), f"attn_type={timm.attn_type!r}"),
        (not (pooled_norm and token_norm), "two final norms"),
    ]
    rotary = _rotary(timm, rules)
    pool_heads, pool_ratio = timm.attn_pool_num_heads or timm.num_heads, timm.attn_pool_mlp_ratio or timm.mlp_ratio
    reads: dict[str, tuple[Role, ...]] = {"token": ("cls",), "map": (*prefix, "patches")}
    if broken := [what for holds, what in rules if not holds]:
        raise UnsupportedModelError(f"no hook graph for timm's {timm_class} with {', '.join(broken)}")
    gated, width, multiple = timm.swiglu_mlp, int(timm.embed_dim * timm.mlp_ratio), timm.swiglu_align_to
    names = tuple(map(str, timm.label_names)) if timm.label_names else None
    return ViTConfig(
        d_model=timm.embed_dim,
        n_layers=timm.depth,
        n_heads=timm.num_heads,
        d_mlp=width + -width % multiple if gated and multiple else width,
        image_size=timm.pair("img_size"),
        patch_size=timm.square("patch_size"),
        n_channels=timm.in_chans,
        act_fn="silu" if gated else "gelu",
        gated_mlp=gated,
        eps=timm.eps,
        layer_scale=timm.init_values is not None and not timm.use_post_norm,
        post_norm=timm.use_post_norm,
        attn_inner_norm=timm.scale_attn_inner,
        mlp_inner_norm=timm.scale_mlp,
        q_bias=bias,
        k_bias=bias and timm.attn_type == "rope",
        v_bias=bias,
        patch_bias=not timm.use_pre_transformer_norm,
        has_cls=timm.class_token,
        n_registers=timm.num_reg_tokens,
        absolute_positions=timm.use_abs_pos_emb,
        positionless=prefix if timm.no_embed_class else (),
        position_antialias=True,
        position_float32=True,
        rotary=rotary,
        ln_pre=timm.use_pre_transformer_norm,
        final_norm="pooled" if pooled_norm else "tokens" if token_norm else "none",
        sources=reads.get(pool, ("patches",)),
        attention_pool=pooling(pool_heads, timm.embed_dim, pool_ratio) if pool == "map" else None,
        heads=(("head", (0,)),) if timm.num_classes else (),
        n_classes=timm.num_classes or None,
        class_names=names if timm.num_classes else None,
    )


def _rotary(timm: ConfigReader, rules: list[tuple[bool, str]]) -> RotaryPositions | None:
    kind, indexing, offset = timm.rope_type, timm.rope_grid_indexing, float(timm.rope_grid_offset)
    base, halves, reference = float(timm.rope_temperature), timm.rope_rotate_half, timm.ref_feat_shape
    if not timm.use_rot_pos_emb:
        return None
    centred, learned = kind == "dinov3", kind == "mixed"
    rules += [
        (
            not (learned and (halves or offset or reference)),
            "rope_type='mixed' in halves, with an offset or a reference",
        ),
        (kind in ROPES.values(), f"rope_type={kind!r}"),
        (indexing in ("ij", "xy"), f"rope_grid_indexing={indexing!r}"),
        (not (centred and offset), f"rope_grid_offset={offset} for rope_type='dinov3'"),
    ]
    if isinstance(reference, int):
        reference = (reference, reference)
    return RotaryPositions(
        base=base,
        interleaved=not halves,
        columns_first=indexing == "xy",
        indices=not centred,
        offset=offset,
        reference=None if centred or reference is None else (reference[0], reference[1]),
        learned=learned,
    )


def prepare(cfg: ViTConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Biases and gates that lie apart in some files and together in others, and all blocks' frequencies, all apart."""
    split: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key == "rope.freqs" and tensor.ndim == 4:
            split |= {f"blocks.{l}.attn.rope.freqs": part for l, part in enumerate(tensor.unbind(1))}
            continue
        for letter in "qkv":
            key = key.replace(f".attn.{letter}_bias", f".attn.{letter}.bias").replace(
                f".attn.{letter}_proj.", f".attn.{letter}."
            )
        if cfg.gated_mlp and ".mlp.fc1." in key:
            for name, half in zip(("fc1_g", "fc1_x"), tensor.chunk(2), strict=True):
                split[key.replace(".fc1.", f".{name}.")] = half
        else:
            split[key] = tensor
    return split
