"""For every registered intervention: parameters that work, and parameters that must be refused before any run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jaxtyping
import torch
from torch import Tensor

import interventions as catalogue
from hooked_vit import ActivationCache, HookedViT
from interventions import Circuit, Intervention, Sae, Stats, collect_stats, registered
from interventions.circuits import Graph
from interventions.wiring import outputs_of
from tests.tiny import attention, make, pixels, processor_of, tiny

N = 6
# one of each readout, kind of token and kind of position is tried thoroughly, the variants of them lightly
FULL = ("vit", "deit-teacher", "beit-mean-both", "dinov2", "registers", "clip-classifier")
OURS = tuple(name for name, factory in registered().items() if factory.function.__module__.startswith("interventions."))


@dataclass
class Setting:
    """A tiny model, images, other images to take activations from, and what is known of those."""

    model: HookedViT
    x: Tensor
    donors: Tensor
    donor_logits: Tensor
    cache: ActivationCache
    stats: Stats

    @property
    def d(self) -> int:
        return self.model.cfg.d_model

    @property
    def last(self) -> int:
        return self.model.cfg.n_layers - 1

    def vector(self, *shape: int, seed: int = 0) -> Tensor:
        return torch.randn(*shape, self.d, generator=torch.Generator().manual_seed(seed))

    def head(self, classes: int) -> Tensor:
        return self.vector(classes, len(self.model.cfg.sources)).flatten(1)


STATS = ("resid_post", "resid_mid", ("z", None, "all"), ("post", None, "all"), ("mlp_out", None, "all"), "pooled")


@cache
def setting(family: str, size: tuple[int, int] | None = None) -> Setting:
    """At the native size; or, with a model whose processor makes images of another one, at that."""
    if size is None:
        _, model = tiny(family)
    else:
        model = make(family, torch.float32)
        model.processor = processor_of(size)
    x, donors = pixels(model, size, n=N), pixels(model, size, n=N, seed=1)
    with attention(model, "eager"), torch.no_grad():
        logits, kept = model.run_with_cache(donors, names_filter=lambda name: True)
        stats = collect_stats(model, donors, STATS)
    return Setting(model, x, donors, logits, kept, stats)


@contextmanager
def unchecked_types() -> Iterator[None]:
    """As users run it: the annotations refuse nothing, and cost nothing."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


Make = Callable[[Setting], Intervention]


class Cases(NamedTuple):
    """`valid` must change something, `refused` must fail before a run is made."""

    valid: list[Make]
    refused: list[Make]


def cases(name: str) -> Cases:
    make = getattr(catalogue, name)
    return CASES[name](make)


