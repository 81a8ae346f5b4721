"""``python -m research.sweep``: a sweep from another shell, on this machine or on a cluster."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from research.crash import CRASH
from research.sweep import main
from tests.launchers.cluster import Cluster
from tests.launchers.pool.test_pool import processes_of, wait_for
from tests.launchers.programs import ROOT
from tests.launchers.slurm.test_slurm import (
    COMPLETES_FIRST,
    SlurmProgram,
    WaitingProgram,
    clean_up,
    finish,
)

HELD = "+hydra.launcher.additional_parameters.hold=true"
LATER = "hydra.launcher.wait=false"


@pytest.fixture
def local(tmp_path: Path) -> Iterator[WaitingProgram]:
    yield WaitingProgram(tmp_path, "local", "{stagger_s: 0, max_jobs: 2}")
    wait_for(lambda: not processes_of(f"MARKER={tmp_path}"))


@pytest.fixture
def slurm(tmp_path: Path, cluster: Cluster) -> Iterator[SlurmProgram]:
    program = SlurmProgram(tmp_path, cluster)
    yield program
    clean_up(program)


def test_a_local_sweep_is_shown_cancelled_and_goes_on(local: WaitingProgram) -> None:
    launcher = local.start("do=wait", "seed=0,1,2")
    local.until("wait 0 begins", "wait 1 begins")
    answer = local.command("status")
    assert answer.status == 0
    assert "3 jobs: 2 running, 1 pending" in answer.out
    waiting = local.open("-m", "research.sweep", "wait", "sweep")
    answer = local.command("cancel")
    assert answer.status == 0
    assert f"told the launcher (pid {launcher.pid}) to stop its jobs" in answer.out
    assert finish(launcher).status != 0
    assert finish(waiting).status == 1
    assert local.state("seed=0") == ("preempted", "interrupted")
    local.let_go()
    assert local.command("retry").status == 0
    assert {f"wait {seed} goes on" for seed in (0, 1)} | {"wait 2 begins"} <= set(local.journal())
    answer = local.command("wait")
    assert answer.status == 0
    assert "3 jobs: 3 completed" in answer.out
    assert "no job of" in local.command("cancel").out


def test_the_best_job_is_marked_by_the_mode_of_the_score(local: WaitingProgram) -> None:
    assert local.run("do=work", "seed=2,3", "++trainer.score.mode=min").status == 0
    assert "best" in local.command("wait").out


def test_a_local_sweep_whose_launcher_was_killed_is_shown_and_goes_on(
    local: WaitingProgram,
) -> None:
    launcher = local.start("do=wait", "seed=0,1,2")
    local.until("wait 0 begins", "wait 1 begins")
    launcher.kill()
    finish(launcher)
    wait_for(lambda: not processes_of(f"MARKER={local.folder}"))
    assert "3 jobs: 2 failed, 1 pending" in local.command("status").out
    crash = local.folder / "sweep" / "seed=1" / CRASH
    crash.write_text("Fatal Python error: Segmentation fault\n")
    answer = local.command("wait")
    assert answer.status == 1
    assert "job 0 (seed=0) failed: its process is gone without a word" in answer.out
    assert "job 1 (seed=1) failed: killed by SIGSEGV" in answer.out
    local.let_go()
    assert local.command("retry").status == 0
    assert [local.counts()[f"end wait {seed}"] for seed in range(3)] == [1, 1, 1]


def test_a_sweep_on_a_cluster_is_left_shown_cancelled_and_goes_on(slurm: SlurmProgram) -> None:
    answer = slurm.run("do=wait", "seed=0,1", LATER)
    assert answer.status == 0
    assert "python -m research.sweep status sweep" in answer.out
    slurm.until("wait 0 begins", "wait 1 begins")
    answer = slurm.command("status")
    assert answer.status == 0
    assert "2 jobs: 2 running" in answer.out
    tasks = slurm.tasks()
    assert all(task in answer.out for task in tasks)
    waiting = slurm.open("-m", "research.sweep", "wait", "sweep")
    answer = slurm.command("cancel")
    assert answer.status == 0
    assert f"cancelled {tasks[0]}, {tasks[1]}" in answer.out
    assert finish(waiting).status == 1
    slurm.let_go()
    assert slurm.command("retry").status == 0
    assert slurm.command("wait").status == 0
    assert slurm.counts()["wait 0 goes on"] == slurm.counts()["wait 1 goes on"] == 1
    assert "no job of" in slurm.command("cancel").out


def test_jobs_cancelled_before_they_began_are_named(slurm: SlurmProgram) -> None:
    assert slurm.run("seed=0,1", LATER, HELD).status == 0
    assert "JobHeldUser" in slurm.command("status").out
    assert slurm.command("cancel").status == 0
    answer = slurm.command("wait")
    assert answer.status == 1
    assert "job 1 (seed=1) pending: its allocation ended before it began" in answer.out
    assert slurm.journal() == []


def test_when_slurm_is_silent_nothing_is_concluded(slurm: SlurmProgram) -> None:
    assert slurm.run("do=wait", LATER).status == 0
    slurm.until("wait 0 begins")
    slurm.replace("squeue", "exit 1")
    answer = slurm.command("status")
    assert answer.status == 0
    assert "1 job: 1 running" in answer.out
    assert "SLURM does not answer" in answer.out
    answer = slurm.command("cancel")
    assert (answer.status, answer.err) == (
        1,
        "python -m research.sweep: SLURM does not answer; try later\n",
    )
    answer = slurm.run("do=wait", LATER)
    assert answer.status == 1
    assert "SLURM does not answer, so the jobs of" in answer.err
    slurm.let_go()
    assert slurm.command("wait").status == 0
    assert len(slurm.tasks()) == 1


def test_a_job_that_completes_while_the_queue_is_read_is_not_said_to_be_lost(
    slurm: SlurmProgram,
) -> None:
    assert slurm.run("do=wait", LATER).status == 0
    slurm.until("wait 0 begins")
    slurm.replace("squeue", COMPLETES_FIRST.format(slurm.folder))
    assert "1 job: 1 completed" in slurm.command("status").out


def test_waiting_outlasts_a_silence_of_slurm(slurm: SlurmProgram) -> None:
    assert slurm.run(LATER, HELD).status == 0
    slurm.replace("squeue", "exit 1")
    waiting = slurm.open("-m", "research.sweep", "wait", "sweep")
    assert waiting.stderr is not None
    while "SLURM does not answer" not in waiting.stderr.readline():
        assert waiting.poll() is None
    (slurm.bin / "squeue").unlink()
    slurm.cluster.run("scontrol", "release", slurm.tasks()[0])
    answer = finish(waiting)
    assert answer.status == 0
    assert "1 job: 1 completed" in answer.out


@pytest.mark.parametrize("verb", ["status", "wait", "cancel", "retry"])
def test_a_folder_that_is_no_sweep_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    with pytest.raises(SystemExit) as error:
        main([verb, str(tmp_path)])
    assert error.value.code == 1
    told = f"python -m research.sweep: {tmp_path} holds no sweep (no sweep.json)\n"
    assert capsys.readouterr().err == told


def test_it_imports_little(tmp_path: Path) -> None:
    program = WaitingProgram(tmp_path, "local", "{}")
    assert program.run("seed=0").status == 0
    code = (
        "import sys; from research.sweep import main; main(['status', sys.argv[1]]);"
        "print({'torch', 'numpy', 'hydra', 'submitit'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(program.sweep)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
