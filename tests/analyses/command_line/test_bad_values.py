"""Every option of every command against every value it cannot have, taken from the parsers themselves."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from analyses.command_line import commands, terminal
from analyses.command_line.cli import Parser, UsageError, build_parser, main
from analyses.command_line.meanings import MEANINGS, default_of, meaning, what_it_may_be
from analyses.command_line.options import add_options, options_of
from analyses.command_line.values import KINDS, Assigned, Choice, Number, Once, data, model, path, text
from analyses.data import loading
from analyses.probes.classifier_heads import HEADS
from analyses.questions.class_space.class_embedding.class_embedding import PARTS
from analyses.questions.class_space.perturbation_tests.perturbation_tests import ORDERS
from analyses.questions.cls_use.random_readouts.arms import ARMS, MODES, PLACEMENTS
from analyses.questions.decoding.decodability.decodability import CONTROLS
from analyses.running import places
from analyses.running.arguments import CHOICES, RANGES
from analyses.running.catalogue import in_source, registered_analyses
from analyses.running.files import check_writable, write_whole
from hooked_vit.tokens import ROLES
from interventions.catalogue.shuffling import AMONG
from interventions.dictionaries.layouts import LAYOUTS

ANALYSES = sorted(name for name, source in in_source().items() if source.is_command)
NO_NUMBERS = [
    *(
        "nan",
        "NaN",
        "-nan",
        "inf",
        "-inf",
        "Infinity",
        "1e300",
        "-1e300",
        "1e400",
        "",
        " ",
        "many",
        "0x10",
        "1_0",
        "１",
    ),
    *(str(10**30), "9" * 5000, "1,5", "1e", "None", "True", "\x1b", "\ud800"),
]
NO_WHOLE_NUMBERS = ["1.5", "1e3", "1.0", ".", "1."]
NO_TEXT = ["", " ", "\t", "a\x1b[2Jb", "a\nb", "a\x00b", "a\udcffb", "a\u202eb"]
NO_PATHS = [
    *(*NO_TEXT, "~nosuchuser", "~nosuchuser/x"),
    *("x" * 300, "/".join(["d" * 200] * 30), "ü" * 200, "/dev/zero"),
]


@cache
def parser_of(command: str, analysis: str | None) -> Parser:
    """The parser of one command, for `run` with the options of an analysis."""
    _, commands = build_parser()
    if analysis is not None:
        run = commands["run"]
        add_options(run, registered_analyses()[analysis].run, reserved={action.dest for action in run._actions})
    return commands[command]


def options(command: str, analysis: str | None = None) -> Iterator[argparse.Action]:
    """What can be given to a command, but switches."""
    yield from (action for action in parser_of(command, analysis)._actions if action.type is not None)


COMMANDS = [
    ("demo", None),
    ("reproduce", None),
    ("hooks", None),
    ("verify", None),
    *(("run", name) for name in ANALYSES),
]


def refused(command: str, analysis: str | None, action: argparse.Action, *values: str) -> str:
    """What the parser says; fails where it takes the value."""
    flag = action.option_strings[:1]
    words = [analysis] if analysis is not None else []
    words += [*flag, *values] if not values[0].startswith("-") or not flag else [f"{flag[0]}={values[0]}", *values[1:]]
    with pytest.raises(UsageError) as caught:
        pytest.fail(f"{words} is taken: {parser_of(command, analysis).parse_args(words)}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("command", "analysis"), COMMANDS)
def test_every_number_option_refuses_every_bad_number(command, analysis):
    seen = 0
    for action in options(command, analysis):
        if not isinstance(action.type, Number):
            assert action.type not in (int, float), action.dest
            continue
        numbers, kind = action.type.range, action.type.kind
        outside = [numbers.least if numbers.above else numbers.least - 1, numbers.most + 1, -(2**63), 2**63]
        written = [str(kind(value)) if kind is int else repr(float(value)) for value in outside]
        if kind is float:
            written[1] = repr(numbers.most * 2)
        for value in [*NO_NUMBERS, *(NO_WHOLE_NUMBERS if kind is int else ["."]), *written]:
            said = refused(command, analysis, action, value)
            assert "number" in said or "expected" in said, (action.dest, value, said)
        seen += 1
    assert seen or command in ("demo", "hooks", "verify")


@pytest.mark.parametrize("name", ANALYSES)
def test_python_is_held_to_the_same_numbers(name):
    """Refused before models or data are looked at: there are none here."""
    entry = registered_analyses()[name]
    for option in options_of(entry.run):
        if option.kind not in (int, float):
            continue
        for value in [float("nan"), float("inf"), 1e300, 2**70, "3", None, True]:
            if value is None and option.default is None:
                continue
            with pytest.raises((TypeError, ValueError), match=f"{option.name} is a"):
                entry.run({"m": object()}, None, **{option.name: (value,) if option.many else value})


def test_every_number_of_ours_has_a_range():
    for name, entry in registered_analyses().items():
        if entry.run.__module__.startswith("analyses.") and entry.is_command:
            numbers = {option.name for option in options_of(entry.run) if option.kind in (int, float)}
            assert numbers <= RANGES.keys(), name


@pytest.mark.parametrize(("command", "analysis"), COMMANDS)
def test_every_path_option_refuses_every_bad_path(command, analysis):
    seen = 0
    for action in options(command, analysis):
        schemes = {path: [""], model: [""], data: ["imagefolder:", "parquet:", "imagenet-s:"], text: []}
        kind, before = action.type, ""
        if isinstance(kind, Assigned):
            kind, before = kind.value, "name="
            refused(command, analysis, action, "=x")
            refused(command, analysis, action, "name=")
            refused(command, analysis, action, "name")
        for bad in NO_PATHS if kind in schemes else []:
            for scheme in schemes[kind]:
                refused(command, analysis, action, f"{before}{scheme}{bad}")
        if kind is text:
            for bad in NO_TEXT:
                refused(command, analysis, action, bad)
        seen += kind in schemes
    assert seen


@pytest.mark.parametrize(("command", "analysis"), COMMANDS)
def test_nothing_is_given_twice(command, analysis):
    good = {path: "x", model: "zoo:vit", data: "scenes:test", text: "x"}
    for action in options(command, analysis):
        if not action.option_strings:
            continue
        assert isinstance(action, Once), action.dest
        kind = action.type.value if isinstance(action.type, Assigned) else action.type
        good |= {kind: kind.known[0]} if isinstance(kind, Choice) else {}
        value = str(kind.range.most if kind.kind is int else 0.5) if isinstance(kind, Number) else good[kind]
        value = f"a={value}" if isinstance(action.type, Assigned) else value
        flag = action.option_strings[0]
        assert "given twice" in refused(command, analysis, action, value, flag, value)
        if action.nargs == "+":
            assert "given twice" in refused(command, analysis, action, value, value)


@pytest.mark.parametrize("command", build_parser()[1])
def test_every_option_says_what_it_does(command):
    for action in parser_of(command, None)._actions:
        assert len(action.help or "") > 4, action.dest


@pytest.mark.parametrize("name", ANALYSES)
def test_every_option_of_an_analysis_says_what_it_does_and_what_it_may_be(name):
    said = {action.dest: action for action in parser_of("run", name)._actions}
    for option in options_of(registered_analyses()[name].run):
        if f"option_{option.name}" not in said:
            assert option.name in said, "an option of the command"
            continue
        action, does = said[f"option_{option.name}"], meaning(option, name)
        assert does, f"no line of MEANINGS says what --{option.name} of {name} does"
        assert action.help.replace("%%", "%").startswith(does)
        assert what_it_may_be(option) in action.help
        assert what_it_may_be(option) or option.kind in (bool, str), option.name
        assert default_of(option) in action.help
        if option.choices and option.default is not None:
            assert {*(option.default if option.many else [option.default])} <= {*option.choices}, option.name


def test_nothing_is_said_of_options_there_are_not():
    known = {(o.name, name) for name in ANALYSES for o in options_of(registered_analyses()[name].run)}
    names = {name for name, _ in known}
    assert {told for told in MEANINGS if told.partition(":")[0] not in names} == set()
    assert {told for told in MEANINGS if ":" in told and tuple(told.split(":")) not in known} == set()


def test_what_can_be_chosen_is_what_is_there():
    """Known without torch to the command line, and to the code that runs."""
    assert CHOICES["among"] == AMONG
    assert CHOICES["controls"] == (*CONTROLS, "none")
    assert CHOICES["head"] == HEADS
    assert CHOICES["layout"] == tuple(LAYOUTS)
    assert CHOICES["modes"] == (*MODES, *ARMS, *PLACEMENTS)
    assert {*CHOICES["orders"]} == {*ORDERS, "lrp"}
    assert CHOICES["parts"] == tuple(PARTS)
    assert {name: what for name, (what, _) in loading._SCHEMES.items()} == KINDS
    assert CHOICES["tokens"] == CHOICES["probe_tokens"] == ROLES[:4]


def test_what_is_typed_wrong_is_answered_without_torch():
    """Each in under a second, and with the nearest name; options and values of an analysis that is not imported."""
    lines = {
        "rn": "did you mean 'run'?",
        "run cls-causalty": "did you mean 'cls-causality'?",
        "run cls-causality --fit-dat x --sedes 3": "there is no option --sedes; did you mean '--seeds'?",
        "run cls-causality --probe-data scenes:train --sedes 3": "did you mean '--seeds'?",
        "run lenses --tokens clss": "did you mean 'cls'?",
        "run restoration --probe-fit=claen": "did you mean 'clean'?",
        "run random-readouts --modes nul trained": "did you mean 'null'?",
        "run cls-causality --model zoo:vitt": "did you mean 'vit'?",
        "run cls-causality --model clip": "did you mean 'zoo:clip'?",
        "run cls-causality --data imagfolder:x": "did you mean 'imagefolder'?",
        "run cls-causality --n nan": "a whole number from 1",
        "features zoo:vit --dictionary x --layout saelen": "did you mean 'saelens'?",
        "reproduce standin": "did you mean 'stand-in'?",
        "hooks zoo:dinov": "did you mean 'dinov2'?",
    }
    code = (
        "import sys, time\nfrom analyses.command_line.cli import main\n"
        f"for line in {list(lines)}:\n    began = time.perf_counter()\n    assert main(line.split()) == 2, line\n"
        "    assert time.perf_counter() - began < 1, line\n"
        "assert not {'torch', 'pandas', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for says, told in zip(lines.values(), done.stderr.splitlines(), strict=True):
        assert says in told


# --- places to write


@pytest.mark.parametrize("bad", NO_PATHS)
def test_results_need_a_path_that_can_be_one(bad):
    with pytest.raises(ValueError, match="path|nobody|pipe"):
        check_writable(bad)


def test_pipes_are_neither_read_nor_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for command, analysis in COMMANDS:
        for action in options(command, analysis):
            if action.type in (path, model):
                assert "pipe" in refused(command, analysis, action, str(tmp_path / "pipe"))


def test_a_full_disk_is_said_before_and_after(tmp_path, monkeypatch):
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=rf"{tmp_path}/x could not be written: No space left.*MB are needed"):
        write_whole(tmp_path / "x", full)
    assert list(tmp_path.iterdir()) == []
    usage = places.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: usage._replace(free=1_500_000))
    with pytest.raises(OSError, match=rf"about 20.0 MB, and the disk of {tmp_path} has 1.5 MB left"):
        check_writable(tmp_path / "out")


# --- devices, typing errors, interruptions


@pytest.mark.parametrize("device", ["meta", "hpu", "nonsense", "cuda:99", "mps:7", "xla", "cpu:3", "vulkan", "-1", "0"])
def test_a_device_that_cannot_compute(device, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(terminal, "quiet", lambda: None)
    assert main(["run", "cls-causality", f"--device={device}", "--n", "5", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "cannot use the device" in said
    assert "there is cpu" in said
    assert len(said) < 300


def test_an_error_stands_below_a_progress_bar(capsys, monkeypatch):
    from tqdm import tqdm

    def fails(args: argparse.Namespace) -> int:
        for i in tqdm(range(10), desc="working", leave=False, mininterval=0, file=sys.stderr):
            time.sleep(0.001)
            if i == 3:
                raise ValueError("no more")
        return 0

    monkeypatch.setattr(commands, "models", fails)
    assert main(["models"]) == 2
    said = capsys.readouterr().err
    assert "working" in said
    assert said.endswith("\rerror: no more\n")
