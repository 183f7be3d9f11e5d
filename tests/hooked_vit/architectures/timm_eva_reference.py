"""timm's Eva written out plainly from its documented layout, as `timm_reference` writes out its VisionTransformer."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.hooked_vit.architectures import timm_reference
from tests.hooked_vit.architectures.timm_reference import (
    GELU,
    AttentionPoolLatent,
    GluMlp,
    Identity,
    Mlp,
    PatchEmbed,
    VisionTransformer,
)


class Rope:
    """Angles [patches, head] of one image, each frequency twice: at neighbouring places, or half a head apart."""

    def __init__(self, width: int, temperature: float, rotate_half: bool, indexing: str, offset: float, ref) -> None:
        self.width, self.temperature, self.rotate_half = width, float(temperature), rotate_half
        self.grid_indexing, self.grid_offset, self.ref_feat_shape = indexing, offset, ref

    def places(self, n: int, axis: int) -> Tensor:
        raise NotImplementedError

    def angles(self, grid: tuple[int, int]) -> Tensor:
        rows, columns = (self.places(n, axis) for axis, n in enumerate(grid))
        frequencies = 1 / self.temperature ** torch.arange(0, 1, 4 / self.width)
        row = (rows[:, None] * frequencies)[:, None].expand(-1, grid[1], -1)
        column = (columns[:, None] * frequencies)[None].expand(grid[0], -1, -1)
        both = torch.cat([column, row] if self.grid_indexing == "xy" else [row, column], dim=-1).flatten(0, 1)
        return torch.cat([both, both], -1) if self.rotate_half else both[..., None].expand(-1, -1, 2).flatten(1)

    def turn(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Queries or keys [b, heads, patches, head]."""
        angles = self.angles(grid)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        if self.rotate_half:
            half = self.width // 2
            partner = torch.cat([-x[..., half:], x[..., :half]], -1)
        else:
            partner = torch.empty_like(x)
            partner[..., ::2], partner[..., 1::2] = -x[..., 1::2], x[..., ::2]
        return x * cos + partner * sin


class RotaryEmbeddingCat(Rope):
    def places(self, n: int, axis: int) -> Tensor:
        at = torch.arange(n, dtype=torch.float32) + self.grid_offset
        return at if self.ref_feat_shape is None else at / n * self.ref_feat_shape[axis]


class RotaryEmbeddingDinoV3(Rope):
    def places(self, n: int, axis: int) -> Tensor:
        return 2 * math.pi * (2 * ((torch.arange(n) + 0.5) / n) - 1)


class RotaryEmbeddingMixed(nn.Module):
    """Learned frequencies: [columns and rows, blocks, heads, pairs]; neighbouring dimensions are a pair."""

    def __init__(self, depth: int, heads: int, width: int, temperature: float, indexing: str) -> None:
        super().__init__()
        self.temperature, self.grid_indexing = temperature, indexing
        self.freqs = nn.Parameter(torch.zeros(2, depth, heads, width // 2))

    def at(self, block: int) -> Mixed:
        return Mixed(self.freqs[:, block], self.grid_indexing)


class Mixed(Rope):
    def __init__(self, freqs: Tensor, indexing: str) -> None:
        self.freqs, self.indexing, self.rotate_half = freqs, indexing, False

    def angles(self, grid: tuple[int, int]) -> Tensor:
        rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in grid), indexing="ij")
        first, second = (columns, rows) if self.indexing == "xy" else (rows, columns)
        # timm does this in float32 always; in a float64 model, and there alone, the same formula in float64
        freqs = self.freqs if self.freqs.dtype == torch.float64 else self.freqs.float()
        both = (first.reshape(-1, 1)[None] * freqs[0][:, None]) + (second.reshape(-1, 1)[None] * freqs[1][:, None])
        return both[..., None].expand(*both.shape, 2).flatten(2)


