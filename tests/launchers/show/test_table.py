"""The table of a sweep is aligned, fits, and says what is known; so do its summary and CSV."""

import csv
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from research.launchers.show.rows import amount, span
from research.launchers.show.table import Row, summary, table, write_csv
from research.status import BLANK, State


def row(number: int, varies: dict[str, str], device: str = "", **status: Any) -> Row:
    return Row(number, varies, {**BLANK, **status}, device)


RUNNING: dict[str, Any] = {"state": "running", "attempt": 1, "step": 120_400, "total_steps": 10**6}
SWEEP = [
    row(9, {"env": "walker", "alg.lr": "0.01", "seed": "0"}, state="completed", score=812.43),
    row(10, {"env": "cheetah", "alg.lr": "3e-4", "seed": "1"}, "gpu 0", **RUNNING, speed=118.0),
    row(11, {"env": "hopper", "alg.lr": "0.1", "seed": "10"}),
]

NUMBERS = st.one_of(st.none(), st.floats(), st.integers(-(10**20), 10**20))
STATUSES = st.fixed_dictionaries(
    {
        "state": st.sampled_from(get_args(State)),
        "attempt": st.integers(0, 100),
        "step": st.integers(0, 10**15),
        "total_steps": st.one_of(st.none(), st.integers(0, 10**15)),
        "score": NUMBERS,
        "speed": NUMBERS,
        "updated": st.sampled_from([None, "2020-01-01T00:00:00.000+00:00", "nonsense"]),
    }
)
ROWS = st.lists(
    st.builds(
        lambda number, varies, status, device: Row(number, varies, {**BLANK, **status}, device),
        st.integers(0, 10**6),
        st.dictionaries(st.sampled_from(["env", "alg.lr", "seed", "x.\u6f22\u5b57"]), st.text()),
        STATUSES,
        st.text(max_size=30),
    ),
    max_size=6,
)


@given(ROWS, st.integers(1, 200), st.one_of(st.none(), st.integers(1, 12)))
def test_any_table_fits_its_width_and_height(
    rows: list[Row], width: int, height: int | None
) -> None:
    lines = table(rows, width=width, height=height)
    assert all(cell_len(line) <= width and line.isprintable() for line in lines)
    assert len(lines) <= (height or len(lines))


@given(ROWS, st.sampled_from([None, "max", "min"]))
def test_any_rows_have_a_summary_that_counts_all(rows: list[Row], mode: Any) -> None:
    assert summary(rows, mode=mode)[-1].startswith(f"{len(rows)} job")


def test_columns_are_aligned_and_numbers_end_at_the_right() -> None:
    assert table(SWEEP, width=100) == [
        "job  env        lr  seed  state          step    ETA    speed  score  device  attempt",
        "  9  walker   0.01     0  completed         0      -        -  812.4  -             -",
        " 10  cheetah  3e-4     1  running     120k/1M  2h04m    118/s      -  gpu 0         1",
        " 11  hopper    0.1    10  pending           -      -        -      -  -             -",
        "3 jobs: 1 running, 1 completed, 1 pending",
    ]


def test_a_table_of_eighty_columns_shows_all_but_part_of_the_device() -> None:
    rows = [one._replace(device="gpu 0 cpu 0-3") for one in SWEEP]
    assert "gpu 0 cpu 0-3" in table(rows, width=200)[1]
    title, line, *_ = table(rows, width=79)
    assert " ".join(title.split()) == "job env lr seed state step ETA speed score device attempt"
    assert " gpu 0 c" in line


def test_a_table_of_forty_columns_shows_number_state_and_score_in_full() -> None:
    varies = {"env": "quadruped_escape", "alg.optim.lr": "0.0001", "network.dims": "[256,256]"}
    rows = [row(n, {**varies, "seed": str(n)}, state="completed", score=812.43) for n in range(12)]
    title, *lines, _ = table(rows, width=40)
    assert [line.split()[0] for line in lines] == [*map(str, range(12))]
    assert all(line.endswith(" completed 812.4") for line in lines)
    assert title.endswith(" state     score")


