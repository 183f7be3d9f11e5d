"""The benchmarks run; how fast anything is, is not for tests on a shared machine to say."""

import subprocess
import sys
from pathlib import Path

import pytest

from analyses.processes.memory import peak_memory
from benchmarks.__main__ import main
from benchmarks._page import machine, page
from benchmarks._timing import Ratio, take_turns


def test_quick_run_prints_every_ratio() -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "cache", "forward", "heads", "probes", "real", "sweep"]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    for what in ("ours / transformers sdpa", "hook_resid_post", "plain hooks", "transformer-lens", "nnsight"):
        assert what in run.stdout
    for what in ("ours / scikit-learn RidgeCV", "5-fold search", "peak memory fitting probes on 160 images / on 40"):
        assert what in run.stdout
    for what in ("its matrix products alone", "full cache", "memory it adds", "one edit", "3 x 4 head map"):
        assert what in run.stdout
    for what in (
        "the passes it cannot avoid",
        "on stored activations / without",
        "memory of cls-causality on 96 images",
    ):
        assert what in run.stdout
    # tiny models say nothing about targets
    assert "missed" not in run.stdout
    # and nothing moves where nobody watches
    assert "\r" not in run.stderr
    assert "\x1b" not in run.stderr


def test_a_process_is_not_charged_with_the_memory_of_the_one_that_started_it() -> None:
    held = bytearray(400 * 2**20)
    held[:: 2**12] = b"x" * len(held[:: 2**12])
    run = subprocess.run(
        [sys.executable, "-c", "from analyses.processes.memory import peak_memory; print(peak_memory())"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) < 300 * 2**20 < len(held) < peak_memory()


def ratio(value: float, **more: object) -> Ratio:
    return Ratio("ours / theirs", [value - 0.1, value, value + 0.2], [value / 2] * 3, value, **more)  # type: ignore[arg-type]


def test_a_page_has_every_row_its_target_and_by_how_much_it_is_missed() -> None:
    text = page([ratio(0.4, target=0.5), ratio(0.6, target=0.5), ratio(7.0)], ["sweep"])
    assert "| ours / theirs | 0.400 (0.300 to 0.600) | 0.400 | 0.200 | ≤ 0.500 | ok |" in text
    assert "| ours / theirs | 0.600 (0.500 to 0.800) | 0.600 | 0.300 | ≤ 0.500 | missed by 20.0% |" in text
    assert text.count("missed by") == 2
    assert "missed by 20.0%. It rained." in page([ratio(0.6, target=0.5, why="It rained.")], [])
    assert "It rained." not in page([ratio(0.4, target=0.5, why="It rained.")], [])
    assert "python -m benchmarks sweep --page docs/benchmarks.md" in text
    assert machine() in text
    assert "Every target is met." in page([ratio(0.4, target=0.5)], [])


def test_a_start_is_judged_by_processor_time_and_a_first_result_by_the_clock() -> None:
    times = take_turns({"wait": lambda: sum(range(1000))}, rounds=2)
    start, first = times.seconds("help", "wait", 0.3), times.seconds("result", "wait", 15.0, by_processor=False)
    assert start.value == pytest.approx(sum(times.processor["wait"]) / 2)
    assert first.value == pytest.approx(sum(times.wall["wait"]) / 2)
    assert start.wanted == "≤ 0.300 s processor time"
    assert first.wanted == "≤ 15.00 s"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sweeep"], "no benchmark is called sweeep; there are cache, forward"),
        (["--quick", "--page", "x.md"], "a page is of real sizes; --quick shows only that it runs"),
        (["real"], "real measures a checkpoint of yours: --model, --data, --fit-data, --n, --n-fit"),
        (["real", "--model", "x", "--n", "9"], "on images of yours: --data, --fit-data, --n-fit too"),
        (["--page", "nowhere/x.md"], "there is no folder nowhere to write the page into"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
