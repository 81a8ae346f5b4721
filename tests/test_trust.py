"""A run directory from anybody: nothing in it is executed, and what is wrong is one line."""

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from research.errors import UserError
from research.training.saving.checkpoint import load_checkpoint
from tests import test_app, test_faults
from tests.test_app import Cli
from tests.test_faults import RUN, contents, only_line
from tests.training.saving.test_checkpoint import Hostile
from tests.training.test_resume import make_online

cli = test_app.cli
stopped, run_dir, toy = test_faults.stopped, test_faults.run_dir, test_faults.toy

Damage = Callable[[Path], object]
"""Makes something hostile of the file at a path, and lets its code touch ``ran`` in the folder."""


@pytest.fixture(autouse=True)
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What exists after a test if anything was executed; code may find it by its relative name."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ran"


def refuse(cli: Cli, run_dir: Path, ran: Path, *arguments: str) -> str:
    """Check that a command ends in one line, ran nothing and left the run; returns the line."""
    before = contents(run_dir)
    outcome = cli(*RUN, *(arguments or (f"hydra.run.dir={run_dir}",)))
    assert outcome.status == 1
    assert not ran.exists()
    assert contents(run_dir) == before
    return only_line(outcome.err)


# Checkpoints


def be_a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Hostile(Path("ran"))))


def be_a_pickle_in_a_zip(path: Path) -> None:
    torch.save(Hostile(Path("ran")), path)


def hide_a_pickle(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    name = "alg" if "alg" in content else "finished"
    torch.save({**content, name: {"x": [Hostile(Path("ran"))]}}, path)


def be_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def be_a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def be_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def write(content: str | bytes) -> Damage:
    """Makes a file hold ``content``."""
    data = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(data)


PICKLES = [be_a_pickle, be_a_pickle_in_a_zip, hide_a_pickle]
NO_FILES = [be_a_pipe, be_a_device, be_a_folder]


@pytest.mark.parametrize("file", ["weights.pt", "state.pt"])
@pytest.mark.parametrize("damage", [*PICKLES, *NO_FILES])
def test_code_and_what_is_no_file_are_refused_in_checkpoints(
    cli: Cli, run_dir: Path, ran: Path, file: str, damage: Damage
) -> None:
    for folder in (run_dir / "checkpoints").glob("0*"):
        damage(folder / file)
    assert f"{file} is damaged or not a checkpoint: " in refuse(cli, run_dir, ran)


@pytest.mark.parametrize("damage", [hide_a_pickle, be_a_pipe])
def test_code_and_what_is_no_file_are_refused_in_weights_to_begin_with(
    cli: Cli, run_dir: Path, ran: Path, tmp_path: Path, damage: Damage
) -> None:
    for folder in (run_dir / "checkpoints").glob("0*"):
        damage(folder / "weights.pt")
    own = f"hydra.run.dir={tmp_path / 'own'}"
    for source in (run_dir, run_dir / "checkpoints" / "last"):
        line = refuse(cli, run_dir, ran, f"init_from={source}", own)
        assert "weights.pt is damaged or not a checkpoint: " in line


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (write('{"version": "1\\u001b[2J\\n\\n"}'), "is of version '1"),
        (write('{"version": 1, "best": "../../elsewhere", "files": []}'), "is damaged: "),
        (be_a_pipe, "is damaged: it is no regular file"),
    ],
)
def test_a_manifest_that_is_none_is_refused(
    cli: Cli, run_dir: Path, ran: Path, damage: Damage, reason: str
) -> None:
    for folder in (run_dir / "checkpoints").glob("0*"):
        damage(folder / "manifest.json")
    line = refuse(cli, run_dir, ran)
    assert f"manifest.json {reason}" in line
    assert line.isprintable()


