"""`demo --real`: local checkpoints and photographs run through, and without the hub it says at once what to give."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import transformers
from datasets import concatenate_datasets

from analyses.command_line import terminal
from analyses.command_line.cli import main
from analyses.reproductions.real_models import demo
from analyses.running.results import Result
from hooked_vit.loading import hub
from tests.analyses.data.photos import in_memory

SIDE = 28


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "quiet", lambda: None)
    hub._trouble.cache_clear()


@pytest.fixture
def local(tmp_path: Path) -> dict[str, str]:
    """A checkpoint without a head, as `save_pretrained` leaves it, and photographs to fit and to measure on."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2}
    config = transformers.Dinov2Config(**sizes, image_size=SIDE, patch_size=14)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "small")
    transformers.ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(tmp_path / "small")
    for name, seeds in (("train", (1, 2, 3)), ("test", (4, 5))):
        concatenate_datasets([in_memory(seed=seed) for seed in seeds]).to_parquet(tmp_path / f"{name}.parquet")
    where = {"--data": "test", "--fit-data": "train"}
    return {"--model": str(tmp_path / "small")} | {k: f"parquet:{tmp_path}/{v}.parquet" for k, v in where.items()}


def words(given: dict[str, str]) -> list[str]:
    return [word for pair in given.items() for word in pair]


def test_of_a_local_checkpoint_and_photographs(local, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hub, "trouble", lambda: pytest.fail("the hub was asked"))
    monkeypatch.setattr(demo, "BATCH", 20)
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--real", *words(local), "--n", "40", "--n-fit", "60"]) == 0
    assert "60 photographs to fit on, one forward pass each, and 40 to measure on, 2 each" in capsys.readouterr().out
    result = Result.load(tmp_path / "out" / "real")
    rows = result.frame
    for measure in ("probe", "shuffled", "shuffled_cls_readout"):  # the lab note's three curves, and its controls
        assert sorted(rows[rows.measure == measure].layer) == [0, 1, 2]
    assert {"clean", "chance", "floor"} <= set(rows.measure)
    assert (result.meta["data"]["n"], result.meta["fit_data"]["n"], result.meta["seeds"]) == (40, 60, 1)
    assert "notes" not in result.meta or not any("built-in models" in note for note in result.meta["notes"])


def test_half_is_set_aside_where_nothing_is_named_to_fit_on(local, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "BATCH", 15)
    del local["--fit-data"]
    assert main(["demo", "--real", *words(local)]) == 0
    assert "30 photographs to fit on, one forward pass each, and 30 to measure on" in capsys.readouterr().out
    assert Result.load(tmp_path / "out" / "real").meta["data"]["n"] == 30


@pytest.mark.parametrize("left_out", [("--model",), ("--data", "--fit-data"), ("--model", "--data", "--fit-data")])
def test_without_the_hub_it_says_at_once_what_to_give(left_out, local, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    given = {flag: value for flag, value in local.items() if flag not in left_out}
    began = time.monotonic()
    assert main(["demo", "--real", *words(given)]) == 2
    assert time.monotonic() - began < 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert ("facebook/dinov2-small@" in said) == ("--model" in left_out)
    assert ("uoft-cs/cifar10@" in said) == ("--data" in left_out)
    assert "would come from the hub: the hub is not asked, as HF_HUB_OFFLINE is set" in said
    assert demo.LOCAL in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("demo --data scenes:test", "--data: the demo of built-in models and images takes none; demo --real does"),
        ("demo --real --fit-data scenes:train", "give both, --data and --fit-data"),
        ("demo --real --model ./nothing --data scenes:test", "there is no folder './nothing'"),
    ],
)
def test_what_makes_no_sense_is_refused(line, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    assert says in capsys.readouterr().err


def test_that_the_hub_is_away_is_said_before_torch_is_there():
    code = f"import sys; from analyses.command_line.cli import main; assert main({['demo', '--real']}) == 2; "
    done = subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=False)
    assert done.returncode == 0
