"""The table and the sentences of `registers`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analyses.drawing.rows import by_model, layers_in, picked, value_of
from analyses.running.results import Result
from hooked_vit.config.showing import counted

ROLES = ("cls", "dist", "registers", "patches")


def summary_table(result: Result) -> pd.DataFrame:
    """One row per model: prefix, the most outliers there are behind a layer, and what shuffles leave at their worst."""
    table = []
    for name, rows in by_model(result):
        layer = busiest(rows)
        shuffled = rows[rows.measure == "shuffled"].groupby(["token", "layer"]).value.mean().groupby("token").min()
        probes = rows[rows.measure == "probe"].groupby("token").value.max()
        row: dict[str, Any] = {
            "model": name,
            "prefix": ", ".join(result.meta["models"][name]["prefix"]) or "none",
            "accuracy": value_of(rows, "accuracy"),
            "outliers_at_layer": layer,
            "outlier_share": 0.0 if layer is None else value_of(rows, "outlier_share", layer=layer, variant="trained"),
            "random_weights_share": _untrained_share(rows),
        }
        row |= {f"best_probe_{token}": value for token, value in probes.items() if token in ROLES}
        row |= {f"least_shuffled_{token}": value for token, value in shuffled.items()}
        table.append(row)
    return pd.DataFrame(table).astype({"outliers_at_layer": "Int64"})


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """What was found, and what to keep in mind."""
    found, notes = [], []
    for name, rows in by_model(result):
        about, measured = result.meta["models"][name], of_measured(result, name)
        found.append(f"{name}: {_census_sentence(rows, measured)}")
        if (told := _contents_sentence(rows)) is not None:
            found.append(f"{name}: {told}")
        elif busiest(rows) is not None:
            notes.append(
                f"{name}: behind the layer{measured} with the most outliers fewer than "
                f"{counted(result.meta['min_images'], 'image')} "
                "have one to fit on, or to measure on, so that no probes compare them with other patches."
            )
        if "registers" in about["prefix"]:
            probes = rows[rows.measure == "probe"].groupby("token").value.max()
            found.append(
                f"{name}: a probe{' behind the layers measured' if measured else ''} reads the class with at best "
                f"{probes['registers']:.1%} from the mean register, "
                f"{probes.filter(like='register ').max():.1%} from a single one and {probes['patches']:.1%} from "
                "the mean patch."
            )
        else:
            prefix = ", ".join(about["prefix"]) or "none"
            found.append(f"{name} has no registers; tokens in front of its patches: {prefix}.")
        shuffled = rows[rows.measure == "shuffled"].groupby(["token", "layer"]).value.mean().groupby("token").min()
        if len(shuffled):
            told = ", ".join(f"{value:.1%} for {token}" for token, value in shuffled.items())
            found.append(
                f"{name}: accuracy {value_of(rows, 'accuracy'):.1%}; with tokens of other images, after the layer"
                f"{measured} where that costs most: {told}."
            )
        if about["undefined"]:
            notes.append(
                f"{name}: behind layers {about['undefined']} more than half of the norms are equal, so that a robust z "
                "is not defined and no token is called an outlier; give a cutoff."
            )
    if (result.frame.measure == "content_r2").any():
        notes.append(
            "R² of a patch's content is a share of the variance among patches of that kind: where outliers lie on what "
            "is all alike there is less of it, and R² is lower for the same errors."
        )
    notes.append(
        f"Outlier: {result.meta['rule']}, of image tokens, per model and layer, with the median and MAD of the first "
        f"{counted(result.meta['calibration'], 'image')} that probes are fitted on. The rule is one of spread, not of "
        "a second mode: a long tail has outliers too, and so may random weights; look at the histogram before "
        "speaking of a kind of token."
    )
    return found, notes


def _census_sentence(rows: pd.DataFrame, measured: str) -> str:
    layer = busiest(rows)
    control = _untrained_share(rows)
    if layer is None:
        return f"no image token is an outlier behind any layer{measured} (random weights: at most {control:.2%})."
    among = "of the layers measured, " if measured else ""
    share, images = (
        value_of(rows, m, layer=layer, variant="trained") for m in ("outlier_share", "images_with_outliers")
    )
    traits = []
    for trait, some in picked(rows, measure="overlap", layer=layer, variant="trained").groupby("trait", sort=False):
        value = some.set_index("token").value
        traits.append(
            f"{_TRAITS[str(trait)]} are {value['outlier']:.0%} of them and {value['other']:.0%} of the others"
        )
    return (
        f"{among}outliers are most frequent behind layer {layer}, {share:.2%} of image tokens, in {images:.1%} of "
        f"images (random weights: at most {control:.2%}); {'; '.join(traits)}."
    )


_TRAITS = {
    "object": "on an object",
    "low contrast": "in the quarter with the least contrast",
    "border": "at the border",
}


def _contents_sentence(rows: pd.DataFrame) -> str | None:
    layer = busiest(rows)
    here = picked(rows[rows.measure.isin(["class_probe", "content_r2"])], layer=-1 if layer is None else layer)
    if here.empty:
        return None
    value = here.set_index(["measure", "token"]).value
    return (
        f"there a probe reads the class with {value['class_probe', 'outlier']:.1%} from an outlier and "
        f"{value['class_probe', 'other']:.1%} from another patch of the same image; R² of the patch's own colour and "
        f"contrast is {value['content_r2', 'outlier']:.2f} against {value['content_r2', 'other']:.2f}."
    )


def of_measured(result: Result, name: str | None = None) -> str:
    """What stands behind "the layer" where not all of them were measured, of this model or of any."""
    some = [
        len(layers_in(rows)) < result.meta["models"][model]["n_layers"]
        for model, rows in by_model(result)
        if name in (None, model)
    ]
    return " measured" if any(some) else ""


def busiest(rows: pd.DataFrame) -> int | None:
    """The layer with the most outliers; None where none has any."""
    share = rows[(rows.measure == "outlier_share") & (rows.variant == "trained")]
    return int(share.layer.loc[share.value.idxmax()]) if len(share) and share.value.max() > 0 else None


def _untrained_share(rows: pd.DataFrame) -> float:
    """The largest share of outliers behind any layer of the model with random weights."""
    return float(picked(rows, measure="outlier_share", variant="random weights").value.max())
