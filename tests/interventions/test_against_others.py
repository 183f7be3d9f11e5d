"""Every intervention made three ways, by us, with plain torch hooks and with nnsight, on the same transformers model.

A case of the table says what we are asked for, and which edits a user of the other tools would write instead. All
three must agree to the last bit where attention is eager, and up to the fused kernel's rounding where it is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from math import log
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import interventions as iv
from hooked_vit import HookedViT
from interventions.circuits import Circuit, Graph
from tests.interventions.cases import sae_of
from tests.interventions.others import Edit, import_nnsight, with_hooks, with_nnsight
from tests.tiny import make_hf, pixels

# one of each family, and the number of tokens in front of its patches
FAMILIES = {"vit": 1, "deit-teacher": 2, "beit-mean-both": 1, "dinov2": 1, "clip-classifier": 1}
ALL = tuple(FAMILIES)
OTHERS = {"hooks": with_hooks, "nnsight": with_nnsight}
N_IMAGES, D, N_HEADS, CLASSES = 6, 32, 4, 5
ZERO = torch.zeros(1, 1, D)


@dataclass
class Setting:
    """The models a case runs on; what ours drew at random is there for the others to use."""

    family: str
    model: HookedViT
    hf: dict[str, nn.Module]
    """One for each of OTHERS: nnsight takes over the one it is given."""
    x: Tensor
    donors: Tensor
    """Other images."""
    drawn: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def n_prefix(self) -> int:
        return FAMILIES[self.family]

    @property
    def patches(self) -> slice:
        return slice(self.n_prefix, None)

    @property
    def has_bias(self) -> bool:
        return self.family.startswith("beit")

    @property
    def d_pooled(self) -> int:
        return 2 * D if self.family == "dinov2" else D

    @property
    def cls_position(self) -> Tensor:
        found = self.parameter("position_embedding")
        return torch.zeros(D) if found is None else found.reshape(-1, D)[0]

    def layer_scale(self, layer: int) -> Tensor | float:
        """What attention's output is multiplied by."""
        found = self.parameter(f"{layer}.lambda_1", f"{layer}.layer_scale1")
        return 1.0 if found is None else found

    def parameter(self, *parts: str) -> Tensor | None:
        named = self.hf["hooks"].named_parameters()
        return next((p.detach() for name, p in named if any(part in name for part in parts)), None)

    def ours(self, intervention: iv.Intervention, attention: str) -> Tensor:
        self.model.set_attention(attention)
        with torch.no_grad(), iv.apply(self.model, intervention) as run:
            logits = self.model(self.x)
        self.drawn = run.record
        return logits

    def theirs(self, other: str, edits: Sequence[Edit] = (), read: Callable[[Any], Tensor] | None = None) -> Tensor:
        return OTHERS[other](self.hf[other], self.x, edits, read or logits_of)

    def donated(self, place: str, layer: int) -> Tensor:
        return self.watched(place, layer, self.donors)

    def watched(self, place: str, layer: int | None, x: Tensor) -> Tensor:
        """What transformers has at a place on a run of its own."""
        seen: list[Tensor] = []
        with_hooks(self.hf["hooks"], x, [Edit(place, layer, lambda t: seen.append(t) or t)], logits_of)
        return seen[0]


def logits_of(out: Any) -> Tensor:
    return out.logits


@cache
def setting(family: str) -> Setting:
    hf = {other: make_hf(family) for other in OTHERS}
    model = HookedViT.from_hf(make_hf(family))
    return Setting(family, model, hf, pixels(model, n=N_IMAGES), pixels(model, n=N_IMAGES, seed=1))


def vector(seed: int = 0, *shape: int) -> Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed))


def put(t: Tensor, at: Any, value: Tensor | float, dim: int = 1) -> Tensor:
    """A copy with other values at some places of one axis."""
    new = t.clone()
    new[(slice(None),) * dim + (at,)] = value
    return new


