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
from research.datasets.examples.dataset import Examples
from research.errors import UserError
from research.machine import memory
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
        (
            np.array([0.0, 0.5, 1.0]),
            "example 1 has target 0.5, no class label; for numbers to learn",
        ),
        (
            np.array([0, 1j, 1]),
            "'target' holds complex128, neither numbers nor text; see dataset.obs",
        ),
        (
            np.array([0, None, 1], object),
            r"array 'target' holds Python objects.* by target.astype\(float\), or names of classes "
            r"by target.astype\(str\)$",
        ),
        (np.array(["a", "b", "c"]), "num_classes is 4, but .*a.npz has 3 classes"),
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
    with pytest.raises(
        UserError, match=r"must end in one of .npz, .pt, .pth, .parquet, .csv, .tsv$"
    ):
        make(tmp_path / "a.xlsx")
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
        (pa.array([1.0, None, 2.0]), "column 'obs' has 1 gaps, the first in example 1; fill"),
        (pa.array([[1.0], [2.0, 3.0], [4.0]]), "lists of column 'obs' differ in length, or have"),
        (pa.array([[1.0], [None], [4.0]]), "lists of column 'obs' differ in length, or have"),
        (pa.array(["a", "b", "c"]), "'obs' holds text, 'a' in example 0, where numbers are want"),
        (
            pa.array([1, 2, 3], pa.date32()),
            r"'obs' holds datetime64\[D\], neither numbers nor text",
        ),
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
    (tmp_path / "a.csv").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("a.parquet", "a.csv"):
        with pytest.raises(UserError, match=r"needs an extra: pip install -e '\.\[parquet\]'$"):
            make(tmp_path / name)


NAMES = np.array(["wolf", "ant", "wolf", "bee"])


@pytest.fixture(params=["npz", "csv", "parquet", "categories"])
def named(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, np.ndarray], Path]:
    """Writes examples whose targets are words; their observations count from 0."""

    def write(stem: str, words: np.ndarray) -> Path:
        obs = np.arange(len(words)).astype(float)
        path = tmp_path / f"{stem}.{request.param.replace('categories', 'parquet')}"
        if request.param == "npz":
            write_npz(path, {"obs": obs, "target": words})
            return path
        pa = pytest.importorskip("pyarrow", reason="needs pip install -e '.[parquet]'")
        column = pa.array(words.tolist())
        column = column.dictionary_encode() if request.param == "categories" else column
        table = pa.table({"obs": obs, "target": column})
        if request.param == "csv":
            pytest.importorskip("pyarrow.csv").write_csv(table, path)
        else:
            pytest.importorskip("pyarrow.parquet").write_table(table, path, row_group_size=2)
        return path

    return write


def test_text_names_classes_in_the_order_of_the_alphabet_for_both_files(
    make: Any, named: Callable[[str, np.ndarray], Path]
) -> None:
    dataset = make(named("a", NAMES), validation=str(named("b", np.array(["bee", "wolf"]))))
    (held_out,) = dataset.validation_batches()
    assert dataset.action_space == spaces.Discrete(3)
    assert stored(dataset).target.tolist() == [2, 0, 2, 1]
    assert held_out.target.tolist() == [1, 2]
    assert stored(dataset).obs.flatten().tolist() == [0, 1, 2, 3]


def test_a_class_that_training_has_not_is_named(
    make: Any, named: Callable[[str, np.ndarray], Path]
) -> None:
    other = named("b", np.array(["bee", "wolff"]))
    message = f"^{other} has class 'wolff', which no training example has; they have ant, bee, wol"
    with pytest.raises(UserError, match=message + "f; did you mean 'wolf'"):
        make(named("a", NAMES), validation=str(other))


def test_labels_of_two_files_are_both_names_or_both_numbers(
    make: Any, tmp_path: Path, named: Callable[[str, np.ndarray], Path]
) -> None:
    names, counted = named("a", NAMES), tmp_path / "b.npz"
    write_npz(counted, {"obs": np.zeros(3), "target": np.array([0, 1, 2])})
    message = f"^the targets of {names} are text, but those of {counted} are numbers; write both"
    for one, other in ((names, counted), (counted, names)):
        with pytest.raises(UserError, match=message):
            make(one, validation=str(other))


def test_text_is_no_number(make: Any, named: Callable[[str, np.ndarray], Path]) -> None:
    path = named("a", NAMES)
    first = rf"'target' holds text, 'wolf' in {'row 2' if path.suffix == '.csv' else 'example 0'}"
    for keys in ({"num_classes": 0}, {"target": ["target", "obs"]}):
        with pytest.raises(UserError, match=f"{first}, where numbers .*; see dataset.target$"):
            make(path, **keys)
    with pytest.raises(UserError, match=f"{first}, where numbers are wanted; see dataset.obs$"):
        make(path, obs=["obs", "target"])


