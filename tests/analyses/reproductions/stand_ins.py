"""Tiny random models of any depth in the place of those a recipe names, and scenes in the place of its images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from analyses.data import load_data
from analyses.reproductions.entries import DataEntry, Step
from analyses.reproductions.recipe import Recipe, load_recipe
from hooked_vit import HookedViT

WIDTH = {"hidden_size": 16, "num_attention_heads": 2}
SMALL = {"image_size": 32, "patch_size": 8}
PUBLISHED = {"image_size": 224, "patch_size": 56}  # what they are given, whatever their own processor says
MLP = {"intermediate_size": 24}
CLASSES = {"num_labels": 10}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", CLASSES | MLP),
    "published": ("ViTForImageClassification", CLASSES | MLP | PUBLISHED),
    "deit": ("DeiTForImageClassificationWithTeacher", CLASSES | MLP),
    "beit": ("BeitForImageClassification", MLP | {"use_mean_pooling": False, "num_labels": 30}),
    "dinov2": ("Dinov2Model", {}),
    "registers": ("Dinov2WithRegistersModel", {"num_register_tokens": 4}),
    "dinov3": ("DINOv3ViTModel", MLP | {"num_register_tokens": 4}),
    "clip": ("CLIPVisionModel", MLP),
    "dino": ("ViTModel", MLP),
    "counting": ("ViTForImageClassification", CLASSES | MLP | {"hidden_size": 96}),
}
NAMED = {"plain": "dinov2"}
MEASURED, FITTED, EPISODES = 30, 200, 80
"""Images to measure on; to fit on, ten of every class for the 10-shot probes; and of episodes, six of most classes."""


def stand_in(recipe: str, n_layers: int, folder: Path) -> Recipe:
    """A recipe whose models have `n_layers` layers, or twice as many where the published one is twice as deep."""
    told = load_recipe(recipe)
    models = {}
    for name, entry in told.models.items():
        depth = n_layers * (2 if entry.layers == 24 else 1)
        kind = "published" if entry.checkpoint.startswith("published:") else NAMED.get(name, name)
        kind = "registers" if "with-registers" in entry.checkpoint else kind
        models[name] = str(_saved(kind, depth, folder))
    fitted = {name for step in told.steps for parameter, name in step.data.items() if parameter != "data"}
    told = told.changed(models=models)
    data = {
        name: DataEntry("scenes:train" if name in fitted else "scenes:test", FITTED if name in fitted else MEASURED)
        for name in told.data
    }
    data["few"] = DataEntry("scenes:train", FITTED)  # where the recipe leaves it to the analysis, which takes many
    data["fewest"] = DataEntry("scenes:train", MEASURED)
    data["episodes"] = DataEntry("scenes:test", EPISODES)
    return replace(told, data=data, steps=tuple(map(_cheaper, told.steps)), changes=("all of it",))


def _cheaper(step: Step) -> Step:
    if step.analysis == "low-frequency":
        return replace(step, data={"fit_data": "few", **step.data})
    if step.analysis == "few-shot-transfer":
        return replace(step, data={"data": "episodes"}, options={**step.options, "queries": 1, "episodes": 2})
    if step.analysis == "random-readouts":
        return replace(step, data={**step.data, "fit_data": "fewest"}, options={**step.options, "epochs": 1})
    return step


def _saved(kind: str, n_layers: int, folder: Path) -> Path:
    """The folder of a checkpoint, written once."""
    there = folder / f"{kind}-{n_layers}"
    if not there.exists():
        torch.manual_seed(n_layers)
        hf_class, settings = KINDS[kind]
        config_class = getattr(transformers, hf_class).config_class
        model = getattr(transformers, hf_class)(
            config_class(num_hidden_layers=n_layers, **WIDTH | SMALL | settings)
        ).eval()
        side = model.config.image_size
        processor = transformers.ViTImageProcessorPil(size={"height": side, "width": side})
        if kind == "counting":
            _count_right(model, processor)
        model.save_pretrained(there)
        processor.save_pretrained(there)
    return there


@torch.no_grad()
def _count_right(model: Any, processor: Any) -> None:
    """Give it the head that counts these scenes right, with an object and without it."""
    hooked = HookedViT.from_hf(model, processor=processor)
    (batch,) = load_data("scenes:test", n=MEASURED).batches(MEASURED, extra=["pair", "count"])
    counts = torch.tensor([*batch.extra["count"], *(n - 1 for n in batch.extra["count"])]).double()
    pixels = hooked.preprocess([*batch.images, *batch.extra["pair"]])
    pooled = hooked.run_with_cache(pixels, names_filter="hook_pooled")[1]["hook_pooled"].double()
    with_bias = torch.cat([pooled, torch.ones(len(pooled), 1)], dim=1)
    fit = torch.linalg.lstsq(with_bias, counts, driver="gelsd").solution
    k = torch.arange(10).double()
    # the nearest count wins: -(estimate - k)² without the part that all counts share
    model.classifier.weight.copy_(2 * k[:, None] * fit[:-1])
    model.classifier.bias.copy_(2 * k * fit[-1] - k**2)
