"""Sweeps on this machine, through the command line."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from research.launchers import local
from research.machine.slots import Slot
from research.status import read_status
from tests.launchers.pool.test_pool import processes_of, wait_for
from tests.launchers.programs import ROOT, Program
from tests.machine.machines import MIG, TWO_GPUS, Machine

DEEDS = ("work", "fix")


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def test_a_sweep_runs_every_combination_and_says_so(program: Program) -> None:
    answer = program.run("seed=0,1,2", "do=work,fix,work", "sleep_s=0")
    assert answer.status == 1
    assert sum(line.startswith("end work") for line in program.journal()) == 3
    (program.folder / "fixed").touch()
    assert program.run("seed=0,1,2", "do=work,fix,work", "sleep_s=0").status == 0


def test_directories_and_table_show_what_varies(program: Program) -> None:
    answer = program.run("seed=4,5", "do=work", "+net.width=8,16")
    assert answer.status == 0
    names = {folder.name for folder in program.sweep.iterdir() if folder.is_dir()}
    assert names == {f"width={width},seed={seed}" for width in (8, 16) for seed in (4, 5)}
    rows = list(csv.DictReader((program.sweep / "sweep.csv").open()))
    assert [row["score"] for row in rows] == ["4.0", "4.0", "5.0", "5.0"]
    assert {row["state"] for row in rows} == {"completed"}
    assert set(rows[0]) >= {"net.width", "seed", "attempt", "seconds", "folder"}
    assert "do" not in rows[0]


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("fail", "ValueError: told to fail"),
        ("kill", "killed by SIGKILL"),
        ("exit", "exited with status 3"),
    ],
)
def test_a_failure_takes_nobody_with_it_and_is_named(
    program: Program, deed: str, reason: str
) -> None:
    answer = program.run(f"do=work,{deed}", "seed=7")
    assert answer.status == 1
    assert "end work 7" in program.journal()
    assert reason in answer.out
    assert f"job 1 (do={deed}) failed" in answer.out
    if deed == "fail":
        assert "the log says why" in answer.out
    status = read_status(program.sweep / "do=work")
    assert status is not None
    assert (status["state"], status["score"]) == ("completed", 7.0)


def test_the_same_command_runs_only_what_failed(program: Program) -> None:
    command = (f"do={','.join(DEEDS)}", "seed=0,1")
    assert program.run(*command).status == 1
    (program.folder / "fixed").touch()
    answer = program.run(*command)
    assert answer.status == 0
    assert "2 jobs (2 completed earlier)" in answer.out
    assert sorted(program.journal()) == sorted(
        [
            f"{event} {do} {seed}"
            for do in ("work", "fix")
            for seed in (0, 1)
            for event in ("start", "end")
        ]
        + ["start fix 0", "start fix 1"]
    )
    before = program.journal()
    assert program.run(*command).status == 0
    assert program.journal() == before


def test_more_seeds_join_a_sweep(program: Program) -> None:
    assert program.run("seed=0,1").status == 0
    assert program.run("seed=0,1,2").status == 0
    assert sorted(program.journal()) == [
        f"{e} work {s}" for e in ("end", "start") for s in range(3)
    ]


def test_another_base_config_is_refused(program: Program) -> None:
    assert program.run("seed=0,1").status == 0
    before = (program.sweep / "multirun.yaml").read_text()
    answer = program.run("seed=0,1", "sleep_s=0.1")
    assert answer.status == 1
    assert (program.sweep / "multirun.yaml").read_text() == before
    assert "another base config: sleep_s: 0 -> 0.1" in answer.err


def test_a_longer_training_extends_every_job(program: Program) -> None:
    length = "+trainer.total_steps"
    assert program.run("seed=0,1,2", f"{length}=10").status == 0
    assert program.run("seed=0,1", f"{length}=20", "hydra.sweeper.dry_run=true").status == 0
    assert read_status(program.sweep / "seed=0")["state"] == "completed"  # type: ignore[index]
    assert program.run("seed=0,1", f"{length}=20").status == 0
    for job in ("seed=0", "seed=1"):
        assert "total_steps: 20" in (program.sweep / job / ".hydra" / "config.yaml").read_text()
    assert read_status(program.sweep / "seed=2")["state"] == "pending"  # type: ignore[index]
    before = program.journal()
    assert program.run("seed=0,1,2", f"{length}=20").status == 0
    assert program.journal() == [*before, "start work 2", "end work 2"]
    answer = program.run("seed=0,1", f"{length}=10")
    assert "another base config: trainer.total_steps: 20 -> 10" in answer.err


def test_a_second_launcher_is_refused_and_no_job_runs_twice(program: Program) -> None:
    first = program.start("seed=0,1", "sleep_s=6")
    wait_for(lambda: len(program.journal()) == 2)
    answer = program.run("seed=0,1", "sleep_s=6")
    assert answer.status == 1
    assert "is in use by another process (pid" in answer.err
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert sorted(program.journal()) == ["end work 0", "end work 1", "start work 0", "start work 1"]


def test_retries_and_their_count(program: Program) -> None:
    assert program.run("do=fail", "hydra.launcher.retries=2").status == 1
    assert program.journal() == ["start fail 0"] * 3
    status = read_status(program.sweep / "0")
    assert status is not None
    assert status["attempt"] == 3


def test_an_interrupted_sweep_goes_on(program: Program) -> None:
    process = program.start("seed=0,1,2", "sleep_s=5", "hydra.launcher.max_jobs=1")
    wait_for(lambda: len(program.journal()) == 1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert [(read_status(program.sweep / f"seed={s}") or {}).get("state") for s in range(3)] == [
        "preempted",
        None,
        None,
    ]
    plan = json.loads((program.sweep / "sweep.json").read_text())
    assert [job["folder"] for job in plan["jobs"]] == ["seed=0", "seed=1", "seed=2"]


def test_a_killed_sweep_leaves_no_process_and_goes_on(program: Program) -> None:
    process = program.start("seed=0,1", "sleep_s=4")
    wait_for(lambda: len(program.journal()) == 2)
    process.kill()
    process.communicate()
    assert program.run("seed=0,1", "sleep_s=4").status == 0
    assert sum(line.startswith("end") for line in program.journal()) == 2
    assert not processes_of(f"MARKER={program.folder}")


def test_a_dry_run_prints_every_job_and_starts_none(program: Program) -> None:
    answer = program.run("seed=0,1", "do=work,fail", "hydra.sweeper.dry_run=true")
    assert answer.status == 0
    assert all(f"do={do},seed={seed}" in answer.out for do in ("work", "fail") for seed in (0, 1))
    assert "4 jobs would run" in answer.out
    assert program.journal() == []


def pretend_gpus(here: Machine, listing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``nvidia-smi`` tell every program of these GPUs."""
    here.nvidia_smi(listing)
    monkeypatch.setenv("PATH", here.environ["PATH"], prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("gpus_per_job", "shown"), [(1, ["gpu 0", "gpu 1"]), (2, ["gpus 0,1", "gpus 0,1"])]
)
def test_a_job_has_as_many_gpus_as_it_is_told(
    program: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus_per_job: int,
    shown: list[str],
) -> None:
    pretend_gpus(Machine(tmp_path), TWO_GPUS, monkeypatch)
    answer = program.run(
        *("seed=0,1", f"hydra.launcher.gpus_per_job={gpus_per_job}", "hydra.sweeper.dry_run=true")
    )
    assert answer.status == 0
    assert re.findall(r"gpus? [\d,]+", answer.out) == shown


