"""A copy of the code as it is now, which the jobs of a sweep run whatever is edited meanwhile."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from research.errors import UserError
from research.launchers.process import Call

CODE = (".py", ".yaml", ".yml", ".toml", ".sh")
"""Files that are copied although git does not know them yet; others may be data."""

COMMIT = ".commit"


def take_snapshot(program: Path, folder: Path) -> Path:
    """Copy the repository that holds ``program`` to ``folder``; one that is there already stays.

    Tracked files are copied as they lie on the disk, uncommitted changes included, and new files
    of code. ``.commit`` in the copy holds the commit.

    Returns:
        the repository's root.

    Raises:
        UserError: there is no repository with a commit.

    """
    root = Path(git(program.parent, "rev-parse", "--show-toplevel").strip())
    if folder.exists():
        return root
    tracked = git(root, "ls-files", "-z").split("\0")
    new = git(root, "ls-files", "--others", "--exclude-standard", "-z").split("\0")
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    for name in [*tracked, *(name for name in new if name.endswith(CODE))]:
        source = root / name
        if name and source.is_file():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, partial / name)
    changed = git(root, "status", "--porcelain", "--untracked-files=no")
    (partial / COMMIT).write_text(git(root, "rev-parse", "HEAD").strip() + "-dirty" * bool(changed))
    partial.rename(folder)
    return root


def move_call(call: Call, root: Path, folder: Path) -> Call:
    """The call, importing from the snapshot in ``folder`` what it imported from ``root``."""
    return call._replace(path=move_path(call.path, root, folder))


def move_path(path: Sequence[str], root: Path, folder: Path) -> list[str]:
    """A search path whose folders are those of the snapshot, where it has them."""
    moved = []
    for entry in map(Path, path):
        copy = folder / entry.relative_to(root) if entry.is_relative_to(root) else entry
        moved.append(str(copy if copy.is_dir() else entry))
    return moved


def git(folder: Path, *arguments: str) -> str:
    """What a git command prints.

    Raises:
        UserError: it failed.

    """
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise UserError(
            "hydra.launcher.snapshot=true needs a git repository with a commit: "
            f"{' '.join(said.split())}"
        ) from error
