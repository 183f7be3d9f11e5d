"""What the model reads, how it pools it, and what a vector of the stream is worth to the classes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from analyses.questions.decoding.lenses.lenses import what_it_reads
from hooked_vit.errors import NoHeadError, NonlinearReadoutError
from interventions import apply, collect_stats, drop_source, new_head, readout
from tests.tiny import CORE, FAMILIES, distance, make, pixels, tiny

HEADS = [name for name in CORE if not tiny(name)[1].cfg.is_feature_model]
FEATURES = [name for name in CORE if tiny(name)[1].cfg.is_feature_model]


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", HEADS)
def test_project_is_the_readout_of_a_stream_that_is_one_vector_everywhere(name):
    """Norm, pooling and head of the family, with the head that reads the role."""
    model = make(name)
    vector = rand(4, model.cfg.d_model)
    stream = vector[:, None].expand(-1, model.tokens.n_tokens, -1)
    by_role = [model.project(vector, role=role) for role in model.cfg.sources]
    logits = model.readout(stream)
    if len(model.cfg.heads) > 1 or not model.cfg.pooled_roles:  # or one probe, to which all of them are alike
        assert distance(torch.stack(by_role).mean(0), logits) <= 1e-12
    else:
        assert distance(sum(by_role) - (len(by_role) - 1) * model.b_U, logits) <= 1e-12


@pytest.mark.parametrize("name", HEADS)
def test_project_takes_any_leading_shape(name):
    model = make(name)
    x = rand(2, 3, 4, model.cfg.d_model)
    for role in model.tokens.roles:
        scores = model.project(x, role=role)
        assert scores.shape == (2, 3, 4, model.cfg.d_out)
        assert distance(scores[1, 2, 3], model.project(x[1, 2, 3], role=role)) <= 1e-12


def test_the_two_heads_of_a_distilled_model():
    model = make("deit-teacher")
    _, acts = model.run_with_cache(pixels(model))
    stream = acts["resid_post", 1]
    each = [model.project(stream[:, i], role=role) for i, role in enumerate(("cls", "dist"))]
    assert distance(torch.stack(each, 1), acts["hook_head_logits"]) <= 1e-12
    assert distance(each[0], each[1]) > 1e-2
    # a role that nothing reads goes through the first head
    assert torch.equal(model.project(stream[:, 5], role="patches"), model.project(stream[:, 5], role="cls"))


def test_the_halves_of_a_concatenated_head():
    model = make("registers")
    weight, bias = model.head_for("patches")
    assert torch.equal(weight, model.head.weight[:, 32:])
    assert bias is model.head.bias
    assert torch.equal(model.head_for("cls")[0], model.head.weight[:, :32])
    with pytest.raises(ValueError, match="unknown token role 'patch'; roles are cls, dist"):
        model.project(rand(32), role="patch")


@pytest.mark.parametrize("name", FEATURES)
def test_a_model_without_a_classifier_never_makes_one_up(name):
    model = tiny(name)[1]
    assert model.cfg.is_feature_model
    assert model.cfg.n_classes is None
    assert not [key for key in model.state_dict() if "head" in key]
    assert model(pixels(model)).shape == (3, model.cfg.d_pooled)
    for ask in (
        lambda: model.project(torch.zeros(32)),
        lambda: model.W_U,
        lambda: model.b_U,
        lambda: model.logit_constant,
        lambda: model.tokens_to_residual_directions(0),
    ):
        with pytest.raises(NoHeadError, match=f"needs a classifier, and {model.cfg.hf_class} has none"):
            ask()


@pytest.mark.parametrize("name", CORE)
def test_a_new_head_reads_all_that_is_pooled(name):
    model = make(name)
    width = model.cfg.d_pooled
    weight, bias = rand(3, width, seed=1), rand(3, seed=2)
    _, before = model.run_with_cache(pixels(model))
    model.set_head_(weight, bias, ("a", "b", "c"))
    logits, acts = model.run_with_cache(pixels(model))
    assert torch.equal(acts["hook_pooled"], before["hook_pooled"])
    assert distance(logits, F.linear(acts["hook_pooled"], weight, bias)) <= 1e-12
    assert (model.cfg.n_classes, model.cfg.outputs, model.to_single_token("c")) == (3, "classes", 2)
    assert not hasattr(model, "head_dist")
    assert distance(acts["hook_pooled"] @ model.W_U + model.b_U, logits) <= 1e-12
    if not model.cfg.is_linear_readout:
        return
    attributed = acts.logit_attrs(acts.decompose_resid(), "b").sum((0, -1)) + model.logit_constant[1]
    assert distance(attributed, logits[:, 1]) <= 1e-12


@pytest.mark.parametrize("name", ["vit", "beit-mean-both", "dinov2", "registers", "clip-model"])
def test_another_readout_pools_other_tokens(name):
    """The norm stays where the family has it: on tokens, or on what was pooled, role by role."""
    model = make(name)
    with torch.no_grad():
        _, acts = model.run_with_cache(pixels(model))
    stream, tokens = acts["resid_post", 1], model.tokens
    model.set_readout_(sources=("cls", "patches"))
    assert model.cfg.is_feature_model
    pooled = torch.stack([stream[:, tokens.cls].mean(1), stream[:, tokens.patches].mean(1)], 1)
    if model.cfg.final_norm == "tokens":
        normed = model.ln_final(stream)
        pooled = torch.stack([normed[:, tokens.cls].mean(1), normed[:, tokens.patches].mean(1)], 1)
    else:
        pooled = model.ln_final(pooled)
    assert distance(model(pixels(model)), pooled.flatten(1)) <= 1e-12

    model.set_head_(rand(4, 64), rand(4))
    logits, acts = model.run_with_cache(pixels(model))
    attributed = acts.logit_attrs(acts.decompose_resid(), 3).sum((0, -1)) + model.logit_constant[3]
    assert distance(attributed, logits[:, 3]) <= 1e-12


def test_a_probe_may_read_several_kinds_of_tokens():
    """Perception Encoder's: CLS too. Then no part of what is pooled is of one kind, and an edit of one is refused."""
    model = make("timm-pe-core")
    x = pixels(model)
    clean, acts = model.run_with_cache(x)
    assert (model.cfg.sources, model.cfg.pooled_roles, model.cfg.d_pooled) == (("cls", "patches"), (), 32)
    assert acts["hook_pool_pattern"].gt(0).all()
    assert acts["hook_pool_pattern"].shape == (3, 2, 1, 17)
    table = {name: shape for name, shape, _ in model.describe_hooks()}
    assert table["hook_pool_pattern"] == "[batch, pool_head=2, probe=1, key=17]"
    assert table["pool_mlp.hook_pre"] == "[batch, probe=1, d_pool_mlp=96]"
    for refused in (
        lambda: readout("cls").hooks(model),
        lambda: drop_source("patches").hooks(model),
        lambda: collect_stats(model, [x], ["pooled"]),
    ):
        with pytest.raises(ValueError, match="one probe reads .*cls and patches"):
            refused()
    with pytest.raises(ValueError, match="never 'dist'"):
        readout("dist").hooks(model)
    assert "cls alone, one at a time; the model's attends to the cls and patches" in what_it_reads(model, "cls")
    with apply(model, new_head(rand(7, 32))):
        assert model(x).shape == (3, 7)
    last = "blocks.1.hook_resid_post"
    with model.hooks([(last, lambda act, hook: act.mul(torch.arange(17)[:, None] > 0))]):
        assert distance(model(x), clean) > 1e-3