class EvaAttention(nn.Module):
    kernel = "eager"
    key_bias = False

    def __init__(self, dim: int, num_heads: int, bias: bool, fused: bool, norm: bool, eps: float) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv = self.q_proj = self.k_proj = self.v_proj = self.q_bias = self.v_bias = self.gate = None
        if fused and self.key_bias:
            self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        elif fused:
            self.qkv = nn.Linear(dim, 3 * dim, bias=False)
            if bias:
                self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        else:
            self.q_proj, self.v_proj = nn.Linear(dim, dim, bias=bias), nn.Linear(dim, dim, bias=bias)
            self.k_proj = nn.Linear(dim, dim, bias=bias and self.key_bias)
        self.q_norm, self.k_norm = Identity(), Identity()
        self.norm = nn.LayerNorm(dim, eps) if norm else Identity()
        self.proj = nn.Linear(dim, dim)

    def parts(self, x: Tensor) -> list[Tensor]:
        if self.qkv is None:
            return [self.q_proj(x), self.k_proj(x), self.v_proj(x)]
        weights = self.qkv.weight.chunk(3)
        biases = self.qkv.bias.chunk(3) if self.qkv.bias is not None else (self.q_bias, None, self.v_bias)
        return [F.linear(x, w, b) for w, b in zip(weights, biases, strict=True)]

    def forward(self, x: Tensor, rope: Rope | None, grid: tuple[int, int]) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.parts(x))
        if rope is not None:
            n = x.shape[1] - grid[0] * grid[1]
            q, k = (torch.cat([part[:, :, :n], rope.turn(part[:, :, n:], grid)], 2) for part in (q, k))
        if self.kernel == "sdpa":
            z = F.scaled_dot_product_attention(q, k, v)
        else:
            z = (q @ k.transpose(2, 3) * self.head_dim**-0.5).softmax(-1) @ v
        return self.proj(self.norm(z.transpose(1, 2).flatten(2)))


class AttentionRope(EvaAttention):
    key_bias = True


class SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden: int, norm: bool, eps: float) -> None:
        super().__init__()
        self.fc1_g, self.fc1_x, self.act = nn.Linear(dim, hidden), nn.Linear(dim, hidden), nn.SiLU()
        self.norm, self.fc2 = nn.LayerNorm(hidden, eps) if norm else Identity(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(self.act(self.fc1_g(x)) * self.fc1_x(x)))


class EvaBlock(nn.Module):
    def __init__(self, dim: int, attn: nn.Module, mlp: nn.Module, scaled: bool, eps: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attn, self.mlp = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps), attn, mlp
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.ones(dim)) if scaled else None for _ in range(2))

    def forward(self, x: Tensor, *where: Any) -> Tensor:
        out = self.attn(self.norm1(x), *where)
        x = x + (out if self.gamma_1 is None else out * self.gamma_1)
        out = self.mlp(self.norm2(x))
        return x + (out if self.gamma_2 is None else out * self.gamma_2)


class EvaBlockPostNorm(EvaBlock):
    def forward(self, x: Tensor, *where: Any) -> Tensor:
        x = x + self.norm1(self.attn(x, *where))
        return x + self.norm2(self.mlp(x))


