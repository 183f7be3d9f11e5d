"""Batches whose images exchange tokens mix classes: what is tested is exact, and streams are looked at as they flow."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import datasets
import numpy as np
import pytest

import analyses
from analyses.controls.class_order import ClassMix
from analyses.controls.shuffle_floors import check_exchange, check_shuffles, exchange_batches
from analyses.data import ImageData, as_data
from analyses.data.batches import batch_sizes, grouped

PIXEL = np.zeros((2, 2, 3), np.uint8)


def labelled(labels: np.ndarray | list[int]) -> ImageData:
    return as_data(([PIXEL] * len(labels), np.asarray(labels)))


def stream(labels: list[int]) -> tuple[ImageData, list[int]]:
    """A stream of these labels, and the rows of it that were read."""
    read: list[int] = []

    def rows():
        for i, label in enumerate(labels):
            read.append(i)
            yield {"image": datasets.Image().encode_example(PIXEL), "label": label}

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    data = as_data(datasets.IterableDataset.from_generator(rows, features=features))
    read.clear()
    return data, read


def mixed(labels: list[int] | np.ndarray, sizes: list[int]) -> ClassMix:
    mix, first = ClassMix("photos"), 0
    for size in sizes:
        mix.add(np.asarray(labels[first : first + size]))
        first += size
    return mix


@pytest.mark.parametrize(
    ("labels", "sizes"),
    [([0, 0, 1, 1, 2, 0], [3, 3]), ([0, 0, 1], [2, 1]), ([0, 0, 0, 1, 1, 2, 2], [2, 2, 3]), ([5, 7], [2])],
)
def test_mean_and_variance_are_those_of_all_ways_to_deal(labels, sizes):
    alike = [Fraction(mixed(dealt, sizes)._alike) for dealt in itertools.permutations(labels)]
    mean = sum(alike) / len(alike)
    assert mixed(labels, sizes)._moments() == (mean, sum((a - mean) ** 2 for a in alike) / len(alike))


@pytest.mark.parametrize(
    ("classes", "each", "batch_size"), [(1000, 50, 128), (10, 4, 8), (2, 10, 10), (100, 3, 5), (50, 40, 64)]
)
def test_a_list_sorted_by_class_is_refused_and_the_same_list_mixed_is_not(classes, each, batch_size):
    ordered = np.repeat(np.arange(classes), each)
    with pytest.raises(ValueError, match="batches have to mix classes"):
        check_exchange(labelled(ordered), batch_size)
    check_exchange(labelled(np.random.default_rng(0).permutation(ordered)), batch_size)
    check_exchange(labelled(ordered), batch_size=len(ordered))  # one batch of everything mixes all there is
    check_exchange(labelled(ordered), batch_size, among="same_class")


def test_order_is_refused_where_it_is_slight_but_no_luck():
    """A tenth of the list in order: the share of pairs alike rises from .001 to .005."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(1000), 50))
    labels[:5000] = np.sort(labels[:5000])
    with pytest.raises(ValueError, match=r"probability 0.5%, in batches dealt at random with 0.1%"):
        check_exchange(labelled(labels), 128)


def test_data_mixed_at_random_are_hardly_ever_refused():
    rng, labels = np.random.default_rng(1), np.repeat(np.arange(6), 5)
    refused = sum(mixed(rng.permutation(labels), [8, 8, 8, 6]).is_ordered() for _ in range(400))
    assert refused <= 3  # .4 are expected; more than 3 in one of a thousand tests


def test_one_image_of_every_class_has_no_order():
    check_exchange(labelled(range(40)), 8)


def test_images_of_one_class_cannot_show_a_loss():
    with pytest.raises(ValueError, match="all 20 images of images are of one class"):
        check_exchange(labelled([3] * 20), 8)
    data, _ = stream([3] * 20)
    with pytest.raises(ValueError, match="all 20 images of stream are of one class"):
        list(exchange_batches(data, 8, "going through"))


def test_a_stream_in_order_is_refused_at_the_first_batches_that_show_it():
    ordered = np.repeat(np.arange(5), 40).tolist()
    data, read = stream(ordered)
    with pytest.raises(ValueError, match=r"batches have to mix classes.*parquet:PATH"):
        list(exchange_batches(data, 16, "going through"))
    assert len(read) <= 80, "two of five classes have been seen"
    shuffled, _ = stream(np.random.default_rng(0).permutation(ordered).tolist())
    assert [len(batch) for batch in exchange_batches(shuffled, 16, "going through")] == [16] * 12 + [8]


def test_a_stream_whose_order_shows_at_its_end_only():
    labels = np.random.default_rng(2).permutation(np.repeat(np.arange(4), 30)).tolist()
    labels[80:] = sorted(labels[80:])
    data, _ = stream(labels)
    with pytest.raises(ValueError, match="batches have to mix classes"):
        list(exchange_batches(data, 10, "going through"))


def test_the_last_image_joins_the_batch_before():
    for n, size, least in itertools.product(range(20), range(1, 6), range(1, 4)):
        if least <= size:
            groups = list(grouped(range(n), size, least))
            assert [i for group in groups for i in group] == list(range(n))
            assert [len(group) for group in groups] == batch_sizes(n, size, least)
            assert all(len(group) >= least for group in groups) or n < least
    labels = [0, 1] * 8 + [0]
    for data in (labelled(labels), stream(labels)[0]):
        assert [len(batch) for batch in exchange_batches(data, 8, "going through")] == [8, 9]


def test_images_that_are_skipped_leave_nobody_alone():
    """Batches are filled with what can be read, not with what is there."""
    pixels = [PIXEL if i % 3 == 0 else b"no image" for i in range(13)]
    data = as_data((pixels, [i % 2 for i in range(13)]), skip_bad=True)
    assert [len(batch) for batch in data.batches(2, least=2)] == [2, 3]
    assert len(data.skipped) == 8


@pytest.mark.parametrize(("n", "batch_size", "says"), [(20, 1, "needs two of them"), (1, 8, "one image alone")])
def test_nobody_exchanges_tokens_with_himself(n, batch_size, says):
    data = labelled([0, 1] * (n // 2) or [0])
    with pytest.raises(ValueError, match=says):
        check_exchange(data, batch_size)
    with pytest.raises(ValueError, match=says):
        check_shuffles(data, batch_size, 1, "others")
    with pytest.raises(ValueError, match="one image alone"):
        list(exchange_batches(stream([0])[0], 8, "going through"))


def test_whoever_deals_tokens_to_a_batch_has_its_batches_from_the_guard():
    questions = Path(analyses.__path__[0]) / "questions"
    tensors = questions / "patching" / "circuits" / "pairs.py"  # the caller's own, without labels
    texts = {path: path.read_text(encoding="utf-8") for path in questions.rglob("*.py") if path != tensors}
    dealing = {path.name: text for path, text in texts.items() if "batch_seed(" in text or "batch_order(" in text}
    assert len(dealing) >= 5
    assert [name for name, text in dealing.items() if "exchange_batches(" not in text] == []
