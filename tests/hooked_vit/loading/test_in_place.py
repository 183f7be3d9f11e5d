"""A hook graph in the place of a tower: the larger model answers as before, until the graph is edited."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import hooked_vit
from hooked_vit import HookedViT, architectures, in_place
from hooked_vit.errors import UnsupportedModelError
from interventions import apply, insert_token, zero_attention
from tests.stories.documents import python
from tests.tiny import MLP, SIZE, make, make_hf, pixels, set_kernel

LANGUAGE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LANGUAGE |= {"vocab_size": 60, "model_type": "llama", "num_key_value_heads": 2, "max_position_embeddings": 64}
IMAGE_TOKEN = 59
PAGE = Path(__file__).parents[3] / "docs" / "families.md"
# bodies of every family, as towers; MAE's hides patches at random
BODIES = ("vit-model", "deit-model", "beit-model", "beit-model-cls", "dinov2-model", "registers-model", "clip-model")
BODIES += ("msn-model", "ijepa-model", "data2vec-model", "data2vec-model-cls")
BODIES += ("aimv2-model", "siglip-headless", "metaclip-2-model", "chinese-clip-model", "altclip-model")


class Whole(torch.nn.Module):
    """A larger model that hands out whatever its tower does."""

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.inner = torch.nn.ModuleDict({"tower": tower})

    def forward(self, pixel_values, **kw):
        return self.inner["tower"](pixel_values, **kw)


@pytest.fixture
def llava():
    """A tiny LLaVA with a CLIP tower, its config spelled as on the hub, and a question about an image."""
    return llava_with({"model_type": "clip_vision_model", "projection_dim": 768, "vocab_size": 32000})


def llava_with(tower, **settings):
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=SIZE | MLP | tower,
        text_config=LANGUAGE,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=16,
        **settings,
    )
    vlm = transformers.LlavaForConditionalGeneration(config).eval()
    vlm.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in vlm.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    asked = {"input_ids": torch.tensor([[1, *[IMAGE_TOKEN] * 16, 7, 8]]), "pixel_values": torch.randn(1, 3, 32, 32)}
    return vlm, asked


@torch.no_grad()
def test_a_language_model_answers_as_before_and_otherwise_when_its_tower_is_edited(llava):
    vlm, asked = llava
    model = HookedViT.from_hf(vlm.model.vision_tower)
    model.set_attention("eager")
    want, tower = vlm(**asked).logits, vlm.model.vision_tower
    with in_place(vlm, "model.vision_tower", model) as same:
        assert same is vlm
        assert torch.equal(vlm(**asked).logits, want)
        with apply(model, zero_attention("patches", "cls", layers=0)) as run:
            edited = vlm(**asked).logits
        assert run.fired
        assert (edited - want).abs().max() > 1e-4
        # LLaVA reads the stream that enters the last block
        with apply(model, zero_attention("patches", "cls", layers=1)):
            assert torch.equal(vlm(**asked).logits, want)
        words = [vlm.generate(**asked, max_new_tokens=4, do_sample=False) for _ in range(2)]
        assert torch.equal(*words)
    assert vlm.model.vision_tower is tower
    assert torch.equal(vlm(**asked).logits, want)
    assert torch.equal(vlm.generate(**asked, max_new_tokens=4, do_sample=False), words[0])


@pytest.mark.parametrize("layer", [-1, -2])
@torch.no_grad()
def test_a_siglip_tower_inside_a_language_model(layer):
    """LLaVA reads all of its tokens, there being no CLS: of the last block, or of the one before."""
    tower = {"model_type": "siglip_vision_model", "vision_use_head": False}
    vlm, asked = llava_with(tower, vision_feature_select_strategy="full", vision_feature_layer=layer)
    model = HookedViT.from_hf(vlm.model.vision_tower)
    model.set_attention("eager")
    assert (model.cfg.hf_class, model.cfg.has_cls) == ("SiglipVisionModel", False)
    want = vlm(**asked).logits
    said = vlm.generate(**asked, max_new_tokens=4, do_sample=False)
    first = vlm.model.vision_tower.encoder.layers[0].self_attn
    handle = first.register_forward_hook(lambda _m, _a, out: (2 * out[0], *out[1:]))
    doubled = vlm(**asked).logits
    handle.remove()
    with in_place(vlm, "model.vision_tower", model):
        assert torch.equal(vlm(**asked).logits, want)
        assert torch.equal(vlm.generate(**asked, max_new_tokens=4, do_sample=False), said)
        with model.hooks([("blocks.0.hook_attn_out", lambda act, hook: 2 * act)]):
            assert torch.equal(vlm(**asked).logits, doubled)
        with apply(model, zero_attention("patches", "patches", layers=1, keep_self=True)) as run:
            edited = vlm(**asked).logits
            vlm.generate(**asked, max_new_tokens=2, do_sample=False)
        assert run.fired
        # the stream that enters the last block is no longer changed by it
        assert ((edited - want).abs().max() > 1e-4) == (layer == -1)


@torch.no_grad()
def test_what_the_edit_does_is_what_it_does_to_the_original(llava):
    """The same edit made with a hook of torch on the original tower's block."""
    vlm, asked = llava
    model = HookedViT.from_hf(vlm.model.vision_tower)
    model.set_attention("eager")
    block = vlm.model.vision_tower.encoder.layers[0].self_attn
    handle = block.register_forward_hook(lambda _m, _a, out: (2 * out[0], *out[1:]))
    want = vlm(**asked).logits
    handle.remove()
    with (
        in_place(vlm, "model.vision_tower", model),
        model.hooks([("blocks.0.hook_attn_out", lambda act, hook: 2 * act)]),
    ):
        assert torch.equal(vlm(**asked).logits, want)


