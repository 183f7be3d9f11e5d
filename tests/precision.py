"""How far half precision is from float32: of a tiny model of every family, of the zoo's models, of a checkpoint.

`python -m tests.precision` writes docs/precision.md, in some minutes of two cores. With `--checkpoint FOLDER`
and what goes with it a checkpoint is measured too; without, what the page says of one stays as it is.
"""

from __future__ import annotations

import argparse
import copy
import platform
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from analyses import cls_causality, load_data, with_ridge_head
from analyses.data import ImageData
from analyses.running.models import load_model
from hooked_vit import HookedViT, architectures, zoo
from hooked_vit.config.numbers import AUTOCAST, DTYPES, NUMBERS
from interventions import apply, shuffle_tokens
from tests.matrix import variants
from tests.tiny import make, pixels, tiny

PAGE = Path(__file__).parents[1] / "docs" / "precision.md"
START, END = "<!-- written by tests/precision.py of a checkpoint: from here -->", "<!-- to here -->"
WAYS = tuple(name for name in NUMBERS if name != "float32")
N_IMAGES, N_FIT, N_TINY = 100, 200, 8
PAIRS = 5000
"""Of outputs, whose order is compared; more are drawn from."""
CURVES = ("clean", "shuffled", "probe")


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
    pairs = torch.combinations(torch.arange(full.shape[1]))
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:PAIRS]]
    order = [(x[:, pairs[:, 0]] - x[:, pairs[:, 1]]).sign() for x in (half, full)]
    same = (half.argmax(-1) == full.argmax(-1)).double().mean()
    return Errors(float(off.max()), float(off.mean()), float(same), float((order[0] == order[1]).double().mean()))


def in_way(full: HookedViT, way: str) -> HookedViT:
    """A copy of a float32 model that computes in this way."""
    if way != AUTOCAST:
        return copy.deepcopy(full).to(DTYPES[way])
    model = copy.deepcopy(full)
    model.set_autocast("bfloat16")
    return model


@torch.no_grad()
def effects(model: HookedViT, x: Tensor) -> Tensor:
    """By layer, how far outputs move when CLS tokens (patches, without CLS) are those of another image [l]."""
    clean, moved = model(x).double(), []
    role = "cls" if model.cfg.has_cls else "patches"
    for layer in range(model.cfg.n_layers):
        with apply(model, shuffle_tokens(layer=layer, tokens=role, among="others", seed=0)):
            moved.append((model(x).double() - clean).norm(dim=-1).mean())
    return torch.stack(moved)


class OfTiny(NamedTuple):
    """Outputs of a tiny model, and by how much its curve of effects moves, over its largest effect."""

    errors: Errors
    curve: float


@torch.no_grad()
def of_tiny(name: str, way: str) -> OfTiny:
    """Of a tiny model with random weights, on random images."""
    full = make(name, torch.float32)
    x = pixels(full, n=N_TINY)
    model = in_way(full, way)
    half, curve = model(x), effects(model, x)
    wanted = effects(full, x)
    return OfTiny(errors(half, full(x)), float((curve - wanted).abs().max() / wanted.max()))


def rows_of_families() -> Iterator[str]:
    """A line per family and way: the worst of its tiny models."""
    by_family: dict[str, list[str]] = {name: [] for name in architectures.registered()}
    for name in variants():
        by_family[tiny(name)[1].cfg.architecture].append(name)
    for family, names in sorted(by_family.items()):
        for way in WAYS:
            found = [of_tiny(name, way) for name in names]
            largest, mean = (max(getattr(one.errors, what) for one in found) for what in ("largest", "mean"))
            order, curve = min(one.errors.same_order for one in found), max(one.curve for one in found)
            yield f"| {family} | {way} | {largest:.1e} | {mean:.1e} | {order:.1%} | {curve:.1e} |"


class Moved(NamedTuple):
    """Outputs of a trained model, and by how much curves of `cls_causality` move: at most, as a share of images."""

    errors: Errors
    clean: float
    shuffled: float
    probe: float


def rows_of_trained(name: str, full: HookedViT, data: ImageData, fit: ImageData, batch_size: int) -> Iterator[str]:
    """A line per way, of a trained model that has a head for these images."""
    (batch,) = data.batches(len(data))
    wanted = _outputs(full, batch.images, batch_size)
    curves = _curves(full, data, fit, batch_size)
    for way in WAYS:
        model = in_way(full, way)
        e = errors(_outputs(model, batch.images, batch_size), wanted)
        found = _curves(model, data, fit, batch_size)
        moved = [max(abs(found[key] - curves[key]) for key in curves if key[0] == measure) for measure in CURVES]
        yield (
            f"| {name} | {way} | {e.largest:.1e} | {e.mean:.1e} | {e.same_first:.1%} | {e.same_order:.1%} | "
            f"{' | '.join(f'{value:.3f}' for value in moved)} |"
        )


@torch.no_grad()
def _outputs(model: HookedViT, images: list[Any], batch_size: int) -> Tensor:
    parts = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    return torch.cat([model(model.preprocess(part)).double() for part in parts])


def _curves(model: HookedViT, data: ImageData, fit: ImageData, batch_size: int) -> dict[tuple[str, int], float]:
    """By measure and layer (-1 where it has none): one seed, the same permutations whatever the numbers."""
    frame = cls_causality({"m": model}, data, fit_data=fit, seeds=1, batch_size=batch_size).frame
    layers = frame.layer.fillna(-1).astype(int)
    return {(m, layer): v for m, layer, v in zip(frame.measure, layers, frame.value, strict=True) if m in CURVES}