def instead(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _: value


def read(t: Tensor) -> Tensor:
    """What the three features that fit best are worth, of the dictionary the cases splice in."""
    scores = t @ sae_of(D).W_enc
    return torch.where(scores >= scores.topk(3, dim=-1).values[..., -1:], scores.clamp(min=0), 0.0)


def reconstructed(acts: Tensor) -> Tensor:
    return acts @ sae_of(D).W_dec


def edges(t: Tensor, queries: Any, keys: Any, change: Callable[[Tensor], Tensor], heads: Any = None) -> Tensor:
    """A copy of scores or patterns, changed at some edges."""
    new = t.clone()
    for head in range(N_HEADS) if heads is None else heads:
        new[:, head, queries, keys] = change(t[:, head, queries, keys])
    return new


def drawn_order(t: Tensor, state: Tensor) -> Tensor:
    """The order of keys in every row that a generator in this state draws."""
    generator = torch.Generator()
    generator.set_state(state)
    return torch.rand(t.shape, generator=generator).argsort(-1)


def lose(t: Tensor, queries: slice, key: int, order: Tensor) -> Tensor:
    """Rows without as much attention as they pay to a key, taken from keys in this order."""
    new = t.clone()
    for image, head in itertools.product(range(t.shape[0]), range(t.shape[1])):
        for query in range(t.shape[2])[queries]:
            left = t[image, head, query, key].item()
            for k in order[image, head, query].tolist():
                taken = min(left, new[image, head, query, k].item())
                new[image, head, query, k] -= taken
                left -= taken
    return new


def row_of_head(t: Tensor, value: Tensor, head: int, row: int) -> Tensor:
    new = t.clone()
    new[:, head, row] = value[:, head, row]
    return new


def own(t: Tensor) -> Tensor:
    """True on the diagonal of a pattern."""
    return torch.eye(t.shape[-1], dtype=torch.bool)


def of_heads(t: Tensor, heads: list[int], value: Tensor) -> Tensor:
    """A copy of heads side by side with some of them from elsewhere."""
    new, source = t.clone().unflatten(-1, (N_HEADS, -1)), value.unflatten(-1, (N_HEADS, -1))
    new[:, :, heads] = source[:, :, heads]
    return new.flatten(2)


def insert(t: Tensor, at: int, new: Tensor) -> Tensor:
    return torch.cat([t[:, :at], new.expand(len(t), 1, D), t[:, at:]], dim=1)


def at_registers(post: Tensor, n_prefix: int) -> Tensor:
    """The last two tokens get of 20 neurons what is largest in magnitude on any patch; patches get nothing."""
    new = post.clone()
    for image in new:
        for neuron in range(20):
            on_patches = image[n_prefix:-2, neuron]
            image[-2:, neuron] = max(on_patches.tolist(), key=abs)
            image[n_prefix:-2, neuron] = 0
    return new


def others_than(gone: list[int], n: int) -> list[int]:
    return [i for i in range(n) if i not in gone]


def without(t: Tensor, gone: list[int]) -> Tensor:
    return t[:, others_than(gone, t.shape[1])]


def at_edges(bias: Tensor, tokens: list[int]) -> Tensor:
    """BEiT's bias between other tokens than it was made for."""
    return bias[..., tokens, :][..., tokens]


def unbiased(bias: Tensor, at: int) -> Tensor:
    """No bias to or from one token."""
    return put(put(bias, at, 0.0, dim=2), at, 0.0, dim=3)


def projector(directions: Tensor) -> Tensor:
    """Onto the span of the rows."""
    return torch.linalg.pinv(directions) @ directions


def toward(t: Tensor, donor: Tensor, directions: Tensor) -> Tensor:
    """CLS with what the donor's has in the span of the rows."""
    return put(t, 0, t[:, 0] + (donor[:, 0] - t[:, 0]) @ projector(directions))


def head(d_pooled: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(5)
    return torch.randn(CLASSES, d_pooled, generator=rng), torch.randn(CLASSES, generator=rng)


def patches_at(x: Tensor, order: Tensor, size: int) -> Tensor:
    """Pictures whose i-th square is their order[i]-th one."""
    squares = F.unfold(x, size, stride=size)
    mixed = torch.stack([squares[i][:, order[i]] for i in range(len(x))])
    return F.fold(mixed, tuple(x.shape[2:]), size, stride=size)


def low(x: Tensor, radius: float) -> Tensor:
    """The frequencies within a disc, with zero frequency moved to the middle as textbooks draw it."""
    n = x.shape[-1]
    away = torch.arange(n) - n // 2
    disc = (away[:, None] ** 2 + away**2) <= radius**2
    spectrum = torch.fft.fftshift(torch.fft.fft2(x.double()), dim=(-2, -1))
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum * disc, dim=(-2, -1))).real.float()


