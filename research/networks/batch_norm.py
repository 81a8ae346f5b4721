"""Batch normalisation over the examples of all processes: Ioffe and Szegedy, 2015.

https://arxiv.org/abs/1502.03167. Statistics are joined as in Chan, Golub and LeVeque, 1983,
https://doi.org/10.1080/00031305.1983.10483115. ``torch.nn.SyncBatchNorm`` needs CUDA.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from research.errors import UserError


def synchronise_batch_norm(network: nn.Module) -> None:
    """Make every batch norm of ``network`` train on the statistics of all processes' examples.

    Only the modules' classes change. Every process of torch.distributed's default group must then
    go forward and backward through the same norms equally often, also with a share of no examples.

    The gradients are those of one process with all examples if each process descends its summand of
    the loss of them all, and the gradients of the parameters are then summed.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not isinstance(
            module, (Synchronised, nn.SyncBatchNorm)
        ):
            module.__class__ = synchronised(type(module))


class Synchronised(_BatchNorm):
    """What a class of batch norms puts before itself to train with the other processes."""

    def forward(self, input: Tensor) -> Tensor:
        is_shared = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if self.training and is_shared:
            return self.forward_together(input)
        return super().forward(input)

    @torch.compiler.disable()
    def forward_together(self, x: Tensor) -> Tensor:
        with Intercept() as intercept:
            y = super().forward(x)
        if not intercept.was_called:
            name = type(self).__name__.removeprefix(Synchronised.__name__)
            raise UserError(
                f"{name} does not call F.batch_norm, so its statistics cannot be those of all "
                "ranks; use torch's batch norms, or set trainer.devices=1"
            )
        return y


@cache
def synchronised(kind: type[_BatchNorm]) -> type[Synchronised]:
    """The class ``kind``, synchronised."""
    return type(f"Synchronised{kind.__name__}", (Synchronised, kind), {})


class Intercept(TorchFunctionMode):
    """Synchronises F.batch_norm, so that norms with a forward of their own (timm's) keep theirs."""

    was_called = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func is F.batch_norm:
            self.was_called = True
            if options.pop("training"):
                return batch_norm(*args, **options)
            options["training"] = False
        return func(*args, **options)


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """F.batch_norm of (B, C, ...) in training, with the statistics of all processes.

    Raises:
        ValueError: in every process, where they have one value per channel together.

    """
    mean, var, count = gather_statistics(x)
    # At two values or more nobody has to wait for a GPU's answer.
    if x.numel() <= x.size(1) and count.item() <= 1:
        raise ValueError(
            f"batch normalisation needs more than 1 value per channel of all processes together, "
            f"got {int(count)}; raise dataset.batch_size"
        )
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            unbiased = var * (count / (count - 1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return Normalise.apply(x, weight, bias, mean, var, count, eps)


@torch.no_grad()
def gather_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and number (1,) of every channel's values, fp32 or fp64."""
    num_channels, size = x.size(1), x.numel() // x.size(1)
    own = x.new_zeros(2 * num_channels + 1, dtype=torch.promote_types(x.dtype, torch.float32))
    if size > 0:
        # The running statistics make the result fp32 where x is fp16 or bf16.
        unused = torch.zeros_like(own[:num_channels])
        mean, var = torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0)
        own = torch.cat([mean, var * size, own.new_full((1,), size)])
    rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, own)
    means, squares, counts = torch.stack(rows).split([num_channels, num_channels, 1], dim=1)
    count = counts.sum(dim=0)
    mean = (counts * means).sum(dim=0) / count
    return mean, (squares + counts * (means - mean).square()).sum(dim=0) / count, count


class Normalise(torch.autograd.Function):
    """Normalises a share x (B, C, ...) by the statistics of all shares.

    With xhat = (x - mean) / std over all M values of a channel, and G = dL/dy of the sum L of all
    processes' losses, dL/dx = weight / std * (G - sum(G) / M - xhat * sum(G * xhat) / M), both sums
    over all processes. Weight and bias meet a process's own examples alone: their gradients are its
    own sum(G * xhat) and sum(G).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        weight = None if weight is None else weight.to(mean.dtype)
        bias = None if bias is None else bias.to(mean.dtype)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, eps=eps) if x.numel() else x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x, sums = grad, mean.new_zeros(2, len(mean))
        if x.numel():
            grad_x, *own = torch.ops.aten.native_batch_norm_backward(
                grad, x, weight, mean, var, None, None, False, ctx.eps, [needs_x, True, True]
            )
            sums = torch.stack(own)  # of grad * xhat and of grad
        grad_weight, grad_bias = sums
        if needs_x:
            joint = sums.clone()  # its parts are the weight's and the bias's gradients
            dist.all_reduce(joint)
            if x.numel():
                scale = (var + ctx.eps).rsqrt() / -count
                scale = scale if weight is None else scale * weight
                # The rest of the gradient is x normalised with another weight and bias.
                grad_x = grad_x + F.batch_norm(x, mean, var, *(scale * joint), eps=ctx.eps)
        return (
            grad_x if needs_x else None,
            grad_weight if needs_weight else None,
            grad_bias if needs_bias else None,
            *[None] * 4,
        )
