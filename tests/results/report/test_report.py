"""What a report tells of runs: their tables, what cannot be said, and errors in a line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from research import report
from research.errors import UserError
from research.results.report import resources
from research.results.report.aggregate import Group, aggregate_section
from research.results.report.document import Cell, Gallery, Section, Table
from research.results.report.make import find_scale, make_report
from research.results.report.provenance import changes
from research.results.report.resources import last_rows
from tests.results.made_runs import write_log, write_plan, write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two algorithms on two tasks, three seeds each; TD3 is better."""
    for alg, bonus in (("td3", 100.0), ("sac", 0.0)):
        for env in ("cheetah", "walker"):
            for seed in range(3):
                values = [10.0 * seed + bonus + step for step in range(5)]
                folder = tmp_path / "runs" / f"alg={alg},env={env},seed={seed}"
                write_run(folder, values, alg=alg, env=env, seed=seed)
    return tmp_path / "runs"


def section_of(title: str, *paths: Path, **options: str) -> Section:
    """A section of the report of these paths, by the start of its title."""
    made = make_report(paths, made="now", **options)  # type: ignore[reportArgumentType]
    return next(section for section in made.sections if section.title.startswith(title))


def tables(section: Section) -> list[Table]:
    """The tables of a section."""
    return [block for block in section.blocks if isinstance(block, Table)]


def texts(section: Section) -> str:
    """The paragraphs of a section."""
    return "\n".join(block for block in section.blocks if isinstance(block, str))


def figures(section: Section) -> list[str]:
    """The names of a section's figures."""
    galleries = [block for block in section.blocks if isinstance(block, Gallery)]
    return [figure.name for gallery in galleries for figure in gallery.figures]


def test_seeds_are_counted_for_each_group_and_task(runs: Path) -> None:
    write_run(runs / "more", [1.0], alg="td3", env="walker", seed=3, state="failed")
    section = section_of("What", runs)
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in tables(section)[0].rows}
    assert rows == {"sac": ["3", "3"], "td3": ["3", "3 of 4"]}
    assert texts(section).startswith(
        "13 runs (12 completed, 1 failed): 2 groups by alg, on 2 tasks"
    )


def test_a_run_that_still_writes_is_reported_as_running(runs: Path) -> None:
    folder = write_run(runs / "more", [1.0, 2.0], alg="td3", seed=3, state="running")
    with (folder / "eval.csv").open("a") as file:
        file.write("3000,3000,30")
    section = section_of("What", runs)
    assert "1 running" in texts(section)
    assert "The oldest status among them is that of more" in texts(section)
    assert tables(section)[0].rows[1][1].text == "4"
    curves = section_of("Curves", runs)
    assert "all 4 runs reach" in texts(curves)


def test_a_damaged_run_among_others_is_named(runs: Path) -> None:
    (runs / "alg=td3,env=walker,seed=1" / ".hydra" / "config.yaml").write_text("a: [")
    lost = tables(section_of("What", runs))[1]
    assert lost.rows[0][0].text == "alg=td3,env=walker,seed=1"
    assert "is no config" in lost.rows[0][-1].text


def test_a_failed_run_has_a_curve_and_no_score(runs: Path) -> None:
    write_run(runs / "more", [9.0] * 5, alg="td3", env="walker", seed=3, state="failed")
    rows = tables(section_of("Curves", runs))[0].rows
    seeds = {(row[0].text, row[1].text): row[2].text for row in rows}
    assert seeds["walker_walk", "td3"] == "3"


def test_scores_of_several_tasks_are_averaged_only_when_normalised(runs: Path) -> None:
    bare = section_of("Over all tasks", runs)
    assert "cannot be averaged; normalise=..." in texts(bare)
    assert figures(bare) == []
    section = section_of("Over all tasks", runs, normalise="0,200")
    assert "normalised so that 0 is 0 and 200 is 1" in texts(section)
    assert tables(section)[0].columns == (
        *("group", "runs", "IQM", "median", "mean", "optimality gap"),
    )
    means = {row[0].text: row[4].value for row in tables(section)[0].rows}
    assert means == pytest.approx({"sac": 14 / 200, "td3": 114 / 200})
    gaps = {row[0].text: row[5].value for row in tables(section)[0].rows}
    assert gaps == pytest.approx({"sac": 1 - 14 / 200, "td3": 1 - 114 / 200})
    assert figures(section)[-1] == "performance_profile"


