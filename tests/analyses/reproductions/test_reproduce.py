"""Recipes of published experiments: they are understood before anything runs, and what came out is compared rightly."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analyses.command_line.cli import main
from analyses.reproductions import run as running
from analyses.reproductions.missing import missing
from analyses.reproductions.recipe import RecipeError, load_recipe, names
from analyses.reproductions.run import compare, run_recipe
from analyses.running.catalogue import get_analysis
from analyses.running.results import Result
from hooked_vit.loading import hub
from tests.tiny import make_hf

REAL = [name for name in names() if name not in ("stand-in", "counting")]
"""Those that need something which is not part of this repository."""


@pytest.fixture(autouse=True)
def _hub_is_asked_anew():
    hub._trouble.cache_clear()


def own(tmp_path: Path, text: str = "", **step: str) -> str:
    """A recipe of one's own: one step, whose lines can be replaced."""
    lines = {
        "name": '"s"',
        "analysis": '"cls-causality"',
        "data": '{ data = "d" }',
        "options": "{ seeds = 1 }",
    } | step
    body = "\n".join(f"{key} = {value}" for key, value in lines.items() if value)
    file = tmp_path / "mine.toml"
    file.write_text(
        'title = "t"\nsource = "s"\n[models.m]\ncheckpoint = "zoo:vit"\n'
        f'[data.d]\nspec = "scenes:test"\nn = 8\n[[steps]]\n{body}\n{text}\n',
        encoding="utf-8",
    )
    return str(file)


VALUE = '[[steps.published]]\nwhat = "w"\nsource = "p"\nkind = "table"\n'


def test_a_recipe_may_use_a_former_name(tmp_path):
    assert load_recipe(own(tmp_path, data='{ data = "d", probe_data = "d" }')).steps[0].data["probe_data"] == "d"


@pytest.mark.parametrize("name", names())
def test_every_recipe_is_a_call_its_analyses_can_take(name):
    recipe = load_recipe(name)
    for step in recipe.steps:
        takes = inspect.signature(get_analysis(step.analysis).run)
        takes.bind({}, **dict.fromkeys(step.data), **step.options)
        assert step.published or step.claims, "a step without a published value or claim reproduces nothing"
    assert {m for step in recipe.steps for m in step.models} == set(recipe.models)
    assert {d for step in recipe.steps for d in step.data.values()} == set(recipe.data)
    differences = ("logit_change", "right_minus_wrong")  # all others are shares
    shares = [v for s in recipe.steps for v in s.published if not any(name in v.rows for name in differences)]
    assert all(0 <= value <= 1 for v in shares for m in v.values for _, value in v.pairs(m))


def test_the_numbers_of_the_paper_are_those_printed():
    """Spot checks against the tables, whose numbers are in percent there."""
    table = {v.what: v for s in load_recipe("class-embedding").steps[:1] for v in s.published}
    assert table["Accuracy"].pairs("miil") == [(None, pytest.approx(0.8626))]
    readouts = {v.what: v for s in load_recipe("multiple-readouts").steps for v in s.published}
    assert readouts["CLS replaced by a random token, test"].pairs("dinov2")[0] == (-4, 0.61614)
    de_novo = readouts["The block's own CLS, trained de novo, test"].pairs("dinov2")
    assert [at for at, _ in de_novo] == [-4, -3, -1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"analysis": '"cls-causalty"'}, "there is no analysis 'cls-causalty'; did you mean 'cls-causality'"),
        ({"options": "{ seed = 1 }"}, "no option of its analysis is called 'seed'; did you mean 'seeds'"),
        ({"options": '{ fit_data = "d" }'}, "no option of its analysis is called 'fit_data'"),
        ({"data": '{ data = "e" }'}, "no data of the recipe is called 'e'"),
        ({"data": '{ fit_data = "d" }'}, "says what is measured on"),
        ({"data": '{ data = "d", more_data = "d" }'}, "no data of its analysis is called 'more_data'"),
        ({"models": '["vit"]'}, "no model of the recipe is called 'vit'"),
        ({"model": '"m"'}, "step s: unknown model; did you mean 'models'"),
        ({"name": ""}, "lacks name"),
    ],
)
def test_a_step_that_is_no_call(change, says, tmp_path):
    with pytest.raises(RecipeError, match=says):
        load_recipe(own(tmp_path, **change))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f'{VALUE}rows = "x"\nvalues = {{ n = 0.5 }}', "values of n, which the step does not run"),
        (f'{VALUE}rows = "x"\nvalues = {{ m = [0.5] }}', "if, and only if, there is a `by`"),
        (
            f'{VALUE}rows = "x"\nby = "layer"\nvalues = {{ m = 0.5 }}',
            "if, and only if, there is a `by`",
        ),
        (f'{VALUE}rows = "x"\nvalues = {{ m = "most" }}', "'most' of m is no number"),
        (f"{VALUE}values = {{ m = 0.5 }}", "lacks rows"),
        ("[oops", "no TOML"),
    ],
)
def test_a_published_value_that_means_nothing(text, says, tmp_path):
    with pytest.raises(RecipeError, match=says):
        load_recipe(own(tmp_path, text))


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(LookupError, match="there is no recipe 'cls-not-use'; did you mean 'cls-not-used'"):
        load_recipe("cls-not-use")
    with pytest.raises(FileNotFoundError, match="there is no recipe mine.toml"):
        load_recipe("mine.toml")


