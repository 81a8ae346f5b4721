"""Sums that follow their values, and what is found by them."""

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.datasets.replay.sum_tree import SumTree

VALUES = st.lists(st.integers(0, 9), min_size=1, max_size=100)  # sums of them are exact


def make(values: list[int] | np.ndarray) -> SumTree:
    tree = SumTree(len(values))
    tree.set(np.arange(len(values)), np.array(values, np.float64))
    return tree


@given(VALUES, st.lists(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 9))), max_size=5))
def test_the_total_follows_every_change(
    values: list[int], changes: list[list[tuple[int, int]]]
) -> None:
    tree = make(values)
    for change in changes:
        pairs = [(place % len(values), value) for place, value in change]
        for place, value in pairs:
            values[place] = value
        places, new = np.array(pairs, np.int64).reshape(-1, 2).T
        tree.set(places, new)
        assert tree.total == sum(values)


@given(VALUES, st.lists(st.floats(0, 1, exclude_max=True), max_size=20))
def test_the_place_is_that_of_a_search_among_cumulative_sums(
    values: list[int], shares: list[float]
) -> None:
    tree, sums = make(values), list(accumulate(values))
    if not sums[-1]:
        return
    before = np.array(shares) * sums[-1]
    expected = [next(i for i, total in enumerate(sums) if total > mass) for mass in before]
    assert tree.find(before).tolist() == expected


@pytest.mark.parametrize("size", [1, 2, 16, 17, 256, 257, 1001, 5000])
def test_a_place_without_value_is_never_found_however_sums_are_rounded(size: int) -> None:
    rng = np.random.default_rng(size)
    values = rng.random(size) ** 30 * (rng.random(size) < 0.5)
    values[rng.integers(size)] = 1e-9
    tree = make(values)
    edges = np.cumsum(values)
    before = np.concatenate([edges, np.nextafter(edges, 0), [0.0, tree.total, 2 * tree.total]])
    assert (values[tree.find(before)] > 0).all()


def test_sums_depend_on_the_values_alone_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    one, values = SumTree(1000), np.zeros(1000)
    for _ in range(50):
        places, new = rng.integers(0, 1000, 64), rng.random(64)
        one.set(places, new)
        values[places] = new
    other = make(values)
    assert one.total == other.total
    masses = rng.random(1000) * one.total
    assert np.array_equal(one.find(masses), other.find(masses))