def _tokens(make: Any, **required: Callable[[Setting], Any]) -> Cases:
    """What every intervention on tokens of the stream takes; they share an engine, so one of them tries it all."""

    def made(**params: Any) -> Make:
        return lambda s: make(**{"layer": 0, "tokens": "cls"} | {k: v(s) for k, v in required.items()} | params)

    few: list[Make] = [made(), made(layer=-1, tokens=(0, -1), site="resid_mid", where=0.5)]
    many = [
        made(layer=0, tokens="patches", site="mlp_in", where=torch.tensor([True, False] * (N // 2))),
        lambda s: made(layer=0, tokens="all", where=torch.rand(1, s.model.tokens.n_tokens))(s),
        lambda s: made(layer=0, tokens="patches", where=torch.rand(N, s.model.tokens.n_native) > 0.5)(s),
    ]
    return Cases(
        few + many if make.name == "zero_tokens" else few,
        [
            made(layer=9),
            made(layer=-9),
            made(layer=True),
            made(tokens="patch"),
            made(tokens=()),
            made(tokens=[0, 1000]),
            made(tokens=[0.5]),
            made(tokens=torch.tensor([True, False])),
            made(tokens=torch.tensor([0, 1])),
            made(site="resid"),
            made(site="pattern"),
            made(where=float("nan")),
            made(where=torch.zeros(2, 2, 2)),
            lambda s: made(tokens="registers" if s.model.tokens.registers is None else "dist")(s),
        ],
    )


def _values(make: Any, cases: Cases, name: str) -> Cases:
    """Shapes of a tensor that is put in."""

    def made(value: Callable[[Setting], Any], **params: Any) -> Make:
        return lambda s: make(layer=0, **{"tokens": "cls"} | params, **{name: value(s)})

    return Cases(
        [
            *cases.valid,
            made(lambda s: s.vector(N)),
            made(lambda s: s.vector(N, 2), tokens=[0, 3]),
            made(lambda s: s.vector(1, s.model.tokens.n_tokens), tokens="patches"),
        ],
        [
            *cases.refused,
            made(lambda s: torch.zeros(s.d + 1)),
            made(lambda s: s.vector(1, 1, 1, 1)),
            made(lambda s: s.vector(N, 2)),
        ],
    )


def _stats(make: Any, name: str, *names: str) -> Cases:
    """What is made of statistics, or of the moments themselves."""
    given = {n: lambda s, n=n: getattr(s.stats, n)("resid_post", 0, "cls") for n in names}
    by_hand = _tokens(make, **given)
    return Cases(
        [
            *by_hand.valid,
            lambda s: make(layer=1, tokens="patches", stats=s.stats),
            lambda s: make(layer=-1, tokens="cls", stats=s.stats, site="resid_mid"),
        ],
        [
            *by_hand.refused,
            lambda s: make(layer=0, tokens="cls"),
            lambda s: make(layer=0, tokens=[0, 1], stats=s.stats),
            lambda s: make(layer=0, tokens="cls", stats=s.stats, site="resid_pre"),
            lambda s: make(layer=0, tokens="cls", **{n: torch.zeros(3) for n in names}),
        ],
    )


def _exchange(make: Any, *, only_others: bool) -> Cases:
    base = _tokens(make)
    labels = [0, 0, 1, 1, 2, 2]

    def made(**params: Any) -> Make:
        return lambda s: make(layer=0, tokens="all", seed=5, **params)

    extra = [] if only_others else [made(among="same_class", labels=torch.tensor([0, 0, 0, 1, 1, 1]))]
    return Cases(
        [*base.valid, made(among="others"), made(among="other_classes", labels=labels), *extra],
        [
            *base.refused,
            made(among="everyone"),
            made(among="other_classes"),
            made(labels=labels),
            lambda s: make(layer=0, tokens="all", seed=1.5),
        ],
    )


def _shuffle_cls(make: Any) -> Cases:
    return Cases(
        [
            lambda s: make(layer=0),
            lambda s: make(layer=0, seed=3, among="others"),
            lambda s: make(layer=0, among="other_classes", labels=torch.tensor([0, 0, 1, 1, 2, 2])),
            lambda s: make(layer=0, among="same_class", labels=[0, 0, 0, 1, 1, 1]),
        ],
        [lambda s: make(layer=2), lambda s: make(layer=0, among="all"), lambda s: make(layer=0, labels=[0] * N)],
    )


def _patch_cls(make: Any) -> Cases:
    return Cases(
        [
            lambda s: make(layer=0, value=s.cache),
            lambda s: make(layer=0, value=s.donors),
            lambda s: make(layer=0, value=s.vector()),
            lambda s: make(layer=0, value=s.vector(N), where=0.3),
        ],
        [
            lambda s: make(layer=7, value=s.vector()),
            lambda s: make(layer=0, value=torch.zeros(s.d - 1)),
            lambda s: make(layer=0, value=torch.zeros(2, 1, 1, 1, s.d)),
        ],
    )


def _patch_tokens(make: Any) -> Cases:
    base = _values(make, _tokens(make, value=lambda s: s.vector()), "value")
    return Cases(
        [
            *base.valid,
            lambda s: make(layer=0, tokens="patches", value=s.cache),
            lambda s: make(layer=0, tokens="patches", value=s.donors),
            lambda s: make(layer=0, tokens="all", value=s.cache, site="attn_out"),
            *(
                lambda s, site=site: make(
                    layer=0, tokens="cls" if site in "zresult" else "all", value=s.cache, site=site, heads=[0, 2]
                )
                for site in ("k", "z", "result")
            ),
            lambda s: make(layer=1, tokens="all", value=s.donors, site="v", heads=-1),
            lambda s: make(layer=1, tokens=[0], value=s.donors, site="post"),
            lambda s: make(layer=0, tokens="all", value=s.cache, where=torch.rand(N, s.model.tokens.n_tokens) > 0.5),
        ],
        [
            *base.refused,
            lambda s: make(layer=0, tokens="cls", value=s.donors, site="nowhere"),
            lambda s: make(layer=0, tokens="cls", value=s.donors, heads=0),
            lambda s: make(layer=0, tokens="cls", value=s.donors, site="z", heads=99),
            lambda s: make(layer=0, tokens="cls", value=s.donors, where=torch.zeros(1, 1, 1)),
        ],
    )


def _component(
    make: Any, part: dict[str, Any], value: str | None, wrong: dict[str, Any], means: str | None = None
) -> Cases:
    """Heads, neurons or a branch, ablated (no value, or the mean at a site) or patched."""
    given: dict[str, Callable[[Setting], Any]] = {} if value is None else {value: lambda s: s.cache}
    where = "layers" if value is None else "layer"

    def made(**params: Any) -> Make:
        return lambda s: make(**{where: 0} | part | {k: v(s) for k, v in given.items()} | params)

    valid = [made(), made(tokens="cls", where=0.5), made(tokens="patches", **{where: 1 if value else (0, 1)})]
    refused = [made(**{where: 5}), made(tokens="nobody"), made(where=torch.zeros(1, 2, 3)), made(**wrong)]
    if value is not None:
        valid.append(lambda s: make(**{where: 1} | part | {value: s.donors}))
        refused.append(lambda s: make(**{where: 0} | part | {value: torch.zeros(3, 5)}))
    if means is not None:
        valid += [made(layers=None, stats=None), lambda s: made(layers=[0, 1], stats=s.stats)(s)]
        valid.append(lambda s: made(layers=-1, stats=s.stats)(s))
        refused += [made(layers=()), made(mean=torch.zeros(3))]
    return Cases(valid, refused)


def _edges(make: Any, **required: Any) -> Cases:
    def made(queries: Any, keys: Any, **params: Any) -> Make:
        return lambda s: make(queries, keys, **required | params)

    return Cases(
        [
            made("patches", "cls"),
            made("patches", "cls", layers=[0], renormalise=True),
            made("cls", "patches", layers=-1, heads=[1, 3]),
            made("all", "all", layers=0, keep_self=True, renormalise=True),
            made([0, 2], [1, 4], layers=0, where=0.5),
            made("patches", "cls", layers=0, where=0.5, renormalise=True),
        ],
        [
            made("patches", "nothing"),
            made("inserted_", "cls"),
            made("patches", "cls", layers=[0, 4]),
            made("patches", "cls", layers=[]),
            made("patches", "cls", heads=[4]),
            made("patches", "cls", where=torch.zeros(2, 3)),
            made("patches", "cls", where=2.0 if required.get("factor", 0) < 0.5 else -9.0, renormalise=True),
        ],
    )


def _zero_attention(make: Any) -> Cases:
    base = _edges(make)
    return Cases(base.valid, [*base.refused, lambda s: make("patches", "all", renormalise=True)])


def _scale_attention(make: Any) -> Cases:
    base = _edges(make, factor=2.5)
    off = _edges(make, factor=0.0).valid[:2]
    return Cases(
        [*base.valid, *off],
        [*base.refused, lambda s: make("cls", "all", -1.0), lambda s: make("cls", "all", float("inf"))],
    )


def _zero_random_attention(make: Any) -> Cases:
    base = _edges(make)
    return Cases(base.valid, [*base.refused[:-1], lambda s: make("patches", "cls", seed=0.5)])


def _self_only(make: Any) -> Cases:
    return Cases(
        [lambda s: make(), lambda s: make("all", layers=0, heads=1), lambda s: make("cls", layers=0, where=0.5)],
        [lambda s: make("nobody"), lambda s: make(layers=2), lambda s: make(heads=4)],
    )


def _uniform_attention(make: Any) -> Cases:
    return Cases(
        [
            lambda s: make(),
            lambda s: make("cls", "patches", layers=0),
            lambda s: make([0, 1], [1, 2], heads=0, layers=0),
        ],
        [lambda s: make("nobody"), lambda s: make("cls", "nobody"), lambda s: make(layers=2), lambda s: make(heads=())],
    )


def _freeze_attention(make: Any) -> Cases:
    return Cases(
        [
            lambda s: make(s.cache),
            lambda s: make(s.donors, layers=-2),
            lambda s: make(s.cache, layers=[1, 0], heads=[0], queries="patches", keys="all"),
            lambda s: make(torch.stack([s.cache["pattern", 0][:1]]), layers=0, where=0.5),
        ],
        [
            lambda s: make(s.donors, layers=2),
            lambda s: make(s.donors, heads=4),
            lambda s: make(s.donors, queries="nobody"),
            lambda s: make(s.cache, layers=[0], keys="nobody"),
            lambda s: make(torch.zeros(1, 1, 4, 5, 5)),
            lambda s: make(torch.zeros(2, 1, 3, 5, 5)),
            lambda s: make(torch.zeros(2, 1, 4, 5, 6)),
        ],
    )


def _insert_token(make: Any) -> Cases:
    return Cases(
        [
            lambda s: make(layer=0, vector=s.vector()),
            lambda s: make(layer=1, vector=s.vector(N), index=-1, role="patches"),
            lambda s: make(layer=0, vector="random", std=2.0, seed=4, index=3, bias="zero"),
            lambda s: make(layer=-1, vector="cls", index=1),
            lambda s: make(layer=0, vector=4, role="registers"),
            lambda s: make(layer=0, vector=s.vector(), where=torch.tensor([True, False, False] * (N // 3))),
            *[lambda s: make(layer=0, vector=s.vector(), bias=_bias(s) if _has_bias(s) else "cls")],
        ],
        [
            lambda s: make(layer=2, vector=s.vector()),
            lambda s: make(layer=0, vector=torch.zeros(s.d + 1)),
            lambda s: make(layer=0, vector="patches"),
            lambda s: make(layer=0, vector="learned"),
            lambda s: make(layer=0, vector="random", std=-1.0),
            lambda s: make(layer=0, vector=s.vector(), index=1000),
            lambda s: make(layer=0, vector=s.vector(), bias="mine"),
            lambda s: make(layer=0, vector=s.vector(), where=0.5),
            lambda s: make(layer=0, vector=s.vector(), bias=torch.zeros(2, 4) if _has_bias(s) else _bias(s)),
        ],
    )


def _add_registers(make: Any) -> Cases:
    some = [(0, i) for i in range(12)]
    return Cases(
        [
            lambda s: make(some),
            lambda s: make([*some, (-1, 3), (1, 0)], n=2),
            lambda s: make([], n=3, role="patches"),
            lambda s: make(some, role="registers"),
        ],
        [
            lambda s: make([(2, 0)]),
            lambda s: make([(0, 10_000)]),
            lambda s: make([(0, 1), (-2, 1)]),
            lambda s: make([(0, 1, 2)]),
            lambda s: make(some, n=0),
            lambda s: make(some, n=True),
            lambda s: make(some, role="patch"),
        ],
    )


def _has_bias(s: Setting) -> bool:
    return "blocks.0.attn.hook_rel_pos_bias" in s.model.hook_dict


def _bias(s: Setting) -> Tensor:
    return torch.randn(3, s.model.cfg.n_heads, generator=torch.Generator().manual_seed(0))


def _remove_tokens(make: Any) -> Cases:
    return Cases(
        [
            lambda s: make([-1, -3]),
            lambda s: make(s.model.tokens.n_prefix, layer=1),
            lambda s: make("patches", where=_some(s)),
            lambda s: make("all", where=_some(s) & s.model.tokens.mask("patches")),
            lambda s: make([-2], where=torch.tensor([True, True, False] * (N // 3))),
        ],
        [
            lambda s: make("all"),
            lambda s: make("nobody"),
            lambda s: make(()),
            lambda s: make([-1], layer=2),
            lambda s: make([-1], where=0.5),
            lambda s: make([1000]),
        ],
    )


def _some(s: Setting) -> Tensor:
    return torch.rand(N, s.model.tokens.n_tokens, generator=torch.Generator().manual_seed(0)) > 0.5


def _swap(make: Any) -> Cases:
    return Cases(
        [
            lambda s: make(s.vector()),
            lambda s: make(s.vector(N), position=False),
            lambda s: make(torch.zeros(s.d), where=0.5),
            lambda s: make(s.vector(), where=torch.tensor([False, True] * (N // 2))),
        ],
        [lambda s: make(torch.zeros(s.d + 1)), lambda s: make(s.vector(), where=torch.zeros(1, 2))],
    )


def _readout(make: Any) -> Cases:
    return Cases(
        [
            lambda s: make(s.model.cfg.sources[0]),
            lambda s: make("full"),
            lambda s: make(s.model.cfg.sources[-1], where=0.5),
        ],
        [lambda s: make("registers"), lambda s: make("everything"), lambda s: make(where=torch.zeros(2, 2))],
    )


def _drop_source(make: Any) -> Cases:
    return Cases(
        [
            lambda s: make(s.model.cfg.sources[0]),
            lambda s: make(s.model.cfg.sources[-1], stats=s.stats),
            lambda s: make(s.model.cfg.sources[0], mean=s.vector(), where=0.5),
        ],
        [
            lambda s: make("registers"),
            lambda s: make("all"),
            lambda s: make(s.model.cfg.sources[0], mean=torch.zeros(s.d - 1)),
            lambda s: make(s.model.cfg.sources[0], mean=s.vector(), stats=s.stats),
        ],
    )


def _new_head(make: Any) -> Cases:
    return Cases(
        [
            lambda s: make(s.head(3), torch.arange(3.0)),
            lambda s: make(s.head(s.model.cfg.d_out), where=0.5),
            lambda s: make(s.head(s.model.cfg.d_out), where=torch.tensor([True, False] * (N // 2))),
        ],
        [
            lambda s: make(s.head(3)[:, 1:]),
            lambda s: make(s.head(3), torch.zeros(4)),
            lambda s: make(s.head(3), where=0.5),
        ],
    )


def _filter(make: Any) -> Cases:
    return Cases(
        [lambda s: make(radius=3), lambda s: make(radius=5.5, where=0.5)],
        [
            lambda s: make(radius=-1),
            lambda s: make(radius=float("nan")),
            lambda s: make(radius=1, where=torch.zeros(2, 2)),
        ],
    )


def _shuffle_patches(make: Any) -> Cases:
    return Cases(
        [
            lambda s: make(),
            lambda s: make(seed=2, patch_size=4),
            lambda s: make(where=torch.tensor([True, False] * (N // 2))),
        ],
        [lambda s: make(patch_size=5), lambda s: make(patch_size=0), lambda s: make(seed=None)],
    )


def _project_out(make: Any) -> Cases:
    base = _tokens(make, directions=lambda s: s.vector(3))
    return Cases(
        [*base.valid, lambda s: make(layer=0, tokens="cls", directions=s.vector())],
        [
            *base.refused,
            lambda s: make(layer=0, tokens="cls", directions=torch.zeros(2, s.d)),
            lambda s: make(layer=0, tokens="cls", directions=torch.eye(s.d)),
            lambda s: make(layer=0, tokens="cls", directions=torch.zeros(2, s.d + 1)),
        ],
    )


def _patch_subspace(make: Any) -> Cases:
    base = _tokens(make, basis=lambda s: s.vector(3), value=lambda s: s.vector(seed=1))

    def made(**params: Callable[[Setting], Any]) -> Make:
        return lambda s: make(
            **{"layer": 0, "tokens": "all", "basis": s.vector(3), "value": s.donors}
            | {k: v(s) for k, v in params.items()}
        )

    return Cases(
        [*base.valid, made(), made(value=lambda s: s.cache, basis=lambda s: s.vector()), made(where=lambda s: 0.5)],
        [
            *base.refused,
            made(basis=lambda s: torch.zeros(2, s.d)),
            made(basis=lambda s: s.vector(3)[:, 1:]),
            made(value=lambda s: torch.zeros(s.d + 1)),
            made(basis=lambda s: torch.ones(2, s.d).requires_grad_()),
        ],
    )


def _remove_subspace(make: Any) -> Cases:
    def oblique(s: Setting) -> Tensor:
        keep, out = s.vector(2).double(), s.vector(2, seed=1).double()
        return out.T @ torch.linalg.inv(keep @ out.T) @ keep

    base = _tokens(make, projection=oblique)

    def made(**params: Callable[[Setting], Any]) -> Make:
        return lambda s: make(
            **{"layer": 0, "tokens": "cls", "projection": oblique(s)} | {k: v(s) for k, v in params.items()}
        )

    return Cases(
        [*base.valid, made(mean=lambda s: s.vector(seed=2))],
        [
            *base.refused,
            made(projection=lambda s: 2 * oblique(s)),
            made(projection=lambda s: torch.zeros(s.d, s.d)),
            made(projection=lambda s: torch.eye(s.d)),
            made(projection=lambda s: torch.zeros(s.d + 1, s.d + 1)),
            made(mean=lambda s: torch.zeros(s.d + 1)),
            made(mean=lambda s: torch.zeros(1, s.d)),
        ],
    )


def _noise(make: Any) -> Cases:
    base = _tokens(make, std=lambda s: 0.7)
    return Cases(base.valid, [*base.refused, lambda s: make(layer=0, tokens="cls", std=-0.1)])


def sae_of(width: int, features: int = 24, seed: int = 0, **fields: Any) -> Sae:
    """A dictionary of random directions."""
    draw = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(features, width, generator=draw), dim=-1)
    made = {"W_enc": W_dec.T.clone(), "b_enc": torch.zeros(features), "W_dec": W_dec, "b_dec": torch.zeros(width)}
    return Sae(**made | fields)


def _splice(make: Any) -> Cases:
    def sae(s: Setting, **fields: Any) -> Sae:
        return sae_of(s.d, **fields)

    return Cases(
        [
            lambda s: make(sae(s), layer=0, site="resid_post", error_term=False),
            lambda s: make(sae(s, activation="topk", k=3, layer=-1, site="z", norm="layer_norm"), error_term=False),
            lambda s: make(sae(s), 0, "mlp_in", False, tokens="cls", where=torch.tensor([True, False] * (N // 2))),
            lambda s: make(sae(s, tokens="patches"), 0, "resid_pre", error_term=False, where=0.5),
        ],
        [
            lambda s: make(sae(s), layer=9, site="resid_post"),
            lambda s: make(sae(s), layer=0),
            lambda s: make(sae(s), site="resid_post"),
            lambda s: make(sae(s), layer=0, site="result"),
            lambda s: make(sae(s), layer=0, site="pattern"),
            lambda s: make(sae(s), layer=0, site="post"),
            lambda s: make(sae_of(s.d + 1), layer=0, site="resid_post"),
            lambda s: make(sae(s, layer=0), layer=1, site="resid_post"),
            lambda s: make(sae(s, site="mlp_out"), layer=0, site="resid_post"),
            lambda s: make(sae(s), layer=0, site="resid_post", tokens="nobody"),
            lambda s: make(sae(s), layer=0, site="resid_post", where=torch.ones(2, 2, 2)),
            lambda s: make(sae(s), 0, "resid_post") + make(sae(s, seed=1), 0, "resid_post"),
            lambda s: make({"W_enc": s.vector()}, layer=0, site="resid_post"),
            lambda s: make(sae(s).to_dict() | {"W_what": s.vector()}, layer=0, site="resid_post"),
            lambda s: make(s.vector(), layer=0, site="resid_post"),
        ],
    )


def _feature(make: Any, required: dict[str, Any]) -> Cases:
    def made(layer: int = 0, site: str = "resid_post", **params: Any) -> Make:
        return lambda s: (
            catalogue.splice(sae_of(s.d), layer=layer, site=site) + make(layer=layer, site=site, **required | params)
        )

    more = {"by": "more"} if "by" in required else {"value": float("nan")}
    return Cases(
        [
            made(),
            made(layer=-1, site="mlp_out", tokens="cls"),
            made(site="z", where=torch.tensor([True, False] * (N // 2))),
            made(site="resid_pre", tokens=(0, -1), where=0.5),
        ],
        [
            made(features=24),
            made(features=()),
            made(features=-25),
            made(tokens="nobody"),
            made(where=torch.ones(2, 2, 2)),
            made(**more),
            lambda s: catalogue.splice(sae_of(s.d), 0, "resid_post") + make(layer=9, **required),
            lambda s: catalogue.splice(sae_of(s.d), 0, "resid_post") + make(layer=0, site="pattern", **required),
        ],
    )


def _only(make: Any) -> Cases:
    def circuit(s: Setting, every: int = 3) -> Circuit:
        return Circuit.of(s.model, Graph.of(s.model).edges[::every])

    def values(s: Setting, **changes: Any) -> dict[str, Tensor]:
        z, mlp = (torch.stack([s.cache[site, l] for l in range(s.last + 1)]) for site in ("z", "mlp_out"))
        means = {"embed": s.cache["resid_pre", 0].mean(0, keepdim=True), "z": z.mean(1, keepdim=True)}
        return {**means, "mlp": mlp.mean(1, keepdim=True), **changes}

    return Cases(
        [
            lambda s: make(circuit(s)),
            lambda s: make(circuit(s), value=s.donors, where=0.5),
            lambda s: make(circuit(s, 2), value=outputs_of(s.model, s.donors)),
            lambda s: make(circuit(s, 10**6), value=values(s), where=torch.tensor([True, False] * (N // 2))),
        ],
        [
            lambda s: make(Circuit(circuit(s).edges, {**circuit(s).model, "weights": "other"})),
            lambda s: make(circuit(s).to_dict() | {"edges": ["L9H0 -> logits"]}),
            lambda s: make(circuit(s).to_dict() | {"edges": ["L1H0 -> L0.mlp"]}),
            lambda s: make(circuit(s).to_dict() | {"edges": ["embed to logits"]}),
            lambda s: make({"edges": ["embed -> logits"]}),
            lambda s: make(circuit(s), value=values(s, embed=torch.zeros(1, 2, s.d + 1))),
            lambda s: make(circuit(s), value={"embed": values(s)["embed"]}),
            lambda s: make(circuit(s), where=torch.zeros(2, 2)),
        ],
    )


CASES: dict[str, Callable[[Any], Cases]] = {
    "ablate_feature": lambda make: _feature(make, {"features": (0, -1, 5)}),
    "ablate_branch": lambda make: _component(make, {"branch": "mlp"}, None, {"branch": "skip"}, "mlp_out"),
    "ablate_heads": lambda make: _component(make, {"heads": [0, 2]}, None, {"heads": 4}, "z"),
    "ablate_neurons": lambda make: _component(make, {"neurons": list(range(20))}, None, {"neurons": 1000}, "post"),
    "add_registers": _add_registers,
    "drop_source": _drop_source,
    "freeze_attention": _freeze_attention,
    "gaussian_tokens": lambda make: _stats(make, "gaussian_tokens", "mean", "covariance"),
    "high_pass": _filter,
    "insert_token": _insert_token,
    "low_pass": _filter,
    "mean_tokens": lambda make: _stats(make, "mean_tokens", "mean"),
    "new_head": _new_head,
    "noise_tokens": _noise,
    "only": _only,
    "patch_branch": lambda make: _component(make, {"branch": "attn"}, "value", {"branch": "resid"}),
    "patch_cls": _patch_cls,
    "patch_heads": lambda make: _component(make, {"heads": 1}, "value", {"heads": -5}),
    "patch_neurons": lambda make: _component(make, {"neurons": None}, "value", {"neurons": [-1000]}),
    "patch_subspace": _patch_subspace,
    "patch_tokens": _patch_tokens,
    "project_out": _project_out,
    "readout": _readout,
    "remove_subspace": _remove_subspace,
    "remove_tokens": _remove_tokens,
    "resample_tokens": lambda make: _exchange(make, only_others=True),
    "scale_attention": _scale_attention,
    "scale_branch": lambda make: _component(make, {"branch": "attn", "factor": 0.5}, None, {"factor": torch.zeros(3)}),
    "self_only": _self_only,
    "set_tokens": lambda make: _values(make, _tokens(make, vector=lambda s: s.vector()), "vector"),
    "shuffle_cls": _shuffle_cls,
    "shuffle_patches": _shuffle_patches,
    "shuffle_tokens": lambda make: _exchange(make, only_others=False),
    "splice": _splice,
    "steer": lambda make: _values(make, _tokens(make, vector=lambda s: s.vector()), "vector"),
    "steer_feature": lambda make: _feature(make, {"features": 3, "by": 2.0}),
    "swap_cls_parameter": _swap,
    "uniform_attention": _uniform_attention,
    "zero_attention": _zero_attention,
    "zero_random_attention": _zero_random_attention,
    "zero_tokens": _tokens,
}
