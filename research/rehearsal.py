"""Runs a task up to where it would train: every part is built as in a run, and none is used."""

import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from omegaconf import DictConfig, OmegaConf, open_dict

from research import config
from research.config import construct_part, to_plain
from research.errors import UserError
from research.explain import one_line
from research.process import error_line
from research.seeds import check_seeds, seeds_of
from research.status import Status
from research.training.run import Run

Task: TypeAlias = Callable[[DictConfig, Run], float]
"""Trains what a config names, as one run; returns the score."""

SHARED = ("env", "dataset")
"""Parts that are built once for consecutive configs in which they are the same."""

INDIFFERENT = ("seed", "name", "resume")
"""Keys whose values need no rehearsal: any that ``check`` accepts is valid."""


class Rehearsed(Exception):
    """A task has built all that it needs to train."""


class Rehearsal:
    """Builds the parts of one config after the other, on the CPU.

    The trainer is the last part that is built.

    Args:
        task: trains what a config names.
        elsewhere: whether the runs are for other machines. A config is then not refused for errors
            of its environment or dataset, since this machine may lack their GPUs and files.

    """

    def __init__(self, task: Task, *, elsewhere: bool) -> None:
        self.task = task
        self.elsewhere = elsewhere
        self.parts: dict[str, tuple[str, Any]] = {}
        self.seen: set[str] = set()

    def __call__(self, cfg: DictConfig, run_dir: Path) -> None:
        """Rehearse a config, unless one that differs only in ``INDIFFERENT`` keys has been.

        Raises:
            UserError: a part cannot be built; for a bug, its traceback is on stderr.

        """
        check_seeds(cfg)
        cfg = cfg.copy()
        with open_dict(cfg):
            cfg.device = "cpu"
            cfg.trainer.devices = 1
            cfg.seed = seeds_of(cfg)[0]
        plain = to_plain(cfg)
        content = json.dumps({key: plain[key] for key in plain if key not in INDIFFERENT})
        if content in self.seen:
            return
        self.seen.add(content)
        try:
            self.task(cfg, Run(run_dir, Status(run_dir), cfg.seed, plain))
        except Rehearsed:
            return
        except (Exception, SystemExit) as error:
            if (line := one_line(error)) is None:
                traceback.print_exc()
            raise UserError(line or error_line(error)) from error

    def build(self, node: DictConfig, *collaborators: Any) -> Any:
        """Take the place of ``research.config.build`` during a rehearsal."""
        name = str(node._get_full_key(None))
        if name not in SHARED:
            part = construct_part(node, *collaborators)
            if name == "trainer":
                raise Rehearsed
            return part
        env = OmegaConf.select(node._get_root(), "env")
        content = json.dumps([to_plain(env), to_plain(node)])
        if self.parts.get(name, ("", None))[0] != content:
            self.parts.pop(name, None)  # first, since data can fill the memory
            try:
                self.parts[name] = (content, construct_part(node, *collaborators))
            except Exception as error:
                if self.elsewhere:
                    raise Rehearsed from error
                raise
        return self.parts[name][1]


@contextmanager
def rehearsing(task: Task, *, elsewhere: bool) -> Iterator[Rehearsal]:
    """In this context, ``research.config.build`` rehearses."""
    rehearsal = Rehearsal(task, elsewhere=elsewhere)
    config.builder = rehearsal.build
    try:
        yield rehearsal
    finally:
        config.builder = construct_part