def test_the_probability_of_improvement_is_over_the_baseline(runs: Path) -> None:
    section = section_of("Over all tasks", runs, baseline="sac")
    assert [[cell.value for cell in row] for row in tables(section)[0].rows] == [[None, 1.0]]
    assert figures(section) == ["improvement"]


def test_a_baseline_without_a_score_on_some_task_is_told(runs: Path) -> None:
    for seed in range(3):
        (runs / f"alg=sac,env=walker,seed={seed}" / "eval.csv").unlink()
    section = section_of("Over all tasks", runs, baseline="sac")
    assert "Without a score on some task, and so not in this section: sac." in texts(section)
    assert "Nothing is compared with sac" in texts(section)
    assert figures(section) == []


def test_less_is_better_for_a_loss() -> None:
    groups = [
        Group(name, "#000000", {"digits": np.array(scores)})
        for name, scores in (("a", [0.1, 0.2]), ("b", [0.3, 0.4]))
    ]
    section = aggregate_section(
        groups, metric="eval/loss", mode="min", normalisation=None, baseline="b"
    )
    assert tables(section)[-1].rows[0][1].value == 1.0
    assert "performance_profile" not in figures(section)


def test_what_one_task_or_one_seed_cannot_tell_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [1.0, 2.0])
    section = section_of("Over all seeds", tmp_path)
    assert "There is one task, cheetah_run: nothing is said about others" in texts(section)
    assert "one seed on each task has no interval" in texts(section)
    assert tables(section)[0].rows[0][2].text == "2.000"


def test_a_normalisation_that_does_not_fit_is_told(runs: Path) -> None:
    assert "outside 0 to 1" in texts(section_of("Over all tasks", runs, normalise="0,100"))
    assert "outside 0 to 1" not in texts(section_of("Over all tasks", runs, normalise="dmc"))


def test_the_best_value_of_a_hyperparameter_is_marked(tmp_path: Path) -> None:
    for lr in (1e-4, 1e-3, 1e-2):
        for seed in range(2):
            value = {1e-4: 10.0, 1e-3: 30.0, 1e-2: 20.0}[lr] + seed
            write_run(tmp_path / "runs" / f"{lr},{seed}", [0.0, value], lr=lr, seed=seed)
    section = section_of("Hyperparameters", tmp_path / "runs")
    best, marginal = tables(section)
    assert [row[2].text for row in best.rows] == ["0.001", "0.01", "0.0001"]
    assert [row[2].text for row in marginal.rows] == [
        *("10.50 (10.00 to 11.00)", "30.50 (30.00 to 31.00), best", "20.50 (20.00 to 21.00)"),
    ]
    assert figures(section) == ["hyperparameter_0_lr"]


def test_runs_that_differ_in_alg_alone_have_no_hyperparameters(runs: Path) -> None:
    titles = [section.title for section in make_report([runs], made="now").sections]
    assert "Hyperparameters" not in titles


