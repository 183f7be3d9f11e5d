"""The readout: which tokens, pooled how, normalised where, through which heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hooked_vit.components.image_embeds import ImageEmbeds
from hooked_vit.components.linears import plain
from hooked_vit.components.norms import LayerNorm, NoNorm, norm_of
from hooked_vit.components.pooling import AttentionPool
from hooked_vit.components.sizes import Sizes
from hooked_vit.components.watching import HookPoint, leaving
from hooked_vit.config import Role, ViTConfig
from hooked_vit.config.numbers import multiplying
from hooked_vit.errors import NoHeadError, NonlinearReadoutError, nearest
from hooked_vit.tokens import ROLES, tokens_changed

# a new head is linear in what is pooled
PLAIN: dict[str, Any] = {"unit_norm": False, "d_embed": None}


class Readout(Sizes, AttentionPool, ImageEmbeds):
    """The end of every graph, as a mixin, so that its hooks carry no prefix."""

    ln_final: LayerNorm | NoNorm

    def _build_readout(self, cfg: ViTConfig) -> None:
        self.ln_final = NoNorm(cfg.d_model) if cfg.final_norm == "none" else norm_of(cfg)
        if cfg.attention_pool is not None:
            self._build_pool(cfg, cfg.attention_pool)
        if cfg.unit_norm:
            self._build_image_embeds(cfg)
        for name, read in cfg.heads:
            assert cfg.n_classes is not None
            setattr(self, name, nn.Linear(cfg.d_embed or len(read) * cfg.d_model, cfg.n_classes, bias=cfg.head_bias))
        self.hook_pooled = HookPoint()
        self.hook_head_logits = HookPoint()
        self.hook_logits = HookPoint()

    def readout(self, resid: Float[Tensor, "b t d"]) -> Float[Tensor, "b c"]:
        """Output of the model from the residual stream after the last block.

        >>> model.readout(model(pixels, stop_at_layer=model.cfg.n_layers))  # doctest: +SKIP
        """
        return self.answer_of(self.hook_pooled(self.pool(resid)))

    def pool(self, resid: Float[Tensor, "b t d"]) -> Float[Tensor, "b p"]:
        """What the readout pools of the residual stream after the last block, the value that `hook_pooled` is shown.

        >>> model.pool(model(pixels, stop_at_layer=model.cfg.n_layers))  # doctest: +SKIP
        """
        with multiplying(self.run.autocast, self):
            x = resid if self.cfg.final_norm == "pooled" else self.ln_final(resid)
            if self.cfg.attention_pool:
                pooled = self._attend(x, torch.stack([self._read(x, role) for role in self.cfg.sources]).any(0))
            else:
                pooled = torch.stack([self._pool(x, role) for role in self.cfg.sources], dim=1)
            if self.cfg.final_norm == "pooled":
                pooled = self.ln_final(pooled)
            return pooled.flatten(1)

    def answer_of(self, pooled: Float[Tensor, "b p"]) -> Float[Tensor, "b c"]:
        """Output of the model from what its readout has pooled, the value at `hook_pooled`."""
        with multiplying(self.run.autocast, self):
            if self.cfg.unit_norm:
                pooled = self._embed(pooled)
            pooled = pooled.unflatten(1, (self.cfg.n_pooled, -1))
            each = [getattr(self, name)(pooled[:, list(read)].flatten(1)) for name, read in self.cfg.heads]
            each = self.hook_head_logits(torch.stack(each or [pooled.flatten(1)], dim=1))
            return leaving(self.hook_logits, each.sum(1) / each.shape[1])

    def _pool(self, x: Float[Tensor, "b t d"], role: Role) -> Float[Tensor, "b d"]:
        """Mean over the tokens of a role, wherever they are now."""
        tokens, read = self.run.tokens, self._read(x, role)
        if tokens.ragged:
            weight = read.to(x.device, x.dtype)[..., None]
            return (x * weight).sum(1) / weight.sum(1)
        return x[:, tokens.where(role)].mean(1)

    def _read(self, x: Float[Tensor, "b t d"], role: Role) -> Bool[Tensor, "*b t"]:
        """Where the tokens of a role are now, at least one in every image."""
        tokens = self.run.tokens
        if tokens.n_tokens != x.shape[1]:
            raise ValueError(tokens_changed(tokens.n_tokens, x.shape[1]))
        found = tokens.mask(role, missing_ok=True)
        if not found.any(-1).all():
            raise ValueError(f"the readout reads {role!r}, but no such token is left; keep one, or use readout(...)")
        return found

    def project(self, x: Float[Tensor, "*b d"], role: str = "cls") -> Float[Tensor, "*b c"]:
        """Class scores of any vectors of the residual stream: final norm and head as the family applies them to a role.

        >>> scores = model.project(cache["resid_post", 3][:, 0], role="cls")  # doctest: +SKIP

        A role the readout does not read goes through the first head. Vilas et al. 2023, eq. 1, with the final norm.
        Where a probe pools, it attends to this vector alone; where the head reads unit vectors, this one's length is
        divided out: the logits of a stream that is this vector everywhere.
        Raises NoHeadError for a feature model, ValueError for a role that does not exist.
        """
        weight, bias = self._head_of(role)
        with multiplying(self.run.autocast, self):
            x = self.ln_final.applied(x)
            x = self._attend_alone(x) if self.cfg.attention_pool else x
            return F.linear(self._embed_alone(x) if self.cfg.unit_norm else x, weight, bias)

    def head_for(self, role: str) -> tuple[Float[Tensor, "c d"], Float[Tensor, "c"] | None]:
        """The part of the head that reads tokens of this role, and its bias.

        Raises NonlinearReadoutError where something stands between the final norm and the head.
        """
        self._require_linear("head_for")
        return self._head_of(role)

    def _head_of(self, role: str) -> tuple[Float[Tensor, "c d"], Float[Tensor, "c"] | None]:
        self._require_head("project")
        if role not in ROLES:
            raise ValueError(f"unknown token role {role!r}; roles are {', '.join(ROLES)}")
        source = self.cfg.pooled_roles.index(role) if role in self.cfg.pooled_roles else 0
        for name, read in self.cfg.heads:
            if source in read:
                head, at = plain(getattr(self, name)), read.index(source) * self.cfg.d_model
                whole = len(read) == 1 or self.cfg.unit_norm
                return head.weight if whole else head.weight[:, at : at + self.cfg.d_model], head.bias
        raise NoHeadError(f"no head of this model reads {role!r} tokens; its heads read {self.cfg.sources}")

    def _require_head(self, what: str) -> None:
        if self.cfg.is_feature_model:
            raise NoHeadError(
                f"{what} needs a classifier, and {self.cfg.hf_class or 'this model'} has none: it returns pooled "
                "features. Load a checkpoint with a classifier, or give it one: set_head_(weight, bias), or "
                "analyses.with_ridge_head(model, images), which fits one"
            )

    def _require_linear(self, what: str) -> None:
        """Raise NonlinearReadoutError where no vector per class says what a token adds to its score."""
        self._require_head(what)
        if self.cfg.attention_pool:
            raise NonlinearReadoutError(
                f"{what} needs a readout that is a sum over tokens, and here a probe attends to them. "
                "model.project(x, role) scores a vector as if the probe attended to it alone; hook_pool_pattern says "
                "where it attends, and set_readout_(sources=...) pools by the mean instead"
            )
        self._require_same_length(what)

    def _require_same_length(self, what: str) -> None:
        self._require_head(what)
        if self.cfg.unit_norm:
            raise NonlinearReadoutError(
                f"{what} needs logits that are linear in what is pooled, and here its length is divided out before the "
                "head reads it. model.project(x, role) divides by each vector's own length; "
                "model.head.weight is what multiplies hook_image_normalized"
            )

    @property
    def W_U(self) -> Float[Tensor, "p c"]:
        """What multiplies `hook_pooled`: logits == pooled @ W_U + b_U. A view where there is one head.

        Raises NonlinearReadoutError where the head reads unit vectors.
        """
        self._require_same_length("W_U")
        heads = [plain(getattr(self, name)) for name, _ in self.cfg.heads]
        if len(heads) == 1:
            return heads[0].weight.T
        d, n = self.cfg.d_model, self.cfg.n_pooled
        total = heads[0].weight.new_zeros(n, d, heads[0].out_features)
        for head, (_, read) in zip(heads, self.cfg.heads, strict=True):
            total[list(read)] += head.weight.T.unflatten(0, (-1, d)) / len(heads)
        return total.flatten(0, 1)

    @property
    def b_U(self) -> Float[Tensor, "c"]:
        """Bias of the logits; zeros where the head has none."""
        self._require_head("b_U")
        heads = [plain(getattr(self, name)) for name, _ in self.cfg.heads]
        if not self.cfg.head_bias:
            return heads[0].weight.new_zeros(heads[0].out_features)
        return heads[0].bias if len(heads) == 1 else torch.stack([h.bias for h in heads]).mean(0)

    def to_single_token(self, label: str) -> int:
        """Class id of a class name; TransformerLens' name for looking up a label.

        Raises ValueError for a name the head does not know, and for one that several classes share.
        """
        names = self.cfg.class_names
        if names is None:
            raise ValueError("this model's classes have no names; give class ids")
        if label not in names:
            raise ValueError(f"the head knows no class {label!r}{nearest(label, names)}")
        if len(found := [i for i, name in enumerate(names) if name == label]) > 1:
            raise ValueError(
                f"{len(found)} classes are called {label!r}, {', '.join(map(str, found))}; give the class id"
            )
        return found[0]

    def tokens_to_residual_directions(self, tokens: str | int | Int[Tensor, "*b"]) -> Float[Tensor, "b t d"]:
        """For each class, the direction at every token that adds to its logit: [1, t, d], or [b, t, d] for [b] classes.

        Summed over components and tokens, a normalised stack times this, plus `logit_constant`, is the logit.
        TransformerLens' `logit_attrs` calls this; a class plays the part of its vocabulary token.
        """
        self._require_linear("logit_attrs")
        label = self.to_single_token(tokens) if isinstance(tokens, str) else tokens
        classes = torch.as_tensor(label, device=self.W_U.device).reshape(-1)
        if not ((classes >= 0) & (classes < self.cfg.d_out)).all():
            raise ValueError(f"classes are 0 to {self.cfg.d_out - 1}, got {classes.tolist()}")
        layout = self.tokens
        per_source = (self.W_U.T[classes].unflatten(1, (len(self.cfg.sources), -1))) * self.ln_final.weight
        directions = per_source.new_zeros(1, layout.n_tokens, 1)
        for i, role in enumerate(self.cfg.sources):
            mask = layout.mask(role).to(directions)
            directions = directions + per_source[:, i, None] * (mask / mask.sum(-1, keepdim=True))[..., None]
        return directions

    @property
    def logit_constant(self) -> Float[Tensor, "c"]:
        """The part of each logit that no token contributes: the head's bias, and the final norm's offset through it."""
        self._require_linear("logit_constant")
        offset = self.ln_final.b.repeat(len(self.cfg.sources))
        return offset @ self.W_U + self.b_U

    def set_readout_(self, *, sources: tuple[Role, ...], final_norm: str | None = None) -> None:
        """Read the mean of other tokens from now on, without a head; the norm may only be dropped, never invented.

        >>> model.set_readout_(sources=("cls", "patches"))  # doctest: +SKIP
        """
        norm = final_norm or self.cfg.final_norm
        if self.cfg.final_norm == "none" and norm != "none":
            raise ValueError("this checkpoint has no final norm to apply")
        cfg = self.cfg.replace(
            sources=tuple(sources),
            final_norm=norm,
            heads=(),
            n_classes=None,
            class_names=None,
            readout_set=True,
            head_set=None,
            attention_pool=None,
            **PLAIN,
        )
        self._drop_head()
        if self.cfg.attention_pool:
            self._drop_pool()
        self.cfg = cfg
        if norm == "none" and isinstance(self.ln_final, LayerNorm):
            self.ln_final = NoNorm(self.cfg.d_model).to(self.ln_final.weight)
        self.setup()  # type: ignore[operator]  # HookedRootModule's: the norm is a new module

    def drop_head_(self) -> None:
        """Answer with what is pooled: the same tokens, gathered and normalised as before, without a head.

        >>> model.drop_head_()  # doctest: +SKIP
        """
        cfg = self.cfg.replace(heads=(), n_classes=None, class_names=None, head_set=None, **PLAIN)
        self._drop_head()
        self.cfg = cfg
        self.setup()  # type: ignore[operator]  # a projection's hooks are gone

    def set_head_(
        self,
        weight: Float[Tensor, "c p"],
        bias: Float[Tensor, "n"],
        class_names: tuple[str, ...] | None = None,
        made: str = "a head that was set",
    ) -> None:
        """Give the readout one new linear head over everything it pools; results say of it what `made` says.

        >>> model.set_head_(torch.zeros(10, 96), torch.zeros(10))  # doctest: +SKIP

        Raises ValueError where the width is not that of `hook_pooled`.
        """
        width = self.cfg.d_pooled
        if weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise ValueError(
                f"the readout pools {self.cfg.sources}, so a head is [classes, {width}] with a bias of [classes]; "
                f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        cfg = self.cfg.replace(
            heads=(("head", tuple(range(self.cfg.n_pooled))),),
            head_bias=True,
            n_classes=len(weight),
            class_names=class_names,
            outputs="classes",
            head_set=made,
            **PLAIN,
        )
        self._drop_head()
        like = next(self.parameters())
        head = nn.Linear(width, len(weight), device=like.device, dtype=like.dtype)
        head.weight.data.copy_(weight)
        head.bias.data.copy_(bias)
        self.head = head
        self.cfg = cfg
        self.setup()  # type: ignore[operator]
