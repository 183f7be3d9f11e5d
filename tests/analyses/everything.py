"""Every analysis on a tiny model and a few scenes, under names that are markup, links, formulas and templates."""

from __future__ import annotations

import inspect
from functools import cache

import torch
import transformers

from analyses.command_line.options import options_of
from analyses.data import ImageData, load_data
from analyses.running.catalogue import Analysis, registered_analyses
from analyses.running.models import default_models, load_model
from analyses.running.results import Result
from hooked_vit import HookedViT

LINK = '<a href="https://evil.example/{}">{}</a> & $\\alpha$ %{{x}} <b>bold</b><br>'
MODEL, DATA = LINK.format("model", "m"), LINK.format("data", "d")
CLASSES = [LINK.format(f"class{i}", i) for i in range(10)]
SMALL = {
    **{"seeds": 1, "random_models": 1, "permutations": 1, "n_shuffles": 5, "n_permutations": 5, "epochs": 1},
    **{"lens_images": 20, "draws": 2, "points": 2, "shots": 1, "calibration": 8, "min_images": 1, "max_pairs": 4},
    **{"bands": 2, "images": 1, "memories": 1, "examples": 1, "components": 2, "batch_size": 20, "patience": 1},
    **{"steps": 2, "top": 2, "ways": 2, "queries": 1, "episodes": 2},
    **{"tau": 0.02},  # of a patch this large hardly any lies on a digit by half
}


@cache
def model() -> HookedViT:
    """A ViT of two blocks whose classes have hostile names."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
        **{"image_size": 48, "patch_size": 16, "id2label": dict(enumerate(CLASSES))},
    )
    net = HookedViT.from_hf(transformers.ViTForImageClassification(config).eval())
    net.cfg = net.cfg.replace(name=MODEL)
    net.processor = transformers.ViTImageProcessorPil(size={"height": 48, "width": 48})
    return net


@cache
def scenes(split: str = "test", n: int = 40) -> ImageData:
    """Scenes under another name, whose classes have hostile names too."""
    data = load_data(f"scenes:{split}", n=n)
    data.name, data.class_names = DATA, list(CLASSES)
    return data


def arguments(entry: Analysis) -> dict[str, object]:
    """What makes an analysis short."""
    takes = inspect.signature(entry.run).parameters
    named = {option.name: SMALL[option.name] for option in options_of(entry.run) if option.name in SMALL}
    fit = {"fit_data": scenes("train", 60)} if "fit_data" in takes else {}
    parts = {"parts": ("class-projection", "class-values")} if "parts" in takes else {}
    return named | fit | parts


def asked(entry: Analysis) -> HookedViT:
    """A model the analysis can be asked of: where it compares counts, one that can count."""
    if entry.zoo_target == "label":
        return model()
    counting = load_model(default_models(entry.zoo_target)[0])
    counting.cfg = counting.cfg.replace(name=MODEL)
    return counting


@cache
def results() -> dict[str, Result]:
    """The result of every analysis that compares models on data."""
    commands = {name: entry for name, entry in registered_analyses().items() if entry.is_command}
    return {name: entry.run({MODEL: asked(entry)}, scenes(), **arguments(entry)) for name, entry in commands.items()}
