"""A layer x token patching map: attribution patching beside exact patching, and how well their ranks agree."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pandas as pd
import torch
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

from analyses.data import load_data
from analyses.questions.patching.activation_patching import activation_patching
from analyses.questions.patching.attribution_patching import attribution_patching
from benchmarks._models import TINY
from benchmarks._timing import Ratio, take_turns
from hooked_vit import HookedViT, zoo

# ViT-Ti/16: 12 layers and 197 tokens as in ViT-B/16, so that 2364 exact patches end within a minute or two
SMALL = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}


def measure(quick: bool) -> Iterator[Ratio]:
    """Random weights show the speed; where the zoo has a counting model, trained weights show the agreement."""
    torch.manual_seed(0)
    size = {**TINY, "image_size": 32, "patch_size": 8} if quick else SMALL
    config = ViTConfig(num_labels=1000, architectures=["ViTForImageClassification"], **size)
    model = HookedViT.from_hf(ViTForImageClassification(config).eval())
    with torch.no_grad():
        for parameter in model.parameters():  # as initialised, a network is so nearly linear that any estimate is right
            if parameter.ndim == 2:
                parameter.mul_(2.5)
    clean = torch.randn(1, 3, *model.cfg.image_size, generator=torch.Generator().manual_seed(0))
    corrupt = clean.clone()
    quarter = model.cfg.image_size[0] // 4
    corrupt[:, :, quarter : 2 * quarter, quarter : 2 * quarter] = 0.0
    classes = (torch.tensor([0]), torch.tensor([1]))
    yield from _compared(model, clean, corrupt, classes, "tiny model" if quick else "random ViT-Ti/16")
    if not quick and "vit-count" in zoo.names():
        yield from _compared(zoo.load("vit-count"), *_scenes(32), "zoo:vit-count")


def _compared(
    model: HookedViT, clean: Tensor, corrupt: Tensor, classes: tuple[Tensor, Tensor], name: str
) -> Iterator[Ratio]:
    frames: dict[str, pd.DataFrame] = {}
    kw = {"sites": "resid_post", "tokens": "each", "metric": "logit_diff", "classes": classes}

    def estimate(how: str, steps: int) -> None:
        frames[how] = attribution_patching(model, clean, corrupt, **kw, check=0, steps=steps).frame

    def exact() -> None:
        frames["exact"] = activation_patching(model, clean, corrupt, **kw).frame

    estimates = {"attribution": partial(estimate, "attribution", 0), "integrated": partial(estimate, "integrated", 8)}
    estimates["attribution"]()  # warms up what the first call builds
    times = take_turns({**estimates, "exact": exact}, rounds=1, warm_up=False)
    maps = pd.DataFrame({how: frame.set_index(["layer", "group"]).value for how, frame in frames.items()})
    cells = f"{model.cfg.n_layers} x {model.tokens.n_tokens} patching map, {name}: "
    for how, called in (("attribution", "attribution"), ("integrated", "integrated gradients (8 steps)")):
        spearman, pearson = (maps.corr(method=kind).loc[how, "exact"] for kind in ("spearman", "pearson"))
        speed_up = times.wall["exact"][0] / times.wall[how][0]
        found = f"{speed_up:.0f} x faster, rank correlation {spearman:.2f} (Pearson {pearson:.2f})"
        yield times.ratio(f"{cells}{called} / exact; {found}", how, "exact")


def _scenes(n: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    batch = next(iter(load_data("scenes:test", n=n).batches(n, extra=["pair", "count"])))
    model, counts = zoo.load("vit-count"), torch.tensor(batch.extra["count"])
    return model.preprocess(batch.images), model.preprocess(batch.extra["pair"]), (counts, counts - 1)
