"""Datasets of torchvision's: of a stand-in for it, and of its own readers where it is there."""

import gzip
import hashlib
import importlib
import pickle
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image

from research.config import build, check
from research.datasets.examples.dataset import Examples
from research.datasets.examples.digits import DIGITS
from research.errors import UserError
from tests.conftest import Load


class Plain:
    """Six grey images of shade i with label i modulo 3, which must be read to know them."""

    shades = range(6)

    def __init__(self, root: str) -> None:
        self.root = root

    def __len__(self) -> int:
        return len(self.shades)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        shade = self.shades[index]
        return Image.fromarray(np.full((2, 2), shade, np.uint8)), shade % 3


class Trains(Plain):
    """Has ``train``, and class names."""

    classes = ("a", "b", "c")

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        super().__init__(root)
        self.shades = range(6) if train else range(6, 8)
        self.targets = [shade % 3 for shade in self.shades]
        self.download = download


class Splits(Plain):
    """Has ``split``, of these, and ``labels``."""

    known = ("train", "extra", "test")

    def __init__(self, root: str, split: str = "train") -> None:
        super().__init__(root)
        if split not in self.known:
            # The words of torchvision's verify_str_arg.
            raise ValueError(
                f"Unknown value '{split}' for argument split. Valid values are {{...}}."
            )
        start = 10 * self.known.index(split)
        self.shades = range(start, start + 6)
        self.labels = np.arange(start, start + 6) % 3


class Validates(Splits):
    known = ("train", "extra", "test", "val")


class Both(Trains):
    """Has ``split``, which is none, and hands ``train`` on, like EMNIST."""

    def __init__(self, root: str, split: str, **others: Any) -> None:
        super().__init__(root, **others)
        self.split = split


class Files(Plain):
    """Reads a file when it is made, like MNIST, after a look at listed ones, like CIFAR10."""

    base_folder = "files"
    train_list = (["a", hashlib.md5(b"a").hexdigest()],)
    test_list = (["b", hashlib.md5(b"b").hexdigest()],)

    def __init__(self, root: str) -> None:
        super().__init__(root)
        folder = Path(root) / self.base_folder
        if any((folder / name).read_bytes() != name.encode() for name in "ab"):
            raise RuntimeError("Dataset not found or corrupted.")
        self.count(folder / "images")

    def count(self, path: Path) -> int:
        return int(path.read_bytes())


class Odd(Plain):
    """Something else than images with labels."""

    def __init__(self, obs: Any = None, target: Any = 0) -> None:
        self.obs = obs or Image.new("L", (2, 2))
        self.target = target

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.obs, self.target


