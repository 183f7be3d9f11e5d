"""A model of images and texts as it is used: its classes are prompts, its logits scaled cosines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hooked_vit import architectures
from hooked_vit.architectures import Architecture
from hooked_vit.architectures.base import Texts
from hooked_vit.errors import CheckpointError, UnsupportedModelError
from hooked_vit.loading.checkpoints import load_hf
from hooked_vit.loading.described import checkpoint_class, hub_and_settings
from hooked_vit.loading.hub import pinned
from hooked_vit.model import HookedViT
from hooked_vit.processing import load_processor

VOCABULARIES = (
    *("tokenizer.json", "vocab.json", "vocab.txt"),
    *("spiece.model", "tokenizer.model", "sentencepiece.bpe.model"),
)
TEMPLATES = ("a photo of a {}.",)


def zero_shot_head(
    checkpoint_or_model: Any,
    class_names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    *,
    tokenizer: Any = None,
    processor: Any = None,
    **load: Any,
) -> HookedViT:
    """The vision tower with one class per name: logits are what the whole model says of image and prompt.

    >>> model = zero_shot_head("openai/clip-vit-base-patch16", data.class_names)  # doctest: +SKIP
    >>> cls_causality({"prompts": model}, data)  # doctest: +SKIP

    The prompts of a class are its name in every template; their unit embeddings are averaged and normalised again
    (Radford et al. 2021, section 3.1.4). The image's embedding is divided by its length at `hook_image_scale`; the
    head's weight holds the temperature, its bias the model's. Text is read by transformers' own tower, padded as it
    was in training. A model in memory needs its `tokenizer`; of a checkpoint `load` are `from_pretrained`'s keywords.
    Raises UnsupportedModelError for a class without a text tower, or without a vision tower; CheckpointError for a
    checkpoint without a tokenizer; ValueError for no names, a name given twice, a template without {} and a prompt
    longer than the tower reads.
    """
    names, templates = _checked(class_names, templates)
    place = None
    if isinstance(checkpoint_or_model, (str, Path)):
        place, device = str(checkpoint_or_model), load.pop("device", "cpu")
        hub, _ = hub_and_settings({key: value for key, value in load.items() if key != "dtype"})
        _with_text_tower(checkpoint_class(place, **hub))
        hf_model = load_hf(place, **load).eval().to(device)
        tokenizer = tokenizer or _tokenizer(place, **hub)
        processor = processor or load_processor(place, **hub)
    elif load:
        raise TypeError(f"a model in memory is loaded already: {', '.join(load)} have no meaning")
    else:
        hf_model = checkpoint_or_model
    _, texts = _with_text_tower(type(hf_model).__name__)
    if tokenizer is None:
        raise ValueError("a model in memory comes without its tokenizer: give it, tokenizer=AutoTokenizer.from_pre…")
    embeds = text_embeddings(hf_model, tokenizer, names, templates)
    model = HookedViT.from_hf(hf_model, processor=processor)
    model.cfg = model.cfg.replace(name=place)
    scale, bias = texts.scale(hf_model).detach(), getattr(hf_model, "logit_bias", None)
    model.set_text_head_(embeds, float(scale), 0.0 if bias is None else float(bias.detach()), names)
    return model


def text_embeddings(
    hf_model: Any, tokenizer: Any, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Float[Tensor, "c e"]:
    """The unit embedding of each class by the text tower of a model in memory, as `zero_shot_head` makes its head.

    >>> text_embeddings(transformers.SiglipModel.from_pretrained(name), tokenizer, ["cat", "dog"])  # doctest: +SKIP

    Raises what `zero_shot_head` raises.
    """
    names, templates = _checked(class_names, templates)
    _, texts = _with_text_tower(type(hf_model).__name__)
    prompts = [[template.replace("{}", name) for template in templates] for name in names]
    return torch.stack([_embedding(hf_model, texts, tokenizer, each) for each in prompts])


def check_has_texts(name_or_path: str, **hub: Any) -> None:
    """Make sure, without reading a weight, that a checkpoint holds a text tower.

    Raises UnsupportedModelError where it has none, or there is no such checkpoint.
    """
    _with_text_tower(checkpoint_class(name_or_path, **hub))


def _checked(class_names: Sequence[str], templates: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names, templates = tuple(class_names), tuple(templates)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"classes are told apart by their names: at least one, and none twice; got {names}")
    if not templates or any("{}" not in template for template in templates):
        raise ValueError(f"a template is a sentence with {{}} where the name goes; got {templates}")
    return names, templates


def _with_text_tower(hf_class: str) -> tuple[Architecture, Texts]:
    family = architectures.for_class(hf_class)
    if family.texts is None or hf_class not in family.texts.classes:
        raise UnsupportedModelError(
            f"{hf_class} has no text tower, so class names mean nothing to it; load the whole model "
            f"({', '.join(architectures.with_texts())}), or fit a head: model.set_head_(weight, bias, names)"
        )
    return family, family.texts


@torch.no_grad()
def _embedding(hf_model: Any, texts: Texts, tokenizer: Any, prompts: list[str]) -> Float[Tensor, "e"]:
    """The unit embedding of one class: the mean over its prompts' unit embeddings, normalised again."""
    length = texts.length(hf_model)
    fixed = {"max_length": length} if texts.padding == "max_length" else {}
    tokens = tokenizer(prompts, padding=texts.padding, return_tensors="pt", **fixed)
    if (n := tokens["input_ids"].shape[1]) > length:
        raise ValueError(f"the text tower reads {length} tokens, and a prompt of {prompts[0]!r} and its like has {n}")
    end = texts.end(hf_model)
    if end is not None and not (tokens["input_ids"] == end).any(1).all():
        raise ValueError(
            f"the text tower is read at the token {end} that ends a text, and this tokenizer ends {prompts[0]!r} "
            "without it; give the one that belongs to the model"
        )
    device = hf_model.logit_scale.device
    inputs = {name: tokens[name].to(device) for name in texts.inputs if name in tokens}
    features = hf_model.get_text_features(**inputs).pooler_output
    return F.normalize(F.normalize(features, dim=-1).mean(0), dim=-1)


def _tokenizer(place: str, **hub: Any) -> Any:
    from transformers import AutoTokenizer
    from transformers.utils import cached_file

    name, hub = pinned(place, hub)
    # without a vocabulary transformers makes up an empty one
    if not any(cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub) for file in VOCABULARIES):
        raise CheckpointError(f"{place!r} came without a tokenizer ({', '.join(VOCABULARIES)}); give one, tokenizer=…")
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **hub)
