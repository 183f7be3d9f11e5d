"""What a user should hear at once, beside what is noted in the result."""

from __future__ import annotations

import sys

from tqdm import tqdm


def notice(sentence: str) -> str:
    """Print a sentence to stderr, above any progress bar, and return it, for the notes of a result.

    >>> notice("row 3 of rows.jsonl is damaged; it is measured anew")
    'row 3 of rows.jsonl is damaged; it is measured anew'
    """
    printable = "".join(c if c.isprintable() else "�" for c in sentence)
    tqdm.write(f"note: {printable}", file=sys.stderr)
    return sentence
