"""`verify` passes the sound model and fails the one with a fault, naming where."""

from __future__ import annotations

import math

import pytest
import torch

from hooked_vit import HookedViT
from hooked_vit.components.watching import HookPoint
from hooked_vit.hook_table import without_layer
from hooked_vit.loading.verify import causal, distance, foreign_size, verify
from tests.tiny import TINY, make, make_hf, pixels

# a class of every family, every kind of readout, and of answer where there is no head
CASES = (
    *("vit", "vit-wide", "vit-model", "deit-teacher", "deit-model", "beit-mean-both", "beit-model-cls", "beit-masked"),
    *("dinov2-swiglu", "registers-model", "clip-full", "clip-projection", "clip-classifier", "clip-model"),
    *("aimv2-model", "aimv2-biased", "aimv2-head", "aimv2-full"),
    *("msn", "msn-model", "mae", "mae-model", "ijepa", "ijepa-model"),
    *("data2vec", "data2vec-shared", "data2vec-model", "data2vec-model-cls"),
    *("metaclip-2-model", "metaclip-2-full", "metaclip-2-projection", "metaclip-2-classifier"),
    *("chinese-clip-model", "chinese-clip-full", "altclip-model", "altclip-full"),
    *("dinov3", "dinov3-gated", "dinov3-backbone"),
    *("siglip", "siglip-headless", "siglip-classifier", "siglip-full"),
)


@pytest.fixture
def saved(tmp_path):
    def save(name):
        make_hf(name).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("name", CASES)
def test_a_sound_model_passes(saved, name):
    rows = verify(saved(name))
    assert [row for row in rows if not row.ok] == []
    model = make(name)
    sizes = [model.cfg.image_size, *([] if TINY[name].is_native_only else [foreign_size(model)])]
    assert rows.pop().check.endswith("beside nnsight")
    compared = [row for row in rows if "edit" not in row.check]
    assert len(compared) == len(sizes) * 2 * 2
    for height, width in sizes:
        assert sum(f"{height} x {width} pixels" in row.check for row in compared) == 4
    assert all(row.worst == 0.0 for row in compared if row.bound == "exactly 0")
    assert len(rows) - len(compared) == len({without_layer(hook) for hook in model.hook_dict})


def fault(monkeypatch, change):
    """Our model with a change that the original has not."""
    sound = HookedViT.from_hf

    def faulty(hf):
        model = sound(hf)
        change(model)
        return model

    monkeypatch.setattr(HookedViT, "from_hf", faulty)


def test_a_wrong_epsilon_is_seen(monkeypatch, saved):
    fault(monkeypatch, lambda model: setattr(model.blocks[0].ln1, "eps", 1e-6))
    failed = {row.check.partition(",")[0] for row in verify(saved("vit")) if not row.ok}
    assert failed == {"logits", "all 3 hidden states"}


def test_a_wrong_readout_is_seen_in_the_logits_alone(monkeypatch, saved):
    fault(monkeypatch, lambda model: setattr(model, "cfg", model.cfg.replace(sources=("patches",))))
    failed = {row.check.partition(",")[0] for row in verify(saved("vit")) if not row.ok}
    assert failed == {"logits"}


class Deaf(HookPoint):
    """Shows its activation to hooks and drops what they return."""

    def __call__(self, x):
        super().__call__(x)
        return x

    def show(self, x):
        super().show(x.clone())
        return x


def test_a_hook_whose_value_is_dropped_is_dead():
    model = make("vit", torch.float32)
    for hook in ("mlp.hook_post", "attn.hook_pattern", "hook_resid_mid", "ln1.hook_scale"):
        model.get_submodule(f"blocks.1.{hook}").__class__ = Deaf
        failed = [row for row in causal(model, pixels(model, n=1)) if not row.ok]
        assert [row.check for row in failed] == [f"an edit of blocks.{hook} moves the output, in each of 2 blocks"]
        assert failed[0].worst == 0.0
        model.get_submodule(f"blocks.1.{hook}").__class__ = HookPoint


def test_a_hook_that_never_fires_is_dead():
    model = make("vit", torch.float32)
    model.blocks[0].attn.forward = lambda x: torch.zeros_like(x)
    dead = {row.check.split()[3] for row in causal(model, pixels(model, n=1)) if not row.ok}
    assert dead == {
        *(f"blocks.attn.hook_{name}" for name in ("q", "k", "v", "attn_scores", "pattern", "z", "result")),
        # they feed nothing but attention
        *(f"blocks.ln1.hook_{name}" for name in ("scale", "normalized")),
    }


def test_nothing_is_left_behind():
    model = make("deit-teacher", torch.float32)
    x = pixels(model, n=1)
    before = model(x)
    causal(model, x)
    assert model.run.attention == "auto"
    assert not any(point.fwd_hooks or point._forward_hooks for point in model.hook_dict.values())
    assert torch.equal(model(x), before)


def test_distance():
    assert distance(torch.tensor([0.0, 0.5]), torch.tensor([0.0, 0.25])) == 0.25
    assert distance(torch.tensor([0.0, 12.0]), torch.tensor([0.0, 10.0])) == pytest.approx(0.2)
    assert distance(torch.tensor([math.nan]), torch.tensor([0.0])) == math.inf
    assert distance(torch.zeros(2, 1), torch.zeros(1, 2)) == math.inf
