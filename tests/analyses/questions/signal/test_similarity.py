"""Streamed CKA and ridge regression are those of the formulas, whatever the batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score
from torch import Tensor

from analyses.questions.signal.regression import PENALTIES, GramRegression, r_squared, r_squared_gain
from analyses.questions.signal.similarity import CrossMoments, cosine, linear_cka

BATCHES = [[40], [1, 17, 22], [39, 1]]


def features(n: int, d: int, seed: int, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + offset


def moments(x: Tensor, y: Tensor, batches: list[int]) -> CrossMoments:
    gathered = CrossMoments()
    for a, b in zip(x.split(batches), y.split(batches), strict=True):
        gathered.update(a, b)
    return gathered


def streamed(x: Tensor, y: Tensor, batches: list[int], *, debiased: bool = False) -> float:
    return linear_cka(*(moments(a, b, batches) for a, b in ((x, x), (y, y), (x, y))), debiased=debiased)


def by_kernels(x: Tensor, y: Tensor) -> float:
    """CKA from centred n × n kernels (Kornblith et al. 2019, eq. 4)."""
    n = len(x)
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    k, l = (centre @ a @ a.T @ centre for a in (x, y))
    return float((k * l).sum() / (k.norm() * l.norm()))


def unbiased(x: Tensor, y: Tensor) -> float:
    """HSIC without the diagonals, from n × n kernels (Song et al. 2012, eq. 5)."""
    n = len(x)
    k, l = ((a @ a.T).fill_diagonal_(0.0) for a in (x, y))
    one = torch.ones(n, dtype=torch.float64)
    total = (k @ l).trace() + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return float((total - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3)))


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize(("d", "e"), [(3, 3), (6, 2), (60, 50)])
def test_streamed_cka_is_that_of_the_kernels(batches: list[int], offset: float, d: int, e: int) -> None:
    x = features(40, d, 1, offset)
    y = x[:, :1] * 0.5 + features(40, e, 2, -offset)
    # an offset this large leaves the kernels some ten digits
    exact = 1e-12 if offset == 0 else 1e-8
    assert streamed(x, y, batches) == pytest.approx(by_kernels(x - x.mean(0), y - y.mean(0)), abs=exact)
    parts = [unbiased(a - a.mean(0), b - b.mean(0)) for a, b in ((x, x), (y, y), (x, y))]
    debiased = streamed(x, y, batches, debiased=True)
    assert debiased == pytest.approx(parts[2] / (parts[0] * parts[1]) ** 0.5, abs=exact)


def test_cka_does_not_see_rotation_scale_or_shift() -> None:
    x = features(40, 5, 3)
    turn = torch.linalg.qr(features(5, 5, 4)).Q
    for debiased in (False, True):
        assert streamed(x, 7 * x @ turn + 3, [25, 15], debiased=debiased) == pytest.approx(1, abs=1e-12)


def test_features_that_share_nothing_have_no_debiased_cka() -> None:
    pairs = [(features(30, 25, 2 * s), features(30, 25, 2 * s + 1)) for s in range(60)]
    plain = [streamed(x, y, [30]) for x, y in pairs]
    debiased = [streamed(x, y, [30], debiased=True) for x, y in pairs]
    spread = np.std(debiased) / len(pairs) ** 0.5
    assert abs(np.mean(debiased)) < 4 * spread
    assert np.mean(plain) > 10 * spread


def test_a_constant_feature_has_no_cka() -> None:
    x = features(20, 3, 1)
    flat = torch.full((20, 3), 0.1) + torch.arange(3)
    assert np.isnan(streamed(x, flat, [7, 13]))
    assert np.isnan(streamed(flat, x, [7, 13]))


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        CrossMoments().update(torch.tensor([[float("nan")]]), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="same images"):
        CrossMoments().update(torch.zeros(2, 1), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="at least 4"):
        moments(torch.zeros(3, 1), torch.zeros(3, 1), [3]).debiased_hsic()


def test_cosine_is_that_of_torch() -> None:
    x, y = features(9, 4, 1), features(9, 4, 2)
    assert torch.allclose(cosine(x, y), torch.nn.functional.cosine_similarity(x, y), atol=1e-14)
    assert torch.isnan(cosine(torch.zeros(1, 3), torch.ones(1, 3))).all()


def regression(x: Tensor, y: Tensor, batches: list[int]) -> GramRegression:
    gathered = GramRegression()
    for a, b in zip(x.split(batches), y.split(batches), strict=True):
        gathered.update({"site": a}, b)
    return gathered


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize(("d", "penalty"), [(5, 1e-3), (5, 10.0), (60, 0.1)])
def test_ridge_is_that_of_scikit_learn(batches: list[int], d: int, penalty: float) -> None:
    x = features(40, d, 1, 50.0)
    y = features(40, 3, 2) + x[:, :3]
    fitted = regression(x, y, batches).fit(penalty)["site"]
    alpha = penalty * float((x - x.mean(0)).square().sum()) / d
    theirs = Ridge(alpha=alpha).fit(x.numpy(), y.numpy())
    assert fitted.penalties.tolist() == pytest.approx([alpha] * 3)
    assert np.allclose(fitted.predict(x).numpy(), theirs.predict(x.numpy()), atol=1e-8)


@pytest.mark.parametrize("noise", [0.1, 3.0, 30.0])
def test_the_penalty_is_chosen_as_scikit_learn_chooses_it(noise: float) -> None:
    x = features(60, 8, 5)
    y = x @ features(8, 4, 6) + noise * features(60, 4, 7)
    fitted = regression(x, y, [60]).fit()["site"]
    unit = float((x - x.mean(0)).square().sum()) / 8
    for k in range(4):
        # leave-one-out and generalised cross-validation agree here to within a step of the grid
        theirs = RidgeCV(alphas=[unit * p for p in PENALTIES]).fit(x.numpy(), y[:, k].numpy())
        steps = abs(np.log10(float(fitted.penalties[k]) / theirs.alpha_))
        assert steps < 1.01 or theirs.alpha_ / unit < 1e-3


def test_a_regression_does_not_see_the_scale_of_its_features() -> None:
    x = features(40, 6, 1)
    y = features(40, 2, 2) + x[:, :2]
    ours, scaled = (regression(a, y, [40]).fit()["site"].predict(a) for a in (x, 1e-4 * x))
    assert torch.allclose(ours, scaled, atol=1e-9)


def test_constant_features_predict_the_mean() -> None:
    y = features(10, 2, 1)
    fitted = regression(torch.full((10, 3), 2.0), y, [4, 6]).fit()["site"]
    assert torch.allclose(fitted.predict(torch.zeros(1, 3)), y.mean(0))
    with pytest.raises(ValueError, match="needs images"):
        GramRegression().fit()
    with pytest.raises(ValueError, match="above 0"):
        regression(y, y, [10]).fit(0.0)


def test_r_squared_and_its_gain() -> None:
    y, first, second = (features(200, 3, s).numpy() for s in (1, 2, 3))
    guesses = [y + 0.3 * first, y + 0.6 * second]
    found = [r_squared((g - y) ** 2, y) for g in guesses]
    for ours, g in zip(found, guesses, strict=True):
        assert ours.value == pytest.approx(r2_score(y, g, multioutput="raw_values"))
        assert (ours.low < ours.value).all()
        assert (ours.value < ours.high).all()
    gain = r_squared_gain(*((g - y) ** 2 for g in guesses), y)
    assert float(gain.value) == pytest.approx((found[0].value - found[1].value).mean())
    assert gain.low < gain.value < gain.high
    same = r_squared_gain((guesses[0] - y) ** 2, (guesses[0] - y) ** 2, y)
    assert same.value == 0
    assert np.isnan([same.low, same.high]).all()  # maps that never differ say nothing of images on which they might
    assert np.isnan(r_squared(np.ones((5, 1)), np.ones((5, 1))).value).all()
