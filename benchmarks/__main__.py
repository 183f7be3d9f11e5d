"""Print the table: `python -m benchmarks`, or `python -m benchmarks forward sweep`; `--page FILE` writes it.

`python -m benchmarks real --model …` measures a checkpoint of yours.
"""

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
from benchmarks.real import Asked

NEEDED = ("model", "data", "fit_data", "n", "n_fit")
YOURS = (*NEEDED, "image_size", "batch_size", "memory_of")


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
    yours = parser.add_argument_group("what `real` measures")
    yours.add_argument("--model", help="a checkpoint: a folder, a hub id, zoo:NAME")
    yours.add_argument("--data", help="images to measure on, as `hooked-vit run --data` takes them")
    yours.add_argument("--fit-data", help="images to fit on")
    yours.add_argument(
        "--n", type=int, help="how many images to measure on; memory is compared with four times as many"
    )
    yours.add_argument("--n-fit", type=int, help="how many to fit on")
    yours.add_argument("--image-size", type=int, help="the side to which images are made")
    yours.add_argument("--batch-size", type=int)
    yours.add_argument(
        "--memory-of", choices=("cls-causality", "decodability"), help="whose memory; the second is short"
    )
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(benchmarks)):
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(benchmarks)}")
    if args.page and args.quick:
        parser.error("a page is of real sizes; --quick shows only that it runs")
    if args.page and not args.page.parent.is_dir():
        parser.error(f"there is no folder {args.page.parent} to write the page into")
    asked = {name: getattr(args, name) for name in YOURS if getattr(args, name) is not None}
    if lacking := [f"--{name.replace('_', '-')}" for name in NEEDED if asked and name not in asked]:
        parser.error(f"a checkpoint is measured on images of yours: {', '.join(lacking)} too")
    if "real" in args.names and not (asked or args.quick):
        parser.error("real measures a checkpoint of yours: --model, --data, --fit-data, --n, --n-fit")
    if args.threads or args.quick:  # what is tiny only gets slower when it is divided
        torch.set_num_threads(args.threads or 1)

    console = Console(width=None if sys.stdout.isatty() else 200)  # a table in a log is not to be wrapped
    started = time.perf_counter()
    ratios: list[Ratio] = []
    for name in args.names or benchmarks:
        measure = import_module(f"benchmarks.{name}").measure
        ratios += measure(args.quick, Asked(**asked)) if name == "real" and asked else measure(args.quick)
    console.print(table(ratios, judged=not args.quick))
    missed = [] if args.quick else [f"Missed: {ratio.excuse}" for ratio in ratios if not ratio.ok]
    for line in (*missed, HOW, machine(), peers(), f"It took {time.perf_counter() - started:.0f} s."):
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
