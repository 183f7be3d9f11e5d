"""ImageNet-S: ImageNet photos with a segmentation of the classes, from the folders its scripts make.

A mask is a PNG in colours whose id at a pixel is R + 256·G: 0 another thing, 1000 to be ignored, else the place of a
synset in the sorted list, from 1. Gao et al. 2022, "Large-scale unsupervised semantic segmentation".
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from analyses.data.digests import rows_digest
from analyses.data.folders import listed
from analyses.data.imagedata import ImageData
from analyses.data.images import UnreadableImageError, open_plain
from analyses.data.sources import IndexedSource
from hooked_vit.loading.digests import digest

PER_CLASS = 5
MERGED = {
    "n04356056": "n04355933",
    "n04493381": "n02808440",
    "n03642806": "n03832673",
    "n04008634": "n03773504",
    "n03887697": "n15075141",
}
"""Synsets whose pixels carry the id of another one; images of either are left out (methods §0.3)."""

ORIENTATION = 0x0112


@cache
def imagenet_synsets() -> dict[str, bool]:
    """The 1000 synsets in the order of ImageNet's classes, and whether ImageNet-S has them.

    >>> list(imagenet_synsets())[:2], sum(imagenet_synsets().values())
    (['n01440764', 'n01443537'], 919)
    """
    lines = Path(__file__).with_name("imagenet_synsets.txt").read_text(encoding="utf-8").split("\n")
    return {line.split()[0]: line.endswith("S") for line in lines if line}


def imagenet_classes(names: Sequence[str]) -> list[int] | None:
    """ImageNet's class numbers of these synsets; None where one is none.

    >>> imagenet_classes(["n01443537", "n01440764"]), imagenet_classes(["goldfish"])
    ([1, 0], None)
    """
    places = {synset: i for i, synset in enumerate(imagenet_synsets())}
    return [places[name] for name in names] if set(names) <= places.keys() else None


class SegmentedSource(IndexedSource):
    """Photos with a mask beside each; read when needed.

    Beside image, label and mask a row has `mask_class`, the id of its class in the mask, `mask_classes`, the highest id
    there is, and `file`.
    """

    def __init__(self, root: Path, masks: Path, files: list[Path], labels: list[int], ids: list[int], n: int) -> None:
        self.columns = ["image", "label", "mask", "mask_class", "mask_classes", "file"]
        self.image_columns = {"image", "mask"}
        self._root, self._masks, self._files, self._labels, self._ids = root, masks, files, labels, ids
        self._n_ids = n
        self.n = len(files)

    def read(self, positions: list[int], columns: Sequence[str]) -> dict[str, Sequence[Any]]:
        values: dict[str, Any] = {
            "image": lambda i: self._files[i],
            "label": lambda i: self._labels[i],
            "mask": self._mask,
            "mask_class": lambda i: self._ids[self._labels[i]],
            "mask_classes": lambda i: self._n_ids,
            "file": self.name_of,
        }
        return {column: [values[column](i) for i in positions] for column in columns}

    def _mask(self, i: int) -> Image.Image:
        """The mask, turned as the photo is where the photo's file says that it was taken on its side."""
        mask = open_plain(self._mask_file(i), f"mask of {self.name_of(i)}")
        with Image.open(self._files[i]) as photo:
            turned = photo.getexif().get(ORIENTATION, 1)
            if turned == 1 or mask.size != photo.size:
                return mask
        mask.getexif()[ORIENTATION] = turned
        return ImageOps.exif_transpose(mask)

    def _mask_file(self, i: int) -> Path:
        return self._masks / Path(self.name_of(i)).with_suffix(".png")

    def labels(self, column: str) -> list[Any]:
        if column == "label":
            return self._labels
        return list(self.read(list(range(self.n)), [column])[column])

    def name_of(self, position: int) -> str:
        return self._files[position].relative_to(self._root).as_posix()

    def digest(self, keep: NDArray[np.int64] | None) -> str:
        """By the bytes of photos and masks, which need not be opened for it."""
        positions = range(self.n) if keep is None else keep.tolist()
        rows = ({"image": self._files[i], "mask": self._mask_file(i), "label": self._labels[i]} for i in positions)
        return digest(rows_digest(rows, self.image_columns), self._ids, self._n_ids)


