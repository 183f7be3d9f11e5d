"""However many processes share an analysis, its numbers are those of one, and one that fails ends all."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.data import as_data
from analyses.probes.ridge import GramRidge
from analyses.processes import group
from analyses.processes.launching import launch
from analyses.processes.merging import Gathering
from analyses.questions.signal.regression import GramRegression
from analyses.questions.signal.similarity import CrossMoments
from analyses.running.catalogue import in_source
from analyses.running.notes import progress_batches

ROOT = Path(__file__).parents[3]
EXACT = {"n", "layer", "seed"}


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, pd.DataFrame]]:
    """By number of processes and rank, the frames of every run, by name."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "tests.analyses.processes.worker", str(folder)]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {path.stem: pickle.loads(path.read_bytes()) for path in sorted(folder.glob("*.pickle"))}


@pytest.mark.parametrize("count", [2, 3])
def test_the_numbers_are_those_of_one_process(frames: dict[str, dict[str, pd.DataFrame]], count: int) -> None:
    """Of every analysis that walks a data set: whole numbers and text to the letter, others to 1e-6."""
    alone = frames["1-0"]
    assert {name for name, source in in_source().items() if source.is_command} <= alone.keys()
    for rank in range(count):
        shared = frames[f"{count}-{rank}"]
        assert shared.keys() == alone.keys()
        for name, frame in alone.items():
            if name == "batches read":
                continue
            pd.testing.assert_frame_equal(shared[name], frame, rtol=0, atol=1e-6, obj=f"{name} in process {rank}")
            whole = [c for c in frame if c in EXACT or not pd.api.types.is_float_dtype(frame[c].dtype)]
            pd.testing.assert_frame_equal(shared[name][whole], frame[whole], check_exact=True, obj=name)


def test_the_numbers_are_those_of_whole_batches(frames: dict[str, dict[str, pd.DataFrame]]) -> None:
    """Blocks that take a large batch in pieces: some analyses read, beside the stream, what is as long as the batch."""
    whole, in_pieces = frames["1-0"], frames["pieces-0"]
    assert in_pieces.keys() == whole.keys()
    for name, frame in whole.items():
        pd.testing.assert_frame_equal(in_pieces[name], frame, rtol=1e-4, atol=1e-5, obj=name)


def test_the_work_is_shared(frames: dict[str, dict[str, pd.DataFrame]]) -> None:
    """No process reads all the images that are measured, and together they read each once."""
    seen = [frames[f"3-{rank}"]["batches read"].number.tolist() for rank in range(3)]
    assert seen == [[0, 3], [1], [2]]
    assert frames["1-0"]["batches read"].number.tolist() == [0, 1, 2, 3]


def images(n: int):
    rng = np.random.default_rng(0)
    return as_data((list(rng.integers(0, 255, (n, 4, 4, 3), np.uint8)), [i % 2 for i in range(n)]))


def test_more_processes_than_batches_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goes through all of them: no process is left without what it needs to go on."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "2")
    batches = progress_batches(images(5), 3, "reading", into=[[]])
    assert [batch.number for batch in batches] == [0, 1]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("least", [1, 2])
def test_shares_are_the_batches_of_one(count: int, least: int) -> None:
    data = images(13)
    whole = list(data.batches(4, least=least))
    parts = [list(images(13).batches(4, least=least, share=(rank, count))) for rank in range(count)]
    for batch in (batch for part in parts for batch in part):
        other = whole[batch.number]
        assert (batch.first, batch.index.tolist(), batch.digest()) == (
            other.first,
            other.index.tolist(),
            other.digest(),
        )
    assert sorted(batch.number for part in parts for batch in part) == [batch.number for batch in whole]


@pytest.mark.parametrize(
    "make", [lambda: GramRidge(3), GramRegression, CrossMoments], ids=["ridge", "regression", "moments"]
)
def test_merged_moments_are_those_of_one_accumulator(make) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 1000 + torch.randn(30, 4, generator=generator).double()
    y = torch.arange(30) % 3

    def fill(accumulator, rows: slice):
        if isinstance(accumulator, CrossMoments):
            accumulator.update(x[rows], 5 + x[rows, :2].square())
        elif isinstance(accumulator, GramRidge):
            accumulator.update({"a": x[rows]}, y[rows])
        else:
            accumulator.update({"a": x[rows]}, torch.stack([y, y**2], 1)[rows].double())
        return accumulator

    def told(accumulator) -> list[torch.Tensor]:
        if isinstance(accumulator, CrossMoments):
            numbers = [accumulator.hsic(), accumulator.debiased_hsic(), accumulator.n]
            return [*accumulator.means, accumulator.scatter, torch.tensor(numbers)]
        fitted = accumulator.fit()["a"]
        return [fitted.weight, fitted.bias]

    whole = fill(make(), slice(0, 30))
    merged = make().merge(fill(make(), slice(0, 11))).merge(fill(make(), slice(11, 30))).merge(make().fresh())
    for one, other in zip(told(whole), told(merged), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


def test_what_was_there_before_counts_once() -> None:
    """Lists, numbers, arrays, keys that come late, and what merges itself, all with a beginning."""
    held = []
    for rank in range(2):
        ridge = GramRidge(2)
        ridge.update({"a": torch.eye(2)}, torch.tensor([0, 1]))
        accumulators = ([7], {"old": 1}, np.full(2, 3.0), ridge)
        gathering = Gathering(accumulators, begins=rank == 0)
        for number in (rank, rank + 2):
            accumulators[0].append(number)
            accumulators[1]["old"] += 1
            accumulators[1].setdefault(f"batch {number}", 0)
            accumulators[2][:] += number
            ridge.update({"a": torch.eye(2) * number}, torch.tensor([0, 1]))
            gathering.note(number)
        held.append((gathering, accumulators))
    told = pickle.loads(pickle.dumps([gathering.told() for gathering, _ in held]))
    for gathering, (numbers, named, array, ridge) in held:
        gathering.become(told)
        assert numbers == [7, 0, 1, 2, 3]
        assert list(named.items()) == [("old", 5), *((f"batch {i}", 0) for i in range(4))]
        assert array.tolist() == [9.0, 9.0]
        assert ridge.n == 10


def test_a_failure_ends_all_with_its_error_and_no_result(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The command as a user types it; the last image, which only the second process opens, is damaged."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(12):
        place = tmp_path / "photos" / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(place / f"{i:02}.png")
    damaged = tmp_path / "photos" / "class1" / "11.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    out = tmp_path / "out"
    argv = ["run", "lenses", "--model", "zoo:vit", "--data", f"imagefolder:{tmp_path / 'photos'}"]
    status = launch([*argv, "--head", "ridge", "--batch-size", "3", "--out", str(out), "--num-processes", "2"], 2)
    said = capfd.readouterr().err
    assert status == 2
    assert said.count("error:") == 1, said
    assert "11.png" in said
    assert "Traceback" not in said
    assert not out.exists()


def test_alone_it_needs_nobody() -> None:
    assert (group.count(), group.rank(), group.gather("mine")) == (1, 0, ["mine"])
    assert group.done_once(lambda: 3) == 3
