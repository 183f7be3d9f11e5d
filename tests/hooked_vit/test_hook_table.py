"""What `describe_hooks` says of every hook point is what a run shows."""

from __future__ import annotations

import pytest
from transformer_lens.hook_points import HookPoint

from hooked_vit.hook_table import layer_of, without_layer
from tests.tiny import TINY, attention, make, pixels, tiny

BATCH = 3


def numbers(shape: str) -> tuple[int, ...]:
    """(3, 17, 1) of "[batch, pos=17, 1]"."""
    axes = shape.strip("[]").split(", ")
    return tuple(BATCH if axis == "batch" else int(axis.rpartition("=")[2]) for axis in axes)


@pytest.mark.parametrize("name", TINY)
def test_names_order_and_shapes_are_those_of_a_run(name):
    _, model = tiny(name)
    fired: list[tuple[str, tuple[int, ...]]] = []
    hooks = [(hook, lambda act, hook: fired.append((hook.name, tuple(act.shape)))) for hook in model.hook_dict]
    with attention(model, "auto"):
        model.run_with_hooks(pixels(model, n=BATCH), fwd_hooks=hooks)
    assert [(hook, numbers(shape)) for hook, shape, _ in model.describe_hooks()] == fired
    assert {hook for hook, _ in fired} == set(model.hook_dict)


@pytest.mark.parametrize("name", TINY)
def test_meanings_are_one_line_and_tell_kinds_apart(name):
    rows = {without_layer(hook): meaning for hook, _, meaning in tiny(name)[1].describe_hooks()}
    assert all(meaning and "\n" not in meaning and len(meaning) <= 100 for meaning in rows.values()), rows
    assert len(set(rows.values())) == len(rows)


def test_meanings_follow_the_config():
    def meaning(name, hook):
        return {h: m for h, _, m in tiny(name)[1].describe_hooks()}[hook]

    assert "LayerScale included" in meaning("dinov2", "blocks.0.hook_attn_out")
    assert "LayerScale" not in meaning("vit", "blocks.0.hook_attn_out")
    assert "cls beside the mean of the patches" in meaning("dinov2", "hook_pooled")
    assert "head_dist reads dist" in meaning("deit-teacher", "hook_head_logits")
    assert "zeros" in meaning("beit-mean-both", "hook_pos_embed")
    assert "prefix tokens as they are" in meaning("dinov3", "blocks.0.attn.hook_rot_k")
    assert "zero at the registers" in meaning("registers", "hook_pos_embed")
    assert "no head" in meaning("clip-model", "hook_logits")


def test_a_hook_point_without_an_entry_is_an_error():
    model = make("vit")
    model.blocks[1].hook_surprise = HookPoint()
    model.setup()
    with pytest.raises(LookupError, match=r"there is none for blocks\.hook_surprise"):
        model.describe_hooks()


def test_layers_are_split_off():
    assert without_layer("blocks.11.attn.hook_q") == "blocks.attn.hook_q"
    assert (layer_of("blocks.11.attn.hook_q"), layer_of("ln_final.hook_scale")) == (11, -1)
