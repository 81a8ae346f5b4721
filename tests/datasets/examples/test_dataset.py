"""Order, split, shares, state and workers of supervised datasets."""

import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from research.batches import Example
from research.datasets.examples.dataset import Examples
from research.datasets.examples.sources import Source, TensorSource
from research.datasets.examples.workers import num_cpus
from research.errors import Preempted, UserError
from research.machine import memory
from research.signals import StopRequest

ROOT = Path(__file__).parents[3]
UNUSED = Path()
PATIENCE_S = 30.0
"""How long torch is to wait here until it kills a worker that does not end; without this, 5 s."""


class Files:
    """Stands for files: observation i is (i, i), label i modulo 3; some are not as they should be.

    Args:
        num_examples: n.
        num_classes: what they tell.
        tells: whether the labels are known without reading.
        damaged, larger: examples that cannot be read, and those of another shape.

    """

    def __init__(
        self,
        num_examples: int,
        *,
        num_classes: int | None = 3,
        tells: bool = True,
        damaged: tuple[int, ...] = (),
        larger: tuple[int, ...] = (),
    ) -> None:
        self.name = "files"
        self.num_classes = num_classes
        self.labels = torch.arange(num_examples) % 3
        self.targets = self.labels if tells else None
        self.damaged = damaged
        self.larger = larger

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        if index in self.damaged:
            raise UserError(f"{self.name_example(index)} cannot be read")
        obs = torch.full((3 if index in self.larger else 2,), float(index))
        return Example(obs, self.labels[index])

    def name_example(self, index: int) -> str:
        return f"files/{index}.png"


def labelled(labels: list[int]) -> TensorSource:
    """Observation i is (i,), with these labels."""
    obs = torch.arange(len(labels), dtype=torch.float32)[:, None]
    return TensorSource("some", obs, torch.tensor(labels))


def make(
    training: Source | int = 10,
    validation: Source | float | None = None,
    seed: int = 0,
    **keys: Any,
) -> Examples:
    """Examples of ``training``, or of as many files."""
    training = Files(training) if isinstance(training, int) else training
    defaults = {"split_seed": 0, "num_classes": None, "batch_size": 4, "num_workers": 0}
    return Examples(training, validation, seed, **{**defaults, "device": "cpu", **keys})


def numbers(batch: Example) -> list[int]:
    """Which examples are in a batch; each must have its own label."""
    indices = batch.obs[:, 0].long()
    assert torch.equal(batch.target, indices % 3)
    return indices.tolist()


def flat(lists: Iterable[Iterable[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))


def take(dataset: Examples, count: int) -> list[list[int]]:
    return [numbers(dataset.sample()) for _ in range(count)]


@given(num_examples=st.integers(1, 40), batch_size=st.integers(1, 50), epochs=st.integers(1, 3))
def test_an_epoch_shows_every_example_once_and_only_its_last_batch_has_another_size(
    num_examples: int, batch_size: int, epochs: int
) -> None:
    dataset = make(num_examples, batch_size=batch_size)
    for _ in range(epochs):
        batches = take(dataset, dataset.batches_per_epoch)
        assert sorted(flat(batches)) == list(range(num_examples))
        sizes = [len(batch) for batch in batches]
        assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
        assert 0 < sizes[-1] <= batch_size + (num_examples % batch_size == 1)
        assert 1 not in sizes or 1 in (batch_size, num_examples)  # batch normalisation needs two


def test_every_epoch_and_every_seed_has_an_order_of_its_own() -> None:
    orders = [take(make(50, batch_size=50, seed=seed), 2) for seed in (0, 1)]
    distinct = {tuple(epoch) for order in orders for (epoch,) in zip(order, strict=True)}
    assert len(distinct | {tuple(range(50))}) == 5


def test_workers_and_memory_give_the_same_batches() -> None:
    for validation in (0.3, Files(7), None):
        inside, apart = make(23, validation), make(23, validation, num_workers=2)
        assert take(inside, 14) == take(apart, 14)
        for _ in range(2):
            batches = [list(map(numbers, d.validation_batches())) for d in (inside, apart)]
            assert batches[0] == batches[1]
        every = [list(map(numbers, d.training_batches())) for d in (inside, apart)]
        assert every[0] == every[1]
        assert every[0] == [sorted(batch) for batch in every[0]]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 2, 3, 7])
