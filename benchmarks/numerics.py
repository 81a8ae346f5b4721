"""Do our updates compute what other implementations do? All weights after 200, in float64.

TD3, SAC, DQN and PPO beside those of Stable-Baselines3, TQC, CrossQ and QR-DQN beside those of
sb3-contrib, whose own ``train`` runs as it is, DrQ-v2 beside benchmarks/drqv2_plain.py. Both begin
with the same weights and learn from the same batches; the global generator is seeded alike before
each update, so that both draw the same noise by themselves.

What differs by intent is bridged from outside, on the side of Stable-Baselines3 where possible:

======  ===========================================================================================
all     it casts observations to float32: here they stay as they are
DQN     it counts environment steps until the target moves: here one per update, after it
QR-DQN  as DQN; and its quantiles' levels are float32, as is what it computes from them: float64
SAC     it halves the critics' loss: their gradients are doubled
SAC     it clips log-std to [-20, 2], we bound it by a tanh: its actor gets our bound
SAC     it adds 1e-6 within log(1 - tanh(x)^2), we nothing: 0
SAC     its temperature's loss is linear in log(alpha), ours in alpha: the gradient is made ours
SAC     it draws the actor's noise before the target's: ours are swapped
TQC     as SAC; but it averages the critics' losses: their gradients are multiplied by their number
TQC     its quantiles' probabilities are float32: it gets them in float64
CrossQ  as SAC, without the last
CrossQ  a batch's variance is unbiased, ours, as in the authors' code, is not: its is made ours
CrossQ  its temperature's Adam has other betas than the others: it gets theirs
======  ===========================================================================================

TD3 needs none but the first. SAC is compared without these bridges, too: the figures would tell.
What needs none: it steps the temperature first and we last, both with the log-densities and for the
temperature of before; our Adam is fused and our critics are one batched product, which only rounds
otherwise. Adam magnifies that where a gradient is about its epsilon, in the first steps by up to
the learning rate over 1e-8.
"""

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial, partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias
from unittest import mock

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn

from benchmarks.drqv2_plain import PlainDrQv2
from benchmarks.measure import RESULTS, ROOT, describe_machine
from research.algs.base import Algorithm
from research.algs.ppo import Judged
from research.algs.sac import Noise
from research.batches import Transition
from research.config import build
from research.files import write_whole
from research.hydra_versions import VERSION_BASE
from research.networks.batch_renorm import BatchRenorm
from research.networks.mlp import EnsembleLinear
from research.networks.squashed_gaussian import SquashedGaussianActor
from research.training.learner import Learner

POINTS = (1, 10, 100, 200)
"""Updates after which the weights are compared."""

FLOATS = Box(-2, 2, (17,), np.float32)
WIDE = Box(-100, 100, (17,), np.float32)
"""Observations so large that the gradient's norm exceeds its bound."""
ACTIONS = Box(-1, 1, (6,), np.float32)
ONES = np.ones(2)
IMAGES = Box(0, 255, (9, 24, 24), np.uint8)

Weights: TypeAlias = tuple[Sequence[Tensor], Sequence[Tensor]]
"""All of ours and all of theirs, in one order."""


class Pair(NamedTuple):
    """An algorithm of ours beside another implementation of it.

    Attributes:
        spaces: of observations and actions.
        learn_ours: makes our update from a batch.
        learn_theirs: makes theirs.
        weights: gives them as they are.

    """

    spaces: tuple[gymnasium.Space, gymnasium.Space]
    learn_ours: Callable[[Transition], Any]
    learn_theirs: Callable[[Transition], Any]
    weights: Callable[[], Weights]


