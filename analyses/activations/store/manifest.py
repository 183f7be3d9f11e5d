"""The manifest of a store: what is in it, of what, and the checksum of every shard; it is written last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analyses.running.files import write_whole
from analyses.running.fingerprint import sealed, unsealed
from hooked_vit.loading.files import why_no_file

FORMAT = "hooked-vit activations 1"
MANIFEST, BEGUN = "manifest.json", "unfinished.json"
FIELDS = ("key", "of", "data", "n", "dtype", "shapes", "pooled", "prefix", "grid", "seed", "batch_size", "shards")


def write_manifest(path: Path, about: Mapping[str, Any]) -> None:
    """Write it with its own checksum, whole or not at all."""
    text = sealed({"format": FORMAT, **about}, indent=1) + "\n"
    write_whole(path, lambda to: to.write_text(text, encoding="utf-8"))


def read_manifest(path: Path, fields: tuple[str, ...] = FIELDS) -> dict[str, Any]:
    """What `write_manifest` wrote.

    Raises FileNotFoundError where there is none, ValueError for a file of something else, of another version of the
    format, and for a damaged one.
    """
    if not path.exists():
        lacks = f"{path.parent} holds no activations: it has no {path.name}"
        unfinished = "; storing them was not finished, and the same call goes on" * (path.parent / BEGUN).is_file()
        raise FileNotFoundError(lacks + unfinished)
    if (why := why_no_file(path)) is not None:
        raise ValueError(f"{path} is no manifest of activations: {why}")
    try:
        told, sound = unsealed(path.read_text(encoding="utf-8"))
        form = told["format"]
    except (ValueError, KeyError):
        raise ValueError(f"{path} is no manifest of activations, or a damaged one; choose another folder") from None
    if form != FORMAT:
        raise ValueError(
            f"{path.parent} holds {str(form)[:40]!r}; this version reads {FORMAT!r}: store it anew elsewhere"
        )
    if not sound or any(field not in told for field in fields):
        raise ValueError(
            f"{path} is damaged: its checksum is not that of its content; remove {path.parent}, and store anew"
        )
    return told
