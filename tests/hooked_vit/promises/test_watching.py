"""Anything torch calls a hook counts as watching, and watching changes no number."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn.modules import module as everywhere

from tests.interventions.cases import unchecked_types
from tests.tiny import GRAPHS, make, pixels, tiny

KINDS = {
    "register_forward_hook": lambda seen: lambda module, args, output: seen.append(output.shape),
    "register_forward_pre_hook": lambda seen: lambda module, args: seen.append(args[0].shape),
    "register_full_backward_hook": lambda seen: lambda module, before, after: seen.append(after[0].shape),
    "register_full_backward_pre_hook": lambda seen: lambda module, grads: seen.append(grads[0].shape),
}
EVERYWHERE = {
    "register_module_forward_hook": "register_forward_hook",
    "register_module_forward_pre_hook": "register_forward_pre_hook",
}


@pytest.fixture(scope="module", autouse=True)
def unchecked() -> Iterator[None]:
    """Many runs, whose shapes other tests check."""
    with unchecked_types():
        yield


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", GRAPHS)
def test_every_kind_of_hook_is_called_at_every_point_and_changes_nothing(family, kind):
    """All at once for every family, and one by one for the first: what is expensive is computed for each alone."""
    model = make(family, torch.float32)
    x = pixels(model, n=2).requires_grad_()
    clean = model(x)
    every = list(model.hook_dict)
    for names in [every, *([name] for name in every if family == GRAPHS[0])]:
        seen: list = []
        handles = [getattr(model.hook_dict[name], kind)(KINDS[kind](seen)) for name in names]
        out = model(x)
        out.sum().backward()
        for handle in handles:
            handle.remove()
        assert len(seen) == len(names), names
        assert torch.equal(out, clean), names


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_a_hook_on_all_modules_is_one_too(kind):
    model, names = tiny("vit")[1], []
    handle = getattr(everywhere, kind)(lambda module, *args: names.append(getattr(module, "name", None)))
    try:
        model(pixels(model))
    finally:
        handle.remove()
    assert set(model.hook_dict) <= set(names)


def test_a_pre_hook_edits_as_a_hook_does():
    model = tiny("beit-mean-both")[1]
    x = pixels(model)
    for hook in (
        "hook_pos_embed",
        "blocks.0.attn.hook_pattern",
        "blocks.1.ln1.hook_scale",
        "blocks.0.attn.hook_result",
    ):
        want = model.run_with_hooks(x, fwd_hooks=[(hook, lambda act, hook: act * 1.5)])
        for edit in (lambda point, args: args[0] * 1.5, lambda point, args: (args[0] * 1.5,)):
            handle = model.hook_dict[hook].register_forward_pre_hook(edit)
            got = model(x)
            handle.remove()
            assert torch.equal(got, want), hook
    with pytest.raises(TypeError, match="no keyword arguments"):
        model.hook_dict[hook].register_forward_pre_hook(edit, with_kwargs=True)
    handle = model.hook_dict[hook].register_forward_pre_hook(lambda point, args: args[0].double())
    with pytest.raises(TypeError, match=r"returned torch.float64"):
        model(x)
    handle.remove()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad], ids=lambda m: m.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", GRAPHS)
def test_a_cached_run_is_the_plain_run(family, dtype, mode):
    """Whatever is watched, patterns included, and under the kernel that was chosen: to the bit."""
    model = make(family, dtype)
    x = pixels(model)
    with mode():
        for kernel in ("auto", "eager"):
            model.set_attention(kernel)
            clean = model(x)
            cached, cache = model.run_with_cache(x, names_filter=lambda name: True)
            assert torch.equal(cached, clean)
            assert torch.equal(cache["hook_logits"], clean)
