"""Which image tokens lie on the object: segmentation masks moved as the image is moved, patch by patch.

A mask comes as ids of objects, all of the image's class (0 is background), or in colours whose id R + 256·G is a class:
0 another thing, 1000 to be ignored. methods §13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from analyses.activations.token_groups import aligned_masks
from analyses.data import ImageData, as_data, load_data
from analyses.data.batches import Batch
from analyses.processes.walking import Walk
from analyses.questions.class_space.measures.subjects import Subject

CONTEXT, CLASS, UNLABELLED = 0, 1, -1
IGNORED = 2
IGNORED_ID = 1000
Rule = Literal["area", "any", "centre", "corner"]
RULES: tuple[Rule, ...] = ("area", "any", "centre", "corner")
ASK_FOR_LESS = (
    "a patch is of its class by rule='area' where a share tau of its pixels is: a smaller tau, rule='any', or a model "
    "with smaller patches"
)
COLUMNS = ("mask", "mask_class", "mask_classes", "count")


def mask_columns(data: ImageData) -> list[str]:
    """The columns of the data that say what its masks mean.

    Raises ValueError for data without masks.
    """
    if "mask" not in data.columns:
        raise ValueError(
            f"class and context tokens are told apart by segmentation masks, and {data.name} has no column 'mask'; it "
            f"has {', '.join(data.columns)}. scenes:SPLIT and imagenet-s:PATH have masks"
        )
    return [column for column in COLUMNS if column in data.columns]


@dataclass(frozen=True)
class Labelling:
    """When a patch lies on the class: by `rule` and `tau` as in `label_cells`, or as the published code has it.

    Raises ValueError for a rule there is not, and a share outside (0, 1].
    """

    rule: Rule = "area"
    tau: float = 0.5
    published: bool = False

    def __post_init__(self) -> None:
        if self.rule not in RULES or not 0 < self.tau <= 1:
            raise ValueError(
                f"a patch is labelled by {', '.join(RULES)}, tau above 0 and at most 1; got {self.rule!r}, {self.tau}"
            )

    def about(self) -> dict[str, Any]:
        """What a result's `meta` says of it."""
        return {"rule": "corner of the whole mask" if self.published else self.rule, "tau": self.tau}


def class_map(mask: Image.Image, mask_class: int | None = None, highest: int | None = None) -> Image.Image:
    """A mask as 1 where the image's class is, 0 where it is not, 2 where that is not to be asked.

    >>> from PIL import Image
    >>> mask = Image.new("RGB", (1, 1), (7, 1, 0))
    >>> class_map(mask, mask_class=263, highest=919).getpixel((0, 0))
    1

    With `mask_class` the mask is in colours, and its ids go up to `highest`; without, every id but 0 is an object of
    the class, and `highest` the number of objects. Raises ValueError for another kind of mask and for unknown ids.
    """
    pixels = np.asarray(mask)
    if mask_class is None:
        if pixels.ndim != 2:
            raise ValueError(
                f"a mask in colours says which class a pixel is of, and the data do not say the image's own; got mode "
                f"{mask.mode} and no column 'mask_class'"
            )
        ids, known = pixels.astype(np.int64), np.inf if highest is None else highest
        out = (ids > 0).astype(np.uint8)
        unknown = ids[ids > known]
    else:
        if pixels.ndim != 3 or pixels.shape[2] < 3:
            raise ValueError(f"a mask of classes is in colours, its ids R + 256·G; got mode {mask.mode}")
        red, green, blue = pixels[..., :3].astype(np.int64).transpose(2, 0, 1)
        ids = red + 256 * green + 65536 * blue
        out = (ids == mask_class).astype(np.uint8)
        out[ids == IGNORED_ID] = IGNORED
        unknown = ids[(ids > (highest or IGNORED_ID)) & (ids != IGNORED_ID)]
    if unknown.size:
        raise ValueError(
            f"a mask holds the ids {np.unique(unknown).tolist()[:5]}, which stand for nothing: there are 0 to {highest}"
            + f" and {IGNORED_ID} (ignore)" * (mask_class is not None)
        )
    return Image.fromarray(out)


def class_maps(batch: Batch) -> list[Image.Image]:
    """The class maps of a batch read with `mask_columns`.

    Raises ValueError, naming the image, for a mask of another size than its image, and what `class_map` refuses.
    """
    classes = batch.extra.get("mask_class", [None] * len(batch))
    highest = batch.extra.get("mask_classes", batch.extra.get("count", [None] * len(batch)))
    maps = []
    for i, mask in enumerate(batch.extra["mask"]):
        if mask.size != batch.images[i].size:
            raise ValueError(
                f"a mask has the size of its image; image {int(batch.index[i])} is {batch.images[i].size} and its mask "
                f"{mask.size}"
            )
        try:
            maps.append(class_map(mask, classes[i], highest[i]))
        except ValueError as error:
            raise ValueError(f"image {int(batch.index[i])}: {error}") from None
    return maps


