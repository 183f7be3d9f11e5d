"""Digit scenes: a small labelled world with masks, counts and counterfactual pairs, drawn from real handwriting.

Every scene shows 1 to 5 copies of one digit class in different handwritings, sizes, colours and places. Its
counterpart is the same scene with one object left out: same background, same noise, same everything else.
The handwritten digits are scikit-learn's; train, validation and test use disjoint sets of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from hooked_vit.errors import nearest

IMAGE_SIZE = 48
MAX_COUNT = 5
SPLITS = {"train": 0.7, "validation": 0.1, "test": 0.2}
GLYPH_SIZES = range(12, 16)
OBJECT_ALPHA = 0.3  # a pixel belongs to an object where the ink covers at least this much of it


@dataclass(frozen=True)
class Scene:
    """One scene: `image` and `pair` are uint8 [48, 48, 3]; `mask` is uint8 [48, 48], 0 background, 1..count objects.

    `pair` is the scene without object `removed` (an id that occurs in `mask`).
    """

    image: np.ndarray
    pair: np.ndarray
    mask: np.ndarray
    label: int
    count: int
    removed: int


def render_scenes(split: str, n: int, *, seed: int = 0, start: int = 0) -> Iterator[Scene]:
    """Yield scenes `start` to `start + n` of a split; scene i is the same whatever `n` and `start` are.

    >>> next(render_scenes("test", 1)).image.shape
    (48, 48, 3)

    Raises ValueError for a split that does not exist.
    """
    check_split(split)
    glyphs = _glyphs(split)
    for index in range(start, start + n):
        yield _render(np.random.default_rng([seed, list(SPLITS).index(split), index]), glyphs)


def check_split(split: str) -> None:
    """Raises ValueError for a split there is not."""
    if split not in SPLITS:
        raise ValueError(f"digit scenes have the splits {', '.join(SPLITS)}; got {split!r}{nearest(split, SPLITS)}")


@cache
def _glyphs(split: str) -> list[list[np.ndarray]]:
    """The handwritten digits of a split: one list per class of [8, 8] arrays in 0..1."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    by_class: list[list[np.ndarray]] = []
    for label in range(10):
        members = [i for i in order if digits.target[i] == label]
        edges = np.round(np.cumsum([0.0, *SPLITS.values()]) * len(members)).astype(int)
        k = list(SPLITS).index(split)
        by_class.append([digits.images[i] / 16 for i in members[edges[k] : edges[k + 1]]])
    return by_class


def _render(rng: np.random.Generator, glyphs: list[list[np.ndarray]]) -> Scene:
    label, count = int(rng.integers(10)), int(rng.integers(1, MAX_COUNT + 1))
    background = _background(rng)
    noise = rng.normal(0, 0.03, background.shape)
    boxes = _place(rng, count)
    inks = [_ink(rng, glyphs[label], int(size)) for _, _, size in boxes]
    colours = [_bright_colour(rng) for _ in boxes]
    removed = int(rng.integers(1, count + 1))

    mask = np.zeros(background.shape[:2], np.uint8)
    image, pair = background.copy(), background.copy()
    for k, ((top, left, size), ink, colour) in enumerate(zip(boxes, inks, colours, strict=True), start=1):
        area = slice(top, top + size), slice(left, left + size)
        mask[area][ink > OBJECT_ALPHA] = k
        for canvas in (image,) if k == removed else (image, pair):
            canvas[area] += ink[..., None] * (colour - canvas[area])
    return Scene(_to_uint8(image + noise), _to_uint8(pair + noise), mask, label, count, removed)


def _background(rng: np.random.Generator) -> np.ndarray:
    """A dark, smoothly textured background."""
    coarse = rng.uniform(0.0, 0.35, (4, 4, 3))
    size = (IMAGE_SIZE, IMAGE_SIZE)
    planes = [Image.fromarray(c.astype(np.float32)) for c in np.moveaxis(coarse, -1, 0)]
    channels = [plane.resize(size, Image.Resampling.BICUBIC) for plane in planes]
    return np.stack([np.asarray(c, np.float64) for c in channels], axis=-1)


def _place(rng: np.random.Generator, count: int) -> np.ndarray:
    """[count, 3] of (top, left, size): squares that do not overlap.

    A crowded draw is thrown away whole, so that placement stays uniform; many are drawn at once, for speed.
    """
    while True:
        sizes = rng.integers(GLYPH_SIZES.start, GLYPH_SIZES.stop, (32, count))
        corners = rng.integers(0, IMAGE_SIZE - sizes[..., None] + 1, (32, count, 2))
        ends = corners + sizes[..., None]
        apart = (ends[:, :, None] <= corners[:, None]) | (ends[:, None] <= corners[:, :, None])
        free = (apart.any(-1) | np.eye(count, dtype=bool)).all((1, 2))
        if free.any():
            first = free.argmax()
            return np.concatenate([corners[first], sizes[first, :, None]], axis=-1)


def _ink(rng: np.random.Generator, members: list[np.ndarray], size: int) -> np.ndarray:
    """One handwriting of the class, slightly rotated, [size, size] in 0..1."""
    glyph = members[rng.integers(len(members))]
    picture = Image.fromarray(glyph.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    picture = picture.rotate(rng.uniform(-12, 12), resample=Image.Resampling.BILINEAR)
    return np.clip(np.asarray(picture, np.float64), 0, 1)


def _bright_colour(rng: np.random.Generator) -> np.ndarray:
    colour = rng.uniform(0.3, 1.0, 3)
    colour[rng.integers(3)] = 1.0
    return colour


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
