"""Attention and MLP as key-value memories: what each value vector promotes, and when it is active.

The output of a sub-layer is a sum of value vectors, the rows of its output matrix, each times a coefficient: for an MLP
the activation of a neuron, for attention an entry of the heads' concatenated outputs. Geva et al. 2021 for language
models; Vilas et al. 2023, section 5, for vision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.special import betainc, gammaln
from torch import Tensor

from analyses.activations.layers import stop_behind
from analyses.questions.class_space.measures.projection import AS_TRAINED, Rules
from hooked_vit import HookedViT

PARTS = ("attn", "mlp")


def value_vectors(model: HookedViT, layer: int, part: str, *, fold_gain: bool = False) -> Float[Tensor, "m d"]:
    """The value vectors of one sub-layer ("attn" or "mlp"): rows of its output matrix, as they are stored.

    >>> value_vectors(model, 11, "mlp").shape  # doctest: +SKIP
    torch.Size([3072, 768])

    They carry no LayerScale unless it was folded into the weights before; `fold_gain` multiplies by it, and by the gain
    of a norm that stands behind the branch. Memory m of attention is entry m of the concatenated heads.
    Raises ValueError for another part and a layer there is not.
    """
    if part not in PARTS:
        raise ValueError(f"memories are those of {' or '.join(PARTS)}; got {part!r}")
    if not 0 <= layer < model.cfg.n_layers:
        raise ValueError(f"layers are 0 to {model.cfg.n_layers - 1}; got {layer}")
    block = model.blocks[layer]
    branch, linear, norm = (block.attn, block.attn.o, block.ln1) if part == "attn" else (
        block.mlp, block.mlp.fc_out, block.ln2
    )  # fmt: skip
    vectors = linear.weight.T
    if fold_gain and branch.ls is not None:
        vectors = vectors * branch.ls
    if fold_gain and model.cfg.post_norm:
        vectors = vectors * norm.weight
    return vectors.detach()


def class_vectors(
    model: HookedViT, role: str, rules: Rules = AS_TRAINED, *, fold_gain: bool = False
) -> Float[Tensor, "c d"]:
    """The vector of every class: the rows of the head that tokens of this role go through.

    >>> class_vectors(model, "cls").shape  # doctest: +SKIP
    torch.Size([1000, 768])

    Without bias and final norm; `fold_gain` multiplies by that norm's gain. Where `rules` hold prototypes, theirs
    through the model's own projection. Raises NoHeadError for a model without a head, ValueError where all classes have
    the same vector, so that nothing belongs to one of them.
    """
    alone = [model.cfg.sources[read[0]] for _, read in model.cfg.heads if len(read) == 1]
    several = role == "patches" and rules.image_head == "mean" and len(alone) > 1
    weight = torch.stack([model.head_for(source)[0] for source in (alone if several else [role])]).mean(0)
    if rules.prototypes is not None:
        weight = F.normalize(rules.prototypes.to(weight), dim=-1) @ weight
    if bool((weight == weight[:1]).all()):
        raise ValueError(
            "every class has the same vector, as in a head that was never trained, so that no memory belongs to one; "
            "load a trained head, or draw one at random"
        )
    return (weight * torch.as_tensor(model.ln_final.weight) if fold_gain else weight).detach()


def roles_with(model: HookedViT, role: str, rules: Rules = AS_TRAINED) -> list[str]:
    """The roles whose tokens have the same class vectors as `role`.

    >>> roles_with(zoo.load("vit"), "cls")  # one head for everything  # doctest: +SKIP
    ['cls', 'patches']
    """
    mine = class_vectors(model, role, rules)
    return [other for other in model.tokens.roles if torch.equal(class_vectors(model, other, rules), mine)]


def promotion(
    model: HookedViT,
    layer: int,
    part: str,
    role: str,
    rules: Rules = AS_TRAINED,
    *,
    fold_gain: bool = False,
    unit: bool = False,
) -> Float[Tensor, "c m"]:
    """P = E · W_outᵀ: how much each value vector adds to each class; with `unit`, cosines.

    >>> promotion(model, 11, "mlp", "cls")[:, 4].topk(5).indices  # what memory 4 promotes  # doctest: +SKIP

    Weights only: no norm, no bias. Source: methods §17 (unit) and §18.
    """
    classes = class_vectors(model, role, rules, fold_gain=fold_gain)
    values = value_vectors(model, layer, part, fold_gain=fold_gain)
    if unit:
        classes, values = F.normalize(classes, dim=-1), F.normalize(values, dim=-1)
    return classes @ values.T


def expected_largest_cosine(n: int, d: int) -> float:
    """Mean of the largest cosine of `n` random directions in `d` dimensions with a given one.

    >>> round(expected_largest_cosine(3072, 768), 3)
    0.128

    Exact for the sphere; for large d it is the mean of the largest of n standard normals over √d (methods §17).
    Raises ValueError for fewer than one direction or two dimensions.
    """
    if n < 1 or d < 2:
        raise ValueError(f"random directions need n ≥ 1 and d ≥ 2; got n={n}, d={d}")
    # equal steps of the angle, so that the ends are as fine as the middle
    angle = np.linspace(0, np.pi, 20_001)
    cosine = -np.cos(angle)
    tail = 0.5 * betainc((d - 1) / 2, 0.5, np.clip(1 - cosine**2, 0, 1))
    below = np.where(cosine < 0, tail, 1 - tail)
    return float(1 - np.trapezoid(below**n, cosine))


class MemoryTable(NamedTuple):
    """What the memories of one sub-layer promote, for tokens of one role.

    `best_memories` the memories that promote each class most, `top_classes` the classes each memory promotes most,
    `first_class` the one it promotes most (-1 where two tie), `luck` for each class the chance that it is the first
    class of any of as many random memories.
    """

    best_memories: Int[Tensor, "c k"]
    top_classes: Int[Tensor, "m j"]
    first_class: Int[Tensor, "m"]
    luck: Float[Tensor, "c"]


def memory_table(promoted: Float[Tensor, "c m"], top: int = 5) -> MemoryTable:
    """The table of P [classes, memories].

    >>> memory_table(torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5]]), top=1).best_memories.tolist()
    [[0], [1]]
    """
    n_classes, n_memories = promoted.shape
    top_classes = promoted.T.topk(min(top, n_classes)).indices
    two = promoted.T.topk(min(2, n_classes)).values
    first = top_classes[:, 0]
    if n_classes > 1:
        first = first.where(two[:, 0] > two[:, 1], -1)
    each = torch.bincount(first[first >= 0], minlength=n_classes)
    luck = [1 - none_drawn(n_memories, int(k), min(top, n_memories)) for k in each.tolist()]
    return MemoryTable(promoted.topk(min(top, n_memories)).indices, top_classes, first, torch.tensor(luck).to(promoted))


def none_drawn(n: int, special: int, drawn: int) -> float:
    """Probability that `drawn` of `n` things, taken without putting back, are none of the `special` ones.

    >>> none_drawn(4, 1, 2)
    0.5
    """
    if drawn > n - special:
        return 0.0

    def log_choose(a: int, b: int) -> float:
        return float(gammaln(a + 1) - gammaln(b + 1) - gammaln(a - b + 1))

    return float(np.round(np.exp(log_choose(n - special, drawn) - log_choose(n, drawn)), 12))


def coefficient_site(layer: int, part: str, *, before_activation: bool = False) -> str:
    """The hook that holds the memories' coefficients.

    >>> coefficient_site(3, "mlp"), coefficient_site(3, "attn")
    ('blocks.3.mlp.hook_post', 'blocks.3.attn.hook_z')

    An MLP's are behind its nonlinearity, and gated where it is; `before_activation` takes those in front, as the code
    of Vilas et al. 2023 does.
    """
    if part == "attn":
        return f"blocks.{layer}.attn.hook_z"
    return f"blocks.{layer}.mlp.hook_{'pre' if before_activation else 'post'}"


class TopImage(NamedTuple):
    """An image in which a memory is active: its number, its class, the token, and the coefficient there."""

    image: int
    label: int
    token: int
    coefficient: float


@torch.no_grad()
def top_images(
    model: HookedViT,
    batches: Iterable[tuple[Tensor, Tensor]],
    memories: Sequence[tuple[int, str, int]],
    k: int = 8,
    *,
    roles: Sequence[str] | None = None,
) -> dict[tuple[int, str, int], list[TopImage]]:
    """The k images in which each memory (layer, part, number) is most active at any token of `roles`, in one pass.

    >>> top_images(model, [(pixels, labels)], [(6, "mlp", 40)])[6, "mlp", 40][0].image  # doctest: +SKIP

    Images are numbered as they come, tokens as in the model; `roles` None means all. No more than k images per memory
    are remembered, and no run goes on behind the last of their layers.
    Raises ValueError for no memories, or one there is not.
    """
    if not memories or k < 1:
        raise ValueError(f"name at least one memory, and at least one image each; got {list(memories)} and k={k}")
    for layer, part, number in memories:
        if not 0 <= number < (m := len(value_vectors(model, layer, part))):
            raise ValueError(f"memories of {part} in layer {layer} are 0 to {m - 1}; got {number}")
    best: dict[tuple[int, str, int], list[TopImage]] = {memory: [] for memory in memories}
    stop, seen = stop_behind(model, [layer for layer, _, _ in memories]), 0
    for pixels, labels in batches:

        def keep(x: Tensor, layer: int, part: str, first: int = seen, labels: Tensor = labels) -> None:
            for memory in (m for m in best if m[:2] == (layer, part)):
                layout, coefficient = model.tokens, x.flatten(2)[..., memory[2]]
                if roles is not None:
                    counted = torch.stack([layout.mask(role) for role in roles]).any(0).to(x.device)
                    coefficient = coefficient.masked_fill(~counted, float("-inf"))
                strongest, token = coefficient.max(1)
                value, image = strongest.topk(min(k, len(strongest)))
                at = zip(image.tolist(), value.tolist(), strict=True)
                new = [TopImage(first + i, int(labels[i]), int(token[i]), v) for i, v in at]
                best[memory] = sorted(best[memory] + new, key=lambda found: -found.coefficient)[:k]

        model.run_with_hooks(pixels, fwd_hooks=_reading(memories, keep), stop_at_layer=stop)
        seen += len(pixels)
    return best


def _reading(memories: Sequence[tuple[int, str, int]], keep: Callable[[Tensor, int, str], None]) -> list[Any]:
    def hook(layer: int, part: str) -> Callable[[Tensor, Any], None]:
        return lambda x, hook: keep(x, layer, part)

    places = dict.fromkeys((layer, part) for layer, part, _ in memories)
    return [(coefficient_site(layer, part), hook(layer, part)) for layer, part in places]
