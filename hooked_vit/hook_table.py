"""Every hook point in words, its shape and what it means: one table, keyed by the name without the layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from hooked_vit.config import ViTConfig
from hooked_vit.config.spoken import spoken_sources

STREAM = "batch pos d_model"
HEADS = "batch pos head d_head"
SCORES = "batch head query key"
NEURONS = "batch pos d_mlp"
SPLICED = ".hook_sae_acts"
"""How the name of a hook point ends that a spliced dictionary brings; in front stands the one it is spliced into."""


def describe_hooks(
    cfg: ViTConfig, hooks: Iterable[str], image_size: tuple[int, int] | None = None
) -> list[tuple[str, str, str]]:
    """(name, shape, meaning) of these hook points, in the order in which a forward pass reaches them.

    >>> describe_hooks(model.cfg, model.hook_dict)[0]  # doctest: +SKIP
    ('hook_pixels', '[batch, channel=3, height=48, width=48]', 'normalised pixels, before they are cut into patches')

    Shapes are those of an image of `image_size` (height, width), the native one where none is given; after tokens were
    inserted or removed, `pos`, `query` and `key` differ.
    Raises LookupError for a hook point without an entry in the table.
    """
    names, table, sizes = list(hooks), _table(cfg), _sizes(cfg, image_size or cfg.image_size)
    kinds = list(table)
    if unknown := sorted({kind for name in names if (kind := _host(name)) not in table}):
        raise LookupError(
            f"every hook point has a line in hooked_vit/hook_table.py; there is none for {', '.join(unknown)}"
        )

    def order(name: str) -> tuple[int, int, int, bool]:
        kind = _host(name)
        # all of block 0 stands in front of block 1, so inside the blocks the layer decides first
        after_blocks = kinds.index(kind) > kinds.index("blocks.hook_resid_post")
        place = int(kind.startswith("blocks.")) + 2 * after_blocks
        return place, layer_of(name), kinds.index(kind), name.endswith(SPLICED)

    def row(name: str) -> tuple[str, str]:
        if not name.endswith(SPLICED):
            return table[_host(name)]
        return "batch pos sae_feature", "activations of the dictionary that is spliced in here"

    rows = ((name, row(name)) for name in sorted(names, key=order))
    return [(name, _shape(axes, sizes), meaning) for name, (axes, meaning) in rows]


def without_layer(name: str) -> str:
    """The kind of a hook point: its name without the number of the block.

    >>> without_layer("blocks.3.attn.hook_q")
    'blocks.attn.hook_q'
    """
    return re.sub(r"^blocks\.\d+\.", "blocks.", name)


def _host(name: str) -> str:
    """The kind of a hook point, or of the one a dictionary is spliced into."""
    return without_layer(name.removesuffix(SPLICED))


def layer_of(name: str) -> int:
    """The block a hook point is in, -1 outside the blocks.

    >>> layer_of("blocks.3.attn.hook_q"), layer_of("hook_embed")
    (3, -1)
    """
    found = re.match(r"blocks\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _shape(axes: str, sizes: Mapping[str, int]) -> str:
    return f"[{', '.join(f'{axis}={sizes[axis]}' if axis in sizes else axis for axis in axes.split())}]"


def _sizes(cfg: ViTConfig, image_size: tuple[int, int]) -> dict[str, int]:
    height, width = image_size
    patches = (height // cfg.patch_size) * (width // cfg.patch_size)
    tokens = len(cfg.prefix) + patches
    return {
        **{"channel": cfg.n_channels, "height": height, "width": width},
        **{"patch": patches, "pos": tokens, "query": tokens, "key": tokens},
        **{"d_model": cfg.d_model, "d_mlp": cfg.d_mlp, "head": cfg.n_heads, "d_head": cfg.d_head},
        # a readout that reads several roles pools each of them; without a head there is one vector of features
        **{"source": cfg.n_pooled, "pooled": cfg.d_pooled},
        **_pool_sizes(cfg),
        **{"probe": 1, "embed": cfg.d_embed or cfg.d_pooled},
        **{"readout_head": max(1, len(cfg.heads)), "class": cfg.d_out, "feature": cfg.d_out, "dim": cfg.d_out},
    }


def _pool_sizes(cfg: ViTConfig) -> dict[str, int]:
    if (pool := cfg.attention_pool) is None:
        return {}
    return {"pool_head": pool.n_heads, "d_pool_head": cfg.d_model // pool.n_heads, "d_pool_mlp": pool.d_mlp or 0}


def _table(cfg: ViTConfig) -> dict[str, tuple[str, str]]:
    """Kind -> (axes, meaning), in the order of the forward pass. Rows a model has no hook point for are not used."""
    hook_embed = (
        {"hook_embed": (STREAM, "the residual stream entering block 0, behind the norm that follows the positions")}
        if cfg.ln_pre
        else {"hook_embed": (STREAM, "prefix tokens and patches, before positions are added")}
    )
    divisor = _divisor(cfg)
    positions = (
        "positions, added to the tokens" if cfg.absolute_positions else "zeros: the family adds no absolute positions"
    )
    if cfg.absolute_positions and (unplaced := [role for role in cfg.positionless if role in cfg.prefix]):
        positions += f"; zero at {' and '.join({'registers': 'the registers'}.get(role, role) for role in unplaced)}"
    output = {"classes": "class", "embedding": "dim"}[cfg.outputs] if cfg.heads else "feature"
    pooled = ", then normalised" if cfg.final_norm == "pooled" else ""
    reader = f"the head{' reads' if len(cfg.heads) == 1 else 's read'}"
    if cfg.is_feature_model or cfg.unit_norm:
        reader = "the model returns" if cfg.is_feature_model else "is set beside texts"
    return {
        "hook_pixels": ("batch channel height width", "normalised pixels, before they are cut into patches"),
        "embed.hook_patch": ("batch patch d_model", "patch embeddings in row-major order, no prefix token yet"),
        "embed.norm.hook_scale": ("batch patch 1", f"{divisor} each patch embedding is divided by"),
        "embed.norm.hook_normalized": ("batch patch d_model", "normalised patch embeddings, before the gain"),
        **({} if cfg.ln_pre else hook_embed),
        "hook_pos_embed": (STREAM, positions),
        "ln_pre.hook_scale": ("batch pos 1", f"{divisor} the tokens are divided by before block 0"),
        "ln_pre.hook_normalized": (STREAM, "normalised tokens before block 0, before gain and offset"),
        **(hook_embed if cfg.ln_pre else {}),
        **_block(cfg),
        **_final_norm(cfg),
        **_pool(cfg),
        "hook_pooled": (
            "batch pooled",
            f"what {reader}: {spoken_sources(cfg.sources, bool(cfg.attention_pool))}{pooled}",
        ),
        "hook_image_embeds": (
            "batch embed",
            "the image's embedding: what is pooled, projected if the family does",
        ),
        "hook_image_scale": ("batch 1", "length the image's embedding is divided by"),
        "hook_image_normalized": ("batch embed", "the image's embedding at unit length, as the head reads it"),
        "hook_head_logits": (f"batch readout_head {output}", _head_logits(cfg)),
        "hook_logits": (
            f"batch {output}",
            "the model's output" + (": pooled features, there is no head" if cfg.is_feature_model else ""),
        ),
    }


def _block(cfg: ViTConfig) -> dict[str, tuple[str, str]]:
    scaled = ", LayerScale included" if cfg.layer_scale else ""
    biased = ", position bias included" if cfg.rel_pos_per_layer or cfg.rel_pos_shared else ""
    norms = [_norm_of(cfg, "ln1", "attention"), _norm_of(cfg, "ln2", "the MLP")]
    nothing: list[dict[str, tuple[str, str]]] = [{}, {}]
    before, behind = (nothing, norms) if cfg.post_norm else (norms, nothing)
    added = ", behind its norm" if cfg.post_norm else scaled
    of_a_head = (
        "what each head adds to attention's output, before its norm"
        if cfg.post_norm
        else (f"what each head adds to the stream{scaled}")
    )
    read = "as the MLP reads it" if cfg.post_norm else "as the MLP branch reads it before its norm"
    turned = "turned by row and column of their patch, as the scores read them; prefix tokens as they are"
    rows = {
        "hook_resid_pre": (STREAM, "residual stream entering the block"),
        **before[0],
        "attn.hook_q": (HEADS, "queries"),
        "attn.hook_k": (HEADS, "keys"),
        "attn.hook_v": (HEADS, "values"),
        "attn.hook_rel_pos_bias": ("1 head query key", "relative position bias, added to the scores of every image"),
        "attn.hook_rot_q": (HEADS, f"queries {turned}"),
        "attn.hook_rot_k": (HEADS, f"keys {turned}"),
        "attn.hook_attn_scores": (SCORES, f"attention scores before the softmax{biased}"),
        "attn.hook_pattern": (SCORES, "attention pattern after the softmax: each query's row sums to 1"),
        **_inner_norm(cfg.attn_inner_norm, "attn", HEADS, STREAM, "values mixed by the pattern"),
        "attn.hook_z": (
            HEADS,
            f"{'normalised ' * cfg.attn_inner_norm}values mixed by the pattern, before the output matrix",
        ),
        "attn.hook_result": (
            "batch pos head d_model",
            f"{of_a_head}; the sum over heads lacks only b_O",
        ),
        **behind[0],
        "hook_attn_out": (STREAM, f"what attention adds to the stream{added}"),
        "hook_resid_mid": (STREAM, "residual stream between attention and MLP; an edit reaches the skip path too"),
        "hook_mlp_in": (STREAM, f"the same stream, {read}; not the skip path"),
        **before[1],
        "mlp.hook_pre": (NEURONS, f"{'gates' if cfg.gated_mlp else 'neurons'} before their nonlinearity"),
        "mlp.hook_pre_linear": (NEURONS, "what each neuron's gate multiplies"),
        **_inner_norm(cfg.mlp_inner_norm, "mlp", NEURONS, NEURONS, "neurons" + ", gated" * cfg.gated_mlp),
        "mlp.hook_post": (
            NEURONS,
            "neurons as the output matrix reads them" + ", gated" * cfg.gated_mlp + ", normalised" * cfg.mlp_inner_norm,
        ),
        **behind[1],
        "hook_mlp_out": (STREAM, f"what the MLP adds to the stream{added}"),
        "hook_resid_post": (STREAM, 'residual stream leaving the block: "after block l"'),
    }
    return {f"blocks.{name}": row for name, row in rows.items()}


def _inner_norm(there: bool, part: str, axes: str, normed: str, what: str) -> dict[str, tuple[str, str]]:
    """What stands in front of the output matrix of a part of a block, where a norm of it does."""
    if not there:
        return {}
    return {
        f"{part}.hook_mid": (axes, f"{what}, in front of the norm inside {part}"),
        f"{part}.ln.hook_scale": ("batch pos 1", f"standard deviation they are divided by inside {part}"),
        f"{part}.ln.hook_normalized": (normed, f"normalised inside {part}, before gain and offset"),
    }


def _norm_of(cfg: ViTConfig, norm: str, part: str) -> dict[str, tuple[str, str]]:
    """The norm in front of a part of a block, or behind it."""
    what, where = (f"output of {part}", "") if cfg.post_norm else ("stream", f" in front of {part}")
    return {
        f"{norm}.hook_scale": ("batch pos 1", f"{_divisor(cfg)} the {what} is divided by{where}"),
        f"{norm}.hook_normalized": (STREAM, f"normalised {what}{where}, before gain and offset"),
    }


def _divisor(cfg: ViTConfig) -> str:
    return "root mean square" if cfg.norm == "rms" else "standard deviation"


def _final_norm(cfg: ViTConfig) -> dict[str, tuple[str, str]]:
    if cfg.final_norm == "none":
        said = "1 everywhere: no final norm; an edit divides the stream", "the stream as it is: no final norm"
    elif cfg.final_norm == "pooled":
        said = f"{_divisor(cfg)} the pooled tokens are divided by", "normalised pooled tokens, before gain and offset"
    else:
        said = f"{_divisor(cfg)} the final stream is divided by", "normalised final stream, before gain and offset"
    place = "source" if cfg.final_norm == "pooled" else "pos"
    return {
        "ln_final.hook_scale": (f"batch {place} 1", said[0]),
        "ln_final.hook_normalized": (f"batch {place} d_model", said[1]),
    }


def _pool(cfg: ViTConfig) -> dict[str, tuple[str, str]]:
    """Attention pooling: one query, the probe, over the tokens the readout reads."""
    one, scores, heads = "batch probe d_model", "batch pool_head probe key", "batch pos pool_head d_pool_head"
    return {
        "hook_pool_q": ("batch probe pool_head d_pool_head", "the probe's queries, the same for every image"),
        "hook_pool_k": (heads, "keys of the tokens for the probe"),
        "hook_pool_v": (heads, "values of the tokens for the probe"),
        "hook_pool_scores": (
            scores,
            f"the probe's scores before the softmax; -inf at all but {' and '.join(cfg.sources)}",
        ),
        "hook_pool_pattern": (scores, "where the probe attends: its row of every head sums to 1"),
        "hook_pool_z": (
            "batch probe pool_head d_pool_head",
            "values mixed by the probe's pattern, before the output matrix",
        ),
        "hook_pool_attn_out": (one, "what the probe gathered; an edit reaches the skip path too"),
        "pool_ln.hook_scale": ("batch probe 1", "standard deviation what the probe gathered is divided by"),
        "pool_ln.hook_normalized": (one, "normalised, what the probe gathered, before gain and offset"),
        "pool_mlp.hook_pre": ("batch probe d_pool_mlp", "neurons of the pooling's MLP before their nonlinearity"),
        "pool_mlp.hook_post": (
            "batch probe d_pool_mlp",
            "neurons of the pooling's MLP as its output matrix reads them",
        ),
        "hook_pool_mlp_out": (one, "what the pooling's MLP adds to what the probe gathered"),
    }


def _head_logits(cfg: ViTConfig) -> str:
    if cfg.is_feature_model:
        return "the pooled features again: there is no head"
    if len(cfg.heads) == 1:
        return "output of the one head"
    each = [f"{name} reads {spoken_sources(tuple(cfg.sources[i] for i in read))}" for name, read in cfg.heads]
    return f"output of each head ({', '.join(each)}); their mean is the model's output"
