"""The pictures, the table and the sentences of `low_frequency`."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.activations.sites import LABELS
from analyses.drawing.colours import BLUE, BROWN, DARK, ORANGE, READ_FROM, RED, UNTOUCHED
from analyses.drawing.panels import bars, curve, each_panel, level, model_panels
from analyses.drawing.rows import between, by_model, layers_in, or_undefined, picked, span, value_of
from analyses.running.results import Result
from hooked_vit.config.showing import counted

COLOURS = {**READ_FROM, "random_patch": BROWN}
FILTERS = {"low": ("low-pass", "solid"), "high": ("high-pass", "dot")}
PIXELS = "random projection of pixels"
SWAPS = {
    "learned": "",
    "normal": "N(0, 0.02²)",
    "zeros": "zeros",
    "mean patch": "the data's mean patch",
}
POSITIONS = {True: ("with the position embedding of CLS", BLUE), False: ("without it", ORANGE)}


def main_figure(result: Result) -> go.Figure:
    """Per model, how much of each token of the last block stays when the picture is filtered, against the radius."""
    fig = model_panels(
        result,
        "How much of a token stays when spatial frequencies are filtered out of the picture?",
        "Cosine between the token of the whole and of the filtered picture, last layer, about the token's mean; "
        "1: all stays. Low-pass keeps what is below the radius, high-pass what is above; 95 % intervals over images",
        x="radius of the filter (cycles per picture)",
        y="centred cosine",
        y_range=(-0.35, 1.03),
    )
    for at, _, rows in each_panel(fig, result):
        last = rows[(rows.measure == "centred_cosine") & (rows.layer == rows.layer.max())]
        for token in _tokens(last):
            for kind, (label, dash) in FILTERS.items():
                some = picked(last, token=token, filter=kind)
                curve(fig, at, some, f"{LABELS[token]}, {label}", COLOURS[token], x="radius", dash=dash)
        level(fig, at, _ends(last.radius), 0.0, "nothing stays")
    return fig


def gain_figure(result: Result) -> go.Figure:
    """Per model and block, what CLS keeps of low and of high frequencies beyond what the mean patch keeps."""
    fig = model_panels(
        result,
        "Does CLS keep more of low frequencies than the mean patch does, and less of high ones?",
        "CLS minus mean patch, paired over images, 95 % intervals. Solid: centred cosine to the whole picture's token, "
        "mean over radii; dotted: R² of log band energy, mean over half of the bands",
        y="CLS − mean patch",
        y_range=None,
    )
    colours = {"low": BLUE, "high": RED}
    for at, _, rows in each_panel(fig, result):
        for measure, label, dash in (("cosine_gain", "cosine", "solid"), ("r2_gain", "R² of band energy", "dot")):
            for kind in FILTERS:
                some = picked(rows, measure=measure, filter=kind)
                curve(fig, at, some, f"{label}, {kind} frequencies", colours[kind], dash=dash)
        level(fig, at, span(rows), 0.0, "no difference")
    return fig


def spectrum_figure(result: Result) -> go.Figure:
    """Per model, R² of each band's log energy from tokens of the last block and from controls of the same width."""
    fig = model_panels(
        result,
        "Which frequency bands of the picture can be read from a token?",
        "Held-out R² of ridge regressions of log energy per band, last layer; every source has the same number of "
        "units; 0: no better than the mean; 95 % intervals",
        x="band (upper edge, cycles per picture)",
        y="R²",
        y_range=(-0.12, 1.03),
    )
    for at, name, rows in each_panel(fig, result):
        edges = result.meta["models"][name]["band_edges"][1:]
        ticks = [f"{edge:.3g}" for edge in edges]
        r2 = rows[rows.measure == "r2"].dropna(subset=["band"]).sort_values("band")
        r2 = r2.assign(edge=[ticks[int(band)] for band in r2.band])
        last = r2[r2.layer == r2.layer.max()]
        for token in _tokens(last):
            some = picked(last, token=token, variant="trained")
            curve(fig, at, some, LABELS[token], COLOURS[token], x="edge")
        for token in ("cls", "patches"):
            some = picked(last, token=token, variant="random weights")
            curve(fig, at, some, f"{LABELS[token]}, random weights", COLOURS[token], x="edge", dash="dot")
        curve(fig, at, picked(r2, variant=PIXELS), PIXELS, DARK, x="edge", dash="dot")
        level(fig, at, ticks, 0.0, "no better than the mean")
    return fig


