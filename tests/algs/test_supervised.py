"""Learning from examples: batches, averages, shares of several processes, losses of one's own."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from research.algs.base import OptimFactory
from research.algs.regression import Regression
from research.algs.supervised import Supervised
from research.batches import Example
from research.errors import UserError
from research.networks.cnn import CNN
from research.networks.predictor import FlatMLP, Predictor
from research.training.learner import Learner
from tests.algs.learning import make_learner
from tests.commands import start
from tests.networks.test_predictor import images

SGD = partial(torch.optim.SGD, lr=0.1)
VALUES = Box(-np.inf, np.inf, (2,), np.float32)


def make_mlp(targets: Any = VALUES, *, hidden_dims: tuple[int, ...] = (8,)) -> FlatMLP:
    """A perceptron on observations (3,)."""
    return FlatMLP(
        images(3),
        targets,
        hidden_dims=hidden_dims,
        activation=nn.Tanh,
        layer_norm=True,
        init=None,
    )


def make(
    network: Predictor | None = None, *, optim: OptimFactory = SGD, **settings: Any
) -> Learner:
    """A regression's learner; the same network every time unless one is given."""
    if network is None:
        torch.manual_seed(1)
        network = make_mlp()
    return make_learner(Regression(network, optim=optim), **settings)


def make_batch(size: int = 10) -> Example:
    return Example(torch.randn(size, 3), torch.randn(size, 2))


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in learner.alg.named_parameters()}


def train(learner: Learner, batches: list[Example]) -> None:
    for batch in batches:
        learner.learn(batch)


def test_an_update_descends_the_gradient_of_the_mean() -> None:
    learner, batch = make(), make_batch()
    network, before = learner.alg.get_submodule("network"), weights(learner)
    losses = [(network(o[None]) - t).square().mean() for o, t in zip(*batch, strict=True)]
    slopes = torch.autograd.grad(torch.stack(losses).mean(), list(network.parameters()))
    metrics = learner.learn(batch)
    for (name, value), slope in zip(weights(learner).items(), slopes, strict=True):
        torch.testing.assert_close(value, before[name] - 0.1 * slope)
    assert metrics["loss"].item() == pytest.approx(torch.stack(losses).mean().item())


@pytest.mark.parametrize("num_parts", [2, 3, 10, 13])
def test_a_batch_in_parts_is_the_batch_as_a_whole(num_parts: int) -> None:
    whole, parts, batch = make(), make(accumulate=num_parts), make_batch()
    torch.testing.assert_close(parts.learn(batch), whole.learn(batch))
    torch.testing.assert_close(weights(parts), weights(whole))


def make_cnn() -> CNN:
    return CNN(images(1, 4, 4), VALUES, channels=[4], dropout=0.0, channels_last=False)


def test_the_average_takes_the_newest_statistics() -> None:
    learner = make(make_cnn(), ema_decay=0.9)
    train(learner, [Example(torch.randn(8, 1, 4, 4) + 5, torch.randn(8, 2))])
    assert learner.average is not None
    statistics = dict(learner.average.named_buffers())
    torch.testing.assert_close(statistics, dict(learner.alg.named_buffers()), rtol=0, atol=0)
    assert statistics["network.stages.1.running_mean"].any()


def test_the_average_validates_and_acts_by_its_own_network() -> None:
    learner, batch = make(ema_decay=0.9), make_batch()
    train(learner, [make_batch()])
    assert learner.average is not None
    algs = learner.average, learner.alg
    expected, other = (alg.get_submodule("network")(batch.obs) for alg in algs)
    assert not torch.allclose(expected, other, atol=1e-4)
    assert torch.equal(learner.average.act(batch.obs, learner.step, explore=False), expected)
    loss = (expected - batch.target).square().mean()
    torch.testing.assert_close(learner.average.validate(batch)["loss"], loss.detach())


def shares(batch: Example, sizes: list[int]) -> Iterator[Example]:
    for obs, target in zip(batch.obs.split(sizes), batch.target.split(sizes), strict=True):
        yield Example(obs, target)


def learn_share(folder: Path, rank: int, sizes: list[int], precision: str) -> None:
    """What one of two processes does; its weights go to a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=len(sizes)
    )
    learner = make(precision=precision, accumulate=2)
    torch.manual_seed(0)
    train(learner, [list(shares(make_batch(), sizes))[rank] for _ in range(2)])
    torch.save(weights(learner), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("sizes", "precision"), [([7, 3], "fp32"), ([8, 2], "fp32"), ([8, 2], "fp16")]
)
def test_processes_with_shares_of_a_batch_learn_as_one_with_all_of_it(
    tmp_path: Path, sizes: list[int], precision: str
) -> None:
    processes = [start(learn_share, tmp_path, rank, sizes, precision) for rank in range(2)]
    learner = make()
    torch.manual_seed(0)
    train(learner, [make_batch(), make_batch()])
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    rtol, atol = (1e-5, 1e-6) if precision == "fp32" else (1e-2, 1e-3)
    torch.testing.assert_close(one, weights(learner), rtol=rtol, atol=atol)


def test_a_rank_needs_an_example_for_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make(accumulate=3)
    monkeypatch.setattr("research.training.accumulation.is_parallel", lambda: True)
    with pytest.raises(UserError, match=r"2 examples, fewer than trainer.accumulate=3.*batch_size"):
        learner.learn(make_batch(2))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_batch_norm_with_a_single_example_says_what_to_raise(accumulate: int) -> None:
    norm = nn.BatchNorm1d(3)
    mlp = make_mlp()
    mlp.mlp = nn.Sequential(norm, mlp.mlp)  # type: ignore[assignment]
    learner, batch = make(mlp, accumulate=accumulate), make_batch(accumulate)
    with pytest.raises(UserError, match=f"lower trainer.accumulate={accumulate}$"):
        learner.learn(batch)


def test_a_new_loss_is_a_short_class() -> None:
    class Cosine(Supervised):
        target_space = Box

        def compute_loss(self, output: Tensor, batch: Example) -> Tensor:
            return 1 - torch.cosine_similarity(output, batch.target).mean()

    learner, batch = make_learner(Cosine(make_mlp(), optim=SGD)), make_batch()
    first = learner.learn(batch)
    assert set(first) == {"loss"}
    train(learner, [batch] * 20)
    assert learner.alg.validate(batch)["loss"] < first["loss"]


def test_a_network_for_other_answers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Regression learns targets in a Box, got Discrete\(3\)"):
        make(make_mlp(Discrete(3)))
