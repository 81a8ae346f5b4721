"""Rows drawn by their priorities, against a naive model; their weights, state and errors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from research.datasets.replay.prioritised_rows import MOST_CHANGES, PrioritisedRows
from research.errors import UserError

ALPHA, BETA, EPSILON = 0.6, 0.4, 0.01
NUM_ROWS = 12


def make(num_rows: int = NUM_ROWS, **changes: float) -> PrioritisedRows:
    settings = {"alpha": ALPHA, "beta": BETA, "epsilon": EPSILON}
    return PrioritisedRows(num_rows, **(settings | changes))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class NaiveRows:
    """Priorities in a dict; draws by adding them up."""

    def __init__(self) -> None:
        self.priorities: dict[int, float] = {}
        self.largest = 1.0
        self.batch: list[int] = []

    def add(self, row: int) -> None:
        self.priorities[row] = self.largest

    def discard(self, row: int) -> None:
        self.priorities.pop(row, None)
        self.batch = [-1 if each == row else each for each in self.batch]

    def prioritise(self, errors: list[float]) -> None:
        for row, error in zip(self.batch, errors, strict=True):
            priority = (abs(error) + EPSILON) ** ALPHA
            self.largest = max(self.largest, priority)
            if row >= 0:
                self.priorities[row] = priority

    def draw(self, uniforms: list[float]) -> list[int]:
        total, count = sum(self.priorities.values()), len(uniforms)
        self.batch = []
        for index, uniform in enumerate(uniforms):
            mass = (index + uniform) / count * total
            for row in sorted(self.priorities):
                last, mass = row, mass - self.priorities[row]
                if mass < 0:
                    break
            self.batch.append(last)
        return self.batch


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.integers(0, NUM_ROWS - 1), unique=True)),
        st.tuples(st.just("discard"), st.lists(st.integers(0, NUM_ROWS - 1), unique=True)),
        st.tuples(st.just("draw"), st.integers(1, 6)),
        st.tuples(st.just("learn"), st.lists(st.floats(-9, 9), min_size=6, max_size=6)),
    ),
    max_size=40,
)


@given(EVENTS)
def test_rows_are_drawn_as_by_a_naive_model_by_the_same_uniforms(events: list) -> None:
    rows, naive, numbers = make(), NaiveRows(), generator()
    rows.add(np.array([3]))
    naive.add(3)
    for kind, value in events:
        if kind == "add":
            new = [row for row in value if row not in naive.priorities]
            rows.add(np.array(new, np.int64))
            for row in new:
                naive.add(row)
        elif kind == "discard":
            old = [row for row in value if row != 3]  # one always stays
            rows.discard(np.array(old, np.int64))
            for row in old:
                naive.discard(row)
        elif kind == "draw":
            uniforms = torch.rand(value, generator=generator(len(events)), dtype=torch.float64)
            drawn = rows.draw(value, generator(len(events))).tolist()
            assert drawn == naive.draw(uniforms.tolist())
        elif naive.batch:
            errors = value[: len(naive.batch)]
            rows.prioritise(torch.tensor(errors, dtype=torch.float64))
            naive.prioritise(errors)
            naive.batch = []
    rows.draw(1, numbers)  # makes the changes that wait
    stored = {row: rows._tree.values[row] for row in range(NUM_ROWS) if rows._tree.values[row]}
    assert stored == pytest.approx(naive.priorities)
    assert rows._tree.total == pytest.approx(sum(naive.priorities.values()))
    assert len(rows) == len(naive.priorities)


def prioritised(errors: list[float], **changes: float) -> PrioritisedRows:
    """A row for each error, all in one batch."""
    rows = make(len(errors), **changes)
    rows.add(np.arange(len(errors)))
    batch = rows.draw(len(errors), generator())  # as many equal shares as rows
    assert batch.tolist() == list(range(len(errors)))
    rows.prioritise(torch.tensor(errors))
    return rows


def test_rows_are_drawn_as_often_as_the_power_of_their_errors_says() -> None:
    errors = [0.0, 1.0, -2.0, 4.0, 0.5]
    rows, numbers, num_draws = prioritised(errors), generator(1), 40_000
    drawn = torch.cat([rows.draw(1, numbers) for _ in range(num_draws)])
    expected = (np.abs(errors) + EPSILON) ** ALPHA
    expected *= num_draws / expected.sum()
    chi_square = ((drawn.bincount().numpy() - expected) ** 2 / expected).sum()
    assert chi_square < 18.5  # exceeded once in 1,000 times with 4 degrees of freedom


def test_a_batch_has_one_row_from_each_equal_share_of_the_total() -> None:
    rows, numbers = prioritised([1.0] * 8), generator(1)
    for _ in range(20):
        assert (rows.draw(4, numbers) // 2).tolist() == [0, 1, 2, 3]


def test_with_an_alpha_of_zero_all_are_drawn_alike() -> None:
    rows = prioritised([1.0, 100.0, 0.0], alpha=0.0)
    drawn = rows.draw(30_000, generator(1)).bincount()
    assert (drawn - 10_000).abs().max() <= 1
    assert torch.equal(rows.weights(), torch.ones(30_000))


@pytest.mark.parametrize(("share", "beta"), [(0.0, 0.4), (0.5, 0.7), (1.0, 1.0)])
def test_weights_correct_the_bias_by_a_power_that_grows_to_one(share: float, beta: float) -> None:
    errors = [0.1, 1.0, 3.0, 0.0]
    rows = prioritised(errors)
    rows.anneal(share)
    drawn = rows.draw(100, generator(1)).long()
    priorities = (torch.tensor(errors).double().abs() + EPSILON) ** ALPHA
    probabilities = priorities / priorities.sum()
    expected = (len(errors) * probabilities[drawn]) ** -beta  # the paper's equation in 3.4
    torch.testing.assert_close(rows.weights(), (expected / expected.max()).float())
    assert rows.weights().dtype == torch.float32


def test_a_new_row_has_the_largest_priority_so_far_even_if_none_has_it_now() -> None:
    rows = prioritised([3.0, 0.0, 0.0])
    rows.discard(np.array([0]))
    rows.add(np.array([0]))
    drawn = rows.draw(10_000, generator(1)).bincount() / 10_000
    largest, least = 3.01**ALPHA, 0.01**ALPHA
    assert drawn[0].item() == pytest.approx(largest / (largest + 2 * least), abs=1e-3)


def test_a_row_that_was_overwritten_since_it_was_drawn_gets_no_old_priority() -> None:
    rows = prioritised([1.0, 1.0, 1.0])
    rows.draw(3, generator())
    rows.discard(np.array([0, 1]))
    rows.add(np.array([1]))  # a new one in its place
    rows.prioritise(torch.tensor([50.0, 50.0, 0.0]))
    rows.draw(1, generator())
    expected = [0.0, (1 + EPSILON) ** ALPHA, EPSILON**ALPHA]
    assert rows._tree.values[:3].tolist() == pytest.approx(expected)
    rows.discard(np.array([2]))
    rows.add(np.array([2]))
    rows.draw(1, generator())
    assert rows._tree.values[2] == pytest.approx((50 + EPSILON) ** ALPHA), "it was an error still"


def test_changes_do_not_pile_up_without_a_draw() -> None:
    rows = make(2)
    for _ in range(3 * MOST_CHANGES):
        rows.add(np.array([0]))
        rows.discard(np.array([0]))
        assert len(rows._changes) <= MOST_CHANGES
    rows.add(np.array([1]))
    assert rows.draw(3, generator()).tolist() == [1, 1, 1]


def test_what_was_handed_over_may_change_afterwards() -> None:
    rows, numbers = make(4), np.array([0, 1])
    rows.add(numbers)
    numbers += 2
    rows.discard(numbers)
    numbers -= 2
    assert set(rows.draw(10, generator()).tolist()) == {0, 1}


def test_a_restored_set_draws_the_same_to_the_bit() -> None:
    rows = prioritised([0.3, 2.0, 0.0, 5.0, 0.7])
    rows.discard(np.array([1]))
    state, members = rows.state_dict(), rows.members().clone()
    twin = make(5)
    twin.replace(members)
    twin.load_state_dict(state)
    for each in (rows, twin):
        each.add(np.array([1]))
    batches = [[each.draw(3, generator(seed)) for seed in range(20)] for each in (rows, twin)]
    assert all(map(torch.equal, *batches))
    assert torch.equal(rows.weights(), twin.weights())
    assert torch.equal(rows.state_dict()["priorities"], twin.state_dict()["priorities"])


@pytest.mark.parametrize(
    ("priorities", "largest"),
    [
        ([1.0], 1.0),
        ([1.0, 2.0], 1.5),
        ([1.0, 0.0], 1.0),
        ([1.0, np.nan], 2.0),
        ([1.0, 1.0], np.inf),
    ],
)
def test_priorities_that_cannot_be_those_of_the_members_are_refused(
    priorities: list[float], largest: float
) -> None:
    rows = make()
    rows.replace(torch.tensor([4, 7], dtype=torch.int32))
    with pytest.raises(ValueError, match="priorities"):
        rows.load_state_dict({"priorities": torch.tensor(priorities), "largest": largest})


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_errors_that_are_not_finite_are_told_when_they_would_be_used(wrong: float) -> None:
    rows = prioritised([1.0, wrong])
    with pytest.raises(UserError, match=rf"the errors of a batch.* became {wrong}"):
        rows.draw(1, generator())


def test_priorities_of_another_shape_are_refused() -> None:
    rows = prioritised([1.0, 2.0])
    rows.draw(2, generator())
    with pytest.raises(UserError, match=r"Loss.priority must be \(2,\).* got \(2, 1\)"):
        rows.prioritise(torch.ones(2, 1))
