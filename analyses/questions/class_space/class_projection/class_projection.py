"""Which tokens know the class of the image, from which block on?

Every token of every block is read by the classifier's own final norm and head (Vilas et al., NeurIPS 2023): the rank of
the true class among all classes says how identifiable it is there. Beside it stand the same architecture with random
weights and a random head, the trained model with the rows of its head permuted, and chance. methods §7–11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from analyses.activations.layers import measured_layers
from analyses.data import ImageData
from analyses.questions.class_space.class_projection.figure import (
    box_figure,
    change_figure,
    evolution_figure,
    in_words,
    rate_figure,
    summary_table,
)
from analyses.questions.class_space.class_projection.identifiability import TESTED
from analyses.questions.class_space.class_projection.measuring import measure_identifiability, stored_runs
from analyses.questions.class_space.measures.projection import Rules
from analyses.questions.class_space.measures.subjects import Subject, prepare
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.significance import corrected
from hooked_vit import HookedViT


@analysis(
    figure=evolution_figure,
    more_figures={
        "The same, token by token": box_figure,
        "Image tokens of the last block, and the model's accuracy": rate_figure,
        "Where the score of the true class grows": change_figure,
    },
)
def class_projection(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *,
    fit_data: ImageData | Any = None, head: str = "auto", random_models: int = 3, permuted_heads: int = 1,
    image_head: Literal["first", "mean"] = "first", norm: bool = True, bias: bool = True, full_range: bool = False,
    prototypes: Mapping[str, Float[Tensor, "c p"]] | None = None, layers: tuple[int, ...] | None = None,
    batch_size: int = 64, seed: int = 0, repro: bool = False, activations: tuple[str, ...] | None = None,
) -> Result:  # fmt: skip
    """Which tokens know the class of the image, and from which block on?

    >>> result = class_projection({"vit": zoo.load("vit")}, load_data("scenes:test", n=500))  # doctest: +SKIP
    >>> result.frame.query("measure == 'rate' and tokens == 'patches'")  # doctest: +SKIP

    Rows: identifiability (mean r, with the quartiles and whiskers of its distribution over tokens), rate (share of
    tokens with r = 1), at_least_one (share of images with such an image token), change_rate (share of tokens whose
    true-class score grows through the block), accuracy, above_random; `layer` −1 is the embedding, `site` the stream
    (resid_post) or what a branch adds to it. `control` is trained, random (`random_models` seeds), permuted_head or
    chance. `norm`, `bias` and `image_head` as in `Rules`; `prototypes` [classes, width] by model's name for models that
    answer with an embedding. A model whose head knows none of the classes gets a ridge head, fitted on `fit_data`.
    `layers` are those measured, without the embedding; "the last" is the last of them. With `activations`, folders that
    `store_activations` filled with the role "all" and the sites resid_post, attn_out, mlp_out and embedding, the models
    do not run (controls of random weights do, unless they are stored too).

    `repro` is the published code: a model without CLS loses its first image token, blocks are tested over tokens by
    Wilcoxon's test without correction, change starts at block 2. Raises ValueError for labels a head does not know and
    for fewer than one random model, NoHeadError for a model that answers with an embedding and has no prototypes.
    """
    if random_models < 1 or permuted_heads < 0:
        raise ValueError(f"at least one random model is needed for control; got {random_models} and {permuted_heads}")
    subjects = prepare(
        models,
        data,
        fit_data,
        head=head,
        batch_size=batch_size,
        rules=Rules(norm=norm, bias=bias, image_head=image_head),
        prototypes=prototypes,
    )

    random_seeds = range(seed, seed + random_models)

    def measured(subject: Subject) -> list[dict[str, Any]]:
        model, data = subject.model, subjects.data
        at = None if layers is None else measured_layers(model, layers)
        stored = stored_runs(model, data, random_seeds, at)
        unread = len(stored) == 1 + random_models
        if unread:
            stored[None].serving.note()
        batches = subject.unread if unread else subject.labelled
        return measure_identifiability(
            model,
            batches(data, batch_size, "projecting"),
            rules=subject.rules,
            layers=at,
            random_seeds=random_seeds,
            permuted_seeds=range(seed, seed + permuted_heads),
            published=repro,
            full_range=full_range,
            seed=seed,
            stored=stored,
        )

    frame = pd.DataFrame(subjects.rows(measured)).astype({"layer": "Int64", "seed": "Int64"})
    result = Result(
        frame,
        {
            **subjects.about,
            "seeds": list(random_seeds),
            "batch_size": batch_size,
            "interventions": [],
            "options": {"norm": norm, "bias": bias, "image_head": image_head, "full_range": full_range},
            "repro": repro,
        },
    )
    result.meta["table"] = summary_table(frame).astype(object).where(lambda t: t.notna(), None).to_dict("records")
    result.meta["summary"], result.meta["notes"] = in_words(result), _notes(subjects.by_name, repro)
    tested = "above_random" if repro else ", ".join(TESTED)
    over = "the layers of one measure, one kind of token and one model"
    result.meta["corrected"] = [corrected(tested, "not corrected, as published," if repro else "Holm", over)]
    return result


def _notes(subjects: Mapping[str, Any], repro: bool) -> list[str]:
    notes = [
        f"{name}: {subject.answers.note}; the space of the classes is that head's, not one the model was trained with."
        for name, subject in subjects.items()
        if subject.answers.fitted
    ]
    notes += [
        f"{name} has no CLS token, so only image tokens are shown."
        for name, subject in subjects.items()
        if not subject.model.cfg.has_cls
    ]
    if repro:
        notes.append("The settings are those of the published code, errors included; see the analysis' description.")
    return notes
