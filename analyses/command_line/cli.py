"""The command line, `hooked-vit`: every command works at once, offline, on the built-in models and images.

Here is what can be typed; what it does is in `analyses.command_line.commands`, imported when it is asked for, because
printing help must not wait for torch.
"""

from __future__ import annotations

import argparse
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEMO_ANALYSIS = "cls-causality"
DEMO_IMAGES = 640  # the demo has to end within three minutes on two cores
DATA = "scenes:test"
FIRST_STEPS = """first steps:
  hooked-vit demo                                       the main question, on built-in models and images
  hooked-vit run cls-causality --model zoo:vit --n 200  one model, fewer images
  hooked-vit run cls-causality --model google/vit-base-patch16-224 --data imagefolder:./photos

A model is zoo:NAME, a hub id or a local folder. Data is scenes:SPLIT, hf:NAME:SPLIT, imagefolder:PATH, parquet:PATH
or imagenet-s:PATH. A run leaves report.html and its numbers (parquet, json) in the output folder."""


class UsageError(Exception):
    """Arguments that no command has."""


class Parser(argparse.ArgumentParser):
    """argparse, with an error of one line."""

    def error(self, message: str) -> Any:
        """Raise, instead of printing the usage and leaving."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for a failed check, 2 for arguments that make no sense.

    >>> main(["run", "cls-causality", "--data", "holiday-photos"])  # doctest: +SKIP
    2

    What a user got wrong is one line on stderr (`--debug` shows the traceback). Anything else is a bug, and raises.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = parse(argv)
        from analyses.command_line import commands

        return getattr(commands, args.command)(args)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:  # hooked-vit hooks zoo:vit | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UsageError, ValueError, LookupError, OSError) as error:
        # our refusals are sentences; a bare key or index is a bug, and its traceback is what we need
        if "--debug" in argv or type(error) in (KeyError, IndexError):
            raise
        return _say(f"error: {error}", 2)


def _say(message: str, status: int) -> int:
    sys.stderr.write(" ".join(message.split()) + "\n")
    return status


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command; those of `run` depend on the analysis it names.

    >>> parse(["demo"]).out
    'out/demo'

    Raises UsageError, and LookupError for an analysis that does not exist.
    """
    parser, run = build_parser()
    if argv[:1] == ["run"]:
        named = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else None
        named = named or parser.parse_known_args(argv)[0].analysis
        from analyses.command_line.options import add_options
        from analyses.running.catalogue import get_analysis

        entry = get_analysis(named)
        if not entry.is_command:
            raise UsageError(f"{entry.name} takes tensors, not data: call it from Python. {entry.summary}")
        run.description, run.epilog = entry.summary, None
        add_options(run, entry.run, reserved={action.dest for action in run._actions})
    args = parser.parse_args(argv)
    args.argv = list(argv)
    return args


def build_parser() -> tuple[Parser, argparse.ArgumentParser]:
    """The whole parser, and the part of it that belongs to `run`."""
    plain = argparse.RawDescriptionHelpFormatter
    about = "Vision transformers as one graph of hooks: see what they contain, change it, learn what they use."
    parser = Parser(prog="hooked-vit", description=about, epilog=FIRST_STEPS, formatter_class=plain)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, says: str, **kw: Any) -> argparse.ArgumentParser:
        sentence = f"{says[0].upper()}{says[1:]}."
        sub = commands.add_parser(name, help=says, description=sentence, formatter_class=plain, **kw)
        sub.set_defaults(command=name)
        sub.add_argument("--debug", action="store_true", help="show where an error came from")
        return sub

    demo = command("demo", f"run {DEMO_ANALYSIS} on the built-in models and images")
    demo.add_argument("--out", metavar="DIR", default="out/demo", help="folder for the report (default: %(default)s)")
    demo.set_defaults(command="run", analysis=DEMO_ANALYSIS, model=None, data=DATA, n=DEMO_IMAGES, seed=0)
    demo.set_defaults(batch_size=None, num_processes=None, skip_bad=False, device="cpu")

    run = command("run", "run an analysis on models and data, and write a report", epilog=_analyses_listed())
    _add_run_arguments(run)

    again = command("reproduce", "run a published experiment, and put its values beside ours", epilog=_recipes_listed())
    _add_reproduce_arguments(again)

    look = command("explore", "write a page on which a reader explores what a model attends to in an image")
    what = "zoo:NAME, a hub id or a local folder; two are shown side by side"
    look.add_argument("model", metavar="MODEL", nargs="+", help=what)
    what = "one or two image files; with two, CLS of one is put in the other's place (default: two scenes)"
    look.add_argument("--image", metavar="FILE", nargs="+", action="extend", help=what)
    look.add_argument("--out", metavar="FILE", default="out/explorer.html", help="the page (default: %(default)s)")
    what = "zero every patch at several layers too (default: where that is quickly done)"
    look.add_argument("--patches", action=argparse.BooleanOptionalAction, default=None, help=what)

    command("models", "list the built-in models and the supported transformers classes")
    command("interventions", "list the named interventions")
    hooks = command("hooks", "list every hook point of a model with its shape and meaning")
    hooks.add_argument("model", metavar="MODEL", help="zoo:NAME, a hub id or a local folder; no weight is read")
    check = command("verify", "compare a model with the original in transformers, and test every hook point")
    check.add_argument("model", metavar="MODEL", help="zoo:NAME, a hub id or a local folder")
    return parser, run


