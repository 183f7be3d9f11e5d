"""Where a patch can be made: sites, layers, token groups and heads, and the pairs of images it is made between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from analyses.activations.token_groups import Groups
from hooked_vit import HookedViT
from hooked_vit.config.showing import counted
from hooked_vit.errors import nearest
from interventions.vocabulary import heads_of

# the stream at depth b, from 0 in front of the first block to n_layers behind the last: site -> depth of layer 0
STREAM = {"resid": 0, "resid_pre": 0, "resid_post": 1}
# sites inside a block: site -> (hook point, axes)
INNER = {
    "attn_out": ("hook_attn_out", "stream"),
    "resid_mid": ("hook_resid_mid", "stream"),
    "mlp_out": ("hook_mlp_out", "stream"),
    "mlp_post": ("mlp.hook_post", "stream"),
    "z": ("attn.hook_z", "heads"),
    "q": ("attn.hook_q", "heads"),
    "k": ("attn.hook_k", "heads"),
    "v": ("attn.hook_v", "heads"),
    "attn_scores": ("attn.hook_attn_scores", "scores"),
    "pattern": ("attn.hook_pattern", "scores"),
}
SITES = (*STREAM, *INNER)
EACH = "each"


@dataclass(frozen=True)
class Patch:
    """One patch: a site, a layer (for "resid" a depth, 0 to n_layers), a token group, and heads (None: all)."""

    site: str
    layer: int
    group: str
    heads: tuple[int, ...] | None = None

    @property
    def head(self) -> int | None:
        """The head, where it is a single one."""
        return self.heads[0] if self.heads is not None and len(self.heads) == 1 else None


def axes(site: str) -> str:
    """Of an activation: "stream" [b t d], "heads" [b t h d] or "scores" [b h t t]."""
    return INNER[site][1] if site in INNER else "stream"


def has_heads(site: str) -> bool:
    """Whether activations of a site belong to heads."""
    return axes(site) != "stream"


def check_site(site: str) -> None:
    """Raise ValueError for a site that nothing can be patched at."""
    if site not in SITES:
        raise ValueError(f"nothing can be patched at {site!r}{nearest(site, SITES)} Sites are {', '.join(SITES)}")


def layers_at(model: HookedViT, site: str, layers: int | Sequence[int] | None) -> list[int]:
    """Layers of a site, negative from the end, None for all; of "resid" they are depths, one more than layers.

    Raises ValueError for a layer there is not.
    """
    n = model.cfg.n_layers + (site == "resid")
    wanted = list(range(n)) if layers is None else [layers] if isinstance(layers, int) else list(layers)
    if bad := [l for l in wanted if not -n <= l < n]:
        raise ValueError(f"{site} has layers 0 to {n - 1} (or negative from the end) in this model; got {bad}")
    return sorted({l % n for l in wanted})


def list_patches(
    model: HookedViT, sites: str | Sequence[str], layers: Any, groups: Groups, heads: Any = None
) -> list[Patch]:
    """Every combination of sites, layers, token groups and heads: `heads` is None, "each", a head, or several at once.

    Raises ValueError for a site, layer or head there is not, and for heads of a site that has none.
    """
    sites = [sites] if isinstance(sites, str) else list(sites)
    for site in sites:
        check_site(site)
    if heads is not None and (headless := [s for s in sites if not has_heads(s)]):
        heady = ", ".join(filter(has_heads, SITES))
        raise ValueError(f"{', '.join(headless)} has no heads; sites with heads are {heady}")
    if heads is None:
        chosen: list[tuple[int, ...] | None] = [None]
    elif isinstance(heads, str):
        if heads != EACH:
            raise ValueError(f'heads are None, "each", a number or several; got {heads!r}')
        chosen = [(h,) for h in range(model.cfg.n_heads)]
    else:
        chosen = [tuple(heads_of(model, heads))]
    return [
        Patch(site, layer, group, h)
        for site in sites
        for layer in layers_at(model, site, layers)
        for group in groups
        for h in chosen
    ]


def pair_pixels(
    model: HookedViT, clean: Any, corrupt: Any
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """Both members of pairs as pixels: tensors as they are, images through the model's processor.

    Raises ValueError for members of different shape or number, and for none.
    """
    sides = []
    for side in (clean, corrupt):
        sizes = tuple(side.shape) if isinstance(side, Tensor) else [image.size for image in side]
        sides.append((sizes, side))
    (first, clean), (second, corrupt) = sides
    if first != second:
        differ = _first_difference(first, second)
        raise ValueError(f"the two members of a pair have one shape, or tokens would not correspond; got {differ}")
    if not len(clean):
        raise ValueError("patching needs at least one pair; got none")
    both = [side if isinstance(side, Tensor) else model.preprocess(side) for side in (clean, corrupt)]
    for side in both:
        model.check_pixels(side)
    return both[0], both[1]


def _first_difference(first: Any, second: Any) -> str:
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        i = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
        return f"{first[i]} and {second[i]} in pair {i}"
    shown = [counted(len(s), "image") if isinstance(s, list) else str(s) for s in (first, second)]
    return " and ".join(shown)
