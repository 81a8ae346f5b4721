"""How fast is supervised training? Our trainer against a bare PyTorch loop and PyTorch Lightning.

Examples per second of steady training in cases of ``CASES``: images of bytes, made from a seed, of
classes that can be told apart. Network, its first weights, arithmetic of the processor, AdamW with
its two groups of parameters, cross entropy, batch size and threads are those of our config in every
system, so that only the loop differs:

- ``ours``: ``train.py``, which logs a row to CSV and TensorBoard after every epoch.
- ``bare``: the shortest loop, over batches of a fresh ``torch.randperm`` of tensors in memory.
- ``bare_default``: the same, where the C library gives freed memory back to the system, as it does
  by itself. In all others it keeps that, as ``train.py`` has it: that is no matter of the loop.
- ``lightning``: its Trainer (Falcon et al., 2019, https://github.com/Lightning-AI/pytorch-lightning)
  over a DataLoader with ``batch_size`` and ``shuffle``, as its users write it.
- ``lightning_batched``: the same, but batches are indexed whole, the fastest that a DataLoader can.

Lightning has a CSVLogger, and no checkpoints, validation, progress bar or summary. Loss and
accuracy are gathered as tensors and read once an epoch by all. Ours saves and validates after the
window. ``tiny`` has next to no arithmetic: its microseconds for an update are what a loop costs.

With ``--workers`` all read through so many processes; ``bare`` then has the DataLoader of
``lightning_batched``.

Every window is a process of its own, some epochs after its start, and the systems take turns. Keep
the machine quiet meanwhile.
"""

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from benchmarks.measure import (
    RESULTS,
    ROOT,
    describe_machine,
    interleaved,
    read_rows,
    run_python,
    spread,
    write_rows,
)
from research.algs.weight_decay import group_parameters
from research.config import build
from research.datasets.examples.arrays import read_examples
from research.files import write_whole
from research.hydra_versions import VERSION_BASE
from research.machine.device import choose_device
from research.training.seed import seed_everything

SYSTEMS = ("bare", "ours", "lightning", "lightning_batched", "bare_default")
NUM_CLASSES, NUM_VALIDATION = 10, 100
WANTED = 0.98

log = logging.getLogger(__name__)
Rows = list[dict[str, Any]]


