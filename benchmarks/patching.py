"""A layer x token patching map: beside plain hooks; attribution patching beside exact patching, and how they agree."""

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
TI = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
EVERY = 12
"""Plain hooks patch each twelfth token, as all of them would take minutes."""


def measure(quick: bool) -> Iterator[Ratio]:
    """Random weights show the speed; where the zoo has a counting model, trained weights show the agreement."""
    torch.manual_seed(0)
    size = {**TINY, "image_size": 32, "patch_size": 8} if quick else TI
    config = ViTConfig(num_labels=1000, architectures=["ViTForImageClassification"], **size)
    hf = ViTForImageClassification(config).eval()
    hf.set_attn_implementation("sdpa")
    with torch.no_grad():
        for parameter in hf.parameters():  # as initialised, a network is so nearly linear that any estimate is right
            if parameter.ndim == 2:
                parameter.mul_(2.5)
    model = HookedViT.from_hf(hf)
    clean = torch.randn(1, 3, *model.cfg.image_size, generator=torch.Generator().manual_seed(0))
    corrupt = clean.clone()
    quarter = model.cfg.image_size[0] // 4
    corrupt[:, :, quarter : 2 * quarter, quarter : 2 * quarter] = 0.0
    classes = (torch.tensor([0]), torch.tensor([1]))
    name = "tiny model" if quick else "random ViT-Ti/16"
    yield _beside_hooks(hf, model, clean, corrupt, classes, name, rounds=1 if quick else 3)
    yield from _compared(model, clean, corrupt, classes, name)
    if not quick and "vit-count" in zoo.names():
        yield from _compared(zoo.load("vit-count"), *_scenes(32), "zoo:vit-count")


def _beside_hooks(
    hf: ViTForImageClassification,
    model: HookedViT,
    clean: Tensor,
    corrupt: Tensor,
    classes: tuple[Tensor, Tensor],
    name: str,
    rounds: int,
) -> Ratio:
    """One run per layer and token, which gets the clean run's activation; the maps are compared before the time."""
    n_layers, tokens = model.cfg.n_layers, range(0, model.tokens.n_tokens, EVERY)
    maps: dict[str, Tensor] = {}

    def ours() -> None:
        kw = {"sites": "resid_post", "metric": "logit_diff", "classes": classes}
        each = {str(token): token for token in tokens}
        frame = activation_patching(model, clean, corrupt, **kw, tokens=each).frame
        maps["ours"] = torch.tensor(frame.sort_values(["layer", "group"]).value.to_numpy())

    @torch.no_grad()
    def hooks() -> None:
        donors: list[Tensor] = []
        handles = [layer.register_forward_hook(lambda _, args, out: donors.append(out)) for layer in hf.vit.layers]
        hf(clean)
        for handle in handles:
            handle.remove()
        found = []
        for layer in range(n_layers):
            for token in sorted(tokens, key=str):

                def patched(_: object, args: object, out: Tensor, layer: int = layer, token: int = token) -> Tensor:
                    out = out.clone()
                    out[:, token] = donors[layer][:, token]
                    return out

                handle = hf.vit.layers[layer].register_forward_hook(patched)
                logits = hf(corrupt).logits[0]
                handle.remove()
                found.append(float(logits[classes[0]] - logits[classes[1]]))
        maps["hooks"] = torch.tensor(found, dtype=torch.float64)

    times = take_turns({"ours": ours, "hooks": hooks}, rounds, warm_up=False)
    assert torch.allclose(maps["ours"].double(), maps["hooks"], atol=1e-3), "these are not the same patches"
    what = f"{n_layers} x {len(tokens)} patching map, {name}: ours / plain hooks on transformers sdpa"
    return times.ratio(what, "ours", "hooks")


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
