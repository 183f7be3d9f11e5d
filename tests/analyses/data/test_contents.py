"""What is fitted on is never measured on, told by pixels; copies within a set are counted; both cost one decoding."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from analyses.data import ImageData, as_data, images, load_data
from analyses.data.contents import Contents
from analyses.data.sets import check_learnable, keep_apart, one_set, two_sets
from analyses.questions.signal.low_frequency.domain_probe import equal_halves
from analyses.running.notes import about_data
from analyses.running.notice import data_notes
from tests.analyses.data.photos import encoded, photo


def pictures(seeds, form="PNG") -> ImageData:
    """Photos as files in some format, so that they are other bytes and the same pixels."""
    rows = {"image": [{"bytes": encoded(photo((9, 9, 9), (8, 8), s), form), "path": None} for s in seeds]}
    rows["label"] = [i % 2 for i in range(len(rows["image"]))]
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    return as_data(Dataset.from_dict(rows, features=features), name=f"{form} {min(seeds)}")


def streamed(seeds) -> ImageData:
    rows = {"image": [photo((9, 9, 9), (8, 8), s) for s in seeds], "label": [s % 2 for s in seeds]}
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    return as_data(Dataset.from_dict(rows, features=features).to_iterable_dataset(), n=len(rows["label"]))


def read(data: ImageData) -> int:
    return sum(len(batch) for batch in data.batches(3))


SAID = "probes are measured on images they were not fitted on"


def test_sets_that_share_a_file_are_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(ImageData, "batches", None)
    whole = pictures(range(10))
    with pytest.raises(ValueError, match=rf"{SAID}, and all images of PNG 0"):
        two_sets(whole, whole)
    with pytest.raises(ValueError, match=rf"{SAID}, and 2 of the 5 images of PNG 8 .* among those measured, of PNG 0"):
        two_sets(whole, pictures(range(8, 13)))
    with pytest.raises(ValueError, match=SAID):
        two_sets("scenes:test", "scenes:test")
    two_sets(whole, pictures(range(10, 15)))


def test_two_draws_of_one_folder_share_images(tmp_path):
    for i in range(30):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        photo((9, 9, 9), (8, 8), i).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    spec = f"imagefolder:{tmp_path}"
    with pytest.raises(ValueError, match=SAID):
        two_sets(load_data(spec, 20, seed=0), load_data(spec, 20, seed=1))


@pytest.mark.parametrize("first", ["fitted", "measured"])
@pytest.mark.parametrize("form", ["BMP", "stream"])
def test_the_same_pixels_in_other_files_are_refused_while_they_are_read(form, first):
    shared = streamed(range(8, 13)) if form == "stream" else pictures(range(8, 13), form)
    sets = two_sets(pictures(range(10)), shared)
    one, other = (sets.fitted, sets.measured) if first == "fitted" else (sets.measured, sets.fitted)
    read(one)
    with pytest.raises(ValueError, match=rf"{SAID}: row \d.* has the pixels of row \d"):
        read(other)


def test_parts_of_a_set_are_kept_apart_too():
    sets = two_sets(pictures(range(10)), pictures(range(8, 13), "BMP"))
    for part in sets.fitted.split(0.5):
        read(part)
    with pytest.raises(ValueError, match=SAID):
        read(sets.measured)


def test_a_set_is_as_it_was_after_an_analysis():
    data, fit = pictures(range(10)), pictures(range(8, 13), "BMP")
    read(two_sets(data, fit).measured)
    assert read(fit) == 5
    assert read(data) == 10


def test_copies_are_counted_and_said():
    data = one_set(pictures([*range(6), 0, 1, 1]))
    assert data.duplicates == 0, "nothing was read"
    for _ in range(2):
        read(data)
        assert data.duplicates == 3
    assert about_data(data)["duplicates"] == 3
    assert data_notes({"data": about_data(data)}) == ["PNG 0: 3 images are copies of others, to the pixel."]
    assert one_set(data).duplicates == 0
    again = one_set(streamed([*range(6), 0]))
    read(again)
    assert again.duplicates == 1


def test_a_half_that_is_set_aside_holds_no_copy_of_the_other():
    sets = two_sets(pictures([*range(10), *range(10)]))
    assert read(sets.fitted) + read(sets.measured) < 20
    assert sets.note.endswith("of them are copies of images that are measured, and were left out")
    with pytest.raises(ValueError, match="every image of PNG 0 is there more than once"):
        two_sets(pictures([0] * 8))


def test_origins_are_told_apart_by_images_of_their_own():
    fitted, measured = zip(*equal_halves([pictures(range(10)), pictures(range(20, 30))]), strict=True)
    assert [read(part) for part in (*fitted, *measured)] == [5] * 4
    with pytest.raises(ValueError, match=SAID):
        equal_halves([pictures(range(10)), pictures(range(3, 13))])


def test_every_pair_of_sets_is_compared():
    measured, fitted = keep_apart([pictures([0, 1]), pictures([2, 3])], [pictures([4, 5]), pictures([6, 3], "BMP")])
    for part in (*fitted, measured[0]):
        read(part)
    with pytest.raises(ValueError, match=SAID):
        read(measured[1])


def test_no_image_is_decoded_twice_for_it(monkeypatch):
    decoded = []
    monkeypatch.setattr(images, "upright_rgb", lambda picture: decoded.append(1) or picture.convert("RGB"))
    sets = two_sets(pictures(range(10)), pictures(range(10, 15)))
    assert decoded == []
    read(sets.fitted)
    read(sets.measured)
    about_data(sets.measured)
    assert len(decoded) == 15


def test_eight_bytes_an_image():
    seen = Contents()
    for first in range(0, 10_000, 100):
        seen.put(range(first, first + 100), range(first + 1, first + 101))
    assert seen._marks.nbytes <= 2 * 8 * 10_000
    assert seen.holds([1, 10_000, 10_001]).tolist() == [True, True, False]


def test_answers_nobody_could_have_learned():
    labels = {"a": np.array([0, 1]), "b": np.array([2, 3]), "one": np.array([2, 2])}
    a, b, one = (as_data(([Image.new("RGB", (2, 2), (i, len(k), 0)) for i in v], v)).labels for k, v in labels.items())
    check_learnable(a, a)
    check_learnable(None, None)
    with pytest.raises(ValueError, match="none of the 2 that are measured is among the 2"):
        check_learnable(a, b)
    with pytest.raises(ValueError, match="at least 2 classes; all 2 of the data are of class 2"):
        check_learnable(a, one)
