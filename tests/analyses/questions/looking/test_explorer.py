"""The explorer: what the page holds is what the model does, and in a browser every control changes what is told."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from analyses import explore, load_data
from analyses.questions.looking.explorer.effects import Readings
from analyses.questions.looking.explorer.view import read_view
from hooked_vit import HookedViT, zero_shot_head, zoo
from interventions import apply, insert_token, patch_cls, patch_tokens, zero_attention, zero_tokens
from tests.tiny import Letters, make_hf, processor_of

CHROMIUM = shutil.which("chromium")
FAMILIES = ("vit", "deit", "beit", "dinov2", "clip")
TEXTS = ("a cat", "two <b>dogs</b>", "the sea")
EVIL = "<b>nine</b></script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    return list(next(load_data("scenes:test", n=2).batches(2)).images)


@pytest.fixture(scope="module")
def view(scenes):
    return read_view("vit", zoo.load("vit"), scenes[0], donor=scenes[1], patch_layers=2)


def worded(name: str) -> HookedViT:
    """A model of images and texts, whose classes are texts as they stand."""
    hf = make_hf(name)
    hf.logit_scale.data.fill_(3.0)  # as trained ones are: a random one tells no text from another
    model = zero_shot_head(hf, TEXTS, ["{}"], tokenizer=Letters())
    model.processor = processor_of((32, 32))
    return model


def with_registers() -> HookedViT:
    """A tiny DINOv2 with three registers."""
    return HookedViT.from_hf(make_hf("registers"), processor=processor_of((32, 32)))


def unpacked(packed) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["data"]), np.uint8).reshape(packed["shape"]) / 255


@torch.no_grad()
def test_it_holds_what_the_model_does(view, scenes):
    model = zoo.load("vit")
    pixels = model.preprocess([scenes[0]])
    logits, cache = model.run_with_cache(pixels)
    for layer in (0, 5):
        pattern = cache["pattern", layer][0].numpy()
        assert np.abs(unpacked(view["attention"])[layer] ** 2 - pattern).max() < 2 / 255
        scores = model.project(cache["resid_post", layer][0, 0], "cls").softmax(-1)
        assert view["lens"]["top"][layer + 1][0] == scores.topk(5).indices.tolist()
        norms = cache["resid_post", layer][0].norm(dim=-1).tolist()
        assert view["norms"][layer + 1] == pytest.approx(norms, abs=1e-3)
    assert view["answer"] == pytest.approx(logits.softmax(-1)[0].topk(5).values.tolist(), abs=1e-5)
    assert np.abs((unpacked(view["rollout"]) ** 2).sum(-1) - 1).max() < 0.05


@torch.no_grad()
def test_effects_are_those_of_separate_runs(view, scenes):
    model = zoo.load("vit")
    pixels, other = (model.preprocess([scene]) for scene in scenes)
    best = model(pixels).softmax(-1)[0].topk(5).indices
    effects = {effect["label"]: effect["layers"] for effect in view["effects"]}
    _, cache = model.run_with_cache(other)
    for layer in (1, 6):
        for label, edit in (
            ("CLS set to zero behind the layer", zero_tokens(layer=layer, tokens="cls")),
            ("CLS of the other image behind the layer", patch_cls(layer=layer, value=cache["resid_post", layer][0, 0])),
        ):
            with apply(model, edit):
                expected = model(pixels).softmax(-1)[0]
            assert effects[label][layer]["values"] == pytest.approx(expected[best].tolist(), abs=1e-4), label
            assert effects[label][layer]["first"] == model.cfg.class_names[int(expected.argmax())]
    patch = cache["resid_post", view["patch_effects"][0]["layers"][1]][:, 3:4]
    for kind, (label, edit) in zip(
        view["patch_effects"],
        (
            ("is set to zero", lambda l: zero_tokens(layer=l, tokens=[3])),
            ("is not seen by CLS", lambda l: zero_attention(queries="cls", keys=[3], layers=l)),
            ("is the other image's", lambda l: patch_tokens(l, [3], patch)),
        ),
        strict=True,
    ):
        with apply(model, edit(kind["layers"][1])):
            expected = float(model(pixels).softmax(-1)[0][best[0]])
        assert kind["label"] == label
        assert kind["values"][1][2] == pytest.approx(expected, abs=1e-4), label  # token 3 is patch 2


@torch.no_grad()
def test_an_inserted_token_is_asked_as_any_other(scenes):
    """From the layer that it enters; before, nothing is told of it."""
    model = zoo.load("vit")
    token = insert_token(layer=3, vector="cls", index=1)
    view = read_view("vit", model, scenes[0], inserted=token)
    pixels = model.preprocess([scenes[0]])
    with apply(model, token):
        logits, cache = model.run_with_cache(pixels)
    assert [t["label"] for t in view["tokens"][:3]] == ["CLS", "inserted token", "patch 0, 0"]
    assert view["tokens"][1]["from"] == 4  # of the stream: behind layer 3
    attention = unpacked(view["attention"]) ** 2
    assert np.abs(attention[5] - cache["pattern", 5][0].numpy()).max() < 2 / 255
    assert attention[2][:, 1].max() == attention[2][:, :, 1].max() == 0
    assert [row[1] == 0 for row in view["norms"]] == [True] * 4 + [False] * 5
    assert view["answer"] == pytest.approx(logits.softmax(-1)[0].topk(5).values.tolist(), abs=1e-5)
    with apply(model, token + zero_tokens(layer=5, tokens="cls")):
        expected = model(pixels).softmax(-1)[0][logits[0].topk(5).indices]
    assert view["effects"][0]["layers"][5]["values"] == pytest.approx(expected.tolist(), abs=1e-4)
    with pytest.raises(ValueError, match=r"is an insert_token\(...\); got zero_tokens"):
        explore(model, scenes[0], inserted=zero_tokens(layer=1, tokens="cls"))
    with pytest.raises(ValueError, match="at least one class"):
        explore(model, scenes[0], classes=0)


@torch.no_grad()
def test_texts_are_the_classes(scenes):
    """A tower without CLS: every text is told with the logit of the whole model, and over the patches."""
    model = worded("siglip-full")
    view = read_view("siglip", model, scenes[0], top=len(TEXTS))
    pixels = model.preprocess([scenes[0]])
    logits, cache = model.run_with_cache(pixels)
    order = logits[0].argsort(descending=True).tolist()
    assert view["classes"] == [TEXTS[c] for c in order]
    assert view["logits"] == pytest.approx(logits[0][order].tolist(), abs=1e-3)
    lens = view["lens"]["logits"]
    told = unpacked(lens) * (lens["high"] - lens["low"]) + lens["low"]
    expected = model.project(cache["resid_post", 0][0], "patches")[:, order].numpy()
    assert np.abs(told[1] - expected).max() <= (lens["high"] - lens["low"]) / 255
    assert not any("CLS" in effect["label"] for effect in view["effects"])


def test_a_model_without_a_head_tells_the_cosine():
    clean = torch.tensor([1.0, 0.0])
    readings = Readings(clean, [], [], [1.0], None)
    assert readings.tell(torch.tensor([0.0, 3.0])) == {"values": [0.0], "first": None}
    assert readings.tell(clean * 7)["values"] == [1.0]


def test_what_cannot_be_shown_side_by_side(scenes):
    model = zoo.load("vit")
    with pytest.raises(ValueError, match="one or two images side by side; got 3"):
        explore(model, [*scenes, scenes[0]])
    with pytest.raises(ValueError, match="one or two models side by side; got 0"):
        explore({}, scenes)


def test_the_page_stands_alone_and_names_are_text(scenes, tmp_path):
    page = explore({EVIL: zoo.load("vit")}, scenes[0], patches=False)
    assert "<b>nine" not in page.html
    assert "http:" not in page.html.replace("http://www.w3.org/2000/svg", "")
    assert "https:" not in page.html
    assert page.save(tmp_path / "new" / "page.html").read_text(encoding="utf-8") == page.html
    assert page._repr_html_().startswith("<iframe srcdoc=")
    with pytest.raises(NotADirectoryError):
        page.save(tmp_path / "new" / "page.html" / "inside.html")


def test_percentages_say_what_they_are_shares_of(scenes):
    """Texts that a contrastive model compares are the only classes there are, whatever its training made of them."""
    page = explore({"siglip": worded("siglip-full"), "vit": zoo.load("vit")}, scenes[0], patches=False)
    assert page.html.count("softmax among these texts") == page.html.count("softmax among all classes") == 1
    assert "<h1>What siglip and vit attend to</h1>" in page.html


def test_a_wide_panel_stands_beside_its_picture(scenes):
    """One panel of a wide window has its tables beside the picture; in dark, what changed is bright."""
    page = explore(zoo.load("vit"), scenes[0], patches=False).html
    assert "container-type: inline-size" in page
    assert page.count("--changed:") == 3


READER = f"<script>{Path(__file__).with_name('reader.js').read_text(encoding='utf-8')}</script>"


def read_in_browser(html: str, width: int, folder: Path) -> dict:
    """What the reader inside the page found, and how long the page took to stand there."""
    page = folder / "page.html"
    page.write_text(html.replace('<script type="application/json"', f'{READER}<script type="application/json"', 1))
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
    ]
    command += [f"--user-data-dir={folder / 'browser'}", f"--window-size={width},1000", "--virtual-time-budget=60000"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "<title>ERROR" not in done.stdout
    return json.loads(done.stdout.partition('<pre id="log">')[2].partition("</pre>")[0].replace("&amp;", "&"))


ALWAYS = {"layer", "head", "class", "click", "arrow", "escape", "shown logit", "shown gradient", "shown rollout"}
OF_PATCHES = {"is set to zero", "is the other image's"}


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(
    ("name", "width"), [("vit", 1280), ("deit", 800), ("registers", 1280), ("clip-full", 800), ("siglip-full", 1280)]
)
def test_every_control_changes_what_is_told(name, width, scenes, tmp_path):
    if name.endswith("-full"):
        shown = explore({name: worded(name)}, scenes, patches=True, classes=len(TEXTS))
    else:
        token = insert_token(layer=2, vector="cls", index=1) if name == "vit" else None
        model = with_registers() if name == "registers" else zoo.load(name)
        shown = explore({name: model}, scenes, patches=False, inserted=token)
    log = read_in_browser(shown.html, width, tmp_path)
    assert log.pop("theme") in ("light", "dark")
    assert log.pop("overflow") is False
    assert log.pop("console") == []
    assert (
        set(log.pop("prefix"))
        >= {
            "vit": {"CLS", "inserted token"},
            "deit": {"CLS", "distillation"},
            "registers": {"CLS", "register 0", "register 2"},
            "clip-full": {"CLS"},
            "siglip-full": set(),
        }[name]
    )
    assert {control for control, changed in log.items() if not changed} == set()
    assert log.keys() >= ALWAYS
    if name.endswith("-full"):
        kinds = OF_PATCHES | {"is not seen by CLS"} if name == "clip-full" else OF_PATCHES
        assert log.keys() >= {f"shown patch {kind}" for kind in kinds}
        assert log.keys() >= {f"of the clicked patch, patch {kind}" for kind in kinds}
