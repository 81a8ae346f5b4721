"""Provenance says what ran, on which code, and fails for nothing that is not its own file."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from research.errors import UserError
from research.training.saving import provenance
from research.training.saving.provenance import git_state, read_attempts, write_provenance

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=0")
    command = ["git", *identity, *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit and a folder of code."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    root = tmp_path / "project"
    (root / "code").mkdir(parents=True)
    (root / "code" / "alg.py").write_text("lr = 1\n")
    (root / ".gitignore").write_text("outputs/\n")
    git(root, "init", "--initial-branch=trunk")
    git(root, "add", ".")
    git(root, "commit", "--message=start")
    return root


def attempts(run_dir: Path) -> list[dict]:
    return json.loads((run_dir / "provenance.json").read_text())["attempts"]


def test_attempt_holds_command_versions_and_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4321")
    key = uuid.uuid4().hex  # not in the text of this file, which may be part of the diff
    monkeypatch.setenv("WANDB_API_KEY", key)
    write_provenance(tmp_path, ["train.py", "alg=td3"])
    (attempt,) = attempts(tmp_path)
    assert attempt["command"] == ["train.py", "alg=td3"]
    assert attempt["folder"] == str(Path.cwd())
    age = datetime.now(timezone.utc) - datetime.fromisoformat(attempt["time"])
    assert abs(age.total_seconds()) < 60
    assert attempt["packages"]["numpy"] == np.__version__
    assert attempt["environment"]["SLURM_JOB_ID"] == "4321"
    assert attempt["machine"]["cpus"] == os.cpu_count()
    assert attempt["machine"]["memory_gb"] > 0
    assert key not in (tmp_path / "provenance.json").read_text()


def test_resumed_run_keeps_the_earlier_attempts(tmp_path: Path) -> None:
    for command in ("first", "second", "third"):
        write_provenance(tmp_path, [command])
    assert [attempt["command"] for attempt in attempts(tmp_path)] == [
        ["first"],
        ["second"],
        ["third"],
    ]


def test_attempt_notes_the_changes_that_were_accepted(tmp_path: Path) -> None:
    write_provenance(tmp_path, ["train.py"])
    write_provenance(tmp_path, ["train.py"], ("alg.lr: 0.1 -> 0.2", "seed: 1 -> 2"))
    assert [attempt["changes"] for attempt in attempts(tmp_path)] == [
        [],
        ["alg.lr: 0.1 -> 0.2", "seed: 1 -> 2"],
    ]


def test_megabytes_of_diffs_are_read_and_more_than_a_run_has_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "provenance.json"
    path.write_text(json.dumps({"attempts": [{"git": {"diff": "+\n" * 2**19}}] * 5}))
    assert len(read_attempts(path)) == 5
    monkeypatch.setattr(provenance, "MAX_FILE_BYTES", 2**20)
    with pytest.raises(UserError, match=r"provenance\.json is not .* more than 1,048,576 bytes"):
        read_attempts(path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.just("attempts") | st.text(), inner),
    max_leaves=8,
)
likely = st.fixed_dictionaries({"attempts": st.lists(st.dictionaries(st.text(), values))})


@settings(max_examples=60, deadline=None)
@given(content=st.binary() | (values | likely).map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_attempts_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("run") / "provenance.json"
    path.write_bytes(content)
    try:
        read = read_attempts(path)
    except UserError as error:
        lines = str(error).splitlines()
        assert [str(path) in line for line in lines] == [True]
        return
    assert read == json.loads(content)["attempts"]
    assert all(isinstance(attempt, dict) for attempt in read)


NESTED = '{"attempts": [{"a": ' + "[" * 10**5 + "]" * 10**5 + "}]}"


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"attempts": 3}', '{"attempts": ["a"]}', '{"attempts": "a"}', NESTED]
)
def test_file_that_is_no_provenance_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "provenance.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"provenance\.json is not a run's provenance"):
        write_provenance(tmp_path, ["train.py"])
    assert path.read_text() == text


def test_torch_is_described_only_when_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.machine()["torch_threads"] == torch.get_num_threads()
    monkeypatch.delitem(sys.modules, "torch")
    assert "torch_threads" not in provenance.machine()
    assert "torch" not in sys.modules


@needs_git
def test_clean_repository_is_its_commit(repository: Path) -> None:
    assert git_state(repository / "code") == {
        "root": str(repository.resolve()),
        "commit": git(repository, "rev-parse", "HEAD"),
        "branch": "trunk",
        "dirty": False,
        "diff": "",
        "untracked": {},
        "note": None,
    }


@needs_git
def test_uncommitted_changes_can_be_applied_again(repository: Path) -> None:
    (repository / "code" / "alg.py").write_text("lr = 2\n")
    (repository / "staged.py").write_text("new = 1\n")
    git(repository, "add", "staged.py")
    state = git_state(repository / "code")
    assert state["dirty"]
    git(repository, "reset", "--hard")
    subprocess.run(
        ["git", "apply"], input=str(state["diff"]), cwd=repository, text=True, check=True
    )
    assert (repository / "code" / "alg.py").read_text() == "lr = 2\n"
    assert (repository / "staged.py").read_text() == "new = 1\n"


@needs_git
def test_new_code_is_kept_and_other_new_files_only_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "MAX_CHARACTERS", 1000)
    (repository / "code" / "mine.py").write_text("beta = 3\n")
    (repository / "code" / "long.py").write_text("x" * 995)
    (repository / "key.json").write_text("42")
    (repository / "outputs").mkdir()
    (repository / "outputs" / "ignored.py").write_text("")
    state = git_state(repository / "code")
    assert state["dirty"]
    assert state["untracked"] == {
        "code/long.py": "x" * 995,
        "code/mine.py": None,
        "key.json": None,
    }


@needs_git
def test_long_diff_is_cut_with_a_note(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "MAX_CHARACTERS", 1000)
    (repository / "code" / "alg.py").write_text("".join(f"x{i} = {i}\n" for i in range(10**5)))
    state = git_state(repository / "code")
    assert len(str(state["diff"])) == 1000
    assert state["note"] == "the diff is cut after 1,000 characters"


@needs_git
def test_repository_is_the_codes_even_inside_a_git_hook(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert git_state(repository / "code")["commit"] == commit


@needs_git
def test_ignored_copy_of_the_code_is_not_taken_for_the_repository(repository: Path) -> None:
    (repository / "outputs" / "code").mkdir(parents=True)
    state = git_state(repository / "outputs" / "code")
    assert list(state) == ["error"]
    assert "ignores it" in str(state["error"])


@needs_git
def test_code_outside_a_repository_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "no repository" in str(git_state(tmp_path)["error"])


def test_missing_git_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git" in str(git_state(tmp_path)["error"])
    write_provenance(tmp_path, ["train.py"])
    assert list(attempts(tmp_path)[0]["git"]) == ["error"]


def test_slow_git_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "git"
    fake.write_text(
        '#!/bin/sh\n[ "$1" = check-ignore ] && exit 1\nPATH=/usr/bin:/bin exec sleep 20\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(provenance, "GIT_S", 0.2)
    assert "timed out" in str(git_state(tmp_path)["error"])
