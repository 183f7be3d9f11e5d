"""Gradient maps: the closed form is autograd's, they say what more attention would do, and the analysis keeps them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import ViTImageProcessorPil

from analyses import load_data
from analyses.data.batches import Batch
from analyses.questions.class_space.gradient_explanations.figure import curves_figure, heads_figure, overlay_figure
from analyses.questions.class_space.gradient_explanations.gradient_explanations import (
    _object_patches,
    gradient_explanations,
)
from analyses.questions.class_space.measures.explanations import gradient_maps, overlay
from analyses.questions.class_space.measures.projection import Rules
from analyses.running.results import Result
from hooked_vit import HookedViT, ViTConfig
from hooked_vit.errors import NoHeadError
from tests.tiny import FAMILIES, IMAGE, make, make_hf, pixels

CLASSES = torch.tensor([0, 3, 4])
HOOKS = {"attn_out": "hook_attn_out", "block_out": "hook_resid_post"}
PROTOTYPES = torch.randn(5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def rules_of(model: HookedViT) -> Rules:
    return Rules(prototypes=PROTOTYPES) if model.cfg.outputs == "embedding" else Rules()


def scores_of(model: HookedViT, cls: Tensor) -> Tensor:
    scores = model.project(cls, "cls")
    if model.cfg.outputs == "embedding":
        return F.normalize(scores, dim=-1) @ F.normalize(PROTOTYPES, dim=-1).T
    return scores


def autograd(model: HookedViT, x: Tensor, site: str, *, twice: bool = False) -> Tensor:
    """The derivative itself, one block at a time, in the attention weights as leaves."""
    maps = []
    for layer in range(model.cfg.n_layers):
        seen: dict[str, Tensor] = {}

        def leaf(pattern: Tensor, hook: object, seen: dict = seen) -> Tensor:
            seen["pattern"] = pattern.detach().requires_grad_()
            return seen["pattern"]

        def keep(act: Tensor, hook: object, seen: dict = seen) -> None:
            seen["cls"] = act[:, 0]

        block = f"blocks.{layer}."
        with model.hooks([(f"{block}attn.hook_pattern", leaf), (f"{block}{HOOKS[site]}", keep)]):
            model(x)
        p = scores_of(model, seen["cls"])
        p = p.exp() / p.exp().sum(-1, keepdim=True) if twice else p
        loss = (p.exp().sum(-1).log() - p[torch.arange(len(x)), CLASSES]).sum()
        gradient = torch.autograd.grad(loss, seen["pattern"])[0]
        maps.append(-gradient[:, :, 0, model.tokens.patches])
    return torch.stack(maps, 1)


@pytest.mark.parametrize("site", HOOKS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_closed_form_is_the_derivative(name: str, site: str) -> None:
    model = make(name)
    x = pixels(model)
    for twice in (False, True):
        maps = gradient_maps(model, x, CLASSES, site=site, double_softmax=twice, rules=rules_of(model))
        torch.testing.assert_close(maps, autograd(model, x, site, twice=twice), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("norm", ["post_norm", "attn_inner_norm"])
@pytest.mark.parametrize("site", HOOKS)
def test_norms_behind_and_inside_the_branches_are_derived_through(site: str, norm: str) -> None:
    sizes = {"d_model": 8, "n_layers": 2, "n_heads": 2, "d_mlp": 8, "image_size": (8, 8), "patch_size": 4}
    torch.manual_seed(0)
    model = HookedViT(ViTConfig(**sizes, n_classes=5, **{norm: True})).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    x = pixels(model)
    torch.testing.assert_close(gradient_maps(model, x, CLASSES, site=site), autograd(model, x, site))


@pytest.mark.parametrize("name", ["vit", "beit-mean-both", "dinov2"])
def test_the_derivative_is_values_through_the_heads_output_weights(name: str) -> None:
    """methods §21: ∂ℓ/∂A[0, i] = V_i · W_O (γ₁ ⊙ q), with q the gradient at attention's update of CLS."""
    model = make(name)
    x = pixels(model)
    _, cache = model.run_with_cache(x)
    maps = gradient_maps(model, x, CLASSES)
    for layer, block in enumerate(model.blocks):
        update = cache["attn_out", layer][:, 0].detach().requires_grad_()
        (q,) = torch.autograd.grad(F.cross_entropy(model.project(update), CLASSES, reduction="sum"), update)
        v = cache["v", layer][:, model.tokens.patches]
        want = -torch.einsum("bphe,hed,bd->bhp", v, block.attn.W_O, q)
        torch.testing.assert_close(maps[:, layer], want, rtol=1e-9, atol=1e-13)


