"""Training a readout around a frozen block: seeded, stopped early, and resumed where it was left."""

from __future__ import annotations

import copy
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.questions.cls_use.random_readouts.frozen import FrozenBlock
from analyses.questions.cls_use.random_readouts.looked import LookedStream
from analyses.questions.cls_use.random_readouts.networks import TokenReadout
from analyses.questions.cls_use.random_readouts.streams import Stream
from analyses.running.notice import notice
from analyses.statistics.ranks import correct, rank
from hooked_vit.loading.digests import digest
from hooked_vit.loading.files import write_whole
from hooked_vit.loading.progress import tqdm

Kept = Stream | LookedStream
"""What a readout is trained on; the same numbers either way, and far fewer steps where the block has looked before."""
EVALUATION = 256  # images at a time where nothing is learned
# Noise in training, in evaluation and in the weights at first must not come from one sequence.
TRAINING_SEED, EVALUATION_SEED = 1_000_003, 2_000_003


@dataclass(frozen=True)
class Training:
    """Adam until `patience` epochs brought nothing better on validation images, and for `epochs` at the most.

    Better is a higher accuracy, or the same with a lower loss. The learning rate stays `lr`, or falls along a cosine
    to `lr_min` where one is given.
    """

    epochs: int = 60
    batch_size: int = 64
    lr: float = 1e-3
    lr_min: float | None = None
    patience: int = 8
    seed: int = 0


class Trained(NamedTuple):
    """The readout at its best epoch, one row per epoch, the learning rate, and what to keep in mind.

    It `stopped` where validation no longer got better, rather than because the epochs were used up.
    """

    readout: TokenReadout
    history: list[dict[str, float]]
    best_epoch: int
    notes: list[str]
    lr: float
    stopped: bool

    @property
    def reached(self) -> tuple[float, float]:
        """Validation accuracy and minus the loss at the best epoch: of two trainings, the greater is the better."""
        return _better(self.history[self.best_epoch - 1])


class Draws(NamedTuple):
    """What a readout says of every image: right with one draw, right with the mean of all, agreement of any two; and
    the loss with one draw."""

    one: Bool[Tensor, "n"]
    mean: Bool[Tensor, "n"]
    agreement: Float[Tensor, "n"]
    loss: Float[Tensor, "n"]


