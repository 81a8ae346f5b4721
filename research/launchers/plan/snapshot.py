"""A copy of the code as it is now, which the jobs of a sweep run even if the code is edited."""

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from research.errors import UserError
from research.process import Call

CODE = (".py", ".yaml", ".yml", ".toml", ".sh")
"""Endings of the untracked files that are copied; others may be data."""

COMMIT = ".commit"


def take_snapshot(program: Path, folder: Path) -> tuple[Path, Path]:
    """Copy the repository that holds ``program`` to a folder in ``folder``, named by its content.

    Tracked files are copied as they are on the disk, uncommitted changes included, and so are new
    files of code. ``.commit`` in the copy holds the commit. A copy that exists is used again.

    Args:
        program: the file that is run.
        folder: a folder in the sweep directory, whose own files are not copied.

    Returns:
        the repository's root, and the copy's.

    Raises:
        UserError: there is no repository with a commit.

    """
    root = Path(git(program.parent, "rev-parse", "--show-toplevel").strip())
    tracked = git(root, "ls-files", "-z").split("\0")
    new = git(root, "ls-files", "--others", "--exclude-standard", "-z").split("\0")
    names = [name for name in tracked if name] + [name for name in new if name.endswith(CODE)]
    paths = {name: root / name for name in names if (root / name).is_file()}
    sweep = folder.parent.resolve()
    files = {name: path for name, path in paths.items() if not path.is_relative_to(sweep)}
    changed = git(root, "status", "--porcelain", "--untracked-files=no")
    commit = git(root, "rev-parse", "HEAD").strip() + "-dirty" * bool(changed)
    copy = folder / digest(commit, files)
    if not copy.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n")  # no snapshot holds the snapshots of other sweeps
        partial = Path(tempfile.mkdtemp(prefix=".", dir=folder))
        for name, source in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, partial / name)
        (partial / COMMIT).write_text(commit)
        partial.chmod(0o755)
        partial.rename(copy)
    return root, copy


def digest(commit: str, files: Mapping[str, Path]) -> str:
    """A short name for a commit and the contents of the files."""
    total = hashlib.sha256(commit.encode())
    for name, path in sorted(files.items()):
        total.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return total.hexdigest()[:12]


def move_call(call: Call, root: Path, folder: Path) -> Call:
    """The call, changed to import from the snapshot in ``folder`` instead of ``root``."""
    return call._replace(path=move_path(call.path, root, folder))


def move_path(path: Sequence[str], root: Path, folder: Path) -> list[str]:
    """A search path with the folders in ``root`` replaced by the snapshot's, where it has them."""
    moved = []
    for entry in map(Path, path):
        copy = folder / entry.relative_to(root) if entry.is_relative_to(root) else entry
        moved.append(str(copy if copy.is_dir() else entry))
    return moved


def git(folder: Path, *arguments: str) -> str:
    """The output of a git command.

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
