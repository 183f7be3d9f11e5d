"""Which head answers for a data set: the model's own where it knows the classes, a ridge head where it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from analyses.activations.sites import HEAD_INPUT, SiteReader
from analyses.data import ImageData, as_data, map_labels
from analyses.data.contents import Apart
from analyses.data.labels import UnknownLabelsError
from analyses.data.sets import count_classes
from analyses.probes.passes import read_images
from analyses.probes.ridge import GramRidge, RidgeProbe
from analyses.running.notes import about_model
from hooked_vit import HookedViT, architectures
from hooked_vit.config import ViTConfig
from hooked_vit.config.showing import counted

HEADS = ("auto", "own", "ridge")
SEEN = "_head_seen"
"""Where a model remembers which head was fitted on what: how it was made, and the marks of its images."""
AUTO, OWN = "auto", "own"
"""What a ridge head reads: what the checkpoint's classifier does, or what the model gives out; else tokens by name."""


@dataclass
class Answers:
    """A model whose logits answer for a data set: how its labels are called in the head, and why that head."""

    model: HookedViT
    ids: Int[Tensor, "c"]
    note: str
    fitted: bool

    def labels(self, labels: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
        """The head's classes of these labels."""
        return self.ids[labels]

    def about(self) -> dict[str, Any]:
        """What a result's `meta` says of the model and of its head."""
        return {**about_model(self.model), "head": self.note, "head_fitted": self.fitted}


def own_head(model: HookedViT, data: ImageData, head: str = "auto") -> Answers | None:
    """The model as it is where its head knows the data's classes, None where a ridge head must be fitted.

    With "auto", a head that knows none of the classes is not used; one that knows some of them is an error.
    Raises ValueError naming the labels a head does not know.
    """
    if head not in HEADS:
        raise ValueError(f"head is one of {', '.join(HEADS)}; got {head!r}")
    cfg = model.cfg
    if head == "ridge" or (head == "auto" and not _classifies(cfg)):
        return None
    if not _classifies(cfg) or cfg.n_classes is None:
        raise ValueError(f"{cfg.hf_class} has no classifier; use head='ridge'")
    try:
        ids = map_labels(data, cfg.class_names or cfg.n_classes).ids
    except UnknownLabelsError as error:
        if head == "auto" and not error.n_known:
            return None
        raise ValueError(f"{error}. A ridge head can be fitted instead: head='ridge' (--head ridge)") from error
    _refuse_fitted_on(model, data)
    return Answers(model, ids, cfg.head_set or "its own head", fitted=False)


def _refuse_fitted_on(model: HookedViT, data: ImageData) -> None:
    """Have the images refused that a head which was fitted here, and is still there, was fitted on."""
    made, seen = getattr(model, SEEN, ("", None))
    if seen is not None and made == model.cfg.head_set:
        data.refuse(Apart.fitted_on(seen, "an image that the head of this model was fitted on; give others"))


def _classifies(cfg: ViTConfig) -> bool:
    return not cfg.is_feature_model and cfg.outputs == "classes"


def ready_for_head(model: HookedViT, reads: str = AUTO) -> HookedViT:
    """A copy that answers with the input of a ridge head.

    >>> ready_for_head(model, "cls+patches").cfg.sources  # doctest: +SKIP
    ('cls', 'patches')

    `reads`: "auto" is what the checkpoint's own classifier reads, or what `set_readout_` chose; where it came without
    a classifier, what its family's reads. "own" is what the model gives out: features, or a projected embedding.
    Otherwise roles of tokens, such as "cls" or "cls+patches", behind the model's own norm.
    Raises ValueError for a role the model has not.
    """
    copy = model.shared_copy()
    if reads not in (AUTO, OWN):
        roles: Sequence[Any] = reads.split("+")
        if strange := [role for role in roles if role not in model.tokens.roles]:
            raise ValueError(
                f"a ridge head reads {AUTO!r}, {OWN!r}, or tokens such as 'cls+patches' of those there are "
                f"({', '.join(model.tokens.roles)}); got {strange[0]!r}"
            )
        copy.set_readout_(sources=tuple(roles))
    elif reads == AUTO and (readout := architectures.class_readout(model.cfg)):
        copy.set_readout_(**readout)
    elif model.cfg.outputs == "classes" or reads == AUTO:
        copy.drop_head_()
    return copy


def by_readout(models: Mapping[str, HookedViT], reads: Sequence[str]) -> tuple[dict[str, HookedViT], dict[str, str]]:
    """Every model once for each of `reads`, and what that is by the name it then has.

    >>> by_readout({"clip": model}, ("auto", "own"))[1]  # doctest: +SKIP
    {'clip': 'auto', 'clip (own)': 'own'}

    Raises ValueError for no readout, for one given twice, and what `ready_for_head` raises.
    """
    if not reads:
        raise ValueError("a head reads something: reads is one or more of 'auto', 'own' and roles such as 'cls'")
    named = {(name if r == AUTO else f"{name} ({r})"): (model, r) for name, model in models.items() for r in reads}
    if len(named) < len(models) * len(reads):
        raise ValueError(f"every model is read in every way once, under a name of its own; got {[*models]} and {reads}")
    for model, r in named.values():
        ready_for_head(model, r)
    return {name: model for name, (model, _) in named.items()}, {name: r for name, (_, r) in named.items()}


def head_of_probe(pooling: HookedViT, probe: RidgeProbe, data: ImageData) -> Answers:
    """The model from `ready_for_head` with a fitted head."""
    names = tuple(data.class_names) if data.class_names is not None else None
    weight, bias = probe.weight, probe.bias
    projected = bool(pooling.cfg.heads)  # what was read is an embedding: the head stands behind its projection
    if projected:
        bias = bias + weight @ pooling.b_U.to(weight)
        weight = weight @ pooling.W_U.to(weight).T
    where = ", behind the projection" * projected
    made = f"a ridge head (fitted on {counted(probe.n, 'image')}, penalty {probe.alpha:g}{where})"
    dtype = pooling.embed.patch.weight.dtype
    pooling.set_head_(weight.to(dtype), bias.to(dtype), names, made)
    setattr(pooling, SEEN, (made, data.marks_read()))
    return Answers(pooling, torch.arange(len(weight)), made, fitted=True)


def fit_head(
    name: str, model: HookedViT, data: ImageData, n_classes: int, batch_size: int, reads: str = AUTO
) -> Answers:
    """The model with a ridge head on what `reads` says (see `ready_for_head`), fitted in one pass over the data.

    Where an analysis was given stored activations, it is read there. Raises what `GramRidge`, `ready_for_head` and
    `read_images` raise.
    """
    pooling = ready_for_head(model, reads)
    ridge, reader = GramRidge(n_classes, name=name), SiteReader(pooling, (HEAD_INPUT,))
    for reading in read_images(reader, data, batch_size, f"{name}: fitting a head", answers=True, into=[ridge]):
        assert reading.answer is not None
        ridge.update({"head": reading.answer}, reading.batch.labels)
    return head_of_probe(pooling, ridge.fit()["head"], data)


def with_ridge_head(model: HookedViT, fit_data: Any, *, reads: str = AUTO, batch_size: int = 64) -> HookedViT:
    """A copy on the same weights that answers with a ridge head for the classes of `fit_data`, as analyses fit one.

    >>> model = HookedViT.from_pretrained("facebook/dinov2-base")  # doctest: +SKIP
    >>> model = with_ridge_head(model, load_data("imagefolder:photos/train"))  # doctest: +SKIP
    >>> model(model.preprocess(images)).argmax(-1)  # doctest: +SKIP

    `reads` as in `ready_for_head`. Results of the copy say whose head it is, and an analysis that asks it about an
    image it was fitted on, to the pixel, is refused. Raises ValueError for images of fewer
    than two classes, and for a role the model has not.
    """
    data = as_data(fit_data)
    name = model.cfg.name or model.cfg.architecture
    return fit_head(name, model, data, count_classes(data), batch_size, reads).model
