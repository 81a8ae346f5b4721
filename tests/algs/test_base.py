"""What algorithms share: optimizer steps for their own parameters, and their optimizers by name."""

import pytest
import torch
from torch import Tensor, nn

from research.algs.base import Algorithm, Metrics, take_step


class Line(Algorithm):
    """Two slopes, each with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (nn.Parameter(torch.tensor([value])) for value in (2.0, 3.0))
        self.make_optimizers()

    def act(self, obs: Tensor, step: int, explore: bool) -> Tensor:
        return obs * self.up

    def make_optimizers(self) -> None:
        self.up_optim, self.down_optim = (
            torch.optim.SGD([slope], lr=0.1) for slope in (self.up, self.down)
        )

    def update(self, batch: Tensor, *, step: int, updates: int) -> Metrics:
        return {}


def test_a_step_moves_the_optimizers_own_parameters_down_the_gradient() -> None:
    alg = Line()
    take_step(alg.up_optim, (5 * alg.up * alg.down).sum())
    assert alg.up.item() == pytest.approx(2 - 0.1 * 5 * 3)
    assert alg.down.item() == 3
    assert alg.down.grad is None


def test_a_step_forgets_the_gradients_of_the_one_before() -> None:
    alg = Line()
    for _ in range(2):
        take_step(alg.up_optim, alg.up.sum())
    assert alg.up.item() == pytest.approx(2 - 2 * 0.1)


def test_a_parameter_that_a_loss_does_not_use_stays() -> None:
    alg = Line()
    optim = torch.optim.SGD([alg.up, alg.down], lr=0.1)
    take_step(optim, (alg.up + alg.down).sum())
    take_step(optim, alg.up.sum())
    assert alg.up.item() == pytest.approx(2 - 2 * 0.1)
    assert alg.down.item() == pytest.approx(3 - 0.1)


def test_a_step_covers_every_group_of_parameters() -> None:
    alg = Line()
    optim = torch.optim.SGD([{"params": [alg.up]}, {"params": [alg.down]}], lr=0.1)
    take_step(optim, (alg.up + alg.down).sum())
    assert (alg.up.item(), alg.down.item()) == pytest.approx((1.9, 2.9))


def test_optimizers_go_by_their_attributes_names() -> None:
    alg = Line()
    assert alg.optimizers == {"up_optim": alg.up_optim, "down_optim": alg.down_optim}


def test_an_algorithm_without_validation_says_so() -> None:
    with pytest.raises(NotImplementedError, match="Line has no validation on batches"):
        Line().validate(torch.zeros(1))
