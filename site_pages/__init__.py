"""The pages of the documentation site that are written by the code they are about: gallery, hooks, API, commands.

`make docs` builds the site from `docs/` and from these, by `mkdocs_hooks.py`; nothing is written into `docs/`.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
