"""TransformerLens' names for the weights, and the two foldings that leave the logits as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import FactoredMatrix

from hooked_vit.components.embedding import Embedding, PositionEmbedding, SinCosPositions
from hooked_vit.components.linears import plain
from hooked_vit.components.mlp import MLP
from hooked_vit.components.norms import LayerNorm, NoNorm
from hooked_vit.config import ViTConfig
from hooked_vit.config.numbers import in_full_digits


class Weights(nn.Module):
    """Stacked weights `W_Q [l h d d_head]` and the like, as a mixin of the model.

    They are computed from the layers' own on each call: gradients flow back through them, and writing into them reaches
    nothing. To change a weight write into its layer, `model.blocks[l].attn.q.weight`.
    """

    cfg: ViTConfig
    blocks: Any  # of Block: nn.ModuleList does not say of what
    embed: Embedding
    pos_embed: PositionEmbedding | SinCosPositions | None
    ln_final: LayerNorm | NoNorm
    pool_k: nn.Linear
    pool_v: nn.Linear
    pool_ln: LayerNorm
    pool_mlp: MLP

    @property
    def OV(self) -> FactoredMatrix:
        """What a head moves, W_V W_O [l h d d], factored (TransformerLens' name)."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def QK(self) -> FactoredMatrix:
        """Where a head looks, W_Q W_K^T [l h d d], factored (TransformerLens' name)."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    def tl_parameters(self) -> NoReturn:
        """Refused: TransformerLens' SVDInterpreter asks for this, and reads vectors as words of a vocabulary."""
        raise NotImplementedError(
            "SVDInterpreter reads vocabularies, and images have none; use model.OV[layer, head].svd(), or the singular "
            "vectors of model.W_in[layer], and read them as classes with model.project(vectors)"
        )

    def _stack(self, part: str, name: str) -> Tensor:
        return torch.stack([getattr(getattr(block, part), name) for block in self.blocks])

    @property
    def W_Q(self) -> Float[Tensor, "l h d d_head"]:
        """Query weights of all layers."""
        return self._stack("attn", "W_Q")

    @property
    def W_K(self) -> Float[Tensor, "l h d d_head"]:
        """Key weights of all layers."""
        return self._stack("attn", "W_K")

    @property
    def W_V(self) -> Float[Tensor, "l h d d_head"]:
        """Value weights of all layers."""
        return self._stack("attn", "W_V")

    @property
    def W_O(self) -> Float[Tensor, "l h d_head d"]:
        """Attention output weights of all layers, LayerScale included."""
        return self._stack("attn", "W_O")

    @property
    def b_Q(self) -> Float[Tensor, "l h d_head"]:
        """Query biases of all layers."""
        return self._stack("attn", "b_Q")

    @property
    def b_K(self) -> Float[Tensor, "l h d_head"]:
        """Key biases of all layers."""
        return self._stack("attn", "b_K")

    @property
    def b_V(self) -> Float[Tensor, "l h d_head"]:
        """Value biases of all layers."""
        return self._stack("attn", "b_V")

    @property
    def b_O(self) -> Float[Tensor, "l d"]:
        """Attention output biases of all layers, LayerScale included."""
        return self._stack("attn", "b_O")

    @property
    def W_in(self) -> Float[Tensor, "l d d_mlp"]:
        """MLP input weights of all layers."""
        return self._stack("mlp", "W_in")

    @property
    def b_in(self) -> Float[Tensor, "l d_mlp"]:
        """MLP input biases of all layers."""
        return self._stack("mlp", "b_in")

    @property
    def W_gate(self) -> Float[Tensor, "l d d_mlp"] | None:
        """Gate weights of all layers; None for a plain MLP."""
        return self._stack("mlp", "W_gate") if self.cfg.gated_mlp else None

    @property
    def W_out(self) -> Float[Tensor, "l d_mlp d"]:
        """MLP output weights of all layers, LayerScale included."""
        return self._stack("mlp", "W_out")

    @property
    def b_out(self) -> Float[Tensor, "l d"]:
        """MLP output biases of all layers, LayerScale included."""
        return self._stack("mlp", "b_out")

    @property
    def W_E(self) -> Float[Tensor, "pixels d"]:
        """Patch embedding of a flattened (channel, row, column) patch, a view."""
        return self.embed.patch.weight.flatten(1).T

    @property
    def W_pos(self) -> Float[Tensor, "p d"]:
        """Position embedding at the native size, a view.

        Raises AttributeError for a family without absolute positions.
        """
        if self.pos_embed is None:
            raise AttributeError(f"{self.cfg.architecture} has no absolute position embedding here")
        return self.pos_embed.weight[0]

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, "d"]:
        """Sum of the output biases of all branches in front of a layer, LayerScale included (TransformerLens' name).

        Raises ValueError for a model whose norms stand behind its branches.
        """
        self.require_branches_are_sums("accumulated_bias")
        total = self.blocks[0].attn.o.weight.new_zeros(self.cfg.d_model)
        for block in self.blocks[:layer]:
            total = total + block.attn.b_O + (block.mlp.b_out if include_mlp_biases else 0)
        return total + self.blocks[layer].attn.b_O if mlp_input else total

    def require_branches_are_sums(self, what: str) -> None:
        """Raise ValueError where a norm stands between the heads, neurons and biases of a branch and the stream."""
        if self.cfg.post_norm:
            raise ValueError(
                f"{what} takes a branch apart into heads, neurons or biases that add up to what it adds to the stream; "
                "in this model a norm of their sum is added instead. Whole branches (`attn_out`, `mlp_out`) do add up"
            )

    def _forget_cast_weights(self) -> None:
        """What a `torch.autocast` around us keeps of weights from run to run, which are about to change in place."""
        torch.clear_autocast_cache()

    @torch.no_grad()
    def fold_layer_scale_(self) -> None:
        """Multiply LayerScale into the output weights of its branch and drop it; logits stay as they are.

        >>> model.fold_layer_scale_()  # doctest: +SKIP
        """
        self._forget_cast_weights()
        for block in self.blocks:
            for branch, linear in ((block.attn, block.attn.o), (block.mlp, block.mlp.fc_out)):
                if branch.ls is not None:
                    linear.weight.mul_(branch.ls[:, None])
                    if linear.bias is not None:
                        linear.bias.mul_(branch.ls)
                    branch.ls = None
        self.cfg = self.cfg.replace(layer_scale=False)

    @torch.no_grad()
    def fold_layer_norm_(self) -> None:
        """Multiply every norm's gain and offset into the layers that read it; logits stay as they are.

        >>> model.fold_layer_norm_()  # doctest: +SKIP

        A bias appears where the offset needs one (queries, keys, values, heads). The norm in front of CLIP's first
        block stays: the residual stream itself reads it. So do norms behind a branch, and the final norm where no
        linear layer reads one role of it: of a feature model, of a head that reads several roles (in one bias their
        offsets could not be told apart, and `project` tells roles apart), and of a readout of unit length.
        """
        self._forget_cast_weights()
        for block in self.blocks if not self.cfg.post_norm else ():
            attn, mlp = block.attn, block.mlp
            _fold(block.ln1, [attn.q, attn.k, attn.v])
            _fold(block.ln2, [linear for linear in (mlp.fc_in, mlp.fc_gate) if linear is not None])
        for block in self.blocks:
            for branch, linear in ((block.attn, block.attn.o), (block.mlp, block.mlp.fc_out)):
                if branch.ln is not None:
                    _fold(branch.ln, [linear])
        pool = self.cfg.attention_pool
        if pool is not None and pool.d_mlp is not None:
            _fold(self.pool_ln, [self.pool_mlp.fc_in])
        one_role_each = bool(self.cfg.heads) and all(len(read) == 1 for _, read in self.cfg.heads)
        folds_head = one_role_each and self.cfg.is_linear_readout and isinstance(self.ln_final, LayerNorm)
        if isinstance(self.ln_final, LayerNorm) and (folds_head or pool is not None):
            heads = [getattr(self, name) for name, _ in self.cfg.heads]
            _fold(self.ln_final, heads if pool is None else [self.pool_k, self.pool_v])
        has_offsets = self.cfg.norm == "layer"
        has_biases = has_offsets and not self.cfg.post_norm
        biased: dict[str, Any] = dict.fromkeys(("q_bias", "k_bias", "v_bias"), True) if has_biases else {}
        if pool is not None:
            biased |= {"attention_pool": replace(pool, bias=pool.bias or has_offsets)}
        self.cfg = self.cfg.replace(**biased, head_bias=self.cfg.head_bias or (folds_head and has_offsets))


def _fold(norm: LayerNorm, readers: list[nn.Linear]) -> None:
    for linear in map(plain, readers):
        copies = linear.in_features // len(norm.weight)
        if norm.bias is not None:
            with in_full_digits(linear.weight.device.type):
                shift = linear.weight @ norm.bias.repeat(copies)
            linear.bias = nn.Parameter(shift if linear.bias is None else linear.bias + shift)
        linear.weight.mul_(norm.weight.repeat(copies))
    norm.weight.fill_(1.0)
    if norm.bias is not None:
        norm.bias.fill_(0.0)
