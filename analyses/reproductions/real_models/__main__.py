"""Run analyses on a real checkpoint, or write the page of what was saved.

With `python -m analyses.reproductions.real_models` in place of the dots:

    … run MODEL --data parquet:test.parquet --fit-data parquet:train.parquet --image-size 84 --out FOLDER
    … page FOLDER --to docs/real_models.md --keep docs/results
"""

from __future__ import annotations

import argparse
import sys
from multiprocessing import get_context
from pathlib import Path

from analyses.reproductions.real_models.measuring import Study, save_measured
from analyses.reproductions.real_models.runs import RUNS, find
from analyses.running.files import check_writable


def main() -> int:
    """Exit status 1 where a run failed; the others are done."""
    parser = argparse.ArgumentParser(
        prog="python -m analyses.reproductions.real_models", description=__doc__.partition("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run analyses and save each result in a folder of its own")
    run.add_argument("model", help="a folder of a checkpoint, or what else --model of hooked-vit run takes")
    run.add_argument("--data", required=True, help="images to measure on, as parquet:PATH or imagefolder:PATH")
    run.add_argument("--fit-data", required=True, help="images to fit on")
    run.add_argument("--out", required=True, type=Path, help="where a folder per run is written")
    run.add_argument("--only", nargs="+", default=[r.name for r in RUNS], help="which runs; all unless named")
    run.add_argument("--image-size", type=int, help="pixels a side, in place of the processor's")
    run.add_argument("--provenance", default="", help="what is known of the weights, for the page")
    run.add_argument("--dictionary", help="a trained sparse dictionary; without one sparse-features is not run")
    run.add_argument("--layout", default="saelens", help="how the dictionary is saved")
    page = commands.add_parser("page", help="write the page of what was saved")
    page.add_argument("folder", type=Path)
    page.add_argument("--to", required=True, type=Path, help="the file to write")
    page.add_argument("--keep", type=Path, help="a folder for the results themselves, without images and paths")
    args = parser.parse_args()
    if args.command == "page":
        from analyses.reproductions.real_models.page import write_page

        if args.keep:
            from analyses.reproductions.real_models.kept import keep_results

            keep_results(args.folder, args.keep)
        print(write_page(args.folder, args.to))
        return 0
    study = Study(
        args.model, args.data, args.fit_data, args.image_size, args.provenance, args.dictionary, args.layout
    )  # fmt: skip
    wanted = [find(name) for name in args.only]
    failed = [one.name for one in wanted if not _in_a_process(one.name, study, check_writable(args.out / one.name))]
    if failed:
        print(f"not saved: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _in_a_process(name: str, study: Study, folder: Path) -> bool:
    """Whether it ended well. A process of its own, so that its peak memory is that of this run."""
    process = get_context("spawn").Process(target=save_measured, args=(find(name), study, folder))
    process.start()
    process.join()
    return process.exitcode == 0


if __name__ == "__main__":
    sys.exit(main())
