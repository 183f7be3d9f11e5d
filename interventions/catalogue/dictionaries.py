"""A sparse dictionary in the stream, and edits of the activations it then has: `hook_sae_acts`."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from hooked_vit import HookedViT, HookPoint
from hooked_vit.errors import UnknownHookError
from hooked_vit.hook_table import SPLICED
from hooked_vit.tokens import Tokens
from interventions.core import Hooks, intervention
from interventions.dictionaries import Sae
from interventions.editing import Value, among, moved, weights
from interventions.vocabulary import (
    TOKEN_SITES,
    Heads,
    Number,
    Where,
    check_number,
    check_tokens,
    check_where,
    indices,
    layer_of,
    site_hook,
    site_shape,
)

SITES = tuple(site for site in TOKEN_SITES if site != "result")


class SplicedPoint(HookPoint):
    """Where a dictionary shows its activations; `width` of them per token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


def _stored(**params: Any) -> dict[str, Any]:
    """The dictionary as a mapping, so that the intervention can be stored."""
    sae = params["sae"]
    if not isinstance(sae, Mapping):
        sae = Sae.from_dict(sae).to_dict()
    return params | {"sae": sae}


def _placed(model: HookedViT, sae: Sae, layer: int | None, site: str | None) -> str:
    """Name of the hook point a dictionary is spliced into: where it is told to, or where it was trained.

    Raises ValueError for another place than it was trained for, or another width.
    """
    trained = None if sae.layer is None else layer_of(model, sae.layer)
    at = _agreed("layer", None if layer is None else layer_of(model, layer), trained)
    where = _agreed("site", site, sae.site)
    name = site_hook(model, where, at, SITES)
    width = prod(list(site_shape(model, where)))
    if sae.width != width:
        raise ValueError(f"the dictionary reads {sae.width} numbers of a token, {where} of this model has {width}")
    return name


def _agreed(what: str, asked: Any, trained: Any) -> Any:
    """What is asked for, or what the dictionary was trained on."""
    if asked is None and trained is None:
        raise ValueError(f"the dictionary does not say which {what} it was trained on; give {what}=")
    if asked is not None and trained is not None and asked != trained:
        raise ValueError(
            f"the dictionary was trained on {what} {trained!r}, and is to be spliced into {asked!r}; where that is "
            f"meant, sae.replace({what}=None)"
        )
    return trained if asked is None else asked


def _point(model: HookedViT, *, sae: Any, layer: int | None, site: str | None, **_: Any) -> dict[str, HookPoint]:
    """The hook point a spliced dictionary brings."""
    found = Sae.from_dict(sae)
    return {_placed(model, found, layer, site) + SPLICED: SplicedPoint(found.n_features)}


@intervention(canonical=_stored, brings=_point)
def splice(
    model: HookedViT,
    sae: Mapping[str, Any],
    layer: int | None = None,
    site: str | None = None,
    error_term: bool = True,
    tokens: Tokens | None = None,
    where: Where = True,
) -> Hooks:
    """Put a sparse dictionary into the stream; its activations are a hook point that other interventions edit.

    >>> dictionary = splice(load_sae("folder", "saelens"), layer=8)  # doctest: +SKIP
    >>> with apply(model, dictionary + ablate_feature(layer=8, features=17)):  # doctest: +SKIP
    ...     logits, cache = model.run_with_cache(pixels)
    >>> cache["blocks.8.hook_resid_post.hook_sae_acts"].shape  # doctest: +SKIP

    With the error term the activation is moved by what an edit of the dictionary's activations changes in its
    reconstruction: bit for bit nothing where none is edited. Without it the reconstruction takes its place. Layer, site
    and tokens are those the dictionary was trained on, where it says; heads are read side by side. Every token is read,
    and those named are edited. Marks et al. 2024 (the error term), Cunningham et al. 2023.
    Raises ValueError for a dictionary of another width, layer or site, and for a second one at the same site.
    """
    found = Sae.from_dict(sae)
    name = _placed(model, found, layer, site)
    named: Tokens = (found.tokens or "all") if tokens is None else tokens
    check_tokens(model, named)
    weight = check_where(where, per_token=True)

    def edit(act: Tensor, hook: object) -> Tensor:
        x = act.flatten(2)
        acts = found.encode(x)
        point = model.hook_dict.get(name + SPLICED)
        shown = acts if point is None else point(acts)
        if shown.shape != acts.shape:
            raise ValueError(
                f"activations of a dictionary keep their shape {tuple(acts.shape)}; got {tuple(shown.shape)}"
            )
        if error_term:
            new = x if shown is acts else x + found.moved(shown - acts, x).to(x)
        else:
            new = found.decode(shown, x).to(x)
        if new is x:
            return act
        layout = model.tokens
        here = layout.mask(named)
        here = here.reshape(-1, here.shape[-1], *[1] * (act.ndim - 2))
        return moved(act, lambda _: new.reshape(act.shape), here, weights(weight, act, layout, named))

    return [(name, edit)]


@intervention(idempotent=True)
def ablate_feature(
    model: HookedViT,
    layer: int,
    features: Heads,
    site: str = "resid_post",
    tokens: Tokens = "all",
    value: Number = 0.0,
    where: Where = True,
) -> Hooks:
    """Set features of the dictionary that is spliced in at a site to zero, or to another value, at the tokens named.

    >>> splice(sae, layer=8) + ablate_feature(layer=8, features=[17, 23])  # doctest: +SKIP

    Raises ValueError for a feature the dictionary has not, UnknownHookError where no dictionary is spliced in.
    """
    check_number(value, "value")
    return _edit_acts(model, layer, site, features, lambda acts: torch.full_like(acts, value), tokens, where)


@intervention
def steer_feature(
    model: HookedViT,
    layer: int,
    features: Heads,
    by: Number,
    site: str = "resid_post",
    tokens: Tokens = "all",
    where: Where = True,
) -> Hooks:
    """Add to the activation of features of the dictionary that is spliced in at a site, at the tokens named.

    >>> splice(sae, layer=8) + steer_feature(layer=8, features=17, by=5.0, tokens="cls")  # doctest: +SKIP

    With the error term that adds `by` times the feature's direction, in the frame the dictionary reads the token in.
    Raises what `ablate_feature` raises.
    """
    check_number(by, "by")
    return _edit_acts(model, layer, site, features, lambda acts: acts + by, tokens, where)


def _edit_acts(
    model: HookedViT, layer: int, site: str, features: Heads, value: Value, tokens: Tokens, where: Where
) -> Hooks:
    host = site_hook(model, site, layer_of(model, layer), SITES)
    point = model.hook_dict.get(host + SPLICED)
    if point is None:
        raise UnknownHookError(
            f"no dictionary is spliced in at {host}: write splice(sae, layer={layer}, site={site!r}) in front, with +"
        )
    check_tokens(model, tokens)
    weight = check_where(where, per_token=True)
    assert isinstance(point, SplicedPoint)
    inside = among(indices(features, point.width, "feature"), point.width)

    def edit(acts: Tensor, hook: object) -> Tensor:
        layout = model.tokens
        return moved(acts, value, layout.mask(tokens)[..., None] & inside, weights(weight, acts, layout, tokens))

    return [(host + SPLICED, edit)]
