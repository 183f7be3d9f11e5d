"""The parity check has power: each single wrong detail below is caught by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle
from types import MethodType, SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hooked_vit import HookedViT, architectures
from hooked_vit.components.embedding import offsets
from hooked_vit.components.mlp import ACTIVATIONS
from hooked_vit.components.norms import LayerNorm, NoNorm, RMSNorm
from hooked_vit.components.rotary import Rotary, coordinates, turns
from tests.tiny import IMAGE, assert_parity, make_hf, pixels

MUTANTS: list = []
OTHER_EPS = {1e-12: 1e-6, 1e-6: 1e-5, 1e-5: 1e-6}


class Mutant(NamedTuple):
    models: tuple[str, ...]
    mutate: Callable[[HookedViT, pytest.MonkeyPatch], None]
    size: tuple[int, int] = (IMAGE, IMAGE)


def mutant(*models: str, size: tuple[int, int] = (IMAGE, IMAGE)) -> Callable:
    """Register a wrong detail, with the variants in which it must be noticed."""

    def add(mutate: Callable) -> Callable:
        MUTANTS.extend(pytest.param(m, mutate, size, id=f"{mutate.__name__}-{m}") for m in models)
        return mutate

    return add


def replace_cfg(model: HookedViT, **changes) -> None:
    model.cfg = model.cfg.replace(**changes)


@mutant(
    "vit",
    "deit",
    "beit-mean-both",
    "dinov2",
    "registers",
    "dinov3",
    "clip-projection",
    "timm",
    "timm-rpn",
    "aimv2-model",
)
def eps_of_another_family(model, _):
    for norm in model.modules():
        if isinstance(norm, LayerNorm):
            norm.eps = OTHER_EPS[norm.eps]


@mutant("vit", "beit-mean-both", "dinov2", "clip-projection")
def eps_of_the_final_norm(model, _):
    model.ln_final.eps = OTHER_EPS[model.ln_final.eps]


@mutant("vit", "deit", "beit-cls-both", "dinov2", "registers", "clip-projection")
def no_final_norm(model, _):
    model.ln_final = NoNorm(model.cfg.d_model)


@mutant("clip-classifier", "data2vec-model", "metaclip-2-classifier")
def a_final_norm_where_there_is_none(model, _):
    model.ln_final = LayerNorm(model.cfg.d_model, model.cfg.eps)


@mutant("beit-mean-both", "data2vec-shared")
def norm_before_pooling(model, _):
    replace_cfg(model, final_norm="tokens")


@mutant("beit-cls-both")
def norm_after_pooling_mean(model, _):
    replace_cfg(model, final_norm="pooled", sources=("patches",))


@mutant("vit", "clip-gelu")
def quick_gelu(model, _):
    for block in model.blocks:
        block.mlp.act = ACTIVATIONS["quick_gelu"]


@mutant("clip-classifier")
def gelu_for_quick_gelu(model, _):
    for block in model.blocks:
        block.mlp.act = ACTIVATIONS["gelu"]


@mutant("vit", "beit-mean-both", "dinov2")
def tanh_gelu(model, _):
    for block in model.blocks:
        block.mlp.act = ACTIVATIONS["gelu_pytorch_tanh"]


@mutant("beit-mean-both", "dinov2", "registers", "dinov3")
def no_layer_scale_on_the_mlp(model, _):
    model.blocks[-1].mlp.ls = None


@mutant("beit-mean-both", "dinov2", "registers")
def layer_scale_without_the_bias(model, _):
    attn = model.blocks[0].attn
    with torch.no_grad():
        attn.o.bias /= attn.ls


@mutant("beit-mean-both", "beit-mean-none", "data2vec-model", "dinov3", "timm-eva02", "timm-eva02-packed")
def bias_on_keys(model, _):
    for block in model.blocks:
        block.attn.k.bias = nn.Parameter(torch.randn(model.cfg.d_model))


@mutant("vit", "beit-mean-both", "dinov2", "clip-projection")
def no_bias_on_values(model, _):
    model.blocks[0].attn.v.bias = None


@mutant("vit", "deit", "beit-mean-none-abs", "dinov2", "registers", "clip-projection", "mae", "msn")
def no_position_for_cls(model, _):
    model.pos_embed.weight.data[:, 0] = 0


@mutant("registers")
def registers_with_a_position(model, _):
    model.embed.registers.data += model.pos_embed.weight[:, :1]


@mutant("registers")
def registers_in_the_mean(model, _):
    model._pool = lambda x, role: x[:, 0] if role == "cls" else x[:, 1:].mean(1)


@mutant("beit-mean-both", "dinov2", "clip-classifier")
def cls_in_the_mean(model, _):
    model._pool = lambda x, role: x[:, 0] if role == "cls" else x.mean(1)


@mutant("ijepa", "ijepa-model")
def the_first_patch_taken_for_cls_and_read(model, _):
    model._pool = lambda x, role: x[:, 0]


@mutant("ijepa", "ijepa-model")
def the_first_patch_taken_for_cls_and_left_out(model, _):
    model._pool = lambda x, role: x[:, 1:].mean(1)


@mutant("ijepa", "ijepa-model")
def norm_behind_the_mean_of_the_patches(model, _):
    replace_cfg(model, final_norm="pooled")


@mutant("mae", "msn", "msn-model", "data2vec-cls", "data2vec-model-cls")
def patches_averaged_where_cls_is_read(model, _):
    replace_cfg(model, sources=("patches",))


@mutant("data2vec-model")
def cls_read_where_patches_are_averaged(model, _):
    replace_cfg(model, sources=("cls",))


@mutant("aimv2-model", "aimv2-biased")
def the_mean_subtracted_as_by_a_layer_norm(model, _):
    norm = model.blocks[0].ln1
    norm.applied = lambda x: RMSNorm.applied(norm, x - x.mean(-1, keepdim=True))


@mutant("aimv2-model")
def no_mean_subtracted_in_the_final_norm_but_a_standard_deviation(model, _):
    norm = model.ln_final
    norm.applied = lambda x: norm.weight * x / (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()


@mutant("vit", "ijepa")
def the_mean_left_as_by_an_rms_norm(model, _):
    norm = model.blocks[0].ln1
    norm.applied = lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps) * norm.weight + norm.bias


@mutant("aimv2-model", "aimv2-biased")
def patches_placed_before_they_are_normalised(model, _):
    embed, norm = model.embed, model.embed.norm
    positions = model.pos_embed((4, 4)).clone()
    model.pos_embed.forward = lambda grid: torch.zeros_like(positions)
    embed.norm = nn.Module()
    embed.norm.forward = lambda x: norm(x + positions)


@mutant("aimv2-model")
def rows_before_columns(model, _):
    forward = model.pos_embed.forward
    model.pos_embed.forward = lambda grid: forward(grid).roll(model.cfg.d_model // 2, dims=-1)


@mutant("aimv2-model")
def another_temperature(model, _):
    forward, n = model.pos_embed.forward, model.cfg.d_model // 4
    model.pos_embed.forward = lambda grid: torch.cat([forward(grid)[..., :-n], forward(grid)[..., -n:] * 0.999], dim=-1)


@mutant("aimv2-model", size=(48, 40))
def sines_resampled_and_not_computed(model, _):
    forward = model.pos_embed.forward
    picture = forward((4, 4)).unflatten(1, (4, 4)).permute(0, 3, 1, 2)

    def resampled(grid):
        return F.interpolate(picture, size=grid, mode="bicubic").flatten(2).mT

    model.pos_embed.forward = resampled


@mutant("aimv2-model", "aimv2-biased")
def up_and_gate_swapped(model, _):
    mlp = model.blocks[0].mlp
    mlp.fc_in, mlp.fc_gate = mlp.fc_gate, mlp.fc_in


@mutant("aimv2-model", "aimv2-biased")
def gelu_for_silu(model, _):
    model.blocks[0].mlp.act = ACTIVATIONS["gelu"]


@mutant("aimv2-biased")
def no_bias_behind_attention(model, _):
    model.blocks[0].attn.o.bias = None


@mutant("deit-teacher")
def sum_of_the_two_heads(model, _):
    for head in (model.head, model.head_dist):
        head.forward = lambda x, one=head.forward: 2 * one(x)


@mutant("deit-teacher")
def heads_swapped(model, _):
    model.head, model.head_dist = model.head_dist, model.head


@mutant("deit", "deit-model")
def the_distillation_token_read(model, _):
    replace_cfg(model, sources=("dist",))


@mutant("dinov2", "registers")
def halves_of_the_head_swapped(model, _):
    replace_cfg(model, sources=("patches", "cls"))


@mutant("dinov2-swiglu", "dinov3-gated", "timm-eva02", "timm-eva02-packed", "timm-dinov3", "timm-swiglu")
def gate_and_up_swapped(model, _):
    mlp = model.blocks[0].mlp
    mlp.fc_in, mlp.fc_gate = mlp.fc_gate, mlp.fc_in


@mutant("dinov2-swiglu")
def the_activation_of_the_config(model, _):
    """SwiGLU ignores `hidden_act`."""
    model.blocks[0].mlp.act = ACTIVATIONS["relu"]


@mutant("vit", "beit-mean-both", "dinov2", "clip-projection")
def scale_of_the_whole_width(model, _):
    for block in model.blocks:
        block.attn.q.weight.data *= (model.cfg.n_heads) ** -0.5
        if block.attn.q.bias is not None:
            block.attn.q.bias.data *= (model.cfg.n_heads) ** -0.5


@mutant("beit-mean-layer", "beit-cls-shared")
def bias_from_key_to_query(_, monkeypatch):
    monkeypatch.setattr("hooked_vit.components.embedding.offsets", lambda grid: offsets(grid).T)


@mutant("beit-mean-both", "data2vec-shared")
def no_shared_bias(model, _):
    for block in model.blocks:
        block.attn._shared_bias = ()


@mutant("beit-mean-layer")
def rows_of_the_table_for_cls_swapped(model, _):
    for block in model.blocks:
        table = block.attn.rel_pos.table
        table.data[-3:-1] = table[-3:-1].flip(0)


@mutant("clip-projection", "clip-classifier", "metaclip-2-full", "chinese-clip-full", "altclip-full")
def no_norm_in_front(model, _):
    model.ln_pre = None


@mutant("vit", "dinov2", "clip-classifier")
def no_patch_bias_or_one_too_many(model, _):
    bias = torch.randn(model.cfg.d_model) if model.embed.patch.bias is None else None
    model.embed.patch.bias = None if bias is None else nn.Parameter(bias)


@mutant("vit")
def the_two_norms_of_a_block_swapped(model, _):
    block = model.blocks[1]
    block.ln1, block.ln2 = block.ln2, block.ln1


@mutant("timm-rpn", "timm-rpn-cls", "timm-eva02-post")
def norms_in_front_of_the_branches(model, _):
    model.blocks[0].post_norm = False


@mutant("timm", "timm-deit3", "timm-clip", "timm-pe")
def norms_behind_the_branches(model, _):
    model.blocks[1].post_norm = True


@mutant("timm-avg", "timm-rpn")
def norm_before_pooling_where_it_stands_behind(model, _):
    replace_cfg(model, final_norm="tokens")


@mutant("timm-gap")
def norm_after_pooling_where_it_stands_before(model, _):
    replace_cfg(model, final_norm="pooled")


@mutant("timm-deit3", "timm-registers")
def a_position_for_cls_where_there_is_none(model, _):
    model.embed.cls.data += model.pos_embed.weight[:, :1]


@mutant("timm-placed-registers")
def no_position_for_registers_that_have_one(model, _):
    model.pos_embed.weight.data[:, :2] = 0


@mutant("timm", "timm-rpn", "timm-distilled")
def queries_and_keys_swapped(model, _):
    attn = model.blocks[0].attn
    attn.q, attn.k = attn.k, attn.q


@mutant("timm", "timm-rpn")
def heads_of_queries_in_another_order(model, _):
    """As in files that hold (head, query/key/value) rather than (query/key/value, head)."""
    for part in (model.blocks[0].attn.q, model.blocks[0].attn.v):
        part.weight.data = part.weight.data.unflatten(0, (4, -1)).flip(0).flatten(0, 1)


@mutant("timm-registers", "timm-deit3", size=(48, 40))
def positions_without_antialiasing(model, _):
    model.pos_embed.antialias = False


@mutant("siglip", "timm-map")
def the_probe_behind_its_query_matrix(model, _):
    """As where a learned query is no token: it takes the place of what the matrix makes of it."""
    model.pool_q.forward = lambda probe: probe


@mutant("siglip", "timm-map", "timm-pe-core", "aimv2-head")
def the_probe_on_the_skip_path(model, _):
    read = model.pool_o.forward
    model.pool_o.forward = lambda z: read(z) + model.pool_probe


@mutant("siglip", "timm-map")
def the_probe_among_the_keys(model, _):
    keys = model.pool_k.forward

    def with_probe(x: Tensor) -> Tensor:
        return keys(torch.cat([model.pool_probe.transpose(0, 1).expand(-1, x.shape[1], -1), x[1:]]))

    model.pool_k.forward = with_probe


@mutant("siglip", "siglip-full", "timm-map")
def no_norm_in_front_of_attention_pooling(model, _):
    model.ln_final = NoNorm(model.cfg.d_model)


@mutant("siglip", "timm-map")
def a_norm_on_the_skip_path_of_the_pool(model, _):
    """norm(attention), then x + MLP(x) of that: post-norm pooling for pre-norm pooling."""
    read, norm = model.pool_o.forward, model.pool_ln.forward
    model.pool_o.forward = lambda z: norm(read(z))
    model.pool_ln.forward = lambda x: x


@mutant("siglip", "timm-map")
def no_mlp_in_the_pool(model, _):
    model.pool_mlp.forward = torch.zeros_like


@mutant("siglip", "timm-map")
def no_skip_path_in_the_pool(model, _):
    attended: list[Tensor] = []
    norm, mlp = model.pool_ln.forward, model.pool_mlp.forward
    model.pool_ln.forward = lambda x: norm(attended.append(x) or x)
    model.pool_mlp.forward = lambda x: mlp(x) - attended.pop()


@mutant("siglip", "timm-map", "timm-pe-core", "aimv2-head")
def keys_and_values_of_the_pool_swapped(model, _):
    model.pool_k, model.pool_v = model.pool_v, model.pool_k


@mutant("siglip", "siglip-full")
def one_head_in_the_pool(model, _):
    """The scale and the split of the whole width."""
    model._heads = lambda x: x.unflatten(-1, (1, -1)).expand(-1, -1, model.cfg.n_heads, -1)[..., : model.cfg.d_head]


@mutant("siglip", "timm-map", "siglip-headless")
def the_other_pooling(model, _):
    if model.cfg.attention_pool:
        replace_cfg(model, attention_pool=None)
    else:
        model._pool = lambda x, role: x[:, 0]


@mutant("timm-pe-core")
def a_probe_that_reads_patches_alone(model, _):
    replace_cfg(model, sources=("patches",))


@mutant("timm-pe-core", "aimv2-head", "aimv2-full")
def other_heads_in_the_pool(model, _):
    pool = model.cfg.attention_pool
    replace_cfg(model, attention_pool=replace(pool, n_heads=8))


@mutant("aimv2-head")
def a_probe_that_is_read_as_a_token(model, _):
    """Multiplied by a matrix before it asks."""
    model.pool_q = nn.Linear(model.cfg.d_model, model.cfg.d_model)
    replace_cfg(model, attention_pool=replace(model.cfg.attention_pool, query=True))


@mutant("aimv2-head", "aimv2-full")
def no_output_bias_in_the_pool(model, _):
    model.pool_o.bias = None


@mutant("aimv2-head", "aimv2-full")
def the_pool_in_front_of_the_final_norm(model, _):
    model.ln_final = NoNorm(model.cfg.d_model)


def each_rotary(model):
    return [block.attn.rotary for block in model.blocks]


@mutant("timm-rope-mixed")
def learned_frequencies_of_rows_for_columns(model, _):
    for rotary in each_rotary(model):
        rotary.freqs.data = rotary.freqs.data.flip(0)


@mutant("timm-rope-mixed")
def learned_frequencies_of_one_block_for_all(model, _):
    first, *others = each_rotary(model)
    for rotary in others:
        rotary.freqs.data = first.freqs.data


@mutant("timm-rope-mixed")
def learned_frequencies_of_one_head_for_all(model, _):
    for rotary in each_rotary(model):
        rotary.freqs.data = rotary.freqs.data[:, :1].expand_as(rotary.freqs).clone()


@mutant("timm-rope-mixed")
def frequencies_that_nobody_learned(model, _):
    for rotary in each_rotary(model):
        rotary.positions = replace(rotary.positions, learned=False)


@mutant("timm-rope-mixed")
def partners_half_a_head_apart(model, _):
    for rotary in each_rotary(model):
        rotary.positions = replace(rotary.positions, interleaved=False)


@mutant("siglip-classifier")
def mean_of_the_patches_before_the_norm(model, _):
    replace_cfg(model, final_norm="pooled")


@mutant("siglip", "siglip-classifier", "timm-map")
def exact_gelu_for_tanh_gelu(model, _):
    for part in (*(block.mlp for block in model.blocks), getattr(model, "pool_mlp", None)):
        if part is not None:
            part.act = ACTIVATIONS["gelu"]


@mutant("vit")
def mlp_beside_attention(model, _):
    def parallel(self, x: Tensor) -> Tensor:
        x = self.hook_resid_pre(x)
        return self.hook_resid_post(x + self.attn(self.ln1(x)) + self.mlp(self.ln2(x)))

    model.blocks[1].forward = MethodType(parallel, model.blocks[1])


@mutant("vit", "dinov2", "mae", "ijepa", size=(48, 40))
def patches_in_column_order(model, _):
    conv = model.embed.patch.forward
    model.embed.patch.forward = lambda x: conv(x).transpose(2, 3)


def _interpolating(monkeypatch, **settings) -> None:
    def interpolate(x, **asked):
        return F.interpolate(x, **(asked | settings))

    monkeypatch.setattr("hooked_vit.components.embedding.F", SimpleNamespace(interpolate=interpolate))


@mutant("vit", "deit", "beit-mean-none-abs", "dinov2", "registers", "clip-projection", "siglip", size=(64, 64))
def bilinear_positions(model, monkeypatch):
    _interpolating(monkeypatch, mode="bilinear")


@mutant("beit-mean-both", "beit-cls-shared", "data2vec-model", size=(48, 40))
def bicubic_bias_table(model, monkeypatch):
    _interpolating(monkeypatch, mode="bicubic")


@mutant("vit", "dinov2", "registers", "siglip", size=(16, 64))
def antialiasing_the_other_way(model, _):
    model.pos_embed.antialias = not model.pos_embed.antialias


@mutant("vit", "dinov2", "beit-cls-both", size=(16, 64))
def native_positions_where_the_number_of_patches_is_native(model, _):
    """16x64 pixels have as many patches as 32x32, in another grid."""
    for module in model.modules():
        if hasattr(module, "grid"):
            module.grid = (2, 8)


def turning(model: HookedViT, turn: Callable) -> None:
    """Another way to turn queries and keys."""
    for block in model.blocks:
        block.attn.rotary.forward = partial(turn, block.attn.rotary)


def positions_of(model: HookedViT, **changes) -> None:
    for block in model.blocks:
        block.attn.rotary.positions = replace(block.attn.rotary.positions, **changes)


@mutant("dinov3", "dinov3-gated")
def rotary_on_the_prefix(model, _):
    """Turned as if the first patch stood there."""

    def turn(rotary, x, tokens):
        cos, sin = turns(rotary.positions, rotary.d_head, rotary.n_prefix, tokens.grid, x.dtype, x.device)
        at = tokens.ids.clamp(min=rotary.n_prefix)
        return x * cos[at] + rotary._partners(x) * sin[at]

    turning(model, turn)


@mutant("dinov3", "dinov3-gated", "dinov3-backbone", "timm-eva02", "timm-pe", "timm-dinov3")
def no_rotary(model, _):
    turning(model, lambda rotary, x, tokens: x)


@mutant("dinov3", "dinov3-gated")
def rotary_on_queries_alone(model, _):
    queries = cycle((True, False))
    turning(model, lambda rotary, x, tokens: Rotary.forward(rotary, x, tokens) if next(queries) else x)


@mutant("dinov3", "dinov3-gated", "timm-pe", "timm-dinov3")
def another_base(model, _):
    positions_of(model, base=2 * model.cfg.rotary.base)


@mutant("dinov3", "dinov3-gated", "timm-eva02", "timm-pe", "timm-dinov3")
def other_partners_in_a_pair(model, _):
    positions_of(model, interleaved=not model.cfg.rotary.interleaved)


@mutant("dinov3", "dinov3-wide", "timm-eva02", "timm-pe", size=(32, 48))
def rows_and_columns_swapped(model, _):
    positions_of(model, columns_first=not model.cfg.rotary.columns_first)


@mutant("dinov3", "timm-eva02", "timm-pe", "timm-dinov3")
def patches_counted_another_way(model, _):
    positions_of(model, indices=not model.cfg.rotary.indices)


@mutant("timm-eva02", "timm-pe")
def a_grid_that_is_not_stretched(model, _):
    positions_of(model, reference=None)


@mutant("timm-pe", size=(48, 40))
def a_reference_the_wrong_way_round(model, _):
    rows, columns = model.cfg.rotary.reference
    positions_of(model, reference=(columns, rows))


@mutant("timm-eva02-inner")
def no_norm_inside_attention(model, _):
    model.blocks[0].attn.ln = None


@mutant("timm-eva02", "timm-eva02-inner")
def no_norm_inside_the_mlp(model, _):
    model.blocks[0].mlp.ln = None


@mutant("timm-eva02")
def the_norm_inside_the_mlp_in_front_of_its_gate(model, _):
    mlp = model.blocks[0].mlp
    mlp.forward = lambda x: mlp.fc_out(mlp.act(mlp.fc_gate(x)) * mlp.ln(mlp.fc_in(x)))


@mutant("timm-eva02-inner")
def a_norm_per_head_inside_attention(model, _):
    attn = model.blocks[0].attn
    attn.ln.forward = lambda z: (
        F.layer_norm(z.unflatten(-1, (4, -1)), (8,), eps=attn.ln.eps).flatten(-2) * attn.ln.weight + attn.ln.bias
    )


@mutant("dinov3", "dinov3-gated")
def turned_the_other_way(model, _):
    """Queries and keys: what differs is the sign of the offset between them."""

    def turn(rotary, x, tokens):
        cos, sin = turns(rotary.positions, rotary.d_head, rotary.n_prefix, tokens.grid, x.dtype, x.device)
        return x * cos[:-1] - rotary._partners(x) * sin[:-1]

    turning(model, turn)


@mutant("dinov3", size=(48, 40))
def both_axes_measured_by_the_longer_one(model, monkeypatch):
    def square(positions, grid, device):
        side = max(grid)
        places = coordinates(positions, (side, side), device).unflatten(0, (side, side))
        return places[: grid[0], : grid[1]].flatten(0, 1)

    monkeypatch.setattr("hooked_vit.components.rotary.coordinates", square)
    turns.cache_clear()


@mutant("dinov3")
def rms_for_layer_norm(model, _):
    for block in model.blocks:
        norm = block.ln1
        norm.forward = lambda x, norm=norm: F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps) + norm.bias


@mutant("dinov3")
def the_position_of_the_neighbour(model, _):
    def turn(rotary, x, tokens):
        p = rotary.n_prefix
        return torch.cat([x[:, :p], Rotary.forward(rotary, x.roll(1, 1), tokens).roll(-1, 1)[:, p:]], 1)

    turning(model, turn)


@mutant("dinov3-backbone")
def cls_for_the_map_of_features(model, _):
    replace_cfg(model, sources=("cls",))


@pytest.fixture(autouse=True)
def nothing_kept():
    """A table that a mutant made is not one for the next."""
    yield
    turns.cache_clear()


@pytest.mark.parametrize(("name", "mutate", "size"), MUTANTS)
def test_mutant_is_caught(name, mutate, size, monkeypatch):
    hf = make_hf(name)
    model = HookedViT.from_hf(hf)
    bound = architectures.get(model.cfg.architecture).eager_bound(model.cfg)
    check = partial(assert_parity, hf, model, pixels(model, size), at_most=bound)
    check()
    with monkeypatch.context() as patch, torch.no_grad():
        mutate(model, patch)
        with pytest.raises(AssertionError, match="logits"):
            check()