def test_a_nudge_of_attention_moves_the_models_own_loss_as_the_map_says() -> None:
    """At the last block CLS behind the block is all a CLS readout reads: a finite difference of the real loss."""
    model = make("vit")
    x, last, eps = pixels(model), model.cfg.n_layers - 1, 1e-6
    maps = gradient_maps(model, x, CLASSES, site="block_out")[:, last]

    def loss(step: float, head: int, token: int) -> Tensor:
        def nudge(pattern: Tensor, hook: object) -> Tensor:
            pattern = pattern.clone()
            pattern[:, head, 0, token] += step
            return pattern

        with torch.no_grad():
            logits = model.run_with_hooks(x, fwd_hooks=[(f"blocks.{last}.attn.hook_pattern", nudge)])
        return F.cross_entropy(logits, CLASSES, reduction="none")

    for head, token in ((0, 1), (3, 9), (2, 16)):
        slope = (loss(eps, head, token) - loss(-eps, head, token)) / (2 * eps)
        torch.testing.assert_close(maps[:, head, token - 1], -slope, rtol=1e-6, atol=1e-9)


def test_a_second_softmax_hides_blocks_that_are_sure_of_themselves() -> None:
    """With scores far apart softmax(p) is one-hot and its derivative vanishes, though the class is badly wrong."""
    model = make("vit")
    with torch.no_grad():
        model.head.weight *= 100
    x = pixels(model)
    scores = model.project(model.run_with_cache(x)[1]["attn_out", 0][:, 0])
    wrong = scores.argmin(-1)
    once, twice = (gradient_maps(model, x, wrong, double_softmax=d)[:, 0].abs().max() for d in (False, True))
    assert once > 1
    assert twice < 1e-6 * once


