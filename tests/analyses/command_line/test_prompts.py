"""Models whose classes are prompts, from the command line: `prompts:MODEL` answers with the data's class names."""

from __future__ import annotations

import json
import re

import datasets
import pytest
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from analyses.command_line import terminal
from analyses.command_line.cli import main
from analyses.data.builtin import CLASS_NAMES
from analyses.running.models import load_model, load_models, prompts_of, short_names
from analyses.running.results import Result
from hooked_vit import HookedViT
from tests.tiny import make_hf, processor_of

WORDS = ("[PAD]", "[END]", "[UNK]", "a", "the", *CLASS_NAMES)


@pytest.fixture(autouse=True)
def loud(monkeypatch):
    monkeypatch.setattr(terminal, "quiet", lambda: None)


def save(folder, name):
    make_hf(name).save_pretrained(folder)
    processor_of((32, 32)).save_pretrained(folder)
    built = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 1)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=built, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoints") / "clip", "clip-full")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A vision tower alone."""
    return save(tmp_path_factory.mktemp("checkpoints") / "tower", "clip-model")


def test_a_run_compares_prompts_with_other_models(clip, tmp_path, capsys):
    """Every image's answer is a class name, by the model's own head: none is fitted."""
    said = f"prompts:{clip}=a {{}}|the {{}}"
    asked = ["run", "cls-causality", "--model", said, "zoo:vit", "--n", "12", "--seeds", "1", "--out", str(tmp_path)]
    assert main(asked) == 0, capsys.readouterr().err
    meta = Result.load(tmp_path).meta
    assert list(meta["models"]) == ["clip", "vit"]
    assert meta["models"]["clip"]["checkpoint"] == said
    assert "ridge" not in json.dumps(meta["models"]["clip"])


def test_the_classes_are_the_names_in_their_sentences(clip):
    spec = f"prompts:{clip}=the {{}}"
    (model,) = load_models([spec], class_names=CLASS_NAMES).values()
    assert (model.cfg.class_names, model.cfg.name, model.cfg.outputs) == (tuple(CLASS_NAMES), spec, "classes")
    assert "hook_image_normalized" in model.hook_dict
    assert prompts_of("prompts:openai/clip")[1] == ("a photo of a {}.",)
    assert list(short_names([spec, "zoo:vit"])) == ["clip", "vit"]
    assert list(short_names([spec, clip])) == [spec, clip]
    assert isinstance(load_model(clip, class_names=CLASS_NAMES), HookedViT)


def test_commands_without_data_take_the_names(clip, tmp_path, capsys):
    spec = f"prompts:{clip}"
    assert main(["hooks", spec, "--classes", "a", "the"]) == 0
    assert "class=2" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["explore", spec, "--classes", "one", "two", "--no-patches", "--out", str(page)]) == 0
    assert '"two"' in page.read_text()


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["run", "cls-causality", "--model", "prompts:BARE"], "CLIPVisionModel has no text tower, so class names mean"),
        (["run", "cls-causality", "--model", "prompts:zoo:vit"], "ViTForImageClassification has no text tower"),
        (["run", "cls-causality", "--model", "prompts:CLIP=a photo"], "a prompt is a sentence with {}"),
        (["run", "cls-causality", "--model", "prompts:published:vilas2023-gap"], "stands a hub id or a local folder"),
        (["run", "cls-causality", "--model", "prompts:CLIP", "--data", "parquet:UNNAMED"], "there are none here"),
        (["explore", "prompts:CLIP"], "made of class names, and there are none here.*--classes NAME"),
        (["explore", "zoo:vit", "--classes", "cat"], "--classes are for a model with a text tower.*'zoo:vit'"),
        (["hooks", "prompts:CLIP"], "there are none here"),
        (["hooks", "CLIP", "--classes", "cat"], "spelled prompts:MODEL"),
        (["hooks", "prompts:BARE", "--classes", "cat"], "CLIPVisionModel has no text tower"),
        (["verify", "prompts:CLIP"], "compared with its original: give it without prompts:"),
    ],
)
def test_what_no_prompts_can_be_made_for(typed, says, clip, bare, tmp_path, capsys, monkeypatch):
    """Said before a weight is read, the model called by its name."""
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", None)
    monkeypatch.chdir(tmp_path)
    rows = {"image": [Image.new("RGB", (32, 32))] * 2, "label": [0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "unnamed.parquet")
    places = {"BARE": bare, "CLIP": clip, "UNNAMED": str(tmp_path / "unnamed.parquet")}
    typed = [next((word.replace(k, v) for k, v in places.items() if k in word), word) for word in typed]
    capsys.readouterr()
    assert main(typed) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(says, error), error


def test_the_explorer_answers_in_the_words_of_text(clip, tmp_path):
    """Each text as it stands, among no others."""
    out = tmp_path / "page.html"
    assert main(["explore", clip, "--text", "a zero", "the one", "--no-patches", "--out", str(out)]) == 0
    views = json.loads(out.read_text().partition('id="views">')[2].partition("</script>")[0])
    assert {frozenset(view["classes"]) for view in views} == {frozenset({"a zero", "the one"})}


@pytest.mark.parametrize("model", ["bare", "zoo:clip", "zoo:vit"])
def test_text_is_refused_without_a_text_tower(model, bare, tmp_path, capsys):
    assert main(["explore", bare if model == "bare" else model, "--text", "a cat", "--out", str(tmp_path / "x")]) == 2
    assert "has no text tower" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "texts", "why"),
    [
        ("{clip}", ["a cat", "a cat"], "given twice"),
        ("{clip}", [" "], "it is empty"),
        ("prompts:{clip}", ["a cat"], "without prompts:"),
    ],
)
def test_texts_that_mean_nothing_are_refused(spec, texts, why, clip, tmp_path, capsys):
    asked = ["explore", spec.format(clip=clip), "--text", *texts, "--out", str(tmp_path / "x")]
    assert main(asked) == 2
    assert why in " ".join(capsys.readouterr().err.split())
