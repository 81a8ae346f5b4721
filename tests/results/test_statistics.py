"""The statistics of few runs equal rliable's, and what follows from their definitions."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rliable import library, metrics

from research.results import statistics
from research.results.statistics import (
    bootstrap_improvement,
    iqm,
    mean,
    median,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 5))
# Whole numbers make ties.
VALUES = st.one_of(st.floats(-1e3, 1e3), st.integers(-3, 3).map(float))
SCORES = arrays(float, SIZES, elements=VALUES)
PEERS = {
    mean: metrics.aggregate_mean,
    median: metrics.aggregate_median,
    iqm: metrics.aggregate_iqm,
    optimality_gap: metrics.aggregate_optimality_gap,
}


@pytest.mark.parametrize("statistic", PEERS, ids=lambda statistic: statistic.__name__)
@given(scores=SCORES)
def test_a_statistic_equals_rliables(statistic: Callable, scores: np.ndarray) -> None:
    expected = PEERS[statistic](scores)
    np.testing.assert_allclose(statistic(scores), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(statistic(list(scores.T)), expected, rtol=1e-9, atol=1e-9)


@given(scores=SCORES, gamma=st.integers(-10, 10))
def test_the_optimality_gap_has_any_target(scores: np.ndarray, gamma: int) -> None:
    expected = metrics.aggregate_optimality_gap(scores, gamma)
    np.testing.assert_allclose(optimality_gap(scores, gamma), expected, atol=1e-9)


@given(scores=SCORES)
def test_a_performance_profile_equals_rliables(scores: np.ndarray) -> None:
    thresholds = np.array([-5.0, 0.0, 1.0, 2.5])
    expected = library.score_distributions(scores, thresholds)
    np.testing.assert_allclose(performance_profile(scores, thresholds), expected, atol=1e-12)


@given(data=st.data(), tasks=st.integers(1, 4))
def test_the_probability_of_improvement_equals_rliables(data: st.DataObject, tasks: int) -> None:
    x, y = (
        data.draw(arrays(float, st.tuples(st.integers(1, 6), st.just(tasks)), elements=VALUES))
        for _ in range(2)
    )
    expected = metrics.probability_of_improvement(x, y)
    np.testing.assert_allclose(probability_of_improvement(x, y), expected, atol=1e-9)


@pytest.mark.parametrize("statistic", [mean, iqm], ids=lambda statistic: statistic.__name__)
def test_an_interval_is_near_rliables(statistic: Callable) -> None:
    scores = np.random.default_rng(1).normal(size=(10, 4)) + np.arange(4)
    ours = stratified_bootstrap(scores, statistic, num_resamples=20_000)
    _, theirs = library.get_interval_estimates(
        {"x": scores}, lambda x: np.array([PEERS[statistic](x)]), reps=4000
    )
    width = float(ours.high - ours.low)
    np.testing.assert_allclose([ours.low, ours.high], theirs["x"].ravel(), atol=0.05 * width)
    assert ours.estimate == pytest.approx(PEERS[statistic](scores))


def test_an_interval_is_a_quantile_of_all_samples() -> None:
    scores = np.array([0.0, 1.0, 5.0])
    samples = np.array([[a, b, c] for a in scores for b in scores for c in scores]).mean(axis=1)
    interval = stratified_bootstrap([scores], mean, num_resamples=50_000, confidence=0.8)
    low, high = np.quantile(samples, [0.1, 0.9])
    assert interval == pytest.approx((low, 2.0, high))


def test_runs_are_resampled_within_their_task() -> None:
    scores = np.array([[0.0, 100.0], [0.0, 100.0], [0.0, 100.0]])
    assert stratified_bootstrap(scores, mean) == (50, 50, 50)


def test_the_seed_decides_the_interval() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 2))
    first, again, other = (
        stratified_bootstrap(scores, iqm, seed=seed, num_resamples=99) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_the_memory_of_resampling_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [np.random.default_rng(0).normal(size=(7, 5))]
    sizes = []

    def watched(tasks: statistics.Scores) -> np.ndarray:
        sizes.append(tasks[0].size)
        return mean(tasks)

    monkeypatch.setattr(statistics, "MAX_ELEMENTS", 1000)
    interval = stratified_bootstrap(scores, watched, num_resamples=300)
    assert interval.low.shape == (7,)
    assert max(sizes) <= 1000
    assert sum(sizes) == 35 * (1 + 300)


def test_one_run_has_no_interval() -> None:
    low, estimate, high = stratified_bootstrap(np.array([[3.0, 5.0]]), mean)
    assert estimate == 4
    assert np.isnan([low, high]).all()


@example(runs=[3, 6], seed=0)
@given(runs=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_tasks_weigh_the_same_with_any_number_of_runs(runs: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = [generator.normal(size=size) for size in runs]
    means = [each.mean() for each in scores]
    assert mean(scores) == pytest.approx(np.mean(means))
    assert median(scores) == pytest.approx(np.median(means))
    common = np.lcm.reduce(runs)
    repeated = np.stack([np.repeat(each, common // len(each)) for each in scores], axis=1)
    thresholds = np.array([0.0, 0.5])
    for statistic in (optimality_gap, lambda x: performance_profile(x, thresholds)):
        np.testing.assert_allclose(statistic(scores), statistic(repeated))
    parts = np.sort(np.repeat(repeated, sum(runs)))  # so that no part is left out by half
    cut = sum(runs) // 4 * parts.size // sum(runs)
    assert iqm(scores) == pytest.approx(parts[cut : parts.size - cut].mean())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_named(value: float) -> None:
    scores = np.zeros((3, 2))
    scores[2, 1] = value
    for statistic in PEERS:
        with pytest.raises(ValueError, match=f"run 2 on task 1 has {value}"):
            statistic(scores)


@pytest.mark.parametrize("scores", [[], [np.array([])], np.zeros((0, 2)), np.zeros((2, 0))])
def test_a_task_without_a_score_is_refused(scores: statistics.Scores) -> None:
    with pytest.raises(ValueError, match="every task needs a score"):
        mean(scores)


def test_the_interval_of_an_improvement_holds_its_extremes() -> None:
    better, worse = np.full((5, 2), 9.0), np.arange(8.0).reshape(4, 2)
    assert bootstrap_improvement(better, worse, num_resamples=50) == (1, 1, 1)
    same = bootstrap_improvement(worse, worse)
    assert same.low < same.estimate == 0.5 < same.high


def test_an_improvement_interval_is_near_rliables() -> None:
    generator = np.random.default_rng(3)
    x, y = generator.normal(0.5, size=(6, 3)), generator.normal(size=(5, 3))
    ours = bootstrap_improvement(x, y, num_resamples=20_000)
    _, theirs = library.get_interval_estimates(
        {"x": [x, y]}, lambda x, y: np.array([metrics.probability_of_improvement(x, y)]), reps=2000
    )
    np.testing.assert_allclose([ours.low, ours.high], theirs["x"].ravel(), atol=0.03)
