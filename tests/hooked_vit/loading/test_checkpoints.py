"""A checkpoint on disk, of today's transformers or with the names the hub still has, is the model in memory."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from hooked_vit import HookedViT, architectures
from hooked_vit.errors import CheckpointError
from tests.tiny import LOADED, TINY, make_hf, pixels, tiny

# one of each class, and where files of one class differ
BY_CLASS = {TINY[name].hf_class: name for name in LOADED}
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
    "mae": BLOCKS,
    "mae-model": BLOCKS,
    "msn-model": BLOCKS,
    "ijepa-model": BLOCKS,
    "dinov3": [(r"^model\.layer\.", "layer.")],
    "clip-model": [(r"^", "vision_model.")],
    "chinese-clip-model": [(r"^", "vision_model.")],
    "altclip-model": [(r"^", "vision_model.")],
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


def test_a_vit_without_its_pooler(tmp_path):
    """As DINO's checkpoints are: transformers makes up a pooler, and nothing reads it."""
    hf, model = transformers.ViTModel(make_hf("vit-model").config, add_pooling_layer=False), tiny("vit-model")[1]
    hf.load_state_dict({key: t for key, t in make_hf("vit-model").state_dict().items() if "pooler" not in key})
    hf.save_pretrained(tmp_path)
    assert_same(HookedViT.from_pretrained(tmp_path), model)
    assert torch.equal(HookedViT.from_hf(hf)(pixels(model)), model(pixels(model)))


# what version 4 of transformers wrote into a config inside another, as the files of openai and laion have it
VERSION_4 = {"_name_or_path": "", "add_cross_attention": False, "architectures": None, "bad_words_ids": None}
VERSION_4 |= {"bos_token_id": None, "chunk_size_feed_forward": 0, "cross_attention_hidden_size": None}
VERSION_4 |= {"decoder_start_token_id": None, "do_sample": False, "dropout": 0.0, "early_stopping": False}
VERSION_4 |= {"eos_token_id": None, "finetuning_task": None, "gradient_checkpointing": False, "is_decoder": False}
VERSION_4 |= {"is_encoder_decoder": False, "num_beams": 1, "pad_token_id": None, "prefix": None, "problem_type": None}
VERSION_4 |= {"pruned_heads": {}, "sep_token_id": None, "task_specific_params": None, "temperature": 1.0}
VERSION_4 |= {"tf_legacy_loss": False, "tie_encoder_decoder": False, "tie_word_embeddings": True}
VERSION_4 |= {"tokenizer_class": None, "top_k": 50, "torch_dtype": None, "torchscript": False, "use_bfloat16": False}


@pytest.mark.parametrize(
    "name", ["clip-full", "clip-classifier", "metaclip-2-full", "chinese-clip-full", "altclip-full"]
)
def test_a_config_inside_another_as_version_4_wrote_it(name, tmp_path):
    make_hf(name).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    settings = json.loads(file.read_text())
    settings["vision_config"] |= VERSION_4
    file.write_text(json.dumps(settings))
    assert_same(HookedViT.from_pretrained(tmp_path), tiny(name)[1])
    settings["vision_config"]["pruned_heads"] = {"0": [1]}
    file.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="pruned_heads"):
        HookedViT.from_pretrained(tmp_path)


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


def test_settings_of_a_config_are_changed_as_in_transformers(tmp_path):
    hf = make_hf("vit")
    hf.save_pretrained(tmp_path)
    model = HookedViT.from_pretrained(tmp_path, hidden_act="relu", layer_norm_eps=1e-3, revision="main")
    theirs = transformers.ViTForImageClassification.from_pretrained(tmp_path, hidden_act="relu", layer_norm_eps=1e-3)
    x = pixels(model)
    with torch.no_grad():
        assert float((model(x) - theirs.eval()(x).logits).abs().max()) <= 3e-6
        assert float((model(x) - tiny("vit")[1](x)).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("name", "settings", "error", "says"),
    [
        ("beit-mean-both", {"use_mean_pooling": False}, CheckpointError, r"missing: beit.layernorm.*=False"),
        ("beit-cls-none", {"use_mean_pooling": True}, CheckpointError, r"beit.pooler.layernorm.*set_readout_"),
        ("beit-cls-none", {"use_mean_poling": True}, TypeError, "no setting 'use_mean_poling'; did you mean"),
        ("vit", {"num_labels": 7}, CheckpointError, "saved without num_labels=7"),
        ("vit", {"torch_dtype": torch.float16}, TypeError, "it is called dtype here"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(tmp_path, name, settings, error, says):
    make_hf(name).save_pretrained(tmp_path)
    with pytest.raises(error, match=says):
        HookedViT.from_pretrained(tmp_path, **settings)


def test_a_readout_the_config_forgot_is_had_by_its_setting(tmp_path):
    """The weights are those of a BEiT that reads CLS, its config says nothing of it, and the default is the mean."""
    make_hf("beit-cls-none").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["use_mean_pooling"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="pooler"):
        HookedViT.from_pretrained(tmp_path)
    assert_same(HookedViT.from_pretrained(tmp_path, use_mean_pooling=False), tiny("beit-cls-none")[1])
