"""What holds whatever an intervention does: names, values, storage, running, reporting."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest
import torch
from torch import Tensor

from hooked_vit import HookedViT
from hooked_vit.components.watching import watched
from hooked_vit.errors import UnknownHookError
from interventions import (
    InterventionNotFired,
    ablate_heads,
    apply,
    check_intervention,
    collect_stats,
    core,
    from_dict,
    gaussian_tokens,
    get,
    insert_token,
    intervention,
    low_pass,
    new_head,
    noise_tokens,
    patch_cls,
    patch_tokens,
    readout,
    registered,
    remove_tokens,
    resample_tokens,
    resolve,
    set_tokens,
    shuffle_cls,
    shuffle_patches,
    shuffle_tokens,
    steer,
    sweep,
    zero_attention,
    zero_random_attention,
    zero_tokens,
)
from tests.interventions.cases import OURS, cases, setting, unchecked_types
from tests.tiny import attention, make, pixels, tiny

NAMES = {**registered(), "torch": torch, "float": float}
SMALL = [
    torch.randn(4),
    torch.randn(2, 3, dtype=torch.float64),
    torch.tensor([0.1, float("nan"), float("inf"), -float("inf"), -0.0]),
    torch.tensor(3.5),
    torch.tensor([True, False]),
    torch.tensor([[1, 2], [3, 4]]),
    torch.empty(0, 3),
    torch.randn(3).bfloat16(),
    torch.randn(3).half(),
]


def attached(model: HookedViT) -> bool:
    return any(watched(point) for point in model.hook_points())


@pytest.fixture
def model() -> HookedViT:
    return tiny("vit")[1]


@pytest.fixture
def x(model: HookedViT) -> Tensor:
    return pixels(model, n=4)


# values


@pytest.mark.parametrize("value", SMALL, ids=lambda t: f"{tuple(t.shape)}-{t.dtype}")
def test_small_tensors_are_written_out(value):
    iv = set_tokens(layer=3, tokens=[0, 5], vector=value, where=torch.tensor([0.25]))
    assert eval(repr(iv), NAMES) == iv
    back = from_dict(json.loads(json.dumps(iv.to_dict()))).params["vector"]
    assert back.dtype == value.dtype
    assert back.shape == value.shape
    assert back.view(torch.uint8).equal(value.view(torch.uint8)) if value.ndim else torch.equal(back, value)


def test_large_tensors_are_abbreviated_and_stored_exactly():
    value = torch.randn(50, 7)
    iv = patch_cls(layer=0, value=value)
    assert len(repr(iv)) < 80
    assert torch.equal(from_dict(iv.to_dict()).params["value"], value)
    assert repr(iv) != repr(patch_cls(layer=0, value=value + 1))


@pytest.mark.parametrize(
    "iv",
    [
        shuffle_cls(layer=8, seed=0),
        zero_attention("patches", [0, 3], layers=range(2), heads=-1, where=0.5),
        noise_tokens(layer=1, tokens="patches", std=float("inf")),
        shuffle_cls(layer=8) + readout("cls") + low_pass(radius=3.5),
        remove_tokens(()),
    ],
    ids=repr,
)
def test_round_trips(iv):
    assert eval(repr(iv), NAMES) == iv
    assert from_dict(json.loads(json.dumps(iv.to_dict()))) == iv
    assert pickle.loads(pickle.dumps(iv)) == iv
    assert copy.deepcopy(iv) == iv
    assert hash(copy.copy(iv)) == hash(iv)


def test_values_compare():
    assert shuffle_cls(layer=1, seed=0) == shuffle_cls(1) == get("shuffle_cls", layer=1)
    assert shuffle_cls(layer=1) != shuffle_cls(layer=2)
    assert zero_attention("cls", "cls", [0, 1]) == zero_attention("cls", "cls", (0, 1))
    assert shuffle_cls(0) + readout("cls") != readout("cls") + shuffle_cls(0)
    assert (shuffle_cls(0) + shuffle_cls(1)) + readout() == shuffle_cls(0) + (shuffle_cls(1) + readout())
    assert shuffle_cls(0) != "shuffle_cls(layer=0)"
    assert len({shuffle_cls(0), shuffle_cls(layer=0), shuffle_cls(1)}) == 2


def test_a_tensor_written_to_makes_another_value():
    vector = torch.zeros(3)
    iv, same = set_tokens(0, "cls", vector), set_tokens(0, "cls", torch.zeros(3))
    assert iv == same
    vector += 1
    assert iv != same


def test_replace():
    iv = shuffle_cls(layer=2, seed=1) + readout("cls")
    assert iv.replace(seed=5) == shuffle_cls(layer=2, seed=5) + readout("cls")
    assert shuffle_cls(0).replace(layer=3) == shuffle_cls(3)
    for wrong in (iv, shuffle_cls(0)):
        with pytest.raises(TypeError, match="colour"):
            wrong.replace(colour="red")


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        ({"name": "shufle_cls", "params": {"layer": 0}}, "did you mean 'shuffle_cls'"),
        ({"name": "shuffle_cls", "params": {"layer": 0, "seeds": 1}}, "seeds"),
        ({"name": "shuffle_cls", "params": {}}, "layer"),
        ({"name": "shuffle_cls", "params": {"layer": 0}, "version": 2}, "version"),
        ({"name": "shuffle_cls"}, "params"),
        ({"name": "shuffle_cls", "params": [0]}, "params"),
        ({"parts": []}, "parts"),
        ({"parts": [{"name": "no", "params": {}}]}, "no intervention is called 'no'"),
        ({}, "stored"),
        ("shuffle_cls", "str"),
        (
            {
                "name": "set_tokens",
                "params": {"layer": 0, "tokens": "cls", "vector": {"tensor": "?", "dtype": "float32", "shape": [1]}},
            },
            "tensor",
        ),
        (
            {
                "name": "set_tokens",
                "params": {"layer": 0, "tokens": "cls", "vector": {"tensor": "", "dtype": "floaty", "shape": [0]}},
            },
            "tensor",
        ),
        ({"name": "set_tokens", "params": {"layer": 0, "tokens": "cls", "vector": {"numbers": []}}}, "unknown form"),
    ],
)
def test_a_bad_description_is_refused(stored, says):
    with unchecked_types(), pytest.raises(ValueError, match=says):
        from_dict(stored)


def test_wrong_parameters_name_the_right_ones():
    with pytest.raises(TypeError, match=r"shuffle_cls\(layer, seed=0.* takes no layers; did you mean 'layer'"):
        shuffle_cls(layers=3)
    with pytest.raises(TypeError, match=r"shuffle_cls\(layer, seed=0.*missing.*layer"):
        shuffle_cls(seed=3)
    with pytest.raises(ValueError, match="did you mean 'patch_cls'"):
        get("patch_clss", layer=0)


def test_every_intervention_has_a_summary_and_an_example():
    ours = {name: factory for name, factory in registered().items() if name in OURS}
    for name, factory in ours.items():
        first, *rest = (factory.__doc__ or "").splitlines()
        assert first.strip().endswith("."), name
        assert any(f"{name}(" in line for line in rest), name


# the registry


def test_a_cell_may_be_run_again_and_a_name_belongs_to_one_module():
    def shuffle_cls(model, *, layer):
        return []

    with pytest.raises(ValueError, match="registered already, by interventions.catalogue.shuffling"):
        intervention(shuffle_cls)
    try:

        @intervention
        def mine(model, *, layer):
            return [("hook_pooled", lambda act, hook: act)]

        @intervention
        def mine(model, *, layer, more=1):  # noqa: F811
            return [("hook_pooled", lambda act, hook: act)]

        assert repr(get("mine", layer=1, more=2)) == "mine(layer=1, more=2)"
    finally:
        core._REGISTRY.pop("mine", None)


def test_functions_that_cannot_be_interventions():
    with pytest.raises(TypeError, match="does not take model"):
        intervention(lambda layer: [])
    with pytest.raises(TypeError, match=r"\*\*kw"):
        intervention(lambda model, **kw: [])


def test_written_in_a_notebook(model, x):
    """A user's own, without touching the package: applied, composed, stored, swept, and held to the contract."""
    try:

        @intervention(idempotent=True)
        def mean_cls(model, *, layer, mean, where=True):
            """Replace the CLS token after block `layer` by a fixed vector."""

            def edit(resid, hook):
                return torch.where(
                    model.tokens.mask("cls")[:, None] & torch.tensor(where).reshape(-1, 1, 1), mean, resid
                )

            return [(f"blocks.{layer}.hook_resid_post", edit)]

        mine = [mean_cls(layer=layer, mean=torch.zeros(model.cfg.d_model)) for layer in range(2)]
        with torch.no_grad():
            for iv, logits in sweep(model, x, [iv + readout("cls") for iv in mine], fold_tokens=0):
                with apply(model, iv) as run:
                    assert torch.equal(model(x), logits)
                assert sum(run.fired.values()) == 2
                assert from_dict(iv.to_dict()) == iv
            with apply(model, mine[1]), apply(model, zero_tokens(layer=1, tokens="cls")) as second:
                model(x)
        assert second.changes == {"blocks.1.hook_resid_post": [0.0]}
    finally:
        core._REGISTRY.pop("mean_cls", None)


