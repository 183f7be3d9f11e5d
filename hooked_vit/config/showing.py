"""How a value says what it is: a line in a terminal, a small table in a notebook, its public names in `dir`."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from html import escape
from operator import index
from typing import Any, SupportsIndex

LINE = 120
"""Characters of a line, and of an entry in a table."""
ROWS = 12


class Displayed:
    """A value that a notebook shows as a small table, and whose `dir` and tab completion are what there is to use."""

    def _rows(self) -> Mapping[str, object]:
        """What there is to know of it by name, most important first; what is empty is not shown."""
        raise NotImplementedError

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value}" for name, value in self._rows().items() if value != "")
        return one_line(f"{type(self).__name__}({said})")

    def _repr_html_(self) -> str:
        """Its type and its rows; names are shown as text, whatever they hold."""
        return f"<p><b>{type(self).__name__}</b></p>{table(self._rows())}"

    def __dir__(self) -> list[str]:
        return public(super().__dir__())


def public(names: Iterable[str]) -> list[str]:
    """The names without an underscore in front.

    >>> public(["_parts", "at", "__len__"])
    ['at']
    """
    return [name for name in names if not name.startswith("_")]


def one_line(text: object, longest: int = LINE) -> str:
    r"""The text as one line that fits on a screen, cut in its middle where it does not.

    >>> one_line("cat\n" + "a" * 100, longest=20)
    'cat\\x0aaa...aaaaaaaa'
    """
    line = visible(str(text)[: 20 * longest])
    if len(line) <= longest:
        return line
    head = (longest - 2) // 2
    return f"{line[:head]}...{line[head + 3 - longest :]}"


def counted(n: SupportsIndex, one: str, several: str | None = None) -> str:
    """A number of things in words, one of them or several; without a word for several, that with an s.

    >>> counted(1, "image"), counted(2, "image"), counted(1, "class was", "classes were")
    ('1 image', '2 images', '1 class was')
    """
    return f"{n} {one if index(n) == 1 else several or one + 's'}"


def bare(dtype: object) -> str:
    """The name of a dtype, without torch in front."""
    return str(dtype).removeprefix("torch.")


def some(items: Sequence[object], shown: int = 5) -> str:
    """Things in a sentence, at most five of them.

    >>> some(range(12))
    '0, 1, 2, 3, 4 and 7 more'
    """
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(map(str, items[:shown])) + more


def told(value: Any) -> dict[str, object]:
    """The fields of a dataclass that are not as they are by default."""
    rows = {field.name: (getattr(value, field.name), field.default) for field in fields(value)}
    return {name: now for name, (now, usual) in rows.items() if usual is MISSING or now != usual}


def table(named: Mapping[str, object]) -> str:
    """An HTML table of names and values, in which nothing is markup; of many rows the first."""
    rows = [(escape(one_line(name)), escape(one_line(value))) for name, value in named.items() if value != ""]
    more = [("...", f"{len(rows) - ROWS} more")] * (len(rows) > ROWS)
    cells = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows[:ROWS] + more)
    return f"<table>{cells}</table>"


def visible(text: object) -> str:
    r"""The text with every character that does something instead of being seen written out.

    >>> visible("cat\x1b[2J") == "cat\\x1b[2J", visible("crane – 鶴")
    (True, 'crane – 鶴')

    That is control characters, line breaks among them, what turns the direction of writing, and halves of characters,
    as file names hold that are no UTF-8.
    """
    text = str(text)
    if text.isprintable():  # nearly all there is, and thousands of them in a figure
        return text
    return "".join(character if is_seen(character) else written(character) for character in text)


def is_seen(character: str) -> bool:
    """Whether a character is shown and does nothing else."""
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def written(character: str) -> str:
    r"""A character by its number.

    >>> print(written("\n"))
    \x0a
    """
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
