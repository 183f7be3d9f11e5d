"""In which words do the heads speak, and which of them write an image's answer?

Every head's output is read as the readout would read it, in the space where images are compared with texts; there a few
texts describe it (TextSpan), the logit is a sum over parts of the network, and a prompt's map says which patches the
heads took it from (Gandelsman, Efros & Steinhardt 2024, arXiv 2310.05916). Beside the texts stand as many random
directions, and the heads of the same architecture with random weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analyses.data.sets import classes_to_learn, two_sets
from analyses.probes.classifier_heads import fit_head
from analyses.questions.features.head_words.figure import (
    explained_figure,
    in_words,
    main_figure,
    map_figure,
    word_table,
)
from analyses.questions.features.head_words.joint import directions
from analyses.questions.features.head_words.study import WordStudy
from analyses.running.notes import about_data, about_model
from analyses.running.registry import analysis
from analyses.running.results import Result
from hooked_vit import HookedViT, zero_shot_head
from hooked_vit.errors import UnsupportedModelError

N, N_FIT = 256, 512
COLUMNS = (
    *("model", "architecture", "measure", "variant", "component", "layer", "head", "k", "text", "image", "seed"),
    *("row", "col", "value", "low", "high", "n"),
)
TYPES = dict.fromkeys(("layer", "head", "k", "image", "seed", "row", "col", "n"), "Int64")


@analysis(
    figure=main_figure,
    more_figures={
        "How many words a head needs": explained_figure,
        "Where the heads took the answer from": map_figure,
    },
)
def head_words(
    models: Mapping[str, HookedViT], data: Any = None, *, fit_data: Any = None, texts: tuple[str, ...] = (),
    layers: tuple[int, ...] | None = None, last_layers: int = 4, top: int = 5, examples: int = 3, draws: int = 3,
    seed: int = 0, batch_size: int = 32,
) -> Result:  # fmt: skip
    """In which words do the heads speak, and which of them write an image's answer?

    >>> clip = zero_shot_head("openai/clip-vit-base-patch16", words, templates=("{}",))  # doctest: +SKIP
    >>> head_words({"clip": clip}, photos).frame.query("measure == 'word'")  # doctest: +SKIP

    The words are the texts of `zero_shot_head`, or those of them named in `texts`; for a tower that was loaded without
    texts, `texts` are read by the text tower of its checkpoint. Without texts a model's classes are the words, and
    where it has none, those of a ridge head on what its family's classifier reads, fitted on `fit_data`. Heads of the
    `last_layers` are described by `top` of them; `draws` sets of random directions of their lengths are the control.
    `layers` are those whose parts are told, and whose heads are described and mapped in place of the last ones.

    One row per model, measure and part of the network. contribution: what a part adds to the margin, the logit of the
    image's own answer minus the mean of the others, with a 95 % interval over images; all of them sum to the margin,
    with one part for all layers that are not measured.
    word: the k-th text of a head and the share of variance it adds. explained: that of the first k, by `variant`
    "texts", "random directions" and "random weights". map: of `examples` images, what heads take from each patch for
    the answer `text`. on_object, where images have masks: how often a patch on an object has more of the map than one
    beside it, of the own answer, another text, and the answer of random weights.
    Raises UnsupportedModelError for `texts` of a model without a text tower, ValueError for a text its head does not
    know, numbers below 1, and what `JointReading` raises.
    """
    for what, n in (("last_layers", last_layers), ("top", top), ("draws", draws), ("batch_size", batch_size)):
        if n < 1:
            raise ValueError(f"{what} is at least 1; got {n}")
    models = {name: _with_texts(name, model, texts) for name, model in models.items()}
    measured, fitted, note = two_sets(data, fit_data, n=N, n_fit=N_FIT)
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    n = 0
    for name, model in models.items():
        asked, told = model, "its texts" if model.cfg.unit_norm else "its classes"
        if model.cfg.is_feature_model:
            answers = fit_head(name, model, fitted, classes_to_learn(measured, fitted), batch_size)
            asked, told = answers.model, answers.note
        directions(asked)
        study = WordStudy(
            name, asked, texts, layers=layers, last_layers=last_layers, top=top, examples=examples, draws=draws,
            seed=seed,
        )  # fmt: skip
        study.measure(measured, batch_size)
        n = study.n
        rows += [{"model": name, "architecture": model.cfg.architecture, **row} for row in study.rows()]
        about[name] = {**about_model(asked), "words": told, "n_words": len(study.words), "error": study.error}
    meta = {
        "models": about,
        **{"data": {**about_data(measured), "n": n}, "fit_data": about_data(fitted, note), "texts": list(texts)},
        **{"last_layers": last_layers, "top": top, "examples": examples, "draws": draws, "seed": seed},
        **{"batch_size": batch_size, "interventions": []},
    }
    result = Result(pd.DataFrame(rows, columns=list(COLUMNS)).astype(TYPES), meta)
    result.meta["summary"], result.meta["notes"] = in_words(result)
    result.meta["table"] = word_table(result).to_dict("records")
    return result


def _with_texts(name: str, model: HookedViT, texts: tuple[str, ...]) -> HookedViT:
    """The model, or where it was loaded without texts, that of its checkpoint with these."""
    if not texts or model.cfg.unit_norm:
        return model
    place = model.cfg.name
    try:
        if place is None or (model.cfg.outputs == "classes" and not model.cfg.is_feature_model):
            raise UnsupportedModelError("its head is one of classes")
        like = model.embed.patch.weight
        return zero_shot_head(place, texts, ("{}",), device=like.device, dtype=like.dtype)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{name} has no text tower, so these texts mean nothing to it: {', '.join(texts[:3])}. "
            "zero_shot_head(checkpoint, texts) makes a model that has; without texts its classes are the words"
        ) from error
