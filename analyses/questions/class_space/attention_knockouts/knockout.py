"""Attention between groups of tokens cut, and what the class is worth to the tokens afterwards (methods §12)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from operator import add
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.pages.album import Album
from analyses.processes.walking import numbered
from analyses.questions.class_space.measures.image_means import ImageMeans, interval_rows
from analyses.questions.class_space.measures.last_block import Ending, read_ending
from analyses.questions.class_space.measures.projection import AS_TRAINED, Rules, check_rules, image_tokens
from analyses.statistics.intervals import CHANGE, rate_row
from analyses.statistics.significance import holm, mcnemar, sign_flip_test
from hooked_vit import HookedViT
from hooked_vit.errors import nearest
from hooked_vit.tokens import ROLES
from interventions import Intervention, apply, get
from interventions.catalogue.attention import edges


@dataclass(frozen=True)
class Variant:
    """Which tokens stop attending to which, and what becomes of the weight.

    >>> VARIANTS["no_cls"].knockout()
    zero_attention(queries='patches', keys='cls')

    `keep_self` spares a token's attention to itself, `renormalise` shares the weight among the keys that are left, and
    `onto_self` gives all of it to the token itself.
    """

    pairs: tuple[tuple[str, str], ...]
    keep_self: bool = False
    renormalise: bool = False
    onto_self: bool = False

    def knockout(self, layers: tuple[int, ...] | None = None, heads: int | None = None) -> Intervention:
        """The intervention, in all layers and heads or in these."""
        place = {"layers": layers, "heads": heads}
        if self.onto_self:
            return get("self_only", queries=self.pairs[0][0], **place)
        how = {"keep_self": self.keep_self, "renormalise": self.renormalise}
        return reduce(add, [get("zero_attention", queries=q, keys=k, **place, **how) for q, k in self.pairs])

    def control(self, seed: int, layers: tuple[int, ...] | None = None, heads: int | None = None) -> Intervention:
        """As much attention taken from the same queries, but at random keys."""
        how = {"keep_self": self.keep_self, "renormalise": self.renormalise or self.onto_self}
        place = {"layers": layers, "heads": heads, "seed": seed}
        return reduce(add, [get("zero_random_attention", queries=q, keys=k, **place, **how) for q, k in self.pairs])

    @property
    def roles(self) -> set[str]:
        """Roles of tokens without which there is no such variant."""
        return {role for pair in self.pairs for role in pair} - {"all"}


IMG = ("patches", "patches")
VARIANTS: dict[str, Variant] = {
    "self_only": Variant((("patches", "all"),), keep_self=True, onto_self=True),
    "img2img_zero": Variant((IMG,), keep_self=True),
    "img2img_renorm": Variant((IMG,), keep_self=True, renormalise=True),
    "no_cls": Variant((("patches", "cls"),)),
    "cls_no_img": Variant((("cls", "patches"),)),
    "both": Variant((("patches", "cls"), ("cls", "patches"))),
}
"""Of Vilas et al. 2023, section 4.3: `self_only` and `no_cls` as in its code, `img2img_zero` as in its text."""


def variants_of(model: HookedViT, names: Sequence[str]) -> tuple[dict[str, Variant], list[str]]:
    """The variants of these names that this model can have, and the names of those it cannot.

    A name is one of VARIANTS, or "queries>keys" with two roles of tokens, such as "dist>patches".
    Raises ValueError for another name.
    """
    found = {}
    roles = ("all", *ROLES)
    for name in names:
        queries, arrow, keys = name.partition(">")
        if not arrow and name not in VARIANTS:
            raise ValueError(
                f"no knockout is called {name!r}{nearest(name, VARIANTS)}; there are {', '.join(VARIANTS)}, and "
                "'queries>keys' with roles of tokens"
            )
        if arrow and (unknown := [role for role in (queries, keys) if role not in roles]):
            raise ValueError(f"tokens of a knockout {name!r} are {', '.join(roles)}; got {', '.join(unknown)}")
        found[name] = Variant(((queries, keys),)) if arrow else VARIANTS[name]
    there = {*model.tokens.roles, "all"}
    return (
        {name: variant for name, variant in found.items() if variant.roles <= there},
        [name for name, variant in found.items() if not variant.roles <= there],
    )


class Place(NamedTuple):
    """Where attention is cut: layers from first to last, and one head or all (None)."""

    first: int
    last: int
    head: int | None

    def inside(self) -> tuple[tuple[int, ...], int | None]:
        """The layers and heads as interventions take them."""
        return tuple(range(self.first, self.last + 1)), self.head


def places_of(model: HookedViT, window: int = 0, by_head: bool = False) -> list[Place]:
    """All layers at once; then every `window` of neighbouring layers; then, `by_head`, every head in all layers.

    Raises ValueError for a window of more layers than there are.
    """
    n = model.cfg.n_layers
    if not 0 <= window <= n:
        raise ValueError(f"a window is 1 to {n} neighbouring layers, or 0 for none; got {window}")
    places = [Place(0, n - 1, None)]
    places += [Place(first, first + window - 1, None) for first in range(n - window + 1) if window]
    places += [Place(0, n - 1, head) for head in range(model.cfg.n_heads) if by_head]
    return list(dict.fromkeys(places))  # a window of all layers is all layers at once


class Run(NamedTuple):
    """What was done: a variant at a place, or its control with a seed; "clean" is nothing."""

    variant: str
    control: str
    seed: int | None
    place: Place

    def said(self, n_layers: int) -> str:
        """The run in words."""
        first, last, head = self.place
        layers = "" if (first, last) == (0, n_layers - 1) else f" in layers {first} to {last}"
        return f"attention cut, {self.variant.replace('_', ' ')}{layers}{'' if head is None else f', head {head}'}"


Key = tuple[Run, int | None, str | None]
"""A run, the layer behind which tokens are read, and their kind; of the model's answer the last two are None."""


