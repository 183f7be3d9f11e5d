"""The probes as scikit-learn estimators, for pipelines, cross-validation and comparison.

As in scikit-learn, any value may be set, and `fit` is what refuses it: hence no types in the constructors.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from analyses.probes.probe import Layer
from analyses.probes.ridge import GramRidge
from analyses.probes.training import Training, train_together

SOLVERS = ("scikit-learn", "minibatch")
SELECTIONS = ("gcv", "held_out")


class _ProbeClassifier(ClassifierMixin, BaseEstimator):
    """What the probes have in common: validation, scores from layers, and the class with the highest score."""

    def _start(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a probe needs images of at least 2 classes; got 1 class, {self.classes_[0]!r}")
        return X, codes

    def _scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        first, *rest = self.layers_
        scores = X @ first[0].T + first[1]
        for weight, bias in rest:
            scores = np.maximum(scores, 0) @ weight.T + bias
        return scores

    def _keep(self, layers: Sequence[Layer | tuple[np.ndarray, np.ndarray]]) -> None:
        self.layers_ = [(np.asarray(weight, np.float64), np.asarray(bias, np.float64)) for weight, bias in layers]

    def decision_function(self, X: Any) -> np.ndarray:
        """One score per class [n, classes]; with two classes [n], above 0 for the second."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The class with the highest score; of several, the first."""
        scores = self._scores(X)
        return self.classes_[scores.argmax(1)]


class RidgeProbeClassifier(_ProbeClassifier):
    """One-vs-rest ridge on ±1 targets with the penalty chosen by generalised cross-validation, or on held-out images.

    >>> RidgeProbeClassifier().fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1]).predict([[0.4], [2.9]])
    array([0, 1])

    `alphas` are tried (None: a grid that follows the features), `select` is "gcv" or "held_out" (a share `held_out`,
    drawn with `seed`; the probe is then fitted on everything), `components` confines it to that many principal
    components. After fitting: `coef_` [classes, d], `intercept_`, `alpha_`, `note_`. Raises ValueError for one class,
    and features that are no numbers. methods §1.
    """

    def __init__(
        self,
        alphas: Any = None,
        select: Any = "gcv",
        held_out: Any = 0.2,
        components: Any = None,
        seed: Any = 0,
    ) -> None:
        self.alphas, self.select, self.held_out, self.components, self.seed = alphas, select, held_out, components, seed

    def fit(self, X: Any, y: Any) -> RidgeProbeClassifier:
        """Fit to features [n, d] and labels [n]."""
        if self.select not in SELECTIONS:
            raise ValueError(f"a penalty is selected by {' or '.join(SELECTIONS)}; got {self.select!r}")
        X, codes = self._start(X, y)
        rng = np.random.default_rng(self.seed)
        apart = rng.random(len(X)) < (self.held_out if self.select == "held_out" else 0)
        parts = []
        for rows in (~apart, apart):
            parts.append(GramRidge(len(self.classes_), name=None))
            parts[-1].update({"x": torch.from_numpy(X[rows])}, torch.from_numpy(codes[rows]))
        other = parts[1] if self.select == "held_out" and parts[1].n else None
        probe = parts[0].fit(self.alphas, held_out=other, components=self.components)["x"]
        self._keep([(probe.weight, probe.bias)])
        self.alpha_, self.note_ = probe.alpha, probe.note
        self.coef_, self.intercept_ = self.layers_[0]
        return self


