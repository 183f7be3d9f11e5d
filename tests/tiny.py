"""Tiny original models of every supported class and variant, every parameter random so that none is inert."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from hooked_vit import HookedViT, architectures
from tests.hooked_vit.architectures import timm_reference

IMAGE, PATCH, CLASSES = 32, 8, 5
# wider, taller with the native number of patches, and larger on both sides; the first is native
SIZES = ((IMAGE, IMAGE), (48, 40), (16, 64), (64, 64))


class Tiny(NamedTuple):
    """A class of transformers or timm, and what its config says besides the common sizes."""

    hf_class: str
    settings: dict[str, Any]

    @property
    def image_size(self) -> int | tuple[int, int]:
        """As its config spells it."""
        return self.settings.get("image_size", self.settings.get("img_size", IMAGE))

    @property
    def is_native_only(self) -> bool:
        """transformers resamples the positions of square native grids only."""
        return not isinstance(self.image_size, int)


SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": IMAGE, "patch_size": PATCH}
MLP = {"intermediate_size": 64}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
TEXT |= {"bos_token_id": 0, "eos_token_id": 1}


def _beits() -> Iterator[tuple[str, Tiny]]:
    for pooling in ("mean", "cls"):
        for bias in ("layer", "shared", "both", "none"):
            for absolute in (False, True):
                for scale in (0.1, 0):
                    parts = ["beit", pooling, bias, *["abs"] * absolute, *["unscaled"] * (not scale)]
                    yield (
                        "-".join(parts),
                        Tiny(
                            "BeitForImageClassification",
                            {
                                "use_mean_pooling": pooling == "mean",
                                "use_relative_position_bias": bias in ("layer", "both"),
                                "use_shared_relative_position_bias": bias in ("shared", "both"),
                                "use_absolute_position_embeddings": absolute,
                                "layer_scale_init_value": scale,
                            },
                        ),
                    )


# residual post-norm, no CLS, no bias of queries, keys and values: the GAP model of Vilas et al. 2023
RPN = {"architecture": "vit_base_patch16_rpn_224", "block_fn": "ResPostBlock", "class_token": False}
RPN |= {"global_pool": "avg", "qkv_bias": False, "init_values": 1e-5}
MAP = {"architecture": "vit_base_patch16_siglip_256", "global_pool": "map", "class_token": False}
MAP |= {"act_layer": "gelu_tanh"}
BOTH_BIASES = {"use_relative_position_bias": True, "use_shared_relative_position_bias": True}
TINY: dict[str, Tiny] = {
    "vit": Tiny("ViTForImageClassification", {}),
    "vit-model": Tiny("ViTModel", {}),
    "vit-no-qkv-bias": Tiny("ViTForImageClassification", {"qkv_bias": False}),
    "vit-gray": Tiny("ViTForImageClassification", {"num_channels": 1, "patch_size": 4, "layer_norm_eps": 1e-3}),
    "vit-wide": Tiny("ViTForImageClassification", {"image_size": (32, 48), "hidden_act": "gelu_new"}),
    "deit": Tiny("DeiTForImageClassification", {}),
    "deit-model": Tiny("DeiTModel", {"qkv_bias": False}),
    "deit-teacher": Tiny("DeiTForImageClassificationWithTeacher", {}),
    **dict(_beits()),
    "beit-model": Tiny("BeitModel", BOTH_BIASES),
    "beit-model-cls": Tiny("BeitModel", BOTH_BIASES | {"use_mean_pooling": False}),
    "beit-masked": Tiny("BeitForMaskedImageModeling", BOTH_BIASES | {"use_mask_token": True, "vocab_size": 11}),
    "dinov2": Tiny("Dinov2ForImageClassification", {}),
    "dinov2-model": Tiny("Dinov2Model", {"qkv_bias": False, "mlp_ratio": 2}),
    "dinov2-swiglu": Tiny("Dinov2ForImageClassification", {"use_swiglu_ffn": True, "hidden_act": "relu"}),
    "registers": Tiny("Dinov2WithRegistersForImageClassification", {"num_register_tokens": 3}),
    "registers-model": Tiny("Dinov2WithRegistersModel", {"num_register_tokens": 2, "use_swiglu_ffn": True}),
    "clip-model": Tiny("CLIPVisionModel", {}),
    "clip-projection": Tiny("CLIPVisionModelWithProjection", {"projection_dim": 24}),
    "clip-classifier": Tiny("CLIPForImageClassification", {}),
    "clip-gelu": Tiny("CLIPForImageClassification", {"hidden_act": "gelu"}),
    "clip-full": Tiny("CLIPModel", {"projection_dim": 24}),
    "siglip": Tiny("SiglipVisionModel", {}),
    "siglip-headless": Tiny("SiglipVisionModel", {"vision_use_head": False}),
    "siglip-classifier": Tiny("SiglipForImageClassification", {}),
    "siglip-full": Tiny("SiglipModel", {"hidden_act": "gelu"}),
    "timm": Tiny("VisionTransformer", {}),
    "timm-no-qkv-bias": Tiny("VisionTransformer", {"qkv_bias": False, "architecture": "vit_base_patch16_224_miil"}),
    "timm-rpn": Tiny("VisionTransformer", RPN),
    "timm-rpn-cls": Tiny("VisionTransformer", {"block_fn": "ResPostBlock"}),
    "timm-avg": Tiny("VisionTransformer", {"global_pool": "avg", "init_values": 1e-5, "mlp_ratio": 3.0}),
    "timm-gap": Tiny("VisionTransformer", {"global_pool": "avg", "class_token": False, "fc_norm": False}),
    "timm-registers": Tiny("VisionTransformer", {"reg_tokens": 3, "no_embed_class": True, "init_values": 1e-5}),
    "timm-placed-registers": Tiny("VisionTransformer", {"reg_tokens": 2, "global_pool": "avg", "class_token": False}),
    "timm-deit3": Tiny("VisionTransformer", {"no_embed_class": True, "init_values": 1e-6}),
    "timm-clip": Tiny("VisionTransformer", {"pre_norm": True, "act_layer": "quick_gelu", "eps": 1e-5}),
    "timm-no-final-norm": Tiny("VisionTransformer", {"final_norm": False}),
    "timm-features": Tiny("VisionTransformer", {"num_classes": 0, "img_size": (32, 48), "in_chans": 1}),
    "timm-map": Tiny("VisionTransformer", MAP),
    "timm-distilled": Tiny("VisionTransformerDistilled", {}),
}
# of the product of BEiT's settings, eight in which every two settings meet in each of their combinations
BEITS = (
    "beit-mean-layer-unscaled",
    "beit-cls-layer-abs",
    "beit-mean-shared-abs",
    "beit-cls-shared-unscaled",
    "beit-mean-both",
    "beit-cls-both-abs-unscaled",
    "beit-mean-none-abs-unscaled",
    "beit-cls-none",
)
CORE = tuple(name for name in TINY if name in BEITS or not name.startswith(("beit-mean", "beit-cls")))
# one of each readout, kind of token and kind of position: what the contracts run over
FAMILIES = (
    "vit",
    "deit",
    "deit-teacher",
    "beit-mean-both",
    "beit-cls-shared-abs",
    "dinov2",
    "dinov2-swiglu",
    "registers",
    "clip-projection",
    "clip-classifier",
    "timm-registers",
)
# where the norms stand behind the branches, where there is no CLS, where a probe pools: what holds of every graph
GRAPHS = (*FAMILIES, "timm-rpn-cls", "timm-rpn", "siglip", "siglip-classifier", "timm-map")


def make_hf(name: str) -> nn.Module:
    """A new original model, the same random weights every time, eager and in eval mode."""
    case = TINY[name]
    torch.manual_seed(zlib.crc32(name.encode()))
    if case.hf_class in timm_reference.CLASSES:
        return _randomised(timm_reference.CLASSES[case.hf_class](**case.settings))
    hf_class = getattr(transformers, case.hf_class)
    settings = SIZE | ({} if "Dinov2" in case.hf_class else MLP) | case.settings
    if case.hf_class in ("CLIPModel", "CLIPForImageClassification"):
        # only the projection's width is said outside the tower's own config
        outer = {"projection_dim": settings.pop("projection_dim")} if "projection_dim" in settings else {}
        config = transformers.CLIPConfig(vision_config=settings, text_config=TEXT, **outer)
    elif case.hf_class in ("SiglipModel", "SiglipForImageClassification"):
        config = transformers.SiglipConfig(vision_config=settings, text_config=TEXT | {"projection_size": 32})
    else:
        config = hf_class.config_class(**settings)
    config.num_labels = CLASSES
    config.architectures = [case.hf_class]
    return _randomised(hf_class(config))


def _randomised(model: nn.Module) -> nn.Module:
    model = model.eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


@cache
def tiny(name: str) -> tuple[nn.Module, HookedViT]:
    """The transformers model and ours, shared by all tests: look, don't touch."""
    hf = make_hf(name)
    return hf, HookedViT.from_hf(hf)


