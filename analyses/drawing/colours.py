"""Colours and lines of all figures, so that the same thing looks the same in each of them."""

from __future__ import annotations

from typing import Any

BLUE, ORANGE, GREEN, RED, PURPLE = "#0a539e", "#f2a127", "#20a37c", "#cc4a33", "#45126f"
CYAN, BROWN, PINK, OLIVE, MIDGREY = "#63b8ea", "#5f4220", "#f5a9cd", "#d9d94f", "#6e6e6e"
MODELS = (BLUE, ORANGE, GREEN, RED, PURPLE, CYAN, BROWN, PINK, OLIVE, MIDGREY)
"""What comes one after another and has no colour of its own, models above all. The first five differ in print too."""

SHAPES = dict(
    zip(
        MODELS,
        ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down", "star", "hexagon", "pentagon"),
        strict=True,
    )
)
"""The point that goes with a colour, so that a curve is never told by its colour alone."""

SOFT_GREEN, SOFT_ORANGE, SOFT_BLUE, SOFT_YELLOW, SOFT_GREY = "#4fa98f", "#f29a62", "#6a7fb8", "#ffe06b", "#c9c9c9"
LIGHT_BLUE, DARK_BLUE, LIGHT_GREEN, DARK_GREEN = "#9cc5dd", "#1f6aa5", "#d2efb3", "#33a02c"
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