class Case(NamedTuple):
    """What is learned from what.

    Attributes:
        shape: of an image, (C, H, W).
        batch_size: B.
        num_batches: of an epoch.
        settle: epochs before the window.
        epochs: of the window.
        overrides: of our config.

    """

    shape: tuple[int, int, int]
    batch_size: int
    num_batches: int
    settle: int
    epochs: int
    overrides: tuple[str, ...]

    def make_examples(self, path: Path, count: int, *, seed: int) -> None:
        """Write ``count`` noisy images of the classes' patterns, which are the same at any seed."""
        patterns = np.random.default_rng(0).integers(0, 256, (NUM_CLASSES, *self.shape))
        rng = np.random.default_rng(seed)
        target = np.arange(count) % NUM_CLASSES
        noise = rng.integers(0, 256, (count, *self.shape))
        np.savez(path, obs=((patterns[target] + 3 * noise) // 4).astype(np.uint8), target=target)


CASES = {
    "cnn": Case((1, 28, 28), 256, 40, 2, 2, ("network=cnn",)),
    "resnet18": Case((3, 32, 32), 64, 10, 2, 1, ("network=resnet18",)),
    "resnet18_large": Case((3, 32, 32), 256, 100, 2, 5, ("network=resnet18",)),  # for a GPU
    "tiny": Case((1, 8, 8), 32, 320, 2, 10, ("network=mlp", "network.hidden_dims=[32]")),
}
ON_CPU = ["cnn", "resnet18", "tiny"]


def main() -> None:
    """Measure, print, and write the tables."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    facts = {
        **describe_machine(threads=arguments.threads),
        "lightning": metadata.version("lightning"),
        "device": arguments.device,
        "workers": arguments.workers,
        "load": round(os.getloadavg()[0], 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = with_ratios(list(measure(Path(folder), arguments)))
    told = ", ".join(f"{name} {value}" for name, value in facts.items())
    text = "\n".join([*report(rows, arguments), told]) + "\n"
    name = "supervised_workers" if arguments.workers else "supervised"
    write_rows(arguments.results / f"{name}.csv", [{**row, **facts} for row in rows])
    write_whole(arguments.results / f"{name}.md", text)
    print(text)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="of every process")
    parser.add_argument("--rounds", type=int, default=9, help="of every system and case")
    parser.add_argument("--workers", type=int, default=0, help="processes that read")
    parser.add_argument("--device", default="cpu", help="as train.py takes it")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=ON_CPU)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.threads) < 1 or arguments.workers < 0:
        parser.error("--rounds and --threads must be at least 1, --workers at least 0")
    if "bare" not in arguments.systems:
        parser.error("--systems must have bare, which the others are compared with")
    return arguments


def measure(folder: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for every window."""
    for name in arguments.cases:
        case = CASES[name]
        case.make_examples(folder / f"{name}.npz", case.batch_size * case.num_batches, seed=1)
        case.make_examples(folder / f"{name}_validation.npz", NUM_VALIDATION, seed=2)
    windows = {f"{case}, {s}": (case, s) for case in arguments.cases for s in arguments.systems}
    for index, window in interleaved(list(windows), arguments.rounds):
        name, system = windows[window]
        with tempfile.TemporaryDirectory(dir=folder) as run:
            found = time_window(system, name, folder, Path(run), arguments)
        log.info("round %d: %s: %.0f examples/s", index, window, found["examples_per_s"])
        yield {"round": index, "case": name, "system": system, **found}


def time_window(
    system: str, name: str, data: Path, folder: Path, arguments: argparse.Namespace
) -> dict[str, float]:
    """The speed of one process; and the mean loss in its last epoch, which all should share."""
    case = CASES[name]
    steps = (case.settle + case.epochs) * case.num_batches
    overrides = [
        "alg=classification",
        "dataset=arrays",
        f"dataset.path={data / name}.npz",
        f"dataset.validation={data / name}_validation.npz",
        f"dataset.batch_size={case.batch_size}",
        f"dataset.num_workers={arguments.workers}",
        *case.overrides,
        f"device={arguments.device}",
        "trainer.total_epochs=null",
        f"trainer.total_steps={steps}",
        f"trainer.log_every={case.num_batches}",
        f"trainer.evaluation.every={steps}",
        f"trainer.checkpoints.every={steps}",
        "trainer.checkpoints.minutes=null",
    ]
    log_file = data / "log"
    if system == "ours":
        command = [ROOT / "train.py", f"hydra.run.dir={folder}", *overrides]
        run_python(command, threads=arguments.threads, log=log_file)
        rows = read_rows(folder / "train.csv")
        ends, loss = [float(row["seconds"]) for row in rows], float(rows[-1]["loss"])
    else:
        command = [ROOT / "benchmarks/supervised.py", "peer", system, folder, *overrides]
        run_python(command, threads=arguments.threads, log=log_file)
        found = json.loads((folder / "report.json").read_text())
        ends, loss = found["ends"], found["loss"]
    assert len(ends) == case.settle + case.epochs, "a row for each epoch"
    updates = case.epochs * case.num_batches
    seconds = ends[-1] - ends[case.settle - 1]
    return {
        "examples_per_s": updates * case.batch_size / seconds,
        "us_per_update": 1e6 * seconds / updates,
        "loss": loss,
    }


def with_ratios(rows: Rows) -> Rows:
    """The rows with their speed divided by that of the bare loop in the same round and case."""
    bare = {(r["round"], r["case"]): r["examples_per_s"] for r in rows if r["system"] == "bare"}
    return [{**r, "ratio": r["examples_per_s"] / bare[r["round"], r["case"]]} for r in rows]


def report(rows: Rows, arguments: argparse.Namespace) -> Iterator[str]:
    """The tables: medians, with minimum and maximum."""
    yield "# Supervised training"
    yield ""
    yield f"Medians (minimum to maximum) of {arguments.rounds} rounds; a ratio is to the bare loop"
    yield f"in the same round. Wanted is {WANTED} for ours. See `benchmarks/supervised.py`."
    for name in arguments.cases:
        case = CASES[name]
        yield ""
        yield f"## {name}, images {case.shape}, batches of {case.batch_size}"
        yield ""
        yield "| system | examples/s | ratio | us per update | loss at the end |"
        yield "| --- | --- | --- | --- | --- |"
        for system in arguments.systems:
            own = [row for row in rows if (row["case"], row["system"]) == (name, system)]
            speed, ratio, loss = (
                [row[column] for row in own] for column in ("examples_per_s", "ratio", "loss")
            )
            cost = statistics.median(row["us_per_update"] for row in own)
            yield (
                f"| {system} | {statistics.median(speed):,.0f} ({min(speed):,.0f} to "
                f"{max(speed):,.0f}) | {spread(ratio)} | {cost:,.0f} | {spread(loss)} |"
            )
    yield ""


class Peer:
    """What our config builds, for another's loop.

    Args:
        overrides: of our config, as for train.py.
        keeps_memory: whether the C library keeps freed memory, as ``train.py`` has it.

    Attributes:
        epochs: how many to train.
        ends: when each ended, in seconds.

    """

    def __init__(self, overrides: list[str], *, keeps_memory: bool) -> None:
        with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
            cfg = compose("config", overrides)
        self.device = choose_device(cfg.device) if keeps_memory else torch.device(cfg.device)
        seed_everything(cfg.seed)
        self.num_workers, cfg.dataset.num_workers = cfg.dataset.num_workers, 0
        self.batch_size = cfg.dataset.batch_size
        dataset = build(cfg.dataset, build(cfg.env), cfg.seed)
        processor = build(cfg.processor, dataset.observation_space, dataset.action_space)
        self.processor = processor.to(self.device)
        self.processor.fit(dataset.training_batches())
        spaces = self.processor.observation_space, self.processor.action_space
        self.network: nn.Module = build(cfg.network, *spaces).to(self.device)
        self.make_optim: Callable[..., Optimizer] = build(cfg.alg.optim)
        source = read_examples(Path(cfg.dataset.path), cfg.dataset.obs, cfg.dataset.target)
        where = torch.device("cpu") if self.num_workers else self.device
        self.obs, self.target = source.obs.to(where), source.targets.to(where)
        self.epochs = cfg.trainer.total_steps // -(-len(self.obs) // self.batch_size)
        self.ends: list[float] = []

    def optimizer(self) -> Optimizer:
        """AdamW of the two groups that ours has."""
        return self.make_optim(group_parameters([self.network]))

    def rate(self, obs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of a batch, on the device."""
        output = self.network(self.processor.process_obs(obs))
        accuracy = (output.detach().argmax(dim=1) == target).float().mean()
        return F.cross_entropy(output, target), accuracy

    def loader(self, *, batched: bool) -> DataLoader[Any]:
        """Shuffles; examples are put together one by one, or batches are indexed whole."""
        examples = TensorDataset(self.obs, self.target)
        common = {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": self.num_workers > 0 and self.device.type == "cuda",
        }
        if not batched:
            return DataLoader(examples, batch_size=self.batch_size, shuffle=True, **common)
        sampler = BatchSampler(RandomSampler(examples), self.batch_size, drop_last=False)
        return DataLoader(examples, batch_size=None, sampler=sampler, **common)

    def epochs_in_memory(self) -> Iterator[Iterable[list[Tensor]]]:
        """The batches of every epoch, without a loader."""
        while True:
            order = torch.randperm(len(self.obs)).to(self.obs.device)
            yield ([self.obs[i], self.target[i]] for i in order.split(self.batch_size))


def train_peer(system: str, folder: Path, overrides: list[str]) -> None:
    """Train by another's loop, and report to ``folder``."""
    peer = Peer(overrides, keeps_memory=system != "bare_default")
    if system.startswith("lightning"):
        loss = train_by_lightning(peer, folder, batched=system == "lightning_batched")
    else:
        loss = train_bare(peer)
    write_whole(folder / "report.json", json.dumps({"ends": peer.ends, "loss": loss}))


def train_bare(peer: Peer) -> float:
    """The shortest loop; returns the mean loss in the last epoch."""
    optim = peer.optimizer()
    loader = peer.loader(batched=True)
    epochs = (loader for _ in range(peer.epochs)) if peer.num_workers else peer.epochs_in_memory()
    means: list[float] = []
    for batches in islice(epochs, peer.epochs):
        losses, accuracies = [], []
        for obs, target in batches:
            obs = obs.to(peer.device, non_blocking=True)
            target = target.to(peer.device, non_blocking=True)
            loss, accuracy = peer.rate(obs, target)
            optim.zero_grad()
            loss.backward()
            optim.step()
            losses.append(loss.detach())
            accuracies.append(accuracy)
        means = [torch.stack(values).mean().item() for values in (losses, accuracies)]
        peer.ends.append(time.perf_counter())
        print(*means)
    return means[0]


def train_by_lightning(peer: Peer, folder: Path, *, batched: bool) -> float:
    """Lightning's loop; returns the mean loss in the last epoch."""
    import lightning  # seconds, which only its own processes need to take
    from lightning.pytorch.loggers import CSVLogger

    class Module(lightning.LightningModule):
        """The same network, as Lightning's users wrap it."""

        def __init__(self) -> None:
            super().__init__()
            self.network, self.processor = peer.network, peer.processor

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            loss, accuracy = peer.rate(*batch)
            metrics = {"loss": loss, "accuracy": accuracy}
            self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=len(batch[1]))
            return loss

        def on_train_epoch_end(self) -> None:
            peer.ends.append(time.perf_counter())

        def configure_optimizers(self) -> Optimizer:
            return peer.optimizer()

    trainer = lightning.Trainer(
        accelerator="gpu" if peer.device.type == "cuda" else "cpu",
        devices=1,
        max_epochs=peer.epochs,
        logger=CSVLogger(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), peer.loader(batched=batched))
    return trainer.callback_metrics["loss"].item()


if __name__ == "__main__":
    if sys.argv[1:2] == ["peer"]:
        train_peer(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    else:
        main()
