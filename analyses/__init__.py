"""Questions asked of vision transformers, each answered with its control beside it.

`from analyses import cls_causality` finds the analysis of that name, in whichever room it stands. Names are looked up
when asked for, so that importing this package, or printing a command's help, does not import torch.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing; nothing is imported here, so that a command can be stopped from the beginning
if TYPE_CHECKING:
    from typing import Any

    from analyses.data import digit_scenes, load_data
    from analyses.probes.classifier_heads import with_ridge_head
    from analyses.questions.features.feature_pages.feature_pages import feature_pages
    from analyses.questions.looking.attention_map import attention_map, show
    from analyses.questions.looking.explorer.explorer import explore
    from analyses.running.registry import analysis
    from analyses.running.results import Result

__all__ = ["Result", "analysis", "attention_map", "digit_scenes", "explore", "feature_pages", "load_data", "show"]
__all__ += ["with_ridge_head"]

_HOMES = {
    "Result": "analyses.running.results",
    "analysis": "analyses.running.registry",
    "attention_map": "analyses.questions.looking.attention_map",
    "show": "analyses.questions.looking.attention_map",
    "digit_scenes": "analyses.data",
    "explore": "analyses.questions.looking.explorer.explorer",
    "feature_pages": "analyses.questions.features.feature_pages.feature_pages",
    "load_data": "analyses.data",
    "with_ridge_head": "analyses.probes.classifier_heads",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    home = _HOMES.get(name) or _questions().get(name)
    # Whoever looks for something private here, as import machinery does, must not have the source searched.
    if home is not None:
        return getattr(import_module(home), name)
    from difflib import get_close_matches

    near = get_close_matches(name, __dir__(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_questions()})


def _questions() -> dict[str, str]:
    from importlib import import_module

    catalogue = import_module("analyses.running.catalogue")
    return {source.function: source.module for source in catalogue.in_source().values()}