def test_the_recipe_of_the_docs(llava):
    """As it stands there: one answer for each edit, and the unedited one is the model's own."""
    vlm, asked = llava
    (recipe,) = python(PAGE)
    held = {"vlm": vlm, "inputs": asked}
    exec(compile(recipe, str(PAGE), "exec"), held)
    answers = held["answers"]
    assert list(answers) == ["unedited", "patches do not read CLS", "patches read themselves alone"]
    assert torch.equal(answers["unedited"], vlm.generate(**asked, max_new_tokens=8, do_sample=False))


def test_gradients_of_the_answer_reach_the_tower(llava):
    vlm, asked = llava
    model = HookedViT.from_hf(vlm.model.vision_tower)
    (vlm(**asked).logits ** 2).sum().backward()
    want = vlm.model.vision_tower.encoder.layers[0].mlp.fc1.weight.grad
    with in_place(vlm, "model.vision_tower", model):
        (vlm(**asked).logits ** 2).sum().backward()
    assert torch.allclose(model.blocks[0].mlp.fc_in.weight.grad, want, rtol=0, atol=1e-4 * want.abs().max())


@pytest.mark.parametrize("name", BODIES)
@torch.no_grad()
def test_the_tower_of_every_family(name):
    """Every output that a larger model may read, to the last bit."""
    hf = make_hf(name)
    set_kernel(hf, "eager")
    model = HookedViT.from_hf(hf)
    model.set_attention("eager")
    whole, x = Whole(hf), pixels(model)
    with architectures.for_class(type(hf).__name__).as_read(hf, x):
        want = whole(x, output_hidden_states=True)
    with in_place(whole, "inner.tower", model):
        got = whole(x, output_hidden_states=True, return_dict=True)
        assert whole.inner["tower"].config is hf.config
        assert len(list(whole.parameters())) == len(list(model.parameters()))
        assert len(whole(x, return_dict=False)) == 3
    assert torch.equal(got.last_hidden_state, want.last_hidden_state)
    assert all(map(torch.equal, got.hidden_states, want.hidden_states))
    assert len(got.hidden_states) == len(want.hidden_states)
    if want.get("pooler_output") is not None:
        assert torch.equal(got.pooler_output, want.pooler_output)


def test_the_tower_comes_back_after_an_error(llava):
    vlm, asked = llava
    model, tower = HookedViT.from_hf(vlm.model.vision_tower), vlm.model.vision_tower
    with (
        pytest.raises(ValueError, match="tokens"),
        in_place(vlm, "model.vision_tower", model),
        apply(model, insert_token(0, torch.zeros(32))),
    ):
        vlm(**asked)
    assert vlm.model.vision_tower is tower
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    assert not model.ln_final._forward_hooks


def test_what_does_not_fit_is_refused(llava):
    vlm, asked = llava
    tower = vlm.model.vision_tower
    model = HookedViT.from_hf(tower)

    def put(path, other):
        with in_place(vlm, path, other):
            raise AssertionError("it should have been refused")

    with pytest.raises(ValueError, match="a CLIPForImageClassification has a head"):
        put("model.vision_tower", make("clip-classifier"))
    with pytest.raises(ValueError, match="another tower .* hf_class CLIPVisionModel, not ViTModel"):
        put("model.vision_tower", make("vit-model"))
    with pytest.raises(UnsupportedModelError, match="no hook graph for LlamaModel"):
        put("model.language_model", model)
    with pytest.raises(AttributeError, match="no_tower"):
        put("model.no_tower", model)
    with in_place(vlm, "model.vision_tower", model), pytest.raises(UnsupportedModelError, match="output_attentions"):
        vlm.model.vision_tower(asked["pixel_values"], output_attentions=True)
    with pytest.raises(
        UnsupportedModelError,
        match=r"LlavaForConditionalGeneration is more than a vision tower.*"
        r"get_submodule\('model.vision_tower'\), a CLIPVisionModel",
    ):
        HookedViT.from_hf(vlm)


def test_it_is_public():
    assert hooked_vit.in_place is in_place
