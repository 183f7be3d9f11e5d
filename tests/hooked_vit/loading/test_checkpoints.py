"""A checkpoint on disk, of today's transformers or with the names the hub still has, is the model in memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hooked_vit import HookedViT, architectures
from tests.tiny import CORE, TINY, make_hf, pixels, tiny

# one of each class, and where files of one class differ
BY_CLASS = {TINY[name].hf_class: name for name in CORE}
ON_DISK = sorted({"beit-mean-both", "beit-cls-none", "dinov2", "vit", "vit-wide", *BY_CLASS.values()})

# architectures.md: today's names, as files on the hub spell them
ATTENTION = [(r"attention\.([qkv])_proj", r"attention.attention.\1"), (r"attention\.o_proj", "attention.output.dense")]
LETTERS = {"q": "query", "k": "key", "v": "value"}
BLOCKS = [
    (r"(^|\.)layers\.", r"\1encoder.layer."),
    *ATTENTION,
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
]
HUB_NAMES = {
    "vit": BLOCKS,
    "deit-teacher": BLOCKS,
    "beit-mean-both": [
        (r"shared_position_bias\.", "encoder.relative_position_bias."),
        (r"(layers\.\d+)\.relative_position_bias\.", r"\1.attention.attention.relative_position_bias."),
        *BLOCKS,
    ],
    "beit-masked": [
        (r"shared_position_bias\.", "encoder.relative_position_bias."),
        (r"(layers\.\d+)\.relative_position_bias\.", r"\1.attention.attention.relative_position_bias."),
        *BLOCKS,
    ],
    "dinov2": ATTENTION,
    "dinov2-swiglu": ATTENTION,
    "registers": ATTENTION,
    "dinov3": [(r"^model\.layer\.", "layer.")],
    "clip-model": [(r"^", "vision_model.")],
    "clip-projection": [],
    "clip-full": [],
}


def assert_same(ours: HookedViT, theirs: HookedViT) -> None:
    """The same description, weights to the bit, and so the same numbers."""
    assert ours.cfg.replace(name=None) == theirs.cfg
    state, other = ours.state_dict(), theirs.state_dict()
    assert state.keys() == other.keys()
    assert [key for key in state if not torch.equal(state[key], other[key])] == []
    x = pixels(theirs)
    assert torch.equal(ours(x), theirs(x))


def save_with_hub_names(name: str, folder: Path) -> None:
    hf = make_hf(name)
    tensors = {}
    for key, tensor in hf.state_dict().items():
        for today, then in HUB_NAMES[name]:
            key = re.sub(today, then, key)
        key = re.sub(r"(?<=attention\.attention\.)([qkv])(?=\.)", lambda m: LETTERS[m[0]], key)
        tensors[key] = tensor
    for gate in [key for key in tensors if key.endswith(("mlp.gate_proj.weight", "mlp.gate_proj.bias"))]:
        # one tensor for both, the gate first
        halves = tensors.pop(gate), tensors.pop(gate.replace("gate_proj", "up_proj"))
        tensors[gate.replace("gate_proj", "weights_in")] = torch.cat(halves)
        down = gate.replace("gate_proj", "down_proj")
        tensors[down.replace("down_proj", "weights_out")] = tensors.pop(down)
    assert (tensors.keys() == hf.state_dict().keys()) == (HUB_NAMES[name] == [])
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    hf.config.save_pretrained(folder)


@pytest.mark.parametrize("name", ON_DISK)
def test_saved_and_loaded_is_the_model_in_memory(name, tmp_path):
    hf, model = tiny(name)
    hf.save_pretrained(tmp_path)
    loaded = HookedViT.from_pretrained(tmp_path)
    assert_same(loaded, model)
    assert loaded.cfg.name == str(tmp_path)
    assert not loaded.training


def test_every_class_was_on_disk():
    assert {TINY[name].hf_class for name in ON_DISK} == set(architectures.supported_classes())


@pytest.mark.parametrize("name", HUB_NAMES)
def test_names_of_the_hub(name, tmp_path):
    save_with_hub_names(name, tmp_path)
    assert_same(HookedViT.from_pretrained(tmp_path), tiny(name)[1])


def test_names_of_an_older_transformers_in_memory():
    """Its DINOv3 held the layers without a module around them."""
    hf, model = make_hf("dinov3-gated"), tiny("dinov3-gated")[1]
    hf.layer = hf.model.layer
    del hf.model
    assert any(key.startswith("layer.0.") for key in hf.state_dict())
    assert_same(HookedViT.from_hf(hf), model)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_float32_unless_asked(stored, tmp_path):
    """transformers would keep the file's."""
    make_hf("vit").to(stored).save_pretrained(tmp_path)
    model = HookedViT.from_pretrained(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(pixels(model)).dtype == torch.float32
    model = HookedViT.from_pretrained(tmp_path, dtype=torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_in_memory_keeps_its_dtype_and_is_copied(dtype):
    hf = make_hf("vit").to(dtype).train()
    model = HookedViT.from_hf(hf)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not model.training
    assert hf.training
    before = model(pixels(model))
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
    assert torch.equal(model(pixels(model)), before)


def test_labels_come_along(tmp_path):
    hf = make_hf("vit")
    hf.config.id2label = dict(enumerate(["ant", "bee", "cat", "dog", "eel"]))
    hf.save_pretrained(tmp_path)
    model = HookedViT.from_pretrained(tmp_path)
    assert model.cfg.class_names == ("ant", "bee", "cat", "dog", "eel")
    assert model.to_single_token("dog") == 3


def test_the_vision_tower_of_a_full_clip_is_the_tower(tmp_path):
    """Text tensors have no place and no effect; both ways to the image embedding agree."""
    hf, model = tiny("clip-full")
    assert not [key for key in model.state_dict() if "text" in key]
    with torch.no_grad():
        want = hf.get_image_features(pixels(model)).pooler_output
    assert model.cfg.outputs == "embedding"
    assert torch.allclose(model(pixels(model)), want, rtol=0, atol=3e-6)
