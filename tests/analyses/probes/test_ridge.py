"""Streaming ridge probes against scikit-learn, and against the criterion written out with an explicit hat matrix."""

from inspect import unwrap

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from analyses.probes.class_moments import FIRST, FURTHEST, PER_DECADE
from analyses.probes.ridge import GramRidge


def draw(n=120, d=9, n_classes=4, *, seed=0, offset=0.0, shift=1.0):
    """Features [n, d] float64 whose class means differ, and labels [n]."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(n_classes, (n,), generator=rng)
    means = shift * torch.randn(n_classes, d, generator=rng, dtype=torch.float64)
    return means[labels] + torch.randn(n, d, generator=rng, dtype=torch.float64) + offset, labels


def gathered(x, y, n_classes=4, batch=32, site="s"):
    ridge = GramRidge(n_classes)
    for xb, yb in zip(x.split(batch), y.split(batch), strict=True):
        ridge.update({site: xb}, yb)
    return ridge


def sklearn_scores(x, y, alpha, n_classes, at):
    """Predictions of scikit-learn's Ridge on ±1 targets, for every class."""
    targets = 2 * np.eye(n_classes)[y.numpy()] - 1
    return Ridge(alpha=alpha, fit_intercept=True).fit(x.numpy(), targets).predict(at.numpy())


@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_scores_are_scikit_learns(alpha, offset):
    x, y = draw(offset=offset)
    at, _ = draw(seed=1, offset=offset)
    probe = gathered(x, y).fit(alpha)["s"]
    np.testing.assert_allclose(probe.scores(at), sklearn_scores(x, y, alpha, 4, at), atol=1e-8)
    assert probe.alpha == alpha
    assert probe.n == 120


def test_more_units_than_images():
    x, y = draw(n=20, d=50)
    probe = gathered(x, y).fit(1.0)["s"]
    np.testing.assert_allclose(probe.scores(x), sklearn_scores(x, y, 1.0, 4, x), atol=1e-8)


def test_duplicated_rows():
    x, y = draw(n=30)
    x, y = x.repeat(4, 1), y.repeat(4)
    probe = gathered(x, y, batch=17).fit(2.0)["s"]
    np.testing.assert_allclose(probe.scores(x), sklearn_scores(x, y, 2.0, 4, x), atol=1e-8)


def test_a_unit_that_repeats_another():
    x, y = draw()
    x = torch.cat([x, x[:, :3]], dim=1)
    probe = gathered(x, y).fit(2.0)["s"]
    np.testing.assert_allclose(probe.scores(x), sklearn_scores(x, y, 2.0, 4, x), atol=1e-8)


def test_classes_missing_from_training_keep_their_columns_and_are_never_predicted():
    x, y = draw(shift=0.0)
    y = torch.tensor([1, 1, 3, 6])[y]
    probe = gathered(x, y, n_classes=8).fit(5.0)["s"]
    assert probe.classes.tolist() == [1, 3, 6]
    scores = probe.scores(x)
    np.testing.assert_allclose(scores, sklearn_scores(x, y, 5.0, 8, x), atol=1e-8)
    assert (scores[:, [0, 2, 4, 5, 7]] == -1).all()
    assert set(probe.predict(100 * torch.randn(500, 9)).tolist()) <= {1, 3, 6}
    np.testing.assert_allclose(scores[:, probe.classes].sum(1), 2 - 3, atol=1e-9)


def test_a_thousand_times_more_mean_than_spread_in_float32():
    """The reason for centring as one goes: raw second moments lose this."""
    x, y = draw(n=400, d=5)
    x = (1e-3 * x + torch.tensor([1e3, -2e3, 0, 5e2, 1e3])).double()
    probe = gathered(x, y).fit(1e-4)["s"]
    np.testing.assert_allclose(probe.scores(x), sklearn_scores(x, y, 1e-4, 4, x), atol=1e-8)


@pytest.mark.parametrize("n", [60, 12])
def test_penalty_is_the_one_a_hat_matrix_gives(n):
    x, y = draw(n=n, d=9 if n == 60 else 30)
    centred, targets = x - x.mean(0), 2 * torch.nn.functional.one_hot(y, 4).double() - 1

    def gcv(alpha):
        inner = centred.T @ centred + alpha * torch.eye(x.shape[1], dtype=torch.float64)
        hat = centred @ torch.linalg.solve(inner, centred.T) + torch.full((n, n), 1 / n, dtype=torch.float64)
        rest = torch.eye(n, dtype=torch.float64) - hat
        return float(n * (rest @ targets).square().sum() / rest.trace() ** 2)

    unit = float(centred.square().sum()) / x.shape[1]
    wide = [unit * 10 ** (k / PER_DECADE) for k in range(-6 * PER_DECADE, 6 * PER_DECADE + 1)]
    assert gathered(x, y).fit()["s"].alpha == pytest.approx(min(wide, key=gcv))
    given = [0.1, 1.0, 10.0, 1e3]
    assert gathered(x, y).fit(given)["s"].alpha == min(given, key=gcv)


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("scale", [1e-6, 1e5])
def test_features_of_another_scale_are_read_as_well(scale, held_out):
    """The penalty goes with the square of the scale, and the predictions are the same."""
    x, y = draw()
    fits = []
    for s in (1.0, scale):
        mine, other = (gathered(s * x[rows], y[rows]) for rows in (slice(80), slice(80, None)))
        fits.append(mine.fit(held_out=other if held_out else None)["s"])
    assert fits[1].alpha == pytest.approx(scale**2 * fits[0].alpha)
    at, _ = draw(seed=2)
    torch.testing.assert_close(fits[1].scores(scale * at), fits[0].scores(at))
    assert fits[0].note == fits[1].note


