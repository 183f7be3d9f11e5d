"""What the answer becomes when one thing is changed at one layer: the page's intervention panel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hooked_vit import ActivationCache, HookedViT, TokenLayout
from interventions import (
    Intervention,
    ablate_branch,
    patch_cls,
    sweep,
    uniform_attention,
    zero_attention,
    zero_tokens,
)

Edit = Callable[[int], Intervention]


@dataclass(frozen=True)
class Readings:
    """The clean answer, and how an output is told beside it: by the probability of its classes, or, where the model
    gives features, by their cosine with the clean ones."""

    clean: Float[Tensor, "n"]
    classes: list[int]
    names: list[str]
    answer: list[float]
    class_names: tuple[str, ...] | None

    @classmethod
    def of(cls, model: HookedViT, output: Float[Tensor, "1 n"], top: int) -> Readings:
        """From the output of a clean run on one image."""
        clean, cfg = output[0].detach().float().cpu(), model.cfg
        if cfg.is_feature_model or cfg.outputs != "classes":
            return cls(clean, [], [], [1.0], None)
        best = clean.softmax(-1).topk(min(top, len(clean)))
        names = cfg.class_names
        told = [_name(names, c) for c in best.indices.tolist()]
        return cls(clean, best.indices.tolist(), told, [round(p, 5) for p in best.values.tolist()], names)

    def name(self, c: int) -> str:
        """What a class is called."""
        return _name(self.class_names, c)

    def tell(self, output: Float[Tensor, "n"]) -> dict[str, Any]:
        """An output: probabilities of the clean answer's classes and the class that comes first, or one cosine."""
        output = output.detach().float().cpu()
        if not self.classes:
            return {"values": [round(float(F.cosine_similarity(output, self.clean, dim=0)), 5)], "first": None}
        chances = output.softmax(-1)
        first = int(chances.argmax())
        return {"values": [round(float(chances[c]), 5) for c in self.classes], "first": self.name(first)}


def _name(names: tuple[str, ...] | None, c: int) -> str:
    return names[c] if names is not None else f"class {c}"


def layer_effects(
    model: HookedViT, pixels: Float[Tensor, "1 c h w"], readings: Readings, *, donor: Tensor | None = None
) -> list[dict[str, Any]]:
    """One entry per kind of change, with what the answer becomes when it is made at each layer.

    >>> layer_effects(model, pixels, Readings.of(model, model(pixels), 5))[0]["label"]  # doctest: +SKIP
    'CLS set to zero behind the layer'
    """
    edits = _edits(model, pixels, donor)
    variants = [make(layer) for _, make in edits for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        told = [readings.tell(output[0]) for _, output in sweep(model, pixels, variants)]
    n = model.cfg.n_layers
    return [{"label": label, "layers": told[i * n : (i + 1) * n]} for i, (label, _) in enumerate(edits)]


def _edits(model: HookedViT, pixels: Tensor, donor: Tensor | None) -> list[tuple[str, Edit]]:
    edits: list[tuple[str, Edit]] = []
    if model.cfg.has_cls:
        edits += [
            ("CLS set to zero behind the layer", lambda l: zero_tokens(layer=l, tokens="cls")),
            ("CLS does not see the patches", lambda l: zero_attention(queries="cls", keys="patches", layers=l)),
            ("patches do not see CLS", lambda l: zero_attention(queries="patches", keys="cls", layers=l)),
        ]
    if model.cfg.has_cls and donor is not None:
        theirs = _cls_of(model, donor)
        edits.append(("CLS of the other image behind the layer", lambda l: patch_cls(layer=l, value=theirs[l])))
    return [
        *edits,
        ("patches do not see each other", lambda l: zero_attention(queries="patches", keys="patches", layers=l)),
        ("uniform attention", lambda l: uniform_attention(layers=l)),
        ("nothing from attention", lambda l: ablate_branch("attn", layers=l)),
        ("nothing from the MLP", lambda l: ablate_branch("mlp", layers=l)),
    ]


@torch.no_grad()
def _cls_of(model: HookedViT, donor: Tensor) -> list[Float[Tensor, "d"]]:
    names = [f"blocks.{l}.hook_resid_post" for l in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(donor, names_filter=names)
    assert isinstance(cache, ActivationCache)
    return [cache.at("resid_post", l, tokens="cls")[0].reshape(-1) for l in range(model.cfg.n_layers)]


def patch_effects(
    model: HookedViT, pixels: Float[Tensor, "1 c h w"], layout: TokenLayout, readings: Readings, n_layers: int
) -> dict[str, Any]:
    """For some layers, what the answer's first value becomes when one patch is set to zero behind the layer.

    Layers are spread evenly over the model; `values` is [layers, patches].
    """
    last = model.cfg.n_layers - 1
    layers = sorted({round(i * last / max(1, n_layers - 1)) for i in range(n_layers)})
    places = layout.mask("patches").nonzero().flatten().tolist()
    variants = [zero_tokens(layer=layer, tokens=[at]) for layer in layers for at in places]
    with torch.no_grad():
        told = [readings.tell(output[0])["values"][0] for _, output in sweep(model, pixels, variants)]
    rows = [told[i * len(places) : (i + 1) * len(places)] for i in range(len(layers))]
    return {"layers": layers, "values": rows}
