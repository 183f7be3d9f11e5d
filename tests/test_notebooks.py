"""Every notebook runs from a fresh kernel at small size, defines nothing of its own, and is stored with its outputs."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
# What each notebook's parameters cell is replaced by; a notebook without an entry runs as it is stored.
SMALL = {
    "01_first_look": "N_IMAGES = 32",
    "02_cls_information_is_not_used": 'N_IMAGES = 64\nMODELS = ["vit", "dinov2"]',
    "03_multiple_readouts": 'N_IMAGES = 64\nN_FIT = 128\nEPOCHS = 1\nLAYERS = (6, 7)\nMODELS = ["vit"]',
    "04_class_embedding_space": "N_IMAGES = 24\nN_EXPLAINED = 12",
    "05_activation_patching_counting": "N_SCENES = 60\nN_PAIRS = 8",
    "07_write_your_own_intervention": "N_IMAGES = 64",
}


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def parameters(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    assert len(tagged) == 1, "a notebook has one cell tagged `parameters`, with its sizes"
    return tagged[0]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_from_a_fresh_kernel(path: Path, tmp_path: Path) -> None:
    notebook = read(path)
    if path.stem in SMALL:
        parameters(notebook).source = SMALL[path.stem]
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_is_stored_with_outputs_that_are_no_errors(path: Path) -> None:
    code = [c for c in read(path).cells if c.cell_type == "code" and c.source.strip()]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1)), "run it once from top to bottom"
    assert sum(bool(c.outputs) for c in code) >= len(code) // 2
    assert not [o for c in code for o in c.outputs if o.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_small_size_names_the_same_parameters(path: Path) -> None:
    def names(source: str) -> set[str]:
        return {t.id for s in ast.parse(source).body for t in getattr(s, "targets", [])}

    if path.stem in SMALL:
        assert names(SMALL[path.stem]) == names(parameters(read(path)).source)
