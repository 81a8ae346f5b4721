"""SLURM's queue, as far as it concerns a sweep; ``squeue`` and ``scancel`` are pretended."""

from pathlib import Path

import pytest

from research.errors import UserError
from research.launchers.slurm.queue import (
    Submission,
    cancel,
    find_places,
    read_submissions,
    settle,
    write_submissions,
)

NOTED = Submission("sweep-a", "/s/.submitit/%j", ["7_0", "7_1"], [[0, 1], [2]])
UNNAMED = Submission("sweep-b", "/s/.submitit/%j", [], [[3], [4]])


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What ``squeue`` prints; without the file it fails. What ``scancel`` is told is beside it."""
    answer = tmp_path / "answer"
    (tmp_path / "squeue").write_text(f"#!/bin/sh\nexec cat {answer}\n")
    (tmp_path / "scancel").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/cancelled\n')
    for name in ("squeue", "scancel"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return answer


def test_a_task_waits_or_runs_in_every_state_that_is_no_end(squeue: Path) -> None:
    squeue.write_text(
        "7_0|SUSPENDED|n1|None|sweep-a\n"
        "7_1|CANCELLED|n2|None|sweep-a\n"
        "9_0|RUNNING|n2|None|another | comment\n"
    )
    places = find_places([NOTED])
    assert places is not None
    assert {number: place.task for number, place in places.items()} == {0: "7_0", 1: "7_0"}


def test_tasks_without_names_are_found_by_their_mark(squeue: Path) -> None:
    squeue.write_text("8_1|PENDING||Nodes required for job are DOWN|theirs sweep-b\n")
    places = find_places([NOTED, UNNAMED])
    assert places is not None
    assert {number: place.task for number, place in places.items()} == {4: "8_1"}
    assert places[4].reason == "Nodes required for job are DOWN"


def test_one_allocation_is_no_array(squeue: Path) -> None:
    squeue.write_text("8|PENDING||Priority|sweep-b\n")
    places = find_places([UNNAMED._replace(jobs=[[3, 4]])])
    assert places is not None
    assert {number: place.task for number, place in places.items()} == {3: "8", 4: "8"}


def test_a_job_is_where_it_was_submitted_last(squeue: Path) -> None:
    squeue.write_text("7_0|RUNNING|n1|None|sweep-a\n")
    places = find_places([NOTED, NOTED._replace(mark="sweep-c", tasks=["9"], jobs=[[1]])])
    assert places is not None
    assert set(places) == {0}


def test_no_answer_is_not_an_empty_queue(squeue: Path) -> None:
    assert find_places([NOTED]) is None
    assert find_places([]) == {}
    squeue.write_text("")
    assert find_places([NOTED]) == {}


def test_tasks_that_were_left_without_work_are_cancelled(squeue: Path, tmp_path: Path) -> None:
    torn = UNNAMED._replace(folder=str(tmp_path / "%j"))
    write_submissions(tmp_path, [NOTED, torn])
    squeue.write_text("8_0|RUNNING|n1|None|sweep-b\n8_1|RUNNING|n1|None|sweep-b\n")
    (tmp_path / "8_0").mkdir()
    (tmp_path / "8_0/8_0_submitted.pkl").touch()
    settle(tmp_path)
    assert (tmp_path / "cancelled").read_text() == "8_1\n"
    settled = torn._replace(tasks=["8_0", "8_1"], jobs=[[3], []])
    assert read_submissions(tmp_path) == [NOTED, settled]


def test_a_submission_that_is_nowhere_stays_as_it_was_noted(squeue: Path, tmp_path: Path) -> None:
    write_submissions(tmp_path, [UNNAMED])
    with pytest.raises(UserError, match="SLURM does not answer"):
        settle(tmp_path)
    squeue.write_text("")
    settle(tmp_path)
    assert read_submissions(tmp_path) == [UNNAMED]


def test_files_of_a_task_are_where_submitit_puts_them() -> None:
    submission = NOTED._replace(folder="/s/%A/%a/%j")
    assert submission.file("7_1", "0_log.err") == Path("/s/7/1/7_1/7_1_0_log.err")


def test_a_damaged_list_is_named(tmp_path: Path) -> None:
    assert read_submissions(tmp_path) == []
    (tmp_path / "submissions.json").write_text('[{"mark": 1}]')
    with pytest.raises(UserError, match=r"submissions\.json does not hold submissions"):
        read_submissions(tmp_path)


def test_nothing_to_cancel_asks_nobody(squeue: Path, tmp_path: Path) -> None:
    cancel([])
    assert not (tmp_path / "cancelled").exists()
    (tmp_path / "scancel").write_text("#!/bin/sh\necho scancel: error: no >&2\nexit 1\n")
    with pytest.raises(UserError, match="scancel failed: scancel: error: no"):
        cancel(["7_0"])
