"""A model whose blocks do nothing, so that what its tokens know is what was put into them."""

from __future__ import annotations

import torch

from hooked_vit import HookedViT, ViTConfig

SIGN = torch.tensor([1.0, -1.0]).repeat(4)


def inert(*, patch_bias: float = 0.0, reads_pixels: bool = False) -> HookedViT:
    """Four patches, two classes: CLS is class 0, image tokens what `patch_bias` or the patch's brightness says."""
    sizes = {"d_model": 8, "n_layers": 2, "n_heads": 2, "d_mlp": 8, "image_size": (16, 16), "patch_size": 8}
    net = HookedViT(ViTConfig(**sizes, n_classes=2))
    with torch.no_grad():
        for block in net.blocks:
            block.attn.o.weight.zero_()
            block.mlp.fc_out.weight.zero_()
        net.embed.cls.copy_((5 * SIGN).expand_as(net.embed.cls))
        brightness = (SIGN[:, None, None, None] / 192).expand_as(net.embed.patch.weight)
        net.embed.patch.weight.copy_(brightness * reads_pixels)
        net.embed.patch.bias.copy_(patch_bias * SIGN)
        net.pos_embed.weight.zero_()
        net.head.weight.copy_(torch.stack([SIGN, -SIGN]))
    return net
