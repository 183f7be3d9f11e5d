"""A checkpoint of yours over your images: an analysis beside its forward passes, a second one on a store, memory.

    python -m benchmarks real --model PATH --data parquet:TEST --fit-data parquet:TRAIN --n 1000 --n-fit 1000

Without a model nothing is measured, but with `--quick`, on a built-in one.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from analyses.processes.memory import peak_memory
from benchmarks._memory import measured_by
from benchmarks._timing import Ratio, Times, take_turns
from hooked_vit import HookedViT
from hooked_vit.components.narrowing import rows_pooled
from hooked_vit.components.pieces import in_pieces


@dataclass(frozen=True)
class Asked:
    """What is measured: a model and images as the command line of analyses takes them."""

    model: str = "zoo:vit"
    data: str = "scenes:test"
    fit_data: str = "scenes:train"
    n: int = 24
    n_fit: int = 24
    image_size: int | None = None
    batch_size: int = 12
    memory_of: str = "cls-causality"

    def load(self) -> tuple[str, HookedViT, Any, Any]:
        """The model under its short name, the images to measure on, and those to fit on."""
        from analyses.data import load_data
        from analyses.running.models import load_model, short_name

        model = load_model(self.model, image_size=self.image_size)
        data, fit_data = load_data(self.data, n=self.n), load_data(self.fit_data, n=self.n_fit)
        return short_name(self.model), model, data, fit_data


def measure(quick: bool, asked: Asked | None = None) -> Iterator[Ratio]:
    """Targets are of real sizes: tiny models spend their time elsewhere."""
    if asked is None and not quick:
        return
    asked = asked or Asked()
    yield _causality(asked)
    yield from _stored(asked)
    yield _memory(asked)


def _causality(asked: Asked) -> Ratio:
    """The passes run half before and half behind the analysis, so that drift falls on both."""
    name, model, data, fit_data = asked.load()
    passes, counted = unavoidable(model, asked)
    half = len(passes) // 2
    candidates = {
        "before": partial(_all, passes[:half]),
        "analysis": partial(_ask, "cls-causality", name, model, data, fit_data, asked.batch_size),
        "behind": partial(_all, passes[half:]),
    }
    _all(passes[:1])  # warms up what the first pass builds
    times = take_turns(candidates, rounds=1, warm_up=False)
    for kind in (times.wall, times.processor):
        kind["passes"] = [kind["before"][0] + kind["behind"][0]]
    took = f"{times.wall['analysis'][0]:.0f} s, processor {times.processor['analysis'][0]:.0f} s"
    what = f"cls-causality, {_of(name, asked)}, 1 seed ({took}) / the passes it cannot avoid: {counted}"
    return Times(times.wall, times.processor).ratio(what, "analysis", "passes", 1.15)


def unavoidable(model: HookedViT, asked: Asked) -> tuple[list[Callable[[], None]], str]:
    """What has to be computed whoever does it, batch by batch on pixels that are there already, and that in words.

    To fit: every block once. To measure: the clean run, every block once, and behind the shuffle of each layer all
    later blocks; the last one for the tokens alone that the readout reads, where those are few.
    """
    from analyses.data.batches import batch_sizes
    from analyses.probes.classifier_heads import ready_for_head

    depth, pixels = model.cfg.n_layers, torch.randn(asked.batch_size, 3, *model.usual_size)
    read = model.cfg if model.cfg.heads else ready_for_head(model).cfg
    rows = rows_pooled(read, model.layout_for(*model.usual_size))

    def run(n: int, suffixes: bool) -> None:
        x = pixels[:n] if n <= len(pixels) else torch.cat([pixels, pixels[: n - len(pixels)]])
        with torch.no_grad(), model.running(model.check_pixels(x)):
            resid = model.embed_pixels(x)
            for layer, block in enumerate(model.blocks):
                alone = partial(block, rows=rows) if rows and layer == depth - 1 else block
                for _ in range(layer * suffixes):
                    in_pieces(alone, model.cfg, (), resid)
                resid = in_pieces(block, model.cfg, (), resid)

    passes: list[Callable[[], None]] = []
    for n, suffixes in ((asked.n_fit, False), (asked.n, True)):
        passes += [partial(run, size, suffixes) for size in batch_sizes(n, asked.batch_size, least=2)]
    passes = passes[::2] + passes[1::2]  # either half holds as many of both kinds
    counted = f"blocks to fit {asked.n_fit} × {depth}, clean {asked.n} × {depth}, "
    counted += f"suffixes {asked.n} × {depth * (depth - 1) // 2}"
    few = f", {depth - 1} of them for what the readout reads alone" if rows else ""
    return passes, counted + few


def _all(passes: list[Callable[[], None]]) -> None:
    for one in passes:
        one()


def _ask(
    analysis: str, name: str, model: HookedViT, data: Any, fit_data: Any, batch_size: int, **options: Any
) -> list[float]:
    """The values an analysis gives."""
    from analyses.running.catalogue import get_analysis

    options |= {"seeds": 1} if analysis == "cls-causality" else {"controls": ("none",), "learning_curve": False}
    result = get_analysis(analysis).run({name: model}, data, fit_data=fit_data, batch_size=batch_size, **options)
    return list(result.frame.value)


def _stored(asked: Asked) -> Iterator[Ratio]:
    """Decodability of every kind of token, without its controls: with random weights a model runs in either case."""
    from analyses.activations.store import store_activations

    name, model, data, fit_data = asked.load()
    values: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        stores = {f"{folder}/data": data, f"{folder}/fit": fit_data}

        def store() -> None:
            for to, images in stores.items():
                store_activations(model, images, to=to, batch_size=asked.batch_size)

        def ask(kind: str, **options: Any) -> None:
            values[kind] = _ask("decodability", name, model, data, fit_data, asked.batch_size, **options)

        writing = take_turns({"store": store}, rounds=1, warm_up=False)
        candidates = {"stored": partial(ask, "stored", activations=tuple(stores)), "runs": partial(ask, "runs")}
        times = take_turns(candidates, rounds=1, warm_up=False)
    assert values["stored"] == values["runs"], "what is stored answers something else"
    yield writing.seconds(f"storing activations, {_of(name, asked)}", "store", by_processor=False)
    what = f"decodability, {_of(name, asked)}: on stored activations / without"
    yield times.ratio(what, "stored", "runs", 0.2)


def _memory(asked: Asked) -> Ratio:
    sizes = (asked.n, 4 * asked.n)
    once, fourfold = (measured_by("benchmarks.real", asdict(replace(asked, n=n))) for n in sizes)
    what = f"peak memory of {asked.memory_of} on {4 * asked.n} images / on {asked.n} ({once / 2**30:.2f} GiB)"
    return Ratio(what, [fourfold / once], [], fourfold / once, 1.1)


def _of(name: str, asked: Asked) -> str:
    side = "" if asked.image_size is None else f" of {asked.image_size} pixels"
    return f"{name}, {asked.n_fit} + {asked.n} images{side}"


def run_once(asked: Asked) -> None:
    """Print the peak memory of this process when it has run an analysis."""
    name, model, data, fit_data = asked.load()
    _ask(asked.memory_of, name, model, data, fit_data, asked.batch_size)
    print(peak_memory())


if __name__ == "__main__":
    run_once(Asked(**json.loads(sys.argv[1])))
