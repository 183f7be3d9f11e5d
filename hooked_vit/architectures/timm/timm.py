"""timm's VisionTransformer (Wightman 2019): one graph under many names, told apart by timm's own keyword arguments.

Queries, keys and values lie in one matrix; the norms of a block stand in front of its branches, or behind them in the
models called `rpn`; CLS may be missing, or stand there without a position; what is pooled is CLS or the patches, then
normalised, or what a learned probe gathers from the normalised patches. A model is known by the name timm gave it, and
timm itself is never imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from torch import Tensor

from hooked_vit.architectures.base import Architecture, CheckpointFiles, ConfigReader, linears, register
from hooked_vit.architectures.timm import _eva
from hooked_vit.architectures.timm._files import (
    DEFAULTS,
    DISTILLED,
    EVA,
    PLAIN,
    Settings,
    known,
    processor,
    settings,
    sizes_of,
)
from hooked_vit.architectures.timm._pool import acts, pooling, strange_pool
from hooked_vit.config import Role, ViTConfig
from hooked_vit.errors import UnsupportedModelError

ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu"}
MODULES = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh", "GeluTanh": "gelu_tanh", "SiLU": "silu"}
MLPS = {"Mlp": "Mlp", "GluMlp": "SwiGLUPacked"}  # the second with gate and values in one matrix, and the width of both

# of no effect on inference; another image size than a model was built for is always possible here, padding never
TRAINING_ONLY = (
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
    *("weight_init", "fix_init", "dynamic_img_size", "dynamic_img_pad"),
)


def settings_of(model: Any) -> Settings:
    """The settings of a model in memory, read off its modules.

    Raises UnsupportedModelError for a module that the graph has no place for.
    """
    if type(model).__name__ == EVA:
        return _eva.settings_of(model)
    if blocks := sorted({type(b).__name__ for b in model.blocks} - {"Block", "ResPostBlock"}):
        raise UnsupportedModelError(f"no hook graph for a {type(model).__name__} with {', '.join(blocks)} for blocks")
    block, embed = model.blocks[0], model.patch_embed
    norms = {type(n).__name__ for b in model.blocks for n in (b.norm1, b.norm2)}
    last = model.fc_norm if acts(getattr(model, "fc_norm", None)) else model.norm
    act, mlp = type(block.mlp.act).__name__, type(block.mlp).__name__
    unknown = [
        *(
            f"{part} of blocks"
            for part in ("q_norm", "k_norm", "norm", "gate")
            if acts(getattr(block.attn, part, None))
        ),
        *(["norm inside the MLP"] if acts(getattr(block.mlp, "norm", None)) else []),
        *strange_pool(model, act),
        *(["a pool of other heads than its blocks"] if _pool_of_its_own(model) else []),
        *(["two final norms"] if acts(getattr(model, "fc_norm", None)) and acts(model.norm) else []),
        *(f"{name} for layer norm" for name in sorted(norms - {"LayerNorm"})),
        *([f"activation {act}"] if act not in MODULES else []),
        *(f"{kind} for attention" for kind in sorted({type(b.attn).__name__ for b in model.blocks} - {"Attention"})),
        *([f"{mlp} for the MLP"] if mlp not in MLPS or getattr(block.mlp, "gate_last", False) else []),
        *(["a norm of the patches"] if acts(getattr(embed, "norm", None)) else []),
    ]
    if unknown:
        raise UnsupportedModelError(f"no hook graph for a {type(model).__name__} with {', '.join(unknown)}")
    eps = {norm.eps for b in model.blocks for norm in (b.norm1, b.norm2)}
    pool = getattr(model, "attn_pool", None)
    eps |= {norm.eps for norm in (last, model.norm_pre) if acts(norm)} | (
        {pool.norm.eps} if pool is not None else set()
    )
    if len(eps) != 1:
        raise UnsupportedModelError(f"no hook graph for norms that differ in their eps: {sorted(eps)}")
    return Settings(
        **DEFAULTS
        | sizes_of(model)
        | {
            "num_heads": block.attn.num_heads,
            "mlp_ratio": Fraction(block.mlp.fc1.out_features, model.embed_dim),
            "qkv_bias": block.attn.qkv.bias is not None,
            "init_values": 1.0 if acts(getattr(block, "ls1", None)) else None,
            "class_token": model.cls_token is not None,
            "no_embed_class": bool(model.no_embed_class),
            "reg_tokens": getattr(model, "num_reg_tokens", 0),
            "pre_norm": acts(model.norm_pre),
            "final_norm": acts(last),
            "fc_norm": acts(getattr(model, "fc_norm", None)),
            "pool_include_prefix": getattr(model, "pool_include_prefix", False),
            "mlp_layer": MLPS[mlp],
            "act_layer": MODULES[act],
            "eps": eps.pop(),
            "block_fn": type(block).__name__,
        }
    )


def _pool_of_its_own(model: Any) -> bool:
    pool, block = getattr(model, "attn_pool", None), model.blocks[0]
    return pool is not None and getattr(pool, "num_heads", None) != block.attn.num_heads


def config_from(timm: ConfigReader, timm_class: str) -> ViTConfig:
    """VisionTransformer and, with a distillation token and a head for it, VisionTransformerDistilled."""
    distilled, pool, block = timm_class == DISTILLED, timm.global_pool, timm.block_fn
    prefix: tuple[Role, ...] = (*(("cls",) if timm.class_token else ()), *(("dist",) if distilled else ()))
    every: tuple[Role, ...] = (*prefix, *(("registers",) if timm.reg_tokens else ()))
    fc_norm = pool == "avg" if timm.fc_norm is None else timm.fc_norm
    rules = [
        (block in ("Block", "ResPostBlock"), f"blocks of {block}"),
        (pool in ("token", "avg", "map"), f"global_pool={pool!r}"),
        (pool != "map" or not (fc_norm or distilled), "a norm behind attention pooling, or two heads"),
        (pool != "token" or timm.class_token, "global_pool='token' without a class token"),
        (not (timm.pool_include_prefix and every), "a mean over prefix tokens too"),
        (timm.mlp_layer in MLPS.values(), f"mlp_layer={timm.mlp_layer!r}"),
        (timm.act_layer in ACTIVATIONS, f"act_layer={timm.act_layer!r}"),
        (
            not distilled or (timm.num_classes and pool == "token" and timm.class_token),
            "a distilled model without heads",
        ),
    ]
    if broken := [what for holds, what in rules if not holds]:
        raise UnsupportedModelError(f"no hook graph for timm's {timm_class} with {', '.join(broken)}")
    gated, width = timm.mlp_layer == MLPS["GluMlp"], int(timm.embed_dim * timm.mlp_ratio)
    bias, scaled = timm.qkv_bias, timm.init_values is not None and block == "Block"
    sources: tuple[Role, ...] = prefix if pool == "token" else ("patches",)
    heads = (("head", (0,)), ("head_dist", (1,)))[: 1 + distilled]
    names = tuple(map(str, timm.label_names)) if timm.label_names else None
    return ViTConfig(
        d_model=timm.embed_dim,
        n_layers=timm.depth,
        n_heads=timm.num_heads,
        d_mlp=width // 2 if gated else width,
        gated_mlp=gated,
        image_size=timm.pair("img_size"),
        patch_size=timm.square("patch_size"),
        n_channels=timm.in_chans,
        act_fn=ACTIVATIONS[timm.act_layer],
        eps=timm.eps,
        layer_scale=scaled,
        post_norm=block == "ResPostBlock",
        q_bias=bias,
        k_bias=bias,
        v_bias=bias,
        patch_bias=not timm.pre_norm,
        has_cls=timm.class_token,
        has_dist=distilled,
        n_registers=timm.reg_tokens,
        positionless=every if timm.no_embed_class else (),
        position_antialias=True,
        position_float32=True,
        ln_pre=timm.pre_norm,
        final_norm="none" if not timm.final_norm else "pooled" if fc_norm else "tokens",
        sources=sources,
        attention_pool=pooling(timm.num_heads, timm.embed_dim, timm.mlp_ratio) if pool == "map" else None,
        heads=heads if timm.num_classes else (),
        n_classes=timm.num_classes or None,
        class_names=names if timm.num_classes else None,
    )


def prepare(cfg: ViTConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values taken apart, in the blocks and in the pool; the spellings of older files."""
    split: dict[str, Tensor] = {}
    for key, tensor in _eva.prepare(cfg, tensors).items():
        if ".attn.qkv." in key:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                split[key.replace(".qkv.", f".{letter}.")] = part
        elif key.startswith("attn_pool.kv."):
            for letter, part in zip("kv", tensor.chunk(2), strict=True):
                split[key.replace(".kv.", f".{letter}.")] = part
        else:
            split[key.replace(".gamma_1", ".ls1.gamma").replace(".gamma_2", ".ls2.gamma")] = tensor
    return split


