"""Metrics of episodes: return, length, and numbers that the environment reports."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from research.training.records.logger import Clock

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
        self.totals: list[dict[str, float]] = [{} for _ in range(num_envs)]

    def add(self, reward: np.ndarray, infos: Mapping[str, Any]) -> None:
        """Take in one step of every environment: rewards (E,) and a vector environment's infos."""
        for index, total in enumerate(self.totals):
            total["return"] = total.get("return", 0.0) + float(reward[index])
            total["length"] = total.get("length", 0.0) + 1
        for info, values in infos.items():
            present = infos.get(f"_{info}")
            if present is None or not isinstance(values, np.ndarray) or info == SKIPPED_FRAMES:
                continue
            name = metric_name(str(info))
            for index in np.flatnonzero(present).tolist():
                # NumPy's Booleans come in an array of objects
                if isinstance(values[index], NUMBERS):
                    total = self.totals[index]
                    total[name] = merge_info(name, total.get(name), float(values[index]))

    def finish(self, index: int) -> dict[str, float]:
        """The metrics of one environment's finished episode; the next one starts without any."""
        total, self.totals[index] = self.totals[index], {}
        return total


def metric_name(info: str) -> str:
    """The name under which a number of the environment's infos is logged."""
    name = re.sub("[^A-Za-z0-9_./-]", "_", info)
    return f"info_{name}" if name in TAKEN else name


def merge_info(name: str, so_far: float | None, value: float) -> float:
    """A reported number, accumulated over an episode."""
    if so_far is None or name.startswith("distance"):
        return value
    return max(so_far, value) if name == "success" else so_far + value


def mean_metrics(episodes: list[dict[str, float]]) -> dict[str, float]:
    """The mean of every number over the episodes that report it."""
    names = dict.fromkeys(name for episode in episodes for name in episode)
    return {
        name: float(np.mean([episode[name] for episode in episodes if name in episode]))
        for name in names
    }
