"""What an analysis returns: a tidy table of measurements, and what was run to get it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from html import escape
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.pages.paper import at_paper_size
from analyses.processes.group import leads
from analyses.running.catalogue import get_analysis
from analyses.running.files import check_writable, committed, write_together, write_whole
from analyses.running.parts import join_frames, part_frame
from hooked_vit.config.showing import Displayed, counted, one_line, visible

PACKAGES = (
    *("hooked-vit", "torch", "transformers", "transformer-lens", "nnsight", "datasets", "pillow"),
    *("numpy", "pandas", "scikit-learn"),
)
"""The packages whose version can change a number."""

NUMBERS, ABOUT, REPORT = "result.parquet", "result.json", "report.html"
ROWS_SHOWN, CELL = 8, 60
PICTURES = ("pdf", "svg", "png")
PIXELS = 300 / 96  # of print, for one of the screen
CHECKSUMS = "sha256"
"""The entry of `result.json` that says which files it belongs to."""


@dataclass(eq=False, repr=False)
class Result(Displayed):
    """`frame`: one row per measurement. `meta`: models, data, interventions, seeds, versions, counts.

    >>> Result(pd.DataFrame({"layer": [0], "accuracy": [0.9]}), {"seeds": (0, 1)}).meta
    {'seeds': [0, 1]}

    `meta` is kept as JSON knows it, so that saving and loading change nothing: tuples and arrays become lists, keys
    text, numbers that are not finite None. Raises TypeError, naming the entry, for anything else.
    """

    frame: pd.DataFrame
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.frame, pd.DataFrame):
            raise TypeError(f"a Result holds a pandas DataFrame; got {type(self.frame).__name__}")
        self.meta = _plain(self.meta, "meta")

    def __repr__(self) -> str:
        columns = ", ".join(map(str, self.frame.columns))
        return one_line(
            f"Result({self.meta.get('analysis', 'of no analysis')}: {counted(len(self.frame), 'row')} of {columns})"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the sentence of the result, its first rows, and where the rest is."""
        said = [
            *map(str, self.meta.get("summary") or []),
            ".frame has all rows, .meta what was run and what to mind, .figure() draws it",
        ]
        paragraphs = "".join(f"<p>{escape(visible(text))}</p>" for text in said)
        rows = self.frame.head(ROWS_SHOWN).map(_seen).rename(columns=_seen).to_html(index=False)
        return f"<p><b>{escape(repr(self))}</b></p>{rows}{paragraphs}"

    def figure(self) -> go.Figure:
        """The plotly figure that goes with the analysis.

        Raises LookupError when the result is of no registered analysis, or of one that has no figure, ValueError where
        one of another version has not what is drawn.
        """
        if "analysis" not in self.meta:
            raise LookupError(
                "only an analysis has a figure; meta['analysis'] does not say which one this result is of"
            )
        draw = get_analysis(self.meta["analysis"]).figure
        if draw is None:
            raise LookupError(f"{self.meta['analysis']} has no figure; its numbers are in .frame")
        return self._drawn_by(draw)

    def _drawn_by(self, draw: Callable[[Result], go.Figure]) -> go.Figure:
        """What a function draws of the result; an error says where that is of another version."""
        try:
            return draw(self)
        except Exception as error:
            saved, ours = (self.meta.get("versions") or {}).get(PACKAGES[0]), environment().get(PACKAGES[0])
            if saved == ours:  # a bug in the drawing
                raise
            raise ValueError(
                f"this result of {self.meta.get('analysis')} is of {PACKAGES[0]} {saved or '(it says not which)'} and "
                f"lacks what {ours} draws ({type(error).__name__}: {error}). Run the analysis again; its numbers are "
                f"in {NUMBERS}"
            ) from error

    def savefig(self, path: str | Path, size: str | None = None) -> Path:
        """Write the figure into a file of the kind its name ends in: pdf, svg or png. Returns the path.

        >>> result.savefig("cls.pdf", size="paper")  # doctest: +SKIP

        `size` is "paper", 7 inches as the text of a page, or "column", 3.5 inches: letters of 7.5 points and no title,
        which belongs in the caption (`figure().layout.title.text`). Without it the figure is as on a screen.
        A browser draws it, by the `export` extra (`pip install "hooked-vit[export]"`). Raises ValueError for another
        kind of file or size, ImportError without the extra, and LookupError where there is no figure.
        """
        path = Path(path).expanduser()
        kind = path.suffix.lower().removeprefix(".")
        if kind not in PICTURES:
            raise ValueError(f"a figure is saved as {', '.join(PICTURES)}; got {path.name!r}")
        figure = self.figure() if size is None else at_paper_size(self.figure(), size)
        if find_spec("kaleido") is None:
            raise ImportError('figures are saved with kaleido: pip install "hooked-vit[export]"')
        drawn = figure.to_image(format=kind, scale=PIXELS if kind == "png" and size else 2 if kind == "png" else 1)
        write_whole(path, lambda part: part.write_bytes(drawn))
        return path

    @classmethod
    def joined(cls, parts: Mapping[str, Result], meta: Mapping[str, Any] | None = None) -> Result:
        """One result of several: their rows below each other, and in the column `study` which of them a row is from.

        >>> Result.joined({"a": Result(pd.DataFrame({"layer": [0]}))}).part("a").frame
           layer
        0      0

        Raises ValueError for no results, and for one that has a column `study` itself.
        """
        frame, types = join_frames({name: part.frame for name, part in parts.items()})
        about = {name: {"columns": types[name], "meta": part.meta} for name, part in parts.items()}
        said = [f"{name}: {sentence}" for name, part in parts.items() for sentence in part.meta.get("corrected", [])]
        return cls(frame, {**(meta or {}), **({"corrected": said} if said else {}), "parts": about})

    def part(self, name: str) -> Result:
        """The result that `joined` took in under this name: its rows, its columns and their types, its `meta`.

        Raises LookupError for a name there is not.
        """
        parts = self.meta.get("parts", {})
        if name not in parts:
            raise LookupError(f"this result has the parts {', '.join(parts) or 'none'}; got {name!r}")
        return type(self)(part_frame(self.frame, name, parts[name]["columns"]), parts[name]["meta"])

    def save(self, folder: str | Path, *, report: str | None = None) -> Path:
        """Write `result.parquet`, `result.json` and, where it is given, `report.html` into `folder`: at once, or not.

        `result.json` holds the checksums of the others and of itself. A report of a former result goes with it.
        Of several processes the first writes. Returns the folder.
        Raises OSError when it is not writable (see `check_writable`) or somebody else keeps it, ValueError for a `meta`
        with an entry of the name that checksums have.
        """
        folder = Path(folder)
        if not leads():
            return folder
        folder = check_writable(folder)
        if CHECKSUMS in self.meta:
            raise ValueError(f"meta[{CHECKSUMS!r}] is where checksums of the files are saved; give it another name")
        kept = {NUMBERS: self.frame.to_parquet(), **({} if report is None else {REPORT: report.encode("utf-8")})}
        sums = {name: sha256(content).hexdigest() for name, content in kept.items()}
        meta = _plain(self.meta, "meta")
        meta = {**meta, CHECKSUMS: {**sums, ABOUT: _checksum(meta)}}
        kept[ABOUT] = (json.dumps(meta, indent=2, allow_nan=False) + "\n").encode("utf-8")
        files: dict[str, Any] = {name: partial(_put, content) for name, content in kept.items()}
        if report is None and (folder / ABOUT).is_file():
            files[REPORT] = None
        write_together(folder, files)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """Read back what `save` wrote, with the same columns, types and values.

        What an earlier version saved has its entries of `meta` under the names of today; one that saved no checksum is
        believed. Raises FileNotFoundError for a folder without a result, ValueError for files that are damaged, or do
        not belong together.
        """
        folder = Path(folder)
        for patience in (0.02, 0.1, None):  # somebody may be moving the files meanwhile
            try:
                meta, numbers = _read_pair(folder)
                break
            except (FileNotFoundError, ValueError):
                if patience is None:
                    raise
                time.sleep(patience if (folder / ABOUT).exists() else 0)
        return cls(pd.read_parquet(BytesIO(numbers)), _named_as_today(meta))


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number; nothing about the machine.

    >>> environment()["numpy"] == np.__version__
    True
    """
    versions = {"python": python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def computing() -> dict[str, Any]:
    """What else can change the last digits of a number: threads, and how exactly float32 is multiplied.

    >>> sorted(computing())
    ['float32_matmul_precision', 'threads']
    """
    import torch

    return {"threads": torch.get_num_threads(), "float32_matmul_precision": torch.get_float32_matmul_precision()}


def _seen(value: Any) -> Any:
    return one_line(value, CELL) if isinstance(value, str) else value


def _checksum(meta: dict[str, Any]) -> str:
    """Of what is said of a result, without its checksums."""
    return sha256(json.dumps(meta, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _put(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _read_pair(folder: Path) -> tuple[dict[str, Any], bytes]:
    """`meta` and the parquet file of a saved result, once they have turned out to be of one save."""
    found = {name: path for name in (NUMBERS, ABOUT) if (path := committed(folder, name)) and path.is_file()}
    if missing := [name for name in (NUMBERS, ABOUT) if name not in found]:
        raise FileNotFoundError(f"a saved result is {NUMBERS} and {ABOUT}; {folder} lacks {missing}")
    numbers = found[NUMBERS].read_bytes()
    try:
        meta = json.loads(found[ABOUT].read_bytes())
        sums = meta.pop(CHECKSUMS, None)
        wanted = sums[NUMBERS] if sums is not None else sha256(numbers).hexdigest()
        itself = sums.get(ABOUT) if sums is not None else None
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{found[ABOUT]} is damaged ({error}); run the analysis again") from error
    if sha256(numbers).hexdigest() != wanted:
        raise ValueError(
            f"{NUMBERS} in {folder} is not the file that {ABOUT} describes: it is damaged, or of another run. Run the "
            "analysis again"
        )
    if itself is not None and itself != _checksum(meta):
        raise ValueError(f"{found[ABOUT]} is damaged: it is not what was saved. Run the analysis again")
    return meta, numbers


def _named_as_today(meta: dict[str, Any]) -> dict[str, Any]:
    """What a result says of itself, and of its parts, under the names that options have now."""
    from analyses.running.arguments import FORMER

    names = {key: FORMER.get(key, key) for key in meta}
    named = {(key if names[key] in meta else names[key]): value for key, value in meta.items()}
    if isinstance(parts := named.get("parts"), dict):
        named["parts"] = {name: {**part, "meta": _named_as_today(part["meta"])} for name, part in parts.items()}
    return named


def _plain(value: Any, where: str) -> Any:
    """`value` in the types JSON has."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    if isinstance(value, np.ndarray) or hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, (int, float)):
        return _plain(value, where)
    raise TypeError(f"meta holds text, numbers, lists and dictionaries; {where} is a {type(value).__name__}")
