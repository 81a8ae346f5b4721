"""Metrics of episodes: return, length, and numbers that the environment reports."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from research.training.records.clock import Clock

NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating)
SKIPPED_FRAMES = "action_repeat/skipped_frames"
"""The info that counts the repeats of an action which the end of an episode made superfluous."""

TAKEN = {"return", "length", "return_std", *Clock._fields}


class Episodes:
    """Adds up the running episodes of E environments.

    ``success`` is the maximum over an episode, a name that starts with ``distance`` the last value,
    any other number that the environment reports the sum. Names that a log cannot hold, or that
    are taken, are changed (``time step`` to ``time_step``, ``length`` to ``info_length``).

    """

    def __init__(self, num_envs: int) -> None:
        self.returns = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs)
        self.ones = np.ones(num_envs)
        self.totals: dict[str, np.ndarray] = {}
        self.reported: dict[str, np.ndarray] = {}  # (E,) bool, where a total counts

    def add(
        self, reward: np.ndarray, infos: Mapping[str, Any], active: np.ndarray | None = None
    ) -> None:
        """Take in a step: rewards (E,), a vector environment's infos, and who took it, if not all.

        An info is an array (E,) that comes with a mask.
        """
        # Not in place, which takes NumPy twice as long where there are few environments.
        self.returns = self.returns + (reward if active is None else np.where(active, reward, 0.0))
        self.lengths = self.lengths + (self.ones if active is None else active)
        for info, values in infos.items():
            present = infos.get(f"_{info}")
            if present is None or not isinstance(values, np.ndarray) or info == SKIPPED_FRAMES:
                continue
            if active is not None:
                present = present & active
            if values.dtype == object:  # NumPy's Booleans come in one
                values, present = find_numbers(values, present)
            if values.ndim == 1 and values.dtype.kind in "biuf":
                self.merge(metric_name(str(info)), values, present)

    def merge(self, name: str, values: np.ndarray, mask: np.ndarray) -> None:
        """Take in an info (E,) where ``mask`` (E,) is true."""
        total, reported = self.open(name)
        if name.startswith("distance"):
            merged = values
        elif name == "success":
            merged = np.where(reported & ~(values > total), total, values)
        else:
            merged = total + values
        np.copyto(total, merged, where=mask)
        self.reported[name] = reported | mask

    def open(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The total (E,) of an info, and where it was reported (E,), which is nowhere at first."""
        if name not in self.totals:
            self.totals[name] = np.zeros_like(self.returns)
            self.reported[name] = np.zeros(len(self.returns), dtype=np.bool_)
        return self.totals[name], self.reported[name]

    def finish(self, index: int) -> dict[str, float]:
        """The metrics of one environment's finished episode; the next one starts without any."""
        episode = self.metrics(index)
        self.returns[index] = self.lengths[index] = 0.0
        for name, total in self.totals.items():
            total[index], self.reported[name][index] = 0.0, False
        return episode

    def metrics(self, index: int) -> dict[str, float]:
        """The metrics of one environment's episode so far; none before its first step."""
        if not self.lengths[index]:
            return {}
        totals = {"return": self.returns, "length": self.lengths}
        totals.update((name, t) for name, t in self.totals.items() if self.reported[name][index])
        return {name: float(total[index]) for name, total in totals.items()}

    def state_dict(self) -> list[dict[str, float]]:
        """The metrics of every environment's episode so far."""
        return [self.metrics(index) for index in range(len(self.returns))]

    def load_state_dict(self, state: Sequence[Mapping[str, float]]) -> None:
        """Continue the episodes of a ``state_dict``."""
        for index, episode in enumerate(state):
            infos = dict(episode)
            self.returns[index] = infos.pop("return", 0.0)
            self.lengths[index] = infos.pop("length", 0.0)
            for name, value in infos.items():
                total, reported = self.open(name)
                total[index], reported[index] = value, True


def find_numbers(values: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers (E,) in an array of objects, where ``present``, and where there are any."""
    numbers, are_numbers = np.zeros(len(values)), np.zeros_like(present)
    for index in np.flatnonzero(present).tolist():
        if isinstance(values[index], NUMBERS):
            numbers[index], are_numbers[index] = float(values[index]), True
    return numbers, are_numbers


@cache
def metric_name(info: str) -> str:
    """The name under which a number of the environment's infos is logged."""
    name = re.sub("[^A-Za-z0-9_./-]", "_", info)
    return f"info_{name}" if name in TAKEN else name


def mean_metrics(episodes: list[dict[str, float]]) -> dict[str, float]:
    """The mean of every number over the episodes that report it."""
    names = dict.fromkeys(name for episode in episodes for name in episode)
    return {
        name: float(np.mean([episode[name] for episode in episodes if name in episode]))
        for name in names
    }
