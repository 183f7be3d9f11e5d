"""How fast we are beside others, as ratios measured in one run: `python -m benchmarks`.

A benchmark is a module of this package whose name has no leading underscore, with a function
`measure(quick: bool) -> Iterator[Ratio]`; with `quick` it only shows that it runs. Its docstring's first line is what
`--help` says of it.
"""

from __future__ import annotations

import ast
from pathlib import Path
from pkgutil import iter_modules


def found() -> dict[str, str]:
    """Every benchmark and what it is about, without importing it."""
    here = Path(__file__).parent
    names = sorted(m.name for m in iter_modules(__path__) if not m.name.startswith("_"))
    sources = {name: (here / f"{name}.py").read_text(encoding="utf-8") for name in names}
    return {name: (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0] for name, source in sources.items()}
