"""The command line as its user types it: what it prints, where it writes, how it ends."""

import csv
import errno
import fcntl
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import train
from research.algs.base import Loss
from research.errors import UserError
from research.hydra_versions import IS_1_3, VERSION_BASE
from tests.commands import train as start_train
from tests.conftest import write_examples

ROOT = Path(__file__).parent.parent
SMALL = [
    "network.hidden_dims=[16]",
    "dataset.capacity=1000",
    "dataset.batch_size=8",
    "trainer.pace.warmup_steps=20",
    "trainer.log_every=20",
    "trainer.evaluation.every=30",
    "trainer.checkpoints.every=40",
    "trainer.evaluation.episodes=1",
]
EXAMPLES = ["alg=classification", "trainer.total_epochs=1"]


class Outcome(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs ``train.py`` in this process, on a small pendulum run."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    # Hydra's logging closes all handlers, and absl's would close pytest's capture with it.
    monkeypatch.setattr(logging, "shutdown", lambda *_: None)
    monkeypatch.setattr(logging.root, "handlers", logging.root.handlers[:])

    def run(*arguments: str, common: list[str] = SMALL) -> Outcome:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *common, *arguments])
        GlobalHydra.instance().clear()
        status = 0
        try:
            train.main()
        except SystemExit as end:
            status = int(end.code or 0)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        printed = capfd.readouterr()
        return Outcome(status, str(printed.out), str(printed.err))

    return run


