"""The command line: Hydra's own, with run directories that resume and errors of one line."""

import functools
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.errors import OverrideParseException
from omegaconf import DictConfig

from research.config import check, to_plain
from research.console import outlive_readers
from research.crash import LOG, crash_told, enable_on_stderr, fatal_signal
from research.errors import Misfit, UserError, is_ours
from research.explain import (
    CONF,
    DISK_IS_FULL,
    exit_status,
    explain_no_choice,
    explain_word,
    is_override,
    log_traceback,
    one_line,
)
from research.files import write_whole
from research.forecast import forecast_memory, size
from research.hydra_versions import VERSION_BASE, execution_whitelist
from research.launchers.plan.store import share_config_store
from research.parallel.ranks import Node, TorchrunRank, this_node, torchrun_rank
from research.process import collect_seldom, error_line
from research.rank import devices_override, follow, leading, train_in_parallel
from research.rehearsal import Task, rehearsing
from research.resume import claim, compare, is_as_long, read_files
from research.seeds import check_seeds, has_many_seeds, train_seeds
from research.signals import OF_A_RUN, handle
from research.status import Status, sole_process
from research.training.run import Run
from research.training.saving.provenance import write_provenance
from research.training.saving.retention import holds_checkpoints
from research.trust import TRUSTED_MODULES

if TYPE_CHECKING:
    from research.training.lockstep import Seat

log = logging.getLogger(__name__)

CALLS = threading.Lock()
"""Held by a call of a program from Python, since Hydra's state is the process's."""


def command(task: Task) -> Callable[..., float | None]:
    """Make ``task`` a program: its config is composed by Hydra and checked, its directory locked.

    An error that the user can mend is printed as one line on stderr, with exit status 1; a
    programming error, and any error with ``HYDRA_FULL_ERROR=1``, has a traceback.

    Returns:
        the program. Given the words of a command line, such as ``main(["alg=td3", "seed=1"])`` in a
        notebook, it returns the score (None for a sweep), raises its errors, and works in any
        thread; one such call runs at a time.

    """
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    share_config_store()

    @functools.wraps(task)
    def job(cfg: DictConfig) -> float:
        try:
            return run_task(task, cfg)
        except (UserError, OSError, KeyboardInterrupt) as error:
            if full_error or (line := one_line(error)) is None:
                raise
            return fail(line, status=exit_status(error))
        except SystemExit as error:  # a part does not decide how this program ends
            traceback.print_exc()
            return fail(error_line(error), status=exit_status(error))

    job.__dict__.update(for_launchers(task))
    program = as_program(job)

    @functools.wraps(task)
    def main(arguments: Sequence[str] | None = None) -> float | None:
        if arguments is not None:
            return call(task, arguments)
        place = torchrun_rank()
        if place and place.rank > 0:
            sys.exit(follow(task, place))
        with leading(place):
            run_command(program, place, full_error=full_error)
        return None

    return main


def as_program(job: Callable[[DictConfig], float]) -> Callable[[], None]:
    """Have Hydra compose the config of ``job`` from the command line."""
    return hydra.main(config_path=str(CONF), config_name="config", **VERSION_BASE)(job)


def for_launchers(task: Task) -> dict[str, Any]:
    """What launchers look for in a job's attributes."""
    return {
        "keeps_status": True,
        "check_config": check,
        "rehearse": functools.partial(rehearsing, task),
        "forecast_memory": functools.partial(forecast_memory, task),
        "size": size,
    }


def call(task: Task, arguments: Sequence[str]) -> float | None:
    """Do in this process what a command line of these words does; returns the score."""
    scores: list[float] = []

    @functools.wraps(task)
    def job(cfg: DictConfig) -> float:
        scores.append(run_task(task, cfg))
        return scores[-1]

    job.__dict__.update(for_launchers(task))
    with typed(arguments):
        as_program(job)()
    return scores[-1] if scores else None


@contextmanager
def typed(arguments: Sequence[str]) -> Iterator[None]:
    """In this context, Hydra reads a command line of these words; its state is restored."""
    with CALLS:
        before = Singleton.get_state(), sys.argv, os.environ.get("HYDRA_FULL_ERROR")
        handlers, level = logging.root.handlers[:], logging.root.level
        GlobalHydra.instance().clear()  # of a notebook's own ``initialize``
        sys.argv = [
            str(CONF.parent / "train.py"),
            *sorted(arguments, key=is_override, reverse=True),
        ]
        os.environ["HYDRA_FULL_ERROR"] = "1"
        try:
            with execution_whitelist(TRUSTED_MODULES):
                yield
        finally:
            state, sys.argv, full_error = before
            Singleton.set_state(state)
            os.environ.pop("HYDRA_FULL_ERROR")
            if full_error is not None:
                os.environ["HYDRA_FULL_ERROR"] = full_error
            for handler in set(logging.root.handlers) - set(handlers):
                handler.close()
            logging.root.handlers[:], logging.root.level = handlers, level


