"""Adding tokens to a run."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.config import Role
from hooked_vit.tokens import ROLES
from interventions.apply import note
from interventions.core import Hooks, intervention
from interventions.editing import Value
from interventions.storing import show
from interventions.vocabulary import (
    Number,
    Where,
    check_choice,
    check_number,
    check_tokens,
    check_where,
    check_width,
    generator_of,
    indices,
    layer_of,
    layout_with,
    per_image,
    site_hook,
)

BIAS = ("cls", "zero")
RANDOM = "random"
Neurons = Sequence[tuple[int, int]]
"""(layer, neuron) pairs."""


@intervention
def insert_token(
    model: HookedViT,
    layer: int,
    vector: Tensor | str | int,
    index: int = 0,
    role: Role = "inserted",
    bias: str | Tensor = "cls",
    seed: int = 0,
    std: Number = 1.0,
    where: Where = True,
) -> Hooks:
    """Add a token in front of position `index` to the stream entering block `layer`.

    >>> insert_token(layer=8, vector="random", std=0.02)
    insert_token(layer=8, vector='random', std=0.02)

    `vector` is fixed or learned, [d] or one per image [b, d]; "random" for normal draws of standard deviation `std`,
    new for every image and pass and kept in `run.record`; or the role or index of one token to copy. Roles, readout
    and position lookups of the other tokens stay right. The readout leaves the new token out unless it is given
    another `role`. Where the family biases attention by relative position, the new token uses the entries of CLS, or
    none (`bias="zero"`), or [3, heads] of its own in the order of BEiT's table: new to token, token to new, new to
    itself. Where queries and keys are turned by position, those of the new token are not. `where` chooses images.
    methods: lab note 2, "augment".
    """
    layer = layer_of(model, layer)
    check_choice(role, ROLES, "a token's role")
    check_number(std, "std", least=0)
    chosen = check_where(where)
    if chosen.dtype != torch.bool:
        raise ValueError("a token is added or it is not: where is a bool, or one per image")
    most = max(layout.n_tokens for layout in model.expected_layouts())
    if isinstance(index, bool) or not -most - 1 <= index <= most:
        raise ValueError(f"index must be 0 to {most}, or negative from the end; got {index}")
    make = _maker(model, vector, seed, std)
    donor, mark, bias_hooks = _bias(model, bias, layer)

    def edit(resid: Tensor, hook: object) -> Tensor:
        per_image(chosen, len(resid), "where is given")
        if not chosen.any():
            return resid
        n = resid.shape[1]
        if not -n - 1 <= index <= n:
            raise ValueError(f"a token cannot be put in at {index}: there are {n} tokens at this point of the run")
        at = index % (n + 1)
        longer = model.insert_tokens(resid, at, make(resid)[:, None], role=role, donor=donor)
        if mark is not None:
            new = torch.arange(longer.shape[1], device="cpu") == at
            model.run.tokens = replace(model.tokens, donors=model.tokens.donors.masked_fill(new, mark))
        if chosen.all():
            return longer
        # the others lose it again, and are padded at the end instead
        places = torch.arange(longer.shape[1], device="cpu").expand(len(resid), -1)
        without = torch.cat([places[:, :at], places[:, at + 1 :], places.new_full((len(resid), 1), -1)], dim=1)
        return model.keep_tokens(longer, torch.where(chosen[:, None], places, without))

    return [(site_hook(model, "resid_pre", layer), edit), *bias_hooks]


def _maker(model: HookedViT, vector: Tensor | str | int, seed: int, std: Number) -> Value:
    """The new token [b, d] of a stream [b, t, d]."""
    d = model.cfg.d_model
    generator = generator_of(seed)
    if isinstance(vector, Tensor):
        check_width(model, vector)

        def make(resid: Tensor) -> Tensor:
            return per_image(vector.reshape(-1, d), len(resid), "vectors are given").to(resid).expand(len(resid), d)

    elif vector == RANDOM:

        def make(resid: Tensor) -> Tensor:
            drawn = torch.randn(len(resid), d, generator=generator, device="cpu") * std
            note("insert_token", drawn)
            return drawn.to(resid)

    else:
        check_tokens(model, vector)
        if (n := int(layout_with(model, vector).mask(vector, missing_ok=True).sum())) > 1:
            raise ValueError(f"one token can be copied, {vector!r} are {n}; give the index of one")

        def make(resid: Tensor) -> Tensor:
            here = model.tokens.mask(vector)
            if (here.sum(-1) != 1).any():
                raise ValueError(f"one token can be copied, {vector!r} are several here")
            at = here.int().argmax(-1).expand(len(resid)).to(resid.device)
            return resid[torch.arange(len(resid), device=resid.device), at]

    return make


def _bias(model: HookedViT, bias: str | Tensor, layer: int) -> tuple[int | None, int | None, Hooks]:
    """The donor of the new token's relative-position entries; or its mark, and the edits that give it its own."""
    if isinstance(bias, str):
        check_choice(bias, BIAS, "the new token's position bias")
        prefix = model.cfg.prefix
        return (prefix.index("cls") if bias == "cls" and "cls" in prefix else None), None, []
    names = [f"blocks.{l}.attn.hook_rel_pos_bias" for l in range(layer, model.cfg.n_layers)]
    if names[0] not in model.hook_dict:
        raise ValueError("this model has no relative position bias, so a new token cannot have one of its own")
    if bias.shape != (3, model.cfg.n_heads):
        raise ValueError(f"a position bias is [3, {model.cfg.n_heads}]; got {tuple(bias.shape)}")
    # a negative donor is none; which negative number it is tells later blocks whose entries to set
    mark = -2 - zlib.crc32(show(bias).encode())

    def edit(table: Tensor, hook: object) -> Tensor:
        new = model.tokens.donors == mark
        if not new.any():
            return table
        new = new.to(table.device).reshape(-1, 1, new.shape[-1])
        row, column = new[..., :, None], new[..., None, :]
        to_token, to_new, to_self = bias.to(table)[:, None, :, None, None]
        own = torch.where(row & column, to_self, torch.where(row, to_token, to_new))
        return torch.where(row | column, own, table)

    return None, mark, [(name, edit) for name in names]


