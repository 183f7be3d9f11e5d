"""Questions asked of vision transformers, each answered with its control beside it.

`from analyses import cls_causality` finds the analysis in the module of that name. Names are looked up when asked for,
so that importing this package, or `analyses.cli` to print help, does not import torch.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from difflib import get_close_matches
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analyses.data import digit_scenes, load_data
    from analyses.results import Result

__all__ = ["Result", "digit_scenes", "load_data"]

_HOMES = {
    "Result": "analyses.results",
    "digit_scenes": "analyses.data",
    "load_data": "analyses.data",
    "activation_patching": "analyses.patching",
    "attribution_patching": "analyses.attribution",
}


class _Analyses(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Importing a submodule binds it here under its name; where it is an analysis, the name means the function.
        if isinstance(value, ModuleType) and hasattr(function := getattr(value, name, None), "analysis_name"):
            value = function
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Analyses


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    # Only ever the module of that name: whoever looks for something else here must not import every analysis.
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        importlib.import_module(f"{__name__}.{name}")
        return globals()[name]
    near = get_close_matches(name, __dir__(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *(module.name for module in pkgutil.iter_modules(__path__))})
