"""Several tables in one: their rows below each other under the name of their part, each to be had back as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

STUDY = "study"
"""The column that says which part a row is from."""


def join_frames(frames: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, dict[str, dict[str, str]]]:
    """One frame of several, with the part's name in the column `study`, and the types of every part's own columns.

    >>> join_frames({"a": pd.DataFrame({"layer": [0]}), "b": pd.DataFrame({"head": ["x"]})})[0].study.tolist()
    ['a', 'b']

    Raises ValueError for no frames, and for one that has a column `study` itself.
    """
    if not frames:
        raise ValueError("there is no result to join")
    if taken := [name for name, frame in frames.items() if STUDY in frame.columns]:
        raise ValueError(f"the column {STUDY!r} says which result a row is from; {', '.join(taken)} has one already")
    types = {name: {str(c): str(t) for c, t in frame.dtypes.items()} for name, frame in frames.items()}
    kinds: dict[str, set[str]] = {}
    for columns in types.values():
        for column, dtype in columns.items():
            kinds.setdefault(column, set()).add(dtype)
    # A file knows one type per column: where two parts disagree, both are kept as text.
    text = {column for column, found in kinds.items() if len(found) > 1 and found & {"object", "str", "string"}}
    parts = []
    for name, frame in frames.items():
        mixed = {column: frame[column].map(_as_text) for column in text & set(frame.columns)}
        parts.append(frame.assign(**mixed).astype(_with_room(frame, text)).assign(**{STUDY: name}))
    joined = pd.concat(parts, ignore_index=True)
    return joined[[STUDY, *(column for column in joined.columns if column != STUDY)]], types


def part_frame(joined: pd.DataFrame, name: str, types: Mapping[str, str]) -> pd.DataFrame:
    """The rows of one part, with its own columns and their types.

    >>> frame = pd.DataFrame({"layer": [0, 1]})
    >>> joined, types = join_frames({"a": frame})
    >>> part_frame(joined, "a", types["a"]).equals(frame)
    True
    """
    frame = joined.loc[joined[STUDY] == name, list(types)].reset_index(drop=True)
    for column, dtype in types.items():
        if str(frame[column].dtype) != dtype:
            frame[column] = frame[column].astype(dtype)
    return frame


def _as_text(value: Any) -> Any:
    return None if pd.isna(value) else str(value)


def _with_room(frame: pd.DataFrame, text: set[str]) -> dict[str, str]:
    """Whole numbers and truth values as types that have room for rows without one."""
    room = {"int64": "Int64", "bool": "boolean"}
    return {str(c): room[str(t)] for c, t in frame.dtypes.items() if str(t) in room and c not in text}