class _Standardised(_ProbeClassifier):
    """Probes that are trained step by step, on features of mean 0 and spread 1; their layers take the raw ones."""

    def _train(self, X: np.ndarray, codes: np.ndarray, training: Training) -> None:
        # Centred in float64: a residual stream's mean would cost float32 its digits.
        mean, spread = X.mean(0), X.std(0)
        x = torch.from_numpy((X - mean) / np.where(spread > 0, spread, 1)).float()[:, None]
        labels = torch.from_numpy(codes)[:, None]
        zero, one = torch.zeros(1, X.shape[1]), torch.ones(1, X.shape[1])
        trained = train_together(lambda images: x[images], zero, one, labels, len(self.classes_), training)
        first, *rest = trained.layers[0][0]
        weight = first[0].numpy() / np.where(spread > 0, spread, 1)
        self._keep([(weight, first[1].numpy() - weight @ mean), *rest])
        self.n_iter_ = trained.epochs

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each class [n, classes]."""
        scores = self._scores(X)
        scores = np.exp(scores - scores.max(1, keepdims=True))
        return scores / scores.sum(1, keepdims=True)


class LogisticProbeClassifier(_Standardised):
    """Multinomial logistic regression on standardised features, by scikit-learn or in mini-batches.

    >>> LogisticProbeClassifier().fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1]).predict([[0.4], [2.9]])
    array([0, 1])

    `penalty` multiplies half the squared weights, against the mean loss of an image (scikit-learn's C is
    1 / (n · penalty)). With `solver="minibatch"` the rest says how: see `Training`. After fitting: `coef_`,
    `intercept_`, `n_iter_`, and `note_` where the solver did not converge. methods §1, alternative probe.
    """

    def __init__(
        self,
        penalty: Any = 1e-3,
        solver: Any = "scikit-learn",
        max_iter: Any = 1000,
        learning_rate: Any = 0.01,
        max_epochs: Any = 100,
        seed: Any = 0,
    ) -> None:
        self.penalty, self.solver, self.max_iter = penalty, solver, max_iter
        self.learning_rate, self.max_epochs, self.seed = learning_rate, max_epochs, seed

    def fit(self, X: Any, y: Any) -> LogisticProbeClassifier:
        """Fit to features [n, d] and labels [n]."""
        if self.solver not in SOLVERS:
            raise ValueError(f"a solver is {' or '.join(SOLVERS)}; got {self.solver!r}")
        training = Training(
            penalty=self.penalty, learning_rate=self.learning_rate, max_epochs=self.max_epochs, seed=self.seed
        )
        X, codes = self._start(X, y)
        self.note_ = ""
        if self.solver == "minibatch":
            self._train(X, codes, training)
        else:
            self._solve(X, codes)
        self.coef_, self.intercept_ = self.layers_[0]
        return self

    def _solve(self, X: np.ndarray, codes: np.ndarray) -> None:
        mean, spread = X.mean(0), X.std(0)
        scale = np.where(spread > 0, spread, 1)
        C = np.inf if self.penalty == 0 else 1 / (len(X) * self.penalty)
        model = LogisticRegression(C=C, max_iter=self.max_iter)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit((X - mean) / scale, codes)
        if any(issubclass(w.category, ConvergenceWarning) for w in caught):
            self.note_ = f"the solver did not converge in {self.max_iter} iterations"
        weight, bias = model.coef_, model.intercept_
        if len(self.classes_) == 2:  # scikit-learn keeps one row, half of which each class can have
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        weight = weight / scale
        self._keep([(weight, bias - weight @ mean)])
        self.n_iter_ = int(np.max(model.n_iter_))


class MLPProbeClassifier(_Standardised):
    """A probe with one hidden layer of rectified units, trained in mini-batches on standardised features.

    >>> MLPProbeClassifier().fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1]).predict([[0.4], [2.9]])
    array([0, 1])

    See `Training` for the parameters. It reads what no linear probe can; hold its selectivity against that (Hewitt &
    Liang 2019). After fitting: `layers_`, `n_iter_`.
    """

    def __init__(
        self,
        hidden: Any = 64,
        penalty: Any = 1e-3,
        learning_rate: Any = 0.01,
        max_epochs: Any = 100,
        seed: Any = 0,
    ) -> None:
        self.hidden, self.penalty, self.learning_rate = hidden, penalty, learning_rate
        self.max_epochs, self.seed = max_epochs, seed

    def fit(self, X: Any, y: Any) -> MLPProbeClassifier:
        """Fit to features [n, d] and labels [n]."""
        if self.hidden < 1:
            raise ValueError(f"an MLP has at least one hidden unit; got hidden={self.hidden}")
        training = Training(
            hidden=self.hidden,
            penalty=self.penalty,
            learning_rate=self.learning_rate,
            max_epochs=self.max_epochs,
            seed=self.seed,
        )
        X, codes = self._start(X, y)
        self._train(X, codes, training)
        return self


def layers_of(estimator: _ProbeClassifier) -> list[tuple[Tensor, Tensor]]:
    """The layers of a fitted probe as tensors."""
    check_is_fitted(estimator)
    return [(torch.from_numpy(weight), torch.from_numpy(bias)) for weight, bias in estimator.layers_]
