"""Rows on disk as they are measured, so that a long sweep goes on where it stopped; what does not fit is not believed.

A file is a line with the fingerprint of the sweep, then one JSON object a line. Every row carries a checksum of itself
and the digest of the images and labels it was measured on. It is no store of tensors: rows are few, appended as they
come and read whole, so that there are no shards and no room to settle beforehand.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analyses.data.batches import Batch
from analyses.processes import group
from analyses.running.fingerprint import LENGTH, Fingerprint, sealed, unsealed
from analyses.running.notice import notice
from hooked_vit.loading.files import remove_parts, why_no_file, write_whole

IMAGES = "images"
OURS = '{"fingerprint": '
"""How a file of ours begins."""


class Journal:
    """The rows of one sweep, by model and batch; without a path they are kept nowhere. The file must be held.

    Of several processes the first holds it, and all append to it.

    `notes` says which rows were not believed, and are measured anew. Raises ValueError for a file of another sweep,
    naming what differs, and for one no sweep has written.
    """

    def __init__(self, path: Path | None, mark: Fingerprint) -> None:
        self.path, self.mark = path, mark
        self.notes: list[str] = []
        self._batches: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        if path is None:
            return
        if group.leads():
            self._begin(path)
        group.gather(None)  # the others read what the first has left there
        if not group.leads():
            self._believed(self._lines(path))

    def _begin(self, path: Path) -> None:
        """Read a file, and leave in it what is believed."""
        if path.exists() and (why := why_no_file(path)) is not None:
            raise ValueError(f"{path} cannot keep the rows of a sweep: {why}")
        remove_parts(path)
        header = json.dumps({"fingerprint": self.mark.key, "of": dict(self.mark.parts)})
        kept: list[str] = []
        if path.exists() and (lines := self._lines(path)):
            kept = self._believed(lines)
        write_whole(path, lambda to: to.write_text("\n".join([header, *kept, ""]), encoding="utf-8"))

    def _lines(self, path: Path) -> list[str]:
        """The whole lines behind the header, once that is of this sweep; none for a file that was only begun."""
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            text = "?"
        first, newline, rest = text.partition("\n")
        if not newline and (OURS.startswith(first) or first.startswith(OURS)):
            return []
        try:
            told = json.loads(first)
            found = told["fingerprint"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} was not written by a sweep; give another file") from None
        if found != self.mark.key:
            raise ValueError(
                f"{path} belongs to another sweep: its fingerprint is {found}, this one's {self.mark.key}. They differ "
                f"in {self.mark.differences(told.get('of'))}; give another file"
            )
        *whole, torn = rest.split("\n")  # what has no line end was being written
        if torn:
            self._say(f"{path} ends in the middle of a row")
        return whole

    def _believed(self, lines: list[str]) -> list[str]:
        kept = []
        for number, line in enumerate(lines, start=2):
            try:
                row, sound = unsealed(line, self.mark.key, length=LENGTH)
                place = str(row["model"]), int(row["batch"])
            except (ValueError, KeyError, TypeError):
                sound = False
            if not sound:
                self._say(f"row {number} of {self.path} is not as it was written")
                continue
            self._batches[place].append(row)
            kept.append(line)
        return kept

    def batch(self, model: str, index: int, batch: Batch, interventions: Sequence[str]) -> list[dict[str, Any]] | None:
        """The rows of a batch: None where one is missing, or they are of other images or labels than these."""
        rows = {row.get("intervention"): row for row in self._batches.get((model, index), ())}  # the last ones count
        if not rows:
            return None
        seen = batch.digest()
        if any(row.get(IMAGES) != seen for row in rows.values()):
            self._say(f"batch {index} of {model} in {self.path} was of other images or labels")
            return None
        if not rows.keys() >= set(interventions):
            self._say(f"batch {index} of {model} in {self.path} is not whole")
            return None
        return [rows[name] for name in interventions]

    def add(self, batch: Batch, rows: Sequence[dict[str, Any]]) -> None:
        """The rows of one more batch, on disk at once."""
        if self.path is None:
            return
        seen = batch.digest()
        text = "".join(sealed({**row, IMAGES: seen}, self.mark.key, length=LENGTH) + "\n" for row in rows)
        with self.path.open("ab", buffering=0) as out:  # in one piece: several processes may append
            out.write(text.encode())
            os.fsync(out.fileno())

    def _say(self, what: str) -> None:
        sentence = f"{what}; it is measured anew"
        self.notes.append(notice(sentence))
