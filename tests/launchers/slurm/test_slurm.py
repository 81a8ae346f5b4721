"""Sweeps on a real SLURM cluster, through the command line: no job is lost, and none runs twice."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from research.launchers.plan.ledger import read_plan
from research.launchers.slurm import allocation
from research.status import read_status
from tests.launchers.cluster import Cluster, unavailable
from tests.launchers.pool.test_pool import processes_of, wait_for
from tests.launchers.programs import Answer, Program

PROGRAM = '''
"""Each job notes what it does in a file of the program's folder; some wait until it is ``open``."""

import os, sys, time
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig

HERE = Path(__file__).parent


@hydra.main(version_base="1.3", config_path=str(HERE), config_name="config")
def main(cfg):
    note(f"start {cfg.do} {cfg.seed}")
    if cfg.do == "fail":
        raise ValueError("told to fail")
    if cfg.do == "kill":
        os.kill(os.getpid(), 9)
    if cfg.do == "look":
        names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
        cpus = len(os.sched_getaffinity(0))
        note(" ".join([f"{name}={os.environ.get(name)}" for name in names] + [f"cpus={cpus}"]))
    if cfg.do == "where":
        note(f"folder {os.getcwd()}")
    if cfg.do == "wait":
        wait_from(Path(HydraConfig.get().runtime.output_dir) / "progress", cfg.seed)
    note(f"end {cfg.do} {cfg.seed}")
    return float(cfg.seed)


def wait_from(path, seed):
    step = int(path.read_text()) if path.exists() else 0
    note(f"wait {seed} goes on" if step else f"wait {seed} begins")
    try:
        while not (HERE / "open").exists():
            step += 1
            time.sleep(0.05)
    except KeyboardInterrupt:
        path.write_text(str(step + 1))
        note(f"wait {seed} saved")
        raise


def note(line):
    with (HERE / "journal").open("a") as file:
        file.write(line + "\\n")


if __name__ == "__main__":
    main()
