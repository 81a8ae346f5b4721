"""An environment that times whatever trains in it: the same instrument for every system."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.vector import SyncVectorEnv

from research.files import write_whole


class Stopwatch(gymnasium.Wrapper):
    """Times the steps after ``first`` up to ``last``, writes a report and ends the process.

    The report has ``wall_s`` and ``cpu_s`` (of all threads) of the window, ``process_cpu_s`` since
    the process began, and ``ended`` in seconds since the epoch. A step's time is counted from the
    end of the one before, so it holds all that the trainer does in between.
    """

    def __init__(self, env: gymnasium.Env, *, first: int, last: int, report: Path) -> None:
        super().__init__(env)
        self.first, self.last, self.report = first, last, report
        self.steps = 0
        self.start = time.perf_counter(), time.process_time()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self.steps += 1
        if self.steps == self.first:
            self.start = time.perf_counter(), time.process_time()
        elif self.steps == self.last:
            self.end()
        return result

    def end(self) -> None:
        """Write the report; nothing that the trainer would do at its end is waited for."""
        report = {
            "ended": time.time(),
            "wall_s": time.perf_counter() - self.start[0],
            "cpu_s": time.process_time() - self.start[1],
            "process_cpu_s": time.process_time(),
        }
        write_whole(self.report, json.dumps(report))
        sys.stdout.flush()
        os._exit(0)


def make_timed(*, env: SyncVectorEnv, first: int, last: int, report: str) -> SyncVectorEnv:
    """The vector, timed by the steps of its first environment.

    Raises:
        ValueError: the window is empty.

    """
    if not 0 <= first < last:
        raise ValueError(f"expected 0 <= first < last, got {first}, {last}")
    watched = Stopwatch(env.envs[0], first=first, last=last, report=Path(report))
    env.envs = [watched, *env.envs[1:]]
    return env
