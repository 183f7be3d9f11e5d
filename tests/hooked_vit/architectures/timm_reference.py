"""timm's VisionTransformer written out plainly from its documented layout: the names of its tensors, and what it does.

Not timm's code: what the converted graph is compared with where timm cannot be imported. `test_timm.py` holds it
against timm where it can.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class GELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class GELUTanh(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    kernel = "eager"

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm, self.k_norm, self.norm, self.gate = Identity(), Identity(), Identity(), None
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        if self.kernel == "sdpa":
            z = F.scaled_dot_product_attention(q, k, v)
        else:
            z = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1) @ v
        return self.proj(z.transpose(1, 2).reshape(b, t, d))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, act: nn.Module) -> None:
        super().__init__()
        self.fc1, self.act, self.norm, self.fc2 = nn.Linear(dim, hidden), act, Identity(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class GluMlp(nn.Module):
    """Gate and values in one matrix, the gate first."""

    def __init__(self, dim: int, hidden: int, act: nn.Module) -> None:
        super().__init__()
        self.fc1, self.act, self.norm = nn.Linear(dim, hidden), act, Identity()
        self.fc2 = nn.Linear(hidden // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        weights, biases = self.fc1.weight.chunk(2), self.fc1.bias.chunk(2)
        gate, value = (F.linear(x, w, b) for w, b in zip(weights, biases, strict=True))
        return self.fc2(self.act(gate) * value)


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, hidden: int, qkv_bias: bool, scaled: bool, act, eps: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attn, self.mlp = Attention(dim, num_heads, qkv_bias), Mlp(dim, hidden, act)
        self.ls1, self.ls2 = (LayerScale(dim), LayerScale(dim)) if scaled else (Identity(), Identity())

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class ResPostBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.attn(x))
        return x + self.norm2(self.mlp(x))


class AttentionPoolLatent(nn.Module):
    """A learned query over the tokens, rounded as torch's own attention is; what it gathers, and an MLP beside it."""

    kernel = "eager"
    pool, latent_len, pos_embed = "token", 1, None

    def __init__(self, dim: int, num_heads: int, hidden: int, act: nn.Module, eps: float) -> None:
        super().__init__()
        self.num_heads, self.q_norm, self.k_norm = num_heads, Identity(), Identity()
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.norm, self.mlp = nn.LayerNorm(dim, eps), Mlp(dim, hidden, act)

    def forward(self, x: Tensor) -> Tensor:
        (b, t, d), h = x.shape, self.num_heads
        halves = zip(self.kv.weight.chunk(2), self.kv.bias.chunk(2), strict=True)
        k, v = (F.linear(x.transpose(0, 1), *half).transpose(0, 1) for half in halves)
        q = self.q(self.latent.repeat(b, 1, 1))
        q, k, v = (y.reshape(b, -1, h, d // h).transpose(1, 2) for y in (q, k, v))
        if self.kernel == "sdpa":
            z = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = torch.bmm((q * (d // h) ** -0.5).flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
            z = scores.softmax(-1).reshape(b, h, 1, t) @ v
        x = self.proj(z.transpose(1, 2).reshape(b, 1, d))
        return (x + self.mlp(self.norm(x)))[:, 0]


class PatchEmbed(nn.Module):
    def __init__(self, size: tuple[int, int], patch: int, channels: int, dim: int, bias: bool) -> None:
        super().__init__()
        self.img_size, self.patch_size, self.norm = size, (patch, patch), Identity()
        self.proj = nn.Conv2d(channels, dim, patch, patch, bias=bias)


class VisionTransformer(nn.Module):
    """Arguments are timm's, but for `act_layer` and `eps`, which are its layers'; `architecture` is for its files."""

    distilled = False

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 32,
        patch_size: int = 8,
        in_chans: int = 3,
        num_classes: int = 5,
        global_pool: str = "token",
        embed_dim: int = 32,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        init_values: float | None = None,
        class_token: bool = True,
        no_embed_class: bool = False,
        reg_tokens: int = 0,
        pre_norm: bool = False,
        final_norm: bool = True,
        fc_norm: bool | None = None,
        mlp_layer: str = "Mlp",
        act_layer: str = "gelu",
        eps: float = 1e-6,
        block_fn: str = "Block",
        architecture: str = "vit_base_patch16_224",
    ) -> None:
        super().__init__()
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__", "architecture")}
        self.architecture = architecture
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.num_classes, self.embed_dim, self.global_pool = num_classes, embed_dim, global_pool
        self.no_embed_class, self.pool_include_prefix, self.num_reg_tokens = no_embed_class, False, reg_tokens
        self.grid = size[0] // patch_size, size[1] // patch_size
        self.patch_embed = PatchEmbed(size, patch_size, in_chans, embed_dim, bias=not pre_norm)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if self.distilled else None
        self.reg_token = nn.Parameter(torch.zeros(1, reg_tokens, embed_dim)) if reg_tokens else None
        self.num_prefix_tokens = class_token + self.distilled + reg_tokens
        placed = 0 if no_embed_class else self.num_prefix_tokens
        self.pos_embed = nn.Parameter(torch.zeros(1, placed + self.grid[0] * self.grid[1], embed_dim))
        self.norm_pre = nn.LayerNorm(embed_dim, eps) if pre_norm else Identity()
        kind = {"Block": Block, "ResPostBlock": ResPostBlock}[block_fn]
        scaled, hidden = init_values is not None and kind is Block, int(embed_dim * mlp_ratio)
        act = {"gelu": GELU, "quick_gelu": QuickGELU, "silu": nn.SiLU, "gelu_tanh": GELUTanh}[act_layer]
        self.blocks = nn.Sequential(
            *(kind(embed_dim, num_heads, hidden, qkv_bias, scaled, act(), eps) for _ in range(depth))
        )
        if mlp_layer == "SwiGLUPacked":
            for block in self.blocks:
                block.mlp = GluMlp(embed_dim, hidden, act())
        after = global_pool == "avg" if fc_norm is None else fc_norm
        self.norm = nn.LayerNorm(embed_dim, eps) if final_norm and not after else Identity()
        self.fc_norm = nn.LayerNorm(embed_dim, eps) if final_norm and after else Identity()
        self.attn_pool = AttentionPoolLatent(embed_dim, num_heads, hidden, act(), eps) if global_pool == "map" else None
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else Identity()

    def stream(self, x: Tensor) -> Tensor:
        """What enters block 0."""
        x = self.patch_embed.proj(x)
        grid, x = tuple(x.shape[2:]), x.flatten(2).transpose(1, 2)
        n = self.pos_embed.shape[1] - self.grid[0] * self.grid[1]
        pos = self.pos_embed
        if grid != self.grid:
            picture = pos[:, n:].float().reshape(1, *self.grid, -1).permute(0, 3, 1, 2)
            picture = F.interpolate(picture, size=grid, mode="bicubic", antialias=True).to(pos.dtype)
            pos = torch.cat([pos[:, :n], picture.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
        tokens = [t.expand(len(x), -1, -1) for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None]
        if self.no_embed_class:
            return self.norm_pre(torch.cat([*tokens, x + pos], dim=1))
        return self.norm_pre(torch.cat([*tokens, x], dim=1) + pos)

    def states(self, x: Tensor) -> tuple[Tensor, ...]:
        """The stream entering each block, and leaving the last one."""
        found = [self.stream(x)]
        for block in self.blocks:
            found.append(block(found[-1]))
        return tuple(found)

    def read(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.attn_pool is not None:
            return self.head(self.attn_pool(x[:, self.num_prefix_tokens :]))
        x = x[:, 0] if self.global_pool == "token" else x[:, self.num_prefix_tokens :].mean(1)
        return self.head(self.fc_norm(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.states(x)[-1])

    def set_attn_implementation(self, kernel: str) -> None:
        for block in self.blocks:
            block.attn.kernel = kernel
        if self.attn_pool is not None:
            self.attn_pool.kernel = kernel

    def save_pretrained(self, folder: str | Path) -> None:
        """A folder as timm's hub repositories are."""
        size, shown = self.patch_embed.img_size, {}
        shown |= {"architecture": self.architecture, "num_classes": self.num_classes, "num_features": self.embed_dim}
        shown |= {"global_pool": self.global_pool, "model_args": self.arguments}
        shown["pretrained_cfg"] = {
            "tag": "test",
            "custom_load": False,
            "input_size": [self.patch_embed.proj.in_channels, *size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "crop_mode": "center" if size[0] == size[1] else "squash",
            "mean": [0.5] * self.patch_embed.proj.in_channels,
            "std": [0.25] * self.patch_embed.proj.in_channels,
            "num_classes": self.num_classes,
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "config.json").write_text(json.dumps(shown), encoding="utf-8")
        tensors = {key: tensor.contiguous() for key, tensor in self.state_dict().items()}
        save_file(tensors, Path(folder) / "model.safetensors", {"format": "pt"})


class VisionTransformerDistilled(VisionTransformer):
    distilled = True

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"architecture": "deit_base_distilled_patch16_224"} | arguments)
        self.head_dist = nn.Linear(self.embed_dim, self.num_classes)

    def read(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2


CLASSES = {c.__name__: c for c in (VisionTransformer, VisionTransformerDistilled)}
