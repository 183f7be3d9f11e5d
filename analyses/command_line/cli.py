"""The command line, `hooked-vit`: every command works at once, offline, on the built-in models and images.

Here is what can be typed; what it does is in `analyses.command_line.commands`, imported when it is asked for, because
printing help must not wait for torch.
"""

from __future__ import annotations

import _signal  # what is behind `signal`, which takes a while to import
import os
import sys


def _stopped(*_: object) -> None:
    sys.stderr.write("interrupted\n")
    sys.stderr.flush()
    os._exit(130)


_before = _signal.getsignal(_signal.SIGINT)
if _before is _signal.default_int_handler:  # until `main` can say it, the imports below being a tenth of a second
    _signal.signal(_signal.SIGINT, _stopped)

import argparse  # noqa: E402
import io  # noqa: E402
import tomllib  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from analyses.command_line.adding import (  # noqa: E402
    DATA,
    add_cache_arguments,
    add_classes,
    add_demo_arguments,
    add_model,
    add_number,
    add_out,
    add_page,
    add_reproduce_arguments,
    add_run_arguments,
    recipes,
    settle_model,
)
from analyses.command_line.computing import add_computing, add_device, add_image_size  # noqa: E402
from analyses.command_line.parser import Parser, UsageError, check_command, flags_of, refuse_strange  # noqa: E402
from analyses.command_line.values import Choice, Once, data, path, text  # noqa: E402
from analyses.running.arguments import CHOICES, COUNT  # noqa: E402
from analyses.running.text import visible  # noqa: E402
from hooked_vit import __version__  # noqa: E402

DEMO_ANALYSIS = "cls-causality"
DEMO_IMAGES = 640  # the demo has to end within three minutes on two cores
FIRST_STEPS = """first steps:
  hooked-vit demo                                       the main question, on built-in models and images
  hooked-vit demo --real                                the same of DINOv2-small and photographs, from the hub
  hooked-vit run cls-causality --model zoo:vit --n 200  one model, fewer images
  hooked-vit run cls-causality --model google/vit-base-patch16-224 --data imagefolder:./photos

A model is zoo:NAME, a hub id or a local folder. Data is scenes:SPLIT, hf:NAME:SPLIT, imagefolder:PATH, parquet:PATH
or imagenet-s:PATH. prompts:MODEL answers with the data's class names, each in "a photo of a {}.", as CLIP is used;
prompts:MODEL=SENTENCE|SENTENCE says it in other words. A run leaves report.html and its numbers (parquet, json) in the
output folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for a failed check, 2 for arguments that make no sense.

    >>> main(["run", "cls-causality", "--data", "holiday-photos"])  # doctest: +SKIP
    2

    What a user got wrong is one line on stderr (`--debug` shows the traceback). Anything else is a bug, and raises.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows no – gets something in its place
            stream.reconfigure(errors="backslashreplace")
    try:
        args = parse(argv)
        from analyses.command_line.dispatch import dispatch

        return dispatch(args, argv)
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
        return _say(f"error: {_sentence(error)}", 2)


def _sentence(error: Exception) -> str:
    """What an error says; of the system's own without its number, and with the file."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
    return str(error) or type(error).__name__