def make(name: str, dtype: torch.dtype = torch.float64) -> HookedViT:
    """A model of one's own, to change."""
    return HookedViT.from_hf(make_hf(name).to(dtype))


def pixels(model: HookedViT, size: tuple[int, int] | None = None, *, n: int = 3, seed: int = 0) -> Tensor:
    """Random images of the native size, or of (height, width), in the model's dtype."""
    shape = (n, model.cfg.n_channels, *(size or model.cfg.image_size))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return noise.to(model.embed.patch.weight.dtype)


# What each class answers. ViTModel's and DeiTModel's tanh pooler is read by no classifier, so CLS is the answer;
# BeitForMaskedImageModeling predicts visual tokens, so what those heads read at CLS is.
ANSWERS: dict[str, Callable[[Any, Any], Tensor]] = {
    "ViTModel": lambda hf, out: out.last_hidden_state[:, 0],
    "DeiTModel": lambda hf, out: out.last_hidden_state[:, 0],
    "BeitModel": lambda hf, out: out.pooler_output,
    "BeitForMaskedImageModeling": lambda hf, out: hf.layernorm(out.hidden_states[-1])[:, 0],
    "Dinov2Model": lambda hf, out: out.pooler_output,
    "Dinov2WithRegistersModel": lambda hf, out: out.pooler_output,
    "CLIPVisionModel": lambda hf, out: out.pooler_output,
    "CLIPVisionModelWithProjection": lambda hf, out: out.image_embeds,
    "CLIPModel": lambda hf, out: out.pooler_output,
    # a tower without its pooling head gives tokens only
    "SiglipVisionModel": lambda hf, out: out.pooler_output if hf.use_head else out.last_hidden_state.mean(1),
    "SiglipModel": lambda hf, out: out.pooler_output,
}


