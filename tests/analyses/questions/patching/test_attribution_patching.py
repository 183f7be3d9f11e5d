"""Attribution patching: gradients by hand, exact where the metric is linear, integrated gradients complete."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analyses.questions.patching.activation_patching import activation_patching
from analyses.questions.patching.attribution_patching import agreement, attribution_patching
from analyses.questions.patching.patch_sites import INNER
from hooked_vit import HookedViT
from interventions import readout
from tests.tiny import make, pixels, tiny

CLASSES = (torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long))
FAST = ("vit", "beit-mean-both", "registers")
SITES = ("resid", "resid_pre", "resid_post", *INNER)


def pair(model: HookedViT, apart: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    clean = pixels(model)
    return clean, clean + apart * pixels(model, seed=1)


@pytest.mark.parametrize("family", ["vit", "beit-mean-both"])
def test_estimates_are_exact_for_small_differences(family: str) -> None:
    model = make(family)
    result = attribution_patching(
        model,
        *pair(model, 1e-5),
        sites=SITES,
        tokens=["cls", "patches"],
        classes=CLASSES,
        eps=1e-12,
        check=10**6,
        direction="both" if family == "vit" else "noise",
    )
    assert result.frame.exact.notna().all()
    np.testing.assert_allclose(result.frame.value, result.frame.exact, rtol=0, atol=1e-3)
    assert result.meta["agreement"]["pearson"] > 0.9999
    assert result.meta["agreement"]["n_cells"] == len(result.frame)


@pytest.mark.parametrize("metric", ["recovery", "logit_diff"])
def test_estimates_are_exact_where_the_metric_is_linear(metric: str) -> None:
    model = make("clip-projection")
    model.set_readout_(sources=("cls", "patches"), final_norm="none")
    head = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    model.set_head_(head, torch.ones(5))
    frame = attribution_patching(
        model,
        *pair(model),
        sites="resid",
        layers=-1,
        tokens="each",
        classes=CLASSES,
        check=10**6,
        metric=metric,
        direction="both",
    ).frame
    assert len(frame) == 2 * model.tokens.n_tokens
    np.testing.assert_allclose(frame.value, frame.exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("site", ["resid_mid", "mlp_post", "z", "pattern"])
def test_the_gradient_by_hand(site: str) -> None:
    model = make("vit")
    clean, corrupt = pair(model)
    name = f"blocks.1.{INNER[site][0]}"
    donor = model.run_with_cache(clean)[1][name]
    seen = []

    def watch(act, hook):
        seen.append(act)
        act.retain_grad()

    logits = model.run_with_hooks(corrupt, fwd_hooks=[(name, watch)])
    (logits[:, 0] - logits[:, 1]).sum().backward()
    effect = (donor - seen[0].detach()) * seen[0].grad
    by_token = {"resid_mid": "b t d -> t", "mlp_post": "b t d -> t", "z": "b t h e -> t", "pattern": "b h t s -> t"}[
        site
    ]
    axes = [i for i, axis in enumerate(by_token.split(" -> ")[0].split()) if axis != "t"]
    ends = [x[:, 0] - x[:, 1] for x in (model(corrupt).detach(),)]
    frame = attribution_patching(
        model, clean, corrupt, sites=site, layers=1, tokens="each", classes=CLASSES, metric="logit_diff", check=0
    ).frame
    want = ends[0].mean() + effect.sum(axes) / 3
    np.testing.assert_allclose(frame.value, want.detach(), rtol=0, atol=1e-10)
    assert frame.exact.isna().all()


@pytest.mark.parametrize("family", FAST)
def test_integrated_gradients_are_complete(family: str) -> None:
    model = make(family)
    kw = {"sites": "resid", "tokens": ["all", "cls", "patches"], "classes": CLASSES, "steps": 16, "check": 0}
    sited = attribution_patching(model, *pair(model), along="site", **kw).frame
    # all tokens of a depth moved together: the estimates add up to the whole difference, at every depth
    np.testing.assert_allclose(sited[sited.group == "all"].value, 1, rtol=0, atol=4e-3)
    along = attribution_patching(model, *pair(model), **kw).frame
    np.testing.assert_allclose(along[(along.group == "all") & (along.layer == 0)].value, 1, rtol=0, atol=4e-3)
    plain = attribution_patching(model, *pair(model), **(kw | {"steps": 0})).frame
    off = [abs(f[(f.group == "all") & (f.layer == 0)].value - 1).item() for f in (plain, along)]
    assert off[0] > 10 * off[1]


def test_what_is_exact_is_what_activation_patching_says() -> None:
    model = make("dinov2")
    kw = {"sites": ("attn_out", "z"), "tokens": ["cls", "patches"], "classes": CLASSES}
    estimated = attribution_patching(model, *pair(model), check=5, seed=3, **kw).frame
    known = estimated[estimated.exact.notna()]
    assert len(known) == 5
    key = ["site", "layer", "group"]
    exact = activation_patching(model, *pair(model), **kw).frame.set_index(key).value
    np.testing.assert_allclose(known.set_index(key).exact, exact.loc[[tuple(k) for k in known[key].values]], atol=1e-12)


def test_under_an_intervention_both_see_it() -> None:
    model = make("dinov2")
    frame = attribution_patching(
        model,
        *pair(model),
        sites="resid",
        layers=-1,
        tokens=["patches", "cls"],
        classes=CLASSES,
        check=9,
        under=readout("cls"),
    ).frame.set_index("group")
    assert frame.value["patches"] == frame.exact["patches"] == 0
    assert frame.exact["cls"] == 1


def test_batches_and_heads_do_not_change_numbers() -> None:
    model = make("vit")
    kw = {"sites": "z", "tokens": "all", "heads": "each", "classes": CLASSES, "check": 0}
    whole = attribution_patching(model, *pair(model), **kw).frame
    parts = attribution_patching(model, *pair(model), batch_size=2, **kw).frame
    np.testing.assert_allclose(whole.value, parts.value, atol=1e-12)
    together = attribution_patching(model, *pair(model), **{**kw, "heads": None}).frame
    np.testing.assert_allclose(whole.groupby("layer").value.sum(), together.value, atol=1e-12)


def test_agreement_of_a_constant_is_unknown() -> None:
    import pandas as pd

    found = agreement(pd.DataFrame({"value": [1.0, 1.0], "exact": [0.0, 1.0]}))
    assert np.isnan(found["pearson"])
    assert found["n_cells"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "flip_rate"}, "has none"),
        ({"steps": -1}, "steps are 0"),
        ({"along": "pixels"}, "embedding or site"),
        ({"direction": "up"}, "denoise, noise, both"),
        ({"corrupt": torch.zeros(3, 3, 48, 40)}, "one shape"),
        ({"sites": "resid_ost"}, "did you mean"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    model = tiny("vit")[1]
    clean, corrupt = pair(model)
    with pytest.raises(ValueError, match=message):
        attribution_patching(model, clean, change.pop("corrupt", corrupt), **change)
