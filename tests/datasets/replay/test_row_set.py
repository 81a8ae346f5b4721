"""Drawing from a set of rows."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from research.datasets.replay.row_set import RowSet

ROWS = st.lists(st.integers(0, 9), unique=True)


def discard_one(members: list[int], row: int) -> None:
    """Remove a row if it is there; the last takes its place."""
    if row in members:
        last = members.pop()
        if last != row:
            members[members.index(row)] = last


@given(st.lists(st.tuples(st.booleans(), ROWS)))
def test_many_rows_change_the_order_as_one_after_the_other_would(
    changes: list[tuple[bool, list[int]]],
) -> None:
    rows, expected = RowSet(10), []
    for added, chosen in changes:
        if added:
            new = [row for row in chosen if row not in expected]
            rows.add(np.array(new, np.int64))
            expected += new
        else:
            rows.discard(np.array(chosen, np.int64))
            for row in chosen:
                discard_one(expected, row)
        assert rows.members().tolist() == expected
    assert len(rows) == len(expected)


def test_only_members_are_drawn_and_all_of_them() -> None:
    rows = RowSet(100)
    rows.add(np.array([3, 50, 99, 7]))
    rows.discard(np.array([50]))
    assert set(rows.draw(1000, torch.Generator().manual_seed(0)).tolist()) == {3, 7, 99}


def test_replaced_members_keep_their_order_and_can_be_removed() -> None:
    rows = RowSet(10)
    rows.add(np.array([4]))
    rows.replace(torch.tensor([9, 2, 5], dtype=torch.int32))
    assert rows.members().tolist() == [9, 2, 5]
    rows.discard(np.array([4, 9]))
    assert sorted(rows.members().tolist()) == [2, 5]
    rows.add(np.array([4]))
    assert len(rows) == 3
