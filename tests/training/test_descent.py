"""Steps down one gradient: whose parameters, how far, and by which settings."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from research.algs.base import Loss, Objective, OptimFactory
from research.training.descent import Descent

SGD = partial(torch.optim.SGD, lr=0.1)


def make_slopes() -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([3.0]))


def make(
    *trains: nn.Module | nn.Parameter,
    optim: OptimFactory = SGD,
    max_grad_norm: float | None = None,
) -> Descent:
    """What takes the steps of an objective."""

    def loss(batch: None, noise: None) -> Loss:
        raise AssertionError("the learner computes it")

    objective = Objective(name="line", loss=loss, trains=trains, optim=optim)
    return Descent(
        objective, total_updates=1, schedule=None, max_grad_norm=max_grad_norm, scaler=None
    )


def step(descent: Descent, *losses: Tensor) -> None:
    descent.begin()
    for loss in losses:
        descent.add_gradient(loss)
    assert descent.step({})


def test_a_step_moves_its_own_parameters_down_the_gradient() -> None:
    up, down = make_slopes()
    step(make(up), (5 * up * down).sum())
    assert up.item() == pytest.approx(2 - 0.1 * 5 * 3)
    assert down.item() == 3
    assert down.grad is None


def test_the_gradients_of_parts_are_summed_and_those_of_the_step_before_forgotten() -> None:
    up, _ = make_slopes()
    descent = make(up)
    for _ in range(2):
        step(descent, up.sum(), 2 * up.sum())
    assert up.item() == pytest.approx(2 - 2 * 0.3)


def test_a_parameter_that_a_loss_does_not_use_stays() -> None:
    up, down = make_slopes()
    descent = make(up, down)
    step(descent, (up + down).sum())
    step(descent, up.sum())
    assert (up.item(), down.item()) == pytest.approx((2 - 2 * 0.1, 3 - 0.1))


def assert_steps(descent: Descent, *losses: Tensor, expected: Tensor) -> None:
    """Every parameter is 0 before the step, and ``expected`` after it."""
    step(descent, *losses)
    for parameter in descent.parameters:
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_that_autograd_repeats_in_memory_is_a_gradient(fused: bool) -> None:
    """That of a sum is one number, and one tensor for all summands."""
    for max_grad_norm, num_parts, expected in ((None, 1, -0.1), (None, 2, -0.2), (1.0, 1, -0.05)):
        up, down = (nn.Parameter(torch.zeros(2)) for _ in range(2))
        optim = partial(SGD, fused=fused)
        descent = make(up, down, optim=optim, max_grad_norm=max_grad_norm)
        losses = [(up + down).sum() for _ in range(num_parts)]
        assert_steps(descent, *losses, expected=torch.full((2,), expected))


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_that_autograd_lays_out_transposed_is_a_gradient(fused: bool) -> None:
    matrix, factors = nn.Parameter(torch.zeros(3, 4)), torch.randn(4, 3)
    descent = make(matrix, optim=partial(SGD, fused=fused))
    assert_steps(descent, (matrix.T * factors).sum(), expected=-0.1 * factors.T)


def test_the_bound_is_on_the_norm_of_all_gradients_of_an_optimizer() -> None:
    slopes = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    descent = make(*slopes, max_grad_norm=1.0)
    step(descent, 3 * slopes[0].sum(), 4 * slopes[1].sum())
    assert [slope.item() for slope in slopes] == pytest.approx([-0.06, -0.08])


def test_frozen_parameters_are_not_trained_and_shared_ones_once() -> None:
    one, other, frozen = (nn.Linear(3, 3) for _ in range(3))
    other.weight = one.weight
    frozen.requires_grad_(False)
    descent = make(nn.Sequential(one, other, frozen), one, other.bias)
    assert descent.parameters == [one.weight, one.bias, other.bias]


@pytest.mark.parametrize("fused", [True, False])
def test_with_weight_decay_biases_do_not_decay(fused: bool) -> None:
    """Nor do single parameters, whose group may be the only one."""
    layer, token = nn.Linear(3, 2), nn.Parameter(torch.ones(2, 2))
    optim = partial(torch.optim.SGD, lr=0.1, weight_decay=0.5, fused=fused)
    before = [p.detach().clone() for p in (layer.weight, layer.bias, token)]
    step(make(layer, optim=optim), 0 * (layer.weight.sum() + layer.bias.sum()))
    step(make(token, optim=optim), 0 * token.sum())
    for new, old, factor in zip(
        (layer.weight, layer.bias, token), before, (0.95, 1, 1), strict=True
    ):
        torch.testing.assert_close(new.detach(), factor * old)
