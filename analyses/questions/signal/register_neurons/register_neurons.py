"""Which neurons make tokens of high norm, and can a token added at test time take them?

A few MLP neurons write the norm of outlier tokens; moved to a token that is added at test time, they leave the patches
alone (Jiang et al. 2025, arXiv 2506.08010). Beside them stand as many neurons at random, the added token by itself,
and the same neurons switched off on patches without a token to hold them. A model with trained registers is compared
by giving it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analyses.activations.layers import measured_layers
from analyses.data import ImageData
from analyses.pages.album import Album
from analyses.probes.classifier_heads import fit_head
from analyses.probes.opening import open_study
from analyses.questions.signal.register_neurons.figure import (
    accuracy_figure,
    in_words,
    main_figure,
    neuron_figure,
    summary_table,
)
from analyses.questions.signal.register_neurons.search import Search
from analyses.questions.signal.register_neurons.study import MovedNeurons
from analyses.running.registry import analysis
from analyses.running.results import Result
from hooked_vit import HookedViT

N, N_FIT = 256, 512
COLUMNS = (
    *("model", "architecture", "measure", "variant", "token", "layer", "neuron", "rank", "seed"),
    *("value", "low", "high", "n"),
)


@analysis(
    figure=main_figure,
    more_figures={
        "Accuracy, and what a probe reads from each token": accuracy_figure,
        "The neurons": neuron_figure,
    },
)
def register_neurons(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *,
    fit_data: ImageData | Any = None, neurons: int = 10, n_registers: int = 1, z: float = 5.0,
    cutoff: float | None = None, calibration: int = 128, layers: tuple[int, ...] | None = None, seeds: int = 2,
    seed: int = 0, batch_size: int = 64, head: str = "auto",
) -> Result:  # fmt: skip
    """Which neurons make tokens of high norm, and can a token added at test time take them?

    >>> result = register_neurons({"without": plain, "with": with_registers}, photos)  # doctest: +SKIP
    >>> result.frame.query("measure == 'outlier_share'").groupby("variant").value.max()  # doctest: +SKIP

    Outliers by `z` and `cutoff` as in `registers`, set by the first `calibration` images of `fit_data`, which also
    choose the neurons: those `neurons` behind whose nonlinearity the magnitude at outlier tokens most exceeds that at
    other patches of the same images, in blocks up to the one with most outliers. (Jiang et al. rank by the magnitude at
    outliers alone.) `n_registers` tokens are added. `layers` are those behind which norms are measured, and
    probes read where the last is among them; neurons are sought in all.

    Variants: "untouched"; "register neurons", moved with `add_registers`; "random neurons", as many of the same layers,
    `seeds` times; "empty token", added without a neuron; "switched off", the neurons at 0 on patches and no token.
    One row per model, variant, measure and layer, with a 95 % interval over images: outlier_share (by the untouched
    model's rule), largest_norm and token_norm (of the patch with the largest norm and of each prefix or added `token`,
    in medians of the untouched patches), accuracy (own head, or a ridge head), probe (of a `token` behind the last
    block, fitted on `fit_data`); and activation and activation_elsewhere of each neuron by `rank`.
    Raises ValueError for more neurons than half a layer's, and numbers below 1.
    """
    _check(models, neurons, n_registers, calibration, seeds, z, cutoff)
    opening = open_study(models, data, fit_data, head, n=N, n_fit=N_FIT)
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    pictures: list[dict[str, Any]] = []
    for name, model in models.items():
        answers = opening.heads[name] or fit_head(name, model, opening.fitted, opening.n_classes, batch_size)
        search = Search(
            name, answers.model, opening.fitted, z=float(z), cutoff=cutoff, n=calibration, batch_size=batch_size
        )
        album = Album(name, answers.model.cfg.class_names, opening.measured.name_of, len(models))
        measured = measured_layers(model, layers)
        study = MovedNeurons(name, answers, search, neurons, n_registers, seeds, seed, album, measured)
        study.fit(opening.fitted, opening.n_classes, batch_size)
        study.measure(opening.measured, batch_size)
        rows += [{"model": name, "architecture": model.cfg.architecture, **row} for row in study.rows()]
        about[name] = {
            **answers.about(),
            **{"prefix": list(model.cfg.prefix), "layer": search.layer, "described": search.described(measured)},
            **{"has_outliers": search.outliers, "neurons": search.top(neurons)},
        }
        pictures += album.entries()
    meta = {
        "models": about,
        **opening.about(),
        "rule": f"a norm above {cutoff:g}" if cutoff is not None else f"a robust z above {z:g}",
        **{"neurons": neurons, "n_registers": n_registers, "calibration": calibration, "seeds": list(range(seeds))},
        **{"seed": seed, "batch_size": batch_size, "interventions": ["add_registers", "ablate_neurons"]},
        "pictures": pictures,
    }
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    result = Result(frame.astype(dict.fromkeys(("layer", "neuron", "rank", "seed", "n"), "Int64")), meta)
    result.meta["summary"], result.meta["notes"] = in_words(result)
    table = summary_table(result).astype(object)
    result.meta["table"] = table.where(table.notna(), None).to_dict("records")
    return result


def _check(
    models: Mapping[str, HookedViT], neurons: int, n_registers: int, calibration: int, seeds: int, z: float,
    cutoff: float | None,
) -> None:  # fmt: skip
    for what, value in (("z", z), ("cutoff", cutoff)):
        if value is not None and not value > 0:
            raise ValueError(f"an outlier's {what} is above 0; got {what}={value}")
    counts = {"neurons": neurons, "n_registers": n_registers, "calibration": calibration, "seeds": seeds}
    for what, n in counts.items():
        if n < 1:
            raise ValueError(f"{what} is at least 1; got {n}")
    if wide := [name for name, model in models.items() if 2 * neurons > model.cfg.d_mlp]:
        raise ValueError(
            f"as many neurons are drawn at random from what is left of their layers, so at most half of a layer's are "
            f"moved: {models[wide[0]].cfg.d_mlp // 2} of {wide[0]}; got neurons={neurons}"
        )