def _add_run_arguments(run: argparse.ArgumentParser) -> None:
    run.add_argument("analysis", metavar="ANALYSIS", help="which one; `run ANALYSIS --help` adds its own options")
    what, models = "zoo:NAME, a hub id or a local folder", "several are compared (default: the zoo's label models)"
    run.add_argument("--model", metavar="M", nargs="+", action="extend", help=f"{what}; {models}")
    what = "scenes:SPLIT, hf:NAME:SPLIT, imagefolder:PATH, parquet:PATH or imagenet-s:PATH"
    run.add_argument("--data", metavar="D", default=DATA, help=f"{what} (default: %(default)s)")
    run.add_argument("--n", metavar="N", type=int, help="images, drawn at random (default: all; 1000 scenes)")
    run.add_argument("--seed", metavar="S", type=int, default=0, help="seed of the draw (default: %(default)s)")
    run.add_argument("--out", metavar="DIR", help="folder for report and numbers (default: out/ANALYSIS)")
    run.add_argument("--batch-size", metavar="B", type=int, help="images per forward pass")
    run.add_argument("--skip-bad", action="store_true", help="leave out unreadable images instead of stopping")
    processes = "processes, where the analysis splits its work; otherwise CPU threads for torch"
    run.add_argument("--num-processes", metavar="P", type=int, help=processes)
    run.add_argument("--device", default="cpu", help="where the models run, such as cuda (default: %(default)s)")


def _add_reproduce_arguments(again: argparse.ArgumentParser) -> None:
    again.add_argument("recipe", metavar="RECIPE", help="which one, or a .toml file of your own")
    again.add_argument("--out", metavar="DIR", help="folder for report and numbers (default: out/reproduce/RECIPE)")
    again.add_argument("--dry-run", action="store_true", help="say what would run and what is missing, and stop")
    what = "take this checkpoint (zoo:NAME, a hub id or a local folder) for a model of the recipe"
    again.add_argument("--model", metavar="NAME=M", action="append", default=[], help=what)
    what = "take these images (as in `run --data`) for a data set of the recipe"
    again.add_argument("--data", metavar="NAME=D", action="append", default=[], help=what)
    again.add_argument("--n", metavar="N", type=int, help="at most so many images of each data set")
    again.add_argument("--steps", metavar="STEP", nargs="+", default=[], help="only these steps")
    again.add_argument("--without", metavar="NAME", nargs="+", default=[], help="leave these models out")
    again.add_argument("--device", default="cpu", help="where the models run, such as cuda (default: %(default)s)")


def _recipes_listed() -> str:
    folder = Path(__file__).parents[1] / "reproductions"
    return "recipes:\n" + "\n".join(f"  {file.stem:<20} {_title(file)}" for file in sorted(folder.glob("*.toml")))


def _title(recipe: Path) -> str:
    return str(tomllib.loads(recipe.read_text(encoding="utf-8"))["title"])


def _analyses_listed() -> str:
    from analyses.running.catalogue import in_source

    commands = {name: source.summary for name, source in in_source().items() if source.is_command}
    return "analyses:\n" + "\n".join(f"  {name:<20} {says}" for name, says in sorted(commands.items()))


if __name__ == "__main__":
    sys.exit(main())