class Case(NamedTuple):
    """What we are asked for, and the edits that are the same thing elsewhere."""

    ours: Callable[[Setting], iv.Intervention]
    theirs: Callable[[Setting], list[Edit]]
    families: tuple[str, ...] = ALL
    read: Callable[[Any], Tensor] = logits_of
    tolerance: float = 0.0


SOME = torch.tensor([True, False, True, True, False, False])  # of the images
PATCHES = [3, 7, 8]  # indices that are patches in every family
ROUNDING = 2e-6

# Name of the intervention, and after a slash what is special about the case.
CASES: dict[str, Case] = {
    # tokens
    "shuffle_cls": Case(
        lambda s: iv.shuffle_cls(layer=0, seed=3, among="others"),
        lambda s: [Edit("resid_post", 0, lambda t: put(t, 0, t[s.drawn["shuffle_cls"][0], 0]))],
    ),
    "shuffle_cls/twice": Case(
        lambda s: iv.shuffle_cls(layer=0, seed=3) + iv.shuffle_cls(layer=0, seed=4),
        lambda s: [
            Edit("resid_post", 0, lambda t, order=order: put(t, 0, t[order, 0])) for order in s.drawn["shuffle_cls"]
        ],
    ),
    "shuffle_cls/and only one of two heads": Case(
        lambda s: iv.shuffle_cls(layer=0, among="others") + iv.readout("cls"),
        lambda s: [Edit("resid_post", 0, lambda t: put(t, 0, t[s.drawn["shuffle_cls"][0], 0]))],
        families=("deit-teacher",),
        read=lambda out: out.cls_logits,
    ),
    "shuffle_cls/and only half of a head": Case(
        lambda s: iv.shuffle_cls(layer=0, among="others") + iv.readout("cls"),
        lambda s: [
            Edit("resid_post", 0, lambda t: put(t, 0, t[s.drawn["shuffle_cls"][0], 0])),
            Edit("pooled", None, lambda t: put(t, slice(D, None), 0.0)),
        ],
        families=("dinov2",),
    ),
    "shuffle_tokens": Case(
        lambda s: iv.shuffle_tokens(layer=1, tokens="patches", site="resid_pre", among="others"),
        lambda s: [Edit("resid_pre", 1, lambda t: put(t, s.patches, t[s.drawn["shuffle_tokens"][0], s.patches]))],
    ),
    "shuffle_tokens/distillation token": Case(
        lambda s: iv.shuffle_tokens(layer=0, tokens="dist", among="others"),
        lambda s: [Edit("resid_post", 0, lambda t: put(t, 1, t[s.drawn["shuffle_tokens"][0], 1]))],
        families=("deit-teacher",),
    ),
    "resample_tokens": Case(
        lambda s: iv.resample_tokens(layer=0, tokens=PATCHES),
        lambda s: [Edit("resid_post", 0, lambda t: put(t, PATCHES, t[s.drawn["resample_tokens"][0]][:, PATCHES]))],
    ),
    "patch_cls": Case(
        lambda s: iv.patch_cls(layer=0, value=s.donors),
        lambda s: [Edit("resid_post", 0, partial(put, at=0, value=s.donated("resid_post", 0)[:, 0]))],
    ),
    "patch_tokens": Case(
        lambda s: iv.patch_tokens(layer=1, tokens="patches", value=s.donors, site="resid_pre"),
        lambda s: [Edit("resid_pre", 1, partial(put, at=s.patches, value=s.donated("resid_pre", 1)[:, s.patches]))],
    ),
    "patch_tokens/queries of two heads": Case(
        lambda s: iv.patch_tokens(layer=1, tokens="all", value=s.donors, site="q", heads=[0, 2]),
        lambda s: [Edit("q", 1, partial(of_heads, heads=[0, 2], value=s.donated("q", 1)))],
    ),
    "zero_tokens": Case(
        lambda s: iv.zero_tokens(layer=0, tokens="cls"),
        lambda s: [Edit("resid_post", 0, lambda t: put(t, 0, 0.0))],
    ),
    "zero_tokens/some images": Case(
        lambda s: iv.zero_tokens(layer=0, tokens="patches", where=SOME),
        lambda s: [Edit("resid_post", 0, lambda t: torch.where(SOME[:, None, None], put(t, s.patches, 0.0), t))],
    ),
    "mean_tokens": Case(
        lambda s: iv.mean_tokens(layer=0, tokens="patches", mean=vector()),
        lambda s: [Edit("resid_post", 0, lambda t: put(t, s.patches, vector()))],
    ),
    "gaussian_tokens": Case(
        lambda s: iv.gaussian_tokens(layer=0, tokens="cls", mean=vector(), covariance=0.5 * torch.eye(D), seed=1),
        lambda s: [Edit("resid_post", 0, lambda t: put(t, 0, s.drawn["gaussian_tokens"][0][:, 0]))],
    ),
    "set_tokens": Case(
        lambda s: iv.set_tokens(layer=0, tokens="cls", vector=vector(1, N_IMAGES)),
        lambda s: [Edit("resid_post", 0, lambda t: put(t, 0, vector(1, N_IMAGES)))],
    ),
    "steer": Case(
        lambda s: iv.steer(layer=0, tokens="cls", vector=vector(), scale=2.0),
        lambda s: [Edit("resid_post", 0, lambda t: put(t, 0, t[:, 0] + 2.0 * vector()))],
    ),
    "project_out": Case(
        lambda s: iv.project_out(layer=0, tokens="patches", directions=vector(2, 3)),
        lambda s: [
            Edit(
                "resid_post", 0, lambda t: put(t, s.patches, t[:, s.patches] @ (torch.eye(D) - projector(vector(2, 3))))
            )
        ],
        tolerance=ROUNDING,
    ),
    "patch_subspace": Case(
        lambda s: iv.patch_subspace(layer=0, tokens="cls", basis=vector(2, 3), value=s.donors),
        lambda s: [Edit("resid_post", 0, partial(toward, donor=s.donated("resid_post", 0), directions=vector(2, 3)))],
        tolerance=ROUNDING,
    ),
    "remove_subspace": Case(
        lambda s: iv.remove_subspace(layer=0, tokens="cls", projection=projector(vector(2, 3)), mean=vector()),
        lambda s: [
            Edit("resid_post", 0, lambda t: put(t, 0, t[:, 0] - (t[:, 0] - vector()) @ projector(vector(2, 3)))),
        ],
        tolerance=ROUNDING,
    ),
    "splice": Case(
        lambda s: iv.splice(sae_of(D, activation="topk", k=3), layer=0, site="resid_post", error_term=False),
        lambda s: [Edit("resid_post", 0, lambda t: reconstructed(read(t)))],
        tolerance=ROUNDING,
    ),
    "splice/of heads side by side, at some tokens": Case(
        lambda s: iv.splice(sae_of(D, activation="topk", k=3), 0, "z", error_term=False, tokens="patches"),
        lambda s: [Edit("z", 0, lambda t: put(t, s.patches, reconstructed(read(t[:, s.patches]))))],
        tolerance=ROUNDING,
    ),
    "ablate_feature": Case(
        lambda s: (
            iv.splice(sae_of(D, activation="topk", k=3), 0, "resid_post")
            + iv.ablate_feature(layer=0, features=[1, 7], value=4.0)
        ),
        lambda s: [
            Edit(
                "resid_post",
                0,
                lambda t: t + reconstructed(put(read(t), [1, 7], 4.0, dim=2)) - reconstructed(read(t)),
            )
        ],
        tolerance=ROUNDING,
    ),
    "steer_feature": Case(
        lambda s: (
            iv.splice(sae_of(D, activation="topk", k=3), 0, "resid_post")
            + iv.steer_feature(layer=0, features=5, by=3.0, tokens="cls")
        ),
        lambda s: [Edit("resid_post", 0, lambda t: put(t, 0, t[:, 0] + 3.0 * sae_of(D).W_dec[5]))],
        tolerance=ROUNDING,
    ),
    "only": Case(  # without what one part writes: nobody hears of it
        lambda s: iv.only(Circuit.of(s.model, [edge for edge in Graph.of(s.model).edges if edge[0] != "L0.mlp"])),
        lambda s: [Edit("mlp", 0, torch.zeros_like)],
        tolerance=ROUNDING,
    ),
    "noise_tokens": Case(
        lambda s: iv.noise_tokens(layer=0, tokens="patches", std=0.5),
        lambda s: [Edit("resid_post", 0, lambda t: put(t, s.patches, t[:, s.patches] + s.drawn["noise_tokens"][0]))],
    ),
    "insert_token": Case(
        lambda s: iv.insert_token(layer=1, vector=vector(), index=1),
        lambda s: [
            Edit("resid_pre", 1, lambda t: insert(t, 1, vector())),
            *[Edit("bias", 1, lambda t: at_edges(t, [0, 0, *range(1, t.shape[-1])]))] * s.has_bias,
            # transformers reads tokens by position, so the new one has to go before the readout
            Edit("resid_post", 1, lambda t: without(t, [1])),
        ],
    ),
    "insert_token/as a patch": Case(
        lambda s: iv.insert_token(layer=0, vector=vector(1, N_IMAGES), index=-1, role="patches"),
        lambda s: [
            Edit("resid_pre", 0, lambda t: insert(t, t.shape[1], vector(1, N_IMAGES)[:, None])),
            *[Edit("bias", layer, lambda t: at_edges(t, [*range(t.shape[-1]), 0])) for layer in (0, 1)] * s.has_bias,
        ],
    ),
    "insert_token/without position bias": Case(
        lambda s: iv.insert_token(layer=1, vector=vector(), index=1, bias="zero"),
        lambda s: [
            Edit("resid_pre", 1, lambda t: insert(t, 1, vector())),
            Edit("bias", 1, lambda t: unbiased(at_edges(t, [0, 0, *range(1, t.shape[-1])]), 1)),
            Edit("resid_post", 1, lambda t: without(t, [1])),
        ],
        families=("beit-mean-both",),
    ),
    "add_registers": Case(
        lambda s: iv.add_registers([(layer, i) for layer in (0, 1) for i in range(20)], n=2),
        lambda s: [
            Edit("resid_pre", 0, lambda t: insert(insert(t, t.shape[1], ZERO), t.shape[1], ZERO)),
            *[
                Edit("bias", layer, lambda t: unbiased(unbiased(at_edges(t, [*range(t.shape[-1]), 0, 0]), -1), -2))
                for layer in (0, 1)
            ]
            * s.has_bias,
            *[Edit("post", layer, lambda t: at_registers(t, s.n_prefix)) for layer in (0, 1)],
            Edit("resid_post", 1, lambda t: t[:, :-2]),
        ],
    ),
    "remove_tokens": Case(
        lambda s: iv.remove_tokens(PATCHES, layer=1),
        lambda s: [
            Edit("resid_pre", 1, lambda t: without(t, PATCHES)),
            *[Edit("bias", 1, lambda t: at_edges(t, others_than(PATCHES, t.shape[-1])))] * s.has_bias,
        ],
    ),
    "remove_tokens/behind the position embedding": Case(
        lambda s: iv.remove_tokens(PATCHES),
        lambda s: [
            Edit("resid_pre", 0, lambda t: without(t, PATCHES)),
            *[Edit("bias", layer, lambda t: at_edges(t, others_than(PATCHES, t.shape[-1]))) for layer in (0, 1)]
            * s.has_bias,
        ],
    ),
    "swap_cls_parameter": Case(
        lambda s: iv.swap_cls_parameter(vector()),
        lambda s: [Edit("embeddings", None, lambda t: put(t, 0, vector() + s.cls_position))],
        # in front of CLIP's first norm only the sum can be edited
        tolerance=ROUNDING,
    ),
    # attention
    "zero_attention": Case(
        lambda s: iv.zero_attention("patches", "cls"),
        lambda s: [Edit("pattern", layer, lambda t: edges(t, s.patches, 0, torch.zeros_like)) for layer in (0, 1)],
    ),
    "zero_attention/renormalised": Case(
        lambda s: iv.zero_attention("patches", "cls", layers=[0], renormalise=True),
        lambda s: [Edit("scores", 0, lambda t: edges(t, s.patches, 0, lambda x: x - torch.inf))],
    ),
    "zero_attention/heads": Case(
        lambda s: iv.zero_attention("cls", "patches", layers=0, heads=[1, 3]),
        lambda s: [Edit("pattern", 0, lambda t: edges(t, 0, s.patches, torch.zeros_like, heads=[1, 3]))],
    ),
    "zero_attention/all but self": Case(
        lambda s: iv.zero_attention("all", "all", layers=0, keep_self=True, renormalise=True),
        lambda s: [Edit("scores", 0, lambda t: torch.where(own(t), t, torch.full_like(t, -torch.inf)))],
    ),
    "zero_random_attention": Case(
        lambda s: iv.zero_random_attention("patches", "cls", layers=0, seed=5),
        lambda s: [
            Edit("pattern", 0, lambda t: lose(t, s.patches, 0, drawn_order(t, s.drawn["zero_random_attention"][0])))
        ],
        tolerance=ROUNDING,
    ),
    "scale_attention": Case(
        lambda s: iv.scale_attention("cls", "patches", factor=3.0, layers=0),
        lambda s: [Edit("pattern", 0, lambda t: edges(t, 0, s.patches, lambda x: 3.0 * x))],
    ),
    "scale_attention/renormalised": Case(
        lambda s: iv.scale_attention("cls", "patches", factor=3.0, layers=0, renormalise=True),
        lambda s: [Edit("scores", 0, lambda t: edges(t, 0, s.patches, lambda x: x + log(3.0)))],
    ),
    "self_only": Case(
        lambda s: iv.self_only("patches", layers=0),
        lambda s: [Edit("pattern", 0, lambda t: put(t, s.patches, own(t)[s.patches].to(t), dim=2))],
    ),
    "uniform_attention": Case(
        lambda s: iv.uniform_attention(),
        lambda s: [Edit("pattern", layer, lambda t: torch.full_like(t, 1 / t.shape[-1])) for layer in (0, 1)],
    ),
    "freeze_attention": Case(
        lambda s: iv.freeze_attention(s.donors),
        lambda s: [Edit("pattern", layer, instead(s.donated("pattern", layer))) for layer in (0, 1)],
    ),
    "freeze_attention/one row of one head": Case(
        lambda s: iv.freeze_attention(s.donors, layers=0, heads=2, queries="cls"),
        lambda s: [Edit("pattern", 0, partial(row_of_head, value=s.donated("pattern", 0), head=2, row=0))],
    ),
    # components
    "ablate_heads": Case(
        lambda s: iv.ablate_heads(layers=[0, 1], heads=[1, 3]),
        lambda s: [Edit("z", layer, lambda t: of_heads(t, [1, 3], torch.zeros_like(t))) for layer in (0, 1)],
    ),
    "ablate_heads/to a mean": Case(
        lambda s: iv.ablate_heads(layers=0, heads=[1], mean=vector().unflatten(0, (N_HEADS, -1))),
        lambda s: [Edit("z", 0, lambda t: of_heads(t, [1], vector().expand_as(t)))],
    ),
    "ablate_heads/results": Case(
        lambda s: iv.ablate_heads(layers=0, heads=[1, 3], site="result"),
        lambda s: [Edit("z", 0, lambda t: of_heads(t, [1, 3], torch.zeros_like(t)))],
        tolerance=ROUNDING,
    ),
    "ablate_neurons": Case(
        lambda s: iv.ablate_neurons(layers=0, neurons=range(20)),
        lambda s: [Edit("post", 0, lambda t: put(t, slice(20), 0.0, dim=2))],
    ),
    "ablate_branch": Case(lambda s: iv.ablate_branch("mlp", layers=0), lambda s: [Edit("mlp", 0, torch.zeros_like)]),
    "ablate_branch/attention at a token": Case(
        lambda s: iv.ablate_branch("attn", layers=[0, 1], tokens="cls"),
        lambda s: [Edit("attn", layer, lambda t: put(t, 0, 0.0)) for layer in (0, 1)],
    ),
    "ablate_branch/to a mean": Case(
        lambda s: iv.ablate_branch("attn", layers=0, mean=vector()),
        # transformers has no name for what comes out of BEiT's LayerScale, so the mean is divided by it
        lambda s: [Edit("attn", 0, lambda t: (vector() / s.layer_scale(0)).expand_as(t))],
        tolerance=ROUNDING,
    ),
    "scale_branch": Case(
        lambda s: iv.scale_branch("mlp", factor=0.5, layers=[0, 1]),
        lambda s: [Edit("mlp", layer, lambda t: 0.5 * t) for layer in (0, 1)],
    ),
    "patch_heads": Case(
        lambda s: iv.patch_heads(layer=0, heads=[1, 3], value=s.donors),
        lambda s: [Edit("z", 0, partial(of_heads, heads=[1, 3], value=s.donated("z", 0)))],
    ),
    "patch_neurons": Case(
        lambda s: iv.patch_neurons(layer=0, neurons=range(20), value=s.donors),
        lambda s: [Edit("post", 0, partial(put, at=slice(20), value=s.donated("post", 0)[..., :20], dim=2))],
    ),
    "patch_branch": Case(
        lambda s: iv.patch_branch(layer=0, branch="attn", value=s.donors),
        lambda s: [Edit("attn", 0, instead(s.donated("attn", 0)))],
    ),
    # readout
    "readout/cls of two heads": Case(
        lambda s: iv.readout("cls"), lambda s: [], families=("deit-teacher",), read=lambda out: out.cls_logits
    ),
    "readout/dist of two heads": Case(
        lambda s: iv.readout("dist"), lambda s: [], families=("deit-teacher",), read=lambda out: out.distillation_logits
    ),
    "readout/cls of [cls, patches]": Case(
        lambda s: iv.readout("cls"),
        lambda s: [Edit("pooled", None, lambda t: put(t, slice(D, None), 0.0))],
        families=("dinov2",),
    ),
    "readout/patches of [cls, patches]": Case(
        lambda s: iv.readout("patches"),
        lambda s: [Edit("pooled", None, lambda t: put(t, slice(None, D), 0.0))],
        families=("dinov2",),
    ),
    "drop_source": Case(
        lambda s: iv.drop_source("patches", mean=vector()),
        lambda s: [Edit("pooled", None, lambda t: put(t, slice(D, None), vector()))],
        families=("dinov2",),
    ),
    "drop_source/of two heads": Case(
        lambda s: iv.drop_source("dist"),
        lambda s: [Edit("pooled_dist", None, torch.zeros_like)],
        families=("deit-teacher",),
    ),
    "new_head": Case(
        lambda s: iv.new_head(*head(s.d_pooled)),
        lambda s: [Edit("logits", None, instead(F.linear(s.watched("pooled", None, s.x), *head(s.d_pooled))))],
        families=("vit", "beit-mean-both", "dinov2", "clip-classifier"),
    ),
    # input
    "shuffle_patches": Case(
        lambda s: iv.shuffle_patches(seed=2),
        lambda s: [
            Edit("pixels", None, lambda t: patches_at(t, s.drawn["shuffle_patches"][0], s.model.cfg.patch_size))
        ],
    ),
    "low_pass": Case(
        lambda s: iv.low_pass(radius=5), lambda s: [Edit("pixels", None, lambda t: low(t, 5))], tolerance=ROUNDING
    ),
    "high_pass": Case(
        lambda s: iv.high_pass(radius=5), lambda s: [Edit("pixels", None, lambda t: t - low(t, 5))], tolerance=ROUNDING
    ),
}


