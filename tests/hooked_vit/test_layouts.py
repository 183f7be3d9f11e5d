"""A layout is a list of tokens: whatever is inserted and removed, it says what such a list would say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hooked_vit import TokenLayout
from hooked_vit.tokens import ROLES

PREFIXES = ((), ("cls",), ("cls", "dist"), ("cls", "registers", "registers"))
Token = tuple[str, int, int]
"""Role, id, donor."""


def told(layout: TokenLayout) -> list[Token]:
    codes, ids, donors = (x.tolist() for x in (layout.codes, layout.ids, layout.donors))
    return [(ROLES[code], i, donor) for code, i, donor in zip(codes, ids, donors, strict=True)]


def places_of(found: slice | list[int] | None) -> list[int]:
    return list(range(*found.indices(999))) if isinstance(found, slice) else found or []


@given(st.data(), st.sampled_from(PREFIXES), st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_insertions_and_removals(data, prefix, grid):
    layout = TokenLayout.native(prefix, grid)
    n = len(prefix) + grid[0] * grid[1]
    tokens: list[Token] = [(role, i, i) for i, role in enumerate([*prefix, *["patches"] * (n - len(prefix))])]
    assert layout.is_native
    for _ in range(data.draw(st.integers(1, 4))):
        if not tokens or data.draw(st.booleans()):
            at = data.draw(st.integers(-len(tokens) - 1, len(tokens)))
            count, role = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(ROLES))
            donor = data.draw(st.none() | st.integers(0, n - 1))
            layout = layout.insert(at, count, role=role, donor=donor)
            at += len(tokens) + 1 if at < 0 else 0
            tokens[at:at] = [(role, -1, -1 if donor is None else donor)] * count
        else:
            kept = data.draw(st.permutations(range(len(tokens))))[: data.draw(st.integers(1, len(tokens)))]
            layout = layout.keep(torch.tensor(kept))
            tokens = [tokens[i] for i in kept]

    assert told(layout) == tokens
    assert layout.n_tokens == len(tokens)
    assert layout.n_native == n
    assert layout.is_native == ([i for _, i, _ in tokens] == list(range(n)))
    assert layout.n_prefix == sum(role != "patches" for role, _, _ in tokens)
    assert set(layout.roles) == {role for role, _, _ in tokens}
    for role in ROLES:
        places = [i for i, token in enumerate(tokens) if token[0] == role]
        assert places_of(layout.where(role)) == places
        assert places_of(getattr(layout, role)) == places
    for wanted in range(n):
        places = [i for i, token in enumerate(tokens) if token[1] == wanted]
        assert places_of(layout.where([wanted])) == places_of(layout.where(wanted - n)) == places
        if places:
            assert layout.mask(wanted).nonzero().flatten().tolist() == places
        else:
            with pytest.raises(ValueError, match=rf"tokens \[{wanted}\] were removed"):
                layout.mask(wanted)


@given(st.data())
def test_images_of_a_batch_are_layouts_of_their_own(data):
    native = TokenLayout.native(("cls",), (2, 3))
    rows = data.draw(st.lists(st.lists(st.integers(0, 6), unique=True, min_size=1), min_size=2, max_size=4))
    longest = max(map(len, rows))
    padded = torch.tensor([row + [-1] * (longest - len(row)) for row in rows])
    layout = native.keep(padded)
    assert layout.ragged == any(row != rows[0] for row in rows)
    if not layout.ragged:
        assert layout.same_as(native.keep(torch.tensor(rows[0])))
        return
    for i, row in enumerate(rows):
        alone = native.keep(torch.tensor(row))
        assert layout.ids[i].tolist() == alone.ids.tolist() + [-1] * (longest - len(row))
        assert layout.mask("all")[i].sum() == len(row)
        for role in ("cls", "patches"):
            mask = layout.mask(role, missing_ok=True)[i]
            assert mask.nonzero().flatten().tolist() == places_of(alone.where(role))
    assert (layout.present is None) == (min(map(len, rows)) == longest)
    backwards = torch.arange(longest).flip(0)
    assert torch.equal(layout.keep(backwards).ids, layout.ids.flip(1))
    with pytest.raises(ValueError, match="differ from image to image"):
        layout.where("patches")


def test_what_is_asked_must_be_there():
    layout = TokenLayout.native(("cls",), (2, 2))
    assert layout.where([0, 2]) == [0, 2]
    assert layout.mask("all").all()
    assert repr(layout.insert(0, 2)) == "TokenLayout(grid=(2, 2), cls=1, patches=4, inserted=2)"
    with pytest.raises(ValueError, match=r"token indices \[5, -6\] are out of range: there are 5 tokens, 0 to 4"):
        layout.mask([5, -6])
    with pytest.raises(
        ValueError, match="unknown token role 'patch'; roles are cls, dist, registers, patches, inserted, 'all'"
    ):
        layout.mask("patch")
