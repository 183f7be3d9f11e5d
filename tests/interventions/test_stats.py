"""One streaming pass gives the mean and covariance that all activations at once would give."""

from __future__ import annotations

import json

import datasets
import pytest
import torch
from PIL import Image

from interventions import Stats, apply, collect_stats, from_dict, mean_tokens, remove_tokens, shuffle_cls
from interventions.activation_stats import Moments
from tests.tiny import make, pixels, tiny

SITES = [
    ("resid_post", -1, "cls"),
    ("resid_pre", 0, "patches"),
    ("resid_mid", 1, (0, 5)),
    ("z", 0, "all"),
    ("post", 1, "cls"),
    "pooled",
]


@pytest.fixture(scope="module")
def model():
    return make("dinov2")


@pytest.fixture(scope="module")
def x(model):
    return pixels(model, n=23)


def equal(a: Stats, b: Stats) -> bool:
    return a.keys == b.keys and all(
        m.n == o.n and torch.equal(m.mean, o.mean) and (m.scatter is o.scatter or torch.equal(m.scatter, o.scatter))
        for m, o in zip(a.moments.values(), b.moments.values(), strict=True)
    )


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100])
def test_moments_are_those_of_everything_at_once(model, x, batch_size):
    stats = collect_stats(model, x, SITES, batch_size=batch_size)
    _, cache = model.run_with_cache(x)
    expected = {
        ("resid_post", 1, "cls"): cache["resid_post", 1][:, :1],
        ("resid_pre", 0, "patches"): cache["resid_pre", 0][:, 1:],
        ("resid_mid", 1, (0, 5)): cache["resid_mid", 1][:, [0, 5]],
        ("z", 0, "all"): cache["z", 0],
        ("post", 1, "cls"): cache["post", 1][:, :1],
        ("pooled", None, "cls"): cache["hook_pooled"].unflatten(1, (2, -1))[:, :1],
        ("pooled", None, "patches"): cache["hook_pooled"].unflatten(1, (2, -1))[:, 1:],
    }
    assert stats.keys == list(expected)
    for key, act in expected.items():
        vectors = act.detach().flatten(0, 1)
        assert stats.count(*key) == len(vectors)
        assert torch.allclose(stats.mean(*key), vectors.mean(0), rtol=1e-12, atol=1e-13)
        assert torch.allclose(stats.covariance(*key), torch.cov(vectors.flatten(1).T), rtol=1e-10, atol=1e-12)


def test_a_large_mean_costs_no_digits():
    vectors = torch.randn(1000, 3, dtype=torch.float64)
    moments = Moments.none((3,), covariance=True)
    for part in (vectors + 1e8).split(7):
        moments.add(part)
    assert torch.allclose(moments.scatter / 999, torch.cov(vectors.T), atol=1e-6)


def test_written_and_read_back(model, x, tmp_path):
    stats = collect_stats(model, x, SITES)
    assert equal(Stats.from_dict(json.loads(json.dumps(stats.to_dict()))), stats)
    stats.save(tmp_path / "stats.safetensors")
    assert equal(Stats.load(tmp_path / "stats.safetensors"), stats)
    means = collect_stats(model, x, ["resid_post"], covariance=False)
    means.save(tmp_path / "means.safetensors")
    back = Stats.load(tmp_path / "means.safetensors")
    assert equal(back, means)
    with pytest.raises(ValueError, match="hold no covariance"):
        back.covariance("resid_post", 0, "cls")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no stats"):
        Stats.load(tmp_path / "other.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "stats.safetensors").read_bytes()[:99])
    for damaged in ("half.safetensors", "empty.safetensors"):
        (tmp_path / damaged).touch()
        with pytest.raises(ValueError, match=f"{damaged} holds no stats of collect_stats: "):
            Stats.load(tmp_path / damaged)


def test_they_are_parameters(model, x):
    stats = collect_stats(model, x, ["resid_post"])
    iv = mean_tokens(layer=-1, tokens="cls", stats=stats)
    assert torch.equal(iv.params["mean"], stats.mean("resid_post", 1, "cls"))
    assert iv.params["stats"] is None
    assert from_dict(iv.to_dict()) == iv
    with pytest.raises(
        ValueError, match=r"hold nothing for \('resid_mid', 0, 'cls'\); they hold \('resid_post', 0, 'cls'\)"
    ):
        mean_tokens(layer=0, tokens="cls", stats=stats, site="resid_mid")


def test_whatever_holds_the_images(model, x):
    want = collect_stats(model, x, ["resid_post"], batch_size=8)
    labels = torch.zeros(23)
    batches = list(x.split(8))
    for data in (
        batches,
        iter(batches),
        [(b, labels[: len(b)]) for b in batches],
        [[b, labels[: len(b)]] for b in batches],
        [{"pixel_values": b, "label": labels[: len(b)]} for b in batches],
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=8),
    ):
        assert equal(collect_stats(model, data, ["resid_post"]), want)