def furthest(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.mark.parametrize(("name", "family"), [(name, f) for name, case in CASES.items() for f in case.families])
def test_three_ways(name: str, family: str) -> None:
    case, s = CASES[name], setting(family)
    ours = s.ours(case.ours(s), "eager")
    theirs = {other: s.theirs(other, case.theirs(s), case.read) for other in OTHERS}
    size = max(1.0, ours.abs().max().item())
    for other, logits in theirs.items():
        assert furthest(ours, logits) <= case.tolerance * size, other
    assert furthest(ours, s.ours(case.ours(s), "auto")) <= ROUNDING * size
    # agreeing says nothing about an edit that does nothing
    assert furthest(ours, s.theirs("hooks")) > 1e-3


@pytest.mark.parametrize("family", ALL)
def test_without_an_edit(family: str) -> None:
    s = setting(family)
    s.model.set_attention("eager")
    with torch.no_grad():
        clean = s.model(s.x)
    assert [furthest(clean, s.theirs(other)) for other in OTHERS] == [0.0, 0.0]


@pytest.mark.parametrize("other", OTHERS)
def test_beit_takes_no_further_token_elsewhere(other: str) -> None:
    """transformers adds a bias of the native size; only those who find and extend it can insert a token."""
    s = setting("beit-mean-both")
    case = CASES["insert_token"]
    with pytest.raises(Exception, match=r"size of tensor a \(18\) must match the size of tensor b \(17\)"):
        s.theirs(other, [edit for edit in case.theirs(s) if edit.place != "bias"])
    assert furthest(s.ours(case.ours(s), "auto"), s.theirs(other)) > 1e-3


@pytest.mark.parametrize("family", ALL)
def test_images_that_lose_different_tokens(family: str) -> None:
    """Others cannot hold images of different lengths in one batch; one image at a time they can."""
    s = setting(family)
    gone = (
        torch.rand(N_IMAGES, 16, generator=torch.Generator().manual_seed(0)) < torch.linspace(0, 0.9, N_IMAGES)[:, None]
    )
    assert len(set(gone.sum(1).tolist())) > 2
    ours = s.ours(iv.remove_tokens("patches", layer=1, where=gone), "auto")

    def alone(image: int) -> Tensor:
        places = (gone[image].nonzero().flatten() + s.n_prefix).tolist()
        edits = [
            Edit("resid_pre", 1, lambda t: without(t, places)),
            *[Edit("bias", 1, lambda t: at_edges(t, others_than(places, t.shape[-1])))] * s.has_bias,
        ]
        return with_hooks(s.hf["hooks"], s.x[image : image + 1], edits, logits_of)

    theirs = torch.cat([alone(image) for image in range(N_IMAGES)])
    assert furthest(ours, theirs) <= ROUNDING * max(1.0, ours.abs().max().item())


def test_every_intervention_is_compared() -> None:
    ours = {
        name for name, factory in iv.registered().items() if factory.function.__module__.startswith("interventions.")
    }
    assert {name.partition("/")[0] for name in CASES} == ours


def test_nothing_is_left_behind() -> None:
    """Importing nnsight gives every object of the process a `save` and every tensor another `backward`."""
    import_nnsight()
    assert not hasattr(object(), "save")
    assert torch.Tensor.backward.__module__ == "torch._tensor"
