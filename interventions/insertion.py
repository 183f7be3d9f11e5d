"""Adding tokens to a run."""

from __future__ import annotations

from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.config import Role
from hooked_vit.tokens import ROLES
from interventions.core import Hooks, intervention
from interventions.vocabulary import check_width, layer_of, vectors

BIAS = ("cls", "zero")


@intervention
def insert_token(
    model: HookedViT, layer: int, vector: Tensor, index: int = 0, role: Role = "inserted", bias: str = "cls"
) -> Hooks:
    """Add a token in front of position `index` to the stream entering block `layer`.

    >>> insert_token(layer=8, vector=torch.zeros(768))  # doctest: +SKIP

    `vector` is [d], or one per image [b, d]. Roles, readout and position lookups of the other tokens stay right. The
    readout leaves the new token out unless it is given another `role`. Where the family biases attention by relative
    position, the new token uses the entries of CLS, or none (`bias="zero"`). methods: lab note 2, "augment".
    """
    layer = layer_of(model, layer)
    check_width(model, vector)
    if role not in ROLES:
        raise ValueError(f"a token's role is one of {', '.join(ROLES)}; got {role!r}")
    if bias not in BIAS:
        raise ValueError(f"the new token's position bias is one of {', '.join(BIAS)}; got {bias!r}")
    native = model.run.native
    if not -native.n_tokens - 1 <= index <= native.n_tokens:
        raise ValueError(f"index must be 0 to {native.n_tokens}, or negative from the end; got {index}")
    donor = native.prefix.index("cls") if bias == "cls" and native.cls is not None else None

    def edit(resid: Tensor, hook: object) -> Tensor:
        new = vectors(model, vector, len(resid))[:, None]
        return model.insert_tokens(resid, index, new, role=role, donor=donor)

    return [(f"blocks.{layer}.hook_resid_pre", edit)]
