"""From what a user names or holds, a spec or a data set, to `ImageData`."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value
from datasets.exceptions import DatasetsError
from numpy.typing import NDArray
from PIL import Image as Picture

from analyses.data.builtin import CLASS_NAMES, SceneSource
from analyses.data.folders import images_below, is_image, listed
from analyses.data.imagedata import ImageData
from analyses.data.imagenet_s import imagenet_s
from analyses.data.images import UnreadableImageError
from analyses.data.parquet import ParquetSource
from analyses.data.sources import (
    DatasetSource,
    FileSource,
    MemorySource,
    Source,
    StreamSource,
    describe,
    find_image_column,
    find_label_column,
    without_decoding,
)
from hooked_vit.config.showing import counted
from hooked_vit.errors import nearest
from hooked_vit.loading.hub import check_reached, pinned

BUFFER = 2000
"""Rows of a stream that wait to be shuffled."""

INTERLEAVED = 20
"""Files of a stream, or row groups of a few big ones, that are read side by side."""

SPLIT_NAMES = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")


def load_data(spec: str, n: int | None = None, *, seed: int = 0, skip_bad: bool = False) -> ImageData:
    """Images and labels by name: `scenes:SPLIT`, `hf:NAME:SPLIT`, `imagefolder`, `parquet` or `imagenet-s:PATH`.

    >>> load_data("scenes:test", n=100)
    <scenes:test: 100 images, 10 classes>

    `n` images are drawn at random by `seed` (all if there are fewer, or for None; 1000 scenes). Classes are mixed.
    `scenes`: SPLIT is train, validation or test. `hf`: a hub data set, streamed and shuffled within a buffer, so that
    `n` images are no draw over all of it, which `.drawn` and every result say;
    `hf:NAME:CONFIG:SPLIT` where it has configurations, NAME@REVISION of one commit, tag or branch. `imagefolder`: one
    subfolder per class, classes in alphabetical order. `parquet`: a file, a folder or a pattern. `imagenet-s`: five
    photos of every class, with masks.
    Local images are all decoded once before anything else: an unreadable one is an UnreadableImageError that names it,
    or with `skip_bad` is left out and listed in `.skipped`.
    Raises ValueError (a spec, columns or labels we cannot use), FileNotFoundError, ConnectionError (the hub is away).
    """
    scheme, colon, rest = spec.partition(":")
    if scheme not in _SCHEMES or not rest:
        known = ", ".join(f"{name}:{what}" for name, (what, _) in _SCHEMES.items())
        hint = nearest(scheme, _SCHEMES) if colon and scheme not in _SCHEMES else ""
        if not colon and Path(os.path.expanduser(spec)).is_dir():
            hint = f"; did you mean imagefolder:{spec}?"
        raise ValueError(f"data is one of {known}; got {spec!r}{hint}")
    _check_n(n)
    return _SCHEMES[scheme][1](spec, rest, n, seed, skip_bad)


def as_data(
    obj: Any,
    *,
    n: int | None = None,
    seed: int | None = None,
    image: str | None = None,
    label: str | None = None,
    name: str | None = None,
    skip_bad: bool = False,
) -> ImageData:
    """Images and labels somebody already holds: a Hugging Face data set or stream, (images, labels), or a spec.

    >>> as_data(([np.zeros((8, 8, 3), np.uint8)] * 4, [0, 1, 0, 1]))
    <images: 4 images, unnamed classes>

    The order is kept unless a `seed` asks for a shuffle; then `n` is a random draw. `image` and `label` name columns
    where there are several. `ImageData` is returned as it is.
    Raises TypeError for anything else, ValueError for columns or labels we cannot use.
    """
    _check_n(n)
    if isinstance(obj, ImageData):
        if any(option is not None for option in (n, seed, image, label, name)):
            raise ValueError("ImageData is taken as it is; give n, seed, image, label and name where it is made")
        return obj
    if isinstance(obj, str):
        if image is not None or label is not None:
            raise ValueError(f"columns of {obj!r} are found, not named; load the data set to choose them")
        return load_data(obj, n, seed=seed or 0, skip_bad=skip_bad)
    if isinstance(obj, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        raise TypeError(
            f"an analysis takes one split; got all of {list(obj)}: choose one, as in data[{next(iter(obj))!r}]"
        )
    if isinstance(obj, Dataset):
        if obj.format["type"] == "custom":
            raise ValueError("the data set has a transform, which would be left out; pass dataset.with_format(None)")
        source: Source = DatasetSource(obj.with_format(None), _order(len(obj), n, seed))
        return _from_features(source, obj.features, name or "dataset", image, label, seed, skip_bad)
    if isinstance(obj, IterableDataset):
        first = _first_row(obj, name or "stream")
        return _from_stream(obj, first, n, seed, name or "stream", image, label, skip_bad)
    if isinstance(obj, tuple) and len(obj) == 2 and all(hasattr(part, "__len__") for part in obj):
        images, labels = obj
        labels = labels.tolist() if hasattr(labels, "tolist") else labels
        if len(images) != len(labels):
            raise ValueError(f"every image has a label; got {len(images)} images and {len(labels)} labels")
        source = MemorySource(images, labels, _order(len(images), n, seed))
        data = ImageData(
            source, name=name or "images", image="image", label="label", class_names=None, seed=seed, skip_bad=skip_bad
        )
        return _with_known_labels(data)
    raise TypeError(f"data is a datasets.Dataset, a stream, (images, labels) or a spec; got a {type(obj).__name__}")


def _scenes(spec: str, rest: str, n: int | None, seed: int, skip_bad: bool) -> ImageData:
    source = SceneSource(rest, 1000 if n is None else n, seed)
    return ImageData(
        source, name=spec, image="image", label="label", class_names=CLASS_NAMES, seed=seed, skip_bad=skip_bad
    )


def _hub(spec: str, rest: str, n: int | None, seed: int, skip_bad: bool) -> ImageData:
    parts = rest.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise ValueError(f"a hub data set is hf:NAME:SPLIT, or hf:NAME:CONFIG:SPLIT; got {spec!r}")
    (name, at), config, split = pinned(parts[0], {}), parts[1] if len(parts) == 3 else None, parts[-1]
    try:
        check_reached()
        stream = datasets.load_dataset(name, config, split=split, streaming=True, **at)
        first = _first_row(stream, spec)
    except ConnectionError as error:
        raise ConnectionError(
            f"cannot reach the hub for data set {name!r} ({error}); use a local copy, as imagefolder:PATH or "
            "parquet:PATH, or the built-in scenes:test"
        ) from error
    except (DatasetsError, FileNotFoundError) as error:
        raise FileNotFoundError(f"cannot read data set {name!r}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{spec}: {error}") from error
    return _from_stream(stream, first, n, seed, spec, None, None, skip_bad)


def _imagefolder(spec: str, rest: str, n: int | None, seed: int, skip_bad: bool) -> ImageData:
    root = Path(os.path.expanduser(rest))
    if not root.is_dir():
        raise FileNotFoundError(f"{spec}: there is no folder {rest}")
    visible = [p for p in listed(root) if not p.name.startswith((".", "__"))]
    # a link that leads nowhere was a class: without it the others would be numbered anew
    folders = [p for p in visible if p.is_dir() or not (p.exists() or is_image(p))]
    loose = [p for p in visible if not p.is_dir() and is_image(p)]
    if not folders:
        raise ValueError(
            f"a dataset without labels: {rest} has no class folders; put each image in a folder of its class"
        )
    if loose:
        raise ValueError(
            f"{rest}: {len(loose)} images, such as {loose[0].name}, lie beside the class folders, without a label"
        )
    if all(p.name.lower() in SPLIT_NAMES for p in folders):
        raise ValueError(f"{rest} holds splits, not classes: {[p.name for p in folders]}; use imagefolder:{folders[0]}")
    lost: list[str] = []
    files = [(f, k) for k, p in enumerate(folders) for f in sorted(images_below(p, lost))]
    if lost and not skip_bad:
        raise UnreadableImageError(f"{spec}: {'; '.join(lost[:5])}. Mend, or skip with skip_bad (--skip-bad)")
    if not files:
        raise ValueError(f"{rest}: no images in the class folders {[p.name for p in folders[:5]]}")
    chosen = [files[i] for i in _order(len(files), n, seed)]
    data = ImageData(
        FileSource(root, [f for f, _ in chosen], [k for _, k in chosen]),
        name=spec,
        image="image",
        label="label",
        class_names=[p.name for p in folders],
        seed=seed,
        skip_bad=skip_bad,
    )
    data.skipped += lost
    return data.check_images()


def _parquet(spec: str, rest: str, n: int | None, seed: int, skip_bad: bool) -> ImageData:
    path = Path(os.path.expanduser(rest))
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
    else:
        files = sorted(Path(p) for p in glob.glob(str(path), recursive=True)) or [path] * path.exists()
    if not files:
        raise FileNotFoundError(f"{spec}: no parquet file there")
    splits = {word for f in files for word in SPLIT_NAMES if f.stem.lower().split("-")[0].split("_")[0] == word}
    if len(splits) > 1:
        raise ValueError(
            f"{spec} holds several splits, {sorted(splits)}: name one file, or a pattern such as train*.parquet"
        )
    source = ParquetSource(files, n, seed)
    return _from_features(source, source.features, spec, None, None, seed, skip_bad).check_images()


_Loader = Callable[[str, str, int | None, int, bool], ImageData]
_SCHEMES: dict[str, tuple[str, _Loader]] = {
    "scenes": ("SPLIT", _scenes),
    "hf": ("NAME:SPLIT", _hub),
    "imagefolder": ("PATH", _imagefolder),
    "parquet": ("PATH", _parquet),
    "imagenet-s": ("PATH", imagenet_s),
}


def _from_stream(
    stream: IterableDataset,
    first: dict[str, Any],
    n: int | None,
    seed: int | None,
    name: str,
    image: str | None,
    label: str | None,
    skip_bad: bool,
) -> ImageData:
    features = stream.features or _features_of(first)
    known = (stream.info.splits or {}).get(str(stream.split))
    total = known.num_examples if known is not None and known.num_examples else None
    n = total if n is None or (total is not None and n > total) else n
    part = n is not None and n != total
    source, whole = StreamSource(stream, features, n, name), "no random draw over the whole of it"
    drawn = f"the first {counted(n or 0, 'row')} of a stream, in its order: {whole}" if part else ""
    if seed is not None:
        # A few big files may be sorted by class: then their parts (parquet row groups) are shuffled.
        pieces = stream.reshard() if stream.num_shards < INTERLEAVED else stream
        source.read_from(pieces.shuffle(seed=seed, buffer_size=BUFFER, max_buffer_input_shards=INTERLEAVED))
        read = f"{min(INTERLEAVED, pieces.num_shards)} of its {counted(pieces.num_shards, 'part')}, read side by side"
        rest = f"; its first {counted(n or 0, 'row is', 'rows are')} {whole}" if part else ""
        drawn = f"a stream, mixed within a buffer of {BUFFER} rows from {read}{rest}"
    data = _from_features(source, features, name, image, label, seed, skip_bad)
    data.drawn = drawn
    data.check_labels([first[data.label]])
    return data


def _from_features(
    source: Source,
    features: Features,
    name: str,
    image: str | None,
    label: str | None,
    seed: int | None,
    skip_bad: bool,
) -> ImageData:
    for column in (image, label):
        if column is not None and column not in features:
            raise ValueError(f"{name} has no column {column!r}; it has {describe(features)}")
    image = image or find_image_column(features, name)
    label = label or find_label_column(features, name)
    names = features[label].names if isinstance(features[label], ClassLabel) else None
    data = ImageData(source, name=name, image=image, label=label, class_names=names, seed=seed, skip_bad=skip_bad)
    return _with_known_labels(data)


def _with_known_labels(data: ImageData) -> ImageData:
    """The data, once its labels have turned out to be usable."""
    if data.n == 0:
        raise ValueError(f"{data.name} is empty")
    _ = data.labels
    return data


def _first_row(stream: IterableDataset, name: str) -> dict[str, Any]:
    first = next(iter(without_decoding(stream)), None)
    if first is None:
        raise ValueError(f"{name} is empty")
    return first


def _features_of(row: dict[str, Any]) -> Features:
    """Column types of a stream that does not declare them, from its first row."""
    types = {int: "int64", float: "float64", bytes: "binary"}
    return Features(
        {k: Image() if isinstance(v, Picture.Image) else Value(types.get(type(v), "string")) for k, v in row.items()}
    )


def _order(total: int, n: int | None, seed: int | None) -> NDArray[np.int64]:
    order = np.arange(total) if seed is None else np.random.default_rng(seed).permutation(total)
    return order[:n]


def _check_n(n: int | None) -> None:
    if n is not None and n < 1:
        raise ValueError(f"n is a number of images, at least 1; got {n}")
