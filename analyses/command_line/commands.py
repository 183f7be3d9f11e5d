"""What the commands do: everything a user could have got wrong is checked before anything takes long."""

from __future__ import annotations

import argparse
import inspect
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analyses.running.text import visible

if TYPE_CHECKING:
    from analyses.reproductions.recipe import Recipe
    from analyses.running.catalogue import Analysis
    from analyses.running.results import Result

ROWS = 20  # of a long table, in the terminal
OF_THE_ZOO = (
    "The built-in models are small and were trained on purpose-made scenes of digits: they show how to ask the "
    "question, not how large pretrained models answer it."
)


def run(args: argparse.Namespace) -> int:
    """`run ANALYSIS` and `demo`: load, analyse, save, report."""
    from analyses.data import load_data
    from analyses.running.catalogue import get_analysis
    from analyses.running.files import check_writable
    from analyses.running.locks import hold_folder
    from analyses.running.models import ZOO, check_model, default_models, load_models, short_names
    from analyses.running.report import Section, write_report

    _quiet()
    console = _console()
    entry = get_analysis(args.analysis)
    options = _options(args, entry)
    out = check_writable(args.out or Path("out") / entry.name)
    specs = args.model or default_models(entry.zoo_target, entry.zoo_models)
    short_names(specs)
    for spec in specs:
        check_model(spec)
    _check_device(args.device)
    data = load_data(args.data, args.n, seed=args.seed, skip_bad=args.skip_bad)
    for name in [name for name, value in options.items() if name.endswith("_data") and isinstance(value, str)]:
        options[name] = load_data(options[name], args.n, seed=args.seed, skip_bad=args.skip_bad)
    with hold_folder(out, "--out"):
        models = load_models(specs, device=args.device)
        result = entry.run(models, data, **options)
        result.meta |= {"command": shlex.join(["hooked-vit", *args.argv]), "seed": args.seed}
        if any(spec.startswith(ZOO) for spec in specs):
            result.meta["notes"] = [*result.meta.get("notes", []), OF_THE_ZOO]

        def more() -> list[Section]:  # heading -> function that draws one from the result
            return [Section(heading, figure=draw(result)) for heading, draw in entry.figures(result).items()]

        report = write_report(result, out, title=entry.summary, intro=_about(entry), sections=more)
    _print_result(console, entry, result)
    for path in (report, out / "result.parquet", out / "result.json"):
        _say(console, path)
    return 0


def reproduce(args: argparse.Namespace) -> int:
    """`reproduce RECIPE`: say what is missing, or run it and put what was published beside ours."""
    from analyses.reproductions.missing import missing
    from analyses.reproductions.recipe import load_recipe
    from analyses.reproductions.run import NOT_ALL_THERE, run_recipe
    from analyses.running.files import check_writable
    from analyses.running.results import Result

    _quiet()
    console = _console()
    recipe = load_recipe(args.recipe)
    out = check_writable(args.out or Path("out") / "reproduce" / recipe.name)
    recipe = recipe.changed(
        models=dict(args.model),
        data=dict(args.data),
        n=args.n,
        steps=args.steps,
        without=args.without,
    )
    _check_device(args.device)
    lacking = missing(recipe)
    if args.dry_run:
        _print_plan(console, recipe)
    for sentence in lacking:
        _say(console, f"missing: {sentence}")
    if lacking:
        _say(console, f"{NOT_ALL_THERE}.")
        return 2
    if args.dry_run:
        _say(console, "Everything is there.")
        return 0
    report = run_recipe(recipe, out, device=args.device, say=lambda step: _say(console, f"step {step}"))
    result = Result.load(out)
    columns = ["what", "model", "at", "published", "ours", "interval", "difference", "agrees"]
    _print_table(console, columns, _rounded(result.meta["table"], columns), recipe.title)
    for sentence in result.meta["summary"]:
        _say(console, sentence)
    for path in (report, out / "result.parquet", out / "result.json"):
        _say(console, path)
    return 0


def _print_plan(console: Console, recipe: Recipe) -> None:
    rows = [[name, entry.checkpoint] for name, entry in recipe.models.items()]
    _print_table(console, ["model", "checkpoint"], rows, recipe.title)
    rows = [[name, entry.spec, "all" if entry.n is None else str(entry.n)] for name, entry in recipe.data.items()]
    _print_table(console, ["data", "where", "images"], rows)
    rows = [
        [step.name, step.analysis, ", ".join(step.models), ", ".join(f"{k}={v}" for k, v in step.options.items())]
        for step in recipe.steps
    ]
    _print_table(console, ["step", "analysis", "models", "options"], rows)


