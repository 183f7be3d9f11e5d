"""Any vector of the residual stream in the space of the classes: which norm and which head a kind of token gets.

CLS goes through the head that reads CLS, the distillation token through its own, both behind the family's final norm.
Of a head that reads several sources side by side each kind of token gets the part it was trained with. Image tokens
that no head reads go through the head of the class token. A model that answers with an embedding needs prototypes of
the classes, such as embeddings of their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from analyses.statistics.ranks import rank
from hooked_vit import HookedViT, TokenLayout
from hooked_vit.errors import NoHeadError
from hooked_vit.loading.zero_shot import text_embeddings

KINDS = ("cls", "dist", "patches")
"""Tokens whose class content is measured: CLS, the distillation token, image tokens; registers have none to show."""


@dataclass(frozen=True, eq=False)
class Rules:
    """How a vector becomes class scores.

    >>> Rules(bias=False).norm
    True

    `norm` applies the family's final norm to every token, `bias` adds the head's. `image_head` says what image tokens
    go through where several heads read one token each: the "first", which is that of CLS, or the "mean" of all.
    `prototypes` [classes, width of the model's output] take the head's place in a model that answers with an
    embedding: scores are then cosines. Source: methods §7 (Vilas et al. 2023 write E·x, their code has norm and bias).
    """

    norm: bool = True
    bias: bool = True
    image_head: Literal["first", "mean"] = "first"
    prototypes: Float[Tensor, "c p"] | None = None


AS_TRAINED = Rules()


def check_rules(model: HookedViT, rules: Rules = AS_TRAINED) -> int:
    """The number of classes vectors are scored for, before any run.

    Raises NoHeadError for a model without a head, or that answers with an embedding where no prototypes are given;
    ValueError for prototypes of another width, for prototypes beside a classifier, and for an unknown `image_head`.
    """
    cfg = model.cfg
    if rules.image_head not in ("first", "mean"):
        raise ValueError(f'image tokens go through the "first" head or the "mean" of all; got {rules.image_head!r}')
    _ = model.b_U  # refuses a feature model
    if not (rules.norm and rules.bias):
        model.head_for("patches")  # refuses a readout without a linear part to take the norm or the bias from
    if rules.prototypes is None:
        if cfg.outputs != "classes":
            raise NoHeadError(
                f"{cfg.hf_class or 'this model'} answers with an embedding of {cfg.d_out} numbers, not with classes; "
                "give prototypes of the classes, such as text_prototypes(...), or fit a head"
            )
        return cfg.d_out
    if cfg.outputs == "classes":
        raise ValueError("prototypes are for models that answer with an embedding; this one has a classifier")
    if rules.prototypes.shape[1] != cfg.d_out or not len(rules.prototypes):
        raise ValueError(
            f"prototypes are [classes, {cfg.d_out}], the width of the model's embedding; "
            f"got {tuple(rules.prototypes.shape)}"
        )
    return len(rules.prototypes)


def project_role(
    model: HookedViT, x: Float[Tensor, "*b d"], role: str, rules: Rules = AS_TRAINED
) -> Float[Tensor, "*b c"]:
    """Class scores of vectors that all belong to tokens of one role.

    >>> project_role(model, cache["resid_post", 11][:, 0], "cls")  # doctest: +SKIP

    Of the last block's CLS these are the model's logits, where CLS is all its readout reads. methods §7.
    """
    alone = [model.cfg.sources[read[0]] for _, read in model.cfg.heads if len(read) == 1]
    if role == "patches" and rules.image_head == "mean" and len(alone) > 1:
        return torch.stack([_through(model, x, source, rules) for source in alone]).mean(0)
    return _through(model, x, role, rules)


def _through(model: HookedViT, x: Tensor, role: str, rules: Rules) -> Tensor:
    if rules.norm and rules.bias:
        scores = model.project(x, role)
    else:
        weight, bias = model.head_for(role)
        scores = model.project(x, role) if rules.norm else F.linear(x, weight, bias if rules.bias else None)
        if rules.norm and bias is not None:
            scores = scores - bias
    if rules.prototypes is None:
        return scores
    return _cosines(scores, rules.prototypes)


def _cosines(x: Tensor, prototypes: Tensor) -> Tensor:
    return F.normalize(x, dim=-1) @ F.normalize(prototypes.to(x), dim=-1).T


def project_tokens(
    model: HookedViT, x: Float[Tensor, "b t d"], layout: TokenLayout | None = None, rules: Rules = AS_TRAINED
) -> Float[Tensor, "b t c"]:
    """Class scores of every token of a stream, or of what a branch adds to it, each by its own role.

    >>> scores = project_tokens(model, cache["resid_post", 3])  # doctest: +SKIP
    >>> scores[:, model.tokens.patches]  # doctest: +SKIP

    `layout` says which token is which where that is not `model.tokens`, as for pixels of another size. Scores of
    padding are 0. Raises ValueError for a stream of another number of tokens.
    """
    layout = model.tokens if layout is None else layout
    if layout.n_tokens != x.shape[1]:
        raise ValueError(f"the stream has {x.shape[1]} tokens and the layout {layout.n_tokens}; give the run's layout")
    if not layout.ragged and len(layout.roles) == 1:
        return project_role(model, x, layout.roles[0], rules)
    scores: Tensor | None = None
    for role in layout.roles:
        if layout.ragged:
            here = layout.mask(role).to(x.device)
            part = project_role(model, x[here], role, rules)
            scores = part.new_zeros(*x.shape[:2], part.shape[-1]) if scores is None else scores
            scores[here] = part
        else:
            place = layout.where(role)
            part = project_role(model, x[:, place], role, rules)
            scores = part.new_zeros(*x.shape[:2], part.shape[-1]) if scores is None else scores
            scores[:, place] = part
    if scores is None:
        raise ValueError("there is no token to project")
    return scores


def token_ranks(scores: Float[Tensor, "b t c"], labels: Int[Tensor, "b"]) -> Float64[Tensor, "b t"]:
    """0-based position of each image's class at each of its tokens, ties in the middle, on the CPU.

    >>> token_ranks(torch.tensor([[[3.0, 1.0], [1.0, 1.0]]]), torch.tensor([0])).tolist()
    [[0.0, 0.5]]

    Raises ValueError for a label that is no class. Source: methods §0.2.
    """
    return rank(scores, labels.to(scores.device)[:, None].expand(scores.shape[:2])).cpu()


def true_scores(scores: Float[Tensor, "b t c"], labels: Int[Tensor, "b"]) -> Float[Tensor, "b t"]:
    """Score of each image's own class at each of its tokens, on the CPU.

    >>> true_scores(torch.tensor([[[3.0, 1.0], [1.0, 2.0]]]), torch.tensor([1])).tolist()
    [[1.0, 2.0]]
    """
    index = labels.to(scores.device)[:, None, None].expand(*scores.shape[:2], 1)
    return scores.gather(-1, index).squeeze(-1).cpu()


def image_tokens(layout: TokenLayout, *, published: bool = False) -> Bool[Tensor, "*b t"]:
    """True at image tokens: never a prefix token, and every image token of a model without CLS.

    >>> from hooked_vit import TokenLayout
    >>> image_tokens(TokenLayout.native(("cls", "registers"), (1, 2))).tolist()
    [False, False, True, True]

    `published` leaves out whatever stands first and takes all else, as the code of Vilas et al. 2023 does: right with a
    single CLS in front, one image token short without. methods §8.
    """
    if published:
        return layout.mask("all") & (torch.arange(layout.n_tokens) > 0)
    return layout.mask("patches")


def class_answers(model: HookedViT, output: Float[Tensor, "b n"], rules: Rules = AS_TRAINED) -> Float[Tensor, "b c"]:
    """The class scores of a model's output: itself, or its cosines with the prototypes where it is an embedding."""
    check_rules(model, rules)
    return output if rules.prototypes is None else _cosines(output, rules.prototypes)


def text_prototypes(
    tower: Any, processor: Any, names: Sequence[str], templates: Sequence[str] = ("a photo of a {}.",)
) -> Float[Tensor, "c p"]:
    """Class prototypes from the names of the classes, by the text tower that belongs to an image tower.

    >>> text_prototypes(transformers.CLIPModel.from_pretrained(name), processor, data.class_names)  # doctest: +SKIP

    `tower` is a whole model of images and texts, `processor` its processor or its tokenizer. A prototype is the mean,
    over the templates, of unit-length embeddings, each prompt padded as in training. Source: Radford et al. 2021,
    section 3.1.4. Raises what `text_embeddings` raises.
    """
    return text_embeddings(tower, getattr(processor, "tokenizer", processor), names, templates)


EMBEDDING = -1
"""The layer of the stream that enters block 0."""
