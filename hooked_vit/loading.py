"""From a transformers model or checkpoint to the hook graph, strict both ways: nothing missing, nothing unused."""

from __future__ import annotations

import re
from collections import Counter
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hooked_vit import architectures
from hooked_vit.architectures import Architecture
from hooked_vit.architectures.base import ConfigReader
from hooked_vit.config import ViTConfig
from hooked_vit.errors import CheckpointError, UnsupportedModelError
from hooked_vit.processing import load_processor

if TYPE_CHECKING:
    from hooked_vit.model import HookedViT


def from_pretrained(
    name_or_path: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", **hub: Any
) -> HookedViT:
    """See HookedViT.from_pretrained."""
    hf_model = load_hf(name_or_path, dtype=dtype, **hub)
    model = from_hf(hf_model, processor=load_processor(name_or_path, **hub))
    model.cfg = model.cfg.replace(name=name_or_path)
    return model.to(device)


def load_hf(name_or_path: str, *, dtype: torch.dtype = torch.float32, **hub: Any) -> Any:
    """The checkpoint as transformers loads it, in the class it was saved from, refused unless every tensor fits.

    Raises UnsupportedModelError before any weight is read where the class has no graph here.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name_or_path, trust_remote_code=False, **hub)
    except (OSError, ValueError) as error:
        supported = ", ".join(sorted(architectures.supported_classes()))
        raise UnsupportedModelError(
            f"{name_or_path!r} is neither a local checkpoint folder nor a hub model that can be reached: {error}\n"
            f"Supported classes: {supported}"
        ) from error
    named = getattr(config, "architectures", None) or []
    if len(named) != 1:
        raise UnsupportedModelError(
            f"the config of {name_or_path!r} must name one class under `architectures`, it names {named}: which heads "
            "to load cannot be guessed"
        )
    architectures.for_class(named[0])
    model, info = getattr(transformers, named[0]).from_pretrained(
        name_or_path,
        config=config,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that they are named below
        trust_remote_code=False,
        **hub,
    )
    _refuse_holes(name_or_path, named[0], info)
    return model


def _refuse_holes(name: str, hf_class: str, info: dict[str, Any]) -> None:
    """transformers fills missing tensors with random ones and drops unused ones; here both are errors."""
    family = architectures.for_class(hf_class)
    missing = [k for k in info["missing_keys"] if _is_read(family, k) or not _irrelevant(family, k)]
    unused = [k for k in info["unexpected_keys"] if not _irrelevant(family, k)]
    mismatched = [str(m) for m in info.get("mismatched_keys", ())]
    problems = [
        f"{what}: {', '.join(sorted(found)[:8])}{' ...' if len(found) > 8 else ''}"
        for what, found in (("missing", missing), ("unused", unused), ("of another shape", mismatched))
        if found
    ]
    if problems:
        raise CheckpointError(
            f"{name!r} does not fit {hf_class}; tensors {'; '.join(problems)}. Load it in the class it was saved from"
        )


def from_hf(hf_model: nn.Module, *, processor: Any = None) -> HookedViT:
    """See HookedViT.from_hf."""
    from hooked_vit.model import HookedViT

    hf_class = type(hf_model).__name__
    family = architectures.for_class(hf_class)
    cfg = read_config(hf_model.config, hf_class)
    model = HookedViT(cfg)
    like = next(hf_model.parameters())
    model.to(like.device, like.dtype)
    state = convert(family, cfg, hf_model.state_dict(), model.state_dict())
    model.load_state_dict(state, strict=True)
    model.processor = processor
    return model


def read_config(hf_config: Any, hf_class: str) -> ViTConfig:
    """The graph's config from a transformers config.

    Raises CheckpointError for an attribute that is neither handled nor listed as irrelevant, or a value no graph has.
    """
    family = architectures.for_class(hf_class)
    reader = ConfigReader(hf_config)
    cfg = family.classes[hf_class](reader, hf_class)
    reader.refuse_unread(family.irrelevant_config)
    return cfg.replace(architecture=family.name, hf_class=hf_class)


def convert(
    family: Architecture, cfg: ViTConfig, theirs: dict[str, Tensor], ours: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Their state dict under our names.

    Raises CheckpointError naming every tensor of theirs without a place, every place without a tensor, and NaN.
    """
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
    unused = sorted(k for k in set(stripped) - used if not _irrelevant(family, k))
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
    names = entry.split("|")
    suffix = names[-1].rpartition(".")[2]
    names = [name if name.endswith(f".{suffix}") else f"{name}.{suffix}" for name in names]
    return [name if layer is None else name.replace("{l}", layer) for name in names]


def _strip(family: Architecture, key: str) -> str:
    root = next(root for root in family.roots if key.startswith(root))
    return key.removeprefix(root)


def _irrelevant(family: Architecture, key: str) -> bool:
    return any(fnmatch(_strip(family, key), pattern) for pattern in family.irrelevant_tensors)


def _is_read(family: Architecture, key: str) -> bool:
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