def test_a_loaded_state_continues_with_the_same_batches(taken: int, num_workers: int) -> None:
    dataset = make(num_workers=num_workers)
    take(dataset, taken)
    state = dataset.save(UNUSED)
    assert state == {"epoch": taken // 3, "batch": taken % 3}
    expected = take(dataset, 5)
    other = make(num_workers=num_workers)
    take(other, 4)
    other.load(state, UNUSED)
    assert take(other, 5) == expected


def test_a_state_of_another_number_of_batches_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has taken 3 batches of its epoch, which now has 3"):
        make().load({"epoch": 0, "batch": 3}, UNUSED)


@given(num_examples=st.integers(2, 60), fraction=st.floats(0.02, 0.98), seed=st.integers(0, 9))
def test_what_is_held_out_is_never_learned_from_and_the_same_for_every_seed(
    num_examples: int, fraction: float, seed: int
) -> None:
    count = round(fraction * num_examples)
    if not 0 < count < num_examples:
        return
    dataset = make(num_examples, fraction, seed)
    held_out = flat(map(numbers, dataset.validation_batches()))
    learned = flat(take(dataset, dataset.batches_per_epoch))
    assert len(held_out) == count
    assert held_out == sorted(held_out)
    assert sorted(held_out + learned) == list(range(num_examples))
    other = make(num_examples, fraction, seed + 1)
    assert flat(map(numbers, other.validation_batches())) == held_out


def test_the_split_seed_chooses_what_is_held_out() -> None:
    held_out = [
        tuple(flat(map(numbers, make(60, 0.5, split_seed=seed).validation_batches())))
        for seed in (0, 1)
    ]
    assert held_out[0] != held_out[1]
    assert held_out[0] != tuple(range(30))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_ranks_share_the_batches_of_one_process(num_ranks: int, num_workers: int) -> None:
    validation = Files(6)
    alone = make(17, validation, batch_size=6)
    ranks = [make(17, validation, batch_size=6, num_workers=num_workers) for _ in range(num_ranks)]
    for rank, dataset in enumerate(ranks):
        dataset.share(rank, num_ranks)
    for whole in take(alone, 4):
        shares = [numbers(dataset.sample()) for dataset in ranks]
        assert shares == [list(part) for part in np.array_split(whole, num_ranks)]
    shares = flat(map(numbers, dataset.validation_batches()) for dataset in ranks)
    assert all(shares)
    assert sorted(flat(shares)) == list(range(6))
    assert all(
        list(map(numbers, dataset.training_batches()))
        == list(map(numbers, alone.training_batches()))
        for dataset in ranks
    )


def test_a_batch_too_small_for_all_ranks_is_refused() -> None:
    make(11).share(0, 3)
    with pytest.raises(ValueError, match=r"a batch of 2, too few examples for 3 ranks.*batch_size"):
        make(10).share(0, 3)


def test_workers_start_with_the_first_batch_and_stay_for_every_validation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", PATIENCE_S)
    before = set(multiprocessing.active_children())
    dataset = make(10, 0.3, num_workers=2)
    assert set(multiprocessing.active_children()) == before
    dataset.sample()
    training = set(multiprocessing.active_children()) - before
    assert len(training) == min(2, num_cpus())
    pids = []
    for _ in range(3):
        list(dataset.validation_batches())
        pids.append({p.pid for p in set(multiprocessing.active_children()) - before - training})
    assert len(pids[0]) == min(2, num_cpus())
    assert pids[0] == pids[1] == pids[2]
    cycle = [dataset]
    cycle.append(cycle)  # type: ignore[arg-type]
    begun = time.monotonic()
    del dataset, cycle
    gc.collect()
    assert set(multiprocessing.active_children()) <= before
    assert time.monotonic() - begun < PATIENCE_S


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tells_affinity", [True, False])
def test_there_are_no_more_workers_than_cpus(
    tells_affinity: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tells_affinity:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5}, raising=False)
    else:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
    before = set(multiprocessing.active_children())
    dataset = make(23, num_workers=3)
    assert take(dataset, 7) == take(make(23), 7)
    assert len(set(multiprocessing.active_children()) - before) == 1