def main() -> None:
    """Compare, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the report")
    arguments = parser.parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    lines = [
        "# Updates beside those of other implementations, float64",
        "",
        "Largest absolute difference of a weight (networks, targets, temperature) after so many",
        "updates, and how far one went at most. How both are made alike: `benchmarks/numerics.py`,",
        "which makes this table.",
        "",
        f"| ours beside | {' | '.join(map(str, POINTS))} | moved |",
        "| --- |" + " --- |" * (len(POINTS) + 1),
    ]
    for name, make in PAIRS.items():
        differences, moved = compare(make())
        cells = [f"{differences[point]:.1e}" for point in POINTS]
        lines.append(f"| {name} | {' | '.join(cells)} | {moved:.1e} |")
    facts = describe_machine(threads=1)
    lines += ["", ", ".join(f"{name} {value}" for name, value in facts.items())]
    text = "\n".join(lines) + "\n"
    write_whole(arguments.results / "numerics.md", text)
    print(text)


def compare(pair: Pair, points: Sequence[int] = POINTS) -> tuple[dict[int, float], float]:
    """Largest differences of weights after so many updates, and the largest move of one of ours."""
    ours, theirs = pair.weights()
    start = [weight.detach().clone() for weight in ours]
    with torch.no_grad():
        for one, other in zip(ours, theirs, strict=True):
            other.copy_(one)
    differences = {}
    for update, batch in enumerate(make_batches(pair.spaces, max(points)), 1):
        for learn in (pair.learn_ours, pair.learn_theirs):
            torch.manual_seed(update)
            learn(batch)
        if update in points:
            differences[update] = largest_difference(*pair.weights())
    return differences, largest_difference(start, pair.weights()[0])


def largest_difference(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest absolute difference between the numbers of two lists of tensors."""
    pairs = zip(ones, others, strict=True)
    return max((one - other).abs().max().item() for one, other in pairs)


def make_batches(
    spaces: tuple[gymnasium.Space, gymnasium.Space], num_batches: int
) -> Iterator[Transition]:
    """Random transitions, a tenth of which end an episode."""
    generator = torch.Generator().manual_seed(0)
    observations, actions = spaces
    size = 16 if observations is IMAGES else 256
    for _ in range(num_batches):
        shape = 2, size, *observations.shape  # type: ignore[misc]
        if observations is IMAGES:
            obs = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        else:
            obs = torch.rand(shape, generator=generator, dtype=torch.float64)
            obs = (2 * obs - 1) * float(observations.high[0])  # type: ignore[attr-defined]
        if isinstance(actions, Discrete):
            action = torch.randint(int(actions.n), (size,), generator=generator)
        else:
            action = torch.rand(size, *ACTIONS.shape, generator=generator, dtype=torch.float64)
            action = 2 * action - 1
        reward = torch.randn(size, generator=generator, dtype=torch.float64)
        ended = torch.rand(size, generator=generator) < 0.1
        yield Transition(obs[0], action, reward, 0.99 * (~ended).double(), obs[1])


def compose_config(*overrides: str) -> DictConfig:
    """The config of train.py."""
    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
        return compose("config", ["device=cpu", *overrides])


def make_ours(cfg: DictConfig, *spaces: gymnasium.Space) -> tuple[Any, Learner]:
    """Our algorithm in float64, and what takes its steps."""
    torch.manual_seed(0)
    alg: Algorithm = build(cfg.alg, build(cfg.network, *spaces)).double()
    names = "max_grad_norm", "prefetch", "precision", "accumulate", "ema_decay", "execution"
    settings = {name: cfg.trainer[name] for name in names}
    processor, dataset = build(cfg.processor, *spaces), None  # batches are handed to learn
    learner = Learner(
        alg,
        processor,
        dataset,  # type: ignore[arg-type]
        torch.device("cpu"),
        total_updates=POINTS[-1],
        schedule=None,
        **settings,
    )
    return alg, learner


def make_theirs(cfg: DictConfig, *spaces: gymnasium.Space) -> Any:
    """Stable-Baselines3's model in float64, which learns from ``model.batch``."""
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.type_aliases import ReplayBufferSamples, RolloutBufferSamples

    from benchmarks.sb3 import make_model

    env = gymnasium.Env()
    env.observation_space, env.action_space = spaces
    model: Any = make_model(cfg, [env])
    model.policy.double()
    model.set_logger(Logger(None, []))
    if not hasattr(model, "replay_buffer"):
        model.rollout_buffer = SimpleNamespace(
            get=lambda _: [RolloutBufferSamples(*model.batch)], values=ONES, returns=ONES
        )
        return model

    def sample(*_: Any, **__: Any) -> ReplayBufferSamples:
        obs, action, reward, discount, next_obs = model.batch
        columns = action.view(len(action), -1), (discount == 0).double()[:, None], reward[:, None]
        return ReplayBufferSamples(obs, columns[0], next_obs, *columns[1:])

    model.replay_buffer.sample = sample
    return model


def train(model: Any, batch: Any, *arguments: int) -> None:
    """An update of a model, with observations as they are instead of cast to float32."""
    model.batch = batch
    with mock.patch("stable_baselines3.common.policies.preprocess_obs", lambda obs, *_, **__: obs):
        model.train(*arguments)