def test_running_a_map_leaves_nothing_behind() -> None:
    model = make("vit")
    x = pixels(model)
    before = model(x)
    with torch.no_grad():
        assert not gradient_maps(model, x, CLASSES).requires_grad
    assert torch.equal(model(x), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_explained_is_refused() -> None:
    model = make("vit")
    x = pixels(model)
    with pytest.raises(ValueError, match="0 to 4; got .5"):
        gradient_maps(model, x, torch.tensor([0, 5, 1]))
    with pytest.raises(ValueError, match="one class of interest per image"):
        gradient_maps(model, x, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="attn_out, block_out"):
        gradient_maps(model, x, CLASSES, site="mlp_out")
    with pytest.raises(NoHeadError):
        gradient_maps(make("vit-model"), x, CLASSES)
    sizes = {"d_model": 8, "n_layers": 1, "n_heads": 2, "d_mlp": 8, "image_size": (8, 8), "patch_size": 4}
    without = HookedViT(ViTConfig(**sizes, n_classes=3, has_cls=False, sources=("patches",)))
    with pytest.raises(ValueError, match="has no CLS token"):
        gradient_maps(without, torch.randn(1, 3, 8, 8), torch.tensor([0]))


def test_an_overlay_is_red_where_the_map_is_greatest_and_blue_where_least() -> None:
    shown = overlay(torch.zeros(3, 16, 16), torch.tensor([[0.0, 1.0], [0.5, 0.5]])).astype(int)
    red, blue = shown[..., 0], shown[..., 2]
    assert red[0, 15] > blue[0, 15]
    assert blue[0, 0] > red[0, 0]
    flat = overlay(torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.ones(2, 2))
    assert flat.shape == (8, 8, 3)


NAMES = ("vit", "beit-mean-both")


@pytest.fixture(scope="module")
def models() -> dict[str, HookedViT]:
    """Tiny models that know the classes of the scenes."""
    processor = ViTImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
    made = {name: HookedViT.from_hf(make_hf(name), processor=processor) for name in NAMES}
    for seed, model in enumerate(made.values()):
        noise = torch.randn(10, model.cfg.d_model, generator=torch.Generator().manual_seed(seed))
        model.set_head_(noise, torch.zeros(10), tuple("0123456789"))
    return made


@pytest.fixture(scope="module")
def result(models: dict[str, HookedViT]) -> Result:
    return gradient_explanations(models, load_data("scenes:test", n=24), batch_size=10, examples=2)


@pytest.mark.parametrize("name", NAMES)
def test_the_maps_of_a_result_add_up(result: Result, name: str) -> None:
    maps = result.frame[(result.frame.measure == "map") & (result.frame.model == name)]
    assert set(maps.image) == {0, 1}
    key = ["image", "of", "token"]
    heads = maps.dropna(subset="head").groupby(key).value.sum()
    blocks = maps[maps.layer.notna() & maps["head"].isna()].groupby(key).value.sum()
    total = maps[maps.layer.isna()].set_index(key).value.sort_index()
    assert len(total) == 2 * 2 * 16
    assert heads.to_numpy() == pytest.approx(total.to_numpy(), abs=1e-5)
    assert blocks.to_numpy() == pytest.approx(total.to_numpy(), abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_shares_of_importance_sum_to_one(result: Result, name: str) -> None:
    rows = result.frame[(result.frame.measure == "strength") & (result.frame.model == name)]
    assert rows[rows["head"].isna()].value.sum() == pytest.approx(1)
    assert rows.dropna(subset="head").value.sum() == pytest.approx(1)


def test_the_maps_are_those_of_the_label_and_of_another_class(result: Result, models: dict[str, HookedViT]) -> None:
    batch = next(load_data("scenes:test", n=2).batches(2))
    model = models["vit"]
    maps = result.frame[(result.frame.measure == "map") & (result.frame.model == "vit") & result.frame.layer.isna()]
    x = model.preprocess(batch.images)
    want = gradient_maps(model, x, batch.labels).sum((1, 2))
    mine = maps[maps.of == "label"].sort_values(["image", "token"])
    assert mine.class_id.unique().tolist() == list(dict.fromkeys(batch.labels.tolist()))
    assert mine.value.to_numpy() == pytest.approx(want.flatten().numpy(), abs=1e-5)
    others = maps[maps.of == "other"].groupby("image").class_id.first().tolist()
    assert all(other != label for other, label in zip(others, batch.labels.tolist(), strict=True))


def test_objects_are_read_from_masks_of_classes_and_ignored_pixels_are_none(models: dict[str, HookedViT]) -> None:
    ids = np.zeros((IMAGE, IMAGE), int)
    ids[: IMAGE // 2] = 300  # the class: a grey value of 16 · 1 + 44 would be an object as well as that of any other
    ids[IMAGE // 2 :, : IMAGE // 2], ids[-1, -1] = 7, 1000  # another class, and what is not to be asked
    mask = Image.fromarray(np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8))
    image = Image.new("RGB", mask.size)
    extra = {"mask": [mask], "mask_class": [300], "mask_classes": [919]}
    batch = Batch([image], torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), extra)
    found = _object_patches(models["vit"], batch, (4, 4)).reshape(4, 4)
    assert found.tolist() == [[True] * 4] * 2 + [[False] * 4] * 2


def test_a_readout_that_never_reads_cls_is_said(result: Result) -> None:
    assert any("beit-mean-both" in note and "never CLS" in note for note in result.meta["notes"])


def test_the_figures_draw(result: Result) -> None:
    overlays, heads = overlay_figure(result), heads_figure(result)
    assert [t.type for t in overlays.data].count("image") == 3 * 4
    assert [t.type for t in heads.data].count("image") == 2 * 5
    for fig, n in ((overlays, 2 * 4), (heads, 2 * 5)):
        maps = [trace for trace in fig.data if trace.type == "heatmap"]
        assert len(maps) == n
        axis = fig.layout.coloraxis
        assert axis.cmax == -axis.cmin == max(np.abs(trace.z).max() for trace in maps)
        assert axis.colorbar.ticktext[1] == "0"
    published = overlay_figure(Result(result.frame, {**result.meta, "repro": True}))
    assert {trace.type for trace in published.data} == {"image"}
    assert len(curves_figure(result).data) == 2 * 7


def test_no_examples_are_asked_for(models: dict[str, HookedViT]) -> None:
    run = gradient_explanations({"vit": models["vit"]}, load_data("scenes:test", n=4), examples=0)
    assert not run.frame.measure.isin(["map", "picture"]).any()
    assert "examples=0" in overlay_figure(run).to_json()
    with pytest.raises(ValueError, match="0 or more"):
        gradient_explanations({"vit": models["vit"]}, load_data("scenes:test", n=4), examples=-1)


def test_one_class_for_all_images(models: dict[str, HookedViT]) -> None:
    run = gradient_explanations({"vit": models["vit"]}, load_data("scenes:test", n=6), class_of_interest=7, examples=6)
    assert set(run.frame[run.frame.of == "label"].class_id.dropna()) == {7}
    with pytest.raises(ValueError, match="0 to 9; got .12"):
        gradient_explanations({"vit": models["vit"]}, load_data("scenes:test", n=6), class_of_interest=12)
