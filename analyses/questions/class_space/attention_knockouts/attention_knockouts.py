"""Do image tokens need each other, or CLS, to come to know the class?

Attention between groups of tokens is cut in every block at once, or in windows of blocks and single heads. What is left
of the class is read from the tokens behind the last block, or behind others too, and from the model's answers; beside
every knockout stands one that takes as much attention from the same queries at random keys. Vilas et al. 2023, section
4.3; methods §12.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from analyses.data import ImageData
from analyses.questions.class_space.attention_knockouts.figure import (
    in_words,
    knockout_figure,
    layers_figure,
    places_figure,
    summary_table,
)
from analyses.questions.class_space.attention_knockouts.knockout import (
    VARIANTS,
    measure_knockouts,
    places_of,
    variants_of,
)
from analyses.questions.class_space.measures.subjects import Subject, prepare
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.significance import corrected
from hooked_vit import HookedViT

PUBLISHED = ("self_only", "no_cls")


@analysis(
    figure=knockout_figure,
    more_figures={"In which blocks, and in which heads": places_figure, "Behind which layers": layers_figure},
)
def attention_knockouts(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *,
    fit_data: ImageData | Any = None, head: str = "auto", variants: tuple[str, ...] = tuple(VARIANTS),
    window: int = 0, by_head: bool = False, draws: int = 1,
    prototypes: Mapping[str, Float[Tensor, "c p"]] | None = None, layers: tuple[int, ...] | None = None,
    batch_size: int = 64, seed: int = 0, repro: bool = False,
) -> Result:  # fmt: skip
    """Do image tokens need each other, or CLS, to come to know the class?

    >>> result = attention_knockouts({"vit": zoo.load("vit")}, variants=("self_only", "no_cls"))  # doctest: +SKIP
    >>> result.frame.query("measure == 'rate' and tokens == 'patches'")  # doctest: +SKIP

    Variants: self_only (image tokens attend to themselves alone), img2img_zero (image tokens do not see one another),
    img2img_renorm (the same, rows summing to one), no_cls (image tokens do not see CLS), cls_no_img (CLS sees no image
    token), both; or "queries>keys" with roles of tokens, such as "dist>patches". All blocks at once; with `window` also
    every so many neighbouring blocks, with `by_head` also every head. A model without CLS leaves its variants out.
    `layers` are those behind which tokens are read, the last where none are named, not those that are cut.

    Rows: rate (share of tokens behind a layer with the true class first), identifiability, accuracy, their paired
    changes to the clean run with p-values, and attention_mass, the share of the queries' attention in the clean run
    that is cut; `control` is clean, knockout, or random with its seed (`draws` of them). `repro` is the published code:
    self_only and no_cls, CLS counted among the tokens of a knockout but not of the clean run.
    Raises ValueError for an unknown variant, a window of more blocks than there are, and fewer than one draw.
    """
    if draws < 1:
        raise ValueError(f"at least one random knockout is needed for control; got draws={draws}")
    names = PUBLISHED if repro else variants
    if not names:
        raise ValueError(f"name at least one knockout: {', '.join(VARIANTS)}, or 'queries>keys'")
    plans = {name: (*variants_of(model, names), places_of(model, window, by_head)) for name, model in models.items()}
    if empty := [name for name, (possible, *_) in plans.items() if not possible]:
        raise ValueError(f"{', '.join(empty)}: none of the knockouts {', '.join(names)} exists without its tokens")
    subjects = prepare(models, data, fit_data, head=head, batch_size=batch_size, prototypes=prototypes)

    pictures: list[dict[str, Any]] = []

    def measured(subject: Subject) -> list[dict[str, Any]]:
        possible, _, places = plans[subject.name]
        album = subject.album(subjects.data, len(models))
        rows = measure_knockouts(
            subject.model,
            subject.batches(subjects.data, batch_size, "cutting attention"),
            possible,
            places=places,
            layers=layers,
            rules=subject.rules,
            draws=draws,
            published=repro,
            seed=seed,
            album=album,
        )
        pictures.extend(album.entries())
        return rows

    whole = dict.fromkeys(("layer_first", "layer_last", "head", "seed", "layer"), "Int64")
    frame = pd.DataFrame(subjects.rows(measured)).astype(whole)
    result = Result(
        frame,
        {
            **subjects.about,
            "seeds": list(range(seed, seed + draws)),
            "batch_size": batch_size,
            "interventions": list(
                dict.fromkeys(repr(v.knockout()) for possible, *_ in plans.values() for v in possible.values())
            ),
            "repro": repro,
            "pictures": pictures,
        },
    )
    result.meta["table"] = summary_table(result.frame).to_dict("records")
    result.meta["summary"] = in_words(result)
    family = "all knockouts of one model, by layer read and kind of token, the random ones by themselves"
    result.meta["corrected"] = [
        corrected("rate_change", "Holm", family),
        corrected("accuracy_change", "Holm", "all knockouts of one model, the random ones by themselves"),
    ]
    result.meta["notes"] = [
        f"{name} has no such tokens, so these knockouts are left out: {', '.join(missing)}."
        for name, (_, missing, _) in plans.items()
        if missing
    ]
    if repro:
        result.meta["notes"].append(
            "As published, CLS is counted among the tokens of a knockout and not of the clean run, so that the two "
            "differ by more than what was cut."
        )
    return result
