"""The same edit made by another library on the original model: what our hooks do has to be what nnsight does."""

from __future__ import annotations

import sys
import warnings
from functools import cache
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooked_vit import architectures
from hooked_vit.model import HookedViT


@cache
def import_nnsight() -> ModuleType:
    """nnsight without what importing it does to every object and every tensor of the process."""
    if "nnsight" in sys.modules:
        return sys.modules["nnsight"]
    backward = torch.Tensor.backward
    import nnsight
    from nnsight._c import unmount

    torch.Tensor.backward = backward  # type: ignore[method-assign]  # ours is for forward traces only
    if unmount is not None and hasattr(object(), "save"):
        unmount("save")
    return nnsight


@torch.no_grad()
def shuffled_both_ways(
    ours: HookedViT, theirs: nn.Module, pixels: Float[Tensor, "b c h w"]
) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t d"]]:
    """The last block's output after images exchanged their first token behind block 0: by our hook, and by nnsight.

    >>> mine, nnsights = shuffled_both_ways(model, hf_model, pixels)  # doctest: +SKIP

    nnsight takes the modules of `theirs` over; give it a model of its own. Needs two blocks and two images.
    """
    nnsight = import_nnsight()
    assert ours.cfg.hf_class is not None
    family = architectures.for_class(ours.cfg.hf_class)
    blocks = family.keys["blocks.{l}.ln1.weight"].partition(".{l}.")[0]
    root = next(r for r in family.roots if not r or hasattr(theirs, r.rstrip(".")))
    with warnings.catch_warnings():
        # a module called `output` inside a block gets another name there; only blocks are asked for theirs
        warnings.filterwarnings("ignore", message=".* has a submodule named", category=UserWarning)
        body = nnsight.NNsight(theirs.get_submodule(root.rstrip(".")))
    order, last = torch.arange(len(pixels)).roll(1), ours.cfg.n_layers - 1
    with family.as_read(theirs, pixels) as (_, keywords), body.trace(pixels, **keywords):
        edited = body.get(f"{blocks}.0")
        resid, *more = edited.output if isinstance(edited.output, tuple) else [edited.output]
        shuffled = torch.cat([resid[order, :1], resid[:, 1:]], dim=1)
        edited.output = (shuffled, *more) if isinstance(edited.output, tuple) else shuffled
        out = body.get(f"{blocks}.{last}").output
        nnsights = nnsight.save(out[0] if isinstance(out, tuple) else out)

    def shuffle(resid: Tensor, hook: object) -> Tensor:
        return torch.cat([resid[order, :1], resid[:, 1:]], dim=1)

    name = f"blocks.{last}.hook_resid_post"
    with ours.hooks([("blocks.0.hook_resid_post", shuffle)]):
        _, cache = ours.run_with_cache(pixels, names_filter=name)
    return cache[name], nnsights
