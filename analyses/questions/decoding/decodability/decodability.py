"""What can a probe read from each kind of token at each layer, and how much of that is the model's doing?

Lines: accuracy of a probe on CLS, distillation and register tokens, the mean patch and one random patch after each
block, on images it was not fitted on. Dotted: the same for models of random weights, which have the architecture and
nothing else. Grey band: probes fitted on permuted labels, which can only guess. Further down: what a probe reads from
a few principal components, and how well it memorises labels dealt out at random (Hewitt & Liang 2019); and how
accuracy grows with the number of images. Decodable does not mean used: see cls-causality.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from analyses.activations.layers import measured_layers
from analyses.controls.control_task import ControlTask
from analyses.controls.random_weights import with_random_weights
from analyses.data import ImageData
from analyses.data.sets import check_learnable, keep_apart, two_sets
from analyses.probes import (
    EMBEDDING,
    Evaluation,
    FittedProbes,
    Probing,
    Site,
    TargetData,
    check_roles,
    evaluate_probes,
    fit_with_controls,
    roles_of,
    with_target,
)
from analyses.probes.targets import LABEL, ORIGIN
from analyses.questions.decoding.decodability.figure import (
    control_figure,
    curve_figure,
    in_words,
    main_figure,
    summary_table,
)
from analyses.running.notes import PROBES_READ, about_model
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.comparisons import another_rate, difference_of
from analyses.statistics.intervals import paired_difference, rate_row, wilson
from analyses.statistics.ranks import correct
from hooked_vit import HookedViT

CONTROLS = ("permuted", "random_weights", "pca", "selectivity", "memorised")
STEPS = 5  # of a learning curve, each with twice the images of the one before


@analysis(
    figure=main_figure,
    more_figures={
        "What the probe itself brings: controls on one role": control_figure,
        "How many images a probe needs": curve_figure,
    },
)
def decodability(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *,
    fit_data: ImageData | Any = None, other_data: ImageData | Any = None, roles: tuple[str, ...] = (),
    target: str = LABEL, probe: Literal["ridge", "logistic", "mlp"] = "ridge", controls: tuple[str, ...] = CONTROLS,
    learning_curve: bool = True, layers: tuple[int, ...] | None = None, embedding: bool = False, permutations: int = 10,
    random_models: int = 3, components: int = 16, seed: int = 0, batch_size: int = 64,
    activations: tuple[str, ...] | None = None,
) -> Result:  # fmt: skip
    """What can a probe read from each kind of token at each layer, beside what it would read from nothing?

    >>> result = decodability({"vit": zoo.load("vit")}, target="count", roles=("cls", "patches"))  # doctest: +SKIP
    >>> result.frame.query("measure == 'accuracy' and role == 'cls'")  # doctest: +SKIP

    Probes are fitted on `fit_data` (scenes: the train split; otherwise half of `data`, by class) in one pass for all
    roles and layers, and measured on `data`. `target` is "label", a column such as "count", "label=dog" for whether
    that is there, or "dataset" for whether an image is of `data` or of `other_data`. `roles` are those of
    `check_roles`, by default every kind of token and a random patch; a model that lacks one is measured without it.
    Behind the blocks `layers` alone where some are named; `embedding` adds the stream in front of the first, in the
    frame as layer -1. With `activations`, folders that
    `store_activations` filled, the models do not run (controls of random weights do, unless they are stored too).

    One row per model, role, layer and measure, with `n` images, an interval, and `n_fit` images fitted on: `accuracy`
    (Wilson) and `identifiability` (1 − rank / classes); `learning_curve`, accuracy after fewer images. Controls (none
    with "none"): `permuted`, accuracy of `permutations` probes of permuted labels, between `low` and `high` another one
    would fall (no row where features are the same in every image, and all classes score alike); `random_weights`,
    accuracy on `random_models` models of the same configuration, by `seed`; `pca`, accuracy from `components` principal
    components, the same for every layer and model; `control_task`, accuracy on new images of a probe fitted to answers
    drawn at random for every type of picture (`ControlTask`), and `selectivity`, accuracy minus that on the same
    images (Hewitt & Liang 2019); `memorised`, accuracy of the permuted probes on the images they were fitted on, and
    `beyond_memorised`, accuracy minus that. `chance` is the share of the most frequent class.
    Raises ValueError for roles no model has, targets and controls there are not, and fewer than two classes.
    """
    if unknown := [c for c in controls if c not in (*CONTROLS, "none")]:
        raise ValueError(f"controls are {', '.join(CONTROLS)}, or none; got {unknown[0]!r}")
    if min(permutations, random_models, components) < 1:
        raise ValueError("permutations, random models and components are at least 1; leave a control out of `controls`")
    read = {name: _roles(name, model, roles, models) for name, model in models.items()}
    measured, fitted, note = _two_sets(data, fit_data, other_data, target)
    study = _Study(
        measured, fitted, controls, learning_curve, layers, embedding, probe, permutations, random_models, components,
        seed, batch_size,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for name, model in models.items():
        about = {"model": name, "architecture": model.cfg.architecture}
        rows += [{**about, **row} for row in study.rows(name, model, read[name])]
    frame = pd.DataFrame(rows).astype({"layer": "Int64", "seed": "Int64", "n_fit": "Int64"})
    meta = {
        "models": {name: {**about_model(model, PROBES_READ), "roles": read[name]} for name, model in models.items()},
        "data": measured.about(),
        "fit_data": fitted.about(note),
        **{"target": target, "classes": measured.target.classes, "probe": probe, "controls": controls},
        "components": components,
        "permutations": permutations,
        "seeds": [seed],
        "batch_size": batch_size,
    }
    result = Result(frame, meta)
    lacking = [f"{name} has no {', '.join(gone)}" for name in models if (gone := _lacks(read[name], read, roles))]
    result.meta["summary"], result.meta["notes"] = in_words(result), [*lacking, *study.notes]
    table = summary_table(result).astype(object)
    result.meta["table"] = table.where(table.notna(), None).to_dict("records")
    return result


def _roles(name: str, model: HookedViT, roles: Sequence[str], models: Mapping[str, HookedViT]) -> tuple[str, ...]:
    """The roles of these a model has; those no model has are an error."""
    if not roles:
        return roles_of(model)
    held: list[str] = []
    for role in roles:
        try:
            held += check_roles(model, [role], name)
        except ValueError:
            if not any(_has(other, role) for other in models.values()):
                raise
    if not held:
        raise ValueError(f"{name} has none of the roles {', '.join(roles)}; it has {', '.join(roles_of(model))}")
    return check_roles(model, held, name)


def _has(model: HookedViT, role: str) -> bool:
    try:
        return bool(check_roles(model, [role]))
    except ValueError:
        return False


def _lacks(held: Sequence[str], all_held: Mapping[str, Sequence[str]], asked: Sequence[str]) -> list[str]:
    wanted = dict.fromkeys(role for others in all_held.values() for role in others) if asked else {}
    return [role for role in wanted if role not in held]


def _two_sets(data: Any, fit_data: Any, other_data: Any, target: str) -> tuple[TargetData, TargetData, str]:
    """What to measure on and what to fit on, with the answers numbered alike."""
    if (target == ORIGIN) != (other_data is not None):
        raise ValueError(
            f"target={ORIGIN!r} asks which of two data sets an image is from: give other_data with it, and only with it"
        )
    if target == ORIGIN and fit_data is not None:
        raise ValueError(
            f"target={ORIGIN!r} fits on half of each data set (scenes: the train split); leave out fit_data"
        )
    sets = [two_sets(data, fit_data), *([two_sets(other_data)] if other_data is not None else [])]
    halves = keep_apart([s.measured for s in sets], [s.fitted for s in sets]) if len(sets) > 1 else sets[0][:2]
    measured, fitted = with_target(target, *halves)
    check_learnable(measured.labels, fitted.labels, fitted.name)
    return measured, fitted, "; ".join(dict.fromkeys(s.note for s in sets))


class _Study:
    """The settings all models share, and what must be known of their fits."""

    def __init__(
        self, measured: TargetData, fitted: TargetData, controls: Sequence[str], learning_curve: bool,
        layers: Sequence[int] | None, embedding: bool, probe: str, permutations: int, random_models: int,
        components: int, seed: int, batch_size: int,
    ) -> None:  # fmt: skip
        self.measured, self.fitted, self.controls = measured, fitted, controls
        self.layers, self.embedding = layers, embedding
        self.probe, self.seed, self.batch_size = probe, seed, batch_size
        dealt = "permuted" in controls or "memorised" in controls
        self.permutations = permutations if dealt else 0
        self.random_models = random_models if "random_weights" in controls else 0
        self.components = components if "pca" in controls else None
        n = fitted.n or 0
        self.sizes = sorted({n // 2**step for step in range(1, STEPS)} - {0}) if learning_curve else []
        self.notes: list[str] = []

    def rows(self, name: str, model: HookedViT, roles: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """Rows of a model, without its name."""
        layers = (*([EMBEDDING] * self.embedding), *measured_layers(model, self.layers))
        how = Probing(roles=roles, layers=layers, probe=self.probe, seed=self.seed, batch_size=self.batch_size)
        control = self._control_task()
        fits = fit_with_controls(
            model, self.fitted, how, permutations=self.permutations, components=self.components, sizes=self.sizes,
            control=control, name=name,
        )  # fmt: skip
        self.notes += [f"{name}: {note}" for note in fits.probes.notes]
        permuted: dict[Any, FittedProbes] = {("permuted", i): p for i, p in enumerate(fits.permuted)}
        every = {"probe": fits.probes, **permuted, **({"pca": fits.pca} if fits.pca is not None else {})}
        every |= {("curve", size): probes for size, probes in fits.curve.items()}
        said = self._apply(model, every, self.measured, f"{name}: applying probes")
        n_fit = sum(fits.probes.counts)
        yield from _rows(said["probe"], n_fit)
        if absent := [c for c, k in zip(self.measured.target.classes, said["probe"].counts, strict=True) if not k]:
            self.notes.append(f"no image of {', '.join(absent[:5])} to measure on")
            self.notes = list(dict.fromkeys(self.notes))
        if "permuted" in self.controls:
            varies = {site for site, fitted in fits.probes.probes.items() if fitted.varies}
            yield from _permuted([said[key] for key in permuted], n_fit, varies)
        if "pca" in said:
            yield from _accuracy(said["pca"], "pca", n_fit)
        if self.sizes:
            for key in (key for key in every if key[0] == "curve"):
                yield from _accuracy(said[key], "learning_curve", key[1])
            yield from _accuracy(said["probe"], "learning_curve", n_fit)
        if fits.control is not None:
            both = {"probe": fits.probes, "control": fits.control}
            task = self._apply(
                model, both, self.measured.with_control(control), f"{name}: control task", {"control": 1}, True
            )
            yield from _selectivity(task["probe"], task["control"], n_fit)
        if "memorised" in self.controls:
            dealt = self.fitted.with_permutations(self.permutations, self.seed)
            columns = {key: 1 + i for i, key in enumerate(permuted)}
            own = self._apply(model, permuted, dealt, f"{name}: permuted labels by heart", columns, by_heart=True)
            yield from _beyond_memorised(said["probe"], [own[key] for key in permuted], n_fit)
        for i in range(self.random_models):
            drawn = self.seed * 1000 + i
            random = with_random_weights(model, drawn)
            probes = fit_with_controls(random, self.fitted, how, name=f"{name} with random weights").probes
            one = self._apply(random, {"": probes}, self.measured, f"{name} with random weights: applying probes")[""]
            yield from _accuracy(one, "random_weights", n_fit, seed=drawn)
        chance = said["probe"].chance
        place = {"role": None, "layer": None, "measure": "chance", "seed": None, "n_fit": None}
        yield {**place, "value": chance, "low": chance, "high": chance, "n": said["probe"].n}

    def _control_task(self) -> ControlTask | None:
        """Raises ValueError for a stream, whose labels are not known beforehand."""
        if "selectivity" not in self.controls:
            return None
        labels = self.fitted.labels
        if labels is None:
            raise ValueError(f"a control task needs the labels beforehand, and {self.fitted.name} is a stream")
        return ControlTask.drawn(labels.numpy(), self.seed)

    def _apply(
        self, model: HookedViT, probes: Mapping[Any, FittedProbes], data: TargetData, what: str, columns: Any = None,
        per_image: bool = False, by_heart: bool = False,
    ) -> dict[Any, Evaluation]:  # fmt: skip
        how: dict[str, Any] = {"per_image": per_image, "by_heart": by_heart, "what": what}
        return evaluate_probes(model, probes, data, columns=columns, batch_size=self.batch_size, **how)


def _rows(said: Evaluation, n_fit: int) -> Iterator[dict[str, Any]]:
    for row in said.rows():
        yield {**row, "seed": None, "n_fit": n_fit}


def _accuracy(said: Evaluation, measure: str, n_fit: int, seed: int | None = None) -> Iterator[dict[str, Any]]:
    for row in _rows(said, n_fit):
        if row["measure"] == "accuracy":
            yield {**row, "measure": measure, "seed": seed}


def _permuted(said: Sequence[Evaluation], n_fit: int, varies: set[str]) -> Iterator[dict[str, Any]]:
    """The mean over permutations, and where the accuracy of one more would fall: by permutation, and by image."""
    n = said[0].n
    for site in [site for site in said[0].hits if site in varies]:
        value, low, high = another_rate([s.hits[site] for s in said], n)
        bounds = {"value": value, "low": low, "high": high, "n": n}
        yield {**Site.parse(site)._asdict(), "measure": "permuted", "seed": None, "n_fit": n_fit, **bounds}


def _selectivity(task: Evaluation, control: Evaluation, n_fit: int) -> Iterator[dict[str, Any]]:
    """Accuracy on the control task, and by how much that on the task is above it: test against test, paired."""
    for site, hits in control.hits.items():
        place = {**Site.parse(site)._asdict(), "seed": None, "n_fit": n_fit}
        yield {**place, "measure": "control_task", **rate_row(hits, control.n)}
        right = [correct(said.ranks[site]).numpy() for said in (task, control)]
        value, low, high = paired_difference(*right)
        yield {**place, "measure": "selectivity", "value": value, "low": low, "high": high, "n": control.n}


def _beyond_memorised(said: Evaluation, own: Sequence[Evaluation], n_fit: int) -> Iterator[dict[str, Any]]:
    """How many random labels the probe learns by heart, and by how much it is right more often on new images."""
    for site, hits in said.hits.items():
        place = {**Site.parse(site)._asdict(), "seed": None, "n_fit": n_fit}
        by_heart = round(sum(o.hits[site] for o in own) / len(own))
        yield {**place, "measure": "memorised", **rate_row(by_heart, own[0].n)}
        value, low, high = difference_of(wilson(hits, said.n), wilson(by_heart, own[0].n))
        yield {**place, "measure": "beyond_memorised", "value": value, "low": low, "high": high, "n": said.n}