def test_parts_of_divided_gpus_are_not_put_together(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpus(Machine(tmp_path), MIG, monkeypatch)
    answer = program.run("seed=0,1", "hydra.launcher.gpus_per_job=2")
    assert answer.status == 1
    assert "hydra.launcher.gpus_per_job=2 needs whole GPUs, got MIG-bbbb1111" in answer.err
    assert program.journal() == []


def test_mps_serves_every_gpu_of_every_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "mps_daemon", lambda gpus: gpus)
    slots = [Slot(0, (), 1, "GPU-a,GPU-b"), Slot(1, (), 1, "GPU-c"), Slot(2, (), 1, "GPU-c")]
    assert local.mps_for(slots) == ["GPU-a", "GPU-b", "GPU-c"]


def test_pairs_on_the_command_line(program: Program) -> None:
    assert program.run("seed=0,1", "+a.b=3,4", "hydra.sweeper.paired=[[seed,a.b]]").status == 0
    names = {folder.name for folder in program.sweep.iterdir() if folder.is_dir()}
    assert names == {"b=3,seed=0", "b=4,seed=1"}
    answer = program.run("seed=0,1", "+a.b=3,4,5", "hydra.sweeper.paired=[[seed,a.b]]")
    assert answer.status == 1
    assert "seed has 2 values, a.b has 3 values" in answer.err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("max_jobs=0", "hydra.launcher.max_jobs must be an integer of at least 1 or null, got 0"),
        ("gpus_per_job=0", "hydra.launcher.gpus_per_job must be an integer of at least 1, got 0"),
        ("jobs_per_gpu=0", "hydra.launcher.jobs_per_gpu must be an integer of at least 1, got 0"),
        ("cpus_per_job=-1", "hydra.launcher.cpus_per_job must be an integer of at least 1 or null"),
        ("retries=-1", "hydra.launcher.retries must be an integer of at least 0, got -1"),
        ("timeout_s=-1", "hydra.launcher.timeout_s must be a number of at least 0 or null"),
        ("cpus_per_job=999", "hydra.launcher.cpus_per_job=999"),
        ("mps=true", "hydra.launcher.mps=true needs a GPU"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(
    program: Program, option: str, said: str
) -> None:
    answer = program.run("seed=0,1", "hydra.launcher.gpus=[]", f"hydra.launcher.{option}")
    assert answer.status == 1
    assert said in answer.err
    assert program.journal() == []


def train(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "train.py", "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_one_bad_job_is_found_before_the_first_starts(tmp_path: Path) -> None:
    answer = train(
        "alg=td3", "env=pendulum", "alg.tau=0.1,0.2,no", "seed=0,1", f"hydra.sweep.dir={tmp_path}"
    )
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert (
        "job 4 (tau=no,seed=0), like 1 more, cannot run: alg.tau must be a number" in answer.stderr
    )
    assert not [entry for entry in tmp_path.iterdir() if entry.is_dir()]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("alg.tau=0.005,7", "job 1 (tau=7) cannot run: alg.tau must be a number in (0, 1], got 7"),
        ("network.hidden_dims=[8],[0]", "cannot run: network.hidden_dims must be a list, each"),
    ],
)
def test_a_value_out_of_range_is_found_before_the_first_starts(
    tmp_path: Path, override: str, told: str
) -> None:
    answer = train("env=pendulum", override, f"hydra.sweep.dir={tmp_path}")
    assert answer.returncode == 1
    assert told in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert not [entry for entry in tmp_path.iterdir() if entry.is_dir()]


