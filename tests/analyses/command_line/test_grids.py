"""A grid leaves results that are whole by themselves, does what is left of it, and lists what failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from analyses.command_line import grids
from analyses.command_line.cli import main
from analyses.command_line.grids import Job, read_grid
from analyses.running.results import Result
from tests.analyses.command_line.test_cli import save

GRID = """
models = ["{model}", "zoo:nothing"]
seeds = [0, 1]
data = "scenes:test"
n = 24

[analyses.lenses]
fit_data = "scenes:train"
steps = 2
random_models = 1
batch_size = 12

[local]
timeout_min = 5
"""


class FailedError(Exception):
    """A job that failed, as submitit says it."""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that were run, in this process."""
    ran: list[Job] = []

    def submitted(executor, job: Job):
        def run() -> None:
            ran.append(job)
            if main(job.argv):
                raise FailedError("error: it failed")

        return executor.submit(run)

    monkeypatch.setattr(grids, "_submitted", submitted)
    return ran


def test_what_is_there_is_not_run_again(tmp_path: Path, here: list[Job], capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "mine")
    file, out = tmp_path / "grid.toml", tmp_path / "out"
    file.write_text(GRID.format(model=tmp_path / "mine"))
    command = ["grid", str(file), "--executor", "debug", "--out", str(out)]
    assert main(command) == 1
    said = capsys.readouterr()
    assert len(here) == 4
    assert said.out.count("failed: ") == 2
    assert "--model zoo:nothing" in said.out
    whole = [out / "lenses" / "mine" / f"seed-{seed}" for seed in (0, 1)]
    assert all({path.name for path in folder.iterdir()} >= {"result.parquet", "report.html"} for folder in whole)
    assert [Result.load(folder).meta["seed"] for folder in whole] == [0, 1]

    here.clear()
    (whole[1] / "result.parquet").write_bytes(b"cut off")
    assert main(command) == 1
    assert "4 jobs, 1 of them done." in capsys.readouterr().out
    assert {job.out for job in here} & set(whole) == {whole[1]}

    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(str(folder.relative_to(out)) in page or folder.name in page for folder in whole)


def test_a_job_that_fails_on_its_own_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As submitit runs it, in a process of its own."""
    file = tmp_path / "grid.toml"
    file.write_text('models = ["zoo:nothing"]\ndata = "scenes:test"\nn = 4\n[analyses.lenses]\n')
    assert main(["grid", str(file), "--out", str(tmp_path / "out")]) == 1
    assert "the zoo has no 'nothing'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models = [", "is no grid"),
        ('model = ["zoo:vit"]\n[analyses.lenses]', "has model"),
        ('models = ["zoo:vit"]', "names models"),
        ('models = ["zoo:vit"]\n[analyses.lens]', "no analysis 'lens'"),
        ('models = ["zoo:vit"]\n[analyses.lenses]\ncolour = 3', "has colour"),
        ('models = ["zoo:vit", "zoo:vit"]\n[analyses.lenses]', "given twice"),
        ('models = ["zoo:vit"]\n[analyses.path-patching]', "takes tensors"),
    ],
)
def test_what_is_no_grid_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(text)
    with pytest.raises((ValueError, LookupError), match=says):
        read_grid(file, tmp_path / "out")


def test_without_submitit_it_says_what_to_install(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(grids, "find_spec", lambda name: None)
    assert main(["grid", str(tmp_path / "any.toml")]) == 2
    assert 'pip install "hooked-vit[scale]"' in capsys.readouterr().err