def test_a_validation_that_was_broken_off_does_not_shift_the_next() -> None:
    dataset = make(10, 0.9, num_workers=2, batch_size=2)
    expected = list(map(numbers, dataset.validation_batches()))
    for batch in dataset.validation_batches():
        assert numbers(batch) == expected[0]
        break
    assert list(map(numbers, dataset.validation_batches())) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_some_validation_batches_are_taken_in_turn(num_workers: int) -> None:
    dataset = make(4, Files(10), num_workers=num_workers)
    every = list(map(numbers, dataset.validation_batches()))
    assert len(every) == 3
    for first, expected in ((0, [0, 1]), (2, [2, 0]), (4, [1, 2]), (6, [0, 1])):
        batches = dataset.validation_batches(first, 2)
        assert list(map(numbers, batches)) == [every[index] for index in expected]
    assert list(map(numbers, dataset.validation_batches(1, 9))) == [every[i] for i in (1, 2, 0)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_global_generators_are_left_alone(num_workers: int) -> None:
    state = torch.get_rng_state()
    dataset = make(10, 0.3, num_workers=num_workers)
    take(dataset, 4)
    list(dataset.validation_batches())
    list(dataset.training_batches())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_example_that_cannot_be_read_is_named(num_workers: int) -> None:
    with pytest.raises(UserError, match=r"^files/5.png cannot be read$"):
        take(make(Files(10, damaged=(5,)), num_workers=num_workers), 3)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_example_of_another_shape_is_named(num_workers: int) -> None:
    message = r"^files/5.png has shape \(3,\), but files/0.png has \(2,\); set dataset"
    with pytest.raises(UserError, match=message):
        take(make(Files(10, larger=(5,)), num_workers=num_workers), 3)


def test_a_worker_outlives_the_signals_that_a_whole_run_gets() -> None:
    before = set(multiprocessing.active_children())
    dataset = make(40, num_workers=1)
    expected = take(make(40), 30)
    first = take(dataset, 1)
    (worker,) = set(multiprocessing.active_children()) - before
    assert worker.pid is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        subprocess.run(["sh", "-c", f"kill -{int(number)} {worker.pid}"], check=True)
    assert first + take(dataset, 29) == expected
    assert worker.is_alive()
    worker.terminate()  # by its parent
    worker.join(10)
    assert worker.exitcode == 0


PROGRAM = """
import multiprocessing, signal, sys
import torch.utils.data
from tests.datasets.examples.test_dataset import PATIENCE_S, make
if sys.argv[1] == "end":
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = PATIENCE_S
dataset = make(40, 0.5, num_workers=2)
dataset.sample(), list(dataset.validation_batches())
print(*(p.pid for p in multiprocessing.active_children()), flush=True)
if sys.argv[1] == "wait":
    signal.pause()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["end", "wait"])
def test_workers_end_with_their_process_however_that_ends(how: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, how], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    pids = [int(pid) for pid in program.stdout.readline().split()]
    assert len(pids) == 2 * min(2, num_cpus())
    if how == "wait":
        program.kill()
    begun = time.monotonic()
    assert program.wait(60) == (-signal.SIGKILL if how == "wait" else 0)
    assert time.monotonic() - begun < PATIENCE_S
    while any(Path(f"/proc/{pid}").exists() and is_running(pid) for pid in pids):
        assert time.monotonic() - begun < 30
        time.sleep(0.1)


SMALL_SHARED_MEMORY = """
mount -t tmpfs -o size=$1 tmpfs /dev/shm || exit 77
exec "$2" -c "$3"
"""

READ_ALL = """
import torch
from research.datasets.examples.sources import TensorSource
from research.errors import Preempted, UserError
from research.signals import StopRequest
from tests.datasets.examples.test_dataset import make
torch.manual_seed(0)
source = TensorSource("some", torch.randn(40, 2000), torch.arange(40) % 2)
inside, apart = (make(source, 0.5, batch_size=8, num_workers=n) for n in (0, 2))
try:
    for _ in range(3):
        for one, other in zip(inside.validation_batches(), apart.validation_batches(), strict=True):
            assert all(map(torch.equal, one, other))
        for _ in range(4):
            assert all(map(torch.equal, inside.sample(), apart.sample()))
except UserError as error:
    print(error)
"""


def run_with_shared_memory(size: str, program: str) -> subprocess.CompletedProcess[str]:
    """A Python program where /dev/shm is so small, as containers have it."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("mounting needs root, and util-linux")
    command = ["unshare", "-m", "sh", "-c", SMALL_SHARED_MEMORY, "sh", size, sys.executable]
    done = subprocess.run(
        [*command, program], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("mounting needs a container that may")
    return done


def test_batches_that_shared_memory_has_no_room_for_come_all_the_same() -> None:
    done = run_with_shared_memory("192k", READ_ALL)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    (line,) = done.stderr.splitlines()  # once
    assert line.startswith("/dev/shm has no room for a batch (")
    assert line.endswith(
        "slowly; give it more (docker run --shm-size=1g), or set dataset.num_workers=0"
    )


def test_one_line_says_that_shared_memory_has_no_room_for_workers() -> None:
    done = run_with_shared_memory("4k", READ_ALL)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert " workers cannot start: they need " in line
    assert " of /dev/shm, where 4.1 kB of 4.1 kB are free ([Errno 28] No space left on dev" in line


class Hanging(Files):
    """Its last example is never read."""

    def __getitem__(self, index: int) -> Example:
        if index == len(self) - 1:
            signal.pause()
        return super().__getitem__(index)


def test_a_signal_ends_the_wait_for_a_worker_that_hangs_and_no_batch_is_lost() -> None:
    dataset = make(Hanging(10), num_workers=2, batch_size=2)
    expected = take(make(10, batch_size=2), 10)
    taken: list[Any] = []
    with StopRequest() as stop:
        dataset.wait_in(stop.at_once)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Preempted, match="SIGTERM"):
            taken.extend(numbers(dataset.sample()) for _ in range(10))
    assert dataset.save(UNUSED) == {"epoch": 0, "batch": len(taken)}
    other = make(10, batch_size=2)
    other.load(dataset.save(UNUSED), UNUSED)
    assert taken + take(other, 10 - len(taken)) == expected


def is_running(pid: int) -> bool:
    """Whether a process has not ended, though nobody may have asked how."""
    try:
        os.kill(pid, 0)
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"validation": 0.01}, r"validation=0.01 of 10 examples holds out 0"),
        ({"validation": 0.99}, r"holds out 10, and leaves 0 to learn from"),
        ({"device": "gpu"}, "device=gpu is no device; allowed: auto, cpu"),
        ({"training": 0}, "files has no examples"),
        ({"validation": Files(0)}, "files has no examples"),
        ({"num_classes": 4}, "num_classes is 4, but files has 3 classes"),
    ],
)
def test_a_value_out_of_range_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**keys)


