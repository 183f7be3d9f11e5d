"""Folders of image files: everything in them that is named as an image, or an error; never fewer."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from analyses.data.images import UnreadableImageError


def is_image(path: Path) -> bool:
    """By its name, also in formats Pillow cannot open: those must be reported, not passed over."""
    if path.name.startswith("."):
        return False
    kind = mimetypes.guess_type(path.name)[0]
    return (
        kind.startswith("image/") if kind else path.suffix.lower() in {*Image.registered_extensions(), ".heic", ".heif"}
    )


def listed(folder: Path, lost: list[str] | None = None) -> list[Path]:
    """What a folder holds; where it cannot be read, which is no empty one, that goes into `lost` in words.

    Raises UnreadableImageError instead where `lost` is not given.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        if lost is None:
            raise UnreadableImageError(_unreadable(folder, error)) from error
        lost.append(_unreadable(folder, error))
        return []


def images_below(folder: Path, lost: list[str]) -> Iterator[Path]:
    """Everything named as an image in a folder and those inside it, linked ones included.

    What is no file, such as a link that leads nowhere, is among them, to be reported when it is read. A folder that
    cannot be read goes into `lost` in words. Raises ValueError for one that is a link to a folder above it.
    """
    if folder.is_symlink() and not folder.exists():
        lost.append(f"the folder {folder} is a link to something that is not there, so its images would be missing")

    def note(error: OSError) -> None:
        if Path(error.filename).exists():
            lost.append(_unreadable(error.filename, error))

    for here, folders, names in os.walk(folder, onerror=note, followlinks=True):
        place = Path(here)
        above = {p.resolve() for p in (place, *place.parents) if p == folder or folder in p.parents}
        if circle := next((name for name in folders if (place / name).resolve() in above), None):
            raise ValueError(f"{place / circle} is a link to a folder it lies in, so there is no end to it")
        yield from (path for name in names if is_image(path := place / name))


def _unreadable(folder: object, error: OSError) -> str:
    return f"the folder {folder} cannot be read ({error.strerror}), so its images would be missing"
