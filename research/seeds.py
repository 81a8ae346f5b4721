"""Several seeds of one config, trained in one process: each has its own ordinary run directory."""

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from omegaconf import DictConfig, open_dict

from research.crash import LOG, crash_told
from research.errors import Preempted, UserError, override
from research.explain import one_line
from research.process import error_line
from research.signals import StopRequest
from research.status import BLANK, Status, read_status
from research.training.saving.retention import holds_checkpoints

if TYPE_CHECKING:
    from research.training.lockstep import Seat

RunIn = Callable[[Path, DictConfig, "Seat"], float]
"""Trains what a config names in a directory; returns the score."""

EVERY_S = 2.0
"""Seconds between two readings of the seeds' states."""

log = logging.getLogger(__name__)


def has_many_seeds(cfg: DictConfig) -> bool:
    """Whether a config is of several runs: by ``trainer.num_seeds``, or by a list as ``seed``."""
    return cfg.trainer.num_seeds > 1 or not isinstance(cfg.seed, int)


def seeds_of(cfg: DictConfig) -> list[int]:
    """The seed of each run of a config."""
    if isinstance(cfg.seed, int):
        return list(range(cfg.seed, cfg.seed + cfg.trainer.num_seeds))
    return list(cfg.seed)


def check_seeds(cfg: DictConfig) -> None:
    """Refuse several seeds together with what is of one run.

    Raises:
        UserError: for ``trainer.devices`` above 1, or a profile; for a list of seeds that is empty,
            has one twice, or has ``trainer.num_seeds`` beside it.

    """
    if not has_many_seeds(cfg):
        return
    several = f"trainer.num_seeds={cfg.trainer.num_seeds}"
    if not isinstance(cfg.seed, int):
        several = f"seed=[{','.join(map(str, cfg.seed))}]"
        if cfg.trainer.num_seeds > 1:
            raise UserError(f"{several} names the seeds; leave out trainer.num_seeds")
        if not cfg.seed or len(set(cfg.seed)) < len(cfg.seed):
            raise UserError(f"{several} must have at least one seed, and none twice")
    for key, allowed in (("devices", 1), ("profile", False)):
        if cfg.trainer[key] != allowed:
            raise UserError(
                f"{several} trains several runs in one process, "
                f"got trainer.{key}={str(cfg.trainer[key]).lower()}; set one of them to its default"
            )


def train_seeds(cfg: DictConfig, run_dir: Path, run_in: RunIn) -> float:
    """Train a run for each seed of the config, in ``run_dir/seed=<seed>``.

    Returns:
        the mean of their scores.

    Raises:
        UserError: a run failed, and the others have come to their end; or the directory holds a run
            of one seed.
        Preempted: a signal ended them, and all have saved their work.

    """
    from research.training.lockstep import run_in_lockstep

    if holds_checkpoints(run_dir):
        raise UserError(f"{run_dir} holds a run of one seed; choose another hydra.run.dir")
    configs = {f"seed={each.seed}": each for each in one_for_each_seed(cfg)}
    for name in configs:
        (run_dir / name).mkdir(exist_ok=True)

    def train(seat: "Seat") -> float:
        return run_in(run_dir / seat.name, configs[seat.name], seat)

    status = Status(run_dir)
    status.start(total_steps=cfg.trainer.total_steps)
    joint = JointStatus(status, [run_dir / name for name in configs])
    try:
        with crash_told(run_dir), StopRequest() as stop, logs(run_dir, list(configs)):
            seats = run_in_lockstep(train, list(configs), stop, each=joint.show)
        if error := first_error(seats, run_dir, stop):
            raise error
    except BaseException as error:
        ending = "preempted" if isinstance(error, KeyboardInterrupt) else "failed"
        with suppress(OSError):  # on a full disk; why it failed says more
            status.end(ending, one_line(error) or error_line(error))
        raise
    score = fmean(seat.result for seat in seats)
    joint.show(at_once=True)
    status.update(step=status.fields["step"], score=score)
    status.end("completed", "all seeds are complete")
    return score


def first_error(seats: Sequence["Seat"], run_dir: Path, stop: StopRequest) -> BaseException | None:
    """The exception that the command ends with, if a run ended by one."""
    errors = {seat.name: seat.error for seat in seats if seat.error is not None}
    for error in errors.values():
        if type(error) is KeyboardInterrupt:
            return error
    if any(isinstance(error, Preempted) for error in errors.values()):
        again = override("hydra.run.dir", run_dir)
        return Preempted(f"{stop.made}: stopped; resume with {again}")
    told = {name: one_line(error) or error_line(error) for name, error in errors.items()}
    if len(told) == len(seats) and len({*told.values()}) == 1:
        return UserError(told[seats[0].name])  # an error of the config, not of a seed
    return UserError("; ".join(f"{name}: {line}" for name, line in told.items())) if told else None


class JointStatus:
    """Keeps the status of all seeds: the step that all have reached, and the speed of the slowest.

    Args:
        status: of all.
        folders: of each.

    """

    def __init__(self, status: Status, folders: Sequence[Path]) -> None:
        self.status = status
        self.folders = folders
        self.shown_s = time.monotonic()

    def show(self, *, at_once: bool = False) -> None:
        """Write it, but not more often than every ``EVERY_S`` seconds unless ``at_once``."""
        if not at_once and time.monotonic() - self.shown_s < EVERY_S:
            return
        self.shown_s = time.monotonic()
        with suppress(UserError, OSError):  # it is tried again
            each = [read_status(folder) or BLANK for folder in self.folders]
            speed = min((fields["speed"] for fields in each if fields["speed"]), default=None)
            self.status.update(step=min(fields["step"] for fields in each), speed=speed)


def one_for_each_seed(cfg: DictConfig) -> Iterator[DictConfig]:
    """The config of each run, as it would be alone."""
    for seed in seeds_of(cfg):
        own = copy.deepcopy(cfg)
        with open_dict(own):
            own.seed = seed
            own.trainer.num_seeds = 1
        yield own


class Named(logging.Formatter):
    """Puts the name of the run whose code logs before each message.

    Args:
        formatter: does the rest.

    """

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        from research.training.lockstep import CURRENT

        if name := CURRENT.get():
            record = copy.copy(record)
            record.msg, record.args = f"{name}  {record.getMessage()}", ()
        return self.formatter.format(record)


@contextmanager
def logs(run_dir: Path, names: Sequence[str]) -> Iterator[None]:
    """In this context, each run logs to its own directory, and by its name to all other places."""
    from research.training.lockstep import CURRENT

    root = logging.getLogger()
    plain = logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S")
    before = [(handler, handler.formatter) for handler in root.handlers]
    own = []
    for name in names:
        handler = logging.FileHandler(run_dir / name / LOG, delay=True)
        handler.addFilter(lambda _, name=name: CURRENT.get() == name)
        handler.setFormatter(next((f for _, f in before if f is not None), plain))
        own.append(handler)
    for handler, formatter in before:
        handler.setFormatter(Named(formatter or plain))
    for handler in own:
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler, formatter in before:
            handler.setFormatter(formatter)
        for handler in own:
            root.removeHandler(handler)
            handler.close()