def test_the_number_of_classes_is_given_or_told_or_counted() -> None:
    assert make(labelled([0, 3, 0, 1])).action_space == spaces.Discrete(4)
    assert make(labelled([0, 3]), num_classes=7).action_space == spaces.Discrete(7)
    assert make(Files(1)).action_space == spaces.Discrete(3)
    assert make(Files(9, num_classes=None, tells=False)).action_space == spaces.Discrete(3)


@pytest.mark.parametrize(
    ("training", "validation", "keys", "message"),
    [
        ([0, 1, 5], None, {"num_classes": 3}, "example 2 of some has label 5; allowed are 0 to 2"),
        ([0, -1], None, {}, "example 1 of some has label -1; labels count classes from 0 .numbers"),
        (
            [-1, -1],
            None,
            {},
            "example 0 of some has label -1; labels count classes from 0 .numbers",
        ),
        (
            [0, 1],
            [1, -1],
            {},
            "example 1 of some has label -1; labels count classes from 0 .numbers",
        ),
        ([0, 1], [-1], {"num_classes": 2}, "example 0 of some has label -1; labels count classes"),
        ([0, 2, 2], [2, 0, 3], {}, "example 2 of some has label 3, which no training example has"),
        ([0, 2, 2], [0, 1], {}, "example 1 of some has label 1, which no training example has"),
        ([0, 2], None, {}, r"some has label 2, but only 2 examples; set dataset.num_classes=3 if"),
        ([0, 2], [0, 4], {"num_classes": 4}, "example 1 of some has label 4; allowed are 0 to 3"),
    ],
)
def test_a_label_out_of_range_is_named(
    training: list[int], validation: list[int] | None, keys: dict[str, Any], message: str
) -> None:
    apart = labelled(validation) if validation else None
    with pytest.raises((UserError, ValueError), match=message):
        make(labelled(training), apart, **keys)
    make(labelled([0, 2]), labelled([1]), num_classes=3)