@pytest.fixture
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the classes above in place of torchvision's."""
    package, datasets = ModuleType("torchvision"), ModuleType("torchvision.datasets")
    for kind in (Plain, Trains, Splits, Validates, Both, Files, Odd):
        setattr(datasets, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


@pytest.fixture
def make(load: Load, tmp_path: Path) -> Any:
    """Builds the dataset from the config."""

    def make(name: str, *overrides: str, **keys: Any) -> Examples:
        keys = {"name": name, "root": str(tmp_path), **keys}
        cfg = load("dataset=torchvision", *(f"dataset.{override}" for override in overrides))
        for key, value in keys.items():
            cfg.dataset[key] = value
        check(cfg)
        return build(cfg.dataset, None, cfg.seed)

    return make


def shades(batches: Any) -> list[int]:
    """Of all images; each must have its own label."""
    obs, target = map(torch.cat, zip(*batches, strict=True))
    assert torch.equal(obs, obs[:, :, :1, :1].expand(-1, 1, 2, 2))
    assert torch.equal(obs[:, 0, 0, 0] % 3, target)
    return obs[:, 0, 0, 0].tolist()


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize(
    ("name", "keys", "training", "validation"),
    [
        ("Trains", {}, range(6), range(6, 8)),
        ("Splits", {}, range(6), range(20, 26)),
        ("Splits", {"arguments": {"split": "extra"}}, range(10, 16), range(20, 26)),
        ("Splits", {"validation_arguments": {"split": "extra"}}, range(6), range(10, 16)),
        ("Validates", {}, range(6), range(30, 36)),
        ("Both", {"arguments": {"split": "letters"}}, range(6), range(6, 8)),
        ("Plain", {"validation": None, "num_classes": 3}, range(6), None),
    ],
)
def test_training_and_validation_are_the_datasets_own(
    make: Any, name: str, keys: dict[str, Any], training: range, validation: range | None
) -> None:
    for num_workers in (0, 1):
        dataset = make(name, num_workers=num_workers, **keys)
        assert shades(dataset.training_batches()) == list(training)
        if validation is not None:
            assert shades(dataset.validation_batches()) == list(validation)


@pytest.mark.usefixtures("_fake")
def test_spaces_and_labels_are_those_of_its_images(make: Any) -> None:
    dataset = make("Trains")
    assert dataset.observation_space == spaces.Box(0, 255, (1, 2, 2), np.uint8)
    assert dataset.action_space == spaces.Discrete(3)
    (batch,) = dataset.training_batches()
    assert batch.target.tolist() == [0, 1, 2, 0, 1, 2]
    assert make("Trains", size=[4, 6], channels=3).observation_space.shape == (3, 4, 6)


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("Plain", {}, "torchvision's Plain has no split of its own; set dataset.validation=0.1$"),
        ("Trans", {}, r"^dataset.name: torchvision has no dataset 'Trans'; did you mean 'Trains'"),
        (
            "Plain",
            {"download": True},
            "torchvision downloads no Plain; put its files into .* yours",
        ),
        ("Trains", {"num_classes": 4}, "num_classes is 4, but torchvision's Trains has 3 classes"),
        ("Plain", {"num_classes": 2, "validation": 0.5}, "has label 2; allowed are 0 to 1"),
        (
            "Trains",
            {"arguments": {"tain": 1}},
            r"Trains\(root=.*tain=1\) cannot be opened: .*'tain'",
        ),
        ("Splits", {"arguments": {"split": "x"}}, "Unknown value 'x' for argument split"),
        (
            "Splits",
            {"validation_arguments": {"split": "x"}},
            "Unknown value 'x' for argument split",
        ),
        (
            "Trains",
            {"validation_arguments": {"train": True}, "validation": 0.5},
            "validation_arguments need validation=own, got validation=0.5",
        ),
        ("Odd", {"validation": None, "arguments": {"obs": 3}}, "its observation is a int, no PIL"),
        (
            "Odd",
            {"validation": None, "arguments": {"target": 0.5}},
            "example 0 of torchvision's Odd cannot be read: its target is no class label, but 0.5",
        ),
    ],
)
def test_a_wrong_setting_is_one_line(
    make: Any, name: str, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make(name, **keys)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_fake")
def test_another_fault_than_an_unknown_split_is_not_passed_over(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Splits, root: str, split: str = "train") -> None:
        Splits.__init__(self, root, split)
        if split == "val":
            raise ValueError("its file is damaged")

    monkeypatch.setattr(Validates, "__init__", fail)
    with pytest.raises(UserError, match=r"split=val\) cannot be opened: its file is damaged"):
        make("Validates")


@pytest.mark.usefixtures("_fake")
def test_a_damaged_file_is_named(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Plain, index: int) -> None:
        raise OSError("image file is truncated\n(3 bytes not processed)")

    monkeypatch.setattr(Plain, "__getitem__", fail)
    message = r"^example 0 of torchvision's Trains cannot be read: image file is truncated \(3 byt"
    with pytest.raises(UserError, match=message):
        make("Trains")
    for files in (["x/0.png"], [("x/0.png", 7)]):
        monkeypatch.setattr(Plain, "samples", files, raising=False)
        with pytest.raises(UserError, match=r"^x/0.png cannot be read"):
            make("Trains")


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize(
    ("changed", "content", "reason"),
    [
        ("a", b"damaged", "Dataset not found or corrupted"),
        ("b", b"damaged", "Dataset not found or corrupted"),
        ("b", None, "No such file or directory"),
    ],
)
def test_a_file_for_which_a_dataset_cannot_be_opened_is_named(
    make: Any, tmp_path: Path, changed: str, content: bytes | None, reason: str
) -> None:
    (tmp_path / "files").mkdir()
    for name, right in (("a", b"a"), ("b", b"b"), ("images", b"6")):
        (tmp_path / "files" / name).write_bytes(right)
    make("Files", validation=None)
    path = tmp_path / "files" / changed
    path.unlink() if content is None else path.write_bytes(content)
    message = rf"cannot be opened: {path} is missing or damaged: .*{reason}.*; see dataset.root"
    with pytest.raises(UserError, match=message):
        make("Files", validation=None)


def test_one_line_says_how_to_install_it(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.datasets", raising=False)
    with pytest.raises(
        UserError, match=r"^dataset=torchvision needs .*pip install -e '\.\[vision\]'$"
    ):
        make("MNIST")


def test_one_line_says_what_to_do_about_a_build_for_another_torch(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "torchvision").mkdir()
    error = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision/__init__.py").write_text(error)
    monkeypatch.syspath_prepend(tmp_path)
    message = r"cannot be imported \(operator torchvision::nms does not exist\); install the build "
    with pytest.raises(UserError, match=message) as caught:
        make("MNIST")
    assert torch.__version__ in str(caught.value)


@pytest.fixture
def real() -> Any:
    """torchvision's datasets."""
    try:
        return importlib.import_module("torchvision.datasets")
    except Exception as error:
        pytest.skip(f"torchvision cannot be imported: {error}")


def digits() -> tuple[np.ndarray, np.ndarray]:
    """30 images, uint8 (30, 8, 8), and their labels."""
    with np.load(DIGITS) as file:
        return 15 * file["images"][:30], file["labels"][:30].astype(np.int64)


def write_idx(path: Path, array: np.ndarray) -> None:
    """http://yann.lecun.com/exdb/mnist/: zeros, type 8, dimensions, sizes, bytes."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(np.uint8).tobytes())
    path.with_suffix(".gz").write_bytes(gzip.compress(path.read_bytes()))


def test_mnist_is_read_from_idx_files(make: Any, tmp_path: Path, real: Any) -> None:
    images, labels = digits()
    for part, rows in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
        write_idx(tmp_path / f"MNIST/raw/{part}-images-idx3-ubyte", images[rows])
        write_idx(tmp_path / f"MNIST/raw/{part}-labels-idx1-ubyte", labels[rows])
    for num_workers in (0, 1):
        dataset = make("MNIST", num_workers=num_workers)
        for batches, rows in (
            (dataset.training_batches(), slice(0, 20)),
            (dataset.validation_batches(), slice(20, 30)),
        ):
            (batch,) = batches
            np.testing.assert_array_equal(batch.obs[:, 0], images[rows])
            np.testing.assert_array_equal(batch.target, labels[rows])
        assert dataset.action_space == spaces.Discrete(10)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:100])
    message = rf"MNIST\(root={tmp_path}.* cannot be opened: .+; see dataset.root"
    with pytest.raises(UserError, match=message):
        make("MNIST")
    with pytest.raises(
        UserError, match=r"cannot be opened: Dataset not found.*dataset.download=tru"
    ):
        make("MNIST", root=str(tmp_path / "no"))


def test_cifar_is_read_from_its_pickles(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: Any
) -> None:
    images, labels = digits()
    images = np.stack([np.pad(images, ((0, 0), (12, 12), (12, 12)))] * 3, axis=1)
    images[:, 1] //= 2  # so that channels cannot be exchanged unseen
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def dump(name: str, content: dict[str, Any]) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(name: str, rows: slice) -> list[str]:
        data = {"data": images[rows].reshape(-1, 3072), "labels": labels[rows].tolist()}
        return dump(name, data)

    parts = [batch(f"data_batch_{i + 1}", slice(4 * i, 4 * i + 4)) for i in range(5)]
    monkeypatch.setattr(real.CIFAR10, "train_list", parts)
    monkeypatch.setattr(real.CIFAR10, "test_list", [batch("test_batch", slice(20, 30))])
    name, checksum = dump("batches.meta", {"label_names": [f"digit {i}" for i in range(10)]})
    meta = {"filename": name, "key": "label_names", "md5": checksum}
    monkeypatch.setattr(real.CIFAR10, "meta", meta)
    dataset = make("CIFAR10")
    (learned,), (held_out,) = dataset.training_batches(), dataset.validation_batches()
    np.testing.assert_array_equal(torch.cat([learned.obs, held_out.obs]), images)
    np.testing.assert_array_equal(torch.cat([learned.target, held_out.target]), labels)
    assert dataset.observation_space == spaces.Box(0, 255, (3, 32, 32), np.uint8)
    (folder / "data_batch_3").write_bytes(b"damaged")
    with pytest.raises(
        UserError, match=rf"CIFAR10\(root={tmp_path}.* opened: {folder}/data_batch_3 is .*corrupted"
    ):
        make("CIFAR10")


def test_a_damaged_image_of_its_own_folder_reader_is_named(
    make: Any, tmp_path: Path, real: Any
) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a/0.png"
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"^{path} cannot be read: "):
        make("ImageFolder", validation=None)


def test_images_that_its_own_folder_reader_opens_are_as_a_viewer_shows_them(
    make: Any, tmp_path: Path, real: Any
) -> None:
    clear = np.array([[[9, 8, 7, 0], [1, 2, 3, 255]]], np.uint8)
    for name, array in {"a/0": clear, "b/0": np.array([[2**15, 2**16 - 1]], np.uint16)}.items():
        (tmp_path / name).parent.mkdir()
        exif = Image.Exif()
        exif[0x0112] = 2  # mirrored
        Image.fromarray(array).save(tmp_path / f"{name}.png", exif=exif)
    (batch,) = make("ImageFolder", validation=None).training_batches()
    assert batch.obs[0].permute(1, 2, 0).tolist() == [[[1, 2, 3], [255, 255, 255]]]
    assert batch.obs[1, 0].tolist() == [[255, 128]]
