"""The command line: Hydra's own, with run directories that resume and errors of one line."""

import errno
import functools
import logging
import os
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeAlias

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.config import build, check, iterate_causes, to_plain
from research.differences import differences
from research.errors import UserError, did_you_mean
from research.files import write_whole
from research.launchers.store import share_config_store
from research.status import BLANK, Status, read_status, sole_process
from research.training.provenance import write_provenance
from research.training.run import Run

Task: TypeAlias = Callable[[DictConfig, Run], float]
"""Trains what a config names, as one run; returns the score."""

log = logging.getLogger(__name__)
CANNOT_WRITE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
)
EXTENDABLE = {"resume", "trainer.total_steps"}
CONF = Path(__file__).parent.parent / "conf"


def command(task: Task) -> Callable[[], None]:
    """Make a program of ``task``: composed by Hydra, checked, in a run directory of its own.

    What the user can mend ends as one line on stderr and exit status 1; a traceback is printed for
    a programming error, and for everything with ``HYDRA_FULL_ERROR=1``.
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
            return fail(line, status=130 if isinstance(error, KeyboardInterrupt) else 1)

    for_launchers = {
        "keeps_status": True,
        "check_config": check,
        "forecast_memory": forecast_memory,
    }
    job.__dict__.update(for_launchers)
    program = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)

    @functools.wraps(task)
    def main() -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints the error in its own words
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            program()
        except (Exception, KeyboardInterrupt) as error:
            if full_error or (line := one_line(error)) is None:
                traceback.print_exc()
                sys.exit(1)
            fail(line, status=130 if isinstance(error, KeyboardInterrupt) else 1)

    return main


def forecast_memory(cfg: DictConfig) -> int:
    """Bytes of host memory that a run will take: this process with its environment, and the data.

    The networks are not counted: beside the libraries and a replay buffer they are small.
    """
    env = build(cfg.env)
    dataset = build(cfg.dataset, env, cfg.seed)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if hasattr(env, "close"):
        env.close()
    return kilobytes * 1024 + getattr(dataset, "memory_bytes", 0)


def run_task(task: Task, cfg: DictConfig) -> float:
    """Check the config, claim the run directory, run, and leave the truth in its status file."""
    check(cfg)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    with sole_process(run_dir):
        return run_in(run_dir, task, cfg)


def run_in(run_dir: Path, task: Task, cfg: DictConfig) -> float:
    """Run in a directory that is this process's alone."""
    completed = read_completed(cfg, run_dir)
    if completed is not None:
        log.info("%s is complete (score %s); nothing to do", run_dir, completed)
        return completed
    claim(cfg, run_dir)
    write_provenance(run_dir, sys.argv)
    status = Status(run_dir)
    status.start(total_steps=cfg.trainer.total_steps)
    try:
        score = task(cfg, Run(run_dir, status, cfg.seed, to_plain(cfg)))
    except KeyboardInterrupt:
        status.end("preempted", "interrupted")
        raise
    except Exception as error:
        log.debug("failed", exc_info=True)
        status.end("failed", one_line(error) or f"{type(error).__name__}: {error}")
        raise
    status.end("completed", "reached trainer.total_steps")
    return score


def read_completed(cfg: DictConfig, run_dir: Path) -> float | None:
    """The score of a run that is there already and complete; None when there is work to do.

    Raises:
        UserError: the directory holds a run of another config, one that has come further than
            ``trainer.total_steps``, or one that ``resume`` does not allow. A run without a
            checkpoint is no run yet: it starts anew.

    """
    status, stored = read_status(run_dir) or BLANK, run_dir / ".hydra" / "config.yaml"
    if not (stored.exists() and (run_dir / "checkpoints" / "last").exists()):
        if cfg.resume == "must":
            raise UserError(f"resume=must, but {run_dir} holds no run")
        return None
    if cfg.resume == "never":
        raise UserError(f"resume=never, but {run_dir} holds a run; choose another hydra.run.dir")
    changes = differences(to_plain(OmegaConf.load(stored)), to_plain(cfg))
    if changes := [change for path, change in changes if path not in EXTENDABLE]:
        raise UserError(
            f"{run_dir} belongs to another config: {'; '.join(changes)}; "
            "choose another hydra.run.dir"
        )
    reached = status["step"]
    if cfg.trainer.total_steps < reached:
        raise UserError(
            f"trainer.total_steps={cfg.trainer.total_steps} is below the {reached} steps "
            f"that {run_dir} has reached"
        )
    is_complete = status["state"] == "completed" and cfg.trainer.total_steps == reached
    return status["score"] if is_complete else None


def claim(cfg: DictConfig, run_dir: Path) -> None:
    """Write the config to ``.hydra/``, as Hydra would, but never over another run's."""
    hydra_cfg = HydraConfig.get()
    (run_dir / ".hydra").mkdir(parents=True, exist_ok=True)
    contents = {
        "config.yaml": cfg,
        "hydra.yaml": OmegaConf.create({"hydra": hydra_cfg}),
        "overrides.yaml": hydra_cfg.overrides.task,
    }
    for name, content in contents.items():
        write_whole(run_dir / ".hydra" / name, OmegaConf.to_yaml(content))


def one_line(error: BaseException) -> str | None:
    """What to tell the user, or None when only a programmer can mend it."""
    for cause in iterate_causes(error):
        if isinstance(cause, UserError):
            return " ".join(str(cause).split())
        if isinstance(cause, KeyboardInterrupt):
            return "interrupted"
        if isinstance(cause, MissingConfigException):
            return explain_choice(cause)
        if isinstance(cause, OSError) and cause.errno in CANNOT_WRITE:
            return f"{cause.filename or 'the run directory'}: {cause.strerror}"
    if match := re.match(r"Could not override '([^']+)'", str(error)):
        return explain_override(match[1])
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        cause = f": {str(error.__cause__).partition(chr(10))[0]}" if error.__cause__ else ""
        return " ".join(f"{error}{cause}".split())
    return None


def explain_choice(error: MissingConfigException) -> str:
    """One line for ``env=chetah``."""
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    options = error.options or []
    if not options:
        return " ".join(str(error).split())
    guess = did_you_mean(choice, options)
    return f"{group}={choice} is not a choice; allowed: {', '.join(options)}{guess}"


def explain_override(key: str) -> str:
    """One line for a key that no config has, found among those that are there without it."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    GlobalHydra.instance().clear()
    words = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    given = OverridesParser.create().parse_overrides(words)
    kept = [o.input_line for o in given if o.key_or_group != key and not o.is_sweep_override()]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [str(line) for line in kept], return_hydra_config=True)
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    while parent and not OmegaConf.is_dict(node):
        parent, _, name = parent.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
    known = [str(choice) for choice in node if not str(choice).startswith("_")]
    place = f"{parent}: allowed are" if parent else "allowed are"
    return (
        f"{key} is not a known key; {place} {', '.join(sorted(known))}{did_you_mean(name, known)}"
    )


def fail(line: str, *, status: int) -> NoReturn:
    """Print one line on stderr and end the program."""
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {line}\n")
    sys.exit(status)
