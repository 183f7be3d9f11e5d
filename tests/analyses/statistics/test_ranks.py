"""Ranks and rates against brute force and published values."""

import math
from inspect import unwrap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from analyses.statistics.ranks import accuracy, chance, correct, identifiability, rank, rank_correlation, shuffle_floor


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


def test_floor_lies_between_chance_and_accuracy():
    assert chance(1000) == 0.001
    assert shuffle_floor(0.8, 128, 0.001) == pytest.approx(0.8 / 128 + 0.001 * 127 / 128)
    assert shuffle_floor(0.8, 1, 0.1) == 0.8  # a batch of one cannot be shuffled


def test_floor_and_chance_refuse():
    with pytest.raises(ValueError, match="at least one image"):
        shuffle_floor(0.8, 0, 0.1)
    with pytest.raises(ValueError, match="at least one class"):
        chance(0)


def test_a_rank_correlation_is_scipys_and_knows_when_there_is_none():
    a, b = [0.1, 0.4, 0.4, 2.0, -1.0], [3.0, 3.0, 1.0, 7.0, 0.0]
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert math.isnan(rank_correlation(a, [1.0] * 5))
    for bad in (a[:4], [*a[:4], float("nan")]):
        with pytest.raises(ValueError, match="rank correlation"):
            rank_correlation(bad, b)
