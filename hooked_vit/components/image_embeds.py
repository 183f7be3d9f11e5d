"""The image's place beside its captions: pooled features, projected, divided by their length."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hooked_vit.components.watching import HookPoint
from hooked_vit.config import ViTConfig

HOOKS = ("hook_image_embeds", "hook_image_scale", "hook_image_normalized")

TEXTS = "texts as classes"
"""What a config calls the head that texts make."""


class ImageEmbeds(nn.Module):
    """Between `hook_pooled` and a head whose classes are texts; a mixin, so that its hooks carry no prefix.

    The head's rows are unit vectors of texts times the temperature, so that its outputs are scaled cosines.
    """

    cfg: ViTConfig
    projection: nn.Linear | None
    head: nn.Linear
    hook_image_embeds: HookPoint
    hook_image_scale: HookPoint
    hook_image_normalized: HookPoint

    def _drop_head(self) -> None:
        """Take the heads away, and what stands between them and what is pooled."""
        for name, _ in self.cfg.heads:
            delattr(self, name)
        if self.cfg.unit_norm:
            for name in ("projection", *HOOKS):
                delattr(self, name)

    def _build_image_embeds(self, cfg: ViTConfig) -> None:
        self.projection = None if cfg.d_embed is None else nn.Linear(cfg.d_pooled, cfg.d_embed, bias=False)
        for name in HOOKS:
            setattr(self, name, HookPoint())

    def set_text_head_(
        self, texts: Float[Tensor, "c e"], scale: float, bias: float = 0.0, class_names: tuple[str, ...] | None = None
    ) -> None:
        """Make texts the classes: logits are cosines with these embeddings, times `scale`, plus `bias`.

        >>> model.set_text_head_(text_embeds, scale=100.0, class_names=("cat", "dog"))  # doctest: +SKIP

        The projection of a model that answers with an embedding stands in front of the normalisation.
        Raises ValueError for embeddings of another width than the image's, and for a model that has classes already.
        """
        cfg = self.cfg
        if cfg.outputs == "classes" and not cfg.is_feature_model:
            raise ValueError(
                f"{cfg.hf_class or 'this model'} answers with classes; texts are compared with an image embedding"
            )
        if texts.ndim != 2 or texts.shape[1] != cfg.d_out:
            raise ValueError(f"texts are [classes, {cfg.d_out}], as wide as the image embedding; got {texts.shape}")
        projection = None if cfg.is_feature_model else self.head
        self._drop_head()
        self.cfg = cfg.replace(
            **{"unit_norm": True, "d_embed": None if projection is None else cfg.d_out, "outputs": "classes"},
            **{"n_classes": len(texts), "class_names": class_names, "head_bias": True},
            head_set=TEXTS,
            heads=(("head", tuple(range(cfg.n_pooled))),),
        )
        self._build_image_embeds(self.cfg)
        like = next(self.parameters())
        self.projection = projection
        self.head = nn.Linear(cfg.d_out, len(texts), device=like.device, dtype=like.dtype)
        self.head.weight.data.copy_(F.normalize(texts.to(like), dim=-1) * scale)
        self.head.bias.data.fill_(bias)
        self.setup()  # type: ignore[operator]  # HookedRootModule's: hooks have no names yet

    def _embed(self, pooled: Float[Tensor, "b p"]) -> Float[Tensor, "b e"]:
        """The unit vector the head reads."""
        embeds = self.hook_image_embeds(pooled if self.projection is None else self.projection(pooled))
        scale = self.hook_image_scale(embeds.norm(p=2, dim=-1, keepdim=True))
        return self.hook_image_normalized(embeds / scale)

    def _embed_alone(self, pooled: Float[Tensor, "*b p"]) -> Float[Tensor, "*b e"]:
        """The same for any vectors; no hook fires."""
        return F.normalize(pooled if self.projection is None else self.projection(pooled), dim=-1)
