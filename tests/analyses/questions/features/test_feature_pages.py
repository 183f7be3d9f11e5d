"""Pages of features from stored activations are those of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analyses import feature_pages
from analyses.activations.store import store_activations
from analyses.command_line.cli import main
from analyses.controls.random_weights import with_random_weights
from analyses.data import ImageData
from tests.analyses.questions.features.test_sparse_features import model_of, sae_of, saved, scenes


def test_nothing_runs_and_only_pictures_that_are_shown_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = model_of(), scenes("test")
    sae = sae_of(32, activation="topk", k=4, layer=1, site="resid_post")
    options: dict[str, Any] = {"images": 2, "n_features": 1, "batch_size": 7}
    run = feature_pages(model, sae, data, **options)
    store_activations(model, data, ("resid_post",), ("all",), to=tmp_path / "s", layers=(1,), batch_size=7)
    opened: set[int] = set()
    opens, before = ImageData._open, model.run.n_forwards
    monkeypatch.setattr(
        ImageData, "_open", lambda self, row, more: (opened.add(row.position), opens(self, row, more))[1]
    )
    read = feature_pages(model, sae, data, **options, activations=[tmp_path / "s"])
    assert model.run.n_forwards == before
    assert read.pages == run.pages
    assert 2 <= len(opened) < len(data)


def test_what_a_store_lacks_is_said(tmp_path: Path) -> None:
    model, data = model_of(), scenes("test")
    store_activations(model, data, ("resid_post",), ("all",), to=tmp_path / "s", layers=(1,))
    elsewhere = sae_of(32, activation="topk", k=4, layer=0, site="resid_post")
    with pytest.raises(ValueError, match=r"lacks blocks\.0\.hook_resid_post\.all, which is read here"):
        feature_pages(model, elsewhere, data, activations=[tmp_path / "s"])
    with pytest.raises(ValueError, match="are not those of the model: they differ in weights"):
        feature_pages(with_random_weights(model, 1), elsewhere, data, activations=[tmp_path / "s"])


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = {"metadata": {"hook_name": "blocks.7.hook_resid_post"}}
    images = ["--n", "12", "--data", "scenes:test"]
    kept = ["cache", "zoo:vit", *images, "--roles", "all", "--layers", "7", "--to", str(tmp_path / "s")]
    assert main(kept) == 0
    asked = ["features", "zoo:vit", *images, "--dictionary", saved(tmp_path, sae_of(96, activation="relu"), **about)]
    for folder, more in (("run", []), ("read", ["--activations", str(tmp_path / "s")])):
        assert main([*asked, "--out", str(tmp_path / folder), *more]) == 0
    pages = [{path.name: path.read_text() for path in (tmp_path / folder).iterdir()} for folder in ("run", "read")]
    assert pages[0] == pages[1]
    assert main([*asked, "--out", str(tmp_path / "no"), "--activations", str(tmp_path / "run")]) == 2
    assert "holds no activations" in capsys.readouterr().err
