"""Which parts of the network write a logit? Direct logit attribution, with nothing left over.

Everything that adds to the residual stream is read by the final norm and the head, and with the norm's scale held at
what it was, that reading is linear. So the logit is a sum: embedding, positions, every head, every MLP (or neuron), and
a constant. Elhage et al. 2021; the sum is exact on every family, whichever tokens its readout reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from analyses.questions.patching.figures import terms_figure
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.intervals import ends_of_sums
from hooked_vit import HookedViT
from hooked_vit.loading.progress import tqdm

Classes = Int[Tensor, "_"] | int | None


class Term(NamedTuple):
    """One term of the sum, for every image and token: `values` [b t], or [b 1] for the constant.

    Units are logits. `token` of the constant is no token.
    """

    component: str
    layer: int | None
    head: int | None
    neuron: int | None
    values: Float[Tensor, "b _"]


@analysis(figure=terms_figure)
@torch.no_grad()
def logit_attribution(
    model: HookedViT,
    images: Float[Tensor, "b c h w"] | Sequence[Any],
    *,
    classes: Classes = None,
    against: Classes = None,
    heads: bool = True,
    neurons: bool = False,
    tokens: str = "none",
    batch_size: int = 16,
) -> Result:
    """How much does every part of the network add to a logit?

    >>> result = logit_attribution(model, images, classes=labels)  # doctest: +SKIP
    >>> result.frame.value.sum() - result.meta["mean_logit"]  # nothing is left over  # doctest: +SKIP
    0.0

    `images` are pixels or images; `classes` one class per image, one for all, or None for what the model predicts;
    with `against` it is the difference of two logits. Components: embed, pos_embed, attn (one row per head, or per
    layer with `heads=False`), attn_bias, mlp (or neuron and mlp_bias with `neurons`), and the constant, which is the
    head's bias and the final norm's offset. `tokens` splits further: by "position", the token of the stream that holds
    the term (a CLS readout reads only CLS), or by "source", which for a head is the token its value comes from.

    One row per component, layer, head, neuron and token: `value` is the mean over images and `low`, `high` its 95 %
    interval (methods §28). `meta["largest_error"]` is the largest |sum − logit| of any image.
    Raises NoHeadError for a model without a classifier, ValueError for a class there is not.
    """
    if tokens not in ("none", "position", "source"):
        raise ValueError(f"tokens are split by position, by source, or not (none); got {tokens!r}")
    pixels = images if isinstance(images, Tensor) else model.preprocess(images)
    if not len(pixels):
        raise ValueError("an attribution needs at least one image; got none")
    sums: dict[tuple, Tensor] = {}
    squares: dict[tuple, Tensor] = {}
    cubes: dict[tuple, Tensor] = {}
    total, error = 0.0, 0.0
    for first in tqdm(range(0, len(pixels), batch_size), desc="logit attribution", delay=2, leave=False):
        part = slice(first, first + batch_size)
        asked = [c[part] if isinstance(c, Tensor) else c for c in (classes, against)]
        logit, terms = logit_terms(
            model,
            pixels[part],
            classes=asked[0],
            against=asked[1],
            heads=heads,
            neurons=neurons,
            by_source=tokens == "source",
        )
        explained = torch.zeros_like(logit)
        for term in terms:
            explained += term.values.sum(1)
            values = term.values if tokens != "none" else term.values.sum(1, keepdim=True)
            key = term[:4]
            sums[key] = sums.get(key, 0) + values.sum(0).cpu()
            squares[key] = squares.get(key, 0) + values.square().sum(0).cpu()
            cubes[key] = cubes.get(key, 0) + values.pow(3).sum(0).cpu()
        total += float(logit.sum())
        error = max(error, float((explained - logit).abs().max()))
    frame = _frame((sums, squares, cubes), len(pixels), split=tokens != "none")
    meta = {
        "model": model.cfg.name or model.cfg.architecture,
        "readout": list(model.cfg.sources),
        "n_images": len(pixels),
        "classes": "the model's predictions" if classes is None else "given",
        "against": None if against is None else "given",
        "tokens": tokens,
        "mean_logit": total / len(pixels),
        "largest_error": error,
    }
    return Result(frame, meta)


@torch.no_grad()
def logit_terms(
    model: HookedViT,
    pixels: Float[Tensor, "b c h w"],
    *,
    classes: Classes = None,
    against: Classes = None,
    heads: bool = True,
    neurons: bool = False,
    by_source: bool = False,
) -> tuple[Float64[Tensor, "b"], list[Term]]:
    """The logit of a class per image, and the terms whose values, summed over tokens, add up to it.

    >>> logit, terms = logit_terms(model, pixels, classes=3)  # doctest: +SKIP

    Arguments as in `logit_attribution`. Terms are computed in float64 from the run's activations.
    """
    model.b_U  # noqa: B018  # raises for a model without a classifier
    model.logit_constant  # noqa: B018  # raises where a class score is no sum over tokens
    model.require_branches_are_sums("logit attribution")
    if by_source and model.cfg.attn_inner_norm:
        raise ValueError(
            "by_source takes a head's sum over the tokens it attends to apart; in this model a norm stands between "
            "that sum and the output matrix. Without by_source heads do add up"
        )
    logits, acts = _run(model, pixels, neurons, by_source)
    wanted = logits.argmax(-1) if classes is None else classes
    sides = [(_ids(model, wanted, len(pixels)), 1.0)]
    if against is not None:
        sides.append((_ids(model, against, len(pixels)), -1.0))
    weights = torch.zeros(len(pixels), model.cfg.d_out, dtype=torch.float64, device=logits.device)
    for ids, sign in sides:
        weights.scatter_add_(1, ids.to(weights.device)[:, None], torch.full_like(weights[:, :1], sign))
    logit = (logits.double() * weights).sum(1)
    reading = _reading(model, pixels, weights, acts["ln_final.hook_scale"].double())
    constant = Term("constant", None, None, None, (weights @ model.logit_constant.double())[:, None])
    return logit, [*_terms(model, acts, reading, heads, neurons, by_source), constant]


def _terms(
    model: HookedViT, acts: dict[str, Tensor], reading: Tensor, heads: bool, neurons: bool, by_source: bool
) -> Iterator[Term]:
    def read(x: Tensor) -> Tensor:
        return (x.double() * reading).sum(-1)

    yield Term("embed", None, None, None, read(acts["hook_embed"]))
    # where a norm follows the positions they are no term of the stream
    if model.cfg.absolute_positions and not model.cfg.ln_pre:
        yield Term("pos_embed", None, None, None, read(acts["hook_pos_embed"]))
    for l, block in enumerate(model.blocks):
        name = f"blocks.{l}"
        by_head = torch.einsum("btd,hed->bthe", reading, block.attn.W_O.double())
        if by_source:
            pattern, v = acts[f"{name}.attn.hook_pattern"].double(), acts[f"{name}.attn.hook_v"].double()
            values = torch.einsum("bhqs,bqhe,bshe->bsh", pattern, by_head, v)
        else:
            values = (acts[f"{name}.attn.hook_z"].double() * by_head).sum(-1)
        if heads:
            yield from (Term("attn", l, h, None, values[..., h]) for h in range(model.cfg.n_heads))
        else:
            yield Term("attn", l, None, None, values.sum(-1))
        yield Term("attn_bias", l, None, None, reading @ block.attn.b_O.double())
        if neurons:
            post = acts[f"{name}.mlp.hook_post"].double() * (reading @ block.mlp.W_out.double().T)
            yield from (Term("neuron", l, None, i, post[..., i]) for i in range(post.shape[-1]))
            yield Term("mlp_bias", l, None, None, reading @ block.mlp.b_out.double())
        else:
            yield Term("mlp", l, None, None, read(acts[f"{name}.hook_mlp_out"]))


def _run(
    model: HookedViT, pixels: Tensor, neurons: bool, by_source: bool
) -> tuple[Float[Tensor, "b c"], dict[str, Tensor]]:
    kinds = ["attn.hook_pattern", "attn.hook_v"] if by_source else ["attn.hook_z"]
    kinds.append("mlp.hook_post" if neurons else "hook_mlp_out")
    names = [f"blocks.{l}.{kind}" for l in range(model.cfg.n_layers) for kind in kinds]
    names += ["hook_embed", "hook_pos_embed", "ln_final.hook_scale"]
    seen: dict[str, Tensor] = {}

    def keep(act: Tensor, hook: Any) -> None:
        seen[hook.name] = act

    return model.run_with_hooks(pixels, fwd_hooks=[(name, keep) for name in names]), seen


def _reading(
    model: HookedViT, pixels: Tensor, weights: Float64[Tensor, "b c"], scale: Float64[Tensor, "b _ 1"]
) -> Float64[Tensor, "b t d"]:
    """What a vector of the stream is multiplied with, at every token, to give its part of the logit.

    The norm's centring is moved to this side: (x − mean x) · r = x · (r − mean r).
    """
    layout, cfg = model.layout_for(*pixels.shape[2:]), model.cfg
    per_source = (weights @ model.W_U.double().T).unflatten(1, (len(cfg.sources), -1)) * model.ln_final.weight.double()
    if model.ln_final.centred:
        per_source = per_source - per_source.mean(-1, keepdim=True)
    reading = per_source.new_zeros(len(pixels), layout.n_tokens, cfg.d_model)
    for i, role in enumerate(cfg.sources):
        mask = layout.mask(role).to(reading)
        share = (mask / mask.sum())[None, :, None]
        reading += per_source[:, i, None] * share / (scale[:, i, None] if cfg.final_norm == "pooled" else scale)
    return reading


def _ids(model: HookedViT, classes: Tensor | int, n: int) -> Int[Tensor, "b"]:
    ids = torch.as_tensor(classes).long().reshape(-1).expand(n if isinstance(classes, int) else -1)
    if ids.shape != (n,):
        raise ValueError(f"classes are one number, or one per image: {n} images, got {tuple(ids.shape)}")
    if not ((ids >= 0) & (ids < model.cfg.d_out)).all():
        raise ValueError(f"classes are 0 to {model.cfg.d_out - 1}; got {sorted(set(ids.tolist()))[:8]}")
    return ids


def _frame(powers: tuple[dict[tuple, Tensor], ...], n: int, *, split: bool) -> pd.DataFrame:
    """One row per term, or per term and token: mean over images and the interval around it; a constant is known."""
    columns: dict[str, list[Any]] = {name: [] for name in ("component", "layer", "head", "neuron", "token")}
    for key, total in powers[0].items():
        places = range(len(total)) if split and key[0] != "constant" else [None] * len(total)
        for name, values in zip(columns, [*([part] * len(total) for part in key), places], strict=True):
            columns[name] += values
    sums, squares, cubes = (torch.cat(list(parts.values())).double().numpy() for parts in powers)
    low, high = ends_of_sums(sums, squares, cubes, n)
    known = np.array(columns["component"]) == "constant"
    low, high = (np.where(known, sums / n, end) for end in (low, high))
    frame = pd.DataFrame({**columns, "value": sums / n, "low": low, "high": high, "n": n})
    return frame.astype(dict.fromkeys(("layer", "head", "neuron", "token"), "Int64"))
