"""Arithmetic in 16 bits: where it is, what overflows and what is skipped."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from research.algs.base import Algorithm, Loss, Objective, OptimFactory
from research.algs.regression import Regression
from research.batches import Example
from research.errors import UserError
from research.training.learner import Learner
from research.training.precision import LossScaler
from tests.algs.learning import make_learner
from tests.algs.test_supervised import SGD, make, make_batch, make_cnn, make_mlp, train, weights
from tests.algs.test_td3 import snapshot

CPU = torch.device("cpu")
HUGE = torch.full((10, 2), 1e38)
"""Targets whose gradients overflow fp16 with any scale."""


def scale(learner: Learner, name: str = "network") -> float:
    """The number by which an objective's loss is multiplied."""
    scaler = (learner.descents or learner.make_optimizers())[name].scaler
    assert scaler is not None
    return scaler.last


def set_scale(learner: Learner, value: float) -> None:
    """As if training had found this scale."""
    for descent in (learner.descents or learner.make_optimizers()).values():
        assert descent.scaler is not None
        descent.scaler.load_state_dict({**descent.scaler.state_dict(), "scale": value})


def test_half_precision_is_for_the_networks_arithmetic_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner, seen = make(precision="bf16"), []
    learner.alg.get_submodule("network.mlp.0").register_forward_hook(
        lambda *call: seen.append(call[-1].dtype)
    )

    def compute_loss(output: Tensor, batch: Example) -> Tensor:
        seen.append(output.dtype)
        return output.square().mean()

    monkeypatch.setattr(learner.alg, "compute_loss", compute_loss)
    metrics = learner.learn(make_batch())
    assert seen == [torch.bfloat16, torch.float32]
    assert {each.dtype for each in weights(learner).values()} == {torch.float32}
    assert {metric.dtype for metric in metrics.values()} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_nearly_the_same(precision: str) -> None:
    whole, half, batches = make(), make(precision=precision), [make_batch() for _ in range(3)]
    if precision == "fp16":
        set_scale(half, 256.0)  # too small to overflow
    start = weights(whole)
    for learner in (whole, half):
        train(learner, batches)
    for name, value in weights(half).items():
        change = weights(whole)[name] - start[name]
        assert (value - start[name] - change).norm() < 0.05 * change.norm(), name


class Bootstrapping(Algorithm):
    """Evaluates its network without gradients before it does with gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def objectives(self) -> Sequence[Objective]:
        return [Objective(name="network", loss=self.loss, trains=[self.network], optim=SGD)]

    def act(self, obs: Tensor, step: Tensor, explore: bool) -> Tensor:
        return self.network(obs)

    def loss(self, batch: Tensor, noise: Any) -> Loss:
        with torch.no_grad():
            target = 1 + 0.9 * self.network(batch + 1)
        return Loss((self.network(batch) - target).square().mean())


def test_weights_that_a_target_used_first_still_get_gradients() -> None:
    """In torch 2.6, autocast would keep the weights that it cast without gradients."""
    torch.manual_seed(0)
    whole, batch = Bootstrapping(), torch.randn(16, 3)
    half = copy.deepcopy(whole)
    make_learner(whole).learn(batch)
    make_learner(half, precision="bf16").learn(batch)
    for one, other in zip(whole.parameters(), half.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.cosine_similarity(one.grad.flatten(), other.grad.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_overflows_is_skipped_and_counted_and_halves_the_scale(fused: bool) -> None:
    optim = partial(torch.optim.Adam, lr=0.1, fused=fused)
    learner = make(precision="fp16", ema_decay=0.5, optim=optim)
    set_scale(learner, 2.0**10)  # of which usual gradients do not overflow
    train(learner, [make_batch()])
    assert learner.average is not None
    before = snapshot(learner.alg), snapshot(learner.average)
    metrics = learner.learn(make_batch()._replace(target=HUGE))
    assert metrics["skipped_share"].item() == 1
    assert scale(learner) == 2**9
    for module, old in zip((learner.alg, learner.average), before, strict=True):
        torch.testing.assert_close(snapshot(module), old, rtol=0, atol=0)
    metrics = learner.learn(make_batch())
    assert metrics["skipped_share"].item() == 0
    assert scale(learner) == 2**9
    for module, old in zip((learner.alg, learner.average), before, strict=True):
        assert not torch.equal(snapshot(module)[0], old[0])


class TwoLosses(Algorithm):
    """Two maps, of which the second's loss is ``factor`` times as steep."""

    def __init__(self, *, optim: OptimFactory) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 1), nn.Linear(3, 1)
        self.optim = optim
        self.factor = 1.0

    def objectives(self) -> Sequence[Objective]:
        one, other, optim = self.one, self.other, self.optim
        return [
            Objective(name="one", loss=self.one_loss, trains=[one], optim=optim),
            Objective(name="other", loss=self.other_loss, trains=[other], optim=optim),
        ]

    def act(self, obs: Tensor, step: Tensor, explore: bool) -> Tensor:
        return self.one(obs)

    def one_loss(self, batch: Tensor, noise: Any) -> Loss:
        return Loss(self.one(batch).square().mean())

    def other_loss(self, batch: Tensor, noise: Any) -> Loss:
        return Loss(self.factor * self.other(batch).square().mean())