def test_images_go_through_the_processor(tmp_path, monkeypatch):
    model = tiny("vit")[1]
    seen = []
    monkeypatch.setattr(
        type(model), "preprocess", lambda self, images: (seen.append(len(images)), pixels(self, n=len(images)))[1]
    )
    images = [Image.new("RGB", (32, 32)) for _ in range(5)]
    rows = datasets.Dataset.from_dict({"image": images, "label": [0] * 5}).cast_column("image", datasets.Image())

    class Data:
        def batches(self, size):
            return iter([type("Batch", (), {"images": images[:3]})(), type("Batch", (), {"images": images[3:]})()])

    for data, sizes in ((images, [2, 2, 1]), (rows, [2, 2, 1]), (Data(), [3, 2]), ([images[:4], images[4:]], [4, 1])):
        seen.clear()
        stats = collect_stats(model, data, [("resid_post", 0, "cls")], batch_size=2)
        assert seen == sizes
        assert stats.count("resid_post", 0, "cls") == 5


def test_only_as_deep_as_needed_and_roles_by_default(model, x):
    reached = []
    handle = model.blocks[1].register_forward_hook(lambda *_: reached.append(1))
    try:
        stats = collect_stats(model, x[:2], [("attn_out", 0)])
        assert not reached
    finally:
        handle.remove()
    assert stats.keys == [("attn_out", 0, "cls"), ("attn_out", 0, "patches")]
    registers = tiny("registers")[1]
    roles = {tokens for _, _, tokens in collect_stats(registers, pixels(registers), "resid_post").keys}
    assert roles == {"cls", "registers", "patches"}


def test_of_runs_under_an_intervention(model, x):
    gone = torch.zeros(23, 17, dtype=torch.bool)
    gone[::2, -3:] = True
    with apply(model, remove_tokens("all", where=gone)):
        stats = collect_stats(model, x, [("resid_post", 0, "patches")], batch_size=23)
    assert stats.count("resid_post", 0, "patches") == 23 * 16 - 12 * 3


@pytest.mark.parametrize(
    ("sites", "says"),
    [
        (["resid"], "no site is called 'resid'"),
        (["pattern"], "no site"),
        ([("resid_post", 5)], "layers are 0 to 1"),
        ([("resid_post", 0, "dist")], "no 'dist' token"),
        ([("pooled", 0, "cls")], "what is pooled"),
        ([("pooled", None, "dist")], "what is pooled"),
        ([], "at least one site"),
    ],
)
def test_refused_before_any_run(model, x, sites, says):
    before = model.run.n_forwards
    with pytest.raises(ValueError, match=says):
        collect_stats(model, x, sites)
    assert model.run.n_forwards == before


def test_too_little_data(model, x):
    with pytest.raises(ValueError, match="no images"):
        collect_stats(model, [], ["resid_post"])
    one = collect_stats(model, x[:1], [("resid_post", 0, "cls")])
    with pytest.raises(ValueError, match="at least two"):
        one.covariance("resid_post", 0, "cls")
    assert "n=1" in repr(one)


def test_nothing_stays_attached(model, x):
    collect_stats(model, x, ["pooled"])
    with apply(model, shuffle_cls(0)):
        collect_stats(model, x[:3], ["pooled"])
    assert not any(point._forward_hooks for point in model.hook_points())
