"""What holds for every test: no network, nothing left in the home folder, one thread per process."""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import sys
import tempfile
import typing
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jaxtyping
import pytest
from beartype.roar import BeartypeCallHintViolation

# Set before anything imports transformers, datasets or torch, which read them once; child processes inherit them.
HF_HOME = tempfile.mkdtemp(prefix="hooked-vit-tests-")
os.environ["HF_HOME"] = HF_HOME
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"


CHECKED = jaxtyping.jaxtyped


def of_modules_and_classes(*, typechecker: Any) -> Any:
    """Annotations are checked, but not those of functions inside functions.

    Their checks would be written and compiled anew whenever the function around them is called: two thirds of the time
    of all tests. The import hook looks this decorator up in jaxtyping.
    """
    check = CHECKED(typechecker=typechecker)

    def checked(found: Any) -> Any:
        if "<locals>" in getattr(found, "__qualname__", ""):
            return found
        known = of_a_function(found)
        return check(found) if known is None else once_a_call(found, typechecker(found), "jaxtyping" in known)

    return checked


def of_a_function(found: Any) -> str | None:
    """What a function's annotations say; None of what is no function or runs later, or if they cannot be read yet."""
    if not inspect.isfunction(found) or inspect.isgeneratorfunction(found):
        return None
    try:
        return repr(typing.get_type_hints(found, include_extras=True))
    except Exception:  # names that are imported for annotations alone, or follow later
        return None


def once_a_call(function: Callable[..., Any], check: Callable[..., Any], shapes: bool) -> Callable[..., Any]:
    """The same check as jaxtyping's own, which takes three times as long: it binds and checks all arguments twice.

    Dimensions of the same name are the same throughout a call, which it is jaxtyping's to remember.
    """
    remembered = CHECKED("context") if shapes else nullcontext()

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        try:
            with remembered:
                return check(*args, **kwargs)
        except BeartypeCallHintViolation as error:
            raise jaxtyping.TypeCheckError(str(error)) from error

    return called


def pytest_configure() -> None:
    import hypothesis

    jaxtyping.jaxtyped = of_modules_and_classes
    # A busy machine is slow, not wrong.
    hypothesis.settings.register_profile("hooked-vit", deadline=None, print_blob=True)
    hypothesis.settings.load_profile("hooked-vit")


def pytest_unconfigure() -> None:
    shutil.rmtree(HF_HOME, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Workers of a parallel run would otherwise fight for the cores, and sums could change with their number."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_history() -> None:
    """A model remembers that its runs held other tokens; which tests came before on a shared one must not show."""
    tiny = sys.modules.get("tests.tiny")
    for _, model in tiny.SHARED.values() if tiny else ():
        model.run.lookalikes.clear()
