"""setup_shell.sh: what it does to the shell that sources it, with pip replaced by a stub."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHELLS = ["bash", "zsh"]

# Makes a real environment, but without pip: in its place stands a program that records its
# arguments, takes PIP_SECONDS, and fails with PIP_ERROR on its standard error.
PYTHON = f"""#!/bin/bash
case "$*" in
  *version_info*) [ -z "$FAKE_VERSION" ] || {{ echo "$FAKE_VERSION"; exit; }} ;;
  *ensurepip*) exit "${{NO_VENV:-0}}" ;;
  *"-m venv --clear .venv")
    {sys.executable} -m venv --clear --without-pip .venv
    for packages in .venv/lib/python3*/site-packages; do
      mkdir -p "$packages/pip" "$packages/dm_control-1.dist-info"
      cp ../stub_pip.py "$packages/pip/__main__.py"
      echo "Name: dm_control" >"$packages/dm_control-1.dist-info/METADATA"
    done
    exit ;;
esac
exec {sys.executable} "$@"
"""
PIP = """
import os, sys, time
sys.stdin.read()
with open("pip.log", "a") as log:
    print(*sys.argv[1:], file=log)
time.sleep(float(os.environ.get("PIP_SECONDS", 0)))
sys.exit(os.environ.get("PIP_ERROR"))
"""
SNAPSHOT = """
snapshot() {
  if [ -n "${ZSH_VERSION:-}" ]; then
    { typeset + | sed 's/.* //'; print -l ${(k)functions} ${(k)aliases}; setopt; } | sort
  else
    { compgen -v; compgen -A function; alias; set +o; shopt; trap; } | sort
  fi
}
"""


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that setup_shell.sh reads, in a folder whose name needs quotes."""
    folder = tmp_path / "my checkout's"
    (folder / ".ci").mkdir(parents=True)
    for name in ["setup_shell.sh", "pyproject.toml", ".ci/constraints.txt"]:
        shutil.copy(ROOT / name, folder / name)
    (tmp_path / "stub_pip.py").write_text(PIP)
    (tmp_path / "python3").write_text(PYTHON)
    (tmp_path / "python3").chmod(0o755)
    return folder


def environment(checkout: Path, **extra: str) -> dict[str, str]:
    python = str(checkout.parent / "python3")
    base = {"PATH": "/usr/bin:/bin", "HOME": str(checkout), "RESEARCH_LIGHTNING_PYTHON": python}
    return base | extra


def source(
    shell: str, checkout: Path, then: str = "", before: str = "", **extra: str
) -> subprocess.CompletedProcess[str]:
    """Source the script from the root folder; the last line printed is the status of that."""
    code = f'{before}\n. "$SCRIPT"\nresult=$?\n{then}\necho "status $result"'
    variables = environment(checkout, **{"SCRIPT": str(checkout / "setup_shell.sh")} | extra)
    options = ["-f"] if shell == "zsh" else ["--norc"]
    return subprocess.run(
        [shell, *options, "-c", code], cwd="/", env=variables, capture_output=True, text=True
    )


def pip_calls(checkout: Path) -> list[str]:
    log = checkout / "pip.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [line for line in lines if "-e .[dev]" in line]


def test_it_is_written_in_the_shells_own_syntax(shell: str) -> None:
    subprocess.run([shell, "-n", ROOT / "setup_shell.sh"], check=True)


def test_the_first_source_installs_and_the_next_only_activate(shell: str, checkout: Path) -> None:
    first = source(shell, checkout)
    assert (first.stdout, len(pip_calls(checkout))) == ("status 0\n", 1)
    assert "--constraint .ci/constraints.txt" in pip_calls(checkout)[0]
    assert "making" in first.stderr
    assert "installing" in first.stderr
    before = os.times()
    second = source(shell, checkout, then="command -v python; pwd")
    after = os.times()
    # of the processor, so that a busy machine does not fail it
    used = after.children_user + after.children_system
    assert used - before.children_user - before.children_system < 0.5
    assert second.stdout == f"{checkout}/.venv/bin/python\n{checkout}\nstatus 0\n"
    assert (second.stderr, len(pip_calls(checkout))) == ("", 1)


def test_a_link_to_it_leads_to_the_repository(shell: str, checkout: Path) -> None:
    link = checkout.parent / "link.sh"
    link.symlink_to(checkout / "setup_shell.sh")
    result = source(shell, checkout, then="pwd", SCRIPT=str(link))
    assert result.stdout == f"{checkout}\nstatus 0\n"


