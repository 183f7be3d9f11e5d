"""Reading a store: its manifest in memory, its tensors on disk, a few rows at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from safetensors import safe_open
from torch import Tensor

from analyses.activations.store.manifest import MANIFEST, read_manifest
from analyses.activations.store.plan import DTYPES, digest_of_mark
from analyses.data.digests import file_digest
from hooked_vit.config.showing import Displayed, counted, one_line
from hooked_vit.errors import nearest
from hooked_vit.loading.files import why_no_file

LONGEST_HEADER = 2**27


class Store(Displayed):
    """Activations in a folder that `store_activations` filled.

    >>> store = Store("activations")  # doctest: +SKIP
    >>> store.read(["blocks.11.hook_resid_post.cls"], range(4))  # doctest: +SKIP

    `shapes` says of each tensor what one image has of it, `n` how many images there are. Shards are mapped into memory
    as long as rows are being read, and compared with their checksum before the first.
    Raises FileNotFoundError for a folder without activations, ValueError for a damaged manifest, one of another
    version, and for a shard that is missing or of another size.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.about = read_manifest(self.folder / MANIFEST)
        self.shapes: dict[str, list[int]] = self.about["shapes"]
        self.n: int = self.about["n"]
        self.dtype = DTYPES[self.about["dtype"]]
        self._shards: list[tuple[str, range]] = []
        first = 0
        for shard in self.about["shards"]:
            self._shards.append((shard["file"], range(first, first + shard["n"])))
            first += shard["n"]
            path = self.folder / shard["file"]
            if path.parent != self.folder or (why := why_no_file(path)) is not None:
                why = why if path.parent == self.folder else "it lies elsewhere"
                raise ValueError(
                    f"{self.folder} lacks {shard['file']}: {why}; the same call of hooked-vit cache mends it"
                )
        self._sums = {shard["file"]: shard["sha256"] for shard in self.about["shards"]}

    def __len__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        return one_line(
            f"Store({self.folder}: {counted(len(self.shapes), 'tensor')} of {counted(self.n, 'image')} of "
            f"{self.about['data']})"
        )

    def _rows(self) -> dict[str, object]:
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {"folder": self.folder, "images": f"{self.n} of {self.about['data']}", **shapes}

    def check(self) -> None:
        """Read every shard and compare it with its checksum. Raises ValueError for one that is another."""
        for name, _ in self._shards:
            self._sound(name)

    def _sound(self, name: str) -> Path:
        """The path of a shard; it is read whole again only when its size or times change."""
        path = self.folder / name
        if file_digest(path) != self._sums[name]:
            raise ValueError(
                f"{path} is damaged: its checksum is not that of its content; the same call of hooked-vit cache writes "
                "it anew"
            )
        return path

    def read(
        self, names: Sequence[str], rows: Sequence[int] | Int64[Tensor, "b"]
    ) -> dict[str, Shaped[Tensor, "b ..."]]:
        """These tensors of some images [b, …], by name, as they were stored; in memory is nothing else of them.

        Raises ValueError for a tensor the store has not, and for a damaged shard.
        """
        for name in names:
            if name not in self.shapes and not name.startswith("image."):
                raise ValueError(f"{self.folder} holds no {name}{nearest(name, self.shapes)}")
        rows = torch.as_tensor(list(rows) if isinstance(rows, range) else rows, dtype=torch.int64)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.n:
            raise ValueError(f"rows are 0 to {self.n - 1}; got {int(rows.min())} to {int(rows.max())}")
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        order: list[Tensor] = []
        for shard, images in self._shards:
            mine = ((rows >= images.start) & (rows < images.stop)).nonzero().flatten()
            if not len(mine):
                continue
            order.append(mine)
            places = rows[mine] - images.start
            with safe_open(self._sound(shard), "pt") as file:
                for name in names:
                    parts[name].append(_some(file.get_slice(name), places))
        if not order:
            return {name: torch.empty(0, *self.shapes.get(name, []), dtype=self.dtype) for name in names}
        if len(order) == 1:
            return {name: part[0] for name, part in parts.items()}
        back = torch.cat(order).argsort()
        return {name: torch.cat(part)[back] for name, part in parts.items()}

    def shards(self, name: str) -> Iterator[Float[Tensor, "b ..."]]:
        """A tensor in its order, one shard after another."""
        for _, images in self._shards:
            yield self.read([name], images)[name]

    @cached_property
    def images(self) -> dict[str, Tensor]:
        """Of every image its `label`, its `index` in the data, and the digests of its file and of its `pixels`."""
        names = [f"image.{name}" for name in ("label", "index", "pixels", "digest")]
        return {name.removeprefix("image."): x for name, x in self.read(names, range(self.n)).items()}

    @cached_property
    def _places(self) -> dict[bytes, int]:
        digests = self.images["digest"].numpy()
        return {row.tobytes(): i for i, row in reversed(list(enumerate(digests)))}

    def places(self, marks: Sequence[str]) -> list[int]:
        """The row of each image by its mark (`ImageData.marks`); -1 for one that is not here."""
        return [self._places.get(digest_of_mark(mark), -1) for mark in marks]


def _some(tensor: Any, places: Int64[Tensor, "b"]) -> Tensor:
    """Some rows of a tensor on disk: what lies between them is read too where that is little."""
    low, high = int(places.min()), int(places.max()) + 1
    if high - low <= 2 * len(places):
        return tensor[low:high][places - low]
    return torch.cat([tensor[place : place + 1] for place in places.tolist()])


def header_of(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its content begins. Raises ValueError for what is none."""
    if (why := why_no_file(path)) is not None:
        raise ValueError(f"{path}: {why}")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length < LONGEST_HEADER:
            raise ValueError(f"{path} is no safetensors file")
        return json.loads(file.read(length)), 8 + length
