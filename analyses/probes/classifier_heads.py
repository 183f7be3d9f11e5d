"""Which head answers for a data set: the model's own where it knows the classes, a ridge head where it does not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from analyses.data import ImageData, map_labels
from analyses.data.labels import UnknownLabelsError
from analyses.probes.ridge import GramRidge, RidgeProbe
from analyses.running.notes import progress_batches
from hooked_vit import HookedViT, architectures

HEADS = ("auto", "own", "ridge")


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


def own_head(model: HookedViT, data: ImageData, head: str = "auto") -> Answers | None:
    """The model as it is where its head knows the data's classes, None where a ridge head must be fitted.

    With "auto", a head that knows none of the classes is not used; one that knows some of them is an error.
    Raises ValueError naming the labels a head does not know.
    """
    if head not in HEADS:
        raise ValueError(f"head is one of {', '.join(HEADS)}; got {head!r}")
    cfg = model.cfg
    if head == "ridge" or (head == "auto" and (cfg.is_feature_model or cfg.outputs != "classes")):
        return None
    if cfg.is_feature_model or cfg.outputs != "classes" or cfg.n_classes is None:
        raise ValueError(f"{cfg.hf_class} has no classifier; use head='ridge'")
    try:
        ids = map_labels(data, cfg.class_names or cfg.n_classes).ids
    except UnknownLabelsError as error:
        if head == "auto" and not error.n_known:
            return None
        raise ValueError(f"{error}. A ridge head can be fitted instead: head='ridge' (--head ridge)") from error
    return Answers(model, ids, "its own head", fitted=False)


def with_family_readout(model: HookedViT) -> HookedViT:
    """A copy that pools what the family's classifier reads, without a head: the input of a ridge head."""
    copy = model.shared_copy()
    readout = architectures.class_readout(model.cfg)
    copy.set_readout_(**readout)
    return copy


def with_ridge_head(model: HookedViT, probe: RidgeProbe, data: ImageData) -> Answers:
    """The model from `with_family_readout` with a fitted head."""
    names = tuple(data.class_names) if data.class_names is not None else None
    weight, bias = probe.to_linear()
    model.set_head_(weight, bias, names)
    read = " and ".join(model.cfg.sources)
    note = (
        f"a ridge head on {read} (fitted on {probe.n} images, penalty {probe.alpha:g}): it has none for these classes"
    )
    return Answers(model, torch.arange(len(weight)), note, fitted=True)


def fit_head(name: str, model: HookedViT, data: ImageData, n_classes: int, batch_size: int) -> Answers:
    """The model with a ridge head on what the family's classifier reads, fitted in one pass over the data.

    Raises what `GramRidge` raises.
    """
    pooling = with_family_readout(model)
    ridge = GramRidge(n_classes, name=name)
    for batch in progress_batches(data, batch_size, f"{name}: fitting a head"):
        with torch.no_grad():
            ridge.update({"head": pooling(pooling.preprocess(batch.images))}, batch.labels)
    return with_ridge_head(pooling, ridge.fit()["head"], data)
