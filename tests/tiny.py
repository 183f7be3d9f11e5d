"""Tiny original models of every supported class and variant, every parameter random so that none is inert."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from hooked_vit import HookedViT, architectures
from tests.hooked_vit.architectures.timm_eva_reference import CLASSES as TIMM_CLASSES

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
        """transformers resamples the positions of square native grids only, and AIMv2's learned ones never."""
        return not isinstance(self.image_size, int) or self.settings.get("is_native") is False


SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": IMAGE, "patch_size": PATCH}
MLP = {"intermediate_size": 64}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
TEXT |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


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


def _clip_relatives() -> Iterator[tuple[str, Tiny]]:
    """The same graph under other names; what differs is in what else their configs and checkpoints hold."""
    for name, stem in (("metaclip-2", "MetaClip2"), ("chinese-clip", "ChineseCLIP"), ("altclip", "AltCLIP")):
        yield f"{name}-full", Tiny(f"{stem}Model", {"projection_dim": 24})
        yield f"{name}-model", Tiny(f"{stem}VisionModel", {})
    yield "metaclip-2-projection", Tiny("MetaClip2VisionModelWithProjection", {"projection_dim": 24})
    yield "metaclip-2-classifier", Tiny("MetaClip2ForImageClassification", {})


# the decoder that MAE's checkpoints hold beside the encoder
DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
DECODER |= {"decoder_intermediate_size": 16}
# heads as wide as a power of four, as in the published models: transformers divides by the root of the width
EXACT_ROOT = {"num_attention_heads": 2, "use_absolute_position_embeddings": True}
# residual post-norm, no CLS, no bias of queries, keys and values: the GAP model of Vilas et al. 2023
RPN = {"architecture": "vit_base_patch16_rpn_224", "block_fn": "ResPostBlock", "class_token": False}
RPN |= {"global_pool": "avg", "qkv_bias": False, "init_values": 1e-5}
# timm's Eva: rotary positions counted from the pre-training grid, a gated MLP with a norm inside; Perception Encoder's
# count from one, columns first; DINOv3's are those of transformers
EVA02 = {"swiglu_mlp": True, "scale_mlp": True, "use_rot_pos_emb": True, "ref_feat_shape": (3, 3), "qkv_fused": False}
PERCEPTION = {"architecture": "vit_pe_spatial_base_patch16_512", "attn_type": "rope", "use_pre_transformer_norm": True}
PERCEPTION |= {"use_rot_pos_emb": True, "ref_feat_shape": (3, 2), "rope_grid_offset": 1.0, "rope_grid_indexing": "xy"}
PERCEPTION |= {"use_post_transformer_norm": False, "use_fc_norm": False, "init_values": 0.1, "eps": 1e-5}
# attention pooling over CLS and patches, in other heads than those of the blocks
PE_CORE = PERCEPTION | {"architecture": "vit_pe_core_base_patch16_224", "global_pool": "map"}
PE_CORE |= {
    "use_post_transformer_norm": True,
    "init_values": None,
    "attn_pool_num_heads": 2,
    "attn_pool_mlp_ratio": 3.0,
}
DINO_EVA = {"architecture": "vit_small_plus_patch16_dinov3", "use_abs_pos_emb": False, "use_rot_pos_emb": True}
DINO_EVA |= {"rope_type": "dinov3", "rope_temperature": 100.0, "rope_rotate_half": True, "use_fc_norm": False}
DINO_EVA |= {"num_reg_tokens": 2, "qkv_bias": False, "swiglu_mlp": True, "swiglu_align_to": 24, "eps": 1e-5}
DINO_EVA |= {"init_values": 1e-5}
MIXED = {"architecture": "vit_small_patch16_rope_mixed_ape_224", "attn_type": "rope", "use_rot_pos_emb": True}
MIXED |= {"rope_type": "mixed", "rope_temperature": 10.0, "rope_grid_indexing": "xy", "global_pool": "token"}
MIXED |= {"no_embed_class": True, "init_values": 1e-5}
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
    "dinov3": Tiny("DINOv3ViTModel", {"num_register_tokens": 3}),
    "dinov3-gated": Tiny("DINOv3ViTModel", {"use_gated_mlp": True, "hidden_act": "silu", "rope_theta": 10.0}),
    "dinov3-wide": Tiny("DINOv3ViTModel", {"image_size": (32, 48), "key_bias": True, "query_bias": False}),
    "dinov3-backbone": Tiny("DINOv3ViTBackbone", {"num_register_tokens": 1, "apply_layernorm": False}),
    "clip-model": Tiny("CLIPVisionModel", {}),
    "clip-projection": Tiny("CLIPVisionModelWithProjection", {"projection_dim": 24}),
    "clip-classifier": Tiny("CLIPForImageClassification", {}),
    "clip-gelu": Tiny("CLIPForImageClassification", {"hidden_act": "gelu"}),
    "clip-full": Tiny("CLIPModel", {"projection_dim": 24}),
    "siglip": Tiny("SiglipVisionModel", {}),
    "siglip-headless": Tiny("SiglipVisionModel", {"vision_use_head": False}),
    "siglip-classifier": Tiny("SiglipForImageClassification", {}),
    "siglip-full": Tiny("SiglipModel", {"hidden_act": "gelu"}),
    "msn": Tiny("ViTMSNForImageClassification", {}),
    "msn-model": Tiny("ViTMSNModel", {"qkv_bias": False}),
    "mae": Tiny("ViTMAEForPreTraining", DECODER),
    "mae-model": Tiny("ViTMAEModel", DECODER | {"qkv_bias": False}),
    "ijepa": Tiny("IJepaForImageClassification", {}),
    "ijepa-model": Tiny("IJepaModel", {}),
    "data2vec": Tiny("Data2VecVisionForImageClassification", BOTH_BIASES | EXACT_ROOT),
    "data2vec-shared": Tiny(
        "Data2VecVisionForImageClassification", {"use_shared_relative_position_bias": True} | EXACT_ROOT
    ),
    "data2vec-cls": Tiny("Data2VecVisionForImageClassification", {"use_mean_pooling": False} | EXACT_ROOT),
    "data2vec-model": Tiny("Data2VecVisionModel", {"use_relative_position_bias": True} | EXACT_ROOT),
    "data2vec-model-cls": Tiny("Data2VecVisionModel", {"use_mean_pooling": False} | EXACT_ROOT),
    "aimv2-model": Tiny("Aimv2VisionModel", {"use_head": False, "is_native": True}),
    "aimv2-biased": Tiny(
        "Aimv2VisionModel", {"use_head": False, "is_native": False, "qkv_bias": True, "mlp_bias": True}
    ),
    "aimv2-head": Tiny("Aimv2VisionModel", {"is_native": True, "qkv_bias": True}),
    "aimv2-full": Tiny("Aimv2Model", {"is_native": True, "projection_dim": 24}),
    **dict(_clip_relatives()),
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
    "timm-swiglu": Tiny("VisionTransformer", {"mlp_layer": "SwiGLUPacked", "act_layer": "silu", "init_values": 1e-5}),
    "timm-map": Tiny("VisionTransformer", MAP),
    "timm-distilled": Tiny("VisionTransformerDistilled", {}),
    "timm-eva": Tiny("Eva", {"architecture": "eva_giant_patch14_224"}),
    "timm-eva02": Tiny("Eva", EVA02),
    "timm-eva02-packed": Tiny("Eva", EVA02 | {"scale_mlp": False, "qkv_fused": True, "global_pool": "token"}),
    "timm-eva02-inner": Tiny("Eva", EVA02 | {"scale_attn_inner": True, "global_pool": "token"}),
    "timm-eva02-post": Tiny("Eva", {"use_post_norm": True, "architecture": "eva02_enormous_patch14_clip_224"}),
    "timm-pe": Tiny("Eva", PERCEPTION),
    "timm-pe-core": Tiny("Eva", PE_CORE),
    "timm-rope-mixed": Tiny("Eva", MIXED),
    "timm-dinov3": Tiny("Eva", DINO_EVA),
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
# another family's graph to the last part, under other names: what is of the graph alone runs once, on the other family
RELATIVES = ("msn", "msn-model", "mae", "mae-model")
RELATIVES += ("data2vec", "data2vec-shared", "data2vec-cls", "data2vec-model-cls")
RELATIVES += tuple(name for name, _ in _clip_relatives())
LOADED = tuple(name for name in TINY if name in BEITS or not name.startswith(("beit-mean", "beit-cls")))
CORE = tuple(name for name in LOADED if name not in RELATIVES)
# one of each readout, kind of token and kind of position, all with a head: what the contracts run over
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
    "timm-dinov3",
)
# without CLS, where norms stand behind or inside the branches, where a probe pools: what must hold of every graph
GRAPHS = (
    *FAMILIES,
    "dinov3",
    "timm-rpn-cls",
    "timm-rpn",
    "timm-eva02-inner",
    "ijepa",
    "aimv2-head",
    "siglip",
    "timm-pe-core",
)


