"""Algorithms on images and vectors: which loss trains the encoder, and runs that must learn."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import Tensor, nn

from research.algs.crossq import CrossQ
from research.algs.sac import SAC, Noise
from research.algs.sac_discrete import SACDiscrete
from research.algs.td3 import TD3
from research.algs.tqc import TQC
from research.batches import Transition
from research.networks.actor_critic import ActorCritic
from research.networks.batch_renorm import BatchRenormActorCritic
from research.networks.categorical import CategoricalActorCritic
from research.networks.encoders import ImageEncoder, MultiInput
from research.networks.quantile_critics import QuantileActorCritic
from research.networks.squashed_gaussian import SquashedGaussianActorCritic
from tests.algs.learning import make_learner
from tests.algs.test_crossq import NUMBERS as CROSSQ_NUMBERS
from tests.algs.test_sac import NUMBERS as SAC_NUMBERS
from tests.algs.test_sac_discrete import NUMBERS as SAC_DISCRETE_NUMBERS
from tests.algs.test_td3 import ADAM, START, shift, snapshot
from tests.algs.test_td3 import NUMBERS as TD3_NUMBERS
from tests.algs.test_tqc import NUMBERS as TQC_NUMBERS
from tests.commands import train
from tests.test_kill import compare
from tests.training.toys import rows

SPACE = Dict(image=Box(0, 255, (1, 5, 5), np.uint8), state=Box(-1, 1, (2,), np.float32))
ACTIONS = Box(-1, 1, (2,), np.float32)
IMAGE = partial(
    ImageEncoder, channels=[4], kernels=[3], strides=[2], feature_dim=6, init=nn.init.orthogonal_
)
LAYERS: dict[str, Any] = {
    "hidden_dims": (32,),
    "num_critics": 2,
    "activation": nn.ELU,
    "layer_norm": False,
    "init": None,
    "encoder": partial(MultiInput, image=IMAGE),
}

Make: TypeAlias = Callable[..., Any]


def make_sac(optim: Any = ADAM) -> SAC:
    network = SquashedGaussianActorCritic(SPACE, ACTIONS, **LAYERS, log_std_bounds=(-5, 2))
    numbers: dict[str, Any] = {**SAC_NUMBERS, "temperature": 0.02}
    return SAC(network, optim=optim, **numbers)


def make_td3(optim: Any = ADAM) -> TD3:
    return TD3(ActorCritic(SPACE, ACTIONS, **LAYERS), optim=optim, **TD3_NUMBERS)


def make_tqc(optim: Any = ADAM) -> TQC:
    layers = {**LAYERS, "actor_hidden_dims": (32,), "critic_hidden_dims": (32,)}
    del layers["hidden_dims"]
    network = QuantileActorCritic(SPACE, ACTIONS, **layers, num_quantiles=3, log_std_bounds=(-5, 2))
    numbers: dict[str, Any] = {**TQC_NUMBERS, "temperature": 0.02}
    return TQC(network, optim=optim, **numbers)


def make_crossq(optim: Any = ADAM) -> CrossQ:
    layers = {**LAYERS, "actor_hidden_dims": (32,), "critic_hidden_dims": (32,)}
    del layers["hidden_dims"], layers["layer_norm"]
    network = BatchRenormActorCritic(
        SPACE, ACTIONS, **layers, log_std_bounds=(-5, 2), momentum=0.1, warmup=100
    )
    numbers: dict[str, Any] = {**CROSSQ_NUMBERS, "temperature": 0.02}
    return CrossQ(network, optim=optim, **numbers)


def make_sac_discrete(optim: Any = ADAM) -> SACDiscrete:
    network = CategoricalActorCritic(SPACE, Discrete(3), **LAYERS)
    return SACDiscrete(network, optim=optim, **SAC_DISCRETE_NUMBERS)


def make_discrete(batch: Transition) -> Transition:
    return batch._replace(action=torch.arange(len(batch.reward)) % 3)


def make_batch(size: int = 32, discount: float = 0.9) -> Transition:
    """Steps of a bandit whose best action is the image's brightness, and half of the state."""
    shade, next_shade = torch.randint(256, (2, size, 1, 1, 1), dtype=torch.uint8)
    state, next_state = torch.rand(2, size, 2) * 2 - 1
    action = torch.rand(size, 2) * 2 - 1
    reward = -(action - best(shade, state)).square().sum(dim=-1)
    observed = [
        {"image": image.expand(-1, 1, 5, 5), "state": vector}
        for image, vector in ((shade, state), (next_shade, next_state))
    ]
    return Transition(observed[0], action, reward, torch.full((size,), discount), observed[1])


def best(shade: Tensor, state: Tensor) -> Tensor:
    return torch.stack([shade.flatten() / 255 - 0.5, state[:, 0] / 2], dim=1)


