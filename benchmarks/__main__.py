"""Print the table: `python -m benchmarks`, or `python -m benchmarks forward sweep`."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers reads it: nothing here needs a network

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import found
from benchmarks._timing import Ratio


def main() -> int:
    """Exit status 1 where a target is missed, so that a script can ask."""
    benchmarks = found()
    listed = "\n".join(f"  {name:10} {about}" for name, about in benchmarks.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Ratios beside others, measured in one run.",
        epilog=f"benchmarks:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="name", help="which benchmarks to run; all of them by default")
    parser.add_argument("--quick", action="store_true", help="tiny models, to see that it runs; no targets")
    parser.add_argument("--threads", type=int, help="processor threads torch may use")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(benchmarks)):
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(benchmarks)}")
    if args.threads or args.quick:  # what is tiny only gets slower when it is divided
        torch.set_num_threads(args.threads or 1)

    console = Console(width=None if sys.stdout.isatty() else 160)  # a table in a log is not to be wrapped
    modules = [import_module(f"benchmarks.{name}") for name in args.names or benchmarks]
    ratios = [ratio for module in modules for ratio in module.measure(args.quick)]
    console.print(table(ratios, judged=not args.quick))
    console.print(
        "Ratios are medians over rounds in which all candidates took turns (least and greatest in brackets). At best: "
        f"fastest round over fastest round. {torch.get_num_threads()} threads, torch {torch.__version__}.",
        highlight=False,
    )
    return int(not args.quick and not all(ratio.ok for ratio in ratios))


def table(ratios: list[Ratio], judged: bool) -> Table:
    shown = Table("what", "ratio", "at best", "by processor time", "target", "ok")
    for ratio in ratios:
        target = ratio.target if judged else None
        shown.add_row(
            ratio.what,
            f"{ratio.value:.2f} ({min(ratio.wall):.2f} to {max(ratio.wall):.2f})",
            f"{ratio.best:.2f}",
            f"{median(ratio.processor):.2f}",
            "" if target is None else f"≤ {target:.2f}",
            "" if target is None else "ok" if ratio.ok else "missed",
        )
    return shown


if __name__ == "__main__":
    sys.exit(main())
