"""Classes that are prompts: what the whole model of images and texts answers, as logits of one hook graph."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from analyses.questions.class_space.measures.projection import text_prototypes
from hooked_vit import HookedViT, architectures, zero_shot_head
from hooked_vit.errors import CheckpointError, NonlinearReadoutError, UnsupportedModelError
from hooked_vit.loading.zero_shot import text_embeddings
from interventions import apply, readout, shuffle_cls, sweep
from tests.tiny import Letters, distance, make_hf, pixels

NAMES = ("cat", "dog", "a very old sheep", "newt")
BOTH = ("clip-full", "siglip-full")
WITH_TEXTS = (*BOTH, "metaclip-2-full", "chinese-clip-full", "altclip-full", "aimv2-full")


def whole(name: str):
    hf = make_hf(name).double()
    hf.set_attn_implementation("sdpa")  # their eager softmax is float32 in a float64 model too
    return hf


def prompted(name: str, templates=("a {}",)) -> tuple[torch.nn.Module, HookedViT]:
    hf = whole(name)
    return hf, zero_shot_head(hf, NAMES, templates, tokenizer=Letters())


def inputs(name: str, texts: list[str]) -> dict[str, Tensor]:
    """What each family's own processor makes of captions."""
    if name == "siglip-full":
        return {"input_ids": Letters()(texts, padding="max_length", return_tensors="pt", max_length=64)["input_ids"]}
    return Letters()(texts, padding=True, return_tensors="pt")


def test_every_family_with_a_text_tower_is_asked():
    assert {type(make_hf(name)).__name__ for name in WITH_TEXTS} == set(architectures.with_texts())
    bare = {cls for cls in architectures.supported_classes() if cls.endswith("Model") and "Vision" not in cls}
    paired = {cls for cls in bare if "text_config" in getattr(transformers, cls).config_class.sub_configs}
    assert paired == set(architectures.with_texts())


@pytest.mark.parametrize("size", [(32, 32), (48, 40)])
@pytest.mark.parametrize("name", WITH_TEXTS)
def test_logits_are_those_of_the_whole_model(name, size):
    """Temperature, bias and both normalisations; to rounding, for here the temperature is part of the weights."""
    hf, model = prompted(name)
    x = pixels(model, size)
    with torch.no_grad():
        foreign = {} if size == (32, 32) else architectures.for_class(type(hf).__name__).foreign_size_flags
        # together, so that the short ones are padded
        said = [hf(pixel_values=x, **foreign, **inputs(name, [f"a {one}" for one in NAMES]))]
        logits, acts = model.run_with_cache(x)
    want = torch.cat([out.logits_per_image for out in said], dim=1)
    assert distance(logits, want) <= 1e-12
    assert distance(acts["hook_image_normalized"], said[0].image_embeds) <= 1e-12
    assert distance(acts["hook_image_normalized"] @ model.head.weight.T + model.head.bias, logits) <= 1e-12
    assert (model.cfg.class_names, model.cfg.outputs, model.to_single_token("dog")) == (NAMES, "classes", 1)


@pytest.mark.parametrize("name", BOTH)
def test_prompts_of_a_class_are_averaged_as_unit_vectors(name):
    hf, model = prompted(name, ("a {}", "{} again"))
    with torch.no_grad():
        each = [
            hf.get_text_features(**inputs(name, [text.format("dog") for text in ("a {}", "{} again")])).pooler_output
        ]
    want = F.normalize(F.normalize(each[0], dim=-1).mean(0), dim=0)
    assert distance(F.normalize(model.head.weight[1], dim=0), want) <= 1e-12
    assert distance(model.head.weight[1].norm(), hf.logit_scale.exp().squeeze()) <= 1e-12


