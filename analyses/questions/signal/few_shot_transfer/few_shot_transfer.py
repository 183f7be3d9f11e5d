"""Are few-shot classes of another domain told apart better without the learned CLS embedding?

Zou et al. 2024 (NeurIPS) find that it absorbs what the training domain has in common: left as training begins with it,
a draw of N(0, 0.02²), prototypes of CLS tell classes of other domains apart better. Here the learned embedding is
exchanged for such draws, for zeros, and for itself moved as far another way, which a gain has to exceed; the other
tokens and a model of random weights are beside it. methods §42.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from PIL import ImageOps

from analyses.data import ImageData, as_data, load_data
from analyses.data.sets import copies_of, one_set
from analyses.questions.signal.few_shot_transfer.episodes import deal
from analyses.questions.signal.few_shot_transfer.figure import gain_figure, in_words, main_figure, summary_table
from analyses.questions.signal.few_shot_transfer.transfer_study import (
    SOURCE,
    TARGET,
    Measured,
    Task,
    differences,
    measure,
    row,
    rows_of,
    variants,
)
from analyses.running.notes import about_data, about_model
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.intervals import Interval
from analyses.statistics.significance import uncorrected
from hooked_vit import HookedViT

READS = "its tokens, of each role the mean behind the last block and the final norm, through prototypes made here"


@analysis(figure=main_figure, more_figures={"What other CLS embeddings gain": gain_figure})
def few_shot_transfer(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *, source_data: ImageData | Any = None,
    ways: int = 5, shots: int = 1, queries: int = 4, episodes: int = 25, seeds: int = 2, seed: int = 0,
    batch_size: int = 128,
) -> Result:  # fmt: skip
    """Are few-shot classes of another domain told apart better without the learned CLS embedding?

    >>> result = few_shot_transfer({"dino": model}, satellite_photos, source_data=photos)  # doctest: +SKIP
    >>> result.frame.query("measure == 'gain' and token == 'cls'")  # doctest: +SKIP

    An episode is `ways` classes of `data`, of each `shots` images whose mean is the prototype and `queries` that get
    the class of the nearest. `source_data` are images of the domain the model knows, on which the same is done. Of the
    built-in scenes, which built-in models know, the negatives are the other domain, and scenes of another split their
    own. Images are dealt into groups that share none, as many as the smallest class fills, and `episodes` drawn within
    each; classes that cannot fill one are left out.

    One row per model, domain, `measure`, `token`, `variant` and `seed`, with a 95 % interval over the `n_groups` groups
    of the n images. Variants: learned; normal, drawn `seeds` times; zeros; matched, the learned one moved as far as the
    drawn one lies from it; random weights. Measures: accuracy; gain, over the learned one; gain_over_matched;
    gain_beyond_source, the gain on `data` minus that on `source_data`; chance.
    Raises ValueError for a model without CLS, a stream, domains with an image in common, and what `deal` raises.
    """
    _check(ways=ways, shots=shots, queries=queries, episodes=episodes, seeds=seeds)
    everything = {name: _variants(name, model, seeds, seed) for name, model in models.items()}
    task = Task(ways, shots, queries, episodes, seed)
    domains = _domains(data, source_data, task)
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    found: dict[str, Measured] = {}
    for name, asked in everything.items():
        found = {domain: measure(name, asked, images, task, batch_size) for domain, images in domains.items()}
        _share_none(domains, len(frozenset.intersection(*(one.marks for one in found.values()))))
        own = [*(line for domain, one in found.items() for line in rows_of(domain, one))]
        own += differences(found) if SOURCE in found else []
        chance = Interval(1 / ways, float("nan"), float("nan"))
        own.append(row(TARGET, "chance", None, None, None, chance, found[TARGET].n, 0))
        rows += [{"model": name, "architecture": models[name].cfg.architecture, **line} for line in own]
        about[name] = about_model(models[name], reads=READS)
        about[name]["interventions"] = [repr(v.intervention) for v in asked if v.intervention is not None]
    meta = {
        "models": about,
        "data": about_data(domains[TARGET]),
        "source_data": about_data(domains[SOURCE]) if SOURCE in domains else None,
        "unit": "a group of images that shares none with another",
        "left_out": {domain: {"classes": one.left_out, "copies": one.copies} for domain, one in found.items()},
        **{key: value for key, value in task._asdict().items() if key != "seed"},
        **{"seeds": list(range(seeds)), "seed": seed, "batch_size": batch_size},
        "interventions": ["swap_cls_parameter"],
    }
    types = {"seed": "Int64", "n": "Int64", "n_groups": "Int64"}
    result = Result(pd.DataFrame(rows).astype(types), meta)
    result.meta["summary"], result.meta["notes"] = in_words(result)
    result.meta["corrected"] = [uncorrected("above 0", "variants, tokens, domains and models")]
    table = summary_table(result).astype(object)
    result.meta["table"] = table.where(table.notna(), None).to_dict("records")
    return result


def _check(**asked: int) -> None:
    for name, number in asked.items():
        if number < (least := 2 if name == "ways" else 1):
            raise ValueError(f"few-shot episodes need {name} of at least {least}; got {number}")


def _variants(name: str, model: HookedViT, seeds: int, seed: int) -> Any:
    try:
        return variants(model, seeds, seed)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _domains(data: Any, source_data: Any, task: Task) -> dict[str, ImageData]:
    """The images of every domain, refused where no episode can be drawn from them or two domains share one."""
    target = one_set(data)
    if source_data is not None:
        domains = {TARGET: target, SOURCE: one_set(source_data)}
    else:
        scenes = target.spec.startswith("scenes:")
        domains = {TARGET: negatives_of(target), SOURCE: other_scenes(target)} if scenes else {TARGET: target}
    for images in domains.values():
        if images.labels is None:
            raise ValueError(
                f"episodes are drawn by class, and the labels of a stream are not known beforehand; save {images.name} "
                "as parquet or in folders first"
            )
        deal(images.labels, task.ways, task.shots + task.queries, task.seed)
    if SOURCE in domains:
        _share_none(domains, len(copies_of(domains[TARGET], domains[SOURCE])))
    return domains


def negatives_of(scenes: ImageData) -> ImageData:
    """The built-in scenes with every colour turned into its opposite: a domain no built-in model was trained on.

    >>> negatives_of(one_set(n=2))
    <negatives of scenes:test: 2 images, 10 classes>
    """
    pictures, labels = [], []
    for batch in scenes.batches(128):
        pictures += [ImageOps.invert(image) for image in batch.images]
        labels += batch.labels.tolist()
    images = as_data((pictures, labels), name=f"negatives of {scenes.name}")
    images.class_names = scenes.class_names
    return images.kept_apart()


def other_scenes(scenes: ImageData) -> ImageData:
    """As many scenes of another split than these, which no built-in model was trained on either.

    >>> other_scenes(one_set(n=2))
    <scenes:validation: 2 images, 10 classes>
    """
    return one_set(load_data(f"scenes:{'test' if 'validation' in scenes.spec else 'validation'}", n=len(scenes)))


def _share_none(domains: Mapping[str, ImageData], shared: int) -> None:
    if len(domains) > 1 and shared:
        raise ValueError(
            f"two domains share no image, and {shared} are both in {domains[TARGET].name} and in "
            f"{domains[SOURCE].name}; take them out of one of them"
        )