def test_the_grid_widens_until_the_choice_is_inside():
    """Two directions of noise a thousand times larger than the one that tells the classes apart."""
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 4
    noise = 1e3 * torch.randn(400, 2, generator=rng, dtype=torch.float64)
    told = y[:, None].double() - 1.5 + 0.5 * torch.randn(400, 1, generator=rng, dtype=torch.float64)
    x = torch.cat([noise, told], dim=1)
    ridge = gathered(x, y)
    probe, unit = ridge.fit()["s"], ridge.moments("s").mean_eigenvalue
    assert probe.note == ""
    assert 10.0**-FURTHEST < probe.alpha / unit < 10.0**-FIRST
    narrow = ridge.fit([unit * 10 ** (k / PER_DECADE) for k in range(-FIRST * PER_DECADE, 1)])["s"]
    assert "the least of those given" in narrow.note
    errors = [float((p.scores(x) - (2 * torch.eye(4)[y] - 1)).square().mean()) for p in (probe, narrow)]
    assert errors[0] < errors[1]


def test_a_penalty_at_the_edge_of_the_grid_is_noted():
    x, y = draw(shift=0.0)
    probe = gathered(x, y).fit([0.1, 0.2])["s"]
    assert probe.note.startswith("the best penalty is at the edge of the grid: ")
    assert probe.note.endswith("of those given")
    assert gathered(x, y).fit(0.2)["s"].note == ""
    # what does not tell the classes apart is best read with no weight at all
    balanced = torch.arange(8) % 4
    apart = torch.tensor([[1.0, 0.0]] * 4 + [[-1.0, 0.0]] * 4) + torch.tensor([0.0, 1e-3])
    nothing = gathered(apart, balanced).fit()["s"]
    assert f"the greatest that is tried, {10.0**FURTHEST:g} times the features' mean eigenvalue" in nothing.note


@pytest.mark.parametrize("batch", [1, 7, 120])
def test_how_the_data_is_cut_into_batches_does_not_matter(batch):
    x, y = draw(offset=10.0)
    whole, cut = gathered(x, y, batch=120).fit(1.0)["s"], gathered(x, y, batch=batch).fit(1.0)["s"]
    torch.testing.assert_close(whole.weight, cut.weight, atol=1e-11, rtol=0)
    torch.testing.assert_close(whole.bias, cut.bias, atol=1e-9, rtol=0)


def test_merging_is_having_seen_both():
    x, y = draw(offset=3.0)
    first, second = gathered(x[:50], y[:50]), gathered(x[50:], y[50:])
    merged, swapped = first.merge(second), second.merge(first)
    for other in (swapped, gathered(x, y)):
        assert merged.n == other.n == 120
        torch.testing.assert_close(merged.fit(1.0)["s"].weight, other.fit(1.0)["s"].weight, atol=1e-11, rtol=0)
    assert first.n == 50
    torch.testing.assert_close(first.fit(1.0)["s"].weight, gathered(x[:50], y[:50]).fit(1.0)["s"].weight)


def test_merging_with_nothing_changes_nothing():
    x, y = draw()
    full, empty = gathered(x, y), GramRidge(4)
    for merged in (full.merge(empty), empty.merge(full)):
        assert torch.equal(merged.fit(1.0)["s"].weight, full.fit(1.0)["s"].weight)
    assert empty.merge(empty).n == 0


def test_sites_are_independent_and_may_differ_in_width():
    x, y = draw()
    ridge = GramRidge(4)
    ridge.update({"narrow": x[:, :3], "wide": x}, y)
    probes = ridge.fit(1.0)
    assert ridge.sites == list(probes) == ["narrow", "wide"]
    assert torch.equal(probes["narrow"].weight, gathered(x[:, :3], y, batch=120).fit(1.0)["s"].weight)


def test_memory_does_not_grow_with_images():
    ridge = GramRidge(4)

    def numbers():
        return sum(t.numel() for m in ridge._sites.values() for t in vars(m).values())

    x, y = draw()
    ridge.update({"s": x}, y)
    before = numbers()
    for _ in range(5):
        ridge.update({"s": x}, y)
    assert numbers() == before == 9 + 9 * 9 + 4 * 9


