"""Does the CLS token hold the low spatial frequencies of an image rather than the high ones?

Single tokens have no spatial spectrum, so the question is put from outside: how much of a token stays when a frequency
band is filtered out of the picture, what a probe still reads from it, and how well the energy of each band is read
from it. The mean patch and a random patch of the same width are beside CLS throughout, and the learned CLS embedding
is swapped for others. methods §25, after Zou et al. 2024 (NeurIPS).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analyses.activations.layers import measured_layers
from analyses.controls.random_weights import with_random_weights
from analyses.data import ImageData, as_data
from analyses.probes.opening import open_study
from analyses.questions.signal.low_frequency.domain_probe import domain_rows, equal_halves
from analyses.questions.signal.low_frequency.figure import (
    decodability_figure,
    gain_figure,
    in_words,
    main_figure,
    spectrum_figure,
    summary_table,
    swap_figure,
)
from analyses.questions.signal.low_frequency.frequency_study import FrequencyStudy, picture_size
from analyses.questions.signal.spectrum import band_edges, default_radii, luminance, shown_pixels
from analyses.running.notes import about_data
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.significance import uncorrected
from hooked_vit import HookedViT
from interventions import high_pass, low_pass

TYPES = {"layer": "Int64", "band": "Int64", "seed": "Int64", "radius": "Float64", "position": "boolean"}


@analysis(
    figure=main_figure,
    more_figures={
        "CLS minus mean patch, at every layer": gain_figure,
        "Which frequency bands can be read from a token": spectrum_figure,
        "What a probe fitted on whole pictures still reads": decodability_figure,
        "Other vectors in the place of the learned CLS embedding": swap_figure,
    },
)
def low_frequency(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *,
    fit_data: ImageData | Any = None, domain_data: ImageData | Sequence[Any] | Any = None,
    radii: tuple[float, ...] | None = None, bands: int = 6, layers: tuple[int, ...] | None = None, seeds: int = 2,
    seed: int = 0, batch_size: int = 128, head: str = "auto", repro: bool = False, memory_budget: int = 2**30,
    activations: tuple[str, ...] | None = None,
) -> Result:  # fmt: skip
    """Does the CLS token hold the low spatial frequencies of an image rather than the high ones?

    >>> result = low_frequency({"vit": zoo.load("vit")})  # doctest: +SKIP
    >>> result.frame.query("measure == 'centred_cosine' and token == 'cls' and filter == 'low'")  # doctest: +SKIP

    `radii` of the filters are in cycles per picture; by default 1/16, 1/8, 1/4 and 3/8 of its shorter side. `bands` are
    rings of log energy (of the luminance), `layers` those behind which tokens are read, `seeds` draws of N(0, 0.02²)
    for CLS. With `domain_data` (one more data set, or several) a probe of the data set of origin. `repro` filters as
    published: before normalisation, half a bin off centre, and with the magnitude of the result. CKA takes passes whose
    sums stay within `memory_budget` bytes. With `activations`, folders that `store_activations` filled, no model runs
    on whole pictures.

    One row per model, measure, `token`, `layer`, `filter`, `radius`, `band` and `variant`, with its 95 % interval over
    the n images (none for CKA). Measures: cosine, centred_cosine (about the token's mean over `fit_data`), cka,
    cka_debiased between clean and filtered; probe and accuracy, clean (no filter) and filtered; r2 of log band
    energies (`variant` trained, random weights, or a random projection of the pixels of the same dimension);
    cosine_gain and r2_gain, CLS minus mean patch; swap_accuracy and swap_cosine; domain; chance.
    Raises ValueError for radii below 0, bands without a frequency, seeds below 1, a model without image processor.
    """
    opening = open_study(models, data, fit_data, head)
    halves = None if domain_data is None else equal_halves([opening.measured, *_several(domain_data)], seed)
    for name, model in models.items():
        _check(name, model, radii, bands, seeds)
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    for name, model in models.items():
        used = tuple(map(float, radii)) if radii is not None else default_radii(*picture_size(model))
        study = FrequencyStudy(
            name, model, opening.heads[name], with_random_weights(model, seed), n_classes=opening.n_classes,
            layers=measured_layers(model, layers), radii=used, bands=bands, seeds=seeds, seed=seed, repro=repro,
            memory_budget=memory_budget,
        )  # fmt: skip
        study.fit(opening.fitted, batch_size)
        study.measure(opening.measured, batch_size)
        found = [*study.rows(), *(_domain(name, study, halves, batch_size) if halves else [])]
        rows += [{"model": name, "architecture": model.cfg.architecture, **row} for row in found]
        about[name] = {**study.answers.about(), "radii": used, "band_edges": study.edges}
        about[name]["interventions"] = [repr(swap.intervention) for swap in study.swaps]
    meta = {
        "models": about,
        **opening.about(),
        "domain_data": [about_data(half) for pair in (halves or [])[1:] for half in pair],
        "interventions": [
            repr(f(radius)) for r in about.values() for radius in r["radii"] for f in (low_pass, high_pass)
        ],
        "repro": repro,
        "seeds": list(range(seeds)),
        "seed": seed,
        "batch_size": batch_size,
    }
    result = Result(pd.DataFrame(rows).astype(TYPES), meta)
    result.meta["summary"], result.meta["notes"] = in_words(result)
    result.meta["corrected"] = [uncorrected("above 0, and specific", "blocks and models")]
    table = summary_table(result).astype(object)
    result.meta["table"] = table.where(table.notna(), None).to_dict("records")
    return result


def _several(domain_data: Any) -> list[ImageData]:
    """One data set or several; a pair of images and labels is one."""
    if isinstance(domain_data, list):
        return [as_data(part) for part in domain_data]
    return [as_data(domain_data)]


def _check(name: str, model: HookedViT, radii: tuple[float, ...] | None, bands: int, seeds: int) -> None:
    if seeds < 1:
        raise ValueError(f"at least one draw of a CLS embedding is needed, got seeds={seeds}")
    if radii is not None and (not radii or min(radii) < 0 or len(set(radii)) < len(radii)):
        raise ValueError(f"radii are different numbers of cycles per picture, none below 0; got {radii}")
    try:
        size = picture_size(model)
        band_edges(*size, bands)
        luminance(shown_pixels(model, next(model.parameters()).new_zeros(1, model.cfg.n_channels, *size)))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _domain(name: str, study: FrequencyStudy, halves: Any, batch_size: int) -> list[dict[str, Any]]:
    """Rows of the probe of the origin: every token, and the same number of projected pixels."""

    def read(batch: Any) -> dict[str, Any]:
        pixels = study.model.preprocess(batch.images)
        brightness = luminance(shown_pixels(study.model, pixels)).flatten(1)
        projected = brightness @ study.projection.to(brightness)
        return {**{site.key: x for site, x in study.sites(pixels, batch.index).items()}, "pixels": projected}

    rows = []
    for key, numbers in domain_rows(halves, read, batch_size, name):
        token, _, layer = key.partition(" ")
        measure = "domain_chance" if key == "chance" else "domain"
        place = {"token": token, "layer": int(layer)} if layer else {"token": token if key == "pixels" else None}
        rows.append({"measure": measure, **place, **numbers})
    return rows
