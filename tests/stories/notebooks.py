"""The notebooks: what is in them, what they run as in the tests, and how they are stored.

    python -m tests.stories 02 05

executes these again, in a kernel and at full size, and stores their outputs with figures as pictures too.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode

from tests.stories.exercise_mistakes import MISTAKES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# What each notebook's parameters cell is replaced by; a notebook without an entry runs as it is stored.
SMALL = {
    "01_first_look": "N_IMAGES = 32",
    "02_cls_information_is_not_used": 'N_IMAGES = 40\nN_FIT = 60\nMODELS = ["vit", "dinov2"]',
    "03_multiple_readouts": 'N_IMAGES = 64\nN_FIT = 128\nEPOCHS = 1\nLAYERS = (6, 7)\nMODELS = ["vit"]',
    "04_class_embedding_space": "N_IMAGES = 24\nN_EXPLAINED = 12",
    "05_activation_patching_counting": "N_SCENES = 60\nN_PAIRS = 8",
    "06_compare_architectures": 'N_IMAGES = 40\nN_FIT = 60\nMODELS = ["vit", "beit"]',
    "07_write_your_own_intervention": "N_IMAGES = 64",
    "08_from_transformerlens_and_nnsight": "N_PAIRS = 2",
    "09_a_real_model": """
import os

MODEL = os.environ.get("HOOKED_VIT_DINOV2", "")
PHOTOGRAPHS = os.environ.get("HOOKED_VIT_PHOTOGRAPHS", "")
N_IMAGES = 30
IMAGE_SIZE = 32
""",
}


class Exercise(NamedTuple):
    """The empty answer, the call of its check, and the solution folded behind it."""

    empty: str
    call: str
    solution: str

    @property
    def name(self) -> str:
        """Of the check: check_1_2."""
        return self.call.partition("(")[0]


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def tagged(notebook: NotebookNode, tag: str) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]


def parameters(notebook: NotebookNode) -> NotebookNode:
    cells = tagged(notebook, "parameters")
    assert len(cells) == 1, "a notebook has one cell tagged `parameters`, with its sizes"
    return cells[0]


def exercises(notebook: NotebookNode) -> list[Exercise]:
    """In their order: each is a cell tagged `exercise` that ends in its check, and one tagged `solution` behind it."""
    empty, folded = tagged(notebook, "exercise"), tagged(notebook, "solution")
    assert len(empty) == len(folded)
    return [_exercise(a.source, b.source) for a, b in zip(empty, folded, strict=True)]


def _exercise(empty: str, folded: str) -> Exercise:
    call = ast.parse(empty).body[-1]
    assert isinstance(call, ast.Expr)
    (solution,) = re.findall(r"```python\n(.*?)```", folded, flags=re.DOTALL)
    assert folded.startswith("<details>\n<summary>Solution</summary>\n\n")
    assert folded.endswith("\n\n</details>")
    return Exercise(empty, ast.unparse(call), solution)


def small_cells(path: Path) -> list[str]:
    """What a test runs: the code at small size, with each exercise left empty, got wrong and solved in turn."""
    notebook = read(path)
    if path.stem in SMALL:
        parameters(notebook).source = SMALL[path.stem]
    tried = {exercise.empty: exercise for exercise in exercises(notebook)}
    cells: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cells += [cell.source, *(_tried(tried[cell.source]) if cell.source in tried else ())]
    return cells


def _tried(exercise: Exercise) -> Iterator[str]:
    yield f"assert not {exercise.call}, 'the empty answer passes'"
    yield exercise.solution
    yield f"verdict = {exercise.call}\nassert verdict, verdict"
    yield MISTAKES[exercise.name]
    yield f"assert not {exercise.call}, 'a wrong answer passes'"


def store(path: Path) -> None:
    """Execute a notebook from a fresh kernel and write it back.

    Figures are stored as pictures too, for who reads without running; progress bars and warnings, which speak of the
    machine, are not.
    """
    from nbclient import NotebookClient

    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype+png"
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    where = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    nbformat.write(notebook, path)
