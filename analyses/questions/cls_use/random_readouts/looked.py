"""What a block takes of the tokens of many images, found once and kept in a file while its readouts are measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.questions.cls_use.random_readouts.frozen import FrozenBlock, Looked
from analyses.questions.cls_use.random_readouts.streams import Stream, check_room
from analyses.running.locks import scratch_folder
from hooked_vit import HookedViT, TokenLayout
from hooked_vit.loading.progress import tqdm

AT_ONCE = 64  # images


@dataclass(frozen=True)
class LookedStream:
    """A stream of which a batch is what one block takes of it; `stream` has the tokens themselves."""

    stream: Stream
    keys: Float[Tensor, "n t h d_head"]
    values: Float[Tensor, "n t h d_head"]
    cls: Float[Tensor, "n d"]

    @property
    def labels(self) -> Int[Tensor, "n"]:
        """The class of each image."""
        return self.stream.labels

    @property
    def layout(self) -> TokenLayout:
        """Which tokens there are."""
        return self.stream.layout

    @property
    def checksum(self) -> str:
        """That of the stream it is made of."""
        return self.stream.checksum

    def batch(self, rows: Int[Tensor, "b"]) -> tuple[Looked, Int[Tensor, "b"]]:
        """These images, read from disk."""
        return Looked(self.keys[rows], self.values[rows], self.cls[rows]), self.labels[rows]


@contextmanager
def looked_at(
    model: HookedViT, layer: int, streams: Mapping[str, Stream], folder: Path, what: str
) -> Iterator[dict[str, LookedStream]]:
    """The streams as block `layer` sees them, by name, until the `with` is left.

    Raises OSError where `folder` has no room for keys and values of every token.
    """
    check_room([], folder, sum(room(model, len(each.labels), each.layout.n_tokens) for each in streams.values()))
    with scratch_folder(folder) as scratch:
        yield {name: _look(model, layer, stream, scratch / name, what) for name, stream in streams.items()}


def room(model: HookedViT, n_images: int, n_tokens: int) -> int:
    """The bytes that keys and values take on disk, of one layer at a time."""
    return 2 * n_images * n_tokens * model.cfg.d_model * model.embed.patch.weight.element_size()


def _look(model: HookedViT, layer: int, stream: Stream, path: Path, what: str) -> LookedStream:
    block = FrozenBlock(model, layer, "null", tokens=stream.layout)
    n, paths = len(stream.labels), [path.with_suffix(f".{part}") for part in ("keys", "values")]
    cls: list[Tensor] = []
    with ExitStack() as stack:
        files = [stack.enter_context(each.open("wb")) for each in paths]
        bar = stack.enter_context(tqdm(total=n, desc=what, delay=2, leave=False))
        stack.enter_context(block.ready())
        for rows in torch.arange(n).split(AT_ONCE):
            looked = block.look(stream.batch(rows)[0])
            for file, part in zip(files, (looked.keys, looked.values), strict=True):
                file.write(part.cpu().contiguous().view(torch.uint8).numpy().data)
            cls.append(looked.cls.cpu())
            bar.update(len(rows))
    shape = n, *looked.keys.shape[1:]
    keys, values = (_mapped(each, shape, looked.keys.dtype) for each in paths)
    return LookedStream(stream, keys, values, torch.cat(cls))


def _mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.from_file(str(path), size=torch.Size(shape).numel(), dtype=dtype).view(shape)
