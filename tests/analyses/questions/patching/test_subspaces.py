"""A subspace known by construction is found, its placebos are not it; what an eraser takes out no probe reads."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from analyses import Result, aligned_subspace
from analyses.probes.ridge import GramRidge
from analyses.questions.patching.subspaces.aligned_subspace import basis_of
from analyses.questions.patching.subspaces.alignment import as_long_as, inside, random_basis
from analyses.questions.patching.subspaces.erasing import leace, nullspace
from hooked_vit import HookedViT
from interventions import apply, patch_subspace, patch_tokens, project_out, remove_subspace
from tests.tiny import make, pixels, tiny

SHOWN = ("vit", "deit", "dinov2", "clip-classifier")


@pytest.mark.parametrize("family", SHOWN)
@torch.no_grad()
def test_patching_everything_is_the_token_and_a_part_and_its_rest_are_everything(family: str) -> None:
    model = make(family)
    x, other, d = pixels(model), pixels(model, seed=1), model.cfg.d_model
    basis = random_basis(d, d, 0)

    def logits(*edits):
        with apply(model, *edits):
            return model(x)

    at = {"layer": 0, "tokens": "all", "value": other}
    whole = logits(patch_tokens(**at))
    assert torch.allclose(logits(patch_subspace(basis=basis, **at)), whole, atol=1e-9)
    parts = [patch_subspace(basis=rows, **at) for rows in (basis[:5], basis[5:])]
    assert torch.allclose(logits(*parts), whole, atol=1e-9)
    skewed = torch.randn(5, 5, dtype=torch.float64) @ basis[:5]
    assert torch.allclose(logits(patch_subspace(basis=skewed, **at)), logits(parts[0]), atol=1e-9)


def test_a_gradient_reaches_the_basis() -> None:
    model = make("vit")
    basis = torch.randn(2, model.cfg.d_model, dtype=torch.float64, requires_grad=True)
    with apply(model, patch_subspace(layer=0, tokens="cls", basis=basis, value=torch.ones(model.cfg.d_model))):
        (gradient,) = torch.autograd.grad(model(pixels(model))[:, 0].sum(), basis)
    assert gradient.abs().sum() > 0
    # the span counts, not how long its directions are
    assert (gradient * basis).sum(1).abs().max() < 1e-9


def test_an_orthogonal_removal_is_project_out() -> None:
    model = make("vit")
    basis = random_basis(model.cfg.d_model, 3, 0)
    removed = remove_subspace(layer=0, tokens="all", projection=basis.T @ basis)
    with torch.no_grad():
        logits = []
        for edit in (removed, project_out(layer=0, tokens="all", directions=basis)):
            with apply(model, edit):
                logits.append(model(pixels(model)))
    assert torch.allclose(*logits, atol=1e-10)


def test_leace_leaves_nothing_linear_and_changes_least() -> None:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    labels = torch.arange(300) % 3
    x = torch.randn(300, 12, generator=generator, dtype=torch.float64)
    x[:, :2] += torch.eye(3, 2, dtype=torch.float64)[labels] * 3
    x = x @ mix
    ridge = GramRidge(3)
    ridge.update({"x": x}, labels)
    probe = ridge.fit()["x"]
    assert (probe.predict(x) == labels).double().mean() > 0.9
    erased, projected = leace(ridge.moments("x")), nullspace(probe)
    assert erased.rank == 2
    y = erased(x)
    means = torch.stack([y[labels == c].mean(0) for c in range(3)])
    assert (means - y.mean(0)).abs().max() < 1e-8  # so that no linear map beats a constant
    assert torch.allclose(erased.projection @ erased.projection, erased.projection, atol=1e-8)
    # any other removal of the class means moves the data further: the orthogonal one along them does
    between = torch.stack([x[labels == c].mean(0) - x.mean(0) for c in range(3)])
    axes = torch.linalg.svd(between)[2][:2]
    along = (x - x.mean(0)) @ axes.T @ axes
    assert (y - x).square().sum() < along.square().sum()
    assert projected.projection.shape == (12, 12)
    assert (probe.weight @ projected(x).T).abs().max() < 1e-8
    model = tiny("vit")[1]
    assert remove_subspace(0, "cls", torch.eye(model.cfg.d_model)[:1].T @ torch.eye(model.cfg.d_model)[:1]).hooks(model)
    with pytest.raises(ValueError, match="a projection is"):
        remove_subspace(0, "cls", erased.projection).hooks(model)


def test_erasing_what_does_not_differ_is_refused() -> None:
    ridge = GramRidge(2)
    x = torch.randn(6, 4)
    ridge.update({"x": torch.cat([x, x])}, torch.tensor([0] * 6 + [1] * 6))
    with pytest.raises(ValueError, match="nothing linear to erase"):
        leace(ridge.moments("x"))


N = 500


def planted() -> tuple[HookedViT, torch.Tensor]:
    """A tiny ViT whose answer is the sign of one direction of CLS behind block 0, about half of it either way."""
    model = make("vit", torch.float32)
    with torch.no_grad():
        for branch in (model.blocks[1].attn.o, model.blocks[1].mlp.fc_out):
            branch.weight.zero_()
            branch.bias.zero_()
        model.ln_final.weight.fill_(1)
        model.ln_final.bias.zero_()
        model.head.bias.zero_()
        stream = model(pixels(model, n=N), stop_at_layer=1)[:, 0]
        centred = stream - stream.mean(0)
        # a direction in which images differ, though not the one in which they differ most
        axis = torch.linalg.svd(centred, full_matrices=False)[2][4]
        axis = axis - axis.mean()
        # without what all images share there, so that both signs occur
        shared = stream.mean(0) - stream.mean()
        axis = axis - (axis @ shared) / (shared @ shared) * shared
        axis = axis / axis.norm()
        model.head.weight.zero_()
        model.head.weight[0], model.head.weight[1] = axis, -axis
    return model, axis.double()


@cache
def found() -> tuple[Result, torch.Tensor]:
    model, axis = planted()
    x, other = pixels(model, n=N), pixels(model, n=N, seed=1)
    return aligned_subspace(model, x, other, layer=0, dims=(1, 2), draws=4, rate=0.05, steps=120, batch_size=64), axis


def share(result: Result, subspace: str, dims: int | None = None) -> float:
    frame = result.frame[result.frame.subspace == subspace]
    return float((frame if dims is None else frame[frame.dims == dims]).value.mean())


def test_the_planted_direction_is_found_and_its_placebos_are_not() -> None:
    result, axis = found()
    assert abs(float(basis_of(result, 1)[0] @ axis)) > 0.95
    assert share(result, "none") == 0
    assert share(result, "whole") == 1
    assert share(result, "learned", 1) > 0.9
    for placebo in ("random", "random_same_length", "differences", "shuffled"):
        assert share(result, placebo, 1) < 0.6, placebo
    losses = result.meta["losses"]["1"]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_what_was_found_is_an_intervention() -> None:
    """Patched through the model, on the pairs it was measured on, it does what the table says."""
    result, _ = found()
    model, _ = planted()
    x, other = pixels(model, n=N), pixels(model, n=N, seed=1)
    with torch.no_grad():
        answers, targets = model(x).argmax(-1), model(other).argmax(-1)
        held_out = (answers != targets).nonzero().flatten()[1::2]
        with apply(model, patch_subspace(layer=0, tokens="cls", basis=basis_of(result, 1), value=other[held_out])):
            patched = model(x[held_out]).argmax(-1)
    hits = (patched == targets[held_out]).double().mean().item()
    assert hits == pytest.approx(share(result, "learned", 1))
    assert result.meta["n_dropped"] == int((answers == targets).sum())
    assert result.figure().data
    assert len(result.meta["summary"]) == 2


def test_a_random_change_can_be_made_as_long() -> None:
    difference = torch.randn(3, 5, 8)
    random, learned = random_basis(8, 2, 0), random_basis(8, 2, 1)
    ours, theirs = as_long_as(random, learned)(difference), inside(learned)(difference)
    assert torch.allclose(ours.norm(dim=-1), theirs.norm(dim=-1), atol=1e-5)
    assert torch.allclose(inside(random)(ours), ours, atol=1e-5)


@pytest.mark.parametrize("family", SHOWN)
def test_every_family(family: str) -> None:
    model = tiny(family)[1]
    targets = (model(pixels(model, n=6)).argmax(-1) + 1) % 5
    result = aligned_subspace(
        model, pixels(model, n=6), pixels(model, n=6, seed=1), layer=-1, tokens="all", targets=targets, dims=2, steps=2,
        draws=1,
    )  # fmt: skip
    assert set(result.frame.subspace) == {
        *("none", "whole", "learned", "differences", "shuffled"),
        *("random", "random_same_length"),
    }
    assert result.meta["n_pairs"] == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": 0}, "1 to 32 dimensions"),
        ({"dims": 33}, "1 to 32 dimensions"),
        ({"layer": 5}, "layers are 0 to 1"),
        ({"tokens": "dist"}, "no 'dist' token"),
        ({"targets": torch.zeros(3, dtype=torch.long)}, "targets are class numbers"),
        ({"steps": 0}, "at least one step"),
        ({"corrupt": None}, "6 of 6 pairs is the target already"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    model = tiny("vit")[1]
    clean, corrupt = pixels(model, n=6), pixels(model, n=6, seed=1)
    corrupt = clean if "corrupt" in change else corrupt
    change.pop("corrupt", None)
    with pytest.raises(ValueError, match=message):
        aligned_subspace(model, clean, corrupt, **{"layer": 0, **change})
    with pytest.raises(ValueError, match="learned subspaces of 1, 2 dimensions"):
        basis_of(found()[0], 3)
