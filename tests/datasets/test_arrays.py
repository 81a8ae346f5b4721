"""Arrays of .npz, .pt and .parquet files."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from research.batches import Example
from research.config import build, check
from research.datasets import memory
from research.datasets.examples import Examples
from research.errors import UserError
from tests.conftest import Load

Write = Callable[[Path, dict[str, np.ndarray]], None]


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


def write_pt(path: Path, arrays: dict[str, np.ndarray]) -> None:
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)


def write_parquet(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Arrays (n, D) as lists of varying type, in several groups of rows."""
    pa = pytest.importorskip("pyarrow", reason="needs pip install -e '.[parquet]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {name: pa.array(array.tolist()) for name, array in arrays.items()}
    parquet.write_table(pa.table(columns), path, row_group_size=3)


WRITERS = {"npz": write_npz, "pt": write_pt, "pth": write_pt, "parquet": write_parquet}


@pytest.fixture(params=WRITERS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Write]:
    """Where to write a file, and how."""
    return tmp_path / f"data.{request.param}", WRITERS[request.param]


@pytest.fixture
def make(load: Load) -> Any:
    """Builds the dataset of a file from the config."""

    def make(path: Path, **keys: Any) -> Examples:
        cfg = load("dataset=arrays", f"dataset.path={path}", "dataset.validation=null")
        for key, value in keys.items():
            cfg.dataset[key] = value
        check(cfg)
        return build(cfg.dataset, None, cfg.seed)

    return make


def stored(dataset: Examples) -> Example:
    (batch,) = dataset.training_batches()
    return batch


def test_a_file_of_labels_is_a_classification(make: Any, file: tuple[Path, Write]) -> None:
    path, write = file
    obs, target = np.random.randn(7, 3), np.array([0, 2, 1, 0, 2, 2, 1])
    write(
        path, {"obs": obs, "target": target, "unused": np.zeros(2 if "p" in path.name[6:] else 7)}
    )
    dataset = make(path)
    batch = stored(dataset)
    np.testing.assert_array_equal(batch.obs, obs.astype(np.float32))
    np.testing.assert_array_equal(batch.target, target)
    assert dataset.observation_space == spaces.Box(-np.inf, np.inf, (3,), np.float32)
    assert dataset.action_space == spaces.Discrete(3)


def test_columns_stand_side_by_side_and_numbers_are_a_regression(
    make: Any, file: tuple[Path, Write]
) -> None:
    path, write = file
    a, b, c, y = np.random.randn(4, 5)
    write(path, {"a": a, "b": np.stack([b, c], 1), "y": y})
    dataset = make(path, obs=["b", "a"], target=["y"], validation=0.4)
    (held_out,) = dataset.validation_batches()
    batch = stored(dataset)
    rows = torch.cat([torch.cat([part.obs, part.target], 1) for part in (batch, held_out)])
    expected = np.stack([b, c, a, y], 1).astype(np.float32)
    assert {tuple(row) for row in rows.tolist()} == {tuple(row) for row in expected.tolist()}
    assert dataset.action_space == spaces.Box(-np.inf, np.inf, (1,), np.float32)


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_images_stay_bytes(make: Any, tmp_path: Path, suffix: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 2, 2), np.uint8)
    path = tmp_path / f"images.{suffix}"
    WRITERS[suffix](path, {"obs": images, "target": np.array([[1], [0], [1], [0]], np.uint8)})
    dataset = make(path)
    np.testing.assert_array_equal(stored(dataset).obs, images)
    assert stored(dataset).target.tolist() == [1, 0, 1, 0]
    assert dataset.observation_space == spaces.Box(0, 255, (3, 2, 2), np.uint8)


def test_images_without_channels_have_one(make: Any, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 5), np.uint8)
    write_npz(tmp_path / "a.npz", {"obs": images, "target": np.arange(4)})
    dataset = make(tmp_path / "a.npz")
    np.testing.assert_array_equal(stored(dataset).obs, images[:, None])
    assert dataset.observation_space == spaces.Box(0, 255, (1, 3, 5), np.uint8)


