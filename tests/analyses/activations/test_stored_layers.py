"""Of layers that are not measured nothing has to be stored; means over images are read where every token is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from analyses import Result, cls_causality, decodability, head_ablation, lenses, restoration
from analyses.activations.store import store_activations
from analyses.activations.store.serving import activations_in_use
from analyses.activations.store.stats import means_over
from analyses.command_line.cli import main
from hooked_vit import HookedViT
from tests.analyses.activations.test_store import counted
from tests.analyses.questions.cls_use.test_cls_causality import coloured, model

BATCH = 10
MEASURED, FITTED = coloured(24, 1), coloured(34, 2)
SOME: dict[str, tuple[Callable[..., Result], dict[str, Any]]] = {
    "cls-causality": (cls_causality, {"seeds": 1}),
    "decodability": (decodability, {"roles": ("cls", "patches"), "controls": ("permuted",)}),
    "lenses": (lenses, {"steps": 2, "random_models": 0}),
    "restoration": (restoration, {"seeds": 1}),
}


def stored(net: HookedViT, folder: Path, *what: Any, **how: Any) -> Path:
    for name, images in (("measured", MEASURED), ("fitted", FITTED)):
        store_activations(net, images, *what, to=folder / name, batch_size=BATCH, **how)
    return folder


@pytest.fixture(scope="module")
def last_layer(vit: HookedViT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    roles = ("cls", "patches", "all")
    return stored(vit, tmp_path_factory.mktemp("last"), ("resid_post",), roles, layers=(1,))


@pytest.mark.parametrize("name", SOME)
def test_only_the_layers_asked_for_have_to_be_stored(vit: HookedViT, last_layer: Path, name: str) -> None:
    run, options = SOME[name]
    options = {"fit_data": FITTED, "batch_size": BATCH, **options}
    ran = run({"m": vit}, MEASURED, **options, layers=(-1,))
    with counted() as after:
        read = run({"m": vit}, MEASURED, **options, layers=(-1,), activations=(str(last_layer),))
    assert not after  # a sweep is no run of a model
    pd.testing.assert_frame_equal(ran.frame, read.frame, check_exact=True)
    assert len(read.meta["activations"]["read"]) == (1 if name == "cls-causality" else 2)
    with pytest.raises(ValueError, match="lacks blocks.0.hook_resid_post.cls"):
        run({"m": vit}, MEASURED, **options, layers=(0,), activations=(str(last_layer),))


@pytest.mark.parametrize("family", ["deit-teacher", "dinov2-model", "clip-classifier"])
@pytest.mark.parametrize("layers", [None, (1,)])
def test_what_stands_in_the_place_of_a_head_is_read_from_stored_heads(
    family: str, layers: tuple[int, ...] | None, tmp_path: Path
) -> None:
    net = model(family)
    folder = stored(net, tmp_path, ("z", "mlp_out"), ("all",), layers=layers)
    options = {"fit_data": FITTED, "batch_size": BATCH, "head": "ridge", "seeds": 1, "draws": 1, "layers": layers}
    with counted() as before:
        ran = head_ablation({"m": net}, MEASURED, **options)
    with counted() as after:
        read = head_ablation({"m": net}, MEASURED, **options, activations=(str(folder),))
    assert len(before) - len(after) == 2 * 4  # two passes over the images to fit on: for the head, and for the means
    pd.testing.assert_frame_equal(ran.frame, read.frame, check_exact=True)
    assert read.meta["activations"]["read"]


def test_a_mean_is_that_of_a_run_to_the_last_bit(vit: HookedViT, tmp_path: Path) -> None:
    hooks = ["blocks.1.attn.hook_z", "blocks.0.hook_mlp_out", "blocks.1.hook_resid_mid", "blocks.0.mlp.hook_post"]
    sites = ("z", "mlp_out", "resid_mid", "post")
    folder = stored(vit, tmp_path, sites, ("all",))
    ran = means_over(vit, FITTED, hooks, batch_size=BATCH, what="means")
    with activations_in_use(str(folder), {"m": vit}), counted() as runs:
        read = means_over(vit, FITTED, hooks, batch_size=BATCH, what="means")
    assert not runs
    assert list(ran) == list(read) == hooks
    assert all(torch.equal(ran[hook], read[hook]) for hook in hooks)
    assert ran[hooks[0]].shape == (1, vit.tokens.n_tokens, vit.cfg.n_heads, vit.cfg.d_head)
    images = torch.cat([vit.preprocess(batch.images) for batch in FITTED.batches(BATCH)])
    _, cache = vit.run_with_cache(images)
    for hook, mean in ran.items():
        torch.testing.assert_close(mean, cache[hook].mean(0, keepdim=True))


def test_a_store_without_the_heads_is_refused(vit: HookedViT, last_layer: Path) -> None:
    options = {"fit_data": FITTED, "batch_size": BATCH, "head": "ridge", "draws": 1, "layers": (1,)}
    with pytest.raises(ValueError, match=r"lacks blocks\.1\.attn\.hook_z\.all, which is read here; store that site"):
        head_ablation({"m": vit}, MEASURED, **options, activations=(str(last_layer),))


def test_layers_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is cached of two layers answers for them; the page and the terminal say which were measured."""
    fit, keep = ["--data", "scenes:train", "--n", "20"], ["--layers", "1", "7", "--batch-size", "10"]
    heads = ["--sites", "z", "mlp_out", "--roles", "all"]
    assert main(["cache", "zoo:vit", *fit, *keep, *heads, "--to", str(tmp_path / "store")]) == 0
    asked = ["--model", "zoo:vit", "--data", "scenes:test", "--n", "20", "--fit-data", "scenes:train", "--n-fit", "20"]
    more = {name: ["--seeds", "1"] for name in ("causality-vs-decodability", "restoration")}
    more["head-ablation"] = ["--seeds", "1", "--draws", "1", "--activations", str(tmp_path / "store")]
    for name, options in more.items():
        capsys.readouterr()
        assert main(["run", name, *asked, "--layers", "-1", "1", *options, "--out", str(tmp_path / name)]) == 0
        page = (tmp_path / name / "report.html").read_text(encoding="utf-8")
        for said in (" ".join(capsys.readouterr().out.split()), page):
            assert "Only layers -1, 1 were measured" in said
        assert Result.load(tmp_path / name).meta["layers"] == [-1, 1]
