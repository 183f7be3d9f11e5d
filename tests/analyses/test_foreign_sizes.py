"""Every analysis where the processor makes images of another size than the checkpoint is native at, square and not.

It is the normal case: DINOv2 is native at 518 pixels, and its own processor crops 224.
"""

from __future__ import annotations

import base64
import inspect
import io
from functools import cache
from typing import Any

import pytest
import torch
from PIL import Image

from analyses.data import ImageData, load_data
from analyses.questions.looking.explorer.view import read_view
from analyses.questions.patching.paths import Receiver
from analyses.running.catalogue import registered_analyses
from analyses.running.results import Result
from hooked_vit import HookedViT, zoo
from tests.tiny import make, make_hf, processor_of

OURS = tuple(name for name, entry in registered_analyses().items() if entry.run.__module__.startswith("analyses."))
# larger than native, with tokens the native size has not; and smaller and not square, without tokens that it has
PLACES = (("beit-mean-both", (48, 48)), ("registers", (16, 24)))

# the analyses that say which pixels a token is of
MAPPED = ("registers", "counting", "gradient-explanations", "class-values", "context-tokens", "token-removal")
MAPPED += ("low-frequency", "perturbation-tests")

WITH_CONTEXT = ("class-embedding", "context-tokens", "token-removal")

CHEAP: dict[str, Any] = {
    **{"seeds": 1, "random_models": 1, "permuted_heads": 1, "permutations": 1, "draws": 2, "points": 2, "shots": 1},
    **{"steps": 1, "lens_images": 20, "epochs": 1, "bands": 2, "components": 2, "n_permutations": 19, "n_shuffles": 19},
    **{"calibration": 8, "min_images": 2, "images": 2, "memories": 1, "examples": 1, "max_pairs": 4, "top": 2},
    **{"controls": ("permuted",), "learning_curve": False, "check": 2, "batch_size": 8},
    **{"ways": 2, "queries": 1, "episodes": 2},
}
"""As little as shows whether the sizes fit together, where an analysis has such an option."""

SPECIAL: dict[str, dict[str, Any]] = {
    "class-embedding": {"parts": ("token-removal",)},  # each is an analysis of its own
    "path-patching": {"receiver": Receiver("logits")},
    "attribution-patching": {"steps": 0},
    "activation-patching": {"tokens": "each"},
    "logit-attribution": {"tokens": "position"},
    "decodability": {"roles": ("cls", "patches", "patch_0", "random_patch")},
    "aligned-subspace": {"layer": 0, "dims": 1},
    # the pairs differ in one object, which moves a random model little
    "circuit-discovery": {"eps": 1e-12, "exact": 4, "sizes": (1, 2)},
}


@cache
def model_at(family: str, size: tuple[int, int]) -> HookedViT:
    """A model that answers with ten classes, whose processor makes images of this size."""
    model = make(family, torch.float32)
    model.processor = processor_of(size)
    width = model.cfg.d_pooled
    model.set_head_(torch.randn(10, width, generator=torch.Generator().manual_seed(0)), torch.zeros(10))
    return model


@cache
def counting_at(size: tuple[int, int]) -> HookedViT:
    """A model that counts some scenes right also when they are drawn larger, native at 48 pixels."""
    model = zoo.load("vit-count")
    model.processor = processor_of(size)
    return model


@cache
def uncovered(*, counts: bool = False) -> HookedViT:
    """A model whose native size is no multiple of its patch, used at that size: the last pixels belong to no token."""
    if counts:
        trained = zoo.load("vit-count")
        model = HookedViT(trained.cfg.replace(image_size=(52, 52)))
        model.load_state_dict(trained.state_dict())
        model.processor = processor_of((52, 52))
        return model
    model = HookedViT.from_hf(make_hf("vit", image_size=30), processor=processor_of((30, 30)))
    model.set_head_(torch.randn(10, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(10))
    return model


@cache
def scenes(split: str) -> ImageData:
    return load_data(f"scenes:{split}", n=20)


def run(name: str, model: HookedViT) -> Result:
    entry = registered_analyses()[name]
    given: dict[str, Any] = {
        "models": {"tiny": model},
        "model": model,
        "data": scenes("test"),
        "fit_data": scenes("train"),
        **CHEAP,
        **SPECIAL.get(name, {}),
    }
    taken = inspect.signature(entry.run).parameters
    pictures = next(scenes("test").batches(4, extra=["pair"]))
    if "data" not in taken:
        given |= {"images": pictures.images, "clean": pictures.images, "corrupt": pictures.extra["pair"]}
        # by default the classes are the predicted ones, and a random model may give all images the same
        answers = model(model.preprocess(pictures.images)).argmax(dim=-1)
        given |= {"targets": (answers + 1) % 10}
        if name == "circuit-discovery":
            given |= {"classes": (answers, (answers + 1) % 10)}
    return entry.run(**{key: value for key, value in given.items() if key in taken})


@pytest.mark.parametrize(("family", "size"), PLACES)
@pytest.mark.parametrize("name", OURS)
def test_an_analysis_asks_the_run_what_belongs_to_the_run(name, family, size):
    # six patches hold no context: every one of them is covered by an object
    model = model_at(family, (24, 40) if name in WITH_CONTEXT and size == (16, 24) else size)
    if name == "counting":
        model = counting_at({(48, 48): (64, 64), (16, 24): (64, 56)}[size])
    result = run(name, model)
    assert len(result.frame)
    for draw in registered_analyses()[name].figures(result).values():
        draw(result)


@pytest.mark.parametrize("name", MAPPED)
def test_tokens_are_mapped_back_to_the_pixels_that_patches_cover(name):
    result = run(name, uncovered(counts=name == "counting"))
    assert len(result.frame)
    for draw in registered_analyses()[name].figures(result).values():
        draw(result)


def test_a_map_lies_on_the_part_of_the_picture_that_it_is_of():
    model = uncovered()
    view = read_view("vit", model, next(scenes("test").batches(1)).images[0])
    frame = run("gradient-explanations", model).frame
    for url in (view["picture"], frame.loc[frame["measure"] == "picture", "picture"].iloc[0]):
        picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        assert picture.size == (24, 24)
