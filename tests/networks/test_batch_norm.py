"""Batch normalisation of several processes, against one process with all of their examples."""

import contextlib
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from gymnasium.spaces import Box
from torch import Tensor, nn

from research.algs.regression import Regression
from research.batches import Example
from research.errors import UserError
from research.networks.batch_norm import synchronise_batch_norm
from research.networks.resnet import ResNet
from research.parallel.process_group import connect_ranks
from tests.commands import start
from tests.networks.test_predictor import images

WORLDS = {"three": [5, 1, 3], "one of three idle": [4, 0, 3], "two": [2, 6]}
"""How many examples each process has."""


class NormAndActivation(nn.BatchNorm2d):
    """A subclass with a forward of its own, as in timm."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[reportIncompatibleMethodOverride]
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.3
        )
        return F.silu(y)


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    offset: float = 0.0
    layout: torch.memory_format = torch.contiguous_format
    precision: torch.dtype | None = None
    rtol: float = 1e-4
    atol: float = 1e-5


def stack() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(16, 4),
        nn.BatchNorm1d(4),
    )


DOUBLE: dict[str, Any] = {"dtype": torch.float64, "rtol": 1e-9, "atol": 1e-10}
CASES = {
    "1d": Case(lambda: nn.BatchNorm1d(4), (4,)),
    "1d fp64": Case(lambda: nn.BatchNorm1d(4), (4,), **DOUBLE),
    "1d of sequences": Case(lambda: nn.BatchNorm1d(4, eps=0.1), (4, 5), **DOUBLE),
    "2d": Case(lambda: nn.BatchNorm2d(3), (3, 4, 4)),
    "2d fp64": Case(lambda: nn.BatchNorm2d(3), (3, 4, 4), **DOUBLE),
    "3d": Case(lambda: nn.BatchNorm3d(2), (2, 3, 2, 2), **DOUBLE),
    "not affine": Case(lambda: nn.BatchNorm2d(3, affine=False), (3, 4, 4), **DOUBLE),
    "cumulative": Case(lambda: nn.BatchNorm1d(4, momentum=None), (4,), **DOUBLE),
    "untracked": Case(lambda: nn.BatchNorm1d(4, track_running_stats=False), (4,), **DOUBLE),
    "far from 0": Case(lambda: nn.BatchNorm2d(3), (3, 4, 4), offset=1e3, rtol=1e-3, atol=1e-3),
    "own forward": Case(lambda: NormAndActivation(3), (3, 4, 4), **DOUBLE),
    "copied": Case(lambda: copy.deepcopy(synchronised(nn.BatchNorm1d(4))), (4,), **DOUBLE),
    "stack": Case(stack, (3, 6, 6)),
    "stack fp64": Case(stack, (3, 6, 6), **DOUBLE),
    "channels last": Case(stack, (3, 6, 6), layout=torch.channels_last, **DOUBLE),
    "bf16": Case(stack, (3, 6, 6), precision=torch.bfloat16, rtol=0.05, atol=0.05),
}


def synchronised(network: nn.Module) -> nn.Module:
    synchronise_batch_norm(network)
    return network


def learn(case: Case, sizes: list[int], rank: int, device: str) -> dict[str, Tensor]:
    """Everything that two batches leave behind in one process."""
    torch.manual_seed(0)
    network = synchronised(case.make()).to(device, case.dtype)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    results = {}
    for index in range(2):
        whole = torch.randn(sum(sizes), *case.shape, dtype=case.dtype) + case.offset
        if whole.ndim == 4:
            whole = whole.contiguous(memory_format=case.layout)
        x = whole.split(sizes)[rank].to(device).requires_grad_()
        is_mixed = case.precision is not None
        with torch.autocast(device, case.precision) if is_mixed else contextlib.nullcontext():
            y = network(x)
        factors = torch.randn(sum(sizes), *y.shape[1:]).split(sizes)[rank].to(device)
        ((factors * y.sin()).sum() / sum(sizes)).backward()
        results[f"output {index}"] = y.detach()
        results[f"input gradient {index}"] = x.grad
    for name, parameter in network.named_parameters():
        results[f"gradient {name}"] = parameter.grad
    for name, buffer in network.named_buffers():
        results[f"buffer {name}"] = buffer
    if rank == 0:  # others would wait for ever if it communicated
        results["evaluation"] = network.eval()(torch.ones(2, *case.shape).to(x)).detach()
    return {name: value.cpu() for name, value in results.items()}


def learn_images(sizes: list[int], rank: int, device: str) -> dict[str, Tensor]:
    """The weights of a residual network after three updates by the real algorithm."""
    torch.manual_seed(0)
    network = ResNet(
        images(3, 8, 8),
        Box(-np.inf, np.inf, (2,), np.float32),
        block="basic",
        depths=[1, 1],
        width=4,
        channels_last=False,
    )
    alg = Regression(
        network,
        optim=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        accumulate=1,
        ema_decay=0.5,
        precision="fp32",
        compile=False,
    ).to(device)
    alg.make_optimizers()
    synchronise_batch_norm(alg)
    for index in range(3):
        batch = torch.randn(sum(sizes), 3, 8, 8), torch.randn(sum(sizes), 2)
        share = Example(*(each.split(sizes)[rank].to(device) for each in batch))
        alg.update(share, step=index, updates=index)
    return {name: value.cpu() for name, value in alg.state_dict().items()}


def lonely_message(rank: int, device: str) -> str:
    """What becomes of one example for all."""
    try:
        synchronised(nn.BatchNorm1d(4)).to(device)(torch.ones(int(rank == 0), 4, device=device))
    except ValueError as error:
        return str(error)
    return "no error"


def work(folder: Path, rank: int, device: str) -> None:
    """What one of the processes does in every world; the results go to a file."""
    torch.set_num_threads(1)
    results = {}
    for world, sizes in WORLDS.items():
        if rank < len(sizes):
            meeting = folder / world
            meeting.mkdir(exist_ok=True)
            with connect_ranks(rank, len(sizes), meeting, "localhost"):
                results[world] = {
                    name: learn(case, sizes, rank, device) for name, case in CASES.items()
                }
                results[world]["message"] = lonely_message(rank, device)
                if min(sizes) > 0:  # the algorithm sends no empty share through its network
                    results[world]["images"] = learn_images(sizes, rank, device)
    torch.save(results, folder / f"{rank}.pt")


def gather(folder: Path, device: str) -> dict[str, list[dict[str, Any]]]:
    """By world, what every process has to show."""
    processes = [start(work, folder, rank, device) for rank in range(3)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    loaded = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(3)]
    return {world: [each[world] for each in loaded[: len(WORLDS[world])]] for world in WORLDS}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return gather(tmp_path_factory.mktemp("processes"), "cpu")


def assert_shares_of_one(case: Case, sizes: list[int], shares: list[dict[str, Tensor]]) -> None:
    """Parameters' gradients are summed; statistics must be the same in all."""
    for key, value in learn(case, [sum(sizes)], 0, "cpu").items():
        values = [share[key] for share in shares if key in share]
        if key.startswith(("output", "input gradient")):
            result = torch.cat(values)
        elif key.startswith("gradient"):
            result = torch.stack(values).sum(dim=0)
        else:
            result = values[0]
            assert all(torch.equal(result, other) for other in values[1:]), key
        torch.testing.assert_close(
            result, value, rtol=case.rtol, atol=case.atol, msg=f"{key}: {result}, not {value}"
        )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_processes_normalise_and_learn_as_one_with_all_examples(
    results: Any, world: str, name: str
) -> None:
    shares = [each[name] for each in results[world]]
    assert_shares_of_one(CASES[name], WORLDS[world], shares)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_processes_on_a_gpu_normalise_as_one_on_the_host(tmp_path: Path) -> None:
    for world, shares in gather(tmp_path, "cuda").items():
        for name in CASES.keys() - {"stack", "bf16"}:  # a GPU rounds convolutions otherwise
            assert_shares_of_one(CASES[name], WORLDS[world], [each[name] for each in shares])


