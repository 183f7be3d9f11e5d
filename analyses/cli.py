"""The command line, `hooked-vit`: every command works at once, offline, on the built-in models and images.

Nothing heavy is imported before it is needed: printing help must not wait for torch.
"""

from __future__ import annotations

import argparse
import ast
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from analyses.registry import Analysis

DEMO_ANALYSIS = "cls-causality"
DEMO_IMAGES = 1000  # the demo has to end within three minutes on two cores
DATA = "scenes:test"
FIRST_EXAMPLE = """first steps:
  hooked-vit demo                                       the main analysis on the built-in models and images
  hooked-vit run cls-causality --model zoo:vit --n 200  one model, fewer images
  hooked-vit run cls-causality --model google/vit-base-patch16-224 --data imagefolder:./photos

A model is zoo:NAME, a hub id or a local folder. Data is scenes:SPLIT, hf:NAME:SPLIT, imagefolder:PATH or
parquet:PATH. A run leaves report.html and its numbers (parquet, json) in the output folder."""


class UsageError(Exception):
    """Arguments that mean nothing to the parser."""


class Parser(argparse.ArgumentParser):
    """argparse, with an error of one line."""

    def error(self, message: str) -> Any:
        """Raise instead of printing a page."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for a failed check, 2 for arguments that make no sense.

    >>> main(["run", "--n", "many"])
    2

    Errors of the user are one line on stderr; `--debug` adds where they came from. Anything else is a bug and raises.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = parse(argv)
        return args.command(args)
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # hooked-vit hooks zoo:vit | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UsageError, ValueError, LookupError, OSError) as error:
        if "--debug" in argv or not _is_users(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _is_users(error: Exception) -> bool:
    """Refusals are sentences; a bare key or index is a bug, and its traceback is what we need."""
    return " " in str(error)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command; those of `run` depend on the analysis it names.

    Raises UsageError, and LookupError for an unknown analysis.
    """
    parser, run = build_parser()
    named = argv[1] if argv[:1] == ["run"] and len(argv) > 1 and not argv[1].startswith("-") else None
    if named is None:
        args, _ = parser.parse_known_args(argv)
        named = getattr(args, "analysis", None)
    if named is not None:
        from analyses.options import add_options
        from analyses.registry import get_analysis

        entry = get_analysis(named)
        run.prog = f"{run.prog} {entry.name}"
        run.description, run.epilog = entry.summary, None
        add_options(run, entry.run, reserved={action.dest for action in run._actions})
    args = parser.parse_args(argv)
    args.argv = list(argv)
    return args


def build_parser() -> tuple[Parser, argparse.ArgumentParser]:
    """The parser, and its part for `run`."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="hooked-vit", formatter_class=plain, epilog=FIRST_EXAMPLE,
        description="Vision transformers as one graph of hooks: what they contain, and what they use.",
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, function: Callable, says: str, **kw: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=says, description=f"{says[0].upper()}{says[1:]}.", formatter_class=plain, **kw)
        sub.set_defaults(command=function)
        sub.add_argument("--debug", action="store_true", help="show where an error came from")
        return sub

    demo = command("demo", _demo, f"run {DEMO_ANALYSIS} on the built-in models and images")
    demo.add_argument("--out", metavar="DIR", default="out/demo", help="folder for the report (default: %(default)s)")
    demo.set_defaults(
        analysis=None, model=None, data=DATA, n=DEMO_IMAGES, seed=0, batch_size=None, skip_bad=False, num_processes=None,
        device="cpu",
    )  # fmt: skip

    run = command("run", _run, "run an analysis on models and data, and write a report", epilog=_AnalysisList())
    run.add_argument("analysis", metavar="ANALYSIS", help="which one; `run ANALYSIS --help` lists its own options")
    run.add_argument(
        "--model", metavar="M", nargs="+", action="extend",
        help="zoo:NAME, a hub id or a local folder; several are compared (default: the zoo's label models)",
    )  # fmt: skip
    run.add_argument(
        "--data", metavar="D", default=DATA,
        help="scenes:SPLIT, hf:NAME:SPLIT, imagefolder:PATH or parquet:PATH (default: %(default)s)",
    )  # fmt: skip
    run.add_argument("--n", metavar="N", type=int, help="images, drawn at random (default: all; 1000 scenes)")
    run.add_argument("--seed", metavar="S", type=int, default=0, help="of every random draw (default: %(default)s)")
    run.add_argument("--out", metavar="DIR", help="folder for report and numbers (default: out/ANALYSIS)")
    run.add_argument("--batch-size", metavar="B", type=int, help="images per forward pass")
    run.add_argument("--skip-bad", action="store_true", help="leave out unreadable images instead of stopping")
    run.add_argument(
        "--num-processes", metavar="P", type=int,
        help="processes, where the analysis splits its work; otherwise the number of CPU threads torch may use",
    )  # fmt: skip
    run.add_argument("--device", default="cpu", help="where models run, such as cuda (default: %(default)s)")

    command("models", _models, "list the built-in models and the supported transformers classes")
    command("interventions", _interventions, "list the named interventions")
    hooks = command("hooks", _hooks, "list every hook point of a model with its shape and meaning")
    hooks.add_argument("model", metavar="MODEL", help="zoo:NAME, a hub id or a local folder; only its config is read")
    check = command("verify", _verify, "compare a model with the original in transformers, and test every hook point")
    check.add_argument("model", metavar="MODEL", help="zoo:NAME, a hub id or a local folder")
    return parser, run


class _AnalysisList:
    """The epilog of `run --help`, read from the source files: importing the analyses would import torch."""

    def __mod__(self, _: Any) -> str:  # argparse formats what it prints
        return str(self)

    def __str__(self) -> str:
        return "analyses:\n" + "".join(f"  {name:<20} {says}\n" for name, says in sorted(self._found()))

    def __contains__(self, text: str) -> bool:
        return text in str(self)

    def _found(self) -> Iterator[tuple[str, str]]:
        for path in Path(__file__).parent.glob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef) and any(_names_analysis(d) for d in node.decorator_list):
                    yield node.name.replace("_", "-"), (ast.get_docstring(node) or "").split("\n", 1)[0]
