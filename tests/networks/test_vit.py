"""The vision transformer: published sizes, what it computes, and how it begins."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Discrete
from torch import Tensor, nn

from research.networks.vit import VisionTransformer
from tests.networks.test_predictor import images
from tests.networks.test_resnet import count

OPTIONS: dict[str, Any] = {
    "patch_size": 2,
    "dim": 8,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 12,
    "dropout": 0.0,
    "pooling": "cls",
}


def make(*shape: int, **changes: Any) -> VisionTransformer:
    return VisionTransformer(images(*shape), Discrete(5), **(OPTIONS | changes))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((768, 12, 12, 3072), 86_567_656),  # ViT-B/16 of torchvision, as its documentation has it
        ((384, 12, 6, 1536), 22_050_664),  # ViT-S/16 of timm
    ],
)
def test_sizes_are_the_published_ones(sizes: tuple[int, int, int, int], expected: int) -> None:
    names = dict(zip(("dim", "depth", "num_heads", "mlp_dim"), sizes, strict=True))
    options: dict[str, Any] = OPTIONS | names | {"patch_size": 16}
    with torch.device("meta"):
        network = VisionTransformer(images(3, 224, 224), Discrete(1000), **options)
    assert count(network) == expected


def normalise(x: Tensor, norm: nn.Module) -> Tensor:
    assert isinstance(norm, nn.LayerNorm)
    x = x - x.mean(dim=-1, keepdim=True)
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias


def by_hand(network: VisionTransformer, x: Tensor) -> Tensor:
    """Scores by the equations 1 to 4 of the paper."""
    size, (batch, channels, height, width) = 2, x.shape
    patches = x.reshape(batch, channels, height // size, size, width // size, size)
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    x = patches @ network.patches.weight.flatten(1).T + network.get_parameter("patches.bias")
    if network.cls_token is not None:
        x = torch.cat([network.cls_token.repeat(batch, 1, 1), x], dim=1)
    x = x + network.positions
    for layer in network.encoder.layers:
        assert isinstance(layer, nn.TransformerEncoderLayer)
        attention = layer.self_attn
        normed = normalise(x, layer.norm1)
        parts = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in parts)
        weights = (q @ k.transpose(2, 3) / 4**0.5).softmax(dim=-1)
        x = x + attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + layer.linear2(F.gelu(layer.linear1(normalise(x, layer.norm2))))
    x = normalise(x, network.encoder.norm)  # type: ignore[arg-type]
    return network.head(x.mean(dim=1) if network.cls_token is None else x[:, 0])


@torch.no_grad()
def shift(network: nn.Module) -> None:
    """Move every parameter away from where it begins."""
    for parameter in network.parameters():
        parameter += 0.3 * torch.randn_like(parameter)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("training", [True, False])
def test_it_computes_the_papers_equations(pooling: str, training: bool) -> None:
    network = make(3, 4, 6, pooling=pooling).train(training)
    shift(network)
    x = torch.randn(5, 3, 4, 6)
    with torch.no_grad():
        torch.testing.assert_close(network(x), by_hand(network, x), rtol=1e-4, atol=1e-4)


def test_every_layer_begins_with_weights_of_its_own() -> None:
    layers = make(3, 4, 4).encoder.layers.children()
    first, second = (dict(layer.named_parameters()) for layer in layers)
    for name, parameter in first.items():
        if parameter.ndim == 2:
            assert not torch.equal(parameter, second[name]), name


def test_query_key_and_value_begin_as_matrices_of_their_own() -> None:
    network = make(3, 4, 4, dim=48)
    for index in range(2):
        weight = network.get_parameter(f"encoder.layers.{index}.self_attn.in_proj_weight")
        bound = (6 / (48 + 48)) ** 0.5  # Glorot and Bengio, 2010
        assert 0.98 * bound < weight.abs().max() <= bound


def test_it_begins_with_equal_scores_for_all_classes() -> None:
    assert not make(3, 4, 4)(torch.randn(5, 3, 4, 4)).any()


def test_every_parameter_learns_after_the_head_has() -> None:
    network = make(3, 4, 4)
    nn.init.normal_(network.head.weight)
    network(torch.randn(5, 3, 4, 4)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_dropout_is_for_training_alone() -> None:
    network, x = make(3, 4, 4, dropout=0.5), torch.randn(5, 3, 4, 4)
    shift(network)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "patch_size must divide the images' sides 4 and 6, got 3"),
        ({"patch_size": 4}, "patch_size must divide the images' sides 4 and 6, got 4"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"dim": 9}, "dim must be a multiple of num_heads=2, got 9"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"pooling": "max"}, "pooling must be cls or mean, got max"),
    ],
)
def test_what_it_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(3, 4, 6, **changes)
