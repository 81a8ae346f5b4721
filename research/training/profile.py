"""What a run spends its time on, by PyTorch's profiler: a table of phases, and a trace."""

import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[reportPrivateImportUsage]
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, record_function

from research.files import write_whole

NUM_FIRST, NUM_UPDATES = 20, 200
"""Updates left out, in which memory is taken and code compiled; and those recorded at least."""

WAITS = "cudaStreamSync", "cudaDeviceSync", "cudaEventSync", "cuStreamSync", "cudaMemcpy "
"""How the calls begin in which the host waits for a GPU."""

NUM_OPERATORS = 20

log = logging.getLogger(__name__)


class Profile:
    """Records some steps of a run, and writes ``profile/`` into its directory.

    ``phases.md`` holds a table of what took the time (environments, acting, sampling, the update),
    and how much of it was spent outside PyTorch's operators: in Python, NumPy and the simulator.
    The operators that took longest follow. ``trace.json.gz`` shows each in time, in
    https://ui.perfetto.dev. The recording takes time itself, about a microsecond for each
    operator; it changes no number.

    Args:
        folder: the run directory.
        device: of the networks.
        updates: that the run has made.

    """

    def __init__(self, folder: Path, device: torch.device, updates: int) -> None:
        self.folder = folder / "profile"
        self.device = device
        self.first = updates
        self.phases: set[str] = set()
        self.begun = (0, 0, 0.0)
        self.profiler: torch.profiler.profile | None = None
        self.is_done = False

    def watch(self, phase: str, part: Any, *methods: str) -> None:
        """Count the time that some methods of an object take to a phase."""
        self.phases.add(phase)
        for name in methods:
            setattr(part, name, self.annotate(phase, getattr(part, name)))

    def annotate(self, phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """``method``, telling the profiler when it begins and ends."""

        @functools.wraps(method)
        def annotated(*arguments: Any, **options: Any) -> Any:
            if self.profiler is None:
                return method(*arguments, **options)
            with record_function(phase):
                return method(*arguments, **options)

        return annotated

    def advance(self, step: int, updates: int) -> None:
        """Begin or end the recording if it is time, after so many steps and updates of the run."""
        if self.profiler is not None:
            if updates >= self.begun[1] + NUM_UPDATES:
                self.end(step, updates)
        elif not self.is_done and updates >= self.first + NUM_FIRST:
            activities = [ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints its own state
            self.profiler = torch.profiler.profile(activities=activities)
            self.profiler.start()
            self.begun = step, updates, time.perf_counter()

    def end(self, step: int, updates: int) -> None:
        """Stop recording, and write the files."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self.begun[2]
        profiler, self.profiler, self.is_done = self.profiler, None, True
        assert profiler is not None
        profiler.stop()
        self.folder.mkdir(exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / "trace.json.gz"))
        counts = step - self.begun[0], updates - self.begun[1]
        kind = "device" if self.device.type == "cuda" else "cpu"
        operators = profiler.key_averages().table(
            f"self_{kind}_time_total", row_limit=NUM_OPERATORS, max_name_column_width=40
        )
        lines = [
            f"# {counts[0]:,} steps and {counts[1]:,} updates, from step {self.begun[0]:,}",
            "",
            *tabulate(profiler.events() or [], self.phases, seconds),
            *("", "```", operators, "```", ""),
        ]
        write_whole(self.folder / "phases.md", "\n".join(lines))
        log.info("%s shows where the time went", self.folder / "phases.md")

    def close(self, step: int, updates: int) -> None:
        """Write what was recorded if the run ends before the recording does."""
        if self.profiler is not None and updates > self.begun[1]:
            self.end(step, updates)
        elif not self.is_done:
            log.warning(
                "no profile: %d updates were made, of which the first %d are left out",
                *(updates - self.first, NUM_FIRST),
            )


@dataclass
class Phase:
    """What a phase took, in microseconds, without the phases inside it."""

    calls: int = 0
    total: float = 0.0
    outside: float = 0.0  # of all operators
    waiting: float = 0.0


def tabulate(events: Iterable[FunctionEvent], names: set[str], seconds: float) -> Iterator[str]:
    """Lines of a Markdown table: what share of ``seconds`` each phase took, and the rest."""
    phases = {name: Phase() for name in sorted(names)}
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue
        parent = event.cpu_parent
        while parent is not None and parent.name not in names:
            parent = parent.cpu_parent
        if event.name in names:
            phase = phases[event.name]
            phase.calls += 1
            phase.total += event.cpu_time_total
            phase.outside += event.self_cpu_time_total
            if parent is not None:
                phases[parent.name].total -= event.cpu_time_total
        elif parent is not None and event.name.startswith(WAITS):
            phases[parent.name].waiting += event.cpu_time_total
    rest = seconds * 1e6 - sum(phase.total for phase in phases.values())
    yield "| phase | share of the time | outside operators | waiting for a GPU | calls | us each |"
    yield "| --- " * 6 + "|"
    for name, phase in sorted(phases.items(), key=lambda item: -item[1].total):
        if phase.calls:
            parts = (phase.total, phase.outside, phase.waiting)
            shares = " | ".join(f"{part / seconds / 1e4:.1f} %" for part in parts)
            yield f"| {name} | {shares} | {phase.calls:,} | {phase.total / phase.calls:,.0f} |"
    yield f"| other | {rest / seconds / 1e4:.1f} % | | | | |"
