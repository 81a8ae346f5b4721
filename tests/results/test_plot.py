"""The command that draws one figure of runs, sweeps and published curves."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from cycler import cycler
from matplotlib.figure import Figure
from PIL import Image

from research import plot
from research.results import figure
from research.results.groups import gather
from research.results.lines import lines_of
from tests.results.made_runs import write_log, write_run

CSV = "task,env_steps,mean_return,std_return,n_seeds\n"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two algorithms on two tasks, three seeds each, one seed of SAC missing on the walker."""
    folder = tmp_path / "sweep"
    for alg in ("td3", "sac"):
        for env in ("cheetah", "walker"):
            for seed in range(2 if (alg, env) == ("sac", "walker") else 3):
                values = [10.0 * seed + step for step in range(5)]
                name = f"alg={alg},env={env},seed={seed}"
                write_run(folder / name, values, alg=alg, env=env, seed=seed, every=20_000)
    return folder


def fill(*paths: Path, metric: str | None = None, **options: Any) -> Figure:
    """The figure of these paths, in memory."""
    results = gather(paths, metric=metric)
    lines = lines_of(results)
    arguments = {"width_in": None, "xscale": "linear", "yscale": None, **options}
    style: dict[Any, Any] = {**figure.STYLE, "axes.prop_cycle": cycler(color=figure.COLORS)}
    with matplotlib.rc_context(style):
        drawn = figure.fill_figure(results, lines, matplotlib=matplotlib, **arguments)
        drawn.canvas.draw()
    return drawn


def main(*words: object) -> int:
    """The command, in this process."""
    return plot.main(list(map(str, words)))