@pytest.mark.parametrize("name", ["siglip", "timm-map", "aimv2-head"])
def test_a_probe_that_pools_has_no_vector_per_class(name):
    """What is linear is defined, what is not says so and says what to use; the mean pools where it is asked to."""
    model = make(name)
    model.set_head_(rand(3, 32), rand(3))
    _, acts = model.run_with_cache(pixels(model))
    for ask in (
        lambda: model.head_for("patches"),
        lambda: model.logit_constant,
        lambda: acts.logit_attrs(acts.decompose_resid(), 0),
    ):
        with pytest.raises(NonlinearReadoutError, match=r"a probe attends.*model.project\(x, role\).*set_readout_"):
            ask()
    assert acts.logit_lens("patches").shape == (3, 3, 16, 3)
    stream = acts["resid_post", 1]
    model.set_readout_(sources=("patches",))
    assert not [key for key in model.state_dict() if "pool" in key]
    assert not [hook for hook in model.hook_dict if "hook_pool_" in hook]
    assert distance(model(pixels(model)), model.ln_final(stream).mean(1)) <= 1e-12


def test_the_probe_reads_the_tokens_of_its_role_alone():
    """Tokens a hook inserts get no attention, and where only one patch is left it gets all."""
    model = make("siglip")
    x = pixels(model)
    last = "blocks.1.hook_resid_post"
    clean, far = model(x), torch.full((1, 32), 9.0).double()
    with model.hooks([(last, lambda act, hook: model.insert_tokens(act, 3, far))]):
        output, acts = model.run_with_cache(x)
    assert distance(output, clean) <= 1e-12
    assert acts["hook_pool_pattern"][..., 3].eq(0).all()
    with model.hooks([(last, lambda act, hook: model.keep_tokens(act, torch.tensor([[4], [5], [6]])))]):
        output, acts = model.run_with_cache(x)
    model.set_head_(torch.eye(32).double(), torch.zeros(32).double())
    assert distance(output, model.project(acts["resid_post", 1][:, 0], role="patches")) <= 1e-12
    ragged = torch.tensor([[4, 5], [5, -1], [6, 7]])
    with model.hooks([(last, lambda act, hook: model.keep_tokens(act, ragged))]):
        output, acts = model.run_with_cache(x)
    assert acts["hook_pool_pattern"][1, ..., 1].eq(0).all()
    inserted = lambda act, hook: model.keep_tokens(model.insert_tokens(act, 0, far), torch.tensor([0]))  # noqa: E731
    with model.hooks([(last, inserted)]), pytest.raises(ValueError, match="reads 'patches', but no such token is left"):
        model(x)


