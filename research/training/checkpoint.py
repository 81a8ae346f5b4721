"""Checkpoints: complete, written whole, with the weights apart from the rest."""

import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from research.errors import UserError
from research.files import flush_folder, write_whole


class Checkpoint(NamedTuple):
    """What a checkpoint holds, all of it loadable with ``torch.load(weights_only=True)``.

    Attributes:
        weights: state of algorithm and processor, enough to act.
        state: all else that training needs to go on.

    """

    weights: dict[str, Any]
    state: dict[str, Any]


def save_checkpoint(run_dir: Path, step: int, checkpoint: Checkpoint, *, is_best: bool) -> None:
    """Write ``checkpoints/<step>/`` and point ``last``, and ``best`` if it is, to it.

    A reader finds ``last`` complete at every instant; when writing fails, the folder is as it was.
    Checkpoints that neither points to are removed, but for the one before; anything else is left.
    """
    folder = run_dir / "checkpoints"
    folder.mkdir(exist_ok=True)
    name = f"{step:010d}"
    while (folder / name).exists():  # of an attempt that was cut off; last or best may point to it
        name += "+"
    final, temporary = folder / name, folder / f".{name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        save_file(temporary / "weights.pt", checkpoint.weights)
        save_file(temporary / "state.pt", checkpoint.state)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    temporary.rename(final)
    flush_folder(folder)
    previous = (folder / "last").resolve().name
    if is_best:
        point(folder / "best", final.name)
    point(folder / "last", final.name)
    kept = {final.name, previous, (folder / "best").resolve().name}
    for old in folder.iterdir():
        if re.fullmatch(r"\.?\d{10,}\+*", old.name) and old.name not in kept:
            shutil.rmtree(old)


def save_file(path: Path, content: dict[str, Any]) -> None:
    """Write one file of a checkpoint.

    Raises:
        OSError: it cannot be written; torch would say something else.

    """
    try:
        write_whole(path, lambda file: torch.save(content, file))
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def point(link: Path, name: str) -> None:
    """Make ``link`` a symbolic link to ``name`` beside it, replacing an earlier one at once."""
    temporary = link.with_name(f".{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    os.replace(temporary, link)
    flush_folder(link.parent)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU; nothing is unpickled but tensors and plain values.

    Raises:
        UserError: a file is missing, damaged, or holds anything else.

    """
    return Checkpoint(load_file(folder / "weights.pt"), load_file(folder / "state.pt"))


def load_file(path: Path) -> dict[str, Any]:
    """Read one file of a checkpoint."""
    try:
        with zipfile.ZipFile(path) as parts:
            if (part := parts.testzip()) is not None:  # torch does not look at its checksums
                raise ValueError(f"the checksum of {part} is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; the checkpoint is not complete") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged or not a checkpoint: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    return content