def _rounded(table: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[list[str]]:
    def shown(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    return [[shown(row[column]) for column in columns] for row in table]


def models(args: argparse.Namespace) -> int:
    """`models`: the zoo, and what else can be loaded."""
    from hooked_vit import architectures, published, zoo

    console = _console()
    rows = [
        [f"zoo:{name}", entry["target"], f"{entry['accuracy']['test']:.1%}"]
        for name, entry in sorted(zoo.info().items())
    ]
    title = "Built in: small models trained on digit scenes (accuracy on handwriting never seen in training)"
    _print_table(console, ["model", "trained to tell", "test accuracy"], rows or [["the zoo is empty", "", ""]], title)
    rows = [[f"published:{name}", published.get(name).about] for name in published.names()]
    _print_table(console, ["model", "what it is"], rows, "As published studies used them, images included")
    rows = [
        [family if i == 0 else "", hf_class, entry.examples.get(hf_class, "–")]
        for family, entry in ((name, architectures.get(name)) for name in architectures.registered())
        for i, hf_class in enumerate(entry.classes)
    ]
    title = "Loadable from the hub or a local folder: checkpoints saved from these classes of transformers or timm"
    _print_table(console, ["family", "class", "a checkpoint people know"], rows, title)
    return 0


def interventions(args: argparse.Namespace) -> int:
    """`interventions`: name, parameters, and what each one does."""
    import interventions as catalogue

    console = _console()
    for name, entry in catalogue.registered().items():
        parameters = [
            p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in entry.signature.parameters.values()
        ]
        _say(console, f"{name}({', '.join(parameters)})", style="bold")
        does = (inspect.getdoc(entry) or "").partition("\n")[0]
        _say(console, f"    {does}")
    return 0


def hooks(args: argparse.Namespace) -> int:
    """`hooks MODEL`: every hook point, from the config alone."""
    from analyses.running.models import check_model
    from hooked_vit import HookedViT
    from hooked_vit.loading.checkpoints import without_weights

    _quiet()
    model = without_weights(HookedViT, check_model(args.model))
    _print_table(_console(), ["hook point", "shape", "meaning"], model.describe_hooks())
    return 0


def verify(args: argparse.Namespace) -> int:
    """`verify MODEL`: the original beside ours; status 1 where they differ or a hook is dead."""
    from analyses.running.models import check_model
    from hooked_vit.loading.verify import verify

    _quiet()
    console = _console()
    rows = verify(check_model(args.model))
    shown = [[row.check, f"{row.worst:.2g}", row.bound, "ok" if row.ok else "FAILED"] for row in rows]
    _print_table(console, ["check", "seen", "must be", ""], shown)
    failed = sum(not row.ok for row in rows)
    _say(console, f"{failed} of {len(rows)} checks failed" if failed else f"all {len(rows)} checks hold")
    return 1 if failed else 0


def _options(args: argparse.Namespace, entry: Analysis) -> dict[str, Any]:
    """What the analysis is told; sets the number of threads where it does not split its work itself.

    Raises ValueError for an option this analysis cannot follow.
    """
    from analyses.command_line.options import given

    takes = inspect.signature(entry.run).parameters
    options = given(args, entry.run)
    if "seed" in takes:
        options["seed"] = args.seed
    if args.batch_size is not None:
        if "batch_size" not in takes:
            raise ValueError(f"{entry.name} has no batches, so there is nothing --batch-size could set")
        options["batch_size"] = args.batch_size
    if args.num_processes is not None:
        if "num_processes" in takes:
            options["num_processes"] = args.num_processes
        else:
            import torch

            torch.set_num_threads(args.num_processes)
    return options


def _check_device(device: str) -> None:
    """Raises ValueError for a device on which this machine's torch cannot add two numbers, as on `meta`."""
    import torch

    try:
        if torch.device(device).type == "cpu" != device:
            raise ValueError("the CPU has no number")
        torch.ones(2, device=device).sum().item()
    except Exception as error:  # each kind of device refuses in its own way
        said = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"this machine's torch cannot use the device {device!r}: {said}; there is {', '.join(_devices())}"
        ) from error


def _devices() -> list[str]:
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return ["cpu", *([accelerator.type] if accelerator else [])]


def _about(entry: Analysis) -> str:
    """What the module of an analysis says of it, behind the question: how to read the figure, where it comes from."""
    return inspect.cleandoc(sys.modules[entry.run.__module__].__doc__ or "").partition("\n\n")[2]


def _quiet() -> None:
    """Only our own progress bars and sentences: no bars for reading weights, no advice about image backends."""
    import datasets
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def _console() -> Console:
    """At least 120 wide: a terminal breaks a long line better than a table squeezes it into a narrow column."""
    console = Console()
    return Console(width=max(console.width, 120) if console.is_terminal else 200)


def _print_result(console: Console, entry: Analysis, result: Result) -> None:
    from analyses.running.report import key_numbers

    columns, rows, remark = key_numbers(result, ROWS)
    _print_table(console, columns, rows, entry.summary)
    for sentence in [*([remark] if remark else []), *result.meta.get("summary", [])]:
        _say(console, sentence)
    console.print()


def _say(console: Console, text: object, style: str = "") -> None:
    """Text as it stands: no markup, no emoji, nothing a terminal obeys; the terminal breaks the line."""
    console.print(Text(visible(text), style=style), soft_wrap=True)


def _print_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    if title:
        _say(console, title, style="bold")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i, column in enumerate(columns):
        numbers = bool(rows) and all(_is_number(row[i]) for row in rows)
        # the name in the first column is what one copies
        table.add_column(Text(visible(column)), no_wrap=i == 0, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console.print(table)
    console.print()


def _is_number(cell: str) -> bool:
    return str(cell).strip("-–").replace(".", "", 1).removesuffix("%").isdigit() or cell == "–"