def test_published_curves_stand_beside(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "others.csv"
    path.write_text(
        "task,env_steps,mean_return,std_return,n_seeds\ncheetah_run,0,1,2,4\ncheetah_run,9,3,2,4\n"
    )
    section = section_of("Curves", runs, path)
    (gallery,) = [block for block in section.blocks if isinstance(block, Gallery)]
    line = gallery.figures[0].series[-1]
    assert (line.label, line.is_dashed) == ("others", True)
    np.testing.assert_allclose(line.low, [0.0, 2.0])
    assert [label for _, label, _ in gallery.groups] == ["sac", "td3", "others"]
    (axes,) = gallery.figures[0].drawing.axes
    assert axes.get_xlim() == pytest.approx((1000 - 120, 5000 + 120))


def test_published_curves_alone(tmp_path: Path) -> None:
    path = tmp_path / "others.csv"
    path.write_text("task,env_steps,mean_return,std_return,n_seeds\ncheetah_run,0,1,,1\n")
    made = make_report([path], made="now")
    assert made.title == "Published curves on cheetah_run"
    assert [section.title for section in made.sections] == ["What was run", "Curves"]
    assert figures(made.sections[1]) == ["curves_0_cheetah_run"]


def test_the_last_rows_of_a_long_log_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(tmp_path / "time.csv", [{"step": step, "update": 0.5} for step in range(9000)])
    for size in range(200, 240):  # wherever the first row is cut
        monkeypatch.setattr(resources, "TAIL_BYTES", size)
        steps = [row["step"] for row in last_rows(tmp_path / "time.csv")]
        assert len(steps) > 3
        assert steps == [*range(9000 - len(steps), 9000)]
    assert last_rows(tmp_path / "absent.csv") == []


def test_time_is_told_of_each_run(runs: Path) -> None:
    rows = [{"step": 500 * n, "seconds": 5 * n, "update": n / 10} for n in (1, 2)]
    write_log(runs / "alg=sac,env=cheetah,seed=0" / "time.csv", rows)
    section = section_of("Time", runs)
    (table,) = tables(section)
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["training time"] == Cell("10s", 10.0)
    assert row["steps per second"].value == 100.0
    assert row["update"].value == pytest.approx(0.15)
    assert table.rows[1][3].text == "-"
    assert "did not log their memory" in texts(section)


def test_where_runs_come_from_and_how_they_differ(runs: Path) -> None:
    attempt = {
        "time": "2026-01-01T00:00:00+00:00",
        "command": ["train.py", "alg=td3"],
        "changes": [],
        "git": {"commit": "a" * 40, "dirty": False},
        "python": "/usr/bin/python, 3.11.2 (main)",
        "packages": {"torch": "2.1", "numpy": "2.0"},
        "machine": {"host": "here", "cpu": "a processor", "gpus": []},
    }
    later = {
        **attempt,
        "git": {"commit": "b" * 40, "dirty": True, "diff": "--- a\n+++ b\n+new\n-old\n+new\n"},
        "packages": {"torch": "2.2", "numpy": "2.0"},
        "changes": ["trainer.total_steps: 10 -> 20"],
    }
    names = sorted(path.name for path in runs.iterdir())
    for name in names:
        attempts = [attempt, later] if name == names[0] else [attempt]
        (runs / name / "provenance.json").write_text(json.dumps({"attempts": attempts}))
    section = section_of("Provenance", runs)
    last, differing, resumed = tables(section)
    assert [cell.text for cell in last.rows[0]] == [
        *(names[0], "b" * 10, "+2 -1 lines", "here", "a processor", "3.11.2", "train.py alg=td3"),
        "2",
    ]
    assert differing.columns == ("run", "torch")
    assert [row[1].text for row in resumed.rows] == ["1", "2"]
    assert resumed.rows[1][-1].text == "trainer.total_steps: 10 -> 20"
    assert "of 2 commits (aaaaaaaaaa and bbbbbbbbbb)" in texts(section)
    assert "Versions: numpy 2.0." in texts(section)


def test_code_without_a_repository_is_unknown() -> None:
    assert changes({"error": "no repository"}) == "unknown"
    assert changes({"dirty": False}) == "none"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent"], "absent does not exist"),
        (["empty"], "empty is no run: it has no .hydra/config.yaml"),
        (["runs", "y=eval/retrun"], "no run has logged eval/retrun.*did you mean 'eval/retu"),
        (
            ["runs", "baseline=td4"],
            "baseline=td4 is no group; there are sac, td3; did you mean 'td",
        ),
        (
            ["runs", "normalise=dm"],
            "normalise=dm must be dmc .* or two numbers.*did you mean 'dmc'",
        ),
        (["runs", "normalise=3,3"], "LOW and HIGH must be finite and differ"),
        (["runs", "col=null"], "col=null: name the key"),
        (["runs", "out=absent/x"], "out=absent/x: absent/x_figures cannot be made"),
        (["damaged"], "config.yaml is no config"),
        (["newer"], "state is 'paused', not one of pending"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    runs: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(runs.parent)
    Path("empty").mkdir()
    (write_run(Path("damaged"), [1.0]) / ".hydra" / "config.yaml").write_text("{")
    status = write_run(Path("newer"), [1.0]) / "status.json"
    status.write_text(status.read_text().replace("completed", "paused"))
    with pytest.raises(SystemExit) as error:
        report.main(words)
    assert error.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_a_scale_maps_its_ends_to_0_and_1() -> None:
    np.testing.assert_allclose(find_scale("-200,-100")(np.array([-200.0, -100.0])), [0.0, 1.0])
    with pytest.raises(UserError):
        find_scale("1,2,3")


def test_a_sweep_of_which_nothing_ran_has_nothing_to_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(tmp_path / "sweep", [{"alg": "td3", "seed": "0"}])
    with pytest.raises(SystemExit):
        report.main([str(tmp_path / "sweep"), f"out={tmp_path / 'report'}"])
    assert "it never began" in capsys.readouterr().err
