"""What images and rows are, to the last byte, without decoding what is encoded."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from analyses.data.images import UnreadableImageError, open_plain
from hooked_vit.loading.digests import digest

SETTLED = 2.0
"""Seconds after its last change from which on a file's times tell whether it changed again."""

_KNOWN: dict[Path, tuple[tuple[int, ...], str]] = {}


def rows_digest(rows: Iterable[dict[str, Any]], image_columns: set[str]) -> str:
    """A digest of rows in their order: images by the bytes of their files or, in memory, their pixels.

    >>> len({rows_digest([{"image": image, "label": 0}], {"image"}) for image in (b"one", b"two")})
    2

    Memory does not grow with the rows. A file that is not there counts as its absence.
    """

    def of(row: dict[str, Any]) -> str:
        return digest({k: image_digest(v) if k in image_columns else v for k, v in row.items()})

    total, rows = hashlib.sha256(), iter(rows)
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(rows, 64)):
            for each in pool.map(of, chunk):
                total.update(each.encode())
    return total.hexdigest()


def image_digests(values: Iterable[Any]) -> list[str]:
    """`image_digest` of each, side by side; "" where an image is absent."""
    found: list[str] = []
    values = iter(values)
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(values, 64)):
            found += ("" if each == "absent" else each for each in pool.map(image_digest, chunk))
    return found


def image_digest(value: Any) -> str:
    """A digest of an image in any form `open_rgb` takes; "absent" where there is neither a file nor its bytes."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if not isinstance(value, (str, Path)):
        return "absent" if value is None else digest(value)
    if "://" not in str(value):
        return file_digest(Path(value))
    try:
        return digest(open_plain(value, str(value)))
    except UnreadableImageError:
        return "absent"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, "absent" where there is none; read again only when its size, times or inode change."""
    try:
        seen = path.stat()
        stamp = (seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, seen.st_dev)
        if (known := _KNOWN.get(path)) is not None and known[0] == stamp:
            return known[1]
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "absent"
    # clocks of files tick slowly: a file just written may be written again within the same tick
    if time.time() - max(seen.st_mtime, seen.st_ctime) > SETTLED:
        _KNOWN[path] = stamp, found
    return found