def train(
    readout: TokenReadout,
    block: FrozenBlock,
    fit: Kept,
    validation: Kept,
    settings: Training,
    *,
    checkpoint: Path | None = None,
    what: str = "training",
) -> Trained:
    """Train a copy of `readout` on `fit` and keep its best epoch on `validation`.

    With `checkpoint` (a path without ending) every epoch is kept, whole or not at all, under a key of all that went
    in; the same call goes on from there, to the same numbers. A damaged file is noticed, noted and begun anew.
    Raises FloatingPointError when the loss is no longer a number.
    """
    readout = copy.deepcopy(readout)
    key = _key(readout, block, fit, validation, settings)
    path = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}-{key[:16]}.training")
    batches = _batches(len(fit.labels), settings.batch_size)
    steps = settings.epochs * len(batches)
    lr_min = settings.lr if settings.lr_min is None else settings.lr_min
    optimiser = torch.optim.Adam(readout.parameters(), lr=settings.lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps, eta_min=lr_min)
    generator = torch.Generator().manual_seed(settings.seed + TRAINING_SEED)
    history: list[dict[str, float]] = []
    best_epoch, best = 0, copy.deepcopy(readout.state_dict())
    state, notes = _load(path, key)
    if state is not None:
        readout.load_state_dict(state["readout"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        history, best_epoch, best = state["history"], state["best_epoch"], state["best"]
    with block.ready(), tqdm(total=steps, initial=len(history) * len(batches), desc=what, leave=False) as bar:
        while len(history) < settings.epochs and len(history) - best_epoch < settings.patience:
            order = torch.randperm(len(fit.labels), generator=generator)
            readout.train()
            total = hits = 0.0
            for rows in (order[part] for part in batches):
                x, labels = fit.batch(rows.sort().values)
                scores = readout(block, x, generator)
                loss = F.cross_entropy(scores, labels.to(scores.device))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total += loss.item() * len(rows)
                hits += int((scores.argmax(-1).cpu() == labels).sum())
                bar.update()
            if not math.isfinite(total):
                raise FloatingPointError(f"{what}: the loss is no number in epoch {len(history) + 1}; take a lower lr")
            drawn = evaluate(readout, block, validation, seed=settings.seed)
            accuracy, validation_loss = (v.double().mean().item() for v in (drawn.one, drawn.loss))
            n = len(order)
            row = {"loss": total / n, "fit_accuracy": hits / n, "validation_accuracy": accuracy}
            history.append({**row, "validation_loss": validation_loss})
            if not best_epoch or _better(history[-1]) > _better(history[best_epoch - 1]):
                best_epoch, best = len(history), copy.deepcopy(readout.state_dict())
            bar.set_postfix(validation=f"{accuracy:.3f}")
            _save(
                path,
                {
                    "key": key,
                    "readout": readout.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "schedule": schedule.state_dict(),
                    "generator": generator.get_state(),
                    "history": history,
                    "best_epoch": best_epoch,
                    "best": best,
                },
            )
    readout.load_state_dict(best)
    stopped = len(history) - best_epoch >= settings.patience
    return Trained(readout.eval(), history, best_epoch, notes, settings.lr, stopped)


def train_at_best_rate(
    readout: TokenReadout,
    block: FrozenBlock,
    fit: Kept,
    validation: Kept,
    settings: Training,
    rates: Sequence[float],
    **kw: Any,
) -> Trained:
    """The best on validation images of trainings at several learning rates, the lower rate where two are as good.

    Each is a whole training, with `train`'s keywords. Raises FloatingPointError where the loss of every one of them is
    no number.
    """
    done: list[Trained] = []
    errors: list[FloatingPointError] = []
    for lr in sorted(rates):
        try:
            done.append(train(readout, block, fit, validation, replace(settings, lr=lr), **kw))
        except FloatingPointError as error:
            errors.append(error)
    if not done:
        raise errors[0]
    best = max(done, key=lambda each: each.reached)
    return best._replace(notes=[note for each in done for note in each.notes])


@torch.no_grad()
def evaluate(readout: TokenReadout, block: FrozenBlock, stream: Kept, *, seed: int, draws: int = 1) -> Draws:
    """Accuracy per image with one draw of the token and with the mean scores of `draws`, and how often draws agree.

    The noise depends on `seed` alone. Agreement is the share of pairs of draws with the same answer; 1 for one draw.
    The block must be `ready`.
    """
    readout.eval()
    generator = torch.Generator().manual_seed(seed + EVALUATION_SEED)
    parts: list[tuple[Tensor, ...]] = []
    for rows in torch.arange(len(stream.labels)).split(EVALUATION):
        x, labels = stream.batch(rows)
        x = x.to(next(readout.parameters()).device)
        scores = torch.stack([readout(block, x, generator) for _ in range(draws)]).cpu()
        said = F.one_hot(scores.argmax(-1), scores.shape[-1]).sum(0).double()
        same = (said * (said - 1)).sum(-1) / (draws * (draws - 1)) if draws > 1 else torch.ones(len(x))
        right = correct(rank(scores[0], labels)), correct(rank(scores.double().mean(0), labels))
        parts.append((*right, same.float(), F.cross_entropy(scores[0], labels, reduction="none")))
    return Draws(*map(torch.cat, zip(*parts, strict=True)))


def _better(row: dict[str, float]) -> tuple[float, float]:
    return row["validation_accuracy"], -row["validation_loss"]


def _batches(n: int, batch_size: int) -> list[slice]:
    """Where the batches of an epoch begin and end; an image left over alone joins the last one."""
    starts = list(range(0, n, batch_size))
    if len(starts) > 1 and n - starts[-1] == 1:
        starts.pop()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], n], strict=True)]


def _key(readout: TokenReadout, block: FrozenBlock, fit: Kept, validation: Kept, settings: Training) -> str:
    """A digest of all that decides how the training goes."""
    facts = [asdict(settings), block.layer, block.placement, fit.checksum, validation.checksum]
    weights = [dict(module.state_dict()) for module in (readout, block.model.blocks[block.layer])]
    return digest(facts, weights)


def _save(path: Path | None, state: dict[str, Any]) -> None:
    if path is None:
        return
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_whole(path, lambda to: to.write_bytes(hashlib.sha256(content).digest() + content))


def _load(path: Path | None, key: str) -> tuple[dict[str, Any] | None, list[str]]:
    """What was kept of this very training; None, and a note, where the file is damaged."""
    if path is None or not path.exists():
        return None, []
    content = path.read_bytes()
    if hashlib.sha256(content[32:]).digest() == content[:32]:
        state = torch.load(io.BytesIO(content[32:]), weights_only=True)
        if state["key"] == key:
            return state, []
    damaged = f"{path.name} is damaged: its checksum is not that of its content; the training began anew"
    return None, [notice(damaged)]
