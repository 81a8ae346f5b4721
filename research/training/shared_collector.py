"""Collection in a data-parallel run: rank 0 steps the environments, every rank stores the steps."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from research.batches import ArrayTree, Step
from research.datasets.base import OnlineDataset
from research.parallel.process_group import from_first
from research.training.collector import Collector


class Recorder:
    """Notes what a collector does to a dataset, so that other ranks can do the same to theirs.

    Args:
        dataset: of rank 0.

    """

    def __init__(self, dataset: OnlineDataset) -> None:
        self.dataset = dataset
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def start_episodes(
        self, obs: ArrayTree, mask: np.ndarray, info: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Note it, and do it."""
        self.call("start_episodes", obs, mask, info)

    def add(self, step: Step) -> None:
        """Note it, and do it."""
        self.call("add", step)

    def end_open_episodes(self, mask: np.ndarray) -> None:
        """Note it, and do it."""
        self.call("end_open_episodes", mask)

    def call(self, name: str, *arguments: Any) -> None:
        """Note a call, and make it."""
        self.calls.append((name, arguments))
        getattr(self.dataset, name)(*arguments)


class SharedCollector:
    """A collector of rank 0, whose steps all ranks store in datasets of their own.

    Args:
        make: makes the collector, from the dataset that it fills.
        dataset: of this rank.
        rank: this one.

    """

    def __init__(self, make: Callable[[Any], Collector], dataset: OnlineDataset, rank: int) -> None:
        self.dataset = dataset
        self.recorder = Recorder(dataset)
        self.collector = make(self.recorder) if rank == 0 else None

    def start(self) -> None:
        """Begin an episode in every environment, unless they were restored."""
        if self.collector is not None:
            self.collector.start()
        self.exchange()

    def begin_step(self, step: int, *, at_random: bool) -> None:
        """Choose the actions after ``step`` steps."""
        if self.collector is not None:
            self.collector.begin_step(step, at_random=at_random)

    def end_step(self) -> list[dict[str, float]]:
        """Finish the step and store it; returns the episodes that ended, on rank 0 alone."""
        finished = [] if self.collector is None else self.collector.end_step()
        self.exchange()
        return finished

    def exchange(self) -> None:
        """Do to this rank's dataset what rank 0 did to its own since the last time."""
        calls = from_first(self.recorder.calls)
        if self.collector is None:
            for name, arguments in calls:
                getattr(self.dataset, name)(*arguments)
        self.recorder.calls.clear()

    def count_frames(self, step: int) -> int:
        """Frames that the environments have simulated in their first ``step`` steps, on rank 0."""
        return 0 if self.collector is None else self.collector.count_frames(step)

    def state_dict(self) -> dict[str, Any]:
        """The state of the collector; only of rank 0."""
        assert self.collector is not None, "only rank 0 saves"
        return self.collector.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the open episodes; the dataset must be loaded before."""
        if self.collector is not None:
            self.collector.load_state_dict(state)
        self.exchange()
