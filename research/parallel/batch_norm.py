"""Batch normalisation over the examples of all ranks, by ``torch.nn.SyncBatchNorm``."""

import sys

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from research.errors import UserError


def has_batch_norm(network: nn.Module) -> bool:
    """Whether a network normalises over a batch, for which one example may be too few."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> None:
    """Make the batch norms of ``network`` train on the statistics of all ranks' examples.

    The modules are replaced; their parameters and buffers, and the names of these, stay.

    Raises:
        UserError: ``device`` is not a CUDA device, where torch has no such norm; or a norm is of a
            custom class, whose forward would be lost.

    """
    if not has_batch_norm(network):
        return
    for module in network.modules():
        package = type(module).__module__.partition(".")[0]
        if isinstance(module, _BatchNorm) and package not in ("torch", "timm"):
            raise UserError(
                f"{type(module).__name__} is a batch norm of its own, whose statistics cannot be "
                "those of all ranks; use torch's, or set trainer.devices=1"
            )
    if device.type != "cuda":
        raise UserError(
            "batch normalisation over several processes needs GPUs; set trainer.devices=1, or "
            "choose a network without it, such as network=mlp or network=vit"
        )
    if "timm" in sys.modules:  # its norms may hold an activation, which torch's function drops
        from timm.layers.norm_act import convert_sync_batchnorm
    else:
        convert_sync_batchnorm = nn.SyncBatchNorm.convert_sync_batchnorm
    convert_sync_batchnorm(network)