# --- what is missing


@pytest.mark.parametrize("name", REAL)
def test_everything_that_is_missing_is_said_before_anything_runs(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(running, "_run_step", lambda *_: pytest.fail("it ran"))
    assert main(["reproduce", name, "--out", str(tmp_path / "out")]) == 2
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("missing: ")]
    recipe = load_recipe(name)
    built_in = sum(entry.checkpoint.startswith("zoo:") for entry in recipe.models.values())
    assert len(said) == len(recipe.models) + len(recipe.data) - built_in
    assert all("--model " in line or "--data " in line for line in said)
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="nothing was run"):
        run_recipe(recipe, tmp_path / "out")


def test_the_hub_is_asked_once(monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    class Session:
        def head(self, endpoint, timeout):
            asked.append(endpoint)
            raise OSError("away")

    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    assert len(missing(load_recipe("cls-not-used"))) == 7
    assert asked == [huggingface_hub.constants.ENDPOINT]


def test_a_gated_data_set_and_a_repository_that_is_not_there(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    def refuse(kind):
        error = kind.__new__(kind)
        Exception.__init__(error, "no")
        return error

    class Api:
        def repo_info(self, repository, repo_type, timeout):
            if "deit" in repository:
                raise refuse(RepositoryNotFoundError)

        def auth_check(self, repository, repo_type):
            if repo_type == "dataset":
                raise refuse(GatedRepoError)

    monkeypatch.setattr(hub, "trouble", lambda: None)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    said = missing(load_recipe("cls-not-used"))
    assert [line.split(" (")[0] for line in said] == ["model deit", "data test", "data probes"]
    assert "the hub has no such repository" in said[0]
    assert "gated: agree to its terms at https://huggingface.co/datasets/ILSVRC/imagenet-1k and log in" in said[1]


def test_local_copies_take_the_place(tmp_path):
    """A folder, a file of weights of a published model, images: whatever is there is no longer missing."""
    make_hf("vit").save_pretrained(tmp_path / "vit")
    (tmp_path / "photos").mkdir()
    (tmp_path / "weights.pth").touch()
    recipe = load_recipe("cls-not-used").changed(
        models={"vit": str(tmp_path / "vit"), "deit": str(tmp_path / "nowhere")},
        data={"test": f"imagefolder:{tmp_path / 'photos'}"},
        steps=["shuffle"],
        without=["beit", "clip", "dinov2"],
        n=50,
    )
    said = missing(recipe)
    assert [line.split(" (")[0] for line in said] == ["model deit", "data probes"]
    assert (recipe.data["test"].n, recipe.data["probes"].n) == (50, 50)
    recipe = load_recipe("class-embedding").changed(models={"refinement": str(tmp_path / "weights.pth")})
    assert recipe.models["refinement"].checkpoint == f"published:vilas2023-refinement={tmp_path / 'weights.pth'}"
    assert not [line for line in missing(recipe) if "refinement" in line]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"models": {"vitt": "zoo:vit"}}, "has no model 'vitt'; did you mean 'vit'"),
        ({"data": {"probe": "scenes:test"}}, "has no data 'probe'; did you mean 'probes'"),
        ({"steps": ["shuffel"]}, "has no step 'shuffel'; did you mean 'shuffle'"),
        ({"steps": ["final-classifier"], "without": ["vit"]}, "nothing of cls-not-used is left to run"),
    ],
)
def test_a_change_of_what_is_not_there(change, says):
    with pytest.raises(ValueError, match=says):
        load_recipe("cls-not-used").changed(**change)


