"""Whatever is typed, sent or damaged: a sentence or the right thing, never a traceback, and never silence.

A fixed budget: every test has its number of examples, the same ones in every run, and a minute of one core for all.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tomllib
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyses.command_line import terminal
from analyses.command_line.cli import main
from analyses.reproductions import recipe as recipes
from analyses.reproductions.recipe import Recipe, load_recipe
from analyses.reproductions.tables import RecipeError
from analyses.running import results
from analyses.running.results import Result
from hooked_vit import HookedViT
from tests.analyses.command_line.test_bad_values import COMMANDS, NO_NUMBERS, NO_PATHS, options

EXAMPLES = {"lines": 100, "recipes": 250, "results": 80, "configs": 60, "tensors": 60}


def budget(what: str) -> Callable:
    """So many examples, always the same ones, none kept on disk."""
    slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=EXAMPLES[what], derandomize=True, database=None, deadline=None, suppress_health_check=slow
    )


def check_sentence(error: BaseException) -> None:
    """An error of ours, or of what we stand on, that says something; a bare key or index says nothing."""
    assert isinstance(error, (ValueError, OSError, TypeError, LookupError)), repr(error)
    assert type(error) not in (KeyError, IndexError), repr(error)
    assert len(str(error).split()) >= 3, repr(error)
    if isinstance(error, TypeError):  # Python's own says nothing of the rule that was broken
        last = traceback.extract_tb(error.__traceback__)[-1]
        assert (last.line or "").startswith("raise "), "".join(traceback.format_exception(error))


# --- command lines


@cache
def words() -> st.SearchStrategy[list[str]]:
    """A command, and options of it or of others with values good and bad."""
    every = [COMMANDS[i] for i in range(0, len(COMMANDS), 3)]
    flags = sorted({flag for command in every for action in options(*command) for flag in action.option_strings})
    good = ["zoo:vit", "zoo:beit", "scenes:test", "3", "0.5", "cls", "ridge", "stand-in", "m=zoo:vit", "cpu", "auto"]
    bad = [*NO_NUMBERS, *NO_PATHS, "zoo:vitt", "hf:", "a/b", "parquet:/dev/null", "meta", "=x", "vit=", "-", "--", "-x"]
    pair = st.tuples(st.sampled_from(flags), st.sampled_from([*good, *good, *bad])).map(list)
    first = st.sampled_from([[c, a] if a else [c] for c, a in COMMANDS] + [["run"], [], ["models"], ["runn"]])
    loose = st.one_of(st.sampled_from([*good, *bad]).map(lambda x: [x]), st.text(max_size=8).map(lambda x: [x]))
    rest = st.lists(st.one_of(pair, pair, loose), max_size=4)
    return st.tuples(first, rest).map(lambda parts: [*parts[0], *(word for group in parts[1] for word in group)])


@pytest.fixture(scope="module")
def nothing_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A command line that makes sense ends where the work would begin."""

    def stop(*args: Any, **kw: Any) -> None:
        raise ValueError("the work would begin here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terminal, "quiet", lambda: None)
        patch.setattr("analyses.running.models.load_models", stop)
        patch.setattr("analyses.reproductions.run.run_recipe", stop)
        patch.setattr("hooked_vit.loading.verify.verify", stop)
        patch.setattr(torch, "set_num_threads", lambda n: None)
        patch.chdir(tmp_path_factory.mktemp("here"))
        yield


@budget("lines")
@given(data=st.data())
def test_command_lines(data: st.DataObject, nothing_runs: None) -> None:
    argv = data.draw(words())
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(argv)
    said = err.getvalue()
    assert status in (0, 2), said
    if status == 2 and "missing: " not in out.getvalue():
        last = said.rpartition("\r")[2]  # behind a progress bar
        assert last.startswith("error: "), said
        assert last.count("\n") == 1
    assert not {"\x1b", "\x00", "\x07"} & set(said.replace("\x1b[A", "") + out.getvalue())
    assert list(Path().iterdir()) == []


# --- recipes


STAND_IN = (Path(recipes.__file__).parent / "recipes" / "stand-in.toml").read_text(encoding="utf-8")
LINES = STAND_IN.splitlines()
TOML = st.sampled_from(
    [
        *(
            "0",
            "-1",
            "1.5",
            "nan",
            "inf",
            "true",
            '""',
            '"x"',
            '"../../x"',
            "[]",
            "{}",
            "[1, [2]]",
            "{ a = 1 }",
            "1e400",
        ),
        *(
            '"@pd.io"',
            '"layer == layer.max()"',
            '"measure == 1 and"',
            '"\\u0000"',
            "1979-05-27",
            "99999999999999999999",
        ),
        *('"cls-causality"', '"random-readouts"', '"activation-patching"', "[[[[1]]]]", '["vit", "vit"]', "'''x\ny'''"),
    ]
)


@st.composite
def damaged_recipe(draw: st.DrawFn) -> str:
    """Our stand-in with a few entries replaced, left out, doubled, renamed or cut."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        key = lines[at].partition(" = ")[0]
        lines[at] = draw(
            st.sampled_from(
                ["", f"{lines[at]}\n{lines[at]}", lines[at][: len(lines[at]) // 2], f"{key}x = 1", f"[[{key}]]"]
            )
            | TOML.map(lambda value, key=key: f"{key} = {value}")
        )
    return "\n".join(lines)


@budget("recipes")
@given(text=damaged_recipe() | st.text(max_size=40))
def test_recipes(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "mine.toml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        recipe = load_recipe(str(file))
    except RecipeError as error:
        check_sentence(error)
        return
    assert isinstance(recipe, Recipe)
    told = tomllib.loads(text)
    assert [step.name for step in recipe.steps] == [step["name"] for step in told["steps"]]
    assert recipe.changed(n=3).data


# --- result files


@st.composite
def damage(draw: st.DrawFn) -> tuple[int, str, bytes]:
    """Where (in thousandths of a file), what is done there, and with which bytes."""
    kinds = st.sampled_from(["cut", "put", "insert"])
    return draw(st.integers(0, 999)), draw(kinds), draw(st.binary(min_size=1, max_size=6))


def damaged(whole: bytes, how: tuple[int, str, bytes]) -> bytes:
    """The bytes after it."""
    place, kind, put = how
    at = len(whole) * place // 1000
    if kind == "cut":
        return whole[:at]
    return whole[:at] + put + whole[at + (len(put) if kind == "put" else 0) :]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result on disk."""
    frame = pd.DataFrame({"model": ["a", "b"] * 20, "layer": pd.array([0, None] * 20, "Int64"), "value": [0.5] * 40})
    return Result(frame, {"analysis": "cls-causality", "seeds": [0], "n": 3}).save(tmp_path_factory.mktemp("saved"))


@budget("results")
@given(name=st.sampled_from(["result.json", "result.parquet"]), how=damage())
def test_result_files(name: str, how: tuple[int, str, bytes], saved: Path) -> None:
    folder = saved.parent / "damaged"
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    (folder / name).write_bytes(damaged((saved / name).read_bytes(), how))
    try:
        again = Result.load(folder)
    except Exception as error:
        check_sentence(error)
        return
    if results.CHECKSUMS not in again.meta and results.CHECKSUMS in json.loads((folder / "result.json").read_text()):
        # a file that has lost its checksums is one of an earlier version
        pd.testing.assert_frame_equal(again.frame, Result.load(saved).frame)
        assert again.meta == Result.load(saved).meta


# --- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT, saved."""
    config = transformers.ViTConfig(
        **{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
        **{"image_size": 8, "patch_size": 4, "num_labels": 2},
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


JSON = st.sampled_from(
    [None, True, -1, 0, 1.5, 3, "x", "", [], [1], {}, {"a": 1}, float("nan"), float("inf"), "gelu", "float32", [4, 4]]
)


@budget("configs")
@given(data=st.data())
def test_configs(data: st.DataObject, checkpoint: Path) -> None:
    told = json.loads((checkpoint / "config.json").read_text())
    for key in data.draw(st.lists(st.sampled_from(sorted(told)), min_size=1, max_size=2)):
        told[key] = data.draw(JSON)
    folder = checkpoint.parent / "mutated"
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(told))
    try:
        model = HookedViT.from_pretrained(folder)
    except Exception as error:
        check_sentence(error)
        return
    assert torch.isfinite(model(torch.zeros(1, 3, 8, 8))).all()


TINY = {"embed_dim": 8, "depth": 1, "num_heads": 2, "img_size": 32, "num_classes": 2}


@cache
def weights() -> dict[str, torch.Tensor]:
    """A state dict of a tiny ViT under timm's names."""
    zeros = {
        **{"cls_token": (1, 1, 8), "pos_embed": (1, 5, 8), "patch_embed.proj.weight": (8, 3, 16, 16)},
        **{"patch_embed.proj.bias": (8,), "norm.weight": (8,), "norm.bias": (8,), "head.weight": (2, 8)},
        **{"head.bias": (2,), "blocks.0.attn.qkv.weight": (24, 8), "blocks.0.attn.qkv.bias": (24,)},
        **{"blocks.0.attn.proj.weight": (8, 8), "blocks.0.attn.proj.bias": (8,), "blocks.0.norm1.weight": (8,)},
        **{"blocks.0.norm1.bias": (8,), "blocks.0.norm2.weight": (8,), "blocks.0.norm2.bias": (8,)},
        **{"blocks.0.mlp.fc1.weight": (32, 8), "blocks.0.mlp.fc1.bias": (32,), "blocks.0.mlp.fc2.weight": (8, 32)},
        **{"blocks.0.mlp.fc2.bias": (8,)},
    }
    return {key: torch.randn(shape, generator=torch.Generator().manual_seed(0)) for key, shape in zeros.items()}


CHANGES: dict[str, Callable[[str, torch.Tensor], dict[Any, Any]]] = {
    "left out": lambda key, tensor: {},
    "empty": lambda key, tensor: {key: tensor[:0]},
    "a dimension more": lambda key, tensor: {key: tensor.unsqueeze(0)},
    "another name": lambda key, tensor: {f"module.{key}": tensor},
    "not a number": lambda key, tensor: {key: tensor * float("nan")},
}


@budget("tensors")
@given(data=st.data())
def test_state_dicts(data: st.DataObject) -> None:
    tensors: dict[Any, Any] = dict(weights())
    for key in data.draw(st.lists(st.sampled_from(sorted(tensors)), min_size=1, max_size=2, unique=True)):
        tensors |= CHANGES[data.draw(st.sampled_from(sorted(CHANGES)))](key, tensors.pop(key))
    try:
        HookedViT.from_state_dict(tensors, "vit_tiny_patch16_224", **TINY)
    except Exception as error:
        check_sentence(error)


def test_the_state_dict_that_is_damaged_was_one() -> None:
    assert HookedViT.from_state_dict(weights(), "vit_tiny_patch16_224", **TINY).cfg.n_layers == 1
