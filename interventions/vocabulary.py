"""The words all interventions share: layers, heads, tokens, sites, and `where`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from hooked_vit import HookedViT, TokenLayout
from hooked_vit.errors import nearest
from hooked_vit.tokens import Tokens

Layers = int | Sequence[int] | None
Heads = int | Sequence[int] | None
Number = int | float
Where = bool | Number | Tensor

# Sites by TransformerLens' short names, and what each holds per token: a vector, a vector per head, neurons.
STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_in", "mlp_out")
HEADS = ("q", "k", "v", "rot_q", "rot_k", "z", "result")
NEURONS = ("pre", "pre_linear", "post")
TOKEN_SITES = (*STREAM, *HEADS, *NEURONS)
EDGES = ("attn_scores", "pattern")


def layers_of(model: HookedViT, layers: Layers) -> list[int]:
    """Layer indices 0..n_layers-1 of a layer, several, or None for all; negative from the end.

    Raises ValueError for a layer the model has not.
    """
    return indices(layers, model.cfg.n_layers, "layer")


def layer_of(model: HookedViT, layer: int) -> int:
    """One layer index, negative from the end."""
    return layers_of(model, layer)[0]


def heads_of(model: HookedViT, heads: Heads) -> list[int]:
    """Head indices of a head, several, or None for all."""
    return indices(heads, model.cfg.n_heads, "head")


def indices(asked: int | Sequence[int] | None, n: int, what: str) -> list[int]:
    """0..n-1 of one index, several, or None for all; negative from the end, each only once.

    >>> indices([0, -1, 3], 4, "layer")
    [0, 3]

    Raises ValueError for an index out of range, and for none at all.
    """
    if asked is None:
        return list(range(n))
    wanted: list[Any] = list(asked) if isinstance(asked, Iterable) else [asked]
    if bad := [i for i in wanted if isinstance(i, bool) or not isinstance(i, Integral) or not -n <= int(i) < n]:
        raise ValueError(f"{what}s are 0 to {n - 1} (or negative from the end): the model has {n}, got {bad}")
    if not wanted:
        raise ValueError(f"no {what} is named, so nothing would happen; leave it out to mean all of them")
    return list(dict.fromkeys(int(i) % n for i in wanted))


def site_hook(model: HookedViT, site: str, layer: int, among: Sequence[str] = TOKEN_SITES) -> str:
    """Hook name of a site in a layer.

    >>> site_hook(model, "z", 3)  # doctest: +SKIP
    'blocks.3.attn.hook_z'

    Raises ValueError for a site that is not among those named, or that this model has not.
    """
    if site not in among:
        raise ValueError(f"no site is called {site!r} here{nearest(site, among)} (sites are {', '.join(among)})")
    part = "attn." if site in (*HEADS, *EDGES) else "mlp." if site in NEURONS else ""
    name = f"blocks.{layer}.{part}hook_{site}"
    model.resolve_hooks(name)
    return name


def site_shape(model: HookedViT, site: str) -> tuple[int, ...]:
    """What a site holds per token: (d_model,), (heads, d_head), (heads, d_model) or (d_mlp,)."""
    cfg = model.cfg
    if site in HEADS:
        return cfg.n_heads, cfg.d_model if site == "result" else cfg.d_head
    return (cfg.d_mlp,) if site in NEURONS else (cfg.d_model,)


def check_tokens(model: HookedViT, tokens: Any) -> None:
    """Refuse, before any run, a role or index the model has not.

    Raises ValueError. A role that only an earlier intervention can bring ("inserted") is checked when it is reached.
    """
    if isinstance(tokens, Tensor):
        hint = 'a mask goes into where, with tokens="all"' if tokens.dtype == torch.bool else "give .tolist()"
        raise ValueError(f"tokens are a role or a list of indices, got a tensor; {hint}")
    if not isinstance(tokens, str):
        named = _listed(tokens)
        if bad := [t for t in named if isinstance(t, bool) or not isinstance(t, int)]:
            raise ValueError(f"tokens are a role or a list of indices, got {bad[0]!r}")
        if not named:
            raise ValueError('no token is named, so nothing would happen; say tokens="all" to mean all of them')
    if tokens != "inserted":
        layout_with(model, tokens)


def layout_with(model: HookedViT, *tokens: Tokens) -> TokenLayout:
    """The tokens of a run that may be meant: of the processor's images, or of native ones, whichever has all of these.

    Inside `with model.running(layout)` they are that layout's. Raises ValueError for a role or an index in neither.
    """
    layouts = model.expected_layouts()
    named = [i for asked in tokens if not isinstance(asked, str) for i in _listed(asked)]
    fits = (known for known in layouts if all(-known.n_native <= i < known.n_native for i in named))
    layout = next(fits, layouts[0])
    for asked in tokens:
        try:
            layout.mask(asked, missing_ok=bool(model.run.depth))
        except ValueError as error:
            larger = "; for larger images, attach it inside `with model.running(model.layout_for(pixels))`"
            raise ValueError(f"{error}{'' if isinstance(asked, str) else larger}") from error
    return layout


def _listed(tokens: Any) -> list[int]:
    return list(tokens) if isinstance(tokens, Iterable) else [tokens]


def check_where(where: Where, *, per_token: bool = False) -> Tensor:
    """`where` as a tensor: one bool or number, one per image [b], or per image and token [b, k].

    Raises ValueError for another shape, or a value that is not finite.
    """
    weight = where if isinstance(where, Tensor) else torch.tensor(where, device="cpu")
    # what is only looked at is looked at here, so that no device is waited for
    weight = weight if weight.requires_grad else weight.cpu()
    shapes = "one value, or one per image [b]" + ", or per image and token [b, k]" * per_token
    if weight.ndim > 1 + per_token:
        raise ValueError(f"where is {shapes}; got {tuple(weight.shape)}")
    if weight.is_complex() or not weight.isfinite().all():
        raise ValueError("where is a bool, or a number that says how far to go from 0 (not at all) to 1; got no number")
    return weight if weight.dtype == torch.bool or weight.is_floating_point() else weight.float()


def check_number(value: Number, what: str, *, least: Number = float("-inf")) -> Number:
    """A finite number, at least `least`.

    Raises ValueError.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < float("inf"):
        bound = "" if least == float("-inf") else f" of at least {least}"
        raise ValueError(f"{what} is a finite number{bound}, got {value!r}")
    return value


