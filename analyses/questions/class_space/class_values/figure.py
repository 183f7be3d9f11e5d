"""The pictures, the table and the sentences of `class_values`."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses.drawing.colours import CHANCE, LIGHT_PARTS, NAMES, PART_NAMES, PARTS
from analyses.drawing.panels import add, curve, each_panel, level, model_panels, stars
from analyses.drawing.rows import LEVEL, head_notes, span
from analyses.drawing.side_by_side import BOX_ROOM, beside
from analyses.running.results import Result
from analyses.running.shown import small
from hooked_vit.config.showing import counted


def agreement_figure(result: Result) -> go.Figure:
    """One panel per model: the mean over classes of the largest cosine of any value vector with the class."""
    top = float(result.frame.loc[result.frame.measure == "agreement", "high"].max())
    fig = model_panels(
        result,
        "Does a layer hold a value vector that points at each class?",
        "Mean over classes of the largest cosine; dashed: as many random directions; dotted: random weights; "
        "stars: above those (p < .05, Holm)",
        y="largest cosine with the class",
        y_range=(0.0, 1.12 * top),
    )
    for at, _, of_model in each_panel(fig, result):
        rows = of_model[of_model.measure == "agreement"]
        for (part, tokens), mine in rows.groupby(["part", "tokens"], sort=False):
            first = tokens == rows.tokens.iloc[0]
            colour = (PARTS if first else LIGHT_PARTS)[part]
            label = PART_NAMES[part] + ("" if first else ", class vectors of the second kind of token read")
            trained = mine[mine.control == "trained"]
            curve(fig, at, trained, label, colour)
            clear = trained[trained.p_adjusted < LEVEL]
            stars(fig, at, clear.layer, clear.high.fillna(clear.value) + 0.04 * top, colour)
            if not first:
                continue
            luck = float(mine.loc[mine.control == "chance", "value"].iloc[0])
            line = CHANCE | {"color": colour, "width": 1.5}
            level(fig, at, span(rows), luck, f"{PART_NAMES[part]}, random directions", line)
            curve(fig, at, mine[mine.control == "random"], None, colour, dash="dot", bare=True)
    return fig


def class_figure(result: Result) -> go.Figure:
    """One panel per model: box plots over classes, for the first kind of token the readout reads."""
    cosines = result.frame[result.frame.measure == "agreement_of_class"]
    fig = model_panels(
        result,
        "Is there a value vector for every class, or for some?",
        "Largest cosine of any value vector of the layer with each class: quartiles and whiskers over classes",
        y="largest cosine with the class",
        y_range=(0.0, 1.05 * float(cosines.value.max())),
    )
    for at, name, _ in each_panel(fig, result):
        mine = cosines[cosines.model == name]
        mine = mine[mine.tokens == mine.tokens.iloc[0]]
        for number, (part, label) in enumerate(PART_NAMES.items()):
            one, (shift, room) = mine[mine.part == part], beside(number, len(PART_NAMES), BOX_ROOM)
            place = {"x": one.layer + shift, "width": BOX_ROOM * room, "xhoverformat": ".0f"}
            add(fig, at, go.Box(**place, y=one.value, boxpoints=False, marker_color=PARTS[part]), label)
    return fig


def memory_figure(result: Result) -> go.Figure:
    """One row per value vector: the classes it promotes, and the images in which it is most active."""
    promoted = result.frame[result.frame.measure == "promoted_class"]
    pictures = result.frame[result.frame.measure == "top_image"]
    keys = list(promoted[["model", "layer", "part", "memory"]].drop_duplicates().itertuples(index=False, name=None))
    columns = int(pictures["rank"].max()) + 1 if len(pictures) else 1
    side, gap, head = 96, 46, 70
    height = head + max(len(keys), 1) * (side + gap)
    width = max(columns * (side + 12) + 20, 760)
    fig = go.Figure()
    for i, key in enumerate(keys):
        top = head + i * (side + gap)
        classes, images = _of(promoted, key), _of(pictures, key)
        fig.add_annotation(
            x=8, y=top + 12, text=_heading(key, classes), showarrow=False, xanchor="left", yanchor="middle",
            font={"size": 13},
        )  # fmt: skip
        for j, shown in enumerate(images.itertuples()):
            fig.add_layout_image(
                source=shown.picture, x=8 + j * (side + 12), y=top + 24, sizex=side, sizey=side, xref="x", yref="y",
                yanchor="top", layer="above",
            )  # fmt: skip
    fig.update_xaxes(range=[0, width], visible=False)
    fig.update_yaxes(range=[height, 0], visible=False)
    fig.update_layout(
        template="plotly_white", width=width, height=height, margin={"l": 0, "r": 0, "t": 0, "b": 0},
        title={
            "text": "What do the clearest value vectors promote, and in which images are they most active?<br>"
            + small("Cosines with the classes promoted most, and top images by coefficient; red: the token (none: a "
            "prefix token)"), "x": 0.01, "y": 1 - 26 / height, "yanchor": "middle", "font": {"size": 16},
        },
    )  # fmt: skip
    return fig


def _of(rows: pd.DataFrame, key: tuple[Any, ...]) -> pd.DataFrame:
    model, layer, part, memory = key
    mine = (rows.model == model) & (rows.layer == layer) & (rows.part == part) & (rows.memory == memory)
    return rows[mine].sort_values("rank")


def _heading(key: tuple[Any, ...], classes: pd.DataFrame) -> str:
    model, layer, part, memory = key
    says = ", ".join(f"{row.class_name} ({row.value:.2f})" for row in classes.itertuples())
    return f"<b>{model}</b>, {PART_NAMES[part]} of layer {layer}, memory {memory} promotes {says}"


def summary_table(result: Result) -> list[dict[str, Any]]:
    """Per model, part and token read: the layer that agrees most, beside random weights and random directions."""
    table = []
    rows = result.frame[result.frame.measure == "agreement"]
    for (name, part, tokens), mine in rows.groupby(["model", "part", "tokens"], sort=False):
        trained = mine[mine.control == "trained"].set_index("layer")
        best = int(trained.value.idxmax())
        random = mine[(mine.control == "random") & (mine.layer == best)].value
        row = {"model": name, "part": part, "tokens": tokens, "highest": float(trained.value[best]), "at_layer": best}
        row["random_weights"] = float(random.mean()) if len(random) else None
        row["random_directions"] = float(mine.loc[mine.control == "chance", "value"].iloc[0])
        row["layers_above_random"] = int((trained.p_adjusted < LEVEL).sum()) if len(random) else None
        table.append(row | {"layers": len(trained)})
    return table


def in_words(result: Result) -> tuple[list[str], list[str]]:
    """What was found, and what to keep in mind."""
    found = []
    for row in summary_table(result):
        above = ""
        if row["layers_above_random"] is not None:
            of = counted(row["layers"], "layer measured is", "layers measured are")
            above = f"; {row['layers_above_random']} of {of} above random weights"
        found.append(
            f"{row['model']}, {PART_NAMES[row['part']]}, class vectors that read {NAMES[row['tokens']]}: agreement is "
            f"highest in layer {row['at_layer']} with {row['highest']:.2f} (random directions "
            f"{row['random_directions']:.2f}){above}."
        )
    found += [_sentence(key, *_agreeing(result, key)) for key in _memories(result)]
    notes = [
        "The largest of many cosines is large by chance, and larger the more value vectors there are: compare with "
        "the dashed line, not across attention and MLP.",
        "A value vector says what a memory adds, not when: one that promotes a class and is most active in images of "
        "other classes moderates what the stream says there.",
        "The sign-flip test takes classes as independent.",
    ]
    if result.meta["fold_gain"]:
        notes.append("Gains are folded in: the final norm's into classes, LayerScale or a norm behind into values.")
    return found, notes + head_notes(result.meta)


def _memories(result: Result) -> list[tuple[Any, ...]]:
    """The clearest memory of each model."""
    best = result.frame[(result.frame.measure == "promoted_class") & (result.frame["rank"] == 0)]
    if best.empty:
        return []
    best = best.loc[best.groupby("model", sort=False).value.idxmax()]
    return list(best[["model", "layer", "part", "memory"]].itertuples(index=False, name=None))


def _agreeing(result: Result, key: tuple[Any, ...]) -> tuple[str, int, int]:
    classes = _of(result.frame[result.frame.measure == "promoted_class"], key)
    images = _of(result.frame[result.frame.measure == "top_image"], key)
    return classes.class_name.iloc[0], int((images["class"] == classes["class"].iloc[0]).sum()), len(images)


def _sentence(key: tuple[Any, ...], promoted: str, agreeing: int, shown: int) -> str:
    model, layer, part, memory = key
    return (
        f"{model}: the clearest value vector is memory {memory} of the {PART_NAMES[part]} of layer {layer}, which "
        f"promotes {promoted}; {agreeing} of the {counted(shown, 'image')} in which it is most active show that class."
    )
