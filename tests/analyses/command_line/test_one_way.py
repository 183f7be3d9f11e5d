"""One thing is said in one way, whichever command it is said to: the model, how it computes, where a page goes."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from analyses import Result
from analyses.command_line.cli import build_parser, main, parse
from analyses.command_line.collected import write_collected
from analyses.command_line.parser import UsageError, flags_of
from analyses.questions.looking.explorer.explorer import Explorer
from analyses.reproductions.prepared import load_entry
from analyses.reproductions.recipe import load_recipe
from hooked_vit.loading.verify import verify
from tests.tiny import make_hf, processor_of

COMMANDS = build_parser()[1]
OF_A_MODEL = {"explore": [], "features": ["--dictionary", "d"], "cache": ["--to", "s"], "hooks": [], "verify": []}
COMPUTES = ("--device", "--dtype", "--image-size")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny") / "vit"
    make_hf("vit").save_pretrained(folder)
    processor_of((32, 32)).save_pretrained(folder)
    return str(folder)


def test_every_command_of_a_model_is_known_here() -> None:
    takes = {name for name, parser in COMMANDS.items() if any(a.dest == "said_model" for a in parser._actions)}
    assert takes == set(OF_A_MODEL)
    assert {name for name, parser in COMMANDS.items() if "--model" in flags_of(parser)} == takes | {
        "run",
        "reproduce",
        "demo",
    }


@pytest.mark.parametrize("command", OF_A_MODEL)
def test_the_model_is_the_word_behind_the_command_or_behind_model(command: str) -> None:
    more = OF_A_MODEL[command]
    said = [parse([command, *words, *more]).model for words in (["zoo:vit"], ["--model", "zoo:vit"])]
    said.append(parse([command, *more, "zoo:vit"]).model)
    assert said == [["zoo:vit"] if command == "explore" else "zoo:vit"] * 3
    with pytest.raises(UsageError, match=f"a model is needed: hooked-vit {command} MODEL, or --model MODEL"):
        parse([command, *more])
    with pytest.raises(UsageError, match="the model is said twice"):
        parse([command, "zoo:vit", "--model", "zoo:clip", *more])


def test_a_model_behind_an_analysis_is_told_where_to_stand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "cls-causality", "zoo:vit"]) == 2
    assert "'zoo:vit' is a word too many; models stand behind --model" in capsys.readouterr().err


def test_how_a_model_computes_can_be_said_wherever_one_is_run() -> None:
    """A comparison with the original is made in the numbers its bounds are for, and shapes have no numbers."""
    commands = (*OF_A_MODEL, "run", "reproduce", "demo")
    said = {name: [flag for flag in COMPUTES if flag in flags_of(COMMANDS[name])] for name in commands}
    less = {"hooks": ["--image-size"], "verify": ["--device", "--image-size"]}
    assert said == {name: less.get(name, list(COMPUTES)) for name in said}


def test_hooks_and_verify_at_a_size(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hooks", "--model", checkpoint, "--image-size", "48"]) == 0
    assert "height=48, width=48" in capsys.readouterr().out
    assert main(["hooks", checkpoint, "--image-size", "50"]) == 2
    assert "must be multiples of the patch size 8" in capsys.readouterr().err
    sizes = [row.check for row in verify(checkpoint, image_size=16) if "pixels" in row.check]
    assert [sum(f"{side} x {side} pixels" in check for check in sizes) for side in (32, 16)] == [4, 4]


def test_a_recipe_says_that_it_was_computed_otherwise(checkpoint: str) -> None:
    recipe = load_recipe("stand-in")
    other = recipe.changed(dtype="bfloat16", image_size=24)
    assert other.changes == ("models compute in bfloat16", "images are 24 × 24 pixels")
    assert recipe.changed().changes == ()
    assert (other.changed().dtype, other.changed().image_size) == ("bfloat16", 24)


def test_the_model_of_a_recipe_computes_as_it_says(checkpoint: str) -> None:
    entry = next(iter(load_recipe("stand-in").changed(models={"vit": checkpoint}).models.values()))
    model = load_entry(entry, dtype="bfloat16", image_size=16)
    assert (model.dtype, model.processor_size) == (torch.bfloat16, (16, 16))


@pytest.mark.parametrize(
    ("more", "kept_in"),
    [("", "float32"), ("--dtype bfloat16", "bfloat16"), ("--cache-dtype float16", "float16")],
)
def test_a_store_keeps_the_numbers_its_model_computes_in(
    more: str, kept_in: str, checkpoint: str, tmp_path: Path
) -> None:
    photos, to = tmp_path / "photos", tmp_path / "store"
    for name, colour in (("a", "red"), ("b", "blue")):
        (photos / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), colour).save(photos / name / "x.png")
    line = ["cache", "--model", checkpoint, "--data", f"imagefolder:{photos}", "--to", str(to), "--image-size", "16"]
    assert main([*line, "--roles", "all", *more.split()]) == 0
    about = json.loads((to / "manifest.json").read_text())
    assert (about["dtype"], about["grid"]) == (kept_in, [2, 2])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Result(pd.DataFrame({"a": [1]}), {}).save(tmp_path_factory.mktemp("saved") / "one")


PAGES = {
    "report.html": lambda saved, page: write_collected([saved], page),
    "explorer.html": lambda saved, page: Explorer("<!doctype html>").save(page),
}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(
    ("typed", "written"),
    [("page", "page.html"), ("a.html", "a.html"), ("p.HTM", "p.HTM"), ("new/", "new/NAME"), ("there", "there/NAME")],
)
def test_a_page_is_a_file_of_html_wherever_it_was_asked_for(
    name: str, typed: str, written: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    page = PAGES[name](saved, typed)
    assert page == Path(written.replace("NAME", name))
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("command", ["report", "explore"])
def test_a_page_of_another_kind_is_refused(
    command: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = str(saved) if command == "report" else "zoo:vit"
    assert main([command, about, "--out", str(tmp_path / "page.pdf")]) == 2
    assert "a page is HTML: its name ends in .html" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
