"""Which sub-layer writes the class: the class scores of what attention and MLP add, beside those of their input.

Everything is read in one forward pass, block by block; no more than one block's scores are held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.questions.class_space.measures.image_means import ImageMeans
from analyses.questions.class_space.measures.projection import AS_TRAINED, Rules, check_rules, project_role, true_scores
from hooked_vit import HookedViT

REFERENCES = ("layer_input", "block_input")
PARTS = ("attn", "mlp")


class Scores(NamedTuple):
    """Class scores [b t c] of the tokens of one role around one block.

    `pre` of the stream entering it, `attn` of what attention adds, `mid` of the stream after that, `mlp` of what the
    MLP adds, `post` of the stream leaving it. Updates are scored alone, as they are added (LayerScale included).
    """

    pre: Float[Tensor, "b t c"]
    attn: Float[Tensor, "b t c"]
    mid: Float[Tensor, "b t c"]
    mlp: Float[Tensor, "b t c"]
    post: Float[Tensor, "b t c"]


@runtime_checkable
class UpdateTally(Protocol):
    """Something gathered from scores, block by block and role by role."""

    def add(self, layer: int, role: str, scores: Scores, labels: Int[Tensor, "b"]) -> None:
        """Take in one block's scores of one batch's tokens of one role."""


SITES = {"pre": "resid_pre", "attn": "attn_out", "mid": "resid_mid", "mlp": "mlp_out", "post": "resid_post"}


@torch.no_grad()
def read_updates(
    model: HookedViT,
    pixels: Float[Tensor, "b ch h w"],
    see: Callable[[int, str, Scores], None],
    rules: Rules = AS_TRAINED,
) -> Float[Tensor, "b c"]:
    """Run once and show `see(layer, role, scores)` every block's class scores; returns the logits.

    >>> read_updates(model, pixels, lambda layer, role, scores: print(layer, role, scores.attn.shape))  # doctest: +SKIP

    Each role's tokens are projected by its own rule, methods §7. Raises NoHeadError for a model without a head,
    ValueError for a stream that holds NaN.
    """
    check_rules(model, rules)
    scored: dict[str, dict[str, Tensor]] = {}

    def score(x: Tensor) -> dict[str, Tensor]:
        layout = model.tokens
        return {role: project_role(model, x[:, layout.where(role)], role, rules) for role in layout.roles}

    def note(x: Tensor, hook: Any) -> None:
        layer, site = int(hook.name.split(".")[1]), hook.name.rpartition("hook_")[2]
        if site == "resid_pre" and layer > 0:
            scored["resid_pre"] = scored.pop("resid_post")  # the stream leaving one block is what enters the next
            return
        scored[site] = score(x)
        if site == "resid_post":
            if torch.isnan(x).any():
                raise ValueError(f"the stream after block {layer} holds NaN; look for it in weights or pixels")
            for role in scored["resid_pre"]:
                see(layer, role, Scores(**{name: scored[of][role] for name, of in SITES.items()}))

    names = {f"blocks.{layer}.hook_{site}" for layer in range(model.cfg.n_layers) for site in SITES.values()}
    return model.run_with_hooks(pixels, fwd_hooks=[(lambda name: name in names, note)])


def showing(tallies: Sequence[UpdateTally], labels: Int[Tensor, "b"]) -> Callable[[int, str, Scores], None]:
    """What `read_updates` calls so that every tally takes in a batch with these classes.

    >>> read_updates(model, pixels, showing([ClassSimilarity()], labels))  # doctest: +SKIP
    """

    def see(layer: int, role: str, scores: Scores) -> None:
        for tally in tallies:
            tally.add(layer, role, scores, labels)

    return see


class ClassSimilarity:
    """How often an update alone points more to the true class than its reference does: methods §15.

    >>> ClassSimilarity(reference="layer_input").reference
    'layer_input'

    Per image the share of tokens of a role whose score of the true class is higher in the update than in the
    reference: what the sub-layer reads ("layer_input"), or what the whole block reads ("block_input", as in the code of
    Vilas et al. 2023, figure 3b); for attention the two are the same. A tie is not higher.
    Raises ValueError for another reference.
    """

    def __init__(self, reference: str = "layer_input") -> None:
        if reference not in REFERENCES:
            raise ValueError(f"the reference is one of {', '.join(REFERENCES)}; got {reference!r}")
        self.reference = reference
        self.shares = ImageMeans()

    def add(self, layer: int, role: str, scores: Scores, labels: Int[Tensor, "b"]) -> None:
        """Take in one block's scores."""
        true = Scores(*(true_scores(s, labels) for s in scores))
        before_mlp = true.mid if self.reference == "layer_input" else true.pre
        for part, update, before in (("attn", true.attn, true.pre), ("mlp", true.mlp, before_mlp)):
            self.shares.add((layer, part, role), (update > before).double().mean(1))

    def rows(self, seed: int = 0) -> Iterator[dict[str, Any]]:
        """One row per layer, part and role: the mean share over images, with an interval over images."""
        for (layer, part, role), row in self.shares.rows():
            yield {"measure": "class_similarity", "layer": layer, "part": part, "tokens": role, **row}


def top_class(scores: Float[Tensor, "*b c"]) -> Int[Tensor, "*b"]:
    """The class with the one highest score, -1 where several share it (methods §0.2).

    >>> top_class(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).tolist()
    [1, -1]
    """
    best, at = scores.max(-1)
    return at.where((scores == best[..., None]).sum(-1) == 1, -1)