@pytest.mark.parametrize("label", [0, 2])
def test_examples_of_one_class_need_the_number_of_classes(label: int) -> None:
    message = rf"^all examples of some have label {label}, but .* two classes; set dataset.num_cla"
    with pytest.raises(ValueError, match=message):
        make(labelled([label] * 4))
    assert make(labelled([label] * 4), num_classes=3).action_space == spaces.Discrete(3)


def test_labels_that_are_known_only_when_read_are_checked_then() -> None:
    files = Files(10, num_classes=None, tells=False)
    with pytest.raises(ValueError, match="does not tell how many classes it has"):
        make(files, num_workers=1)
    take(make(files, num_workers=1, num_classes=3), 3)
    with pytest.raises(UserError, match=r"files/\d.png has label 2; allowed are 0 to 1"):
        take(make(files, num_workers=1, num_classes=2), 3)


def test_numbers_are_a_regression() -> None:
    obs, targets = torch.rand(6, 3), torch.rand(6, 2)
    source = TensorSource("some", obs, targets)
    dataset = make(source, 0.5)
    assert dataset.action_space == spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert dataset.observation_space == spaces.Box(-np.inf, np.inf, (3,), np.float32)
    batch = dataset.sample()
    where = (obs[None] == batch.obs[:, None]).all(-1).nonzero()[:, 1]
    assert torch.equal(targets[where], batch.target)
    with pytest.raises(ValueError, match=r"num_classes is 2, but the targets are torch.float32"):
        make(source, num_classes=2)
    known = r"^some has targets of torch.float32 \(2,\), but "
    one = TensorSource("one", obs, targets[:, :1])
    for other, found in (
        (labelled([0]), r"some of torch.int64 \(\)$"),
        (one, r"one of torch.float32 \(1,\)$"),
        (Files(9, tells=False), "files of labels$"),
    ):
        with pytest.raises(ValueError, match=known + found):
            make(source, other, num_workers=1)


def test_labels_are_not_validated_on_a_regression() -> None:
    numbers = TensorSource("numbers", torch.rand(3, 1), torch.rand(3, 1))
    with pytest.raises((UserError, ValueError), match="must be class labels"):
        make(labelled([0, 1]), numbers, num_classes=2)


def test_validation_has_observations_as_training_has() -> None:
    other = TensorSource("other", torch.zeros(2, 1, dtype=torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"some has observations of torch.float32 \(1,\), but oth"):
        make(labelled([0, 1]), other)


def test_what_does_not_fit_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(1000, damaged=(1,))
    monkeypatch.setattr(memory, "available_memory", lambda: 15_999)
    message = r"files needs 16 kB of memory, but 16 kB are available .*; set dataset.num_workers=4$"
    with pytest.raises(UserError, match=message):
        make(files)
    make(files, num_workers=2)
    monkeypatch.setattr(memory, "available_memory", lambda: 16_000)
    with pytest.raises(UserError, match=r"files/1.png cannot be read"):
        make(files)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_keeps_the_examples_or_gets_them_from_pinned_memory() -> None:
    inside, apart = make(23, 0.3, device="cuda"), make(23, 0.3, device="cuda", num_workers=2)
    batch = inside.sample()
    assert batch.obs.is_cuda
    assert batch.target.is_cuda
    assert apart.sample().obs.is_pinned()
    assert take(inside, 10) == take(apart, 10)
    assert all(batch.obs.is_cuda for batch in inside.validation_batches())
    assert make(device="auto").sample().obs.is_cuda