def double(batch: Transition) -> Transition:
    """A batch in float64; images stay as they are."""
    observed = [{**obs, "state": obs["state"].double()} for obs in (batch.obs, batch.next_obs)]
    action, reward, discount = (t.double() for t in (batch.action, batch.reward, batch.discount))
    return Transition(observed[0], action, reward, discount, observed[1])


def target_by_hand(alg: Any, batch: Transition, noise: Tensor) -> Tensor:
    """The target, from the networks that the papers name."""
    if isinstance(alg, TD3):
        features = alg.target.encoder(batch.next_obs)
        smooth = (0.2 * noise).clamp(-0.5, 0.5)
        action = (alg.target.actor(features) + smooth).clamp(-1, 1)
        return batch.reward + batch.discount * alg.target.critics(features, action).amin(dim=0)
    temperature = alg.log_temperature.exp()
    action, log_prob = alg.network.actor(alg.network.encoder(batch.next_obs)).sample(noise)
    q = alg.target_critics(alg.target_encoder(batch.next_obs), action).amin(dim=0)
    return batch.reward + batch.discount * (q - temperature * log_prob)


@pytest.mark.parametrize("make", [make_sac, make_td3])
def test_an_update_trains_the_encoder_by_the_critics_loss_alone(make: Make) -> None:
    alg, batch = make(partial(torch.optim.SGD, lr=0.0)).double(), double(make_batch())
    shift(alg.network)
    torch.manual_seed(3)
    drawn = alg.draw(batch, START)
    noise = drawn.target if isinstance(drawn, Noise) else drawn
    target_q = target_by_hand(alg, batch, noise).detach()
    learner = make_learner(alg)
    learner.updates = 1  # the second update is the actor's turn
    torch.manual_seed(3)
    assert "actor_loss" in learner.learn(batch)
    encoder, critics = alg.network.encoder, alg.network.critics
    q = critics(encoder(batch.obs), batch.action)
    trained = [*encoder.parameters(), *critics.parameters()]
    loss = (q - target_q).square().sum() / 32
    gradients = torch.autograd.grad(loss, trained)
    for parameter, gradient in zip(trained, gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-12)
    assert any(gradient.abs().max() > 1e-6 for gradient in gradients[: len(gradients) // 2])


@pytest.mark.parametrize("make", [make_tqc, make_crossq, make_sac_discrete])
def test_the_encoder_learns_from_the_critics_loss(make: Make) -> None:
    alg, batch = make(partial(torch.optim.SGD, lr=0.0)).double(), double(make_batch())
    if make is make_sac_discrete:
        batch = make_discrete(batch)
    shift(alg.network)
    learner = make_learner(alg)
    torch.manual_seed(3)
    loss = alg.critic_loss(batch, alg.draw(batch, START)).value
    trained = [*alg.network.encoder.parameters(), *alg.network.critics.parameters()]
    gradients = torch.autograd.grad(loss, trained)
    for _ in range(alg.actor_every):  # to the actor's turn
        torch.manual_seed(3)
        metrics = learner.learn(batch)
    assert "actor_loss" in metrics
    for parameter, gradient in zip(trained, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("make", [make_tqc, make_sac_discrete])
def test_the_target_comes_from_the_encoders_copy(make: Make) -> None:
    alg, batch = make().double(), double(make_batch())
    shift(alg.network)
    noise = [torch.randn_like(batch.action)] if make is make_tqc else []
    target = alg.compute_target(batch, *noise)
    alg.network.encoder, online = alg.target_encoder, alg.network.encoder  # what the actor sees
    assert not torch.allclose(alg.compute_target(batch, *noise), target)
    alg.network.encoder = online
    torch.testing.assert_close(alg.compute_target(batch, *noise), target)
    alg.target_encoder = online  # what the critics' copies see
    assert not torch.allclose(alg.compute_target(batch, *noise), target)


@pytest.mark.parametrize("make", [make_sac, make_td3, make_tqc, make_crossq, make_sac_discrete])
def test_the_actor_sees_the_features_and_its_gradient_ends_there(make: Make) -> None:
    alg, batch = make().double(), double(make_batch())
    if make is make_sac_discrete:
        batch = make_discrete(batch)
    drawn = alg.draw(batch, START)
    features = alg.critic_loss(batch, drawn).result
    assert torch.equal(features, alg.network.encoder(batch.obs))
    loss = alg.actor_loss(batch, drawn, features.detach()).value
    encoder, actor = alg.network.encoder.parameters(), alg.network.actor.parameters()
    assert all(
        g is None
        for g in torch.autograd.grad(loss, [*encoder], allow_unused=True, retain_graph=True)
    )
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(loss, [*actor]))


@pytest.mark.parametrize("make", [make_sac, make_td3, make_tqc])
def test_the_targets_encoder_follows_the_critics(make: Make) -> None:
    alg = make()
    target = alg.target.encoder if isinstance(alg, TD3) else alg.target_encoder
    assert not any(parameter.requires_grad for parameter in target.parameters())
    learner, before = make_learner(alg), snapshot(target)
    for _ in range(2):
        online = snapshot(alg.network.encoder)
        learner.learn(make_batch())
        assert not torch.equal(online[0], snapshot(alg.network.encoder)[0])
    after, goal = snapshot(target), snapshot(alg.network.encoder)
    for old, new, end in zip(before, after, goal, strict=True):
        assert not torch.equal(old, new)
        assert (new - old).abs().max() < 0.11 * (end - old).abs().max() + 1e-7


@pytest.mark.parametrize("make", [make_sac, make_td3, make_tqc, make_crossq])
def test_solves_a_bandit_of_images_and_vectors(make: Make) -> None:
    alg = make(partial(torch.optim.Adam, lr=5e-3))
    learner = make_learner(alg)
    for _ in range(600):
        learner.learn(make_batch(64, discount=0.0))
    obs = make_batch(256).obs
    wanted = best(obs["image"][:, 0, 0, 0], obs["state"])
    error = alg.act(obs, START, explore=False) - wanted
    assert error.abs().mean() < 0.1  # 0.25 untrained


SPOT = ("env=gymnasium", "env.id=tests.envs.spot:Spot-v0", "trusted_modules=[tests]")
BOTH = ("env.flatten_obs=false", "network/encoder=multi_input")
SMALL_IMAGES = "network/encoder@network.encoder.image=minatar"
STACKED = ("+env.kwargs.shows=image", "env.frame_stack=2", "network/encoder=minatar")
OFF_POLICY = ("dataset.capacity=1000", "dataset.batch_size=16", "trainer.pace.warmup_steps=40")
ROLLOUTS = ("trainer.pace.horizon=30", "trainer.pace.minibatches=3", "trainer.pace.epochs=2")
SMALL_TQC = ("alg=tqc", "network.num_critics=2", "network.critic_hidden_dims=[64]")
SMALL_CROSSQ = ("alg=crossq", "network.critic_hidden_dims=[64]")
DISCRETE = (*STACKED, "+env.kwargs.discrete=true", *OFF_POLICY)
SEEING = ("alg=sac", *BOTH, SMALL_IMAGES, *OFF_POLICY)
KILLED = {
    "SAC, image and vector": SEEING,
    "SAC, stacked images and vector": (*SEEING, "env.frame_stack=2"),
    "PPO, stacked images": ("alg=ppo", "network=actor_value_cnn", *STACKED, *ROLLOUTS),
}
RUNS = {
    "TD3, stacked images": ("alg=td3", *STACKED, *OFF_POLICY, "env.num_envs=2"),
    "TQC, image and vector": (*SMALL_TQC, *BOTH, SMALL_IMAGES, *OFF_POLICY),
    "CrossQ, image and vector": (*SMALL_CROSSQ, *BOTH, SMALL_IMAGES, *OFF_POLICY),
    "PPO, image and vector": ("alg=ppo", *BOTH, SMALL_IMAGES, *ROLLOUTS, "env.num_envs=2"),
    "DQN, stacked images": ("alg=dqn", *DISCRETE),
    "discrete SAC, stacked images": ("alg=sac_discrete", *DISCRETE),
}
LENGTHS = (
    *("trainer.log_every=20", "trainer.checkpoints.every=60", "trainer.evaluation.every=120"),
    *("trainer.total_steps=240", "trainer.evaluation.episodes=2"),
)


@pytest.mark.parametrize("run", KILLED)
def test_a_run_on_images_ends_as_one_that_was_not_killed(tmp_path: Path, run: str) -> None:
    compare(tmp_path, [*KILLED[run], *SPOT, *LENGTHS], seed=run, num_steps=240, num_kills=2)


@pytest.mark.parametrize("run", RUNS)
def test_an_algorithm_trains_on_images(tmp_path: Path, run: str) -> None:
    process = train(tmp_path / "run", *RUNS[run], *SPOT, *LENGTHS)
    process.join()
    assert process.exitcode == 0
    assert rows(tmp_path / "run" / "eval.csv")[-1]["step"] == 240


@pytest.mark.slow
def test_sac_learns_to_point_at_what_it_sees(tmp_path: Path) -> None:
    overrides = [*SEEING, *SPOT, "trainer.total_steps=2000"]
    process = train(tmp_path / "run", *overrides, "trainer.evaluation.every=1000")
    process.join()
    returns = [row["return"] for row in rows(tmp_path / "run" / "eval.csv")]
    assert returns[-1] > -4  # -27 on average at random, -18 of a policy that sees nothing
