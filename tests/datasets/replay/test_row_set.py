"""Drawing from a set of rows."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from research.datasets.replay.row_set import RowSet


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9))))
def test_a_row_set_holds_what_a_plain_set_would(changes: list[tuple[bool, int]]) -> None:
    rows, expected = RowSet(10), set()
    for added, row in changes:
        if added and row not in expected:
            rows.add(row)
            expected.add(row)
        elif not added:
            rows.discard(row)
            expected.discard(row)
    assert len(rows) == len(expected)
    assert sorted(rows.members().tolist()) == sorted(expected)


def test_only_members_are_drawn_and_all_of_them() -> None:
    rows = RowSet(100)
    for row in (3, 50, 99, 7):
        rows.add(row)
    rows.discard(50)
    assert set(rows.draw(1000, torch.Generator().manual_seed(0)).tolist()) == {3, 7, 99}


def test_replaced_members_keep_their_order_and_can_be_removed() -> None:
    rows = RowSet(10)
    rows.add(4)
    rows.replace(torch.tensor([9, 2, 5], dtype=torch.int32))
    assert rows.members().tolist() == [9, 2, 5]
    rows.discard(4)
    rows.discard(9)
    assert sorted(rows.members().tolist()) == [2, 5]
    rows.add(4)
    assert len(rows) == 3