'''

CONFIG = """
defaults:
  - _self_
  - override hydra/launcher: LAUNCHER
  - override hydra/sweeper: grid
do: work
seed: 0
hydra:
  sweep: {dir: sweep, subdir: "${hydra.job.id}"}
  launcher: OPTIONS
"""


class WaitingProgram(Program):
    """The program in a folder of its own."""

    def __init__(
        self, folder: Path, launcher: str, options: str, environ: Mapping[str, str] = os.environ
    ) -> None:
        self.folder, self.sweep = folder, folder / "sweep"
        (folder / "program.py").write_text(PROGRAM)
        config = CONFIG.replace("LAUNCHER", launcher).replace("OPTIONS", options)
        (folder / "config.yaml").write_text(config)
        self.environ = {**environ, "MARKER": str(folder)}

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return self.open(str(self.folder / "program.py"), "-m", *arguments)

    def open(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start Python with arguments."""
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(self, verb: str) -> Answer:
        """The answer of ``python -m research.sweep VERB``."""
        process = self.open("-m", "research.sweep", verb, str(self.sweep))
        out, err = process.communicate(timeout=120)
        return Answer(process.returncode, out, err)

    def state(self, name: str) -> tuple[str, str]:
        """A job's state and why it ended."""
        status = read_status(self.sweep / name)
        assert status is not None
        return status["state"], status["exit_reason"]

    def counts(self) -> Counter[str]:
        """How often each line was noted."""
        return Counter(self.journal())

    def until(self, *lines: str) -> None:
        """Wait until the jobs have noted these lines."""
        wait_for(lambda: set(lines) <= set(self.journal()), timeout_s=60)

    def let_go(self) -> None:
        """Let the jobs that wait come to their end."""
        (self.folder / "open").touch()


COMPLETES_FIRST = 'touch {}/open; while [ "$(real -h)" ]; do sleep 0.1; done; real "$@"'
"""A ``squeue`` that answers when all jobs have ended."""


class SlurmProgram(WaitingProgram):
    """The program on a cluster, where a call of ``sacct`` leaves a mark."""

    def __init__(
        self,
        folder: Path,
        cluster: Cluster,
        *,
        launcher: str = "slurm",
        options: str = "{setup: [], timeout_min: 10}",
    ) -> None:
        super().__init__(folder, launcher, options, cluster.environ)
        self.cluster = cluster
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.environ["PATH"] = f"{self.bin}{os.pathsep}{cluster.environ['PATH']}"
        self.replace("sacct", f"touch {folder}/sacct_was_run; exit 1")

    def replace(self, name: str, script: str) -> None:
        """Put a program first on PATH; ``real`` in it is the one that it hides."""
        path = self.bin / name
        real = f'real() {{ PATH="{self.cluster.environ["PATH"]}" command {name} "$@"; }}'
        path.write_text(f"#!/bin/bash\n{real}\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def submissions(self) -> list[dict[str, Any]]:
        """What is noted of submissions."""
        path = self.sweep / "submissions.json"
        return json.loads(path.read_text()) if path.exists() else []

    def tasks(self) -> list[str]:
        """SLURM's names of all tasks that were noted."""
        return [task for submission in self.submissions() for task in submission["tasks"]]

    def queue(self) -> list[str]:
        """The tasks of this sweep in the queue, of a submission that was not noted too."""
        lines = self.cluster.run("squeue", "-h", "-r", "-t", "PD,R,CG,S", "-o", "%i|%Z")
        listed = [line.split("|") for line in lines.splitlines()]
        return [task for task, folder in listed if Path(folder).is_relative_to(self.folder)]


def finish(process: "subprocess.Popen[str]") -> Answer:
    out, err = process.communicate(timeout=120)
    return Answer(process.returncode, out, err)


def clean_up(program: SlurmProgram) -> None:
    """Cancel what is left, wait until all is gone; nobody may have asked ``sacct``."""
    if tasks := program.queue():
        program.cluster.run("scancel", *tasks)
    wait_for(lambda: not program.queue(), timeout_s=60)
    wait_for(lambda: not processes_of(f"MARKER={program.folder}"), timeout_s=20)
    assert not (program.folder / "sacct_was_run").exists()


@pytest.fixture
def program(tmp_path: Path, cluster: Cluster) -> Iterator[SlurmProgram]:
    program = SlurmProgram(tmp_path, cluster)
    yield program
    clean_up(program)


@pytest.fixture(scope="module")
def tracking_cluster() -> Iterator[Cluster]:
    """A cluster that sends its signals to every process of a task, as most sites' do."""
    if reason := unavailable():
        pytest.skip(reason)
    with Cluster(ProctrackType="proctrack/linuxproc") as cluster:
        yield cluster


def test_a_failing_member_fails_its_task_and_no_other_job(program: SlurmProgram) -> None:
    answer = program.run("do=work,kill,fail", "seed=3", "hydra.launcher.jobs_per_allocation=3")
    assert answer.status == 1
    (task,) = program.tasks()
    program.cluster.wait_for(task, "FAILED")
    log = (program.sweep / f".submitit/{task}/{task}_0_log.err").read_text()
    assert "job 1 (do=kill) failed: killed by SIGKILL" in log
    assert "job 2 (do=fail) failed: ValueError: told to fail" in log
    assert program.state("do=work")[0] == "completed"
    assert "job 1 (do=kill) failed: killed by SIGKILL" in answer.out
    assert f"SLURM's log: sweep/.submitit/{task}/{task}_0_log.err" in answer.out
    assert [line.split(",")[3] for line in (program.sweep / "sweep.csv").open()][1:] == [
        "3.0",
        "",
        "",
    ]


def requeue(cluster: Cluster, task: str) -> None:
    cluster.run("scontrol", "requeue", task)


def preempt(cluster: Cluster, task: str) -> None:
    cluster.wait_for(
        cluster.submit("true", "--partition=urgent", "--nodes=2", "--exclusive"), "COMPLETED"
    )


def run_out_of_time(cluster: Cluster, task: str) -> None:
    cluster.run("scancel", "--signal=USR2", task)


def interrupt_and_go_on(program: SlurmProgram, event: Callable[[Cluster, str], None]) -> None:
    """One job of two has completed when the task is interrupted; the other goes on."""
    launcher = program.start("do=work,wait", "hydra.launcher.jobs_per_allocation=2")
    program.until("end work 0", "wait 0 begins")
    event(program.cluster, program.tasks()[0])
    program.until("wait 0 saved")
    program.until("wait 0 goes on")
    program.let_go()
    answer = finish(launcher)
    assert answer.status == 0
    assert program.counts() == Counter(
        [
            *("start work 0", "end work 0", "start wait 0", "wait 0 begins", "wait 0 saved"),
            *("start wait 0", "wait 0 goes on", "end wait 0"),
        ]
    )
    assert {program.state(f"do={do}")[0] for do in ("work", "wait")} == {"completed"}
    assert len(program.tasks()) == 1


@pytest.mark.parametrize("event", [requeue, preempt, run_out_of_time])
def test_unfinished_members_go_on_when_their_task_runs_again(
    program: SlurmProgram, event: Callable[[Cluster, str], None]
) -> None:
    interrupt_and_go_on(program, event)


@pytest.mark.parametrize("event", [requeue, run_out_of_time])
def test_members_may_get_the_signals_directly(
    tmp_path: Path, tracking_cluster: Cluster, event: Callable[[Cluster, str], None]
) -> None:
    program = SlurmProgram(tmp_path, tracking_cluster)
    interrupt_and_go_on(program, event)
    clean_up(program)


@pytest.mark.slow
def test_the_real_time_limit_requeues_what_is_unfinished(program: SlurmProgram) -> None:
    limit = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=50"]
    launcher = program.start("do=wait", *limit)
    program.until("wait 0 begins")
    wait_for(lambda: "wait 0 saved" in program.journal(), timeout_s=60)
    program.let_go()
    assert finish(launcher).status == 0
    assert program.counts()["start wait 0"] == 2


def cancel(program: SlurmProgram) -> None:
    program.cluster.run("scancel", program.tasks()[0])


def kill_member(program: SlurmProgram, number: signal.Signals = signal.SIGKILL) -> None:
    status = read_status(program.sweep / "do=wait")
    assert status is not None
    os.kill(status["pid"], number)


def stop_member(program: SlurmProgram) -> None:
    kill_member(program, signal.SIGTERM)


@pytest.mark.parametrize(
    ("event", "state", "reason"),
    [
        (cancel, "preempted", "interrupted"),
        (stop_member, "preempted", "interrupted"),
        (kill_member, "failed", "killed by SIGKILL; out of memory?"),
    ],
)
def test_what_was_ended_by_hand_goes_on_when_the_command_is_typed_again(
    program: SlurmProgram, event: Callable[[SlurmProgram], None], state: str, reason: str
) -> None:
    command = ("do=work,wait", "hydra.launcher.jobs_per_allocation=2")
    launcher = program.start(*command)
    program.until("end work 0", "wait 0 begins")
    event(program)
    answer = finish(launcher)
    assert answer.status == 1
    assert f"job 1 (do=wait) {state}: {reason}" in answer.out
    assert program.state("do=wait") == (state, reason)
    program.let_go()
    answer = program.run(*command)
    assert answer.status == 0
    assert "1 jobs in 1 allocations (1 completed earlier)" in answer.out
    assert program.counts()["start work 0"] == 1
    assert program.counts()["end wait 0"] == 1


def test_a_task_is_queued_again_only_so_often(program: SlurmProgram) -> None:
    launcher = program.start("do=wait", "hydra.launcher.max_requeues=0")
    program.until("wait 0 begins")
    (task,) = program.tasks()
    run_out_of_time(program.cluster, task)
    answer = finish(launcher)
    assert answer.status == 1
    assert program.cluster.job(task)["Restarts"] == "0"
    log = (program.sweep / f".submitit/{task}/{task}_0_log.err").read_text()
    assert "out of time; hydra.launcher.max_requeues=0 reached" in log
    assert program.state("0")[0] == "preempted"


@pytest.mark.parametrize(("remainder", "sizes"), [("spread", [2, 3]), ("new", [1, 2, 2])])
def test_jobs_are_packed_and_nothing_is_submitted_twice(
    program: SlurmProgram, remainder: str, sizes: list[int]
) -> None:
    command = [
        "seed=0,1,2,3,4",
        "hydra.launcher.wait=false",
        "hydra.launcher.jobs_per_allocation=2",
        f"hydra.launcher.remainder={remainder}",
        "+hydra.launcher.additional_parameters.hold=true",
        "+trainer.total_steps=1",
    ]
    answer = program.run(*command)
    assert answer.status == 0
    assert f"5 jobs in {len(sizes)} allocations" in answer.out
    assert "python -m research.sweep cancel sweep" in answer.out
    assert sorted(len(jobs) for jobs in program.submissions()[0]["jobs"]) == sizes
    assert sorted(program.queue()) == sorted(program.tasks())
    assert len(program.tasks()) == len(sizes)
    answer = program.run(*command)
    assert answer.status == 0
    assert "0 jobs in 0 allocations (5 submitted earlier)" in answer.out
    answer = program.run("seed=0,1,2,3,4,5", *command[1:], "hydra.sweeper.dry_run=true")
    assert answer.status == 0, answer.err
    assert "1 jobs would run in" in answer.out
    assert ", 0 completed, 5 in the queue" in answer.out
    answer = program.run(*command[:-1], "+trainer.total_steps=2")
    assert answer.status == 1
    assert "sweep are still in SLURM's queue, with their old length" in answer.err
    assert read_plan(program.sweep)["config"]["trainer"]["total_steps"] == 1  # type: ignore[index]
    assert len(program.queue()) == len(sizes)


def test_members_share_the_gpu_and_divide_the_cpus(program: SlurmProgram) -> None:
    options = ("gres=gpu:1", "cpus_per_task=2", "jobs_per_allocation=2")
    answer = program.run("do=look", "seed=0,1", *[f"hydra.launcher.{text}" for text in options])
    assert answer.status == 0
    assert program.counts()["CUDA_VISIBLE_DEVICES=0 OMP_NUM_THREADS=1 cpus=1"] == 2


def test_a_member_alone_has_all_gpus(program: SlurmProgram) -> None:
    assert program.run("do=look", "hydra.launcher.gres=gpu:2").status == 0
    assert [line.split()[0] for line in program.journal()][1] == "CUDA_VISIBLE_DEVICES=0,1"


@pytest.mark.parametrize(
    ("num_gpus", "members", "shares"),
    [
        (4, 1, ["0,1,2,3"]),
        (4, 2, ["0,1", "2,3"]),
        (5, 2, ["0,1", "2,3"]),
        (8, 3, ["0,1", "2,3", "4,5"]),
        (3, 2, ["0", "1"]),
        (2, 2, ["0", "1"]),
        (2, 3, ["0", "1", "0"]),
        (0, 2, [None, None]),
    ],
)
def test_members_have_equal_shares_of_the_gpus(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, members: int, shares: list[str | None]
) -> None:
    gpus = [str(number) for number in range(num_gpus)] or None
    monkeypatch.setattr(allocation, "usable_gpus", lambda choice: gpus)
    assert [slot.gpu for slot in allocation.allocation_slots(members, {})] == shares


def test_the_environment_is_entered_and_the_folder_stays(tmp_path: Path, cluster: Cluster) -> None:
    program = SlurmProgram(tmp_path, cluster, options="{}")
    assert program.run("do=where").status == 0
    (script,) = program.sweep.glob(".submitit/*/*_submission.sh")
    assert "setup_shell.sh" in script.read_text()
    assert program.journal() == ["start where 0", f"folder {tmp_path}", "end where 0"]
    clean_up(program)


def test_a_job_that_completes_while_the_queue_is_read_is_not_run_again(
    program: SlurmProgram,
) -> None:
    assert program.run("do=wait", "hydra.launcher.wait=false").status == 0
    program.until("wait 0 begins")
    program.replace("squeue", COMPLETES_FIRST.format(program.folder))
    answer = program.run("do=wait")
    assert answer.status == 0
    assert "0 jobs in 0 allocations (1 completed earlier)" in answer.out
    assert program.counts()["start wait 0"] == len(program.tasks()) == 1


def test_an_allocation_that_ended_before_its_jobs_says_why(program: SlurmProgram) -> None:
    answer = program.run("hydra.launcher.setup=['echo no such module >&2','exit 1']")
    assert answer.status == 1
    (task,) = program.tasks()
    assert "job 0 (0) pending: its allocation ended before it began" in answer.out
    assert "no such module" in answer.out
    assert f"SLURM's log: sweep/.submitit/{task}/{task}_0_log.err" in answer.out


KILL_LAUNCHER = "kill -KILL $PPID"


@pytest.mark.parametrize(
    "script",
    [f"{KILL_LAUNCHER}; exit 1", f'real "$@"; {KILL_LAUNCHER}'],
    ids=["before", "after"],
)
def test_a_launcher_killed_around_sbatch_leaves_no_job_to_run_twice(
    program: SlurmProgram, script: str
) -> None:
    command = ("seed=0,1,2", "hydra.launcher.jobs_per_allocation=2")
    program.replace("sbatch", script)
    assert program.run(*command).status == -signal.SIGKILL
    (program.bin / "sbatch").unlink()
    assert program.run(*command).status == 0
    assert program.counts() == Counter(
        f"{event} work {seed}" for seed in range(3) for event in ("start", "end")
    )
    wait_for(lambda: not program.queue())


def test_a_launcher_killed_before_it_noted_the_tasks_finds_them(program: SlurmProgram) -> None:
    command = ("do=wait", "seed=0,1")
    launcher = program.start(*command)
    program.until("wait 0 begins", "wait 1 begins")
    launcher.kill()
    finish(launcher)
    tasks = program.tasks()
    (submission,) = program.submissions()
    path = program.sweep / "submissions.json"
    path.write_text(json.dumps([{**submission, "tasks": []}]))
    again = program.start(*command)
    wait_for(lambda: program.tasks() == tasks, timeout_s=30)
    program.let_go()
    answer = finish(again)
    assert answer.status == 0
    assert "0 jobs in 0 allocations (" in answer.out  # of the two, some may have ended by then
    assert program.counts()["start wait 0"] == program.counts()["start wait 1"] == 1


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("hydra.launcher.partition=absent", "SLURM did not take the jobs: "),
        ("+hydra.launcher.additional_parameters.absent=1", "SLURM did not take the jobs: "),
        ("hydra.launcher.absent=1", "Key 'absent' not in 'SlurmConf'"),
        ("hydra.launcher.tasks_per_node=2", "hydra.launcher.tasks_per_node=2 must be 1"),
        ("hydra.launcher.max_requeues=-1", "hydra.launcher.max_requeues must be an integer of"),
        ("hydra.launcher.jobs_per_allocation=0", "jobs_per_allocation must be an integer of"),
        ("hydra.launcher.signal_delay_s=600", "leaves no time to run in timeout_min=10"),
        ("hydra.launcher.remainder=drop", "hydra.launcher.remainder"),
    ],
)
def test_what_slurm_or_we_refuse_leaves_nothing_noted(
    program: SlurmProgram, option: str, told: str
) -> None:
    answer = program.run("seed=0,1", option)
    assert answer.status == 1
    assert told in answer.err
    assert program.submissions() == []
    assert program.journal() == []


def test_without_slurm_it_says_so(program: SlurmProgram) -> None:
    program.environ["PATH"] = "/nowhere"
    answer = program.run("seed=0,1")
    assert answer.status == 1
    assert "SLURM did not take the jobs" in answer.err
    assert program.submissions() == []


@pytest.mark.parametrize("launcher", ["submitit_slurm", "submitit_local"])
def test_the_stock_launchers_work_beside_ours(
    tmp_path: Path, cluster: Cluster, launcher: str
) -> None:
    program = SlurmProgram(tmp_path, cluster, launcher=launcher, options="{}")
    assert program.run("seed=0,1").status == 0
    assert program.counts()["end work 0"] == program.counts()["end work 1"] == 1
    (program.folder / "sacct_was_run").unlink(missing_ok=True)  # theirs, not ours
    clean_up(program)
