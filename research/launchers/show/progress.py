"""Shows the jobs of a sweep from their status files."""

from collections.abc import Mapping, Sequence

from research.launchers.plan.ledger import Job
from research.launchers.pool.pool import known_status
from research.launchers.show.rows import Row
from research.launchers.show.screen import Screen
from research.machine.slots import Slot


class Progress:
    """Shows the jobs of a batch from their status files."""

    def __init__(self, jobs: Sequence[Job], screen: Screen) -> None:
        self.jobs = jobs
        self.screen = screen
        self.rows: dict[int, Row] = {}

    def __call__(self, running: Mapping[int, Slot]) -> None:
        """Show all jobs; only those that run, or ran when last shown, are read again."""
        for job in self.jobs:
            row = self.rows.get(job.number)
            if row is None or row.device or job.number in running:
                self.rows[job.number] = read_row(job, running.get(job.number))
        self.screen.show(list(self.rows.values()))

    def close(self) -> None:
        """Leave the last table on the screen."""
        self.screen.close()


def read_row(job: Job, slot: Slot | None) -> Row:
    """A job's row, from its status file."""
    status = known_status(job.folder)
    return Row(job.number, job.varies, status, name_slot(slot) if slot else "", job.folder)


def name_slot(slot: Slot) -> str:
    """A slot in a few characters: ``gpu 0 cpu 0-3``, ``gpus 0,1 cpu 0-7``."""
    names = [name[:12] for name in slot.gpu.split(",")] if slot.gpu else []
    gpu = f"gpu{'s' if len(names) > 1 else ''} {','.join(names)} " if names else ""
    first, last = (slot.cpus[0], slot.cpus[-1]) if slot.cpus else (0, 0)
    if not slot.cpus:
        return gpu.strip()
    if list(slot.cpus) == list(range(first, last + 1)):
        return f"{gpu}cpu {first}-{last}" if last > first else f"{gpu}cpu {first}"
    return f"{gpu}cpu {','.join(map(str, slot.cpus))}"