def test_one_objectives_overflow_neither_skips_nor_scales_the_others() -> None:
    alg = TwoLosses(optim=SGD)
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    learner = make_learner(alg, precision="fp16", ema_decay=0.5, schedule=schedule)
    set_scale(learner, 2.0**10)
    learner.learn(torch.randn(8, 3))
    alg.factor = 1e38
    assert learner.average is not None
    before = snapshot(alg.one), snapshot(alg.other), snapshot(learner.average)
    metrics = learner.learn(torch.randn(8, 3))
    assert metrics["skipped_share"].item() == 0.5
    assert (scale(learner, "one"), scale(learner, "other")) == (2**10, 2**9)
    assert not torch.equal(snapshot(alg.one)[0], before[0][0])
    torch.testing.assert_close(snapshot(alg.other), before[1], rtol=0, atol=0)
    torch.testing.assert_close(snapshot(learner.average), before[2], rtol=0, atol=0)
    rates = learner.take_metrics()
    assert (rates["one_lr"], rates["other_lr"]) == (0.025, 0.05)


def test_what_overflows_with_a_loss_scaled_down_is_warned_of_once_and_then_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    learner, batch = make(precision="fp16"), make_batch()._replace(target=HUGE)
    train(learner, [batch] * 16)
    assert not caplog.messages
    train(learner, [batch] * 14)
    assert [message[:60] for message in caplog.messages] == [
        "gradients overflow fp16 unless the loss is scaled down, so t"
    ]
    with pytest.raises(
        UserError, match=r"where the loss is scaled by 6.1e-05; .*trainer.precision=bf16$"
    ):
        train(learner, [batch])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_a_scale_no_step_is_skipped(precision: str) -> None:
    learner, before = make(precision=precision), weights(make())
    metrics = learner.learn(make_batch()._replace(target=HUGE / 1e10))
    assert "skipped_share" not in metrics
    assert not torch.equal(weights(learner)["network.mlp.0.weight"], before["network.mlp.0.weight"])


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizers_hooks_and_bounds_see_gradients_without_the_scale(fused: bool) -> None:
    norms: dict[str, float] = {}
    for precision in ("fp32", "fp16"):
        optim = partial(torch.optim.Adam, lr=0.1, fused=fused)
        learner = make(precision=precision, optim=optim, max_grad_norm=1000.0)

        def note(*_: Any, alg: nn.Module = learner.alg, precision: str = precision) -> None:
            grads = [p.grad for p in alg.parameters() if p.grad is not None]
            norms[precision] = torch.nn.utils.get_total_norm(grads).item()

        learner.make_optimizers()["network"].optim.register_step_pre_hook(note)
        torch.manual_seed(0)
        train(learner, [make_batch()])
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_reloaded_learner_goes_on_exactly(precision: str) -> None:
    optim = partial(torch.optim.AdamW, lr=0.01, fused=True)
    options: dict[str, Any] = {"precision": precision, "ema_decay": 0.9, "optim": optim}
    learner, twin = make(**options), make(make_mlp(), **options)
    huge = make_batch()._replace(target=HUGE)
    train(learner, [make_batch(), huge] if precision == "fp16" else [make_batch()])
    assert learner.average is not None
    assert twin.average is not None
    pairs = [(learner.alg, twin.alg), (learner.average, twin.average)]
    for one, other in pairs:
        other.load_state_dict(one.state_dict())
    twin.load_state_dict(copy.deepcopy(learner.state_dict()))
    batches = [make_batch(), make_batch()]
    for each in (learner, twin):
        train(each, batches)
    for one, other in pairs:
        torch.testing.assert_close(dict(other.state_dict()), dict(one.state_dict()), rtol=0, atol=0)
    assert (
        learner.state_dict()["descents"]["network"]["scaler"]
        == (twin.state_dict()["descents"]["network"]["scaler"])
    )


def test_a_scale_is_saved_before_its_first_use() -> None:
    scaler = LossScaler(CPU)
    state = {**scaler.state_dict(), "scale": 8.0, "_growth_tracker": 5}
    scaler.load_state_dict(state)
    assert scaler.scale(torch.tensor(3.0)).item() == 24
    assert scaler.state_dict() == state


def test_only_fp16_has_a_scale_to_save() -> None:
    for precision, has_scale in (("fp32", False), ("bf16", False), ("fp16", True)):
        learner = make(precision=precision)
        train(learner, [make_batch()])
        state = learner.state_dict()["descents"]["network"]
        assert (state["scaler"] is not None) == has_scale


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_learns_on_a_gpu_compiled(precision: str) -> None:
    torch.manual_seed(1)
    optim = partial(torch.optim.AdamW, lr=0.01, fused=True)
    alg = Regression(make_cnn().to("cuda"), optim=optim)
    learner = make_learner(alg, precision=precision, ema_decay=0.5, execution="compile")
    batch = Example(torch.randn(64, 1, 4, 4).cuda(), torch.randn(64, 2).cuda())
    before = alg.validate(batch)["loss"]
    train(learner, [batch] * 50)
    assert learner.average is not None
    assert learner.average.validate(batch)["loss"] < before
