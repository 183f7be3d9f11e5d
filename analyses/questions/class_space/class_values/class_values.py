"""Does a layer hold value vectors that point at the classes, and what else do those promote?

The output of attention and of an MLP is a sum of value vectors, the rows of their output matrices. For every class: the
largest cosine of any value vector of the layer with the class's row of the head. Dashed lines are what as many random
directions reach, dotted ones a model with random weights; stars mark layers above the latter (a paired sign-flip test
over classes, Holm over layers). Below: the value vectors that point at a class most, the classes they promote, and the
images in which their coefficient is largest, with the token where it is.

Vilas et al., NeurIPS 2023, figure 4a; methods §17. Weights only, but for the images.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from analyses.data import ImageData
from analyses.questions.class_space.class_values.figure import (
    agreement_figure,
    class_figure,
    in_words,
    memory_figure,
    summary_table,
)
from analyses.questions.class_space.class_values.value_agreement import measure_value_agreement
from analyses.questions.class_space.measures.memories import PARTS, TopImage, promotion, roles_with, top_images
from analyses.questions.class_space.measures.subjects import Subject, prepare
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.significance import corrected
from hooked_vit import HookedViT

TOP_CLASSES = 5
COLUMNS = ("model", "architecture", "layer", "part", "tokens", "measure", "control", "seed", "class", "memory", "rank")
WHOLE = ("seed", "class", "memory", "rank", "image", "token")
Memory = tuple[int, str, int]


@analysis(
    figure=agreement_figure,
    more_figures={
        "Class by class": class_figure,
        "What the clearest value vectors promote, and when they are active": memory_figure,
    },
)
def class_values(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *,
    fit_data: ImageData | Any = None, head: str = "auto", random_models: int = 3, fold_gain: bool = False,
    memories: int = 2, images: int = 6, prototypes: Mapping[str, Float[Tensor, "c p"]] | None = None,
    layers: tuple[int, ...] | None = None, batch_size: int = 64, seed: int = 0,
) -> Result:  # fmt: skip
    """Does a layer hold value vectors that point at the classes, and what do they promote?

    >>> result = class_values({"vit": zoo.load("vit")})  # doctest: +SKIP
    >>> result.frame.query("measure == 'agreement' and control == 'trained'")  # doctest: +SKIP

    `agreement` (methods §17): mean over classes of the largest cosine of any value vector with the class, with an
    interval over classes, and `p` against `random_models` untrained models; `agreement_of_class` for each. No norm,
    bias or LayerScale; `fold_gain` multiplies class vectors by the final norm's gain, and value vectors by LayerScale
    or by the gain of a norm behind the branch. A readout of several tokens has class vectors for each (`tokens`).

    In the layer where each sub-layer agrees most, of the `layers` measured, the `memories` whose value vectors point at
    a class most: `promoted_class` are the classes of the largest cosines (`rank` 0 to 4), `top_image` the `images` of
    `data` in which the coefficient of that value vector is largest (`value`), at `token`, with a `picture` of it (PNG,
    base64). Both are for the first kind of token the readout reads and those that share its class vectors; `memories=0`
    runs no image. `head`, `fit_data` and `prototypes` as in `class_projection`.
    Raises ValueError for labels a head does not know and for negative counts, NoHeadError for a model that answers with
    an embedding and has no prototypes.
    """
    if random_models < 0 or memories < 0 or images < 1:
        raise ValueError(
            "models and memories are 0 or more, images at least 1; "
            f"got random_models={random_models}, memories={memories}, images={images}"
        )
    subjects = prepare(models, data, fit_data, head=head, batch_size=batch_size, prototypes=prototypes)

    def measured(subject: Subject) -> list[dict[str, Any]]:
        rows = measure_value_agreement(
            subject.model,
            layers=layers,
            random_seeds=range(seed, seed + random_models),
            fold_gain=fold_gain,
            rules=subject.rules,
            seed=seed,
        )
        clearest = _clearest(subject, rows, memories, fold_gain)
        rows += [row for _, found in clearest.items() for row in found]
        return rows + (_pictured(subject, subjects.data, list(clearest), images, batch_size) if clearest else [])

    columns = [*COLUMNS, "image", "token", "value", "low", "high", "n", "p", "p_adjusted", "class_name", "picture"]
    frame = pd.DataFrame(subjects.rows(measured), columns=columns).astype(dict.fromkeys(WHOLE, "Int64"))
    result = Result(
        frame,
        {
            **subjects.about,
            "fold_gain": fold_gain,
            "seeds": list(range(seed, seed + random_models)),
            "batch_size": batch_size,
            "interventions": [],
        },
    )
    result.meta["table"] = summary_table(result)
    result.meta["summary"], result.meta["notes"] = in_words(result)
    result.meta["corrected"] = [corrected("agreement", "Holm", "the layers of one part, one role and one model")]
    return result


def _clearest(
    subject: Subject, measured: list[dict[str, Any]], n: int, fold_gain: bool
) -> dict[Memory, list[dict[str, Any]]]:
    """The memories that point at a class most in the layer where their part agrees most, and what they promote."""
    model, found = subject.model, {}
    role = model.cfg.sources[0]
    for part in PARTS:
        mine = [
            row for row in measured
            if (row["measure"], row["control"], row["part"], row["tokens"]) == ("agreement", "trained", part, role)
        ]  # fmt: skip
        layer = max(mine, key=lambda row: row["value"])["layer"]
        cosines = promotion(model, layer, part, role, subject.rules, fold_gain=fold_gain, unit=True)
        for number in cosines.amax(0).topk(min(n, cosines.shape[1])).indices.tolist():
            best = cosines[:, number].topk(min(TOP_CLASSES, len(cosines)))
            at = {"measure": "promoted_class", "control": "trained", "layer": layer, "part": part, "tokens": role}
            found[layer, part, number] = [
                {**at, "memory": number, "rank": rank, "class": c, "class_name": _name(subject, c), "value": value}
                for rank, (c, value) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            ]
    return found


def _pictured(
    subject: Subject, data: ImageData, memories: list[Memory], n: int, batch_size: int
) -> list[dict[str, Any]]:
    """Rows of the images in which memories are most active; a second pass reads those few again for their pictures."""
    model = subject.model
    batches = subject.batches(data, batch_size, "looking for top images")
    roles = roles_with(model, model.cfg.sources[0], subject.rules)
    best = top_images(model, ((pixels, labels) for pixels, labels, _ in batches), memories, n, roles=roles)
    wanted = {found.image for each in best.values() for found in each}
    kept: dict[int, tuple[int, Tensor]] = {}
    seen = 0
    for batch in data.batches(batch_size):
        chosen = [i for i in range(len(batch)) if seen + i in wanted]
        if chosen:
            pixels = model.preprocess([batch.images[i] for i in chosen]).cpu()
            kept |= {seen + i: (int(batch.index[i]), x) for i, x in zip(chosen, pixels, strict=True)}
        seen += len(batch)
    rows = []
    for (layer, part, number), each in best.items():
        at = {"measure": "top_image", "control": "trained", "layer": layer, "part": part, "memory": number}
        for rank, found in enumerate(each):
            index, pixels = kept[found.image]
            about = {"rank": rank, "class": found.label, "class_name": _name(subject, found.label), "image": index}
            shown = {"token": found.token, "value": found.coefficient, "picture": _picture(model, pixels, found)}
            rows.append({**at, **about, **shown})
    return rows


def _name(subject: Subject, label: int) -> str:
    names = subject.model.cfg.class_names
    return str(label) if names is None or subject.rules.prototypes is not None else names[label]


def _picture(model: HookedViT, pixels: Float[Tensor, "ch h w"], found: TopImage) -> str:
    """The picture as the model saw it, stretched to full contrast, its most active patch framed: a data URI."""
    low, high = pixels.amin(), pixels.amax()
    grey = (255 * (pixels - low) / (high - low).clamp(min=1e-12)).round().to(torch.uint8)
    grey = grey if len(grey) == 3 else grey[:1].expand(3, -1, -1)
    scale = max(1, 96 // grey.shape[1])
    picture = Image.fromarray(grey.permute(1, 2, 0).numpy())
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    layout, side = model.layout_for(*pixels.shape[1:]), model.cfg.patch_size * scale
    patch = found.token - layout.n_prefix
    if patch >= 0:
        row, column = divmod(patch, layout.grid[1])
        corner = (column * side, row * side)
        box = (*corner, corner[0] + side - 1, corner[1] + side - 1)
        ImageDraw.Draw(picture).rectangle(box, outline=(255, 60, 60), width=max(1, picture.width // 60))
    if picture.width > 160:
        picture.thumbnail((160, 160))
    written = BytesIO()
    picture.save(written, "PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