def test_a_narrow_table_keeps_the_attempts_of_jobs_that_had_several() -> None:
    titles = [table([row(0, {}, attempt=count)], width=35)[0] for count in (1, 2)]
    assert ["attempt" in title for title in titles] == [False, True]


def test_numbers_that_change_move_nothing() -> None:
    later = [SWEEP[0], SWEEP[1]._replace(status={**SWEEP[1].status, "step": 5, "speed": 0.123})]
    titles = [table(rows, width=200)[0] for rows in (SWEEP[:2], later)]
    assert titles[0] == titles[1]


def test_a_short_table_shows_running_jobs_and_counts_the_rest() -> None:
    rows = [row(n, {"seed": str(n)}, state="completed") for n in range(50)]
    rows += [row(50, {"seed": "50"}, **RUNNING), row(51, {"seed": "51"}, state="failed")]
    lines = table(rows, width=100, height=5)
    assert [line.split()[0] for line in lines] == ["job", "50", "51", "0", "52"]
    assert lines[-1] == "52 jobs: 1 running, 50 completed, 1 failed (49 not shown)"
    assert table(rows, width=100, height=1) == [lines[-1].replace("49", "52")]


def test_counts_go_on_in_a_second_line_between_states() -> None:
    assert table(SWEEP, width=30)[-2:] == ["3 jobs: 1 running,", "1 completed, 1 pending"]


def test_long_values_lose_their_ends_and_common_keys_their_first_parts() -> None:
    rows = [row(0, {"env": "quadruped_escape_hard" * 3, "a.lr": "1", "b.lr": "2"})]
    title, line, _ = table(rows, width=100)
    assert title.split()[1:4] == ["env", "a.lr", "b.lr"]
    assert re.search(r" quadruped_escape_hardquad\w*\u2026 ", line)


def test_wide_characters_keep_the_columns_aligned() -> None:
    rows = [row(0, {"env": "\u6f22\u5b57", "tag": "x"}), row(1, {"env": "four", "tag": "y"})]
    _, first, second, _ = table(rows, width=100)
    assert cell_len(first[: first.index("x")]) == second.index("y")


@pytest.mark.parametrize(
    ("status", "eta"),
    [
        ({"speed": 118.0}, "2h04m"),
        ({"speed": None}, "-"),
        ({"speed": 0.0}, "-"),
        ({"speed": 118.0, "total_steps": None}, "-"),
        ({"speed": 118.0, "step": 10**6}, "0s"),
        ({"speed": 118.0, "state": "preempted"}, "-"),
        ({"speed": 1e-9}, ">999d"),
        ({"speed": 5e-324}, ">999d"),
    ],
)
def test_the_time_left_follows_from_speed_and_steps_left(status: dict[str, Any], eta: str) -> None:
    title, line, _ = table([row(0, {}, **{**RUNNING, **status})], width=200)
    assert line[: title.index("ETA") + 3].split()[-1] == eta


@pytest.mark.parametrize(("silent_s", "eta"), [(60, "57s"), (3600, "-")])
def test_the_time_left_runs_down_while_a_job_is_silent(silent_s: int, eta: str) -> None:
    updated = datetime.now(timezone.utc) - timedelta(seconds=silent_s)
    status = {**RUNNING, "step": 0, "total_steps": 1179, "speed": 10.0}
    assert (
        table([row(0, {}, **status, updated=updated.isoformat())], width=200)[1].split()[3] == eta
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (9_999, "9999"),
        (10_000, "10k"),
        (12_399, "12.3k"),
        (999_999, "999k"),
        (1_000_000, "1M"),
        (1_150_000, "1.15M"),
        (2_999_999_999, "2.99G"),
    ],
)
def test_steps_are_never_rounded_up(count: int, text: str) -> None:
    assert amount(count) == text


