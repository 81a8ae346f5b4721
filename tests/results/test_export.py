"""An exported policy acts as the run's policy does, in a program that knows nothing of this one."""

import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from gymnasium.vector.utils import batch_space
from omegaconf import OmegaConf
from torch import Tensor, nn

from research import export
from research.algs.base import Acted, Algorithm, Objective
from research.errors import UserError
from research.processors.base import Identity
from research.results.export import (
    ExportOptions,
    check_packages,
    check_same,
    export_policy,
    export_run,
    run_onnx,
)
from research.results.load import LoadedPolicy, load
from research.results.runs import StoredRun
from research.training.policy import Policy
from research.training.saving.spaces import Spaces
from tests.commands import train

LENGTHS = [
    *("trainer.total_steps=40", "trainer.log_every=20", "trainer.evaluation.every=40"),
    "trainer.evaluation.episodes=1",
]
RL = [*LENGTHS, "trainer.pace.warmup_steps=20", "dataset.batch_size=8", "dataset.capacity=100"]
FLAT = "network.hidden_dims=[16]"
SHORT = "env.max_episode_steps=30"
RUNS = {
    "td3": ["alg=td3", "env=pendulum", "processor=normalise", SHORT, FLAT, *RL],
    "sac": ["alg=sac", "env=pendulum", SHORT, FLAT, *RL],
    "dqn": ["alg=dqn", "env=cartpole_gym", FLAT, *RL],
    "drqv2": ["alg=drqv2", "env=cheetah", "env.pixel_size=24", SHORT, *RL],
    "bc": ["alg=bc", "env=pendulum", SHORT, FLAT, *LENGTHS, "trainer.total_epochs=null"],
    "digits": ["alg=classification", "dataset=digits", *LENGTHS, "trainer.total_epochs=null"],
}

ONNX = ("onnx", "onnxscript", "onnxruntime")
needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ONNX), reason="needs the extra export"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directories of every kind of policy."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    obs, target = rng.normal(size=(90, 3)), rng.uniform(-1, 1, (90, 1))
    np.savez(folder / "expert.npz", obs=obs.astype(np.float32), target=target.astype(np.float32))
    processes = {}
    for name, overrides in RUNS.items():
        more = [f"dataset.path={folder / 'expert.npz'}"] if name == "bc" else []
        processes[name] = train(folder / name, *overrides, *more)
    for name, process in processes.items():
        process.join(240)
        assert process.exitcode == 0, (folder / f"{name}.txt").read_text()
    return folder


def observations(policy: LoadedPolicy, count: int) -> np.ndarray:
    space = policy.spaces.observation
    space.seed(1)
    return np.stack([space.sample() for _ in range(count)])


