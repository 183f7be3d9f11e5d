"""What cannot be loaded faithfully is refused by name, and nothing is ever made up in its place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from hooked_vit import HookedViT, architectures
from hooked_vit.errors import CheckpointError, NoHeadError, UnsupportedModelError
from tests.tiny import make, make_hf, pixels


def saved(name: str, folder: Path, *, tensors: Callable[[dict], None] | None = None, **config) -> Path:
    """A checkpoint folder with its tensors or config tampered with; a config value of None takes the attribute out."""
    make_hf(name).save_pretrained(folder)
    if tensors is not None:
        file = folder / "model.safetensors"
        content = load_file(file)
        tensors(content)
        save_file(content, file, {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    return folder


def without(*names: str) -> Callable[[dict], None]:
    def drop(tensors: dict) -> None:
        found = [key for key in tensors if key.startswith(names)]
        assert found
        for key in found:
            del tensors[key]

    return drop


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("vit", "classifier."),
        ("deit", "classifier."),
        ("deit-teacher", "distillation_classifier."),
        ("beit-mean-both", "classifier."),
        ("beit-mean-both", "beit.pooler."),
        ("dinov2", "classifier."),
        ("registers", "classifier."),
        ("clip-classifier", "classifier."),
        ("clip-projection", "visual_projection."),
    ],
)
def test_a_head_is_never_random(name, prefix, tmp_path):
    """transformers fills it with random numbers and a warning."""
    folder = saved(name, tmp_path, tensors=without(prefix))
    with pytest.raises(CheckpointError, match=rf"missing: {prefix}.*Load it in the class it was saved from"):
        HookedViT.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("vit", "vit.embeddings.cls_token"),
        (
            "beit-mean-both",
            "beit.encoder.layer.1.attention.attention.relative_position_bias.relative_position_bias_table",
        ),
        ("dinov2", "dinov2.encoder.layer.0.layer_scale1.lambda1"),
        # which another class of the family has no use for
        ("clip-projection", "vision_model.post_layernorm.weight"),
        ("clip-model", "post_layernorm.bias"),
    ],
)
def test_a_missing_tensor(name, tensor, tmp_path):
    folder = saved(name, tmp_path, tensors=without(tensor))
    with pytest.raises(CheckpointError, match=rf"missing: .*{tensor.rpartition('.')[2]}"):
        HookedViT.from_pretrained(folder)


def test_a_missing_tensor_in_memory():
    """A pooler that was never made: its norm is what the model would answer with."""
    model = transformers.BeitModel(make_hf("beit-model").config, add_pooling_layer=False)
    with pytest.raises(CheckpointError, match=r"no tensor for \['ln_final.bias', 'ln_final.weight'\]"):
        HookedViT.from_hf(model)


def test_an_unused_tensor(tmp_path):
    def add(tensors: dict) -> None:
        tensors["vit.embeddings.second_cls_token"] = torch.zeros(1, 1, 32)

    with pytest.raises(CheckpointError, match="unused: vit.embeddings.second_cls_token"):
        HookedViT.from_pretrained(saved("vit", tmp_path, tensors=add))
    hf = make_hf("vit")
    hf.vit.gain = nn.Parameter(torch.ones(1))
    with pytest.raises(CheckpointError, match=r"no place for \['gain'\]"):
        HookedViT.from_hf(hf)


def test_a_classifier_the_class_does_not_have(tmp_path):
    """Read as what its config says it is, the head of this file would be dropped."""
    folder = saved("vit", tmp_path, architectures=["ViTModel"])
    with pytest.raises(CheckpointError, match="unused: classifier.bias, classifier.weight"):
        HookedViT.from_pretrained(folder)


def test_two_tensors_for_one_place():
    """Without mean pooling this class normalises twice, and the graph once."""
    hf = make_hf("beit-masked")
    config = transformers.BeitConfig(**(hf.config.to_dict() | {"use_mean_pooling": False}))
    with pytest.raises(CheckpointError, match=r"more than one tensor for \['layernorm.bias', 'layernorm.weight'\]"):
        HookedViT.from_hf(transformers.BeitForMaskedImageModeling(config))


def test_tensors_of_another_shape(tmp_path):
    def widen(tensors: dict) -> None:
        tensors["classifier.weight"] = torch.zeros(7, 32)

    with pytest.raises(CheckpointError, match="of another shape: .*classifier.weight"):
        HookedViT.from_pretrained(saved("vit", tmp_path, tensors=widen))
    hf = make_hf("vit")
    hf.classifier = nn.Linear(32, 7)
    with pytest.raises(CheckpointError, match=r"classifier.weight has shape \(7, 32\), head.weight needs \(5, 32\)"):
        HookedViT.from_hf(hf)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(bad, tmp_path):
    def spoil(tensors: dict) -> None:
        tensors["vit.layernorm.weight"][3] = bad

    with pytest.raises(CheckpointError, match=r"weights hold NaN or infinity: ln_final\.weight"):
        HookedViT.from_pretrained(saved("vit", tmp_path, tensors=spoil))


@pytest.mark.parametrize("name", ["vit", "deit", "beit-mean-both", "dinov2", "registers", "dinov3", "clip-model"])
def test_a_config_attribute_nobody_knows(name, tmp_path):
    folder = saved(name, tmp_path, rotary_base=100.0)
    with pytest.raises(CheckpointError, match=r"neither handles nor knows to be irrelevant: rotary_base=100\.0"):
        HookedViT.from_pretrained(folder)


@pytest.mark.parametrize("name", ["clip-full", "clip-classifier"])
def test_a_config_attribute_nobody_knows_inside(name):
    hf = make_hf(name)
    hf.config.vision_config.rotary_base = 100.0
    with pytest.raises(CheckpointError, match=r"rotary_base=100\.0"):
        HookedViT.from_hf(hf)


@pytest.mark.parametrize(
    ("name", "setting", "says"),
    [
        (
            "vit",
            {"hidden_act": "gelu_fast"},
            r"no activation is called 'gelu_fast'; did you mean '.*'\?; there are gelu",
        ),
        ("vit", {"patch_size": (8, 4)}, "patch_size must be square, got 8 x 4"),
        ("beit-mean-both", {"image_size": (32, 48)}, "relative position bias needs a square native image"),
        ("vit", {"id2label": {0: "ant", 7: "bee"}}, r"name the classes 0 to 1, it names \[0, 7\]"),
        ("dinov3", {"mlp_bias": False}, "DINOv3ViTModel with mlp_bias=False is not known here"),
        ("dinov3", {"num_attention_heads": 16}, "d_head 2 must be a multiple of 4"),
        (
            "dinov3-backbone",
            {"out_features": ["stage1", "stage2"]},
            r"the feature maps stage1, stage2, and a graph has one output, .* set out_features=\[\"stage2\"\]",
        ),
        ("dinov3-backbone", {"out_features": ["stage1"]}, "gives the feature maps stage1, and a graph has one output"),
    ],
)
def test_a_config_no_graph_has(name, setting, says):
    hf = make_hf(name)
    for key, value in setting.items():
        setattr(hf.config, key, value)
    with pytest.raises(ValueError, match=says):
        HookedViT.from_hf(hf)


def test_an_unsupported_class(tmp_path):
    folder = saved("vit", tmp_path, architectures=["ViTForMaskedImageModeling"])
    supported = ".*".join(sorted(architectures.supported_classes()))
    with pytest.raises(UnsupportedModelError, match=f"no hook graph for ViTForMaskedImageModeling.*{supported}"):
        HookedViT.from_pretrained(folder)
    with pytest.raises(UnsupportedModelError, match="no hook graph for Linear"):
        HookedViT.from_hf(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("hf_class", "says"),
    [
        *((name, "attend inside windows") for name in ("SwinModel", "Swinv2ForImageClassification", "SamVisionModel")),
        *((name, "attend inside windows") for name in ("Qwen2VLModel", "Qwen2_5_VLForConditionalGeneration")),
        *((name, "no one residual stream") for name in ("HieraModel", "PvtV2ForImageClassification", "CvtModel")),
        *((name, "NaFlex.*saved as SiglipModel") for name in ("Siglip2VisionModel", "Siglip2Model")),
        *((name, "it reads videos") for name in ("VJEPA2Model", "VideoMAEForVideoClassification")),
        *((name, "has no vision tower") for name in ("CLIPTextModel", "CLIPTextModelWithProjection")),
        *((name, "has no vision tower") for name in ("SiglipTextModel", "ChineseCLIPTextModel", "AltCLIPTextModel")),
        ("ViTMAEDecoder", "predicts the pixels of hidden patches"),
        ("Dinov2Backbone", "several maps of several depths"),
        ("LlavaForConditionalGeneration", r"HookedViT\.from_hf\(vlm\.model\.vision_tower\)"),
    ],
)
def test_another_graph_is_refused_with_the_reason(hf_class, says, tmp_path):
    assert hf_class == "ViTMAEDecoder" or hasattr(transformers, hf_class)
    folder = saved("vit", tmp_path, architectures=[hf_class])
    with pytest.raises(UnsupportedModelError, match=rf"no hook graph for {hf_class}: .*{says}.* Supported: "):
        HookedViT.from_pretrained(folder)


def test_a_decoder_in_memory_is_refused():
    with pytest.raises(UnsupportedModelError, match="ViTMAEDecoder: it predicts the pixels of hidden patches"):
        HookedViT.from_hf(make_hf("mae").decoder)


@pytest.mark.parametrize("named", [None, [], ["ViTModel", "ViTForImageClassification"]])
def test_a_config_that_does_not_name_its_class(named, tmp_path):
    folder = saved("vit", tmp_path, architectures=named)
    with pytest.raises(UnsupportedModelError, match="must name one class under `architectures`"):
        HookedViT.from_pretrained(folder)


@pytest.mark.parametrize("name", ["no/such-model", "./no-such-folder"])
def test_a_model_that_is_not_there(name):
    with pytest.raises(
        UnsupportedModelError, match=rf"'{name}' is neither a local checkpoint(.|\n)*Supported classes: A"
    ):
        HookedViT.from_pretrained(name)


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    marker = tmp_path / "was-run"
    for module, auto in (("evil", "AutoConfig"), ("evil", "AutoImageProcessor")):
        (tmp_path / f"{module}.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: ...\n")
        config = {"model_type": "evil", "architectures": ["ViTModel"], "auto_map": {auto: f"{module}.Evil"}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        with pytest.raises(UnsupportedModelError, match="transformers cannot read the config.json of"):
            HookedViT.from_pretrained(tmp_path)
    HookedViT.from_pretrained(saved("vit", tmp_path))  # beside whose preprocessor_config.json the code still lies
    assert not marker.exists()


@pytest.mark.parametrize("name", ["beit-masked", "mae"])
def test_a_pretraining_checkpoint_has_no_class_scores(name, tmp_path):
    model = HookedViT.from_pretrained(saved(name, tmp_path))
    assert model(pixels(model)).shape == (3, 32)
    _, cache = model.run_with_cache(pixels(model))
    for ask in (
        lambda: model.project(cache["resid_post", 0]),
        lambda: model.W_U,
        lambda: cache.logit_attrs(cache.decompose_resid(), 0),
        lambda: cache.logit_lens(),
    ):
        with pytest.raises(NoHeadError, match=f"{model.cfg.hf_class} has none"):
            ask()


def test_a_family_registers_once():
    with pytest.raises(ValueError, match="'vit' is registered already"):
        architectures.register(architectures.get("vit"))
    with pytest.raises(UnsupportedModelError, match="no architecture is called 'vti'; there are .*beit"):
        architectures.get("vti")


def test_every_family_names_a_known_checkpoint():
    """Of classes it reads; `hooked-vit models` prints them."""
    for name in architectures.registered():
        family = architectures.get(name)
        assert family.examples, name
        assert set(family.examples) <= set(family.classes), name
        assert all(checkpoint.count("/") == 1 for checkpoint in family.examples.values()), name


def test_aimv2_beside_a_text_tower_needs_its_pooling_head():
    config = make_hf("aimv2-full").config
    config.vision_config.use_head = False
    with pytest.raises(UnsupportedModelError, match="use_head=False pools nothing"):
        HookedViT.from_hf(transformers.Aimv2Model(config))


def test_positions_that_are_never_resampled():
    model = make("aimv2-biased", torch.float32)
    with pytest.raises(ValueError, match=r"never resampled, they are those of \(4, 4\) patches alone"):
        model(pixels(model, (48, 40)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mlp_bias": False, "norm": "layer"}, "without biases stands behind RMS norms"),
        ({"has_cls": True, "sources": ("cls",)}, "defined for patches alone"),
    ],
)
def test_combinations_no_graph_has(changes, says):
    with pytest.raises(ValueError, match=says):
        make("aimv2-model").cfg.replace(**changes)


@pytest.mark.parametrize(
    ("hf_class", "graph"),
    [
        ("Siglip2VisionModel", "NaFlex.*of a fixed size are saved as SiglipModel"),
        ("Siglip2ForImageClassification", "NaFlex"),
        ("SwinForImageClassification", "inside windows"),
        ("Swinv2Model", "inside windows"),
        ("HieraModel", "a pyramid"),
        ("Qwen2VLForConditionalGeneration", "inside windows"),
        ("VJEPA2Model", "it reads videos"),
    ],
)
def test_another_graph_is_named(hf_class, graph):
    assert hasattr(transformers, hf_class)
    with pytest.raises(UnsupportedModelError, match=f"no hook graph for {hf_class}: .*{graph}"):
        architectures.for_class(hf_class)


def test_a_naflex_checkpoint_is_refused_before_its_weights_are_read(tmp_path):
    transformers.Siglip2Config(architectures=["Siglip2Model"]).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="no hook graph for Siglip2Model: .*NaFlex"):
        HookedViT.from_pretrained(tmp_path)


def vision_classes() -> list[str]:
    """Every class that transformers makes public in a folder whose configs speak of patches; read as text."""
    found = []
    for config in sorted((Path(transformers.__file__).parent / "models").glob("*/configuration_*.py")):
        if "patch_size" in config.read_text(encoding="utf-8"):
            for modeling in config.parent.glob("modeling_*.py"):
                public = re.search(r"__all__ = \[(.*?)\]", modeling.read_text(encoding="utf-8"), flags=re.DOTALL)
                found += re.findall(r'"(\w+)"', public[1] if public else "")
    return sorted(set(found))


def test_every_vision_model_of_transformers_is_loaded_or_refused_with_a_reason():
    """One that a new version brings has to be decided on: a graph of its own, or a sentence in `_other_graphs`."""
    known, unexplained = architectures.supported_classes(), []
    classes = vision_classes()
    assert len(classes) > 500
    assert set(known) - {"VisionTransformer", "VisionTransformerDistilled", "Eva"} <= set(classes)
    for name in set(classes) - set(known):
        with pytest.raises(UnsupportedModelError, match=f"no hook graph for {name}") as refusal:
            architectures.for_class(name)
        if f"{name}: " not in str(refusal.value):
            unexplained.append(name)
    assert unexplained == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Sapiens2Model", "share keys and values"),
        ("PixioModel", "several tokens where the graph has one CLS"),
        ("PixtralVisionModel", "one list of patches"),
        ("ConvNextModel", "not by attention"),
        ("ASTModel", "reads sounds"),
        ("BlipVisionModel", "nobody has compared it with the graph"),
        ("BlipForConditionalGeneration", "a language model around a vision tower"),
        ("ViltModel", "words and patches"),
        ("Dinov2PreTrainedModel", "no model by itself"),
        ("DeiTForMaskedImageModeling", "predicts maps, boxes or hidden pixels"),
        ("LlavaModel", "give the tower alone"),
    ],
)
def test_the_reason_is_the_right_one(name, says):
    with pytest.raises(UnsupportedModelError, match=says):
        architectures.for_class(name)