def answer(hf: nn.Module, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What transformers computes: its output, and the hidden state entering each block and leaving the last one."""
    hf_class = type(hf).__name__
    if hf_class in timm_reference.CLASSES:
        return hf(x), hf.states(x)
    family = architectures.for_class(hf_class)
    native = hf.config.vision_config.image_size if hasattr(hf.config, "vision_config") else hf.config.image_size
    native = (native, native) if isinstance(native, int) else tuple(native)
    flags = {} if tuple(x.shape[2:]) == native else dict(family.foreign_size_flags)
    forward = getattr(hf, "get_image_features", hf)
    out = forward(pixel_values=x, output_hidden_states=True, **flags)
    read = ANSWERS.get(hf_class, lambda hf, out: out.logits)
    return read(hf, out), tuple(out.hidden_states)


def size_ids(size: tuple[int, int]) -> str:
    """48x40, for test names."""
    return "x".join(map(str, size))


def sizes(name: str) -> list[tuple[int, int]]:
    """Image sizes transformers can run this variant on, the native one first."""
    return [tuple(TINY[name].image_size)] if TINY[name].is_native_only else list(SIZES)


class Letters:
    """A tokenizer with an id for every letter; pads are zeros, and the end of a text is the tower's end token."""

    def __call__(self, texts, *, padding, return_tensors, max_length=None) -> dict[str, Tensor]:
        assert return_tensors == "pt"
        ids = [[*(2 + ord(letter) % 40 for letter in text), 1] for text in texts]
        longest = max(map(len, ids))
        width = max(max_length, longest) if padding == "max_length" else longest
        rows = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
        return {"input_ids": rows, "attention_mask": mask}


@contextmanager
def attention(model: HookedViT, kernel: str) -> Iterator[HookedViT]:
    """A shared model with another kernel for a while."""
    before = model.run.attention
    model.set_attention(kernel)
    try:
        yield model
    finally:
        model.set_attention(before)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value where that exceeds one; infinite for another shape or NaN."""
    if ours.shape != theirs.shape:
        return float("inf")
    apart = ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)).item()
    return apart if apart == apart else float("inf")


@torch.no_grad()
def assert_parity(hf: nn.Module, model: HookedViT, x: Tensor, *, at_most: float = 0.0, kernel: str = "eager") -> None:
    """The output and every hidden state are those of transformers."""
    n = model.cfg.n_layers
    names = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(n)), f"blocks.{n - 1}.hook_resid_post"]
    with attention(model, kernel):
        logits, kept = model.run_with_cache(x, names_filter=names)
    want, states = answer(hf, x)
    assert len(states) == len(names)
    apart = {"logits": distance(logits, want)}
    apart |= {name: distance(kept[name], state) for name, state in zip(names, states, strict=True)}
    assert max(apart.values()) <= at_most, apart