def _say(message: str, status: int) -> int:
    """One line, below whatever progress bar was being drawn."""
    if "tqdm" in sys.modules:
        from hooked_vit.loading.progress import close_bars

        close_bars()
    sys.stderr.write(visible(" ".join(message.split())) + "\n")
    return status


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command; those of `run` depend on the analysis it names.

    >>> parse(["demo", "--real"]).analysis
    'cls-causality'

    Raises UsageError, and LookupError for an analysis that does not exist.
    """
    parser, commands = build_parser()
    check_command(argv, commands, _commands() if argv[:1] != ["run"] else ())
    if argv[:1] == ["run"]:
        run = commands["run"]
        named = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else None
        if named is None or not {"-h", "--help"} & set(argv):  # what every analysis takes is checked before torch comes
            args, rest = parser.parse_known_args(argv)
            named = _check_options(args.analysis, run, rest)
        from analyses.command_line.options import add_options
        from analyses.running.catalogue import get_analysis

        entry = get_analysis(named)
        if not entry.is_command:
            raise UsageError(f"{entry.name} takes tensors, not data: call it from Python. {entry.summary}")
        run.description, run.epilog = entry.summary, None
        add_options(run, entry.run, reserved={action.dest for action in run._actions})
    args, strange = parser.parse_known_args(argv)
    refuse_strange(commands[argv[0]] if argv and argv[0] in commands else parser, strange)
    settle_model(args, f"{parser.prog} {argv[0]}" if argv else parser.prog)
    args.argv = list(argv)
    return args


def _check_options(named: str, run: argparse.ArgumentParser, rest: Sequence[str]) -> str:
    """The analysis, once what the command left is known to be options it has. Raises what `check_typed` does."""
    from analyses.command_line.options import check_typed
    from analyses.running.catalogue import as_key, in_source

    if (source := in_source().get(as_key(named))) is not None:
        check_typed(flags_of(run), source, rest)
    return named


def _commands() -> dict[str, str]:
    """The analyses that are run on a data set, and what each asks."""
    from analyses.running.catalogue import in_source

    return {name: source.summary for name, source in in_source().items() if source.is_command}


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The whole parser, and those of the commands by name."""
    plain = argparse.RawDescriptionHelpFormatter
    about = "Vision transformers as one graph of hooks: see what they contain, change it, learn what they use."
    parser = Parser(prog="hooked-vit", description=about, epilog=FIRST_STEPS, formatter_class=plain)
    parser.add_argument("--version", action="version", version=f"hooked-vit {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, says: str, **kw: Any) -> argparse.ArgumentParser:
        sentence = f"{says[0].upper()}{says[1:]}."
        sub = commands.add_parser(name, help=says, description=sentence, formatter_class=plain, **kw)
        sub.set_defaults(command={"list": "list_results"}.get(name, name))
        sub.add_argument("--debug", action="store_true", help="show where an error came from")
        return sub

    demo = command("demo", f"run {DEMO_ANALYSIS} on the built-in models and images, or with --real on a pretrained one")
    add_demo_arguments(demo)
    demo.set_defaults(analysis=DEMO_ANALYSIS, built_in=DEMO_IMAGES, seed=0, seeds=None, batch_size=None)
    demo.set_defaults(num_processes=None, skip_bad=False, foretell=None)

    run = command("run", "run an analysis on models and data, and write a report", epilog=_analyses_listed())
    add_run_arguments(run)

    again = command("reproduce", "run a published experiment, and put its values beside ours", epilog=_recipes_listed())
    add_reproduce_arguments(again)

    look = command("explore", "write a page on which a reader explores what a model attends to in an image")
    add_model(look, "; two are shown side by side", several=True)
    what = "one or two image files; with two, CLS of one is put in the other's place (default: two scenes)"
    look.add_argument("--image", metavar="FILE", nargs="+", action=Once, type=path, help=what)
    add_page(look, "out/explorer.html")
    what = "what could be seen, in words, for models with a text tower: logits, lens and patch map of these texts"
    look.add_argument("--text", metavar="TEXT", nargs="+", action=Once, type=text, help=what)
    what = "change every patch alone at several layers too (default: where that is quickly done)"
    add_classes(look)
    add_computing(look)
    look.add_argument("--patches", action=argparse.BooleanOptionalAction, default=None, help=what)

    saved = command("list", "list the results saved in a folder and those in it")
    saved.add_argument("folder", metavar="FOLDER", nargs="?", type=path, default="out", help="default: %(default)s")
    page = command("report", "write one page of several saved results, with what a methods section says of each")
    page.add_argument("folder", metavar="FOLDER", nargs="+", type=path, help="of a result, or of several")
    add_page(page, "out/report.html")
    drawn = command("figure", "save the figure of a saved result as pdf, svg or png (the export extra)")
    drawn.add_argument("folder", metavar="FOLDER", type=path, help="of a result")
    what = "paper is as wide as the text of a page, column half of it (default: as on a screen)"
    drawn.add_argument("--size", action=Once, choices=("paper", "column"), default=None, help=what)
    add_out(
        drawn, "the file, of the kind its name ends in (default: %(default)s)", metavar="FILE", default="figure.pdf"
    )
    shown = command("features", "write a page per feature of a sparse dictionary: the images in which it is largest")
    add_model(shown)
    what = "folder that SAELens or ViT-Prisma saved the dictionary in"
    shown.add_argument("--dictionary", metavar="FOLDER", action=Once, type=path, required=True, help=what)
    layouts = CHOICES["layout"]
    what = f"the tool that saved it: {', '.join(layouts)} (default: %(default)s)"
    shown.add_argument("--layout", metavar="NAME", action=Once, type=Choice(layouts), default="saelens", help=what)
    what = "the images, as in `run --data` (default: %(default)s)"
    shown.add_argument("--data", metavar="D", default=DATA, action=Once, type=data, help=what)
    add_number(shown, "--n", "N", COUNT, "images, drawn at random (default: all; 1000 scenes)")
    what = "folders of `hooked-vit cache` to read from, where the model would be run (default: none)"
    shown.add_argument("--activations", metavar="PATH", action=Once, nargs="+", type=path, default=None, help=what)
    add_computing(shown)
    add_out(shown, "folder for the pages (default: %(default)s)", default="out/features")

    told = command("docs", "list the pages of the documentation, or print one")
    told.add_argument("page", metavar="PAGE", nargs="?", type=text, help="its name (default: all are listed)")
    kept = command("cache", "keep activations of a model over images, which `run --activations FOLDER` reads")
    add_cache_arguments(kept)
    grid = command("grid", "run models × analyses × seeds of a file as jobs, on this machine or by Slurm")
    grid.add_argument("grid", metavar="GRID.toml", type=path, help="the file; `hooked-vit docs scaling` has an example")
    what = "where jobs run: on this machine, by Slurm (which is not waited for), or in turn here (default: %(default)s)"
    grid.add_argument("--executor", action=Once, choices=("local", "slurm", "debug"), default="local", help=what)
    add_number(grid, "--at-once", "J", COUNT, "local jobs side by side (default: %(default)s)", default=1)
    add_out(grid, "folder for the results (default: %(default)s)", default="out/grid")

    command("models", "list the built-in models and the supported transformers classes")
    command("interventions", "list the named interventions")
    hooks = command("hooks", "list every hook point of a model with its shape and meaning")
    add_model(hooks, ", of which no weight is read")
    add_classes(hooks)
    add_image_size(hooks)
    check = command("verify", "compare a model with the original in transformers, and test every hook point")
    add_model(check)
    add_device(check)
    add_image_size(check)
    return parser, commands.choices


def _recipes_listed() -> str:
    return "recipes:\n" + "\n".join(f"  {file.stem:<20} {_title(file)}" for file in recipes())


def _title(recipe: Path) -> str:
    return str(tomllib.loads(recipe.read_text(encoding="utf-8"))["title"])


def _analyses_listed() -> str:
    return "analyses:\n" + "\n".join(f"  {name:<20} {says}" for name, says in sorted(_commands().items()))


if _before is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _before)

if __name__ == "__main__":
    sys.exit(main())
