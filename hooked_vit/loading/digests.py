"""One number for what a thing is, to the last byte: work that is kept is used again only under the same number."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hooked_vit.config.numbers import autocast_on

if TYPE_CHECKING:
    from hooked_vit.model import HookedViT

OF_PYTHON = 1 << 9
"""The flag of classes that are made while Python runs."""

UNLIKE = os.urandom(8).hex()
"""What has no description is like itself in this process, and like nothing in another."""


def digest(*values: Any) -> str:
    """SHA-256 of values: numbers, text, tensors, arrays and pictures to the last bit, functions by their code.

    >>> digest([1, 2.0]) == digest((1, 2.0)), digest(1) == digest(1.0), digest("ab", "c") == digest("a", "bc")
    (True, False, False)

    Mappings and sets have no order, objects are their class and attributes. Anything else, such as an open file, is
    told by its address: equal in this process, and never in another.
    """
    return _Walk().of(values).hex()


def model_digests(model: HookedViT) -> dict[str, str]:
    """Digests of all that decides what a model answers: `weights`, `config`, `processor` and `hooks`.

    >>> model_digests(zoo.load("vit"))["weights"]  # doctest: +SKIP

    `weights` are all parameters and buffers with names, types and shapes, read whole each time: no counter of changes
    sees a write through `.data`. `config` holds activation functions, epsilons, the attention kernel and the numbers of
    an autocast that is on beside `cfg`, without the model's name; `hooks` those that are attached.
    """
    parts = dict(model.named_modules())
    hooks = {name: attached for name, part in parts.items() if (attached := _hooks(part))}
    return {
        "weights": digest(_tensors(model)),
        "config": digest(model.cfg.replace(name=None), _own(model), model.run.attention, *_halved(model)),
        "processor": digest(model.processor),
        "hooks": digest(hooks),
    }


BACKBONE = ("embed", "pos_embed", "ln_pre", "rel_pos", "blocks")
"""The parts of a model in front of its readout."""
POOLING = ("sources", "final_norm", "attention_pool")
HEAD = ("heads", "unit_norm", "d_embed", "head_bias", "n_classes", "outputs", "class_names", "readout_set", "head_set")
"""Fields of a config that say what is pooled, and what then answers; everything else is of the stream, but the name."""


def stream_digests(model: HookedViT) -> dict[str, str]:
    """`model_digests` of what decides the residual stream alone: the same for two models that differ in the readout.

    >>> stream_digests(model) == stream_digests(with_another_head)  # doctest: +SKIP
    True
    """
    cfg = {f.name: getattr(model.cfg, f.name) for f in fields(model.cfg) if f.name not in (*POOLING, *HEAD, "name")}
    inside = {name: part for name, part in model.named_children() if name in BACKBONE}
    return {
        "weights": digest({name: _tensors(part) for name, part in inside.items()}),
        "config": digest(
            cfg, {name: _own(part) for name, part in inside.items()}, model.run.attention, *_halved(model)
        ),
        "processor": digest(model.processor),
    }


def pooling_digest(model: HookedViT) -> str:
    """Of what decides `hook_pooled` behind the residual stream: tokens, norm and probe of the readout, no head."""
    parts = {name: part for name, part in model.named_children() if name.startswith(("ln_final", "pool_"))}
    probe = {name: p for name, p in model.named_parameters(recurse=False) if name.startswith("pool_")}
    tensors = {name: _tensors(part) for name, part in parts.items()}
    return digest({f: getattr(model.cfg, f) for f in POOLING}, tensors, probe, {n: _own(p) for n, p in parts.items()})


def _halved(model: HookedViT) -> list[str]:
    """What `autocast_of` says, where it says something: what was kept without one keeps its digest."""
    return [str(dtype)] if (dtype := autocast_of(model)) is not None else []


def autocast_of(model: HookedViT) -> torch.dtype | None:
    """The numbers in which a model multiplies here and now, as `set_autocast` or a `torch.autocast` outside of it says;
    None for those of its weights.

    >>> model.set_autocast("bfloat16")  # doctest: +SKIP
    >>> autocast_of(model)  # doctest: +SKIP
    torch.bfloat16
    """
    weight = model.embed.patch.weight
    if weight.dtype != torch.float32:  # autocast casts nothing else
        return None
    return model.run.autocast or autocast_on(weight.device.type)


def _own(module: nn.Module) -> dict[str, Any]:
    """What each part of a module holds that is no tensor: its class, epsilons and functions."""
    return {
        name: (type(part), {k: v for k, v in vars(part).items() if isinstance(v, float) or _is_function(v)})
        for name, part in module.named_modules()
    }


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, those that are not saved too."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _hooks(module: nn.Module) -> list[Callable[..., Any]]:
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return [hook for kind in kinds for hook in getattr(module, kind).values()]


def _is_function(value: Any) -> bool:
    return isinstance(value, (FunctionType, BuiltinFunctionType, MethodType, partial))


class _Walk:
    """Each value as a kind and a content of known length, so that no two values read alike."""

    def __init__(self) -> None:
        self.inside: list[int] = []

    def of(self, value: Any) -> bytes:
        if id(value) in self.inside:  # an object that holds itself
            return _hashed("cycle", len(self.inside) - self.inside.index(id(value)))
        self.inside.append(id(value))
        try:
            return self._of(value)
        finally:
            self.inside.pop()

    def _of(self, value: Any) -> bytes:
        match value:
            case Enum():
                return _hashed(_name(type(value)), value.name)
            case None | bool() | int() | float() | complex() | str() | bytes():
                return _hashed(type(value).__name__, value)
            case Tensor():
                return _hashed("tensor", value.dtype, tuple(value.shape), *_tensor_bytes(value))
            case np.ndarray() if value.dtype != object:
                return _hashed(
                    "array", value.dtype.str, value.shape, np.ascontiguousarray(value).reshape(-1).view(np.uint8)
                )
            case np.ndarray():
                return _hashed("objects", value.shape, *map(self.of, value.ravel().tolist()))
            case np.generic():
                return _hashed(value.dtype.str, value.tobytes())
            case bytearray() | memoryview():
                return _hashed(type(value).__name__, bytes(value))
            case Image.Image():
                orientation = value.getexif().get(0x0112, 1)
                palette = value.getpalette() if value.mode == "P" else None
                return _hashed("picture", value.mode, value.size, orientation, palette, value.tobytes())
            case Mapping():
                return _hashed("mapping", *sorted(self.of(k) + self.of(v) for k, v in value.items()))
            case list() | tuple() | range():
                return _hashed("sequence", *map(self.of, value))
            case set() | frozenset():
                return _hashed("set", *sorted(map(self.of, value)))
            case nn.Module():
                return _hashed("module", _name(type(value)), self.of(_tensors(value)))
            case type() | BuiltinFunctionType():
                return _hashed("named", _name(value))
            case FunctionType():
                cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
                held = (cells, value.__defaults__, value.__kwdefaults__)
                return _hashed("function", _name(value), self._of_code(value.__code__), *map(self.of, held))
            case MethodType():
                return _hashed("method", self.of(value.__func__), self.of(value.__self__))
            case partial():
                return _hashed("partial", *map(self.of, (value.func, value.args, value.keywords)))
        if is_dataclass(value):
            return _hashed(_name(type(value)), self.of({f.name: getattr(value, f.name) for f in fields(value)}))
        # attributes say all of an object of Python; one of C holds more
        if hasattr(value, "__dict__") and all(kind.__flags__ & OF_PYTHON for kind in type(value).__mro__[:-1]):
            return _hashed(_name(type(value)), self.of(vars(value)))
        try:
            return _hashed("built by", self.of(value.__reduce_ex__(2)))  # dates, decimals, objects with slots
        except TypeError:
            return _hashed(_name(type(value)), UNLIKE, id(value))

    def _of_code(self, code: CodeType) -> bytes:
        constants = [self._of_code(c) if isinstance(c, CodeType) else self.of(c) for c in code.co_consts]
        return _hashed("code", code.co_code, code.co_names, code.co_varnames, *constants)


def _hashed(*parts: Any) -> bytes:
    total = hashlib.sha256()
    for part in parts:
        content = part.data if isinstance(part, np.ndarray) else part
        if not isinstance(content, (bytes, memoryview)):
            content = repr(content).encode("utf-8", "surrogatepass")
        total.update(b"%d:" % memoryview(content).nbytes)
        total.update(content)
    return total.digest()


def _tensor_bytes(tensor: Tensor) -> list[Any]:
    if tensor.is_meta:
        return ["meta"]
    if tensor.layout != torch.strided or tensor.is_quantized:
        dense = tensor.dequantize() if tensor.is_quantized else tensor.to_dense()
        return [tensor.layout, *_tensor_bytes(dense)]
    whole = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return [whole.reshape(-1).view(torch.uint8).numpy()]


def _is_filled(cell: Any) -> bool:
    try:
        return bool(cell.cell_contents is cell.cell_contents)
    except ValueError:  # of a variable that is not set yet
        return False


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
