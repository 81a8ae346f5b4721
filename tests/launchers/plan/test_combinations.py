"""The jobs of a grid: the product of what commas separate, paired keys counted as one."""

import itertools
from collections.abc import Sequence

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from research.errors import UserError
from research.launchers.plan.combinations import combine, in_batches

PARSER = OverridesParser.create()


def jobs(
    *arguments: str, paired: Sequence[Sequence[str]] = (), seeds_per_job: int = 1
) -> list[list[str]]:
    return combine(PARSER.parse_overrides(list(arguments)), paired, seeds_per_job)


@given(st.lists(st.integers(1, 3), max_size=4))
def test_without_pairs_the_jobs_are_those_of_hydras_sweeper(counts: list[int]) -> None:
    arguments = [f"k{i}={','.join(map(str, range(n)))}" for i, n in enumerate(counts)]
    expected = BasicSweeper.split_arguments(PARSER.parse_overrides(arguments), None)[0]
    assert jobs(*arguments) == expected


@pytest.mark.parametrize("syntax", ["range(1,4)", "choice(1,2,3)", "sort(3,1,2)", "1,2,3"])
def test_every_sweep_syntax_is_expanded_as_hydra_does(syntax: str) -> None:
    assert jobs(f"a={syntax}") == [["a=1"], ["a=2"], ["a=3"]]


def test_the_last_override_of_a_key_counts() -> None:
    assert jobs("a=1,2", "b=0", "a=3") == [["a=3", "b=0"]]


def test_pairs_go_together() -> None:
    assert jobs("lr=1,2", "seed=0,1", "dims=[8],[9]", paired=[["lr", "dims"]]) == [
        ["lr=1", "seed=0", "dims=[8]"],
        ["lr=1", "seed=1", "dims=[8]"],
        ["lr=2", "seed=0", "dims=[9]"],
        ["lr=2", "seed=1", "dims=[9]"],
    ]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_pairs_multiply_with_the_rest(length: int, other: int, group: int) -> None:
    names = [f"p{i}" for i in range(group + 1)]
    length += 1
    values = ",".join(map(str, range(length)))
    arguments = [*(f"{name}={values}" for name in names), f"q={','.join(map(str, range(other)))}"]
    made = jobs(*arguments, paired=[names])
    expected = itertools.product(range(length), range(other))
    assert made == [[*(f"{name}={i}" for name in names), f"q={j}"] for i, j in expected]


def test_added_keys_are_paired_by_their_names() -> None:
    assert jobs("+a=1,2", "b=3,4", paired=[["a", "b"]]) == [["+a=1", "b=3"], ["+a=2", "b=4"]]


@pytest.mark.parametrize(
    ("paired", "said"),
    [
        ([["a", "b"]], r"paired=\[\[a,b\]\]: a has 2 values, b has 3 values"),
        ([["a", "bb"]], r"bb is not swept; swept are a, b; did you mean 'b'\?"),
        ([["a", "c"]], "c is not swept"),
        ([["a"], ["a"]], "names a twice"),
    ],
)
def test_wrong_pairs_are_refused_by_name(paired: list[list[str]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        jobs("a=1,2", "b=1,2,3", "c=1", paired=paired)


def test_a_search_space_is_not_for_a_grid() -> None:
    with pytest.raises(UserError, match="hydra/sweeper=optuna"):
        jobs("a=interval(0,1)")


@given(st.integers(0, 20), st.none() | st.integers(1, 25))
def test_batches_keep_all_jobs_in_order(number: int, size: int | None) -> None:
    made = [[str(i)] for i in range(number)]
    batches = in_batches(made, size)
    assert list(itertools.chain(*batches)) == made
    assert all(0 < len(batch) <= (size or number) for batch in batches)


def test_batches_of_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="max_batch_size must be at least 1, got 0"):
        in_batches([["a=1"]], 0)


def test_seeds_share_jobs() -> None:
    assert jobs("lr=1,2", "seed=range(4,8)", seeds_per_job=2) == [
        ["lr=1", "seed=[4,5]"],
        ["lr=1", "seed=[6,7]"],
        ["lr=2", "seed=[4,5]"],
        ["lr=2", "seed=[6,7]"],
    ]
    assert jobs("++seed=0,1", seeds_per_job=2) == [["++seed=[0,1]"]]


@pytest.mark.parametrize(
    ("seed", "size"), [("seed=0,1,2", 2), ("seed=0,1", 0), ("a=1", 2), ("seed=[0,1],[2,3]", 2)]
)
def test_seeds_that_cannot_be_divided_are_refused(seed: str, size: int) -> None:
    with pytest.raises(UserError, match=rf"^hydra\.sweeper\.seeds_per_job={size} must divide the"):
        jobs(seed, seeds_per_job=size)
