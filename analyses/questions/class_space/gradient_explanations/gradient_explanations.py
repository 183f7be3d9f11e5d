"""Which patches would raise a class in CLS if CLS attended to them more, at every block and head? (methods §21)

The derivative of the class's cross entropy in the attention weights of CLS gives a map per block and head, whose sum
is the global map. Maps are of one class: beside the map of the label stands that of the model's strongest other class.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from analyses.activations.class_masks import CLASS, class_maps, label_cells, mask_columns
from analyses.activations.layers import measured_layers
from analyses.activations.relevance import attention_patterns, check_classes
from analyses.activations.token_groups import aligned_masks
from analyses.data import ImageData
from analyses.data.batches import Batch
from analyses.data.sets import one_set
from analyses.probes.classifier_heads import Answers
from analyses.probes.opening import answering
from analyses.questions.class_space.gradient_explanations.figure import (
    curves_figure,
    heads_figure,
    overlay_figure,
    summary_table,
)
from analyses.questions.class_space.measures.explanations import check_asked, check_explainable, gradient_maps
from analyses.running.notes import progress_batches
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.intervals import mean_intervals
from hooked_vit import HookedViT

Key = tuple[str, str | None, int | None, int | None]  # measure, whose map, layer, head


@analysis(
    figure=overlay_figure,
    more_figures={
        "One map per block and head": heads_figure,
        "How the maps change over the blocks": curves_figure,
    },
)
def gradient_explanations(
    models: Mapping[str, HookedViT],
    data: ImageData | Any = None,
    *,
    fit_data: ImageData | Any = None,
    head: str = "auto",
    class_of_interest: int | None = None,
    site: str = "attn_out",
    examples: int = 4,
    layers: tuple[int, ...] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    repro: bool = False,
) -> Result:
    """Which patches would raise a class in CLS if CLS attended to them more, at every block and head?

    >>> result = gradient_explanations({"vit": zoo.load("vit")}, load_data("scenes:test", n=200))  # doctest: +SKIP
    >>> result.frame.query("measure == 'on_object' and layer.isna()")  # doctest: +SKIP

    Maps are of `class_of_interest`, a class of the head, or of each image's label where it is None; `of` says whose map
    a row is about: "label" (the class of interest), or "other", the model's strongest class but that one. Without
    `layer` a row is about the global map, without `head` about the sum over heads. `layers` are those measured: the
    global map is the sum of theirs. `site` as in `gradient_maps`; `repro=True` scores the softmax of the class scores
    as if it were logits, as the published code does.

    Measures, means over images with 95 % intervals: `strength`, a map's share of the absolute importance of
    all; `other_class`, the correlation over patches of both classes' maps; `attention`, that of the map with what CLS
    attends to; and, where the data has a column `mask`, `on_object`, whether the most important patch shows an object
    of the image's class (`of` "attention": the patch CLS attends to most), with `chance`, the share of patches that do.
    `map` rows hold the first `examples` images' importances by `token`, `picture` rows the images themselves.
    A model whose `head` knows none of the classes gets a ridge head, fitted on `fit_data`.
    Raises ValueError for a model without CLS, a class out of range, and a head that does not know the labels.
    """
    if examples < 0:
        raise ValueError(f"examples are shown, 0 or more; got examples={examples}")
    data = one_set(data)
    for name, model in models.items():
        check_asked(model, name, site)
    found = answering(models, data, fit_data, head=head, batch_size=batch_size)
    answers, data = found.by_name, found.data
    for name, its in answers.items():
        n_classes = check_explainable(its.model, name, site=site)
        if class_of_interest is not None:
            check_classes(torch.tensor([class_of_interest]), 1, n_classes)
    rows: list[dict[str, Any]] = []
    for name, model in models.items():
        study = _Study(name, answers[name], class_of_interest, site, measured_layers(model, layers), repro)
        study.run(data, batch_size, examples)
        rows += [{"model": name, "architecture": model.cfg.architecture, **row} for row in study.rows(seed)]
    kinds = {"layer": "Int64", "head": "Int64", "image": "Int64", "token": "Int64", "class_id": "Int64", "n": "Int64"}
    meta = {
        "models": {name: its.about() for name, its in answers.items()},
        **found.about,
        "class_of_interest": class_of_interest,
        "site": site,
        "repro": repro,
        "seeds": [seed],
        "batch_size": batch_size,
        "interventions": [],
    }
    frame = pd.DataFrame(rows)
    result = Result(frame.reindex(columns=list(dict.fromkeys([*frame.columns, *kinds]))).astype(kinds), meta)
    result.meta["table"] = summary_table(result)
    result.meta["summary"], result.meta["notes"] = _in_words(result), _cautions(answers, layers, repro)
    return result


class _Study:
    """The maps of one model, reduced batch by batch to one number per image and measure."""

    def __init__(
        self, name: str, answers: Answers, interest: int | None, site: str, layers: list[int], repro: bool
    ) -> None:
        self.name, self.answers, self.model = name, answers, answers.model
        self.interest, self.site, self.layers, self.repro = interest, site, layers, repro
        self.values: dict[Key, list[Tensor]] = defaultdict(list)
        self.examples: list[dict[str, Any]] = []

    def run(self, data: ImageData, batch_size: int, examples: int) -> None:
        extra = mask_columns(data) if "mask" in data.columns and self.model.processor is not None else []
        into = (self.values, self.examples)
        for batch in progress_batches(data, batch_size, f"{self.name}: gradient maps", extra=extra, into=into):
            pixels = self.model.preprocess(batch.images)
            layout = self.model.layout_for(*pixels.shape[2:])
            classes = self._classes(pixels, batch.labels)
            maps = {of: self._maps(pixels, c) for of, c in classes.items()}
            patterns = attention_patterns(self.model, pixels, self.layers)
            attended = torch.stack([a[:, :, layout.cls, layout.patches].squeeze(2) for a in patterns], 1).cpu()
            objects = _object_patches(self.model, batch, layout.grid) if extra else None
            self._measure(maps, attended, objects)
            for i in range(min(examples - batch.first, len(pixels))):
                self._show(
                    self.model.covered(pixels[i]),
                    int(batch.index[i]),
                    {of: (c[i], maps[of][i]) for of, c in classes.items()},
                )

    def _maps(self, pixels: Tensor, classes: Tensor) -> Float[Tensor, "b layers heads n"]:
        asked: dict[str, Any] = {"site": self.site, "layers": self.layers, "double_softmax": self.repro}
        return gradient_maps(self.model, pixels, classes, **asked).cpu()

    def _classes(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            logits = self.model(pixels).cpu()
        wanted = self.answers.labels(labels)
        if self.interest is not None:
            wanted = torch.full_like(wanted, self.interest)
        return {"label": wanted, "other": logits.scatter(1, wanted[:, None], -torch.inf).argmax(1)}

    def _measure(self, maps: dict[str, Tensor], attended: Tensor, objects: Tensor | None) -> None:
        label, other = (_views(maps[of], self.layers) for of in ("label", "other"))
        looked = _views(attended, self.layers)
        total = maps["label"].abs().sum((1, 2, 3))
        for place, view in label.items():
            layer, head = place
            if layer is not None:
                inner = view if head is not None else maps["label"][:, self.layers.index(layer)].flatten(1)
                self.values["strength", "label", *place].append(inner.abs().sum(1) / total)
            self.values["other_class", None, *place].append(_correlation(view, other[place]))
            self.values["attention", "label", *place].append(_correlation(view, looked[place]))
        if objects is None:
            return
        some = objects.any(1) & ~objects.all(1)
        for of, views in (("label", label), ("other", other), ("attention", looked)):
            for place, view in views.items():
                hit = objects.gather(1, view.argmax(1, keepdim=True)).squeeze(1).double()
                self.values["on_object", of, *place].append(hit.where(some, torch.nan))
        self.values["chance", None, None, None].append(objects.double().mean(1).where(some, torch.nan))

    def _show(self, pixels: Tensor, index: int, maps: dict[str, tuple[Tensor, Tensor]]) -> None:
        about = {"image": index, "picture": _as_png(pixels)}
        self.examples.append({"measure": "picture", **about})
        for of, (c, heads) in maps.items():
            named = {"image": index, "of": of, "class_id": int(c), "class_name": self._name_of(int(c))}
            for (layer, head), view in _views(heads[None], self.layers).items():
                place = {"measure": "map", **named, "layer": layer, "head": head}
                self.examples += [{**place, "token": t, "value": float(v)} for t, v in enumerate(view[0])]

    def _name_of(self, c: int) -> str:
        names = self.model.cfg.class_names
        return names[c] if names else str(c)

    def rows(self, seed: int) -> Iterator[dict[str, Any]]:
        columns = {key: torch.cat(parts).double().numpy() for key, parts in self.values.items()}
        intervals = mean_intervals(columns)
        for (measure, of, layer, head), values in columns.items():
            known = values[np.isfinite(values)]
            if not len(known):
                continue
            low, high = intervals[measure, of, layer, head]
            place = {"measure": measure, "of": of, "layer": layer, "head": head}
            yield {**place, "value": known.mean(), "low": low, "high": high, "n": len(known)}
        yield from self.examples


def _views(
    maps: Float[Tensor, "b layers heads n"], layers: Sequence[int]
) -> dict[tuple[int | None, int | None], Float[Tensor, "b n"]]:
    """The global map, each layer's, and each head's."""
    views: dict[tuple[int | None, int | None], Tensor] = {(None, None): maps.sum((1, 2))}
    for layer, heads in zip(layers, maps.unbind(1), strict=True):
        views[layer, None] = heads.sum(1)
        views |= {(layer, head): heads[:, head] for head in range(maps.shape[2])}
    return views


def _correlation(a: Float[Tensor, "b n"], b: Float[Tensor, "b n"]) -> Float[Tensor, "b"]:
    """Pearson's, per image; NaN where one of the two does not vary."""
    a, b = (x.double() - x.double().mean(1, keepdim=True) for x in (a, b))
    size = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(size > 0, (a * b).sum(1) / size, torch.nan)


