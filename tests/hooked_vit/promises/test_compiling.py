"""Whatever is compiled, hooks act: attached before or after, through the model, its cache or its compiled self."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from hooked_vit import HookedViT
from interventions import apply, sweep, zero_tokens
from tests.interventions.cases import unchecked_types
from tests.tiny import distance, make, pixels

# torch says that it looks through a cache of ours; what it finds there is the same
pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
EDIT = ("blocks.1.hook_attn_out", lambda act, hook: act * 0)
BACKEND = "aot_eager"  # traces as every backend does, and needs no compiler


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """What checks shapes in these tests would be traced, and cannot be."""
    with unchecked_types():
        yield


def whole(model: HookedViT) -> Callable:
    return torch.compile(model, backend=BACKEND)


def in_place(model: HookedViT) -> Callable:
    model.compile(backend=BACKEND)
    return model


def blocks(model: HookedViT) -> Callable:
    for block in model.blocks:
        block.compile(backend=BACKEND)
    return model


def wrapped_blocks(model: HookedViT) -> Callable:
    model.blocks = nn.ModuleList(torch.compile(block, backend=BACKEND) for block in model.blocks)
    return model


@pytest.mark.parametrize("how", [whole, in_place, blocks, wrapped_blocks], ids=lambda how: how.__name__)
@torch.no_grad()
def test_hooks_act(how):
    torch._dynamo.reset()
    model = make("vit", torch.float32)
    x = pixels(model)
    clean, edited = model(x), model.run_with_hooks(x, fwd_hooks=[EDIT])
    _, cache = model.run_with_cache(x)
    iv = zero_tokens(layer=0, tokens="cls")
    with apply(model, iv):
        without_cls = model(x)

    run = how(model)
    assert torch.equal(run(x), clean)
    assert torch.equal(model.run_with_hooks(x, fwd_hooks=[EDIT]), edited)
    with model.hooks([EDIT]):
        assert torch.equal(run(x), edited)
    if how is not wrapped_blocks:  # torch renames what it wraps
        output, kept = run.run_with_cache(x)
        assert torch.equal(output, clean)
        assert set(kept.cache_dict) == set(cache.cache_dict)
    model.add_hook(*EDIT)
    assert torch.equal(run(x), edited)
    model.reset_hooks()
    handle = model.hook_dict[EDIT[0]].register_forward_pre_hook(lambda point, args: args[0] * 0)
    assert torch.equal(run(x), edited)
    handle.remove()
    assert torch.equal(run(x), clean)
    with apply(model, iv) as applied:
        assert torch.equal(run(x), without_cls)
    assert applied.fired == {"blocks.0.hook_resid_post": 1}
    for _, swept in sweep(model, x, [iv]):
        torch.testing.assert_close(swept, without_cls)
    with pytest.raises(ValueError, match="NaN"):
        run(x * float("nan"))


def test_other_sizes_and_tokens_are_compiled_anew():
    torch._dynamo.reset()
    model = make("beit-mean-both", torch.float32)
    run = torch.compile(model, backend=BACKEND)
    with torch.no_grad():
        for size in ((32, 32), (16, 64), (48, 40), (32, 32)):
            x = pixels(model, size)
            # a resampled position table is rounded in another order by the compiled graph
            assert distance(run(x), model(x)) <= 3e-6, size
            assert distance(run(run(x, stop_at_layer=1), start_at_layer=1), model(x)) <= 3e-6, size


def test_an_export_is_refused():
    model = make("vit", torch.float32)
    with pytest.raises(NotImplementedError, match="an exported graph has no hooks"):
        torch.export.export(model, (pixels(model),))
