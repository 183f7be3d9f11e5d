"""Dictionaries whose features are known by construction: what is measured of them is what was planted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from analyses import feature_pages, sparse_features
from analyses.command_line.cli import main
from analyses.questions.features.sparse_features.controls import principal_components, random_directions, turned
from analyses.questions.features.sparse_features.measuring import Reconstruction, divergence, recovered
from hooked_vit import HookedViT
from interventions import Sae, ablate_feature, apply, splice, steer_feature
from tests.analyses.test_foreign_sizes import scenes
from tests.interventions.cases import sae_of, unchecked_types
from tests.tiny import make, pixels, processor_of

HOST = "blocks.1.hook_resid_post"


def everything(d: int, **fields) -> Sae:
    """Every direction and its opposite: nothing is lost."""
    eye = torch.eye(d)
    both = torch.cat([eye, -eye])
    return Sae(both.T.clone(), torch.zeros(2 * d), both, torch.zeros(d), **fields)


def model_of(family: str = "vit") -> HookedViT:
    model = make(family, torch.float32)
    model.processor = processor_of((16, 16))
    return model


def asked(model: HookedViT, sae: Sae | list[Sae] | str | None, **options):
    options = {"fit_data": scenes("train"), "batch_size": 20, "top": 1, **options}
    with unchecked_types():
        return sparse_features({"tiny": model}, scenes("test"), dictionary=sae, **options)


def value(frame, **where) -> float:
    for column, wanted in where.items():
        frame = frame[frame[column] == wanted]
    (found,) = frame.value
    return float(found)


@pytest.mark.parametrize("family", ["vit", "deit-teacher", "dinov2", "clip-projection"])
def test_a_dictionary_that_loses_nothing_explains_and_recovers_everything(family):
    model = model_of(family)
    frame = asked(model, everything(model.cfg.d_model, layer=1, site="resid_post")).frame
    mine = frame[frame.dictionary == "examined"]
    explained = mine[mine.measure == "explained_variance"]
    assert set(explained.role) == {"all", *model.tokens.roles}
    varied = explained.value.dropna()
    assert len(varied) >= 2
    np.testing.assert_allclose(varied, 1, atol=1e-6)
    lost = mine[mine.measure == "loss_recovered"].value.dropna()
    assert len(lost) >= 2
    np.testing.assert_allclose(lost, 1, atol=1e-3)
    random = frame[(frame.dictionary == "random directions") & (frame.role == "all")]
    assert value(random, measure="explained_variance") < 0.9
    assert value(mine, measure="l0", role="all") == pytest.approx(model.cfg.d_model, rel=1e-3)
    effects = frame[frame.measure == "effect"]
    assert set(zip(effects.edit, effects.direction, strict=True)) == {
        (edit, direction) for edit in ("ablated", "steered") for direction in ("own", "random")
    }


def test_effects_are_those_of_the_interventions():
    model = model_of()
    sae = sae_of(model.cfg.d_model, activation="topk", k=4, layer=0, site="mlp_out")
    frame = asked(model, sae, top=2, batch_size=12).frame
    x = model.preprocess(next(scenes("test").batches(20)).images)
    effects = frame[(frame.measure == "effect") & (frame.direction == "own")]
    with torch.no_grad():
        clean = model(x)
        for row in effects[effects.edit == "ablated"].itertuples():
            with apply(model, splice(sae) + ablate_feature(0, int(row.feature), site="mlp_out")):
                moved = divergence(model, clean, model(x))
            assert row.value == pytest.approx(float(moved.mean()), rel=1e-3, abs=1e-12)
            assert row.low <= row.value <= row.high
    assert len(effects) == 4


def test_planted_features_are_counted_and_the_dead_ones_found():
    draw = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(8, 8, generator=draw))[0]
    planted = torch.zeros(5, 4, 8)
    planted[:, :, 0], planted[:, 1:, 2] = 3.0, 1.5  # feature 2 at patches alone, the others never
    x = planted @ axes
    kept = Reconstruction(Sae(axes.T.clone(), torch.full((8,), -1e-4), axes, torch.zeros(8)))
    model = model_of()
    layout = model.tokens.keep(torch.tensor([0, 1, 2, 3]))
    acts = kept.update(x, layout)
    torch.testing.assert_close(acts, planted, atol=1e-3, rtol=0)
    rows = {(row["measure"], row["role"]): row["value"] for row in kept.rows()}
    assert rows["l0", "cls"] == 1
    assert rows["l0", "patches"] == 2
    assert rows["dead", "cls"] == 7 / 8
    assert rows["dead", "all"] == 6 / 8
    assert rows["explained_variance", "all"] == pytest.approx(1, abs=1e-4)
    assert np.isnan(rows["explained_variance", "cls"])  # the same in every image: nothing to explain


def test_controls_are_as_many_and_as_sparse_and_the_best_they_can_be():
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(400, 8, generator=draw) * torch.tensor([5.0, 3, 2, 1, 0.5, 0.2, 0.1, 0.1]) + 2
    like = sae_of(8, features=40)
    random = random_directions(like, tokens, 3.2, seed=0)
    acts = random.encode(tokens)
    assert random.n_features == 40
    assert float((acts != 0).sum(-1).double().mean()) == pytest.approx(3, abs=0.2)

    def missed(sae: Sae) -> float:
        return float((sae.decode(sae.encode(tokens), tokens) - tokens).square().sum())

    for factor in (0.8, 1.25):  # the factor is the one that fits best
        assert missed(random) < missed(random.replace(W_dec=random.W_dec * factor))
    centred = tokens.double() - tokens.double().mean(0)
    principal = principal_components(tokens.double().mean(0), centred.T @ centred / 399, 8)
    assert missed(principal) < 1e-3 * float(centred.square().sum())
    assert missed(principal.replace(k=3)) < missed(random)
    other = turned(like, seed=1)
    assert torch.equal(other.encode(tokens), like.encode(tokens))
    torch.testing.assert_close(other.W_dec.norm(dim=-1), like.W_dec.norm(dim=-1))
    assert not torch.allclose(other.W_dec, like.W_dec)


def test_what_is_recovered_lies_between_nothing_and_everything():
    ablated = np.tile([2.0, 4.0, 6.0], 20)
    assert recovered(ablated, ablated)["value"] == 0
    assert recovered(0 * ablated, ablated)["value"] == 1
    part = recovered(np.tile([1.0, 1.0, 4.0], 20), ablated)
    assert part["value"] == 0.5
    assert part["low"] <= 0.5 <= part["high"]
    assert np.isnan(recovered(ablated, 0 * ablated)["value"])


def test_without_a_dictionary_components_stand_in_and_it_says_so():
    options = {"layers": (1,), "site": "z", "k": 3, "fit_data": scenes("train"), "batch_size": 20, "top": 1}
    result = sparse_features({"tiny": model_of()}, scenes("test"), **options)  # annotations checked
    assert set(result.frame.dictionary) == {"examined", "random directions"}
    assert value(result.frame, dictionary="examined", measure="l0", role="all") == 3
    assert any("No dictionary was given" in note for note in result.meta["notes"])
    assert result.figure().data


def saved(folder, sae: Sae, **cfg) -> str:
    tensors = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "sae_weights.safetensors")
    fields = {"architecture": "standard", "d_in": sae.width, "d_sae": sae.n_features, "metadata": {}}
    (folder / "cfg.json").write_text(json.dumps(fields | cfg))
    return str(folder)


def test_a_file_is_what_the_dictionary_in_memory_is(tmp_path):
    model, sae = model_of(), sae_of(32)
    here = asked(model, sae, layers=(0,), site="resid_pre").frame
    there = asked(model, saved(tmp_path, sae), layers=(0,), site="resid_pre").frame
    np.testing.assert_array_equal(here.value, there.value)


def test_a_result_says_which_dictionary_it_was(tmp_path):
    """Not only how large: two of one size are told apart, and the one from a file is the one in memory."""
    model, one = model_of(), sae_of(32)
    other = one.replace(b_enc=one.b_enc + 1)
    path = Path(saved(tmp_path, one))
    told = [
        asked(model, sae, layers=(0,), site="resid_post", top=1).meta["models"]["tiny"]["dictionaries"]["0 resid_post"]
        for sae in (one, path, other)
    ]
    assert told[0].rpartition(" ")[2] == told[1].rpartition(" ")[2] != told[2].rpartition(" ")[2]
    assert "saelens standard" in told[1]


@pytest.mark.parametrize(
    ("sae", "options", "said"),
    [
        (
            sae_of(31),
            {"layers": (0,), "site": "resid_post"},
            "reads 31 numbers of a token",
        ),
        (sae_of(32, layer=7, site="resid_post"), {}, "layers are 0 to 1"),
        (sae_of(32, layer=0), {}, "does not say which site"),
        (sae_of(32, layer=0, site="z"), {"layers": (1,)}, "trained on layer 0, and is to be spliced into 1"),
        (
            sae_of(32, layer=0, site="z"),
            {"site": "mlp_out"},
            "trained on site 'z', and is to be",
        ),
        (sae_of(32, site="mlp_out"), {}, "does not say which layer"),
        ([sae_of(32, layer=0, site="z"), sae_of(32, layer=0, site="z")], {}, "two dictionaries are for"),
        ([], {}, "a dictionary is an Sae"),
        (None, {"site": "result"}, "no site is called 'result'"),
        ("nowhere", {}, "there is no nowhere"),
        ("nowhere", {"layout": "sealens"}, "did you mean 'saelens'"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_run(sae, options, said):
    model = model_of()
    before = model.run.n_forwards
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        asked(model, sae, **options)
    assert model.run.n_forwards == before


def test_a_page_per_feature_shows_where_it_is_largest(tmp_path):
    model, hostile = model_of(), "<script>alert(1)</script>"
    model.cfg = model.cfg.replace(name=hostile)
    data = scenes("test")
    sae = sae_of(32, activation="topk", k=4, layer=1, site="resid_post", source=hostile)
    made = feature_pages(model, sae, data, images=3, n_features=4, batch_size=7)
    index = made.save(tmp_path / "pages")
    written = {path.name for path in index.parent.iterdir() if path.suffix == ".html"}
    assert written == set(made.pages)
    assert len(written) == 5
    for html in made.pages.values():
        assert hostile not in html
        assert "&lt;script&gt;" in html
        assert "http://" not in html
        assert "https://" not in html
        assert "default-src 'none'" in html
    x = model.preprocess(next(data.batches(20)).images)
    with torch.no_grad():
        acts = sae.encode(model.run_with_cache(x, names_filter=HOST)[1][HOST])
    feature = int(acts.sum((0, 1)).argmax())
    patches = acts[:, model.tokens.mask("patches"), feature]
    order = patches.amax(1).argsort(descending=True).tolist()[:3]
    page = made.pages[f"feature-{feature}.html"]
    places = [page.index(f"image {i} of ") for i in order]
    assert places == sorted(places)
    image, at = divmod(int(patches.argmax()), patches.shape[1])
    row, column = divmod(at, model.tokens.grid[1])
    first_crop = page.index("patch ")
    assert page[first_crop:].startswith(f"patch {row}, {column}")
    assert image == order[0]
    with pytest.raises(ValueError, match="features are 0 to 23"):
        feature_pages(model, sae, data, features=[24])
    with pytest.raises(ValueError, match="trained on layer 1"):
        feature_pages(model, sae, data, layer=0)


def test_a_feature_that_never_fires_has_a_page_that_says_so():
    model = model_of()
    sae = sae_of(32, b_enc=torch.full((24,), -1e6), layer=1, site="resid_post")
    made = feature_pages(model, sae, scenes("test"), features=[3], images=2)
    assert "No patch of these images activates it" in made.pages["feature-3.html"]
    assert "24 of 24 are never active" in made.pages["index.html"]
    frame = asked(model, sae).frame
    assert value(frame, dictionary="examined", measure="dead", role="all") == 1


def test_the_largest_feature_is_moved_by_its_own_direction():
    """Planted: steering moves a token by the direction, and the readout by what the head makes of it."""
    model = model_of()
    sae = sae_of(32, layer=1, site="resid_post")
    x = pixels(model, n=2)
    with torch.no_grad():
        before = model.run_with_cache(x)[1][HOST]
        with apply(model, splice(sae) + steer_feature(1, 7, by=1.5)):
            after = model.run_with_cache(x)[1][HOST]
    torch.testing.assert_close(after - before, (1.5 * sae.W_dec[7]).expand_as(before), atol=1e-5, rtol=0)


def test_both_commands_take_a_folder_and_refuse_one_that_is_none(tmp_path, capsys):
    about = {"metadata": {"hook_name": "blocks.7.hook_resid_post"}}
    folder = saved(tmp_path, sae_of(96, activation="relu"), **about)
    given = ["--dictionary", folder, "--n", "12", "--out"]
    assert main(["features", "zoo:vit", *given, str(tmp_path / "pages")]) == 0
    assert len([*(tmp_path / "pages").glob("feature-*.html")]) == 12
    assert main(["run", "sparse-features", "--model", "zoo:vit", "--top", "1", *given, str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    capsys.readouterr()
    assert main(["features", "zoo:vit", "--dictionary", str(tmp_path / "pages"), "--out", str(tmp_path / "no")]) != 0
    assert "cfg.json" in capsys.readouterr().err
