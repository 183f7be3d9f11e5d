"""Circuits as values: the edges of a model between its parts, and a set of them that can be stored and run alone.

A part writes to the residual stream (the embedding, every head, every MLP) or reads from it (queries, keys and values
of every head, every MLP, the readout). There is an edge from each writer to each reader behind it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.config.showing import Displayed, counted, one_line
from hooked_vit.errors import nearest

Edge = tuple[str, str]
INPUTS = ("q", "k", "v")


@dataclass(frozen=True)
class Graph:
    """Every edge of a model with so many layers and heads: senders are rows, receivers columns.

    >>> graph = Graph(n_layers=1, n_heads=2)
    >>> graph.senders
    ['embed', 'L0H0', 'L0H1', 'L0.mlp']
    >>> graph.receivers
    ['L0H0.q', 'L0H1.q', 'L0H0.k', 'L0H1.k', 'L0H0.v', 'L0H1.v', 'L0.mlp', 'logits']
    """

    n_layers: int
    n_heads: int

    @classmethod
    def of(cls, model: HookedViT) -> Graph:
        """The graph of a model.

        Raises ValueError where norms stand behind the branches: heads then do not add up.
        """
        model.require_branches_are_sums("a circuit")
        return cls(model.cfg.n_layers, model.cfg.n_heads)

    @cached_property
    def senders(self) -> list[str]:
        """What writes to the stream, in the order in which it is written."""
        blocks = [[*(f"L{l}H{h}" for h in range(self.n_heads)), f"L{l}.mlp"] for l in range(self.n_layers)]
        return ["embed", *(name for block in blocks for name in block)]

    @cached_property
    def receivers(self) -> list[str]:
        """What reads from the stream, in the order in which it is read."""
        names: list[str] = []
        for l in range(self.n_layers):
            names += [f"L{l}H{h}.{kind}" for kind in INPUTS for h in range(self.n_heads)]
            names.append(f"L{l}.mlp")
        return [*names, "logits"]

    def attention(self, layer: int) -> tuple[int, slice]:
        """How many senders the heads of a layer can hear, and their columns: queries, keys, values, by head."""
        first = layer * (3 * self.n_heads + 1)
        return 1 + layer * (self.n_heads + 1), slice(first, first + 3 * self.n_heads)

    def mlp(self, layer: int) -> tuple[int, slice]:
        """How many senders the MLP of a layer can hear, and its column."""
        heard, heads = self.attention(layer)
        return heard + self.n_heads, slice(heads.stop, heads.stop + 1)

    @cached_property
    def exists(self) -> Bool[Tensor, "s r"]:
        """True where a receiver lies behind a sender."""
        there = torch.zeros(len(self.senders), len(self.receivers), dtype=torch.bool, device="cpu")
        for layer in range(self.n_layers):
            for heard, columns in (self.attention(layer), self.mlp(layer)):
                there[:heard, columns] = True
        there[:, -1] = True
        return there

    @cached_property
    def edges(self) -> list[Edge]:
        """All edges, sender by sender."""
        return [(self.senders[s], self.receivers[r]) for s, r in self.exists.nonzero().tolist()]

    def mask(self, edges: Iterable[Edge]) -> Bool[Tensor, "s r"]:
        """True at these edges.

        Raises ValueError for an edge there is not.
        """
        rows, columns = ({name: i for i, name in enumerate(names)} for names in (self.senders, self.receivers))
        chosen = torch.zeros_like(self.exists)
        for edge in edges:
            if isinstance(edge, str) or len(edge) != 2:
                raise ValueError(f"an edge is a pair (sender, receiver); got {edge!r}")
            sender, receiver = edge
            for name, known in ((sender, rows), (receiver, columns)):
                if name not in known:
                    raise ValueError(f"no end of an edge is called {name!r}{nearest(name, known)} (of {self})")
            chosen[rows[sender], columns[receiver]] = True
        if (backwards := chosen & ~self.exists).any():
            s, r = backwards.nonzero()[0].tolist()
            raise ValueError(f"{self.receivers[r]} lies in front of {self.senders[s]}, so that it cannot hear it")
        return chosen


def identity(model: HookedViT) -> dict[str, Any]:
    """What tells a model from others: its name, its size, and a short hash of its weights.

    Of five digits of sums, which are the same on every device; each number counts by its sign and its place, so that
    a model whose heads have changed places is another.
    """
    sums = [f"{part:.5g}" for p in model.state_dict().values() for part in _sums(p)]
    return {
        "name": model.cfg.name or model.cfg.architecture,
        "n_layers": model.cfg.n_layers,
        "n_heads": model.cfg.n_heads,
        "weights": hashlib.sha256(" ".join(sums).encode()).hexdigest()[:12],
    }


def _sums(weights: Tensor) -> list[float]:
    """What is above 0 and what is below, each summed up with weights that rise from 1 to 2."""
    flat = weights.detach().double().flatten()
    by_place = torch.linspace(1, 2, len(flat), dtype=torch.float64, device=flat.device)
    return [float(flat.clamp(min=0) @ by_place), float(flat.clamp(max=0) @ by_place)]


@dataclass(frozen=True, eq=False)
class Circuit(Displayed):
    """Some edges of one model; `only(circuit)` runs that model on them alone.

    >>> circuit = Circuit.of(model, [("embed", "L0H1.v"), ("L0H1", "logits")])  # doctest: +SKIP
    >>> circuit.save("circuit.json"); Circuit.load("circuit.json") == circuit  # doctest: +SKIP
    True

    `model` is the `identity` of the model they were found in; any other is refused, and `moved_to` says that another
    one is meant.
    """

    edges: tuple[Edge, ...]
    model: Mapping[str, Any]

    @classmethod
    def of(cls, model: HookedViT, edges: Iterable[Edge]) -> Circuit:
        """These edges of this model, in the order of its graph.

        Raises ValueError for an edge there is not.
        """
        graph = Graph.of(model)
        mask = graph.mask(edges)
        return cls(
            tuple(edge for edge, kept in zip(graph.edges, mask[graph.exists], strict=True) if kept), identity(model)
        )

    def on(self, model: HookedViT) -> Bool[Tensor, "s r"]:
        """The edges as a mask over the graph of a model.

        Raises ValueError for another model than the circuit's, and for an edge there is not.
        """
        if dict(self.model) != (here := identity(model)):
            told = [
                f"{of['name']} ({counted(of['n_layers'], 'layer')}, {counted(of['n_heads'], 'head')}, "
                f"weights {of['weights']})"
                for of in (self.model, here)
            ]
            raise ValueError(
                f"this circuit was found in {told[0]}, and the model is {told[1]}; if its edges are meant to be those "
                "of this model, use circuit.moved_to(model)"
            )
        return Graph.of(model).mask(self.edges)

    def moved_to(self, model: HookedViT) -> Circuit:
        """The same edges of another model, for instance one with random weights as a control."""
        return Circuit.of(model, self.edges)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        edges = tuple(f"{sender} -> {receiver}" for sender, receiver in self.edges)
        return {"model": dict(self.model), "edges": edges}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Circuit:
        """The circuit that `to_dict` described.

        Raises ValueError for anything else.
        """
        fields = stored if isinstance(stored, Mapping) and set(stored) == {"model", "edges"} else {}
        model, listed = fields.get("model"), isinstance(fields.get("edges"), (list, tuple))
        if not listed or not isinstance(model, Mapping) or set(model) != {"name", "n_layers", "n_heads", "weights"}:
            raise ValueError("a circuit is stored as its edges and the name, layers, heads and weights of its model")
        edges = [tuple(str(edge).split(" -> ")) for edge in fields["edges"]]
        if bad := [edge for edge in edges if len(edge) != 2]:
            raise ValueError(f'an edge is stored as "sender -> receiver"; got {bad[0]}')
        return cls(tuple((sender, receiver) for sender, receiver in edges), dict(model))

    def save(self, path: str | Path) -> None:
        """Write a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Read a file that `save` wrote.

        Raises ValueError for a file of something else.
        """
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Circuit) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.edges)

    def __len__(self) -> int:
        return len(self.edges)

    def _rows(self) -> dict[str, object]:
        edges = {str(number): " -> ".join(edge) for number, edge in enumerate(self.edges, start=1)}
        return {"model": self.model["name"], "edges": len(self), **edges}

    def __repr__(self) -> str:
        return one_line(f"<circuit of {counted(len(self), 'edge')} in {self.model['name']}>")
