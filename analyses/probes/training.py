"""Logistic and MLP probes of many sites trained together: every mini-batch is read once and moves all of them.

Probes do not share a parameter and the optimiser works number by number, so that each comes out as it would alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from analyses.probes.probe import Layer
from hooked_vit.loading.progress import tqdm

Rows = Callable[[Int64[Tensor, "b"]], Float[Tensor, "b s d"]]


@dataclass(frozen=True)
class Training:
    """How mini-batch probes are trained. `hidden` units (0: logistic), `penalty` on squared weights, per image.

    Adam with `learning_rate`, at most `max_epochs`; of every probe the epoch is kept whose loss on the share
    `held_out` of the images is least, and training ends when none has improved for `patience` epochs.
    """

    hidden: int = 0
    penalty: float = 1e-3
    learning_rate: float = 0.01
    max_epochs: int = 100
    patience: int = 10
    batch_size: int = 128
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        rules = [
            (self.hidden >= 0, f"hidden units are 0 (none) or more, got {self.hidden}"),
            (self.penalty >= 0, f"a penalty is 0 or more, got {self.penalty}"),
            (self.learning_rate > 0, f"a learning rate is above 0, got {self.learning_rate}"),
            (
                min(self.max_epochs, self.patience, self.batch_size) >= 1,
                "epochs, patience and batch size are at least 1",
            ),
            (0 < self.held_out < 1, f"the share held out is between 0 and 1, got {self.held_out}"),
        ]
        for holds, message in rules:
            if not holds:
                raise ValueError(message)


@dataclass(frozen=True, eq=False)
class Trained:
    """Layers of each probe [s][k], the epoch each was taken from, and how many epochs there were."""

    layers: list[list[list[Layer]]]
    best_epoch: Int64[Tensor, "s k"]
    epochs: int


@torch.autocast("cpu", enabled=False)  # probes are of all digits wherever they are fitted
def train_together(
    rows: Rows,
    mean: Float[Tensor, "s d"],
    spread: Float[Tensor, "s d"],
    labels: Int64[Tensor, "n k"],
    n_classes: int,
    training: Training,
    what: str = "training probes",
) -> Trained:
    """Train a probe for each of s sites and k targets on n images; `rows` gives the features of some images.

    >>> x = torch.randn(60, 1, 4, generator=torch.Generator().manual_seed(0))
    >>> y = (x[:, 0, :1] > 0).long()
    >>> trained = train_together(lambda i: x[i], x.mean(0), x.std(0), y, 2, Training(learning_rate=0.1))
    >>> weight, bias = trained.layers[0][0][0]
    >>> float(((x[:, 0].double() @ weight.T + bias).argmax(1) == y[:, 0]).float().mean()) > 0.9
    True

    Features are centred and scaled by `mean` and `spread` on the way in, and the layers returned take them as they
    are. Everything random comes from `training.seed`, whatever the number of sites.
    """
    n_sites, d = mean.shape
    n, n_targets = labels.shape
    rng = torch.Generator().manual_seed(training.seed)
    order = torch.randperm(n, generator=rng)
    # With a handful of images there is nothing to spare: the loss on all of them decides.
    kept = max(1, round(n * (1 - training.held_out))) if n >= 20 else n
    fitted, checked = order[:kept], order[kept:] if kept < n else order
    weights = _initial(n_sites, n_targets, [d, *([training.hidden] * bool(training.hidden)), n_classes], rng)
    parameters = [p.requires_grad_() for layer in weights for p in layer]
    optimiser = torch.optim.Adam(parameters, lr=training.learning_rate)
    scale = torch.where(spread > 0, spread, torch.ones_like(spread))

    def losses(images: Tensor) -> Float[Tensor, "s k"]:
        x = ((rows(images) - mean) / scale).float().transpose(0, 1)[:, None]
        scores = _forward(x, weights).permute(2, 3, 0, 1)  # [b c s k]
        of_images = labels[images][:, None].expand(-1, n_sites, -1)
        return F.cross_entropy(scores, of_images, reduction="none").sum(0)

    best = [p.detach().clone() for p in parameters]
    least = torch.full((n_sites, n_targets), torch.inf)
    best_epoch = torch.zeros(n_sites, n_targets, dtype=torch.int64)
    epoch = 0
    for epoch in tqdm(range(1, training.max_epochs + 1), desc=what, delay=2, leave=False):
        for images in fitted[torch.randperm(kept, generator=rng)].split(training.batch_size):
            optimiser.zero_grad()
            penalty = sum(w.square().sum() for w, _ in weights) * (training.penalty / 2)
            (losses(images).sum() / len(images) + penalty).backward()
            optimiser.step()
        with torch.no_grad():
            total = sum(losses(images) for images in checked.split(training.batch_size)) / len(checked)
        assert isinstance(total, Tensor)
        better = total < least - 1e-4
        least, best_epoch = torch.where(better, total, least), best_epoch.masked_fill(better, epoch)
        for kept_value, p in zip(best, parameters, strict=True):
            kept_value[better] = p.detach()[better]
        if epoch - int(best_epoch.max()) >= training.patience:
            break
    layers = [
        [_raw([(best[2 * i][s, k], best[2 * i + 1][s, k]) for i in range(len(weights))], mean[s], scale[s])
         for k in range(n_targets)]
        for s in range(n_sites)
    ]  # fmt: skip
    return Trained(layers, best_epoch, epoch)


def _initial(n_sites: int, n_targets: int, widths: list[int], rng: torch.Generator) -> list[Layer]:
    """The same start for every probe, drawn as if there were one; zero for a logistic probe, whose loss is convex."""
    layers = []
    for before, after in pairwise(widths):
        bound = before**-0.5 if len(widths) > 2 else 0.0
        one = (torch.rand(after, before, generator=rng) * 2 - 1) * bound
        layers.append((one.repeat(n_sites, n_targets, 1, 1), torch.zeros(n_sites, n_targets, after)))
    return layers


def _forward(x: Float[Tensor, "s #k b d"], layers: list[Layer]) -> Float[Tensor, "s k b c"]:
    for i, (weight, bias) in enumerate(layers):
        x = torch.relu(x) if i else x
        x = x @ weight.transpose(-1, -2) + bias[:, :, None]
    return x


def _raw(layers: list[Layer], mean: Float[Tensor, "d"], scale: Float[Tensor, "d"]) -> list[Layer]:
    """Layers for standardised features, made to take them raw; in float64, as a large mean would cost digits."""
    doubled = [(w.double(), b.double()) for w, b in layers]
    weight = doubled[0][0] / scale.double()
    return [(weight, doubled[0][1] - weight @ mean.double()), *doubled[1:]]