def make_hf(name: str, **changes: Any) -> nn.Module:
    """A new original model, the same random weights every time, eager and in eval mode; with other settings."""
    case = TINY[name]._replace(settings=TINY[name].settings | changes)
    torch.manual_seed(zlib.crc32(name.encode()))
    if case.hf_class in TIMM_CLASSES:
        return _randomised(TIMM_CLASSES[case.hf_class](**case.settings))
    hf_class = getattr(transformers, case.hf_class)
    settings = SIZE | ({} if "Dinov2" in case.hf_class else MLP) | case.settings
    if "vision_config" in hf_class.config_class.sub_configs:
        # only the projection's width is said outside the tower's own config
        outer = {"projection_dim": settings.pop("projection_dim")} if "projection_dim" in settings else {}
        text = TEXT | ({"projection_size": 32} if case.hf_class.startswith("Siglip") else {})
        config = hf_class.config_class(vision_config=settings, text_config=text, **outer)
    else:
        config = hf_class.config_class(**settings)
    config.num_labels = CLASSES
    config.architectures = [case.hf_class]
    return _randomised(hf_class(config))


def set_kernel(model: nn.Module, kernel: str) -> None:
    """Switch the original's attention to "eager" or "sdpa"."""
    architectures.for_class(type(model).__name__).set_kernel(model, kernel)