def make_td3() -> Pair:
    """TD3 beside Stable-Baselines3's."""
    cfg = compose_config("alg=td3")
    alg, learner = make_ours(cfg, FLOATS, ACTIONS)
    model = make_theirs(cfg, FLOATS, ACTIONS)

    def weights() -> Weights:
        pairs = (
            (alg.network, model.actor, model.critic),
            (
                alg.target,
                model.actor_target,
                model.critic_target,
            ),
        )
        ours, theirs = [], []
        for network, actor, critic in pairs:
            ours += [*network.actor.parameters(), *list_members(network.critics)]
            theirs += [*actor.parameters(), *critic.parameters()]
        return ours, theirs

    return Pair(
        (FLOATS, ACTIONS),
        learner.learn,
        lambda batch: train(model, batch, 1, len(batch.reward)),
        weights,
    )


def make_sac(*, is_bridged: bool = True) -> Pair:
    """SAC beside Stable-Baselines3's."""
    cfg = compose_config("alg=sac")
    alg, learner = make_ours(cfg, FLOATS, ACTIONS)
    model = make_theirs(cfg, FLOATS, ACTIONS)
    model.log_ent_coef.data = model.log_ent_coef.data.double()
    if is_bridged:
        bridge_entropy(alg, model, factor=2)
        swap_noise(alg)

    def weights() -> Weights:
        ours, theirs = list_actors(alg, model)
        ours += [*list_members(alg.network.critics), *list_members(alg.target_critics)]
        return ours, [*theirs, *model.critic.parameters(), *model.critic_target.parameters()]

    return Pair(
        (FLOATS, ACTIONS),
        learner.learn,
        lambda batch: train(model, batch, 1, len(batch.reward)),
        weights,
    )


def make_tqc() -> Pair:
    """TQC beside sb3-contrib's, with three critics."""
    from sb3_contrib.common.utils import quantile_huber_loss
    from sb3_contrib.tqc import tqc

    sizes = "network.num_critics=3", "network.critic_hidden_dims=[64,64]"
    cfg = compose_config("alg=tqc", *sizes)
    alg, learner = make_ours(cfg, FLOATS, ACTIONS)
    model = make_theirs(cfg, FLOATS, ACTIONS)
    model.log_ent_coef.data = model.log_ent_coef.data.double()
    bridge_entropy(alg, model, factor=3)
    swap_noise(alg)
    midpoints = (torch.arange(25, dtype=torch.float64).view(1, 1, -1, 1) + 0.5) / 25
    loss = partial(quantile_huber_loss, cum_prob=midpoints)

    def learn_theirs(batch: Transition) -> None:
        with mock.patch.object(tqc, "quantile_huber_loss", loss):
            train(model, batch, 1, len(batch.reward))

    def weights() -> Weights:
        ours, theirs = list_actors(alg, model)
        ours += [*list_members(alg.network.critics), *list_members(alg.target_critics)]
        return ours, [*theirs, *model.critic.parameters(), *model.critic_target.parameters()]

    return Pair((FLOATS, ACTIONS), learner.learn, learn_theirs, weights)


def make_crossq() -> Pair:
    """CrossQ beside sb3-contrib's, with norms that are warm after one batch."""
    sizes = "network.warmup=1", "network.critic_hidden_dims=[256,256]"
    cfg = compose_config("alg=crossq", *sizes)
    alg, learner = make_ours(cfg, FLOATS, ACTIONS)
    model = make_theirs(cfg, FLOATS, ACTIONS)
    model.log_ent_coef.data = model.log_ent_coef.data.double()
    bridge_entropy(alg, model, factor=2)
    model.ent_coef_optimizer.param_groups[0]["betas"] = tuple(cfg.alg.optim.betas)
    biased = partialmethod(Tensor.var, correction=0)

    def learn_theirs(batch: Transition) -> None:
        with mock.patch.object(Tensor, "var", biased):
            train(model, batch, 1, len(batch.reward))

    def weights() -> Weights:
        ours, theirs = list_actors(alg, model)
        ours += list_members(alg.network.critics)
        theirs += model.critic.parameters()
        for norms, others in (
            (alg.network.actor, model.actor),
            (alg.network.critics, model.critic),
        ):
            ours += list_statistics(norms)
            theirs += [buffer for name, buffer in others.named_buffers() if "ra_" in name]
        return ours, theirs

    return Pair((FLOATS, ACTIONS), learner.learn, learn_theirs, weights)


