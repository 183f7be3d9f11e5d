"""Intervals and tests over images: against scipy, published values and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control

from analyses.statistics.intervals import bootstrap, paired_bootstrap, wilson
from analyses.statistics.significance import (
    benjamini_hochberg,
    holm,
    mcnemar,
    permutation_p,
    permutation_test,
    sign_flip_test,
)


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


def test_bootstrap_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = bootstrap({"a": values, "b": np.full(400, np.nan)})["a"]
    assert (high - low) / 2 == pytest.approx(1.96 * 2 / 20, rel=0.15)
    assert low < 3.0 < high


def test_permutation_p_counts_the_observed_draw() -> None:
    assert permutation_p(5.0, [0.0] * 999) == 1 / 1000
    assert permutation_p(0.0, [0.0] * 999) == 1
    assert permutation_p(1.0, [0.0, 1.0, 2.0]) == 3 / 4


def test_sign_flips_approach_their_exact_distribution() -> None:
    d = np.random.default_rng(0).normal(0.4, 1, 9)
    exact = np.mean([np.mean(np.array(s) * d) >= d.mean() - 1e-12 for s in itertools.product([1, -1], repeat=9)])
    assert sign_flip_test(d, n_draws=20000) == pytest.approx(exact, abs=0.015)
    assert sign_flip_test(-d, n_draws=20000, alternative="less") == pytest.approx(exact, abs=0.015)
    assert sign_flip_test(d, n_draws=20000, alternative="two-sided") == pytest.approx(2 * exact, abs=0.02)


def test_dealing_out_labels_approaches_its_exact_distribution() -> None:
    v, g = np.random.default_rng(1).normal(size=9), np.array([1, 1, 1, 0, 0, 0, 0, 0, 0], bool)
    observed = v[g].mean() - v[~g].mean()
    subsets = [list(c) for c in itertools.combinations(range(9), 3)]
    draws = [v[c].mean() - np.delete(v, c).mean() for c in subsets]
    exact = np.mean(np.array(draws) >= observed - 1e-12)
    assert permutation_test(v, g, n_draws=20000) == pytest.approx(exact, abs=0.015)


def test_under_the_null_p_values_are_uniform_enough() -> None:
    rng = np.random.default_rng(2)
    p = [sign_flip_test(rng.normal(size=30), n_draws=199, seed=i) for i in range(200)]
    assert 0.01 < np.mean(np.array(p) <= 0.05) < 0.1


def test_ties_count_against_the_claim() -> None:
    assert sign_flip_test([0.0, 0.0]) == 1
    assert permutation_test([1.0, 1.0, 1.0], [True, False, False]) == 1


def test_draws_repeat_with_their_seed() -> None:
    d = np.random.default_rng(3).normal(0.2, 1, 40)
    assert sign_flip_test(d, n_draws=99, seed=1) == sign_flip_test(d, n_draws=99, seed=1)


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_adjusted_p_values(p: list[float]) -> None:
    assert benjamini_hochberg(p) == pytest.approx(false_discovery_control(p), abs=1e-12)
    m = len(p)
    # Holm by its definition: the largest step up to and including one's own place in the order
    expected = [max(min(1.0, (m - sum(r < q for r in p)) * q) for q in p if q <= x) for x in p]
    assert holm(p) == pytest.approx(expected, abs=1e-12)


def test_mcnemar_looks_only_at_disagreement() -> None:
    a, b = np.array([1] * 12 + [0] * 3 + [1] * 50), np.array([0] * 12 + [1] * 3 + [1] * 50)
    assert mcnemar(a, b) == pytest.approx(binomtest(12, 15).pvalue)
    assert mcnemar(a, a) == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: sign_flip_test([]), "n ≥ 1"),
        (lambda: sign_flip_test([np.nan]), "finite"),
        (lambda: sign_flip_test([1.0], n_draws=0), "at least one draw"),
        (lambda: permutation_test([1.0, 2.0], [True, True]), "two groups"),
        (lambda: permutation_test([1.0], [True, False]), "two groups"),
        (lambda: mcnemar([1], [1, 0]), "paired"),
        (lambda: holm([1.5]), "between 0 and 1"),
        (lambda: permutation_p(np.nan, [1.0]), "finite"),
    ],
)
def test_tests_refuse(call, says) -> None:
    with pytest.raises(ValueError, match=says):
        call()
