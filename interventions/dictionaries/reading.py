"""Reading a foreign file strictly: every field and tensor has a place, or is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hooked_vit.errors import nearest
from hooked_vit.hook_table import without_layer
from interventions.vocabulary import HEADS, NEURONS, TOKEN_SITES

NORMS = {"none": "none", "constant_norm_rescale": "rescale", "layer_norm": "layer_norm"}
"""How two of the layouts call what is done to an activation first, and what it is called here."""

COMMON = {name: name for name in ("W_enc", "W_dec", "b_dec")}
"""Tensors that two of the layouts call as they are called here."""

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def one_file(folder: Path, names: Iterable[str]) -> Path:
    """The file of a folder that has one of these names.

    Raises FileNotFoundError where there is none.
    """
    names = list(names)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} holds no {' or '.join(names)}")


def read_json(path: Path) -> dict[str, Any]:
    """The fields of a JSON file.

    Raises FileNotFoundError, and ValueError for something else than fields.
    """
    return fields_of(one_file(path.parent, [path.name]).read_bytes(), path)


def fields_of(text: bytes, path: Path) -> dict[str, Any]:
    """The fields of JSON text that stands in a file.

    Raises ValueError.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} holds no JSON where its fields are to stand: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__} where its fields are to stand")
    return found


def read_tensors(path: Path, opened: BinaryIO | None = None) -> dict[str, Tensor]:
    """Tensors by name, of safetensors or of torch.save; nothing in the file is executed.

    Raises ValueError for a file that is neither, or that holds other objects.
    """
    if opened is None and path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from None
    try:
        found = torch.load(opened or path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold tensors alone, and loading it would run code; load it where it was made, and save "
            f"its state_dict() with safetensors ({str(error).splitlines()[0][:120]})"
        ) from None
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ValueError(f"{path} does not hold tensors by name; save the state_dict() of the dictionary")
    return dict(found)


class Fields:
    """Fields of a file that are taken one by one; `done` refuses what nobody took.

    >>> fields = Fields({"d_in": 4, "seed": 0}, "cfg.json")
    >>> fields.take("d_in"), fields.ignore("seed"), fields.done()
    (4, None, None)

    Raises ValueError for something else than fields.
    """

    def __init__(self, fields: Any, where: str) -> None:
        if not isinstance(fields, Mapping):
            raise ValueError(f"{where}: fields are to stand there; got {fields!r}")
        self.left, self.where = dict(fields), where
        self.known: list[str] = []

    def take(self, name: str, *otherwise: Any) -> Any:
        """The value of a field, `otherwise` where it is not there.

        Raises ValueError where it is not there and nothing stands in for it.
        """
        self.known.append(name)
        if name not in self.left and not otherwise:
            raise ValueError(f"{self.where} has no field {name!r}, which says what the dictionary is")
        return self.left.pop(name) if name in self.left else otherwise[0]

    def word(self, name: str, choices: Mapping[str, Any], *otherwise: Any) -> Any:
        """What a field's word stands for.

        Raises ValueError for another word.
        """
        value = self.take(name, *otherwise)
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{self.where}: {name} is {' or '.join(map(repr, choices))} here; got {value!r}")
        return choices[value]

    def truth(self, name: str, *otherwise: Any) -> bool:
        """A field that is true or false, and not a word or a number that stands for it.

        Raises ValueError.
        """
        if not isinstance(value := self.take(name, *otherwise), bool):
            raise ValueError(f"{self.where}: {name} is true or false; got {value!r}")
        return value

    def whole(self, name: str, *otherwise: Any) -> int:
        """A field that is a whole number.

        Raises ValueError.
        """
        value = self.take(name, *otherwise)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{self.where}: {name} is a whole number; got {value!r}")
        return value

    def expect(self, name: str, value: Any, why: str) -> None:
        """A field that has to have this value, where it is there.

        Raises ValueError saying why.
        """
        if (got := self.take(name, value)) != value:
            raise ValueError(f"{self.where}: {name}={got!r}; {why}")

    def ignore(self, *names: str) -> None:
        """Fields that change nothing of what the dictionary computes."""
        self.known += names
        for name in names:
            self.left.pop(name, None)

    def done(self) -> None:
        """Raises ValueError for the fields that are left."""
        if self.left:
            first = next(iter(self.left))
            raise ValueError(
                f"{self.where}: what {', '.join(map(repr, self.left))} means is not known{nearest(first, self.known)}"
            )


def tensors_named(found: Mapping[str, Tensor], names: Mapping[str, str], where: Path) -> dict[str, Tensor]:
    """Tensors under our names (values) of a file that has them under its own (keys), all of them and no others.

    Raises ValueError naming a tensor that is missing, that has no place, or whose numbers are no floats.
    """
    if unknown := [name for name in found if name not in names]:
        raise ValueError(f"{where}: tensor {unknown[0]!r} has no place in this dictionary{nearest(unknown[0], names)}")
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{where} has no tensor {missing[0]!r}; it has {', '.join(found) or 'none'}")
    if whole := [name for name in names if not found[name].is_floating_point()]:
        raise ValueError(f"{where}: tensor {whole[0]!r} is of {found[whole[0]].dtype}, and no floating point numbers")
    return {ours: found[theirs] for theirs, ours in names.items() if ours}


def check_size(where: str, said: Mapping[str, Any], W_dec: Tensor) -> None:
    """Make sure that a file's numbers of features and width are those of its tensors.

    Raises ValueError.
    """
    for (name, value), found in zip(said.items(), W_dec.shape[::-1], strict=False):
        if value != found:
            raise ValueError(f"{where}: {name}={value!r}, and W_dec is {list(W_dec.shape)}")


def place_of(hook: Any, where: str) -> tuple[int, str]:
    """(layer, site) of a hook point's name.

    >>> place_of("blocks.9.attn.hook_z", "cfg.json")
    (9, 'z')

    Raises ValueError for one that no site stands for.
    """
    part = {**dict.fromkeys(HEADS, "attn."), **dict.fromkeys(NEURONS, "mlp.")}
    kinds = {f"blocks.{part.get(site, '')}hook_{site}": site for site in TOKEN_SITES}
    if not isinstance(hook, str) or (kind := without_layer(hook)) not in kinds:
        raise ValueError(f"{where}: no site is called {hook!r} here (sites are {', '.join(kinds.values())})")
    return int(hook.split(".")[1]), kinds[kind]
