"""The probes as scikit-learn estimators, and the mini-batch trainer against training each probe alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from analyses.probes import LogisticProbeClassifier, MLPProbeClassifier, RidgeProbeClassifier, Training
from analyses.probes.ridge import GramRidge
from analyses.probes.training import train_together

ESTIMATORS = [
    RidgeProbeClassifier(),
    RidgeProbeClassifier(select="held_out", components=2),
    LogisticProbeClassifier(),
    LogisticProbeClassifier(solver="minibatch", max_epochs=15, learning_rate=0.1),
    MLPProbeClassifier(hidden=16, max_epochs=15, learning_rate=0.05),
]


def draw(n: int = 150, d: int = 6, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return rng.normal(0, 2, (classes, d))[y] + rng.normal(size=(n, d)), y


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_scikit_learns_own_checks(estimator) -> None:
    checks = check_estimator(estimator, on_skip=None, on_fail=None)
    assert len(checks) > 40
    failed = {c["check_name"]: repr(c["exception"])[:300] for c in checks if c["status"] == "failed"}
    assert failed == {}


def test_ridge_is_scikit_learns() -> None:
    x, y = draw()
    probe = RidgeProbeClassifier().fit(x, y)
    theirs = Ridge(alpha=probe.alpha_).fit(x, 2 * np.eye(3)[y] - 1)
    np.testing.assert_allclose(probe.decision_function(x), theirs.predict(x), atol=1e-8)
    np.testing.assert_allclose(probe.coef_, theirs.coef_, atol=1e-8)


def test_logistic_is_scikit_learns_on_standardised_features() -> None:
    x, y = draw()
    probe = LogisticProbeClassifier(penalty=0.01).fit(x, y)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (0.01 * len(x)), max_iter=1000)).fit(x, y)
    np.testing.assert_allclose(probe.predict_proba(x), theirs.predict_proba(x), atol=1e-6)


def test_two_classes_share_a_threshold_with_scikit_learn() -> None:
    x, y = draw(classes=2)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (0.01 * len(x)), max_iter=1000)).fit(x, y)
    probe = LogisticProbeClassifier(penalty=0.01).fit(x, y)
    np.testing.assert_allclose(probe.decision_function(x), theirs.decision_function(x), atol=1e-6)
    np.testing.assert_allclose(probe.predict_proba(x), theirs.predict_proba(x), atol=1e-6)


def test_mini_batches_come_to_the_same_minimum() -> None:
    """Nothing is held out for stopping early here but to choose the epoch, so the two agree closely, not exactly."""
    x, y = draw(n=600)
    exact = LogisticProbeClassifier(penalty=0.05).fit(x, y).predict_proba(x)
    trained = LogisticProbeClassifier(penalty=0.05, solver="minibatch").fit(x, y)
    assert np.abs(trained.predict_proba(x) - exact).mean() < 0.02
    assert (trained.predict_proba(x).argmax(1) == exact.argmax(1)).mean() > 0.98


@pytest.mark.parametrize("hidden", [0, 8])
def test_training_together_is_training_alone(hidden: int) -> None:
    """Each of four sites and two targets, whatever else is trained beside it."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(90, 4, 5, generator=rng) * torch.tensor([1.0, 10.0, 0.1, 3.0])[None, :, None] + 4
    labels = torch.randint(3, (90, 2), generator=rng)
    how = Training(hidden=hidden, max_epochs=12, seed=3)
    mean, spread = x.mean(0), x.std(0)
    together = train_together(lambda i: x[i], mean, spread, labels, 3, how)
    for s in range(4):
        for t in range(2):
            part = x[:, s : s + 1]
            one = train_together(lambda i, p=part: p[i], mean[[s]], spread[[s]], labels[:, [t]], 3, how)
            if one.epochs != together.epochs:  # stopped earlier: then no later epoch was better
                assert int(together.best_epoch[s, t]) == int(one.best_epoch[0, 0])
            for mine, alone in zip(together.layers[s][t], one.layers[0][0], strict=True):
                torch.testing.assert_close(mine, alone, atol=1e-4, rtol=1e-3)


def test_probes_are_of_all_digits_inside_autocast_too() -> None:
    x = torch.randn(60, 1, 5, generator=torch.Generator().manual_seed(0))
    labels = (x[:, 0, :1] > 0).long()

    def fitted() -> list[torch.Tensor]:
        trained = train_together(lambda i: x[i], x.mean(0), x.std(0), labels, 2, Training(max_epochs=5))
        moments = GramRidge(2)
        moments.update({"site": x[:, 0]}, labels[:, 0])
        ridge = moments.fit()["site"]
        return [*trained.layers[0][0][0], ridge.weight, ridge.scores(x[:, 0])]

    plain = fitted()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, fitted(), plain))


def test_the_best_epoch_is_kept() -> None:
    """With a learning rate that makes it worse and worse, the first epochs are the best on held-out images."""
    x, y = draw(n=200)
    features = torch.from_numpy(x).float()[:, None]
    how = Training(hidden=32, learning_rate=0.5, max_epochs=40, patience=40, penalty=0.0)
    mean, spread = features.mean(0), features.std(0)
    labels = torch.from_numpy(y)[:, None]
    trained = train_together(lambda i: features[i], mean, spread, labels, 3, how)
    assert 1 <= int(trained.best_epoch[0, 0]) < trained.epochs == 40


def test_an_mlp_reads_what_no_linear_probe_can() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    y = (x[:, 0] > 0) ^ (x[:, 1] > 0)
    assert cross_val_score(MLPProbeClassifier(hidden=16), x, y, cv=2).min() > 0.9
    assert cross_val_score(LogisticProbeClassifier(), x, y, cv=2).max() < 0.65


def test_a_solver_that_does_not_converge_is_noted_not_warned_about() -> None:
    x, y = draw(n=300, d=30)
    assert "converge in 2" in LogisticProbeClassifier(max_iter=2, penalty=1e-6).fit(x, y).note_
    assert LogisticProbeClassifier().fit(x, y).note_ == ""


@pytest.mark.parametrize(
    ("estimator", "says"),
    [
        (RidgeProbeClassifier(select="luck"), "gcv or held_out"),
        (LogisticProbeClassifier(solver="luck"), "scikit-learn or minibatch"),
        (MLPProbeClassifier(hidden=0), "at least one hidden"),
        (MLPProbeClassifier(learning_rate=0.0), "above 0"),
        (RidgeProbeClassifier(components=0), "at least one principal"),
    ],
)
def test_settings_there_are_not(estimator, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        estimator.fit(*draw())
