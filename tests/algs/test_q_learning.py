"""What DQN, C51 and QR-DQN share: noise on the weights, weights of examples, the next action."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from research.algs.c51 import C51
from research.algs.dqn import DQN
from research.algs.q_learning import Noise, QLearning, pick
from research.algs.qrdqn import QRDQN
from research.batches import Transition, WeightedTransition, add_weight
from research.networks.predictor import FlatMLP
from research.networks.q_network import QNetwork
from tests.algs.learning import make_learner

NUMBERS: dict[str, Any] = {
    "double": True,
    "tau": 0.5,
    "target_every": 1,
    "explore_start": 0.0,
    "explore_end": 0.0,
    "explore_steps": 1,
}
ALGS: dict[str, tuple[type[QLearning], int | None, dict[str, Any]]] = {
    "dqn": (DQN, None, {}),
    "c51": (C51, 5, {"v_min": -2.0, "v_max": 2.0}),
    "qrdqn": (QRDQN, 4, {"kappa": 1.0}),
}
OBS, ACTIONS = Box(-1, 1, (2,), np.float32), Discrete(3)
NOW = torch.tensor(0.0)


def make_network(
    num_atoms: int | None, noise_scale: float | None = None, actions: Any = ACTIONS
) -> QNetwork:
    return QNetwork(
        OBS,
        actions,
        hidden_dims=(8,),
        activation=nn.Tanh,
        dueling=True,
        noise_scale=noise_scale,
        num_atoms=num_atoms,
        encoder=None,
    )


def make(name: str, noise_scale: float | None = None, **changes: Any) -> QLearning:
    kind, num_atoms, numbers = ALGS[name]
    network = make_network(num_atoms, noise_scale)
    optim = partial(torch.optim.SGD, lr=0.1)
    return kind(network, optim=optim, **(NUMBERS | numbers | changes))


def make_batch(size: int = 12) -> Transition:
    obs, next_obs = torch.rand(2, size, 2) * 2 - 1
    discount = torch.full((size,), 0.9)
    discount[::3] = 0.0
    return Transition(obs, torch.arange(size) % 3, torch.randn(size), discount, next_obs)


def gradients(alg: QLearning, batch: Any, noise: Noise | None = None) -> list[Tensor]:
    return list(torch.autograd.grad(alg.loss(batch, noise).value, [*alg.network.parameters()]))


@pytest.mark.parametrize("name", ALGS)
def test_weights_scale_every_examples_gradient(name: str) -> None:
    alg, batch = make(name), make_batch()
    weight = torch.rand(12)
    weighted = gradients(alg, add_weight(batch, weight))
    alone = [
        gradients(alg, Transition(*(part[index : index + 1] for part in batch)))
        for index in range(12)
    ]
    for index, gradient in enumerate(weighted):
        parts = torch.stack([each[index] for each in alone])
        expected = (weight.view(-1, *[1] * gradient.ndim) * parts).mean(0)
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", ALGS)
def test_weights_of_one_change_nothing(name: str) -> None:
    alg, batch = make(name), make_batch()
    weighted = add_weight(batch, torch.ones(12))
    assert isinstance(weighted, WeightedTransition)
    for one, other in zip(gradients(alg, batch), gradients(alg, weighted), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ALGS)
@pytest.mark.parametrize("noise_scale", [None, 0.5])
def test_priorities_are_those_of_each_example(name: str, noise_scale: float | None) -> None:
    """Whatever its neighbours and its weight are, and detached from what is learned."""
    alg, batch = make(name, noise_scale), make_batch()
    noise = alg.draw(batch, NOW)
    weighted = add_weight(batch, torch.rand(12))
    priority = alg.loss(weighted, noise).priority  # type: ignore[arg-type]
    assert priority is not None
    assert priority.shape == (12,)
    assert (priority >= 0).all()
    assert priority.std() > 0
    part = Transition(*(each[3:5] for each in batch))
    some = None if noise is None else Noise(*(n[3:5] for n in noise if n is not None))
    torch.testing.assert_close(alg.loss(part, some).priority, priority[3:5])
    assert alg.objectives()[0].prioritises


@pytest.mark.parametrize("name", ALGS)
@pytest.mark.parametrize("double", [False, True])
def test_the_next_action_is_that_of_the_right_network(name: str, double: bool) -> None:
    alg, batch = make(name, double=double), make_batch()
    for parameter in alg.target.parameters():
        nn.init.normal_(parameter)
    output = alg.target(batch.next_obs)
    best = [alg.values(net(batch.next_obs)).argmax(1) for net in (alg.target, alg.network)]
    assert not torch.equal(*best)
    expected = torch.stack([output[row, best[double][row]] for row in range(12)])
    assert torch.equal(alg.next_output(batch, None), expected)


@pytest.mark.parametrize("name", ALGS)
@pytest.mark.parametrize("double", [False, True])
def test_each_use_of_the_network_has_noise_of_its_own(name: str, double: bool) -> None:
    alg, batch = make(name, 0.5, double=double), make_batch()
    noise = alg.draw(batch, NOW)
    assert noise is not None
    assert (noise.choice is not None) == double
    drawn = [part for part in noise if part is not None]
    assert all(part.shape == drawn[0].shape and len(part) == 12 for part in drawn)
    assert not torch.equal(noise.network, noise.target)
    output = alg.target(batch.next_obs, noise.target)
    chooser = alg.network(batch.next_obs, noise.choice) if double else output
    best = alg.values(chooser).argmax(1)
    assert torch.equal(alg.next_output(batch, noise), pick(output, best))
    taken = pick(alg.network(batch.obs, noise.network), batch.action)
    assert torch.equal(alg.taken_output(batch, noise), taken)


@pytest.mark.parametrize("name", ALGS)
def test_noise_on_the_weights_explores_and_is_left_out_otherwise(name: str) -> None:
    alg, obs = make(name, 3.0), torch.zeros(500, 2)
    best = alg.values(alg.network(obs)).argmax(1)
    assert torch.equal(alg.act(obs, NOW, explore=False), best)
    explored = [alg.act(obs, NOW, explore=True) for _ in range(2)]
    assert (explored[0] != best).any()
    assert not torch.equal(*explored), "each call has noise of its own"
    assert len(explored[0].unique()) > 1, "and each of its observations"


@pytest.mark.parametrize("name", ALGS)
def test_the_size_of_the_noise_is_learned(name: str) -> None:
    alg = make(name, 0.5)
    before = {n: p.clone() for n, p in alg.network.named_parameters() if "_noise" in n}
    make_learner(alg).learn(make_batch())
    after = dict(alg.network.named_parameters())
    assert before
    assert not any(torch.equal(after[key], value) for key, value in before.items())


def test_the_outputs_of_actions_are_picked() -> None:
    output, action = torch.arange(24).view(2, 3, 4), torch.tensor([2, 0], dtype=torch.int32)
    assert pick(output, action).tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert pick(output[:, :, 0], action).tolist() == [8, 12]


@pytest.mark.parametrize("name", ALGS)
def test_actions_that_are_not_discrete_are_refused(name: str) -> None:
    kind, num_atoms, numbers = ALGS[name]
    network = make_network(num_atoms, actions=Box(-1, 1, (2,), np.float32))
    with pytest.raises(ValueError, match=rf"{kind.__name__} chooses among discrete.*alg=td3"):
        kind(network, optim=torch.optim.Adam, **(NUMBERS | numbers))


@pytest.mark.parametrize(
    ("name", "num_atoms", "message"),
    [
        ("dqn", 51, r"DQN learns a value of every action, but .* 51 atoms; try network.num_atoms="),
        ("c51", 1, r"C51 needs .* at least 2 atoms .* got 1; try network=q_network network.num_"),
        ("c51", None, r"C51 needs .* at least 2 atoms for every action, got one without; try"),
        ("qrdqn", None, r"QRDQN needs .* at least 1 atoms for every action, got one without; try"),
    ],
)
def test_a_network_with_atoms_is_for_those_that_need_them(
    name: str, num_atoms: int | None, message: str
) -> None:
    kind, _, numbers = ALGS[name]
    with pytest.raises(ValueError, match=message):
        kind(make_network(num_atoms), optim=torch.optim.Adam, **(NUMBERS | numbers))


def test_a_perceptron_without_atoms_is_refused() -> None:
    options: dict[str, Any] = {"activation": nn.ReLU, "layer_norm": False, "init": None}
    network = FlatMLP(OBS, ACTIONS, hidden_dims=(8,), **options)
    with pytest.raises(ValueError, match="C51 needs a network with at least 2 atoms"):
        C51(network, optim=torch.optim.Adam, **NUMBERS, v_min=0.0, v_max=1.0)


@pytest.mark.parametrize("name", ALGS)
@pytest.mark.parametrize("noise_scale", [None, 0.5])
def test_finds_the_end_of_a_chain(name: str, noise_scale: float | None) -> None:
    """Action 2 moves on, the others stay; only the last of 4 moves is rewarded."""
    kind, num_atoms, own = ALGS[name]
    numbers = NUMBERS | own
    if name == "c51":
        numbers |= {"v_min": -0.5, "v_max": 1.5}
    network = QNetwork(
        Box(0, 1, (4,), np.float32),
        ACTIONS,
        hidden_dims=(),
        activation=nn.ReLU,
        dueling=False,
        noise_scale=noise_scale,
        num_atoms=num_atoms and 21,
        encoder=None,
    )
    alg = kind(network, optim=partial(torch.optim.Adam, lr=0.05), **numbers)
    learner, places = make_learner(alg), torch.eye(4)
    for _ in range(300):
        place, action = torch.randint(4, (64,)), torch.randint(3, (64,))
        following = place + (action == 2)
        ended = (following == 4).float()
        next_obs = places[following.clamp(max=3)]
        learner.learn(Transition(places[place], action, ended, 0.7 * (1 - ended), next_obs))
    assert alg.act(places, NOW, explore=False).tolist() == [2, 2, 2, 2]
    expected = torch.tensor([0.7**3, 0.7**2, 0.7, 1.0])
    values = alg.values(alg.network(places))[:, 2]
    torch.testing.assert_close(values, expected, atol=0.1, rtol=0)
