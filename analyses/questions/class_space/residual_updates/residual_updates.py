"""Which sub-layer writes the class into the residual stream, and where does a block's top class come from?

A sub-layer's update is what it adds to the residual stream. Projected alone into class space it has a score for every
class. Lines: in how many tokens the score of the image's class is higher in the update than in what the sub-layer read;
one half is chance. Bars: how often the top class behind a block is already the top class of the stream before it, of
the attention update or of the MLP update, and how often of none of them; black marks are the same comparison with the
three taken from another image.

Vilas et al., NeurIPS 2023, figures 3b and 3c; methods §15 and §16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from analyses.data import ImageData
from analyses.questions.class_space.measures.subjects import Subject, prepare
from analyses.questions.class_space.measures.updates import ClassSimilarity
from analyses.questions.class_space.residual_updates.composition import compared_layers, measure_residual_updates
from analyses.questions.class_space.residual_updates.figure import (
    composition_figure,
    in_words,
    partition_figure,
    similarity_figure,
    summary_table,
)
from analyses.running.registry import analysis
from analyses.running.results import Result
from hooked_vit import HookedViT

COLUMNS = ("model", "architecture", "layer", "part", "tokens", "measure", "control", "seed")


@analysis(
    figure=similarity_figure,
    more_figures={
        "Where the top class after a block comes from": composition_figure,
        "The same, every token counted once": partition_figure,
    },
)
def residual_updates(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *,
    fit_data: ImageData | Any = None, head: str = "auto",
    reference: Literal["layer_input", "block_input"] = "layer_input", random_models: int = 3,
    prototypes: Mapping[str, Float[Tensor, "c p"]] | None = None, layers: tuple[int, ...] | None = None,
    batch_size: int = 64, seed: int = 0, repro: bool = False,
) -> Result:  # fmt: skip
    """Which sub-layer writes the class, and where does a block's top class come from?

    >>> result = residual_updates({"vit": zoo.load("vit")}, load_data("scenes:test", n=500))  # doctest: +SKIP
    >>> result.frame.query("measure == 'class_similarity' and part == 'attn' and tokens == 'cls'")  # doctest: +SKIP

    `class_similarity` (methods §15): share of tokens whose update, alone, scores the true class higher than its
    `reference`, the stream the sub-layer reads or the one the block reads; ties are not higher. Its `control` is
    "random": `random_models` untrained models with heads of their own.
    `match` (§16): share of tokens whose top class behind the block is that of the stream before it (`prev`), of the
    attention update, of the MLP update; these overlap, and `composition` is none of them. `partition`: the same tokens
    counted once each, which sums to 1. Their `control` is "chance": sources of another image at the same position,
    exactly, over all pairs of images.

    `tokens` are roles, or "all" but registers; layers count from 0, and `layers` are those measured; intervals resample
    images. `head`, `fit_data` and `prototypes` as in `class_projection`. `repro` is the published code: both updates
    against the block's input, composition that never asks the MLP, no first block. Raises ValueError for labels a head
    does not know, for an unknown reference, and with `repro` for the first layer alone; NoHeadError for a model that
    answers with an embedding and has no prototypes.
    """
    ClassSimilarity(reference)  # refuses what it does not know before anything runs
    if random_models < 0:
        raise ValueError(f"untrained models are compared with, 0 or more; got random_models={random_models}")
    at = {name: compared_layers(model, layers, repro) for name, model in models.items()}
    subjects = prepare(models, data, fit_data, head=head, batch_size=batch_size, prototypes=prototypes)

    def measured(subject: Subject) -> list[dict[str, Any]]:
        return measure_residual_updates(
            subject.model,
            subject.labelled(subjects.data, batch_size, "projecting updates"),
            reference=reference,
            layers=at[subject.name],
            random_seeds=range(seed, seed + random_models),
            published=repro,
            seed=seed,
            rules=subject.rules,
        )

    frame = pd.DataFrame(subjects.rows(measured), columns=[*COLUMNS, "value", "low", "high", "n", "count"])
    result = Result(
        frame.astype({"seed": "Int64", "count": "Int64"}),
        {
            **subjects.about,
            "reference": "block_input" if repro else reference,
            "repro": repro,
            "seeds": list(range(seed, seed + random_models)),
            "batch_size": batch_size,
            "interventions": [],
        },
    )
    result.meta["table"] = summary_table(result)
    result.meta["summary"], result.meta["notes"] = in_words(result)
    return result