def test_the_contract_finds_faults(model, x):
    try:

        @intervention(idempotent=True)
        def faulty(model, *, how, where=True):
            state = []

            def edit(resid, hook):
                state.append(1)
                if how == "in place":
                    return resid.mul_(2)
                return resid * {"not idempotent": 2, "random": torch.rand(1)}[how] if where is True else resid * 1.5

            return [("blocks.0.hook_resid_post", edit)]

        for how, says in {"not idempotent": "where=False", "in place": "wrote into", "random": "same again"}.items():
            with pytest.raises((AssertionError, RuntimeError), match=says):
                check_intervention(model, x, faulty(how=how))
        assert not attached(model)
        assert model.run.attention == "auto"
    finally:
        core._REGISTRY.pop("faulty", None)


# running


def test_what_fired_how_often_and_how_far(model, x):
    iv = shuffle_cls(layer=0, among="others") + zero_tokens(layer=0, tokens="cls") + readout("cls")
    with torch.no_grad():
        acts = model(x, stop_at_layer=1)
        with apply(model, iv) as run:
            model(x)
            model(x)
    order = run.record["shuffle_cls"][0]
    assert run.fired == {"blocks.0.hook_resid_post": 4, "hook_pooled": 2}
    moved, zeroed, again, _ = run.changes["blocks.0.hook_resid_post"]
    edits = {e.intervention.name: e for e in run.edits}
    assert edits["shuffle_cls"].changes[0] == pytest.approx((acts[order, 0] - acts[:, 0]).norm().item())
    assert edits["zero_tokens"].changes == pytest.approx([acts[:, 0].norm().item()] * 2)
    assert edits["readout"].changes == [0.0, 0.0]
    assert [row["fired"] for row in run.report()] == [2, 2, 2]
    assert run.report()[0]["intervention"] == "shuffle_cls(layer=0, among='others')"


