"""The report of a real sweep, as its reader meets it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from research import report, sweep
from research.status import Status
from tests.results.browser import ask
from tests.test_layers import ROOT

SMALL = (
    *("trainer.total_steps=60", "trainer.log_every=20", "trainer.evaluation.every=20"),
    *("trainer.evaluation.episodes=1", "env.max_episode_steps=30", "network.hidden_dims=[8]"),
    *("trainer.pace.warmup_steps=20", "dataset.batch_size=8", "dataset.capacity=100"),
)
HOSTILE = "<img src=x onerror=hacked=1>"
REASON = "ValueError: <script>window.hacked=1</script> & $x$"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two learning rates, two seeds, of which one failed and one is missing; and the report."""
    folder = tmp_path_factory.mktemp("sweep")
    command = [
        *(sys.executable, ROOT / "train.py", "-m", "alg=td3", "alg.optim.lr=1e-3,1e-2"),
        *("env=pendulum", "seed=0,1,2", f"hydra.sweep.dir={folder / 'lr'}", *SMALL),
    ]
    subprocess.run(command, check=True, cwd=folder, capture_output=True)
    runs = sorted((folder / "lr").glob("*seed=*"))
    Status(runs[0]).end("failed", REASON)
    shutil.rmtree(runs[-1])
    runs[1].rename(runs[1].with_name(HOSTILE))
    shutil.copytree(runs[1].with_name(HOSTILE), runs[1])
    assert report.main([str(folder / "lr"), f"out={folder / 'report'}", "baseline=lr=0.001"]) == 0
    return folder


def test_failed_and_missing_runs_are_named_with_the_reason(folder: Path) -> None:
    told = (folder / "report.md").read_text()
    assert re.search(r"failed \| 60/60 \| ValueError: &lt;script>", told)
    assert re.search(r"pending \| - \| it never began", told)
    assert "2 groups by alg.optim.lr, on 1 task (Pendulum-v1)" in told


def test_the_status_of_a_sweep_comes_with_a_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["status", str(folder / "lr"), f"report={tmp_path / 'so_far.html'}"]
    assert sweep.main(words) == 0
    told = capsys.readouterr().out
    assert "1 failed, 1 pending" in told
    assert f"wrote {tmp_path / 'so_far'}.html" in told
    assert "it never began" in (tmp_path / "so_far.html").read_text()
    with pytest.raises(SystemExit):
        sweep.main([*words[:2], "repot=x"])
    assert capsys.readouterr().err.endswith("repot=x is no option; allowed: report=PATH\n")


def test_it_needs_nothing_else(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!#)[^"]*', page)
    assert "url(http" not in page
    assert "@import" not in page


def test_the_markdown_has_its_figures(folder: Path) -> None:
    paths = re.findall(r"\]\((report_figures/[\w.]+)\)", (folder / "report.md").read_text())
    assert len(paths) >= 5
    for path in paths:
        assert (folder / path).stat().st_size > 1000
        assert (folder / path).with_suffix(".png").stat().st_size > 1000


def test_a_browser_shows_it_without_a_complaint(folder: Path, tmp_path: Path) -> None:
    script = """
    const drawn = [...document.querySelectorAll(".plot svg")];
    return {
      hacked: window.hacked ?? null,
      images: document.images.length,
      empty: drawn.filter((svg) => svg.getBoundingClientRect().height < 50).length,
      lines: document.querySelectorAll('.plot [data-group="1"] path').length,
      wide: document.documentElement.scrollWidth > document.documentElement.clientWidth,
      figures: drawn.length,
    };
    """
    found, console = ask(folder / "report.html", script, tmp_path)
    assert console == []
    assert found["figures"] == len(list((folder / "report_figures").glob("*.svg")))
    assert found["lines"] >= 2
    assert (found["hacked"], found["images"], found["empty"], found["wide"]) == (None, 0, 0, False)
    assert HOSTILE.replace("<", "&lt;").replace(">", "&gt;") in (folder / "report.html").read_text()


def test_a_click_sorts_a_table_by_number(folder: Path, tmp_path: Path) -> None:
    script = """
    const table = [...document.querySelectorAll("table")].find(
      (each) => each.caption.textContent === "Each run");
    const column = [...table.tHead.rows[0].cells].findIndex(
      (cell) => cell.textContent === "steps per second");
    const values = () => [...table.tBodies[0].rows].map(
      (row) => Number(row.cells[column].dataset.value));
    const title = table.tHead.rows[0].cells[column];
    title.firstElementChild.click();
    const up = values(), first = title.ariaSort;
    title.firstElementChild.click();
    return { up, down: values(), sorts: [first, title.ariaSort] };
    """
    found, _ = ask(folder / "report.html", script, tmp_path)
    assert len(set(found["up"])) > 2
    assert found["up"] == sorted(found["up"])
    assert found["down"] == sorted(found["up"], reverse=True)
    assert found["sorts"] == ["ascending", "descending"]


def test_the_pointer_shows_values_and_the_legend_hides_them(folder: Path, tmp_path: Path) -> None:
    script = """
    const figure = document.querySelector("figure:has(script)");
    const { left, width, top } = figure.querySelector("svg").getBoundingClientRect();
    const box = figure.querySelector(".values");
    const point = () => {
      figure.dispatchEvent(new PointerEvent(
        "pointermove", { clientX: left + 0.99 * width, clientY: top + 20 }));
      figure.dispatchEvent(new PointerEvent(
        "pointermove", { clientX: left + 0.9 * width, clientY: top + 20 }));
      return box.textContent;
    };
    const both = point();
    const button = figure.closest(".gallery").querySelector('[data-group="0"]');
    button.click();
    const line = figure.querySelector('.plot [data-group="0"]');
    const hidden = getComputedStyle(line).display;
    const one = point();
    figure.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
    return { both, one, hidden, before: box.textContent };
    """
    found, _ = ask(folder / "report.html", script, tmp_path)
    assert found["both"].startswith("environment steps: 60")
    assert {"lr=0.001", "lr=0.01"} <= {*re.findall(r"lr=0\.0+1", found["both"])}
    assert found["hidden"] == "none"
    assert "lr=0.01" in found["one"]
    assert "lr=0.001" not in found["one"]
    assert found["before"].startswith("environment steps: 40")
