"""What every command prints with: text as it stands, tables that do not break inside a name."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analyses.running.text import visible


def quiet() -> None:
    """Only our own progress bars and sentences: no bars for reading weights, no advice about image backends."""
    import datasets
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def console() -> Console:
    """At least 120 wide: a terminal breaks a long line better than a table squeezes it into a narrow column."""
    console = Console()
    return Console(width=max(console.width, 120) if console.is_terminal else 200)


def say(console: Console, text: object, style: str = "") -> None:
    """Text as it stands: no markup, no emoji, nothing a terminal obeys; the terminal breaks the line."""
    console.print(Text(visible(text), style=style), soft_wrap=True)


def print_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Rows below their columns and a title; numbers to the right."""
    if title:
        say(console, title, style="bold")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i, column in enumerate(columns):
        numbers = bool(rows) and all(_is_number(row[i]) for row in rows)
        # the name in the first column is what one copies
        table.add_column(Text(visible(column)), no_wrap=i == 0, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console.print(table)
    console.print()


def _is_number(cell: str) -> bool:
    return str(cell).strip("-–").replace(".", "", 1).removesuffix("%").isdigit() or cell == "–"
