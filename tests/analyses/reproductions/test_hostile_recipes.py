"""A recipe is data that somebody sent: it runs nothing, writes nowhere but into --out, and its faults are sentences."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analyses.command_line.cli import main
from analyses.reproductions.filters import parse_rows, rows_where
from analyses.reproductions.recipe import load_recipe, names
from analyses.reproductions.tables import RecipeError
from analyses.running.text import check_component

FRAME = pd.DataFrame(
    {
        "measure": ["a", "a", "b", "b", None],
        "layer": pd.array([0, 1, 1, None, 2], "Int64"),
        "probe_layer": [0.0, 2.0, 2.0, float("nan"), 1.0],
        "seed": pd.array([0, 0, 1, None, 1], "Int64"),
        "value": [0.1, 0.2, 0.3, float("nan"), 0.5],
        "fitted": [True, False, True, False, True],
    }
)


def recipe(folder: Path, *, rows: str = "measure == 'clean'", values: str = "{ m = 0.5 }", **lines: str) -> str:
    """A recipe of one step; `lines` take the place of its own, at the top where they are no line of the step."""
    step = {"name": '"s"', "analysis": '"cls-causality"', "data": '{ data = "d" }', "options": "{ seeds = 1 }"}
    top = {"title": '"t"', "source": '"s"'}
    top |= {key: value for key, value in lines.items() if key not in (*step, "n", "checkpoint")}
    step |= {key: value for key, value in lines.items() if key in step}
    body = [
        *(f"{key} = {value}" for key, value in top.items()),
        *("[models.m]", f"checkpoint = {lines.get('checkpoint', chr(34) + 'zoo:vit' + chr(34))}"),
        *("[data.d]", 'spec = "scenes:test"', f"n = {lines.get('n', '8')}", "[[steps]]"),
        *(f"{key} = {value}" for key, value in step.items()),
        *(
            "[[steps.published]]",
            'what = "w"',
            'source = "p"',
            'kind = "table"',
            f"rows = {rows!r}" if '"' in rows else f'rows = "{rows}"',
        ),
        f"values = {values}",
    ]
    file = folder / "mine.toml"
    file.write_text("\n".join(body), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(
    "rows",
    [
        *("measure == 'a'", "measure != 'a'", "layer == layer.max()", "layer == layer.max() - 1", "layer.isna()"),
        *("layer == probe_layer - 1", 'layer.notna() and measure == "b"', "seed == seed.min() and measure == 'a'"),
        *("value > 0.2", "value != 0.1", "layer >= 1", "layer != 1", "measure == 'a and b'", "seed == -1"),
        *("layer<2 and seed==0", "fitted == True", "fitted == False and value <= 0.2", "layer < probe_layer"),
    ],
)
def test_conditions_mean_what_they_meant_as_a_query(rows):
    pd.testing.assert_frame_equal(rows_where(FRAME, rows), FRAME.query(rows, engine="python"))


@pytest.mark.parametrize(
    "rows",
    [
        *("@pd.io.common.os.system('touch {there}')", "measure == @pd.io", "measure == __import__('os')", "x", "", " "),
        *(
            "layer == layer.__class__",
            "layer == layer.max().x",
            "layer.isna",
            "layer.max() == 1",
            "layer == 1 or 2 == 2",
        ),
        *("layer == 1 1", "layer == 1 and", "layer == 1 andlayer == 1", "a == b.c()", "layer == 1e5", "`layer` == 1"),
        *(
            "measure == 'a' and @pd.io.common.os.system('touch {there}') == 0",
            "layer == 9999999999999999999999",
            "not layer",
        ),
    ],
)
def test_rows_run_nothing(rows, tmp_path, capsys):
    """Refused when the recipe is read, before a model is."""
    rows = rows.format(there=tmp_path / "ran")
    with pytest.raises(ValueError, match="rows are conditions joined by `and`"):
        parse_rows(rows)
    assert main(["reproduce", recipe(tmp_path, rows=rows), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "rows are conditions" in said
    assert said.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"mine.toml"}


def test_conditions_that_the_result_cannot_answer():
    with pytest.raises(LookupError, match="there is no column 'nothing'; there are measure, layer"):
        rows_where(FRAME, "layer == nothing.max()")
    with pytest.raises(TypeError):
        rows_where(FRAME, "measure < 3")


HOSTILE_NAMES = [
    *("", ".", "..", "../../x", "/tmp/x", "a/b", "a\\b", "C:x", "~root", "x" * 101, "a\x00b", "a\x1b[2J", "a\nb", " "),
    *("a ", "a.", "-x", "\u202ea", "a\ud800", ".hidden", "a:b", "a*"),
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_is_one_component_of_a_path(name):
    with pytest.raises(ValueError, match="a name is "):
        check_component(name, "a name")


@pytest.mark.parametrize("name", ["s", "table-1", "random cls", "Schicht 3", "鶴", "v1.2"])
def test_names_that_folders_have(name):
    assert check_component(name, "a name") == name


@pytest.mark.parametrize("name", ["../../x", "{tmp}/x", "", ".", "report.html", "Result.json"])
def test_a_step_writes_nowhere_but_into_out(name, tmp_path, capsys):
    file = recipe(tmp_path, name=f'"{name.format(tmp=tmp_path)}"')
    assert main(["reproduce", file, "--out", str(tmp_path / "deep" / "out")]) == 2
    assert "mine: a step" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"mine.toml"}


def test_options_that_say_where_to_write_are_not_for_a_recipe(tmp_path):
    for analysis, option in (("random-readouts", "keep_in"), ("intervention-sweep", "file")):
        file = recipe(tmp_path, analysis=f'"{analysis}"', options=f'{{ {option} = "{tmp_path}/x" }}')
        with pytest.raises(RecipeError, match=f"{option} says where files go"):
            load_recipe(file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n": '"many"'}, "n is a whole number or nothing; got 'many'"),
        ({"n": "0"}, "n is at least 1"),
        ({"n": "true"}, "n is a whole number or nothing"),
        ({"checkpoint": "3"}, "checkpoint is a text"),
        ({"title": "1"}, "title is a text"),
        ({"not_reproduced": '"x"'}, "not_reproduced: is a list"),
        ({"options": "{ seeds = 0 }"}, "seeds is a whole number from 1 to 100000; got 0"),
        ({"options": "{ seeds = nan }"}, "seeds is a whole number from 1 to 100000; got 'nan', a float"),
        ({"options": '{ seeds = "x" }'}, "seeds is a whole number from 1 to 100000; got 'x', a str"),
        ({"values": "{ m = nan }"}, "nan of m is no number"),
        ({"values": "{ m = true }"}, "True of m is no number"),
        ({"values": "3"}, "values is a table"),
        ({"analysis": '"activation-patching"'}, "takes tensors"),
        ({"analysis": "3"}, "analysis is a text"),
    ],
)
def test_an_entry_of_another_kind(change, says, tmp_path):
    with pytest.raises(RecipeError, match=says):
        load_recipe(recipe(tmp_path, **change))


@pytest.mark.parametrize("text", ["models = 3", "steps = 3", "steps = [3]", "data = []", "x = " + "[" * 5000])
def test_a_file_that_is_no_recipe(text, tmp_path):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(RecipeError):
        load_recipe(str(tmp_path / "mine.toml"))
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="UTF-8"):
        load_recipe(str(tmp_path / "mine.toml"))


def test_our_own_recipes_are_read_as_before():
    assert all(parse_rows(value.rows) for name in names() for s in load_recipe(name).steps for value in s.published)
