"""Direct logit attribution: sums that leave nothing over, on every family, and terms against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analyses.questions.patching.logit_attribution import logit_attribution, logit_terms
from analyses.statistics.intervals import mean_interval
from hooked_vit.errors import NoHeadError
from tests.tiny import FAMILIES, make, pixels, tiny


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [None, (48, 40)])
def test_nothing_is_left_over(family: str, size: tuple[int, int] | None) -> None:
    model = make(family)
    images = pixels(model, size)
    for kw in (
        {},
        {"classes": 1, "against": torch.tensor([0, 2, 3]), "heads": False, "tokens": "position"},
        {"tokens": "source", "neurons": True, "batch_size": 2},
    ):
        result = logit_attribution(model, images, **kw)
        assert result.meta["largest_error"] < 1e-12
        assert result.frame.value.sum() == pytest.approx(result.meta["mean_logit"], abs=1e-12)
    logits = model(images)
    assert result.meta["mean_logit"] == pytest.approx(logits.amax(-1).mean().item(), abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_term_is_what_the_logit_loses_without_it(family: str) -> None:
    """Take what a component wrote out of the last stream, the norm's scale as it was: the logit falls by the term."""
    model = make(family)
    images = pixels(model)
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    logits, cache = model.run_with_cache(images, names_filter=lambda name: True)
    logit, terms = logit_terms(model, images, classes=2, against=4)
    torch.testing.assert_close(logit, logits[:, 2] - logits[:, 4], rtol=0, atol=1e-12)
    written = {"embed": cache["hook_embed"], "pos_embed": cache["hook_pos_embed"]}
    for l in range(model.cfg.n_layers):
        written |= {("attn", l, h): cache["result", l][:, :, h] for h in range(4)}
        written |= {("mlp", l): cache["mlp_out", l], ("attn_bias", l): model.b_O[l].expand_as(cache["mlp_out", l])}
    names = {(t.component, t.layer, t.head) if t.head is not None else (t.component, t.layer) for t in terms}
    assert names <= {(k, None) if isinstance(k, str) else k for k in written} | {("constant", None)}
    for term in terms:
        if term.component == "constant":
            continue
        key = term.component if term.layer is None else (*term[:2], term.head) if term.head is not None else term[:2]

        def without(x, hook):
            return x - written[key]  # noqa: B023

        hooks = [(last, without), ("ln_final.hook_scale", lambda scale, hook: cache["ln_final.hook_scale"])]
        less = model.run_with_hooks(images, fwd_hooks=hooks)
        torch.testing.assert_close(term.values.sum(1), logit - (less[:, 2] - less[:, 4]), rtol=0, atol=1e-11)


def test_transformer_lens_says_the_same() -> None:
    model = make("vit")
    images = pixels(model)
    cache = model.run_with_cache(images, names_filter=lambda name: True)[1]
    cache.compute_head_results()
    stack = cache.stack_head_results(layer=-1, pos_slice=0)
    theirs = cache.logit_attrs(stack, tokens=torch.tensor([3]), pos_slice=0, has_batch_dim=True)
    terms = [t for t in logit_terms(model, images, classes=3)[1] if t.component == "attn"]
    ours = torch.stack([term.values[:, 0] for term in terms])
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=0, atol=1e-12)


def test_by_source_a_head_is_split_over_the_tokens_it_reads() -> None:
    model = make("beit-mean-both")
    images = pixels(model)
    whole = logit_attribution(model, images, classes=0).frame
    split = logit_attribution(model, images, classes=0, tokens="source").frame
    heads = split[split.component == "attn"]
    assert heads.token.max() == model.tokens.n_tokens - 1
    per_head = heads.groupby(["layer", "head"]).value.sum()
    known = whole[whole.component == "attn"].set_index(["layer", "head"]).value
    np.testing.assert_allclose(per_head, known, rtol=0, atol=1e-12)
    # blocking what the head reads at one token takes exactly that part away
    pattern = "blocks.1.attn.hook_pattern"
    cache = model.run_with_cache(images)[1]

    def blind(x, hook):
        new = x.clone()
        new[:, 2, :, 7] = 0
        return new

    frozen = [("ln_final.hook_scale", lambda s, hook: cache["ln_final.hook_scale"])]
    frozen.append(("blocks.1.hook_mlp_out", lambda x, hook: cache[hook.name]))
    fall = (model(images) - model.run_with_hooks(images, fwd_hooks=[(pattern, blind), *frozen]))[:, 0].mean()
    part = heads[(heads.layer == 1) & (heads["head"] == 2) & (heads.token == 7)].value.item()
    assert part == pytest.approx(fall.item(), abs=1e-12)


def test_a_norm_of_what_a_head_mixed_leaves_heads_whole() -> None:
    """Their sums still close; the tokens behind one are no terms any more."""
    model = make("timm-eva02-inner")
    images = pixels(model)
    for kw in ({}, {"neurons": True}):
        assert logit_attribution(model, images, **kw).meta["largest_error"] < 1e-12
    with pytest.raises(ValueError, match=r"a norm stands between that sum and the output matrix"):
        logit_attribution(model, images, tokens="source")


def test_rows_are_means_over_images_with_their_interval() -> None:
    model = make("vit")
    frame = logit_attribution(model, pixels(model, n=5), classes=torch.arange(5), batch_size=2).frame
    _, terms = logit_terms(model, pixels(model, n=5), classes=torch.arange(5))
    for (_, row), term in zip(frame.iterrows(), terms, strict=True):
        values = term.values.sum(1).numpy()
        assert row.value == pytest.approx(values.mean())
        if row.component == "constant":
            assert row.low == row.high == row.value
        else:
            assert (row.low, row.high) == pytest.approx(mean_interval(values)[1:], abs=1e-9)
    assert frame.n.eq(5).all()


def test_bad_input_is_refused() -> None:
    model = tiny("vit")[1]
    images = pixels(model)
    with pytest.raises(ValueError, match="classes are 0 to 4"):
        logit_attribution(model, images, classes=5)
    with pytest.raises(ValueError, match="one number, or one per image"):
        logit_attribution(model, images, classes=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="position, by source"):
        logit_attribution(model, images, tokens="each")
    with pytest.raises(ValueError, match="at least one image"):
        logit_attribution(model, images[:0])
    with pytest.raises(NoHeadError):
        logit_attribution(tiny("dinov2-model")[1], images)
