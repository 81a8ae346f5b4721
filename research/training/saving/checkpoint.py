"""Checkpoints: complete, written whole, with the weights apart from the rest."""

import logging
import reprlib
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from research.errors import DamagedFile, Misfit, UserError
from research.files import flush_folder, write_whole
from research.status import is_count, is_number
from research.training.saving.retention import (
    VERSION,
    Manifest,
    go_back,
    link_target,
    list_checkpoints,
    point,
    read_manifest,
    remove_others,
    write_manifest,
)

log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """The content of a checkpoint, loadable with ``torch.load(weights_only=True)``.

    Attributes:
        weights: state of algorithm and processor, enough to act.
        state: everything else that training needs to resume.

    """

    weights: dict[str, Any]
    state: dict[str, Any]


def save_checkpoint(
    run_dir: Path,
    step: int,
    checkpoint: Checkpoint,
    *,
    is_best: bool,
    keep_last: int,
    files: list[str],
) -> None:
    """Write ``checkpoints/<step>/`` and point ``last``, and ``best`` if ``is_best``, to it.

    ``last`` is complete at every instant; if writing fails, the folder stays as it was. Older
    checkpoints are then removed, see ``remove_others``.

    Args:
        run_dir: the run directory.
        step: names the checkpoint.
        checkpoint: what to write.
        is_best: whether it is the best so far.
        keep_last: how many to keep, this one included.
        files: names of the files in ``checkpoints/data`` that the state refers to.

    """
    folder = run_dir / "checkpoints"
    folder.mkdir(exist_ok=True)
    name = f"{step:010d}"
    while (folder / name).exists():  # of an attempt that was cut off; last or best may point to it
        name += "+"
    final, temporary = folder / name, folder / f".{name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    best = name if is_best else link_target(folder / "best")
    try:
        save_file(temporary / "weights.pt", checkpoint.weights)
        save_file(temporary / "state.pt", checkpoint.state)
        write_manifest(temporary, Manifest(VERSION, best, files))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    temporary.rename(final)
    flush_folder(folder)
    if is_best:
        point(folder / "best", name)
    point(folder / "last", name)
    remove_others(run_dir, keep_last=keep_last)


def save_file(path: Path, content: dict[str, Any]) -> None:
    """Write one file of a checkpoint.

    Raises:
        OSError: it cannot be written; torch alone would raise another error.

    """
    try:
        write_whole(path, lambda file: torch.save(compact(content), file))
    except (RuntimeError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        cause.filename = cause.filename or str(path)
        raise cause from None


def compact(value: Any) -> Any:
    """Nested dicts, lists and tuples, with a copy of each tensor that is a part of a larger one.

    torch.save would write the larger one.
    """
    if isinstance(value, dict):
        return {key: compact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(compact(item) for item in value)
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return value
    return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value


def load_newest(run_dir: Path, load: Callable[[Checkpoint], None]) -> Path:
    """Load the newest whole checkpoint, and set damaged ones aside.

    Args:
        run_dir: the run directory, which holds a checkpoint.
        load: restores a checkpoint; may raise ``DamagedFile`` for a file that it needs.

    Returns:
        the folder of the checkpoint.

    Raises:
        UserError: no checkpoint is whole; all stay where they are.
        Misfit: the newest whole one does not fit this code or config.

    """
    damaged: list[tuple[Path, str]] = []
    for folder in list_checkpoints(run_dir):
        try:
            checkpoint = load_checkpoint(folder)
            check_clock(folder, checkpoint.state)
            try:
                load(checkpoint)
            except DamagedFile:
                raise
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise Misfit(f"{folder} does not fit this code or config: {reason}") from error
        except DamagedFile as error:
            damaged.append((folder, str(error)))
            continue
        aside = go_back(run_dir, folder, [path for path, _ in damaged])
        for path, (_, reason) in zip(aside, damaged, strict=True):
            log.warning("%s; set aside as %s", reason, path.name)
        return folder
    reasons = "; ".join(reason for _, reason in damaged) or "there is none"
    raise UserError(
        f"no checkpoint of {run_dir} can be resumed from: {reasons}; to begin a new run, "
        "choose another hydra.run.dir"
    )


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU; nothing is unpickled but tensors and plain values.

    Raises:
        DamagedFile: a file is missing, damaged, of another version, or holds anything else.

    """
    read_manifest(folder)
    return Checkpoint(load_file(folder / "weights.pt"), load_file(folder / "state.pt"))


def check_clock(folder: Path, state: dict[str, Any]) -> None:
    """Refuse a state with a step, time or score that is not a valid number."""
    forms = {"step": is_count, "evaluated_step": is_count, "seconds": is_number}
    if state.get("best_score") is not None:
        forms["best_score"] = is_number
    for name, is_form in forms.items():
        if not is_form(state.get(name)):
            found = reprlib.repr(state.get(name))
            raise DamagedFile(f"{folder / 'state.pt'} is damaged: {name} is {found}")


def load_file(path: Path) -> dict[str, Any]:
    """Read one file of a checkpoint."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for its writer
            raise ValueError("it is no regular file")
        with zipfile.ZipFile(path) as parts:
            if (part := parts.testzip()) is not None:  # torch does not look at its checksums
                raise ValueError(f"the checksum of {part} is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DamagedFile(f"{path} is missing; the checkpoint is not complete") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedFile(f"{path} is damaged or not a checkpoint: {reason}") from error
    if not isinstance(content, dict):
        raise DamagedFile(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    return content
