"""What work that is kept depends on, in parts that have names, so that what does not fit can be said; and the checksum
by which what was changed since is not believed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from analyses.data import ImageData
from analyses.running.results import environment
from hooked_vit import HookedViT
from hooked_vit.loading.digests import digest, model_digests
from interventions import Intervention

LENGTH = 16
"""Hex digits kept of a digest."""
CHECKSUM = "checksum"


@dataclass(frozen=True)
class Fingerprint:
    """Digests, or the values themselves where they are short, of all that kept work depends on, by what they are of.

    >>> mark, other = Fingerprint({"weights of vit": "ab", "torch": "2.10"}), Fingerprint({"weights of vit": "cd"})
    >>> mark.key == other.key, mark.differences(other.parts)
    (False, 'weights of vit (ab, not cd) and torch (2.10, not there)')
    """

    parts: Mapping[str, str]

    @property
    def key(self) -> str:
        """16 hex digits that differ where any part differs."""
        return digest(dict(self.parts))[:LENGTH]

    def differences(self, other: Any) -> str:
        """The parts, in words, in which this fingerprint is not the `other` one: ours first."""
        if not isinstance(other, Mapping):
            return "what it was made of, which an earlier version did not note"
        names = [name for name in {**self.parts, **other} if self.parts.get(name) != other.get(name)]
        return " and ".join(f"{n} ({self.parts.get(n, 'not there')}, not {other.get(n, 'there')})" for n in names)


def fingerprint(
    models: Mapping[str, HookedViT], data: Mapping[str, ImageData], settings: Mapping[str, Any]
) -> Fingerprint:
    """The fingerprint of work on models and images, with settings that may hold interventions.

    >>> fingerprint({"vit": model}, {"data": images}, {"batch_size": 64}).key  # doctest: +SKIP

    It covers every byte of the weights, the config with its functions, processor, hooks, type and device of each model;
    pixels, labels and all other columns of the images; what an intervention is called, told and made of; and versions.
    Read anew each time.
    """
    parts: dict[str, str] = {}
    for name, model in models.items():
        weight = model.embed.patch.weight
        parts |= {f"{what} of {name}": mark[:LENGTH] for what, mark in model_digests(model).items()}
        parts[f"device of {name}"] = f"{weight.device.type}, {str(weight.dtype).removeprefix('torch.')}"
    for name, images in data.items():
        parts[f"images of {name}"] = images.fingerprint()
    parts |= {name: _shown(value) for name, value in settings.items()}
    parts["float32_matmul_precision"] = torch.get_float32_matmul_precision()
    return Fingerprint(parts | environment())


def _shown(value: Any) -> str:
    """A setting as itself where it is short, else by its digest."""
    if isinstance(value, (bool, int, float, str)) and len(text := str(value)) <= LENGTH:
        return text
    return digest(_described(value))[:LENGTH]


def _described(value: Any) -> Any:
    """Settings in which every intervention has become its key and the function that makes its hooks."""
    if isinstance(value, Intervention):
        return [(part.key, part.made_by) for part in value.parts]
    if isinstance(value, Mapping):
        return {key: _described(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_described(held) for held in value]
    return value


def sealed(told: Mapping[str, Any], *marks: str, length: int | None = None, indent: int | None = None) -> str:
    """An object as text, with its checksum in it: of so many hex digits, and of marks nobody needs to write down.

    >>> told, sound = unsealed(sealed({"n": 3}))
    >>> told, sound
    ({'n': 3}, True)
    """
    return json.dumps({**told, CHECKSUM: digest(*marks, dict(told))[:length]}, indent=indent)


def unsealed(text: str, *marks: str, length: int | None = None) -> tuple[dict[str, Any], bool]:
    """What `sealed` was given, and whether it is as it was written.

    >>> unsealed('{"n": 4, "checksum": "f3"}')
    ({'n': 4}, False)

    Raises ValueError for text that is no such object.
    """
    told = json.loads(text)
    if not isinstance(told, dict) or CHECKSUM not in told:
        raise ValueError("an object with a checksum is needed")
    seen = told.pop(CHECKSUM)
    return told, seen == digest(*marks, told)[:length]
