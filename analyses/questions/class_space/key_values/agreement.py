"""Whether the memories active at a token are those that promote its class, and what the layer then predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.activations.layers import measured_layers
from analyses.processes.walking import filling
from analyses.questions.class_space.measures.image_means import ImageMeans
from analyses.questions.class_space.measures.memories import (
    PARTS,
    MemoryTable,
    coefficient_site,
    memory_table,
    none_drawn,
    promotion,
)
from analyses.questions.class_space.measures.projection import (
    AS_TRAINED,
    Rules,
    check_rules,
    class_answers,
    project_role,
)
from analyses.questions.class_space.measures.updates import top_class
from analyses.statistics.comparisons import group_difference
from analyses.statistics.intervals import RATE
from analyses.statistics.ranks import correct, rank
from analyses.statistics.significance import holm, permutation_test
from hooked_vit import HookedViT

PUBLISHED_DRAWS = 300
AGREES = ("agreement", "trained", "A")


class KeyValues:
    """Agreement of active keys with the values that promote a class, and their match with the layer's prediction.

    The active memories of a token are the `top` with the largest signed coefficients. Definition A (methods §18, the
    code of Vilas et al. 2023): one of them is among the `top` memories that promote the image's class most. Definition
    B (their text): the class is among the `top` classes that one of them promotes most. Controls are `draws` wrong
    classes for every class, and the same for random memories.
    Match (§20): the top class of the sub-layer's output is the one an active memory promotes most.

    `layers` are all where none are named. `fold_gain` as in `value_vectors`; `before_activation` ranks MLP coefficients
    in front of the nonlinearity.
    Raises ValueError for fewer than one memory or draw or two classes, and for `before_activation` with a gated MLP.
    """

    def __init__(
        self,
        model: HookedViT,
        *,
        layers: Sequence[int] | None = None,
        top: int = 5,
        draws: int = 20,
        seed: int = 0,
        fold_gain: bool = False,
        before_activation: bool = False,
        rules: Rules = AS_TRAINED,
    ) -> None:
        n_classes = check_rules(model, rules)
        if top < 1 or draws < 1 or n_classes < 2:
            raise ValueError(
                "agreement needs at least one memory, one random class and two classes; "
                f"got top={top}, draws={draws} and {n_classes} classes"
            )
        if before_activation and model.cfg.gated_mlp:
            raise ValueError(
                "a gated MLP's coefficient is a product of two activations, so that there is none in front of the "
                "nonlinearity; take the coefficients behind it"
            )
        self.model, self.rules, self.top, self.before_activation = model, rules, top, before_activation
        self.n_classes = n_classes
        self.roles = list(model.tokens.roles)
        self.layers = measured_layers(model, layers)
        self.tables: dict[tuple[int, str, str], MemoryTable] = {}
        for layer in self.layers:
            for part in PARTS:
                for role in self.roles:
                    promoted = promotion(model, layer, part, role, rules, fold_gain=fold_gain)
                    self.tables[layer, part, role] = memory_table(promoted, top)
        shift = torch.randint(1, n_classes, (draws, n_classes), generator=torch.Generator().manual_seed(seed))
        self.wrong = (torch.arange(n_classes) + shift) % n_classes
        self.means = ImageMeans()
        self.labels: list[Tensor] = []
        self.right: list[Tensor] = []
        self.coefficients = {"tied": 0, "seen": 0}

    @property
    def share_tied(self) -> float:
        """Of how many tokens the last of the top coefficients is as large as the next."""
        return self.coefficients["tied"] / self.coefficients["seen"]

    def hooks(self, labels: Int[Tensor, "b"]) -> list[tuple[str, Callable]]:
        """What to run a batch with, its logits going to `finish`; raises ValueError for labels that are no class."""
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.n_classes:
            raise ValueError(f"classes are 0 to {self.n_classes - 1}; got {sorted(set(labels.tolist()))[-5:]}")
        hooks: list[tuple[str, Callable]] = []
        for layer in self.layers:
            for part in PARTS:
                read, judge = self._pair(layer, part, labels)
                hooks.append((coefficient_site(layer, part, before_activation=self.before_activation), read))
                hooks.append((f"blocks.{layer}.hook_{part}_out", judge))
        return hooks

    def _pair(self, layer: int, part: str, labels: Tensor) -> tuple[Callable, Callable]:
        active: list[Tensor] = []

        def read(x: Tensor, hook: Any) -> None:
            coefficients = x.flatten(2)
            k = min(self.top, coefficients.shape[-1])
            values, found = coefficients.topk(min(k + 1, coefficients.shape[-1]))
            active.append(found[..., :k])
            self.coefficients["seen"] += found[..., 0].numel()
            if values.shape[-1] > k:
                self.coefficients["tied"] += int((values[..., k] == values[..., k - 1]).sum())

        def judge(out: Tensor, hook: Any) -> None:
            self._judge(layer, part, active.pop(), out, labels.to(out.device))

        return read, judge

    def _judge(self, layer: int, part: str, active: Tensor, out: Tensor, labels: Tensor) -> None:
        layout = self.model.tokens
        found: dict[str, dict[tuple[str, str, str | None], Tensor]] = {}
        for role in self.roles:
            place = layout.where(role)
            here, table = active[:, place], self.tables[layer, part, role]
            predicted = top_class(project_role(self.model, out[:, place], role, self.rules))
            known = predicted >= 0
            match = (table.first_class[here] == predicted[..., None]).any(-1) & known
            luck = table.luck[predicted.clamp(min=0)] * known
            agree = _agreements(table, here, labels)
            wrong = [_agreements(table, here, w[labels]) for w in self.wrong.to(labels.device)]
            found[role] = {
                **{("agreement", "trained", d): x.float() for d, x in agree.items()},
                **{("agreement", "random_class", d): torch.stack([w[d] for w in wrong]).float().mean(0) for d in agree},
                ("match", "trained", None): match.float(),
                ("match", "random_memories", None): luck.float(),
            }
        counted = [role for role in self.roles if role != "registers"]
        found["all"] = {name: torch.cat([found[role][name] for role in counted], dim=1) for name in found[counted[0]]}
        # the published code takes token 0, whatever it is
        found["first"] = {AGREES: found["all"][AGREES][:, :1]}
        for role, measured in found.items():
            for name, values in measured.items():
                self.means.add((layer, part, role, *name), values.mean(1))

    def finish(self, logits: Float[Tensor, "b c"], labels: Int[Tensor, "b"]) -> None:
        """Note which images of the batch the model gets right: by its logits, or by its embedding and prototypes."""
        self.labels.append(labels.cpu())
        self.right.append(correct(rank(class_answers(self.model, logits, self.rules), labels.to(logits.device))).cpu())

    def rows(self, *, seed: int = 0, n_permutations: int = 1999, published: bool = False) -> Iterator[dict[str, Any]]:
        """Rows of methods §18 (agreement), §19 (difference of right and wrong images) and §20 (match).

        Agreements are means over classes, matches means over images; `tokens` "all" are CLS and image tokens.
        With `published`, §19 is tested as in the code: token 0 alone, 300 draws, p the share above the observed value.
        """
        labels, right = torch.cat(self.labels), torch.cat(self.right).numpy()
        columns = self.means.columns()
        plain, by_class = dict(self.means.rows()), dict(self.means.rows(labels))
        for key, row in by_class.items():
            layer, part, role, measure, control, definition = key
            if role == "first":
                continue
            at = {"layer": layer, "part": part, "tokens": role, "definition": definition}
            yield {"measure": measure, "control": control, **at, **(row if measure == "agreement" else plain[key])}
            if (measure, control) == ("agreement", "trained"):
                luck = self.chance(layer, part, definition)
                flat = {"value": luck, "low": luck, "high": luck, "n": row["n"]}
                yield {"measure": measure, "control": "chance", **at, **flat}
            if key[2:] == ("all", *AGREES):
                for label in labels.unique().tolist():
                    mine = columns[key][(labels == label).numpy()]
                    of_class = {"class": label, "value": float(mine.mean()), "n": len(mine)}
                    yield {"measure": "agreement_of_class", "control": control, **at, **of_class}
        yield from self._differences(columns, right, seed, n_permutations, published)

    def _differences(
        self, columns: dict[Any, np.ndarray], right: np.ndarray, seed: int, n_permutations: int, published: bool
    ) -> Iterator[dict[str, Any]]:
        for part in PARTS:
            for role in ("first",) if published else (*self.roles, "all"):
                rows = []
                for layer in self.layers:
                    values = columns[(layer, part, role, *AGREES)]
                    tokens = "first" if published else role
                    at = {"layer": layer, "part": part, "tokens": tokens, "definition": "A"}
                    row = {"measure": "right_minus_wrong", "control": "trained", **at, **difference(values, right)}
                    if row["n_right"] and row["n_wrong"]:
                        row["p"] = (
                            published_p(values, right, seed)
                            if published
                            else permutation_test(values, right, n_draws=n_permutations, seed=seed)
                        )
                    rows.append(row)
                if not published and all("p" in row for row in rows):
                    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
                        row["p_adjusted"] = p
                yield from rows

    def chance(self, layer: int, part: str, definition: str) -> float:
        """What random memories would agree by definition A (near top²/memories), or B (near top²/classes)."""
        table = next(table for (at, of, _), table in self.tables.items() if (at, of) == (layer, part))
        n_memories, k, j = len(table.top_classes), table.best_memories.shape[1], table.top_classes.shape[1]
        if definition == "A":
            return 1 - none_drawn(n_memories, k, min(self.top, n_memories))
        return 1 - (1 - j / self.n_classes) ** min(self.top, n_memories)


def _agreements(table: MemoryTable, active: Int[Tensor, "b t k"], labels: Int[Tensor, "b"]) -> dict[str, Tensor]:
    """Definition -> whether each token agrees with a class per image [b t]."""
    best = (active[..., None] == table.best_memories[labels][:, None, None]).flatten(2)
    promoted = (table.top_classes[active] == labels[:, None, None, None]).flatten(2)
    return {"A": best.any(-1), "B": promoted.any(-1)}


def difference(values: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Mean of images that are right minus mean of those that are wrong, 95 % interval, group sizes.

    Values are shares of tokens; a group of few images has an interval as wide as they leave it (`group_difference`).

    >>> difference(np.array([1.0, 0.0]), np.array([True, False]))["value"]
    1.0
    """
    a, b = values[right], values[~right]
    row: dict[str, Any] = {"n": len(values), "n_right": len(a), "n_wrong": len(b), "value": float("nan")}
    if len(a) and len(b):
        value, low, high = group_difference(a, b, bounds=RATE)
        row |= {"value": value, "low": low, "high": high}
    return row