class Eva(VisionTransformer):
    """Arguments are timm's, but for `eps`, which is its layers'; `architecture` is for its files."""

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 32,
        patch_size: int = 8,
        in_chans: int = 3,
        num_classes: int = 5,
        global_pool: str = "avg",
        embed_dim: int = 32,
        depth: int = 2,
        num_heads: int = 4,
        qkv_bias: bool = True,
        qkv_fused: bool = True,
        mlp_ratio: float = 2.0,
        swiglu_mlp: bool = False,
        swiglu_align_to: int = 0,
        scale_mlp: bool = False,
        scale_attn_inner: bool = False,
        attn_type: str = "eva",
        init_values: float | None = None,
        class_token: bool = True,
        num_reg_tokens: int = 0,
        no_embed_class: bool = False,
        use_abs_pos_emb: bool = True,
        use_rot_pos_emb: bool = False,
        rope_type: str = "cat",
        rope_grid_offset: float = 0.0,
        rope_grid_indexing: str = "ij",
        rope_temperature: float = 10000.0,
        rope_rotate_half: bool = False,
        ref_feat_shape: tuple[int, int] | None = None,
        use_post_norm: bool = False,
        use_pre_transformer_norm: bool = False,
        use_post_transformer_norm: bool | None = None,
        use_fc_norm: bool | None = None,
        attn_pool_num_heads: int | None = None,
        attn_pool_mlp_ratio: float | None = None,
        eps: float = 1e-6,
        architecture: str = "eva02_base_patch14_224",
    ) -> None:
        nn.Module.__init__(self)
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__", "architecture")}
        self.architecture = architecture
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.num_classes, self.embed_dim, self.global_pool = num_classes, embed_dim, global_pool
        self.no_embed_class, self.grid = no_embed_class, (size[0] // patch_size, size[1] // patch_size)
        self.num_prefix_tokens = class_token + num_reg_tokens
        self.patch_embed = PatchEmbed(size, patch_size, in_chans, embed_dim, bias=not use_pre_transformer_norm)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, num_reg_tokens, embed_dim)) if num_reg_tokens else None
        self.dist_token = None
        placed = 0 if no_embed_class else self.num_prefix_tokens
        n = placed + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(torch.zeros(1, n, embed_dim)) if use_abs_pos_emb else None
        rope = {"cat": RotaryEmbeddingCat, "dinov3": RotaryEmbeddingDinoV3}.get(rope_type)
        turning = (rope_temperature, rope_rotate_half, rope_grid_indexing, rope_grid_offset, ref_feat_shape)
        self.rope = rope(embed_dim // num_heads, *turning) if rope and use_rot_pos_emb else None
        if rope_type == "mixed":
            width = embed_dim // num_heads
            self.rope = RotaryEmbeddingMixed(depth, num_heads, width, rope_temperature, rope_grid_indexing)
        self.norm_pre = nn.LayerNorm(embed_dim, eps) if use_pre_transformer_norm else Identity()
        hidden = int(embed_dim * mlp_ratio)

        def mlp() -> nn.Module:
            if not swiglu_mlp:
                made = Mlp(embed_dim, hidden, GELU())
                made.norm = nn.LayerNorm(hidden, eps) if scale_mlp else Identity()
                return made
            if not (scale_mlp or swiglu_align_to):
                return GluMlp(embed_dim, 2 * hidden, nn.SiLU())
            return SwiGLU(
                embed_dim, math.ceil(hidden / (swiglu_align_to or 1)) * (swiglu_align_to or 1), scale_mlp, eps
            )

        kind = AttentionRope if attn_type == "rope" else EvaAttention
        block = EvaBlockPostNorm if use_post_norm else EvaBlock
        scaled = init_values is not None and not use_post_norm
        self.blocks = nn.ModuleList(
            block(embed_dim, kind(embed_dim, num_heads, qkv_bias, qkv_fused, scale_attn_inner, eps), mlp(), scaled, eps)
            for _ in range(depth)
        )
        after = global_pool == "avg" if use_fc_norm is None else use_fc_norm
        before = not after if use_post_transformer_norm is None else use_post_transformer_norm
        self.norm = nn.LayerNorm(embed_dim, eps) if before else Identity()
        self.fc_norm = nn.LayerNorm(embed_dim, eps) if after else Identity()
        pooling = (attn_pool_num_heads or num_heads, int(embed_dim * (attn_pool_mlp_ratio or mlp_ratio)))
        self.attn_pool = AttentionPoolLatent(embed_dim, *pooling, GELU(), eps) if global_pool == "map" else None
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else Identity()

    def stream(self, x: Tensor) -> Tensor:
        """What enters block 0."""
        if self.pos_embed is not None:
            return super().stream(x)
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        prefix = [t.expand(len(x), -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        return self.norm_pre(torch.cat([*prefix, x], dim=1))

    def read(self, x: Tensor) -> Tensor:
        """Its attention pooling reads CLS and registers too."""
        return super().read(x) if self.attn_pool is None else self.head(self.attn_pool(self.norm(x)))

    def states(self, x: Tensor) -> tuple[Tensor, ...]:
        """The stream entering each block, and leaving the last one."""
        p = self.patch_embed.patch_size[0]
        grid, found = (x.shape[2] // p, x.shape[3] // p), [self.stream(x)]
        for i, block in enumerate(self.blocks):
            rope = self.rope.at(i) if isinstance(self.rope, RotaryEmbeddingMixed) else self.rope
            found.append(block(found[-1], rope, grid))
        return tuple(found)


CLASSES = timm_reference.CLASSES | {"Eva": Eva}
