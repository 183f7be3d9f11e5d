"""Their tensors under our names, strict both ways: nothing missing, nothing unused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from hooked_vit.architectures import Architecture
from hooked_vit.config import ViTConfig
from hooked_vit.errors import CheckpointError
from hooked_vit.loading.inspection import is_plain


def convert(
    family: Architecture, cfg: ViTConfig, theirs: dict[str, Tensor], ours: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Their state dict under our names.

    Raises CheckpointError naming every tensor of theirs without a place, every place without a tensor, and NaN.
    """
    theirs = family.prepare(cfg, theirs)
    stripped = {_strip(family, key): tensor for key, tensor in theirs.items()}
    if len(stripped) < len(theirs):
        counts = Counter(_strip(family, key) for key in theirs)
        raise CheckpointError(
            f"{cfg.hf_class} holds more than one tensor for {sorted(k for k, n in counts.items() if n > 1)}, and the "
            f"{family.name} graph has one place for each"
        )
    state: dict[str, Tensor] = {}
    used: set[str] = set()
    for our_key in ours:
        layer = next(iter(re.findall(r"^blocks\.(\d+)\.", our_key)), None)
        template = our_key if layer is None else our_key.replace(f"blocks.{layer}.", "blocks.{l}.", 1)
        names = _alternatives(family.keys.get(template, ""), layer)
        found = next((name for name in names if name in stripped), None)
        if found is None:
            continue
        used.add(found)
        state[our_key] = _fitted(our_key, found, stripped[found], ours[our_key])
    missing = sorted(set(ours) - set(state))
    unused = sorted(k for k in set(stripped) - used if not is_irrelevant(family, k))
    if missing or unused:
        raise CheckpointError(
            f"{cfg.hf_class} does not fit the {family.name} graph: no tensor for {missing or 'none'}, "
            f"no place for {unused or 'none'}"
        )
    if broken := sorted(key for key, tensor in state.items() if not tensor.isfinite().all()):
        raise CheckpointError(f"weights hold NaN or infinity: {', '.join(broken[:8])}")
    return state


def _alternatives(entry: str, layer: str | None) -> list[str]:
    """`head|cls_head` and `layers.{l}.fc.weight|...`: the part behind the last dot is shared by all alternatives."""
    if not entry:
        return []
    *names, last = entry.split("|")
    suffix = last.rpartition(".")[2]
    names = [*(name if name.endswith(f".{suffix}") else f"{name}.{suffix}" for name in names), last]
    return [name if layer is None else name.replace("{l}", layer) for name in names]


def _strip(family: Architecture, key: str) -> str:
    root = next(root for root in family.roots if key.startswith(root))
    return key.removeprefix(root)


def is_irrelevant(family: Architecture, key: str) -> bool:
    """True for a tensor that plays no part in what the graph computes."""
    return any(fnmatch(_strip(family, key), pattern) for pattern in family.irrelevant_tensors)


def is_read(family: Architecture, key: str) -> bool:
    """True where some class of the family reads this tensor, even if another of its classes has no use for it."""
    names = [name for entry in family.keys.values() for name in _alternatives(entry, "*")]
    return any(fnmatch(_strip(family, key), name) for name in names)


def _fitted(our_key: str, their_key: str, tensor: Tensor, place: Tensor) -> Tensor:
    """Their tensor in our shape; only axes of length one may differ."""
    if [n for n in tensor.shape if n != 1] != [n for n in place.shape if n != 1]:
        raise CheckpointError(
            f"{their_key} has shape {tuple(tensor.shape)}, {our_key} needs {tuple(place.shape)}: "
            "config and weights disagree"
        )
    return tensor.reshape(place.shape)


def check_plain(family: Architecture, theirs: Mapping[str, Tensor]) -> tuple[torch.dtype, torch.device]:
    """The one type and device of the tensors that are read; others would be cast in silence.

    Raises CheckpointError for tensors that are no floating-point numbers of 16, 32 or 64 bits, hold no numbers at all
    (the meta device), or differ among each other.
    """
    read = {key: tensor for key, tensor in theirs.items() if tensor.ndim and not is_irrelevant(family, key)}
    if strange := sorted(f"{k} ({t.dtype})" for k, t in read.items() if not is_plain(k, t.dtype)):
        raise CheckpointError(
            "weights are numbers of 16, 32 or 64 bits in floating point; these are not: "
            f"{', '.join(strange[:4])}{' ...' if len(strange) > 4 else ''}"
        )
    floats = {key: tensor for key, tensor in read.items() if tensor.is_floating_point()}
    for what in ("dtype", "device"):
        kinds = {getattr(tensor, what): key for key, tensor in floats.items()}
        if len(kinds) > 1:
            shown = ", ".join(f"{key} {kind}" for kind, key in kinds.items())
            raise CheckpointError(f"weights differ in their {what} ({shown}); bring them to one with .to(...)")
    like = next(iter(floats.values()), torch.empty(0))
    if like.device.type == "meta":
        raise CheckpointError("the weights are on the meta device, where there are no numbers; load them first")
    return like.dtype, like.device


def frozen(family: Architecture, cfg: ViTConfig, hf_model: nn.Module, ours: dict[str, Tensor]) -> list[str]:
    """Our names of the parameters of theirs that are not to be trained."""
    learns = {name: p.requires_grad for name, p in hf_model.named_parameters(remove_duplicate=False)}
    if all(learns.values()):
        return []
    marks = {
        key: torch.tensor(float(learns.get(key, True))).expand(tensor.shape)
        for key, tensor in hf_model.state_dict().items()
    }
    return [name for name, mark in convert(family, cfg, marks, ours).items() if not mark.all()]
