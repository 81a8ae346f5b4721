"""A snapshot is the code as it was when it was taken, and jobs run it whatever is edited later."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from research.errors import UserError
from research.launchers.plan.snapshot import move_path, take_snapshot
from tests.launchers.cluster import Cluster
from tests.launchers.programs import ROOT
from tests.launchers.slurm.test_slurm import PROGRAM, SlurmProgram, clean_up

LATER = ("hydra.launcher.wait=false", "hydra.launcher.snapshot=true")
HELD = "+hydra.launcher.additional_parameters.hold=true"


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=0")
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def commit_all(folder: Path) -> str:
    """Make a repository of a folder; the commit."""
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=start")
    return git(folder, "rev-parse", "HEAD").strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "package").mkdir(parents=True)
    (root / "program.py").write_text("old")
    (root / "package/part.py").write_text("part")
    (root / ".gitignore").write_text("ignored.py\n")
    commit_all(root)
    return root


def test_it_holds_what_is_on_the_disk_but_no_data(repository: Path, tmp_path: Path) -> None:
    (repository / "program.py").write_text("uncommitted")
    (repository / "new.py").write_text("new")
    (repository / "new.bin").write_text("data")
    (repository / "ignored.py").write_text("ignored")
    (repository / "package/part.py").unlink()
    root, copy = take_snapshot(repository / "program.py", tmp_path / "sweep/code")
    assert root == repository
    names = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert names == {"program.py", "new.py", ".gitignore", ".commit"}
    assert (copy / "program.py").read_text() == "uncommitted"
    commit = git(repository, "rev-parse", "HEAD").strip()
    assert (copy / ".commit").read_text() == f"{commit}-dirty"


def test_other_code_gets_another_copy(repository: Path) -> None:
    code = repository / "multirun/sweep/code"
    program = repository / "package/part.py"
    first = take_snapshot(program, code)[1]
    (code.parent / "multirun.yaml").write_text("the sweep's own file")
    assert take_snapshot(program, code)[1] == first
    (repository / "program.py").write_text("mended")
    second = take_snapshot(program, code)[1]
    assert [(copy / "program.py").read_text() for copy in (first, second)] == ["old", "mended"]
    other = take_snapshot(program, repository / "multirun/other/code")[1]
    assert not list(other.rglob("*/code/*"))


def test_it_needs_a_commit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="snapshot=true needs a git repository with a commit"):
        take_snapshot(tmp_path / "program.py", tmp_path / "code")


def test_only_folders_of_the_repository_move(tmp_path: Path) -> None:
    root, copy = tmp_path / "root", tmp_path / "copy"
    (root / ".venv/lib").mkdir(parents=True)
    (copy / "package").mkdir(parents=True)
    path = [str(root), str(root / "package"), str(root / ".venv/lib"), "/usr/lib"]
    moved = [str(copy), str(copy / "package"), str(root / ".venv/lib"), "/usr/lib"]
    assert move_path(path, root, copy) == moved


@pytest.fixture
def slurm(tmp_path: Path, cluster: Cluster) -> Iterator[SlurmProgram]:
    program = SlurmProgram(tmp_path, cluster)
    yield program
    clean_up(program)


def test_jobs_run_the_code_of_their_submission(slurm: SlurmProgram) -> None:
    text = PROGRAM.replace('note(f"end', 'import part; note(f"part {part.VALUE}"); note(f"end')
    (slurm.folder / "program.py").write_text(text)
    (slurm.folder / "part.py").write_text("VALUE = 'old'")
    (slurm.folder / ".gitignore").write_text("bin\njournal\n")
    commit_all(slurm.folder)
    assert slurm.run(*LATER, HELD).status == 0
    (slurm.folder / "part.py").write_text("VALUE = 'new'")
    slurm.cluster.run("scontrol", "release", slurm.tasks()[0])
    assert slurm.command("wait").status == 0
    assert "part old" in slurm.journal()


@pytest.mark.slow
def test_this_project_itself_comes_from_the_snapshot(slurm: SlurmProgram) -> None:
    project = slurm.folder / "project"
    for name in git(ROOT, "ls-files", "-co", "--exclude-standard").splitlines():
        if (ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, project / name)
    commit = commit_all(project)
    overrides = [
        "env=pendulum",
        "trainer.total_steps=20",
        "trainer.pace.warmup_steps=10",
        f"hydra.sweep.dir={slurm.sweep}",
    ]
    options = ["hydra/launcher=slurm", "hydra.launcher.setup=[]", *LATER, HELD]
    command = [sys.executable, "train.py", "-m", *options, *overrides]
    subprocess.run(command, cwd=project, env=slurm.environ, check=True, capture_output=True)
    for path in ("train.py", "research/training/trainer.py", "research/launchers/pool/pool.py"):
        (project / path).write_text("raise RuntimeError('edited')")
    slurm.cluster.run("scontrol", "release", slurm.tasks()[0])
    assert slurm.command("wait").status == 0
    (path,) = slurm.sweep.glob("*/provenance.json")
    (attempt,) = json.loads(path.read_text())["attempts"]
    assert (attempt["git"]["commit"], attempt["git"]["dirty"]) == (commit, False)
