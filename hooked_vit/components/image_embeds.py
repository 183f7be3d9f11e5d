"""The image's place beside its captions: pooled features, projected, divided by their length."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from hooked_vit.config import ViTConfig

HOOKS = ("hook_image_embeds", "hook_image_scale", "hook_image_normalized")


class ImageEmbeds(nn.Module):
    """Between `hook_pooled` and a head whose classes are texts; a mixin, so that its hooks carry no prefix.

    The head's rows are unit vectors of texts times the temperature, so that its outputs are scaled cosines.
    """

    cfg: ViTConfig
    projection: nn.Linear | None
    hook_image_embeds: HookPoint
    hook_image_scale: HookPoint
    hook_image_normalized: HookPoint

    def _build_image_embeds(self, cfg: ViTConfig) -> None:
        width = cfg.d_model * len(cfg.sources)
        self.projection = None if cfg.d_embed is None else nn.Linear(width, cfg.d_embed, bias=False)
        for name in HOOKS:
            setattr(self, name, HookPoint())

    def _drop_image_embeds(self) -> None:
        for name in ("projection", *HOOKS):
            delattr(self, name)

    def _embed(self, pooled: Float[Tensor, "b p"]) -> Float[Tensor, "b e"]:
        """The unit vector the head reads."""
        embeds = self.hook_image_embeds(pooled if self.projection is None else self.projection(pooled))
        scale = self.hook_image_scale(embeds.norm(p=2, dim=-1, keepdim=True))
        return self.hook_image_normalized(embeds / scale)

    def _embed_alone(self, pooled: Float[Tensor, "*b p"]) -> Float[Tensor, "*b e"]:
        """The same for any vectors; no hook fires."""
        return F.normalize(pooled if self.projection is None else self.projection(pooled), dim=-1)
