"""Are the memories that are active at a token those that promote the image's class, and does it show in the answer?

Attention and MLP are sums of value vectors times coefficients. Lines: the share of tokens of which one of the five most
active memories is among the five that promote the image's class most (definition A), as a mean over classes. Dotted:
the same for wrong classes; dashed: for random memories, which is five times higher for an attention layer of a quarter
of the MLP's width, so that the two are compared with their own chance. Then: the same in images the model gets right
against those it gets wrong; and how often what a sub-layer predicts is the class one of its active memories promotes
most, instead of a mixture.

Vilas et al., NeurIPS 2023, figure 4b and appendix; methods §18–20.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from analyses.data import ImageData
from analyses.questions.class_space.key_values.agreement import KeyValues, measure_key_values
from analyses.questions.class_space.key_values.figure import (
    agreement_figure,
    difference_figure,
    in_words,
    match_figure,
    summary_table,
    text_figure,
)
from analyses.questions.class_space.measures.subjects import Subject, prepare
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.significance import corrected
from hooked_vit import HookedViT

COLUMNS = ("model", "architecture", "layer", "part", "tokens", "measure", "control", "definition", "class")
NUMBERS = ("value", "low", "high", "n", "n_right", "n_wrong", "p", "p_adjusted")


@analysis(
    figure=agreement_figure,
    more_figures={
        "The other definition: the class is among those an active memory promotes most": text_figure,
        "Images the model gets right, against those it gets wrong": difference_figure,
        "One memory's class, or a mixture": match_figure,
    },
)
def key_values(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *,
    fit_data: ImageData | Any = None, head: str = "auto", top: int = 5, draws: int = 20, n_permutations: int = 1999,
    fold_gain: bool = False, prototypes: Mapping[str, Float[Tensor, "c p"]] | None = None,
    layers: tuple[int, ...] | None = None, batch_size: int = 64, seed: int = 0, repro: bool = False,
) -> Result:  # fmt: skip
    """Are the memories that are active those that promote the image's class, and does it show in the answer?

    >>> result = key_values({"vit": zoo.load("vit")}, load_data("scenes:test", n=500))  # doctest: +SKIP
    >>> result.frame.query("measure == 'agreement' and definition == 'A' and tokens == 'all'")  # doctest: +SKIP

    The active memories of a token are the `top` of the largest signed coefficients: neurons behind their nonlinearity,
    entries of the concatenated heads. `agreement` (methods §18), a mean over classes: one of them is among the `top`
    memories that promote the class most (definition A), or the class is among the `top` classes that one of them
    promotes most (B). Controls: `random_class`, `draws` wrong classes for each class; `chance`, random memories.
    `right_minus_wrong` (§19): agreement (A) in images answered right minus wrong, as shares, with group sizes, `p` from
    `n_permutations` relabelings of images and `p_adjusted` by Holm over layers. `match` (§20): share of tokens where
    the top class of what the sub-layer adds is the one an active memory promotes most; control `random_memories`.

    `tokens` are roles, or "all" but registers; `layers` are those measured. `fold_gain` as in `class_values`; `head`,
    `fit_data` and `prototypes` as in `class_projection`. `repro` is the published code: coefficients in front of the
    nonlinearity, and §19 for token 0 alone with 300 relabelings of which those strictly above count, so that p may be
    0. Raises ValueError for labels a head does not know, and with `repro` for gated MLPs; NoHeadError for a model that
    answers with an embedding and has no prototypes.
    """
    if n_permutations < 1:
        raise ValueError(f"a permutation test needs at least one draw; got n_permutations={n_permutations}")
    subjects = prepare(models, data, fit_data, head=head, batch_size=batch_size, prototypes=prototypes)
    for subject in subjects:  # refuses what it cannot measure before anything runs
        asked: dict[str, Any] = {"layers": layers, "top": top, "draws": draws}
        KeyValues(subject.model, **asked, before_activation=repro, rules=subject.rules)

    def measured(subject: Subject) -> list[dict[str, Any]]:
        rows, tied = measure_key_values(
            subject.model,
            subject.labelled(subjects.data, batch_size, "reading memories"),
            layers=layers,
            top=top,
            draws=draws,
            n_permutations=n_permutations,
            fold_gain=fold_gain,
            published=repro,
            seed=seed,
            rules=subject.rules,
        )
        more[subject.name] = {"n_classes": subject.n_classes, "tied": tied}
        return rows

    more: dict[str, dict[str, Any]] = {}
    frame = pd.DataFrame(subjects.rows(measured), columns=[*COLUMNS, *NUMBERS])
    about = subjects.about
    result = Result(
        frame.astype({"class": "Int64", "n_right": "Int64", "n_wrong": "Int64"}),
        {
            **about,
            "models": {name: {**told, **more[name]} for name, told in about["models"].items()},
            "top": top,
            "draws": draws,
            "n_permutations": n_permutations,
            "fold_gain": fold_gain,
            "repro": repro,
            "seeds": [seed],
            "batch_size": batch_size,
            "interventions": [],
        },
    )
    result.meta["table"] = summary_table(result)
    result.meta["summary"], result.meta["notes"] = in_words(result)
    over = "the layers of one part, one kind of token and one model"
    method = "not corrected, as published," if repro else "Holm"
    result.meta["corrected"] = [corrected("right_minus_wrong", method, over)]
    return result
