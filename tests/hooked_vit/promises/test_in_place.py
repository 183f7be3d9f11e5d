"""Writing into what a hook or a cache hands out reaches what lies behind it, and nothing else, at every hook point."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from hooked_vit import HookedViT, HookPoint
from hooked_vit.hook_table import without_layer
from tests.interventions.cases import unchecked_types
from tests.tiny import GRAPHS, attention, make, pixels, tiny


@pytest.fixture(scope="module", autouse=True)
def unchecked() -> Iterator[None]:
    """Many runs, whose shapes other tests check."""
    with unchecked_types():
        yield


def write(act: Tensor, hook: object = None) -> None:
    act.mul_(1.5).add_(0.25)


def by_value(act: Tensor, hook: object = None) -> Tensor:
    return act.clone().mul_(1.5).add_(0.25)


def everything(model: HookedViT, run: Callable, hook: str, edit: Callable) -> dict[str, Tensor]:
    """The cache of every hook point and the output, of a run under an edit."""
    with model.hooks([(hook, edit)]):
        output, cache = run(names_filter=lambda name: True)
    return {**cache.cache_dict, "output": output}


def with_every_hook() -> list[str]:
    """Of all graphs those that have a kind of hook point the ones before them have not: it takes long."""
    seen: set[str] = set()
    chosen = []
    for family in GRAPHS:
        kinds = {without_layer(hook) for hook in tiny(family)[1].hook_dict}
        if not kinds <= seen:
            chosen.append(family)
        seen |= kinds
    return chosen


@pytest.mark.parametrize("family", with_every_hook())
@torch.no_grad()
def test_a_write_is_the_edit_by_value(family):
    """Of one image at the native size, where the most is shared, fresh and resumed; nothing of the caller's moves."""
    model = tiny(family)[1]
    x = pixels(model, n=1)
    stream = model(x, stop_at_layer=1)
    mine = [x, stream, *model.parameters(), *model.buffers()]
    before = [t.clone() for t in mine]
    for hook in model.hook_dict:
        runs = [lambda **kw: model.run_with_cache(x, **kw)]
        if hook.startswith("blocks.1"):  # its inner part is that of block 0
            resumed = [lambda **kw: model.run_with_cache(stream, start_at_layer=1, **kw)]
            runs = runs + resumed if "resid" in hook else resumed
        with attention(model, "eager"):
            for run in runs:
                written, valued = everything(model, run, hook, write), everything(model, run, hook, by_value)
                assert [name for name, act in valued.items() if not torch.equal(act, written[name])] == [], hook
    assert all(map(torch.equal, before, mine))


@pytest.mark.parametrize("family", GRAPHS)
@torch.no_grad()
def test_nothing_handed_out_shares_memory(family):
    """Of one another, of the weights, of the output, and of what the caller gave."""
    model = tiny(family)[1]
    x = pixels(model, n=1)
    stream = model(x, stop_at_layer=1)
    for given, kw in (
        (x, {}),
        (x, {"stop_at_layer": 0}),
        (x, {"stop_at_layer": 1}),
        (stream, {"start_at_layer": 1}),
        (stream, {"start_at_layer": 1, "stop_at_layer": 1}),
    ):
        output, cache = model.run_with_cache(given, names_filter=lambda name: True, **kw)
        owners: dict[int, str] = {}
        handed = {**cache.cache_dict, "output": output, "given": given, **dict(model.state_dict())}
        for name, tensor in handed.items():
            assert owners.setdefault(tensor.untyped_storage().data_ptr(), name) == name, kw


@torch.no_grad()
def test_what_one_hook_returns_the_next_may_write_into():
    model = tiny("vit")[1]
    x, hook = pixels(model), "blocks.0.hook_attn_out"
    donor = torch.ones(3, 17, 32)
    model.run_with_hooks(x, fwd_hooks=[(hook, lambda act, hook: donor), (hook, write)])
    with model.hooks([(hook, lambda act, hook: donor)]):
        _, cache = model.run_with_cache(x)
    write(cache[hook])
    assert torch.equal(donor, torch.ones_like(donor))


def test_a_write_into_a_gradient_is_a_replaced_gradient():
    """Branches of a sum are given one gradient tensor, and a write must not reach the other branch."""
    model = make("vit")
    x = pixels(model).requires_grad_()
    for hook in ("blocks.1.hook_attn_out", "blocks.1.hook_resid_mid", "blocks.0.hook_mlp_out"):
        grads = []
        for edit in (by_value, write):
            with model.hooks(bwd_hooks=[(hook, edit)]):
                grads.append(torch.autograd.grad((model(x) ** 2).sum(), x)[0])
        assert torch.equal(*grads)
    with model.hooks(bwd_hooks=[(lambda name: "hook_" in name, lambda grad, hook: write(grad))]):
        model(x).sum().backward()


def test_a_write_where_gradients_are_asked():
    model = make("dinov2")
    x = pixels(model).requires_grad_()
    for hook in ("hook_pixels", "hook_pos_embed", "blocks.1.hook_resid_pre", "blocks.0.mlp.hook_pre", "hook_logits"):
        grads = [
            torch.autograd.grad((model.run_with_hooks(x, fwd_hooks=[(hook, edit)]) ** 2).sum(), x)[0]
            for edit in (write, by_value)
        ]
        assert torch.equal(*grads), hook


@pytest.mark.parametrize("family", GRAPHS)
def test_every_hook_point_is_one_that_copies(family):
    assert {type(point) for point in tiny(family)[1].hook_points()} == {HookPoint}


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda act: act.double(), "returned torch.float64 on cpu; return value.to"),
        (lambda act: act.half(), "hook_attn_out is torch.float32 on cpu, and a hook returned torch.float16"),
        (lambda act: act.to("meta"), "on meta"),
        (lambda act: 0.0, "on blocks.0.hook_attn_out one returned a float"),
        (lambda act: (act,), "returned a tuple"),
        (lambda act: act.detach().numpy(), "returned a ndarray"),
    ],
)
def test_what_a_hook_may_return(returned, said):
    model = tiny("vit")[1]
    with pytest.raises(TypeError, match=said):
        model.run_with_hooks(pixels(model), fwd_hooks=[("blocks.0.hook_attn_out", lambda act, hook: returned(act))])


def test_a_half_model_takes_no_float32():
    model = make("vit", torch.bfloat16)
    for hook in model.hook_dict:
        with pytest.raises(TypeError, match=rf"{hook} is torch.bfloat16.*returned torch.float32.*value.to\(activation"):
            model.run_with_hooks(pixels(model), fwd_hooks=[(hook, lambda act, hook: act.float())])
