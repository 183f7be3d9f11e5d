"""Every notebook runs by itself at small size, its exercises are solved and got wrong, and its outputs are stored."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from tests.stories import fresh
from tests.stories.exercise_mistakes import MISTAKES
from tests.stories.notebooks import NOTEBOOKS, ROOT, SMALL, exercises, parameters, read, small_cells
from tests.tiny import IMAGE, processor_of

pytestmark = pytest.mark.xdist_group("fresh")  # one process prepares, all runs are forks of it

WITH_EXERCISES = [path for path in NOTEBOOKS if path.stem < "06"]
REAL = next(path for path in NOTEBOOKS if path.stem.startswith("09"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny checkpoint and pictures, where the notebook of a real model is told to look."""
    model, photographs = tmp_path_factory.mktemp("dinov2"), tmp_path_factory.mktemp("photographs")
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": IMAGE, "patch_size": 8}
    Dinov2Model(Dinov2Config(**size)).save_pretrained(model)
    processor_of((IMAGE, IMAGE)).save_pretrained(model)
    rng = np.random.default_rng(0)
    for i in range(60):
        folder = photographs / ("dark", "light")[i % 2]
        folder.mkdir(exist_ok=True)
        pixels = rng.integers(100 * (i % 2), 100 * (i % 2) + 150, (IMAGE, IMAGE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return {"HOOKED_VIT_DINOV2": str(model), "HOOKED_VIT_PHOTOGRAPHS": f"imagefolder:{photographs}"}


@EACH
def test_runs_by_itself_and_its_exercises_are_checked(path: Path, tmp_path: Path, stand_ins: dict[str, str]) -> None:
    fresh.check(small_cells(path), tmp_path, stand_ins if path == REAL else {})
    assert not [file for file in tmp_path.iterdir() if file.name != "profile_default"], "a notebook leaves no files"


def test_a_real_model_is_asked_for_politely(tmp_path: Path) -> None:
    nothing = {"HOOKED_VIT_DINOV2": "", "HOOKED_VIT_PHOTOGRAPHS": ""}
    ran = fresh.run(small_cells(REAL), tmp_path, nothing)
    assert ran.error.startswith("cell 2:")
    assert "SystemExit: no checkpoint or no photographs" in ran.error
    assert "Traceback" not in ran.error


def test_a_run_knows_nothing_of_the_one_before(tmp_path: Path) -> None:
    fresh.check(["import torch\ntorch.set_grad_enabled(False)"], tmp_path)
    fresh.check(["import torch\nassert torch.is_grad_enabled()"], tmp_path)
    assert "NameError" in fresh.run(["torch"], tmp_path).error


@pytest.mark.parametrize("path", WITH_EXERCISES, ids=lambda path: path.stem)
def test_ends_in_three_exercises(path: Path) -> None:
    """Each is empty as stored, and its check says so."""
    notebook = read(path)
    number = int(path.stem[:2])
    assert [exercise.name for exercise in exercises(notebook)] == [f"check_{number}_{i}" for i in (1, 2, 3)]
    shown = [c.outputs[-1]["data"]["text/plain"] for c in notebook.cells if "exercise" in c.metadata.get("tags", ())]
    assert all(text.startswith("✗ no answer yet") for text in shown)


def test_every_exercise_has_its_mistake() -> None:
    assert MISTAKES.keys() == {exercise.name for path in NOTEBOOKS for exercise in exercises(read(path))}


@EACH
def test_is_told_like_the_others(path: Path) -> None:
    """The question first, what was shown and what was not, and where to go on."""
    notebook = read(path)
    text = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    title, _, _ = text[0].partition("\n")
    assert re.fullmatch(r"# [A-Z].*\?", title)
    assert "parameters" in notebook.cells[1].metadata.get("tags", ())
    assert any(part.startswith("## What this does and does not show") or "\n## What this does" in part for part in text)
    assert text[-1].startswith(("Next: [", "That was the last one."))
    names = {path.name for path in NOTEBOOKS}
    assert set(re.findall(r"\((\d\d_\w+\.ipynb)\)", "".join(text))) <= names


@EACH
def test_is_stored_with_outputs_that_are_no_errors(path: Path) -> None:
    code = [c for c in read(path).cells if c.cell_type == "code" and c.source.strip()]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1)), "run it: python -m tests.stories"
    assert sum(bool(c.outputs) for c in code) >= len(code) // 2
    outputs = [o for c in code for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    for drawn in [o.data for o in outputs if "application/vnd.plotly.v1+json" in o.get("data", {})]:
        assert "image/png" in drawn, "store figures as pictures too: python -m tests.stories"
    assert not re.findall(r"(?<![\w.])/(?:work|home|tmp|root|mnt|Users|private)/", json.dumps(outputs)), (
        "a path of a machine"
    )


@EACH
def test_small_size_names_the_same_parameters(path: Path) -> None:
    def names(source: str) -> set[str]:
        return {t.id for s in ast.parse(source).body for t in getattr(s, "targets", [])}

    assert names(SMALL[path.stem]) == names(parameters(read(path)).source)


def test_readme_lists_every_notebook_with_its_question() -> None:
    rows = re.findall(r"^\| \[(\d\d)\]\(notebooks/(\w+)\.ipynb\) \| (.*) \|$", (ROOT / "README.md").read_text(), re.M)
    titles = {path.stem: read(path).cells[0].source.partition("\n")[0].removeprefix("# ") for path in NOTEBOOKS}
    assert {stem: question for _, stem, question in rows} == titles
    assert all(stem.startswith(number) for number, stem, _ in rows)
