"""What holds for every algorithm that has a yaml."""

import copy
import io
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from research.algs.base import Acted, Algorithm, Loss, Metrics
from research.batches import Step, Tree, count_rows, map_tensors
from research.config import build, check
from research.datasets.base import CountableDataset, RolloutDataset
from research.processors.base import Processor
from research.status import Status
from research.training.capture import WARM_UP
from research.training.collector import to_tensors
from research.training.descent import unique_parameters
from research.training.learner import Learner
from research.training.policy import Policy
from research.training.run import Run
from tests.algs.learning import make_learner
from tests.conftest import Load, algs, alone, collects, small
from tests.training.recording import RecordedGraphs, RefusedGraphs

START = torch.zeros((), dtype=torch.float64)
"""The step at which actions are taken."""


class Parts(NamedTuple):
    """What an algorithm's config builds, and what makes its updates."""

    env: Any
    processor: Processor
    alg: Algorithm
    dataset: Any
    learner: Learner

    def sample(self) -> Any:
        """A processed batch, of the weights' type; of a rollout, a prepared minibatch."""
        dataset = self.dataset
        if not isinstance(dataset, RolloutDataset):
            return self.process(dataset.sample())
        rollout = dataset.take_rollout()
        if rollout is not None:
            with torch.no_grad():
                dataset.learn_from(self.alg.prepare(self.process(rollout), dataset.num_envs))
        return map_tensors(self.cast, dataset.sample())

    def process(self, batch: Any) -> Any:
        """A batch as the algorithm takes it."""
        return map_tensors(self.cast, self.processor(batch))

    def cast(self, tensor: Tensor) -> Tensor:
        """A tensor of floats in the weights' type."""
        dtype = next(self.alg.parameters()).dtype
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def collect(self, steps: Sequence[Mapping[str, Any]]) -> None:
        """Put recorded steps into the dataset, with what the algorithm stores beside them."""
        horizon = getattr(self.dataset, "horizon", 1)
        for step in steps[: len(steps) // horizon * horizon]:
            if step["begun"].any():
                self.dataset.start_episodes(step["first"], step["begun"])
            stored = {}
            if self.alg.extras:
                obs = self.processor.process_obs(to_tensors(step["first"]))
                extras = act(self.alg, obs, explore=True).extras
                stored = {name: value.detach().numpy() for name, value in extras.items()}
            names = "action", "reward", "ended", "cut", "obs"
            self.dataset.add(Step(*(step[name] for name in names), extras=stored))

    def update(self, count: int = 1) -> list[dict[str, Tensor]]:
        """Make ``count`` updates."""
        return [self.learner.learn(self.sample()) for _ in range(count)]

    def take_all_steps(self, batch: Any, seed: int = 7) -> Metrics:
        """Make an update in which every objective has a step."""
        self.learner.updates = math.lcm(*(each.every for each in self.learner.objectives)) - 1
        torch.manual_seed(seed)
        return self.learner.learn(batch)

    def name(self, parameters: Any) -> dict[str, nn.Parameter]:
        """Parameters of the algorithm by their names."""
        names = {parameter: name for name, parameter in self.alg.named_parameters()}
        return {names[parameter]: parameter for parameter in parameters}

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that take gradients, by their names."""
        return self.name(each for each in self.alg.parameters() if each.requires_grad)


@pytest.fixture(params=algs(), scope="module")
def cfg(
    request: pytest.FixtureRequest, load: Load, tmp_path_factory: pytest.TempPathFactory
) -> DictConfig:
    """What an algorithm alone composes to, but for the sizes of dataset, images, wide critics."""
    folder = tmp_path_factory.mktemp("data")
    return load(*small(request.param, folder, batch_size=16, capacity=400))


def make(
    cfg: DictConfig, seed: int = 0, *, weights_seed: int | None = None, **settings: Any
) -> Parts:
    """The parts in the order of ``train.py``; a dataset that is filled has 100 random steps.

    ``settings`` are the learner's.
    """
    torch.manual_seed(seed if weights_seed is None else weights_seed)
    env = build(cfg.env)
    dataset = build(cfg.dataset, env, seed)
    processor = build(cfg.processor, dataset.observation_space, dataset.action_space)
    alg = make_alg(cfg, processor)
    if isinstance(dataset, CountableDataset):
        processor.eval()
        processor.fit(dataset.training_batches())
        processor.train()
    parts = Parts(env, processor, alg, dataset, make_learner(alg, **settings))
    if collects(cfg):
        if alg.extras:
            parts.dataset.hold(alg.extras, {})
        parts.collect(recorded(cfg, env, seed))
    return parts


def act(alg: Algorithm, obs: Tree, *, explore: bool) -> Acted:
    """What an algorithm does for observations (B, ...) that begin episodes."""
    memory = alg.initial_memory(count_rows(obs))
    return alg.act_with_memory(obs, memory, {}, START, explore)


def make_alg(cfg: DictConfig, processor: Processor) -> Algorithm:
    """The algorithm, as it was built."""
    network = build(cfg.network, processor.observation_space, processor.action_space)
    return build(cfg.alg, network)


def sample_obs(parts: Parts, size: int, scale: float = 1.0) -> Tree:
    """Processed observations (B, O), ``scale`` times those of the dataset's space."""
    space = batch_space(parts.dataset.observation_space, size)
    space.seed(0)
    obs = to_tensors(space.sample())
    scaled = obs if scale == 1 else map_tensors(lambda part: part * scale, obs)
    return parts.processor.process_obs(scaled)


RECORDED: dict[tuple[str, int], list[dict[str, Any]]] = {}
"""Random steps by environment and seed: images take their time."""


def recorded(cfg: DictConfig, env: Any, seed: int) -> Sequence[Mapping[str, Any]]:
    """100 random steps."""
    key = (str(cfg.env), seed)
    if key not in RECORDED:
        RECORDED[key] = list(record(env, num_steps=100, seed=seed))
    return RECORDED[key]


def record(env: Any, *, num_steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """Act at random; episodes that do not end are cut every 40 steps, the second time for good."""
    env.action_space.seed(seed)
    over, obs = np.ones(env.num_envs, np.bool_), None
    for step in range(num_steps):
        begun = over
        if begun.any():
            seeds = [seed + step + index for index in range(env.num_envs)]
            obs, _ = env.reset(seed=seeds, options={"reset_mask": begun})
        first, action = obs, env.action_space.sample()
        obs, reward, ended, cut, _ = env.step(action)
        ended, cut = ended | (step == 79), cut | (step % 40 == 39)
        over = ended | cut
        yield {
            "begun": begun,
            "first": first,
            "action": action,
            "reward": reward,
            "ended": ended,
            "cut": cut,
            "obs": obs,
        }


def saved_and_loaded(state: Any) -> Any:
    """A state after its way through a checkpoint's file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(one: Algorithm, other: Algorithm) -> None:
    """Compare two algorithms' weights to the last bit."""
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=0, atol=0)


def assert_metrics(metrics: Metrics) -> None:
    """Check that they are what the trainer can log."""
    assert metrics
    for name, value in metrics.items():
        assert value.shape == (), name
        assert not value.requires_grad, name
        assert torch.isfinite(value), name


def test_the_algorithm_alone_brings_companions_that_suit_it(cfg: DictConfig) -> None:
    check(cfg)
    parts = make(cfg)
    assert isinstance(parts.alg, Algorithm)
    assert parts.sample()


def test_metrics_are_finite_detached_and_without_dimensions(cfg: DictConfig) -> None:
    for metrics in make(cfg).update(count=4):
        assert_metrics(metrics)


def test_updates_change_the_weights_and_leave_them_finite(cfg: DictConfig) -> None:
    parts = make(cfg)
    before = copy.deepcopy(parts.alg)
    parts.update(count=4)
    for (name, value), old in zip(parts.alg.named_parameters(), before.parameters(), strict=True):
        assert torch.isfinite(value).all(), name
        assert not (value.requires_grad and torch.equal(value, old)), name


def test_a_reloaded_algorithm_goes_on_exactly(cfg: DictConfig, tmp_path: Path) -> None:
    parts, twin = make(cfg), make(cfg, weights_seed=1)
    parts.update(count=3)
    twin.alg.load_state_dict(saved_and_loaded(parts.alg.state_dict()))
    twin.processor.load_state_dict(saved_and_loaded(parts.processor.state_dict()))
    twin.dataset.load(saved_and_loaded(parts.dataset.save(tmp_path)), tmp_path)
    twin.learner.load_state_dict(saved_and_loaded(parts.learner.state_dict()))
    assert_same(twin.alg, parts.alg)
    for each in (parts, twin):
        if isinstance(each.dataset, RolloutDataset):  # of which nothing is left to be saved
            torch.manual_seed(6)
            each.collect(recorded(cfg, each.env, 0))
        torch.manual_seed(7)
        each.update(count=3)
    assert_same(twin.alg, parts.alg)


def test_loaded_weights_act_the_same(cfg: DictConfig) -> None:
    trained = make(cfg)
    trained.update(count=2)
    alg = make_alg(cfg, trained.processor)
    alg.load_state_dict(saved_and_loaded(trained.alg.state_dict()))
    obs = sample_obs(trained, 10)
    alg.eval()
    trained.alg.eval()
    one, other = (act(each, obs, explore=False).action for each in (alg, trained.alg))
    assert torch.equal(one, other)


def test_the_same_seed_gives_the_same_weights_to_the_last_bit(cfg: DictConfig) -> None:
    one, other = make(cfg, seed=3), make(cfg, seed=3)
    for each in (one, other):
        torch.manual_seed(7)
        each.update(count=4)
    assert_same(one.alg, other.alg)


def test_another_seed_gives_other_weights(cfg: DictConfig) -> None:
    one, other = make(cfg, seed=3), make(cfg, seed=4)
    with pytest.raises(AssertionError):
        assert_same(one.alg, other.alg)


@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_actions_lie_in_the_action_space(cfg: DictConfig, explore: bool, scale: float) -> None:
    parts = make(cfg)
    acts = isinstance(parts.env, VectorEnv)
    space = parts.env.single_action_space if acts else parts.dataset.action_space
    action = act(parts.alg, sample_obs(parts, 50, scale), explore=explore).action
    action = parts.processor.unprocess_action(action.detach())
    assert len(action) == 50
    assert all(space.contains(row) for row in action.numpy())


def test_acting_without_exploration_is_always_the_same(cfg: DictConfig) -> None:
    parts = make(cfg)
    parts.alg.eval()
    obs = sample_obs(parts, 10)
    one, other = (act(parts.alg, obs, explore=False).action for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    "cfg", [alg for alg in algs() if "num_envs" not in alone(alg).env], indirect=True
)
def test_validating_changes_nothing_and_gives_finite_numbers(cfg: DictConfig) -> None:
    parts = make(cfg)
    parts.update(count=2)
    for module in (parts.alg, parts.processor):
        module.eval()
    before = copy.deepcopy(parts.alg)
    with torch.no_grad():
        for batch in parts.dataset.validation_batches():
            assert_metrics(parts.alg.validate(parts.processor(batch)))
    assert_same(parts.alg, before)


def test_every_trained_parameter_has_one_optimizer(cfg: DictConfig) -> None:
    parts = make(cfg)
    owned = [
        parameter
        for descent in parts.learner.make_optimizers().values()
        for group in descent.optim.param_groups
        for parameter in group["params"]
    ]
    assert len(owned) == len(set(owned))
    assert set(owned) == set(parts.trained().values())


def test_every_frozen_copy_is_told(cfg: DictConfig) -> None:
    alg = make(cfg).alg
    told = [parameter for frozen, *_ in alg.copies() for parameter in frozen.parameters()]
    trained = [parameter for parameter in alg.parameters() if parameter.requires_grad]
    for name, parameter in alg.named_parameters():
        is_constant = bool((parameter == parameter.flatten()[:1]).all())  # equal by chance
        if not parameter.requires_grad and not is_constant and any(map(parameter.equal, trained)):
            assert any(parameter is each for each in told), name
    for frozen, original, *_ in alg.copies():
        torch.testing.assert_close(dict(frozen.state_dict()), dict(original.state_dict()))


class LossOf(nn.Module):
    """An objective's loss, as a module whose parameters are the algorithm's."""

    def __init__(self, alg: Algorithm, name: str) -> None:
        super().__init__()
        self.alg = alg
        self.name = name

    def forward(self, *arguments: Any) -> Loss:
        (objective,) = (each for each in self.alg.objectives() if each.name == self.name)
        return objective.loss(*arguments)


def test_a_loss_is_a_function_of_parameters_batch_and_noise_alone(cfg: DictConfig) -> None:
    """So another way of running may swap the parameters; its gradient is the step's to the bit.

    Buffers, such as running statistics, pass from one objective to the next.
    """
    parts = make(cfg)
    parts.learner.steps.copies = []
    buffers = {f"alg.{name}": value.clone() for name, value in parts.alg.named_buffers()}
    batch, before, descents = parts.sample(), {}, parts.learner.make_optimizers()
    for descent in descents.values():
        for group in descent.optim.param_groups:
            group["lr"] = 0.0
    logged = parts.take_all_steps(batch)
    torch.manual_seed(7)
    batch = parts.alg.augment(batch)
    inputs = batch, parts.alg.draw(batch, parts.learner.step)
    before = copy.deepcopy(dict(parts.alg.named_parameters())), torch.get_rng_state()
    results = {}
    for objective in parts.learner.objectives:
        function = LossOf(parts.alg, objective.name)
        reused = [results[objective.reuses]] if objective.reuses else []

        def compute(values: dict[str, Tensor]) -> tuple[Tensor, Any]:
            own = {name: value.clone() for name, value in buffers.items()}  # noqa: B023
            value, *rest = functional_call(function, (values, own), (*inputs, *reused))  # noqa: B023
            return value, (own, [each for each in rest if each is not None])

        trained = parts.name(descents[objective.name].parameters)
        values = {f"alg.{name}": each.detach().clone() for name, each in trained.items()}
        function_of_values = grad_and_value(compute, has_aux=True)
        gradients, (value, (buffers, (metrics, *result))) = function_of_values(values)
        for name, each in trained.items():
            expected = torch.zeros_like(each) if each.grad is None else each.grad
            assert torch.equal(gradients[f"alg.{name}"], expected), name
        name = "loss" if len(descents) == 1 else f"{objective.name}_loss"
        for key, each in {name: value, **metrics}.items():
            assert torch.equal(each, logged[key]), key
        results[objective.name] = map_tensors(Tensor.detach, result[0]) if result else None
    torch.testing.assert_close(dict(parts.alg.named_parameters()), before[0], rtol=0, atol=0)
    for name, value in parts.alg.named_buffers():
        assert torch.equal(buffers[f"alg.{name}"], value), name
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_graph_for_each_gradient_makes_the_same_updates(
    cfg: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, if what computes them is not compiled."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    results = []
    for compiles in (False, True):
        parts = make(cfg)
        if compiles:
            parts.learner.steps.compile_gradients()
        metrics = [parts.take_all_steps(parts.sample()) for _ in range(2)]
        results.append((metrics, parts.alg.state_dict(), parts.learner.state_dict()))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_a_graph_of_the_whole_makes_the_same_updates_but_for_rounding(
    cfg: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If what computes it is not compiled; in float64, where Adam does not magnify the rounding."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    results = []
    for execution in ("eager", "compile"):
        parts = make(cfg, execution=execution)
        parts.alg.double()
        parts.learner.average = parts.learner.average and parts.learner.average.double()
        batch = parts.sample()
        torch.manual_seed(0)
        metrics = [parts.learner.learn(batch) for _ in range(6)]
        results.append((metrics, parts.alg.state_dict()))
        assert (parts.learner.steps.compiled is not None) == (execution == "compile")
    torch.testing.assert_close(*results, rtol=1e-7, atol=1e-9)


def test_captured_updates_and_actions_are_eager_ones_to_the_bit(
    cfg: DictConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in for CUDA graphs, which repeats operators where and with what they were."""
    adam = sys.modules[torch.optim.Adam.__module__]
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda **_: ["cpu"])
    replays, results = [], []
    for graphs in (RefusedGraphs(), RecordedGraphs()):
        parts = make(cfg)
        parts.learner.steps.graphs = graphs
        batch = parts.sample()
        torch.manual_seed(0)
        metrics = [parts.learner.learn(batch) for _ in range(2 * (WARM_UP + 2))]
        actions = []
        if isinstance(parts.env, VectorEnv):
            policy = Policy(parts.alg, parts.processor)
            policy.capture(graphs)
            memory = parts.alg.initial_memory(parts.env.num_envs)
            obs, _ = parts.env.reset(seed=0)
            for step in range(WARM_UP + 2):
                acted = policy.respond(obs, memory, {}, step=step, explore=True)
                actions.append(torch.from_numpy(acted.action))
                memory = acted.memory
        replays.append(graphs.replays)
        results.append((metrics, actions, parts.alg.state_dict(), parts.learner.state_dict()))
    assert replays[0] == 0
    assert replays[1] >= 4 + 2 * bool(actions), caplog.text
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_an_objective_moves_what_it_trains_and_nothing_else(cfg: DictConfig) -> None:
    for objective in make(cfg).learner.objectives:
        parts = make(cfg)
        parts.learner.steps.copies = []
        descents, before = parts.learner.make_optimizers(), copy.deepcopy(parts.alg)
        for name, descent in descents.items():
            for group in descent.optim.param_groups:
                group["lr"] *= name == objective.name
        parts.take_all_steps(parts.sample())
        old = dict(before.named_parameters())
        moved = {n for n, each in parts.alg.named_parameters() if not torch.equal(each, old[n])}
        assert moved == set(parts.name(descents[objective.name].parameters))
        assert set(parts.trained()) == {
            name for name, each in parts.alg.named_parameters() if each.grad is not None
        }


def test_a_batch_in_parts_is_the_batch_as_a_whole(cfg: DictConfig) -> None:
    """In evaluation mode: a batch norm's statistics are those of a part."""
    one, other = make(cfg), make(cfg, accumulate=3)
    for each in (one, other):
        each.alg.double().eval()
    for count in range(3):
        batch = one.sample()
        metrics = [each.take_all_steps(batch, seed=count) for each in (one, other)]
        torch.testing.assert_close(*metrics)
        gradients = [{n: p.grad for n, p in each.trained().items()} for each in (one, other)]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(dict(one.alg.state_dict()), dict(other.alg.state_dict()))


def test_gradients_in_bf16_are_nearly_those_in_fp32(cfg: DictConfig) -> None:
    whole, half = make(cfg), make(cfg, precision="bf16")
    batch = whole.sample()
    for each in (whole, half):
        metrics = each.take_all_steps(batch)
        assert_metrics(metrics)
        assert {value.dtype for value in metrics.values()} == {torch.float32}
    for objective in whole.learner.objectives:
        vectors = []
        for each in (whole, half):
            (trains,) = (o.trains for o in each.learner.objectives if o.name == objective.name)
            gradients = {n: p.grad for n, p in each.name(unique_parameters(trains)).items()}
            vectors.append({name: g.flatten() for name, g in gradients.items() if g is not None})
        assert vectors[0].keys() == vectors[1].keys()
        one, other = (torch.cat(list(each.values())) for each in vectors)
        assert torch.cosine_similarity(one, other, dim=0) > 0.95, objective.name


def test_the_average_is_of_all_that_is_trained_and_shares_the_targets(cfg: DictConfig) -> None:
    parts = make(cfg, ema_decay=0.75)
    expected = {name: value.detach().clone() for name, value in parts.trained().items()}
    for _ in range(4):
        parts.update()
        for name, value in parts.trained().items():
            expected[name] = 0.75 * expected[name] + 0.25 * value.detach()
    assert parts.learner.average is not None
    averaged = dict(parts.learner.average.named_parameters())
    for name, value in parts.alg.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(averaged[name], expected[name])
            assert not averaged[name].requires_grad
        else:
            assert averaged[name] is value, name
    by_hand = make_alg(cfg, parts.processor)
    by_hand.load_state_dict({**parts.alg.state_dict(), **expected})
    obs = sample_obs(parts, 10)
    averages = parts.learner.average.eval(), by_hand.eval()
    actions = [act(each, obs, explore=False).action for each in averages]
    torch.testing.assert_close(*actions)


def test_evaluation_acts_by_the_average(cfg: DictConfig, tmp_path: Path) -> None:
    parts = make(cfg)
    run = Run(tmp_path, Status(tmp_path), 0, {})
    settings = cfg.trainer.copy()
    settings.ema_decay = 0.5
    built = parts.alg, parts.processor, parts.dataset, parts.env
    trainer = build(settings, *built, None, None, run)
    trainer.learner.learn(parts.sample())
    space = batch_space(parts.dataset.observation_space, 10)
    space.seed(0)
    obs, policies = space.sample(), (trainer.evaluator.policy, trainer.policy)
    before, collecting = (policy(obs, step=0, explore=False) for policy in policies)
    with torch.no_grad():
        for value in parts.trained().values():
            value.mul_(-1)
    after, moved = (policy(obs, step=0, explore=False) for policy in policies)
    np.testing.assert_array_equal(after, before)
    assert (moved != collecting).any()
