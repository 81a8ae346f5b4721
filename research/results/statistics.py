"""Statistics of few runs on several tasks, by Agarwal et al. 2021 (https://arxiv.org/abs/2108.13264).

Scores are an array (R, T) of R runs on each of T tasks or, if the tasks have different numbers of
runs, a list of T arrays (R_t,). Every task has the same weight, however many runs it has. Arrays in
a list may have further axes before their last; every statistic is then computed along the last.
A higher score is better.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Scores: TypeAlias = np.ndarray | Sequence[np.ndarray]
"""(R, T), or T arrays (..., R_t)."""

Statistic: TypeAlias = Callable[[Scores], np.ndarray]
"""Such as ``iqm``."""

MAX_ELEMENTS = 2**22
"""Scores that are resampled at once, to bound the memory."""


class Interval(NamedTuple):
    """An estimate and the bounds of its confidence interval; the bounds are NaN for one run."""

    low: np.ndarray
    estimate: np.ndarray
    high: np.ndarray


def mean(scores: Scores) -> np.ndarray:
    """The mean: 1/T sum_t 1/R_t sum_r x_tr."""
    return task_means(by_task(scores)).mean(axis=0)


def median(scores: Scores) -> np.ndarray:
    """The median over tasks of the mean over runs: median_t (1/R_t sum_r x_tr)."""
    return np.median(task_means(by_task(scores)), axis=0)


def iqm(scores: Scores) -> np.ndarray:
    """The interquartile mean: of the middle half of all runs on all tasks together.

    Of N runs, floor(N / 4) are left out at each end. If the numbers of runs differ, a run on task t
    weighs 1 / (T R_t), and runs of the weight floor(N / 4) / N are left out at each end.
    """
    tasks = by_task(scores)
    values = np.concatenate(tasks, axis=-1)
    sizes = [task.shape[-1] for task in tasks]
    if len(set(sizes)) == 1:
        cut = sum(sizes) // 4
        return np.sort(values, axis=-1)[..., cut : sum(sizes) - cut].mean(axis=-1)
    order = values.argsort(axis=-1)
    weights = np.repeat([1 / (len(sizes) * size) for size in sizes], sizes)[order]
    cut = sum(sizes) // 4 / sum(sizes)
    upto = weights.cumsum(axis=-1)
    kept = (np.minimum(upto, 1 - cut) - np.maximum(upto - weights, cut)).clip(min=0)
    return (kept * np.take_along_axis(values, order, axis=-1)).sum(axis=-1) / kept.sum(axis=-1)


def optimality_gap(scores: Scores, gamma: float = 1.0) -> np.ndarray:
    """How far runs fall short of gamma: gamma - 1/T sum_t 1/R_t sum_r min(x_tr, gamma)."""
    return gamma - mean([np.minimum(task, gamma) for task in by_task(scores)])


def performance_profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """The share of runs above each of K thresholds, (K,): 1/T sum_t 1/R_t sum_r [x_tr > threshold].

    This is the paper's run-score distribution.
    """
    above = [task[..., None, :] > np.asarray(thresholds)[:, None] for task in by_task(scores)]
    return task_means([task.astype(float) for task in above]).mean(axis=0)


def probability_of_improvement(scores_x: Scores, scores_y: Scores) -> np.ndarray:
    """The probability that a run of X is better than a run of Y on the same task, a tie as a half.

    1/T sum_t 1/(R_t S_t) sum_rs ([x_tr > y_ts] + [x_tr = y_ts] / 2): per task, Mann and Whitney's
    U statistic divided by the number of pairs.

    Raises:
        ValueError: they have different numbers of tasks.

    """
    pairs = list(zip(by_task(scores_x), by_task(scores_y), strict=True))
    signs = [np.sign(x[..., :, None] - y[..., None, :]) for x, y in pairs]
    return np.mean([(1 + sign.mean(axis=(-2, -1))) / 2 for sign in signs], axis=0)


def stratified_bootstrap(
    scores: Scores,
    statistic: Statistic,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """The percentile bootstrap of a statistic, its runs resampled within each task.

    Args:
        scores: of at least two runs on one of the tasks; otherwise the bounds are NaN.
        statistic: of this module, or another function that works along the last axis.
        num_resamples: how many samples of the same size are drawn with replacement.
        seed: of the resampling; the same seed gives the same interval.
        confidence: probability mass between the bounds, of which as much lies beyond either.

    """
    tasks = by_task(scores)
    estimate = statistic(tasks)
    if all(task.shape[-1] == 1 for task in tasks):
        return Interval(np.full_like(estimate, np.nan), estimate, np.full_like(estimate, np.nan))
    generator = np.random.default_rng(seed)
    size = max(1, MAX_ELEMENTS // sum(task.size for task in tasks))
    sizes = [min(size, num_resamples - start) for start in range(0, num_resamples, size)]
    values = np.concatenate([statistic(resample(tasks, size, generator)) for size in sizes])
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return Interval(low, estimate, high)


def bootstrap_improvement(scores_x: Scores, scores_y: Scores, **options: Any) -> Interval:
    """The interval of ``probability_of_improvement``, X and Y resampled independently.

    Args:
        scores_x: of X.
        scores_y: of Y.
        options: of ``stratified_bootstrap``.

    """
    x, y = by_task(scores_x), by_task(scores_y)
    return stratified_bootstrap([*x, *y], partial(improvement_of_halves, len(x)), **options)


def improvement_of_halves(num_tasks: int, scores: Scores) -> np.ndarray:
    """``probability_of_improvement`` of the first ``num_tasks`` arrays over the others."""
    return probability_of_improvement(scores[:num_tasks], scores[num_tasks:])


def resample(
    tasks: Sequence[np.ndarray], num_resamples: int, generator: np.random.Generator
) -> list[np.ndarray]:
    """Samples (num_resamples, ..., R_t) of the runs of each task, drawn with replacement."""
    drawn = []
    for task in tasks:
        runs = task.shape[-1]
        index = generator.integers(runs, size=(num_resamples, runs))
        drawn.append(np.moveaxis(task[..., index], -2, 0))
    return drawn


def task_means(tasks: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over the runs of each task, (T, ...)."""
    return np.stack([task.mean(axis=-1) for task in tasks])


def by_task(scores: Scores) -> list[np.ndarray]:
    """The scores of each task, (..., R_t).

    Raises:
        ValueError: there is no score of a task, or one is not finite.

    """
    tasks = list(np.asarray(scores, float).T) if isinstance(scores, np.ndarray) else list(scores)
    tasks = [np.asarray(task, float) for task in tasks]
    if not tasks or any(task.ndim == 0 or task.size == 0 for task in tasks):
        raise ValueError(f"every task needs a score, got shapes {[task.shape for task in tasks]}")
    for number, task in enumerate(tasks):
        if not np.isfinite(task).all():
            *_, run = np.argwhere(~np.isfinite(task))[0]
            value = task[~np.isfinite(task)][0]
            raise ValueError(f"scores must be finite; run {run} on task {number} has {value}")
    return tasks
