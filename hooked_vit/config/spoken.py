"""What a model reads, in words."""

from __future__ import annotations

from hooked_vit.config import Role, ViTConfig


def spoken_readout(cfg: ViTConfig) -> str:
    """What a model's readout reads, in words.

    >>> cfg = ViTConfig(d_model=8, n_layers=1, n_heads=1, d_mlp=8, image_size=(8, 8), patch_size=8, n_classes=2)
    >>> spoken_readout(cfg), spoken_readout(cfg.replace(sources=("cls", "patches"), final_norm="none"))
    ('cls behind the final norm', 'cls beside the mean of the patches, without a norm')
    """
    norm = {"tokens": " behind the final norm", "pooled": ", then the final norm", "none": ", without a norm"}
    return f"{spoken_sources(cfg.sources, cfg.attention_pool is not None)}{norm[cfg.final_norm]}"


def what_is_read(cfg: ViTConfig) -> str:
    """Which tokens a model's answers come from, and through whose head.

    >>> cfg = ViTConfig(d_model=8, n_layers=1, n_heads=1, d_mlp=8, image_size=(8, 8), patch_size=8, n_classes=2)
    >>> what_is_read(cfg), what_is_read(cfg.replace(heads=(), n_classes=None))
    ('its own head on cls behind the final norm', 'its features: cls behind the final norm')
    """
    if cfg.is_feature_model:
        return f"its features: {spoken_readout(cfg)}"
    head = "its own projection" if cfg.outputs == "embedding" else cfg.head_set or "its own head"
    return f"{head} on {spoken_readout(cfg)}"


def spoken_sources(sources: tuple[Role, ...], by_attention: bool = False) -> str:
    """Roles as what is read of them.

    >>> spoken_sources(("cls", "patches")), spoken_sources(("patches",), by_attention=True)
    ('cls beside the mean of the patches', 'what the probe gathers from patches')
    """
    if by_attention:
        return f"what the probe gathers from {' and '.join(sources)}"
    names = [f"the mean of the {role}" if role in ("patches", "registers") else role for role in sources]
    return " beside ".join(names)
