"""Recipes on tiny models of other depths: they run to the end, layers fall where they should, and a dry run finds what
cannot run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from analyses.command_line.cli import main
from analyses.reproductions import run as running
from analyses.reproductions.depth import placed
from analyses.reproductions.prepared import obstacles
from analyses.reproductions.recipe import Recipe, load_recipe, names
from analyses.reproductions.run import run_recipe
from analyses.running.results import Result
from tests.analyses.reproductions.stand_ins import stand_in
from tests.interventions.cases import unchecked_types

FEW = {"class-embedding": ("miil", "refinement", "vit-b16", "vit-l16")}
"""Models whose stand-ins would be that of ViT-B/32 once more, or twice as deep: all seven are run at one depth."""
DEPTHS = (4, 8, 12)
RECIPES = [name for name in names() if name != "stand-in"]  # that one is of built-in models, and is run as it is


@pytest.fixture(autouse=True)
def _as_users_run_it() -> Iterator[None]:
    """What is annotated is checked where each analysis is tested; here it would take half of the time."""
    with unchecked_types():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stand-ins")


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of steps are drawn and tested elsewhere; here they would take most of the time."""

    def save(result: Result, place: str | Path, **_: object) -> Path:
        return Path(result.save(place))

    monkeypatch.setattr(running, "write_report", save)


@pytest.mark.parametrize("n_layers", DEPTHS)
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_to_the_end_at_any_depth(
    name: str, n_layers: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = stand_in(name, n_layers, folder)
    if n_layers > DEPTHS[0]:
        recipe = recipe.changed(without=FEW.get(name, ()))
    with monkeypatch.context() as patched:
        patched.setattr("analyses.reproductions.recipe.load_recipe", lambda name: recipe)
        patched.setattr("hooked_vit.HookedViT.forward", lambda *a, **kw: pytest.fail("a model was run"))
        assert main(["reproduce", name, "--dry-run", "--out", str(folder / "none")]) == 0
    assert "Everything is there." in capsys.readouterr().out
    out = folder / f"{name}-{n_layers}-out"
    run_recipe(recipe, out)
    frame = Result.load(out).frame
    # every value and claim of the recipe is there, for each of its models
    asked = {(s.name, v.what, m) for s in recipe.steps for v in s.published for m in s.models if m in v.values}
    asked |= {(s.name, c.what, m) for s in recipe.steps for c in s.claims for m in c.about(s.models)}
    assert set(frame[["step", "what", "model"]].itertuples(index=False, name=None)) == asked
    # and of every curve the last layer is compared with the last layer
    theirs = {m: e.layers for m, e in recipe.models.items()}
    probes = frame[frame["what"].str.startswith("Accuracy of a probe on CLS")]
    for row in probes.groupby("model").tail(1).itertuples():
        assert (row.at, row.layers) == (theirs[row.model] - 1, str(n_layers - 1))


def test_layers_of_another_depth() -> None:
    assert placed(range(12), 12, 12) == {at: [at] for at in range(12)}
    assert placed(range(12), 12, 8) == {1: [0], 2: [1], 4: [2], 5: [3], 7: [4], 8: [5], 10: [6], 11: [7]}
    assert placed([0, 11], 12, 24) == {0: [1], 11: [23]}
    assert placed([-4, -1], 12, 3) == {-1: [2]}
    assert placed([-1, 0], None, None) == {-1: [-1], 0: [0]}
    # a curve of twelve points: of 24 layers two to a point, of 4 layers a point to a layer
    assert placed([0, -1], 24, 24, points=12) == {0: [0, 1], -1: [22, 23]}
    assert placed(range(12), 24, 4, points=12) == {2: [0], 5: [1], 8: [2], 11: [3]}


@pytest.mark.parametrize(
    ("name", "n_layers", "says"),
    [
        ("multiple-readouts", 3, "step random-cls: .*layers are 0 to 2 .* got .-4"),
        ("class-embedding", 1, "Key-value agreement of the MLP: vit-b32 has 1 layer, and values are of the last 2"),
    ],
)
def test_a_dry_run_finds_what_cannot_run(name: str, n_layers: int, says: str, folder: Path) -> None:
    recipe = stand_in(name, n_layers, folder)
    keep = {"class-embedding": ["key-values"]}.get(name, [step.name for step in recipe.steps])
    found = "\n".join(obstacles(recipe.changed(steps=keep)))
    assert re.search(says, found), found


def test_a_dry_run_finds_images_without_masks(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    for label in range(10):
        (tmp_path / str(label)).mkdir()
        for i in range(3):
            Image.new("RGB", (32, 32), (label * 20, i, 0)).save(tmp_path / str(label) / f"{i}.png")
    recipe = stand_in("class-embedding", 4, folder).changed(steps=["removal"])
    recipe = recipe.changed(data={"imagenet-s": f"imagefolder:{tmp_path}"})
    assert "step removal: " in "".join(obstacles(recipe))
    assert "mask" in "".join(obstacles(recipe))


def test_a_dry_run_runs_no_model_and_fails_where_a_step_cannot_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("analyses.reproductions.recipe.load_recipe", lambda name: stand_in(name, 3, folder))
    monkeypatch.setattr("hooked_vit.HookedViT.forward", lambda *a, **kw: pytest.fail("a model was run"))
    assert main(["reproduce", "multiple-readouts", "--dry-run", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().out
    assert "cannot run: step random-cls: " in said
    assert "not all of it can run" in said
    assert main(["reproduce", "multiple-readouts", "--dry-run", "--steps", "restoration"]) == 0
    assert "Everything is there." in capsys.readouterr().out


def test_settings_of_a_study_are_asked_of_the_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BEiT reads CLS in the note: a checkpoint that says so is loaded as it is, another one is told."""
    from analyses.reproductions import prepared

    entry = stand_in("cls-not-used", 4, folder).models["beit"]
    assert entry.settings == {"use_mean_pooling": False}
    loaded = prepared.load_entry(entry)
    assert loaded.cfg.sources == ("cls",)
    told: dict[str, object] = {}
    monkeypatch.setattr(prepared, "load_model", lambda spec, **kw: told.update(kw) or loaded)
    prepared.load_entry(replace(entry, settings={"use_mean_pooling": True}), device="cpu", dtype="bfloat16")
    assert told == {"class_names": None, "device": "cpu", "dtype": "bfloat16", "use_mean_pooling": True}


def test_a_dry_run_lists_everything_that_is_compared(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from analyses.reproductions.reported import reported

    recipe: Recipe = load_recipe("cls-not-used")
    main(["reproduce", "cls-not-used", "--dry-run", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    numbers = [v for s in recipe.steps for v in s.published for m in v.values for _ in v.pairs(m)]
    assert len(list(reported(recipe))) == len(numbers)
    for what, number, source in (
        ("Accuracy with CLS exchanged, as printed", "0.63304", "author's notebook output"),
        ("Accuracy of a probe on what BEiT's classifier reads", "0.70898", "author's notebook output"),
        ("Identifiability of the class in CLS", "0.997 ± 0.01", "lab note, figure read by eye"),
    ):
        (line,) = [line for line in said.splitlines() if what in line and f" {number} " in line]
        assert source in line
