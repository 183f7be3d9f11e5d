"""Stored activations as vectors to train a dictionary on: token by token, shuffled within a shard."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from analyses.activations.store.reading import Store
from interventions.vocabulary import generator_of


class StoredTokens(IterableDataset):
    """Batches [b, d] of the vectors of one tensor of a store, all tokens of all images, once each time.

    >>> tokens = StoredTokens(Store("activations"), "blocks.8.hook_resid_post.all", batch_size=1024)  # doctest: +SKIP
    >>> loader = DataLoader(tokens, batch_size=None)  # doctest: +SKIP

    Shards come in another order each time, their vectors shuffled, drawn from `seed`; one shard is in memory. Workers
    of a DataLoader share the shards. Raises ValueError for a tensor the store has not.
    """

    def __init__(self, store: Store, name: str, *, batch_size: int = 1024, shuffle: bool = True, seed: int = 0) -> None:
        store.read([name], [])
        self.store, self.name, self.batch_size, self.shuffle, self.seed = store, name, batch_size, shuffle, seed
        self.turn = 0

    @property
    def d(self) -> int:
        """Width of a vector."""
        return self.store.shapes[self.name][-1]

    @property
    def n(self) -> int:
        """How many vectors there are."""
        shape = self.store.shapes[self.name]
        return self.store.n * (shape[0] if len(shape) > 1 else 1)

    def __iter__(self) -> Iterator[Float[Tensor, "b d"]]:
        generator = generator_of(self.seed + self.turn)
        self.turn += 1
        shards = [images for _, images in self.store._shards]
        order = torch.randperm(len(shards), generator=generator).tolist() if self.shuffle else range(len(shards))
        worker = get_worker_info()
        for place, number in enumerate(order):
            if worker is not None and place % worker.num_workers != worker.id:
                continue
            vectors = self.store.read([self.name], shards[number])[self.name].flatten(0, -2)
            if self.shuffle:
                vectors = vectors[torch.randperm(len(vectors), generator=generator)]
            yield from vectors.split(self.batch_size)

    def moments(self) -> tuple[Float[Tensor, "d"], float]:
        """The mean of all vectors, and the root mean square of what is left without it, in one pass."""
        total, squares = torch.zeros(self.d, dtype=torch.float64), torch.zeros(self.d, dtype=torch.float64)
        for shard in self.store.shards(self.name):
            x = shard.flatten(0, -2).double()
            total, squares = total + x.sum(0), squares + x.square().sum(0)
        mean = total / self.n
        return mean.float(), float((squares / self.n - mean.square()).mean().clamp(min=0).sqrt())
