"""Does a sparse dictionary stand for the stream, and what do its features do?

A dictionary (a sparse autoencoder) takes the place of the stream after a block. Explained variance says how much of it
comes back, by role of token; *loss recovered* how much of what setting it to zero, or to its mean, does to the answer,
the dictionary does not do. Beside it stand as many random directions of the same sparsity, and principal components.
The largest features are then taken out and pushed one by one, with the same steps in random directions as the control.
Cunningham et al. 2023, Gao et al. 2024, Fel et al. 2025.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.activations.layers import measured_layers
from analyses.activations.store.stats import stats_over
from analyses.data import ImageData
from analyses.data.sets import two_sets
from analyses.questions.features.sparse_features.controls import (
    constant,
    principal_components,
    random_directions,
    turned,
)
from analyses.questions.features.sparse_features.figure import effects_figure, in_words, main_figure, summary_table
from analyses.questions.features.sparse_features.measuring import (
    Reconstruction,
    answers_with_classes,
    divergence,
    recovered,
)
from analyses.running.notes import about_data, about_model, progress_batches
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.intervals import mean_intervals
from hooked_vit import HookedViT
from hooked_vit.hook_table import layer_of as layer_of_hook
from interventions import Intervention, Sae, ablate_feature, load_sae, splice, steer_feature, sweep
from interventions.vocabulary import TOKEN_SITES, layers_of, site_hook

N, N_FIT = 64, 128
EXAMINED, PRINCIPAL, RANDOM = "examined", "principal components", "random directions"
EDITS = {"ablated": "ablation", "steered": "steering"}


@analysis(figure=main_figure, more_figures={"What the largest features do": effects_figure})
def sparse_features(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *, fit_data: ImageData | Any = None,
    dictionary: Sae | Sequence[Sae] | Path | str | None = None, layout: str = "saelens",
    layers: tuple[int, ...] | None = None, site: str | None = None, k: int = 8, top: int = 4, seed: int = 0,
    batch_size: int = 32, activations: tuple[str, ...] | None = None,
) -> Result:  # fmt: skip
    """How much of the stream does a sparse dictionary hold, beside random directions, and what do its features do?

    >>> sae = load_sae("folder", "saelens")  # doctest: +SKIP
    >>> result = sparse_features({"dinov2": model}, data, dictionary=sae)  # doctest: +SKIP
    >>> result.frame.query("measure == 'explained_variance'")  # doctest: +SKIP

    `dictionary` is one, several (each at its own layer and site), or a path of this `layout`; `layers` and `site` are
    for one that does not say where it was trained. Without any, the `k` largest principal components of the stream in
    the middle and at the end stand in: no training, and what a trained one has to beat. `fit_data` gives the means, the
    components and which `top` features are the largest; with `activations`, folders that `store_activations` filled
    with the role "all", means and components are read from there.

    The frame: per `layer`, `site`, `role` of token and `dictionary` `explained_variance`, `l0` (active features per
    token), `dead` (share of features never active on these images) and `loss_recovered` against `ablation` "zero" or
    "mean", the dictionary in the place of tokens of that role alone: 1 − D(dictionary) / D(ablated), D being KL from
    the clean answer, or 1 − cosine of features where there are no classes, with a 95 % interval over images.
    `effect` is D after a `feature` was "ablated" or "steered" (raised by its largest activation), along its own
    `direction` or a random one of the same length.
    Raises ValueError for a dictionary of another width, layer or site, and what `load_sae` raises.
    """
    found = _given(dictionary, layout)
    measured, fitted, note = two_sets(data, fit_data, n=N, n_fit=N_FIT)
    places = {name: _places(model, found, layers, site) for name, model in models.items()}
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    for name, model in models.items():
        study = _Study(name, model, places[name], k=k, top=top, seed=seed)
        study.fit(fitted, batch_size)
        study.measure(measured, batch_size)
        rows += [{"model": name, **row} for row in study.rows()]
        about[name] = {
            **about_model(model),
            "dictionaries": {f"{layer} {where}": _told(sae) for (layer, where), sae in study.examined.items()},
            "distance": "KL" if answers_with_classes(model) else "1 - cosine",
        }
    frame = pd.DataFrame(rows).astype({"layer": "Int64", "feature": "Int64"})
    meta = {
        "models": about,
        **{"data": about_data(measured), "fit_data": about_data(fitted, note)},
        **{"dictionary": "given" if found else "principal components", "k": k, "top": top},
        **{"seed": seed, "batch_size": batch_size, "interventions": ["splice", "ablate_feature", "steer_feature"]},
    }
    result = Result(frame, meta)
    table = summary_table(result).astype(object)
    result.meta["table"] = table.where(table.notna(), None).to_dict("records")
    result.meta["summary"], result.meta["notes"] = in_words(result)
    return result


Place = tuple[int, str]


def _given(dictionary: Any, layout: str) -> list[Sae]:
    if dictionary is None:
        return []
    if isinstance(dictionary, (str, Path)):
        return [load_sae(dictionary, layout)]
    found = [dictionary] if isinstance(dictionary, Sae) else list(dictionary)
    if not found or not all(isinstance(sae, Sae) for sae in found):
        raise ValueError("a dictionary is an Sae, several, or the path of one; got none, or something else")
    return found


def _told(sae: Sae) -> str:
    """Which dictionary it was, so that another of the same size is not taken for it."""
    return f"{sae!r}, {sae.source or 'of unknown origin'}, {sae.fingerprint()}"


def _places(model: HookedViT, found: list[Sae], layers: Any, site: str | None) -> dict[Place, Sae | None]:
    """Where each dictionary goes, everything checked; None for components that are yet to be found."""
    if not found:
        last = model.cfg.n_layers - 1
        chosen = measured_layers(model, layers if layers is not None else (last // 2, last))
        for layer in chosen:
            site_hook(model, site or "resid_post", layer, [known for known in TOKEN_SITES if known != "result"])
        return {(layer, site or "resid_post"): None for layer in chosen}
    places: dict[Place, Sae | None] = {}
    for sae in found:
        # one that says where it was trained is refused elsewhere
        asked: list[int | None] = [None] if layers is None else [*measured_layers(model, layers)]
        if sae.layer is not None and layers_of(model, [sae.layer])[0] in asked:
            asked = [sae.layer]
        for wanted in asked:
            ((hook, _),) = splice(sae, wanted, site).hooks(model)
            at = layer_of_hook(hook), hook.rpartition("hook_")[2]
            if at in places:
                raise ValueError(f"two dictionaries are for {hook}; a place is examined with one at a time")
            places[at] = sae.replace(layer=None, site=None, tokens=None)
    return places


class _Study:
    """One model: its dictionaries, their controls, and what is summed up over batches."""

    def __init__(
        self, name: str, model: HookedViT, places: dict[Place, Sae | None], *, k: int, top: int, seed: int
    ) -> None:
        self.name, self.model, self.places, self.k, self.top, self.seed = name, model, places, k, top, seed
        self.hosts = {at: site_hook(model, at[1], at[0]) for at in places}
        self.examined: dict[Place, Sae] = {}
        self.kept: dict[tuple[Place, str], Reconstruction] = {}
        self.features: dict[Place, list[tuple[int, float]]] = {}
        self.moved: dict[tuple[Any, ...], list[np.ndarray]] = defaultdict(list)

    def fit(self, data: ImageData, batch_size: int) -> None:
        """Means and components over all images; the controls, and which features are the largest, on the first."""
        whole = [(site, layer, "all") for layer, site in self.places]
        each = [(site, layer, role) for layer, site in self.places for role in self.roles()]
        moments = stats_over(self.model, data, whole, batch_size=batch_size)
        means = stats_over(self.model, data, each, covariance=False, batch_size=batch_size)
        self.means = {(at, role): means.mean(at[1], at[0], role) for at in self.places for role in self.roles()}
        _, seen = self._run(self.model.preprocess(next(iter(data.batches(batch_size))).images))
        for at, sae in self.places.items():
            mean, covariance = self.means[at, "all"].flatten(), moments.covariance(at[1], at[0], "all")
            examined = principal_components(mean, covariance, self.k) if sae is None else sae
            acts, tokens = examined.encode(seen[at]).flatten(0, 1), seen[at].flatten(0, 1)
            l0 = float((acts != 0).sum(-1).double().mean())
            self.examined[at], self.kept[at, EXAMINED] = examined, Reconstruction(examined)
            if sae is not None:
                self.kept[at, PRINCIPAL] = Reconstruction(principal_components(mean, covariance, max(1, round(l0))))
            self.kept[at, RANDOM] = Reconstruction(random_directions(examined, tokens, l0, self.seed))
            largest = acts.mean(0).topk(min(self.top, examined.n_features)).indices.tolist()
            self.features[at] = [(f, float(acts[:, f].max())) for f in largest if float(acts[:, f].max()) > 0]

    def roles(self) -> tuple[str, ...]:
        """All tokens, and each role by itself."""
        return ("all", *self.model.tokens.roles)

    @torch.no_grad()
    def _run(self, pixels: Tensor) -> tuple[Tensor, dict[Place, Tensor]]:
        logits, cache = self.model.run_with_cache(pixels, names_filter=list(self.hosts.values()))
        return logits, {at: cache[host].flatten(2) for at, host in self.hosts.items()}

    def measure(self, data: ImageData, batch_size: int) -> None:
        """Everything, batch by batch."""
        variants = dict(self._variants())
        for batch in progress_batches(data, batch_size, f"{self.name}: dictionaries", into=(self.kept, self.moved)):
            pixels = self.model.preprocess(batch.images)
            logits, seen = self._run(pixels)
            layout = self.model.layout_for(*pixels.shape[2:])
            for (at, _), kept in self.kept.items():
                kept.update(seen[at], layout)
            for key, (_, out) in zip(variants, sweep(self.model, pixels, variants.values()), strict=True):
                self.moved[key].append(divergence(self.model, logits, out).numpy())

    def _variants(self) -> Iterator[tuple[tuple[Any, ...], Intervention]]:
        for at in self.places:
            layer, site = at
            for role in self.roles():
                mean = self.means[at, role].flatten()
                tried = {("ablated", "zero"): constant(torch.zeros_like(mean)), ("ablated", "mean"): constant(mean)}
                tried |= {("dictionary", which): k.sae for (place, which), k in self.kept.items() if place == at}
                for key, sae in tried.items():
                    yield (at, role, *key), splice(sae, layer, site, error_term=False, tokens=role)
            own = self.examined[at]
            for direction, sae in (("own", own), ("random", turned(own, self.seed + 1))):
                there = splice(sae, layer, site)
                for feature, most in self.features[at]:
                    edits = ablate_feature(layer, feature, site=site), steer_feature(layer, feature, most, site=site)
                    for edit, made in zip(EDITS, edits, strict=True):
                        yield (at, edit, direction, feature), there + made

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of the frame."""
        joined = {key: np.concatenate(parts) for key, parts in self.moved.items()}
        for (at, which), kept in self.kept.items():
            where = {"layer": at[0], "site": at[1], "dictionary": which}
            yield from ({**where, **row} for row in kept.rows())
            for role in self.roles():
                for ablation in ("zero", "mean"):
                    spliced, ablated = joined[at, role, "dictionary", which], joined[at, role, "ablated", ablation]
                    said = {"measure": "loss_recovered", "role": role, "ablation": ablation}
                    yield {**where, **said, **recovered(spliced, ablated)}
        effects = {key: values for key, values in joined.items() if key[1] in EDITS}
        intervals = mean_intervals(effects)
        for key, values in effects.items():
            (layer, site), edit, direction, feature = key
            low, high = intervals[key]
            yield {
                **{"layer": layer, "site": site, "dictionary": EXAMINED, "measure": "effect", "edit": edit},
                **{"direction": direction, "feature": feature, "value": float(values.mean())},
                **{"low": low, "high": high, "n": len(values)},
            }
        if not effects:  # a dictionary of which nothing is active
            yield {"measure": "effect", "feature": None, "value": float("nan"), "n": 0}
