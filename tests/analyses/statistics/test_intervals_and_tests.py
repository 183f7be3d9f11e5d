"""Intervals and tests over images: against scipy, published values and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control, ttest_1samp

from analyses.statistics.comparisons import class_mean_intervals, group_difference, ratio_interval
from analyses.statistics.intervals import (
    CHANGE,
    RATE,
    Interval,
    mean_interval,
    mean_intervals,
    mean_row,
    paired_difference,
    wilson,
)
from analyses.statistics.scores import tango
from analyses.statistics.significance import (
    benjamini_hochberg,
    holm,
    mcnemar,
    permutation_p,
    permutation_test,
    sign_flip_test,
    sign_flip_tests,
)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (4, 8, 0.2152, 0.7848)]
)
def test_wilson_has_the_published_values(k, n, low, high):
    assert wilson(k, n) == pytest.approx((k / n, low, high), abs=5e-5)


@given(n=st.integers(1, 5000), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_scipys_but_next_to_few_images(n, share, confidence):
    k = round(share * n)
    theirs = binomtest(k, n).proportion_ci(confidence, method="wilson")
    ours = wilson(k, n, confidence=confidence)
    assert ours.low == pytest.approx(theirs.low, abs=1e-9) if k > 3 else ours.low <= theirs.low + 1e-9
    assert ours.high == pytest.approx(theirs.high, abs=1e-9) if n - k > 3 else ours.high >= theirs.high - 1e-9
    assert 0 <= ours.low <= ours.estimate <= ours.high <= 1


def test_a_rare_rate_is_covered():
    """Wilson's own interval of one image in ten thousand leaves out a rate of .18 in ten thousand, .16 of the time."""
    assert wilson(1, 10_000).low < 0.06 / 10_000


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_counts_that_cannot_be(k, n):
    with pytest.raises(ValueError, match="successes out of n"):
        wilson(k, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_is_a_share(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        wilson(1, 2, confidence=confidence)
    with pytest.raises(ValueError, match="between 0 and 1"):
        paired_difference([1], [0], confidence=confidence)


def test_tango_is_the_set_of_differences_that_its_test_does_not_reject():
    """The test by brute force: the likelihood of the discordant images under each difference."""
    for gained, lost, n in ((1, 0, 44), (9, 2, 40), (0, 0, 12), (3, 3, 10)):
        estimate, low, high = tango(gained, lost, n)
        for delta in np.linspace(-0.95, 0.95, 77):
            q = np.linspace(max(0.0, -delta), (1 - delta) / 2, 20001)[1:-1]  # lost, if gained is q + delta
            with np.errstate(divide="ignore", invalid="ignore"):
                terms = [(gained, q + delta), (lost, q), (n - gained - lost, 1 - 2 * q - delta)]
                likelihood = sum(k * np.log(np.maximum(p, 1e-300)) for k, p in terms if k)
            best = q[np.argmax(likelihood)]
            z = (gained - lost - n * delta) / np.sqrt(max(n * (2 * best + delta - delta**2), 1e-300))
            near = min(abs(delta - low), abs(delta - high)) < 0.004
            assert near or (abs(z) < 1.96) == (low < delta < high), (gained, lost, n, delta)
        assert low <= estimate <= high


def test_no_change_at_all_has_a_width():
    right = np.ones(50)
    assert paired_difference(right, right)[1:] == pytest.approx((-0.0714, 0.0714), abs=1e-4)
    assert mean_interval(np.zeros(50), bounds=CHANGE)[1:] == pytest.approx((-0.0714, 0.0714), abs=1e-4)
    assert mean_interval(np.full(50, 1.0), bounds=RATE).low < 0.95
    assert mean_row(50.0, 50.0, 50.0, 50, bounds=RATE)["low"] < 0.95


def test_a_mean_without_bounds_has_none_where_nothing_is_known():
    for values in ([1.0], [1.0, 2.0], [2.0] * 50, [0.0] * 46 + [1.5] * 4):
        assert np.isnan(mean_interval(values)[1:]).all()
    assert np.isfinite(mean_interval([0.0] * 45 + [1.5] * 5)[1:]).all()


def test_means_of_few_are_as_wide_as_students_with_a_fifth_of_the_error():
    values = np.array([1.0, 2.0, 4.0, 8.0, 9.0])
    theirs = ttest_1samp(values, 0).confidence_interval(0.99)
    low, high = mean_interval(values)[1:]
    assert low <= theirs.low
    assert high >= theirs.high


def test_a_difference_is_paired():
    noisy = np.random.default_rng(1).normal(0, 100, 50)
    some = np.random.default_rng(2).normal(0, 0.01, 50)
    assert paired_difference(noisy + 1 + some, noisy) == pytest.approx((1, 1, 1), abs=0.02)
    a, b = np.random.default_rng(2).normal(size=(2, 30))
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there == pytest.approx((-back.estimate, -back.high, -back.low))


@pytest.mark.parametrize(("a", "b", "says"), [([1, 2], [1], "paired"), ([], [], "n ≥ 1"), ([np.nan], [0], "finite")])
def test_a_difference_refuses(a, b, says):
    with pytest.raises(ValueError, match=says):
        paired_difference(a, b)


def test_intervals_of_many_means() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    some = np.where(np.arange(400) < 300, values, np.nan)
    found = mean_intervals({"a": values, "b": np.full(400, np.nan), "c": some, "d": values[:300]})
    low, high = found["a"]
    assert (high - low) / 2 == pytest.approx(1.96 * 2 / 20, rel=0.1)
    assert np.isnan(found["b"]).all()
    assert found["c"] == pytest.approx(found["d"])
    sums = mean_row(values.sum(), (values**2).sum(), (values**3).sum(), 400)
    assert (sums["value"], sums["low"], sums["high"]) == pytest.approx((values.mean(), low, high))


def test_bounds_are_those_that_are_known() -> None:
    with pytest.raises(ValueError, match="RATE"):
        mean_interval([1.0], bounds=(0.0, 5.0))


def test_few_wrong_images_say_little() -> None:
    """Welch's interval has no width of its own where the few wrong images are alike, and there is none for one."""
    right, wrong = np.repeat([1.0, 0.0], [45, 5]), np.array([1.0, 1.0, 1.0])
    difference = group_difference(right, wrong, bounds=RATE)
    assert difference.high - difference.low > 0.4
    one = group_difference(right, wrong[:1], bounds=RATE)
    assert one.high - one.low > 0.8
    assert group_difference([1] * 56 + [0] * 14, [1] * 48 + [0] * 32, bounds=RATE) == pytest.approx(
        Interval(0.2, 0.0524, 0.3339), abs=5e-5
    )  # Newcombe 1998, table II, column a, method 10


def test_means_over_classes_divide_by_the_number_of_classes_less_one() -> None:
    labels = np.repeat(np.arange(30), 200)
    of_class = np.random.default_rng(0).normal(size=30)
    found = class_mean_intervals({0: of_class[labels]}, labels)[0]
    theirs = ttest_1samp(of_class, 0).confidence_interval(0.95)
    assert found.high - found.low == pytest.approx(theirs.high - theirs.low, rel=0.1)
    assert np.isnan(class_mean_intervals({0: np.arange(5.0)}, np.zeros(5), bounds=RATE)[0][1:]).all()


def test_a_ratio_is_refused_where_its_denominator_may_be_nothing() -> None:
    rng = np.random.default_rng(0)
    under = rng.normal(0.05, 1, 50)
    assert not ratio_interval(under / 2 + rng.normal(size=50), under).settled
    under = rng.normal(2.0, 1, 50)
    found = ratio_interval(under / 2 + rng.normal(0, 0.1, 50), under)
    assert found.settled
    assert found.low < 0.5 < found.high
    other = under + rng.normal(0, 0.1, 50)
    one, three = ratio_interval(under, other), ratio_interval(3 * under, other)
    np.testing.assert_allclose(three[:3], 3 * np.array(one[:3]))
    rare = np.repeat([0.0, 1.0], [95, 5])
    assert not ratio_interval(rare / 2, rare).settled


def test_permutation_p_counts_the_observed_draw() -> None:
    assert permutation_p(5.0, [0.0] * 999) == 1 / 1000
    assert permutation_p(0.0, [0.0] * 999) == 1
    assert permutation_p(1.0, [0.0, 1.0, 2.0]) == 3 / 4


def test_sign_flips_approach_their_exact_distribution() -> None:
    d = np.random.default_rng(0).normal(0.8, 1, 16)
    exact = np.mean([np.mean(np.array(s) * d) >= d.mean() - 1e-12 for s in itertools.product([1, -1], repeat=16)])
    assert exact < 0.1
    assert sign_flip_test(d, n_draws=20000) == pytest.approx(2 * exact, abs=0.04)
    assert sign_flip_test(-d, n_draws=20000, alternative="less") == pytest.approx(2 * exact, abs=0.04)
    assert sign_flip_test(d, n_draws=20000, alternative="two-sided") == pytest.approx(4 * exact, abs=0.08)
    assert sign_flip_test(d[:15]) > 2 * sign_flip_test(d)  # fifteen do not show how skewed they are


def test_sign_flips_of_skewed_differences_are_not_taken_for_an_effect() -> None:
    """Flips of the mean alone reject a mean of 0 in .15 of draws from an exponential distribution."""
    draws = np.random.default_rng(0).exponential(size=(20, 600)) - 1
    found = np.mean(sign_flip_tests(draws, n_draws=499, alternative="less") <= 0.05)
    flips = np.random.default_rng(1).integers(0, 2, (499, 20)) * 2 - 1
    plain = (1 + (flips @ draws <= draws.sum(0)).sum(0)) / 500
    assert found < 0.05 < 0.09 < np.mean(plain <= 0.05)


def test_images_that_say_the_same_are_no_proof_against_those_unseen() -> None:
    assert sign_flip_test(np.full(20, -0.05), alternative="less", bounds=CHANGE) > 0.3
    assert sign_flip_test(np.full(20, -0.05), alternative="less") == 1
    assert sign_flip_test(np.full(20, 1.0), bounds=CHANGE) < 0.001


def test_dealing_out_labels_approaches_its_exact_distribution() -> None:
    v, g = np.random.default_rng(1).normal(size=9), np.array([1, 1, 1, 0, 0, 0, 0, 0, 0], bool)
    v[g] += 1.5
    observed = v[g].mean() - v[~g].mean()
    subsets = [list(c) for c in itertools.combinations(range(9), 3)]
    draws = [v[c].mean() - np.delete(v, c).mean() for c in subsets]
    exact = np.mean(np.array(draws) >= observed - 1e-12)
    assert 5 * exact - 0.05 <= permutation_test(v, g, n_draws=20000) <= 10 * exact + 0.05
    assert permutation_test(v, np.arange(9) < 2) == 1  # two do not say how far they vary


def test_under_the_null_p_values_are_uniform_enough() -> None:
    rng = np.random.default_rng(2)
    p = [sign_flip_test(rng.normal(size=30), n_draws=199, seed=i) for i in range(200)]
    assert 0.005 < np.mean(np.array(p) <= 0.05) < 0.1


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