# --- what came out beside what was published


def frame(*rows: tuple) -> Result:
    columns = ["model", "measure", "layer", "value", "low", "high", "n"]
    return Result(pd.DataFrame(rows, columns=columns).astype({"layer": "Int64"}), {})


def test_the_comparison_by_hand(tmp_path):
    recipe = load_recipe(
        own(
            tmp_path,
            f'{VALUE}rows = "measure == \'a\'"\nby = "layer"\nfirst = 1\nreading = 0.02\n'
            "values = { m = [0.5, '-', 0.7] }\n"
            f"{VALUE}rows = \"measure == 'b'\"\npercent = true\nreading = 0.5\nvalues = {{ m = 40 }}\n",
        )
    )
    ours = frame(
        ("m", "a", 0, 0.1, 0.0, 0.2, 8),
        ("m", "a", 1, 0.56, 0.515, 0.6, 8),
        ("m", "a", 2, 0.9, 0.9, 0.9, 8),
        ("m", "a", 3, 0.75, 0.721, 0.8, 8),
        ("m", "b", None, 0.41, 0.405, 0.42, 8),
        ("other", "b", None, 0.9, 0.9, 0.9, 8),
    )
    table = compare(recipe, {"s": ours}).frame
    assert table["at"].tolist() == [1, 3, pd.NA]
    assert table["published"].tolist() == pytest.approx([0.5, 0.7, 0.4])
    assert table["difference"].tolist() == pytest.approx([0.06, 0.05, 0.01])
    assert table["agrees"].tolist() == [True, False, True]  # 0.515 - 0.02 < 0.5; 0.721 - 0.02 > 0.7; 0.405 - 0.005
    assert table["reading"].tolist() == pytest.approx([0.02, 0.02, 0.005])


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("measure == 'c'", "means 0 rows of m; it has to be one"),
        ("measure == 'a'", "means 2 rows of m; it has to be one"),
        ("mesure == 'a'", "cannot be asked of the result"),
    ],
)
def test_rows_that_are_not_one(rows, says, tmp_path):
    recipe = load_recipe(own(tmp_path, f'{VALUE}rows = "{rows}"\nvalues = {{ m = 0.5 }}'))
    with pytest.raises(RecipeError, match=says):
        compare(recipe, {"s": frame(("m", "a", 0, 0.1, 0, 0.2, 8), ("m", "a", 1, 0.1, 0, 0.2, 8))})


def test_the_stand_in_from_end_to_end(tmp_path, capsys, monkeypatch):
    """On two images a class: it runs, writes a page with every value, and what was finished is not run again."""
    out = tmp_path / "out"
    command = ["reproduce", "stand-in", "--n", "20", "--without", "dinov2", "--out", str(out)]
    assert main([*command, "--dry-run"]) == 0
    assert "Everything is there" in capsys.readouterr().out
    assert not out.exists()
    assert main(command) == 0
    told = capsys.readouterr().out
    result, step = Result.load(out), Result.load(out / "shuffle")
    ours = step.frame.query("measure == 'clean'")["value"].item()
    row = result.frame.query("what == 'Accuracy, nothing changed'").iloc[0]
    assert (row["value"], row["model"]) == (ours, "vit")
    assert "not the experiment that was published: of test only 20 images" in result.meta["summary"][0]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(what in page and what in told for what in result.frame["what"])
    assert (out / "shuffle" / "report.html").is_file()
    refusing = {"run": lambda *a, **kw: pytest.fail("it ran again")}
    monkeypatch.setattr(running, "get_analysis", lambda name: replace(get_analysis(name), **refusing))
    assert main(command) == 0
    with pytest.raises(pytest.fail.Exception, match="it ran again"):
        main([word.replace("20", "21") for word in command])


def test_arguments_that_make_no_sense(tmp_path, capsys):
    for argv, says in (
        (["reproduce", "stand-in", "--model", "vit"], "argument --model: it is NAME=VALUE"),
        (["reproduce", "stand-in", "--n", "0"], "argument --n: a whole number from 1"),
        (["reproduce", "standin"], "there is no recipe 'standin'; did you mean 'stand-in'"),
    ):
        assert main(argv) == 2
        assert says in capsys.readouterr().err
