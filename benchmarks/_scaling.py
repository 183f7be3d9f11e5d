"""What an analysis of a real data set costs: `python -m benchmarks._scaling` writes the tables of docs/scaling.md.

Measured on the machine it runs on: seconds of a forward pass per image, at base size with random weights. Counted:
multiplications of a forward pass, and by running an analysis how often an image passes through a block. Worked out:
hours, memory and disk. No benchmark of `python -m benchmarks`: it compares nothing.
"""

from __future__ import annotations

import argparse
import inspect
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import ViTImageProcessorPil

from analyses.data import load_data
from analyses.running.catalogue import get_analysis
from hooked_vit import HookedViT

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
START, END = "<!-- written by benchmarks/_scaling.py: from here -->", "<!-- to here -->"
SIDE, BATCH, ROUNDS = 224, 8, 3
TRAIN, VALIDATION = 1_281_167, 50_000
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT-B/16": ("ViTForImageClassification", {}),
    "DeiT-B/16": ("DeiTForImageClassificationWithTeacher", {}),
    "BEiT-B/16": ("BeitForImageClassification", {"use_relative_position_bias": True}),
    "DINOv2-B/14": ("Dinov2ForImageClassification", {"image_size": SIDE, "patch_size": 14}),
    "CLIP-B/16": ("CLIPVisionModelWithProjection", {"hidden_size": 768, "num_hidden_layers": 12, "patch_size": 16}),
}
CLIP = {"num_attention_heads": 12, "intermediate_size": 3072, "image_size": SIDE}
ANALYSES: dict[str, dict[str, Any]] = {
    "cls-causality": {},
    "causality-vs-decodability": {},
    "restoration": {},
    "decodability": {},
    "lenses": {"steps": 1},
    "class-projection": {},
    "residual-updates": {},
    "attention-knockouts": {},
    "head-ablation": {},
}
"""Options that are not the default are those that do not change how often an image passes through a block."""
GPUS = {"A100 (312 TFLOP/s bf16)": 312e12, "H100 SXM (989 TFLOP/s bf16)": 989e12}
"""Dense peak of the makers' data sheets."""
UTILISATION = (0.2, 0.4)
DEPTH = 12