def test_a_norm_may_be_dropped_but_not_invented():
    model = make("vit")
    stream = model(pixels(model), stop_at_layer=2)
    model.set_readout_(sources=("patches",), final_norm="none")
    assert distance(model.readout(stream), stream[:, 1:].mean(1)) <= 1e-12
    assert "ln_final.hook_normalized" in model.hook_dict
    with pytest.raises(ValueError, match="no final norm to apply"):
        make("clip-classifier").set_readout_(sources=("cls",), final_norm="tokens")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda m: m.set_readout_(sources=("dist",)),
            r"the readout reads \('dist',\), the tokens are \('cls', 'patches'\)",
        ),
        (lambda m: m.set_readout_(sources=()), "needs at least one source"),
        (lambda m: m.set_head_(rand(3, 31), rand(3)), r"a head is \[classes, 32\].*got \(3, 31\)"),
        (lambda m: m.set_head_(rand(3, 32), rand(4)), r"got \(3, 32\) and \(4,\)"),
        (lambda m: m.set_head_(rand(3, 32), rand(3), ("a",)), "class_names holds 1, n_classes is 3"),
    ],
)
def test_a_refused_readout_leaves_the_model_as_it_was(change, says):
    model = make("vit")
    cfg, before = model.cfg, model(pixels(model))
    with pytest.raises(ValueError, match=says):
        change(model)
    assert model.cfg == cfg
    assert torch.equal(model(pixels(model)), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_addressed_by_role(family):
    model = tiny(family)[1]
    tokens, prefix = model.tokens, model.cfg.prefix
    assert (tokens.n_prefix, tokens.grid, tokens.n_tokens) == (len(prefix), (4, 4), len(prefix) + 16)
    places = {role: list(range(*s.indices(99))) for role in tokens.roles if (s := tokens.where(role))}
    assert places.get("cls", [0]) == [0]
    assert [role for role in tokens.roles for _ in places[role]] == [*prefix, *["patches"] * 16]
    absent = {"cls", "dist", "registers", "patches", "inserted"} - set(places)
    assert all(getattr(tokens, role) is None for role in absent)
    for role in absent:
        with pytest.raises(
            ValueError, match=f"there is no '{role}' token here; this model has {', '.join(tokens.roles)}"
        ):
            tokens.mask(role)
