"""What the commands do: everything a user could have got wrong is checked before anything takes long."""

from __future__ import annotations

import argparse
import inspect
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from analyses.command_line import terminal
from analyses.command_line.adding import DATA
from analyses.command_line.caching import cache
from analyses.command_line.computing import computing
from analyses.command_line.grids import grid
from analyses.command_line.inspecting import explore, features, hooks, interventions, models, verify
from analyses.command_line.saved import docs, figure, list_results, report

__all__ = ["cache", "demo", "docs", "explore", "features", "figure", "grid", "hooks", "interventions"]
__all__ += ["list_results", "models", "report", "reproduce", "run", "verify"]

if TYPE_CHECKING:
    from analyses.reproductions.recipe import Recipe
    from analyses.running.catalogue import Analysis
    from analyses.running.results import Result

FIT = "fit_data"
SCENES_TO_FIT = "scenes:train"
ROWS = 20  # of a long table, in the terminal
OF_THE_ZOO = (
    "The built-in models are small and were trained on purpose-made scenes of digits: they show how to ask the "
    "question, not how large pretrained models answer it."
)


def run(args: argparse.Namespace) -> int:
    """`run ANALYSIS`: load, analyse, save, report."""
    from analyses.data import load_data
    from analyses.processes.group import device_here, leads
    from analyses.running.catalogue import get_analysis
    from analyses.running.files import check_writable, clean
    from analyses.running.locks import hold_folder
    from analyses.running.models import ZOO, check_model, check_prompts, default_models, load_models, short_names
    from analyses.running.report import Section, write_report
    from hooked_vit.config.numbers import check_device

    terminal.quiet()
    console = terminal.console()
    entry = get_analysis(args.analysis)
    options = _options(args, entry)
    out = check_writable(args.out or Path("out") / entry.name)
    specs = args.model or default_models(entry.zoo_target, entry.zoo_models)
    short_names(specs)
    for spec in specs:
        check_model(spec)
    check_device(args.device, args.dtype)
    data = load_data(args.data, args.n, seed=args.seed, skip_bad=args.skip_bad)
    check_prompts(specs, data.class_names)
    for name in [name for name, value in options.items() if name.endswith("_data") and isinstance(value, str)]:
        options[name] = load_data(options[name], _n_of(name, args), seed=args.seed, skip_bad=args.skip_bad)
    with hold_folder(out, "--out") if leads() else nullcontext():
        if leads():
            clean(out)
        how = {**computing(args), "device": device_here(args.device)}
        models = load_models(specs, class_names=data.class_names, **how)
        if args.foretell is not None and leads():
            terminal.say(console, args.foretell(models, data, options))
        result = entry.run(models, data, **options)
        if not leads():
            return 0
        result.meta |= {"command": shlex.join(["hooked-vit", *args.argv]), "seed": args.seed}
        if any(spec.startswith(ZOO) for spec in specs):
            result.meta["notes"] = [*result.meta.get("notes", []), OF_THE_ZOO]

        def more() -> list[Section]:  # heading -> function that draws one from the result
            return [Section(heading, figure=draw(result)) for heading, draw in entry.figures(result).items()]

        report = write_report(result, out, title=entry.summary, intro=_about(entry), sections=more)
    _print_result(console, entry, result)
    for path in (report, out / "result.parquet", out / "result.json"):
        terminal.say(console, path)
    return 0


def demo(args: argparse.Namespace) -> int:
    """`demo`: `run` on the built-in models, or with `--real` on a pretrained one."""
    from analyses.command_line.options import PREFIX

    asked = {"--model": args.model, "--data": args.data, "--fit-data": args.fit_data}
    if args.real:
        from analyses.reproductions.real_models.demo import settle

        settle(args)
    elif given := [flag for flag, value in asked.items() if value is not None]:
        raise ValueError(f"{' and '.join(given)}: the demo of built-in models and images takes none; demo --real does")
    else:
        args.data, args.n = DATA, args.n or args.built_in
    args.out = args.out or Path("out") / ("real" if args.real else "demo")
    for name in (FIT, "seeds"):
        if getattr(args, name) is not None:
            setattr(args, f"{PREFIX}{name}", getattr(args, name))
    return run(args)


def _n_of(name: str, args: argparse.Namespace) -> int | None:
    """How many images of one of the analysis' own sets are drawn."""
    return args.n_fit if name == FIT and args.n_fit is not None else args.n