def _object_patches(model: HookedViT, batch: Batch, grid: tuple[int, int]) -> Bool[Tensor, "b n"]:
    """True at patches in which at least one pixel is of the image's class."""
    return label_cells(aligned_masks(model, class_maps(batch)), grid, "any") == CLASS


def _as_png(pixels: Float[Tensor, "c h w"]) -> str:
    """The picture as the model's patches see it, stretched to 0..255, as a data URL."""
    low, high = pixels.min(), pixels.max()
    picture = ((pixels - low) / (high - low).clamp(min=1e-12) * 255).round().byte().expand(3, -1, -1)
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _in_words(result: Result) -> list[str]:
    found = []
    for row in result.meta["table"]:
        said = f"{row['model']}: "
        if row.get("on_object") is not None:
            said += (
                f"the most important patch of the global map shows an object in {row['on_object']:.0%} of images "
                f"(chance {row['chance']:.0%}; the patch CLS attends to most: {row['attended_object']:.0%}); "
            )
        found.append(
            f"{said}the global maps of the class and of the strongest other class correlate with "
            f"{row['other_class']:.2f}; layer {row['strongest_layer']} holds the largest share of the absolute "
            f"importance ({row['its_share']:.0%})."
        )
    return found


def _cautions(answers: Mapping[str, Answers], layers: Sequence[int] | None, repro: bool) -> list[str]:
    notes = [
        "A gradient says what a small change of attention would do to the class score of CLS at that block, not what "
        "the later blocks make of it; perturbation-tests measures how much the marked patches matter.",
        "The class of a map is the label's: a map for the label of a misclassified image explains a class that the "
        "model did not choose.",
    ]
    if layers is not None:
        notes.append(
            "Global maps are sums over the layers that were measured, and a share of the importance is of theirs."
        )
    for name, its in answers.items():
        if "cls" not in its.model.cfg.sources:
            notes.append(
                f"{name}: the readout reads {' and '.join(its.model.cfg.sources)}, never CLS; the maps are of what CLS "
                "would say through that head, not of what the model answers."
            )
    if repro:
        notes.append(
            "Published setting: the softmax is taken twice, so that blocks in which the class is very unlikely or very "
            "likely hardly count in the global map."
        )
    return notes