def test_changes_that_are_no_distance(model, x):
    with (
        torch.no_grad(),
        apply(model, remove_tokens([-1]) + zero_attention("cls", "patches", 0, renormalise=True)) as run,
    ):
        model(x)
    removed, cut = (e.changes[0] for e in run.edits)
    assert removed != removed
    assert cut == float("inf")


def test_nothing_attached_afterwards_whatever_happens(model, x):
    clean = model(x)
    with pytest.raises(RuntimeError, match="mine"), apply(model, shuffle_cls(0)):
        raise RuntimeError("mine")
    with pytest.raises(ValueError, match="layers are 0 to 1"), apply(model, shuffle_cls(0) + shuffle_cls(7)):
        pytest.fail("attached half of it")
    with (
        pytest.raises(ValueError, match="labels for 4 images"),
        apply(model, shuffle_cls(0, among="same_class", labels=[1])),
    ):
        model(x)
    assert not attached(model)
    assert torch.equal(model(x), clean)


def test_one_that_never_fires_is_an_error(model, x):
    early, late = shuffle_cls(layer=0), shuffle_cls(layer=1)
    resid = model(x, stop_at_layer=1)
    with pytest.raises(InterventionNotFired, match=r"blocks\.1\.hook_resid_post was never reached"), apply(model, late):
        model(x, stop_at_layer=1)
    with pytest.raises(InterventionNotFired, match=r"blocks\.0"), apply(model, early + late):
        model(resid, start_at_layer=1)
    with apply(model, early):
        pass  # no run was made
    with apply(model, late) as run:
        model(resid, start_at_layer=1)
    assert run.fired == {"blocks.1.hook_resid_post": 1}


