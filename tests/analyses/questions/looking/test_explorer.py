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
from hooked_vit import zoo
from interventions import apply, patch_cls, zero_tokens

CHROMIUM = shutil.which("chromium")
FAMILIES = ("vit", "deit", "beit", "dinov2", "clip")
EVIL = "<b>nine</b></script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def scenes() -> list[Image.Image]:
    return list(next(load_data("scenes:test", n=2).batches(2)).images)


@pytest.fixture(scope="module")
def view(scenes):
    return read_view("vit", zoo.load("vit"), scenes[0], donor=scenes[1], patch_layers=2)


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
    with apply(model, zero_tokens(layer=view["zeroed"]["layers"][1], tokens=[3])):
        expected = float(model(pixels).softmax(-1)[0][best[0]])
    assert view["zeroed"]["values"][1][2] == pytest.approx(expected, abs=1e-4)  # token 3 is patch 2


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


READER = f"<script>{Path(__file__).with_name('reader.js').read_text(encoding='utf-8')}</script>"


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(("name", "width"), [("vit", 1280), ("deit", 800), ("dinov2", 1280), ("clip", 800)])
def test_every_control_changes_what_is_told(name, width, scenes, tmp_path):
    html = explore({name: zoo.load(name)}, scenes, patches=True).html
    page = tmp_path / "page.html"
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
    command += [f"--user-data-dir={tmp_path / 'browser'}", f"--window-size={width},1000", "--virtual-time-budget=60000"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "<title>ERROR" not in done.stdout
    log = json.loads(done.stdout.partition('<pre id="log">')[2].partition("</pre>")[0].replace("&amp;", "&"))
    assert log.pop("theme") in ("light", "dark")
    assert log.pop("overflow") is False
    assert {control for control, changed in log.items() if not changed} == set()
    assert {"layer", "head", "class", "click", "arrow", "escape", "shown zeroed"} <= log.keys()
