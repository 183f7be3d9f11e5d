"""Parameters as values: compared, written down and read back exactly."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHOWN_WHOLE = 64  # a tensor of up to so many numbers is written out by repr


def plain(value: Any) -> Any:
    """Parameters compare and store by value: sequences become tuples, arrays tensors.

    >>> plain([1, range(2)])
    (1, (0, 1))
    """
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(plain, value)) if isinstance(value, (list, tuple, range)) else value


def encode(value: Any) -> Any:
    """JSON-ready form of a parameter; `decode` reads it back, tensors bit for bit.

    Raises TypeError for a value that has no such form.
    """
    return _describe(value, _bits, _refuse)


def digest(value: Any) -> Any:
    """Like `encode`, short: tensors as hashes, and what has no stored form by its identity. For comparing only."""
    return _describe(value, lambda t: hashlib.sha256(_raw(t)).hexdigest(), lambda v: f"{type(v).__name__} at {id(v)}")


def decode(value: Any, nested: Callable[[Any], Any]) -> Any:
    """The parameter that `encode` described; `nested` reads an intervention among them.

    Raises ValueError for anything else.
    """
    if isinstance(value, list):
        return tuple(decode(v, nested) for v in value)
    if not isinstance(value, Mapping):
        return value
    if set(value) == {"tensor", "dtype", "shape"}:
        return _tensor(value)
    if set(value) == {"mapping"}:
        return {k: decode(v, nested) for k, v in value["mapping"].items()}
    if set(value) == {"intervention"}:
        return nested(value["intervention"])
    raise ValueError(f"a stored parameter has the unknown form {sorted(value)}")


def show(value: Any) -> str:
    """A parameter as Python; a tensor too large to read by its shape and a hash.

    >>> show(torch.tensor([1.0, float("nan")]))
    "torch.tensor([1.0, float('nan')], dtype=torch.float32)"
    """
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f"float('{value}')"
    if isinstance(value, tuple):
        return f"({', '.join(map(show, value))}{',' * (len(value) == 1)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {show(part)}' for key, part in value.items())}}}"
    if not isinstance(value, Tensor):
        return repr(value)
    if value.numel() <= SHOWN_WHOLE and not value.is_complex():
        if not value.numel():
            return f"torch.empty({tuple(value.shape)}, dtype={value.dtype})"
        return f"torch.tensor({_show_list(value.tolist())}, dtype={value.dtype})"
    return f"<tensor {'x'.join(map(str, value.shape))} {hashlib.sha256(_raw(value)).hexdigest()[:8]}>"


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a parameter."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors(part)


def version(tensor: Tensor) -> int:
    """Goes up whenever a tensor is written to."""
    return 0 if tensor.is_inference() else tensor._version


def _describe(value: Any, tensor: Callable[[Tensor], str], other: Callable[[Any], Any]) -> Any:
    if isinstance(value, Tensor):
        return {
            "tensor": tensor(value),
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
        }
    if isinstance(value, tuple):
        return [_describe(v, tensor, other) for v in value]
    if isinstance(value, Mapping):
        if any(not isinstance(key, str) for key in value):
            raise TypeError("a mapping is stored with strings as keys")
        return {"mapping": {k: _describe(v, tensor, other) for k, v in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    # an intervention may be the parameter of another
    return {"intervention": value.to_dict()} if hasattr(value, "parts") else other(value)


def _refuse(value: Any) -> Any:
    raise TypeError(f"a parameter of type {type(value).__name__} cannot be stored; pass the tensor or number you mean")


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _bits(tensor: Tensor) -> str:
    return base64.b64encode(_raw(tensor)).decode()


def _tensor(stored: Mapping[str, Any]) -> Tensor:
    try:
        bits = bytearray(base64.b64decode(stored["tensor"], validate=True))
        flat = torch.frombuffer(bits, dtype=torch.uint8) if bits else torch.empty(0, dtype=torch.uint8, device="cpu")
        return flat.view(getattr(torch, stored["dtype"])).reshape(stored["shape"])
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"a stored tensor cannot be read: {error}") from None


def _show_list(value: Any) -> str:
    return f"[{', '.join(map(_show_list, value))}]" if isinstance(value, list) else show(value)