def test_the_order_written_is_the_order_done(model, x):
    vector = torch.ones(model.cfg.d_model)
    zero, add = zero_tokens(0, "cls"), steer(0, "cls", vector)
    with torch.no_grad():
        for iv, cls in ((zero + add, vector), (add + zero, 0 * vector)):
            for applied in ([iv], iv.parts):
                with apply(model, *applied):
                    assert torch.equal(model(x, stop_at_layer=1)[:, 0], cls.expand(len(x), -1))


def test_draws_go_to_the_run_that_made_them(model, x):
    with torch.no_grad(), apply(model, shuffle_cls(0)) as outer, apply(model, shuffle_tokens(1, "patches")) as inner:
        model(x)
    assert set(outer.record) == {"shuffle_cls"}
    assert set(inner.record) == {"shuffle_tokens"}


def test_every_random_draw_is_recorded(model, x):
    s = setting("vit")
    draws = {
        "shuffle_cls": shuffle_cls(0),
        "shuffle_tokens": shuffle_tokens(0, "patches"),
        "resample_tokens": resample_tokens(0, "cls"),
        "gaussian_tokens": gaussian_tokens(0, "cls", stats=s.stats),
        "noise_tokens": noise_tokens(0, "cls", std=1.0),
        "insert_token": insert_token(0, "random"),
        "shuffle_patches": shuffle_patches(),
        "zero_random_attention": zero_random_attention("cls", "patches", layers=0),
    }
    takes_seed = {name for name, factory in registered().items() if "seed" in factory.signature.parameters}
    assert takes_seed == set(draws)
    for name, iv in draws.items():
        with torch.no_grad(), apply(model, iv) as run:
            model(x)
            model(x)
        first, second = run.record[name]
        assert not torch.equal(first, second), name  # each pass draws anew
        with torch.no_grad(), apply(model, iv.replace(seed=0)) as again:
            model(x)
        assert torch.equal(again.record[name][0], first)
        with torch.no_grad(), apply(model, iv.replace(seed=1)) as other:
            model(x)
        assert not torch.equal(other.record[name][0], first)


def test_an_edit_in_place_is_refused(model, x):
    try:

        @intervention
        def rude(model):
            return [("blocks.0.hook_resid_post", lambda resid, hook: resid.mul_(2))]

        with torch.no_grad(), pytest.raises(RuntimeError, match="rude wrote into the activation"), apply(model, rude()):
            model(x)
        with torch.inference_mode(), apply(model, shuffle_cls(0)):  # where nothing can be told
            model(x)
    finally:
        core._REGISTRY.pop("rude", None)