@needs_onnx
@pytest.mark.parametrize("name", RUNS)
def test_onnxruntime_gives_the_actions_of_the_policy(runs: Path, name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = export_run(runs / name, ExportOptions())
    assert path == runs / name / "export" / "policy.onnx"
    session = onnxruntime.InferenceSession(path)
    policy = load(runs / name)
    facts = json.loads(path.with_suffix(".json").read_text())
    for count in (1, 64):
        obs = observations(policy, count)
        (action,) = session.run(None, {"obs": obs})
        expected = policy(obs)
        assert action.dtype == expected.dtype
        np.testing.assert_allclose(action, expected, rtol=0, atol=1e-5)
    assert facts["inputs"][0]["dtype"] == str(obs.dtype)
    assert facts["outputs"][0]["shape"] == ["batch", *action.shape[1:]]
    assert (facts["step"], facts["alg"]) == (policy.step, policy.config.alg._target_)
    (port,) = session.get_inputs()
    assert port.shape == facts["inputs"][0]["shape"] == ["batch", *obs.shape[1:]]


@needs_onnx
def test_images_and_vectors_are_inputs_of_any_batch_size(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    process = train(
        tmp_path / "run",
        *("alg=sac", "env=gymnasium", "env.id=tests.envs.spot:Spot-v0", "trusted_modules=[tests]"),
        *("env.flatten_obs=false", "env.frame_stack=2", "network/encoder=multi_input"),
        *("network/encoder@network.encoder.image=minatar", FLAT, *RL),
    )
    process.join(240)
    policy = load(tmp_path / "run", trusted_modules=["tests"])
    path = export_run(tmp_path / "run", ExportOptions(trusted_modules=["tests"]))
    session = onnxruntime.InferenceSession(path)
    for count in (1, 5):
        space = batch_space(policy.spaces.observation, count)
        space.seed(1)
        obs = space.sample()
        (action,) = session.run(None, {f"obs.{key}": part for key, part in obs.items()})
        np.testing.assert_allclose(action, policy(obs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["td3", "drqv2"])
def test_a_program_of_torch_export_gives_the_actions_of_the_policy(runs: Path, name: str) -> None:
    path = export_run(runs / name, ExportOptions(format="torch", checkpoint="last"))
    policy = load(runs / name, "last")
    program = torch.export.load(path).module()
    for count in (1, 7):
        obs = observations(policy, count)
        (action,) = program(torch.from_numpy(obs))
        np.testing.assert_allclose(action.numpy(), policy(obs), rtol=0, atol=1e-5)
    weights = torch.export.load(path).state_dict
    assert {name for name, value in weights.items() if value.numel()} <= {
        name for name in weights if "critic" not in name and "target" not in name
    }


USE = """
import json, sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
(action,) = session.run(None, {"obs": numpy.array([[1.0, 0.0, 0.5]], numpy.float32)})
print(json.dumps(action.tolist()))
assert not any(name.split(".")[0] in ("torch", "research", "gymnasium") for name in sys.modules)
"""


@needs_onnx
def test_neither_torch_nor_this_project_is_needed_to_act(runs: Path, tmp_path: Path) -> None:
    path = export_run(runs / "td3", ExportOptions(out=str(tmp_path / "new" / "actor.onnx")))
    command = [sys.executable, "-c", USE, str(path)]
    output = subprocess.run(command, check=True, capture_output=True, cwd=tmp_path).stdout
    expected = load(runs / "td3")(np.array([[1.0, 0.0, 0.5]], np.float32))
    np.testing.assert_allclose(json.loads(output), expected, atol=1e-5)
    assert {file.name for file in path.parent.iterdir()} == {"actor.onnx", "actor.json"}


class Recurrent(Algorithm):
    """Acts by a GRU cell on what it observed, and on an info."""

    def __init__(self, *, branches: bool = False) -> None:
        super().__init__()
        self.network = nn.GRUCell(3, 4)
        self.head = nn.Linear(4, 2)
        self.branches = branches

    def objectives(self) -> list[Objective]:
        return []

    def initial_memory(self, num_envs: int) -> dict[str, Any]:
        return {"cell": torch.full((num_envs, 4), 0.5), "count": (torch.zeros(num_envs),)}

    def act_with_memory(
        self, obs: Any, memory: Any, info: Mapping[str, Tensor], step: Tensor, explore: bool
    ) -> Acted:
        if self.branches and obs["a"].sum() > 0:
            obs = {"a": -obs["a"], "b": obs["b"]}
        cell = self.network(torch.cat([obs["a"], obs["b"]], dim=1), memory["cell"])
        (count,) = memory["count"]
        action = (self.head(cell) + count[:, None] * info["bonus"][:, None]).tanh()
        return Acted(action, {"cell": cell, "count": (count + 1,)})


def recurrent(*, branches: bool = False) -> LoadedPolicy:
    """A policy with memory, infos, a Dict of observations and actions in other units."""
    observation = Dict({"a": Box(-1, 1, (2,), np.float32), "b": Box(-1, 1, (1,), np.float32)})
    unit = Box(-1, 1, (2,), np.float32)
    own = Box(np.array([0.0, -30.0]), np.array([5.0, 10.0]), dtype=np.float64)
    alg = Recurrent(branches=branches).eval().requires_grad_(False)
    config = {"name": "toy", "alg": {"_target_": "Recurrent"}, "trainer": {"infos": {"bonus": []}}}
    run: Any = StoredRun(Path(), OmegaConf.create(config), {})  # type: ignore[arg-type]
    policy = Policy(alg, Identity(observation, unit))
    return LoadedPolicy(run, policy, Spaces(observation, unit, observation, own), 7)


@needs_onnx
def test_memory_and_infos_are_inputs_and_the_next_memory_is_an_output(tmp_path: Path) -> None:
    policy = recurrent()
    path = tmp_path / "policy.onnx"
    export_policy(policy, path, ExportOptions())
    facts = json.loads(path.with_suffix(".json").read_text())
    assert [port["name"] for port in facts["inputs"]] == [
        *("obs.a", "obs.b", "memory.0", "memory.1", "info.bonus"),
    ]
    memory = {
        port["name"]: torch.tensor([port["initial"]] * 3)
        for port in facts["inputs"]
        if "initial" in port
    }
    rng = np.random.default_rng(0)
    for _ in range(5):
        obs = {"a": rng.uniform(-1, 1, (3, 2)), "b": rng.uniform(-1, 1, (3, 1))}
        obs = {key: value.astype(np.float32) for key, value in obs.items()}
        info = rng.normal(size=3).astype(np.float32)
        values = {f"obs.{key}": torch.from_numpy(value) for key, value in obs.items()}
        action, *following = run_onnx(
            path.read_bytes(), {**values, **memory, "info.bonus": torch.from_numpy(info)}
        )
        np.testing.assert_allclose(action, policy(obs, {"bonus": info}), atol=1e-4)
        memory = {f"memory.{index}": torch.from_numpy(v) for index, v in enumerate(following)}
        assert action.dtype == np.float64


@pytest.mark.parametrize("form", ["torch", pytest.param("onnx", marks=needs_onnx)])
def test_an_algorithm_that_branches_on_a_value_is_refused_in_one_line(
    tmp_path: Path, form: Any
) -> None:
    path = tmp_path / "policy.pt2"
    with pytest.raises(UserError, match=r"Recurrent cannot be exported: .*branch on") as error:
        export_policy(recurrent(branches=True), path, ExportOptions(format=form))
    assert "\n" not in str(error.value)
    assert not path.exists()


def test_a_file_that_acts_otherwise_or_takes_one_batch_size_is_refused() -> None:
    from research.results.export import PolicyModule, input_ports

    policy = recurrent()
    module = PolicyModule(policy)
    inputs = input_ports(policy, module)

    def wrong(values: Mapping[str, Tensor]) -> list[np.ndarray]:
        first, *others = (value.numpy() for value in module(*values.values()))
        return [first + 0.01, *others]

    def stubborn(values: Mapping[str, Tensor]) -> list[np.ndarray]:
        raise RuntimeError("expected 2\nrows")

    with torch.no_grad():
        with pytest.raises(UserError, match="acts otherwise than the policy"):
            check_same(wrong, module, inputs)
        with pytest.raises(UserError, match=r"batch of 1: RuntimeError: expected 2$"):
            check_same(stubborn, module, inputs)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["absent"], "absent does not exist"),
        (["{run}", "format=tflite"], "format must be one of onnx, torch, got 'tflite'"),
        (["{run}", "chekpoint=last"], "did you mean 'checkpoint'?"),
        (["{run}", "format=torch", "out=policy.onnx"], "out=policy.onnx must end in .pt2"),
        (["{run}", "{run}"], "one run at a time, got "),
        (["{run}", "format=torch", "out=/proc/policy.pt2"], "/proc/policy.pt2 cannot be written"),
    ],
)
def test_a_wrong_command_is_answered_in_one_line(
    runs: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = [word.format(run=runs / "td3") for word in words]
    with pytest.raises(SystemExit) as end:
        export.main(typed)
    error = capsys.readouterr().err
    assert end.value.code == 1
    assert line in error
    assert error.count("\n") == 1


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"needs the package onnx: pip install -e '\.\[export\]'"):
        check_packages("onnx")
    check_packages("torch")
