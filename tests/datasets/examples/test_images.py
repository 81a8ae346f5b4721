"""Images in folders."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image

from research.config import build, check
from research.datasets.examples.dataset import Examples
from research.errors import UserError
from tests.conftest import Load


def write(path: Path, pixels: np.ndarray) -> None:
    """An image of uint8 (H, W) or (H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def colours(seed: int, height: int = 5, width: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images 0 to 3 of ant, bee, bee, cat, and validation's 4 and 5 of cat, bee."""
    for number, place in enumerate(
        ["train/ant/a", "train/bee/a", "train/bee/b", "train/cat/a", "val/cat/a", "val/bee/z"]
    ):
        write(tmp_path / f"{place}.png", colours(number))
    return tmp_path


@pytest.fixture
def make(load: Load, root: Path) -> Any:
    """Builds the dataset of ``root`` from the config."""

    def make(*overrides: str) -> Examples:
        cfg = load("dataset=imagefolder", f"dataset.root={root}", "dataset.num_workers=0")
        for override in overrides:
            key, _, value = override.partition("=")
            cfg.dataset[key] = load(f"+value={value}").value  # type: ignore[index]
        check(cfg)
        return build(cfg.dataset, None, cfg.seed)

    return make


def pixels_of(number: int) -> torch.Tensor:
    return torch.from_numpy(colours(number)).permute(2, 0, 1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_folders_are_classes_in_the_order_of_their_names(make: Any, num_workers: int) -> None:
    dataset = make(f"num_workers={num_workers}")
    (batch,) = dataset.training_batches()
    assert torch.equal(batch.obs, torch.stack([pixels_of(number) for number in range(4)]))
    assert batch.target.tolist() == [0, 1, 1, 2]
    assert dataset.observation_space == spaces.Box(0, 255, (3, 5, 4), np.uint8)
    assert dataset.action_space == spaces.Discrete(3)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_validation_has_the_labels_of_training(make: Any, num_workers: int) -> None:
    (batch,) = make(f"num_workers={num_workers}").validation_batches()
    assert torch.equal(batch.obs, torch.stack([pixels_of(5), pixels_of(4)]))
    assert batch.target.tolist() == [1, 2]


def test_a_fraction_is_held_out_of_training(make: Any) -> None:
    dataset = make("validation=0.5")
    assert [len(batch.target) for batch in dataset.validation_batches()] == [2]
    assert [len(batch.target) for batch in dataset.training_batches()] == [2]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("content", [b"", b"no image", "cut short"])
def test_a_damaged_file_is_named(
    make: Any, root: Path, content: bytes | str, num_workers: int
) -> None:
    path = root / "train/bee/b.png"
    path.write_bytes(path.read_bytes()[:60] if isinstance(content, str) else content)
    with pytest.raises(UserError, match=f"^{path} cannot be read: [^\n]+$"):
        make(f"num_workers={num_workers}").sample()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_have_one_size_unless_it_is_given(make: Any, root: Path, num_workers: int) -> None:
    write(root / "train/cat/b.png", colours(9, 7, 9))
    message = r"cat/b.png has shape \(3, 7, 9\), .*a.png has \(3, 5, 4\); set dataset.size=\[H,W\]$"
    with pytest.raises(UserError, match=message):
        make(f"num_workers={num_workers}").sample()
    dataset = make(f"num_workers={num_workers}", "size=[6,3]")
    assert dataset.sample().obs.shape == (5, 3, 6, 3)
    assert dataset.observation_space.shape == (3, 6, 3)


def test_a_grey_image_among_coloured_ones_is_named(make: Any, root: Path) -> None:
    write(root / "train/cat/b.png", colours(0)[:, :, 0])
    with pytest.raises(UserError, match=r"has shape \(1, 5, 4\).*; set dataset.channels=3$"):
        make()
    assert make("channels=3").observation_space.shape == (3, 5, 4)
    assert make("channels=1").observation_space.shape == (1, 5, 4)


def test_an_image_of_floats_is_named(make: Any, root: Path) -> None:
    write(root / "train/ant/a.tiff", np.full((5, 4), 0.5, np.float32))
    with pytest.raises(UserError, match=r"ant/a.tiff cannot be read: its pixels are floats, of un"):
        make()


@pytest.mark.parametrize(
    "name",
    [
        *("B.JPG", "b.jpeg", "b.jpe", "b.jfif", "b.webp", "b.gif", "b.bmp", "b.TIF", "b.tiff"),
        *("b.ppm", "b.pgm", "2024/may/b.png", "2024/.b/../b.png"),
    ],
)
def test_images_of_all_usual_kinds_are_found_in_nested_folders(
    make: Any, root: Path, name: str
) -> None:
    (root / "train/cat/2024/.b").mkdir(parents=True)
    write(root / "train/cat" / name, colours(0))
    (batch,) = make("channels=3").training_batches()
    assert batch.target.tolist() == [0, 1, 1, 2, 2]


def test_a_link_to_where_it_comes_from_is_not_followed(make: Any, root: Path) -> None:
    (root / "more").mkdir()
    write(root / "more/b.png", colours(0))
    (root / "train/cat/more").symlink_to(root / "more")
    (root / "train/cat/loop").symlink_to(root / "train")
    assert len(make().training_batches().__next__().target) == 5


def test_images_without_a_decoder_are_refused_before_any_is_read(make: Any, root: Path) -> None:
    for name in ("b.heic", "IMG_1.HEIC", "c.heif"):
        (root / "train/cat" / name).write_bytes(b"")
    message = (
        f"^{root}/train: Pillow cannot read 3 of the images (.heic, .heif), such as "
        f"{root}/train/cat/IMG_1.HEIC; convert them to .jpg, or move them elsewhere"
    )
    with pytest.raises(UserError, match=re.escape(message).replace(r"\^", "^")):
        make()


def test_what_is_left_out_is_said_once_unless_it_is_hidden(
    make: Any, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("cat/a.txt", "cat/Thumbs.db", "ant/b.txt", "ant/README", "cat/.b/a.png"):
        (root / "train" / name).parent.mkdir(exist_ok=True)
        (root / "train" / name).write_text("")
    for name in ("cat/._a.png", "cat/.DS_Store", "loose.jpg", ".hidden.jpg"):
        (root / "train" / name).write_text("")
    (root / "train/.cache").mkdir()
    with caplog.at_level("INFO"):
        assert [len(batch.target) for batch in make().training_batches()] == [4]
    assert caplog.messages == [
        f"{root}/train: left out what is no image by its name: 2 .txt, 1 no suffix, 1 .db",
        f"{root}/train: left out what lies in no folder of a class: loose.jpg",
        f"{root}/val has no images of ant, which no score shows",
    ]


def test_only_validation_may_lack_images_of_a_class(make: Any, root: Path) -> None:
    (root / "val/ant").mkdir()
    (root / "val/dog").mkdir()
    (batch,) = make().validation_batches()
    assert batch.target.tolist() == [1, 2]
    shutil.rmtree(root / "val/bee")
    shutil.rmtree(root / "val/cat")
    with pytest.raises(UserError, match=f"^dataset: {root}/val has no examples$"):
        make()


def test_what_is_missing_is_named(make: Any, root: Path) -> None:
    (root / "train/dog").mkdir()
    with pytest.raises(UserError, match=f"^{root}/train/dog holds no images"):
        make()
    (root / "train/dog").rmdir()
    write(root / "val/dog/a.png", colours(0))
    with pytest.raises(UserError, match=f"^{root}/val/dog is a class that training has not; it ha"):
        make()
    (root / "val").rename(root / "test")
    with pytest.raises(UserError, match=f"^{root}/val is not there; it must hold images as {root}"):
        make()
    assert list(make("validation=null").validation_batches()) == []
    with pytest.raises(UserError, match=f"^{root}/no/train is not there"):
        make(f"root={root}/no", "validation=null")
    (root / "empty/train").mkdir(parents=True)
    with pytest.raises(UserError, match=f"^{root}/empty/train holds no folder of a class"):
        make(f"root={root}/empty", "validation=null")


def test_a_single_folder_is_no_classification(make: Any, root: Path) -> None:
    for name in ("train/ant", "train/bee", "val/bee"):
        shutil.rmtree(root / name)
    message = f"^dataset: {root}/train has one class, but a classifier needs two; add examples of a"
    for override in ("num_workers=0", "num_workers=1"):
        with pytest.raises(UserError, match=message):
            make(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_classes=4", r"^dataset: num_classes is 4, but .*/train has 3 classes$"),
        ("size=[3]", r"^dataset.size must be null or a list of 2, each item an integer .* \[3\]$"),
        ("size=[3,0]", r"^dataset.size must be null or a list of 2, each item .* got \[3, 0\]$"),
        ("channels=2", "^dataset.channels must be one of 1, 3 or null, got 2$"),
        ("channels=true", "^dataset.channels must be one of 1, 3 or null, got True$"),
        (
            "validation=mine",
            r"^dataset.validation must be a number in \(0, 1\) or one of own or nu",
        ),
    ],
)
def test_a_wrong_setting_is_one_line(make: Any, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(override)
