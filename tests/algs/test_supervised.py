"""Learning from examples: parts of batches, averages, precision, decay, several processes."""

import io
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from research.algs.loss_scaler import LossScaler
from research.algs.regression import Regression
from research.algs.supervised import Supervised, cut, group_parameters
from research.batches import Example
from research.errors import UserError
from research.networks.cnn import CNN
from research.networks.predictor import FlatMLP, Predictor
from research.networks.resnet import ResNet
from tests.commands import start
from tests.networks.test_predictor import images

SGD = partial(torch.optim.SGD, lr=0.1)
NUMBERS: dict[str, Any] = {
    "optim": SGD,
    "accumulate": 1,
    "ema_decay": None,
    "precision": "fp32",
    "compile": False,
}
VALUES = Box(-np.inf, np.inf, (2,), np.float32)


def make_mlp(targets: Any = VALUES, *, hidden_dims: tuple[int, ...] = (8,)) -> FlatMLP:
    """A perceptron on observations (3,)."""
    return FlatMLP(
        images(3),
        targets,
        hidden_dims=hidden_dims,
        activation=nn.Tanh,
        layer_norm=True,
        init=None,
    )


def make(network: Predictor | None = None, **changes: Any) -> Regression:
    """A regression with its optimizer; the same network every time unless one is given."""
    if network is None:
        torch.manual_seed(1)
        network = make_mlp()
    alg = Regression(network, **(NUMBERS | changes))
    alg.make_optimizers()
    return alg


def make_batch(size: int = 10) -> Example:
    return Example(torch.randn(size, 3), torch.randn(size, 2))


def weights(alg: Supervised) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in alg.network.named_parameters()}


def train(alg: Supervised, batches: list[Example]) -> None:
    for index, batch in enumerate(batches):
        alg.update(batch, step=index, updates=index)


