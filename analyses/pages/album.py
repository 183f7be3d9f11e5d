"""Which images an intervention moved most, and which are wrong without it: small pictures that go into a result."""

from __future__ import annotations

import base64
import heapq
import io
import math
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

PICTURES = "pictures"
"""The entry of a result's `meta` that holds what `entries` gives."""
SHOWN = 12
"""Pictures of either kind of one model, at the most; twice as many in a result."""
SIDE = 96
BYTES = 4096
"""Of a picture's file, at the most, so that all of a result stay below 300 kB."""

KEPT = ("model", "class_names", "shown", "n", "n_wrong", "_moved", "_wrong", "_images")

Entry = dict[str, Any]


class Album:
    """The pictures of one model, of which only those are kept that may be shown.

    >>> album = Album("vit", ["cat", "dog"], "image {}".format)
    >>> album.open([Image.new("RGB", (8, 8))], torch.tensor([0]), torch.tensor([0]), torch.tensor([[3.0, 1.0]]))
    >>> album.compare(torch.tensor([[0.0, 1.0]]), "CLS exchanged behind layer 2")
    >>> [(e["why"], e["image"], e["says"], e["then"], e["margin"], e["margin_then"]) for e in album.entries()]
    [('moved', 'image 0', 'cat', 'dog', 2.0, -1.0)]

    The margin is the score of the right class minus the largest other one. `moved` are the images whose margin falls
    most, on average over all that is compared; `wrong` those whose margin is below 0 without it. `name_of` says what
    the image of an index is called; of `n_models` each has its share of the pictures.
    """

    def __init__(
        self, model: str, class_names: Sequence[str] | None, name_of: Callable[[int], str], n_models: int = 1
    ) -> None:
        self.model, self.class_names, self.name_of = model, class_names, name_of
        self.shown = min(SHOWN, 2 * SHOWN // n_models)
        self.n = self.n_wrong = 0
        self._moved: list[tuple[float, int, Entry]] = []
        self._wrong: list[tuple[float, int, Entry]] = []
        self._images: Sequence[Image.Image] = ()

    def open(
        self, images: Sequence[Image.Image], index: Int[Tensor, "b"], classes: Int[Tensor, "b"], scores: Tensor
    ) -> None:
        """A batch, what the right classes are, and the scores without an intervention [b n_classes]."""
        self._close()
        self._images, self._index, self._classes = images, index.tolist(), classes.cpu()
        self._before, self._said = _margins(scores, self._classes)
        self._sum, self._runs = torch.zeros_like(self._before), 0
        self._least, self._then = self._before.clone(), self._said.clone()
        self._under = [""] * len(images)

    def compare(self, scores: Float[Tensor, "b c"], under: str) -> None:
        """The scores of the open batch under an intervention, and which one that is."""
        margins, said = _margins(scores, self._classes)
        self._sum, self._runs = self._sum + margins, self._runs + 1
        lower = margins < self._least
        self._least, self._then = torch.where(lower, margins, self._least), torch.where(lower, said, self._then)
        self._under = [under if low else was for low, was in zip(lower.tolist(), self._under, strict=True)]

    def entries(self) -> list[Entry]:
        """The pictures with what is said of each, those that moved most first, then the wrong ones, each in order."""
        self._close()
        best = [*sorted(self._moved, reverse=True), *sorted(self._wrong, reverse=True)]
        return [{**entry, "of": self.n_wrong if entry["why"] == "wrong" else self.n} for _, _, entry in best]

    def fresh(self) -> Album:
        """One that has seen no image."""
        album = copy(self)
        album.n = album.n_wrong = 0
        album._moved, album._wrong, album.name_of = [], [], self.name_of
        return album

    def merge(self, other: Album) -> Album:
        """What one album would hold that had seen the images of both; neither is changed."""
        merged = copy(self)
        merged.n, merged.n_wrong = self.n + other.n, self.n_wrong + other.n_wrong
        for kept in ("_moved", "_wrong"):
            best = heapq.nlargest(self.shown, [*vars(merged)[kept], *vars(other)[kept]])
            vars(merged)[kept] = best[::-1]  # from the least on, which is a heap
        return merged

    def __getstate__(self) -> dict[str, Any]:
        """What another process can be told: no batch that is open, and not where the images are."""
        self._close()
        return {key: held for key, held in vars(self).items() if key in KEPT}

    def _close(self) -> None:
        """Put what the open batch has among those that are kept."""
        images, self._images = self._images, ()
        for i, image in enumerate(images):
            before, number = float(self._before[i]), self._index[i]
            self.n += 1
            if before < 0:
                self.n_wrong += 1
                self._keep(self._wrong, -before, number, i, image, "wrong")
            drop = before - float(self._sum[i]) / self._runs if self._runs else 0.0
            if drop > 0 and self._under[i]:
                self._keep(self._moved, drop, number, i, image, "moved")

    def _keep(
        self, heap: list[tuple[float, int, Entry]], by: float, number: int, i: int, image: Image.Image, why: str
    ) -> None:
        full = len(heap) >= self.shown
        if not self.shown or not math.isfinite(by) or (full and (by, -number) <= heap[0][:2]):
            return
        entry: Entry = {"model": self.model, "why": why, "image": self.name_of(self._index[i])}
        entry |= {"class": self._called(self._classes[i]), "says": self._called(self._said[i])}
        entry["margin"] = float(self._before[i])
        if why == "moved":
            entry |= {"then": self._called(self._then[i]), "margin_then": float(self._least[i])}
            entry |= {"under": self._under[i], "mean_drop": by}
        put = heapq.heapreplace if full else heapq.heappush
        put(heap, (by, -number, entry | {"picture": thumbnail(image)}))

    def _called(self, number: Tensor) -> str:
        names, i = self.class_names, int(number)
        return names[i] if names is not None and i < len(names) else f"class {i}"


def thumbnail(picture: Image.Image) -> str:
    """A picture, mode RGB, as a data URL of a file of at most 96 pixels a side and `BYTES` bytes.

    One that is small already keeps its pixels where a PNG file has room for them.
    """
    wide, tall = picture.size
    by = min(1, SIDE / max(wide, tall))
    if by < 1:
        size = max(1, round(wide * by)), max(1, round(tall * by))
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    elif len(file := _file(picture, "PNG")) <= BYTES:
        return f"data:image/png;base64,{base64.b64encode(file).decode()}"
    found = (_file(picture, "JPEG", quality=quality) for quality in (85, 70, 50, 30, 10, 1))
    file = next(file for file in found if len(file) <= BYTES)
    return f"data:image/jpeg;base64,{base64.b64encode(file).decode()}"


def _file(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _margins(scores: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Per image the margin, and the class that is said."""
    scores = scores.detach().double().cpu()
    right = scores.gather(1, classes[:, None])[:, 0]
    others = scores.scatter(1, classes[:, None], -torch.inf).amax(1)
    return right - others, scores.argmax(1)
