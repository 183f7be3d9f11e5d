"""The pictures of a report are those of the images that moved most and of the wrong ones, few, small and harmless."""

from __future__ import annotations

import base64
import io
import pickle
import re

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as Feature
from PIL import Image
from transformers import ViTImageProcessorPil

from analyses import Result, cls_causality, head_ablation, restoration, with_ridge_head
from analyses.controls.shuffle_floors import batch_seed
from analyses.data import as_data, load_data
from analyses.data.imagedata import ImageData
from analyses.pages.album import BYTES, SHOWN, SIDE, Album, thumbnail
from analyses.pages.gallery import gallery, pictures_of
from analyses.running.report import escape, write_report
from hooked_vit import HookedViT
from interventions import apply, shuffle_cls
from tests.analyses.data.photos import COLOURS, photo
from tests.analyses.everything import results
from tests.tiny import IMAGE, make_hf

EVIL = "<img src=x onerror=alert(1)>"
NAMES = (f"cat {EVIL}", "dog & co", "</figcaption>")


def colour_of(url: str) -> tuple[float, ...]:
    """The mean colour of a picture in a page."""
    drawn = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert max(drawn.size) <= SIDE
    return tuple(np.asarray(drawn.convert("RGB")).reshape(-1, 3).mean(0))


def filled(n: int, moved: int, wrong: int, start: int = 0, **how: int) -> Album:
    """n dark images, of which one's answer flips under the second of two interventions and one is wrong without any."""
    album = Album("m", ("a", "b"), "picture {}".format, **how)
    for first in range(start, n, 7):
        index = torch.arange(first, min(first + 7, n))
        classes = torch.zeros_like(index)
        before = torch.tensor([[2.0, 0.0]]).repeat(len(index), 1)
        before[index == wrong] = torch.tensor([0.0, 5.0])
        after = before - torch.tensor([[0.1, 0.0]])
        flipped = torch.where((index == moved)[:, None], before.flip(1), before)
        album.open([Image.new("RGB", (200, 20), (int(i), 0, 0)) for i in index], index, classes, before)
        album.compare(after, "first")
        album.compare(flipped, "second")
    return album


def test_the_image_whose_answer_flips_comes_first_with_what_was_said_then() -> None:
    entries = filled(40, moved=23, wrong=31).entries()
    first, *others = [one for one in entries if one["why"] == "moved"]
    assert (first["image"], first["class"], first["says"], first["then"]) == ("picture 23", "a", "a", "b")
    assert (first["margin"], first["margin_then"], first["under"]) == (2.0, -2.0, "second")
    assert first["mean_drop"] == pytest.approx((0.1 + 4) / 2)
    assert len(others) == SHOWN - 1
    assert {one["under"] for one in others} == {"first"}
    assert colour_of(first["picture"])[0] == pytest.approx(23, abs=3)
    (wrong,) = [one for one in entries if one["why"] == "wrong"]
    assert (wrong["image"], wrong["says"], wrong["margin"], wrong["of"]) == ("picture 31", "b", -5.0, 1)


def test_what_changes_nothing_moves_nothing_and_what_is_no_number_is_left_out() -> None:
    album = Album("m", None, str)
    scores = torch.tensor([[2.0, 0.0], [float("nan"), 0.0], [3.0, 1.0]])
    album.open([Image.new("RGB", (8, 8))] * 3, torch.arange(3), torch.zeros(3, dtype=torch.long), scores)
    album.compare(scores, "nothing")
    assert album.entries() == []


def test_few_are_kept_of_many_images_and_many_models() -> None:
    """Also while it runs: memory does not grow with the images."""
    album = filled(200, moved=3, wrong=4)
    album.entries()
    assert len(album._moved) == SHOWN
    assert sum(Album("m", None, str, n).shown * n for n in (1,)) == SHOWN
    assert all(Album("m", None, str, n).shown * n <= 2 * SHOWN for n in range(1, 60))
    assert filled(20, moved=3, wrong=4, n_models=60).entries() == []
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    most = max(len(thumbnail(Image.fromarray(noise[:w, :h]))) for w, h in ((300, 300), (SIDE, SIDE), (40, 90)))
    assert most <= 4 * BYTES / 3 + 30
    assert 4 * SHOWN * most < 300_000


def test_two_albums_are_one_of_all_images() -> None:
    """Also where one of them comes from another process, which knows no names of images."""
    first, second = filled(21, moved=3, wrong=30), filled(40, moved=3, wrong=30, start=21)
    merged = first.merge(pickle.loads(pickle.dumps(second)))
    assert merged.entries() == filled(40, moved=3, wrong=30).entries() == second.merge(first).entries()
    assert first.n == 21
    assert first.fresh().entries() == []
    assert first.fresh().merge(second).entries() == second.entries()


@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (5000, 2)])
def test_every_shape_has_its_picture(size: tuple[int, int]) -> None:
    assert colour_of(thumbnail(Image.new("RGB", size, (0, 128, 0)))) == pytest.approx((0, 128, 0), abs=2)


def test_a_picture_that_is_no_picture_leaves_nothing() -> None:
    entry = {"model": "m", "why": "wrong", "of": 1, "image": "i", "class": "c", "says": "d", "margin": -1.0}
    for url in ("https://evil.example/x.png", 'data:image/png;base64,AA" onerror="x', "data:text/html;base64,AA"):
        with pytest.raises(ValueError, match="is a data URL of a PNG or JPEG file"):
            gallery([entry | {"picture": url}], escape, 3)


# --- in an analysis


