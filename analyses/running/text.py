"""Text from outside, as names of models, classes, data and files are: shown as what it is, and no part of a path."""

from __future__ import annotations

import unicodedata

from hooked_vit.config.showing import is_seen as is_seen
from hooked_vit.config.showing import visible as visible
from hooked_vit.config.showing import written

LONGEST = 100
"""Characters of a name that becomes a folder's."""


def check_seen(text: str, what: str) -> str:
    """The text, if all of it is seen; `what` is what an error calls it.

    >>> check_seen("vit", "a model's name")
    'vit'

    Raises ValueError, naming the first character that is not.
    """
    if strange := next((character for character in text if not is_seen(character)), None):
        kind = "is no UTF-8" if unicodedata.category(strange) == "Cs" else f"holds the character {written(strange)}"
        raise ValueError(f"{what} is text that can be shown: {visible(text)} {kind}; rename it")
    return text


def check_component(name: str, what: str) -> str:
    """The name, if a folder can be called so: one component of a path and not more.

    >>> check_component("../../etc", "a step's name")
    Traceback (most recent call last):
    ValueError: a step's name is one component of a path, ...; got '../../etc'

    Raises ValueError for an empty name, one with a slash, backslash, colon or control character, one that begins with a
    dot or ends in a blank, and a longer one.
    """
    check_seen(name, what)
    if not name or len(name) > LONGEST or set(name) & set('/\\:*?"<>|') or name[0] in ".~- " or name[-1] in ". ":
        raise ValueError(
            f"{what} is one component of a path, no longer than {LONGEST} characters and without a dot in front; "
            f"got {name[: LONGEST + 1]!r}"
        )
    return name