def label_cells(
    maps: Int[Tensor, "b h w"], grid: tuple[int, int], rule: Rule = "area", tau: float = 0.5
) -> Int[Tensor, "b n"]:
    """1 for patches on the image's class, 0 for context, −1 for neither, in the order of the image tokens.

    >>> label_cells(torch.tensor([[[0, 0, 1, 2], [1, 0, 2, 2]]]), grid=(1, 2)).tolist()
    [[0, -1]]

    `maps` are class maps moved as the images are. `rule`: "area", a share of at least `tau` of the pixels that are not
    ignored (neither where most are); "any" pixel of the class; the pixel in the "centre" or in the top left "corner".
    Raises ValueError for maps that patches do not cover, and for a rule there is not.
    """
    Labelling(rule, tau)  # refuses what it does not know
    b, height, width = maps.shape
    rows, columns = grid
    if height % rows or width % columns:
        raise ValueError(f"a mask of {height} x {width} pixels is not covered by {rows} x {columns} patches")
    cells = maps.reshape(b, rows, height // rows, columns, width // columns).transpose(2, 3)
    if rule in ("centre", "corner"):
        down, right = (height // rows // 2, width // columns // 2) if rule == "centre" else (0, 0)
        pixel = cells[..., down, right].reshape(b, -1)
        return torch.where(pixel == IGNORED, UNLABELLED, pixel)
    cells = cells.reshape(b, rows * columns, -1)
    ignored = (cells == IGNORED).double().mean(-1)
    of_class = (cells == CLASS).double().mean(-1)
    if rule == "any":
        found = of_class > 0
        return torch.where(found, CLASS, torch.where(ignored > 0.5, UNLABELLED, CONTEXT))
    share = of_class / (1 - ignored).clamp(min=1e-12)
    return torch.where(ignored > 0.5, UNLABELLED, (share >= tau - 1e-9).long())


def published_patches(batch: Batch, grid: tuple[int, int]) -> Int[Tensor, "b n"]:
    """Patch labels as in the code of Vilas et al. 2023: one pixel of the whole mask per patch, all else context.

    The pixel is the patch's top left corner, as if the whole image had been squeezed into the grid, whatever the model
    crops away; ignored pixels are context.
    """
    rows, columns = grid
    labels = []
    for found in class_maps(batch):
        pixels = np.asarray(found)
        down = np.arange(rows) * pixels.shape[0] // rows
        right = np.arange(columns) * pixels.shape[1] // columns
        labels.append(torch.from_numpy((pixels[down][:, right] == CLASS).astype(np.int64)).flatten())
    return torch.stack(labels)


def with_masks(data: Any) -> ImageData:
    """The data, by default scenes, refused before a head is fitted where they have no masks."""
    data = load_data("scenes:test", n=1000) if data is None else as_data(data)
    mask_columns(data)
    return data


def masked_batches(
    subject: Subject, data: ImageData, batch_size: int, what: str, labelling: Labelling
) -> Walk[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(pixels, classes of the head, labels of the patches [b, n], numbers of the images), with a progress bar.

    Raises ValueError for masks that do not fit, and for a processor that moves a mask otherwise than its image.
    """
    model = subject.model

    def labelled(found: tuple[Tensor, Tensor, Batch]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pixels, labels, batch = found
        grid = model.layout_for(*pixels.shape[2:]).grid
        if labelling.published:
            return pixels, labels, published_patches(batch, grid), batch.index
        maps = aligned_masks(model, class_maps(batch))
        if maps.shape[1:] != (seen := model.covered(pixels).shape[2:]):
            raise ValueError(f"masks are moved to {tuple(maps.shape[1:])} pixels and images to {tuple(seen)}")
        return pixels, labels, label_cells(maps, grid, labelling.rule, labelling.tau), batch.index

    return subject.batches(data, batch_size, what, extra=mask_columns(data)).map(labelled)


def counts_of(labels: Int[Tensor, "b n"]) -> dict[str, int]:
    """Of how many images the mask has tokens of the class, of context, of both, and how many tokens have no label."""
    of_class, context = (labels == CLASS).any(1), (labels == CONTEXT).any(1)
    return {
        "images": len(labels),
        "without_class_tokens": int((~of_class).sum()),
        "without_context_tokens": int((~context).sum()),
        "with_both": int((of_class & context).sum()),
        "tokens": labels.numel(),
        "class_tokens": int((labels == CLASS).sum()),
        "unlabelled_tokens": int((labels == UNLABELLED).sum()),
    }