def run_command(
    program: Callable[[], None], place: TorchrunRank | None, *, full_error: bool
) -> None:
    """Run Hydra's program with the command line that was typed; ends with a line for an error."""
    collect_seldom()
    outlive_readers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints the error in its own words
    enable_on_stderr()
    typed = sys.argv[1:]
    # Hydra's parser takes overrides on one side of an option only.
    sys.argv[1:] = sorted(sys.argv[1:], key=is_override, reverse=True)
    handle(OF_A_RUN, signal.default_int_handler)
    if line := explain_no_choice(typed):
        fail(line, status=1)
    if not __debug__:
        keep_asserts_of_parser()
    try:
        if place:
            sys.argv.insert(1, devices_override(place, typed))
        with execution_whitelist(TRUSTED_MODULES):  # each run adds its trusted_modules
            program()
    except (Exception, KeyboardInterrupt) as error:
        is_misread = isinstance(error, OverrideParseException)
        line = explain_word(error.override, typed) if is_misread else one_line(error)
        if full_error or line is None:
            traceback.print_exc()
            sys.exit(1)
        fail(line, status=exit_status(error))


def keep_asserts_of_parser() -> None:
    """Let Hydra's parser read functions and dicts under ``python -O``, too.

    Up to Hydra 1.3 it advances through its input inside ``assert`` statements.
    """
    from hydra.core.override_parser import overrides_parser, overrides_visitor

    path = str(overrides_visitor.__file__)
    code = compile(Path(path).read_text(), path, "exec", optimize=0)
    exec(code, overrides_visitor.__dict__)
    name = "HydraOverrideVisitor"
    overrides_parser.__dict__[name] = overrides_visitor.__dict__[name]


def run_task(task: Task, cfg: DictConfig) -> float:
    """Check the config, lock the run directory, run, and write the outcome to its status file."""
    check(cfg)
    check_seeds(cfg)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    node = this_node()
    if has_many_seeds(cfg) and (node.count > 1 or torchrun_rank()):
        raise UserError(
            "several seeds are trained by one process, got several nodes or torchrun; give one seed"
        )
    if node.index > 0:  # the first one has the run directory
        return train_in_parallel(task, Run(run_dir, Status(run_dir), cfg.seed, to_plain(cfg)), node)
    with sole_process(run_dir):
        if not has_many_seeds(cfg):
            return run_in(run_dir, task, cfg, node)

        def run_seed(folder: Path, own: DictConfig, seat: "Seat") -> float:
            with sole_process(folder):
                return run_in(folder, task, own, node, seat)

        return train_seeds(cfg, run_dir, run_seed)


def run_in(
    run_dir: Path, task: Task, cfg: DictConfig, node: Node, seat: "Seat | None" = None
) -> float:
    """Run in a directory that this process has locked; in lockstep with others, if at a seat."""
    status = Status(run_dir)
    changes = compare(cfg, run_dir)
    reached, score = status.fields["step"], status.fields["score"]
    is_complete = status.fields["state"] == "completed" and holds_checkpoints(run_dir)
    if is_complete and is_as_long(cfg, run_dir):
        log.info("%s is complete (score %s); nothing to do", run_dir, score)
        return score
    before = read_files(run_dir / ".hydra")
    if status.fields["state"] == "running":  # its process is gone: we have the lock
        name = fatal_signal(run_dir)
        how = f"by {name}; its stack is in {LOG}" if name else "without a word, by SIGKILL perhaps"
        log.warning("the attempt before was killed %s", how)
    claim(cfg, run_dir)
    write_provenance(run_dir, sys.argv, changes)
    status.start(total_steps=cfg.trainer.total_steps)
    try:
        run = Run(run_dir, status, cfg.seed, to_plain(cfg), seat)
        if cfg.trainer.devices > 1 or node.count > 1 or torchrun_rank():
            score = train_in_parallel(task, run, node)
        elif seat is not None:
            score = task(cfg, run)
        else:
            with crash_told(run_dir):
                score = task(cfg, run)
    except KeyboardInterrupt as error:
        status.end("preempted", str(error) or "interrupted")
        raise
    except BaseException as error:  # SystemExit, too
        if isinstance(error, OSError) and error.errno in DISK_IS_FULL and is_ours(error):
            error.filename = error.filename or str(run_dir)  # a write does not know where it failed
        if changes and isinstance(error, Misfit):
            told = f"{error}; resume=override cannot accept {'; '.join(changes)}"
            error.args = (f"{told}; choose another hydra.run.dir",)
        log_traceback(error)
        with suppress(OSError):  # on a read-only disk; why the run failed says more
            status.end("failed", one_line(error) or error_line(error))
            if changes and status.fields["step"] == reached:  # the old config is still right
                for path, content in before.items():
                    write_whole(path, content)
        raise
    at_end = status.fields["step"] == status.fields["total_steps"]
    status.end("completed", "reached its length" if at_end else "stopped by trainer.score.patience")
    return score


def fail(line: str, *, status: int) -> NoReturn:
    """Print one line on stderr and end the program."""
    # A run directory may be anybody's, and a terminal obeys control characters.
    printable = "".join(letter if letter.isprintable() else "?" for letter in line)
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {printable}\n")
    sys.exit(status)