def decodability_figure(result: Result) -> go.Figure:
    """Per model, accuracy on filtered pictures of last-block probes fitted on whole ones, and of the model itself."""
    fig = model_panels(
        result,
        "What does a probe fitted on whole pictures still read from filtered ones?",
        "Accuracy of ridge probes on tokens of the last layer, fitted without a filter; grey: the model's own answer. "
        "Low-pass keeps what is below the radius, high-pass what is above; 95 % intervals over images",
        x="radius of the filter (cycles per picture)",
        y="accuracy",
    )
    for at, _, rows in each_panel(fig, result):
        probes = rows[(rows.measure == "probe") & (rows.layer == rows.layer.max())]
        for token in ("cls", "patches"):
            for kind, (label, dash) in FILTERS.items():
                some = picked(probes, token=token, filter=kind)
                curve(fig, at, some, f"probe on {LABELS[token]}, {label}", COLOURS[token], x="radius", dash=dash)
        for kind, (label, dash) in FILTERS.items():
            some = picked(rows, measure="accuracy", filter=kind)
            curve(fig, at, some, f"model, {label}", DARK, x="radius", dash=dash)
        level(fig, at, _ends(probes.radius), value_of(rows, "chance"), "chance")
        level(fig, at, _ends(probes.radius), _whole(rows), "model on whole pictures", UNTOUCHED)
    return fig


def swap_figure(result: Result) -> go.Figure:
    """Per model, the accuracy with other vectors in the place of the learned CLS embedding."""
    fig = model_panels(
        result,
        "What does the learned CLS embedding add?",
        "Accuracy with another vector in its place (normal: N(0, 0.02²), mean over draws; mean patch: of the data), "
        "95 % intervals over images; without orange: CLS has no position embedding",
        x="in the place of the CLS embedding",
        y="accuracy",
    )
    for at, _, rows in each_panel(fig, result):
        swaps = rows[rows.measure == "swap_accuracy"]
        # the learned vector with its position is the model as it is
        itself = picked(rows, measure="accuracy")
        itself = itself[itself["filter"].isna()].assign(variant="learned", position=True)
        both = pd.concat([itself, swaps]) if len(swaps) else swaps
        for position, (label, colour) in POSITIONS.items():
            some = both[both.position == position].groupby("variant", sort=False)[["value", "low", "high"]].mean()
            some = some.reindex([name for name in SWAPS if name in some.index])
            bars(fig, at, list(some.index), some, label, colour)
        if len(swaps):
            ends = [next(iter(SWAPS)), [*SWAPS][-1]]
            level(fig, at, ends, _whole(rows), "the model as it is", UNTOUCHED)
            level(fig, at, ends, value_of(rows, "chance"), "chance")
    fig.update_xaxes(categoryorder="array", categoryarray=list(SWAPS))
    return fig


def summary_table(result: Result) -> pd.DataFrame:
    """One row per model: blocks that meet the rule, and last-block numbers of CLS against the mean patch."""
    table = []
    for name, rows in by_model(result):
        last = rows.layer.max()
        row: dict[str, Any] = {"model": name, "accuracy": _whole(rows)}
        for kind in FILTERS:
            for measure in ("cosine_gain", "r2_gain"):
                some = rows[(rows.measure == measure) & (rows["filter"] == kind) & (rows.layer == last)]
                row[f"{measure}_{kind}"] = None if some.empty else float(some.value.iloc[0])
        row["blocks_for"], row["specific_blocks"] = (
            (None, None) if row["cosine_gain_low"] is None else tuple(map(_blocks, _verdict(rows)))
        )
        for source, value in _domain(rows).items():
            row[f"domain_from_{source}"] = value
        table.append(row)
    return pd.DataFrame(table)


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """What was found, and what to keep in mind."""
    found = []
    for name, rows in by_model(result):
        blocks, all_of_them = len(layers_in(rows)), result.meta["models"][name]["n_layers"]
        cosine, r2 = ({k: _last(rows, f"{m}_gain", k) for k in FILTERS} for m in ("cosine", "r2"))
        if cosine["low"] is None:
            found.append(f"{name} has no CLS token: only its patches were measured.")
            continue
        meets, specific = _verdict(rows)
        found.append(
            f"{name}: that CLS holds low frequencies better than the mean patch is supported at {len(meets)} of "
            f"{counted(blocks, 'block')}{' measured' * (blocks < all_of_them)} ({_blocks(meets)}), and at "
            f"{len(specific)} of them ({_blocks(specific)}) for low frequencies more than for high ones."
        )
        found.append(
            f"{name}, last block, CLS minus mean patch: cosine to the whole picture's token {cosine['low']} after a "
            f"low-pass and {cosine['high']} after a high-pass; R² of log band energy {r2['low']} in the lower bands "
            f"and {r2['high']} in the upper ones."
        )
        found.append(f"{name}: {_sources(rows, len(result.meta['models'][name]['band_edges']) - 1)}.")
        found.append(f"{name}: {_swaps(rows)}.")
        if domain := _domain(rows):
            told = ", ".join(f"{value:.1%} from {_SOURCES[source]}" for source, value in domain.items())
            found.append(
                f"{name}: a probe at the last block tells the data sets apart with {told} (by chance "
                f"{value_of(rows, 'domain_chance'):.1%})."
            )
    notes = [
        "The rule, at each block: CLS exceeds the mean patch in the centred cosine after a low-pass (mean over radii) "
        "and in R² of the lower half of the bands, both with 95 % intervals above 0, paired over images; "
        "specific, if both exceed what CLS gains in high frequencies. Both "
        "tokens have the same number of units and the same probe.",
        "A plain cosine is close to 1 whatever is filtered, as tokens share a large mean; the centred one is about the "
        "token's mean over the data that probes were fitted on. Filtered pictures are unlike those of the training, "
        "so that part of a change is how odd they look.",
        "A log energy is no linear function of pixels, which is why projected pixels tell little of it; the model with "
        "random weights is the control that is not linear. Transforms are in float64: float32 would leave rounding of "
        "the size of a smooth picture's finest band. An energy counts the rounding to 256 grey values.",
    ]
    constant = result.frame[(result.frame.measure == "centred_cosine") & result.frame.value.isna()]
    notes += [
        f"{place.model}: {LABELS[place.token]} behind layer {place.layer} is the same in every image, so that a "
        "centred cosine and CKA are not defined there."
        for place in constant[["model", "token", "layer"]].drop_duplicates().itertuples()
    ]
    if result.meta["repro"]:
        notes.append(
            "Filtered as published: the disc lies half a bin off zero frequency for even sides, and the magnitude of "
            "the result is taken, so that high-passed pictures are rectified and low + high is not the picture."
        )
    return found, notes


