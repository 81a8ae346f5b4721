"""Batch normalisation over several ranks: torch's own in place of every norm, or a refusal."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from research.errors import UserError
from research.networks.batch_renorm import BatchRenorm
from research.parallel.batch_norm import synchronise_batch_norm
from tests.commands import start

GPU = torch.device("cuda")
SIZES = (3, 5)
"""How many examples each of two ranks has."""


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())


def test_every_norm_is_replaced_and_keeps_what_it_has_learned() -> None:
    network = make_network()
    before = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    synchronise_batch_norm(network, GPU)
    assert isinstance(network[1], nn.SyncBatchNorm)
    after = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    assert list(after) == list(before)
    assert all(after[name] is tensor for name, tensor in before.items())


def test_on_cpus_it_is_refused_with_the_ways_out() -> None:
    with pytest.raises(UserError, match=r"needs GPUs; set trainer\.devices=1, or .*network=mlp"):
        synchronise_batch_norm(make_network(), torch.device("cpu"))


def test_a_network_without_it_is_left_alone() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    synchronise_batch_norm(network, torch.device("cpu"))
    assert isinstance(network[1], nn.LayerNorm)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_norm_with_a_forward_of_its_own_is_refused_wherever_it_is(device: str) -> None:
    class Own(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).relu()

    with pytest.raises(UserError, match=r"^Own is a batch norm of its own.*trainer\.devices=1$"):
        synchronise_batch_norm(nn.Sequential(nn.Linear(3, 4), Own(4)), torch.device(device))


def test_batch_renormalisation_is_refused() -> None:
    norm = BatchRenorm(4, None, momentum=0.1, warmup=0)
    with pytest.raises(UserError, match=r"^BatchRenorm is a batch norm of its own"):
        synchronise_batch_norm(nn.Sequential(nn.Linear(3, 4), norm), torch.device("cpu"))


def test_timms_norms_keep_their_activation() -> None:
    try:
        from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
    except Exception as error:  # RuntimeError where torchvision was made for another torch
        pytest.skip(f"timm cannot be imported: {error}")
    norm = BatchNormAct2d(4, act_layer=nn.SiLU)
    network = nn.Sequential(norm)
    synchronise_batch_norm(network, GPU)
    assert isinstance(network[0], SyncBatchNormAct)
    assert isinstance(network[0].act, nn.SiLU)


def learn(rank: int, sizes: tuple[int, ...], network: nn.Module) -> dict[str, Tensor]:
    """What a batch leaves behind on the GPU, in a rank that has a share of it."""
    network.to(GPU).double()
    torch.manual_seed(1)
    x, factors = torch.randn(sum(SIZES), 3, 6, 6), torch.randn(sum(SIZES), 64)
    y = network(x.double().split(sizes)[rank].to(GPU))
    (factors.double().split(sizes)[rank].to(GPU) * y.sin()).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {**gradients, "running_var": network.get_buffer("1.running_var")}


def work(folder: Path, rank: int) -> None:
    """What one of the ranks does; the result goes to a file."""
    torch.distributed.init_process_group(  # NCCL wants a GPU for each
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=len(SIZES)
    )
    network = make_network()
    synchronise_batch_norm(network, GPU)
    torch.save(learn(rank, SIZES, network), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_ranks_normalise_as_one_process_with_all_examples(tmp_path: Path) -> None:
    processes = [start(work, tmp_path, rank) for rank in range(len(SIZES))]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, expected in learn(0, (sum(SIZES),), make_network()).items():
        result = one[name] if name == "running_var" else one[name] + other[name]
        torch.testing.assert_close(result, expected)
