"""Colours and lines of all figures, so that the same thing looks the same in each of them."""

from __future__ import annotations

from typing import Any

BLUE, ORANGE, GREEN, RED, PURPLE = "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"
BROWN, PINK, MIDGREY, OLIVE, CYAN = "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"
MODELS = (BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, PINK, MIDGREY, OLIVE, CYAN)
"""What comes one after another and has no colour of its own, models above all."""

SOFT_GREEN, SOFT_ORANGE, SOFT_BLUE, SOFT_YELLOW, SOFT_GREY = "#66c2a5", "#fc8d62", "#8da0cb", "#ffd92f", "#b3b3b3"
LIGHT_BLUE, DARK_BLUE, LIGHT_GREEN, DARK_GREEN = "#a6cee3", "#1f78b4", "#b2df8a", "#33a02c"
UNTRAINED = "#bbbbbb"
DARK = "dimgray"

CHANCE: dict[str, Any] = {"color": DARK, "dash": "dash", "width": 2}
"""Chance, or no effect: what a curve has to be compared with."""
UNTOUCHED: dict[str, Any] = {"color": DARK, "dash": "solid", "width": 1.5}
"""The model without an intervention."""
FLOOR: dict[str, Any] = {"color": DARK, "dash": "dot", "width": 1.5}
"""What an intervention leaves if everything it touches is lost."""

NAMES = {"cls": "CLS", "dist": "distillation token", "registers": "registers", "patches": "image tokens"}
"""Roles of tokens in titles, legends and sentences."""
TOKENS = {"cls": SOFT_GREEN, "patches": SOFT_ORANGE}
"""Roles in the figures of class projection."""
READ_FROM = {"cls": BLUE, "dist": PURPLE, "registers": GREEN, "patches": ORANGE}
"""Roles in figures of what is read from, or exchanged in, each kind of token."""

PART_NAMES = {"attn": "attention", "mlp": "MLP"}
PARTS = {"attn": BLUE, "mlp": ORANGE}
LIGHT_PARTS = {"attn": "#aec7e8", "mlp": "#ffbb78"}
"""Sub-layers of a block."""
