"""Print the table: `python -m benchmarks`, or `python -m benchmarks forward sweep`; `--page FILE` writes it."""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib import import_module
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers reads it: nothing here needs a network
if __name__ == "__main__" and not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")  # before tqdm is imported: no bars in a log

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import found
from benchmarks._page import COLUMNS, HOW, machine, page, peers
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
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write the table as a page, such as docs/benchmarks.md"
    )
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(benchmarks)):
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(benchmarks)}")
    if args.page and args.quick:
        parser.error("a page is of real sizes; --quick shows only that it runs")
    if args.page and not args.page.parent.is_dir():
        parser.error(f"there is no folder {args.page.parent} to write the page into")
    if args.threads or args.quick:  # what is tiny only gets slower when it is divided
        torch.set_num_threads(args.threads or 1)

    console = Console(width=None if sys.stdout.isatty() else 200)  # a table in a log is not to be wrapped
    started = time.perf_counter()
    ratios: list[Ratio] = []
    for name in args.names or benchmarks:
        ratios += import_module(f"benchmarks.{name}").measure(args.quick)
    console.print(table(ratios, judged=not args.quick))
    for line in (HOW, machine(), peers(), f"It took {time.perf_counter() - started:.0f} s."):
        console.print(line, highlight=False)
    if args.page:
        args.page.write_text(page(ratios, args.names), encoding="utf-8")
        console.print(f"written: {args.page}")
    return int(not args.quick and not all(ratio.ok for ratio in ratios))


def table(ratios: list[Ratio], judged: bool) -> Table:
    shown = Table(*COLUMNS)
    for ratio in ratios:
        shown.add_row(*ratio.cells, *([ratio.wanted, ratio.verdict] if judged else ["", ""]))
    return shown


if __name__ == "__main__":
    sys.exit(main())
