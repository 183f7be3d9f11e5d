"""A page per feature of a dictionary: the images in which it is largest, where in them, and in which patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from analyses.activations.store.serving import activations_in_use
from analyses.data import ImageData, as_data, load_data
from analyses.drawing.colours import NAMES
from analyses.drawing.pictures import as_url
from analyses.questions.features.feature_pages.tops import Seen, Tops, Use, top_images, use_by_role
from analyses.running.files import check_writable, write_together
from hooked_vit import HookedViT
from hooked_vit.config.showing import counted
from interventions import Sae, splice

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
SIDE = 196  # pixels of a picture
AROUND = 1  # patches around the one a crop shows
N = 200
RED = "Red: the patches at which the feature is active; the redder, the nearer to its largest activation."


@dataclass(frozen=True)
class FeaturePages:
    """`index.html` and a page per feature, by file name."""

    pages: Mapping[str, str]

    def save(self, folder: str | Path) -> Path:
        """Write the pages into a folder, all or none. Returns the path of the first."""
        folder = check_writable(Path(folder).expanduser())
        write_together(folder, {name: partial(_put, html) for name, html in self.pages.items()})
        return folder / "index.html"

    def __repr__(self) -> str:
        return f"FeaturePages({counted(len(self.pages) - 1, 'feature')}; .save(folder))"


def feature_pages(
    model: HookedViT,
    sae: Sae,
    data: ImageData | Any = None,
    *,
    features: Sequence[int] | None = None,
    layer: int | None = None,
    site: str | None = None,
    images: int = 8,
    n_features: int = 12,
    batch_size: int = 32,
    activations: Sequence[str | Path] | None = None,
) -> FeaturePages:
    """Pages on which a reader sees what features of a dictionary respond to.

    >>> feature_pages(model, sae, photographs).save("features")  # doctest: +SKIP

    Each page shows the `images` in a patch of which the feature is largest, its activation drawn over them, the patches
    themselves, and how often it is active at each role of token. Without `features`, the `n_features` with the largest
    mean activation. `layer` and `site` are for a dictionary that does not say where it was trained. With `activations`,
    folders that `store_activations` filled with every token there, no model runs, and only pictures that are shown are
    opened. Raises ValueError for a dictionary of another width, layer or site, for a feature it has not, for no images,
    and for stored activations of something else.
    """
    data = load_data("scenes:test", n=N) if data is None else as_data(data)
    ((host, _),) = splice(sae, layer, site).hooks(model)
    if bad := [f for f in features or () if isinstance(f, bool) or not 0 <= f < sae.n_features]:
        raise ValueError(f"features are 0 to {sae.n_features - 1}; got {bad[0]!r}")
    if images < 1 or n_features < 1:
        raise ValueError(f"at least one image and one feature are shown; got {images} and {n_features}")
    with nullcontext() if activations is None else activations_in_use(activations, {"the model": model}):
        use = use_by_role(model, sae, host, data, batch_size)
        if not use:
            raise ValueError("there are no images to look at")
        total = torch.stack([torch.as_tensor(part.total) for part in use.values()]).sum(0)
        chosen = list(features) if features is not None else total.topk(min(n_features, len(total))).indices.tolist()
        tops = top_images(model, sae, host, data, chosen, images, batch_size)
    where = f"{host} of {model.cfg.name or 'the model'}"
    pages = {_file(f): _page(f, where, sae, use, tops[f]) for f in chosen}
    return FeaturePages({"index.html": _index(chosen, where, sae, data, use, tops), **pages})


def _file(feature: int) -> str:
    return f"feature-{feature}.html"


def _document(title: str, body: str) -> str:
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _index(chosen: list[int], where: str, sae: Sae, data: ImageData, use: dict[str, Use], tops: dict[int, Tops]) -> str:
    active = torch.stack([torch.as_tensor(part.active) for part in use.values()]).sum(0)
    dead = int((active == 0).sum())
    shown = []
    for f in chosen:
        picture = _overlay(tops[f].seen[0], tops[f].seen[0].value) if tops[f].seen else ""
        shown.append(f'<figure><a href="{_file(f)}">{picture}feature {f}</a></figure>')
    body = (
        f"<h1>Features at {escape(where)}</h1>\n<p>{escape(repr(sae))}, {escape(sae.source or 'of unknown origin')}; "
        f"{dead} of {sae.n_features} are never active on the {counted(data.n, 'image') if data.n else 'many images'} "
        "of "
        f"{escape(str(data.name))}. Each picture is the one the feature is largest in. {RED}</p>\n"
        f'<div class="row">{"".join(shown)}</div>'
    )
    return _document(f"Features at {where}", body)


def _page(feature: int, where: str, sae: Sae, use: dict[str, Use], top: Tops) -> str:
    highest = top.seen[0].value if top.seen else 1.0
    rows = "".join(_use_row(role, part, feature) for role, part in use.items())
    pictures = "".join(
        f"<figure>{_overlay(seen, highest)}<figcaption>{_caption(seen)}: {_shown(seen.value)}</figcaption></figure>"
        for seen in top.seen
    )
    crops = "".join(
        f"<figure>{_crop(seen, row, column)}<figcaption>{_shown(value)}</figcaption></figure>"
        for value, seen, row, column in _patches(top)
    )
    told = f"<p>{RED}</p>\n"
    nothing = "" if top.seen else "<p>No patch of these images activates it.</p>\n"
    body = (
        f'<p><a href="index.html">all features</a></p>\n<h1>Feature {feature} at {escape(where)}</h1>\n<table>'
        "<tr><th>tokens</th><th>active at</th><th>mean where active</th><th>largest</th></tr>"
        f"{rows}</table>\n<h2>Images in which it is largest</h2>\n{nothing or told}"
        f'<div class="row">{pictures}</div>\n<h2>Patches in which it is largest</h2>\n'
        f'<div class="row">{crops}</div>'
    )
    return _document(f"Feature {feature} at {where}", body)


def _use_row(role: str, use: Use, feature: int) -> str:
    n, total, largest = (torch.as_tensor(part)[feature].item() for part in (use.active, use.total, use.largest))
    mean = _shown(total / n) if n else "—"
    share = f"{n / use.n:.2%}" if use.n else "—"
    return f"<tr><td>{escape(NAMES.get(role, role))}</td><td>{share}</td><td>{mean}</td><td>{_shown(largest)}</td></tr>"


def _caption(seen: Seen) -> str:
    return escape(f"image {seen.number}" + f" of “{seen.label}”" * bool(seen.label))


def _shown(activation: float) -> str:
    """Three digits, the last one too where it is 0."""
    return f"{activation:#.3g}".rstrip(".")


def _overlay(seen: Seen, highest: float) -> str:
    """The picture, red where the feature is active: as much as its share of the highest."""
    height, width = seen.colours.shape[:2]
    size = (round(SIDE * width / max(height, width)), round(SIDE * height / max(height, width)))
    picture = np.asarray(Image.fromarray(seen.colours).resize(size, Image.Resampling.BICUBIC), float)
    share = (seen.map.clamp(min=0) / highest).clamp(max=1).numpy()
    heat = np.asarray(Image.fromarray((share * 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST), float)
    weight = 0.65 * heat[..., None] / 255
    return _image((picture * (1 - weight) + np.array([220.0, 20.0, 20.0]) * weight).astype(np.uint8), _caption(seen))


def _patches(top: Tops) -> list[tuple[float, Seen, int, int]]:
    """(activation, image, row, column) of the largest patches among these images."""
    found = [
        (float(value), seen, *divmod(at, seen.map.shape[1]))
        for seen in top.seen
        for at, value in enumerate(seen.map.flatten().tolist())
        if value > 0
    ]
    return sorted(found, key=lambda one: -one[0])[: 2 * top.most]


def _crop(seen: Seen, row: int, column: int) -> str:
    """A patch and those around it."""
    rows, columns = seen.map.shape
    high, wide = seen.colours.shape[0] // rows, seen.colours.shape[1] // columns
    above, left = max(0, row - AROUND) * high, max(0, column - AROUND) * wide
    part = seen.colours[above : (row + AROUND + 1) * high, left : (column + AROUND + 1) * wide]
    picture = Image.fromarray(np.ascontiguousarray(part)).resize((SIDE // 2, SIDE // 2), Image.Resampling.NEAREST)
    return _image(np.asarray(picture), f"{_caption(seen)}, patch {row}, {column}")


def _image(picture: Any, alt: str) -> str:
    height, width = picture.shape[:2]
    return f'<img src="{as_url(picture)}" width="{width}" height="{height}" alt="{alt}">'


def _put(html: str, path: Path) -> None:
    path.write_text(html, encoding="utf-8")
