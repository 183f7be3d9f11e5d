"""Whether the hub answers, and what its refusals mean: that it has no such repository, or that it is out of reach.

Its client tries for 20 seconds and more what cannot be reached, file by file, so the hub itself is asked first.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

PATIENCE = 4.0
"""Seconds for one answer of the hub."""
REMEMBERED = 60.0
"""Seconds for which an answer, or none, is believed."""
PINNED = re.compile(r"(?P<id>\w[\w.-]*(?:/[\w.-]+)?)@(?P<revision>[\w./-]+)")


def pinned(name_or_path: str, keywords: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A hub id that says its revision, OWNER/NAME@REVISION, as the id and keywords of a download; others as they are.

    >>> pinned("facebook/dinov2-small@main", {})
    ('facebook/dinov2-small', {'revision': 'main'})

    A revision is a commit, a tag or a branch. Raises ValueError where the keywords say another one.
    """
    said = None if Path(name_or_path).exists() else PINNED.fullmatch(name_or_path)
    if said is None:
        return name_or_path, dict(keywords)
    if (other := keywords.get("revision")) not in (None, said["revision"]):
        raise ValueError(f"a checkpoint is of one revision; got {name_or_path!r} and revision={other!r}")
    return said["id"], {**keywords, "revision": said["revision"]}


def trouble() -> str | None:
    """Why the hub does not answer; None where it does. Asked once a minute and without retries."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "the hub is not asked, as HF_HUB_OFFLINE is set"
    return _trouble(constants.ENDPOINT, int(time.monotonic() / REMEMBERED))


@lru_cache(maxsize=1)
def _trouble(endpoint: str, minute: int) -> str | None:
    from huggingface_hub import get_session

    try:
        status = get_session().head(endpoint, timeout=PATIENCE).status_code
    except Exception as error:  # of whichever library its client is made of
        return f"the hub ({endpoint}) cannot be reached ({_first_line(error)})"
    return f"the hub ({endpoint}) cannot be reached (it answers {status})" if status >= 500 else None


def check_reached() -> None:
    """Raises ConnectionError where the hub does not answer, before its client tries for long."""
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and (why := trouble()):
        raise ConnectionError(why)


def within_reach(name_or_path: str | Path, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of a download; where the hub does not answer, what is kept on this machine alone is looked at."""
    away = not Path(name_or_path).exists() and trouble() is not None
    return {**keywords, **({"local_files_only": True} if away else {})}


@contextmanager
def hub_in_words(repository: str | Path) -> Iterator[None]:
    """An OSError about a repository, as one that says in a sentence what was wrong."""
    try:
        yield
    except OSError as error:
        raise type(error)(_meant(str(repository), error)) from error


def _meant(repository: str, error: BaseException) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)

    def has(kind: type[Exception]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    if has(GatedRepoError):  # which is a RepositoryNotFoundError too
        return f"it is {_gated(repository, 'model')}"
    if has(RepositoryNotFoundError):
        return "the hub has no such model (or it is private: log in with `hf auth login`)"
    if has(RevisionNotFoundError):
        return "the hub's model has no such revision"
    if has(HFValidationError):
        return "it is no hub id, which is OWNER/NAME"
    if has(LocalEntryNotFoundError):
        return f"{trouble() or 'the hub is not asked (local_files_only)'}, and it is not in the cache here"
    return _first_line(error)


def _gated(repository: str, kind: str) -> str:
    from huggingface_hub import constants

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repository}"
    return f"gated: agree to its terms at {page} and log in with `hf auth login`"


def is_cached(repository: str) -> bool:
    """Whether the hub's cache on this machine holds a config and weights."""
    from huggingface_hub import try_to_load_from_cache

    repository, at = pinned(repository, {})

    def has(file: str) -> bool:
        return isinstance(try_to_load_from_cache(repository, file, **at), str)

    weights = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json")
    return has("config.json") and any(map(has, weights))


def on_hub(repository: str, kind: str) -> str | None:
    """Why the hub does not give this repository, a "model" or a "dataset"; None where it does."""
    if away := trouble():
        return away + (", and it is not in the cache here" if kind == "model" else "")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    repository, at = pinned(repository, {})
    try:
        HfApi().repo_info(repository, repo_type=kind, timeout=PATIENCE, **at)
        HfApi().auth_check(repository, repo_type=kind)
    except GatedRepoError:
        return _gated(repository, kind)
    except RepositoryNotFoundError:
        return "the hub has no such repository"
    except RevisionNotFoundError:
        return f"the hub's {kind} has no such revision"
    except (HfHubHTTPError, OSError) as error:
        return f"the hub does not answer: {_first_line(error)}"
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
