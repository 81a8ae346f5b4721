"""Models of other libraries: their heads, what is said of misfits, and of missing packages."""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from gymnasium.spaces import Discrete
from omegaconf import open_dict
from torch import Tensor, nn

from research.config import build
from research.errors import UserError
from research.networks.external import External
from tests.conftest import Load
from tests.networks.test_predictor import images


def make_model(num_classes: int, channels: int = 3) -> nn.Module:
    """What another library's factory might return."""
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, num_classes)
    )


def make(model: Callable[..., nn.Module], *shape: int) -> External:
    return External(images(*shape), Discrete(5), model=model)


def require(package: str) -> None:
    """Skip the test where a package is not there, or was made for another torch."""
    try:
        importlib.import_module(package)
    except Exception as error:  # torchvision's is a RuntimeError
        pytest.skip(f"{package} cannot be imported: {error}")


def test_the_head_is_sized_by_the_targets() -> None:
    network, obs = make(make_model, 3, 8, 8), torch.randn(7, 3, 8, 8)
    assert network(obs).shape == (7, 5)
    assert torch.equal(network(obs), network.model(obs))


def test_a_look_at_its_shapes_leaves_the_model_as_it_was() -> None:
    norm = make(make_model, 3, 8, 8).model[1]  # type: ignore[index]
    assert norm.training
    assert not norm.running_mean.any()


def test_a_model_for_other_observations_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"model does not take observations \(1, 8, 8\)") as caught:
        make(make_model, 1, 8, 8)
    assert "\n" not in str(caught.value)
    assert "model.in_chans" in str(caught.value)


def test_a_factory_that_refuses_is_quoted_in_one_line() -> None:
    def refuse(num_classes: int) -> nn.Module:
        raise RuntimeError("no such\nmodel")

    with pytest.raises(ValueError, match="model cannot be made: no such model"):
        make(refuse, 3, 8, 8)


class Two(nn.Module):
    """Answers by a tuple, as some models do."""

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return obs, obs


@pytest.mark.parametrize(("model", "found"), [(nn.Flatten(), r"\(2, 192\)"), (Two(), "tuple")])
def test_other_answers_than_one_per_class_are_refused(model: nn.Module, found: str) -> None:
    with pytest.raises(ValueError, match=rf"model must return \(2, 5\), got {found}"):
        make(lambda num_classes: model, 3, 8, 8)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 12)])
def test_vit_is_shaped_by_the_images(load: Load, shape: tuple[int, ...]) -> None:
    require("timm")
    network = build(load("network=vit").network, images(*shape), Discrete(5))
    assert network(torch.randn(2, *shape)).shape == (2, 5)
    tokens = 1 + shape[1] // 4 * shape[2] // 4
    assert network.get_parameter("model.pos_embed").shape == (1, tokens, 192)


def test_patches_that_do_not_divide_the_images_are_refused(load: Load) -> None:
    require("timm")
    with pytest.raises(UserError, match="patch_size must divide the images' sides 8 and 9, got 4"):
        build(load("network=vit").network, images(3, 8, 9), Discrete(5))


def test_the_size_of_images_is_the_configs_where_it_says_one(load: Load) -> None:
    require("timm")
    cfg = load("network=vit", "+network.model.img_size=16")
    with pytest.raises(UserError, match=r"does not take observations \(3, 8, 8\)") as caught:
        build(cfg.network, images(3, 8, 8), Discrete(5))
    assert "\n" not in str(caught.value)


def build_timm(load: Load, *overrides: str) -> External:
    return build(load("network=timm", *overrides).network, images(3, 8, 8), Discrete(5))


def test_timm_runs_when_it_is_trusted(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(
        model_name: str, pretrained: bool, in_chans: int, num_classes: int
    ) -> nn.Module:
        assert model_name == "small"
        assert not pretrained
        return make_model(num_classes, in_chans)

    create_model.__module__ = "timm.models"
    module = ModuleType("timm")
    monkeypatch.setattr(module, "create_model", create_model, raising=False)
    monkeypatch.setitem(sys.modules, "timm", module)
    network = build_timm(load, "trusted_modules=[timm]", "network.model.model_name=small")
    assert network(torch.randn(7, 3, 8, 8)).shape == (7, 5)
    with pytest.raises(UserError, match=r"'timm\.create_model' is not in a trusted module"):
        build_timm(load)


def test_without_its_package_one_line_names_it(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    with pytest.raises(UserError, match="cannot import 'timm'") as caught:
        build_timm(load, "trusted_modules=[timm]")
    assert "\n" not in str(caught.value)


def test_torchvisions_models_run(load: Load) -> None:
    require("torchvision")
    cfg = load("network=torchvision")
    with open_dict(cfg):
        cfg.network.model._target_ = "torchvision.models.squeezenet1_1"
    network = build(cfg.network, images(3, 64, 64), Discrete(5))
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 5)
