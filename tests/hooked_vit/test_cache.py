"""Every method of TransformerLens' ActivationCache is exact on every family, LayerScale folded or not."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from hooked_vit import ActivationCache, HookedViT
from hooked_vit.errors import NoHeadError
from tests.tiny import CORE, distance, make, pixels, sizes, tiny

HEADS = [name for name in CORE if not tiny(name)[1].cfg.is_feature_model]
SUMS = [name for name in HEADS if tiny(name)[1].cfg.is_linear_readout]
FEATURES = [name for name in CORE if tiny(name)[1].cfg.is_feature_model]
ADDITIVE = [name for name in CORE if not tiny(name)[1].cfg.post_norm]
EXACT = 1e-12


@cache
def run(
    name: str, folded: bool = False, size: tuple[int, int] | None = None
) -> tuple[HookedViT, Tensor, ActivationCache]:
    model = make(name)
    if folded:
        model.fold_layer_scale_()
        model.fold_layer_norm_()
    with torch.no_grad():
        return model, *model.run_with_cache(pixels(model, size))


def close(ours: Tensor, theirs: Tensor) -> None:
    assert distance(ours, theirs) <= EXACT


@pytest.mark.parametrize("folded", [False, True], ids=["", "folded"])
@pytest.mark.parametrize("name", CORE)
class TestStream:
    """Whole branches sum to the stream, at every depth."""

    def test_branches_sum_to_the_stream(self, name, folded):
        _, _, kept = run(name, folded)
        for layer in (0, 1, 2):
            stream = kept["resid_pre", layer] if layer < 2 else kept["resid_post", 1]
            close(kept.decompose_resid(layer).sum(0), stream)
        close(kept.decompose_resid(1, mlp_input=True).sum(0), kept["resid_mid", 1])

    def test_accumulated_stream_is_the_stream(self, name, folded):
        _, _, kept = run(name, folded)
        stack, labels = kept.accumulated_resid(incl_mid=True, return_labels=True)
        assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "final_post"]
        places = [("resid_pre", 0), ("resid_mid", 0), ("resid_pre", 1), ("resid_mid", 1), ("resid_post", 1)]
        assert torch.equal(stack, torch.stack([kept[place] for place in places]))


@pytest.mark.parametrize("folded", [False, True], ids=["", "folded"])
@pytest.mark.parametrize("name", ADDITIVE)
class TestDecompositions:
    """Parts of a branch sum to the branch, and so to the stream."""

    def test_heads_sum_to_their_branch(self, name, folded):
        model, _, kept = run(name, folded)
        kept = ActivationCache(dict(kept.cache_dict), model)
        kept.compute_head_results()
        for layer, block in enumerate(model.blocks):
            close(kept["result", layer].sum(2) + block.attn.b_O, kept["attn_out", layer])
        assert kept.stack_head_results().shape[0] == model.cfg.n_layers * model.cfg.n_heads
        with_rest = kept.stack_head_results(incl_remainder=True)
        close(with_rest.sum(0), kept["resid_post", 1])

    def test_head_results_watched_are_those_computed(self, name, folded):
        model, _, kept = run(name, folded)
        with torch.no_grad():
            _, watched = model.run_with_cache(pixels(model), names_filter=lambda hook: hook.endswith("hook_result"))
        computed = ActivationCache(dict(kept.cache_dict), model)
        computed.compute_head_results()
        for layer in range(2):
            close(watched["result", layer], computed["result", layer])

    def test_neurons_sum_to_their_branch(self, name, folded):
        model, _, kept = run(name, folded)
        for layer, block in enumerate(model.blocks):
            close(kept.get_neuron_results(layer).sum(-2) + block.mlp.b_out, kept["mlp_out", layer])
        close(kept.stack_neuron_results(-1, incl_remainder=True).sum(0), kept["resid_post", 1])

    def test_the_full_decomposition_sums_to_the_stream(self, name, folded):
        _, _, kept = run(name, folded)
        for neurons in (False, True):
            close(kept.get_full_resid_decomposition(expand_neurons=neurons).sum(0), kept["resid_post", 1])
        close(kept.get_full_resid_decomposition(1, mlp_input=True).sum(0), kept["resid_mid", 1])

    def test_normalised_parts_sum_to_the_normalised_stream(self, name, folded):
        model, _, kept = run(name, folded)
        for layer in (0, 1):
            for mlp in (False, True):
                parts = kept.decompose_resid(layer, mlp_input=mlp, apply_ln=True)
                close(parts.sum(0), kept[f"blocks.{layer}.ln{1 + mlp}.hook_normalized"])
        parts = kept.get_full_resid_decomposition(apply_ln=True, expand_neurons=False)
        if model.cfg.final_norm == "pooled":  # the mean is normalised: so is the mean of the parts
            patches = parts.sum(0)[:, model.tokens.patches]
            close(patches.mean(1, keepdim=True), kept["ln_final.hook_normalized"])
        else:
            close(parts.sum(0), kept["ln_final.hook_normalized"])


@pytest.mark.parametrize("folded", [False, True], ids=["", "folded"])
@pytest.mark.parametrize("name", SUMS)
class TestLogitAttributions:
    """Summed over components and tokens, plus the constant, they are the logit."""

    def test_sum_to_the_logit(self, name, folded):
        model, logits, kept = run(name, folded)
        finer = []
        if not model.cfg.post_norm:
            finer += [kept.get_full_resid_decomposition(expand_neurons=False)]
            finer += [kept.stack_head_results(incl_remainder=True)]
        for parts in (kept.decompose_resid(), *finer, kept["resid_post", 1][None]):
            for label in (0, 3):
                attributed = kept.logit_attrs(parts, label).sum((0, -1))
                close(attributed + model.logit_constant[label], logits[:, label])

    def test_one_label_per_image(self, name, folded):
        model, logits, kept = run(name, folded)
        labels = torch.tensor([2, 0, 1])
        attributed = kept.logit_attrs(kept.decompose_resid(), labels).sum((0, -1))
        close(attributed + model.logit_constant[labels], logits[range(3), labels])

    def test_difference_of_two_labels(self, name, folded):
        model, logits, kept = run(name, folded)
        difference = kept.logit_attrs(kept.decompose_resid(), 1, incorrect_tokens=4).sum((0, -1))
        constant = model.logit_constant[1] - model.logit_constant[4]
        close(difference + constant, logits[:, 1] - logits[:, 4])

    def test_at_other_sizes(self, name, folded):
        model, logits, kept = run(name, folded, sizes(name)[-1])
        attributed = kept.logit_attrs(kept.decompose_resid(), 2).sum((0, -1))
        close(attributed + model.logit_constant[2], logits[:, 2])

    def test_slices(self, name, folded):
        model, _, kept = run(name, folded)
        whole = kept.logit_attrs(kept.decompose_resid(), 2)
        for part in (0, 5, (1, 6), [0, 3]):
            sliced = kept.logit_attrs(kept.decompose_resid(pos_slice=part), 2, pos_slice=part)
            places = slice(*part) if isinstance(part, tuple) else part
            close(sliced, whole[..., places])
        close(kept.logit_attrs(kept.decompose_resid(), 2, batch_slice=(1, 3)), whole[:, 1:3])
        with pytest.raises(
            ValueError, match=rf"holds 2 positions, pos_slice leaves {model.tokens.n_tokens} of the run"
        ):
            kept.logit_attrs(kept.decompose_resid(pos_slice=[0, 3]), 2)


@pytest.mark.parametrize("name", [name for name in CORE if name not in ADDITIVE])
def test_branches_behind_whose_parts_a_norm_stands_are_not_taken_apart(name):
    """What heads, neurons and biases add up to is not what is added to the stream."""
    model, _, kept = run(name)
    for ask in (
        kept.compute_head_results,
        kept.stack_head_results,
        lambda: kept.get_neuron_results(0),
        kept.stack_neuron_results,
        kept.get_full_resid_decomposition,
        lambda: kept.decompose_resid(1, apply_ln=True),
        lambda: model.accumulated_bias(1),
    ):
        with pytest.raises(ValueError, match="a norm of their sum is added instead"):
            ask()
    stream = kept["resid_post", 1]  # the final norm is in front of its reader, so it may be applied
    scale = kept["ln_final.hook_scale"]
    close(kept.decompose_resid(apply_ln=True).sum(0), (stream - stream.mean(-1, keepdim=True)) / scale)


@pytest.mark.parametrize("name", SUMS)
def test_attributions_follow_tokens_that_come_and_go(name):
    model = make(name)
    n, p = model.tokens.n_tokens, len(model.cfg.prefix)
    ragged = torch.arange(n + 2).repeat(3, 1)
    ragged[1, p + 5 :] = -1
    extra = torch.randn(2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def insert(act, hook):
        return model.insert_tokens(act, 0, extra)

    def edit(act, hook):
        return model.keep_tokens(insert(act, hook), ragged)

    for change in (insert, edit):
        with torch.no_grad(), model.hooks([("blocks.0.hook_resid_pre", change)]):
            logits, kept = model.run_with_cache(pixels(model))
        attributed = kept.logit_attrs(kept["resid_post", 1][None], 3)
        close(attributed.sum((0, -1)) + model.logit_constant[3], logits[:, 3])
    assert not attributed[0, 1, p + 5 :].any()


@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_model_has_no_logits_to_attribute(name):
    model, _, kept = run(name)
    for ask in (
        lambda: kept.logit_attrs(kept.decompose_resid(), 0),
        lambda: kept.logit_lens(model.cfg.sources[0]),
        lambda: model.logit_constant,
    ):
        with pytest.raises(NoHeadError, match=f"{model.cfg.hf_class} has none.*set_head_"):
            ask()


@pytest.mark.parametrize("name", SUMS)
def test_the_last_entry_of_the_lens_is_the_logits(name):
    """Bit by bit where CLS alone is read; where roles are pooled, their projections mix to the logits."""
    model, logits, kept = run(name)
    sources = model.cfg.sources
    if sources == ("cls",):
        assert torch.equal(kept.logit_lens("cls")[-1, :, 0], logits)
    lens = {role: kept.logit_lens(role)[-1].mean(1) for role in sources}
    if len(model.cfg.heads) > 1:
        close(torch.stack([*lens.values()]).mean(0), logits)
    elif model.cfg.final_norm != "pooled":
        close(sum(lens.values()) - (len(sources) - 1) * model.b_U, logits)
    else:
        mean = kept["resid_post", 1][:, model.tokens.patches].mean(1)
        close(model.project(mean, role="patches"), logits)
    n_patches = model.tokens.n_tokens - model.tokens.n_prefix
    assert kept.logit_lens("cls", tokens="patches").shape == (3, 3, n_patches, logits.shape[1])


def test_a_class_is_found_by_its_name():
    model = make("vit")
    model.cfg = model.cfg.replace(class_names=("ant", "bee", "cat", "dog", "eel"))
    _, kept = model.run_with_cache(pixels(model))
    parts = kept.decompose_resid()
    assert torch.equal(kept.logit_attrs(parts, "cat"), kept.logit_attrs(parts, 2))
    with pytest.raises(ValueError, match=r"the head knows no class 'bees'; did you mean 'bee'\?"):
        kept.logit_attrs(parts, "bees")
    with pytest.raises(ValueError, match=r"classes are 0 to 4, got \[5\]"):
        kept.logit_attrs(parts, 5)