@pytest.mark.parametrize("shape", [(), (6,), (2, 3, 4, 5)])
def test_bytes_that_are_no_images_are_floats_as_other_integers_are(
    make: Any, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
    spaces_of = []
    for dtype in (np.uint8, np.int64):
        write_npz(tmp_path / "a.npz", {"obs": values.astype(dtype), "target": np.arange(4)})
        dataset = make(tmp_path / "a.npz")
        np.testing.assert_array_equal(stored(dataset).obs, values.reshape(4, *(shape or (1,))))
        spaces_of.append(dataset.observation_space)
    assert spaces_of == [spaces.Box(-np.inf, np.inf, shape or (1,), np.float32)] * 2


@pytest.mark.parametrize("shape", [(32, 32, 3), (16, 16, 4), (5, 9, 1)])
def test_images_with_their_channels_last_are_refused(
    make: Any, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
    write_npz(tmp_path / "a.npz", {"obs": images, "target": np.arange(4)})
    message = rf"{re.escape(str(shape))}, but \(C, H, W\) is wanted; write np.moveaxis\(x, -1, 1\)$"
    with pytest.raises(UserError, match=rf"a\.npz: 'obs' has images {message}"):
        make(tmp_path / "a.npz")
    write_npz(tmp_path / "a.npz", {"obs": np.moveaxis(images, -1, 1), "target": np.arange(4)})
    assert make(tmp_path / "a.npz").observation_space.shape == (shape[-1], *shape[:2])


def test_small_images_with_their_channels_first_are_read(make: Any, tmp_path: Path) -> None:
    for shape in ((1, 3, 3), (3, 4, 4), (4, 8, 1), (9, 6, 6)):
        write_npz(
            tmp_path / "a.npz", {"obs": np.zeros((2, *shape), np.uint8), "target": np.arange(2)}
        )
        assert make(tmp_path / "a.npz").observation_space.shape == shape


def test_any_width_of_numbers_is_read(make: Any, tmp_path: Path) -> None:
    for dtype in (">f8", "<f4", "f2", "u2", "i1", "?"):
        write_npz(tmp_path / "a.npz", {"obs": np.eye(3).astype(dtype), "target": np.arange(3)})
        np.testing.assert_array_equal(stored(make(tmp_path / "a.npz")).obs, np.eye(3))


def test_validation_may_have_a_file_of_its_own(make: Any, file: tuple[Path, Write]) -> None:
    path, write = file
    other = path.with_stem("other")
    write(path, {"obs": np.zeros((3, 1)), "target": np.arange(3)})
    write(other, {"obs": np.ones((2, 1)), "target": np.array([2, 0])})
    dataset = make(path, validation=str(other))
    (batch,) = dataset.validation_batches()
    assert (batch.obs.tolist(), batch.target.tolist()) == ([[1.0], [1.0]], [2, 0])
    assert len(stored(dataset).obs) == 3
    write(other, {"obs": np.ones((2, 1)), "target": np.array([2, 3])})
    with pytest.raises(UserError, match=f"example 1 of {other} has label 3, which no training"):
        make(path, validation=str(other))


@pytest.mark.parametrize("content", [b"", b"damaged", 0.3, 0.9])
def test_a_damaged_file_is_named(
    make: Any, file: tuple[Path, Write], content: bytes | float
) -> None:
    path, write = file
    write(path, {"obs": np.random.randn(40, 3), "target": np.zeros(40, int)})
    data = path.read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else data[: int(content * len(data))])
    with pytest.raises(UserError, match=f"^{path} cannot be read: [^\n]+$"):
        make(path)


def test_altered_bytes_of_an_npz_are_seen(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, {"obs": np.full((40, 3), 7.0), "target": np.zeros(40, int)})
    data = bytearray(path.read_bytes())
    data[data.index(np.float64(7.0).tobytes())] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=f"^{path} cannot be read: Bad CRC-32"):
        make(path)


