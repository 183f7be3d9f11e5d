"""One self-contained page: drag the layer, click a patch, and see what is attended to, what is read, what follows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from analyses.questions.looking.explorer.effects import patch_kinds
from analyses.questions.looking.explorer.view import TOP, read_view
from analyses.running.files import check_writable, write_whole
from analyses.running.places import page_path
from hooked_vit import HookedViT
from hooked_vit.loading.progress import tqdm
from interventions import Intervention

# nothing is fetched, sent or followed
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
Picture = Image.Image | str | Path
RUNS = 4000  # of one patch at one layer, that still end while somebody waits


@dataclass(frozen=True)
class Explorer:
    """The page; shows itself in a notebook."""

    html: str

    def save(self, path: str | Path) -> Path:
        """Write the page into a file, whole or not at all. Returns its path, as `page_path` understands it."""
        path = page_path(path, "explorer.html")
        check_writable(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: file.write_text(self.html, encoding="utf-8"))
        return path

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escape(self.html, quote=True)}" width="100%" height="900" style="border:0"></iframe>'

    def __repr__(self) -> str:
        return f"Explorer({len(self.html) / 1e6:.1f} MB; .save(path), or let a notebook show it)"


def explore(
    models: HookedViT | Mapping[str, HookedViT],
    images: Picture | Mapping[str, Picture] | Sequence[Picture],
    *,
    patches: bool | None = None,
    inserted: Intervention | None = None,
    classes: int = TOP,
) -> Explorer:
    """A page on which a reader explores what tokens of one or two images attend to, in one or two models.

    >>> explore(zoo.load("vit"), image).save("explorer.html")  # doctest: +SKIP

    Every model with every image is a panel; panels share one layer slider. Drawn over the picture: attention from and
    to CLS, a prefix token or any patch that is clicked, rollout (Abnar & Zuidema 2020), attention times the gradient of
    a class, norms, the head on every patch. Beside it the class lens of the token, and what the answer becomes when one
    thing is changed at each layer; with two images also when CLS or the patches are the other image's. `patches` adds
    what the answer becomes when one patch is zero, unseen by CLS, or the other image's, for every patch at up to six
    layers (None: where that is at most 4,000 runs and nothing is inserted). `inserted`, an `insert_token`, adds a token
    in every run, which can be asked as any other. `classes` of the answer are told; where texts shall be the classes,
    `zero_shot_head(name, texts, ["{}"])` makes the model.
    Pictures may be paths. Raises ValueError for an `inserted` that is no `insert_token`, fewer classes than one, no or
    more than two models or images, and what `preprocess` raises.
    """
    if inserted is not None and (not isinstance(inserted, Intervention) or inserted.name != "insert_token"):
        raise ValueError(f"what is inserted is an insert_token(...); got {inserted!r}")
    if classes < 1:
        raise ValueError(f"at least one class of the answer is told; got classes={classes}")
    named = {models.cfg.name or "model": models} if isinstance(models, HookedViT) else dict(models)
    pictures = _pictures(images)
    for what, several in (("models", named), ("images", pictures)):
        if not 1 <= len(several) <= 2:
            raise ValueError(f"the explorer shows one or two {what} side by side; got {len(several)}")
    pairs = [(name, title) for name in named for title in pictures]
    views = []
    for name, title in tqdm(pairs, desc="exploring", leave=False, disable=len(pairs) == 1):
        model, donor = named[name], next((p for other, p in pictures.items() if other != title), None)
        wanted = False if patches is None and inserted is not None else patches  # such runs share little
        layers = _patch_layers(model, pictures[title], wanted, with_donor=donor is not None)
        shown = title if isinstance(images, Mapping) or len(pictures) > 1 else ""
        view = read_view(
            name, model, pictures[title],
            title=shown, donor=donor, patch_layers=layers, inserted=inserted, top=classes,
        )  # fmt: skip
        views.append(view)
    return Explorer(_page(views))


def _pictures(images: Any) -> dict[str, Picture]:
    if isinstance(images, Mapping):
        return dict(images)
    several = [images] if isinstance(images, (Image.Image, str, Path)) else list(images)
    return {f"image {i + 1}": image for i, image in enumerate(several)}


def _patch_layers(model: HookedViT, image: Picture, patches: bool | None, *, with_donor: bool) -> int:
    """At how many layers every patch is changed."""
    rows, columns = model.check_pixels(model.preprocess([image])).grid
    layers = min(6, model.cfg.n_layers)
    wanted = layers * rows * columns * patch_kinds(model, donor=with_donor) <= RUNS if patches is None else patches
    return layers if wanted else 0


def _page(views: Sequence[Mapping[str, Any]]) -> str:
    here = files(__package__)
    style, script = (here.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    # inside a script element only "<" could end it
    data = json.dumps(views, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    names = list(dict.fromkeys(str(view["name"]) for view in views))
    title = escape(f"What {' and '.join(names)} attend{'s' * (len(names) == 1)} to")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{title}</h1>\n<p>Drag the layer; click a patch, or move with the arrow keys, to "
        "ask what it attends to; choose a change to see what the answer becomes. Layers count from 0.</p></header>\n"
        '<div class="controls" role="group" aria-label="what is shown"></div>\n<main></main>\n'
        f'<script type="application/json" id="views">{data}</script>\n<script>{script}</script>\n</body>\n</html>\n'
    )