@pytest.mark.parametrize("options", ["set +eu", "set -eu"])
def test_it_leaves_only_the_environment_in_the_shell(
    shell: str, checkout: Path, options: str
) -> None:
    before = f"cd {checkout.parent}; result=0\n{SNAPSHOT}\nsnapshot >before; snapshot >before"
    then = "set +eu; cd ..; snapshot >after; comm -3 before after"
    result = source(shell, checkout, before=f"{before}; {options}", then=then)
    venv = {"VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT", "_OLD_VIRTUAL_PATH", "_OLD_VIRTUAL_PS1", "PS1"}
    changed = {line.strip() for line in result.stdout.splitlines()}
    assert changed - venv - {"deactivate", "OLDPWD"} == {"status 0"}


def test_the_shell_keeps_its_standard_input(shell: str, checkout: Path) -> None:
    result = source(shell, checkout, before="exec <<<left", then="read -r line; echo $line")
    assert result.stdout == "left\nstatus 0\n"


def test_what_another_start_up_file_prints_is_not_run(shell: str, checkout: Path) -> None:
    (checkout / "noise").write_text("echo echo noise")
    result = source(shell, checkout, before=f'export BASH_ENV="{checkout}/noise"')
    assert result.stdout == "status 0\n"


@pytest.mark.parametrize("name", ["pyproject.toml", ".ci/constraints.txt"])
def test_changed_requirements_are_installed(checkout: Path, name: str) -> None:
    source("bash", checkout)
    with (checkout / name).open("a") as file:
        file.write("# changed\n")
    result = source("bash", checkout)
    assert "making" not in result.stderr
    assert len(pip_calls(checkout)) == 2


def test_an_environment_that_was_moved_is_made_anew(checkout: Path) -> None:
    source("bash", checkout)
    moved = checkout.rename(checkout.parent / "moved")
    result = source("bash", moved, then="command -v python")
    assert "making" in result.stderr
    assert result.stdout == f"{moved}/.venv/bin/python\nstatus 0\n"


def test_an_environment_whose_python_is_gone_is_made_anew(checkout: Path) -> None:
    source("bash", checkout)
    for python in (checkout / ".venv/bin").glob("python*"):
        python.unlink()
        python.symlink_to("/nowhere")
    result = source("bash", checkout)
    assert "making" in result.stderr
    assert all(line.startswith("setup_shell.sh: ") for line in result.stderr.splitlines())
    assert len(pip_calls(checkout)) == 2


@pytest.mark.parametrize("version", ["3.9", "3.14", "2.7"])
def test_an_unsupported_python_is_refused_in_one_line(checkout: Path, version: str) -> None:
    result = source("bash", checkout, then="pwd", FAKE_VERSION=version)
    assert result.stdout == f"{checkout}\nstatus 1\n"
    assert re.fullmatch(
        rf"setup_shell.sh: Python 3.10 to 3.13 is needed, .*/python3 is {version}; .*\n",
        result.stderr,
    )


def test_it_accepts_the_pythons_of_pyproject(checkout: Path) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert 'requires-python = ">=3.10,<3.14"' in text
    for version in ["3.10", "3.11", "3.12", "3.13"]:
        result = source("bash", checkout, FAKE_VERSION=version, NO_VENV="1")
        assert "lacks its venv module" in result.stderr


def test_a_python_without_venv_names_the_package_that_brings_it(checkout: Path) -> None:
    result = source("bash", checkout, NO_VENV="1", FAKE_VERSION="3.11")
    assert result.stdout == "status 1\n"
    assert result.stderr == (
        "setup_shell.sh: Python lacks its venv module; on Debian: apt-get install python3.11-venv\n"
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("OSError: [Errno 28] No space left on device", "no space left on the disk"),
        ("WARNING: Retrying after connection broken by 'X'\nERROR: No match", "network away"),
        ("connection broken by 'SSLError(CERTIFICATE_VERIFY_FAILED)'", "not trusted here"),
        ("ERROR: Cannot install a\nnote: see above", "ERROR: Cannot install a (details"),
    ],
)
def test_a_failed_install_says_why_in_one_line_and_is_done_again(
    checkout: Path, error: str, line: str
) -> None:
    source("bash", checkout)
    constraints = checkout / ".ci/constraints.txt"
    before = constraints.read_text()
    constraints.write_text("")
    failed = source("bash", checkout, PIP_ERROR=error)
    constraints.write_text(before)
    assert failed.stdout == "status 1\n"
    assert [line in text for text in failed.stderr.splitlines()] == [False, True]
    assert source("bash", checkout).stdout == "status 0\n"
    assert len(pip_calls(checkout)) == 3


