"""Docstrings as the site shows them: examples are code, and what only doctest reads is left out."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?:^[ \t]*>>> .*\n?(?:^[ \t]*\S.*\n?)*)", flags=re.MULTILINE)
FLAG = re.compile(r"[ \t]*# doctest: [^\n]*")


class Docstrings(griffe.Extension):
    """Applied to everything that is read for the site."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Leave out what a constructor keeps for itself: attributes that nothing is said of, and no field declares."""
        for name, member in list(cls.members.items()):
            if member.is_attribute and member.docstring is None and member.labels == {"instance-attribute"}:
                cls.del_member(name)

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)


def shown(text: str) -> str:
    """A docstring as Markdown.

    >>> shown("Twice.\\n\\n>>> twice(1)  # doctest: +SKIP\\n2\\n\\nRaises nothing.").splitlines()
    ['Twice.', '', '```pycon', '>>> twice(1)', '2', '```', '', 'Raises nothing.']
    """

    def fenced(found: re.Match[str]) -> str:
        return f"```pycon\n{FLAG.sub('', found[0]).rstrip()}\n```\n"

    return EXAMPLE.sub(fenced, text)
