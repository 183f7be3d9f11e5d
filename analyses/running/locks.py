"""One process at a time in a folder or a file that is kept, and temporary folders that outlive nobody."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType

from analyses.running.notice import notice

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".hooked-vit.lock"
SCRATCH = "hooked-vit-scratch-"
FAR = 1 << 30
"""Where Windows locks a byte: what stands in front of it can still be read."""


class InUseError(OSError):
    """Another process, or another thread of this one, is writing there; the message says who, and since when."""


_HELD: dict[Path, tuple[int, int]] = {}
"""Locks of this process, and the process (a child inherits this table, but no lock) and thread that have them."""


@contextmanager
def hold_folder(folder: str | Path, what: str = "folder", *, wait: float = 0.0) -> Iterator[Path]:
    """Keep everybody else from writing into a folder, made if need be, for the length of a `with`.

    >>> with hold_folder("out", "--out"):  # doctest: +SKIP
    ...     result.save("out")

    A thread that holds a folder may hold it again. After `wait` seconds, raises InUseError, saying which process has it
    and since when; `what` is what an error calls the folder's option. Meanwhile SIGTERM unwinds (see `unwinding`).
    """
    folder = Path(folder).expanduser()
    made = [p for p in (folder, *folder.absolute().parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _hold(folder.resolve() / LOCK, folder, what, wait):
            yield folder
    finally:
        for path in made:  # where nothing came of it, nothing is left of it
            with suppress(OSError):
                path.rmdir()


@contextmanager
def hold_file(path: str | Path, what: str = "file") -> Iterator[Path]:
    """As `hold_folder`, for one file, by a lock beside it."""
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _hold(path.parent.resolve() / f".{path.name}{LOCK}", path, what, 0.0):
        yield path


@contextmanager
def scratch_folder(parent: str | Path | None = None) -> Iterator[Path]:
    """A temporary folder that is gone when left, also by SIGTERM; what killed processes left of theirs goes as well.

    >>> with scratch_folder() as folder:
    ...     folder.is_dir()
    True
    >>> folder.exists()
    False
    """
    base = Path(tempfile.gettempdir() if parent is None else parent)
    _sweep(base)
    folder = base / f"{SCRATCH}{secrets.token_hex(6)}"
    with hold_file(folder, "scratch"):  # before the folder is there: a folder without a lock is nobody's
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def unwinding() -> Iterator[None]:
    """Meanwhile SIGTERM and SIGHUP end the process through its `finally` blocks, with status 128 + the signal's number.

    Only in the main thread, and only where nobody else has said what these signals mean.
    """
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
                if signal.getsignal(kind) is signal.SIG_DFL:
                    signal.signal(kind, _leave)
                    stack.callback(signal.signal, kind, signal.SIG_DFL)
        yield


def _leave(kind: int, frame: FrameType | None) -> None:
    signal.signal(kind, signal.SIG_IGN)  # what is being cleaned up is not interrupted again
    raise SystemExit(128 + kind)


@contextmanager
def _hold(lock: Path, place: Path, what: str, wait: float) -> Iterator[None]:
    me = os.getpid(), threading.get_ident()
    if _HELD.get(lock) == me:
        yield
        return
    with unwinding(), _locked(lock, place, what, wait):
        _HELD[lock] = me
        try:
            yield
        finally:
            del _HELD[lock]


@contextmanager
def _locked(lock: Path, place: Path, what: str, wait: float) -> Iterator[None]:
    until = time.monotonic() + wait
    while (handle := _try(lock)) is None:
        if time.monotonic() >= until:
            raise InUseError(
                f"{what} {place} is in use by {_holder(lock)}; wait until it has ended, or choose another {what}"
            )
        time.sleep(0.02)
    try:
        os.truncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "since": time.time()}).encode())
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            lock.unlink()
        os.close(handle)


def _try(lock: Path) -> int | None:
    """The open, locked file; None where somebody else has it."""
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        except FileNotFoundError:  # whoever made the folder has just removed it
            lock.parent.mkdir(parents=True, exist_ok=True)
            continue
        try:
            if not _flock(handle):
                os.close(handle)
                return None
            # whoever had it before may have removed the file meanwhile: then this lock is on nothing
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                return handle
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP):
                notice(f"{lock.parent} is on a file system without locks: make sure that only one process writes there")
                return handle
            os.close(handle)
            raise
        os.close(handle)


def _flock(handle: int) -> bool:
    """Lock an open file, if nobody else has."""
    try:
        if sys.platform == "win32":
            os.lseek(handle, FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _holder(lock: Path) -> str:
    for _ in range(5):  # it may have the lock and not have written yet
        with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
            about = json.loads(lock.read_text(encoding="utf-8"))
            return f"process {int(about['pid'])}, since {datetime.fromtimestamp(about['since']):%Y-%m-%d %H:%M:%S}"
        time.sleep(0.02)
    return "another process"


def _sweep(base: Path) -> None:
    """Remove the scratch folders, and their locks, of processes that are no more."""
    for lock in base.glob(f".{SCRATCH}*{LOCK}"):
        with suppress(OSError):
            if (handle := _try(lock)) is not None:
                shutil.rmtree(base / lock.name[1 : -len(LOCK)], ignore_errors=True)
                lock.unlink()
                os.close(handle)