def measure_knockouts(
    model: HookedViT,
    batches: Iterable[tuple[Any, ...]],
    variants: Mapping[str, Variant],
    *,
    places: Sequence[Place] | None = None,
    layers: Sequence[int] | None = None,
    rules: Rules = AS_TRAINED,
    draws: int = 1,
    published: bool = False,
    seed: int = 0,
    album: Album | None = None,
) -> list[dict[str, Any]]:
    """Rate, identifiability and accuracy under every variant and its random control, beside the untouched run.

    >>> rows = measure_knockouts(model, [(pixels, labels)], VARIANTS)  # doctest: +SKIP

    `batches` are (pixels, classes of the head). Rows hold measure, variant, control (clean, knockout, random), seed,
    first and last layer that are cut, head, layer behind which tokens are read (of `ending_layers`), tokens, value,
    low, high, n. `rate_change` is the paired difference to the clean run, with p of a sign-flip test over images,
    `accuracy_change` has McNemar's; both are adjusted over variants by Holm, layer by layer.
    `attention_mass` is the share of the queries' attention, in the clean run, that a variant cuts. `published` counts
    CLS among the tokens of a knockout but not of the clean run, as the code of Vilas et al. 2023 does. With an `album`,
    which is shown every knockout and no control, batches are (pixels, classes, the `Batch` they were made of).
    """
    n_classes = check_rules(model, rules)
    places = places_of(model) if places is None else places
    everywhere = places_of(model)[0]
    rates, values, mass = ImageMeans(), ImageMeans(), ImageMeans()
    right: dict[Run, list[Tensor]] = {}

    def note(run: Run, ending: Ending) -> None:
        right.setdefault(run, []).append(ending.right)
        kinds = {kind: ending.layout.mask(kind, missing_ok=True) for kind in ("cls", "patches")}
        if published:
            kinds = {"patches": image_tokens(ending.layout, published=True)}
            if run.control != "clean":
                kinds = {"patches": ending.layout.mask("all")}
        for layer, (kind, here) in product(ending.pos, kinds.items()):
            if here.any():
                rates.add((run, layer, kind), ending.rate(layer, here[None]))
                values.add((run, layer, kind), ending.identifiability(layer, here[None], n_classes))

    albums = [] if album is None else [album]
    for i, _, (pixels, labels, *of) in numbered(batches, rates, values, mass, right, *albums):
        with torch.no_grad(), model.hooks(_mass_hooks(model, variants, places, mass)):
            ending = read_ending(model, pixels, labels, rules, layers)
        note(Run("none", "clean", None, everywhere), ending)
        for one in albums:
            one.open(of[0].images, of[0].index, labels, ending.scores)
        for run, intervention in _runs(variants, places, draws, seed, i):
            with apply(model, intervention):
                ending = read_ending(model, pixels, labels, rules, layers)
            note(run, ending)
            for one in albums if run.control == "knockout" else []:
                one.compare(ending.scores, run.said(model.cfg.n_layers))
    return list(_rows(rates, values, mass, right, seed))


