"""Mean and covariance of activations over a data set, in one pass that never holds more than a batch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.config.showing import Displayed, one_line
from hooked_vit.loading.files import why_no_file, write_whole
from hooked_vit.loading.progress import tqdm
from hooked_vit.tokens import Tokens
from interventions.storing import decode, encode
from interventions.vocabulary import TOKEN_SITES, check_tokens, layer_of, site_hook, site_shape

# (site, layer, tokens); the layer is None for what the readout pools
Key = tuple[str, int | None, Tokens]
Asked = str | tuple[str, int | None] | Key
POOLED = "pooled"


@dataclass
class Moments:
    """Count, mean and (where asked for) covariance of n vectors, in float64."""

    n: int
    mean: Tensor
    scatter: Tensor | None

    @classmethod
    def none(cls, shape: tuple[int, ...], *, covariance: bool) -> Moments:
        """Of no vector yet."""
        mean = torch.zeros(shape, dtype=torch.float64, device="cpu")
        return cls(0, mean, mean.flatten().outer(mean.flatten()) if covariance else None)

    def add(self, vectors: Tensor) -> None:
        """Take in more vectors [n, *shape]. Chan, Golub & LeVeque 1983, which loses no digits to a large mean."""
        new = vectors.detach().cpu().double()
        if not len(new):
            return
        total = self.n + len(new)
        mean = new.mean(0)
        shift = mean - self.mean
        if self.scatter is not None:
            centred = (new - mean).flatten(1)
            between = shift.flatten()
            self.scatter += centred.T @ centred + between.outer(between) * (self.n * len(new) / total)
        self.mean = self.mean + shift * (len(new) / total)
        self.n = total


class Stats(Displayed):
    """Moments of activations by (site, layer, tokens), as `collect_stats` gathers them.

    >>> stats.mean("resid_post", 3, "cls").shape  # doctest: +SKIP
    torch.Size([768])

    `save` writes safetensors with the names as JSON in its header; `to_dict` gives JSON with everything in it.
    """

    def __init__(self, n_layers: int, moments: Mapping[Key, Moments]) -> None:
        self.n_layers = n_layers
        self.moments = dict(moments)

    @property
    def keys(self) -> list[Key]:
        """What there are moments of."""
        return list(self.moments)

    def mean(self, site: str, layer: int | None, tokens: Tokens) -> Tensor:
        """Mean vector, in float64.

        Raises ValueError for a key that was not collected, naming those that were.
        """
        return self._at(site, layer, tokens).mean

    def covariance(self, site: str, layer: int | None, tokens: Tokens) -> Tensor:
        """Covariance [d, d] with n - 1 in the denominator, in float64; d counts all numbers of a token.

        Raises ValueError where it was not collected, or from a single vector.
        """
        moments = self._at(site, layer, tokens)
        if moments.scatter is None:
            raise ValueError(f"these stats hold no covariance of {site}: collect_stats(..., covariance=True)")
        if moments.n < 2:
            raise ValueError("a covariance needs at least two vectors; collect from more images")
        return moments.scatter / (moments.n - 1)

    def count(self, site: str, layer: int | None, tokens: Tokens) -> int:
        """Number of vectors: images times tokens."""
        return self._at(site, layer, tokens).n

    def _at(self, site: str, layer: int | None, tokens: Tokens) -> Moments:
        if layer is not None and -self.n_layers <= layer < 0:
            layer += self.n_layers
        key = site, layer, tokens if isinstance(tokens, (str, int)) else tuple(tokens)
        if key not in self.moments:
            known = ", ".join(map(repr, self.moments))
            raise ValueError(f"these stats hold nothing for {key!r}; they hold {known}")
        return self.moments[key]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back exactly."""
        return {
            "n_layers": self.n_layers,
            "moments": [
                {"key": encode(key), "n": m.n, "mean": encode(m.mean), "scatter": encode(m.scatter)}
                for key, m in self.moments.items()
            ],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Stats:
        """The stats that `to_dict` described."""
        rows = [{name: decode(value, dict) for name, value in row.items()} for row in stored["moments"]]
        return cls(stored["n_layers"], {row["key"]: Moments(row["n"], row["mean"], row["scatter"]) for row in rows})

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        numbered = list(enumerate(self.moments.values()))
        parts = {f"{i}.mean": m.mean for i, m in numbered}
        parts |= {f"{i}.scatter": m.scatter for i, m in numbered if m.scatter is not None}
        index = {"n_layers": self.n_layers, "keys": [[encode(k), m.n] for k, m in self.moments.items()]}
        tensors = {name: part.contiguous() for name, part in parts.items()}
        metadata = {"hooked_vit_stats": json.dumps(index)}
        write_whole(Path(path), lambda to: save_file(tensors, to, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path) -> Stats:
        """Read a file that `save` wrote.

        Raises ValueError for a file of something else, a damaged one, and what is no file.
        """
        if (why := why_no_file(path)) is not None:
            raise ValueError(f"{path} holds no stats of collect_stats: {why}")
        try:
            return cls._load(path)
        except SafetensorError as error:
            raise ValueError(f"{path} holds no stats of collect_stats: {error}") from error

    @classmethod
    def _load(cls, path: str | Path) -> Stats:
        with safe_open(path, "pt") as file:
            index = json.loads((file.metadata() or {}).get("hooked_vit_stats", "null"))
            if index is None:
                raise ValueError(f"{path} holds no stats of collect_stats")
            names = set(file.keys())
            moments = {
                decode(key, dict): Moments(
                    n,
                    file.get_tensor(f"{i}.mean"),
                    file.get_tensor(f"{i}.scatter") if f"{i}.scatter" in names else None,
                )
                for i, (key, n) in enumerate(index["keys"])
            }
        return cls(index["n_layers"], moments)

    def __repr__(self) -> str:
        return one_line(f"Stats({', '.join(f'{key!r}: n={m.n}' for key, m in self.moments.items())})")

    def _rows(self) -> dict[str, object]:
        return {str(key): f"n={moments.n}" for key, moments in self.moments.items()}


def collect_stats(
    model: HookedViT,
    data: Any,
    sites: Iterable[Asked],
    *,
    covariance: bool = True,
    batch_size: int = 32,
    progress: bool = False,
) -> Stats:
    """Mean and covariance of activations over data, in one pass.

    >>> stats = collect_stats(model, images, [("resid_post", 8, "cls"), ("pooled", None, "cls")])  # doctest: +SKIP

    A site is (site, layer, tokens), (site, layer) for every role the model has, or a bare site for every layer too;
    layers may be negative. `data` is pixels [n, c, h, w], a list of images, an analyses' data set, or batches of
    either; labels beside them are ignored. `covariance=False` saves d × d numbers per site.
    Raises ValueError for a site, layer or token the model has not, before any run.
    """
    keys = _keys(model, sites)
    moments = {key: Moments.none(_shape(model, key[0]), covariance=covariance) for key in keys}
    reached = [layer for _, layer, _ in keys]
    last = None if None in reached else max(l for l in reached if l is not None) + 1

    def gather(key: Key) -> Any:
        site, _, tokens = key

        def keep(act: Tensor, hook: Any) -> None:
            if site == POOLED:
                moments[key].add(act.unflatten(1, (model.cfg.n_pooled, -1))[:, model.cfg.pooled_roles.index(tokens)])
            else:
                mask = model.tokens.mask(tokens).to(act.device)
                moments[key].add(act[mask.expand(act.shape[:2])])

        return keep

    hooks = [("hook_pooled" if k[1] is None else site_hook(model, k[0], k[1]), gather(k)) for k in keys]
    with torch.no_grad(), model.hooks(hooks):
        for pixels in tqdm(_batches(model, data, batch_size), disable=not progress, desc="stats", unit="batch"):
            model(pixels, stop_at_layer=last)
    if not all(m.n for m in moments.values()):
        raise ValueError("there are no images to collect stats from")
    return Stats(model.cfg.n_layers, moments)


def _keys(model: HookedViT, sites: Iterable[Asked]) -> list[Key]:
    cfg = model.cfg
    keys: list[Key] = []
    for asked in [sites] if isinstance(sites, str) else sites:
        site, layer, tokens = (*((asked,) if isinstance(asked, str) else asked), None, None)[:3]
        if site == POOLED:
            if not cfg.pooled_roles:
                raise ValueError(
                    f"one probe reads {' and '.join(cfg.sources)}: no part of what is pooled is of one role"
                )
            if layer is not None or tokens not in (None, *cfg.pooled_roles):
                sources = ", ".join(cfg.pooled_roles)
                raise ValueError(f'what is pooled is ("pooled", None, source), of the sources {sources}; got {asked!r}')
            keys += [(site, None, source) for source in (cfg.sources if tokens is None else [tokens])]
            continue
        layers = range(cfg.n_layers) if layer is None else [layer_of(model, layer)]
        named = tokens if isinstance(tokens, (str, int)) or tokens is None else tuple(tokens)
        roles = model.tokens.roles if named is None else [named]
        for role in roles:
            check_tokens(model, role)
        for l in layers:
            site_hook(model, site, l, TOKEN_SITES)
            keys += [(site, l, role) for role in roles]
    if not keys:
        raise ValueError("name at least one site to collect stats of")
    return list(dict.fromkeys(keys))


def _shape(model: HookedViT, site: str) -> tuple[int, ...]:
    return (model.cfg.d_model,) if site == POOLED else site_shape(model, site)


def _batches(model: HookedViT, data: Any, batch_size: int) -> Iterator[Tensor]:
    """Pixels, batch by batch, whatever holds them."""
    if isinstance(data, Tensor):
        yield from data.split(batch_size)
        return
    waiting = []
    for item in data.batches(batch_size) if hasattr(data, "batches") else data:
        images = _images_of(item)
        if isinstance(images, Tensor) and images.ndim == 4:
            yield images
        elif isinstance(images, (list, tuple)):
            yield model.preprocess(list(images))
        else:
            waiting.append(images)
        if len(waiting) == batch_size:
            yield model.preprocess(waiting)
            waiting = []
    if waiting:
        yield model.preprocess(waiting)


def _images_of(item: Any) -> Any:
    """The images of a batch, or the one image of a row, without the labels beside them."""
    if isinstance(item, Mapping):
        return next((item[name] for name in ("pixels", "pixel_values", "images", "image") if name in item), item)
    if isinstance(item, (list, tuple)) and item and isinstance(item[0], (Tensor, list)):
        return item[0]
    return getattr(item, "images", item)