@pytest.mark.parametrize("name", BOTH)
def test_a_lens_divides_by_each_vectors_own_length(name):
    """Exactly the logits of a stream that is this vector everywhere; what is linear nowhere is refused."""
    _, model = prompted(name)
    x = pixels(model)
    with torch.no_grad():
        logits, acts = model.run_with_cache(x)
        vector = acts["resid_post", 1][:, 0]
        same = model.readout(vector[:, None].expand(-1, model.tokens.n_tokens, -1))
        role = model.cfg.sources[0]
        assert distance(model.project(vector, role=role), same) <= 1e-12
        assert distance(model.project(3 * vector, role=role), model.project(vector, role=role)) <= 1e-3
    if role == "cls":
        assert distance(acts.logit_lens("cls")[-1, :, 0], logits) <= 1e-12
    for ask in (
        lambda: model.W_U,
        lambda: model.head_for(role),
        lambda: model.logit_constant,
        lambda: acts.logit_attrs(acts.decompose_resid(), 0),
    ):
        with pytest.raises(NonlinearReadoutError, match=r"model.project\(x, role\)"):
            ask()


@pytest.mark.parametrize("name", BOTH)
def test_every_hook_is_live_and_described(name):
    _, model = prompted(name)
    x = pixels(model)
    fired: list[str] = []
    note = lambda act, hook: fired.append(hook.name)  # noqa: E731
    with torch.no_grad():
        clean = model.run_with_hooks(x, fwd_hooks=[(lambda hook: True, note)])
        assert [hook for hook, _, _ in model.describe_hooks()] == fired
        for hook in ("hook_image_embeds", "hook_image_scale", "hook_image_normalized", "hook_pooled"):
            edited = model.run_with_hooks(x, fwd_hooks=[(hook, lambda act, hook: act + torch.rand_like(act))])
            assert distance(edited, clean) > 1e-3, hook
        before = model(x)
        model.fold_layer_norm_()
        assert distance(model(x), before) <= 1e-12
        twin = model.shared_copy()
        assert torch.equal(twin(x), model(x))
    plain = model.shared_copy()
    plain.set_head_(torch.ones(2, 32).double(), torch.zeros(2).double())
    assert not [hook for hook in plain.hook_dict if "image" in hook]
    assert plain(x).shape == (3, 2)


def test_interventions_see_prompts_as_classes():
    _, model = prompted("clip-full")
    x = pixels(model)
    edits = [shuffle_cls(layer=layer, seed=0) + readout("cls") for layer in range(2)]
    with torch.no_grad():
        for edit, logits in sweep(model, x, edits):
            with apply(model, edit):
                assert distance(logits, model(x)) <= 1e-12
            assert distance(logits, model(x)) > 1e-3


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("clip-model", "CLIPVisionModel has no text tower.*CLIPModel, .*SiglipModel"),
        ("siglip", "SiglipVisionModel has no text tower"),
        ("vit", "ViTForImageClassification has no text tower"),
    ],
)
def test_class_names_for_a_model_without_a_text_tower(name, says):
    with pytest.raises(UnsupportedModelError, match=says):
        zero_shot_head(make_hf(name), NAMES, tokenizer=Letters())


@pytest.mark.parametrize("hf_class", ["CLIPTextModel", "SiglipTextModel"])
def test_a_text_tower_without_a_vision_tower(hf_class):
    make = getattr(transformers, hf_class)
    tower = make(make.config_class(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50))
    for load in (HookedViT.from_hf, lambda hf: zero_shot_head(hf, NAMES)):
        with pytest.raises(UnsupportedModelError, match=f"{hf_class}: it reads text and has no vision tower"):
            load(tower)


def test_what_no_prompt_can_be_made_of():
    hf = whole("siglip-full")
    for arguments, says in (
        ({"class_names": ()}, "at least one, and none twice"),
        ({"class_names": ("cat", "cat")}, "at least one, and none twice"),
        ({"class_names": NAMES, "templates": ("a photo",)}, "a sentence with {}"),
        ({"class_names": ("c" * 80,)}, "reads 64 tokens, and a prompt.*has 95"),
        ({"class_names": NAMES, "tokenizer": None}, "without its tokenizer"),
    ):
        with pytest.raises(ValueError, match=says):
            zero_shot_head(hf, **({"tokenizer": Letters()} | arguments))
    with pytest.raises(TypeError, match="dtype have no meaning"):
        zero_shot_head(hf, NAMES, tokenizer=Letters(), dtype=torch.float32)
    with pytest.raises(ValueError, match="answers with classes"):
        HookedViT.from_hf(make_hf("clip-classifier")).set_text_head_(torch.ones(2, 32), 1.0)


