"""A checkpoint that is damaged is refused in a sentence, or it is what it was: no traceback, no other model."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hooked_vit import HookedViT, architectures
from hooked_vit.errors import CheckpointError, UnsupportedModelError
from hooked_vit.loading.checkpoints import without_weights
from tests.tiny import make_hf, pixels

FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    make_hf("vit").save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clean(sound) -> tuple[torch.Tensor, str]:
    model = HookedViT.from_pretrained(sound)
    return model(pixels(model)), repr(model.processor)


@pytest.fixture
def folder(sound, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sound, tmp_path / "it")
    return tmp_path / "it"


def refusal(load: Callable[[Any], Any], folder: Path) -> tuple[Any, str]:
    """What was loaded, or the sentence it was refused with."""
    try:
        return load(folder), ""
    except (CheckpointError, UnsupportedModelError) as refused:
        said = str(refused)
    assert len(said) > 30, said
    return None, said


def check(folder: Path, clean: tuple[torch.Tensor, str]) -> str:
    """The sentence it was refused with, empty where it is the model that was saved; nor is its config a traceback."""
    refusal(lambda place: without_weights(HookedViT, str(place)), folder)
    model, said = refusal(HookedViT.from_pretrained, folder)
    if model is not None:
        assert torch.equal(model(pixels(model)), clean[0])
        assert repr(model.processor) == clean[1]
    return said


# Files


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def replaced(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        file.unlink()
        make(file)

    return damage


def plug(file: Path) -> None:
    here = os.getcwd()
    os.chdir(file.parent)  # an address holds a hundred characters
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(file.name)
    os.chdir(here)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": replaced(lambda file: None),
    "empty": lambda file: file.write_bytes(b""),
    "truncated": truncated,
    "garbage": lambda file: file.write_bytes(os.urandom(4096)),
    "a long header": lambda file: file.write_bytes(b"\xff" * 8 + b"{}"),
    "a list": lambda file: file.write_text("[1, 2]"),
    "null": lambda file: file.write_text("null"),
    "deep": lambda file: file.write_text("[" * 100_000),
    "pipe": replaced(os.mkfifo),
    "device": replaced(lambda file: file.symlink_to("/dev/zero")),
    "socket": replaced(plug),
    "folder": replaced(Path.mkdir),
    "lost": replaced(lambda file: file.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file(folder, clean, name, damage):
    DAMAGES[damage](folder / name)
    if (name, damage) == ("preprocessor_config.json", "missing"):
        assert HookedViT.from_pretrained(folder).processor is None
        return
    assert name.partition(".")[0].removeprefix("preprocessor_") in check(folder, clean)


# Values of configs

VALUES = {
    **{"null": None, "text": "x", "negative": -1, "zero": 0, "huge": 10**9, "vast": 1e300, "nan": math.nan},
    **{"infinite": math.inf, "list": [1], "entries": {"a": 1}, "true": True},
}
KEYS = (
    *("architectures", "model_type", "hidden_act", "hidden_size", "id2label", "image_size", "intermediate_size"),
    *("layer_norm_eps", "num_attention_heads", "num_channels", "num_hidden_layers", "patch_size", "qkv_bias", "dtype"),
    *("pooler_act", "pooler_output_size", "hidden_dropout_prob", "initializer_range", "label2id"),
)
PROCESSOR_KEYS = ("do_resize", "do_rescale", "do_normalize", "size", "image_mean", "image_std", "rescale_factor")
PROCESSOR_KEYS += ("resample", "image_processor_type")


def rewrite(file: Path, key: str, value: Any) -> None:
    content = json.loads(file.read_text())
    assert key in content or key == "model_type"
    if value == "missing":
        del content[key]
    else:
        content[key] = value
    file.write_text(json.dumps(content))


def test_every_key_is_tried(sound):
    said = set(json.loads((sound / "config.json").read_text()))
    assert said - set(KEYS) <= {"attention_probs_dropout_prob", "encoder_stride", "transformers_version"}


@pytest.mark.parametrize("key", KEYS)
def test_a_value_no_config_has(folder, clean, key):
    original = (folder / "config.json").read_text()
    for value in ("missing", *VALUES.values()):
        (folder / "config.json").write_text(original)
        rewrite(folder / "config.json", key, value)
        check(folder, clean)


@pytest.mark.parametrize("key", PROCESSOR_KEYS)
def test_a_value_no_processor_has(folder, key):
    """What it makes of a picture is finite, or it is refused."""
    from PIL import Image

    file = folder / "preprocessor_config.json"
    original = file.read_text()
    for value in ("missing", *VALUES.values(), [-0.5] * 3, [0.5, 0.0, 0.5], {"height": -3, "width": 3}):
        file.write_text(original)
        rewrite(file, key, value)
        try:
            model = HookedViT.from_pretrained(folder)
            made = model.preprocess(Image.new("RGB", (40, 30), (200, 100, 50)))
        except ValueError as refusal:
            assert len(str(refusal)) > 20  # noqa: PT017 - either is right
            continue
        assert made.isfinite().all()
        assert made[:, 0].mean() > made[:, 2].mean(), (key, value)


# Tensors


def retyped(name: str, dtype: torch.dtype) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].abs().clamp(max=1).to(dtype)

    return change


STRANGE = [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2]
PLACES = ("classifier.weight", "vit.embeddings.cls_token", "vit.layernorm.bias")


@pytest.mark.parametrize("dtype", STRANGE, ids=str)
@pytest.mark.parametrize("name", PLACES)
def test_tensors_of_a_type_no_weight_has(folder, name, dtype):
    tensors = load_file(folder / "model.safetensors")
    retyped(name, dtype)(tensors)
    says = r"weights .* floating point; these are not"
    if not dtype.is_complex:  # which safetensors may not hold
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        assert_refused(folder, says)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert_refused(folder, says)
    hf = make_hf("vit")
    parent, _, last = name.rpartition(".")
    del hf.get_submodule(parent)._parameters[last]
    hf.get_submodule(parent).register_buffer(last, tensors[name])
    with pytest.raises(CheckpointError, match=rf"{says}.*{last}"):
        HookedViT.from_hf(hf)


def assert_refused(folder: Path, says: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedModelError), match=says):
        HookedViT.from_pretrained(folder)


@pytest.mark.parametrize("part", ["classifier", "vit.layernorm", "vit.embeddings.patch_embeddings.projection"])
def test_a_part_in_another_precision_is_not_cast(part):
    hf = make_hf("vit").to(torch.bfloat16)
    hf.get_submodule(part).to(torch.float32)
    with pytest.raises(CheckpointError, match=r"weights differ in their dtype \(.*bfloat16.*bring them to one"):
        HookedViT.from_hf(hf)
    assert HookedViT.from_hf(hf.to(torch.bfloat16)).W_E.dtype == torch.bfloat16


def test_weights_without_numbers():
    with pytest.raises(CheckpointError, match="on the meta device"):
        HookedViT.from_hf(make_hf("vit").to("meta"))


@pytest.mark.parametrize("name", ["vit", "timm", "clip-classifier", "beit-mean-both", "dinov2-swiglu", "deit-teacher"])
def test_what_is_not_to_be_trained_stays_so(name):
    hf = make_hf(name)
    assert all(p.requires_grad for p in HookedViT.from_hf(hf).parameters())
    for parameter in hf.parameters():
        parameter.requires_grad_(False)
    assert not any(p.requires_grad for p in HookedViT.from_hf(hf).parameters())
    (hf.head if name == "timm" else getattr(hf, "classifier", None) or hf.cls_classifier).requires_grad_(True)
    learns = {name for name, p in HookedViT.from_hf(hf).named_parameters() if p.requires_grad}
    assert learns == {"head.weight", "head.bias"}


# Other things that lie in folders and files


def test_an_adapter_of_peft(folder):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "google/vit"}))
    assert_refused(folder, r"holds an adapter of PEFT.*\(google/vit\) with merge_and_unload")


def test_a_pickle_with_code(folder):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(folder / "was-run"),)

    (folder / "model.safetensors").unlink()
    torch.save({"classifier.weight": Evil()}, folder / "pytorch_model.bin")
    assert_refused(folder, "no file of tensors that can be read safely")
    assert not (folder / "was-run").exists()


def test_parts_of_weights_that_are_not_there(folder):
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    for content, says in (
        ("{}", "which file each tensor is in"),
        ('{"weight_map": {"a": 3}}', "which file each tensor is in"),
        ('{"weight_map": {"a": "part-1.safetensors"}}', "part-1.safetensors is no file of tensors: there is no such"),
    ):
        index.write_text(content)
        assert_refused(folder, says)


def test_a_config_larger_than_its_weights(folder):
    rewrite(folder / "config.json", "image_size", 8000)
    assert_refused(
        folder, r"describes a model of [\d,]+ parameters or more, its weights are [\d,]+: config and weights"
    )


def test_quantised_weights(folder):
    content = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"load_in_8bit": True}}
    (folder / "config.json").write_text(json.dumps(content))
    assert_refused(folder, "is quantised")


@pytest.mark.parametrize("hf_class", ["SiglipModel", "SiglipVisionModel", "SwinForImageClassification", "ResNetModel"])
def test_a_class_that_is_another_one_is_no_slip_of_the_pen(folder, hf_class):
    """As long as there is no graph for it: a CLIP is not what was meant."""
    if hf_class in architectures.supported_classes():
        pytest.skip("there is a graph for it by now")
    rewrite(folder / "config.json", "architectures", [hf_class])
    with pytest.raises(UnsupportedModelError, match=f"no hook graph for {hf_class}") as refusal:
        HookedViT.from_pretrained(folder)
    assert "did you mean" not in str(refusal.value)


# State dicts inside others


@pytest.fixture(scope="module")
def plain() -> dict[str, torch.Tensor]:
    return make_hf("timm").state_dict()


SETTINGS = {"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, "img_size": 32, "patch_size": 8}


def from_tensors(content: Any, **how: Any) -> HookedViT:
    return HookedViT.from_state_dict(content, "vit_base_patch16_224", num_classes=5, **SETTINGS, **how)


@pytest.mark.parametrize("key", ["model", "state_dict", "teacher", "student", "model_ema", "state_dict_ema", "a.b"])
def test_a_state_dict_inside_is_found(plain, tmp_path, key):
    content: Any = plain
    for name in reversed(key.split(".")):
        content = {name: content, "epoch": 3, "optimizer": {"state": {0: {"m": torch.zeros(1)}}}}
    torch.save(content, tmp_path / "it.pth")
    assert torch.equal(from_tensors(tmp_path / "it.pth").W_E, from_tensors(plain).W_E)


def test_of_several_one_is_named(plain, tmp_path):
    other = {key: 2 * tensor for key, tensor in plain.items()}
    torch.save({"student": other, "teacher": plain}, tmp_path / "it.pth")
    with pytest.raises(CheckpointError, match=r"several state dicts, 'student', 'teacher': choose one with part="):
        from_tensors(tmp_path / "it.pth")
    with pytest.raises(CheckpointError, match=r"no state dict called 'ema'; it holds 'student', 'teacher'"):
        from_tensors(tmp_path / "it.pth", part="ema")
    assert torch.equal(from_tensors(tmp_path / "it.pth", part="teacher").W_E, from_tensors(plain).W_E)


@pytest.mark.parametrize("prefix", ["module.", "teacher.", "student.", "model_ema.module.", "backbone."])
def test_a_prefix_is_offered(plain, prefix):
    renamed = {f"{prefix}{key}": tensor for key, tensor in plain.items()}
    with pytest.raises(CheckpointError, match=f"give prefix='{prefix}'"):
        from_tensors(renamed)
    assert torch.equal(from_tensors(renamed, prefix=prefix).W_E, from_tensors(plain).W_E)
    with pytest.raises(CheckpointError, match=rf"'{prefix}', and take the others out first \(dino_head\.\*\)"):
        from_tensors(renamed | {"dino_head.weight": torch.ones(3)})


# What is no checkpoint at all


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Path.touch, "it is a file"),
        (os.mkfifo, "it is a named pipe, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
        (Path.mkdir, "there is no such file"),
        (lambda path: None, "neither a local checkpoint"),
    ],
)
def test_what_is_no_folder_of_a_checkpoint(tmp_path, make, says):
    make(tmp_path / "it")
    assert_refused(tmp_path / "it", says)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_weights_alone(tmp_path, monkeypatch, plain, damage, suffix):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"it{suffix}"
    torch.save(plain, file) if suffix == ".pth" else save_file(plain, file)
    DAMAGES[damage](file)
    with pytest.raises(CheckpointError, match=f"it{suffix}"):
        from_tensors(file)


def test_hooks_are_listed_without_memory_for_weights(folder):
    transformers.ViTImageProcessorPil(size={"height": 48, "width": 64}).save_pretrained(folder)
    model = without_weights(HookedViT, str(folder))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert ("embed.hook_patch", "[batch, patch=48, d_model=32]") in {row[:2] for row in model.describe_hooks()}
