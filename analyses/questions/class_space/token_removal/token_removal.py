"""Do class tokens need context tokens to come to know the class, and the other way round?

Behind the position embedding all image tokens but one group are taken out; the others keep their positions. What is
left of the class is read from the tokens that stay, and from the model's answers, beside the same tokens of the
untouched image and beside a removal of as many tokens at random. Vilas et al. 2023, section 5; methods §14.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from analyses.activations.class_masks import Labelling
from analyses.data import ImageData
from analyses.questions.class_space.measures.masks import ASK_FOR_LESS, masked_batches, with_masks
from analyses.questions.class_space.measures.subjects import Subject, prepare
from analyses.questions.class_space.token_removal.figure import (
    in_words,
    layers_figure,
    notes,
    removal_figure,
    summary_table,
)
from analyses.questions.class_space.token_removal.removal import measure_removal
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.significance import corrected
from hooked_vit import HookedViT


@analysis(figure=removal_figure, more_figures={"Behind which layers": layers_figure})
def token_removal(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *,
    fit_data: ImageData | Any = None, head: str = "auto", rule: Literal["area", "any", "centre", "corner"] = "area",
    tau: float = 0.5, draws: int = 3, prototypes: Mapping[str, Float[Tensor, "c p"]] | None = None,
    layers: tuple[int, ...] | None = None, batch_size: int = 64, seed: int = 0, repro: bool = False,
) -> Result:  # fmt: skip
    """Do class tokens need context tokens to come to know the class, and the other way round?

    >>> result = token_removal({"vit": zoo.load("vit")}, load_data("scenes:test", n=500))  # doctest: +SKIP
    >>> result.frame.query("measure == 'rate'")  # doctest: +SKIP

    The data need a column `mask`, and `rule` and `tau` say which patches lie on the class, as in `context_tokens`.
    `kept` is the group that stays, class or context, beside CLS and other prefix tokens; patches of neither go with the
    other group. Rows: rate (share of the group's tokens that put the class first, mean over images), rate_micro (over
    all tokens of all images), accuracy, and paired changes to the clean run with p-values; `control` is clean, removed,
    or random with its seed (`draws` removals of as many patches). `layers` are those behind which tokens are read, the
    last where none are named. Images without tokens of the group, or with nothing else, are skipped and counted.

    `repro` is the published code: patches are labelled as `context_tokens` does with it, the tokens of the removed run
    include CLS and are averaged per image, those of the clean run are pooled without CLS, and images left with CLS
    alone or with everything count.
    Raises ValueError for data without masks, for masks that do not fit, and for fewer than one draw.
    """
    labelling = Labelling(rule, tau, published=repro)
    if draws < 1:
        raise ValueError(f"at least one random removal is needed for control; got draws={draws}")
    subjects = prepare(models, with_masks(data), fit_data, head=head, batch_size=batch_size, prototypes=prototypes)

    def measured(subject: Subject) -> list[dict[str, Any]]:
        batches = masked_batches(subject, subjects.data, batch_size, "removing tokens", labelling)
        asked: dict[str, Any] = {"rules": subject.rules, "layers": layers, "draws": draws}
        return measure_removal(subject.model, batches, **asked, published=repro, seed=seed)

    rows = subjects.rows(measured)
    if not any("seed" in row for row in rows):
        raise ValueError(f"no image of {subjects.data.name} has patches of its class and others; {ASK_FOR_LESS}")
    result = Result(
        pd.DataFrame(rows).astype({"seed": "Int64", "layer": "Int64"}),
        {
            **subjects.about,
            "seeds": list(range(seed, seed + draws)),
            "batch_size": batch_size,
            "interventions": ["remove_tokens(tokens='patches', where=the other group)"],
            "options": labelling.about(),
            "repro": repro,
        },
    )
    result.meta["table"] = summary_table(result.frame).to_dict("records")
    result.meta["summary"], result.meta["notes"] = in_words(result), notes(result)
    result.meta["corrected"] = [
        corrected("rate_change and accuracy_change", "Holm", "the runs of one model, each measure and layer by itself")
    ]
    return result
