"""Makes the logger with the trackers that a config chooses."""

from collections.abc import Sequence
from pathlib import Path

from research.errors import UserError, did_you_mean
from research.training.records.covered import Covered
from research.training.records.logger import Logger
from research.training.records.trackers.base import AppendOnly, Tracker, TrackerFactory


def make_logger(
    run_dir: Path,
    *,
    trackers: Sequence[str | TrackerFactory],
    tensorboard: TrackerFactory,
    wandb: TrackerFactory,
    trackio: TrackerFactory,
    mlflow: TrackerFactory,
) -> Logger:
    """The logger of the run in a directory.

    Args:
        run_dir: where the files go.
        trackers: which ones, by the names of the other arguments; or what makes one. ``csv`` is
            among them.
        tensorboard: makes a tracker.
        wandb: makes a tracker.
        trackio: makes a tracker.
        mlflow: makes a tracker.

    Raises:
        UserError: a name is unknown or there twice, ``csv`` is missing, or a tracker is refused.

    """
    known = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio, "mlflow": mlflow}
    names = [each for each in trackers if isinstance(each, str)]
    check_names(names, ["csv", *known])
    makers = [known[each] if isinstance(each, str) else each for each in trackers if each != "csv"]
    return Logger(run_dir, [begin_covered(make(run_dir), run_dir) for make in makers])


def begin_covered(tracker: Tracker | AppendOnly, run_dir: Path) -> Tracker:
    """``tracker``, or what hands it only points that a checkpoint covers."""
    return Covered(tracker, run_dir) if isinstance(tracker, AppendOnly) else tracker


def check_names(names: Sequence[str], choices: Sequence[str]) -> None:
    """Refuse names that are unknown or there twice, and the lack of ``csv``."""
    for name in names:
        if name not in choices:
            allowed = f"allowed: {', '.join(choices)}"
            guess = did_you_mean(name, choices)
            raise UserError(f"logger.trackers: '{name}' is not a tracker; {allowed}{guess}")
        if names.count(name) > 1:
            raise UserError(f"logger.trackers names {name} twice")
    if "csv" not in names:
        raise UserError(
            "logger.trackers must name csv, since results and a resumed run read the CSV files; "
            f"write logger.trackers=[{','.join(['csv', *names])}]"
        )