def test_hooks_of_a_user_are_checked_first(model, x):
    try:

        @intervention
        def nowhere(model, *, names):
            return [(name, lambda act, hook: act) for name in names]

        with pytest.raises(ValueError, match="makes no hook"), apply(model, nowhere(names=())):
            pass
        with (
            pytest.raises(UnknownHookError, match="hook_resid_post"),
            apply(model, nowhere(names=["blocks.0.hook_resid_pos"])),
        ):
            pass
        with apply(model, nowhere(names=[lambda name: name.endswith("attn.hook_z")])) as run:
            model(x)
        assert run.fired == {"blocks.0.attn.hook_z": 1, "blocks.1.attn.hook_z": 1}
    finally:
        core._REGISTRY.pop("nowhere", None)


def test_what_is_no_intervention(model):
    with unchecked_types(), pytest.raises(TypeError, match=r"call it with its parameters: shuffle_cls\(layer, seed=0"):
        resolve(model, shuffle_cls)
    with unchecked_types(), pytest.raises(TypeError, match="got str"):
        resolve(model, "shuffle_cls")
    with pytest.raises(TypeError):
        shuffle_cls(0) + "readout"


def test_a_parameter_without_a_stored_form_still_runs(model, x):
    try:

        @intervention
        def custom(model, *, function):
            return [("hook_pooled", lambda act, hook: function(act))]

        iv = custom(function=torch.zeros_like)
        with pytest.raises(TypeError, match="cannot be stored"):
            iv.to_dict()
        assert iv == custom(function=torch.zeros_like) != custom(function=torch.ones_like)
        assert len(list(sweep(model, x, [iv, custom(function=torch.ones_like)]))) == 2
    finally:
        core._REGISTRY.pop("custom", None)


def test_pixels_as_a_source_need_a_model_without_hooks(model, x):
    with pytest.raises(ValueError, match="hooks are attached"), apply(model, readout()):
        patch_cls(layer=0, value=x).hooks(model)
    before = model.run.n_forwards
    with pytest.raises(ValueError, match="layers are"):
        patch_tokens(layer=5, tokens="cls", value=x).hooks(model)
    assert model.run.n_forwards == before
    patch_cls(layer=0, value=x).hooks(model)
    assert model.run.n_forwards == before + 1


# gradients, dtypes, sizes


