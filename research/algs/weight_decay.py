"""Which parameters weight decay is for."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from research.networks.mlp import EnsembleLayerNorm

UNDECAYED = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm, EnsembleLayerNorm)


def group_parameters(parts: Iterable[nn.Module | nn.Parameter]) -> list[dict[str, Any]]:
    """The trained parameters in two groups, of which the second has no weight decay.

    Weight decay is for matrices and convolutions alone, not for biases, norms, embeddings, tokens,
    positions and single parameters.
    """
    decays: dict[nn.Parameter, bool] = {}
    for part in parts:
        if isinstance(part, nn.Parameter):
            decays.setdefault(part, False)
            continue
        for module in part.modules():
            for name, parameter in module.named_parameters(recurse=False):
                is_matrix = "weight" in name and parameter.ndim > 1
                decays.setdefault(parameter, is_matrix and not isinstance(module, UNDECAYED))
    trained = {parameter: decay for parameter, decay in decays.items() if parameter.requires_grad}
    return [
        {"params": [parameter for parameter, decay in trained.items() if decay]},
        {
            "params": [parameter for parameter, decay in trained.items() if not decay],
            "weight_decay": 0.0,
        },
    ]
