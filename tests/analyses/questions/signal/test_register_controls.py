"""What is replaced is what is said to be: equal to separate runs with plain hooks, and known where it must be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from analyses import Result
from analyses.data import ImageData, as_data
from analyses.questions.signal.register_controls.register_controls import register_controls
from analyses.running.catalogue import get_analysis
from hooked_vit import HookedViT
from tests.tiny import CLASSES, IMAGE, make_hf, processor_of

FAMILIES = ("vit", "deit-teacher", "registers", "dinov3")
WAYS = {"zero", "mean", "noise", "shuffle"}


def model(name: str) -> HookedViT:
    return HookedViT.from_hf(make_hf(name), processor=processor_of((IMAGE, IMAGE)))


def pictures(n: int, seed: int) -> ImageData:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % CLASSES)
    base = np.random.default_rng(0).uniform(60, 200, (CLASSES, 3))
    images = [np.clip(base[y] + rng.normal(0, 25, (IMAGE, IMAGE, 3)), 0, 255).astype(np.uint8) for y in labels]
    return as_data(([Image.fromarray(image) for image in images], labels.tolist()))


@pytest.fixture(scope="module")
def result() -> Result:
    models = {name: model(name) for name in FAMILIES}
    return register_controls(models, pictures(40, 1), fit_data=pictures(50, 2), batch_size=20, head="ridge")


def rows(result: Result, name: str, measure: str, **where: object):
    found = result.frame[(result.frame.model == name) & (result.frame.measure == measure)]
    for column, value in where.items():
        found = found[(found[column] == value).fillna(False)]
    return found


@pytest.mark.parametrize("way", ["zero", "mean"])
def test_patches_are_those_of_plain_hooks(result: Result, way: str) -> None:
    one = model("registers")
    fitted, measured = (one.preprocess(next(pictures(*of).batches(60)).images) for of in ((50, 2), (40, 1)))
    where = one.tokens.registers
    blocks = [f"blocks.{l}.hook_resid_post" for l in range(one.cfg.n_layers)]
    with torch.no_grad():
        _, cache = one.run_with_cache(fitted, names_filter=blocks)
        _, clean = one.run_with_cache(measured, names_filter=blocks[-1])

        def replace(act, hook):
            act = act.clone()
            act[:, where] = 0 if way == "zero" else cache[hook.name][:, where].mean(0)
            return act

        with one.hooks([(name, replace) for name in blocks]):
            _, edited = one.run_with_cache(measured, names_filter=blocks[-1])
    a, b = (x[blocks[-1]][:, one.tokens.patches].double() for x in (clean, edited))
    want = float(torch.cosine_similarity(a, b, dim=-1).mean())
    got = rows(result, "registers", "patch_cosine", token="registers", replaced=way).value.item()
    assert got == pytest.approx(want, abs=1e-5)
    assert got < 0.9999


def test_everything_is_measured_beside_its_control(result: Result) -> None:
    for name in FAMILIES:
        about = result.meta["models"][name]
        some = rows(result, name, "accuracy")
        assert (some.n == 40).all()
        assert set(some.token.dropna()) == {*about["prefix"], "as many patches"}
        assert some[some.token.notna()].groupby("token").replaced.agg(set).eq(WAYS).all()
        assert (rows(result, name, "accuracy", replaced="noise").groupby("token").seed.nunique() == 2).all()
        k = about["prefix"].count("registers") or 1
        assert len(about["targets"]["as many patches"]) == k
        assert min(about["targets"]["as many patches"]) >= len(about["prefix"])


def test_a_readout_of_cls_alone_knows_nothing_once_cls_is_a_constant() -> None:
    one = model("registers")
    told = register_controls({"m": one}, pictures(40, 1), fit_data=pictures(50, 2), reads="cls", batch_size=20, seeds=1)
    chance = rows(told, "m", "chance").value.item()
    for way in ("zero", "mean"):
        assert rows(told, "m", "accuracy", token="cls", replaced=way).value.item() <= chance
    clean = told.frame[(told.frame.measure == "accuracy") & told.frame.token.isna()].value.item()
    assert clean > 2 * chance
    # registers behind the last block are not read, patches neither
    assert rows(told, "m", "accuracy", token="registers", replaced="mean").value.item() > chance


def test_of_one_picture_nothing_but_zero_is_a_change() -> None:
    """Its mean, noise of its variance, which is none, and another image's tokens are its own."""
    (batch,) = pictures(5, 3).batches(5)

    def repeated(picture: Image.Image, n: int) -> ImageData:
        return as_data(([picture] * n, [i % CLASSES for i in range(n)]))

    (picture, *_) = batch.images
    almost = picture.copy()  # to the pixel it would be an image that is measured
    almost.putpixel((0, 0), tuple(255 - value for value in picture.getpixel((0, 0))))
    told = register_controls({"m": model("dinov3")}, repeated(picture, 10), fit_data=repeated(almost, 15), batch_size=5)
    for way in WAYS:
        cosine = rows(told, "m", "patch_cosine", token="registers", replaced=way).value
        assert (cosine.max() < 0.9999) if way == "zero" else (cosine.min() > 1 - 1e-5)


def test_the_figures_are_drawn(result: Result) -> None:
    entry = get_analysis("register-controls")
    for draw in (entry.figure, *entry.figures(result).values()):
        assert draw is not None
        draw(result)
    assert len(result.meta["summary"]) == sum(len(a["targets"]) for a in result.meta["models"].values())


@pytest.mark.parametrize(("name", "reads"), [("ijepa", "auto"), ("ijepa", "cls"), ("siglip", "auto")])
def test_a_model_without_such_tokens_is_refused(name: str, reads: str) -> None:
    with pytest.raises(ValueError, match="there are no CLS and no registers in front of the patches of m"):
        register_controls({"m": model(name)}, pictures(40, 1), reads=reads)
