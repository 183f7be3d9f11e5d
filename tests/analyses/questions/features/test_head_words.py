"""Parts sum to the zero-shot logit; TextSpan is the straight-line algorithm; a planted word is found."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from PIL import Image

from analyses import Result
from analyses.data import ImageData, as_data
from analyses.questions.features.head_words.figure import explained_figure
from analyses.questions.features.head_words.head_words import head_words
from analyses.questions.features.head_words.joint import JointReading, Part, directions, prompt_map
from analyses.questions.features.head_words.text_span import text_span
from analyses.running.catalogue import get_analysis
from hooked_vit import HookedViT, zero_shot_head
from tests.tiny import CLASSES, IMAGE, Letters, make, make_hf, pixels, processor_of, tiny

NAMES = ("cat", "dog", "a very old sheep", "newt")
TEXTS = ("clip-full", "siglip-full")
CLASSIFIERS = (
    "vit",
    "deit-teacher",
    "dinov2",
    "registers",
    "clip-classifier",
    "siglip-classifier",
    "timm-map",
    "timm-pe-core",
)


def prompted(name: str) -> HookedViT:
    return zero_shot_head(make_hf(name).double(), NAMES, ("a {}",), tokenizer=Letters())


def model_of(name: str) -> HookedViT:
    return prompted(name) if name.endswith("full") else make(name)


@pytest.mark.parametrize("size", [(32, 32), (48, 40)])
@pytest.mark.parametrize("name", [*TEXTS, *CLASSIFIERS])
def test_the_parts_sum_to_the_logit(name, size):
    """By layer, head, token and word; exactly, but for rounding in float64."""
    model = model_of(name)
    x = pixels(model, size)
    reading = JointReading(model, x, patterns=True)
    vectors = reading.vectors()
    assert vectors.shape[1] == len(reading.parts) == len(set(reading.parts))
    logits = vectors.sum(1) @ directions(model).T + model.b_U
    assert (logits - model(x)).abs().max() < 1e-9
    towards = directions(model)[model(x).argmax(-1)]
    heads = [i for i, part in enumerate(reading.parts) if part.component == "attn"]
    by_token = reading.by_source(towards)
    want = torch.einsum("bpe,be->bp", vectors[:, heads], towards)
    assert (by_token.sum(-1).flatten(1) - want).abs().max() < 1e-9


@pytest.mark.parametrize("layers", [(0,), (1,)])
@pytest.mark.parametrize("name", [*TEXTS, *CLASSIFIERS])
def test_of_some_layers_the_others_are_one_part(name, layers):
    model = model_of(name)
    x = pixels(model)
    whole, some = JointReading(model, x), JointReading(model, x, layers=layers)
    vectors, told = (dict(zip(r.parts, r.vectors().unbind(1), strict=True)) for r in (whole, some))
    other = told.pop(Part("other_layers"))
    assert all(torch.equal(vector, vectors[part]) for part, vector in told.items())
    left_out = [vector for part, vector in vectors.items() if part not in told]
    assert {part.layer for part in vectors if part not in told} == {*range(model.cfg.n_layers)} - {*layers}
    assert (other - sum(left_out)).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["clip-full", "siglip-full"])
def test_in_single_precision_they_sum_to_a_hundred_thousandth(name):
    model = zero_shot_head(make_hf(name), NAMES, tokenizer=Letters())
    x = pixels(model)
    logits = JointReading(model, x).vectors().sum(1) @ directions(model).T + model.b_U
    assert (logits - model(x)).abs().max() < 1e-5 * model(x).abs().max()


def test_a_head_is_what_is_missing_without_it():
    """With scale and length held, a head's vector is the change of the embedding when it alone is silent."""
    model = prompted("clip-full")
    x = pixels(model)
    reading = JointReading(model, x)
    names = ["ln_final.hook_scale", "hook_image_scale", "hook_image_normalized"]
    with torch.no_grad():
        _, clean = model.run_with_cache(x, names_filter=names)

        def silent(z, hook):
            z = z.clone()
            z[:, :, 2] = 0
            return z

        def held(act, hook):
            return clean[hook.name]

        last = model.cfg.n_layers - 1
        seen = []
        hooks = [(f"blocks.{last}.attn.hook_z", silent), *((name, held) for name in names[:2])]
        # what the head says to the MLP behind it is not its own vector
        hooks.append((f"blocks.{last}.hook_mlp_out", lambda act, hook: reading.acts[hook.name]))
        hooks.append((names[2], lambda act, hook: seen.append(act)))
        model.run_with_hooks(x, fwd_hooks=hooks)
    i = [*reading.parts].index(("attn", last, 2))
    assert (clean[names[2]] - seen[0] - reading.vectors()[:, i]).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["clip-full", "siglip-full", "vit"])