@pytest.mark.parametrize("world", ["three", "two"])
def test_a_residual_network_learns_as_in_one_process(results: Any, world: str) -> None:
    expected = learn_images([sum(WORLDS[world])], 0, "cpu")
    for each in results[world]:
        torch.testing.assert_close(each["images"], expected, rtol=1e-3, atol=1e-4)


def test_one_value_for_all_processes_is_refused_in_all(results: Any) -> None:
    for shares in results.values():
        for each in shares:
            assert each["message"].startswith("batch normalisation needs more than 1 value")


def test_mixed_precision_keeps_statistics_in_fp32(results: Any) -> None:
    first = "buffer 1.running_var"
    for world, shares in results.items():
        expected = learn(CASES["bf16"], [sum(WORLDS[world])], 0, "cpu")[first]
        torch.testing.assert_close(shares[0]["bf16"][first], expected, rtol=1e-4, atol=0)


def test_only_classes_change() -> None:
    network = stack()
    state, modules = network.state_dict(keep_vars=True), list(network.modules())
    synchronise_batch_norm(network)
    synchronise_batch_norm(network)
    after = network.state_dict(keep_vars=True)
    assert list(after) == list(state)
    assert all(after[name] is value for name, value in state.items())
    assert list(network.modules()) == modules
    assert isinstance(network[1], nn.BatchNorm2d)
    assert type(network[1]) is type(network[4])
    assert type(network[1]) is not nn.BatchNorm2d


def test_other_norms_stay() -> None:
    network = nn.Sequential(nn.InstanceNorm2d(3), nn.SyncBatchNorm(3), nn.LayerNorm(3))
    kinds = [type(module) for module in network]
    synchronise_batch_norm(network)
    assert [type(module) for module in network] == kinds


def test_a_process_alone_computes_what_it_did_to_the_bit() -> None:
    plain, other = stack(), stack()
    other.load_state_dict(plain.state_dict())
    synchronise_batch_norm(other)
    x = torch.randn(5, 3, 6, 6)
    torch.testing.assert_close(other(x), plain(x), rtol=0, atol=0)
    torch.testing.assert_close(dict(other.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)


def test_a_norm_that_computes_otherwise_cannot_be_synchronised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[reportIncompatibleMethodOverride]
            return x - x.mean(dim=0)

    for name, value in {"is_initialized": True, "get_world_size": 2}.items():
        monkeypatch.setattr(dist, name, lambda value=value: value)
    with pytest.raises(UserError, match=r"^Own does not call F\.batch_norm.*trainer\.devices=1$"):
        synchronised(Own(3))(torch.randn(4, 3))
