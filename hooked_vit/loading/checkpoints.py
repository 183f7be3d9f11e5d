"""From a model or a checkpoint to the hook graph, strict both ways: nothing missing, nothing unused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hooked_vit import architectures
from hooked_vit.architectures import Architecture
from hooked_vit.architectures.base import CheckpointFiles, ConfigReader
from hooked_vit.config import ViTConfig
from hooked_vit.errors import CheckpointError, UnsupportedModelError
from hooked_vit.loading.conversion import convert, is_irrelevant, is_read
from hooked_vit.processing import load_processor

Graph = TypeVar("Graph", bound=nn.Module)
"""The class that is built: a config makes one with random weights. This module does not know the graph itself."""


def from_pretrained(
    graph: type[Graph],
    name_or_path: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    **hub: Any,
) -> Graph:
    """See HookedViT.from_pretrained."""
    if (found := _files_of(name_or_path, **hub)) is not None:
        return _from_files(graph, name_or_path, *found, dtype=dtype, **hub).to(device)
    hf_model = load_hf(name_or_path, dtype=dtype, **hub)
    model: Any = from_hf(graph, hf_model, processor=load_processor(name_or_path, **hub))
    model.cfg = model.cfg.replace(name=name_or_path)
    return model.to(device)


def load_hf(name_or_path: str, *, dtype: torch.dtype = torch.float32, **hub: Any) -> Any:
    """The checkpoint as transformers loads it, in the class it was saved from, refused unless every tensor fits.

    Raises UnsupportedModelError before any weight is read where the class has no graph here.
    """
    import transformers

    if (found := _files_of(name_or_path, **hub)) is not None:
        raise UnsupportedModelError(
            f"{name_or_path!r} was saved by another library ({found[0].name}), which is needed for the original model"
        )
    config, hf_class = _hf_config(name_or_path, **hub)
    architectures.for_class(hf_class)
    model, info = getattr(transformers, hf_class).from_pretrained(
        name_or_path,
        config=config,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that they are named below
        trust_remote_code=False,
        **hub,
    )
    _refuse_holes(name_or_path, hf_class, info)
    return model


def checkpoint_class(name_or_path: str, **hub: Any) -> str:
    """The class of transformers or timm a checkpoint is of, without reading a weight.

    Raises UnsupportedModelError where there is no such checkpoint, or it names no class.
    """
    if (found := _files_of(name_or_path, **hub)) is not None:
        return found[1].settings(found[2])[0]
    return _hf_config(name_or_path, **hub)[1]


def _hf_config(name_or_path: str, **hub: Any) -> tuple[Any, str]:
    """The checkpoint's config as transformers reads it, and the one class it names."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name_or_path, trust_remote_code=False, **hub)
    except (OSError, ValueError) as error:
        raise _not_there(name_or_path, error) from error
    named = getattr(config, "architectures", None) or []
    if len(named) != 1:
        raise UnsupportedModelError(
            f"the config of {name_or_path!r} must name one class under `architectures`, it names {named}: which heads "
            "to load cannot be guessed"
        )
    return config, named[0]


def _not_there(name_or_path: str, error: Exception) -> UnsupportedModelError:
    supported = ", ".join(sorted(architectures.supported_classes()))
    return UnsupportedModelError(
        f"{name_or_path!r} is neither a local checkpoint folder nor a hub model that can be reached: {error}\n"
        f"Supported classes: {supported}"
    )


def _refuse_holes(name: str, hf_class: str, info: dict[str, Any]) -> None:
    """transformers fills missing tensors with random ones and drops unused ones; here both are errors."""
    family = architectures.for_class(hf_class)
    missing = [k for k in info["missing_keys"] if is_read(family, k) or not is_irrelevant(family, k)]
    unused = [k for k in info["unexpected_keys"] if not is_irrelevant(family, k)]
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


def from_hf(graph: type[Graph], hf_model: nn.Module, *, processor: Any = None) -> Graph:
    """See HookedViT.from_hf."""
    hf_class = type(hf_model).__name__
    family = architectures.for_class(hf_class)
    cfg = read_config(family.config_of(hf_model), hf_class)
    like = next(hf_model.parameters())
    model: Any = _build(graph, family, cfg, hf_model.state_dict(), like.dtype).to(like.device)
    model.processor = processor
    return model


