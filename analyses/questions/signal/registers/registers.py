"""Which tokens have outlier norms, what do they hold, and what is in the registers a model has instead of them?

A census of norms block by block; probes that compare outliers with other patches of the same images; and the prefix
tokens (CLS, distillation token, registers) as readouts and as targets of a shuffle. A model with and one without
registers are compared by giving both. methods §27, after Darcet et al. 2024 (arXiv 2309.16588).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analyses.activations.layers import measured_layers
from analyses.controls.shuffle_floors import check_shuffles
from analyses.data import ImageData
from analyses.probes.opening import open_study
from analyses.questions.signal.registers.figure import (
    main_figure,
    map_figure,
    outlier_figure,
    readout_figure,
    share_figure,
    shuffle_figure,
)
from analyses.questions.signal.registers.register_study import RegisterStudy
from analyses.questions.signal.registers.words import in_words, summary_table
from analyses.running.registry import analysis
from analyses.running.results import Result
from hooked_vit import HookedViT

COLUMNS = (
    *("model", "architecture", "measure", "token", "variant", "trait", "layer", "seed"),
    *("row", "col", "norm_low", "norm_high", "value", "low", "high", "n"),
)
TYPES = {"layer": "Int64", "seed": "Int64", "row": "Int64", "col": "Int64", "n": "Int64"}


@analysis(
    figure=main_figure,
    more_figures={
        "How many patches are outliers": share_figure,
        "Where outliers lie": map_figure,
        "What outliers lie on, and what they hold": outlier_figure,
        "Registers and other prefix tokens as readouts": readout_figure,
        "Registers and other prefix tokens exchanged between images": shuffle_figure,
    },
)
def registers(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *,
    fit_data: ImageData | Any = None, z: float = 5.0, cutoff: float | None = None, calibration: int = 256,
    min_images: int = 50, layers: tuple[int, ...] | None = None, seeds: int = 1, seed: int = 0,
    batch_size: int = 128, head: str = "auto", activations: tuple[str, ...] | None = None,
) -> Result:  # fmt: skip
    """Which tokens have outlier norms, what do they hold, and what is in the registers?

    >>> result = registers({"without": plain, "with": with_registers}, photos)  # doctest: +SKIP
    >>> result.frame.query("measure == 'outlier_share' and variant == 'trained'")  # doctest: +SKIP

    An image token is an outlier at a block where its norm has a robust z above `z`, (norm − median) / (1.4826 · MAD)
    over the image tokens of that model and block, or where it exceeds `cutoff` (Darcet et al. use 150 for their
    largest model). The median is that of the first `calibration` images of `fit_data`. Probes are fitted on `fit_data`;
    outliers are compared with other patches only at blocks where at least `min_images` images of both sets have one.
    Tokens are exchanged with `seeds` permutations, within batches. `layers` are those behind which all of this is
    measured. With `activations`, folders that `store_activations` filled, the model runs for that exchange alone, where
    every token behind these layers is stored.

    One row per model, measure, `token`, `layer` and more, with a 95 % interval over n images. Census: norm_histogram
    (share of a role's tokens between norm_low and norm_high), norm_median, norm_scale, norm_threshold, outlier_share,
    images_with_outliers, outlier_position (`row`, `col`), robust_z of the prefix tokens, overlap (share of outlier and
    of other patches of the same images with a `trait`); `variant` tells the model from one with random weights.
    Probes: class_probe and content_r2 (mean colour and contrast of the token's own patch) of outliers and of others;
    probe of every prefix token and of the mean patch. Shuffles: shuffled, with as many patches as control; accuracy,
    chance. Raises ValueError for a z or cutoff that is not above 0, and numbers of images or seeds below 1.
    """
    _check(z, cutoff, calibration, min_images)
    opening = open_study(models, data, fit_data, head)
    check_shuffles(opening.measured, batch_size, seeds, "batch")
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    for name, model in models.items():
        study = RegisterStudy(
            name, model, opening.heads[name], n_classes=opening.n_classes, layers=measured_layers(model, layers),
            z=float(z), cutoff=cutoff, calibration=calibration, min_images=min_images, seeds=seeds, seed=seed,
        )  # fmt: skip
        study.calibrate(opening.fitted, batch_size)
        study.fit(opening.fitted, batch_size)
        study.measure(opening.measured, batch_size)
        rows += [{"model": name, "architecture": model.cfg.architecture, **row} for row in study.rows()]
        about[name] = {**study.answers.about(), **study.describe()}
    meta = {
        "models": about,
        **opening.about(),
        "rule": f"a norm above {cutoff:g}" if cutoff is not None else f"a robust z above {z:g}",
        "calibration": calibration,
        "min_images": min_images,
        "seeds": list(range(seeds)),
        "seed": seed,
        "batch_size": batch_size,
        "interventions": ["shuffle_tokens"],
    }
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype(TYPES)
    result = Result(frame, meta)
    result.meta["summary"], result.meta["notes"] = in_words(result)
    table = summary_table(result).astype(object)
    result.meta["table"] = table.where(table.notna(), None).to_dict("records")
    return result


def _check(z: float, cutoff: float | None, calibration: int, min_images: int) -> None:
    for name, value in (("z", z), ("cutoff", cutoff)):
        if value is not None and not value > 0:
            raise ValueError(f"an outlier's {name} is above 0; got {name}={value}")
    for name, n in (("calibration", calibration), ("min_images", min_images)):
        if n < 1:
            raise ValueError(f"{name} is a number of images, at least 1; got {n}")