def saved_and_loaded(state: Any) -> Any:
    """A state after its way through a checkpoint's file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_an_update_descends_the_gradient_of_the_mean() -> None:
    alg, batch = make(), make_batch()
    before = weights(alg)
    losses = [(alg.network(o[None]) - t).square().mean() for o, t in zip(*batch, strict=True)]
    slopes = torch.autograd.grad(torch.stack(losses).mean(), list(alg.network.parameters()))
    metrics = alg.update(batch, step=0, updates=0)
    for (name, value), slope in zip(weights(alg).items(), slopes, strict=True):
        torch.testing.assert_close(value, before[name] - 0.1 * slope)
    assert metrics["loss"].item() == pytest.approx(torch.stack(losses).mean().item())


@pytest.mark.parametrize("num_parts", [2, 3, 10, 13])
def test_a_batch_in_parts_is_the_batch_as_a_whole(num_parts: int) -> None:
    whole, parts, batch = make(), make(accumulate=num_parts), make_batch()
    expected = whole.update(batch, step=0, updates=0)
    torch.testing.assert_close(parts.update(batch, step=0, updates=0), expected)
    torch.testing.assert_close(weights(parts), weights(whole))


def test_parts_are_in_order_none_empty_and_of_nearly_equal_size() -> None:
    batch = make_batch(7)
    parts = list(cut(batch, 3))
    assert [len(part.target) for part in parts] == [2, 2, 3]
    assert torch.equal(torch.cat([part.obs for part in parts]), batch.obs)
    assert [len(part.target) for part in cut(batch, 9)] == [1] * 7


def test_the_average_keeps_its_share_of_every_weight() -> None:
    alg = make(ema_decay=0.75)
    expected = weights(alg)
    for _ in range(3):
        train(alg, [make_batch()])
        expected = {n: 0.75 * expected[n] + 0.25 * w for n, w in weights(alg).items()}
    assert alg.average is not None
    torch.testing.assert_close(dict(alg.average.named_parameters()), expected)


def make_cnn() -> CNN:
    return CNN(images(1, 4, 4), VALUES, channels=[4], dropout=0.0, channels_last=False)


def test_the_average_takes_the_newest_statistics() -> None:
    alg = make(make_cnn(), ema_decay=0.9)
    train(alg, [Example(torch.randn(8, 1, 4, 4) + 5, torch.randn(8, 2))])
    assert alg.average is not None
    statistics = dict(alg.average.named_buffers())
    torch.testing.assert_close(statistics, dict(alg.network.named_buffers()), rtol=0, atol=0)
    assert statistics["stages.1.running_mean"].any()


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_validation_and_acting_use_the_average_if_there_is_one(ema_decay: float | None) -> None:
    alg, batch = make(ema_decay=ema_decay), make_batch()
    train(alg, [make_batch()])
    networks = (alg.network, make().network) if ema_decay is None else (alg.average, alg.network)
    expected, other = (network(batch.obs) for network in networks if network is not None)
    assert not torch.allclose(expected, other, atol=1e-4)
    assert torch.equal(alg.act(batch.obs, 0, explore=False), expected)
    loss = (expected - batch.target).square().mean()
    torch.testing.assert_close(alg.validate(batch)["loss"], loss.detach())


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
    decayed, others = group_parameters(network)
    names = {parameter: name for name, parameter in network.named_parameters()}
    assert {names[parameter] for parameter in decayed["params"]} == expected
    assert {names[p] for p in others["params"]} == set(names.values()) - expected
    assert others["weight_decay"] == 0
    assert "weight_decay" not in decayed


def test_a_weight_without_a_gradient_decays_and_a_bias_does_not() -> None:
    alg = make(optim=partial(torch.optim.SGD, lr=0.1, weight_decay=0.5))
    alg.loss = lambda output, batch: 0.0 * output.sum()  # type: ignore[method-assign]
    before = weights(alg)
    train(alg, [make_batch()])
    for name, value in weights(alg).items():
        factor = 0.95 if name in NETWORKS["mlp"][1] else 1.0
        torch.testing.assert_close(value, factor * before[name])


def test_a_frozen_or_shared_parameter_is_not_optimised_or_not_twice() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    network[2].requires_grad_(False)
    decayed, others = group_parameters(network)
    assert [len(group["params"]) for group in (decayed, others)] == [1, 2]


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizer_may_have_an_empty_group(fused: bool) -> None:
    layer = nn.Linear(3, 2, bias=False)
    optim = torch.optim.AdamW(group_parameters(layer), lr=0.1, fused=fused)
    before = layer.weight.detach().clone()
    layer(torch.randn(4, 3)).square().sum().backward()
    optim.step()
    assert (layer.weight != before).all()


def test_half_precision_is_for_the_networks_arithmetic_alone() -> None:
    alg, seen = make(precision="bf16"), []
    alg.network.get_submodule("mlp.0").register_forward_hook(
        lambda *call: seen.append(call[-1].dtype)
    )
    alg.loss = lambda output, batch: (  # type: ignore[method-assign]
        seen.append(output.dtype),
        output.square().mean(),
    )[1]
    train(alg, [make_batch()])
    assert seen == [torch.bfloat16, torch.float32]
    assert {p.dtype for p in alg.network.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_nearly_the_same(precision: str) -> None:
    whole, half, batches = make(), make(precision=precision), [make_batch() for _ in range(3)]
    if half.scaler is not None:
        half.scaler.set_extra_state(torch.tensor([256.0, 0.0]))  # too small to overflow
    start = weights(whole)
    for alg in (whole, half):
        train(alg, batches)
    for name, value in weights(half).items():
        change = weights(whole)[name] - start[name]
        assert (value - start[name] - change).norm() < 0.05 * change.norm(), name


def test_gradients_that_overflow_are_skipped_and_halve_the_scale() -> None:
    alg = make(precision="fp16", optim=partial(torch.optim.Adam, lr=0.1, fused=True))
    assert alg.scaler is not None
    before = weights(alg)
    train(alg, [make_batch()._replace(target=torch.full((10, 2), 1e38))])
    torch.testing.assert_close(weights(alg), before, rtol=0, atol=0)
    assert alg.scaler.get_extra_state().tolist() == [2**15, 0]
    train(alg, [make_batch()])
    assert alg.scaler.get_extra_state().tolist() == [2**15, 1]
    assert not torch.equal(weights(alg)["mlp.0.weight"], before["mlp.0.weight"])


HUGE = torch.full((10, 2), 1e38)
"""Targets whose gradients overflow fp16 with any scale."""


@pytest.mark.parametrize("fused", [True, False])
def test_an_update_that_overflows_is_counted_and_leaves_the_average_alone(fused: bool) -> None:
    alg = make(precision="fp16", ema_decay=0.5, optim=partial(torch.optim.Adam, fused=fused))
    assert alg.average is not None
    train(alg, [make_batch()])
    before = {name: value.clone() for name, value in alg.average.state_dict().items()}
    metrics = alg.update(make_batch()._replace(target=HUGE), step=0, updates=0)
    assert (alg.is_skipped, metrics["skipped_share"].item()) == (True, 1)
    torch.testing.assert_close(dict(alg.average.state_dict()), before, rtol=0, atol=0)
    metrics = alg.update(make_batch(), step=0, updates=0)
    assert (alg.is_skipped, metrics["skipped_share"].item()) == (False, 0)
    assert not torch.equal(alg.average.state_dict()["mlp.0.weight"], before["mlp.0.weight"])


def test_what_overflows_with_a_loss_scaled_down_is_warned_of_once_and_then_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    alg, batch = make(precision="fp16"), make_batch()._replace(target=HUGE)
    train(alg, [batch] * 16)
    assert not caplog.messages
    train(alg, [batch] * 14)
    assert [message[:60] for message in caplog.messages] == [
        "gradients overflow fp16 unless the loss is scaled down, so t"
    ]
    with pytest.raises(UserError, match=r"where the loss is scaled by 6.1e-05; .*precision=bf16$"):
        train(alg, [batch])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_a_scale_no_update_is_skipped(precision: str) -> None:
    alg = make(precision=precision)
    metrics = alg.update(make_batch()._replace(target=HUGE / 1e10), step=0, updates=0)
    assert not alg.is_skipped
    assert "skipped_share" not in metrics


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizers_hooks_see_gradients_without_the_scale(fused: bool) -> None:
    norms: dict[str, float] = {}
    for precision in ("fp32", "fp16"):
        alg = make(precision=precision, optim=partial(torch.optim.Adam, lr=0.1, fused=fused))

        def note(*_: Any, alg: Regression = alg, precision: str = precision) -> None:
            grads = [p.grad for p in alg.network.parameters() if p.grad is not None]
            norms[precision] = torch.nn.utils.get_total_norm(grads).item()

        alg.network_optim.register_step_pre_hook(note)
        torch.manual_seed(0)
        train(alg, [make_batch()])
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_reloaded_algorithm_goes_on_exactly(precision: str) -> None:
    options: dict[str, Any] = {
        "precision": precision,
        "ema_decay": 0.9,
        "optim": partial(torch.optim.AdamW, lr=0.01, fused=True),
    }
    alg, twin = make(**options), make(make_mlp(), **options)
    huge = make_batch()._replace(target=torch.full((10, 2), 1e38))
    train(alg, [make_batch(), huge] if precision == "fp16" else [make_batch()])
    state = alg.state_dict()
    assert all(isinstance(value, Tensor) for value in state.values())
    twin.load_state_dict(saved_and_loaded(state))
    twin.network_optim.load_state_dict(saved_and_loaded(alg.network_optim.state_dict()))
    batches = [make_batch(), make_batch()]
    for each in (alg, twin):
        train(each, batches)
    torch.testing.assert_close(dict(twin.state_dict()), dict(alg.state_dict()), rtol=0, atol=0)


def test_a_scale_is_saved_before_its_first_use() -> None:
    scaler = LossScaler(torch.device("cpu"))
    scaler.set_extra_state(torch.tensor([8.0, 5.0], dtype=torch.float64))
    assert scaler.scale(torch.tensor(3.0)).item() == 24
    assert scaler.get_extra_state().tolist() == [8, 5]


def test_only_fp16_has_a_scale_to_save() -> None:
    assert set(make(precision="bf16").state_dict()) == set(make().state_dict())
    added = set(make(precision="fp16").state_dict()) - set(make().state_dict())
    assert added == {"scaler._extra_state"}


def test_without_a_compiler_compiling_keeps_names_and_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, batches = [], [make_batch() for _ in range(2)]

    def compile(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *inputs: (calls.append(function), function(*inputs))[1]

    monkeypatch.setattr(torch, "compile", compile)
    plain, compiled = make(ema_decay=0.5), make(ema_decay=0.5, compile=True)
    for alg in (plain, compiled):
        train(alg, batches)
        alg.validate(batches[0])
    assert len(calls) == 3
    torch.testing.assert_close(
        dict(compiled.state_dict()), dict(plain.state_dict()), rtol=0, atol=0
    )


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="no C++ compiler")
def test_compiled_networks_compute_the_same() -> None:
    plain, compiled, batches = make(), make(compile=True), [make_batch() for _ in range(3)]
    for alg in (plain, compiled):
        train(alg, batches)
    torch.testing.assert_close(dict(compiled.state_dict()), dict(plain.state_dict()))


def shares(batch: Example, sizes: list[int]) -> Iterator[Example]:
    for obs, target in zip(batch.obs.split(sizes), batch.target.split(sizes), strict=True):
        yield Example(obs, target)


def learn_share(folder: Path, rank: int, sizes: list[int], precision: str) -> None:
    """What one of two processes does; its weights go to a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=len(sizes)
    )
    alg = make(precision=precision, accumulate=2)
    torch.manual_seed(0)
    for index in range(2):
        share = list(shares(make_batch(), sizes))[rank]
        alg.update(share, step=index, updates=index)
    torch.save(weights(alg), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("sizes", "precision"), [([7, 3], "fp32"), ([8, 2], "fp32"), ([8, 2], "fp16")]
)
def test_processes_with_shares_of_a_batch_learn_as_one_with_all_of_it(
    tmp_path: Path, sizes: list[int], precision: str
) -> None:
    processes = [start(learn_share, tmp_path, rank, sizes, precision) for rank in range(2)]
    alg = make()
    torch.manual_seed(0)
    train(alg, [make_batch(), make_batch()])
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    rtol, atol = (1e-5, 1e-6) if precision == "fp32" else (1e-2, 1e-3)
    torch.testing.assert_close(one, weights(alg), rtol=rtol, atol=atol)


