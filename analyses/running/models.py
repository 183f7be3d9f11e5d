"""Which model is meant: `zoo:NAME`, `published:NAME`, `prompts:MODEL`, a local folder, or a hub id."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooked_vit.errors import UnsupportedModelError, nearest
from hooked_vit.loading.hub import pinned

if TYPE_CHECKING:
    import torch

    from hooked_vit import HookedViT

ZOO = "zoo:"
PUBLISHED = "published:"
PROMPTS = "prompts:"


def load_model(
    spec: str,
    *,
    class_names: Sequence[str] | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    image_size: int | None = None,
    **kw: Any,
) -> HookedViT:
    """The model of a specification; other keywords as in `HookedViT.from_pretrained`.

    >>> model = load_model("zoo:vit", dtype="bfloat16", image_size=96)  # doctest: +SKIP

    `dtype` is float32, bfloat16 or float16, by name or torch's own, or "autocast": float32 whose products are of
    bfloat16, as `HookedViT.set_autocast` has them. With `image_size` its processor makes squares of
    that side.

    `prompts:MODEL` has `class_names` for classes, each in "a photo of a {}.", or in the sentences of
    `prompts:MODEL=SENTENCE|SENTENCE`; to all other models the names are nothing.
    Raises UnsupportedModelError where there is no such model or no hook graph for its class, CheckpointError where its
    tensors do not fit, and what `check_prompts`, `check_device` and `resize_` raise.
    """
    from hooked_vit.config.numbers import AUTOCAST, check_device, dtype_of
    from hooked_vit.loading.placing import resize_

    check_device(device, dtype)
    model = _loaded(spec, class_names, dtype=dtype_of(dtype), device=device, **kw)
    if dtype == AUTOCAST:
        model.set_autocast("bfloat16")
    if image_size is not None:
        resize_(model, image_size)
    return model


def _loaded(spec: str, class_names: Sequence[str] | None, **kw: Any) -> HookedViT:
    from hooked_vit import HookedViT, published, zero_shot_head

    if spec.startswith(PROMPTS):
        check_prompts([spec], class_names)
        place, (_, templates) = check_model(spec), prompts_of(spec)
        model = zero_shot_head(place, class_names or (), templates, **kw)
        model.cfg = model.cfg.replace(name=spec)
        return model
    if spec.startswith(PUBLISHED):
        check_model(spec)
        name, _, weights = spec.removeprefix(PUBLISHED).partition("=")
        return published.load(name, weights or None, **kw)
    model = HookedViT.from_pretrained(check_model(spec), **kw)
    model.cfg = model.cfg.replace(name=spec)  # what was asked for, not where this machine keeps it
    return model


def locate(spec: str) -> str:
    """The local folder or the hub id a specification stands for; says nothing of whether the hub has it.

    >>> locate("google/vit-base-patch16-224")
    'google/vit-base-patch16-224'

    `published:NAME` is what its study loaded; `published:NAME=PATH` takes the weights from a file or a folder.
    Raises UnsupportedModelError for a zoo model or a folder that does not exist, offering the nearest name.
    """
    from hooked_vit import published, zoo
    from hooked_vit.loading.inspection import check_folder

    if spec.startswith(PROMPTS):
        return locate(prompts_of(spec)[0])
    if spec.startswith(PUBLISHED):
        name, _, weights = spec.removeprefix(PUBLISHED).partition("=")
        known = published.get(name)
        if not weights and known.checkpoint is None:
            raise UnsupportedModelError(
                f"{spec} needs a file of weights that is on no hub: {known.weights}. Say where it is: {spec}=PATH"
            )
        if Path(os.path.expanduser(weights or "-")).is_file():
            return str(Path(os.path.expanduser(weights)))
        return locate(weights or str(known.checkpoint))

    if spec.startswith(ZOO):
        if not zoo.names():
            raise UnsupportedModelError(
                "the zoo is empty: this copy of hooked-vit came without it; `make zoo` trains it"
            )
        return str(zoo.path(spec.removeprefix(ZOO)))
    folder = Path(os.path.expanduser(spec))
    if folder.is_dir():
        check_folder(folder)
        return str(folder)
    if folder.exists():
        raise UnsupportedModelError(f"a checkpoint is a folder, {spec!r} is a file; give the folder it is in")
    if spec.startswith((".", "~", "/")) or spec.count("/") > 1 or "\\" in spec:
        raise UnsupportedModelError(f"there is no folder {spec!r}")
    return spec


def check_spelling(spec: str) -> None:
    """Refuse, without torch and the hub, what is nearly a name we know.

    >>> check_spelling("zo:vit")
    Traceback (most recent call last):
    hooked_vit.errors.UnsupportedModelError: no model begins with 'zo:'; did you mean 'zoo:'?

    Raises UnsupportedModelError for a name the zoo has not, a kind of model there is not, and, where no folder is
    called so, a word that is nearly a zoo model's: a hub id has an owner.
    """
    from hooked_vit import zoo

    kind, colon, name = spec.rpartition(PROMPTS)[2].partition(":")
    known = [f"{ZOO}{known}" for known in zoo.names()]
    if colon and f"{kind}:" not in (ZOO, PUBLISHED) and "/" not in kind:
        if meant := nearest(f"{kind}:", (ZOO, PUBLISHED, PROMPTS)):
            raise UnsupportedModelError(f"no model begins with {kind + ':'!r}{meant}")
    elif colon and f"{kind}:" == ZOO and known:
        zoo.path(name)
    elif not (colon or set(kind) & set("/\\.~") or Path(kind).exists()) and (meant := nearest(f"{ZOO}{kind}", known)):
        raise UnsupportedModelError(f"no folder here is called {kind!r}, and a hub id has an owner{meant}")


def check_model(spec: str) -> str:
    """Make sure, without reading a weight, that a model exists and has a hook graph; returns what `locate` does.

    Raises UnsupportedModelError saying what there is instead, CheckpointError for a damaged config.
    """
    from hooked_vit.loading.described import config_json, read_described
    from hooked_vit.loading.zero_shot import check_has_texts

    if spec.startswith(PROMPTS):
        place = check_model(prompts_of(spec)[0])
        check_has_texts(place)
        return place
    place = locate(spec)
    if Path(place).is_file():  # of weights alone: what they fill is known
        return place
    try:
        config_json(place)
    except OSError as error:
        raise UnsupportedModelError(f"{spec!r} is no folder here, and {error}{_suggest(spec)}") from error
    read_described(place)
    return place


def prompts_of(spec: str) -> tuple[str, tuple[str, ...]]:
    """The model behind `prompts:`, and the sentences its class names stand in.

    >>> prompts_of("prompts:openai/clip-vit-base-patch16=a {}|the {}")
    ('openai/clip-vit-base-patch16', ('a {}', 'the {}'))

    Raises ValueError for a sentence without a place for the name, and for a model that is no checkpoint by itself.
    """
    from hooked_vit.loading.zero_shot import TEMPLATES

    inner, said, sentences = spec.removeprefix(PROMPTS).partition("=")
    templates = tuple(sentences.split("|")) if said else TEMPLATES
    if any("{}" not in template for template in templates):
        raise ValueError(f"a prompt is a sentence with {{}} where the name goes, several apart by |; got {sentences!r}")
    if inner.startswith((PROMPTS, PUBLISHED)) or not inner:
        raise ValueError(f"behind {PROMPTS} stands a hub id or a local folder; got {inner!r}")
    return inner, templates


def check_prompts(specs: Sequence[str], class_names: Sequence[str] | None) -> None:
    """Make sure that there are names for the models whose classes are prompts. Raises ValueError."""
    asked = [spec for spec in specs if spec.startswith(PROMPTS)]
    if asked and not class_names:
        raise ValueError(
            f"the classes of {asked[0]} are made of class names, and there are none here: give data whose classes have "
            "names, or where there is no data --classes NAME …"
        )


def _suggest(spec: str) -> str:
    from hooked_vit import zoo

    known = [f"{ZOO}{name}" for name in zoo.names()]
    if not known:
        return ""
    # "vit" is closer to "zoo:vit" than difflib thinks
    meant = nearest(f"{ZOO}{spec}", known) or nearest(spec, known)
    return f"{meant or '.'} The zoo has {', '.join(known)}"


def load_models(specs: Sequence[str], *, class_names: Sequence[str] | None = None, **kw: Any) -> dict[str, HookedViT]:
    """Several models by short name; all are checked before the first weight is read.

    >>> list(load_models(["zoo:vit", "zoo:clip"]))  # doctest: +SKIP
    ['vit', 'clip']

    Raises what `load_model` raises, and ValueError for the same model given twice.
    """
    names = short_names(specs)
    for spec in specs:
        check_model(spec)
    check_prompts(specs, class_names)
    return {name: load_model(spec, class_names=class_names, **kw) for name, spec in names.items()}


def short_names(specs: Sequence[str]) -> dict[str, str]:
    """Short name -> specification; where two would share a name they keep their specification.

    >>> short_names(["zoo:vit", "a/model", "b/model"])
    {'vit': 'zoo:vit', 'a/model': 'a/model', 'b/model': 'b/model'}
    """
    twice = [spec for spec, n in Counter(specs).items() if n > 1]
    if twice:
        raise ValueError(f"every model is compared once; {', '.join(twice)} is given twice")
    short = Counter(map(short_name, specs))
    return {spec if short[short_name(spec)] > 1 else short_name(spec): spec for spec in specs}


def short_name(spec: str) -> str:
    """What a model is called in tables and figures.

    >>> short_name("zoo:vit"), short_name("google/vit-base-patch16-224@main"), short_name("./runs/mine/")
    ('vit', 'vit-base-patch16-224', 'mine')
    """
    if spec.startswith(PROMPTS):
        return short_name(prompts_of(spec)[0])
    if spec.startswith(PUBLISHED):
        return spec.removeprefix(PUBLISHED).partition("=")[0]
    return os.path.basename(os.path.abspath(os.path.expanduser(pinned(spec.removeprefix(ZOO), {})[0])))


def default_models(target: str = "label", only: Sequence[str] = ()) -> list[str]:
    """What is compared where no model is named: the zoo's models trained for a target, or `only` these of them.

    Raises UnsupportedModelError where the zoo is empty.
    """
    from hooked_vit import zoo

    if not (names := zoo.names(target)):
        raise UnsupportedModelError(
            "the zoo is empty: this copy of hooked-vit came without it; name models with --model, or run `make zoo`"
        )
    return [f"{ZOO}{name}" for name in names if not only or name in only]
