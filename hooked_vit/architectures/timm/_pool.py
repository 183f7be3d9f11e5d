"""timm's attention pooling (`map`), alike in both of its graphs: a learned query over the tokens, an MLP behind it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from hooked_vit.config import ProbePooling


def acts(module: Any) -> bool:
    """True for a module that is there and does something."""
    return module is not None and type(module).__name__ != "Identity"


def strange_pool(model: Any, act: str) -> list[str]:
    """What an attention pool in memory has that timm's `map` with this activation has not."""
    pool = getattr(model, "attn_pool", None)
    if pool is None:
        return []
    odd = [
        type(pool).__name__ != "AttentionPoolLatent",
        *(acts(getattr(pool, part, None)) for part in ("q_norm", "k_norm")),
        getattr(pool, "pos_embed", None) is not None,
        getattr(pool, "latent_len", 1) != 1 or getattr(pool, "pool", "token") != "token",
        type(getattr(getattr(pool, "mlp", None), "act", None)).__name__ != act,
        not acts(getattr(pool, "norm", None)) or not hasattr(getattr(pool, "q", None), "weight"),
    ]
    return ["another attention pooling than `map`"] if any(odd) else []


def pool_settings(model: Any) -> dict[str, Any]:
    """Heads and width of an attention pool in memory, as Eva's arguments spell them."""
    pool = model.attn_pool
    if pool is None:
        return {}
    ratio = Fraction(pool.mlp.fc1.out_features, model.embed_dim)
    return {"attn_pool_num_heads": pool.num_heads, "attn_pool_mlp_ratio": ratio}


def pooling(n_heads: int, width: int, ratio: Any) -> ProbePooling:
    """The pool of a model of this width."""
    return ProbePooling(n_heads=n_heads, d_mlp=int(width * ratio))