def wrapped(text: str) -> list[str]:
    """A paragraph as lines of the page."""
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


HEAD = "| Model | numbers | Largest error | Mean error | Same first | Same order | Accuracy | CLS shuffled | Probe |"
RULE = "|---|---|--:|--:|--:|--:|--:|--:|--:|"


def rows_of_zoo() -> Iterator[str]:
    """Of every built-in model on scenes."""
    for name in zoo.names("label"):
        data, fit = load_data("scenes:test", n=N_IMAGES), load_data("scenes:train", n=N_FIT)
        yield from rows_of_trained(name, zoo.load(name), data, fit, N_IMAGES)


def of_checkpoint(folder: str, data: str, fit: str, name: str, about: str, how: argparse.Namespace) -> str:
    """What the page says of a checkpoint."""
    fitted = load_data(fit, how.n_fit)
    model = with_ridge_head(load_model(folder, image_size=how.image_size), fitted)
    rows = rows_of_trained(name, model, load_data(data, how.n), fitted, batch_size=20)
    side = " × ".join(map(str, model.processor_size or model.usual_size))
    return "\n".join(
        [*wrapped(f"{about} At {side} pixels, {how.n} images, {how.n_fit} to fit on."), "", HEAD, RULE, *rows]
    )


def page(checkpoint: str) -> str:
    """The page."""
    machine = f"a CPU ({platform.machine()}) with torch {torch.__version__}"
    lines = [
        *("# What half precision costs", ""),
        *wrapped(
            "`--dtype bfloat16` or `float16` (in Python `load_model(name, dtype=…)` or `from_pretrained(…, dtype=…)`) "
            "runs a model with weights and activations of 16 bits. Softmax is of float32, ridge heads and probes are "
            "fitted and added up in float64, trained probes in float32. `--dtype autocast` is a model of float32 whose "
            "products are of bfloat16; its weights, norms and residual stream are not, nor is what hooks, probes and "
            "analyses multiply. In Python it is `model.set_autocast(…)`, of bfloat16 or float16; a `torch.autocast` of "
            "your own around an analysis reaches what the analysis multiplies too. A result says what it was computed "
            "in. "
            "Every family runs in all three. `python -m tests.precision` writes this page.",
        ),
        "",
        *wrapped(
            f"Measured on {machine}, beside the same model in float32. A GPU adds up in another order, and its digits "
            "differ. bfloat16 has 8 bits of precision, float16 11, but float16 holds no number beyond 65,504.",
        ),
        *("", "## Trained models", ""),
        *wrapped(
            f"The built-in models on {N_IMAGES} scenes. *Errors* are differences of logits over the standard deviation "
            "of all logits in float32. *Same first*: images whose answer stays. *Same order*: pairs of classes that "
            "stay in their order. The last three columns say by how much the accuracy, the curve of accuracies with "
            "CLS exchanged, and the curve of probes on CLS move, at the layer where they move most, as shares of the "
            f"images (`cls-causality`, one seed, the same permutations): 0.010 is one image of {N_IMAGES}.",
        ),
        *("", HEAD, RULE, *rows_of_zoo()),
        *("", "## A real checkpoint", ""),
        *(START, checkpoint, END),
        *("", "## Every family", ""),
        *wrapped(
            f"Tiny models of every family with random weights, {N_TINY} random images; the worst of a family's graphs. "
            "Outputs are logits, or features of a model without a head. *Curve*: how far outputs move when CLS tokens "
            "(patches, where a family has no CLS) are exchanged between images behind a layer, and by how much that "
            "differs from float32 at the layer where it differs most, over the largest effect of any layer: large "
            "where a readout of patches hardly sees CLS. Random weights tell outputs apart by little, so that orders "
            "change more easily than in a trained model.",
        ),
        *("", "| Family | numbers | Largest error | Mean error | Same order | Curve |", "|---|---|--:|--:|--:|--:|"),
        *rows_of_families(),
    ]
    return "\n".join(lines) + "\n"


def kept() -> str:
    """What the page says of a checkpoint as it stands."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    return text.partition(START)[2].partition(END)[0].strip() or "None was measured."


def families_on(text: str) -> set[tuple[str, str]]:
    """The families a page has rows of, with the way each computes."""
    rows = [line.strip("| ").split(" | ") for line in text.partition("## Every family")[2].splitlines()]
    return {(cells[0], cells[1]) for cells in rows if len(cells) == 6 and cells[0] != "Family"}


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description="Writes docs/precision.md.")
    parser.add_argument("--checkpoint", help="a folder, to be measured too")
    parser.add_argument("--data", help="images to measure it on, as parquet:PATH")
    parser.add_argument("--fit-data", help="images to fit its head and probes on")
    parser.add_argument("--name", help="what its rows are called")
    parser.add_argument("--about", help="what the checkpoint is, and where its weights are from")
    parser.add_argument("--image-size", type=int, help="pixels a side, in place of what its processor makes")
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--n-fit", type=int, default=200)
    args = parser.parse_args()
    told = (args.checkpoint, args.data, args.fit_data, args.name, args.about)
    if any(told) and not all(told):
        parser.error("a checkpoint comes with --data, --fit-data, --name and --about")
    checkpoint = of_checkpoint(*told, args) if args.checkpoint else kept()
    PAGE.write_text(page(checkpoint), encoding="utf-8")


if __name__ == "__main__":
    main()
