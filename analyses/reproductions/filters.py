"""Which rows of a result a published value is compared with: conditions that are data, and run nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt, ne
from typing import Any

import pandas as pd

NAME = r"[A-Za-z_]\w{0,99}"
WHOLE = r"\d{1,15}"
CONDITION = re.compile(
    rf"\s*(?P<column>{NAME})\s*(?:"
    r"\.\s*(?P<test>isna|notna)\(\)"
    r"|(?P<compare>==|!=|<=|>=|<|>)\s*(?:"
    r"'(?P<single>[^'\\]*)'"
    r'|"(?P<double>[^"\\]*)"'
    rf"|(?P<number>[-+]?{WHOLE}(?:\.{WHOLE})?)"
    rf"|(?P<other>{NAME})(?:\.(?P<edge>min|max)\(\))?(?:\s*(?P<sign>[-+])\s*(?P<step>{WHOLE}))?"
    r"))\s*"
)
AND = re.compile(r"and\b")
COMPARISONS = {"==": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}
WRITTEN = (
    "rows are conditions joined by `and`: COLUMN == VALUE (or !=, <, <=, >, >=), COLUMN.isna() or COLUMN.notna(); "
    "a value is 'text', a number, True, False, or a column, COLUMN.min() or COLUMN.max(), plus or minus a whole number"
)


@dataclass(frozen=True)
class Condition:
    """What one column has to be. `value` is a text or a number; `other` is a column instead, `edge` its min or max,
    `step` what is added to it.
    """

    column: str
    compare: str
    value: str | int | float | None = None
    other: str | None = None
    edge: str | None = None
    step: int = 0

    def met(self, frame: pd.DataFrame) -> pd.Series:
        """For each row whether it is so. Raises LookupError for a column there is not, TypeError for another kind."""
        asked = _column(frame, self.column)
        if self.compare in ("isna", "notna"):
            return asked.isna() if self.compare == "isna" else asked.notna()
        against: Any = self.value
        if self.other is not None:
            against = _column(frame, self.other)
            against = getattr(against, self.edge)() if self.edge else against
            against = against + self.step if self.step else against
        found = pd.Series(COMPARISONS[self.compare](asked, against), index=frame.index)
        return found.astype("boolean").fillna(False).astype(bool)


def parse_rows(text: str) -> tuple[Condition, ...]:
    """The conditions of a recipe's `rows`.

    >>> [c.column for c in parse_rows("measure == 'accuracy' and layer == layer.max() - 1 and seed.isna()")]
    ['measure', 'layer', 'seed']

    Raises ValueError for anything else: there are no functions, no brackets, no other names.
    """
    conditions, at = [], 0
    while True:
        found = CONDITION.match(text, at)
        if found is None:
            raise ValueError(f"{WRITTEN}; got {text[at : at + 60]!r}")
        conditions.append(_condition(found.groupdict()))
        if found.end() == len(text):
            return tuple(conditions)
        joined = AND.match(text, found.end())
        if joined is None:
            raise ValueError(f"{WRITTEN}; got {text[found.end() : found.end() + 60]!r} behind a condition")
        at = joined.end()


def rows_where(frame: pd.DataFrame, text: str) -> pd.DataFrame:
    """The rows that meet all conditions.

    >>> rows_where(pd.DataFrame({"layer": [0, 1], "value": [0.5, 0.9]}), "layer == layer.max()").value.item()
    0.9

    Raises ValueError for conditions that are none, LookupError for a column there is not, TypeError where a text is
    compared with a number by size.
    """
    kept = pd.Series(True, index=frame.index)
    for condition in parse_rows(text):
        kept &= condition.met(frame)
    return frame[kept]


def _condition(parts: dict[str, str | None]) -> Condition:
    column, test, compare = str(parts["column"]), parts["test"], parts["compare"]
    if test is not None:
        return Condition(column, test)
    if (other := parts["other"]) in ("True", "False"):
        return Condition(column, str(compare), other == "True")
    if other is not None:
        step = int(parts["step"] or 0) * (-1 if parts["sign"] == "-" else 1)
        return Condition(column, str(compare), other=other, edge=parts["edge"], step=step)
    value: str | int | float | None = parts["single"] if parts["single"] is not None else parts["double"]
    if value is None:
        number = str(parts["number"])
        value = float(number) if "." in number else int(number)
    return Condition(column, str(compare), value)


def _column(frame: pd.DataFrame, name: str) -> pd.Series:
    if name not in frame:
        raise LookupError(f"there is no column {name!r}; there are {', '.join(map(str, frame.columns))}")
    return frame[name]
