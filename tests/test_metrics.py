"""Ranks, rates and intervals against brute force, published values and scipy."""

from inspect import unwrap

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from analyses.metrics import (
    accuracy,
    chance,
    correct,
    identifiability,
    paired_bootstrap,
    rank,
    shuffle_floor,
    wilson,
)


@given(
    rows=st.lists(st.lists(st.integers(-2, 2), min_size=5, max_size=5), min_size=1, max_size=6),
    label=st.integers(0, 4),
)
def test_rank_is_the_count_of_better_classes_and_half_of_the_equal_ones(rows, label):
    scores, labels = torch.tensor(rows, dtype=torch.float32), torch.full((len(rows),), label)
    expected = [
        sum(s > row[label] for s in row) + sum(s == row[label] for k, s in enumerate(row) if k != label) / 2
        for row in rows
    ]
    assert rank(scores, labels).tolist() == expected


def test_ranks_of_all_classes_add_up_whatever_ties():
    scores = torch.tensor([[1.0, 1.0, 0.0, 0.0, 2.0]]).expand(5, 5)
    assert rank(scores, torch.arange(5)).sum() == 10


def test_rank_takes_any_leading_shape():
    scores, labels = torch.randn(2, 3, 7), torch.randint(7, (2, 3))
    assert torch.equal(rank(scores, labels).flatten(), rank(scores.flatten(0, 1), labels.flatten()))


def test_an_infinite_score_is_a_score():
    assert rank(torch.tensor([[-torch.inf, 0.0, torch.inf]]), torch.tensor([1])).tolist() == [1.0]


def test_a_model_whose_scores_all_tie_is_not_right():
    scores = torch.zeros(4, 10)
    assert accuracy(scores, torch.zeros(4, dtype=torch.int64)) == 0
    assert identifiability(rank(scores, torch.arange(4)), 10).tolist() == pytest.approx([0.55] * 4)


def test_identifiability_of_random_scores_is_a_half_and_half_a_class():
    r = identifiability(torch.arange(10).double(), 10)
    assert r.mean().item() == pytest.approx(0.5 + 1 / 20)
    assert r.min().item() == pytest.approx(0.1)


def test_only_a_first_place_of_its_own_is_correct():
    assert correct(torch.tensor([0.0, 0.5, 1.0, 1.5])).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("scores", "labels", "says"),
    [
        (torch.tensor([[0.0, torch.nan]]), torch.tensor([0]), "NaN"),
        (torch.zeros(2, 3), torch.tensor([0]), "one label"),
        (torch.zeros(1, 3), torch.tensor([3]), "0 to 2"),
        (torch.zeros(1, 3), torch.tensor([-1]), "0 to 2"),
    ],
)
def test_rank_refuses(scores, labels, says):
    with pytest.raises(ValueError, match=says):
        unwrap(rank)(scores, labels)  # without the shape check of the test run, which comes first


def test_accuracy_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1)]
)
def test_wilson_has_the_published_values(k, n, low, high):
    assert wilson(k, n) == pytest.approx((k / n, low, high), abs=5e-5)


@given(n=st.integers(1, 5000), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_scipys(n, share, confidence):
    k = round(share * n)
    theirs = binomtest(k, n).proportion_ci(confidence, method="wilson")
    ours = wilson(k, n, confidence=confidence)
    assert ours[1:] == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= ours.low <= ours.estimate <= ours.high <= 1


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_counts_that_cannot_be(k, n):
    with pytest.raises(ValueError, match="successes out of n"):
        wilson(k, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_is_a_share(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        wilson(1, 2, confidence=confidence)
    with pytest.raises(ValueError, match="between 0 and 1"):
        paired_bootstrap([1], [0], confidence=confidence)


def test_bootstrap_agrees_with_drawing_images():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=80) < 0.7, rng.uniform(size=80) < 0.5
    ours = paired_bootstrap(a, b, n_resamples=4000)
    difference = a.astype(float) - b
    draws = difference[rng.integers(80, size=(4000, 80))].mean(1)
    assert ours.estimate == pytest.approx(difference.mean())
    assert ours[1:] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.02)


def test_bootstrap_is_paired():
    noisy = np.random.default_rng(1).normal(0, 100, 50)
    assert paired_bootstrap(noisy + 1, noisy) == pytest.approx((1, 1, 1))


def test_bootstrap_repeats_with_its_seed_and_turns_round():
    a, b = np.random.default_rng(2).normal(size=(2, 30))
    assert paired_bootstrap(a, b, seed=3) == paired_bootstrap(a, b, seed=3)
    assert paired_bootstrap(a, b, seed=3) != paired_bootstrap(a, b, seed=4)
    assert paired_bootstrap(b, a).estimate == -paired_bootstrap(a, b).estimate


@pytest.mark.parametrize(
    ("a", "b", "more", "says"),
    [
        ([1, 2], [1], {}, "paired"),
        ([], [], {}, "n ≥ 1"),
        ([np.nan], [0], {}, "finite"),
        ([1], [0], {"n_resamples": 0}, "at least one resample"),
    ],
)
def test_bootstrap_refuses(a, b, more, says):
    with pytest.raises(ValueError, match=says):
        paired_bootstrap(a, b, **more)


def test_floor_lies_between_chance_and_accuracy():
    assert chance(1000) == 0.001
    assert shuffle_floor(0.8, 128, 0.001) == pytest.approx(0.8 / 128 + 0.001 * 127 / 128)
    assert shuffle_floor(0.8, 1, 0.1) == 0.8  # a batch of one cannot be shuffled


def test_floor_and_chance_refuse():
    with pytest.raises(ValueError, match="at least one image"):
        shuffle_floor(0.8, 0, 0.1)
    with pytest.raises(ValueError, match="at least one class"):
        chance(0)