def test_a_rank_needs_an_example_for_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    alg = make(accumulate=3)
    alg.make_optimizers()
    monkeypatch.setattr("research.algs.supervised.is_parallel", lambda: True)
    with pytest.raises(UserError, match=r"2 examples, fewer than alg.accumulate=3.*batch_size"):
        alg.update(make_batch(2), step=0, updates=0)


def test_a_new_loss_is_a_short_class() -> None:
    class Cosine(Supervised):
        target_space = Box

        def loss(self, output: Tensor, batch: Example) -> Tensor:
            return 1 - torch.cosine_similarity(output, batch.target).mean()

    alg = Cosine(make_mlp(), **NUMBERS)
    alg.make_optimizers()
    batch = make_batch()
    first = alg.update(batch, step=0, updates=0)
    assert set(first) == {"loss"}
    train(alg, [batch] * 20)
    assert alg.validate(batch)["loss"] < first["loss"]


def test_the_same_batches_give_the_same_weights_to_the_last_bit() -> None:
    one, other, batches = make(), make(), [make_batch() for _ in range(3)]
    for alg in (one, other):
        train(alg, batches)
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=0)


def test_a_network_for_other_answers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Regression learns targets in a Box, got Discrete\(3\)"):
        make(make_mlp(Discrete(3)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_learns_on_a_gpu_compiled(precision: str) -> None:
    torch.manual_seed(1)
    network = make_cnn().to("cuda")
    optim = partial(torch.optim.AdamW, lr=0.01, fused=True)
    alg = make(network, precision=precision, ema_decay=0.5, compile=True, optim=optim)
    batch = Example(torch.randn(64, 1, 4, 4).cuda(), torch.randn(64, 2).cuda())
    before = alg.validate(batch)["loss"]
    train(alg, [batch] * 50)
    assert alg.validate(batch)["loss"] < before
