"""JSON objects that carry a checksum of themselves: what was changed since is not believed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hooked_vit.loading.digests import digest

CHECKSUM = "checksum"


def sealed(told: Mapping[str, Any], *marks: str, length: int | None = None, indent: int | None = None) -> str:
    """An object as text, with its checksum in it: of so many hex digits, and of marks nobody needs to write down.

    >>> told, sound = unsealed(sealed({"n": 3}))
    >>> told, sound
    ({'n': 3}, True)
    """
    return json.dumps({**told, CHECKSUM: digest(*marks, dict(told))[:length]}, indent=indent)


def unsealed(text: str, *marks: str, length: int | None = None) -> tuple[dict[str, Any], bool]:
    """What `sealed` was given, and whether it is as it was written.

    >>> unsealed('{"n": 4, "checksum": "f3"}')
    ({'n': 4}, False)

    Raises ValueError for text that is no such object.
    """
    told = json.loads(text)
    if not isinstance(told, dict) or CHECKSUM not in told:
        raise ValueError("an object with a checksum is needed")
    seen = told.pop(CHECKSUM)
    return told, seen == digest(*marks, told)[:length]