def test_the_gradient_in_where_is_attribution_patching():
    model = make("dinov2")
    clean, corrupt = pixels(model, n=3), pixels(model, n=3, seed=1)
    for iv, site in (
        (patch_tokens(layer=0, tokens="all", value=clean), "blocks.0.hook_resid_post"),
        (ablate_heads(layers=0), "blocks.0.attn.hook_z"),
        (zero_attention("all", "all", layers=0), "blocks.0.attn.hook_pattern"),
    ):
        per_token = iv.name == "patch_tokens"
        where = torch.zeros(*(1, model.tokens.n_tokens) if per_token else (3,), dtype=torch.float64, requires_grad=True)
        with torch.no_grad():
            plain = model(corrupt)
            _, kept = model.run_with_cache(clean, names_filter=site)
        with apply(model, iv.replace(where=where)):
            logits = model(corrupt)
        assert torch.allclose(logits, plain, atol=1e-12)
        (slope,) = torch.autograd.grad(logits[:, 0].sum(), where)

        acts = []
        logits = model.run_with_hooks(corrupt, fwd_hooks=[(site, lambda act, hook, acts=acts: acts.append(act))])
        (grad,) = torch.autograd.grad(logits[:, 0].sum(), acts)
        target = kept[site] if per_token else torch.zeros_like(grad)
        effect = grad * (target - acts[0])
        expected = effect.sum((0, 2))[None] if per_token else effect.flatten(1).sum(1)
        torch.testing.assert_close(slope, expected.detach(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "build", [lambda v: set_tokens(0, "cls", v), lambda v: steer(0, "cls", v), lambda v: insert_token(0, v)]
)
def test_a_learned_vector_is_learned(model, x, build):
    vector = torch.nn.Parameter(torch.zeros(model.cfg.d_model))
    iv = build(vector)
    with apply(model, iv):
        model(x).square().sum().backward()
    assert vector.grad.any()
    before = iv.key
    with torch.no_grad():
        vector -= vector.grad
    assert iv.key != before
    assert torch.equal(from_dict(iv.to_dict()).params["vector"], vector)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_values_take_the_dtype_of_the_run(dtype):
    model = make("dinov2", dtype)
    x, d = pixels(model), model.cfg.d_model
    ivs = [
        set_tokens(0, "cls", torch.zeros(d)),
        steer(0, "patches", torch.ones(d), where=torch.rand(3)),
        noise_tokens(0, "all", std=0.1),
        gaussian_tokens(0, "cls", torch.zeros(d), torch.eye(d)),
        new_head(torch.zeros(2, 2 * d), torch.zeros(2)),
        insert_token(1, "random"),
        low_pass(radius=3),
        zero_attention("cls", "patches", where=0.5),
    ]
    for iv in ivs:
        with torch.no_grad(), apply(model, iv):
            assert model(x).dtype == dtype


@pytest.mark.parametrize("family", ["vit", "beit-mean-both", "dinov2"])
def test_other_image_sizes(family):
    model = tiny(family)[1]
    x, donors = pixels(model, (48, 40), n=2), pixels(model, (48, 40), n=2, seed=1)
    with torch.no_grad(), attention(model, "eager"):  # the kernel that is used where patterns are cached
        want = model(donors)
        _, cache = model.run_with_cache(donors)
        for value in (cache, donors, cache["resid_post", 0]):
            with apply(model, patch_tokens(layer=0, tokens="all", value=value)):
                assert torch.equal(model(x), want)
        with apply(model, remove_tokens("patches", where=torch.rand(2, 30) > 0.5)) as run:
            model(x)
        native = pixels(model, n=2)
        with pytest.raises(ValueError, match="an axis over tokens"), apply(model, patch_tokens(0, "patches", cache)):
            model(native)
        assert any(change != change for change in run.changes["blocks.0.hook_resid_pre"])


@pytest.mark.parametrize("family", ["vit", "beit-mean-both"])
def test_the_default_device_is_irrelevant(family):
    """A tensor made without saying where would land on `meta`, which holds no numbers."""
    s = setting(family)
    ivs = [make(s) for name in OURS for make in cases(name).valid]
    with torch.no_grad(), unchecked_types():
        wanted = [logits for _, logits in sweep(s.model, s.x, ivs)]
        with torch.device("meta"):
            read = [from_dict(iv.to_dict()) for iv in ivs]
            for (iv, logits), want in zip(sweep(s.model, s.x, read), wanted, strict=True):
                assert torch.equal(logits, want), iv
            stats = collect_stats(s.model, s.x, ["resid_post", "pooled"])
    assert stats.mean("resid_post", 0, "cls").device.type == "cpu"


# --- a GPU that is not here: of the numbers of `meta` tensors there are none that could be waited for


@pytest.mark.parametrize("name", OURS)
def test_an_intervention_waits_for_no_number_of_a_gpu(name):
    """Whatever it decides it decides by the layout and its parameters, which are the CPU's."""
    s = setting("beit-mean-both" if name == "insert_token" else "vit")
    there = dataclasses.replace(s, donors=s.donors.to("meta"))
    model, x = copy.deepcopy(s.model).to("meta"), s.x.to("meta")
    tried = 0
    with unchecked_types():
        for make_one in [] if name == "only" else cases(name).valid:  # a circuit is of weights, by their numbers
            with apply(model, make_one(there)):
                assert model(x).is_meta
            tried += 1
    assert tried or name == "only"
