"""How well can one block, given its image tokens, write the label into an arbitrary CLS token?

The model runs as it is. One frozen block is then run a second time on its own input, with another token in the place of
CLS (`replace`) or beside it (`augment`), and the block's output at that token is read. A token that knows nothing of
the image can answer only from the other tokens, through this one block.

The base is closed form: tokens that are chosen or drawn, read by a ridge probe. Nothing of it depends on an optimiser,
and each is compared with the block's own CLS on the same images. Trained readouts, where they are asked for, have a
figure of their own (orange: replace, green: augment, purple: one token for all images; blue: null, the block's own
CLS): a generator of tokens is learned together with a decoder. They are lower bounds of what can be read, the null too,
and one that reads less than a closed form it could have come to has measured its optimiser: it is called unsettled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from analyses.activations.layers import measured_layers
from analyses.data import ImageData
from analyses.data.sets import classes_to_learn, two_sets
from analyses.questions.cls_use.random_readouts.arms import CLOSED_FORM, TRAINED, choose
from analyses.questions.cls_use.random_readouts.figure import further_figures, main_figure, summary_table
from analyses.questions.cls_use.random_readouts.looked import room
from analyses.questions.cls_use.random_readouts.networks import Decoder, make_decoder
from analyses.questions.cls_use.random_readouts.readouts import Layers, ModelReadouts, slug
from analyses.questions.cls_use.random_readouts.streams import check_room, note_former, plan
from analyses.questions.cls_use.random_readouts.training import Training
from analyses.questions.cls_use.random_readouts.words import about_readouts, in_words
from analyses.running.files import check_writable, clean
from analyses.running.locks import hold_folder, scratch_folder
from analyses.running.notes import PROBES_READ, about_data, about_model
from analyses.running.places import size
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.significance import uncorrected
from hooked_vit import HookedViT
from interventions.vocabulary import layer_of

LR, LR_MIN, PUBLISHED_EPOCHS = 1e-3, 1e-6, 5
RATES = (1e-3, 3e-3, 1e-2)
LAST = 3  # one layer in so many, the last ones, where none are named: 8 to 11 of 12, as in the source


@analysis(figure=main_figure, more_figures=further_figures, by_one=True)
def random_readouts(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *,
    fit_data: ImageData | Any = None, modes: tuple[str, ...] | None = None, layers: tuple[int, ...] | None = None,
    start: int | None = None, decoder: Decoder = "linear", epochs: int | None = None, batch_size: int = 64,
    lr: float | None = None, patience: int = Training.patience, draws: int = 16, seeds: int = 3, trainings: int = 1,
    seed: int = 0, cache_dtype: Literal["float32", "float16"] = "float32", keep_in: str | None = None,
    repro: bool = False, activations: tuple[str, ...] | None = None,
) -> Result:  # fmt: skip
    """How much of the label can one block write into a CLS token that knows nothing of the image?

    >>> random_readouts({"vit": zoo.load("vit")}, modes=("closed_form", "null")).figure()  # doctest: +SKIP

    `modes`: "closed_form" (the default: a minute at the most), "trained" (many minutes), or some of them by name.
    Closed forms are replace_T and augment_T with the token T own_cls, mean_cls, gaussian (CLS's mean and covariance),
    normal (standard), one_gaussian and one_normal (one draw for all images), other_cls, mean_patch; trained ones are
    null, replace, augment, deterministic. Closed forms that others are compared with are measured always. What is read
    is the block's output at the token in CLS's place, and with `augment` at the one that was added. `layers` are the
    last third unless named.

    A closed form is read by a ridge probe fitted on `fit_data`; what is random is drawn with each of `seeds` seeds,
    beginning with `seed`. Readouts are trained with the first `trainings` of them on four fifths of `fit_data` until
    `patience` epochs bring nothing better on the rest (validation), `epochs` (60) at the most; of several learning
    rates, or at `lr`, the best on validation is kept. Both are measured on `data` (test); without `fit_data` half of
    `data` is set aside for it (scenes: the train split). `draws` tokens per image are averaged at the end.

    The inputs of the blocks are kept on disk, as `cache_dtype`, in a temporary folder or in `keep_in`, and beside them,
    of one layer at a time, keys and values of all tokens, so that an answer costs one token. In `keep_in` the
    trainings are kept as well, and the same call continues where it was interrupted, to the same numbers. With
    `activations`, folders that `store_activations` filled with the role "all", they are read from there instead.
    `repro` also trains, unless `modes` are named, and as published: raw decoder input, generators with batch norms, 5
    epochs, a learning rate (0.001) that falls along a cosine; readouts of layer `start` (the last but one) begin from
    scratch and those of others from its weights, but for `null_de_novo`. It draws validation accuracy where the source
    calls it test.

    The frame has one row per model, layer, mode, measure, split and seed: `value`, `low`, `high`, `n`, and `status`:
    "closed form", "settled" or "unsettled: …". Measures: accuracy (one draw per image), accuracy_mean_of_draws,
    agreement (share of pairs of draws with one answer), difference (`mode` says of which two; paired), penalty,
    learning_rate, chance (the most frequent class), and per `epoch` loss, fit_accuracy, validation_accuracy and
    validation_loss. Source: methods §6, lab note 2.
    Raises ValueError for a model without CLS, unknown modes, fewer training images than classes, settings out of
    range; OSError where the disk has no room, before anything is run, and InUseError where another process has
    `keep_in`.
    """
    measured, fitted, note = two_sets(data, fit_data)
    n_classes = classes_to_learn(measured, fitted)
    epochs = epochs if epochs is not None else PUBLISHED_EPOCHS if repro else Training.epochs
    modes = modes if modes is not None else (CLOSED_FORM, TRAINED) if repro else (CLOSED_FORM,)
    _check(
        epochs=epochs, seeds=seeds, patience=patience, batch_size=batch_size, draws=draws, trainings=trainings
    )  # fmt: skip
    if trainings > seeds:
        raise ValueError(f"trainings are with the first of the seeds, so at most seeds={seeds}; got {trainings}")
    arms, rates = choose(modes, repro), _rates(lr, repro)
    make_decoder(decoder, 1, n_classes)
    chosen = {name: _layers(name, model, layers, start, repro) for name, model in models.items()}
    measured, fitted = (each.check_images() if each.skip_bad else each for each in (measured, fitted))
    fit, validation = fitted.split(0.8)
    sets = {"fit": {"fit": fit, "validation": validation}, "test": {"test": measured}}
    if len(fit) < n_classes:
        raise ValueError(f"{n_classes} classes cannot be learned from {len(fit)} images; give more with fit_data")
    rows: list[dict[str, Any]] = []
    seen = list(range(seed, seed + seeds))
    notes: list[str] = []
    with _folder(keep_in, notes) as folder:
        plans = {
            name: {
                each: plan(model, images, chosen[name].all, folder, dtype=cache_dtype, name=f"{slug(name)}-{each}")
                for each, images in {"fit": fitted, "test": measured}.items()
                if activations is None
            }
            for name, model in models.items()
        }
        beside = {
            name: sum(room(models[name], len(part.data), part.n_tokens) for part in each.values())
            for name, each in plans.items()
        }
        if keep_in is None:  # then each model's files make room for the next one's
            needed = max(check_room(each.values(), folder, beside[name]) for name, each in plans.items())
        else:
            all_of_them = [part for each in plans.values() for part in each.values()]
            needed = check_room(all_of_them, folder, max(beside.values()))
        for name, model in models.items():
            study = ModelReadouts(name, model, chosen[name], arms, n_classes, decoder, repro, draws, folder)
            notes += study.cache(plans[name], sets)
            notes += study.closed_forms(seen)
            for each in seen[:trainings] if arms.trained else []:
                settings = Training(epochs, batch_size, LR, LR_MIN if repro else None, patience, each)
                notes += study.train(settings, rates, folder if keep_in is not None else None)
            rows += [{"model": name, "architecture": model.cfg.architecture, **row} for row in study.rows]
            if keep_in is None:
                study.forget(plans[name])
    columns = dict.fromkeys(("layer", "seed", "epoch"), "Int64")
    result = Result(pd.DataFrame(rows).astype(columns), {
        "models": {
            name: {**about_model(model, PROBES_READ), "start": chosen[name].start} for name, model in models.items()
        },
        "data": about_data(measured),
        "fit_data": {**about_data(fitted, note), "fit": len(fit), "validation": len(validation)},
        "n_classes": n_classes,
        "modes": {"closed_form": arms.closed, "trained": arms.trained},
        "training": {
            "epochs": epochs, "batch_size": batch_size, "optimiser": "Adam", "lr": rates,
            "lr_min": LR_MIN if repro else None, "patience": patience, "trainings": trainings, "decoder": decoder,
            "decoder_input": "raw" if repro else "standardised", "generator_batch_norm": repro,
        },
        "draws": draws,
        "seeds": seen,
        "cached": {"as": cache_dtype, "needed": size(needed), "kept": keep_in is not None},
        "repro": repro,
    })  # fmt: skip
    notes = [*about_readouts(result, fit, validation), *notes]
    result.meta |= {"summary": in_words(result), "notes": notes, "table": summary_table(result).to_dict("records")}
    result.meta["corrected"] = [uncorrected("better and worse", "layers, comparisons and models")]
    return result


def _rates(lr: float | None, repro: bool) -> list[float]:
    """The learning rates that are tried."""
    if repro and not (lr is None or lr > LR_MIN):
        raise ValueError(f"the learning rate falls to {LR_MIN:g}, so it begins above that; got lr={lr:g}")
    if lr is None:
        return [LR] if repro else list(RATES)
    if not lr > 0:
        raise ValueError(f"a learning rate is above 0; got lr={lr:g}")
    return [lr]


def _layers(name: str, model: HookedViT, layers: Sequence[int] | None, start: int | None, repro: bool) -> Layers:
    if not model.cfg.has_cls:
        raise ValueError(f"{name} has no CLS token (it has {', '.join(model.tokens.roles)}): none can be replaced")
    n = model.cfg.n_layers
    chosen = measured_layers(model, layers if layers is not None else range(n - -(-n // LAST), n))
    if not repro:
        if start is not None:
            raise ValueError(
                f"every readout begins anew at its own layer, so none starts from another's (got start={start}); in "
                "the published training they do: repro=True"
            )
        return Layers(chosen, None)
    first = chosen[max(0, len(chosen) - 2)] if start is None else layer_of(model, start)
    if first not in chosen:
        raise ValueError(f"the layer others start from is one of those that are read, {chosen}; got start={start}")
    return Layers(chosen, first)


def _check(**counts: int) -> None:
    for what, value in counts.items():
        # draws can agree, and a batch norm can compare, where there are two
        if value < (least := 2 if what in ("batch_size", "draws") else 1):
            raise ValueError(f"{what} must be at least {least}, got {value}")


@contextmanager
def _folder(keep_in: str | None, notes: list[str]) -> Iterator[Path]:
    if keep_in is None:
        with scratch_folder() as folder:
            yield folder
    else:
        with hold_folder(check_writable(keep_in), "--keep-in") as folder:
            clean(folder)
            notes += note_former(folder)
            yield folder
