"""When a run saves itself, and how much of that it keeps."""

import time
from pathlib import Path

from research.training.requirements import check_positive
from research.training.saving.checkpoint import Checkpoint, save_checkpoint


class Checkpoints:
    """The checkpoints of a run; an evaluation, and the end, have one whatever the periods are.

    Args:
        every: steps between two; None for no others.
        minutes: one is made when the last is older than that; None for never.
        keep_last: how many to keep beside the best, at least 1. If the last is damaged, the one
            before is gone on from.

    Attributes:
        saved_step: of the last one.

    Raises:
        ValueError: for a number that is not above 0.

    """

    def __init__(self, *, every: int | None, minutes: float | None, keep_last: int) -> None:
        check_positive("checkpoints.", every=every, minutes=minutes, keep_last=keep_last)
        self.every = every
        self.minutes = minutes
        self.keep_last = keep_last
        self.begin(0)

    def begin(self, step: int) -> None:
        """Count the minutes from now on; the last one is of ``step``."""
        self.saved_step, self.saved_at = step, time.monotonic()

    def is_overdue(self) -> bool:
        """Whether the last one is older than ``minutes``."""
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
        """Write one; see ``save_checkpoint``."""
        save_checkpoint(
            run_dir, step, checkpoint, is_best=is_best, keep_last=self.keep_last, files=files
        )
        self.begin(step)
