"""One number for what a thing is: equal for equal things in every process, another for every change."""

from __future__ import annotations

import datetime
import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from analyses.running.notes import about_model
from hooked_vit import zoo
from hooked_vit.loading.digests import autocast_of, digest, model_digests, stream_digests
from tests.tiny import make

ROOT = Path(__file__).parents[3]


class Colour(Enum):
    RED = 1
    BLUE = 2


@dataclass
class Point:
    x: float
    y: object = None


def plus(n):
    return lambda x: x + n


DIFFERENT = [
    *(None, True, False, 0, 1, -1, 1.0, 0.0, -0.0, float("nan"), 1j, "", "1", b"", b"1", "é", "\udcff"),
    *([], [0], [[0]], [0, 0], {}, {"a": 1}, {"a": 2}, {"b": 1}, {1: 1}, set(), {1}, {1, 2}),
    *(torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.float64), torch.tensor([0.0, -0.0])),
    *(torch.zeros(0), torch.zeros((), dtype=torch.bfloat16), torch.tensor([1 + 1j]).conj(), torch.zeros(2).to_sparse()),
    *(np.zeros(2), np.zeros(2, np.float32), np.zeros((1, 2)), np.array(["a"]), np.array([None]), np.float32(0)),
    *(np.datetime64("2020-01-01"), np.array(["2020-01-01"], "M8[D]"), np.array([{"a": 1}], object)),
    *(Image.new("RGB", (2, 3)), Image.new("RGB", (3, 2)), Image.new("L", (2, 3)), Image.new("RGB", (2, 3), 1)),
    *(F.relu, F.gelu, plus(1), plus(2), lambda x: x, lambda x, y=1: x, lambda x, y=2: x, len, max),
    *(functools.partial(F.gelu, approximate="tanh"), functools.partial(F.gelu, approximate="none")),
    *(Colour.RED, Colour.BLUE, Point(1.0), Point(2.0), Point(1.0, [Point(1.0)]), SimpleNamespace(a=1), Point, Colour),
    *(torch.nn.Linear(1, 1), torch.nn.GELU(), datetime.date(2020, 1, 1), datetime.date(2020, 1, 2), range(3)),
]


def test_different_things_have_different_digests():
    found = [digest(value) for value in DIFFERENT]
    assert len(set(found)) == len(found)
    assert found == [digest(value) for value in DIFFERENT]


def test_things_run_into_each_other_nowhere():
    assert len({digest("ab", "c"), digest("a", "bc"), digest(["a", "b"], "c"), digest("a", ["b", "c"])}) == 4
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(torch.ones(3, 2).T) == digest(torch.ones(2, 3))
    assert digest(np.asfortranarray(np.arange(6).reshape(2, 3))) == digest(np.arange(6).reshape(2, 3))


def test_an_object_that_holds_itself():
    one, two = SimpleNamespace(a=1), SimpleNamespace(a=2)
    one.me, two.me = one, two
    assert digest(one) != digest(two)
    assert digest(one) == digest(one)


def test_it_is_the_same_in_another_process_and_what_cannot_be_described_is_not():
    code = (
        "from hooked_vit import zoo\nfrom hooked_vit.loading.digests import *\nimport sys\n"
        "print(model_digests(zoo.load('vit')), digest({'a', 'b', 'c'}), digest(sys.stdout))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
    *model, letters, stream = there.split()
    assert model == str(model_digests(zoo.load("vit"))).split()
    assert letters == digest({"c", "b", "a"})
    assert stream != digest(sys.stdout)


@pytest.mark.parametrize("family", ["vit", "deit-teacher", "beit-cls-shared-abs", "registers"])
def test_every_tensor_of_a_model_counts_to_the_last_bit(family):
    model = make(family)
    before, seen = model_digests(model), set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        last = tensor.data.view(-1).view(torch.uint8)[-8:]  # float64: the last byte of the last number
        last[0] ^= 1
        now = model_digests(model)
        assert {what for what in now if now[what] != before[what]} == {"weights"}, name
        assert now["weights"] not in seen, name
        seen.add(now["weights"])
        last[0] ^= 1
    assert model_digests(model) == before


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("config", lambda m: setattr(m, "cfg", m.cfg.replace(act_fn="relu"))),
        ("config", lambda m: setattr(m, "cfg", m.cfg.replace(class_names=tuple("abcde")))),
        ("config", lambda m: setattr(m.blocks[0].mlp, "act", plus(1))),
        ("config", lambda m: setattr(m.blocks[0].ln1, "eps", 1e-3)),
        ("config", lambda m: m.set_attention("eager")),
        ("processor", lambda m: setattr(m, "processor", SimpleNamespace(size=3))),
        ("hooks", lambda m: m.blocks[0].hook_resid_pre.add_hook(lambda x, hook: x)),
        ("hooks", lambda m: m.blocks[0].register_forward_pre_hook(lambda module, x: None)),
        (None, lambda m: setattr(m, "cfg", m.cfg.replace(name="elsewhere"))),
    ],
)
def test_what_else_decides_an_answer_counts(part, change):
    model = make("vit")
    before = model_digests(model)
    change(model)
    now = model_digests(model)
    assert {what for what in now if now[what] != before[what]} == ({part} if part else set())


def test_an_autocast_is_part_of_what_a_model_answers():
    """So that nothing kept from float32 is used in it, and the other way round."""
    model = make("vit", torch.float32)
    before = model_digests(model), stream_digests(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert about_model(model)["dtype"] == "float32, inside autocast to bfloat16"
        for here, plain in zip((model_digests(model), stream_digests(model)), before, strict=True):
            assert {name for name in here if here[name] != plain[name]} == {"config"}
    assert about_model(model)["dtype"] == "float32"
    assert (model_digests(model), stream_digests(model)) == before
    assert autocast_of(model.to("meta")) is None