class Faulty(gymnasium.Env):
    """Raises what it is made with, at the 40th step."""

    observation_space = Box(-1, 1, (3,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, error: BaseException) -> None:
        self.error, self.steps = error, 0

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(3, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 40:
            raise self.error
        return np.zeros(3, np.float32), 0.0, False, self.steps % 10 == 0, {}


def register(monkeypatch: pytest.MonkeyPatch, make: Callable[..., gymnasium.Env]) -> list[str]:
    """Register an environment for one test; the overrides that choose it."""
    spec = EnvSpec("Mine-v0", entry_point=make, disable_env_checker=True)
    monkeypatch.setitem(gymnasium.registry, "Mine-v0", spec)
    return ["env=gymnasium", "env.id=Mine-v0"]


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV file's rows, without the columns that tell time."""
    with path.open() as file:
        return [
            {key: value for key, value in row.items() if key != "seconds"}
            for row in csv.DictReader(file)
        ]


def test_a_run_leaves_what_the_design_promises(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("trainer.total_steps=100", f"hydra.run.dir={tmp_path}")
    assert outcome.status == 0
    names = {path.name for path in tmp_path.iterdir()}
    expected = ("train.log", "train.csv", "eval.csv", "status.json", "provenance.json")
    assert {*expected, ".hydra", "checkpoints"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {path.name for path in (tmp_path / ".hydra").iterdir()} == {
        "config.yaml",
        "hydra.yaml",
        "overrides.yaml",
    }
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["step"], status["attempt"]) == ("completed", 100, 1)
    scores = [float(row["return"]) for row in rows(tmp_path / "eval.csv")]
    assert status["score"] == max(scores)
    assert [row["step"] for row in rows(tmp_path / "eval.csv")] == ["30", "60", "90", "100"]
    assert "step 100/100" in outcome.err + outcome.out


def test_same_seed_same_numbers_other_seed_other_numbers(cli: Cli, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        cli("trainer.total_steps=60", f"seed={seed}", f"hydra.run.dir={tmp_path / name}")
    for group in ("train", "eval"):
        a, b, c = (rows(tmp_path / name / f"{group}.csv") for name in "abc")
        assert a == b
        assert a != c


def test_a_complete_run_is_left_alone_and_a_longer_one_goes_on(cli: Cli, tmp_path: Path) -> None:
    run_dir = f"hydra.run.dir={tmp_path}"
    cli("trainer.total_steps=60", run_dir)
    before = (tmp_path / "train.csv").read_text()
    again = cli("trainer.total_steps=60", run_dir)
    assert again.status == 0
    assert "nothing to do" in again.out + again.err
    assert (tmp_path / "train.csv").read_text() == before
    assert cli("trainer.total_steps=100", run_dir).status == 0
    steps = [int(row["step"]) for row in rows(tmp_path / "eval.csv")]
    assert steps == [30, 60, 90, 100]
    assert json.loads((tmp_path / "status.json").read_text())["attempt"] == 2


def test_another_config_is_refused_with_the_difference(cli: Cli, tmp_path: Path) -> None:
    run_dir = f"hydra.run.dir={tmp_path}"
    cli("trainer.total_steps=40", run_dir)
    config = (tmp_path / ".hydra" / "config.yaml").read_text()
    outcome = cli("trainer.total_steps=40", "alg.tau=0.5", run_dir)
    assert outcome.status == 1
    assert "alg.tau: 0.005 -> 0.5" in outcome.err
    assert (tmp_path / ".hydra" / "config.yaml").read_text() == config
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "completed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["env=chetah"], ["env=chetah", "allowed", "did you mean 'cheetah'?"]),
        (["alg.ltau=3"], ["alg.ltau", "did you mean 'tau'?"]),
        (["+alg.ltau=3"], ["alg.ltau", "did you mean 'tau'?"]),
        (["lr=1e-3"], ["lr is not a known key", "did you mean 'alg.optim.lr'?"]),
        (["alg.lr=1e-3"], ["alg.lr is not a known key", "did you mean 'alg.optim.lr'?"]),
        (["total_steps=10"], ["did you mean 'trainer.total_steps'?"]),
        (["alg=drqv2", "env=pendulum"], ["env.pixels is not a known key", "; '~env.pixels' takes"]),
        *(
            ([f"{sign}{old}"], [f"{old.partition('=')[0]} is not a known key any more; use {new}"])
            for sign in ("", "+")
            for old, new in (
                ("alg.precision=bf16", "trainer.precision"),
                ("alg.compile=true", "trainer.execution=compile"),
                ("trainer.collector.warmup_steps=9", "trainer.pace.warmup_steps"),
            )
        ),
        (["trainer.collector=null"], ["trainer: collector is null", "use trainer.pace=null"]),
        (["trainer.pace=on_policy"], ["trainer.pace must be a node with a _target_ or null, got"]),
        (["trainer.pace.warmup_steps=40"], ["=40 lies within the warm-up of trainer.pace.warm"]),
        (["alg.tua=1", "+alg.tuu=1"], ["alg.tua is not", "did you mean 'tau'?"]),
        (["~alg.tau"], ["alg.tau is missing"]),
        (["experiment=sac_dmc", "alg=td3"], ["experiment=sac_dmc is for alg=sac, got alg=td3"]),
        (["experiment=td3_cheetah", "alg=sac"], ["experiment=td3_cheetah is for alg=td3"]),
        (
            [
                *("env=none", "~env.observation_space", "~env.action_space"),
                "env._target_=gymnasium.envs.classic_control.PendulumEnv",
            ],
            ["env must be a vector environment, got PendulumEnv", "env=gymnasium env.id="],
        ),
        (["alg.tau=fast"], ["alg.tau must be a number", "'fast'"]),
        (["alg.tau=3"], ["alg.tau must be a number in (0, 1], got 3"]),
        (["envv=cheetah"], ["envv", "did you mean 'env'?"]),
        (["~env"], ["~env leaves no env; choose another by env=..."]),
        (["~alg=td3"], ["~alg=td3 leaves no alg; choose another by alg=..."]),
        (["experiment=null"], ["experiment=null is not a choice; '~experiment' takes none"]),
        (
            ["alg_env=drqv2_wlaker"],
            ["alg_env=drqv2_wlaker is not a choice; allowed: drq", "did you mean 'drqv2_walker'?"],
        ),
        (["env=dmc"], ["env.domain has no value"]),
        (["env=dmc", "env.domain=cheetah", "env.task=rn"], ["'rn'", "did you mean 'run'?"]),
        (["env=cartpole_gym"], ["network: actions must be continuous", "Discrete(2)"]),
        (["env=cheetah", "env.flatten_obs=false"], ["network:", "env.flatten_obs=true"]),
        (["alg.optim._target_=os.system"], ["alg.optim._target_", "trusted"]),
        (["env.num_envs=3", "trainer.total_steps=40"], ["total_steps", "env.num_envs=3"]),
        (["dataset.capacity=1000000000"], ["dataset.capacity"]),
        (
            ["env=none", "env.observation_space.shape=[3]", "env.action_space.shape=[1]"],
            ["dataset: a replay buffer needs an environment"],
        ),
        (
            ["trainer.score.metric=eval/retrn"],
            ["trainer.score.metric", "did you mean 'eval/return'?"],
        ),
        (
            ["-m", "hydra/sweeper=optuna", "alg.tau=interval(0,1)", "hydra.sweeper.sampler.sed=1"],
            ["hydra.sweeper.sampler.sed is not a known key", "did you mean 'seed'?"],
        ),
        (
            ["alg=drqv2", "env=walker", "network/encoder=multi_input"],
            ["network/encoder is not a known key; network: allowed are feature_dim, hidden_dims"],
        ),
        (["device=gpu"], ["device=gpu"]),
        (["resume=must"], ["resume=must"]),
        (["foo"], ["'foo' is no override, which is key=value"]),
        (["network.hidden_dims=[64,", "64]"], ["write 'network.hidden_dims=[64, 64]'"]),
        (["seed", "=", "1"], ["seed = 1 is one override; write seed=1"]),
        *(
            [(["network.hidden_dims[0]=3"], ["a list is given as a whole: 'network.hidden_dims="])]
            if IS_1_3  # later ones take it
            else []
        ),
        (["name=it's"], ["needs quotes, for Hydra and for the shell: 'name=\"it'\"'\"'s\"'"]),
        (["name=\u00e9t\u00e9"], ["name=\u00e9t\u00e9 needs quotes", ": 'name=\"\u00e9t\u00e9\"'"]),
        (["name=a=b"], ["name=a=b needs quotes", ": 'name=\"a=b\"'"]),
        (["network.hidden_dims=[64"], ["cannot be parsed; is a bracket or a quotation mark miss"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_in_one_line(
    cli: Cli, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    outcome = cli("trainer.total_steps=40", f"hydra.run.dir={tmp_path / 'run'}", *arguments)
    assert outcome.status == 1
    lines = [line for line in outcome.err.splitlines() if line]
    assert len(lines) == 1, outcome.err
    assert all(word in lines[0] for word in words), lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dataset.batch_size=0"], ["dataset.batch_size must be an integer of at least 1, got 0"]),
        (["dataset.num_classes=5"], ["example 5 of digits has label 5; allowed are 0 to 4"]),
        (
            ["trainer.total_epochs=0"],
            ["trainer.total_epochs must be an integer of at least 1 or null, got 0"],
        ),
        (["trainer.total_steps=9"], ["one of total_steps and total_epochs", "got 9 and 1"]),
        (
            ["trainer.score.metric=eval/acuracy"],
            ["trainer.score.metric", "did you mean 'eval/accuracy'?"],
        ),
        (["processor=identity"], ["network: observations must be floats", "try processor=image"]),
        (["dataset=replay"], ["dataset: a replay buffer needs an environment"]),
        (
            ["alg=regression", "network=cnn", "dataset=digits", "processor=image"],
            ["alg: Regression learns targets in a Box, got Discrete(10)", "try alg=classification"],
        ),
        (
            ["alg=td3", "network=cnn", "env=dataset", "dataset=digits", "processor=image"],
            ["alg: network must be of class ActorCritic, got CNN"],
        ),
        (
            ["alg.label_smooth=1", "trainer.collectr=1"],
            [
                "alg.label_smooth is not",
                "allowed are class_weights",
                "did you mean 'label_smoothing'?",
            ],
        ),
        (
            [
                *("alg=regression", "dataset=arrays", "dataset.path={tmp_path}/examples.npz"),
                *("network=mlp", "env=pendulum", "trainer=online", "trainer.total_steps=null"),
            ],
            ["trainer: a collector fills a dataset", "Examples does not take; try dataset=replay"],
        ),
        (
            ["dataset=arrays", "dataset.path={tmp_path}/damaged.npz"],
            ["/damaged.npz cannot be read"],
        ),
        (
            ["dataset.batch_size=1", "network=resnet18", "network.width=4"],
            ["batch normalisation needs more than one example", "dataset.batch_size"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_examples_end_in_one_line(
    cli: Cli, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "damaged.npz").write_bytes(b"damaged")
    write_examples(tmp_path / "examples.npz")
    arguments = [argument.replace("{tmp_path}", str(tmp_path)) for argument in arguments]
    run_dir = f"hydra.run.dir={tmp_path / 'run'}"
    outcome = cli(run_dir, *arguments, common=EXAMPLES)
    assert outcome.status == 1
    lines = [line for line in outcome.err.splitlines() if "train.py: " in line]
    assert "Traceback" not in outcome.err
    assert len(lines) == 1, outcome.err
    assert all(word in lines[0] for word in words), lines[0]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["network=torchvision"],
            "network.model._target_: cannot import 'torchvision', it is not installed: "
            "pip install -e '.[vision]'",
        ),
        (["dataset=torchvision"], "dataset=torchvision needs an extra: pip install -e '.[vision]'"),
        (
            ["network=timm", "trusted_modules=[timm]"],
            "network.model._target_: cannot import 'timm', it is not installed: pip install timm",
        ),
    ],
)
def test_one_line_says_what_to_install(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], line: str
) -> None:
    for name in ("timm", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
        monkeypatch.delitem(sys.modules, f"{name}.models", raising=False)
        monkeypatch.delitem(sys.modules, f"{name}.datasets", raising=False)
    run_dir = f"hydra.run.dir={tmp_path / 'run'}"
    outcome = cli(run_dir, *arguments, common=["alg=classification"])
    assert (outcome.status, outcome.err) == (1, f"train.py: {line}\n")


def test_fewer_steps_than_reached_are_refused(cli: Cli, tmp_path: Path) -> None:
    run_dir = f"hydra.run.dir={tmp_path}"
    cli("trainer.total_steps=60", run_dir)
    outcome = cli("trainer.total_steps=40", run_dir)
    assert outcome.status == 1
    assert "trainer.total_steps=40 is below the 60 steps" in outcome.err
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "completed"
    assert cli("trainer.total_steps=60", "resume=never", run_dir).status == 1


def test_another_algorithm_is_refused_by_its_name_and_a_few_differences(
    cli: Cli, tmp_path: Path
) -> None:
    run_dir = f"hydra.run.dir={tmp_path}"
    cli("trainer.total_steps=60", run_dir)
    outcome = cli("trainer.total_steps=60", "alg=sac", run_dir)
    assert outcome.status == 1
    assert "alg._target_: research.algs.td3.TD3 -> research.algs.sac.SAC; " in outcome.err
    assert len(outcome.err.split("; ")) == 10  # eight, how many more, and what to do
    assert re.search(r"; and \d+ more; choose another hydra.run.dir", outcome.err)


def test_a_run_says_what_begins_before_its_first_row(cli: Cli, tmp_path: Path) -> None:
    assert cli("trainer.total_steps=60", f"hydra.run.dir={tmp_path}", "seed=3").status == 0
    first, *_ = (tmp_path / "train.log").read_text().splitlines()
    assert first.endswith(f"td3_pendulum, seed 3: 60 steps on cpu, into {tmp_path}")


def test_a_run_that_failed_before_its_first_checkpoint_starts_anew(
    cli: Cli, tmp_path: Path
) -> None:
    run_dir = f"hydra.run.dir={tmp_path}"
    assert cli("trainer.total_steps=40", "trainer.score.metric=eval/none", run_dir).status == 1
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed"
    assert "eval/none" in status["exit_reason"]
    assert cli("trainer.total_steps=40", run_dir).status == 0
    assert [row["step"] for row in rows(tmp_path / "eval.csv")] == ["30", "40"]


def test_a_programming_error_shows_its_traceback(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("research.algs.td3.TD3.critic_loss", broken)
    outcome = cli("trainer.total_steps=40", f"hydra.run.dir={tmp_path}")
    assert outcome.status == 1
    assert "Traceback" in outcome.err
    assert "ZeroDivisionError: a bug" in outcome.err
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("simulator gone"), "ConnectionError: simulator gone"),
        (TimeoutError("no answer"), "TimeoutError: no answer"),
        (OSError("truncated file: eof = 96"), "OSError: truncated file: eof = 96"),
        (OSError(errno.EIO, "sensor lost"), "OSError: [Errno 5] sensor lost"),
        (FileNotFoundError(errno.ENOENT, "no mesh", "a.stl"), "no mesh: 'a.stl'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_a_users_code_keeps_its_words_and_its_place(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    choice = register(monkeypatch, lambda: Faulty(error))
    outcome = cli(*choice, "trainer.total_steps=60", f"hydra.run.dir={tmp_path}")
    assert outcome.status == 1
    assert "in step\n    raise self.error" in outcome.err
    assert outcome.err.rstrip().endswith(words)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["exit_reason"].endswith(words)) == ("failed", True)
    assert "in step\n    raise self.error" in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize("code", [3, 0, None])
def test_a_part_that_ends_the_program_has_failed_the_run(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    choice = register(monkeypatch, lambda: Faulty(SystemExit(code)))
    outcome = cli(*choice, "trainer.total_steps=60", f"hydra.run.dir={tmp_path}")
    assert outcome.status == 1
    assert "in step\n" in outcome.err
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["exit_reason"] == f"exited with status {code or 0}"


def test_a_metric_that_is_no_tensor_is_named(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Loss(torch.zeros(()), {"q": 1.5})  # type: ignore[dict-item]
    monkeypatch.setattr("research.algs.td3.TD3.critic_loss", lambda *_: loss)
    outcome = cli("trainer.total_steps=40", f"hydra.run.dir={tmp_path}")
    assert outcome.status == 1
    (line,) = outcome.err.splitlines()
    assert "train/q must be a detached tensor without dimensions, got 1.5 of type float" in line


def unpack() -> gymnasium.Env:
    one, two = [1, 2, 3]
    raise AssertionError(one, two)


def measure() -> gymnasium.Env:
    return len(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [unpack, measure])
def test_a_bug_of_a_users_constructor_is_not_told_as_a_mistake_in_the_config(
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], gymnasium.Env],
) -> None:
    outcome = cli(*register(monkeypatch, make), f"hydra.run.dir={tmp_path}")
    assert outcome.status == 1
    place = f'test_app.py", line {make.__code__.co_firstlineno + 1}, in {make.__name__}'
    assert place in outcome.err
    assert place in (tmp_path / "train.log").read_text()


def refuse(size: int = 2) -> gymnasium.Env:
    raise ValueError(f"size must be odd, got {size}")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "train.py: env: size must be odd, got 2\n"),
        (["+env.kwargs.sise=3"], "unexpected keyword argument 'sise'"),
    ],
)
def test_what_a_users_constructor_refuses_is_one_line_and_its_traceback_is_in_the_log(
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    line: str,
) -> None:
    outcome = cli(*register(monkeypatch, refuse), *arguments, f"hydra.run.dir={tmp_path}")
    assert outcome.status == 1
    assert line in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert "Traceback (most recent call last)" in (tmp_path / "train.log").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_one_line_and_damages_nothing(cli: Cli, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)])
    if mounted.returncode:
        pytest.skip("this container may not mount")
    try:
        outcome = cli(
            "trainer.total_steps=100",
            f"hydra.run.dir={disk}",
            "dataset.capacity=20000",
            "network.hidden_dims=[64,64]",
            "trainer.total_steps=20000",
            "trainer.pace.warmup_steps=19990",
            "trainer.checkpoints.every=500",
        )
        assert outcome.status == 1
        assert "No space left on device" in outcome.err
        last = disk / "checkpoints" / "last"
        assert not last.exists() or (last / "state.pt").exists()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_second_process_on_a_run_directory_is_refused(cli: Cli, tmp_path: Path) -> None:
    run_dir = f"hydra.run.dir={tmp_path}"
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = cli("trainer.total_steps=40", run_dir)
    assert outcome.status == 1
    assert "is in use by another process" in outcome.err
    assert not (tmp_path / "status.json").exists()
    assert cli("trainer.total_steps=40", run_dir).status == 0


def test_overrides_may_stand_on_both_sides_of_an_option(cli: Cli) -> None:
    outcome = cli("seed=1", "--cfg", "job", "~alg.tau", "-p", "trainer", "trainer.total_steps=3")
    assert outcome.status == 0
    assert "total_steps: 3" in outcome.out


def test_help_lists_groups_and_run_wide_keys(cli: Cli) -> None:
    outcome = cli("--help")
    assert outcome.status == 0
    assert all(word in outcome.out for word in ("cheetah", "td3", "seed", "device", "resume"))


def test_an_error_before_training_is_not_followed_by_those_of_the_environments(
    tmp_path: Path,
) -> None:
    process = start_train(
        tmp_path / "run",
        *("env=pendulum", "env.subprocesses=true", "env.num_envs=2", "trainer.total_steps=3"),
    )
    process.join(60)
    assert process.exitcode == 1
    (line,) = (tmp_path / "run.txt").read_text().splitlines()
    assert "env.num_envs=2" in line


def test_a_call_from_python_returns_the_score_and_raises_errors(tmp_path: Path) -> None:
    words = [*SMALL, "trainer.total_steps=40", f"hydra.run.dir={tmp_path / 'run'}"]
    before = sys.argv, logging.root.handlers[:], os.environ.get("HYDRA_FULL_ERROR")
    scores: list[Any] = []
    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):  # as a notebook may have done
        thread = threading.Thread(target=lambda: scores.append(train.main(words)))
        thread.start()
        thread.join(60)
        with pytest.raises(UserError, match=r"alg\.tau must be a number in \(0, 1\], got 3"):
            train.main([*words, "alg.tau=3", f"hydra.run.dir={tmp_path / 'other'}"])
        assert compose("config", ["alg=sac", "name=x"]).alg.tau
    assert scores == [json.loads((tmp_path / "run" / "status.json").read_text())["score"]]
    assert (sys.argv, logging.root.handlers, os.environ.get("HYDRA_FULL_ERROR")) == before
