"""Everything the page shows of one image in one model, from one clean run, a backward pass per class, and a sweep."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from analyses.activations.relevance import attention_gradients, read_roles, rollout
from analyses.drawing.pictures import as_url, colours_of
from analyses.questions.looking.explorer.effects import Readings, layer_effects, patch_effects
from hooked_vit import ActivationCache, HookedViT, TokenLayout
from hooked_vit.components.image_embeds import TEXTS
from hooked_vit.config.showing import counted
from hooked_vit.errors import NoHeadError
from interventions import Intervention, apply

TOP = 5  # classes named in the lens, and mapped over the patches
OUTLIER = 5.0  # robust z of a patch's norm among the patches of its layer (methods §26)


def read_view(
    name: str,
    model: HookedViT,
    image: Image.Image | str | Path,
    *,
    title: str = "",
    donor: Image.Image | str | Path | None = None,
    patch_layers: int = 0,
    inserted: Intervention | None = None,
    top: int = TOP,
) -> dict[str, Any]:
    """What the page needs, as JSON knows it; arrays are bytes in base64 under `data`, with their `shape`.

    >>> view = read_view("vit", zoo.load("vit"), image)  # doctest: +SKIP

    Layer 0 of `lens` and `norms` is the stream entering block 0, layer l + 1 what block l leaves. `donor` is the image
    whose CLS is put in CLS's place. `patch_layers` says at how many layers, evenly spread, every patch is changed
    alone. `inserted` adds a token in every run; in front of its layer nothing is told of it. `top` classes of the
    answer are told. Attention and rollout are stored as square roots in steps of 1/255.
    Raises what `preprocess` raises for something that is no image.
    """
    pixels = model.preprocess([image])
    layout = model.check_pixels(pixels)
    layers = range(model.cfg.n_layers)
    patterns = [f"blocks.{l}.attn.hook_pattern" for l in layers]
    stream = ["blocks.0.hook_resid_pre", *(f"blocks.{l}.hook_resid_post" for l in layers)]
    with apply(model, inserted) if inserted is not None else nullcontext():
        with torch.no_grad():
            output, cache = model.run_with_cache(pixels, names_filter=[*patterns, *stream])
        assert isinstance(cache, ActivationCache)
        readings = Readings.of(model, output, top)
        whole = cache.tokens(stream[-1])
        gradient = _gradient(model, pixels, whole, readings)
    attention = torch.stack([_padded(cache[name][0], whole, (-2, -1)) for name in patterns]).float()
    resid = torch.stack([_padded(cache[name][0], whole, (-2,)) for name in stream]).float()
    norms = resid.norm(dim=-1)
    rolled = torch.stack([rollout([a[None] for a in attention[: l + 1]])[0] for l in layers])
    theirs = None if donor is None else model.preprocess([donor])
    changes: dict[str, Any] = {"donor": theirs, "always": inserted}
    effects = layer_effects(model, pixels, readings, **changes)
    each = patch_effects(model, pixels, layout, readings, patch_layers, **changes) if patch_layers else []
    return {
        "name": name,
        "title": title,
        "about": f"{model.cfg.hf_class or 'HookedViT'}, {counted(model.cfg.n_layers, 'layer')}, "
        f"{counted(model.cfg.n_heads, 'head')}",
        "picture": as_url(colours_of(model, model.covered(pixels[0]))),
        "grid": list(layout.grid),
        "tokens": _tokens(whole, [cache[name].shape[1] for name in stream]),
        "reads": list(model.cfg.sources),
        "classes": readings.names,
        "answer": readings.answer,
        "shares": f"Percentages are a softmax among {'these texts' if model.cfg.head_set == TEXTS else 'all classes'}.",
        "logits": readings.logits,
        "attention": _packed(attention.sqrt()),
        "rollout": _packed(rolled.sqrt()),
        "norms": [[round(float(x), 4) for x in row] for row in norms],
        "outliers": [_outliers(row, whole) for row in norms],
        "lens": _lens(model, resid, whole, readings),
        "gradient": gradient,
        "effects": effects,
        "patch_effects": each,
    }


def _padded(values: Tensor, layout: TokenLayout, axes: tuple[int, ...]) -> Tensor:
    """Values per token with zeros where a token is not there yet."""
    there = (~layout.mask("inserted", missing_ok=True)).nonzero().flatten().to(values.device)
    for axis in axes:
        if values.shape[axis] < layout.n_tokens:
            shape = list(values.shape)
            shape[axis] = layout.n_tokens
            values = values.new_zeros(shape).index_copy(axis % values.ndim, there, values)
    return values


def _tokens(layout: TokenLayout, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Role and name of every token in order; a patch has its row and column, an inserted token the layer it enters."""
    columns = layout.grid[1]
    told: list[dict[str, Any]] = [{} for _ in range(layout.n_tokens)]
    for role in layout.roles:
        for number, at in enumerate(layout.mask(role).nonzero().flatten().tolist()):
            row, column = divmod(number, columns)
            label = {"cls": "CLS", "dist": "distillation", "registers": f"register {number}"}.get(role)
            label = "inserted token" if role == "inserted" else label
            told[at] = {"role": role, "label": label or f"patch {row}, {column}"}
            if role == "patches":
                told[at] |= {"row": row, "col": column}
            if role == "inserted":
                told[at]["from"] = sum(n < layout.n_tokens for n in lengths)
    return told


