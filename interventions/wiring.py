"""Runs in which a receiver reads, of some senders, not what they write but something put in its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_vit import HookedViT
from interventions.circuits import INPUTS, Graph
from interventions.core import Edit, Hooks
from interventions.sources import mean_over_images, run_pixels
from interventions.vocabulary import per_image


class Outputs(NamedTuple):
    """What every part writes, or what is put in its place; a batch of one is for all images.

    `embed` [b t d] is the stream in front of block 0, `z` [l b t h e] the heads before the output matrix, `mlp`
    [l b t d] the MLPs.
    """

    embed: Tensor
    z: Tensor
    mlp: Tensor


def outputs_of(model: HookedViT, pixels: Float[Tensor, "b c h w"]) -> Outputs:
    """What every part writes in a clean run.

    Raises ValueError where hooks are attached to the model.
    """
    return _stacked(model, run_pixels(model, pixels, [name for names in _names(model) for name in names]))


def mean_outputs(model: HookedViT, batches: Iterable[Float[Tensor, "_ _ _ _"]]) -> Outputs:
    """What every part writes on average over images, at every token, as a batch of one.

    Raises ValueError for no images.
    """
    everything = [name for names in _names(model) for name in names]
    means = mean_over_images(run_pixels(model, pixels, everything) for pixels in batches)
    return _stacked(model, {name: mean.to(model.dtype) for name, mean in means.items()})


def _names(model: HookedViT) -> tuple[list[str], list[str], list[str]]:
    """The hooks of `Outputs`, part by part."""
    layers = range(model.cfg.n_layers)
    heads, mlps = ([f"blocks.{l}.{site}" for l in layers] for site in ("attn.hook_z", "hook_mlp_out"))
    return ["blocks.0.hook_resid_pre"], heads, mlps


def _stacked(model: HookedViT, seen: Mapping[str, Tensor]) -> Outputs:
    (start,), heads, mlps = _names(model)
    return Outputs(seen[start], *(torch.stack([seen[name] for name in names]) for names in (heads, mlps)))


def check_outputs(model: HookedViT, values: Mapping[str, Any] | Outputs) -> Outputs:
    """Values of all parts, as wide as this model's.

    Raises ValueError for something else, for parts that are missing or not the model's, and for another width.
    """
    if not isinstance(values, (Outputs, Mapping)):
        raise ValueError(f"values are None for zeros, pixels, or Outputs such as mean_outputs gives; got {values!r}")
    given = values._asdict() if isinstance(values, Outputs) else dict(values)
    cfg = model.cfg
    shapes = {"embed": (cfg.d_model,), "z": (cfg.n_heads, cfg.d_head), "mlp": (cfg.d_model,)}
    lead = {"embed": 2, "z": 3, "mlp": 3}
    if set(given) != set(shapes):
        raise ValueError(f"values are given for {', '.join(shapes)}; got {', '.join(map(str, given))}")
    for name, shape in shapes.items():
        got = tuple(given[name].shape)
        layers_fit = name == "embed" or got[:1] == (cfg.n_layers,)
        if len(got) != lead[name] + len(shape) or got[lead[name] :] != shape or not layers_fit:
            want = ", ".join(map(str, shape))
            raise ValueError(
                f"{name} is [{'layers, ' * (name != 'embed')}images, tokens, {want}] with {cfg.n_layers} layers in "
                f"this model; got {got}"
            )
    return Outputs(**given)


class Wiring:
    """The hooks of one run after another: what was written so far, and what each receiver reads differently.

    `cut` [s r] says how far each edge carries what is put in the place of its sender: 0 not at all, 1 nothing else.
    `values` None puts zeros. `leaves`, per block of receivers, is added to what they read (for gradients).
    After a run, `written` [s b t d] is the difference each sender makes, `heard` what each block of receivers read.
    """

    def __init__(
        self,
        model: HookedViT,
        cut: Float[Tensor, "s r"],
        values: Outputs | None,
        where: Tensor | None = None,
        leaves: Sequence[Tensor] | None = None,
    ) -> None:
        self.model, self.graph, self.values, self.where, self.leaves = model, Graph.of(model), values, where, leaves
        self.cut = cut.to(model.embed.patch.weight)
        self.written: list[Tensor] = []
        self.heard: list[Tensor] = []

    def hooks(self) -> Hooks:
        """(name, edit) for every part of the model, in the order of a run."""
        found: Hooks = [("blocks.0.hook_resid_pre", self._begin)]
        for l in range(self.model.cfg.n_layers):
            found.append((f"blocks.{l}.hook_resid_pre", lambda x, hook: self._listen(x)))
            for i, kind in enumerate(INPUTS):
                found.append((f"blocks.{l}.attn.hook_{kind}", lambda x, hook, l=l, i=i: self._read(x, l, i)))
            found.append((f"blocks.{l}.attn.hook_z", lambda x, hook, l=l: self._write_heads(x, l)))
            found.append((f"blocks.{l}.hook_mlp_in", lambda x, hook, l=l: self._add(x, 2 * l + 1, self.graph.mlp(l))))
            found.append((f"blocks.{l}.hook_mlp_out", lambda x, hook, l=l: self._write_mlp(x, l)))
        n = self.model.cfg.n_layers
        everything = len(self.graph.senders), slice(len(self.graph.receivers) - 1, len(self.graph.receivers))
        found.append((f"blocks.{n - 1}.hook_resid_post", lambda x, hook: self._add(x, 2 * n, everything)))
        return [found[0], *((name, partial(self._checked, edit)) for name, edit in found[1:])]

    def _checked(self, edit: Edit, x: Tensor, hook: Any) -> Tensor | None:
        """An edit of a run whose tokens are those it began with."""
        if self.heard and x.shape[1] != self.heard[0].shape[1]:
            raise ValueError(
                f"a circuit's edges are cut token by token: this run began with {self.heard[0].shape[1]} tokens and "
                f"has {x.shape[1]} at {hook.name}; insert or remove tokens without `only`"
            )
        return edit(x, hook=hook)

    def _begin(self, x: Tensor, hook: object) -> Tensor:
        self.heard = []
        self.written = [self._difference(x, None if self.values is None else self.values.embed)[None]]
        return x

    def _difference(self, x: Tensor, value: Tensor | None) -> Tensor:
        if value is None:
            return -x.to(self.cut)
        per_image(value, len(x), "the values of a circuit are")
        if value.shape[1] != x.shape[1]:
            raise ValueError(f"the values of a circuit are for {value.shape[1]} tokens, this run has {x.shape[1]}")
        return (value.to(x) - x).to(self.cut)

    def _listen(self, x: Tensor) -> Tensor:
        self.heard.append(x)
        return x

    def _write_heads(self, z: Tensor, layer: int) -> Tensor:
        difference = self._difference(z, None if self.values is None else self.values.z[layer])
        self.written.append(torch.einsum("bthe,hed->hbtd", difference, self.model.blocks[layer].attn.W_O))
        return z

    def _write_mlp(self, out: Tensor, layer: int) -> Tensor:
        self.written.append(self._difference(out, None if self.values is None else self.values.mlp[layer])[None])
        return out

    def _message(self, block: int, heard: int, columns: slice) -> Float[Tensor, "r b t d"] | None:
        """What the receivers of a block of columns read differently; None for nothing."""
        shares, message = self.cut[:heard, columns], None
        if shares.any():
            written = torch.cat(self.written)
            if len(written) < heard:
                raise RuntimeError("a circuit is run from the pixels on; this run began behind some of its senders")
            message = torch.einsum("sr,sbtd->rbtd", shares, written[:heard])
            if self.where is not None:
                message = message * self.where.to(message).reshape(-1, 1, 1)
        if self.leaves is not None:
            message = self.leaves[block] if message is None else message + self.leaves[block]
        return message

    def _add(self, x: Tensor, block: int, at: tuple[int, slice]) -> Tensor:
        self.heard.append(x)
        message = self._message(block, *at)
        return x if message is None else x + message[0].to(x)

    def _read(self, act: Tensor, layer: int, kind: int) -> Tensor:
        """Queries, keys or values [b t h e] of every head, each from the stream as this head reads it."""
        heard, columns = self.graph.attention(layer)
        n = self.model.cfg.n_heads
        mine = slice(columns.start + kind * n, columns.start + (kind + 1) * n)
        message = self._message(2 * layer, heard, columns) if self.leaves is not None else self._message(0, heard, mine)
        if message is None:
            return act
        block = self.model.blocks[layer]
        linear = getattr(block.attn, INPUTS[kind])
        stream = block.ln1(self.heard[-1] + (message if self.leaves is None else message[kind * n : (kind + 1) * n]))
        new = torch.einsum("hbtd,hed->bthe", stream, linear.weight.unflatten(0, (n, -1)))
        if linear.bias is not None:
            new = new + linear.bias.unflatten(0, (n, -1))
        new = new.to(act)
        if self.leaves is not None:
            return new
        # a head none of whose edges is cut reads bit for bit what it read
        touched = (self.cut[:heard, mine] != 0).any(0)
        return torch.where(touched[:, None], new, act)