def test_the_command_writes_a_figure_and_tells_what_is_odd(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "fig.png"
    command = [sys.executable, "-m", "research.plot", sweep, f"out={out}", "width_in=4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert Image.open(out).width == 800
    assert done.stdout.splitlines() == [
        "sac on walker_walk has no run of seed 2, unlike other tasks",
        f"{out}: mean of eval/return, 95 % percentile-bootstrap intervals over seeds",
    ]
    assert done.stderr == ""


def test_a_panel_for_each_task_and_a_line_for_each_group(sweep: Path) -> None:
    drawn = fill(sweep)
    assert [panel.get_title() for panel in drawn.axes] == ["cheetah run", "walker walk"]
    for panel, mean in zip(drawn.axes, (10, 5), strict=True):
        whole = [line for line in panel.lines if line.get_linestyle() != ":"]
        data = [np.asarray(line.get_ydata()) for line in whole]
        np.testing.assert_allclose(data[0], mean + np.arange(5))
        np.testing.assert_allclose(data[1], 10 + np.arange(5))
        assert len({line.get_color() for line in whole}) == 2
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == [
        "sac (2 to 3 seeds)",
        "td3 (3 seeds)",
    ]
    ticks = [text.get_text() for text in drawn.axes[0].get_xticklabels()]
    assert {"0", "100k"} <= set(ticks)
    assert drawn.axes[0].get_xlim() == (0, 100_000)


def test_a_published_curve_is_dashed_with_its_standard_error(sweep: Path, tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    points = "".join(f"cheetah_run,{frames},{frames / 1e4},4,4\n" for frames in (0, 5e4, 2e5))
    path.write_text(CSV + points)
    drawn = fill(sweep, path)
    (dashed,) = [line for line in drawn.axes[0].lines if line.get_linestyle() == "--"]
    np.testing.assert_allclose(np.asarray(dashed.get_ydata()), [0, 5, 20])
    band = drawn.axes[0].collections[-1].get_paths()[0].vertices
    assert {-2.0, 2.0, 3.0, 7.0} <= set(np.asarray(band)[:, 1].tolist())
    assert not [line for line in drawn.axes[1].lines if line.get_linestyle() == "--"]
    assert drawn.legends[0].get_texts()[-1].get_text() == "theirs (4 seeds, +- s.e.)"
    assert drawn.axes[0].get_xlim() == (0, 100_000)


def test_published_curves_alone_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text(CSV + "a_b,0,1,,1\na_b,10,2,,1\n")
    (panel,) = fill(path).axes
    legend = panel.get_legend()
    assert legend is not None
    assert legend.get_texts()[0].get_text() == "theirs (1 seed)"


def test_a_long_legend_fits_below_the_panels(tmp_path: Path) -> None:
    for index in range(9):
        write_run(tmp_path / str(index), lr=10.0**-index)
    drawn = fill(tmp_path, width_in=3.0)
    box = drawn.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= drawn.bbox.width
    looks = {(line.get_color(), line.get_linestyle()) for line in drawn.legends[0].get_lines()}
    assert len(looks) == 9


def test_a_loss_of_many_decades_has_a_log_axis(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_log(run / "train.csv", [{"step": s, "loss": 10.0**-s, "q": 10.0**-s} for s in range(5)])
    for metric, scale in (("train/loss", "log"), ("train/q", "linear")):
        results = gather([run], metric=metric)
        assert figure.scale_of(metric, lines_of(results)) == scale
        drawn = fill(run, metric=metric)
        labels = drawn.axes[0].get_yticklabels()
        assert max(label.get_window_extent().width for label in labels) < 60
    assert figure.label_of("train/critic_loss") == "critic loss (train)"


def test_what_a_log_axis_hides_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", [-1.0, 1.0, 10.0])
    out = tmp_path / "fig.png"
    assert main(run, f"out={out}", "yscale=log", "xscale=log") == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "td3 on cheetah_run: yscale=log does not show values of 0 or below"


@pytest.mark.parametrize(
    ("suffix", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")]
)
def test_the_ending_is_the_format_and_the_same_runs_give_the_same_bytes(
    sweep: Path, tmp_path: Path, suffix: str, start: bytes
) -> None:
    out = tmp_path / f"fig.{suffix}"
    contents = []
    for _ in range(2):
        assert main(sweep, f"out={out}") == 0
        contents.append(out.read_bytes())
    assert contents[0].startswith(start)
    assert contents[0] == contents[1]
    if suffix == "pdf":
        assert b"/FontFile2" in contents[0]
        assert b"/Type3" not in contents[0]


def test_a_style_changes_the_figure(sweep: Path, tmp_path: Path) -> None:
    style = tmp_path / "mine.mplstyle"
    style.write_text("savefig.dpi: 50\n")
    assert main(sweep, f"out={tmp_path / 'fig.png'}", f"style={style}", "width_in=4") == 0
    assert Image.open(tmp_path / "fig.png").width == 200


def test_names_may_hold_signs_of_mathematics(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = run / ".hydra" / "hydra.yaml"
    path.write_text(path.read_text().replace("td3", "_a$b_^$"))
    assert main(run, f"out={tmp_path / 'fig.svg'}") == 0


def test_options_are_read_as_on_hydras_command_line(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, options = plot.read_words(
        [str(sweep / "alg=td3,env=walker,seed=0"), "by=[alg,lr]", "filter=a=b", "filter=c!=d,e"],
        plot.OPTIONS,
    )
    assert paths == [str(sweep / "alg=td3,env=walker,seed=0")]
    monkeypatch.chdir(sweep)
    name = "alg=td3,env=walker,seed=0"
    assert plot.read_words([name], plot.OPTIONS)[0] == [name]
    assert options["by"] == ["alg", "lr"]
    assert options["filter"] == ["a=b", "c!=d,e"]
    assert (options["col"], options["out"], options["x"]) == ("env", Path("fig.pdf"), None)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ot=a.pdf"], "no option ot; allowed: x, y, .*; did you mean 'out'"),
        (["out=a.jpg"], "out=a.jpg: its ending must be one of .pdf, .svg, .png"),
        (["out=absent/a.pdf"], "absent is no folder"),
        (["out=/proc/fig.pdf"], "out=/proc/fig.pdf: No such file"),
        (["grid=1e-3"], "a distance of 0.001 between points gives"),
        (["x=step", "x=frames"], "x is given twice: step and frames"),
        (["smooth=-1"], "smooth=-1: it must be a number above 0"),
        (["grid=nan"], "grid=nan: it must be a number above 0"),
        (["confidence=95"], "confidence=95: it must be a number between 0 and 1"),
        (["statistic=iqn"], "statistic=iqn: allowed: mean, iqm; did you mean 'iqm'"),
        (["style=gplot"], "style=gplot is neither a file nor a style.*did you mean 'ggplot'"),
        (["y=eval/retrun"], "did you mean 'eval/return'"),
        (["col=evn"], "did you mean 'env'"),
    ],
)
def test_a_wrong_option_is_one_line(
    sweep: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(sweep, *words)
    assert exit.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("python -m research.plot: ")
    assert error.count("\n") == 1
    assert re.search(told, error)


def test_a_figure_that_cannot_be_drawn_leaves_the_old_one(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "fig.pdf"
    out.write_bytes(b"old")
    with pytest.raises(SystemExit):
        main(sweep, f"out={out}", "y=train/absent")
    assert out.read_bytes() == b"old"


def test_no_path_is_told() -> None:
    with pytest.raises(SystemExit) as exit:
        main("out=fig.pdf")
    assert exit.value.code == 1


def test_without_matplotlib_one_line_tells_how_to_install_it(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    with pytest.raises(SystemExit):
        main(sweep)
    assert "needs the package matplotlib: pip install -e '.[results]'" in capsys.readouterr().err


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main("--help")
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {key}=", text, re.MULTILINE) for key in plot.OPTIONS)


def test_neither_torch_nor_pandas_is_loaded(sweep: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from research.plot import main; main(sys.argv[1:]);"
        "sys.exit(bool({'torch', 'pandas', 'rich'} & {*sys.modules}))"
    )
    command = [sys.executable, "-c", code, sweep, f"out={tmp_path / 'fig.svg'}"]
    assert subprocess.run(command).returncode == 0
