"""Probes from one pass: the numbers of scikit-learn on the same features, at every layer and role."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from sklearn.linear_model import LogisticRegression, Ridge

from analyses.data import ImageData, as_data
from analyses.probes import (
    EMBEDDING,
    FittedProbes,
    Probing,
    Site,
    SiteReader,
    Training,
    evaluate_probes,
    fit_probes,
    fit_with_controls,
    roles_of,
    with_target,
)
from analyses.probes.probe import Probe
from analyses.probes.store import feature_store
from hooked_vit import HookedViT
from interventions import Intervention, apply, insert_token, remove_tokens, shuffle_cls, zero_attention
from tests.analyses.questions.cls_use.test_cls_causality import PROCESSOR, coloured
from tests.tiny import CLASSES, FAMILIES, make_hf


@cache
def model(name: str) -> HookedViT:
    """In float64, so that features do not depend on how the images were batched or which kernel ran."""
    return HookedViT.from_hf(make_hf(name).double(), processor=PROCESSOR)


@cache
def images(n: int, seed: int) -> ImageData:
    return coloured(n, seed)


def relabelled(data: ImageData, classes: list[int], repeat: int = 1) -> ImageData:
    """The same pictures, every one `repeat` times, with other class numbers."""
    pictures = [picture for batch in data.batches(50) for picture in batch.images]
    labels = [classes[y] for y in data.labels.tolist()]
    return as_data((pictures * repeat, labels * repeat))


def materialised(name: str, data: ImageData, roles: tuple[str, ...] = (), seed: int = 0) -> dict[str, np.ndarray]:
    """Features of every site, read out of full activations without the engine."""
    m = model(name)
    pixels = torch.cat([m.preprocess(batch.images) for batch in data.batches(50)])
    index = torch.cat([batch.index for batch in data.batches(50)]).tolist()
    layout = m.tokens
    _, cache_ = m.run_with_cache(pixels)
    layers = {layer: cache_[f"blocks.{layer}.hook_resid_post"] for layer in range(m.cfg.n_layers)}
    layers[EMBEDDING] = cache_["blocks.0.hook_resid_pre"]
    n_patches = layout.grid[0] * layout.grid[1]
    drawn = [len(layout.prefix) + int(np.random.default_rng([seed, i]).random(n_patches).argmin()) for i in index]
    first = layout.prefix.index("registers") if "registers" in layout.prefix else 0
    found = {}
    for layer, x in layers.items():
        per_role = {role: x[:, layout.where(role)].mean(1) for role in layout.roles}
        per_role["random_patch"] = x[torch.arange(len(x)), drawn]
        per_role["patch_5"] = x[:, len(layout.prefix) + 5]
        per_role["register_1"] = x[:, min(first + 1, x.shape[1] - 1)]
        found |= {str(Site(role, layer)): v for role, v in per_role.items()}
    found["head_input"] = cache_["hook_pooled"]
    return {site: v.double().numpy() for site, v in found.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_role_and_penalty_is_scikit_learns_ridge(name: str) -> None:
    """Classes 1 and 3 have no image, and every picture comes twice."""
    data = relabelled(images(40, 2), [0, 2, 2, 4, 5], repeat=2)
    with_head = (*roles_of(model(name)), "head_input", "patch_5")
    layers = (EMBEDDING, *range(model(name).cfg.n_layers))
    x, y = materialised(name, data), data.labels.numpy()
    targets = 2 * np.eye(6)[y] - 1
    for alpha in (0.1, 10.0, 1000.0):
        probes = fit_probes(model(name), data, roles=with_head, layers=layers, alphas=(alpha,), batch_size=17)
        assert len(probes.probes) == (len(with_head) - 1) * len(layers) + 1
        for site, probe in probes.probes.items():
            theirs = Ridge(alpha=alpha).fit(x[site], targets).predict(x[site])
            np.testing.assert_allclose(probe.scores(torch.from_numpy(x[site])).numpy(), theirs, atol=1e-8, err_msg=site)
            assert probe.classes.tolist() == [0, 2, 4, 5]
    assert "without an image to fit on, and so never predicted: 1, 3" in probes.notes


def test_registers_one_by_one_and_patches_one_by_one() -> None:
    x = materialised("registers", images(40, 2))
    m = model("registers")
    reader = SiteReader(m, ("each_register", "each_patch"), layers=(1,))
    assert reader.roles == (*(f"register_{i}" for i in range(3)), *(f"patch_{i}" for i in range(16)))
    batch = next(images(40, 2).batches(40))
    _, features = reader.read(m.preprocess(batch.images), batch.index)
    for role in ("register_1", "patch_5"):
        np.testing.assert_allclose(features[f"{role}@1"], x[f"{role}@1"], atol=1e-5)
    mean = torch.stack([features[f"register_{i}@1"] for i in range(3)]).mean(0)
    np.testing.assert_allclose(mean, x["registers@1"], atol=1e-5)


def test_the_penalty_can_be_chosen_on_held_out_images() -> None:
    """The same draw, done by hand with scikit-learn: least squared error there, then all images."""
    data = images(60, 2)
    x, y = materialised("vit", data)["cls@1"], 2 * np.eye(CLASSES)[data.labels.numpy()] - 1
    apart = np.random.default_rng([3, 2]).random(60) < 0.3
    unit = x[~apart].var(0).sum() * int((~apart).sum()) / x.shape[1]  # the mean eigenvalue of their scatter
    grid = [unit * 10 ** (k / 4) for k in range(-24, 25)]
    errors = [((Ridge(alpha=a).fit(x[~apart], y[~apart]).predict(x[apart]) - y[apart]) ** 2).sum() for a in grid]
    probe = fit_probes(model("vit"), data, select="held_out", held_out=0.3, seed=3)["cls", 1]
    assert probe.penalty == pytest.approx(grid[int(np.argmin(errors))])
    theirs = Ridge(alpha=probe.penalty).fit(x, y).predict(x)
    np.testing.assert_allclose(probe.scores(torch.from_numpy(x)).numpy(), theirs, atol=1e-8)


def test_principal_components_are_those_of_a_decomposition() -> None:
    data = images(60, 2)
    x, y = materialised("deit", data)["dist@1"], 2 * np.eye(CLASSES)[data.labels.numpy()] - 1
    (all_images,) = with_target("label", data)
    fits = fit_with_controls(model("deit"), all_images, Probing(alphas=(5.0,)), components=3)
    directions = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:3].T
    theirs = Ridge(alpha=5.0).fit(x @ directions, y).predict(x @ directions)
    np.testing.assert_allclose(fits.pca["dist", 1].scores(torch.from_numpy(x)).numpy(), theirs, atol=1e-8)


def test_smaller_training_sets_are_nested_and_probes_on_them_are_scikit_learns() -> None:
    data = images(60, 2)
    (all_images,) = with_target("label", data)
    fits = fit_with_controls(model("vit"), all_images, Probing(alphas=(5.0,), batch_size=13), sizes=(40, 20, 60))
    x, y = materialised("vit", data)["cls@0"], 2 * np.eye(CLASSES)[data.labels.numpy()] - 1
    order = np.random.default_rng([0, 1]).permutation(60)
    assert sorted(fits.curve) == [20, 40, 60]
    for size, probes in fits.curve.items():
        mine = order < size
        theirs = Ridge(alpha=5.0).fit(x[mine], y[mine]).predict(x)
        np.testing.assert_allclose(probes["cls", 0].scores(torch.from_numpy(x)).numpy(), theirs, atol=1e-8)
        assert sum(probes.counts) == size
    whole = fits.probes["cls", 0].layers[0][0]
    torch.testing.assert_close(fits.curve[60]["cls", 0].layers[0][0], whole, atol=1e-10, rtol=0)


def test_permuted_probes_come_from_the_same_pass_and_are_scikit_learns() -> None:
    (data,) = with_target("label", images(60, 2))
    fits = fit_with_controls(model("vit"), data, Probing(alphas=(5.0,), batch_size=13), permutations=3)
    assert len(fits.permuted) == 3
    x = materialised("vit", images(60, 2))["cls@1"]
    labels = data.labels.numpy()
    for i, probes in enumerate(fits.permuted):
        dealt = labels[np.random.default_rng([0, i]).permutation(60)]
        assert (dealt != labels).any()
        theirs = Ridge(alpha=5.0).fit(x, 2 * np.eye(CLASSES)[dealt] - 1).predict(x)
        np.testing.assert_allclose(probes["cls", 1].scores(torch.from_numpy(x)).numpy(), theirs, atol=1e-8)


@pytest.mark.parametrize("batch_size", [7, 60])
def test_how_images_are_batched_changes_nothing(batch_size: int) -> None:
    """The random patch too belongs to the image."""
    one, other = (fit_probes(model("vit"), images(60, 2), alphas=(5.0,), batch_size=b) for b in (25, batch_size))
    for site in one.probes:
        torch.testing.assert_close(one[site].layers[0][0], other[site].layers[0][0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["ridge", "logistic", "mlp"])
def test_saved_and_loaded_probes_say_the_same(kind: str, tmp_path: Path) -> None:
    data = relabelled(images(40, 2), [0, 1, 2, 4, 5])
    short = Training(max_epochs=3)
    probes = fit_probes(model("dinov2"), data, probe=kind, training=short, roles=("cls", "head_input"))
    loaded = FittedProbes.load(probes.save(tmp_path / "probes"))
    assert (loaded.target, loaded.kind, loaded.counts, loaded.notes) == (
        (probes.target, kind, probes.counts, probes.notes)
    )  # fmt: skip
    assert loaded.sites == probes.sites
    want, got = (p.evaluate(model("dinov2"), data, per_image=True, by_heart=True) for p in (probes, loaded))
    assert want.hits == got.hits
    assert all(torch.equal(want.ranks[site], got.ranks[site]) for site in want.ranks)


@pytest.mark.parametrize("way", ["as fitted", "read before", "saved", "an edited run", "one of several sets"])
def test_images_that_probes_were_fitted_on_are_refused(way: str, tmp_path: Path) -> None:
    """The same pixels under another name are the same image; by heart they may be asked, and others at any time."""
    fitted, others = relabelled(images(40, 2), [0, 1, 2, 3, 4]), images(40, 4)
    probes = fit_probes(model("vit"), fitted, roles=("cls",))
    if way == "saved":
        probes = FittedProbes.load(probes.save(tmp_path))
    last = [picture for batch in fitted.batches(50) for picture in batch.images][-1]
    mixed = [picture for batch in others.batches(50) for picture in batch.images]
    data = as_data(([*mixed, last], [*others.labels.tolist(), 0]))
    if way == "read before":
        list(data.batches(50))
    edit = shuffle_cls(layer=0) if way == "an edited run" else None
    new = FittedProbes(probes.probes, probes.target, "ridge", probes.counts)
    sets = {"new": new, "": probes} if way == "one of several sets" else {"": probes}
    for _ in range(2):
        with pytest.raises(ValueError, match=r"not fitted on: .*40.* has the pixels of an image these probes"):
            evaluate_probes(model("vit"), sets, data, edit, batch_size=7)
    assert probes.evaluate(model("vit"), data, edit, by_heart=True).n == 41
    assert probes.evaluate(model("vit"), others, edit).n == 40
    assert new.evaluate(model("vit"), data, edit).n == 41  # nothing is left of the refusals


def test_probes_saved_without_the_images_they_were_fitted_on_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probes = fit_probes(model("vit"), images(40, 2), roles=("cls",))
    FittedProbes(probes.probes, probes.target, "ridge", probes.counts, 0, probes.model).save(tmp_path)
    tensors = load_file(tmp_path / "probes.safetensors")
    del tensors["seen"]
    content = save(tensors)
    (tmp_path / "probes.safetensors").write_bytes(content)
    about = json.loads((tmp_path / "probes.json").read_text())
    (tmp_path / "probes.json").write_text(json.dumps(about | {"checksum": hashlib.sha256(content).hexdigest()}))
    loaded = FittedProbes.load(tmp_path)
    assert loaded.evaluate(model("vit"), images(40, 2)).n == 40
    assert "which is not known of these" in capsys.readouterr().err


def test_one_wrong_byte_in_saved_probes_is_found(tmp_path: Path) -> None:
    fit_probes(model("vit"), images(40, 2), roles=("cls",)).save(tmp_path)
    file = tmp_path / "probes.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged: their checksum is another"):
        FittedProbes.load(tmp_path)


def test_no_probes_in_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"probes\.json"):
        FittedProbes.load(tmp_path)


def by_hand(probes: FittedProbes, m: HookedViT, data: ImageData, edit: Any, site: Site, batch_size: int) -> float:
    """Accuracy of a probe on activations cached under an intervention applied the ordinary way."""
    hits = 0
    for i, batch in enumerate(data.batches(batch_size)):
        with apply(m, edit(i)):
            _, kept = m.run_with_cache(m.preprocess(batch.images), names_filter=f"blocks.{site.layer}.hook_resid_post")
        vectors = kept.at("resid_post", site.layer, tokens=site.role)
        vectors = vectors.mean(1) if vectors.ndim == 3 else vectors
        hits += int((probes[site].predict(vectors) == batch.labels).sum())
    return hits / len(data)


@pytest.mark.parametrize("name", ["vit", "deit", "registers"])
@pytest.mark.parametrize(
    ("edit", "site"),
    [
        (shuffle_cls(layer=0, seed=2), Site("cls", 1)),
        (zero_attention(queries="cls", keys="patches"), Site("cls", 1)),
        (insert_token(layer=0, vector=torch.ones(32)), Site("patches", 1)),
    ],
    ids=["shuffle", "knockout", "insert"],
)
def test_probes_apply_under_any_intervention(name: str, edit: Intervention, site: Site) -> None:
    m, data = model(name), images(50, 4)
    probes = fit_probes(m, images(80, 2))

    def of_batch(i: int) -> Intervention:
        return edit.replace(seed=2 * 1_000_003 + i) if "seed" in edit.params else edit

    said = probes.evaluate(m, data, edit, batch_size=20)
    assert said.accuracy(*site) == by_hand(probes, m, data, of_batch, site, 20)
    other = probes.evaluate(m, data, lambda i, labels: of_batch(i), batch_size=20)
    assert other.hits == said.hits


def test_what_happens_after_a_layer_does_not_reach_the_probes_before_it() -> None:
    m, data = model("vit"), images(60, 4)
    probes = fit_probes(m, images(80, 2))
    clean, shuffled = probes.evaluate(m, data), probes.evaluate(m, data, shuffle_cls(layer=1))
    assert clean.accuracy("cls", 0) == shuffled.accuracy("cls", 0)
    assert clean.accuracy("patches", 1) == shuffled.accuracy("patches", 1)
    assert clean.accuracy("cls", 1) > shuffled.accuracy("cls", 1) + 0.2


def test_removed_tokens_are_looked_up_where_they_are() -> None:
    m, data = model("vit"), images(20, 4)
    probes = fit_probes(m, images(60, 2), roles=("random_patch", "patches", "patch_0"))
    batch = next(data.batches(20))
    reader = SiteReader(m, ("random_patch", "patches"), layers=(1,))
    edit = remove_tokens(layer=0, tokens=[1, 2, 3, 4, 5, 6, 7, 8])
    with apply(m, edit):
        _, features = reader.read(m.preprocess(batch.images), batch.index)
    with apply(m, edit):
        _, kept = m.run_with_cache(m.preprocess(batch.images))
    left = kept["blocks.1.hook_resid_post"][:, 1:]
    torch.testing.assert_close(features["patches@1"], left.mean(1))
    distance = (left - features["random_patch@1"][:, None]).abs().amax(-1).amin(1)
    assert float(distance.max()) < 1e-12
    with pytest.raises(ValueError, match="removed"):
        probes.evaluate(m, data, edit)


def test_several_sets_of_probes_on_one_pass() -> None:
    m, data = model("vit"), images(50, 4)
    (fitted,) = with_target("label", images(80, 2))
    fits = fit_with_controls(m, fitted, Probing(), permutations=2)
    both = evaluate_probes(m, {"a": fits.probes, "b": fits.permuted[1]}, data)
    assert both["a"].hits == fits.probes.evaluate(m, data).hits
    assert both["b"].hits == fits.permuted[1].evaluate(m, data).hits


def test_logistic_probes_are_scikit_learns_on_standardised_features() -> None:
    data = images(60, 2)
    probe = fit_probes(model("vit"), data, probe="logistic", training=Training(penalty=0.1))["cls", 1]
    x, y = materialised("vit", data)["cls@1"], data.labels.numpy()
    standard = (x - x.mean(0)) / x.std(0)
    theirs = LogisticRegression(C=1 / (60 * 0.1), max_iter=1000).fit(standard, y).decision_function(standard)
    np.testing.assert_allclose(probe.scores(torch.from_numpy(x)).numpy(), theirs, atol=1e-2)


@pytest.mark.parametrize("kind", ["logistic", "mlp"])
def test_features_on_disk_and_in_memory_give_the_same_mlp_and_close_logistic(kind: str, tmp_path: Path) -> None:
    data, test = images(60, 2), images(60, 4)
    how = {"probe": kind, "roles": ("cls",), "training": Training(penalty=0.01, max_epochs=60)}
    on_disk = fit_probes(model("vit"), data, memory=0, scratch=tmp_path, **how)
    in_memory = fit_probes(model("vit"), data, **how)
    assert list(tmp_path.iterdir()) == []
    one, other = (p.evaluate(model("vit"), test) for p in (on_disk, in_memory))
    assert one.accuracy("cls", 1) > 0.6
    if kind == "mlp":
        assert one.hits == other.hits
    else:
        assert abs(one.accuracy("cls", 1) - other.accuracy("cls", 1)) < 0.1


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room is taken where the system can")
def test_room_on_the_disk_is_taken_before_it_is_written_to(tmp_path: Path) -> None:
    """A map of a file with holes ends the process with a bus error when the disk fills up meanwhile."""
    with feature_store({"cls@0": 64, "cls@1": 32}, n=500, memory=0, scratch=tmp_path) as store:
        assert not store.in_memory
        taken = sum(512 * path.stat().st_blocks for path in tmp_path.rglob("*.f32"))
    assert taken >= 4 * 500 * (64 + 32)


def test_a_disk_without_room_is_told_before_anything_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shutil
    from collections import namedtuple

    full = namedtuple("usage", "total used free")(10, 10, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(OSError, match=r"at \d+ sites need about .* kB, .* has 0 bytes left; read fewer roles"):
        fit_probes(model("vit"), images(60, 2), probe="mlp", memory=0, scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["ridge", "logistic", "mlp"])
def test_a_site_that_is_the_same_in_every_image_predicts_the_most_frequent_class_and_says_so(kind: str) -> None:
    data = relabelled(images(50, 2), [0, 1, 1, 1, 2])
    probes = fit_probes(model("vit"), data, probe=kind, roles=("cls",), layers=(EMBEDDING,), training=Training())
    (note,) = probes.notes
    assert note.startswith("cls@embedding: the features do not vary")
    said = probes.evaluate(model("vit"), data, by_heart=True)
    assert said.hits["cls@embedding"] == int((data.labels == 1).sum())
    assert said.accuracy("cls", EMBEDDING) == said.chance


@pytest.mark.parametrize("kind", ["ridge", "logistic", "mlp"])
def test_fewer_images_than_classes(kind: str) -> None:
    few = relabelled(images(6, 2), [0, 11, 7, 7, 19])
    probes = fit_probes(model("vit"), few, probe=kind, roles=("cls",), training=Training(max_epochs=30))
    assert "17 more" not in probes.notes[-1]
    assert "only 6 images were there" in probes.notes[-1]
    test = relabelled(images(40, 4), [0, 11, 7, 3, 19])
    said = probes.evaluate(model("vit"), test, per_image=True)
    assert bool((said.ranks["cls@1"][test.labels == 3] >= 3).all())  # behind the classes there were images of
    predicted = {int(c) for c in probes["cls", 1].predict(100 * torch.randn(300, 32))}
    assert predicted <= {0, 7, 11, 19}


def test_a_class_probes_do_not_know_is_refused() -> None:
    probes = fit_probes(model("vit"), images(40, 2), roles=("cls",))
    with pytest.raises(ValueError, match="knows classes 0 to 4"):
        probes.evaluate(model("vit"), relabelled(images(40, 4), [0, 1, 2, 3, 9]))


@pytest.mark.parametrize("kind", ["ridge", "mlp"])
def test_features_that_are_no_numbers_are_refused_with_the_site(kind: str) -> None:
    broken = HookedViT.from_hf(make_hf("vit"), processor=PROCESSOR)
    broken.blocks[1].mlp.b_out.data[3] = torch.nan
    with pytest.raises(ValueError, match=r"'cls@1' hold NaN"):
        fit_probes(broken, images(40, 2), probe=kind, roles=("cls",))
    probes = fit_probes(model("vit"), images(40, 2), roles=("cls",))
    with pytest.raises(ValueError, match=r"'cls@1' hold NaN or infinity in 40 of 40"):
        probes.evaluate(broken, images(40, 4))


def test_images_of_one_class_only() -> None:
    for kind in ("ridge", "logistic", "mlp"):
        with pytest.raises(ValueError, match="at least 2 classes"):
            fit_probes(model("vit"), relabelled(images(20, 2), [1] * 5), probe=kind)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"roles": ("dist",)}, "has no 'dist' to read"),
        ({"roles": ("clss",)}, "has no 'clss' to read"),
        ({"roles": ("patch_16",)}, "patch_0 to patch_15"),
        ({"roles": ("each_register",)}, "has no 'each_register'"),
        ({"roles": ("cls", "cls")}, "read once"),
        ({"layers": (2,)}, "0 to 1, or -1"),
        ({"layers": ()}, "at least one layer"),
        ({"probe": "svm"}, "ridge, logistic, mlp"),
        ({"select": "best"}, "gcv or held_out"),
        ({"held_out": 1.0}, "between 0 and 1"),
        ({"alphas": (0.0,)}, "above 0"),
    ],
)
def test_settings_there_are_not(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fit_probes(model("vit"), images(40, 2), **settings)


def test_sizes_there_are_not() -> None:
    (data,) = with_target("label", images(40, 2))
    for sizes in ((0, 10), (41,), (10, 10)):
        with pytest.raises(ValueError, match="sizes of 1 to 40"):
            fit_with_controls(model("vit"), data, Probing(), sizes=sizes)


def test_another_model_is_refused_where_it_does_not_fit() -> None:
    probes = fit_probes(model("deit"), images(40, 2))
    with pytest.raises(ValueError, match="has no 'dist'"):
        probes.evaluate(model("vit"), images(40, 2))
    narrow = FittedProbes(
        {"cls@0": Probe(((torch.zeros(5, 8), torch.zeros(5)),), torch.arange(5), 1.0, 9)},
        probes.target,
        "ridge",
        (1,) * 5,
    )
    with pytest.raises(ValueError, match="reads 8 units; this model has 32"):
        narrow.evaluate(model("vit"), images(40, 2))


def test_memory_does_not_grow_with_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is gathered when all images have been read has the same size for four times as many."""
    from analyses.probes.ridge import GramRidge

    kept: dict[int, int] = {}
    fit = GramRidge.fit_targets

    def weighed(self: GramRidge, *args: Any, **kw: Any) -> Any:
        moments = [self.moments(site) for site in self.sites]
        kept[self.n] = sum(m.mean.numel() + m.scatter.numel() + m.class_sums.numel() for m in moments)
        return fit(self, *args, **kw)

    monkeypatch.setattr(GramRidge, "fit_targets", weighed)
    for n in (30, 120):
        fit_probes(model("vit"), images(n, 2))
    assert kept[30] == kept[120] == 3 * 2 * (32 + 32 * 32 + CLASSES * 32)