def test_whole_floats_are_labels_where_the_number_of_classes_is_given(
    make: Any, tmp_path: Path
) -> None:
    target = np.array([0.0, 2.0, 1.0, 1.0])
    write_npz(tmp_path / "a.npz", {"obs": np.zeros(4), "target": target})
    assert make(tmp_path / "a.npz").action_space == spaces.Box(-np.inf, np.inf, (1,), np.float32)
    dataset = make(tmp_path / "a.npz", num_classes=3)
    assert dataset.action_space == spaces.Discrete(3)
    assert stored(dataset).target.tolist() == [0, 2, 1, 1]


@pytest.mark.parametrize("shape", [(4,), (4, 2)])
def test_integers_are_numbers_where_there_are_to_be_no_classes(
    make: Any, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    target = np.random.default_rng(0).integers(0, 10**6, shape)
    write_npz(tmp_path / "a.npz", {"obs": np.zeros(4), "target": target})
    dataset = make(tmp_path / "a.npz", num_classes=0)
    assert dataset.action_space.shape == stored(dataset).target.shape[1:]
    np.testing.assert_array_equal(stored(dataset).target, target.reshape(4, -1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_algorithm_for_other_answers_names_the_array_the_file_and_a_remedy(
    make: Any, tmp_path: Path, load: Load, num_workers: int
) -> None:
    write_npz(tmp_path / "a.npz", {"obs": np.zeros((4, 2)), "y": np.array([0.0, 1.0, 0.0, 1.0])})
    dataset = make(tmp_path / "a.npz", target=["y"], num_workers=num_workers)
    cfg = load("alg=classification", "network=mlp")
    network = build(cfg.network, dataset.observation_space, dataset.action_space)
    with pytest.raises(UserError, match=r"for 'y' of .*/a.npz; .* as in dataset.num_classes=2$"):
        build(cfg.alg, network)


@pytest.fixture
def csv(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a CSV file."""
    pytest.importorskip("pyarrow", reason="needs pip install -e '.[parquet]'")

    def write(text: str) -> Path:
        (tmp_path / "points.csv").write_bytes(text.encode())
        return tmp_path / "points.csv"

    return write


COLUMNS: Any = {"obs": ["a", "b"], "target": ["y"]}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_columns_of_a_csv_file_are_read_by_their_names(
    make: Any, csv: Callable[[str], Path], delimiter: str, start: str, end: str
) -> None:
    rows = [["a", "y", "b", "note"], ["1", "0.5", "-2", '"x, y;"'], ["3e2", "4", " .5 ", "1"]]
    text = start + end.join(delimiter.join(row) for row in rows) + end
    dataset = make(csv(text), **COLUMNS)
    assert stored(dataset).obs.tolist() == [[1, -2], [300, 0.5]]
    assert stored(dataset).target.tolist() == [[0.5], [4]]


def test_integers_of_a_csv_file_are_labels(make: Any, csv: Callable[[str], Path]) -> None:
    dataset = make(csv("a,b,y\n1,1,1\n2,2,0\n"), **COLUMNS)
    assert stored(dataset).target.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,0\n1,,1\n1,,1\n", "column 'b' has 2 gaps, the first in row 3; fill them, or remove"),
        ("1,2,x\n1,2, \n", "column 'y' has 1 gaps, the first in row 3; fill them, or remove these"),
        ("1,2,0\n1,NA,1\n", "column 'b' has 'NA' in row 3, which is no number, but '2' in row 2"),
        ("1,x,0\n1,2,1\n", "column 'b' has 'x' in row 2, which is no number, but '2' in row 3"),
        ("1,2,red\n1,2,7\n", "column 'y' has 'red' in row 2, which is no number, but '7' in row 3"),
        (
            "1,x,0\n1,z,1\n",
            "'b' holds text, 'x' in row 2, where numbers are wanted; see dataset.obs",
        ),
        ("1,2,0\n1,nan,1\n", "example 1 has no number in an observation"),
        ("1,2,0\n1,2\n", "cannot be read: CSV parse error: Expected 3 columns, got 2: 1,2"),
        ("", "has no examples in the arrays a, b, y"),
    ],
)
def test_a_csv_file_with_something_else_in_a_column_is_refused_by_column_and_row(
    make: Any, csv: Callable[[str], Path], text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make(csv(f"a,b,y\n{text}"), **COLUMNS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no array 'a', but none; see dataset.obs"),
        ("a,c,y\n1,2,0\n", "has no array 'b', but a, c, y; see dataset.obs and dataset.target"),
        ("a,b,a,y\n1,2,3,0\n", "has several columns 'a'; give them different names"),
    ],
)
def test_a_csv_file_without_the_columns_says_which_it_has(
    make: Any, csv: Callable[[str], Path], text: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make(csv(text), **COLUMNS)


def test_a_csv_file_that_does_not_fit_is_refused_before_it_is_read(
    make: Any, csv: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 31_000)
    with pytest.raises(UserError, match=r"points.csv needs 32.?\d* kB of memory, but 31 kB are"):
        make(csv("a,b,y\n" + "1,2,1\n" * 1345), **COLUMNS)