def _randomised(model: nn.Module) -> nn.Module:
    model = model.eval()
    for module in model.modules():
        if "inv_freq" in module._buffers:
            # from_pretrained keeps the frequencies of rotary positions in float32; a cast afterwards would round them
            module._apply = lambda fn, *recurse, of=module: nn.Module._apply(of, lambda t: t.to(fn(t).device), *recurse)
    set_kernel(model, "eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    for module in model.modules():
        if type(module).__name__ == "Aimv2RMSNorm":
            module.forward = MethodType(_in_double, module)
    return model


def _in_double(norm: nn.Module, x: Tensor) -> Tensor:
    """Their RMS norm is float32 in a float64 model too; there, and there alone, the same formula in float64."""
    if x.dtype != torch.float64:
        return type(norm).forward(norm, x)
    return norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon))


SHARED: dict[str, tuple[nn.Module, HookedViT]] = {}


def tiny(name: str) -> tuple[nn.Module, HookedViT]:
    """The transformers model and ours, shared by all tests: look, don't touch."""
    if name not in SHARED:
        hf = make_hf(name)
        SHARED[name] = hf, HookedViT.from_hf(hf)
    return SHARED[name]


def make(name: str, dtype: torch.dtype = torch.float64) -> HookedViT:
    """A model of one's own, to change."""
    return HookedViT.from_hf(make_hf(name).to(dtype))


def processor_of(size: tuple[int, int]) -> Any:
    """An image processor that makes images of (height, width) pixels of any."""
    return transformers.ViTImageProcessorPil(size=dict(zip(("height", "width"), size, strict=True)))


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
    "ViTMSNModel": lambda hf, out: out.last_hidden_state[:, 0],
    "ViTMAEModel": lambda hf, out: out.last_hidden_state[:, 0],
    "ViTMAEForPreTraining": lambda hf, out: out.last_hidden_state[:, 0],
    "Aimv2VisionModel": lambda hf, out: out.pooler_output if hf.use_head else out.last_hidden_state.mean(1),
    "Aimv2Model": lambda hf, out: out.pooler_output,
    "IJepaModel": lambda hf, out: out.last_hidden_state.mean(1),
    "Data2VecVisionModel": lambda hf, out: (
        out.last_hidden_state[:, 1:].mean(1) if hf.config.use_mean_pooling else out.last_hidden_state[:, 0]
    ),
    **{
        f"{stem}{kind}": read
        for stem in ("CLIP", "MetaClip2", "ChineseCLIP", "AltCLIP")
        for kind, read in (
            ("VisionModel", lambda hf, out: out.pooler_output),
            ("VisionModelWithProjection", lambda hf, out: out.image_embeds),
            ("Model", lambda hf, out: out.pooler_output),
        )
    },
    "DINOv3ViTModel": lambda hf, out: out.pooler_output,
    "DINOv3ViTBackbone": lambda hf, out: out.feature_maps[0].flatten(2).mT.contiguous().mean(1),
    # a tower without its pooling head gives tokens only
    "SiglipVisionModel": lambda hf, out: out.pooler_output if hf.use_head else out.last_hidden_state.mean(1),
    "SiglipModel": lambda hf, out: out.pooler_output,
}


def answer(hf: nn.Module, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What transformers computes: its output, and the hidden state entering each block and leaving the last one."""
    hf_class = type(hf).__name__
    if hf_class in TIMM_CLASSES:
        return hf(x), hf.states(x)
    family = architectures.for_class(hf_class)
    native = hf.config.vision_config.image_size if hasattr(hf.config, "vision_config") else hf.config.image_size
    native = (native, native) if isinstance(native, int) else tuple(native)
    flags = {} if tuple(x.shape[2:]) == native else dict(family.foreign_size_flags)
    with family.as_read(hf, x) as (forward, more):
        out = forward(pixel_values=x, output_hidden_states=True, **flags, **more)

    read = ANSWERS.get(hf_class, lambda hf, out: out.logits)
    return read(hf, out), tuple(out.hidden_states)


def size_ids(size: tuple[int, int]) -> str:
    """48x40, for test names."""
    return "x".join(map(str, size))


def sizes(name: str) -> list[tuple[int, int]]:
    """Image sizes transformers can run this variant on, the native one first."""
    native = TINY[name].image_size
    return [(native, native) if isinstance(native, int) else native] if TINY[name].is_native_only else list(SIZES)


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
