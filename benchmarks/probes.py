"""Ridge probes of all layers from one pass: beside scikit-learn layer by layer, and memory with ever more images."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GridSearchCV

from analyses.processes.memory import peak_memory
from benchmarks._memory import measured_by
from benchmarks._timing import Ratio, take_turns
from hooked_vit.config import ViTConfig

BATCH, CLASSES = 128, 10
ALPHAS = tuple(10 ** (k / 4) for k in range(-4, 13))


def measure(quick: bool) -> Iterator[Ratio]:
    """The same features and penalties for all; that the scores are the same is checked before anything is timed."""
    yield from _time(quick)
    yield _memory(quick)


def _time(quick: bool) -> Iterator[Ratio]:
    from analyses.probes.ridge import GramRidge

    n, d, layers = (120, 8, 2) if quick else (3000, 256, 6)
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (n,), generator=rng)
    means = torch.randn(CLASSES, d, generator=rng) / 4
    features = {f"layer {layer}": means[labels] + torch.randn(n, d, generator=rng) for layer in range(layers)}
    targets = 2 * np.eye(CLASSES)[labels.numpy()] - 1

    def ours() -> dict:
        ridge = GramRidge(CLASSES)
        for rows in torch.arange(n).split(BATCH):
            ridge.update({layer: x[rows] for layer, x in features.items()}, labels[rows])
        return ridge.fit(ALPHAS)

    def generalised() -> list:
        return [RidgeCV(ALPHAS).fit(x.double().numpy(), targets) for x in features.values()]

    def five_fold() -> list:
        search = GridSearchCV(Ridge(), {"alpha": ALPHAS}, scoring="neg_mean_squared_error")
        return [search.fit(x.double().numpy(), targets).best_estimator_ for x in features.values()]

    for layer, probe in ours().items():
        x = features[layer].double()
        theirs = Ridge(alpha=probe.alpha).fit(x.numpy(), targets).predict(x.numpy())
        assert np.abs(probe.scores(x).numpy() - theirs).max() < 1e-8, "scikit-learn computes something else"
    candidates = {"ours": ours, "generalised": generalised, "five_fold": five_fold}
    times = take_turns(candidates, rounds=1 if quick else 3, warm_up=False)
    where = f"ridge probes, {layers} layers × {d} units, {n} images: ours / scikit-learn "
    yield times.ratio(f"{where}RidgeCV", "ours", "generalised", 0.2)
    yield times.ratio(f"{where}5-fold search", "ours", "five_fold", 0.2)


def _memory(quick: bool) -> Ratio:
    n = 40 if quick else 2000
    once, fourfold = (measured_by("benchmarks.probes", {"n": m, "quick": quick}) for m in (n, 4 * n))
    ratio = fourfold / once
    return Ratio(f"peak memory fitting probes on {4 * n} images / on {n}", [ratio], [], ratio, 1.03)


class _Pictures:
    """Images made when asked for, so that only what the probes keep can grow."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> np.ndarray:
        if not 0 <= i < self.n:
            raise IndexError(i)
        return np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)


def fit(n: int, quick: bool) -> None:
    """Fit probes of every kind of token at every layer on `n` images, and print this process's peak memory."""
    from transformers import ViTImageProcessorPil

    from analyses.data import as_data
    from analyses.probes import fit_probes
    from hooked_vit import HookedViT

    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = {"d_model": 32, "n_layers": 2} if quick else {"d_model": 192, "n_layers": 8}
    model = HookedViT(ViTConfig(n_heads=4, d_mlp=64, image_size=(32, 32), patch_size=8, n_classes=CLASSES, **size))
    model.processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    data = as_data((_Pictures(n), [i % CLASSES for i in range(n)]))
    fit_probes(model, data, roles=("cls", "patches", "random_patch"), batch_size=40)
    print(peak_memory())


if __name__ == "__main__":
    fit(**json.loads(sys.argv[1]))
