"""How well can one block, given its image tokens, write the label into an arbitrary CLS token?

The model runs as it is. One frozen block is then run a second time on its own input: as it was (blue: null, the block's
own CLS), with CLS replaced by a token drawn from a learned distribution (orange: replace), or with that token beside
CLS (green: augment). A small decoder, trained with the generator of the token, reads the block's output at that token.
The random token knows nothing of the image: all it can answer comes from the other tokens through this one block.

Controls: the same decoder on the block's own CLS, once warm-started from another layer as the others are and once
trained from scratch (de novo); one learned token for all images in place of random ones; and chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from analyses.data import ImageData
from analyses.data.sets import classes_to_learn, two_sets
from analyses.questions.cls_use.random_readouts.figure import curves_figure, main_figure, summary_table
from analyses.questions.cls_use.random_readouts.networks import Decoder, make_decoder
from analyses.questions.cls_use.random_readouts.readouts import Layers, ModelReadouts, slug
from analyses.questions.cls_use.random_readouts.store import check_room, clear, plan, size
from analyses.questions.cls_use.random_readouts.training import Training
from analyses.running.files import check_writable
from analyses.running.locks import hold_folder, scratch_folder
from analyses.running.notes import about_data, about_model
from analyses.running.registry import analysis
from analyses.running.results import Result
from hooked_vit import HookedViT
from interventions.vocabulary import indices

LAST = 3  # one layer in so many, the last ones, where none are named: 8 to 11 of 12, as in the source


@analysis(figure=main_figure, more_figures={"How the training went": curves_figure})
def random_readouts(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *,
    fit_data: ImageData | Any = None, layers: tuple[int, ...] | None = None, start: int | None = None,
    decoder: Decoder = "linear", epochs: int = 5, batch_size: int = 64, lr: float = 1e-3, patience: int = 5,
    draws: int = 16, seeds: int = 1, seed: int = 0, cache_dtype: Literal["float32", "float16"] = "float32",
    keep_in: str | None = None, repro: bool = False,
) -> Result:  # fmt: skip
    """How much of the label can one block write into a CLS token that knows nothing of the image?

    >>> random_readouts({"vit": zoo.load("vit")}, layers=(5, 6)).figure()  # doctest: +SKIP

    Readouts are trained on four fifths of `fit_data`, chosen by the rest (validation), and measured on `data` (test);
    without `fit_data` half of `data` is set aside for it (scenes: the train split). `layers` are the last third unless
    named. The readouts of layer `start` (the last but one) begin from scratch and those of the other layers from
    its weights; `null_de_novo` begins from scratch everywhere. `draws` tokens per image are averaged at the end.
    Every training is repeated with `seeds` seeds, beginning with `seed`.

    The inputs of the blocks are kept on disk, as `cache_dtype`, in a temporary folder or in `keep_in`; there the
    trainings are kept as well, and the same call continues where it was interrupted, to the same numbers.
    `repro` has batch norms in the generator, as the source had when it was published, and draws validation accuracy
    where the source calls it test.

    The frame has one row per model, layer, mode, measure, split and seed: `value`, `low`, `high`, `n`. Measures:
    accuracy (one draw per image), accuracy_mean_of_draws, agreement (share of pairs of draws with one answer),
    difference (`mode` says of which two; paired bootstrap), chance (the most frequent class), and per `epoch` loss,
    fit_accuracy and validation_accuracy. Source: methods §6, lab note 2.
    Raises ValueError for a model without CLS, fewer training images than classes, settings out of range; OSError
    where the disk has no room, before anything is run, and InUseError where another process has `keep_in`.
    """
    measured, fitted, note = two_sets(data, fit_data)
    n_classes = classes_to_learn(measured, fitted)
    _check(epochs=epochs, seeds=seeds, patience=patience, batch_size=batch_size, draws=draws)
    if not lr > Training.lr_min:
        raise ValueError(f"the learning rate falls to {Training.lr_min:g}, so it begins above that; got lr={lr:g}")
    make_decoder(decoder, 1, n_classes)
    chosen = {name: _layers(name, model, layers, start) for name, model in models.items()}
    fit, validation = fitted.split(0.8)
    splits = {"fit": fit, "validation": validation, "test": measured}
    if len(fit) < n_classes:
        raise ValueError(f"{n_classes} classes cannot be learned from {len(fit)} images; give more with fit_data")
    rows: list[dict[str, Any]] = []
    notes: list[str] = _notes(splits, n_classes, seeds, epochs * -(-len(fit) // batch_size))
    with _folder(keep_in) as folder:
        plans = {
            name: {
                split: plan(model, part, chosen[name].all, folder, dtype=cache_dtype, name=f"{slug(name)}-{split}")
                for split, part in splits.items()
            }
            for name, model in models.items()
        }
        if keep_in is None:  # then each model's files make room for the next one's
            needed = max(check_room(each.values(), folder) for each in plans.values())
        else:
            needed = check_room([p for each in plans.values() for p in each.values()], folder)
        for name, model in models.items():
            study = ModelReadouts(name, model, chosen[name], n_classes, decoder, repro, draws)
            notes += study.cache(plans[name], splits)
            for each in range(seed, seed + seeds):
                settings = Training(epochs=epochs, batch_size=batch_size, lr=lr, patience=patience, seed=each)
                notes += study.run(settings, folder if keep_in is not None else None)
            rows += [{"model": name, "architecture": model.cfg.architecture, **row} for row in study.rows]
            if keep_in is None:
                study.forget(plans[name])
    columns = dict.fromkeys(("layer", "seed", "epoch"), "Int64")
    result = Result(pd.DataFrame(rows).astype(columns), {
        "models": {name: {**about_model(model), "start": chosen[name].start} for name, model in models.items()},
        "data": about_data(measured),
        "fit_data": {**about_data(fitted, note), "fit": len(fit), "validation": len(validation)},
        "n_classes": n_classes,
        "training": {
            "epochs": epochs, "batch_size": batch_size, "optimiser": "Adam", "lr": lr, "lr_min": Training.lr_min,
            "patience": patience, "decoder": decoder, "generator_batch_norm": repro,
        },
        "draws": draws,
        "seeds": list(range(seed, seed + seeds)),
        "cached": {"as": cache_dtype, "needed": size(needed), "kept": keep_in is not None},
        "repro": repro,
    })  # fmt: skip
    result.meta |= {"summary": _in_words(result), "notes": notes, "table": summary_table(result).to_dict("records")}
    return result


def _layers(name: str, model: HookedViT, layers: Sequence[int] | None, start: int | None) -> Layers:
    if not model.cfg.has_cls:
        raise ValueError(f"{name} has no CLS token (it has {', '.join(model.tokens.roles)}): none can be replaced")
    n = model.cfg.n_layers
    chosen = sorted(indices(list(layers) if layers is not None else list(range(n - -(-n // LAST), n)), n, "layer"))
    first = chosen[max(0, len(chosen) - 2)] if start is None else indices(start, n, "layer")[0]
    if first not in chosen:
        raise ValueError(f"the layer others start from is one of those that are read, {chosen}; got start={start}")
    return Layers(chosen, first)


def _check(**counts: int) -> None:
    for what, value in counts.items():
        # draws can agree, and a batch norm can compare, where there are two
        if value < (least := 2 if what in ("batch_size", "draws") else 1):
            raise ValueError(f"{what} must be at least {least}, got {value}")


def _notes(splits: Mapping[str, ImageData], n_classes: int, seeds: int, steps: int) -> list[str]:
    notes = [
        "Validation accuracy chose the epoch, so it flatters a little; test accuracy did not.",
        "Intervals are over images: they hold the trained readouts fixed and are not corrected for the number of "
        f"layers. {'One training per curve' if seeds == 1 else f'{seeds} trainings per curve'}: differences of a point "
        "or so may be tuning noise (`seeds` repeats the training).",
        f"A readout was trained for {steps} steps at the most (the source: 15625). With few, random readouts are lower "
        "bounds, and curves are flat at the end because the learning rate has fallen; more `epochs` may raise them.",
        "The decoder reads the block's raw output, without the model's final norm.",
    ]
    labels = splits["fit"].labels
    if labels is not None and (missing := n_classes - len(labels.unique())):
        notes.append(f"{missing} of {n_classes} classes have no training image, so no readout can name them.")
    return notes


@contextmanager
def _folder(keep_in: str | None) -> Iterator[Path]:
    if keep_in is None:
        with scratch_folder() as folder:
            yield folder
    else:
        with hold_folder(check_writable(keep_in), "--keep-in") as folder:
            clear(folder)
            yield folder


def _in_words(result: Result) -> list[str]:
    """One sentence per model: where a random token reads more or less than the block's own CLS."""
    sentences = []
    frame = result.frame[result.frame.measure == "difference"]
    for name, rows in frame.groupby("model", sort=False):
        said = []
        for mode, what in (
            ("replace - null", "a random token in the place of CLS is read {} than the block's own CLS"),
            ("augment - replace", "beside CLS it is read {} than in its place"),
        ):
            each = rows[rows["mode"] == mode].groupby("layer").agg({"value": "mean", "low": "min", "high": "max"})
            ways = {"better": each.index[each.low > 0], "worse": each.index[each.high < 0]}
            told = [
                f"{way} at layer{'s' * (len(at) > 1)} {', '.join(map(str, at))}" for way, at in ways.items() if len(at)
            ]
            said.append(what.format(" and ".join(told) or "neither clearly better nor worse at any layer"))
        sentences.append(f"{name}: {said[0]}; {said[1]}.")
    return sentences
