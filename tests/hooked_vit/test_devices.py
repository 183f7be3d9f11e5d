"""Tensors go where the model and its input are, whatever the default is, and none is kept that spoils a later run.

No second device is needed: a factory call that forgets its device would land on `meta`, which holds no numbers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hooked_vit import HookedViT
from hooked_vit.components import sizes
from hooked_vit.components.embedding import offsets
from hooked_vit.components.rotary import turns
from hooked_vit.processing import known_finite, sent
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


# --- a GPU that is not here: tensors of `meta` stand for its own, as no number of theirs can be waited for


class OneDevice(TorchDispatchMode):
    """Fails where a computation meets tensors of two devices; a number of a `meta` tensor nobody could say."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, torch.Tensor) and t.ndim]
        devices = {t.device.type for t in tensors}
        assert len(devices) < 2 or "copy" in str(function), f"{function} of {devices}"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_waits_for_no_number_and_computes_where_the_model_is(family, monkeypatch):
    model = make(family).to("meta")
    x = sent(pixels(model).float(), torch.device("meta"), model.dtype)
    forget_what_is_kept()
    monkeypatch.setattr(sizes, "may_look", lambda x: True)  # as of a GPU
    edits = [(f"blocks.{layer}.hook_resid_post", lambda act, hook: 2 * act) for layer in range(model.cfg.n_layers)]
    edits += [("blocks.0.attn.hook_pattern", lambda act, hook: act.clone())]
    with OneDevice():
        outs = [model(x), model.run_with_hooks(x, fwd_hooks=edits), model.run_with_cache(x)[0]]
        outs += [model(model(x, stop_at_layer=1), start_at_layer=1)]
    assert all(out.is_meta for out in outs)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # pixels nobody has looked at are looked at
        model(x.clone())
    forget_what_is_kept()


def test_pixels_are_looked_at_before_they_are_sent_to_a_gpu(monkeypatch):
    asked = []

    def to(tensor: torch.Tensor, *args: Any, **kw: Any) -> torch.Tensor:
        asked.append((args, kw))
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: asked.append("pinned") or tensor)
    monkeypatch.setattr(torch.Tensor, "to", to)
    gpu = torch.device("cuda:0")
    there = sent(torch.zeros(1, 3, 4, 4), gpu, torch.float16)
    assert asked == [((torch.float16,), {}), "pinned", ((gpu,), {"non_blocking": True})]
    assert known_finite(there)
    there[0, 0, 0, 0] = torch.nan
    assert not known_finite(there)
    assert not known_finite(sent(torch.full((1, 3, 4, 4), torch.inf), gpu, torch.float32))
