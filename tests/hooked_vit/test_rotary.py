"""Rotary positions: what a turn is, and that every token keeps its own whatever else the sequence holds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hooked_vit import HookedViT, ViTConfig
from hooked_vit.components.rotary import Rotary, coordinates
from hooked_vit.config import RotaryPositions
from hooked_vit.tokens import TokenLayout
from tests.tiny import attention, distance, make_hf, pixels

ROTARY = ("dinov3", "dinov3-gated", "dinov3-wide")
GRID = (3, 5)
KINDS = {
    "centred": RotaryPositions(base=100.0),
    "columns first": RotaryPositions(base=100.0, columns_first=True),
    "neighbours": RotaryPositions(base=20.0, interleaved=True),
    "indices": RotaryPositions(base=50.0, indices=True, offset=1.0),
    "stretched": RotaryPositions(base=50.0, indices=True, interleaved=True, reference=(4, 4)),
}


def config(positions: RotaryPositions | None, **changes) -> ViTConfig:
    sizes = {"d_model": 24, "n_layers": 2, "n_heads": 2, "d_mlp": 8, "image_size": (24, 40), "patch_size": 8}
    head = {"n_classes": 3, "absolute_positions": False, "n_registers": 2}
    return ViTConfig(**sizes | head | {"rotary": positions} | changes)


def by_hand(x: Tensor, positions: RotaryPositions, n_prefix: int, grid: tuple[int, int]) -> Tensor:
    """Pairs of dimensions as complex numbers, multiplied by e^(i angle), patch by patch."""
    turned, d = x.clone(), x.shape[-1]
    n_pairs, n_each = d // 2, d // 4
    for patch in range(grid[0] * grid[1]):
        places = []
        for axis, at in enumerate(divmod(patch, grid[1])):
            if positions.indices:
                stretch = 1 if positions.reference is None else positions.reference[axis] / grid[axis]
                places.append((at + positions.offset) * stretch)
            else:
                places.append(2 * math.pi * ((2 * at + 1) / grid[axis] - 1))
        first, second = places[::-1] if positions.columns_first else places
        for pair in range(n_pairs):
            angle = (first if pair < n_each else second) * positions.base ** -((pair % n_each) / n_each)
            one, other = (2 * pair, 2 * pair + 1) if positions.interleaved else (pair, pair + n_pairs)
            old = torch.complex(x[:, n_prefix + patch, :, one], x[:, n_prefix + patch, :, other])
            new = old * complex(math.cos(angle), math.sin(angle))
            turned[:, n_prefix + patch, :, one], turned[:, n_prefix + patch, :, other] = new.real, new.imag
    return turned


@pytest.mark.parametrize("kind", KINDS)
def test_a_turn_multiplies_complex_numbers(kind):
    cfg = config(KINDS[kind])
    layout = TokenLayout.native(cfg.prefix, GRID)
    x = torch.randn(2, layout.n_tokens, 2, cfg.d_head, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = Rotary(cfg)(x, layout)
    # angles are float32
    assert distance(turned, by_hand(x, KINDS[kind], len(cfg.prefix), GRID)) <= 3e-6
    assert torch.equal(turned[:, : len(cfg.prefix)], x[:, : len(cfg.prefix)])
    assert distance(turned.norm(dim=-1), x.norm(dim=-1)) <= 1e-6


@pytest.mark.parametrize("kind", ["indices", "stretched"])
def test_scores_of_like_vectors_depend_on_the_offset_alone(kind):
    cfg = config(KINDS[kind], n_registers=0, has_cls=False, sources=("patches",))
    layout = TokenLayout.native((), GRID)
    turn = Rotary(cfg)
    q, k = torch.randn(2, 1, 1, 1, cfg.d_head, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scores = torch.einsum("btha,bsha->ts", turn(q.expand(1, 15, 1, -1), layout), turn(k.expand(1, 15, 1, -1), layout))
    of: dict[tuple[int, int], list[Tensor]] = {}
    for one in range(15):
        for other in range(15):
            rows, columns = (a - b for a, b in zip(divmod(one, 5), divmod(other, 5), strict=True))
            of.setdefault((rows, columns), []).append(scores[one, other])
    assert all(max(same) - min(same) <= 1e-5 for same in of.values())
    assert scores.std() > 1e-2


def test_the_centre_of_the_image_is_not_turned():
    where = coordinates(KINDS["centred"], GRID, torch.device("cpu")).unflatten(0, GRID)
    assert torch.equal(where[1, 2], torch.zeros(2))
    assert distance(where, -where.flip(0, 1)) <= 1e-6


def test_a_head_that_cannot_be_turned_is_refused():
    with pytest.raises(ValueError, match="d_head 6 must be a multiple of 4"):
        config(KINDS["centred"], n_heads=4)


# --- the original, given by hand the positions that each of its tokens has to keep


@pytest.fixture(scope="module", params=ROTARY)
def both(request):
    """In float64, where only a real difference would remain."""
    hf = make_hf(request.param).double()
    return hf, HookedViT.from_hf(hf)


def original(hf, x: Tensor, edit: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """CLS of the original, where `edit` changes stream and patch positions [p, d_head] in front of block 1."""

    def pre(_, args, kwargs):
        cos, sin = kwargs["position_embeddings"]
        stream, cos_of = edit(args[0], cos)
        return (stream, *args[1:]), kwargs | {"position_embeddings": (cos_of, edit(args[0], sin)[1])}

    handle = hf.model.layer[1].register_forward_pre_hook(pre, with_kwargs=True)
    try:
        with torch.no_grad():
            return hf(x).pooler_output
    finally:
        handle.remove()


def ours(model: HookedViT, x: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
    with attention(model, "eager"), torch.no_grad():
        return model.run_with_hooks(x, fwd_hooks=[("blocks.1.hook_resid_pre", lambda act, hook: edit(act))])


@pytest.mark.parametrize("size", [None, (48, 40), (16, 64)])
def test_what_is_left_keeps_its_position(both, size):
    hf, model = both
    x, p = pixels(model, size), len(model.cfg.prefix)
    n = model.layout_for(*x.shape[2:]).n_tokens
    kept = [i for i in range(n) if i < p or i % 3 != 2]
    shuffled = [*range(p), *(p + torch.randperm(n - p, generator=torch.Generator().manual_seed(0))[:5]).tolist()]
    for places in (kept, shuffled):
        patches = [i - p for i in places[p:]]
        want = original(hf, x, lambda act, table, at=places, rows=patches: (act[:, at], table[rows]))
        found = ours(model, x, lambda act, at=places: model.keep_tokens(act, torch.tensor(at)))
        assert distance(found, want) <= 1e-12
        # and positions go by the token's own number, not by its place in the sequence
        wrong = original(hf, x, lambda act, table, at=places, rows=patches: (act[:, at], table[: len(rows)]))
        assert distance(found, wrong) > 1e-4


def test_a_new_token_turns_nothing_and_moves_nobody(both):
    hf, model = both
    x, p = pixels(model), len(model.cfg.prefix)
    new = torch.randn(3, 2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # what stands in front of the patches is not turned
    want = original(hf, x, lambda act, table: (torch.cat([act[:, :p], new, act[:, p:]], 1), table))
    for donor in (0, None):
        for at in (0, p, p + 3, -1):
            found = ours(model, x, lambda act, d=donor, i=at: model.insert_tokens(act, i, new, donor=d))
            assert distance(found, want) <= 1e-12


def test_a_new_token_may_take_the_position_of_a_patch(both):
    hf, model = both
    x, donor = pixels(model), len(model.cfg.prefix) + 6
    new = torch.randn(3, 1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    want = original(hf, x, lambda act, table: (torch.cat([act, new], 1), torch.cat([table, table[6:7]])))
    found = ours(model, x, lambda act: model.insert_tokens(act, act.shape[1], new, donor=donor))
    assert distance(found, want) <= 1e-12


def test_images_that_lose_different_tokens(both):
    hf, model = both
    x, p = pixels(model), len(model.cfg.prefix)
    kept = torch.tensor([[*range(p), *(p + i for i in some)] for some in ([1, 4, 9], [0, 4, 15], [8, 2, 3])])
    found = ours(model, x, lambda act: model.keep_tokens(act, kept))
    for image, places in enumerate(kept.tolist()):
        rows = [i - p for i in places[p:]]
        want = original(hf, x[image : image + 1], lambda act, table, at=places, of=rows: (act[:, at], table[of]))
        assert distance(found[image : image + 1], want) <= 1e-12
