"""What a checkpoint says of itself, and the config of its graph, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hooked_vit import architectures
from hooked_vit.architectures import Architecture
from hooked_vit.architectures.base import CheckpointFiles, ConfigReader
from hooked_vit.components.mlp import check_activation
from hooked_vit.config import ViTConfig
from hooked_vit.errors import CheckpointError, UnsupportedModelError, nearest
from hooked_vit.loading.hub import hub_in_words, pinned, within_reach
from hooked_vit.loading.inspection import (
    check_folder,
    check_parts,
    read_json,
)


def checkpoint_class(name_or_path: str, **hub: Any) -> str:
    """The class of transformers or timm a checkpoint is of, without reading a weight.

    Raises UnsupportedModelError where there is no such checkpoint, or it names no class.
    """
    if (found := files_of(name_or_path, **hub)) is not None:
        return found[1].settings(found[2])[0]
    return hf_config_of(name_or_path, **hub)[1]


HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""Keywords that say where a checkpoint is; any other is a setting of its config."""

INSTEAD = {
    "architectures": "a checkpoint is loaded as the class it was saved from",
    "attn_implementation": "model.set_attention(...) chooses the kernel",
    "config": "settings are changed one by one",
    "device_map": "device=... says where to",
    "quantization_config": "weights have to be floating-point numbers",
    "torch_dtype": "it is called dtype here",
    "trust_remote_code": "nothing of a checkpoint is executed",
}


def hub_and_settings(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords of `from_pretrained`: those that say where a checkpoint is, and the settings of its config to change.

    Raises TypeError for what transformers takes and is said otherwise here.
    """
    if other := next((name for name in keywords if name in INSTEAD), None):
        raise TypeError(f"{other} is no setting of a checkpoint: {INSTEAD[other]}")
    hub = {name: value for name, value in keywords.items() if name in HUB}
    return hub, {name: value for name, value in keywords.items() if name not in HUB}


def hf_config_of(name_or_path: str, changes: Mapping[str, Any] | None = None, **hub: Any) -> tuple[Any, str]:
    """The checkpoint's config as transformers reads it, with some settings changed, and the one class it names.

    Raises TypeError for a setting it has not.
    """
    import transformers

    told = config_json(name_or_path, **hub)
    if told.get("quantization_config") is not None:
        raise UnsupportedModelError(f"{name_or_path!r} is quantised; its weights have to be floating-point numbers")
    check_parts(told)
    place, hub = pinned(name_or_path, hub)
    with in_words(f"transformers cannot read the config.json of {name_or_path!r}", UnsupportedModelError):
        config, unused = transformers.AutoConfig.from_pretrained(
            place, trust_remote_code=False, return_unused_kwargs=True, **(changes or {}), **hub
        )
    if strange := next((name for name in changes or {} if name in unused), None):
        kind = type(config).__name__
        raise TypeError(f"a {kind} has no setting {strange!r}{nearest(strange, config.to_dict())} ({name_or_path!r})")
    named = told.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise UnsupportedModelError(
            f"the config of {name_or_path!r} must name one class under `architectures`, it names {named}: which heads "
            "to load cannot be guessed"
        )
    return config, named[0]


@contextmanager
def in_words(what: str, kind: type[ValueError] = CheckpointError) -> Iterator[None]:
    """Whatever another library makes of something damaged, as an error of ours; our own refusals as they are."""
    try:
        yield
    except (CheckpointError, UnsupportedModelError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise kind(f"{what}: {reason}") from error


def cached(name_or_path: str, file: str, **hub: Any) -> str | None:
    """Where a file of a checkpoint lies on this machine; None where the checkpoint has none."""
    from transformers.utils import cached_file

    place, hub = pinned(name_or_path, within_reach(name_or_path, hub))
    return cached_file(place, file, _raise_exceptions_for_missing_entries=False, **hub)


def not_there(name_or_path: str, error: Exception) -> UnsupportedModelError:
    """What to say where nothing can be reached under a name."""
    supported = ", ".join(sorted(architectures.supported_classes()))
    return UnsupportedModelError(
        f"{name_or_path!r} is neither a local checkpoint folder nor a hub model that can be reached: {error}.\n"
        f"Supported classes: {supported}"
    )


def config_json(name_or_path: str, **hub: Any) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Raises OSError where there is no config.json or it cannot be reached, saying which of the two, CheckpointError where
    it is not JSON, UnsupportedModelError for a folder that is no checkpoint.
    """
    from transformers.utils import cached_file

    check_folder(name_or_path)
    place, hub = pinned(name_or_path, within_reach(name_or_path, hub))
    with hub_in_words(place):
        found = cached_file(place, "config.json", **hub)
        if found is None:
            raise FileNotFoundError("it holds no config.json")
    return read_json(Path(found))


def files_of(name_or_path: str, **hub: Any) -> tuple[Architecture, CheckpointFiles, dict[str, Any]] | None:
    """The family that reads this checkpoint's files, and its config.json, where another library saved it."""
    try:
        config = config_json(name_or_path, **hub)
    except OSError as error:
        raise not_there(name_or_path, error) from error
    found = architectures.by_config(config)
    return None if found is None else (*found, config)


def described(files: CheckpointFiles, config: dict[str, Any], changes: Mapping[str, Any] | None = None) -> ViTConfig:
    """The graph's config of a config.json that another library wrote, with some settings changed."""
    with in_words("the config.json describes no graph"):
        their_class, settings = files.settings(config, **(changes or {}))
        return read_config(settings, their_class)


def read_described(name_or_path: str, **hub: Any) -> ViTConfig:
    """The graph's config of a checkpoint, without reading a weight.

    Raises UnsupportedModelError where there is no such checkpoint, or no graph for its class.
    """
    if (found := files_of(name_or_path, **hub)) is not None:
        return described(found[1], found[2])
    config, hf_class = hf_config_of(name_or_path, **hub)
    return read_config(config, hf_class)


def read_config(hf_config: Any, hf_class: str) -> ViTConfig:
    """The graph's config from a transformers config.

    Raises CheckpointError for an attribute that is neither handled nor listed as irrelevant, or a value no graph has.
    """
    family = architectures.for_class(hf_class)
    reader = ConfigReader(hf_config)
    with in_words(f"the config of this {hf_class} describes no graph"):
        cfg = family.classes[hf_class](reader, hf_class)
        check_activation(cfg.act_fn)
    reader.refuse_unread(family.irrelevant_config)
    return cfg.replace(architecture=family.name, hf_class=hf_class)