@pytest.mark.parametrize(
    ("arrays", "keys", "message"),
    [
        (
            {"obs": (3, 1), "traget": (3,)},
            {},
            "has no array 'target', but obs, traget; did you mean",
        ),
        (
            {"obs": (3, 1), "target": (4,)},
            {},
            "the arrays differ in length: .*'obs': 3, 'target': 4",
        ),
        (
            {"obs": (3, 1), "target": (3,)},
            {"obs": []},
            "obs and target must each name at least one",
        ),
        ({"obs": (0, 1), "target": (0,)}, {}, "has no examples"),
        ({"obs": (3, 1), "target": ()}, {}, "array 'target' is a single number, 0; it must have"),
        ({"obs": (), "target": ()}, {}, "array 'obs' is a single number, 0; it must have one for"),
        ({"obs": (3, 0), "target": (3,)}, {}, r"array 'obs' has shape \(3, 0\), no number for an"),
        ({"obs": (3,), "target": (3, 0)}, {}, r"array 'target' has shape \(3, 0\), no number for"),
    ],
)
@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_arrays_that_do_not_fit_together_are_refused(
    make: Any,
    tmp_path: Path,
    suffix: str,
    arrays: dict[str, tuple[int, ...]],
    keys: dict[str, Any],
    message: str,
) -> None:
    path = tmp_path / f"a.{suffix}"
    WRITERS[suffix](path, {name: np.zeros(shape, int) for name, shape in arrays.items()})
    with pytest.raises(UserError, match=message):
        make(path, **keys)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (np.zeros((3, 2), int), r"labels must be one for each example, got \(3, 2\)"),
        (np.array([0.0, 1.0, np.nan]), "example 2 has no number in a target"),
        (np.array([0.0, -1e300, 1.0]), "example 1 has -1e.300 in a target, beyond float32; scale"),
        (np.array(["a", "b", "c"]), "cannot be read: an array holds <U1, no numbers"),
        (np.array([0, None, 1], object), "cannot be read: Object arrays cannot be loaded"),
        (np.array([0, 1, 9]), "example 2 of .*a.npz has label 9; allowed are 0 to 3"),
        (np.array([0, -2, 1]), "example 1 of .*a.npz has label -2; labels count classes from 0"),
    ],
)
def test_targets_that_are_no_answers_are_refused(
    make: Any, tmp_path: Path, target: np.ndarray, message: str
) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, obs=np.zeros((3, 1)), target=target)
    with pytest.raises(UserError, match=message):
        make(path, num_classes=4)


def test_an_observation_without_a_number_is_named(make: Any, tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", {"obs": np.array([0.0, np.inf]), "target": np.arange(2)})
    with pytest.raises(UserError, match=r"a\.npz: example 1 has no number in an observation"):
        make(tmp_path / "a.npz")


def test_an_observation_beyond_float32_is_named(make: Any, tmp_path: Path) -> None:
    obs = np.array([[0.0, 1.0], [-3.4e38, 2.0], [3.0, 1e300]])
    write_npz(tmp_path / "a.npz", {"obs": obs, "target": np.arange(3)})
    message = r"a\.npz: example 2 has 1e.300 in an observation, beyond float32; scale it down$"
    with pytest.raises(UserError, match=message):
        make(tmp_path / "a.npz")


def test_what_cannot_be_opened_is_named(make: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path}/no.npz is not there; see dataset.path"):
        make(tmp_path / "no.npz")
    with pytest.raises(UserError, match=r"must end in one of .npz, .pt, .pth, .parquet$"):
        make(tmp_path / "a.csv")
    torch.save([torch.zeros(2)], tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a.pt must hold a dict of tensors, not a list"):
        make(tmp_path / "a.pt")


def test_a_pt_file_runs_no_code(make: Any, tmp_path: Path) -> None:
    torch.save({"obs": torch.zeros(2), "target": Path("x")}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt cannot be read: Weights only load failed"):
        make(tmp_path / "a.pt")


def test_what_does_not_fit_is_refused_before_it_is_read(
    make: Any, file: tuple[Path, Write], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = file
    write(path, {"obs": np.zeros((1000, 3)), "target": np.zeros(1000, int)})
    monkeypatch.setattr(memory, "available_memory", lambda: 31_000)
    with pytest.raises(
        UserError, match=r"data.\w+ needs 32.?\d* kB of memory, but 31 kB are avail"
    ):
        make(path)


def test_gaps_and_uneven_lists_are_refused(make: Any, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs pip install -e '.[parquet]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    good = pa.array([0, 1, 2])
    for column, message in [
        (pa.array([1.0, None, 2.0]), "column 'obs' has 1 gaps"),
        (pa.array([[1.0], [2.0, 3.0], [4.0]]), "lists of column 'obs' differ in length, or have"),
        (pa.array([[1.0], [None], [4.0]]), "lists of column 'obs' differ in length, or have"),
        (pa.array(["a", "b", "c"]), "an array holds object, no numbers"),
    ]:
        parquet.write_table(pa.table({"obs": column, "target": good}), path)
        with pytest.raises(UserError, match=message):
            make(path)
    fixed = pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float64(), 2))
    parquet.write_table(pa.table({"obs": fixed, "target": good}), path)
    assert stored(make(path)).obs.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_one_line_says_how_to_install_parquet(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs an extra: pip install -e '\.\[parquet\]'$"):
        make(tmp_path / "a.parquet")
