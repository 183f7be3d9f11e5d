"""What every part of the network adds to the vector that texts, or classes, are compared with.

The readout of an image of texts is not linear: a norm, for some an attention pool and its MLP, and the vector's length.
With the norm's scale, the pool's attention and the length held at what they were, everything but the pool's MLP is, and
the vector is a sum over embedding, heads, MLPs and biases, exactly; that MLP's output is a term by itself. Gandelsman,
Efros & Steinhardt 2024, arXiv 2310.05916, for CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from hooked_vit import HookedViT, ViTConfig
from hooked_vit.errors import NoHeadError

FIRST = "blocks.0.hook_resid_pre"


class Part(NamedTuple):
    """A part of the network: "embed", "attn", "attn_bias", "mlp", "other_layers", "pool_mlp" or "constant"."""

    component: str
    layer: int | None = None
    head: int | None = None


def _has_pool_mlp(cfg: ViTConfig) -> bool:
    return cfg.attention_pool is not None and cfg.attention_pool.d_mlp is not None


def directions(model: HookedViT) -> Float64[Tensor, "c e"]:
    """What an image's vector is multiplied with for each text's logit: unit texts times the temperature; or classes.

    Without a text tower they are the classifier's rows, in the space of what it reads. Raises NoHeadError for a model
    without a classifier, and for one that answers with an embedding.
    """
    model.b_U  # noqa: B018  # raises for a model without a classifier
    if model.cfg.outputs != "classes":
        raise NoHeadError(
            "a head is described in words, and this model answers with an embedding that no text is compared with: "
            "zero_shot_head(checkpoint, texts) gives it texts, set_text_head_(…) their embeddings"
        )
    return (model.head.weight if model.cfg.unit_norm else model.W_U.T).detach().double()


class JointReading:
    """One batch of images, and what each part of the network adds to their vectors. In float64.

    >>> reading = JointReading(model, pixels)  # doctest: +SKIP
    >>> reading.vectors().sum(1) @ directions(model).T + model.b_U  # the logits  # doctest: +SKIP

    `parts` names the second axis of `vectors()`; with `layers`, those of all other layers are one, "other_layers".
    Raises NoHeadError for a model without a classifier, and ValueError
    where a norm stands behind the branches, or, with `patterns`, inside attention.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: HookedViT,
        pixels: Float[Tensor, "b c h w"],
        *,
        patterns: bool = False,
        layers: Sequence[int] | None = None,
    ) -> None:
        self.directions = directions(model)
        model.require_branches_are_sums("a head's output in the space of the texts")
        if patterns and model.cfg.attn_inner_norm:
            raise ValueError(
                "a head's output is taken apart by the tokens it comes from, and in this model a norm stands between "
                "that sum and the output matrix"
            )
        self.model, self.layout = model, model.layout_for(*pixels.shape[2:])
        self.layers = list(range(model.cfg.n_layers)) if layers is None else sorted(layers)
        self.rest = len(self.layers) < model.cfg.n_layers
        self.last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        self.logits, self.acts = self._run(pixels, patterns)
        heads = [Part("attn", layer, h) for layer in self.layers for h in range(model.cfg.n_heads)]
        others = [Part(kind, layer) for kind in ("attn_bias", "mlp") for layer in self.layers]
        others += [Part("other_layers")] * self.rest + [Part("pool_mlp")] * _has_pool_mlp(model.cfg)
        self.parts = [*heads, Part("embed"), *others, Part("constant")]
        self.weights = self._weights(len(pixels))
        self.maps, self.constant = self._maps()
        scale = self.acts["hook_image_scale"] if model.cfg.unit_norm else torch.ones(len(pixels), 1)
        self.length = scale.to(self.weights)

    def _run(self, pixels: Tensor, patterns: bool) -> tuple[Tensor, dict[str, Tensor]]:
        cfg, seen = self.model.cfg, {}
        kinds = ["attn.hook_z", "hook_mlp_out", *(["attn.hook_pattern", "attn.hook_v"] if patterns else [])]
        names = [f"blocks.{layer}.{kind}" for layer in self.layers for kind in kinds] + [self.last] * self.rest
        names += [FIRST, "ln_final.hook_scale", *["hook_image_scale"] * cfg.unit_norm]
        names += ["hook_pool_pattern"] * bool(cfg.attention_pool) + ["hook_pool_mlp_out"] * _has_pool_mlp(cfg)

        def keep(act: Tensor, hook: Any) -> None:
            seen[hook.name] = act.double()

        return self.model.run_with_hooks(pixels, fwd_hooks=[(name, keep) for name in names]), seen

    def _weights(self, n: int) -> Float64[Tensor, "b j t"]:
        """How much of each token is read: per role the readout averages, or per head of the pool. The norm's scale
        is divided out."""
        cfg, scale = self.model.cfg, self.acts["ln_final.hook_scale"]
        if cfg.attention_pool:
            read = self.acts["hook_pool_pattern"].flatten(2)
        else:
            masks = torch.stack([self.layout.mask(role) for role in cfg.sources]).to(scale)
            read = (masks / masks.sum(1, keepdim=True)).expand(n, -1, -1)
        return read / (scale if cfg.final_norm == "pooled" else scale[:, None, :, 0])

    def _maps(self) -> tuple[Float64[Tensor, "j d e"], Float64[Tensor, "e"]]:
        """What a token that is read is multiplied with, and what is there without any."""
        model, cfg, norm = self.model, self.model.cfg, self.model.ln_final
        d = cfg.d_model
        eye = torch.eye(d, dtype=torch.float64, device=self.weights.device)
        normed = (eye - 1 / d if norm.centred else eye) * norm.weight.double()
        offset = norm.b.double()
        if cfg.attention_pool:
            value, out = model.pool_v.weight.double(), model.pool_o.weight.double()
            by_head = (cfg.attention_pool.n_heads, -1)
            v, o = value.unflatten(0, by_head), out.unflatten(1, by_head)
            maps = torch.einsum("dm,jkm,njk->jdn", normed, v, o)
            constant = F.linear(offset, value, None if (bias := model.pool_v.bias) is None else bias.double())
            constant = F.linear(constant, out, model.pool_o.bias.double())
        else:
            n = len(cfg.sources)
            maps = torch.zeros(n, d, n * d, dtype=torch.float64, device=eye.device)
            for j in range(n):
                maps[j, :, j * d : (j + 1) * d] = normed
            constant = offset.repeat(n)
        if (projection := self._projection()) is not None:
            maps, constant = maps @ projection.T, constant @ projection.T
        return maps, constant

    def _projection(self) -> Tensor | None:
        projection = self.model.projection if self.model.cfg.unit_norm else None
        return None if projection is None else projection.weight.double()

    @torch.no_grad()
    def vectors(self) -> Float64[Tensor, "b p e"]:
        """What each part adds to the vector of each image; with a length to divide out, of the unit vector."""
        heads, others = [], [self.read(self.acts[FIRST])]
        biases, mlps = [], []
        for layer in self.layers:
            z = torch.einsum("bjt,bthk->bjhk", self.weights, self.acts[f"blocks.{layer}.attn.hook_z"])
            heads.append(torch.einsum("bjhk,jhke->bhe", z, self._written(layer)))
            biases.append(self.read(self.model.blocks[layer].attn.b_O.double().expand(self.acts[FIRST].shape)))
            mlps.append(self.read(self.acts[f"blocks.{layer}.hook_mlp_out"]))
        others += [*biases, *mlps]
        if self.rest:  # all that was added to the stream, but for what was told
            told = sum(part.sum(1) for part in heads) + sum(others)
            others.append(self.read(self.acts[self.last]) - told)
        if _has_pool_mlp(self.model.cfg):
            out, projection = self.acts["hook_pool_mlp_out"].flatten(1), self._projection()
            others.append(out if projection is None else out @ projection.T)
        others.append(self.constant.expand(len(self.weights), -1))
        return torch.cat([*heads, torch.stack(others, 1)], 1) / self.length[:, None]

    def read(self, x: Float64[Tensor, "b t d"]) -> Float64[Tensor, "b e"]:
        """What the readout makes of something that is added to the stream."""
        return torch.einsum("bjd,jde->be", self.weights @ x, self.maps)

    def _written(self, layer: int) -> Float64[Tensor, "j h k e"]:
        return torch.einsum("hkd,jde->jhke", self.model.blocks[layer].attn.W_O.double(), self.maps)

    @torch.no_grad()
    def by_source(self, towards: Float64[Tensor, "b e"]) -> Float64[Tensor, "b l h t"]:
        """What every head adds along a direction per image, by the token it takes that from; their sum over tokens is
        `vectors()` of the head. The reading needs `patterns`."""
        found = []
        for layer in self.layers:
            name = f"blocks.{layer}.attn"
            read = torch.einsum("bjt,bhts->bjhs", self.weights, self.acts[f"{name}.hook_pattern"])
            along = torch.einsum("jhke,be->bjhk", self._written(layer), towards)
            found.append(torch.einsum("bjhs,bshk,bjhk->bhs", read, self.acts[f"{name}.hook_v"], along))
        return torch.stack(found, 1) / self.length[:, None, None]


def prompt_map(
    model: HookedViT, pixels: Float[Tensor, "b c h w"], text: str | int | None = None
) -> Float64[Tensor, "b rows cols"]:
    """How much each patch adds to the logit of one text through all heads, as a map; None: each image's own answer.

    >>> prompt_map(model, pixels, "a photo of a dog.")  # doctest: +SKIP

    What heads take from other tokens than patches, and what is no head's, is in no map. Raises ValueError for a text
    the head does not know, and what `JointReading` raises.
    """
    reading = JointReading(model, pixels, patterns=True)
    if text is None:
        ids = reading.logits.argmax(-1)
    else:
        known = model.to_single_token(text) if isinstance(text, str) else text
        if not 0 <= known < len(reading.directions):
            raise ValueError(f"texts are 0 to {len(reading.directions) - 1}; got {known}")
        ids = torch.full((len(pixels),), known)
    layout = model.layout_for(*pixels.shape[2:])
    on_tokens = reading.by_source(reading.directions[ids.to(reading.directions.device)]).sum((1, 2))
    return on_tokens[:, layout.mask("patches")].unflatten(1, layout.grid)