@pytest.fixture
def start(checkout: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Source the script in the background, in a process group of its own; killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def begin(pip_seconds: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["bash", "-c", ". ./setup_shell.sh"],
            cwd=checkout,
            env=environment(checkout, PIP_SECONDS=pip_seconds),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        deadline = time.monotonic() + 10
        while not pip_calls(checkout) and time.monotonic() < deadline:
            time.sleep(0.02)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_an_interrupted_install_is_done_again(
    checkout: Path, start: Callable[[str], subprocess.Popen[str]]
) -> None:
    process = start("30")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert source("bash", checkout).stdout == "status 0\n"
    assert len(pip_calls(checkout)) == 2


def test_a_second_shell_waits_for_the_first_and_does_not_install_again(
    checkout: Path, start: Callable[[str], subprocess.Popen[str]]
) -> None:
    process = start("1")
    second = source("bash", checkout)
    assert second.stderr == "setup_shell.sh: another shell is installing; waiting for it\n"
    assert second.stdout == "status 0\n"
    assert (process.wait(), len(pip_calls(checkout))) == (0, 1)


def test_a_lock_that_cannot_be_made_is_one_line(checkout: Path) -> None:
    (checkout / ".setup_shell.lock").mkdir()
    result = source("bash", checkout)
    assert result.stdout == "status 1\n"
    assert result.stderr == f"setup_shell.sh: cannot write to {checkout}\n"


def test_the_clusters_own_lines_reach_the_shell(shell: str, checkout: Path) -> None:
    (checkout / "setup_cluster.sh").write_text("export WANDB_API_KEY=secret\n")
    result = source(shell, checkout, then="echo $WANDB_API_KEY")
    assert result.stdout == "secret\nstatus 0\n"


def test_a_failure_does_not_end_the_shell(shell: str, checkout: Path) -> None:
    result = source(shell, checkout, then=". $SCRIPT && echo never", FAKE_VERSION="3.9")
    assert result.stdout == "status 1\n"
    assert len(result.stderr.splitlines()) == 2


def test_running_it_says_that_it_wants_to_be_sourced(checkout: Path) -> None:
    result = subprocess.run(
        ["bash", checkout / "setup_shell.sh"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr == "setup_shell.sh: source it, do not run it: . ./setup_shell.sh\n"


@pytest.fixture
def conda(checkout: Path) -> Path:
    """The base of a pretended conda with one environment, research-lightning."""
    base = checkout.parent / "conda base"
    env = base / "envs/research-lightning"
    (env / "conda-meta").mkdir(parents=True)
    (base / "etc/profile.d").mkdir(parents=True)
    (base / "etc/profile.d/conda.sh").write_text(
        'conda() { export CONDA_PREFIX=$2 PATH="$2/bin:$PATH"; }\n'
    )
    source("bash", checkout)
    shutil.move(checkout / ".venv", base / "made")
    shutil.copytree(base / "made", env, dirs_exist_ok=True, symlinks=True)
    (checkout / "pip.log").unlink()
    return base


@pytest.mark.parametrize("name", ["research-lightning", "mine"])
def test_an_active_conda_environment_made_for_the_project_is_used(
    shell: str, checkout: Path, conda: Path, name: str
) -> None:
    env = conda / "envs/research-lightning"
    if name == "mine":
        (packages,) = env.glob("lib/python3.*/site-packages")
        (packages / "research_lightning-0.1.0.dist-info").mkdir()
    active = {"CONDA_PREFIX": str(env), "CONDA_DEFAULT_ENV": name}
    result = source(shell, checkout, then="echo ${VIRTUAL_ENV:-none}", **active)
    assert result.stdout == "none\nstatus 0\n"
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("name", ["base", "other"])
def test_another_active_conda_environment_is_left_alone(
    checkout: Path, conda: Path, name: str
) -> None:
    active = {"CONDA_PREFIX": str(conda / "made"), "CONDA_DEFAULT_ENV": name}
    result = source("bash", checkout, then="command -v python", **active)
    assert result.stdout == f"{checkout}/.venv/bin/python\nstatus 0\n"
    assert ("RESEARCH_LIGHTNING_CONDA_ENV=" in result.stderr) == (name == "other")


def test_a_named_conda_environment_is_activated(shell: str, checkout: Path, conda: Path) -> None:
    named = {
        "CONDA_EXE": str(conda / "bin/conda"),
        "RESEARCH_LIGHTNING_CONDA_ENV": "research-lightning",
    }
    result = source(shell, checkout, then="command -v python", **named)
    assert result.stdout == f"{conda}/envs/research-lightning/bin/python\nstatus 0\n"
    assert not (checkout / ".venv").exists()


def test_a_missing_conda_environment_is_one_line(checkout: Path) -> None:
    result = source("bash", checkout, RESEARCH_LIGHTNING_CONDA_ENV="lost")
    assert result.stdout == "status 1\n"
    assert result.stderr == (
        "setup_shell.sh: no conda environment lost; make it:"
        " conda env create -n lost -f environment.yaml\n"
    )


def test_the_conda_file_installs_what_the_script_installs() -> None:
    text = (ROOT / "environment.yaml").read_text()
    assert "name: research-lightning\n" in text
    assert "- --constraint .ci/constraints.txt\n" in text
    assert "- --editable .[dev]\n" in text
