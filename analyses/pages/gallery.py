"""The pictures of a result, as `Album` keeps them, in a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any

from analyses.pages.album import PICTURES

URL = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*")
HEADINGS = {
    "moved": "{model}: moved most by the intervention, {shown} of {of} images",
    "wrong": "{model}: wrong without the intervention, {shown} of {of}",
}
EXPLAINED = (
    "Each with its right class and, in brackets, the margin: the score of the right class minus that of the best other "
    "one, below 0 where the answer is wrong. Moved most are the images whose margin falls most, on average over all "
    "runs; named is the run in which it falls lowest."
)
GALLERY = """
.gallery { display: flex; flex-wrap: wrap; gap: 16px 14px; margin: 0 0 12px; }
.gallery figure { margin: 0; width: 144px; font-size: 13px; line-height: 1.35; overflow-wrap: anywhere; }
.gallery img { display: block; width: 96px; height: 96px; object-fit: contain; object-position: left bottom; }
.gallery img.dots { image-rendering: pixelated; }
.gallery figcaption { margin-top: 6px; }
.gallery .file { color: var(--soft); }
"""


def pictures_of(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pictures of a result, and those of the parts of one that was joined, under the part's name."""
    parts = (meta.get("parts") or {}).items()
    told = [{**one, "model": f"{name}, {one['model']}"} for name, part in parts for one in pictures_of(part["meta"])]
    return [*(meta.get(PICTURES) or []), *told]


def without_pictures(value: Any) -> Any:
    """The same, for text that nobody would read with pictures in it."""
    if isinstance(value, Mapping):
        return {key: without_pictures(inner) for key, inner in value.items() if key != PICTURES}
    return [without_pictures(inner) for inner in value] if isinstance(value, list) else value


def gallery(images: Iterable[Mapping[str, Any]], write: Callable[[str], str], level: int) -> list[str]:
    """A page's part with these pictures, by model and by why they are shown; `write` makes text of names.

    Raises ValueError for a picture that is no data URL of one, as nothing of ours leaves.
    """
    parts = [f"<p>{write(EXPLAINED)}</p>"]
    for (model, why), group in groupby(images, key=lambda entry: (entry["model"], entry["why"])):
        shown = list(group)
        title = HEADINGS[why].format(model=model, shown=len(shown), of=shown[0]["of"])
        parts.append(f"<h{level}>{write(title)}</h{level}>")
        parts.append(f'<div class="gallery">{"".join(_figure(entry, write) for entry in shown)}</div>')
    return parts


def _figure(entry: Mapping[str, Any], write: Callable[[str], str]) -> str:
    url = str(entry["picture"])
    if not URL.fullmatch(url):
        raise ValueError(f"a picture of a result is a data URL of a PNG or JPEG file; got {url[:40]!r}")
    name = write(str(entry["image"]))
    said = "".join(f"<br>{write(line)}" for line in _said(entry))
    dots = ' class="dots"' if "image/png" in url else ""
    return (
        f'<figure><img{dots} src="{url}" alt="{name}"><figcaption><strong>{write(str(entry["class"]))}</strong> '
        f'<span class="file">{name}</span>{said}</figcaption></figure>'
    )


def _said(entry: Mapping[str, Any]) -> list[str]:
    before = f"says {entry['says']} ({_signed(entry['margin'])})"
    if entry["why"] == "wrong":
        return [before]
    then = f"says {entry['then']} ({_signed(entry['margin_then'])})"
    return [before, f"{entry['under']}: {then}", f"on average {_signed(-entry['mean_drop'])}"]


def _signed(number: float) -> str:
    return f"{number:+.2f}".replace("-", "−")
