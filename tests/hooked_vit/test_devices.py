"""Tensors go where the model and its input are, whatever the default is, and none is kept that spoils a later run.

No second device is needed: a factory call that forgets its device would land on `meta`, which holds no numbers.
"""

from __future__ import annotations

import pytest
import torch

from hooked_vit import HookedViT
from hooked_vit.components.embedding import offsets
from hooked_vit.components.rotary import turns
from tests.tiny import FAMILIES, distance, make, pixels, tiny


def everything(model: HookedViT, x: torch.Tensor) -> list[torch.Tensor]:
    """Inserting, removing unevenly, watching, attributing, resuming."""
    n = model.layout_for(*x.shape[2:]).n_tokens
    uneven = torch.arange(n + 1, device="cpu").repeat(3, 1)
    uneven[1, -1] = -1
    vector = torch.ones(1, model.cfg.d_model, device="cpu")

    def edit(act, hook):
        return model.keep_tokens(model.insert_tokens(act, 2, vector), uneven)

    with model.hooks([("blocks.0.hook_resid_post", edit)]):
        logits, cache = model.run_with_cache(x)
        stream = model(x, stop_at_layer=1)
    found = [model(x), logits, model(stream, start_at_layer=1), cache.at("resid_post", 1)]
    if model.cfg.is_feature_model:
        return found
    return [*found, cache.logit_attrs(cache["resid_post", 1][None], 0), cache.logit_lens()]


def forget_what_is_kept():
    for kept in (offsets, turns):
        kept.cache_clear()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_device_is_irrelevant(family):
    model = tiny(family)[1]
    for size in (None, (48, 40)):
        x = pixels(model, size)
        want = everything(model, x)
        forget_what_is_kept()
        with torch.device("meta"):
            found = everything(model, x)
        assert all(map(torch.equal, found, want))


@pytest.mark.parametrize("family", FAMILIES)
def test_inference_mode_leaves_gradients_to_later_runs(family):
    forget_what_is_kept()
    model = make(family)
    x = pixels(model)
    with torch.inference_mode():
        inferred = everything(model, x)
    computed = everything(model, x)
    assert max(map(distance, inferred, computed)) <= 1e-12
    (model(x) ** 2).sum().backward()
    assert model.embed.patch.weight.grad.any()
