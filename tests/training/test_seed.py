"""One seed gives independent generators, and evaluation can give them back untouched."""

import io
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from research.errors import UserError
from research.training.seed import (
    derive_seed,
    preserve_random_state,
    random_state,
    restore_random_state,
    seed_everything,
)

Purpose = st.lists(st.one_of(st.sampled_from(["a", "b"]), st.integers(0, 3)), max_size=4).map(tuple)
Seed = st.one_of(st.integers(0, 3), st.integers(0, 2**70))


def draw() -> tuple[float, ...]:
    """A number of every global generator, with the halves that two of them keep back."""
    torch_numbers = torch.randn(3).tolist()
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), *torch_numbers


def test_derived_seeds_are_the_same_on_every_machine() -> None:
    assert derive_seed(0, "episode", 3, 17) == 14706895
    assert derive_seed(12345, "warmup") == 917843525


@given(Seed, Purpose, Seed, Purpose)
def test_another_seed_or_purpose_gives_another_seed(
    seed: int, purpose: tuple[str | int, ...], other: int, other_purpose: tuple[str | int, ...]
) -> None:
    same = (seed, *purpose) == (other, *other_purpose)
    assert (derive_seed(seed, *purpose) == derive_seed(other, *other_purpose)) == same


@given(Seed)
def test_derived_seeds_suit_every_library(seed: int) -> None:
    assert 0 <= derive_seed(seed, "episode", 0) < 2**31


def test_seeds_of_neighbours_spread_over_the_whole_range() -> None:
    seeds = [derive_seed(run, "episode", 0, count) for run in range(30) for count in range(100)]
    quarters, _ = np.histogram(seeds, bins=4, range=(0, 2**31))
    assert len(set(seeds)) == 3000
    assert quarters.min() > 650
    assert 0.45 < np.mean([seed % 2 for seed in seeds]) < 0.55


def test_a_negative_seed_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^seed must be at least 0, got -1$"):
        seed_everything(-1)


def test_every_global_generator_follows_the_seed() -> None:
    drawn = []
    for seed in (3, 3, 4):
        seed_everything(seed)
        drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[0], drawn[2], strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_generators_go_on_as_if_nothing_had_been_drawn(fails: bool) -> None:
    seed_everything(0)
    draw()  # so that the generators are between the two halves of a normal pair
    with preserve_random_state():
        expected = draw()
    try:
        with preserve_random_state():
            seed_everything(1)
            draw()
            assert not fails
    except AssertionError:
        pass
    assert draw() == expected


def test_random_state_survives_a_file_that_holds_no_pickled_objects() -> None:
    draw()
    file = io.BytesIO()
    torch.save(random_state(), file)
    expected = [draw() for _ in range(400)]  # beyond a Mersenne twister's 624 words
    file.seek(0)
    restore_random_state(torch.load(file, weights_only=True))
    assert [draw() for _ in range(400)] == expected


def test_a_run_on_the_cpu_takes_no_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: pytest.fail("initialises CUDA"))
    assert random_state()["cuda"] == []


def test_a_state_of_two_gpus_is_restored_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    restored = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", restored.extend)
    restore_random_state({**random_state(), "cuda": [torch.zeros(16), torch.ones(16)]})
    assert [state.sum().item() for state in restored] == [0]