@intervention
def add_registers(model: HookedViT, neurons: Neurons, n: int = 1, role: Role = "inserted") -> Hooks:
    """Add `n` zero tokens at the end, and let them hold what these neurons write on patches.

    >>> add_registers(neurons=[(5, 17), (6, 3)])
    add_registers(neurons=((5, 17), (6, 3)))

    `neurons` are (layer, neuron), behind the nonlinearity. At each, the new tokens get the activation of an image's
    patches that is largest in magnitude, and its patches get 0; other tokens keep theirs. Without neurons (an empty
    list) the tokens are only added. They have no position, and the readout leaves them out unless `role` is another.
    Jiang et al. 2025, registers at test time (arXiv 2506.08010), who take the largest: the same but where a gate turns
    activations negative.
    Raises ValueError for a layer or neuron the model has not, a neuron named twice, and fewer than one token.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n is a number of tokens to add, at least 1; got {n!r}")
    check_choice(role, ROLES, "a token's role")
    chosen = _by_layer(model, neurons)
    # no position: a negative donor is none, and which one it is tells these tokens from others
    mark = -2 - zlib.crc32(f"{neurons} {n} {role}".encode())

    def add(resid: Tensor, hook: object) -> Tensor:
        longer = model.insert_tokens(resid, -1, resid.new_zeros(n, resid.shape[-1]), role=role, donor=None)
        new = torch.arange(longer.shape[1], device="cpu") >= resid.shape[1]
        model.run.tokens = replace(model.tokens, donors=model.tokens.donors.masked_fill(new, mark))
        return longer

    def moved(wanted: list[int]) -> Callable[[Tensor, object], Tensor]:
        def move(post: Tensor, hook: object) -> Tensor:
            new, patches = ((x if x.ndim == 2 else x[None])[..., None].to(post.device) for x in _moved(model, mark))
            some = post[..., wanted]
            on_patches = some.where(patches, 0)
            top = on_patches.gather(1, on_patches.abs().argmax(1, keepdim=True))
            edited = post.clone()
            edited[..., wanted] = torch.where(new, top, some.masked_fill(patches, 0))
            return edited

        return move

    moves = [(site_hook(model, "post", layer), moved(wanted)) for layer, wanted in chosen.items()]
    return [(site_hook(model, "resid_pre", 0), add), *moves]


def _moved(model: HookedViT, mark: int) -> tuple[Tensor, Tensor]:
    """Where the tokens added under this mark are, and where the image's own patches."""
    layout = model.tokens
    return layout.donors == mark, layout.mask("patches", missing_ok=True) & (layout.ids >= 0)


def _by_layer(model: HookedViT, neurons: Neurons) -> dict[int, list[int]]:
    """The neurons of each layer, in the order of the network."""
    if any(len(pair) != 2 for pair in neurons):
        raise ValueError(f"neurons are (layer, neuron) pairs; got {tuple(neurons)}")
    pairs = [(layer_of(model, l), *indices(i, model.cfg.d_mlp, "neuron")) for l, i in neurons]
    if len(set(pairs)) < len(pairs):
        raise ValueError("every neuron is moved once; some are named twice")
    found: dict[int, list[int]] = {}
    for layer, neuron in sorted(pairs):
        found.setdefault(layer, []).append(neuron)
    return found