def _runs(
    variants: Mapping[str, Variant], places: Sequence[Place], draws: int, seed: int, batch: int
) -> Iterator[tuple[Run, Intervention]]:
    for name, variant in variants.items():
        for place in places:
            yield Run(name, "knockout", None, place), variant.knockout(*place.inside())
            for drawn in range(seed, seed + draws):
                # another draw for every batch
                yield Run(name, "random", drawn, place), variant.control(drawn * 1_000_003 + batch, *place.inside())


def _mass_hooks(
    model: HookedViT, variants: Mapping[str, Variant], places: Sequence[Place], mass: ImageMeans
) -> list[tuple[str, Any]]:
    """Hooks that note, per image, how much of the queries' attention each variant would cut at each place."""
    cut: dict[tuple[str, Place], list[Tensor]] = {(name, place): [] for name in variants for place in places}

    def see(layer: int) -> Any:
        def hook(pattern: Float[Tensor, "b h t t"], hook: object) -> None:
            for name, variant in variants.items():
                parts = []
                for queries, keys in variant.pairs:
                    here = edges(model.tokens, queries, keys, keep_self=variant.keep_self).to(pattern.device)[:, None]
                    lost = torch.where(here, pattern, 0.0).sum(-1)
                    parts.append(lost[..., model.tokens.mask(queries)].mean(-1))
                share = torch.stack(parts).mean(0).cpu()  # [b, h]
                for place in places:
                    if place.first <= layer <= place.last:
                        cut[name, place].append(share.mean(1) if place.head is None else share[:, place.head])
            if layer == model.cfg.n_layers - 1:
                for (name, place), found in cut.items():
                    mass.add((name, place), torch.stack(found).mean(0))

        return hook

    return [(f"blocks.{layer}.attn.hook_pattern", see(layer)) for layer in range(model.cfg.n_layers)]


def _rows(
    rates: ImageMeans, values: ImageMeans, mass: ImageMeans, right: dict[Run, list[Tensor]], seed: int
) -> Iterator[dict[str, Any]]:
    def named(measure: str, key: Key, row: dict[str, Any]) -> dict[str, Any]:
        run, layer, kind = key
        cut = {"layer_first": run.place.first, "layer_last": run.place.last, "head": run.place.head}
        done = {"variant": run.variant, "control": run.control, "seed": run.seed, **cut}
        return {"measure": measure, **done, "layer": layer, "tokens": kind, **row}

    for measure, means in (("rate", rates), ("identifiability", values)):
        for key, row in means.rows():
            yield named(measure, key, row)
    answers = {run: torch.cat(parts).numpy() for run, parts in right.items()}
    for run, hits in answers.items():
        yield named("accuracy", (run, None, None), rate_row(int(hits.sum()), len(hits)))
    for (name, place), row in mass.rows():
        yield named("attention_mass", (Run(name, "clean", None, place), None, None), row)

    columns = rates.columns()
    clean = next(run for run in right if run.control == "clean")
    changed = {key: values - columns[clean, *key[1:]] for key, values in columns.items() if key[0] != clean}
    lost = {(run, None, None): hits.astype(float) - answers[clean] for run, hits in answers.items() if run != clean}
    for measure, differences in (("rate_change", changed), ("accuracy_change", lost)):
        tests: dict[Key, tuple[float, float]] = {}
        for of in dict.fromkeys((run.control, *where) for run, *where in differences):
            family = [key for key in differences if (key[0].control, *key[1:]) == of]
            p = [
                sign_flip_test(differences[key], seed=seed, alternative="two-sided", bounds=CHANGE)
                if measure == "rate_change"
                else mcnemar(answers[key[0]], answers[clean])
                for key in family
            ]
            tests |= {key: (raw, held) for key, raw, held in zip(family, p, holm(p), strict=True)}
        for key, row in interval_rows(differences, bounds=CHANGE):
            raw, held = tests[key]
            yield named(measure, key, row) | {"p": raw, "p_adjusted": held}
