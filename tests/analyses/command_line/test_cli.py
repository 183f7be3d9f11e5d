"""The command line: helpful at once, strict before long work, silent about nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Literal

import pandas as pd
import PIL.Image
import pytest
import torch
import transformers

from analyses.command_line import cli, commands, computing, terminal
from analyses.command_line.cli import main
from analyses.command_line.options import options_of
from analyses.running import registry
from analyses.running.catalogue import in_source, registered_analyses
from analyses.running.models import check_model, default_models, load_model, load_models, short_name, short_names
from analyses.running.notes import about_model
from analyses.running.results import Result
from hooked_vit import architectures, zoo
from hooked_vit.config.numbers import DTYPES, NUMBERS, check_device
from hooked_vit.errors import UnsupportedModelError
from hooked_vit.loading.verify import Row
from interventions import registered

COMMANDS = ("demo", "run", "models", "interventions", "hooks", "verify")
DIGITS = {"id2label": {i: str(i) for i in range(10)}, "label2id": {str(i): i for i in range(10)}}
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def save(folder, **settings):
    """A tiny checkpoint for 48 x 48 scenes with its image processor."""
    config = transformers.ViTConfig(**SIZE, **DIGITS, image_size=48, patch_size=16, **settings)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoints") / "mine")


@pytest.fixture(autouse=True)
def loud(monkeypatch):
    """In this process, leave the other libraries as talkative as other tests expect them."""
    monkeypatch.setattr(terminal, "quiet", lambda: None)


@pytest.fixture
def zoo_of_two(monkeypatch, tmp_path):
    """A zoo with one model for labels and one for counts."""
    save(tmp_path / "zoo" / "vit")
    save(tmp_path / "zoo" / "vit-count")
    about = {
        name: {"target": target, "accuracy": {"test": 0.9625}}
        for name, target in (("vit", "label"), ("vit-count", "count"))
    }
    (tmp_path / "zoo" / "zoo.json").write_text(json.dumps(about))
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")


@pytest.fixture
def asked(own_registry):
    """An analysis that notes what it was called with."""
    calls = []

    @registry.analysis
    def what_was_asked(
        models: object,
        data: object,
        *,
        layers: tuple[int, ...] = (0, 1),
        strength: float = 0.5,
        exact: bool = False,
        kind: Literal["mean", "zero"] = "mean",
        top: int | None = None,
        batch_size: int = 8,
        fit_data: object = None,
        callback: object = None,
    ) -> Result:
        """What was asked?

        >>> an example
        """
        calls.append(dict(locals()))
        return Result(pd.DataFrame({"value": [0.5]}), {"summary": ["It was asked."]})

    return calls


def test_help_of_every_command_comes_without_torch():
    code = (
        "import sys\nfrom analyses.command_line.cli import main\n"
        f"for command in [[], *([c] for c in {COMMANDS})]:\n    assert main([*command, '--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'pandas', 'plotly', 'datasets', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for command in COMMANDS:
        assert f"usage: hooked-vit {command}" in done.stdout
    assert "cls-causality " in done.stdout


def test_a_real_run_leaves_report_and_numbers(checkpoint, tmp_path):
    """In a process of its own, as it is installed: the main analysis on a local checkpoint."""
    command = [
        "run",
        "cls-causality",
        "--model",
        checkpoint,
        "--n",
        "40",
        "--fit-data",
        "scenes:train",
        "--seeds",
        "1",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "analyses.command_line.cli", *command, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "result.parquet", "result.json"}
    assert "Where in each model is the label decodable" in done.stdout
    assert str(tmp_path / "out" / "report.html") in done.stdout
    assert "Traceback" not in done.stderr
    result = Result.load(tmp_path / "out")
    assert set(result.frame.model) == {"mine"}
    assert result.meta["command"].startswith("hooked-vit run cls-causality --model")


def test_options_reach_the_analysis(asked, checkpoint, tmp_path, capsys):
    line = "run what-was-asked --data scenes:test --n 3 --layers 4 5 --strength 2 --exact --kind zero --top 7"
    more = ["--batch-size", "2", "--fit-data", "scenes:train", "--num-processes", "1", "--out", str(tmp_path)]
    assert main([*line.split(), "--model", checkpoint, *more]) == 0
    (call,) = asked
    assert list(call["models"]) == ["mine"]
    assert (call["data"].name, call["data"].n) == ("scenes:test", 3)
    assert (call["fit_data"].name, call["fit_data"].n) == ("scenes:train", 3)
    told = {key: call[key] for key in ("layers", "strength", "exact", "kind", "top", "batch_size", "callback")}
    assert told == {
        **{
            "layers": (4, 5),
            "strength": 2.0,
            "exact": True,
            "kind": "zero",
            "top": 7,
            "batch_size": 2,
            "callback": None,
        }
    }
    out = capsys.readouterr().out
    assert "What was asked?" in out
    assert "It was asked." in out


def test_a_former_name_of_an_option_is_taken_with_a_notice(asked, checkpoint, tmp_path, capsys):
    line = ["run", "what-was-asked", "--n", "2", "--model", checkpoint, "--out", str(tmp_path)]
    assert main([*line, "--probe-data", "scenes:train"]) == 0
    assert (asked[0]["fit_data"].name, asked[0]["fit_data"].n) == ("scenes:train", 2)
    assert "note: probe_data is called fit_data now, on the command line --fit-data" in capsys.readouterr().err
    assert main([*line, "--probe-data", "scenes:train", "--fit-data", "scenes:train"]) == 2
    assert "fit_data is given twice" in capsys.readouterr().err
    assert main(["run", "what-was-asked", "--help"]) == 0
    assert "probe-data" not in capsys.readouterr().out


def test_defaults_stay_with_the_analysis(asked, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--n", "2", "--no-exact", "what_was_asked", "--model", checkpoint]) == 0
    assert (asked[0]["layers"], asked[0]["batch_size"], asked[0]["exact"]) == ((0, 1), 8, False)
    assert (tmp_path / "out" / "what-was-asked" / "report.html").is_file()


def test_without_a_model_the_zoo_is_compared(asked, zoo_of_two, tmp_path):
    assert main(["run", "what-was-asked", "--n", "2", "--out", str(tmp_path / "out")]) == 0
    assert list(asked[0]["models"]) == ["vit"]
    assert "not how large pretrained models" in Result.load(tmp_path / "out").meta["notes"][-1]


def test_demo_needs_no_arguments(asked, zoo_of_two, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "DEMO_ANALYSIS", "what-was-asked")
    monkeypatch.setattr(cli, "DEMO_IMAGES", 2)
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    assert (list(asked[0]["models"]), asked[0]["data"].name, asked[0]["data"].n) == (["vit"], "scenes:test", 2)
    assert (tmp_path / "out" / "demo" / "report.html").is_file()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "the following arguments are required: COMMAND (see hooked-vit --help)"),
        ("dmo", "there is no command 'dmo'; did you mean 'demo'? There are demo, run,"),
        ("cls-causality", "there is no command 'cls-causality'; did you mean 'run cls-causality'?"),
        ("demo --otu x", "there is no option --otu; did you mean '--out'? (see hooked-vit demo --help)"),
        ("hooks zoo:vit more", "'more' is a word too many"),
        ("run", "required: ANALYSIS"),
        ("run what-was-aksed", "did you mean 'what-was-asked'?"),
        ("run what-was-asked --sedes 3", "there is no option --sedes; did you mean '--seed'?"),
        (
            "run what-was-asked --top many",
            "argument --top: a whole number from -2147483647 to 2147483647 is needed, got 'many'",
        ),
        ("run what-was-asked --kind maen", "no value is called 'maen'; did you mean 'mean'? There are mean, zero"),
        ("run what-was-asked --n 0", "argument --n: a whole number from 1 to 2147483647 is needed, got '0'"),
        ("run what-was-asked --num-processes 0", "argument --num-processes: a whole number from 1 to"),
        ("run what-was-asked --model zoo:vitt", "the zoo has no 'vitt'; did you mean 'vit'?"),
        ("run what-was-asked --model vit", "did you mean 'zoo:vit'?"),
        ("run what-was-asked --model zo:vit", "no model begins with 'zo:'; did you mean 'zoo:'?"),
        ("run what-was-asked --model nobody/nothing", "the hub is not asked, as HF_HUB_OFFLINE is set"),
        ("run what-was-asked --model ./nothing", "there is no folder './nothing'"),
        ("run what-was-asked --model {tmp}", "holds config.json"),
        ("run what-was-asked --model {tmp}/file", "is a file"),
        ("run what-was-asked --model {tmp}/text", "no hook graph for GPT2LMHeadModel"),
        ("run what-was-asked --model {tmp}/broken", "cannot be read"),
        ("run what-was-asked --model {mine} {mine}", "is given twice"),
        ("run what-was-asked --model {mine} --device teapot", "cannot use the device 'teapot'"),
        ("run what-was-asked --model {mine} --data photos", "data is one of scenes:SPLIT"),
        ("run what-was-asked --model {mine} --data scens:test", "got 'scens:test'; did you mean 'scenes'?"),
        (
            "run what-was-asked --model {mine} --data scenes:tset",
            "train, validation, test; got 'tset'; did you mean 'test'?",
        ),
        ("run what-was-asked --model {mine} --fit-data imagefolder:{tmp}/nothing", "there is no folder"),
        ("run what-was-asked --model {mine} --out {tmp}/file", "is not one"),
        ("hooks ./nothing", "there is no folder"),
        ("verify zoo:vitt", "the zoo has no 'vitt'"),
    ],
)
def test_what_a_user_got_wrong_is_one_line(line, says, asked, checkpoint, zoo_of_two, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    transformers.GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path / "text")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    out = [] if "--out" in line else ["--out", str(tmp_path / "out")] if line.startswith("run what-was-asked") else []
    assert main([*line.format(tmp=tmp_path, mine=checkpoint).split(), *out]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert says in said.err
    assert said.out == ""
    assert asked == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bug_is_no_users_error(asked, monkeypatch, capsys):
    def broken(args):
        return {}["layer"]

    monkeypatch.setattr(commands, "models", broken)
    with pytest.raises(KeyError):
        main(["models"])
    with pytest.raises(LookupError, match="there is no analysis"):
        main(["run", "nothing", "--debug"])


def test_an_option_an_analysis_cannot_follow(own_registry, checkpoint, capsys):
    @registry.analysis
    def no_batches(models: object, data: object, *, seed: int = 5) -> Result:
        """None."""
        return Result(pd.DataFrame({"seed": [seed]}), {})

    assert main(["run", "no-batches", "--model", checkpoint, "--batch-size", "3"]) == 2
    assert "nothing --batch-size could set" in capsys.readouterr().err


def test_models(zoo_of_two, capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "zoo:vit-count" in out
    assert "96.2%" in out
    lines = [line.split() for line in out.splitlines()]
    for family in map(architectures.get, architectures.registered()):
        for hf_class in family.classes:
            assert any(line[-2:] == [hf_class, family.examples.get(hf_class, "–")] for line in lines), hf_class


def test_interventions(capsys):
    assert main(["interventions"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}(" in out for name in registered())
    assert "shuffle_cls(layer" in out
    assert "Give every image another image's CLS token" in out


def test_hooks_lists_every_one(checkpoint, capsys):
    assert main(["hooks", checkpoint]) == 0
    lines = capsys.readouterr().out.splitlines()
    (model,) = load_models([checkpoint]).values()
    rows = model.describe_hooks()
    found = [[part.strip() for part in line.split("  ") if part.strip()] for line in lines[1:]]
    assert [tuple(row) for row in found if row] == rows


def test_verify_and_its_status(checkpoint, capsys, monkeypatch):
    assert main(["verify", checkpoint]) == 0
    assert "checks hold" in capsys.readouterr().out
    monkeypatch.setattr(
        "hooked_vit.loading.verify.verify", lambda place, **how: [Row("logits", 0.25, "exactly 0", False)]
    )
    assert main(["verify", checkpoint]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out
    assert "1 of 1 checks failed" in out


def test_every_analysis_can_be_typed():
    """Found in the source as registered; options do not collide with the command's own, and none is without type."""
    known = registered_analyses()
    assert {name: (source.module, source.summary, source.is_command) for name, source in in_source().items()} == {
        name: (entry.run.__module__, entry.summary, entry.is_command)
        for name, entry in known.items()
        if entry.run.__module__.startswith("analyses.")
    }
    for name, entry in known.items():
        names = [option.name for option in options_of(entry.run)]
        assert not {"model", "data", "n", "out", "skip_bad", "device", "debug"} & set(names), name


