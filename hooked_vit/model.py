"""One hooked Vision Transformer for every family: the forward pass is the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from PIL import Image
from torch import Tensor, nn

from hooked_vit.components.block import Block
from hooked_vit.components.embedding import Embedding, PositionEmbedding, RelativePositionBias, SinCosPositions
from hooked_vit.components.norms import norm_of
from hooked_vit.components.readout import Readout
from hooked_vit.components.watching import HookPoint, watched
from hooked_vit.config import ViTConfig
from hooked_vit.config.showing import Displayed, bare, counted, one_line
from hooked_vit.config.spoken import what_is_read
from hooked_vit.hooking import Hooking
from hooked_vit.loading import checkpoints
from hooked_vit.processing import preprocess
from hooked_vit.running import Running, as_python, leave_alone, plainly
from hooked_vit.tokens import Run, TokenLayout
from hooked_vit.weights import Weights


def _positions(cfg: ViTConfig) -> PositionEmbedding | SinCosPositions | None:
    if not cfg.absolute_positions:
        return None
    return SinCosPositions(cfg) if cfg.positions == "sincos" else PositionEmbedding(cfg)


class HookedViT(Displayed, Readout, Weights, Running, Hooking):
    """ViT, DeiT, BEiT, DINOv2, CLIP and more as one graph of TransformerLens hook points.

    >>> model = HookedViT.from_pretrained("facebook/deit-tiny-patch16-224")  # doctest: +SKIP
    >>> logits, cache = model.run_with_cache(model.preprocess(images))  # doctest: +SKIP

    `HookedViT(cfg)` has random weights. Hook names and shapes: `hooked-vit hooks MODEL`, or `model.describe_hooks()`.
    """

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.run = Run(TokenLayout.native(cfg.prefix, cfg.grid, cfg.image_size))
        self.processor: Any = None
        self.hook_pixels = HookPoint()
        self.embed = Embedding(cfg)
        self.hook_embed = HookPoint()
        self.pos_embed = _positions(cfg)
        self.hook_pos_embed = HookPoint()
        self.ln_pre = norm_of(cfg) if cfg.ln_pre else None
        self.rel_pos = RelativePositionBias(cfg) if cfg.rel_pos_shared else None
        self.blocks = nn.ModuleList(Block(cfg, self.run, self.rel_pos) for _ in range(cfg.n_layers))
        self._build_readout(cfg)
        self.setup()
        self._initialise()
        self.eval()

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kw: Any) -> HookedViT:
        """Load a hub checkpoint or a local folder; strict both ways, float32 unless `dtype` says otherwise.

        >>> model = HookedViT.from_pretrained("facebook/dinov2-base")  # doctest: +SKIP
        >>> model = HookedViT.from_pretrained("timm/vit_base_patch32_224.augreg_in21k_ft_in1k")  # doctest: +SKIP

        Keywords: dtype, device, revision, local_files_only, cache_dir, token. Any other is a setting of its config,
        changed as in transformers: `hidden_act="relu"`. Raises UnsupportedModelError for a class without a graph,
        CheckpointError for a tensor or config attribute without a place in it or a tensor that a changed setting would
        need, and TypeError for a setting its config has not.
        """
        return checkpoints.from_pretrained(cls, str(name_or_path), **kw)

    @classmethod
    def from_hf(cls, hf_model: nn.Module, *, processor: Any = None) -> HookedViT:
        """The same model from one that transformers or timm holds in memory; weights are copied, dtype and device kept.

        >>> model = HookedViT.from_hf(transformers.ViTForImageClassification(config))  # doctest: +SKIP
        >>> model = HookedViT.from_hf(timm.create_model("vit_base_patch16_rpn_224"))  # doctest: +SKIP
        """
        return checkpoints.from_hf(cls, hf_model, processor=processor)

    @classmethod
    def from_state_dict(
        cls,
        tensors: Mapping[str, Tensor] | str | Path,
        architecture: str,
        *,
        prefix: str = "",
        drop: Sequence[str] = (),
        part: str | None = None,
        **settings: Any,
    ) -> HookedViT:
        """Weights alone, of a model that timm has a name for; nothing of timm is imported.

        >>> model = HookedViT.from_state_dict("mine.pth", "vit_base_patch16_224", num_classes=100)  # doctest: +SKIP

        `tensors` is a state dict or a file of one (.safetensors, .pth; inside other entries, such as `model` or
        `state_dict`, it is found too). Where there are several, as of a teacher and a student, `part` says which.
        `settings` are timm's keyword arguments where they differ from those of `architecture`, or `dtype`. `prefix` is
        taken off every name, and `drop` lists the tensors to leave out, as patterns with `*`.
        Raises UnsupportedModelError for an architecture nobody knows, CheckpointError for a tensor without a place, a
        place without a tensor, a name without the prefix, and a pattern in `drop` that fits none.
        """
        return checkpoints.from_state_dict(cls, tensors, architecture, prefix=prefix, drop=drop, part=part, **settings)

    def forward(
        self,
        x: Shaped[Tensor, "b ..."] | Any,
        *,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        tokens: TokenLayout | None = None,
    ) -> Float[Tensor, "b ..."]:
        """Pixels [b c h w] to logits [b classes]; or the residual stream [b t d] from and to any layer.

        >>> model("cat.jpg")  # pictures and paths pass through `preprocess` first  # doctest: +SKIP
        >>> model(model(pixels, stop_at_layer=3), start_at_layer=3)  # doctest: +SKIP

        `stop_at_layer=k` returns the stream entering block k, `start_at_layer=k` resumes there. `tokens` says which
        tokens a resumed stream holds, where they are not the native ones and it did not come straight from a stop.
        Raises TypeError for what is neither, ValueError for pixels of the wrong shape or with NaN, for a layer out of
        range, and for a stream that may hold other tokens than the native ones and does not say so.
        """
        leave_alone()
        if start_at_layer is None and isinstance(x, (Image.Image, str, Path, list, tuple)):
            x = self.preprocess(x)
        start = 0 if start_at_layer is None else self._depth(start_at_layer, "start_at_layer")
        stop = self.cfg.n_layers if stop_at_layer is None else self._depth(stop_at_layer, "stop_at_layer")
        if start > stop:
            raise ValueError(f"the stream enters block {start}, so it cannot stop in front of block {stop}")
        check = plainly(self.check_pixels)
        layout = check(x) if start_at_layer is None else self._layout_of(x, tokens)
        with self.running(layout):
            self.run.n_forwards += 1
            whole = start_at_layer is None, stop_at_layer is None
            out = as_python(self._pass)(x, start, stop, whole) if self._hooked() else self._pass(x, start, stop, whole)
            if stop_at_layer is not None:
                out._tokens = self.run.tokens  # type: ignore[attr-defined]  # so that a resumed run still knows them
            return out

    def _pass(self, x: Tensor, start: int, stop: int, whole: tuple[bool, bool]) -> Tensor:
        """From pixels or the stream entering block `start`, to logits or the stream entering block `stop`."""
        from_pixels, to_logits = whole
        stream = self.embed_pixels(x) if from_pixels else x
        for block in self.blocks[start:stop]:
            stream = block(stream)
        if to_logits:
            return self.readout(stream)
        kept = watched(self.blocks[stop - 1].hook_resid_post if stop > start else self.hook_embed)
        return stream.clone() if kept or stream is x else stream  # the caller's own, and no hook's or his of before

    def embed_pixels(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        """The residual stream entering block 0."""
        pixels = pixels.to(self.embed.patch.weight.dtype)
        x = self.embed(self.hook_pixels(pixels))
        if self.ln_pre is not None:
            # positions are added in front of a norm, so the stream starts behind it
            return self.hook_embed(self.ln_pre(x + self._positions(x)))
        x = self.hook_embed(x)
        if self.pos_embed is None and not watched(self.hook_pos_embed):
            return x
        return x + self._positions(x)

    def _positions(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        if self.pos_embed is None:
            return self.hook_pos_embed(torch.zeros_like(x).requires_grad_(x.requires_grad))
        pos = self.pos_embed(self.run.tokens.grid)
        if x.requires_grad and not pos.requires_grad:
            pos = pos.detach().requires_grad_()  # a gradient reaches what is computed or frozen at its hook too
        return self.hook_pos_embed(pos.expand(len(x), -1, -1))

    def insert_tokens(
        self,
        x: Float[Tensor, "b t d"],
        at: int,
        vectors: Float[Tensor, "..."],
        *,
        role: str = "inserted",
        donor: int | None = 0,
    ) -> Float[Tensor, "b after d"]:
        """Inside a hook on the residual stream: the stream with new tokens [n d] or [b n d] in front of position `at`.

        Roles, the readout and position lookups follow. `donor` is the original token whose relative-position entries
        or rotary position the new ones use (0, the CLS token, unless said otherwise; None for none).
        """
        self._require_run(x)
        b, _, d = x.shape
        if vectors.ndim < 2 or vectors.shape[-1] != d or vectors.shape[:-2] not in ((), (1,), (b,)):
            raise ValueError(f"new tokens are [n, {d}] or [{b}, n, {d}], got {tuple(vectors.shape)}")
        vectors = vectors.to(x).expand(len(x), *vectors.shape[-2:])
        n = x.shape[1]
        self.run.tokens = self.run.tokens.insert(at, vectors.shape[1], role=role, donor=donor)
        at = at % (n + 1)
        return torch.cat([x[:, :at], vectors, x[:, at:]], dim=1)

    def keep_tokens(self, x: Float[Tensor, "b t d"], places: Int[Tensor, "*b k"]) -> Float[Tensor, "b k d"]:
        """Inside a hook on the residual stream: only the tokens at these positions, in this order; -1 pads.

        Positions may differ from image to image ([b, k]); padded places are masked out of attention and readout.
        """
        self._require_run(x)
        if not -1 <= int(places.min()) <= int(places.max()) < x.shape[1]:
            raise ValueError(f"positions to keep are 0 to {x.shape[1] - 1}, or -1 for padding; got {places.tolist()}")
        self.run.tokens = self.run.tokens.keep(places.cpu())
        places = places.to(x.device).expand(len(x), -1)
        return x.gather(1, places.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])) * (places >= 0)[..., None]

    def _require_run(self, x: Tensor) -> None:
        if not self.run.depth:
            raise RuntimeError("tokens are inserted and removed inside a hook, or inside `with model.running(layout)`")
        if x.ndim != 3 or x.shape[1] != self.run.tokens.n_tokens:
            raise ValueError(
                f"tokens are inserted into and removed from the residual stream [b, {self.run.tokens.n_tokens}, d], "
                f"got {tuple(x.shape)}"
            )

    def shared_copy(self) -> HookedViT:
        """A second model on the same weights: hooks, readout and head of one do not touch the other.

        >>> probe_model = model.shared_copy()  # doctest: +SKIP
        """
        keep = (*self.parameters(), *self.buffers(), self.processor, self.run.lookalikes)
        return deepcopy(self, {id(kept): kept for kept in keep})

    def __copy__(self) -> HookedViT:
        """torch's own copy.copy shares the modules too, and a change of one model's head would be half of another's."""
        return self.shared_copy()

    def __repr__(self) -> str:
        cfg = self.cfg
        gives = "features" if cfg.is_feature_model else counted(cfg.n_classes or 0, "class", "classes")
        held = " + ".join(f"{n} {role}" for role, n in self.tokens.counts.items())
        return one_line(
            f"HookedViT({cfg.name or cfg.architecture}: {counted(cfg.n_layers, 'layer')}, "
            f"{counted(cfg.n_heads, 'head')}, d_model {cfg.d_model}, {held}, {gives} from "
            f"{' and '.join(cfg.sources)}, {bare(self.dtype)} on {self.device})"
        )

    def _rows(self) -> dict[str, object]:
        cfg = self.cfg
        return {
            "name": cfg.name or cfg.architecture,
            "architecture": cfg.hf_class or cfg.architecture,
            "blocks": f"{counted(cfg.n_layers, 'layer')} of {counted(cfg.n_heads, 'head')}, d_model {cfg.d_model}",
            "tokens": self.tokens,
            "gives": f"{cfg.d_out} {'features' if cfg.is_feature_model else 'classes'}",
            "read from": what_is_read(cfg),
            "weights": f"{sum(p.numel() for p in self.parameters()):,}, {bare(self.dtype)} on {self.device}",
            "more": ".cfg, .describe_hooks(), .tokens, .layout_for(pixels)",
        }

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.embed.patch.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are kept in."""
        return self.embed.patch.weight.dtype

    def set_attention(self, kernel: str) -> None:
        """Which kernel mixes values: "auto" the fused one, "eager" never, "sdpa" always, refusing what it cannot show.

        Under "auto" scores and patterns are formed beside the fused kernel for who watches them, and take its place
        where a hook edits them. Kernels differ by rounding (1e-6 in float32, 1e-3 in bfloat16): for a comparison that
        is meant to be exact, run both sides under "eager".
        """
        if kernel not in ("auto", "eager", "sdpa"):
            raise ValueError(f'attention is "auto", "eager" or "sdpa", got {kernel!r}')
        with self.run.held():
            self.run.attention = kernel

    def preprocess(self, images: Any, *, channels: str | None = None) -> Float[Tensor, "b c h w"]:
        """Images to pixels, by the checkpoint's own image processor.

        >>> pixels = model.preprocess("cat.jpg")  # or a PIL image, a list, a datasets column  # doctest: +SKIP
        >>> pixels = model.preprocess(array, channels="last")  # [h w c], uint8 or 0.0 to 1.0  # doctest: +SKIP

        Raises ValueError for what is no image, and for an array of three axes that does not say where its channels are.
        """
        return preprocess(self.processor, images, like=self.embed.patch.weight, channels=channels)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Truncated normal weights of standard deviation 0.02 and zero biases, as all the families initialise."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