@pytest.fixture(scope="module")
def model() -> HookedViT:
    net = HookedViT.from_hf(make_hf("vit"), processor=ViTImageProcessorPil(size={"height": IMAGE, "width": IMAGE}))
    return net


def labelled(n: int, seed: int) -> ImageData:
    """Images in memory, which have no file; of the colour of their class."""
    pictures = [photo(list(COLOURS.values())[i % 3], (8, 8), seed + i) for i in range(n)]
    features = Features({"image": Feature(), "label": ClassLabel(names=list(NAMES))})
    return as_data(Dataset.from_dict({"image": pictures, "label": [i % 3 for i in range(n)]}, features=features))


@pytest.fixture(scope="module")
def result(model: HookedViT) -> Result:
    data, fit = labelled(12, 100), labelled(18, 0)
    return cls_causality({EVIL: model}, data, fit_data=fit, seeds=1, batch_size=12, head="ridge")


def test_the_images_of_an_analysis_are_those_that_runs_of_their_own_move_most(result: Result, model: HookedViT) -> None:
    data = labelled(12, 100)
    (batch,) = data.batches(12)
    answering = with_ridge_head(model, labelled(18, 0))
    pixels = answering.preprocess(batch.images)

    def margins(logits: torch.Tensor) -> torch.Tensor:
        own = logits.gather(1, batch.labels[:, None])[:, 0]
        return own - logits.scatter(1, batch.labels[:, None], -torch.inf).amax(1)

    with torch.no_grad():
        before, after = margins(answering(pixels)), []
        for layer in range(model.cfg.n_layers):
            with apply(answering, shuffle_cls(layer=layer, seed=batch_seed(0, 0))):
                after.append(margins(answering(pixels)))
    drops = before - torch.stack(after).mean(0)
    shown = [one["image"] for one in result.meta["pictures"] if one["why"] == "moved"]
    order = [data.name_of(int(batch.index[i])) for i in drops.argsort(descending=True) if drops[i] > 0]
    assert shown == order
    assert len(shown) > 3
    assert shown[0].startswith("row ")
    wrong = {one["image"] for one in result.meta["pictures"] if one["why"] == "wrong"}
    assert wrong == {data.name_of(int(i)) for i in batch.index[before < 0]}


def test_the_result_keeps_them_and_its_page_shows_names_as_text(result: Result, tmp_path) -> None:
    page = write_report(result, tmp_path / "out").read_text(encoding="utf-8")
    assert Result.load(tmp_path / "out").meta["pictures"] == result.meta["pictures"]
    assert len(re.findall(r'<img[^>]* src="data:image/', page)) == page.count("<img") == len(result.meta["pictures"])
    assert EVIL not in page
    assert escape(EVIL) in page
    assert "CLS exchanged behind layer" in page
    joined = Result.joined({"study": result})
    assert [one["model"] for one in pictures_of(joined.meta)] == [f"study, {EVIL}"] * len(result.meta["pictures"])
    again = write_report(joined, tmp_path / "joined").read_text(encoding="utf-8")
    assert again.count("<img") == len(result.meta["pictures"])


def test_files_are_named_below_their_folder(model: HookedViT, tmp_path) -> None:
    for k, name in enumerate(("cats", "dogs")):
        (tmp_path / name).mkdir()
        for i in range(6):
            photo((60 * k, 20 * i, 0), seed=i).save(tmp_path / name / f"<b>{i}.png")
    for run in (restoration, head_ablation):
        options = {"draws": 1} if run is head_ablation else {}
        found = run({"vit": model}, load_data(f"imagefolder:{tmp_path}"), seeds=1, batch_size=6, **options)
        shown = [one for one in found.meta["pictures"] if one["why"] == "moved"]
        assert shown, run
        assert all(one["image"].startswith(("cats/<b>", "dogs/<b>")) for one in shown)
        assert all(one["image"].startswith(one["class"]) for one in shown)
        assert "<b>0.png" not in write_report(found, tmp_path / "out").read_text(encoding="utf-8")


SHOWING = (
    *("attention-knockouts", "causality-vs-decodability", "cls-causality", "counting", "head-ablation"),
    *("intervention-sweep", "register-controls", "register-neurons", "restoration"),
)


@pytest.mark.parametrize("name", SHOWING)
def test_what_intervenes_on_labelled_images_shows_them(name: str, tmp_path) -> None:
    """Each by its own name and class, with an answer and a run that are in words."""
    found = results()[name]
    shown = pictures_of(found.meta)
    assert any(one["why"] == "moved" for one in shown)
    assert all(one["of"] <= 40 for one in shown)
    assert all(one["image"].startswith("scene ") and one["class"] and one["says"] for one in shown)
    under = [one["under"] for one in shown if one["why"] == "moved"]
    assert all(one.strip() and ("_" not in one or name == "intervention-sweep") for one in under)
    assert write_report(found, tmp_path).read_text("utf-8").count("<img") == len(shown)


def test_counted_scenes_are_those_that_were_patched_and_those_counted_wrongly() -> None:
    found = results()["counting"]
    (about,) = found.meta["models"].values()
    moved, wrong = ([one for one in found.meta["pictures"] if one["why"] == why] for why in ("moved", "wrong"))
    assert {one["of"] for one in moved} == {about["pairs_patched"]}
    assert {one["of"] for one in wrong} <= {round((1 - about["accuracy"]) * about["scenes"])}
    assert all(one["class"] == one["says"] for one in moved)
    assert all(one["class"] != one["says"] for one in wrong)