@given(st.floats(0, 1e12))
def test_a_time_takes_five_characters(seconds: float) -> None:
    assert len(span(seconds)) <= 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (59.9, "59s"),
        (605, "10m"),
        (65, "1m05s"),
        (3661, "1h01m"),
        (90_000, "1d01h"),
        (50_000, "13h"),
    ],
)
def test_a_time_is_cut_to_two_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("scores", "texts"),
    [
        ([812.43, 95.2, None], ["812.4", "95.2", "-"]),
        ([0.93, 0.5], ["0.9300", "0.5000"]),
        ([-12345.6, 3.0], ["-12346", "3"]),
        ([3e-7], ["3.000e-07"]),
        ([0.0], ["0.0"]),
    ],
)
def test_scores_share_their_decimals(scores: list[float | None], texts: list[str]) -> None:
    rows = [row(0, {}, state="completed", score=score) for score in scores]
    assert [line.split()[-1] for line in summary(rows)[1:-1]] == texts


def seeds(env: str, *jobs: tuple[str, float | None]) -> list[Row]:
    return [
        row(number, {"env": env, "seed": str(number)}, state=state, score=score)
        for number, (state, score) in enumerate(jobs)
    ]


def test_a_summary_over_seeds_counts_failures_and_means_only_what_completed() -> None:
    rows = seeds("walker", ("completed", 100.0), ("completed", 200.0), ("failed", 999.0))
    rows += seeds("hopper", ("completed", 90.0), ("running", 999.0), ("pending", None))
    assert summary(rows) == [
        "env     seeds  failed   mean    min    max",
        "walker    2/3       1  150.0  100.0  200.0",
        "hopper    1/3       0   90.0   90.0   90.0",
        "6 jobs: 1 running, 3 completed, 1 failed, 1 pending",
    ]


def test_a_completed_job_without_a_score_is_told_apart() -> None:
    lines = summary(seeds("walker", ("completed", 1.0), ("completed", None)))
    assert lines[0].split()[1:4] == ["seeds", "failed", "no"]
    assert lines[1].split() == ["walker", "2/2", "0", "1", "1.000", "1.000", "1.000"]


def test_the_best_line_is_marked_only_when_told_which_way_is_up() -> None:
    rows = seeds("a", ("completed", 1.0), ("completed", 2.0))
    rows += seeds("b", ("completed", 3.0), ("failed", -9.0))
    assert "best" not in "".join(summary(rows))
    assert [line.split()[0] for line in summary(rows, mode="max") if "best" in line] == ["b"]
    assert [line.split()[0] for line in summary(rows, mode="min") if "best" in line] == ["a"]


def test_one_seed_is_summed_up_job_by_job_and_a_failed_job_is_never_best() -> None:
    rows = [
        row(0, {"env": "a", "seed": "0"}, state="completed", score=1.0),
        row(1, {"env": "b", "seed": "0"}, state="failed", score=2.0),
    ]
    lines = summary(rows, mode="max")
    assert lines[0].split() == ["job", "env", "seed", "state", "score"]
    assert lines[1].endswith("1.000  best")
    assert lines[2].endswith("failed     2.000")


def test_the_csv_has_every_job_in_full(tmp_path: Path) -> None:
    times = {"started": "2026-01-01T00:00:00.000+00:00", "ended": "2026-01-01T00:01:00.500+00:00"}
    ended = row(
        3, {"env": "a,b\n"}, state="failed", step=7, attempt=2, exit_reason="killed", **times
    )
    rows = [ended._replace(folder=tmp_path / "3"), row(4, {"lr": "1"})]
    write_csv(rows, tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert list(first) == [
        *["job", "env", "lr", "state", "score", "step", "attempt"],
        *["seconds", "exit_reason", "folder"],
    ]
    assert [*first.values()] == ["3", "a,b\n", "", "failed", "", "7", "2", "60.5", "killed", "3"]
    assert (second["state"], second["lr"], second["seconds"]) == ("pending", "1", "")
