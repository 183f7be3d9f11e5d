"""The benchmarks run; how fast anything is, is not for tests on a shared machine to say."""

import subprocess
import sys
from pathlib import Path


def test_quick_run_prints_every_ratio() -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "forward", "probes", "sweep"]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    for what in ("ours / transformers sdpa", "hook_resid_post", "plain hooks", "transformer-lens", "nnsight"):
        assert what in run.stdout
    for what in ("ours / scikit-learn RidgeCV", "5-fold search", "peak memory fitting probes on 160 images / on 40"):
        assert what in run.stdout
    # tiny models say nothing about targets
    assert "missed" not in run.stdout


def test_an_unknown_name_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks", "sweeep"]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert run.returncode == 2
    assert "no benchmark is called sweeep; there are forward" in run.stderr