def _keys() -> Iterator[tuple[str, str]]:
    yield "embed.cls", "cls_token"
    yield "embed.dist", "dist_token"
    yield "embed.registers", "reg_token"
    yield "pos_embed.weight", "pos_embed"
    yield "pool_probe", "attn_pool.latent"
    yield from linears(
        {
            "embed.patch": "patch_embed.proj",
            "ln_pre": "norm_pre",
            "blocks.{l}.ln1": "blocks.{l}.norm1",
            "blocks.{l}.ln2": "blocks.{l}.norm2",
            "blocks.{l}.attn.q": "blocks.{l}.attn.q",
            "blocks.{l}.attn.k": "blocks.{l}.attn.k",
            "blocks.{l}.attn.v": "blocks.{l}.attn.v",
            "blocks.{l}.attn.o": "blocks.{l}.attn.proj",
            "blocks.{l}.mlp.fc_in": "blocks.{l}.mlp.fc1",
            "blocks.{l}.mlp.fc_out": "blocks.{l}.mlp.fc2",
            "ln_final": "fc_norm|norm",
            "pool_q": "attn_pool.q",
            "pool_k": "attn_pool.k",
            "pool_v": "attn_pool.v",
            "pool_o": "attn_pool.proj",
            "pool_ln": "attn_pool.norm",
            "pool_mlp.fc_in": "attn_pool.mlp.fc1",
            "pool_mlp.fc_out": "attn_pool.mlp.fc2",
            "head": "head",
            "head_dist": "head_dist",
        }
    ).items()
    yield "blocks.{l}.attn.ls", "blocks.{l}.ls1.gamma"
    yield "blocks.{l}.mlp.ls", "blocks.{l}.ls2.gamma"


register(
    Architecture(
        name="timm",
        classes={**dict.fromkeys((PLAIN, DISTILLED), config_from), EVA: _eva.config_from},
        keys=dict(_keys()) | _eva.KEYS,
        roots=("",),
        irrelevant_config=(*TRAINING_ONLY, *_eva.IRRELEVANT_SETTINGS),
        irrelevant_tensors=_eva.IRRELEVANT_TENSORS,
        config_of=settings_of,
        prepare=prepare,
        files=CheckpointFiles(
            reads=lambda config: "architecture" in config and "pretrained_cfg" in config,
            settings=settings,
            processor=processor,
            named=lambda: tuple(known()),
        ),
        examples={
            PLAIN: "timm/vit_base_patch16_224.augreg_in21k_ft_in1k",
            DISTILLED: "timm/deit_base_distilled_patch16_224.fb_in1k",
            EVA: "timm/eva02_base_patch14_448.mim_in22k_ft_in22k_in1k",
        },
    )
)