def test_a_map_of_one_prompt(name):
    model = model_of(name)
    x = pixels(model)
    one = "dog" if name.endswith("full") else 1
    reading = JointReading(model, x, patterns=True)
    whole = reading.by_source(directions(model)[[1] * len(x)])
    assert torch.allclose(prompt_map(model, x, one).flatten(1), whole.sum((1, 2))[:, model.tokens.mask("patches")])
    own = prompt_map(model, x)
    for image, answer in enumerate(model(x).argmax(-1).tolist()):
        assert torch.allclose(own[image], prompt_map(model, x, answer)[image])
    with pytest.raises(ValueError, match="texts are 0 to"):
        prompt_map(model, x, 99)


def straight_line(outputs: np.ndarray, texts: np.ndarray, k: int) -> tuple[list[int], list[float]]:
    """The published algorithm as it is printed, with loops."""
    _, _, vh = np.linalg.svd(outputs, full_matrices=False)
    texts = np.stack([vh.T @ (vh @ text) for text in texts])
    rest = outputs - outputs.mean(0)
    total, chosen, explained = (rest**2).sum(), [], []
    for _ in range(k):
        variances = [np.var([row @ text for row in rest]) for text in texts]
        best = int(np.argmax(variances))
        unit = texts[best] / np.linalg.norm(texts[best])
        rest = np.stack([row - (row @ unit) * unit for row in rest])
        texts = np.stack([text - (text @ unit) * unit for text in texts])
        chosen.append(best)
        explained.append(1 - (rest**2).sum() / total)
    return chosen, explained


@pytest.mark.parametrize(("n", "e", "m", "seed"), [(40, 12, 30, 0), (8, 20, 50, 1), (100, 6, 9, 2)])
def test_text_span_is_the_straight_line_algorithm(n, e, m, seed):
    rng = np.random.default_rng(seed)
    outputs, texts = rng.normal(size=(n, e)) * rng.uniform(0.1, 3, e), rng.normal(size=(m, e))
    found = text_span(torch.from_numpy(outputs), torch.from_numpy(texts), 5)
    chosen, explained = straight_line(outputs, texts, 5)
    assert found.texts == chosen
    assert np.allclose(found.explained, explained, atol=1e-10)


