"""How far half precision is from float32: of a tiny model of every family, and of the zoo's trained models.

`python -m tests.precision` writes docs/precision.md, in some minutes of two idle cores.
"""

from __future__ import annotations

import copy
import platform
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from analyses import cls_causality, load_data
from hooked_vit import zoo
from hooked_vit.loading.placing import DTYPES
from tests.matrix import variants
from tests.tiny import make, pixels

PAGE = Path(__file__).parents[1] / "docs" / "precision.md"
HALVES = tuple(name for name in DTYPES if name != "float32")
N_IMAGES = 100


class Errors(NamedTuple):
    """Of outputs beside those in float32: differences over their standard deviation there, and what they rank."""

    largest: float
    mean: float
    same_first: float
    same_order: float


def errors(half: Tensor, full: Tensor) -> Errors:
    """How far outputs [n, k] are from what they are in float32.

    `same_first` is the share of images whose largest output is the same one; `same_order` the share of pairs of outputs
    of an image that stand in the same order.
    """
    half, full = half.double(), full.double()
    off = (half - full).abs() / full.std()
    pairs = torch.combinations(torch.arange(full.shape[1]), 2)[:5000]
    order = [(x[:, pairs[:, 0]] - x[:, pairs[:, 1]]).sign() for x in (half, full)]
    same = (half.argmax(-1) == full.argmax(-1)).double().mean()
    return Errors(float(off.max()), float(off.mean()), float(same), float((order[0] == order[1]).double().mean()))


@torch.no_grad()
def of_family(name: str, dtype: str) -> Errors:
    """Of a tiny model with random weights, 8 random images."""
    model = make(name, torch.float32)
    x = pixels(model, n=8).float()
    return errors(model.to(DTYPES[dtype])(x), make(name, torch.float32)(x))


class OfZoo(NamedTuple):
    """Outputs, and by how much a curve of `cls_causality` moves: at most, over layers, as a share of images."""

    errors: Errors
    accuracy: float
    shuffled: float
    probe: float


def of_zoo(name: str, dtype: str, n: int = N_IMAGES) -> OfZoo:
    """Of a trained model on scenes."""
    full = zoo.load(name)
    half = copy.deepcopy(full).to(DTYPES[dtype])
    data, fit = load_data("scenes:test", n=n), load_data("scenes:train", n=n)
    images = next(data.batches(n)).images
    with torch.no_grad():
        found = errors(*(model(model.preprocess(images)) for model in (half, full)))
    frames = [cls_causality({"m": model}, data, fit_data=fit, seeds=1).frame for model in (half, full)]
    rows = [frame.set_index(["measure", "layer"]).value for frame in frames]
    moved = [float((rows[0][m] - rows[1][m]).abs().max()) for m in ("clean", "shuffled", "probe")]
    return OfZoo(found, *moved)


def rows_of_families() -> list[str]:
    """A line per family and dtype."""
    return [
        f"| {name} | {dtype} | {e.largest:.1e} | {e.mean:.1e} | {e.same_order:.1%} |"
        for name in variants()
        for dtype in HALVES
        for e in [of_family(name, dtype)]
    ]


def rows_of_zoo() -> list[str]:
    """A line per trained model and dtype."""
    return [
        f"| {name} | {dtype} | {z.errors.largest:.1e} | {z.errors.mean:.1e} | {z.errors.same_first:.1%} | "
        f"{z.errors.same_order:.1%} | {z.accuracy:.3f} | {z.shuffled:.3f} | {z.probe:.3f} |"
        for name in zoo.names("label")
        for dtype in HALVES
        for z in [of_zoo(name, dtype)]
    ]


def page() -> str:
    """The page."""
    machine = f"a CPU ({platform.machine()}) with torch {torch.__version__}"
    lines = [
        *("# What half precision costs", ""),
        "`--dtype bfloat16` or `float16` (in Python `load_model(name, dtype=...)`) runs a model in half precision. "
        "Softmax of attention, probes and everything counted stay in float32 or float64. Here is how far the numbers "
        "move, beside the same model in float32. `python -m tests.precision` writes this page again.",
        "",
        f"Measured on {machine}. A GPU adds up in another order, so its last digits differ; the size of the errors is "
        "that of the numbers.",
        *("", "## Trained models", ""),
        f"The built-in models on {N_IMAGES} scenes. Errors of logits are over their standard deviation in float32; "
        "same first: images whose answer stays; same order: pairs of classes that stay in their order. The last three "
        "say by how much the accuracy of the model, the curve with CLS shuffled and that of probes move, at the layer "
        "where they move most, as shares of the images (one seed, the same permutations).",
        "",
        "| Model | dtype | Largest error | Mean error | Same first | Same order | Accuracy | CLS shuffled | Probe |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows_of_zoo(),
        *("", "## Every family", ""),
        "A tiny model of every family with random weights, 8 random images: logits, or features of a model without a "
        "head. Random weights tell classes apart by little, so orders change more easily than in a trained model.",
        "",
        "| Model | dtype | Largest error | Mean error | Same order |",
        "|---|---|---|---|---|",
        *rows_of_families(),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
