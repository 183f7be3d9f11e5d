"""docs/coming_from.md: its code runs, and what other tools compute on our model is what we compute."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformer_lens import patching
from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch

from hooked_vit import HookedViT, NumberedImages
from hooked_vit.loading.crosscheck import import_nnsight
from interventions import ablate_branch, apply, patch_heads, patch_subspace, patch_tokens
from tests.stories.documents import python
from tests.tiny import IMAGE, attention, make_hf, pixels, processor_of, tiny

PAGE = Path(__file__).parents[3] / "docs" / "coming_from.md"
FAMILIES = ("vit", "deit-teacher", "dinov2", "clip-classifier")
N = 2


def metric(logits: Tensor) -> Tensor:
    return (logits[:, 0] - logits[:, 1]).mean()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the names of the page's code mean once it has run, with a tiny model in the place of the hub's."""
    import_nnsight()  # without what importing it does to the process
    model = HookedViT.from_hf(make_hf("deit-teacher"), processor=processor_of((IMAGE, IMAGE)))
    rng = np.random.default_rng(0)
    names: dict[str, Any] = {
        kind: [Image.fromarray(rng.integers(0, 255, (IMAGE, IMAGE, 3), np.uint8)) for _ in range(N)]
        for kind in ("images", "other_images")
    }
    code = "\n".join(python(PAGE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HookedViT, "from_pretrained", lambda place: model)
        file = tmp_path_factory.mktemp("page") / "coming_from.py"
        file.write_text(code, encoding="utf-8")  # nnsight reads the body of a trace from its file
        exec(compile(code, str(file), "exec"), names)
    return names


def under(model: HookedViT, x: Tensor, edit: Any) -> Tensor:
    with torch.no_grad(), apply(model, edit):
        return model(x)


def test_patching_is_our_patching(page):
    model, corrupt, cache = page["model"], page["corrupt"], page["clean_cache"]
    assert page["by_layer_and_token"].shape == (2, model.tokens.n_tokens)
    want = under(model, corrupt, patch_tokens(1, tokens=[3], value=cache, site="resid_pre"))
    assert torch.allclose(page["by_layer_and_token"][1, 3], metric(want), atol=1e-6)
    want = under(model, corrupt, patch_heads(0, heads=2, value=cache))
    assert torch.allclose(page["by_head"][0, 2], metric(want), atol=1e-6)


def test_attributions_are_first_order_effects(page):
    """Each score is activation difference times gradient, whoever computes it."""
    model, x, corrupt = page["model"], page["pixels"], page["corrupt"]
    _, clean = model.run_with_cache(x)
    _, grads = model.run_with_cache(corrupt, incl_bwd=True, metric=lambda logits: len(corrupt) * metric(logits))
    want = ((clean["mlp_out", 1] - grads["mlp_out", 1]) * grads["blocks.1.hook_mlp_out_grad"]).sum() / len(x)
    scores = page["nodes"].node_scores
    found = sum(float(score) for node, score in scores.items() if (node.kind, node.layer) == ("mlp_out", 1))
    assert found == pytest.approx(float(want), abs=1e-5)
    assert abs(found) > 1e-4


def test_an_interchange_is_an_edit_by_hand(page):
    model, basis = page["model"], page["random_basis"](32, rank=2, seed=0)

    def swap(act, hook):
        act = act.clone()
        act[:, 0] += (page["source"] - act[:, 0]) @ basis @ basis.T
        return act

    with torch.no_grad(), model.hooks([("blocks.1.hook_resid_post", swap)]):
        assert torch.allclose(page["swapped"], model(page["corrupt"]), atol=1e-5)


def test_nnsight_reads_and_edits_every_point(page):
    model, x = page["model"], page["pixels"]
    _, cache = model.run_with_cache(x)
    assert torch.allclose(page["pattern"], cache["pattern", 0], atol=1e-6)
    assert torch.allclose(page["without_mlp"], under(model, x, ablate_branch("mlp", layers=1)), atol=1e-6)
    nnsight, points = import_nnsight(), ("hook_embed", "ln_final.hook_normalized", "hook_pooled", "hook_logits")
    net = page["net"]
    for name in (*points, "blocks.1.attn.hook_q", "blocks.1.attn.hook_z", "blocks.0.mlp.hook_post"):
        with torch.no_grad(), net.trace(x):
            seen = nnsight.save(net.get(name).output)
        assert torch.allclose(seen, cache[name], atol=1e-6), name
    # ours is not watched for that, and takes interventions as before
    assert not any("forward" in point.__dict__ for point in model.hook_points())


def test_nnsight_keeps_an_edit(page):
    nnsight, model, x = import_nnsight(), page["model"], page["pixels"]
    net = nnsight.NNsight(model.shared_copy())
    with net.edit() as (_, edited):
        edited.blocks[0].hook_resid_post.output = 2 * edited.blocks[0].hook_resid_post.output
    with torch.no_grad(), edited.trace(x):
        out = nnsight.save(edited.output)
    with torch.no_grad(), model.hooks([("blocks.0.hook_resid_post", lambda act, hook: 2 * act)]):
        assert torch.allclose(out, model(x), atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_partial_runs(name):
    """On every family, with as many cells as its axes have."""
    model = tiny(name)[1]
    clean, corrupt = pixels(model, n=N), pixels(model, n=N, seed=1)
    with torch.no_grad():
        _, cache = model.run_with_cache(clean)
        numbered, t = NumberedImages(model, corrupt), model.tokens.n_tokens
        one = "attn_head_pattern_dest_src_pos"
        cells = pd.DataFrame([(1, 2, 3, 4)], columns=["layer", "head", "dest_pos", "src_pos"])
        few = patching.__dict__[f"get_act_patch_{one}"]
        assert few(numbered, numbered.inputs, cache, metric, index_axis_names=None, index_df=cells).shape == (1,)
        # by position each shares its engine with one of these
        for partial, shape in (
            ("attn_out", (2, t)),
            ("attn_head_k_all_pos", (2, 4)),
            ("attn_head_v_all_pos", (2, 4)),
            ("attn_head_pattern_all_pos", (2, 4)),
        ):
            if name != "vit" and partial == "attn_out":
                continue
            run = patching.__dict__[f"get_act_patch_{partial}"]
            assert run(numbered, numbered.inputs, cache, metric).shape == shape, partial


def test_a_row_is_one_image():
    model = tiny("vit")[1]
    numbered = NumberedImages(model, pixels(model, n=3))
    assert torch.equal(numbered(numbered.inputs[[2, 0]]), model(pixels(model, n=3)[[2, 0]]))
    for wrong in (numbered.inputs[:, :-1], numbered.inputs + torch.arange(17)):
        with pytest.raises(ValueError, match=r"rows of .inputs, \[images, 17\]"):
            numbered(wrong)


def test_what_the_page_says_cannot_work_does_not(page):
    numbered, cache = page["numbered"], page["clean_cache"]
    with pytest.raises((AttributeError, ValueError)):
        patching.get_act_patch_direct_path(numbered, numbered.inputs, cache, cache, metric, 0, 0)
    with pytest.raises((AttributeError, ValueError)):
        attribution_patch(numbered, numbered.inputs, numbered.inputs, metric, EdgeAttributionConfig(granularity="edge"))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_captum_asks_of_a_model(name):
    """Integrated gradients as captum computes them are complete; a layer's are read and replaced by forward hooks."""
    model = tiny(name)[1]
    x, target, steps = pixels(model, n=1).double(), 1, 64
    model = deepcopy(model).double()  # a shared copy has the same weights, which would become double too
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(steps))
    scaled = (((nodes + 1) / 2)[:, None, None, None] * x).requires_grad_()
    (grads,) = torch.autograd.grad(model(scaled)[:, target].sum(), scaled)
    total = float(((weights / 2)[:, None, None, None] * grads * x).sum())
    change = (model(x) - model(torch.zeros_like(x)))[0, target].item()
    assert total == pytest.approx(change, abs=1e-3)

    layer, seen = model.blocks[0].hook_resid_post, []
    handle = layer.register_forward_hook(lambda module, args, out: seen.append(out))
    out = model(x)
    handle.remove()
    (grad,) = torch.autograd.grad(out[0, target], seen)
    assert grad.shape == seen[0].shape
    assert grad.abs().sum() > 0
    handle = layer.register_forward_hook(lambda module, args, out: 0.5 * seen[0])
    halved = model(x)
    handle.remove()
    with model.hooks([("blocks.0.hook_resid_post", lambda act, hook: 0.5 * act)]):
        assert torch.allclose(halved, model(x))


def test_raw_hooks(page):
    with torch.no_grad(), page["model"].hooks([("blocks.0.attn.hook_z", lambda z, hook: torch.zeros_like(z))]):
        assert torch.equal(page["silenced"], page["model"](page["pixels"]))
    assert torch.equal(page["margin"](page["pixels"]), page["model"](page["pixels"])[:, :2] @ torch.tensor([1.0, -1.0]))


def test_a_learned_subspace_is_one_of_ours(page):
    """Its basis, as the page says, is the transpose of ours."""
    model, x, learned = page["model"], page["pixels"], page["learned"]
    swap = page["SubspaceInterchange"](learned.basis)
    at = {"positions": page["where"]}
    other = page["collect_activations"](model, learned.hook_name, page["corrupt"], model, **at)
    theirs = page["intervened_logits"](model, learned.hook_name, swap, x, other, model, **at)
    _, cache = model.run_with_cache(page["corrupt"])
    ours = under(model, x, patch_subspace(1, tokens="cls", basis=learned.basis.T, value=cache))
    assert torch.allclose(theirs, ours, atol=1e-5)
    assert not torch.allclose(ours, model(x), atol=1e-3)


MODULES = {  # module of transformers: what of it, and the hook that has the same
    "vit.embeddings": ("out", "blocks.0.hook_resid_pre"),
    "vit.layers.1": ("in", "blocks.1.hook_resid_pre"),
    "vit.layers.0": ("out", "blocks.0.hook_resid_post"),
    "vit.layers.1.layernorm_before": ("gain", "blocks.1.ln1.hook_normalized"),
    "vit.layers.1.attention.q_proj": ("out", "blocks.1.attn.hook_q"),
    "vit.layers.1.attention.k_proj": ("out", "blocks.1.attn.hook_k"),
    "vit.layers.1.attention.v_proj": ("out", "blocks.1.attn.hook_v"),
    "vit.layers.1.attention": ("pattern", "blocks.1.attn.hook_pattern"),
    "vit.layers.1.attention.o_proj ": ("in", "blocks.1.attn.hook_z"),
    "vit.layers.1.attention.o_proj": ("out", "blocks.1.hook_attn_out"),
    "vit.layers.1.mlp.fc1": ("out", "blocks.1.mlp.hook_pre"),
    "vit.layers.1.mlp.fc2 ": ("in", "blocks.1.mlp.hook_post"),
    "vit.layers.1.mlp.fc2": ("out", "blocks.1.hook_mlp_out"),
    "vit.layernorm": ("gain", "ln_final.hook_normalized"),
    "classifier ": ("in", "hook_pooled"),
    "classifier": ("out", "hook_logits"),
}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_of_transformers_holds_what_the_page_says(module):
    what, hook = MODULES[module]
    hf, model = tiny("vit")
    x, seen = pixels(model), []
    part = hf.get_submodule(module.strip())
    handle = part.register_forward_hook(lambda _, given, made: seen.append(given if what == "in" else made))
    try:
        with torch.no_grad():
            hf(x)
    finally:
        handle.remove()
    found = seen[0][-1 if what == "pattern" else 0] if isinstance(seen[0], tuple) else seen[0]
    with attention(model, "eager"):
        want = model.run_with_cache(x)[1][hook]
    if what == "gain":
        want = want * part.weight + part.bias
    if hook == "ln_final.hook_normalized":
        found = found[:, : want.shape[1]]
    assert torch.allclose(found.reshape(want.shape), want, rtol=0, atol=1e-6 if what == "gain" else 0)
    kind = re.sub(r"\b(layers|blocks)\.\d", r"\1.l", module.strip())
    said = PAGE.read_text(encoding="utf-8").partition("Where in a `transformers` model")[2]
    assert f"`{kind}`" in said or what == "pattern" or kind.endswith(("k_proj", "v_proj"))
    assert re.sub(r"^.*\.(?=hook_)", "", hook) in said