def _verdict(rows: pd.DataFrame) -> tuple[list[int], list[int]]:
    """Blocks at which the rule holds, and those of them at which low frequencies gain more than high ones."""
    meets, specific = [], []
    for layer in layers_in(rows):
        here = rows[rows.layer == layer]
        gains = [_gain(here, measure, "low") for measure in ("cosine_gain", "r2_gain")]
        if all(low > 0 for _, low in gains):
            meets.append(layer)
            others = [_gain(here, measure, "high") for measure in ("cosine_gain", "r2_gain")]
            if all(gain[0] > other[0] for gain, other in zip(gains, others, strict=True)):
                specific.append(layer)
    return meets, specific


def _gain(rows: pd.DataFrame, measure: str, kind: str) -> tuple[float, float]:
    row = rows[(rows.measure == measure) & (rows["filter"] == kind)].iloc[0]
    return float(row["value"]), float(row["low"])


def _last(rows: pd.DataFrame, measure: str, kind: str) -> str | None:
    some = rows[(rows.measure == measure) & (rows["filter"] == kind) & (rows.layer == rows.layer.max())]
    if some.empty:
        return None
    row = some.iloc[0]
    return f"{or_undefined(row['value'], '+.3f')} ({between(row['low'], row['high'], '+.3f')})"


def _sources(rows: pd.DataFrame, bands: int) -> str:
    """Mean R² of the lower half of the bands, of CLS and of all it is compared with."""
    low = rows[(rows.measure == "r2") & (rows.band < bands // 2)]
    last = low[low.layer == low.layer.max()]
    sources = {
        "CLS": picked(last, token="cls", variant="trained"),
        "the mean patch": picked(last, token="patches", variant="trained"),
        "CLS of random weights": picked(last, token="cls", variant="random weights"),
        "as many projected pixels": picked(low, variant=PIXELS),
    }
    told = ", ".join(f"{or_undefined(some.value.mean(), '.2f')} from {source}" for source, some in sources.items())
    return f"R² of the lower bands' log energy at the last block is {told}"


def _domain(rows: pd.DataFrame) -> dict[str, float]:
    """Accuracy of the probe of the origin at the last block, which is chosen beforehand, and from pixels."""
    domain = rows[rows.measure == "domain"]
    found = {token: value_of(domain, "domain", token=token, layer=rows.layer.max()) for token in ("cls", "patches")}
    found["pixels"] = value_of(domain, "domain", token="pixels")
    return {source: value for source, value in found.items() if value is not None}


_SOURCES = {"cls": "CLS", "patches": "the mean patch", "pixels": "as many projected pixels"}


def _swaps(rows: pd.DataFrame) -> str:
    whole, swaps = _whole(rows), rows[rows.measure == "swap_accuracy"]
    kept = swaps[swaps.position == True].groupby("variant", sort=False).value.mean()  # noqa: E712
    told = ", ".join(f"{value:.1%} with {SWAPS[variant]}" for variant, value in kept.items())
    return f"accuracy {whole:.1%} as it is, {told} in the place of the learned CLS embedding"


def _blocks(layers: list[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


def _tokens(rows: pd.DataFrame) -> list[str]:
    return [token for token in LABELS if (rows.token == token).any()]


def _ends(x: pd.Series) -> list[float]:
    return [float(x.min()), float(x.max())]


def _whole(rows: pd.DataFrame) -> float:
    return float(rows[(rows.measure == "accuracy") & rows["filter"].isna()]["value"].iloc[0])
