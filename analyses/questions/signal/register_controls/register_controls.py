"""Does a model need what its registers hold, or only that something like it is there?

Registers set to zero behind every block cost much; registers set to their mean, to noise of their mean and variance, or
to those of another image remove as much of what they held and may cost nothing: zero is what no model has seen (Parodi,
Matelsky & Segado 2026, arXiv 2604.14433). The same is done to CLS, and to as many patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analyses.controls.shuffle_floors import check_shuffles
from analyses.data import ImageData
from analyses.pages.album import Album
from analyses.probes.classifier_heads import AUTO, fit_head, ready_for_head
from analyses.probes.opening import open_study
from analyses.questions.signal.register_controls.figure import cosine_figure, in_words, main_figure, summary_table
from analyses.questions.signal.register_controls.replaced import ReplacedTokens
from analyses.running.registry import analysis
from analyses.running.results import Result
from hooked_vit import HookedViT

N, N_FIT = 256, 512
COLUMNS = ("model", "architecture", "measure", "token", "replaced", "seed", "value", "low", "high", "n")


@analysis(figure=main_figure, more_figures={"What it does to the patches": cosine_figure})
def register_controls(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *, fit_data: ImageData | Any = None,
    reads: str = AUTO, seeds: int = 2, seed: int = 0, batch_size: int = 64, head: str = "auto",
    activations: tuple[str, ...] | None = None,
) -> Result:  # fmt: skip
    """Does a model need what its registers hold, or only that something like it is there?

    >>> result = register_controls({"dinov2": with_registers}, photos)  # doctest: +SKIP
    >>> result.frame.query("measure == 'accuracy' and token == 'registers'")  # doctest: +SKIP

    Tokens are replaced behind every block at once: `replaced` by "zero"; "mean", their own mean at that block and place
    over `fit_data`; "noise", normal draws of that mean and variance, dimension by dimension; "shuffle", those of other
    images of the batch, dealt anew at every block; noise and shuffles `seeds` times. `token` is a role in front of the
    patches, or as many patches at random places as there are registers (or one), the control. `reads="cls"` judges by
    a ridge head on CLS alone, as Parodi et al. do; "auto" by the model's own head, or a ridge head on what its
    checkpoint reads. With `activations`, folders that `store_activations` filled with every token behind every block,
    the model runs with tokens replaced alone.

    One row per model, token, replacement and seed with a 95 % interval over images: accuracy, and patch_cosine, of the
    patches behind the last block with those of the untouched run. Without a token: the untouched accuracy, and chance.
    Raises ValueError for a model without a token in front of its patches, or without CLS where that is read, and what
    `check_shuffles` raises.
    """
    for name, model in models.items():
        if not model.cfg.prefix or (reads == "cls" and "cls" not in model.cfg.prefix):
            asked = "CLS is read alone" if reads == "cls" else "tokens in front of the patches are replaced"
            raise ValueError(f"{asked}, and there are no CLS and no registers in front of the patches of {name}")
        ready_for_head(model, reads)
    opening = open_study(models, data, fit_data, head, dict.fromkeys(models, reads), n=N, n_fit=N_FIT)
    check_shuffles(opening.measured, batch_size, seeds, "batch")
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    pictures: list[dict[str, Any]] = []
    for name, model in models.items():
        own = opening.heads[name]
        answers = own or fit_head(name, model, opening.fitted, opening.n_classes, batch_size, reads)
        album = Album(name, answers.model.cfg.class_names, opening.measured.name_of, len(models))
        study = ReplacedTokens(name, answers, seeds, seed, album)
        study.fit(opening.fitted, batch_size)
        study.measure(opening.measured, batch_size, opening.n_classes)
        rows += [{"model": name, "architecture": model.cfg.architecture, **row} for row in study.rows()]
        about[name] = {**answers.about(), "prefix": list(model.cfg.prefix), "targets": study.targets}
        pictures += album.entries()
    meta = {
        "models": about,
        **opening.about(),
        **{"reads": reads, "seeds": list(range(seeds)), "seed": seed, "batch_size": batch_size},
        "interventions": ["zero_tokens", "mean_tokens", "set_tokens", "shuffle_tokens"],
        "pictures": pictures,
    }
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"seed": "Int64", "n": "Int64"})
    result = Result(frame, meta)
    result.meta["summary"], result.meta["notes"] = in_words(result)
    table = summary_table(result).astype(object)
    result.meta["table"] = table.where(table.notna(), None).to_dict("records")
    return result
