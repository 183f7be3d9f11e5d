"""The layouts dictionaries are saved in, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hooked_vit.errors import nearest
from interventions.dictionaries import overcomplete, prisma, saelens, saev
from interventions.dictionaries.sae import Sae

LAYOUTS: dict[str, Callable[..., Sae]] = {
    "saelens": saelens.load,
    "prisma": prisma.load,
    "saev": saev.load,
    "overcomplete": overcomplete.load,
}
FOLDERS = ("saelens", "prisma")
"""The layouts that are a folder; the others are one file."""


def load_sae(path: str | Path, layout: str, **settings: Any) -> Sae:
    """The dictionary another tool saved: layout "saelens", "prisma", "saev" or "overcomplete".

    >>> load_sae("folder", "saelens")  # doctest: +SKIP
    >>> load_sae("model.safetensors", "overcomplete", activation="topk", k=32)  # doctest: +SKIP

    `settings` say what the layout's files leave open: see `load` in its file in `interventions/dictionaries/`.
    Raises ValueError for an unknown layout and naming the field, tensor, shape or site that is not understood,
    TypeError for a setting the layout does not take, FileNotFoundError.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layouts are {', '.join(LAYOUTS)}; got {layout!r}{nearest(str(layout), LAYOUTS)}")
    takes = list(inspect.signature(LAYOUTS[layout]).parameters)[1:]
    if unknown := [name for name in settings if name not in takes]:
        known = ", ".join(takes) or "no settings"
        raise TypeError(f"layout {layout!r} takes {known}; got {unknown[0]!r}{nearest(unknown[0], takes)}")
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    if path.is_dir() != (layout in FOLDERS):
        kinds = ("a folder", "one file") if layout in FOLDERS else ("one file", "a folder")
        raise FileNotFoundError(f"layout {layout!r} is {kinds[0]}; {path} is {kinds[1]}")
    return LAYOUTS[layout](path, **settings)