def test_a_link_to_elsewhere_is_not_followed(
    cli: Cli, run_dir: Path, ran: Path, tmp_path: Path
) -> None:
    """``last`` tells a name, and ``data``, a user's larger disk perhaps, is never emptied."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(run_dir / "checkpoints" / "last", elsewhere / "0000000099")
    be_a_pickle(elsewhere / "0000000099" / "state.pt")
    (run_dir / "checkpoints" / "last").unlink()
    (run_dir / "checkpoints" / "last").symlink_to(elsewhere / "0000000099")
    shutil.move(run_dir / "checkpoints" / "data", elsewhere / "data")
    (run_dir / "checkpoints" / "data").symlink_to(elsewhere / "data")
    (elsewhere / "data" / "thesis.txt").write_text("mine")
    (run_dir / "checkpoints" / "0000000001").symlink_to(elsewhere)
    before = contents(elsewhere)
    assert cli(*RUN, f"hydra.run.dir={run_dir}").status == 0
    assert not ran.exists()
    assert before.items() <= contents(elsewhere).items()
    assert not (run_dir / "checkpoints" / "0000000001").is_symlink()


VALUES = st.sampled_from(
    [
        *(None, True, -1, 7, 2**70, float("nan"), float("inf"), "x\n\x1b", b"x", 1j),
        *([], [None], {}, {"x": 1}, (), torch.float32, torch.zeros(()), torch.zeros(3)),
        *(torch.zeros(2, 2, dtype=torch.int64), torch.full((1,), torch.nan)),
    ]
)


def places(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The keys and indices that lead to every value in a nested one."""
    yield path
    if isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, *path, key)


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of ``value`` with another value at one place."""
    if not path:
        return new
    key, *rest = path
    if isinstance(value, dict):
        return {**value, key: put(value[key], tuple(rest), new)}
    items = list(value)
    items[key] = put(items[key], tuple(rest), new)
    return type(value)(items)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=80)
@given(data=st.data())
def test_any_value_at_any_place_of_a_checkpoint_loads_or_is_refused(
    toy: tuple[Path, dict[str, Any]], data: st.DataObject
) -> None:
    stopped, _ = toy
    checkpoint = load_checkpoint(stopped / "checkpoints" / "last")._asdict()
    path = data.draw(st.sampled_from([*places(checkpoint)][1:]))
    changed = put(checkpoint, path, data.draw(VALUES))
    with tempfile.TemporaryDirectory() as name:
        folder = shutil.copytree(stopped, Path(name) / "run", symlinks=True)
        for part in ("weights", "state"):
            torch.save(changed[part], folder / "checkpoints" / "last" / f"{part}.pt")
        before = contents(folder)
        try:
            make_online(folder).start()
        except UserError:
            assert contents(folder) == before


# Configs


def bombs() -> str:
    """Nine lists of nine of the list before, which is 9 ** 9 words."""
    lines = [
        "a0: &a0 lol",
        *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)),
    ]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (write("alg: {_target_: os.system, command: touch ran}"), "belongs to another config: alg"),
        (write("alg: !!python/object/apply:os.system [touch ran]"), "is no config: "),
        (write("alg: !!python/name:os.system"), "is no config: "),
        (write("name: ${oc.env:HOME}"), "name: ${oc.env:HOME} -> "),
        (write("name: ${nothing:HOME}"), "name: ${nothing:HOME} -> "),
        (write("name: ${"), "is no config: "),
        (write(bombs()), "is no config: it has aliases"),
        (write("a: &a [*a]"), "is no config: it has aliases"),
        (write("[" * 50_000), "is no config: it is nested deeper than 50 levels"),
        (write(os.urandom(2_000)), "is no config: "),
        (write("#" * 2**21), "is no config: it has more than 262,144 bytes"),
        (write("[1, 2]"), "is no config: it holds a list"),
        (write("7"), "is no config: it holds no keys"),
        (write("a: 1\na: 2"), "is no config: "),
        (write('"\\e]0;title\\a": 1'), "belongs to another config: "),
        *((damage, "is no config: it is no regular file") for damage in NO_FILES),
    ],
)
def test_a_hostile_config_is_compared_and_never_built(
    cli: Cli, run_dir: Path, ran: Path, damage: Damage, reason: str
) -> None:
    damage(run_dir / ".hydra" / "config.yaml")
    status = (run_dir / "status.json").read_bytes()
    line = refuse(cli, run_dir, ran)
    assert reason in line
    assert os.environ["HOME"] not in line
    assert line.isprintable()
    assert (run_dir / "status.json").read_bytes() == status


# Status and provenance


@pytest.mark.parametrize("damage", [write("[]"), be_a_pipe])
@pytest.mark.parametrize(
    ("file", "reason"),
    [("status.json", "is not a run's status"), ("provenance.json", "is not a run's provenance")],
)
def test_notes_that_are_none_are_refused(
    cli: Cli, run_dir: Path, ran: Path, file: str, reason: str, damage: Damage
) -> None:
    damage(run_dir / file)
    assert f"{file} {reason}: " in refuse(cli, run_dir, ran)


def test_a_status_cannot_make_a_run_complete_or_longer(cli: Cli, run_dir: Path, ran: Path) -> None:
    status = json.loads((run_dir / "status.json").read_text())
    completed = {**status, "state": "completed", "step": 2**62, "score": 1e300, "pid": 1}
    (run_dir / "status.json").write_text(json.dumps(completed))
    assert f"is below the {2**62} steps" in refuse(cli, run_dir, ran)
