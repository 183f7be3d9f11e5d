"""The saved results behind the page, as they may be given away: no photographs, and no folders of a machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from analyses.pages.album import PICTURES
from analyses.reproductions.real_models.runs import saved_in
from analyses.running.results import Result

FOLDERS = re.compile(r"(?<![\w.~])~?/(?:[\w.+-]+/)+")


def keep_results(folder: Path, to: Path) -> list[Path]:
    """Save every result of `folder` again under `to`, one folder per run. Returns these.

    They lack the images that were shown and every folder in front of a file's name; all numbers are as they were, and
    `hooked-vit report` reads them. Raises FileNotFoundError where there is none.
    """
    return [given_away(result).save(to / name) for name, result in saved_in(folder).items()]


def given_away(result: Result) -> Result:
    """The same result without its images, and with names in the place of paths.

    >>> import pandas as pd
    >>> given_away(Result(pd.DataFrame(), {"data": {"name": "parquet:/home/me/test.parquet"}})).meta
    {'data': {'name': 'parquet:test.parquet'}}
    """
    return Result(result.frame, {key: _named(value) for key, value in result.meta.items() if key != PICTURES})


def _named(value: Any) -> Any:
    if isinstance(value, dict):
        return {_named(key): _named(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_named(each) for each in value]
    return FOLDERS.sub("", value) if isinstance(value, str) else value