def test_an_empty_batch_changes_nothing():
    ridge = GramRidge(4)
    ridge.update({"s": torch.zeros(0, 3)}, torch.zeros(0, dtype=torch.int64))
    assert ridge.n == 0
    assert ridge.sites == []


@pytest.mark.parametrize("value", [0.0, 7.3, 1e4])
def test_constant_features_predict_the_majority_and_say_so(value):
    x, y = torch.full((50, 6), value), torch.tensor([2] * 20 + [1] * 15 + [0] * 15)
    probe = gathered(x.double() * (1 + 1e-9 * torch.randn(50, 6)), y, batch=7).fit()["s"]
    assert "do not vary" in probe.note
    assert probe.predict(torch.randn(30, 6)).unique().tolist() == [2]
    np.testing.assert_allclose(probe.bias, sklearn_scores(x.double(), y, 1.0, 4, x[:1].double())[0], atol=1e-12)


def test_a_probe_is_a_linear_head():
    x, y = draw()
    probe = gathered(x, y).fit()["s"]
    weight, bias = probe.to_linear()
    assert weight.dtype == bias.dtype == torch.float32
    logits = torch.nn.functional.linear(x.float(), weight, bias)
    torch.testing.assert_close(logits.double(), probe.scores(x), atol=1e-5, rtol=0)
    assert torch.equal(logits.argmax(-1), probe.predict(x))


def test_a_probe_that_can_decode_does():
    x, y = draw(n=400, shift=8.0)
    probe = gathered(x[:300], y[:300]).fit()["s"]
    assert (probe.predict(x[300:]) == y[300:]).float().mean() > 0.98


def test_fewer_than_two_classes():
    with pytest.raises(ValueError, match="at least 2 classes"):
        GramRidge(1)
    with pytest.raises(ValueError, match="all 3 are of class 2"):
        gathered(torch.randn(3, 2), torch.tensor([2, 2, 2])).fit()


def test_no_images():
    with pytest.raises(ValueError, match="needs images"):
        GramRidge(3).fit()


@pytest.mark.parametrize("alphas", [0.0, -1.0, [1.0, 0.0], [], float("nan")])
def test_penalties_that_are_none(alphas):
    with pytest.raises(ValueError, match="above 0"):
        gathered(*draw()).fit(alphas)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_features_that_are_no_numbers_are_refused_and_leave_no_trace(bad):
    x, y = draw()
    ridge = gathered(x, y)
    before = ridge.fit(1.0)["s"].weight
    broken = x.clone()
    broken[3, 2] = bad
    with pytest.raises(ValueError, match="'s' hold NaN or infinity in 1 of 120"):
        ridge.update({"s": broken}, y)
    assert torch.equal(ridge.fit(1.0)["s"].weight, before)


def test_a_bad_second_site_leaves_the_first_alone():
    x, y = draw()
    ridge = GramRidge(4)
    with pytest.raises(ValueError, match="'b' hold NaN"):
        ridge.update({"a": x, "b": x * torch.nan}, y)
    assert ridge.n == 0
    assert ridge.sites == []


@pytest.mark.parametrize(
    ("features", "labels", "says"),
    [
        ({}, torch.tensor([0]), "at least one site"),
        ({"t": torch.zeros(1, 9)}, torch.tensor([0]), "sites of the first"),
        ({"s": torch.zeros(1, 8)}, torch.tensor([0]), "9 units"),
        ({"s": torch.zeros(2, 9)}, torch.tensor([0]), "1 images"),
        ({"s": torch.zeros(1, 9)}, torch.tensor([4]), r"0 to 3; got \[4\]"),
        ({"s": torch.zeros(1, 9)}, torch.tensor([-1]), r"got \[-1\]"),
        ({"s": torch.zeros(1, 9)}, torch.tensor([0.5]), "whole numbers"),
        ({"s": torch.zeros(1, 9)}, torch.tensor([[0]]), "whole numbers"),
    ],
)
def test_updates_that_do_not_fit(features, labels, says):
    ridge = gathered(*draw())
    with pytest.raises(ValueError, match=says):
        unwrap(GramRidge.update)(ridge, features, labels)  # without the shape check of the test run, which comes first
    assert ridge.n == 120


def test_merging_what_does_not_belong_together():
    x, y = draw()
    with pytest.raises(ValueError, match="4 and 5 classes"):
        gathered(x, y).merge(gathered(x, y, n_classes=5))
    with pytest.raises(ValueError, match="same sites and widths"):
        gathered(x, y).merge(gathered(x, y, site="t"))
    with pytest.raises(ValueError, match="same sites and widths"):
        gathered(x, y).merge(gathered(x[:, :3], y))
