"""Which parameters decay."""

from collections.abc import Callable

import pytest
from torch import nn

from research.algs.weight_decay import group_parameters
from research.networks.resnet import ResNet
from tests.algs.test_supervised import VALUES, make_cnn, make_mlp
from tests.networks.test_predictor import images

NETWORKS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "mlp": (make_mlp, {"mlp.0.weight", "mlp.3.weight"}),
    "cnn": (make_cnn, {"stages.0.weight", "head.1.weight"}),
    "resnet": (
        lambda: ResNet(
            images(1, 8, 8), VALUES, block="basic", depths=[1], width=4, channels_last=True
        ),
        {"stem.0.weight", "blocks.0.body.0.weight", "blocks.0.body.3.weight", "head.weight"},
    ),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 8),
        {
            "self_attn.in_proj_weight",
            "self_attn.out_proj.weight",
            "linear1.weight",
            "linear2.weight",
        },
    ),
    "others": (
        lambda: nn.ModuleDict(
            {
                "embedding": nn.Embedding(3, 4),
                "norm": nn.LayerNorm([2, 2]),
                "memory": nn.GRU(3, 4),
            }
        ),
        {"memory.weight_ih_l0", "memory.weight_hh_l0"},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_weight_decay_is_for_matrices_and_convolutions_alone(name: str) -> None:
    make_network, expected = NETWORKS[name]
    network = make_network()
    decayed, others = group_parameters([network])
    names = {parameter: name for name, parameter in network.named_parameters()}
    assert {names[parameter] for parameter in decayed["params"]} == expected
    assert {names[p] for p in others["params"]} == set(names.values()) - expected
    assert others["weight_decay"] == 0
    assert "weight_decay" not in decayed


def test_a_frozen_or_shared_parameter_is_not_decayed_or_not_twice() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    network[2].requires_grad_(False)
    decayed, others = group_parameters([network, network[0]])
    assert [len(group["params"]) for group in (decayed, others)] == [1, 2]
