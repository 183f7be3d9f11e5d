"""What lies in a checkpoint's folder, looked at before anything is built of it: damage is named, not run into."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hooked_vit.architectures.base import WRITTEN_BY_VERSION_4
from hooked_vit.config import ViTConfig
from hooked_vit.config.checks import RANGES
from hooked_vit.errors import CheckpointError, UnsupportedModelError
from hooked_vit.loading.files import why_no_file

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEX_BUFFERS = ("_index", "_ids", "num_batches_tracked")
"""How tensors end that hold places and counts, which no graph reads: all others are floating-point numbers."""

STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_folder(place: str | Path) -> None:
    """Refuse, by name, a local folder in which something would be waited for without end, or that is no checkpoint.

    Raises UnsupportedModelError. Whatever is no local folder passes: it may be a hub id.
    """
    folder = Path(place)
    if not os.path.isdir(place):
        if os.path.exists(place):
            raise UnsupportedModelError(
                f"a checkpoint is a folder, and {place} is none ({why_no_file(place) or 'it is a file'}); give the "
                "folder it is in, or for weights alone use from_state_dict"
            )
        return
    for file in sorted(folder.iterdir()):
        if not file.is_dir() and (why := why_no_file(file)) is not None:
            raise UnsupportedModelError(f"{file.name} in the checkpoint folder {folder} cannot be read: {why}")
    if (why := why_no_file(folder / "config.json")) is None:
        return
    if (folder / "adapter_config.json").exists():
        base = _told(folder / "adapter_config.json").get("base_model_name_or_path")
        raise UnsupportedModelError(
            f"{folder} holds an adapter of PEFT, which is no model by itself: merge it into the model it was trained "
            f"on ({base or 'adapter_config.json does not say which'}) with merge_and_unload(), save that, and load it"
        )
    raise UnsupportedModelError(
        f"a checkpoint folder holds config.json, as save_pretrained writes it; in {folder} {why}"
    )


def _told(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_json(file: Path) -> dict[str, Any]:
    """The entries of a JSON file.

    Raises CheckpointError where it is none.
    """
    try:
        if (why := why_no_file(file)) is not None:
            raise ValueError(why)
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no entries by name: it is a {type(content).__name__}")
    return content


def check_parts(config: Mapping[str, Any]) -> None:
    """Refuse sizes that no part of a model has; of parts without a graph, such as a text tower, nothing else is read.

    Raises CheckpointError.
    """
    for part, told in config.items():
        for name, value in told.items() if isinstance(told, dict) and part.endswith("_config") else ():
            most = RANGES["n_layers" if name.endswith("layers") else "d_mlp"][1]
            if name in WRITTEN_BY_VERSION_4:
                continue
            if name.endswith(("_size", "_dim", "_layers", "_heads", "_embeddings")) and not _is_size(value, most):
                raise CheckpointError(f"{name} in {part} is a whole number up to {most}, got {value!r}")


def _is_size(value: Any, most: int) -> bool:
    sides = value if isinstance(value, list) else [value]
    return value is None or all(type(side) is int and 0 <= side <= most for side in sides)


def read_tensors(file: Path, part: str | None = None) -> dict[str, Tensor]:
    """The state dict in a .safetensors or a torch file; nothing in it is executed.

    Where a torch file holds several, such as a teacher's and a student's, `part` says which. Raises CheckpointError
    for a file that holds anything else.
    """
    from safetensors.torch import load_file

    if (why := why_no_file(file)) is not None:
        raise CheckpointError(f"{file} is no file of tensors: {why}")
    try:
        content = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    # a damaged torch file makes the unpickler raise nearly anything
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError) as e:
        raise CheckpointError(f"{file} is no file of tensors that can be read safely: {e or type(e).__name__}") from e
    return state_dict_in(content, str(file), part)


def state_dict_in(content: Any, file: str, part: str | None = None) -> dict[str, Tensor]:
    """The one state dict in what a file holds, however deep, or the one called `part`.

    >>> list(state_dict_in({"epoch": 3, "state_dict": {"cls_token": torch.zeros(1)}}, "mine.pth"))
    ['cls_token']

    Raises CheckpointError where there is none, or several.
    """
    found = dict(_state_dicts(content, ""))
    if part is not None:
        if part not in found:
            raise CheckpointError(f"{file} holds no state dict called {part!r}; it holds {_named(found)}")
        return found[part]
    if len(found) != 1:
        what = "no state dict: a state dict is a dictionary of tensors" if not found else "several state dicts"
        how = f", {_named(found)}: choose one with part={next(iter(found))!r}" if found else ""
        raise CheckpointError(f"{file} holds {what}{how}")
    return next(iter(found.values()))


def _state_dicts(content: Any, name: str) -> Any:
    """(name, tensors) of every dictionary in which nothing but tensors lie, those inside others with a dotted name."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return
    if content and all(isinstance(value, Tensor) for value in content.values()):
        yield name, dict(content)
        return
    for key, value in content.items():
        yield from _state_dicts(value, f"{name}.{key}" if name else key)


def _named(found: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, found)) or "none"


def check_weights(find: Callable[[str], str | None], name: str, cfg: ViTConfig) -> None:
    """Refuse weights that are damaged, of a type that is no floating-point number, or too few for what a config tells.

    `find` gives the path of a file of the checkpoint. Looks at the headers only. Raises CheckpointError.
    """
    files = [Path(file) for w in WEIGHTS if (file := find(w))][:1]
    for index in (f"{w}.index.json" for w in WEIGHTS):
        if not files and (there := find(index)):
            shards = read_json(Path(there)).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise CheckpointError(f"{there} does not say which file each tensor is in (weight_map)")
            files = [Path(there).parent / shard for shard in sorted(set(shards.values()))]
    if not files:
        raise CheckpointError(f"{name!r} holds neither {' nor '.join(WEIGHTS)}, nor an index of their parts")
    held = {key: shape for file in files for key, shape in _header(file).items()}
    if strange := sorted(f"{k} ({t})" for k, (t, _) in held.items() if not is_plain(k, t)):
        shown = ", ".join(strange[:4]) + (" ..." if len(strange) > 4 else "")
        raise CheckpointError(
            f"the weights of {name!r} are numbers of 16, 32 or 64 bits in floating point; these are not: {shown}. "
            "A quantised checkpoint has to be brought back to them first"
        )
    there_are = sum(math.prod(shape) for _, shape in held.values())
    if cfg.n_parameters > there_are:
        raise CheckpointError(
            f"the config of {name!r} describes a model of {cfg.n_parameters:,} parameters or more, its weights are "
            f"{there_are:,}: config and weights disagree"
        )


def is_plain(key: str, dtype: torch.dtype | str) -> bool:
    """Whether a graph can read a tensor of this type; what holds places and counts is not read by any."""
    return dtype in FLOATS or (key.endswith(INDEX_BUFFERS) and dtype in ("I64", "I32", torch.int64, torch.int32))


def _header(file: Path) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Type and shape of every tensor in a file."""
    if file.suffix != ".safetensors":
        return {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in read_tensors(file).items()}
    if (why := why_no_file(file)) is not None:
        raise CheckpointError(f"{file} is no file of tensors: {why}")
    try:
        with safe_open(file, "pt") as content:
            slices = {key: content.get_slice(key) for key in content.keys()}  # noqa: SIM118 - no mapping
            found = {key: (part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is no file of tensors that can be read safely: {error}") from error
    return {key: (STORED.get(dtype, dtype), shape) for key, (dtype, shape) in found.items()}
