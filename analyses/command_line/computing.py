"""Where the models of a command compute, in which numbers and on which size of images: the same options everywhere."""

from __future__ import annotations

import argparse
from typing import Any

from analyses.command_line.values import Choice, Number, Once, text
from analyses.running.arguments import Range

DTYPES = ("float32", "bfloat16", "float16")
NUMBERS = (*DTYPES, "autocast")
"""Those of `hooked_vit.config.numbers`, known here without torch; a test compares."""
COMPUTING: dict[str, Any] = {"device": "cpu", "dtype": "float32", "image_size": None}
"""What holds if nothing is said."""
SIDE = Range(1, 10_000)


def add_device(to: argparse.ArgumentParser) -> None:
    """Give a command the option that says where its models run."""
    what = "where the models run, such as cpu or cuda (default: %(default)s)"
    to.add_argument("--device", metavar="NAME", action=Once, type=text, default=COMPUTING["device"], help=what)


def add_image_size(to: argparse.ArgumentParser) -> None:
    """Give a command the option that says how large its images are."""
    what = "side in pixels, a multiple of the patch, to which images are resized (default: what the processor makes)"
    to.add_argument("--image-size", metavar="N", action=Once, type=Number(SIDE, int), default=None, help=what)


def add_computing(to: argparse.ArgumentParser) -> None:
    """Give a command the options of `load_model` that say how its models compute."""
    add_device(to)
    what = f"numbers the models compute in: {', '.join(NUMBERS)} (products of bfloat16 alone); probes stay in float64 "
    what += "(default: %(default)s); what it costs: hooked-vit docs precision"
    kind = Choice(NUMBERS)
    to.add_argument("--dtype", metavar="NAME", action=Once, type=kind, default=COMPUTING["dtype"], help=what)
    add_image_size(to)


def computing(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `load_model` that were given."""
    return {name: getattr(args, name) for name in COMPUTING}
