"""Run directories, as they are read after training; nothing here changes one."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from research.errors import UserError, message_of
from research.resume import load_config
from research.status import BLANK, read_status

CONFIG = Path(".hydra", "config.yaml")
"""Where a run directory keeps its config; a folder without it is no run."""


class StoredRun(NamedTuple):
    """A run directory.

    Attributes:
        folder: the directory.
        config: the config that it was started with; all interpolations resolved.
        status: the content of ``status.json``; see ``research.status``.

    """

    folder: Path
    config: DictConfig
    status: Mapping[str, Any]


def read_run(folder: str | os.PathLike[str]) -> StoredRun:
    """The run in a directory.

    Raises:
        UserError: it does not exist, is no run, or its config is damaged.

    """
    folder = Path(folder)
    if not os.path.lexists(folder):
        raise UserError(f"{folder} does not exist")
    if not (folder / CONFIG).exists():
        inside = next(find_folders(folder), None) if folder.is_dir() else None
        hint = f"; a run in it is {inside}" if inside else ""
        raise UserError(f"{folder} is no run: it has no {CONFIG}{hint}")
    config = load_config(folder)
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise UserError(f"{folder / CONFIG}: {message_of(error)}") from error
    return StoredRun(folder, config, read_status(folder) or BLANK)


def find_folders(folder: Path) -> Iterator[Path]:
    """The run directories in a folder, itself included, in the order of their names."""
    for path, names, _ in os.walk(folder):
        if Path(path, CONFIG).exists():
            yield Path(path)
            names.clear()
        names[:] = sorted(name for name in names if not name.startswith("."))


def only(paths: Sequence[Path]) -> Path:
    """The one path that was given.

    Raises:
        UserError: there are several.

    """
    if len(paths) > 1:
        raise UserError(f"one run at a time, got {', '.join(map(str, paths))}")
    return paths[0]
