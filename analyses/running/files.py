"""Folders whose files change together: all of them at once, or none."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from analyses.running.locks import hold_folder
from analyses.running.places import ROOM, check_room, full_disk_named, usable_path
from hooked_vit.loading import files as whole
from hooked_vit.loading.files import PART, to_disk

STAGED, SAVED, LIST = ".hooked-vit-saving", ".hooked-vit-saved", "files.json"
WAIT = 10.0
"""Seconds to wait for somebody else who is saving into the same folder."""


def check_writable(folder: str | Path) -> Path:
    """Make sure, before long work, that files can be written into `folder`; creates nothing. Returns the path.

    >>> check_writable("/dev/null/out")
    Traceback (most recent call last):
    NotADirectoryError: results need a folder; /dev/null is not one

    The folder need not exist: then the nearest folder above it is tried.
    Raises ValueError for a path that no folder can have, NotADirectoryError where a file is in the way, PermissionError
    where nothing can be written, OSError where the disk is full.
    """
    folder = usable_path(folder)
    # A link that leads nowhere is in the way too, and does not count as existing.
    nearest = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
    if not nearest.is_dir():
        raise NotADirectoryError(f"results need a folder; {nearest} is not one")
    try:
        # Trying is the only sure test: permission bits say nothing of read-only disks, quotas or root.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise PermissionError(
            f"results need a folder that can be written to; {nearest} cannot ({error.strerror}); choose another"
        ) from error
    check_room(nearest, ROOM)
    return folder


def write_whole(path: Path, write: Callable[[Path], Any], needed: int = ROOM) -> None:
    """Let `write` fill a file beside `path` and put it there when it is done, so that nobody sees half of it.

    Raises OSError, saying how much room there is and is `needed`, where the disk is full.
    """
    with full_disk_named(path, needed):
        whole.write_whole(path, write)


def write_together(folder: Path, files: Mapping[str, Callable[[Path], Any] | None]) -> None:
    """Let each function fill the file of its name in `folder`, and remove the names with None: all at once.

    >>> write_together(folder, {"a.txt": lambda path: path.write_text("a"), "b.txt": None})  # doctest: +SKIP

    Everything is written into a folder inside, whose change of name is the moment from which on it counts; then it is
    moved to its place. `committed` tells readers where a file is meanwhile, and whoever writes next finishes what a
    killed process had begun to move. Other files stay. Raises InUseError where somebody else keeps the folder.
    """
    with hold_folder(folder, wait=WAIT):
        clean(folder)
        staged = folder / STAGED
        staged.mkdir()
        try:
            for name, write in files.items():
                if write is not None:
                    with full_disk_named(folder / name):
                        write(staged / name)
                        to_disk(staged / name)
            (staged / LIST).write_text(json.dumps({name: write is not None for name, write in files.items()}))
            to_disk(staged / LIST)
            to_disk(staged)
            os.rename(staged, folder / SAVED)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        clean(folder)


def committed(folder: Path, name: str) -> Path | None:
    """Where the file of this name is read; None where it is none. Ahead of the folder's own is what waits to be moved.

    >>> committed(Path("out"), "result.json").as_posix()
    'out/result.json'
    """
    if (waiting := _waiting(folder)) is None or name not in waiting:
        return folder / name
    if not waiting[name]:
        return None
    moved = folder / SAVED / name
    return moved if moved.is_file() else folder / name


def clean(folder: Path) -> None:
    """Finish what a killed process had decided on in a folder, and remove what it had only begun.

    The folder must be held (see `hold_folder`).
    """
    if not folder.is_dir():
        return
    shutil.rmtree(folder / STAGED, ignore_errors=True)
    for part in folder.glob(f".*{PART}"):
        part.unlink(missing_ok=True)
    saved = folder / SAVED
    if (waiting := _waiting(folder)) is not None:
        for name, kept in waiting.items():
            if not kept:
                (folder / name).unlink(missing_ok=True)
            elif (saved / name).is_file():
                os.replace(saved / name, folder / name)
        to_disk(folder)
        (saved / LIST).unlink()
    if saved.is_dir():
        shutil.rmtree(saved)


def _waiting(folder: Path) -> dict[str, bool] | None:
    """The names a saved folder inside holds (True) or takes away (False); None where nothing waits."""
    try:
        told = json.loads((folder / SAVED / LIST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        told = None
    # a name is one component of a path: nothing outside the folder is ever moved or removed
    if not isinstance(told, dict) or any(Path(name).name != name or name in ("", "..") for name in told):
        raise ValueError(f"{folder / SAVED} was not written by hooked-vit; remove it")
    return {name: bool(kept) for name, kept in told.items()}