def check_choice(value: str, choices: Sequence[str], what: str) -> None:
    """Refuse a word that is not among the choices.

    Raises ValueError.
    """
    if value not in choices:
        raise ValueError(f"{what} is one of {', '.join(choices)}; got {value!r}{nearest(str(value), choices)}")


def generator_of(seed: int) -> torch.Generator:
    """A generator of one's own, on the CPU, so that draws are the same on every device.

    Raises ValueError for a seed that is no whole number.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"a seed is a whole number, got {seed!r}")
    return torch.Generator("cpu").manual_seed(seed)


def check_width(model: HookedViT, value: Tensor) -> None:
    """Refuse, before any run, a vector that is not as wide as the residual stream.

    Raises ValueError.
    """
    d = model.cfg.d_model
    if value.ndim not in (1, 2) or value.shape[-1] != d:
        raise ValueError(f"a token vector is [{d}], or [images, {d}]; got {tuple(value.shape)}")


def per_image(value: Tensor, batch: int, what: str) -> Tensor:
    """The same tensor, where its first axis holds one entry for all images, or as many as the batch.

    Raises ValueError for another number.
    """
    if value.ndim and len(value) not in (1, batch):
        raise ValueError(f"{what} for {len(value)} images, the batch has {batch}")
    return value


def blend(act: Tensor, value: Tensor, where: Tensor) -> Tensor:
    """`act + where * (value - act)`, exactly the value at 1 and True, and what it was at 0 and False.

    >>> blend(torch.tensor([0.1, 0.1]), torch.tensor([0.3, 0.3]), torch.tensor([0.0, 1.0]))
    tensor([0.1000, 0.3000])

    The gradient of a metric in `where`, at 0, is attribution patching (Syed et al. 2023).
    """
    if where.dtype == torch.bool:
        return torch.where(where, value.to(act), act)
    return torch.lerp(act, value.to(act).expand_as(act), where.to(act))