def bridge_entropy(alg: Any, model: Any, *, factor: float) -> None:
    """Give a model our log-std, density and temperature, and multiply its critics' gradients."""
    log_temperature = model.log_ent_coef
    model.actor.log_std = nn.Sequential(model.actor.log_std, Bound(alg.network.actor))
    model.actor.action_dist.epsilon = 0.0
    log_temperature.register_hook(lambda gradient: gradient * log_temperature.detach().exp())
    for parameter in model.critic.parameters():
        parameter.register_hook(lambda gradient: factor * gradient)


def swap_noise(alg: Any) -> None:
    """Let our algorithm draw the actor's noise before the target's."""
    draw = alg.draw
    alg.draw = lambda batch, step: Noise(*reversed(draw(batch, step)))


def list_actors(alg: Any, model: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The weights of our actor and theirs, and the temperatures."""
    *hidden, weight, bias = alg.network.actor.parameters()
    mean, log_std = zip(weight.chunk(2), bias.chunk(2), strict=True)
    actor = model.actor
    theirs = [*actor.latent_pi.parameters(), *actor.mu.parameters(), *actor.log_std.parameters()]
    ours = [*hidden, *mean, *log_std, alg.log_temperature.view(1)]
    return ours, [*theirs, model.log_ent_coef]


class Bound(nn.Module):
    """Our bound of the log-std (B, A), for another actor."""

    def __init__(self, actor: SquashedGaussianActor) -> None:
        super().__init__()
        self.middle, self.half_width = actor.middle, actor.half_width

    def forward(self, raw: Tensor) -> Tensor:
        return self.middle + self.half_width * raw.tanh()


def make_dqn() -> Pair:
    """Plain DQN beside Stable-Baselines3's, with a target that moves every 7 updates."""
    spaces = WIDE, Discrete(5)
    cfg = compose_config("alg=dqn", "alg.double=false", "alg.target_every=7", "dataset.n_step=1")
    alg, learner = make_ours(cfg, *spaces)
    cfg.trainer.pace.steps_per_update = 1
    model = make_theirs(cfg, *spaces)

    def learn_theirs(batch: Transition) -> None:
        train(model, batch, 1, len(batch.reward))
        model._on_step()

    def weights() -> Weights:
        ours = [*alg.network.parameters(), *alg.target.parameters()]
        return ours, [*model.q_net.parameters(), *model.q_net_target.parameters()]

    return Pair(spaces, learner.learn, learn_theirs, weights)


def make_qrdqn() -> Pair:
    """QR-DQN beside sb3-contrib's, with a target that moves every 7 updates."""
    from sb3_contrib.common.utils import quantile_huber_loss

    spaces = WIDE, Discrete(5)
    cfg = compose_config("alg=qrdqn", "alg.target_every=7", "dataset.n_step=1")
    alg, learner = make_ours(cfg, *spaces)
    cfg.trainer.pace.steps_per_update = 1
    model = make_theirs(cfg, *spaces)
    levels = (torch.arange(alg.num_atoms, dtype=torch.float64) + 0.5) / alg.num_atoms
    loss = partial(quantile_huber_loss, cum_prob=levels.view(1, -1, 1))

    def learn_theirs(batch: Transition) -> None:
        with mock.patch("sb3_contrib.qrdqn.qrdqn.quantile_huber_loss", loss):
            train(model, batch, 1, len(batch.reward))
        model._on_step()

    def list_quantiles(network: Any) -> list[Tensor]:
        """Weights and biases, those of the last layer by quantiles, then actions."""
        *hidden, weight, bias = network.parameters()
        last = (part.unflatten(0, (5, -1)).transpose(0, 1).flatten(0, 1) for part in (weight, bias))
        return [*hidden, *last]

    def weights() -> Weights:
        ours = [*list_quantiles(alg.network), *list_quantiles(alg.target)]
        return ours, [*model.quantile_net.parameters(), *model.quantile_net_target.parameters()]

    return Pair(spaces, learner.learn, learn_theirs, weights)


def make_ppo(actions: gymnasium.Space = ACTIONS, *overrides: str) -> Pair:
    """PPO beside Stable-Baselines3's, on steps that a policy of before has taken."""
    spaces = FLOATS, actions
    pace = "trainer.pace.horizon=256", "trainer.pace.minibatches=1", "trainer.pace.epochs=1"
    cfg = compose_config("alg=ppo", "alg.entropy_weight=0.01", *pace, *overrides)
    alg, learner = make_ours(cfg, *spaces)
    model, old = make_theirs(cfg, *spaces), copy.deepcopy(alg.network)

    def judge(batch: Transition) -> Judged:
        with torch.no_grad():
            distribution, value = old(batch.obs)
            log_prob = distribution.log_prob(batch.action)
        advantage = 3 * batch.reward + 1
        return Judged(batch.obs, batch.action, log_prob, value, advantage, value + advantage)

    def learn_ours(batch: Transition) -> None:
        for descent in (learner.descents or {}).values():
            descent.is_stopped = False  # each batch is a rollout of its own
        learner.learn(judge(batch))

    def learn_theirs(batch: Transition) -> None:
        obs, action, log_prob, value, advantage, target = judge(batch)
        train(model, (obs, action.double(), value, log_prob, advantage, target))

    def weights() -> Weights:
        network, policy = alg.network, model.policy
        means = [*network.actor.parameters()], [*policy.mlp_extractor.policy_net.parameters()]
        values = network.value.parameters(), policy.mlp_extractor.value_net.parameters()
        ours, theirs = [*means[0], *values[0]], [*means[1], *policy.action_net.parameters()]
        theirs += [*values[1], *policy.value_net.parameters()]
        if network.log_std is not None:
            ours, theirs = [*ours, network.log_std], [*theirs, policy.log_std]
        return ours, theirs

    return Pair(spaces, learn_ours, learn_theirs, weights)


def make_bounded_ppo() -> Pair:
    """PPO with discrete actions and all that is off by default."""
    bounds = "alg.clip_value=0.5", "alg.target_kl=0.05"
    return make_ppo(Discrete(5), *bounds)


def make_drqv2() -> Pair:
    """DrQ-v2 beside the plain implementation, at step 50."""
    cfg = compose_config("alg=drqv2", "network.hidden_dims=[256,256]")
    alg, learner = make_ours(cfg, IMAGES, ACTIONS)
    optim = build(cfg.alg.optim)
    optim.keywords.pop("fused", None)
    plain = PlainDrQv2(alg, optim=optim, pad=cfg.processor.pad)

    def learn_ours(batch: Transition) -> None:
        learner.step.fill_(50)
        learner.learn(learner.processor(batch))

    def weights() -> Weights:
        network = alg.network
        ours = [*network.encoder.parameters(), *network.actor.parameters()]
        theirs = [*plain.encoder.parameters(), *plain.actor.parameters()]
        for critics, twins in (
            (network.critics, plain.critics),
            (alg.target_critics, plain.target_critics),
        ):
            ours += [*critics.trunk.parameters(), *list_members(critics.critics)]
            theirs += twins.parameters()
        return ours, theirs

    return Pair((IMAGES, ACTIONS), learn_ours, lambda batch: plain.update(batch, 50), weights)


def list_members(critics: Any) -> list[Tensor]:
    """Weights and biases of one critic after the other, as of layers of torch's own."""
    weights = []
    for member in range(critics.ensemble.num_members):
        for layer in critics.ensemble.layers:
            if isinstance(layer, EnsembleLinear):
                weights += [layer.weight[member].t(), layer.bias[member, 0]]
            elif isinstance(layer, BatchRenorm):
                dim = layer.shape[-1]
                weights += [part.view(-1, dim)[member] for part in (layer.weight, layer.bias)]
    return weights


def list_statistics(network: nn.Module) -> list[Tensor]:
    """Running means and variances of one member after the other."""
    norms = [layer for layer in network.modules() if isinstance(layer, BatchRenorm)]
    return [
        part.view(-1, layer.shape[-1])[member]
        for member in range(norms[0].shape[0])
        for layer in norms
        for part in (layer.running_mean, layer.running_var)
    ]


PAIRS: dict[str, Callable[[], Pair]] = {
    "TD3: Stable-Baselines3": make_td3,
    "SAC: Stable-Baselines3": make_sac,
    "SAC: Stable-Baselines3, not bridged": lambda: make_sac(is_bridged=False),
    "TQC: sb3-contrib": make_tqc,
    "CrossQ: sb3-contrib": make_crossq,
    "DQN: Stable-Baselines3": make_dqn,
    "QR-DQN: sb3-contrib": make_qrdqn,
    "PPO: Stable-Baselines3": make_ppo,
    "PPO, discrete, value and divergence bounded: Stable-Baselines3": make_bounded_ppo,
    "DrQ-v2: `benchmarks/drqv2_plain.py`": make_drqv2,
}


if __name__ == "__main__":
    main()
