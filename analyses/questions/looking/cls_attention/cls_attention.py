"""Does early attention of CLS look everywhere, middle attention at objects, late attention at what tells classes?

Textbooks and interactive pages say so of vision transformers in general and show a picture. Here every claim is a
curve per layer beside uniform attention and random weights, and a verdict from intervals. methods §26.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd

from analyses.activations.class_masks import Labelling
from analyses.activations.layers import measured_layers
from analyses.controls.random_weights import with_random_weights
from analyses.data import ImageData
from analyses.data.sets import classes_to_learn, two_sets
from analyses.questions.looking.cls_attention.claims import (
    CLAIMS,
    COMPARED,
    OBJECTS,
    Found,
    differences,
    judge,
    settle,
    thirds,
)
from analyses.questions.looking.cls_attention.figure import (
    contrast_figure,
    diversity_figure,
    main_figure,
    patch_figure,
    spread_figure,
)
from analyses.questions.looking.cls_attention.study import AttentionStudy
from analyses.questions.looking.cls_attention.words import in_words
from analyses.running.notes import about_data, about_model
from analyses.running.registry import analysis
from analyses.running.results import Result
from hooked_vit import HookedViT
from hooked_vit.config.showing import counted

COLUMNS = ("model", "architecture", "measure", "variant", "layer", "claim", "part", "value", "low", "high", "n")
READ = "CLS: where it looks among the patches in every block, and probes fitted here on the values it gathers there"


@analysis(
    figure=main_figure,
    more_figures={
        "What the claims compare": contrast_figure,
        "How far apart CLS looks": spread_figure,
        "How much heads differ": diversity_figure,
        "How much of its attention patches get": patch_figure,
    },
)
def cls_attention(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *, fit_data: ImageData | Any = None,
    rule: Literal["area", "any", "centre", "corner"] = "area", tau: float = 0.5,
    layers: tuple[int, ...] | None = None, seed: int = 0, batch_size: int = 64,
) -> Result:  # fmt: skip
    """Is early attention of CLS broad, does middle attention find objects, does late attention tell classes?

    >>> result = cls_attention({"vit": zoo.load("vit")})  # doctest: +SKIP
    >>> result.frame.query("measure == 'contrast'")[["claim", "part", "value", "low", "high"]]  # doctest: +SKIP

    Of CLS's attention in every block the weights on patches are taken, made to sum to 1 per head. One row per model,
    measure, `variant` and `layer`, with a 95 % interval over n images: entropy (over ln of the number of patches),
    spread (mean distance of two patches drawn by it, over that of any two), centre_distance (in patches),
    head_diversity (bits), patch_mass (before they are made to sum to 1); object_mass, object_excess (mass − area) and
    object_lift (mass / area) where the data have masks, which `rule` and `tau` read as in `context_tokens`;
    class_probe, the accuracy of a ridge probe, fitted on `fit_data`, on the values that heads gather from the patches,
    and class_gain, what it has more than one on the mean of the same values. `variant`: "trained", "random weights" (of
    `seed`), "uniform attention", of objects "masks of other images". `layers` are those measured: a claim compares
    means over those of them that are early, middle or late, and is not judged where it has none of one.

    Rows of measure "contrast" are the parts of each `claim`, with intervals that hold together over all parts of all
    models; `meta["table"]` has the verdicts: "supported" where every part lies above .001, "not supported"
    where one lies below, else "cannot tell", as of objects without masks and of fewer than three blocks.
    Raises ValueError for a model without CLS, whose attention has no query that runs through the blocks.
    """
    labelling = Labelling(rule, tau)
    for name, model in models.items():
        if not model.cfg.has_cls:
            raise ValueError(
                f"{name} has no CLS token (it has {', '.join(model.tokens.roles)}): no query runs through its blocks "
                "whose attention could be followed; a pooling query looks once, behind the last block"
            )
    measured, fitted, note = two_sets(data, fit_data)
    n_classes = classes_to_learn(measured, fitted)
    has_masks = "mask" in measured.columns
    studies = {}
    for name, model in models.items():
        control = with_random_weights(model, seed)
        study = AttentionStudy(
            name, model, control, labelling if has_masks else None, n_classes, measured_layers(model, layers)
        )
        study.fit(fitted, batch_size)
        study.measure(measured, batch_size)
        studies[name] = study
    compared = {name: differences(s.columns, models[name].cfg.n_layers, s.layers) for name, s in studies.items()}
    n_tests = sum(map(len, compared.values()))
    rows: list[dict[str, Any]] = []
    table: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    for name, study in studies.items():
        found = [*settle(compared[name], n_tests)]
        mine = [*study.rows(), *map(_contrast, found)]
        rows += [{"model": name, "architecture": models[name].cfg.architecture, **row} for row in mine]
        verdicts = [judge(claim, found, _lacking(claim, study, models[name].cfg.n_layers)) for claim in CLAIMS]
        table += [{"model": name, **verdict._asdict()} for verdict in verdicts]
        about[name] = {**about_model(models[name], READ), **study.about()}
    meta = {
        "models": about,
        "data": about_data(measured),
        "fit_data": about_data(fitted, note),
        "n_classes": n_classes,
        **labelling.about(),
        **{"n_tests": n_tests, "seed": seed, "batch_size": batch_size, "table": table},
    }
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"layer": "Int64", "n": "Int64"})
    result = Result(frame, meta)
    result.meta["summary"], result.meta["notes"] = in_words(result)
    result.meta["corrected"] = [
        f"Verdicts: intervals that hold together at 95 % (Bonferroni) over the {counted(n_tests, 'part')} of all "
        "claims and models; every other interval stands alone.",
    ]
    return result


def _contrast(found: Found) -> dict[str, Any]:
    value, low, high = found.interval
    of = {"claim": found.part.claim, "part": found.part.what}
    return {"measure": "contrast", **of, "value": value, "low": low, "high": high, "n": found.n}


def _lacking(claim: str, study: AttentionStudy, n_layers: int) -> str:
    """Why a claim has not all of its parts, where it has not."""
    if not thirds(n_layers):
        return "fewer than three blocks have no middle"
    if claim == OBJECTS and study.no_objects:
        return study.no_objects
    there = thirds(n_layers, study.layers)
    if missing := [third for third in COMPARED[claim] if third not in there]:
        return f"no {' and no '.join(missing)} layer was measured"
    return "fewer than two images have a value"
