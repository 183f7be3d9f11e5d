"""Which sub-layer writes the class: the class scores of what attention and MLP add, beside those of their input.

Everything is read in one forward pass, block by block; no more than one block's scores are held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.activations.layers import stop_behind
from analyses.questions.class_space.measures.image_means import ImageMeans
from analyses.questions.class_space.measures.projection import AS_TRAINED, Rules, check_rules, project_role, true_scores
from hooked_vit import HookedViT, TokenLayout

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
NOT_READ = torch.empty(0, 0, 0)
"""The scores of a site that was not asked for."""


@torch.no_grad()
def read_updates(
    model: HookedViT,
    pixels: Float[Tensor, "b ch h w"],
    see: Callable[[int, str, Scores], None],
    rules: Rules = AS_TRAINED,
    *,
    layers: Sequence[int] | None = None,
    sites: Sequence[str] = tuple(SITES),
    answers: bool = True,
) -> Float[Tensor, "b ..."]:
    """Run once and show `see(layer, role, scores)` the class scores around these blocks; returns the logits.

    >>> read_updates(model, pixels, lambda layer, role, scores: print(layer, role, scores.attn.shape))  # doctest: +SKIP

    Each role's tokens are projected by its own rule, methods §7. `layers` are all where none are named, and `sites` the
    fields of `Scores` that are needed; the others are empty. Without `answers` the run ends behind the last of the
    layers, with the stream there. Raises NoHeadError for a model without a head, ValueError for a stream with NaN.
    """
    check_rules(model, rules)
    blocks = range(model.cfg.n_layers) if layers is None else layers
    block = ShownBlock(model, see, rules, sites)

    def note(x: Tensor, hook: Any) -> None:
        layer, site = int(hook.name.split(".")[1]), hook.name.rpartition("hook_")[2]
        block.note(layer, site, x, model.tokens)

    names = {f"blocks.{layer}.hook_{SITES[site]}" for layer in blocks for site in ("post", *sites)}
    stop = None if answers else stop_behind(model, blocks)
    return model.run_with_hooks(pixels, fwd_hooks=[(lambda name: name in names, note)], stop_at_layer=stop)


class ShownBlock:
    """The class scores of one block at a time, gathered from its activations in their order, the stream behind it last.

    The stream behind a block is what enters the next one, so that it is projected once.
    """

    def __init__(
        self, model: HookedViT, see: Callable[[int, str, Scores], None], rules: Rules, sites: Sequence[str]
    ) -> None:
        self._model, self._see, self._rules, self._sites = model, see, rules, sites
        self._scored: dict[str, dict[str, Tensor]] = {}
        self._behind: tuple[int, dict[str, Tensor]] | None = None

    def knows_what_enters(self, layer: int) -> bool:
        """Whether the block in front was the one shown last."""
        return self._behind is not None and self._behind[0] == layer - 1

    def note(self, layer: int, site: str, x: Float[Tensor, "b t d"], layout: TokenLayout) -> None:
        """Take in what a block holds at a site, by the name of its hook, and show the block where it is the last."""
        known = self._behind[1] if self._behind is not None and self.knows_what_enters(layer) else {}
        if known and site == SITES["pre"]:
            return
        self._scored[site] = {
            role: project_role(self._model, x[:, layout.where(role)], role, self._rules) for role in layout.roles
        }
        if site != SITES["post"]:
            return
        if torch.isnan(x).any():
            raise ValueError(f"the stream after block {layer} holds NaN; look for it in weights or pixels")
        scored = ({SITES["pre"]: known} if known else {}) | self._scored
        self._scored, self._behind = {}, (layer, self._scored[site])
        for role in layout.roles:
            asked = {name: scored[of][role] if name in self._sites else NOT_READ for name, of in SITES.items()}
            self._see(layer, role, Scores(**asked))


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