def imagenet_s(spec: str, rest: str, n: int | None, seed: int, skip_bad: bool) -> ImageData:
    """`imagenet-s:PATH`, the folder that holds `validation` and `validation-segmentation`: five photos of each class.

    PATH may also be a folder of photos beside one of the same name with `-segmentation`, such as `train-semi`. Of
    every class five files are drawn by `seed`; classes with fewer, and the ten synsets that share an id with another,
    are left out. Then `n` images in all, classes mixed. The column `file` has the list. methods §0.3.
    Raises FileNotFoundError for a missing folder or mask, ValueError for folders that are no synsets of the list.
    """
    root = Path(os.path.expanduser(rest))
    photos = root / "validation" if (root / "validation").is_dir() else root
    masks = photos.with_name(f"{photos.name}-segmentation")
    for folder in (photos, masks):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{spec}: there is no folder {folder}; ImageNet-S has validation beside validation-segmentation"
            )
    folders = sorted(p for p in listed(photos) if p.is_dir() and not p.name.startswith("."))
    synsets = _categories([photos.parent, photos.parent.parent], [p.name for p in folders])
    if strange := [p.name for p in folders if p.name not in synsets]:
        raise ValueError(f"{photos} has one folder per synset of ImageNet-S; {', '.join(strange[:5])} is none")
    rng = np.random.default_rng(seed)
    kept: list[str] = []
    lost: list[str] = []
    chosen: list[tuple[Path, int]] = []
    for folder in folders:
        files = sorted(p for p in listed(folder, lost) if p.suffix.lower() in (".jpeg", ".jpg", ".png"))
        drawn = rng.permutation(len(files))[:PER_CLASS]
        if len(drawn) < PER_CLASS or folder.name in {*MERGED, *MERGED.values()}:
            continue
        chosen += [(files[i], len(kept)) for i in sorted(drawn)]
        kept.append(folder.name)
    if lost and not skip_bad:
        raise UnreadableImageError(f"{spec}: {'; '.join(lost[:5])}. Mend, or skip with skip_bad (--skip-bad)")
    if not chosen:
        raise ValueError(f"{photos}: no class has the {PER_CLASS} photos that are drawn of each")
    order = rng.permutation(len(chosen))[:n].tolist()
    there = {i: masks / chosen[i][0].relative_to(photos).with_suffix(".png") for i in order}
    if missing := [i for i in order if not there[i].is_file()]:
        if not skip_bad or len(missing) == len(order):
            raise FileNotFoundError(f"{spec}: every photo has a mask; there is no {there[missing[0]]}")
        lost += [f"{chosen[i][0].relative_to(photos)} has no mask {there[i]}" for i in missing]
        order = [i for i in order if i not in missing]
    files, labels = [chosen[i][0] for i in order], [chosen[i][1] for i in order]
    ids = [synsets[name] for name in kept]
    data = ImageData(
        SegmentedSource(photos, masks, files, labels, ids, len(synsets)),
        name=spec,
        image="image",
        label="label",
        class_names=kept,
        seed=seed,
        skip_bad=skip_bad,
    )
    data.skipped += lost
    return data.check_images()


def _categories(homes: Sequence[Path], folders: Sequence[str]) -> dict[str, int]:
    """Synset -> id in the masks: by the list that lies beside the folders, or the list of all 919.

    The folders of the smaller ImageNet-S50 and S300 are their own list.
    """
    lists = sorted(file for home in homes for file in home.glob("ImageNetS_categories_im*.txt"))
    if lists:
        names = lists[0].read_text(encoding="utf-8").split()
    elif len(folders) in (50, 300):
        names = list(folders)
    else:
        names = [synset for synset, segmented in imagenet_synsets().items() if segmented]
    return {synset: i for i, synset in enumerate(sorted(names), start=1)}
