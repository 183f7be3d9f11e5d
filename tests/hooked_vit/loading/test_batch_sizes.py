"""A batch size is found by what was measured: time on a CPU, memory on a GPU."""

from __future__ import annotations

import pytest
import torch

from hooked_vit.loading import placing
from hooked_vit.loading.placing import STATES, fastest, fitting_batch, largest
from tests.tiny import tiny


def test_the_fastest_and_of_two_alike_the_smaller() -> None:
    assert fastest(lambda n: 2 + n, (8, 16, 32, 64)) == 32  # 64 is no 3 % faster
    assert fastest(lambda n: n, (8, 16)) == 8
    assert fastest(lambda n: 1.0 if n < 64 else 1e9, (8, 16, 32, 64, 128)) == 32


def test_what_does_not_fit_is_not_taken() -> None:
    def run(n: int) -> float:
        if n > 100:
            raise torch.OutOfMemoryError
        return 0.0

    assert largest(run, (8, 16, 32)) == 16  # of which STATES are 64
    assert largest(run, (50, 100)) == 50
    with pytest.raises(torch.OutOfMemoryError):
        largest(run, (200,))

    def none(n: int) -> float:
        if n > 8:
            raise MemoryError
        return 1.0

    assert fastest(none, (8, 16)) == 8
    assert STATES > 1


def test_it_is_measured_on_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "SIZES", (2, 4))
    model = tiny("vit")[1]
    before = model.run.n_forwards
    assert fitting_batch(model) in (2, 4)
    assert model.run.n_forwards == before + 4
