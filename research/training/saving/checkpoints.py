"""When a run saves checkpoints, and how many it keeps."""

import time
from pathlib import Path

from research.ranges import PositiveFloat, PositiveInt
from research.training.saving.checkpoint import Checkpoint, save_checkpoint


class Checkpoints:
    """The checkpoints of a run, which are also saved at every evaluation and at the end.

    Args:
        every: steps between two checkpoints; None for no such period.
        minutes: age of the last checkpoint at which the next is saved; None to ignore the age.
        keep_last: how many to keep besides the best, at least 1. If the last is damaged, the run
            resumes from the one before.

    Attributes:
        saved_step: step of the last checkpoint.

    """

    def __init__(
        self, *, every: PositiveInt | None, minutes: PositiveFloat | None, keep_last: PositiveInt
    ) -> None:
        self.every = every
        self.minutes = minutes
        self.keep_last = keep_last
        self.begin(0)

    def begin(self, step: int) -> None:
        """Count the minutes from now on; ``step`` is that of the last checkpoint."""
        self.saved_step, self.saved_at = step, time.monotonic()

    def is_overdue(self) -> bool:
        """Whether the last checkpoint is older than ``minutes``."""
        return self.minutes is not None and time.monotonic() - self.saved_at >= 60 * self.minutes

    def save(
        self,
        run_dir: Path,
        step: int,
        checkpoint: Checkpoint,
        *,
        is_best: bool,
        files: list[str],
    ) -> None:
        """Write a checkpoint; see ``save_checkpoint``."""
        save_checkpoint(
            run_dir, step, checkpoint, is_best=is_best, keep_last=self.keep_last, files=files
        )
        self.begin(step)