class Products(TorchDispatchMode):
    """Counts the operations of matrix products, convolutions and attention: two for a multiplication and its sum."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def base_model(name: str) -> HookedViT:
    """A family at base size, with random weights."""
    hf_class, settings = FAMILIES[name]
    kind = getattr(transformers, hf_class)
    torch.manual_seed(0)
    config = kind.config_class(**settings, **(CLIP if name.startswith("CLIP") else {}))
    return HookedViT.from_hf(kind(config).eval())


@torch.no_grad()
def measured(model: HookedViT) -> tuple[float, float, int]:
    """Seconds and operations of a forward pass, per image, and the tokens of an image."""
    pixels = torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    model.set_attention("eager")
    with Products() as products:
        model(pixels[:1])
    model.set_attention("auto")
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        model(pixels)
        times.append(time.perf_counter() - start)
    return median(times[1:]) / BATCH, float(products.total), model.layout_for(SIDE, SIDE).n_tokens


def narrow_model() -> HookedViT:
    """As deep as a base model, and narrow: what an analysis asks of it is the same."""
    sizes = {"hidden_size": 24, "num_hidden_layers": DEPTH, "num_attention_heads": 12, "intermediate_size": 24}
    named = {"id2label": {i: str(i) for i in range(10)}}
    config = transformers.ViTConfig(**sizes, **named, image_size=32, patch_size=16)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    return HookedViT.from_hf(transformers.ViTForImageClassification(config).eval(), processor=processor)


@contextmanager
def counted_blocks(model: HookedViT) -> Iterator[list[int]]:
    """Images that pass through a block meanwhile, one entry a call; nothing is hooked, which would change the run.

    A pass for a few tokens alone counts whole, as it is one where a readout reads more.
    """
    kind, calls = type(model.blocks[0]), []
    before: Callable[..., Any] = kind.forward

    def forward(block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(x))
        return before(block, x, *args, **kwargs)

    kind.forward = forward  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        kind.forward = before  # type: ignore[method-assign]


def passes(name: str, options: dict[str, Any], n: int = 24) -> tuple[float, float]:
    """Forward passes per image that is measured and per image that is fitted on."""
    entry = get_analysis(name)
    fit = next((p for p in inspect.signature(entry.run).parameters if p in ("fit_data", "probe_data")), None)

    def blocks(measured_on: int, fitted_on: int) -> float:
        model = narrow_model()
        parts = {} if fit is None else {fit: load_data("scenes:train", n=fitted_on)}
        with counted_blocks(model) as calls:
            entry.run({"model": model}, load_data("scenes:test", n=measured_on), **parts, **options)
        return sum(calls) / DEPTH

    one = blocks(n, n)
    more_fit = 0.0 if fit is None else (blocks(n, 2 * n) - one) / n
    return (blocks(2 * n, n) - one) / n, more_fit


def speed_rows() -> list[list[str]]:
    """A row per family."""
    rows = []
    for name in FAMILIES:
        model = base_model(name)
        seconds, operations, tokens = measured(model)
        weights = sum(p.numel() for p in model.parameters())
        stream = tokens * model.cfg.d_model * 2
        speed = [f"{operations / 1e9:.1f}", f"{seconds:.2f}", f"{operations / seconds / 1e9:.0f}"]
        rows.append([name, f"{tokens}", *speed, f"{weights * 4 / 1e9:.2f}", f"{stream / 1e3:.0f}"])
    return rows


def cost_rows(counted: dict[str, tuple[float, float]], operations: float, seconds: float) -> list[list[str]]:
    """A row per analysis: what five models cost on ImageNet-1k's validation images, fitted on 50 a class."""
    rows = []
    for name, (per_image, per_fit) in counted.items():
        total = 5 * (VALIDATION * per_image + VALIDATION * per_fit)
        hours = [total * operations / (peak * share) / 3600 for peak in GPUS.values() for share in UTILISATION[::-1]]
        spans = [f"{low:.2f} to {high:.2f}" for low, high in zip(hours[::2], hours[1::2], strict=True)]
        rows.append([name, f"{per_image:.1f}", f"{per_fit:.1f}", f"{total * seconds / 3600:,.0f}", *spans])
    return rows


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(head)} |", f"|---{'|--:' * (len(head) - 1)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def main() -> None:
    """Measure, count, and write the tables into the page."""
    parser = argparse.ArgumentParser(description="Writes the tables of docs/scaling.md.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--busy", action="store_true", help="others use the machine meanwhile, which the page says")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    speeds = speed_rows()
    counted = {name: passes(name, options) for name, options in ANALYSES.items()}
    operations = max(float(row[2]) for row in speeds) * 1e9
    seconds = max(float(row[3]) for row in speeds)
    of_family = ["family", "tokens", "GFLOP an image", "s an image", "GFLOP/s", "weights, GB", "stream, kB"]
    of_analysis = ["analysis", "passes a measured image", "passes a fitted image", "core hours"]
    of_analysis += [f"hours, {gpu}" for gpu in GPUS]
    threads = f"{args.threads} thread{'s' * (args.threads > 1)}"
    machine = f"{platform.machine()}, {threads}, torch {torch.__version__}, float32, "
    machine += f"batches of {BATCH}; medians of {ROUNDS} passes"
    machine += ", on a machine that others used as well" * args.busy
    text = "\n\n".join([
        f"Measured on {machine}.",
        markdown(of_family, speeds),
        f"For five models, {VALIDATION:,} images measured and as many fitted on, all as dear as the dearest of them:",
        markdown(of_analysis, cost_rows(counted, operations, seconds)),
    ])  # fmt: skip
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    PAGE.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