def test_names_of_models(tmp_path):
    assert short_name("zoo:vit") == "vit"
    assert short_name("google/vit-base-patch16-224") == "vit-base-patch16-224"
    assert short_name(f"{tmp_path}/mine/") == "mine"
    assert short_name(f"{tmp_path}/mine/runs/..") == "mine"
    assert list(short_names(["a/x", "b/x", "b/y"])) == ["a/x", "b/x", "y"]


def test_models_are_checked_before_any_is_loaded(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", None)
    with pytest.raises(UnsupportedModelError, match="no folder"):
        load_models([checkpoint, f"{tmp_path}/nothing"])
    assert check_model(checkpoint) == checkpoint


def test_an_empty_zoo_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    with pytest.raises(UnsupportedModelError, match="make zoo"):
        default_models()
    with pytest.raises(UnsupportedModelError, match="the zoo is empty"):
        check_model("zoo:vit")


# --- in which numbers, on which size, how many images


def test_numbers_size_and_images_to_fit_on_reach_models_and_analysis(asked, checkpoint, tmp_path):
    line = ["run", "what-was-asked", "--model", checkpoint, "--out", str(tmp_path), "--n", "2"]
    assert main([*line, "--dtype", "bfloat16", "--image-size", "96", "--n-fit", "3"]) == 0
    (call,) = asked
    (model,) = call["models"].values()
    assert (model.dtype, model.processor_size) == (torch.bfloat16, (96, 96))
    assert (call["data"].n, call["fit_data"].name, call["fit_data"].n) == (2, "scenes:train", 3)
    assert about_model(model) | {"dtype": "bfloat16", "device": "cpu", "image_size": [96, 96]} == about_model(model)
    assert main([*line, "--fit-data", "scenes:validation", "--n-fit", "4"]) == 0
    assert (asked[1]["fit_data"].name, asked[1]["fit_data"].n) == ("scenes:validation", 4)
    model = load_model(checkpoint, dtype=torch.float16, image_size=64)
    assert (model.dtype, model.processor_size) == (torch.float16, (64, 64))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("--dtype bfloat61", "no value is called 'bfloat61'; did you mean 'bfloat16'?"),
        ("--image-size 50", "patches of 16 pixels cover no side of 50; give a multiple"),
        ("--n-fit 3 --data imagefolder:{photos}", "--n-fit counts images to fit on: say which, with --fit-data"),
    ],
)
def test_numbers_and_sizes_there_are_not(more, says, asked, checkpoint, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        PIL.Image.new("RGB", (48, 48)).save(tmp_path / "photos" / name / "x.png")
    line = ["run", "what-was-asked", "--model", checkpoint, "--out", str(tmp_path / "out"), "--n", "2"]
    assert main([*line, *more.format(photos=tmp_path / "photos").split()]) == 2
    assert says in capsys.readouterr().err
    assert asked == []


def test_a_dtype_the_device_lacks_is_refused(monkeypatch):
    def lacks(*_, **__):
        raise RuntimeError('"LayerNorm" not implemented for Half. Long talk')

    monkeypatch.setattr(torch.nn.functional, "layer_norm", lacks)
    with pytest.raises(ValueError, match=r"the device 'cpu' does not compute in float16: .LayerNorm. not implemented"):
        check_device("cpu", "float16")
    assert (tuple(DTYPES), NUMBERS) == (computing.DTYPES, computing.NUMBERS)


def test_a_batch_size_can_be_found(asked, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hooked_vit.loading.placing.fitting_batch", lambda model: 6)
    line = ["run", "what-was-asked", "--model", checkpoint, "--out", str(tmp_path), "--n", "2"]
    assert main([*line, "--batch-size", "auto"]) == 0
    assert asked[0]["batch_size"] == 6
    assert "note: batches of 6 images" in capsys.readouterr().err
    assert any("Batches of 6 images" in note for note in Result.load(tmp_path).meta["notes"])
    assert main([*line, "--batch-size", "aut"]) == 2
    assert "a whole number from 1 to 2147483647, or auto, is needed, got 'aut'" in capsys.readouterr().err
