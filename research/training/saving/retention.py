"""Which checkpoints a run directory holds, which it keeps, and which of them is the best.

| in ``checkpoints/`` | |
| --- | --- |
| ``0000012000/`` | a checkpoint, named by its step; ``+`` marks one whose name was taken |
| ``last`` ``best`` | links to two of them |
| ``data/`` | what checkpoints share: the rows of a replay buffer |
| ``damaged-0000012000/`` | one that did not load |
"""

import json
import logging
import os
import re
import reprlib
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from research.errors import DamagedFile, UserError
from research.files import flush_folder, read_json, write_whole

log = logging.getLogger(__name__)

VERSION = 1
"""Version of the checkpoint format; this code reads no other."""

NAME = re.compile(r"\d{10,}\+*")

MAX_BYTES = 2**20
"""A longer file is no manifest."""


class Manifest(NamedTuple):
    """The facts about a checkpoint that can be read without loading it.

    Attributes:
        version: of its format.
        best: name of the best checkpoint at that time; None before the first evaluation.
        files: names of the files in ``data/`` that it needs.

    """

    version: int
    best: str | None
    files: list[str]


def holds_checkpoints(run_dir: Path) -> bool:
    """Whether the run directory holds a checkpoint, damaged or not, to resume from.

    Raises:
        UserError: ``checkpoints`` is not a folder.

    """
    folder = run_dir / "checkpoints"
    if os.path.lexists(folder) and not folder.is_dir():  # or a link to a disk that is away
        raise UserError(f"{folder} is in the way: it is no folder")
    return os.path.lexists(folder / "last") or bool(list_checkpoints(run_dir))


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints that a run may resume from, newest first: ``last`` and older ones.

    A newer one than ``last`` was not finished. If there is no ``last``, all are listed.
    """
    folder = run_dir / "checkpoints"
    names = [path.name for path in checkpoint_folders(folder)]
    last = link_target(folder / "last")
    return [folder / n for n in sorted(names, reverse=True) if last is None or n <= last]


def checkpoint_folders(folder: Path) -> Iterator[Path]:
    """Every checkpoint in ``folder``, finished or not."""
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if NAME.fullmatch(path.name))


def link_target(link: Path) -> str | None:
    """The name that a link points to, whether or not it exists; None if there is no link."""
    return Path(os.readlink(link)).name if link.is_symlink() else None


def point(link: Path, name: str) -> None:
    """Make ``link`` a symbolic link to ``name`` beside it; an earlier link is replaced at once."""
    temporary = link.with_name(f".{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    os.replace(temporary, link)
    flush_folder(link.parent)


def go_back(run_dir: Path, to: Path, damaged: list[Path]) -> list[Path]:
    """Make ``to`` the last checkpoint; set later, damaged ones aside and return their new paths.

    ``best`` is set back to the best of that time, even if a save was cut off after it was set.
    """
    folder = run_dir / "checkpoints"
    if link_target(folder / "last") != to.name:
        point(folder / "last", to.name)
    best = read_manifest(to).best
    if best is not None and link_target(folder / "best") != best:
        point(folder / "best", best)
    elif best is None:
        (folder / "best").unlink(missing_ok=True)
    aside = []
    for path in damaged:
        target = folder / f"damaged-{path.name}"
        while os.path.lexists(target):
            target = target.with_name(f"{target.name}+")
        path.rename(target)
        aside.append(target)
    return aside


def remove_others(run_dir: Path, *, keep_last: int) -> None:
    """Delete all checkpoints except the last ones and their bests, and data that is not needed.

    A best that is not among the last keeps its weights and state, but not its data.
    """
    folder = run_dir / "checkpoints"
    kept = list_checkpoints(run_dir)[:keep_last]
    try:
        manifests = [read_manifest(path) for path in kept]
    except DamagedFile as error:
        log.warning("%s; what it needs is unknown, so nothing is deleted", error)
        return
    names = {path.name for path in kept} | {manifest.best for manifest in manifests}
    for path in checkpoint_folders(folder):
        if path.name not in names:
            remove(path)
    for path in folder.glob(".*"):
        if NAME.fullmatch(path.name[1:]):  # a save that was cut off
            remove(path)
    needed = {name for manifest in manifests for name in manifest.files}
    data = folder / "data"
    for path in [] if data.is_symlink() else data.glob("*"):  # elsewhere may be anybody's files
        if path.name not in needed:
            remove(path)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` of a checkpoint."""
    content = {**manifest._asdict(), "checksum": compute_checksum(manifest)}
    write_whole(folder / "manifest.json", json.dumps(content, indent=2) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read ``manifest.json`` of a checkpoint.

    Raises:
        DamagedFile: it is missing or no manifest, or the checkpoint is of another version.

    """
    path = folder / "manifest.json"
    try:
        content = read_json(path, max_bytes=MAX_BYTES)
    except FileNotFoundError as error:
        raise DamagedFile(f"{path} is missing; the checkpoint is not complete") from error
    except (ValueError, OSError) as error:
        raise DamagedFile(f"{path} is damaged: {error}") from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        found = reprlib.repr(version)
        raise DamagedFile(f"{path} is of version {found}; this code reads version {VERSION}")
    best, files = content.get("best"), content.get("files")
    is_best_valid = best is None or (isinstance(best, str) and NAME.fullmatch(best))
    if not (is_best_valid and isinstance(files, list) and all(isinstance(f, str) for f in files)):
        raise DamagedFile(f"{path} is damaged: it names no checkpoint and files")
    manifest = Manifest(version, best, files)
    if content.get("checksum") != compute_checksum(manifest):  # it tells what may be deleted
        raise DamagedFile(f"{path} is damaged: its checksum is wrong")
    return manifest


def compute_checksum(manifest: Manifest) -> int:
    """CRC-32 of a manifest's content."""
    return zlib.crc32(json.dumps(manifest).encode())
