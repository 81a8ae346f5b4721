"""Several seeds of one config in one process: ordinary runs, in directories of their own."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from research.parallel.ranks import NODE
from research.results.find import find
from research.training.saving.checkpoint import load_checkpoint
from tests.commands import train
from tests.test_kill import logs, wait_for_step, weights
from tests.training.records.test_trackers import stored_by_wandb
from tests.training.toys import rows

LIMIT_S = 120.0
ROOT = Path(__file__).parent.parent
TD3 = (
    *("alg=td3", "env=pendulum", "env.action_repeat=5", "network.hidden_dims=[16]"),
    *("trainer.pace.warmup_steps=60", "trainer.log_every=20", "trainer.evaluation.every=120"),
    *("trainer.evaluation.episodes=1", "trainer.checkpoints.every=60", "dataset.capacity=300"),
)
COMPILED = "trainer.execution=compile"
SHORT, LONG = "trainer.total_steps=240", "trainer.total_steps=900"
TWO = "seed=3", "trainer.num_seeds=2"
NAMES = "seed=3", "seed=4"


def finish(folder: Path, *overrides: str, status: int = 0) -> list[str]:
    """Type the command and wait for its end; the lines that it printed."""
    process = train(folder, *overrides)
    process.join(LIMIT_S)
    printed = folder.with_suffix(".txt").read_text()
    assert process.exitcode == status, printed
    return printed.splitlines()


def status(folder: Path) -> dict[str, object]:
    return json.loads((folder / "status.json").read_text())


def test_each_seed_is_a_run_which_goes_on_alone_or_with_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    lines = finish(folder, *TD3, *TWO, SHORT, COMPILED)  # what cannot be is computed by each
    for name in NAMES:
        assert any(f"  {name}  step 240/240" in line for line in lines)
        own = (folder / name / "train.log").read_text()
        assert "step 240/240" in own
        assert "seed=" not in own.replace(str(folder), "").replace(f"/{name}", "")
        alone = tmp_path / name.replace("=", "")
        finish(alone, *TD3, name, SHORT)
        one, other = (
            load_checkpoint(each / "checkpoints" / "last").weights["alg"]
            for each in (folder / name, alone)
        )
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert status(folder / name)["state"] == "completed"
    assert status(folder)["state"] == "completed"
    assert status(folder)["step"] == 240
    scores = [float(str(status(folder / name)["score"])) for name in NAMES]
    assert status(folder)["score"] == pytest.approx(sum(scores) / 2)
    assert [entry.values["seed"] for entry in find([folder])] == [3, 4]

    assert f"{folder / 'seed=3'} is complete" in "\n".join(
        finish(folder, *TD3, *TWO, SHORT, COMPILED)
    )
    quoted = f'hydra.run.dir="{folder / "seed=3"}"'
    finish(tmp_path / "alone", *TD3, "seed=3", "trainer.total_steps=300", COMPILED, quoted)
    assert rows(folder / "seed=3" / "eval.csv")[-1]["step"] == 300
    *_, line = finish(tmp_path / "seed3", *TD3, *TWO, SHORT, status=1)
    assert line.startswith(f"train.py: {tmp_path / 'seed3'} holds a run of one seed; choose")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_ends_all_lets_them_go_on_to_the_same_end(
    tmp_path: Path, number: signal.Signals
) -> None:
    folder, whole = tmp_path / "run", tmp_path / "whole"
    process = train(folder, *TD3, *TWO, LONG)
    wait_for_step(folder / "seed=4", 200, process)
    os.kill(process.pid or 0, number)
    process.join(LIMIT_S)
    if number == signal.SIGTERM:
        assert process.exitcode == 75
        last = folder.with_suffix(".txt").read_text().splitlines()[-1]
        assert last == f"train.py: SIGTERM: stopped; resume with hydra.run.dir={folder}"
        assert status(folder)["state"] == "preempted"
    lines = finish(folder, *TD3, *TWO, LONG)
    assert sum("resumed at step" in line for line in lines) == 2
    finish(whole, *TD3, *TWO, LONG)
    for name in NAMES:
        assert logs(folder / name) == logs(whole / name)
        assert weights(folder / name) == weights(whole / name)


def test_a_seed_that_fails_is_told_by_its_name_and_the_others_come_to_their_end(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    finish(folder, *TD3, *TWO, SHORT)
    (folder / "seed=3" / "checkpoints" / "last" / "state.pt").write_bytes(b"")
    for path in (folder / "seed=3" / "checkpoints").glob("0*/state.pt"):
        path.write_bytes(b"")
    lines = finish(folder, *TD3, *TWO, "trainer.total_steps=300", status=1)
    assert lines[-1].startswith("train.py: seed=3: ")
    assert status(folder)["state"] == "failed"
    assert status(folder / "seed=4")["step"] == 300


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "trainer.devices=2",
            "trainer.num_seeds=2 trains several runs in one process, got trainer.dev",
        ),
        ("trainer.profile=true", "several runs in one process, got trainer.profile=true; set one"),
        ("trainer.num_seeds=0", "trainer.num_seeds must be an integer of at least 1, got 0"),
        ("seed=[1,2]", "seed=[1,2] names the seeds; leave out trainer.num_seeds"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_made(
    tmp_path: Path, override: str, told: str
) -> None:
    (line,) = finish(tmp_path / "run", *TD3, *TWO, SHORT, override, status=1)
    assert told in line
    assert not (tmp_path / "run" / "seed=3").exists()


@pytest.mark.parametrize("seeds", ["[]", "[1,1]"])
def test_a_list_of_seeds_has_some_and_none_twice(tmp_path: Path, seeds: str) -> None:
    (line,) = finish(tmp_path / "run", *TD3, SHORT, f"seed={seeds}", status=1)
    assert line == f"train.py: seed={seeds} must have at least one seed, and none twice"


def test_several_nodes_have_one_seed(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", *TD3, SHORT, "seed=[0,1]", f"hydra.run.dir={tmp_path}"]
    environ = {**os.environ, NODE: "0/2:localhost:1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environ)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("train.py: several seeds are trained by one process, got several nodes")


def test_the_seeds_of_a_list_are_those_that_are_counted(tmp_path: Path) -> None:
    finish(tmp_path / "named", *TD3, "seed=[4,3]", SHORT)
    finish(tmp_path / "counted", *TD3, *TWO, SHORT)
    for name in NAMES:
        assert weights(tmp_path / "named" / name) == weights(tmp_path / "counted" / name)


def test_the_seeds_of_a_sweep_share_processes(tmp_path: Path) -> None:
    """Its jobs are checked, forecast, run and found by seeds."""
    sweep = "seed=range(0,4)", "hydra.sweeper.seeds_per_job=2", f"hydra.sweep.dir={tmp_path}"
    command = [sys.executable, "train.py", "-m", *TD3, SHORT, "device=cpu", *sweep]
    dry = subprocess.run(
        [*command, "hydra.sweeper.dry_run=true"], cwd=ROOT, capture_output=True, text=True
    )
    assert "2 jobs would run" in dry.stdout, dry.stderr
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"jobs  +failed.*\n +2/2 +0 ", done.stdout), done.stdout
    entries = find([tmp_path])
    assert sorted(entry.values["seed"] for entry in entries) == [0, 1, 2, 3]
    assert {entry.folder.parent.name for entry in entries} == {"seed=0-1", "seed=2-3"}


def test_each_seed_is_a_run_of_its_own_at_wandb(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    trackers = "logger.trackers=[csv,wandb]", "logger.wandb.mode=offline"
    finish(tmp_path / "run", *TD3, *TWO, SHORT, *trackers)
    for name in NAMES:
        points = [row for row in stored_by_wandb(tmp_path / "run" / name) if "train/q" in row]
        assert [row["step"] for row in points] == [
            row["step"] for row in rows(tmp_path / "run" / name / "train.csv")
        ]


def test_an_error_of_all_seeds_is_told_once(tmp_path: Path) -> None:
    lines = finish(tmp_path / "run", *TD3, *TWO, SHORT, "trainer.score.metric=eval/x", status=1)
    assert lines[-1].startswith("train.py: ")
    assert lines[-1].count("eval/x") == 1
    assert status(tmp_path / "run")["state"] == "failed"


def test_a_second_copy_is_refused_and_spoils_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = train(folder, *TD3, *TWO, LONG)
    wait_for_step(folder / "seed=3", 40, process)
    other = train(folder, *TD3, *TWO, LONG)
    other.join(LIMIT_S)
    assert other.exitcode == 1
    assert "is in use by another process" in folder.with_suffix(".txt").read_text()
    process.join(LIMIT_S)
    assert process.exitcode == 0
    assert status(folder)["state"] == "completed"


def test_in_a_sweep_each_job_has_several_runs(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    grid = "-m", "alg.tau=0.1,0.2", f"hydra.sweep.dir={sweep}", "hydra.launcher.max_jobs=1"
    finish(tmp_path / "unused", *TD3, *TWO, "trainer.total_steps=120", *grid)
    found = find([sweep])
    assert [entry.problem for entry in found] == [None] * 4
    assert {(entry.values["alg.tau"], entry.values["seed"]) for entry in found} == {
        (tau, seed) for tau in (0.1, 0.2) for seed in (3, 4)
    }
    other = "hydra.sweep.dir=" + str(tmp_path / "other"), "trainer.devices=2"
    lines = finish(tmp_path / "refused", *TD3, *TWO, *grid, *other, status=1)
    assert "trains several runs in one process, got trainer.devices=2" in lines[-1]
