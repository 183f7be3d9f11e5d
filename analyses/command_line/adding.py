"""What can be typed behind a command: arguments that several have, and those of the commands that take many."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from analyses.command_line.computing import DTYPES, add_computing
from analyses.command_line.parser import UsageError
from analyses.command_line.values import Assigned, Choice, Number, Once, data, model, path, processes_here, text
from analyses.running.arguments import AUTO, COUNT, SEED, Range
from hooked_vit.errors import nearest

DATA = "scenes:test"
MODEL = "zoo:NAME, a hub id or a local folder"


def add_model(to: argparse.ArgumentParser, more: str = "", several: bool = False) -> None:
    """MODEL, as the word behind the command or, as in `run`, behind --model; `settle_model` says which."""
    words, option, named = ("*", "+", "MODEL") if several else ("?", None, "MODEL")
    to.add_argument("model", metavar=named, nargs=words, type=model, help=f"{MODEL}{more}; or --model {named}")
    what = "the same, said as in `run`"
    to.add_argument("--model", dest="said_model", metavar="M", nargs=option, action=Once, type=model, help=what)


def settle_model(args: argparse.Namespace, prog: str) -> None:
    """One model, or several, whichever way they were said. Raises UsageError for none, and for both ways at once."""
    if "said_model" not in vars(args):
        return
    if args.model and args.said_model:
        raise UsageError("the model is said twice, as MODEL and behind --model; say it once")
    args.model = args.model or args.said_model
    if not args.model:
        raise UsageError(f"a model is needed: {prog} MODEL, or --model MODEL (see {prog} --help)")


def add_run_arguments(run: argparse.ArgumentParser) -> None:
    """What `run` takes for every analysis."""
    run.add_argument("analysis", metavar="ANALYSIS", help="which one; `run ANALYSIS --help` adds its own options")
    what = f"{MODEL}; several are compared (default: the zoo's label models)"
    run.add_argument("--model", metavar="M", nargs="+", action=Once, type=model, help=what)
    what = "scenes:SPLIT, hf:NAME:SPLIT, imagefolder:PATH, parquet:PATH or imagenet-s:PATH"
    run.add_argument("--data", metavar="D", default=DATA, action=Once, type=data, help=f"{what} (default: %(default)s)")
    what = "images, drawn at random; what has to be fitted is fitted on half of them where --fit-data names no others "
    add_number(run, "--n", "N", COUNT, f"{what}(default: all; 1000 scenes, and others to fit on)")
    what = "images to fit on, drawn from --fit-data (default: as many as --n; of scenes 2000)"
    add_number(run, "--n-fit", "N", COUNT, what)
    add_number(run, "--seed", "S", SEED, "seed of the draw (default: %(default)s)", default=0)
    add_out(run, "folder for report and numbers (default: out/ANALYSIS)")
    what = "images per forward pass, within which tokens are exchanged; auto: the fastest here, measured at the start"
    run.add_argument("--batch-size", metavar="B", action=Once, type=Number(COUNT, int, (AUTO,)), help=what)
    run.add_argument("--skip-bad", action="store_true", help="leave out unreadable images instead of stopping")
    _add_processes(run)
    add_computing(run)
    run.set_defaults(foretell=None)


def add_demo_arguments(demo: argparse.ArgumentParser) -> None:
    """What `demo` takes."""
    what = "a pretrained model and photographs, from the hub unless --model and --data name local ones; some minutes"
    demo.add_argument("--real", action="store_true", help=what)
    what = "with --real: a local folder or a hub id, in place of DINOv2-small"
    demo.add_argument("--model", metavar="M", action=Once, type=model, help=what)
    for flag, what in (
        ("--data", "with --real: images to measure on, as in `run --data`, in place of CIFAR-10's test images"),
        ("--fit-data", "with --real: images to fit on (default: half of --data)"),
    ):
        demo.add_argument(flag, metavar="D", action=Once, type=data, help=what)
    add_number(demo, "--n", "N", COUNT, "images to measure on, drawn at random (default: what takes minutes)")
    add_number(demo, "--n-fit", "N", COUNT, "images to fit on, drawn at random")
    add_computing(demo)
    add_out(demo, "folder for the report (default: out/demo, with --real out/real)")


def add_cache_arguments(kept: argparse.ArgumentParser) -> None:
    """What `cache` takes."""
    add_model(kept)
    what = "the images, as in `run --data` (default: %(default)s)"
    kept.add_argument("--data", metavar="D", default=DATA, action=Once, type=data, help=what)
    what = "folder to keep them in; the same call goes on where a killed one stopped"
    kept.add_argument("--to", metavar="FOLDER", action=Once, type=path, required=True, help=what)
    for flag, default, what in (
        ("--sites", ["resid_post"], "hooks of a block without hook_, and embedding (default: resid_post)"),
        ("--roles", [], "tokens: cls, patches, all, … (default: one vector of every kind of token)"),
    ):
        kept.add_argument(flag, metavar="NAME", nargs="+", action=Once, type=text, default=default, help=what)
    what = f"numbers they are kept in: {', '.join(DTYPES)} (default: those of --dtype, which `run` reads)"
    kept.add_argument("--cache-dtype", metavar="NAME", action=Once, type=Choice(DTYPES), help=what)
    layers = Number(Range(-10_000, 10_000), int)
    kept.add_argument("--layers", metavar="L", nargs="+", action=Once, type=layers, help="blocks (default: all)")
    add_number(kept, "--n", "N", COUNT, "images, drawn at random (default: all; 1000 scenes)")
    add_number(kept, "--seed", "S", SEED, "seed of the draws (default: %(default)s)", default=0)
    add_number(kept, "--batch-size", "B", COUNT, "images per forward pass (default: %(default)s)", default=64)
    add_number(kept, "--random-weights", "S", SEED, "of the control with random weights of this seed, in its place")
    kept.add_argument("--skip-bad", action="store_true", help="leave out unreadable images instead of stopping")
    _add_processes(kept)
    add_computing(kept)


def _add_processes(to: argparse.ArgumentParser) -> None:
    what = "processes of this machine that share the work; more machines: accelerate launch (hooked-vit docs scaling)"
    add_number(to, "--num-processes", "P", processes_here(), what)


def add_reproduce_arguments(again: argparse.ArgumentParser) -> None:
    """What `reproduce` takes."""
    again.add_argument("recipe", metavar="RECIPE", type=_recipe, help="which one, or a .toml file of your own")
    add_out(again, "folder for report and numbers (default: out/reproduce/RECIPE)")
    again.add_argument("--dry-run", action="store_true", help="say what would run and what is missing, and stop")
    for flag, kind, what in (
        ("--model=M", model, "take this checkpoint (zoo:NAME, a hub id or a local folder) for a model of the recipe"),
        ("--data=D", data, "take these images (as in `run --data`) for a data set of the recipe"),
    ):
        name, _, short = flag.partition("=")
        again.add_argument(name, metavar=f"NAME={short}", action=Once, default=[], type=Assigned(kind), help=what)
    add_number(again, "--n", "N", COUNT, "at most so many images of each data set")
    for flag, metavar, what in (
        ("--steps", "STEP", "only these steps"),
        ("--without", "NAME", "leave these models out"),
    ):
        again.add_argument(flag, metavar=metavar, nargs="+", action=Once, default=[], type=text, help=what)
    add_computing(again)


def add_number(to: argparse.ArgumentParser, flag: str, metavar: str, numbers: Range, what: str, **kw: Any) -> None:
    """An option that is a whole number."""
    to.add_argument(flag, metavar=metavar, action=Once, type=Number(numbers, int), help=what, **kw)


def add_page(to: argparse.ArgumentParser, default: str) -> None:
    """Where a page is written."""
    what = "the page: a file, whose .html may be left out, or a folder to put it in (default: %(default)s)"
    add_out(to, what, metavar="PAGE", default=default)


def add_out(to: argparse.ArgumentParser, what: str, metavar: str = "DIR", **kw: Any) -> None:
    """Where something is written."""
    to.add_argument("--out", metavar=metavar, action=Once, type=path, help=what, **kw)


def add_classes(to: argparse.ArgumentParser) -> None:
    """The classes of `prompts:MODEL`, where no data say them."""
    what = "the classes of prompts:MODEL, which come with the data elsewhere"
    to.add_argument("--classes", metavar="NAME", nargs="+", action=Once, type=text, help=what)


def _recipe(typed: str) -> str:
    """A recipe's name, or a path. Raises what `path` does, and for a name there is not, offering the nearest."""
    names = [file.stem for file in recipes()]
    if path(typed).endswith(".toml") or typed in names:
        return typed
    meant = nearest(typed, names) or "."
    raise argparse.ArgumentTypeError(
        f"there is no recipe {typed!r}{meant} There are {', '.join(names)}, or a .toml file"
    )


def recipes() -> list[Path]:
    """The files of the recipes that come with the package."""
    return sorted((Path(__file__).parents[1] / "reproductions" / "recipes").glob("*.toml"))