WORDS = ("[PAD]", "[END]", "a", "cat", "dog", "newt", "[UNK]", "[CLS]", "[SEP]")


def words(*, ends: bool = True):
    """A tokenizer of whole words that ends a text as CLIP's does."""
    built = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        built.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 1)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=built, pad_token="[PAD]", unk_token="[UNK]")


def pieces():
    """XLM-R's, of a few pieces."""
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return transformers.XLMRobertaTokenizer(vocab=[*vocab, *((f"\u2581{word}", -1.0) for word in WORDS[2:6])])


TOKENIZERS = {
    "clip-full": words,
    "siglip-full": words,
    "metaclip-2-full": words,
    "aimv2-full": words,
    "chinese-clip-full": lambda: transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}),
    "altclip-full": pieces,
}


@pytest.mark.parametrize("name", WITH_TEXTS)
def test_a_checkpoint_brings_its_tokenizer(name, tmp_path):
    """Built from a folder as hubs hold it: config, weights and tokenizer; prompts of several lengths, so pads count."""
    hf = make_hf(name)
    if name == "altclip-full":  # XLM-R's own number of the pad
        hf.config.text_config.pad_token_id = hf.text_model.roberta.embeddings.padding_idx = 1
    hf.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="came without a tokenizer"):
        zero_shot_head(tmp_path, NAMES)
    tokenizer = TOKENIZERS[name]()
    tokenizer.save_pretrained(tmp_path)
    prompts = ("a {}", "a a a {}")
    model = zero_shot_head(tmp_path, ("cat", "newt"), prompts, dtype=torch.float64)
    assert model.cfg.name == str(tmp_path)
    hf = type(hf).from_pretrained(tmp_path, dtype=torch.float64).eval()
    length = {"padding": "max_length", "max_length": 64} if name == "siglip-full" else {"padding": True}
    x, want = pixels(model), []
    with torch.no_grad():
        for word in ("cat", "newt"):
            asked = tokenizer([prompt.format(word) for prompt in prompts], return_tensors="pt", **length)
            asked = {key: ids for key, ids in asked.items() if name != "siglip-full" or key == "input_ids"}
            if name != "chinese-clip-full":
                asked.pop("token_type_ids", None)
            else:
                assert "token_type_ids" in asked
            embeds = F.normalize(hf.get_text_features(**asked).pooler_output, dim=-1)
            want.append(F.normalize(embeds.mean(0), dim=-1))
    assert distance(F.normalize(model.head.weight, dim=-1), torch.stack(want)) <= 1e-12
    assert distance(text_embeddings(hf, tokenizer, ("cat", "newt"), prompts), torch.stack(want)) <= 1e-12
    assert distance(text_prototypes(hf, tokenizer, ("cat", "newt"), prompts), torch.stack(want)) <= 1e-12
    assert model(x).shape == (3, 2)


@pytest.mark.parametrize("name", ["clip-full", "metaclip-2-full", "aimv2-full"])
def test_a_tower_read_at_the_end_of_a_text_needs_one(name):
    """transformers would read the first token instead."""
    with pytest.raises(ValueError, match="read at the token 1 that ends a text.*without it"):
        zero_shot_head(make_hf(name), ("cat", "dog"), tokenizer=words(ends=False))


def test_positions_of_altclip_are_counted_from_behind_its_pads():
    hf = make_hf("altclip-full")
    hf.config.text_config.max_position_embeddings = 20
    with pytest.raises(ValueError, match="reads 19 tokens, and a prompt"):
        zero_shot_head(hf, ("c" * 19, "d"), ("{}",), tokenizer=Letters())