def _build(
    graph: type[Graph], family: Architecture, cfg: ViTConfig, theirs: Mapping[str, Tensor], dtype: torch.dtype
) -> Graph:
    model = graph(cfg).to(dtype)
    state = convert(family, cfg, dict(theirs), model.state_dict())
    model.load_state_dict(state, strict=True)
    return model


def from_state_dict(
    graph: type[Graph],
    tensors: Mapping[str, Tensor] | str | Path,
    architecture: str,
    *,
    prefix: str = "",
    drop: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Graph:
    """See HookedViT.from_state_dict."""
    family, files = architectures.by_name(architecture)
    held = dict(read_tensors(Path(tensors)) if isinstance(tensors, (str, Path)) else tensors)
    if bare := [key for key in held if not key.startswith(prefix)]:
        raise CheckpointError(f"every tensor should be called {prefix}…, and these are not: {_some(bare)}")
    held = {key.removeprefix(prefix): tensor for key, tensor in held.items()}
    for pattern in drop:
        dropped = [key for key in held if fnmatch(key, pattern)]
        if not dropped:
            raise CheckpointError(f"{pattern!r} is to be dropped, and no tensor is called so: {_some(held)}")
        for key in dropped:
            del held[key]
    their_class, config = files.settings(architecture, **settings)
    return _build(graph, family, read_config(config, their_class), held, dtype)


def read_tensors(file: Path) -> Mapping[str, Tensor]:
    """The state dict in a .safetensors or a torch file; nothing in it is executed.

    Raises CheckpointError for a file that holds anything else.
    """
    from safetensors.torch import load_file

    try:
        content = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{file} is no file of tensors that can be read safely: {error}") from error
    for key in ("model", "state_dict"):
        content = content[key] if isinstance(content, Mapping) and isinstance(content.get(key), Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(f"{file} holds no state dict: a state dict is a dictionary of tensors")
    return content


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return f"{', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"


def config_json(name_or_path: str, **hub: Any) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Raises OSError where there is no config.json, it cannot be reached, or it is not JSON.
    """
    from transformers.utils import cached_file

    file = Path(str(cached_file(name_or_path, "config.json", **hub)))
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{file} is not JSON: {error}") from error


def _files_of(name_or_path: str, **hub: Any) -> tuple[Architecture, CheckpointFiles, dict[str, Any]] | None:
    """The family that reads this checkpoint's files, and its config.json, where another library saved it."""
    try:
        config = config_json(name_or_path, **hub)
    except (OSError, ValueError) as error:
        raise _not_there(name_or_path, error) from error
    found = architectures.by_config(config)
    return None if found is None else (*found, config)


def _from_files(
    graph: type[Graph],
    name_or_path: str,
    family: Architecture,
    files: CheckpointFiles,
    config: dict[str, Any],
    *,
    dtype: torch.dtype,
    **hub: Any,
) -> Graph:
    from transformers.utils import cached_file

    their_class, settings = files.settings(config)
    cfg, processor = read_config(settings, their_class), files.processor(config)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if file := cached_file(name_or_path, name, _raise_exceptions_for_missing_entries=False, **hub):
            model: Any = _build(graph, family, cfg.replace(name=name_or_path), read_tensors(Path(file)), dtype)
            model.processor = processor
            return model
    raise CheckpointError(f"{name_or_path!r} holds neither model.safetensors nor pytorch_model.bin")


def read_described(name_or_path: str, **hub: Any) -> ViTConfig:
    """The graph's config of a checkpoint, without reading a weight.

    Raises UnsupportedModelError where there is no such checkpoint, or no graph for its class.
    """
    if (found := _files_of(name_or_path, **hub)) is not None:
        _, files, config = found
        their_class, settings = files.settings(config)
        return read_config(settings, their_class)
    config, hf_class = _hf_config(name_or_path, **hub)
    return read_config(config, hf_class)


def read_config(hf_config: Any, hf_class: str) -> ViTConfig:
    """The graph's config from a transformers config.

    Raises CheckpointError for an attribute that is neither handled nor listed as irrelevant, or a value no graph has.
    """
    family = architectures.for_class(hf_class)
    reader = ConfigReader(hf_config)
    cfg = family.classes[hf_class](reader, hf_class)
    reader.refuse_unread(family.irrelevant_config)
    return cfg.replace(architecture=family.name, hf_class=hf_class)
