"""A store that real processes write, killed at random moments: the same call ends with the same bytes.

Processes are forked from one that has imported torch, and find each other as those of `--num-processes 2` do.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from analyses.activations.store import Store, store_activations
from analyses.data import ImageData
from analyses.processes.launching import free_port
from analyses.running.locks import InUseError
from hooked_vit import HookedViT
from tests.analyses.questions.cls_use.test_cls_causality import coloured

REFUSED = 3
N, BATCH, MOMENTS = 24, 2, 20


@pytest.fixture(scope="module")
def data() -> ImageData:
    return coloured(N, 1)


@pytest.fixture(autouse=True)
def a_batch_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyses.activations.store.plan.SHARD", 1)


def forked(work: Callable[[], object], told: dict[str, object]) -> int:
    """A process that does some work; its status is 0, `REFUSED` where the folder is in use, else 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ |= {name: str(value) for name, value in told.items()}
        work()
        status = 0
    except InUseError:
        status = REFUSED
    finally:
        os._exit(status)


def started(work: Callable[[], object], *, sharing: bool) -> list[int]:
    """Two processes: of one command that share its work, or two commands that know nothing of each other."""
    if not sharing:
        return [forked(work, {}) for _ in range(2)]
    told = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [forked(work, {**told, "RANK": rank, "LOCAL_RANK": rank}) for rank in range(2)]


def ended(children: Sequence[int], *, sharing: bool = False, within: float = 60.0) -> list[int]:
    """How each process ended. As the launcher does, one of several that share is killed once another has failed."""
    until, found = time.monotonic() + within, dict[int, int]()
    while len(found) < len(children):
        for child in children:
            if child not in found and (seen := os.waitpid(child, os.WNOHANG))[0]:
                found[child] = os.waitstatus_to_exitcode(seen[1])
        if sharing and any(found.values()):
            until = min(until, time.monotonic() + 0.2)
        if time.monotonic() > until:
            for child in children:
                if child not in found:
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    return [found[child] for child in children]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_at_random_moments_it_ends_byte_identical(vit: HookedViT, data: ImageData, tmp_path: Path) -> None:
    """Of two processes that share a command both or one are killed, or those of two commands on one folder."""

    def write(folder: Path) -> Store:
        return store_activations(vit, data, ("resid_post",), ("cls", "all"), to=folder, batch_size=BATCH)

    write(tmp_path / "one")
    whole = content(tmp_path / "one")
    assert len(whole) == N // BATCH + 1

    def begun(folder: Path, *, sharing: bool) -> list[int]:
        children = started(lambda: write(folder), sharing=sharing)
        while not (folder / "unfinished.json").exists() and not (folder / "manifest.json").exists():
            time.sleep(0.001)
        return children

    lasting = {}
    for sharing in (True, False):
        children = begun(tmp_path / f"two {sharing}", sharing=sharing)
        start = time.monotonic()
        statuses = ended(children, sharing=sharing)
        lasting[sharing] = time.monotonic() - start
        assert statuses == [0, 0] if sharing else 0 in statuses and set(statuses) <= {0, REFUSED}
        assert content(tmp_path / f"two {sharing}") == whole

    drawn, deaths, halves = random.Random(0), 0, 0
    for moment in range(MOMENTS):
        folder, sharing = tmp_path / str(moment), moment % 3 != 2
        children = begun(folder, sharing=sharing)
        time.sleep(drawn.uniform(0, 0.8 * lasting[sharing]))
        victims = [[0, 1], [0], [1]][drawn.randrange(3)] if sharing else [0, 1]
        for victim in victims:
            os.kill(children[victim], signal.SIGKILL)
        orphans = [child for i, child in enumerate(children) if i not in victims]
        statuses = ended([children[i] for i in victims])
        deaths += -signal.SIGKILL in statuses
        halves += 0 < len(list(folder.glob("*.safetensors"))) < N // BATCH
        again = started(lambda folder=folder: write(folder), sharing=sharing)  # while an orphan is still at work
        finished = ended(again, sharing=sharing)
        ended(orphans, within=0.5)
        if victims == [1]:  # its leader may have had the folder still
            assert set(finished) <= {0, 1, REFUSED, -signal.SIGKILL}
            write(folder)
        elif sharing:
            assert finished == [0, 0]
        else:
            assert 0 in finished
            assert set(finished) <= {0, REFUSED}
        assert content(folder) == whole
        Store(folder).check()
        shutil.rmtree(folder)
    assert deaths >= MOMENTS // 2
    assert halves >= MOMENTS // 3


def test_two_commands_on_one_folder(vit: HookedViT, data: ImageData, tmp_path: Path) -> None:
    """The second is refused, with who is there; what differs is refused when the first has finished."""

    def write(sites: tuple[str, ...]) -> Store:
        return store_activations(vit, data, sites, ("cls",), to=tmp_path / "s", batch_size=BATCH)

    first = forked(lambda: write(("resid_post",)), {})
    while not (tmp_path / "s" / "unfinished.json").exists():
        time.sleep(0.001)
    os.kill(first, signal.SIGSTOP)
    try:
        for sites in (("resid_post",), ("mlp_out",)):
            with pytest.raises(InUseError, match=rf"is in use by process {first}, since"):
                write(sites)
    finally:
        os.kill(first, signal.SIGCONT)
    assert ended([first]) == [0]
    with pytest.raises(ValueError, match=r"holds other activations: these differ in tensors \("):
        write(("mlp_out",))


def test_more_processes_than_images(vit: HookedViT, data: ImageData, tmp_path: Path) -> None:
    few = data.without(range(2, N))

    def write(folder: Path, batch_size: int) -> Store:
        return store_activations(vit, few, to=folder, batch_size=batch_size)

    for batch_size in (1, 2):
        folder = tmp_path / str(batch_size)
        write(folder / "one", batch_size)
        told = {"WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        children = [
            forked(lambda f=folder, b=batch_size: write(f / "three", b), {**told, "RANK": rank, "LOCAL_RANK": rank})
            for rank in range(3)
        ]
        assert ended(children) == [0, 0, 0]
        assert content(folder / "three") == content(folder / "one")
