"""Folders of image files: everything in them that is named as an image, or an error; never fewer."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image


def is_image(path: Path) -> bool:
    """By its name, also in formats Pillow cannot open: those must be reported, not passed over."""
    if path.name.startswith("."):
        return False
    kind = mimetypes.guess_type(path.name)[0]
    return (
        kind.startswith("image/") if kind else path.suffix.lower() in {*Image.registered_extensions(), ".heic", ".heif"}
    )


def listed(folder: Path) -> list[Path]:
    """What a folder holds.

    Raises OSError where it cannot be read: that is not an empty one.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from error


def images_below(folder: Path) -> Iterator[Path]:
    """Everything named as an image in a folder and those inside it, linked ones included.

    What is no file, such as a link that leads nowhere, is among them, to be reported when it is read. Raises OSError
    for a folder that cannot be read, ValueError for one that is a link to a folder above it.
    """

    def stop(error: OSError) -> None:
        raise _unreadable(error.filename, error) from error

    for here, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        place = Path(here)
        above = {p.resolve() for p in (place, *place.parents) if p == folder or folder in p.parents}
        if circle := next((name for name in folders if (place / name).resolve() in above), None):
            raise ValueError(f"{place / circle} is a link to a folder it lies in, so there is no end to it")
        yield from (path for name in names if is_image(path := place / name))


def _unreadable(folder: object, error: OSError) -> OSError:
    return OSError(f"the folder {folder} cannot be read ({error.strerror}), so its images would be missing")
