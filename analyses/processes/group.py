"""The processes an analysis runs in, as `accelerate launch` started them: how many, which one this is, what they tell.

Everything else in this house that has to do with processes asks here. In one process nothing is imported for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long one waits for the others: as long as one process may have more to do than another."""
INSTALL = 'several processes need accelerate: pip install "hooked-vit[scale]"'
FAILED = "hooked-vit/failed"
FOLLOWED = 70
"""Exit status of a process that ends because another one has failed."""
_ALONE: ContextVar[bool] = ContextVar("what runs is done by one process, whatever their number", default=False)


def count() -> int:
    """How many processes share the work: 1 but under `accelerate launch`, `torchrun` or `--num-processes`.

    >>> count()
    1
    """
    return 1 if _ALONE.get() else int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", 0))


def leads() -> bool:
    """Whether this is the one process that writes files and shows progress."""
    return rank() == 0


def gather(mine: T) -> list[T]:
    """What every process has to tell, in their order; all of them call this, and wait for each other.

    >>> gather("one")
    ['one']
    """
    if count() == 1:
        return [mine]
    join()
    import torch.distributed as dist

    told: list[Any] = [None] * count()
    dist.all_gather_object(told, mine)
    return told


def done_once(work: Callable[[], T]) -> T:
    """What `work` returns in the first process, which alone does it; the others wait, and get the same.

    For what cannot be shared out: a training, or a file that only one may keep.
    """
    if count() == 1:
        return work()
    with alone():
        mine = work() if leads() else None
    (found, *_) = gather(mine)
    assert found is not None
    return found


@contextmanager
def alone() -> Iterator[None]:
    """What runs meanwhile is shared with nobody."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def join() -> None:
    """Meet the others, if that has not been done. Raises ImportError without accelerate, saying what to install."""
    import torch.distributed as dist

    if dist.is_initialized():
        return
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError(INSTALL) from error
    # What is exchanged are rows and moments in the CPU's memory, whatever device the models run on.
    PartialState(cpu=True, timeout=PATIENCE)


def first_to_fail() -> bool:
    """Whether no other process has failed before this one; its error is the one to show."""
    if count() == 1:
        return True
    import torch.distributed as dist

    if not dist.is_initialized():
        return leads()
    with suppress(Exception):  # where the first process is gone, so is what they had in common
        from torch.distributed.distributed_c10d import _get_default_store

        return bool(_get_default_store().add(FAILED, 1) == 1)
    return False


def device_here(device: str) -> str:
    """Where this process runs its models: of several GPUs of a machine, each process has its own.

    >>> device_here("cuda")
    'cuda'
    """
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" and count() > 1 else device