def reproduce(args: argparse.Namespace) -> int:
    """`reproduce RECIPE`: say what is missing, or run it and put what was published beside ours."""
    from analyses.reproductions.missing import missing
    from analyses.reproductions.prepared import obstacles
    from analyses.reproductions.recipe import load_recipe
    from analyses.reproductions.run import NOT_ALL_THERE, run_recipe
    from analyses.running.files import check_writable
    from analyses.running.results import Result
    from hooked_vit.config.numbers import check_device

    terminal.quiet()
    console = terminal.console()
    recipe = load_recipe(args.recipe)
    out = check_writable(args.out or Path("out") / "reproduce" / recipe.name)
    recipe = recipe.changed(
        models=dict(args.model),
        data=dict(args.data),
        n=args.n,
        steps=args.steps,
        without=args.without,
        dtype=args.dtype,
        image_size=args.image_size,
    )
    check_device(args.device, args.dtype)
    lacking = missing(recipe)
    if args.dry_run:
        _print_plan(console, recipe)
    for sentence in lacking:
        terminal.say(console, f"missing: {sentence}")
    if lacking:
        terminal.say(console, f"{NOT_ALL_THERE}.")
        return 2
    if args.dry_run:
        refused = list(obstacles(recipe))
        for sentence in refused:
            terminal.say(console, f"cannot run: {sentence}")
        terminal.say(console, "Everything is there, and not all of it can run." if refused else "Everything is there.")
        return 2 if refused else 0
    report = run_recipe(recipe, out, device=args.device, say=lambda step: terminal.say(console, f"step {step}"))
    result = Result.load(out)
    columns = ["what", "model", "at", "published", "ours", "interval", "difference", "agrees"]
    terminal.print_table(console, columns, _rounded(result.meta["table"], columns), recipe.title)
    for sentence in result.meta["summary"]:
        terminal.say(console, sentence)
    for path in (report, out / "result.parquet", out / "result.json"):
        terminal.say(console, path)
    return 0


def _print_plan(console: Console, recipe: Recipe) -> None:
    rows = [[name, entry.checkpoint] for name, entry in recipe.models.items()]
    terminal.print_table(console, ["model", "checkpoint"], rows, recipe.title)
    rows = [[name, entry.spec, "all" if entry.n is None else str(entry.n)] for name, entry in recipe.data.items()]
    terminal.print_table(console, ["data", "where", "images"], rows)
    rows = [
        [step.name, step.analysis, ", ".join(step.models), ", ".join(f"{k}={v}" for k, v in step.options.items())]
        for step in recipe.steps
    ]
    terminal.print_table(console, ["step", "analysis", "models", "options"], rows)
    from analyses.reproductions.reported import reported

    columns = ["step", "compared", "model", "at", "published", "source"]
    terminal.print_table(console, columns, [list(row) for row in reported(recipe)])


def _rounded(table: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[list[str]]:
    def shown(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    return [[shown(row[column]) for column in columns] for row in table]


def _options(args: argparse.Namespace, entry: Analysis) -> dict[str, Any]:
    """What the analysis is told.

    Raises ValueError for an option this analysis cannot follow.
    """
    from analyses.command_line.options import given
    from analyses.running.arguments import renamed

    takes = inspect.signature(entry.run).parameters
    options = renamed(entry.run, given(args, entry.run))
    if args.n_fit is not None and FIT not in options:
        if FIT not in takes:
            raise ValueError(f"{entry.name} fits nothing, so there is nothing --n-fit could count")
        if not args.data.startswith("scenes:") or args.data == SCENES_TO_FIT:
            raise ValueError("--n-fit counts images to fit on: say which, with --fit-data")
        options[FIT] = SCENES_TO_FIT
    if "seed" in takes:
        options["seed"] = args.seed
    if args.batch_size is not None:
        if "batch_size" not in takes:
            raise ValueError(f"{entry.name} has no batches, so there is nothing --batch-size could set")
        options["batch_size"] = args.batch_size
    return options


def _about(entry: Analysis) -> str:
    """What the module of an analysis says of it, behind the question: how to read the figure, where it comes from."""
    return inspect.cleandoc(sys.modules[entry.run.__module__].__doc__ or "").partition("\n\n")[2]


def _print_result(console: Console, entry: Analysis, result: Result) -> None:
    from analyses.activations.layers import said_layers
    from analyses.running.notice import data_notes
    from analyses.running.report import key_numbers

    columns, rows, remark = key_numbers(result, ROWS)
    terminal.print_table(console, columns, rows, entry.summary)
    about = result.meta
    said = [*about.get("small", []), *about.get("summary", []), *about.get("corrected", [])]
    said += [*said_layers(about), *data_notes(about)]
    for sentence in [*([remark] if remark else []), *said]:
        terminal.say(console, sentence)
    for name, told in result.meta.get("read", {}).items():
        terminal.say(console, f"read of {name}: {told}")
    console.print()