def _packed(values: Tensor | np.ndarray) -> dict[str, Any]:
    """Numbers from 0 to 1 in 256 steps."""
    steps = np.rint(np.asarray(values).clip(0, 1) * 255).astype(np.uint8)
    return {"shape": list(steps.shape), "data": base64.b64encode(steps.tobytes()).decode()}


def _between(values: Tensor) -> dict[str, Any]:
    """Numbers from the least to the largest of them in 256 steps."""
    low, high = float(values.min()), float(values.max())
    return {**_packed((values - low) / max(high - low, 1e-12)), "low": low, "high": high}


def _outliers(norms: Float[Tensor, "t"], layout: TokenLayout) -> list[int]:
    """Patches whose norm stands out among the patches of this layer."""
    places = layout.mask("patches").nonzero().flatten()
    values = norms[places.to(norms.device)]
    spread = 1.4826 * (values - values.median()).abs().median()
    return places[((values - values.median()) > OUTLIER * spread.clamp(min=1e-9)).cpu()].tolist()


def _lens(
    model: HookedViT, resid: Float[Tensor, "l t d"], layout: TokenLayout, readings: Readings
) -> dict[str, Any] | None:
    """The head on every token at every layer: its top classes, and the probability of the answer's top classes."""
    if not readings.classes:
        return None
    try:
        scores = _scores(model, resid, layout)
    except NoHeadError:
        return None
    chances = scores.softmax(-1)
    best = chances.topk(min(TOP, chances.shape[-1]), dim=-1)
    return {
        "top": best.indices.tolist(),
        "top_probability": _packed(best.values),
        "of_classes": _packed(chances[..., readings.classes].sqrt()),
        "logits": _between(scores[..., readings.classes]),
        "names": {c: readings.name(c) for c in best.indices.unique().tolist()},
    }


@torch.no_grad()
def _scores(model: HookedViT, resid: Float[Tensor, "l t d"], layout: TokenLayout) -> Float[Tensor, "l t c"]:
    parts: list[Tensor | None] = [None] * layout.n_tokens
    for role in layout.roles:
        places = layout.mask(role).nonzero().flatten().tolist()
        scores = model.project(resid[:, places].to(model.W_E.dtype), role).float().cpu()
        for number, at in enumerate(places):
            parts[at] = scores[:, number]
    return torch.stack([part for part in parts if part is not None], dim=1)


def _gradient(model: HookedViT, pixels: Tensor, layout: TokenLayout, readings: Readings) -> dict[str, Any] | None:
    """For each of the answer's classes and each layer, attention times the gradient of the class in it, mean over
    heads, from the tokens the readout reads to the patches; signed, as shares of the largest."""
    if not readings.classes:
        return None
    roles = read_roles(model)
    queries = torch.stack([layout.mask(role) for role in roles]).any(0).nonzero().flatten().to(pixels.device)
    patches = layout.mask("patches").nonzero().flatten().to(pixels.device)
    maps = []
    for c in readings.classes:
        found, gradients = attention_gradients(model, pixels, torch.tensor([c]))
        both = [_padded((a * g)[0].mean(0), layout, (-2, -1)) for a, g in zip(found, gradients, strict=True)]
        rows = [each[queries].sum(0)[patches] for each in both]
        maps.append(torch.stack(rows).detach().float().cpu())
    values = torch.stack(maps)
    largest = float(values.abs().max().clamp(min=1e-12))
    return {**_packed(values / largest / 2 + 0.5), "largest": largest, "from": " and ".join(roles)}
