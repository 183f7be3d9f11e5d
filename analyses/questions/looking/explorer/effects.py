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
from hooked_vit.config import Role
from interventions import (
    Intervention,
    ablate_branch,
    patch_cls,
    patch_tokens,
    sweep,
    uniform_attention,
    zero_attention,
    zero_tokens,
)

Edit = Callable[[int], Intervention]
PatchEdit = Callable[[int, int], Intervention]


@dataclass(frozen=True)
class Readings:
    """The clean answer, and how an output is told beside it: by the probability of its classes, or, where the model
    gives features, by their cosine with the clean ones."""

    clean: Float[Tensor, "n"]
    classes: list[int]
    names: list[str]
    answer: list[float]
    class_names: tuple[str, ...] | None

    @property
    def logits(self) -> list[float]:
        """Of the answer's classes, before the softmax."""
        return [round(float(self.clean[c]), 4) for c in self.classes]

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
    model: HookedViT,
    pixels: Float[Tensor, "1 c h w"],
    readings: Readings,
    *,
    donor: Tensor | None = None,
    always: Intervention | None = None,
) -> list[dict[str, Any]]:
    """One entry per kind of change, with what the answer becomes when it is made at each layer.

    >>> layer_effects(model, pixels, Readings.of(model, model(pixels), 5))[0]["label"]  # doctest: +SKIP
    'CLS set to zero behind the layer'

    `always` is done in every run, the clean one included.
    """
    edits = _edits(model, pixels, donor)
    variants = [_after(always, make(layer)) for _, make in edits for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        told = [readings.tell(output[0]) for _, output in sweep(model, pixels, variants)]
    n = model.cfg.n_layers
    return [{"label": label, "layers": told[i * n : (i + 1) * n]} for i, (label, _) in enumerate(edits)]


def _after(always: Intervention | None, edit: Intervention) -> Intervention:
    return edit if always is None else always + edit


def _edits(model: HookedViT, pixels: Tensor, donor: Tensor | None) -> list[tuple[str, Edit]]:
    edits: list[tuple[str, Edit]] = []
    if model.cfg.has_cls:
        edits += [
            ("CLS set to zero behind the layer", lambda l: zero_tokens(layer=l, tokens="cls")),
            ("CLS does not see the patches", lambda l: zero_attention(queries="cls", keys="patches", layers=l)),
            ("patches do not see CLS", lambda l: zero_attention(queries="patches", keys="cls", layers=l)),
        ]
    if model.cfg.has_cls and donor is not None:
        theirs = _stream(model, donor, "cls")
        edits.append(
            ("CLS of the other image behind the layer", lambda l: patch_cls(layer=l, value=theirs[l].reshape(-1)))
        )
    if donor is not None and donor.shape == pixels.shape:
        patches = _stream(model, donor, "patches")
        edits.append(
            ("patches of the other image behind the layer", lambda l: patch_tokens(l, "patches", patches[l][None]))
        )
    return [
        *edits,
        ("patches do not see each other", lambda l: zero_attention(queries="patches", keys="patches", layers=l)),
        ("uniform attention", lambda l: uniform_attention(layers=l)),
        ("nothing from attention", lambda l: ablate_branch("attn", layers=l)),
        ("nothing from the MLP", lambda l: ablate_branch("mlp", layers=l)),
    ]


@torch.no_grad()
def _stream(model: HookedViT, donor: Tensor, role: Role) -> list[Float[Tensor, "t d"]]:
    """The other image's tokens of a role behind every layer."""
    names = [f"blocks.{l}.hook_resid_post" for l in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(donor, names_filter=names)
    assert isinstance(cache, ActivationCache)
    return [cache.at("resid_post", l, tokens=role)[0] for l in range(model.cfg.n_layers)]


def patch_kinds(model: HookedViT, *, donor: bool) -> int:
    """How many kinds of change `patch_effects` makes to every patch."""
    return 1 + model.cfg.has_cls + donor


def patch_effects(
    model: HookedViT,
    pixels: Float[Tensor, "1 c h w"],
    layout: TokenLayout,
    readings: Readings,
    n_layers: int,
    *,
    donor: Tensor | None = None,
    always: Intervention | None = None,
) -> list[dict[str, Any]]:
    """For some layers, what the answer's first value becomes when one thing is changed at one patch alone.

    Layers are spread evenly over the model; `layout` is of the tokens without what `always` adds. One entry per kind
    of change, whose `values` are [layers, patches].
    """
    last = model.cfg.n_layers - 1
    layers = sorted({round(i * last / max(1, n_layers - 1)) for i in range(n_layers)})
    places = layout.mask("patches").nonzero().flatten().tolist()
    found = []
    for label, make in _patch_edits(model, pixels, places, donor):
        variants = [_after(always, make(layer, at)) for layer in layers for at in places]
        with torch.no_grad():
            told = [readings.tell(output[0])["values"][0] for _, output in sweep(model, pixels, variants)]
        rows = [told[i * len(places) : (i + 1) * len(places)] for i in range(len(layers))]
        found.append({"label": label, "layers": layers, "values": rows})
    return found


def _patch_edits(
    model: HookedViT, pixels: Tensor, places: list[int], donor: Tensor | None
) -> list[tuple[str, PatchEdit]]:
    edits: list[tuple[str, PatchEdit]] = [("is set to zero", lambda l, at: zero_tokens(layer=l, tokens=[at]))]
    if model.cfg.has_cls:
        edits.append(("is not seen by CLS", lambda l, at: zero_attention(queries="cls", keys=[at], layers=l)))
    if donor is not None and donor.shape == pixels.shape:
        theirs, of = _stream(model, donor, "patches"), {at: i for i, at in enumerate(places)}
        edits.append(("is the other image's", lambda l, at: patch_tokens(l, [at], theirs[l][of[at]].reshape(1, 1, -1))))
    return edits
