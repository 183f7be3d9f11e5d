"""What the package says of itself that depends on where the repository can be seen: URLs, and the index's README."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#|mailto:)([^)\s]+)\)")


class MetadataHook(MetadataHookInterface):
    """Reads `repository`, the public address, from pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the project's URLs and its README."""
        address = str(self.config.get("repository", "")).rstrip("/")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": readme(text, address)}
        metadata["urls"] = urls(address)


def urls(address: str) -> dict[str, str]:
    """The project's URLs; none without an address."""
    if not address:
        return {}
    return {
        "Repository": address,
        "Documentation": f"{address}/blob/main/docs/index.md",
        "Changelog": f"{address}/blob/main/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }


def readme(text: str, address: str) -> str:
    """The README as a package index shows it, which has no files beside it.

    Links and pictures are absolute. Without an address a link is its words, and a picture is left out.
    """

    def absolute(found: re.Match[str]) -> str:
        picture, words, place = found.groups()
        if not address:
            return "" if picture else words
        return f"{picture}[{words}]({address}/{'raw' if picture else 'blob'}/main/{place})"

    return LINK.sub(absolute, text)
