"""Models of timm, without timm: from its state dicts, its folders and its models in memory; and as published studies
used them. Parity, hooks and folding of this family are checked where those of all families are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from analyses.running.models import check_model, load_model
from hooked_vit import HookedViT, architectures, published
from hooked_vit.errors import CheckpointError, UnsupportedModelError
from hooked_vit.loading.described import read_config
from interventions import apply
from tests.hooked_vit.architectures import timm_reference
from tests.interventions.cases import OURS, cases, setting
from tests.tiny import TINY, distance, make_hf, pixels, sizes, tiny

VARIANTS = [name for name in TINY if name.startswith("timm")]
TIMM = architectures.get("timm").files
assert TIMM is not None


def arguments(name: str) -> dict:
    return dict(make_hf(name).arguments)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_state_dict_alone_gives_the_same_logits(name):
    reference, model = tiny(name)
    tensors = {f"net.{key}": tensor for key, tensor in reference.state_dict().items()}
    ours = HookedViT.from_state_dict(tensors, reference.architecture, prefix="net.", **arguments(name))
    assert ours.cfg == model.cfg
    x = pixels(model)
    with torch.no_grad():
        assert distance(ours(x), reference(x)) <= 3e-6  # fused here, eager there
    twin = HookedViT.from_state_dict(
        reference.state_dict(), reference.architecture, dtype=torch.float64, **arguments(name)
    )
    with torch.no_grad():
        assert distance(twin(x.double()), make_hf(name).double()(x.double())) <= 1e-12


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", "-nested.pth"])
def test_a_file_of_a_state_dict(suffix, tmp_path):
    reference, model = tiny("timm-rpn")
    file, tensors = tmp_path / f"weights{suffix}", reference.state_dict()
    if suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save({"state_dict": tensors, "epoch": 3} if "nested" in suffix else tensors, file)
    ours = HookedViT.from_state_dict(file, "vit_base_patch16_rpn_224.sw_in1k", **arguments("timm-rpn"))
    assert torch.equal(ours(pixels(model)), model(pixels(model)))


def test_code_in_a_file_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was-run",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="no file of tensors that can be read safely"):
        HookedViT.from_state_dict(tmp_path / "evil.pth", "vit_base_patch16_224")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        HookedViT.from_state_dict(tmp_path / "list.pth", "vit_base_patch16_224")
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("name", sorted(TIMM.named()))
def test_every_model_it_has_a_name_for_has_a_graph(name):
    their_class, settings = TIMM.settings(name, depth=1)
    cfg = read_config(settings, their_class)
    with torch.device("meta"):
        shapes = {key: tuple(p.shape) for key, p in HookedViT(cfg).named_parameters()}
    assert shapes["blocks.0.attn.q.weight"] == (cfg.d_model, cfg.d_model)
    # EVA averages its patches with and without CLS
    assert (
        their_class == "Eva"
        or name.startswith("eva")
        or cfg.has_cls == (cfg.sources != ("patches",) or "_clip" in name)
    )


def test_weights_that_do_not_fill_the_graph():
    tensors = tiny("timm")[0].state_dict()
    build = lambda held, **kw: HookedViT.from_state_dict(held, "vit_base_patch16_224", **arguments("timm") | kw)  # noqa: E731
    bare = {k: t for k, t in tensors.items() if k != "blocks.1.attn.qkv.bias"}
    with pytest.raises(CheckpointError, match=r"no tensor for \['blocks.1.attn.k.bias', 'blocks.1.attn.q.bias'"):
        build(bare)
    with pytest.raises(CheckpointError, match=r"no place for \['blocks.0.attn.k.bias'"):
        build(tensors, qkv_bias=False)
    with pytest.raises(CheckpointError, match=r"no place for \['aux.weight'\]"):
        build(tensors | {"aux.weight": torch.zeros(2)})
    assert build(tensors | {"aux.weight": torch.zeros(2)}, drop=["aux.*"]).cfg.n_classes == 5
    with pytest.raises(CheckpointError, match=r"'aux.\*' is to be dropped, and no tensor is called so"):
        build(tensors, drop=["aux.*"])
    with pytest.raises(CheckpointError, match=r"head.weight has shape \(5, 32\), head.weight needs \(7, 32\)"):
        build(tensors, num_classes=7)
    with pytest.raises(CheckpointError, match="should be called module.…, and these are not: blocks.0"):
        build(tensors, prefix="module.")
    with pytest.raises(UnsupportedModelError, match="no architecture is called 'vit_bass_patch16_224'; did you mean"):
        HookedViT.from_state_dict(tensors, "vit_bass_patch16_224")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"global_pool": "prr"}, "global_pool='prr'"),
        ({"global_pool": "map", "fc_norm": True}, "a norm behind attention pooling"),
        ({"block_fn": "ParallelThingsBlock"}, "blocks of ParallelThingsBlock"),
        ({"class_token": False}, "global_pool='token' without a class token"),
        ({"act_layer": "gelu_fast"}, "act_layer='gelu_fast'"),
        ({"mlp_layer": "ConvMlp"}, "mlp_layer='ConvMlp'"),
        ({"pool_include_prefix": True, "global_pool": "avg"}, "a mean over prefix tokens too"),
    ],
)
def test_settings_no_graph_has(settings, says):
    with pytest.raises(UnsupportedModelError, match=says):
        HookedViT.from_state_dict({}, "vit_base_patch16_224", **settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"global_pool": "map"}, "attention pooling with a norm behind it or gated MLPs"),
        ({"rope_type": "mrope"}, "rope_type='mrope'"),
        ({"rope_type": "mixed", "rope_rotate_half": True}, "rope_type='mixed' in halves"),
        ({"rope_type": "dinov3", "rope_grid_offset": 1.0}, "rope_grid_offset=1.0 for rope_type='dinov3'"),
        ({"rope_grid_indexing": "yx"}, "rope_grid_indexing='yx'"),
        ({"attn_type": "linear"}, "attn_type='linear'"),
        ({"use_post_transformer_norm": True, "use_fc_norm": True}, "two final norms"),
        ({"global_pool": "token", "class_token": False}, "global_pool='token' without a class token"),
    ],
)
def test_settings_of_an_eva_no_graph_has(settings, says):
    with pytest.raises(UnsupportedModelError, match=f"timm's Eva with {says}"):
        HookedViT.from_state_dict({}, "eva02_base_patch14_224", **settings)


def test_parts_of_an_eva_in_memory_that_have_no_place():
    for change, says in (
        (lambda m: setattr(m.blocks[0].attn, "k_norm", torch.nn.LayerNorm(8)), "k_norm of blocks"),
        (lambda m: setattr(m.blocks[0].attn, "gate", torch.nn.Linear(2, 2)), "gate of blocks"),
        (lambda m: setattr(m.blocks[0].attn, "num_kv_groups", 2), "fewer keys than queries"),
        (lambda m: setattr(m.blocks[0], "gamma_1", torch.nn.Parameter(torch.ones(32))), "LayerScale on one branch"),
        (lambda m: setattr(m, "attn_pool", torch.nn.Linear(2, 2)), "another attention pooling than `map`"),
        (lambda m: setattr(m.blocks[1], "norm2", torch.nn.RMSNorm(32)), "RMSNorm for layer norm"),
        (lambda m: setattr(m.blocks[1].mlp.norm, "eps", 1e-3), r"norms that differ in their eps: \[1e-06, 0.001\]"),
        (lambda m: setattr(m.rope, "in_pixels", True), "rotary positions with {'in_pixels': True}"),
        (lambda m: setattr(m, "rope", torch.nn.Linear(2, 2)), "Linear for positions"),
    ):
        model = make_hf("timm-eva02")
        change(model)
        with pytest.raises(UnsupportedModelError, match=says):
            HookedViT.from_hf(model)


def test_a_probe_reads_no_prefix():
    """Where registers stand in front of the patches they get no attention; masked here, cut off there."""
    reference = timm_reference.VisionTransformer(global_pool="map", reg_tokens=2, no_embed_class=True).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.2)
    reference = reference.double()
    model = HookedViT.from_hf(reference)
    with torch.no_grad():
        _, acts = model.run_with_cache(x := pixels(model))
        assert distance(acts["hook_logits"], reference(x)) <= 1e-12
    assert acts["hook_pool_pattern"][..., :3].eq(0).all()


def test_a_setting_nobody_knows():
    with pytest.raises(CheckpointError, match="neither handles nor knows to be irrelevant: qk_norm=True"):
        HookedViT.from_state_dict({}, "vit_base_patch16_224", qk_norm=True)


def test_parts_of_a_model_in_memory_that_have_no_place():
    for change, says in (
        (lambda m: setattr(m.blocks[0].attn, "q_norm", torch.nn.LayerNorm(8)), "q_norm of blocks"),
        (lambda m: setattr(m.blocks[0].mlp, "act", torch.nn.Tanh()), "activation Tanh"),
        (lambda m: setattr(m, "attn_pool", torch.nn.Linear(2, 2)), "another attention pooling than `map`"),
        (lambda m: setattr(m.blocks, "1", torch.nn.Linear(2, 2)), "Linear for blocks"),
        (lambda m: setattr(m.blocks[1], "attn", torch.nn.Linear(2, 2)), "Linear for attention"),
        (lambda m: setattr(m.norm, "eps", 1e-3), r"norms that differ in their eps: \[1e-06, 0.001\]"),
        (lambda m: setattr(m.blocks[1], "norm1", torch.nn.RMSNorm(32)), "RMSNorm for layer norm"),
    ):
        model = make_hf("timm")
        change(model)
        with pytest.raises(UnsupportedModelError, match=says):
            HookedViT.from_hf(model)


def folder(tmp_path: Path, name: str = "timm", **changes) -> Path:
    make_hf(name).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return tmp_path


def test_a_folder_as_on_the_hub(tmp_path):
    """What `timm/vit_base_patch16_rpn_224.sw_in1k` resolves to, with class names and an older file of weights."""
    _, model = tiny("timm-rpn")
    names = ["ant", "bee", "cat", "dog", "eel"]
    place = folder(tmp_path, "timm-rpn", label_names=names)
    tensors = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    torch.save(tensors, place / "pytorch_model.bin")
    ours = load_model(str(place))
    assert (ours.cfg.class_names, ours.cfg.name) == (tuple(names), str(place))
    assert torch.equal(ours(pixels(model)), model(pixels(model)))
    assert not ours.cfg.has_cls
    assert ours.cfg.post_norm
    (place / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="holds neither model.safetensors nor pytorch_model.bin"):
        HookedViT.from_pretrained(place)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture": "resnet50"}, "timm builds 'resnet50' from parts this version has no graph for"),
        ({"architecture": "vit_7b_patch16_rope_256"}, "no graph for"),
        (
            {"global_pool": "avg"},
            "config.json says global_pool='avg', and timm builds vit_base_patch16_224 with 'token'",
        ),
        ({"rotary": 100}, "entries nobody here knows: rotary"),
        ({"pretrained_cfg": {"input_size": [3, 32, 32]}}, "does not say how images are prepared: no mean, std"),
    ],
)
def test_a_folder_that_is_not_understood(changes, says, tmp_path):
    with pytest.raises((UnsupportedModelError, CheckpointError), match=says):
        HookedViT.from_pretrained(folder(tmp_path, **changes))


def image(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_images_are_prepared_as_timm_prepares_them(tmp_path):
    """Shorter side to size / crop_pct, rounded down, then the centre; by hand with PIL and NumPy."""
    model = HookedViT.from_pretrained(folder(tmp_path))
    picture = image(57, 93)
    short = int(32 / 0.9)
    resized = picture.resize((short * 93 // 57, short), Image.Resampling.BICUBIC)
    top, left = round((resized.height - 32) / 2), round((resized.width - 32) / 2)
    cropped = np.asarray(resized, dtype=np.float64)[top : top + 32, left : left + 32]
    want = torch.tensor((cropped / 255 - 0.5) / 0.25).permute(2, 0, 1)
    assert ((short - 32) % 4, (resized.width - 32) % 4) == (3, 1)  # where half a pixel has to go somewhere
    assert distance(model.preprocess([picture])[0].double(), want) <= 1e-6


def test_images_squashed(tmp_path):
    made = json.loads((folder(tmp_path) / "config.json").read_text())["pretrained_cfg"]
    model = HookedViT.from_pretrained(folder(tmp_path, pretrained_cfg=made | {"crop_mode": "squash", "crop_pct": 1.0}))
    picture = image(57, 92)
    want = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float64)
    assert (
        distance(model.preprocess([picture])[0].double(), torch.tensor((want / 255 - 0.5) / 0.25).permute(2, 0, 1))
        <= 1e-6
    )
    with pytest.raises(CheckpointError, match="crop_mode='border'"):
        HookedViT.from_pretrained(folder(tmp_path, pretrained_cfg=made | {"crop_mode": "border"}))


@pytest.mark.parametrize("name", OURS)
def test_interventions_without_cls(name):
    """Those that need CLS, or branches that add up, say so before any run; all others act."""
    s = setting("timm-rpn")
    ran, refused = 0, []
    for make in cases(name).valid[:4]:
        try:
            with torch.no_grad(), apply(s.model, make(s)):
                assert s.model(s.x).isfinite().all()
            ran += 1
        except (ValueError, KeyError) as refusal:
            refused.append(str(refusal))
    lacks = ("cls", "register", "a norm of their sum")
    assert all(any(word in why.lower() for word in lacks) for why in refused), refused
    assert not any(p._forward_hooks for p in s.model.hook_points())
    assert ran or "cls" in name or name in NEED_MORE


NEED_MORE = ("readout", "insert_cls_tokens", "only")


# --- models of published studies

SEVEN = ["b32", "b16", "l16", "miil", "gap", "cifar100", "refinement"]


def exact_shape(name: str) -> timm_reference.VisionTransformer:
    """The model of a study with random weights, in its exact shape but for the number of blocks."""
    their_class, settings = TIMM.settings(published.get(name).graph, depth=2, **published.get(name).settings)
    made = {k: v for k, v in settings.to_dict().items() if k not in ("label_names", "pool_include_prefix")}
    torch.manual_seed(0)
    return timm_reference.CLASSES[their_class](**made)


def test_the_seven_models_of_the_paper_have_names():
    assert [n.rpartition("-")[2] for n in published.names() if n.startswith("vilas2023-")] == SEVEN
    with pytest.raises(UnsupportedModelError, match="no published model is called 'vilas2023-gab'; did you mean"):
        published.get("vilas2023-gab")


def test_an_option_that_a_file_of_weights_has_not_is_refused(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"")
    with pytest.raises(TypeError, match="got revision"):
        published.load("vilas2023-refinement", file, revision="main")


@pytest.mark.parametrize("name", published.names())
def test_a_published_model_in_its_exact_shape(name, tmp_path, monkeypatch):
    known, reference = published.get(name), exact_shape(name)
    tensors: dict[str, Tensor] = {f"{known.prefix}{k}": t for k, t in reference.state_dict().items()}
    for pattern in known.drop:
        tensors[f"{known.prefix}{pattern.replace('*', '0.conv.weight')}"] = torch.zeros(2, 2)
    torch.save({"state_dict": tensors}, tmp_path / "weights.pth")
    shallow = replace(known, settings={**known.settings, "depth": 2})
    monkeypatch.setattr(published, "get", lambda _: shallow)
    model = load_model(f"published:{name}={tmp_path / 'weights.pth'}")
    x = model.preprocess([image(300, 260), image(224, 500)])
    assert x.shape == (2, 3, 224, 224)
    with torch.no_grad():
        assert distance(model(x), reference.eval()(x)) <= 3e-6
    gap = name.endswith("gap")
    assert (model.cfg.has_cls, model.cfg.post_norm) == (not gap, gap)
    assert model.cfg.q_bias != (gap or name.endswith("miil"))
    assert model.cfg.name == name


def test_images_of_a_published_model(tmp_path, monkeypatch):
    """Squashed for the ViTs, cut out of the centre for MIIL, which is neither shifted nor scaled."""
    picture = image(300, 500)
    how = {}
    for name in ("vilas2023-vit-b32", "vilas2023-miil"):
        monkeypatch.setattr(
            HookedViT, "from_pretrained", classmethod(lambda cls, place, **kw: HookedViT.from_hf(make_hf("timm")))
        )
        how[name] = published.load(name).processor([picture], return_tensors="np")["pixel_values"][0]
    squashed = np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR), dtype=np.float64) / 127.5 - 1
    assert np.abs(how["vilas2023-vit-b32"] - squashed.transpose(2, 0, 1)).max() <= 1e-6
    resized = np.asarray(picture.resize((426, 256), Image.Resampling.BILINEAR), dtype=np.float64) / 255
    assert np.abs(how["vilas2023-miil"] - resized[16:240, 101:325].transpose(2, 0, 1)).max() <= 1e-6


def test_weights_that_have_to_be_given():
    with pytest.raises(UnsupportedModelError, match=r"needs a file of weights that is on no hub: deit_base_trm.pth"):
        check_model("published:vilas2023-refinement")
    with pytest.raises(UnsupportedModelError, match="needs a file of weights"):
        published.load("vilas2023-cifar100")


# --- timm itself


@pytest.mark.parametrize("name", VARIANTS)
def test_timm_itself(name, timm):
    reference, model = tiny(name)
    made = arguments(name)
    if "block_fn" in made:
        made["block_fn"] = getattr(timm.models.vision_transformer, made["block_fn"])
    if "mlp_layer" in made:
        made["mlp_layer"] = getattr(timm.layers, made["mlp_layer"])
    if made.get("act_layer") == "silu":
        made["act_layer"] = torch.nn.SiLU
    if made.pop("eps") != 1e-6:
        made["norm_layer"] = lambda dim, **kw: timm.layers.LayerNorm(dim, eps=1e-5, **kw)
    original = timm.create_model(reference.architecture, **made, dynamic_img_size=True).eval()
    original.load_state_dict(reference.state_dict())
    ours = HookedViT.from_hf(original)
    assert ours.cfg == model.cfg
    for size in sizes(name):
        x = pixels(model, size)
        with torch.no_grad():
            assert distance(original(x), reference(x)) <= 3e-6
            assert distance(ours(x), original(x)) <= 3e-6


def test_the_names_mean_what_timm_means(monkeypatch, timm):
    """But for the number of classes, which comes with the weights. Models are built one block deep, to save time."""
    depths: list[int] = []

    def shallow(build):
        def init(self, *args, depth=12, **kw):
            depths.append(depth)
            build(self, *args, depth=1, **kw)

        return init

    for their in (timm.models.vision_transformer.VisionTransformer, timm.models.eva.Eva):
        monkeypatch.setattr(their, "__init__", shallow(their.__init__))
    for name in TIMM.named():
        with torch.device("meta"):
            original = timm.create_model(name, num_classes=7)
        family = architectures.get("timm")
        theirs = read_config(family.config_of(original), type(original).__name__).replace(n_layers=depths.pop())
        their_class, settings = TIMM.settings(name, num_classes=7)
        assert read_config(settings, their_class) == theirs, name
