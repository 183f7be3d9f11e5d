"""In which numbers a model computes: as asked, or refused."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The numbers a model can be asked to compute in, by name; float64 is for tests, in Python."""
AUTOCAST = "autocast"
"""float32 whose products are of bfloat16."""
NUMBERS = (*DTYPES, AUTOCAST)
"""All that can be asked for by name."""


def dtype_of(dtype: str | torch.dtype) -> torch.dtype:
    """A dtype by its name; weights under autocast are of float32.

    >>> dtype_of("bfloat16"), dtype_of("autocast")
    (torch.bfloat16, torch.float32)

    Raises ValueError for another name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in NUMBERS:
        raise ValueError(f"dtype is one of {', '.join(NUMBERS)}; got {dtype!r}")
    return DTYPES.get(dtype, torch.float32)


def check_device(device: str | torch.device, dtype: str | torch.dtype = torch.float32) -> None:
    """Raises ValueError for a device on which this machine's torch cannot add, as on `meta`, or has not this dtype."""
    numbers = dtype_of(dtype)
    try:
        if torch.device(device).type == "cpu" != str(device):
            raise ValueError("the CPU has no number")
        torch.ones(2, device=device).sum().item()
    except Exception as error:  # each kind of device refuses in its own way
        raise ValueError(
            f"this machine's torch cannot use the device {str(device)!r}: {_said(error)}; "
            f"there is {', '.join(_devices())}"
        ) from error
    try:
        ones = torch.ones(2, 2, device=device, dtype=numbers)
        torch.nn.functional.layer_norm(ones @ ones, (2,)).sum().item()
    except Exception as error:
        name = str(numbers).removeprefix("torch.")
        raise ValueError(f"the device {str(device)!r} does not compute in {name}: {_said(error)}") from error


def check_autocast(device: torch.device, numbers: torch.dtype, weights: torch.dtype) -> None:
    """Raises ValueError where this device takes no products of float32 in these numbers."""
    if numbers not in (torch.bfloat16, torch.float16):
        raise ValueError(f"autocast takes products in bfloat16 or float16; got {str(numbers).removeprefix('torch.')}")
    if weights != torch.float32:
        kept = str(weights).removeprefix("torch.")
        raise ValueError(f"autocast is for weights of float32, and these are {kept}: they multiply in {kept} already")
    check_device(device, numbers)


def _said(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0]


def _devices() -> list[str]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return ["cpu", *([accelerator.type] if accelerator else [])]


def autocast_on(kind: str) -> torch.dtype | None:
    """The numbers in which `torch.autocast` takes products on this kind of device here and now; None where it is off.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     autocast_on("cpu")
    torch.bfloat16
    """
    known = kind == "cpu" or torch.amp.is_autocast_available(kind)
    return torch.get_autocast_dtype(kind) if known and torch.is_autocast_enabled(kind) else None


def in_full_digits(kind: str) -> AbstractContextManager[Any]:
    """Inside it nothing on this kind of device is multiplied in autocast's numbers."""
    return nullcontext() if autocast_on(kind) is None else torch.autocast(kind, enabled=False)


def multiplying(autocast: torch.dtype | None, module: nn.Module) -> AbstractContextManager[Any]:
    """Inside it products are taken in these numbers where the module is; in those of its weights where it is None."""
    return nullcontext() if autocast is None else torch.autocast(next(module.parameters()).device.type, autocast)