def published_p(values: np.ndarray, group: np.ndarray, seed: int = 0) -> float:
    """The p-value of the code of Vilas et al. 2023: the share of 300 relabelings strictly above what was observed.

    >>> published_p(np.array([1.0, 0.0]), np.array([True, False]))
    0.0

    It can be 0, and where every relabeling gives the same value it is 0 too; `permutation_test` is neither.
    """
    rng = np.random.default_rng(seed)

    def apart(of: np.ndarray) -> float:
        return float(values[of].mean() - values[~of].mean())

    observed = apart(group)
    return float(np.mean([apart(rng.permutation(group)) > observed for _ in range(PUBLISHED_DRAWS)]))


@torch.no_grad()
def measure_key_values(
    model: HookedViT,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    layers: Sequence[int] | None = None,
    top: int = 5,
    draws: int = 20,
    n_permutations: int = 1999,
    fold_gain: bool = False,
    published: bool = False,
    seed: int = 0,
    rules: Rules = AS_TRAINED,
) -> tuple[list[dict[str, Any]], float]:
    """Everything §18–20 ask of one model, at `layers` or at all, from one pass over (pixels, classes of the head).

    >>> rows, tied = measure_key_values(model, [(pixels, labels)])  # doctest: +SKIP

    Rows hold measure, control, layer, part, tokens, definition, value, low, high, n; also the share of tokens whose
    choice of the `top` memories was arbitrary, because coefficients tied. `published` ranks MLP coefficients in front
    of the nonlinearity and tests as the code of Vilas et al. 2023 does.
    """
    tally = KeyValues(
        model,
        layers=layers,
        top=top,
        draws=draws,
        seed=seed,
        fold_gain=fold_gain,
        before_activation=published,
        rules=rules,
    )
    into = (tally.means, tally.labels, tally.right, tally.coefficients)
    for pixels, labels in filling(batches, *into):
        tally.finish(model.run_with_hooks(pixels, fwd_hooks=tally.hooks(labels)), labels)
    return list(tally.rows(seed=seed, n_permutations=n_permutations, published=published)), tally.share_tied
