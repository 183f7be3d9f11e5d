"""From a model or a checkpoint to the hook graph, strict both ways: nothing missing, nothing unused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hooked_vit import architectures
from hooked_vit.architectures import Architecture
from hooked_vit.architectures.base import CheckpointFiles
from hooked_vit.config import ViTConfig
from hooked_vit.errors import CheckpointError, UnsupportedModelError
from hooked_vit.loading.conversion import check_plain, convert, frozen, is_irrelevant, is_read, offer_prefix, some
from hooked_vit.loading.described import (
    cached,
    described,
    files_of,
    hf_config_of,
    hub_and_settings,
    in_words,
    read_config,
    read_described,
)
from hooked_vit.loading.hub import pinned, within_reach
from hooked_vit.loading.inspection import (
    WEIGHTS,
    check_weights,
    read_tensors,
    state_dict_in,
)
from hooked_vit.processing import load_processor

Graph = TypeVar("Graph", bound=nn.Module)
"""The class that is built: a config makes one with random weights. This module does not know the graph itself."""


def from_pretrained(
    graph: type[Graph],
    name_or_path: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    **keywords: Any,
) -> Graph:
    """See HookedViT.from_pretrained."""
    keywords = within_reach(name_or_path, keywords)
    hub, changes = hub_and_settings(keywords)
    if (found := files_of(name_or_path, **hub)) is not None:
        return _from_files(graph, name_or_path, *found, changes, dtype=dtype, **hub).to(device)
    hf_model = load_hf(name_or_path, dtype=dtype, **keywords)
    model: Any = from_hf(graph, hf_model, processor=load_processor(name_or_path, **hub))
    model.cfg = model.cfg.replace(name=name_or_path)
    return model.to(device)


def load_hf(name_or_path: str, *, dtype: torch.dtype = torch.float32, **keywords: Any) -> Any:
    """The checkpoint as transformers loads it, in the class it was saved from, refused unless every tensor fits.

    `keywords` as of `from_pretrained`. Raises UnsupportedModelError before any weight is read where the class has no
    graph here, TypeError for a setting its config has not.
    """
    import transformers

    keywords = within_reach(name_or_path, keywords)
    hub, changes = hub_and_settings(keywords)
    if (found := files_of(name_or_path, **hub)) is not None:
        raise UnsupportedModelError(
            f"{name_or_path!r} was saved by another library ({found[0].name}), which is needed for the original model"
        )
    config, hf_class = hf_config_of(name_or_path, changes, **hub)
    check_weights(lambda file: cached(name_or_path, file, **hub), name_or_path, read_config(config, hf_class))
    place, hub = pinned(name_or_path, hub)
    with in_words(f"transformers cannot load {name_or_path!r} as {hf_class}"), quietly():
        model, info = getattr(transformers, hf_class).from_pretrained(
            place,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are named below
            trust_remote_code=False,
            **hub,
        )
    _refuse_holes(name_or_path, hf_class, info, changes)
    return model


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' bar over the tensors of a file, which is done before anybody reads it; downloads show."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    shown, downloads = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _refuse_holes(name: str, hf_class: str, info: dict[str, Any], changes: Mapping[str, Any]) -> None:
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
        told = ", ".join(f"{setting}={value!r}" for setting, value in changes.items())
        rule = "Load it in the class it was saved from"
        if changes:
            rule = f"It was saved without {told}; model.set_readout_(...) changes what a loaded model reads"
        raise CheckpointError(f"{name!r} does not fit {hf_class}; tensors {'; '.join(problems)}. {rule}")


WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


def from_hf(graph: type[Graph], hf_model: nn.Module, *, processor: Any = None) -> Graph:
    """See HookedViT.from_hf."""
    hf_class = type(hf_model).__name__
    if hf_class in WRAPPERS or hasattr(hf_model, "merge_and_unload"):
        inside = WRAPPERS.get(hf_class, "merge_and_unload()")
        raise UnsupportedModelError(f"{hf_class} is wrapped around a model; give what it is around: model.{inside}")
    family = _family_in_memory(hf_model)
    cfg = read_config(family.config_of(hf_model), hf_class)
    theirs = hf_model.state_dict()
    dtype, device = check_plain(family, theirs)
    model: Any = _build(graph, family, cfg, theirs, dtype).to(device)
    for name in frozen(family, cfg, hf_model, model.state_dict()):
        model.get_parameter(name).requires_grad_(False)
    model.processor = processor
    return model


def _family_in_memory(hf_model: nn.Module) -> Architecture:
    hf_class = type(hf_model).__name__
    try:
        return architectures.for_class(hf_class)
    except UnsupportedModelError as error:
        if not (found := architectures.towers(hf_model)):
            raise
        parts = ", ".join(f"model.get_submodule({path!r}), a {part}" for path, part in found.items())
        raise UnsupportedModelError(
            f"a {hf_class} is more than a vision tower; give what is inside it and has a graph: {parts}"
        ) from error


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
    part: str | None = None,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Graph:
    """See HookedViT.from_state_dict."""
    family, files = architectures.by_name(architecture)
    if isinstance(tensors, (str, Path)):
        held = read_tensors(Path(tensors), part)
    else:
        is_one = part is None and all(isinstance(t, Tensor) for t in tensors.values())
        held = dict(tensors) if is_one else state_dict_in(tensors, "what was given", part)
    check_plain(family, held)
    if bare := [key for key in held if not key.startswith(prefix)]:
        raise CheckpointError(f"every tensor should be called {prefix}…, and these are not: {some(bare)}")
    offer_prefix(family, held, prefix)
    held = {key.removeprefix(prefix): tensor for key, tensor in held.items()}
    for pattern in drop:
        dropped = [key for key in held if fnmatch(key, pattern)]
        if not dropped:
            raise CheckpointError(f"{pattern!r} is to be dropped, and no tensor is called so: {some(held)}")
        for key in dropped:
            del held[key]
    their_class, config = files.settings(architecture, **settings)
    return _build(graph, family, read_config(config, their_class), held, dtype)


def _from_files(
    graph: type[Graph],
    name_or_path: str,
    family: Architecture,
    files: CheckpointFiles,
    config: dict[str, Any],
    changes: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    **hub: Any,
) -> Graph:
    cfg, processor = described(files, config, changes), files.processor(config)
    check_weights(lambda file: cached(name_or_path, file, **hub), name_or_path, cfg)
    for name in WEIGHTS:
        if file := cached(name_or_path, name, **hub):
            model: Any = _build(graph, family, cfg.replace(name=name_or_path), read_tensors(Path(file)), dtype)
            model.processor = processor
            return model
    raise CheckpointError(f"{name_or_path!r} holds neither {' nor '.join(WEIGHTS)}")


def without_weights(graph: type[Graph], name_or_path: str, **hub: Any) -> Graph:
    """A checkpoint's graph and image processor on the meta device: shapes and names, and no memory for numbers.

    Raises what `read_described` raises.
    """
    with torch.device("meta"):
        model: Any = graph(read_described(name_or_path, **hub))
    found = files_of(name_or_path, **hub)
    model.processor = load_processor(name_or_path, **hub) if found is None else found[1].processor(found[2])
    return model
