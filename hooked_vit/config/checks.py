"""What the fields of a config may be, each by itself; and what TransformerLens asks of one and finds elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

MOST_PARAMETERS = 100_000_000_000
"""A model of more is a mistake in its config: the largest published ViTs have 22 billion."""


# the least and the most that a number may be; beyond it is a slip, and would allocate until the machine gives up
RANGES: dict[str, tuple[int, int]] = {
    "d_model": (1, 2**17),
    "n_layers": (1, 2**10),
    "n_heads": (1, 2**12),
    "d_mlp": (1, 2**20),
    "patch_size": (1, 2**12),
    "n_channels": (1, 2**12),
    "n_registers": (0, 2**12),
    "n_classes": (1, 2**24),
    "d_embed": (1, 2**20),
    "image_size": (1, 2**16),
}


MOST_EPS = 0.1


PATCHING = (
    "TransformerLens' patching counts positions along its last axis of tokens, which for pixels is their width; "
    "give it hooked_vit.NumberedImages(model, pixels), or use interventions.patch_tokens and patch_heads, or the "
    "analysis activation_patching"
)


# what TransformerLens' tools ask a config for
ELSEWHERE = {
    "device": f"the weights say where they are: next(model.parameters()).device. {PATCHING}",
    "dtype": "the weights say what they are: next(model.parameters()).dtype",
    "n_key_value_heads": f"every head has keys and values of its own: n_heads. {PATCHING}",
    "d_vocab": "classes are n_classes",
    "n_ctx": "tokens are counted by the image: model.layout_for(height, width).n_tokens",
}


def wrong_values(cfg: Any, roles: tuple[str, ...]) -> Iterator[str]:
    """What is said of every field whose value by itself is none it can have."""
    for name, (least, most) in RANGES.items():
        value = getattr(cfg, name)
        if name in ("n_classes", "d_embed") and value is None:
            continue
        pair = isinstance(value, (tuple, list)) and len(value) == 2
        if (name == "image_size") != pair or not all(_whole(v, least, most) for v in (value if pair else [value])):
            what = "a pair of whole numbers" if name == "image_size" else "a whole number"
            yield f"{name} is {what} from {least} to {most}, got {value!r}"
    # not a number, infinity and what is no number at all compare as false
    eps: Any = cfg.eps
    if type(eps) not in (int, float) or not 0 <= eps <= MOST_EPS:
        yield f"eps is a number from 0 to {MOST_EPS}, got {cfg.eps!r}"
    types = {f.name: (f.type, getattr(cfg, f.name)) for f in fields(cfg)}
    yield from (f"{name} is True or False, got {v!r}" for name, (t, v) in types.items() if t == "bool" != _name(v))
    yield from (f"{name} is a word, got {v!r}" for name, (t, v) in types.items() if t == "str" != _name(v))
    choices = {"final_norm": ("tokens", "pooled", "none"), "outputs": ("classes", "embedding")}
    yield from (
        f"{name} is one of {', '.join(known)}; got {getattr(cfg, name)!r}"
        for name, known in choices.items()
        if getattr(cfg, name) not in known
    )
    for name in ("sources", "positionless"):
        read = getattr(cfg, name)
        if not isinstance(read, tuple) or not all(role in roles for role in read):
            yield f"{name} are roles of tokens ({', '.join(roles)}), got {read!r}"
    names = cfg.class_names
    if names is not None and not (isinstance(names, tuple) and all(isinstance(n, str) for n in names)):
        yield f"class_names are words, got {names!r}"


def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _name(value: Any) -> str:
    return type(value).__name__