def test_functions_of_values_are_read_without_asserts_too(tmp_path: Path) -> None:
    command = ["-O", "train.py", "-m", "seed=range(0,3)", "+alg.optim.betas=[0.9,0.99]"]
    options = [f"hydra.sweep.dir={tmp_path}", "hydra.sweeper.dry_run=true"]
    answer = subprocess.run(
        [sys.executable, *command, *options], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert "3 jobs would run" in answer.stdout


def test_a_named_sweep_brings_its_pairs(tmp_path: Path) -> None:
    answer = train("sweep=td3_lr", f"hydra.sweep.dir={tmp_path}", "hydra.sweeper.dry_run=true")
    assert answer.returncode == 0
    assert "6 jobs would run" in answer.stdout
    assert "memory" in answer.stdout
    assert "GB of this machine's" in answer.stdout


def test_the_parent_of_a_sweep_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['train.py', '-m', 'seed=0,1', 'trainer.total_steps=20', "
        "'trainer.pace.warmup_steps=10', "
        f"'trainer.evaluation.episodes=1', 'hydra.sweep.dir={tmp_path}']; "
        "import train; train.main(); "
        "sys.exit('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [row["state"] for row in rows] == ["completed", "completed"]
    commands = json.loads((tmp_path / "seed=1" / "provenance.json").read_text())["attempts"]
    assert "seed=0,1" in commands[0]["command"]