def test_text_span_of_what_is_spanned():
    rng = np.random.default_rng(0)
    texts = torch.from_numpy(np.linalg.qr(rng.normal(size=(10, 10)))[0])
    outputs = torch.from_numpy(rng.normal(size=(50, 2)) * [3, 1]) @ texts[[7, 2]] + 5 * texts[4]
    found = text_span(outputs, texts, 6)
    assert found.texts[:2] == [7, 2]
    assert found.explained[1] == pytest.approx(1)
    assert text_span(outputs * 0 + 1, texts, 3) == ([], [])
    assert len(text_span(outputs, texts, 6, rank=1).texts) == 1
    for wrong in ({"k": 0}, {"k": 1, "rank": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            text_span(outputs, texts, **wrong)


def test_what_has_no_such_sum_is_refused():
    for name, says in (("clip-projection", "head|classifier"), ("timm-rpn", "norm"), ("dinov2-model", "classifier")):
        _, model = tiny(name)
        with pytest.raises(ValueError, match=says):
            JointReading(model, pixels(model))


def scenes(n: int, seed: int) -> ImageData:
    """Random pictures, each with a mask of its upper left quarter."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((IMAGE, IMAGE), np.uint8)
    mask[: IMAGE // 2, : IMAGE // 2] = 1
    pictures = [Image.fromarray(rng.integers(0, 255, (IMAGE, IMAGE, 3), np.uint8)) for _ in range(n)]
    columns = {"image": pictures, "label": [i % CLASSES for i in range(n)], "mask": [Image.fromarray(mask)] * n}
    return as_data(datasets.Dataset.from_dict(columns))


@pytest.fixture(scope="module")
def result() -> Result:
    models = {}
    for name in ("clip-full", "siglip-full", "deit-teacher", "dinov2"):
        models[name] = zero_shot_head(make_hf(name), NAMES, tokenizer=Letters()) if "full" in name else tiny_of(name)
        models[name].processor = processor_of((IMAGE, IMAGE))
    return head_words(models, scenes(20, 0), fit_data=scenes(10, 1), last_layers=1, examples=2, draws=2, batch_size=10)


def tiny_of(name: str) -> HookedViT:
    return HookedViT.from_hf(make_hf(name))


def test_contributions_sum_to_the_margin(result: Result) -> None:
    for name in result.frame.model.unique():
        model = zero_shot_head(make_hf(name), NAMES, tokenizer=Letters()) if "full" in name else tiny_of(name)
        model.processor = processor_of((IMAGE, IMAGE))
        (batch,) = scenes(20, 0).batches(20)
        logits = model(model.preprocess(batch.images)).detach().double()
        own = logits.amax(1)
        margin = own - (logits.sum(1) - own) / (logits.shape[1] - 1)
        rows = result.frame.query("model == @name and measure == 'contribution'")
        assert rows.value.sum() == pytest.approx(float(margin.mean()), rel=1e-4)
        assert (rows.n == 20).all()
        assert result.meta["models"][name]["error"] < 1e-5 * float(logits.abs().max())


def test_words_stand_beside_their_controls(result: Result) -> None:
    explained = result.frame[result.frame.measure == "explained"]
    for (_, variant), rows in explained.groupby(["model", "variant"]):
        assert rows.groupby("k").value.mean().is_monotonic_increasing
        assert rows.seed.nunique() == (2 if variant == "random directions" else 0)
    assert explained.groupby("model").variant.nunique().eq(3).all()
    words = result.frame[result.frame.measure == "word"]
    assert set(words[words.model == "clip-full"].text) <= set(NAMES)
    assert words.layer.eq(1).all()
    maps = result.frame[result.frame.measure == "map"]
    assert maps.groupby("model").image.nunique().eq(2).all()
    on = result.frame[result.frame.measure == "on_object"].groupby("model").variant.agg(set)
    assert on.eq({"texts", "another text", "random weights"}).all()
    entry = get_analysis("head-words")
    for draw in (entry.figure, *entry.figures(result).values()):
        assert draw is not None
        draw(result)
    assert explained_figure(result).layout.xaxis.dtick == 1  # there is no half a word


@pytest.mark.parametrize("layers", [(0,), (1, -1)])
def test_what_is_said_is_of_the_layers_measured(layers: tuple[int, ...]) -> None:
    """Two blocks, and five: a part for all others closes the sum, and a cell of the picture is a layer measured."""
    models = {"two": tiny_of("deit-teacher"), "five": HookedViT.from_hf(make_hf("vit", num_hidden_layers=5))}
    for model in models.values():
        model.processor = processor_of((IMAGE, IMAGE))
    whole, some = (head_words(models, scenes(8, 0), examples=1, draws=1, **which) for which in ({}, {"layers": layers}))
    for name, model in models.items():
        n, rows = model.cfg.n_layers, some.frame[some.frame.model == name]
        measured = {layer % n for layer in layers}
        assert set(rows.layer.dropna()) == set(rows[rows.measure == "word"].layer) == measured
        sums = [f[(f.model == name) & (f.measure == "contribution")].value.sum() for f in (whole.frame, some.frame)]
        assert sums[0] == pytest.approx(sums[1], abs=1e-6)  # streams of float32
        (told,) = (s for s in some.meta["summary"] if s.startswith(f"{name}: of the margin"))
        assert "heads of the layers measured add" in told
        assert "all other layers " in told
    entry = get_analysis("head-words")
    assert entry.figure is not None
    for trace, model in zip(entry.figure(some).data, models.values(), strict=True):
        assert list(trace.y) == [str(layer) for layer in sorted({layer % model.cfg.n_layers for layer in layers})]
    explained, maps = (draw(some) for draw in entry.figures(some).values())
    assert "the heads of the layers measured" in explained.layout.title.text.replace("<br>", " ")
    assert "all heads of the layers measured together" in maps.layout.title.text.replace("<br>", " ")


def test_some_of_the_texts() -> None:
    model = zero_shot_head(make_hf("clip-full"), NAMES, tokenizer=Letters())
    model.processor = processor_of((IMAGE, IMAGE))
    some = head_words({"m": model}, scenes(8, 0), texts=("newt", "dog"), draws=1, examples=0)
    assert set(some.frame[some.frame.measure == "word"].text) == {"newt", "dog"}
    assert some.frame[some.frame.measure == "map"].empty
    with pytest.raises(ValueError, match="the head knows no class 'ship'"):
        head_words({"m": model}, scenes(8, 0), texts=("ship",))
    with pytest.raises(ValueError, match="top is at least 1; got 0"):
        head_words({"m": model}, scenes(8, 0), top=0)


def test_a_tower_without_texts_reads_them_with_its_checkpoint(tmp_path: Path) -> None:
    """As the command line gives it: a folder, and texts."""
    vocabulary = {"[PAD]": 0, "[END]": 1, "cat": 2, "dog": 3, "[UNK]": 4}
    built = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    built.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    built.post_processor = tokenizers.processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=built, pad_token="[PAD]", unk_token="[UNK]")
    hf = make_hf("clip-full")
    hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    processor_of((IMAGE, IMAGE)).save_pretrained(tmp_path)
    told = head_words({"m": HookedViT.from_pretrained(tmp_path)}, scenes(8, 0), texts=("dog", "cat"), draws=1)
    assert set(told.frame[told.frame.measure == "word"].text) == {"dog", "cat"}
    model = zero_shot_head(hf, ("dog", "cat"), ("{}",), tokenizer=tokenizer)
    model.processor = processor_of((IMAGE, IMAGE))
    same = head_words({"m": model}, scenes(8, 0), draws=1)
    assert np.allclose(told.frame.value, same.frame.value, atol=1e-5)  # other kernels


@pytest.mark.parametrize("name", ["vit", "dinov2-model", "clip-projection"])
def test_texts_for_a_model_without_text_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="m has no text tower, so these texts mean nothing to it: a dog"):
        head_words({"m": tiny_of(name)}, scenes(8, 0), texts=("a dog",))


def test_a_norm_inside_attention_leaves_heads_but_no_map() -> None:
    model = tiny_of("timm-eva02-inner")
    model.processor = processor_of((IMAGE, IMAGE))
    told = head_words({"m": model}, scenes(8, 0), draws=1)
    assert set(told.frame.measure) == {"contribution", "word", "explained"}
    assert told.meta["models"]["m"]["error"] < 1e-5
    assert any("so there is no map" in note for note in told.meta["notes"])
    with pytest.raises(ValueError, match="a norm stands between that sum and the output matrix"):
        prompt_map(model, pixels(model))


def test_an_embedding_that_nothing_is_compared_with_is_refused() -> None:
    with pytest.raises(ValueError, match="answers with an embedding that no text is compared with"):
        head_words({"m": tiny_of("clip-projection")}, scenes(8, 0))
