"""Is the class more identifiable in tokens on the object than in tokens of its context, and from which block on?

Which token is which comes from a segmentation mask that goes through the image's own resizing and cropping. Class and
context tokens of the same image are compared; the control deals out their labels anew within each image. Vilas et al.
2023, figure 3a; methods §13.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from analyses.activations.class_masks import Labelling
from analyses.activations.layers import measured_layers
from analyses.data import ImageData
from analyses.questions.class_space.context_tokens.context import N_SHUFFLES, PUBLISHED_SHUFFLES, measure_context
from analyses.questions.class_space.context_tokens.figure import (
    change_figure,
    difference_figure,
    groups_figure,
    in_words,
    notes,
    summary_table,
)
from analyses.questions.class_space.measures.masks import ASK_FOR_LESS, masked_batches, with_masks
from analyses.questions.class_space.measures.subjects import Subject, prepare
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.significance import corrected, uncorrected
from hooked_vit import HookedViT


@analysis(
    figure=groups_figure,
    more_figures={"Class minus context": difference_figure, "Which update tells them apart": change_figure},
)
def context_tokens(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *,
    fit_data: ImageData | Any = None, head: str = "auto", rule: Literal["area", "any", "centre", "corner"] = "area",
    tau: float = 0.5, n_shuffles: int = N_SHUFFLES, prototypes: Mapping[str, Float[Tensor, "c p"]] | None = None,
    layers: tuple[int, ...] | None = None, batch_size: int = 64, seed: int = 0, repro: bool = False,
) -> Result:  # fmt: skip
    """Is the class more identifiable in tokens on the object than in tokens of its context?

    >>> result = context_tokens({"vit": zoo.load("vit")}, load_data("scenes:test", n=500))  # doctest: +SKIP
    >>> result.frame.query("measure == 'difference'")  # doctest: +SKIP

    The data need a column `mask`: scenes:SPLIT (objects, all of the image's class) or imagenet-s:PATH (classes in
    colours). `rule` says when a patch lies on the class: a share of at least `tau` of its pixels that are not ignored
    ("area"), "any" pixel, the one in the "centre" or in the top left "corner". Rows per block and group:
    identifiability with its box plot, rate; difference is class minus context per image, with the p-value of
    `n_shuffles` shuffles of the labels within each image (adjusted over blocks by Holm) and of a sign-flip test over
    images. `logit_change` (§15): how much higher the true class scores in the update of a `part`, alone, than in what
    that sub-layer reads, class minus context tokens per image, with two-sided sign flips of images. Images without
    tokens of one group are left out of it and counted. `layers` are those measured, without the embedding.

    `repro` is the published code: the label is one pixel at the patch's corner of the whole, uncropped mask, ignored
    pixels are context, and labels are shuffled over all tokens, 300 times, uncorrected; logit_change is of attention,
    from layer 1 on.
    Raises ValueError for data without masks, masks of another size than their image, and ids that stand for nothing.
    """
    labelling = Labelling(rule, tau, published=repro)
    subjects = prepare(models, with_masks(data), fit_data, head=head, batch_size=batch_size, prototypes=prototypes)

    def measured(subject: Subject) -> list[dict[str, Any]]:
        batches = masked_batches(subject, subjects.data, batch_size, "class and context", labelling)
        return measure_context(
            subject.model,
            batches.map(lambda seen: seen[:3]),
            rules=subject.rules,
            layers=None if layers is None else measured_layers(subject.model, layers),
            n_shuffles=n_shuffles,
            published=repro,
            seed=seed,
        )

    rows = subjects.rows(measured)
    if not any(row["measure"] == "difference" for row in rows):
        raise ValueError(f"no image of {subjects.data.name} has patches of its class and others; {ASK_FOR_LESS}")
    result = Result(
        pd.DataFrame(rows).astype({"layer": "Int64"}),
        {
            **subjects.about,
            "seeds": [seed],
            "batch_size": batch_size,
            "interventions": [],
            "options": {**labelling.about(), "n_shuffles": PUBLISHED_SHUFFLES if repro else n_shuffles},
            "repro": repro,
        },
    )
    result.meta["table"] = summary_table(result.frame).to_dict("records")
    result.meta["summary"], result.meta["notes"] = in_words(result), notes(result)
    method = "not corrected, as published," if repro else "Holm"
    result.meta["corrected"] = [
        corrected("difference", method, "the layers of one model (p_sign_flip is not corrected)"),
        corrected("logit_change", method, "the layers of one part of one model"),
        uncorrected("class tokens below context tokens", "layers and models"),
    ]
    return result
