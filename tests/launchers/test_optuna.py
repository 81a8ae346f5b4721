"""The Optuna sweeper: failures do not end a search, and a restart goes on with it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from hydra_plugins.research_lightning.local import LocalLauncher
from hydra_plugins.research_lightning.optuna import OptunaConf, OptunaSweeper
from hydra_plugins.research_lightning.slurm import SlurmLauncher
from research.errors import UserError
from research.hydra_versions import REPLACE, VERSION_BASE
from research.launchers.search import Study

ROOT = Path(__file__).parents[2]
APP = """
import time
import hydra

@hydra.main(version_base="1.3", config_path=None, config_name=None)
def main(cfg):
    with open("{log}", "a") as log:
        log.write(f"{{cfg.x}}\\n")
    if cfg.x > {limit}:
        raise ValueError(f"{{cfg.x}} is too large")
    time.sleep({sleep_s})
    with open("{log}.completed", "a") as log:
        log.write(f"{{cfg.x}}\\n")
    return (cfg.x - 0.3) ** 2

main()
"""
SPACE = ["x=interval(0.0,1.0)", "y=tag(log,interval(1e-4,1e-2))", "z=a,b,null", "n=interval(1,9)"]


class App:
    """A Hydra app that fails for a large ``x``, and the search that its sweep directory holds."""

    def __init__(self, folder: Path, *, limit: float, sleep_s: float = 0.0) -> None:
        self.folder = folder
        self.log = folder / "log"
        content = APP.format(log=self.log, limit=limit, sleep_s=sleep_s)
        (folder / "app.py").write_text(content)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "app.py", "-m", "hydra/sweeper=optuna", "+x=interval(0.0,1.0)"]
        return subprocess.Popen(
            [*command, "hydra.sweep.dir=sweep", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        with self.start(*arguments) as process:
            output = process.communicate(timeout=60)[0]
        return process.returncode, output

    def trials(self) -> list[FrozenTrial]:
        path = self.folder / "sweep" / "study" / "journal.log"
        return load_study(path).trials if path.exists() and path.stat().st_size else []

    def states(self) -> list[str]:
        return [trial.state.name for trial in self.trials()]


def load_study(path: Path) -> optuna.Study:
    """The study in a journal, as ``optuna-dashboard`` loads it."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(study_name=None, storage=storage)


def make_study(folder: Path, *arguments: str, sampler: Any = "tpe", **options: Any) -> Study:
    (folder / "study").mkdir(exist_ok=True, parents=True)
    defaults = {"direction": "minimize", "n_trials": 12, "sampler": sampler}
    if isinstance(sampler, str):
        defaults["sampler"] = sampler_options(sampler)
    return Study(folder, OptunaConf(**{**defaults, **options}), arguments or SPACE)


def sampler_options(name: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
        overrides = ["hydra/sweeper=optuna", f"hydra/sweeper/sampler={name}"]
        return compose("config", overrides, return_hydra_config=True).hydra.sweeper.sampler


def run_batches(study: Study, *, size: int, count: int = 100, fails: bool = False) -> None:
    """Launch ``count`` batches of ``size`` jobs; without ``fails``, those of large ``x`` fail."""
    for _ in range(count):
        if not (batch := study.next_batch(size)):
            return
        study.tell(batch, [answer(trial, fails=fails) for trial in batch])


def answer(trial: FrozenTrial, *, fails: bool) -> JobReturn:
    x = trial.params["x"]
    if fails or x > 0.8:
        return JobReturn(status=JobStatus.FAILED, _return_value=ValueError(f"{x} is too large"))
    return JobReturn(status=JobStatus.COMPLETED, _return_value=(x - 0.3) ** 2)


def parameters(study: Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.jobs().values()]


def states(study: Study) -> list[str]:
    return [trial.state.name for trial in study.jobs().values()]


@pytest.fixture(autouse=True)
def no_hydra_left() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()


def test_failed_trials_do_not_end_a_search(tmp_path: Path) -> None:
    app = App(tmp_path, limit=0.55)
    status, output = app.run("hydra.sweeper.n_trials=6", "hydra/launcher=basic")
    assert status == 0, output
    counts = Counter(app.states())
    assert counts["COMPLETE"] + counts["FAIL"] == 6
    assert counts["COMPLETE"] > 0
    assert counts["FAIL"] > 0
    assert f"{counts['COMPLETE']} trials completed, {counts['FAIL']} failed" in output
    completed = [trial for trial in app.trials() if trial.state.name == "COMPLETE"]
    best = min(completed, key=lambda trial: trial.values)  # Optuna's default
    results = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    assert OmegaConf.to_container(results) == {
        "name": "optuna",
        "best_params": best.params,
        "best_value": best.value,
    }


def test_a_search_goes_on_after_its_process_was_killed(tmp_path: Path) -> None:
    app = App(tmp_path, limit=0.7, sleep_s=0.5)
    arguments = ("hydra.sweeper.n_trials=6", "hydra/launcher=local", "hydra.launcher.max_jobs=2")
    process = app.start(*arguments)
    deadline = time.monotonic() + 60
    while "RUNNING" not in app.states()[2:] or len(app.log.read_text().split()) < 4:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = app.trials()
    status, output = app.run(*arguments)
    assert status == 0, output
    after = app.trials()
    assert len(after) == 6
    assert "RUNNING" not in app.states()
    assert [trial.params for trial in after[: len(before)]] == [t.params for t in before]
    completed = Counter((tmp_path / "log.completed").read_text().split())
    assert set(completed.values()) == {1}, "no trial completes twice"
    jobs = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["jobs"]
    assert [job["overrides"] for job in jobs] == [trial.user_attrs["overrides"] for trial in after]


def test_a_search_whose_trials_all_failed_fails(tmp_path: Path) -> None:
    app = App(tmp_path, limit=-1.0)
    status, output = app.run("hydra.sweeper.n_trials=3", "hydra/launcher=basic")
    assert status != 0
    assert "all 3 trials failed" in output
    assert app.states() == ["FAIL"] * 3


def test_a_launch_of_no_trials_is_refused(tmp_path: Path) -> None:
    options = ("hydra/launcher=slurm", "hydra.launcher.jobs_per_allocation=0")
    status, output = App(tmp_path, limit=1.0).run(*options)
    assert status != 0
    assert "jobs_per_allocation must be an integer of at least 1, got 0" in output


def test_a_launch_has_as_many_trials_as_its_launcher_runs_at_once() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    for num_cpus in (1, len(cpus)):
        sweeper = OptunaSweeper(sampler=None)
        sweeper.launcher = LocalLauncher(cpus=cpus[:num_cpus], gpus=[])
        assert sweeper.batch_size() == num_cpus
    sweeper.launcher = SlurmLauncher(jobs_per_allocation=4)
    assert sweeper.batch_size() == 4
    assert OptunaSweeper(sampler=None, n_jobs=3).batch_size() == 3


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "nsgaii"])
def test_an_interrupted_search_is_the_same_as_one_that_was_not(
    tmp_path: Path, sampler: str
) -> None:
    folders = [tmp_path / name for name in ("whole", "interrupted")]
    for folder in folders:
        folder.mkdir()
    whole = make_study(folders[0], sampler=sampler)
    run_batches(whole, size=3)
    for _ in range(2):
        run_batches(make_study(folders[1], sampler=sampler), size=3, count=1)
    make_study(folders[1], sampler=sampler).next_batch(3)  # killed while these run
    resumed = make_study(folders[1], sampler=sampler)
    run_batches(resumed, size=3)
    assert parameters(resumed) == parameters(whole)
    for each in ("values", "state", "user_attrs", "system_attrs"):
        assert [getattr(t, each) for t in resumed.trials()] == [
            getattr(t, each) for t in whole.trials()
        ]
    assert len({params["x"] for params in parameters(whole)}) == 12, "no draw is repeated"


def test_optuna_learns_of_failures(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    run_batches(study, size=2, count=1, fails=True)
    for each in (study, make_study(tmp_path)):
        assert [trial.state.name for trial in each.study.trials] == ["FAIL", "FAIL"]


def test_the_seed_decides_the_search(tmp_path: Path) -> None:
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        options = sampler_options("tpe")
        options.seed = seed
        study = make_study(tmp_path / name)
        study.options.sampler = options
        run_batches(study, size=1, count=3)
        drawn.append(parameters(study))
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_more_trials_can_be_asked_for_later(tmp_path: Path) -> None:
    run_batches(make_study(tmp_path, n_trials=4), size=2)
    more = make_study(tmp_path, n_trials=6)
    first = parameters(more)
    assert Counter(states(more)) == {"COMPLETE": 3, "FAIL": 1}
    run_batches(more, size=2)
    assert len(first) == 4
    assert len(more.trials()) == 6
    assert parameters(more)[:4] == first


def test_fewer_trials_can_be_asked_for_later(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    run_batches(study, size=2, count=1)
    study.study.set_user_attr("asked", 4)  # killed before it added them
    fewer = make_study(tmp_path, n_trials=2)
    run_batches(fewer, size=2)
    assert len(fewer.jobs()) == 2


def test_once_a_search_is_over_only_what_failed_is_tried_again(tmp_path: Path) -> None:
    run_batches(make_study(tmp_path, n_trials=3), size=3)
    run_batches(make_study(tmp_path, n_trials=5), size=2, fails=True)
    over = make_study(tmp_path, n_trials=5)
    assert [trial.user_attrs["job"] for trial in over.waiting()] == [1, 3, 4]
    failed = over.trials()
    run_batches(over, size=5)
    assert states(over)[3] == "COMPLETE"
    assert parameters(over) == [trial.params for trial in failed[:5]]
    assert [trial.state.name for trial in over.trials()[:5]].count("FAIL") == 3, "it is history"
    assert len(make_study(tmp_path, n_trials=5).jobs()) == 5


def test_trials_launched_together_have_consecutive_numbers(tmp_path: Path) -> None:
    study = make_study(tmp_path, n_trials=6)
    batch = study.next_batch(6)
    study.tell(batch[2:3], [JobReturn(status=JobStatus.COMPLETED, _return_value=1.0)])
    assert [trial.number for trial in study.next_batch(6)] == [0, 1]
    study.tell(batch[:2], [JobReturn(status=JobStatus.COMPLETED, _return_value=1.0)] * 2)
    assert [trial.number for trial in study.next_batch(2)] == [3, 4]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "much", [1.0, 2.0]])
def test_a_trial_that_returns_no_finite_number_failed(tmp_path: Path, value: Any) -> None:
    study = make_study(tmp_path)
    batch = study.next_batch(1)
    study.tell(batch, [JobReturn(status=JobStatus.COMPLETED, _return_value=value)])
    assert states(study) == ["FAIL"]
    assert "not a finite number" in study.trials()[0].user_attrs["reason"]


def test_too_many_failures_end_a_search_that_asks_for_it(tmp_path: Path) -> None:
    study = make_study(tmp_path, max_failure_rate=0.5)
    with pytest.raises(UserError, match=r"4 of 4 trials failed.*max_failure_rate=0.5"):
        run_batches(study, size=4, fails=True)
    assert states(make_study(tmp_path)) == ["FAIL"] * 4


def test_a_job_without_result_yet_is_not_taken_for_a_failed_one(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    batch = study.next_batch(1)
    with pytest.raises(UserError, match="must wait"):
        study.tell(batch, [JobReturn()])
    assert states(study) == ["RUNNING"]


@pytest.mark.parametrize(
    ("arguments", "options", "line"),
    [
        (["x=interval(0.0,2.0)"], {}, "space.x"),
        (["x=interval(0.0,1.0)", "alg=sac"], {}, "fixed.alg"),
        (["x=interval(0.0,1.0)"], {"direction": "maximize"}, "direction: minimize -> maximize"),
        (["x=interval(0.0,1.0)"], {"sampler": "random"}, "RandomSampler"),
    ],
)
def test_another_search_in_the_directory_is_refused_with_the_difference(
    tmp_path: Path, arguments: Sequence[str], options: dict[str, Any], line: str
) -> None:
    run_batches(make_study(tmp_path, "x=interval(0.0,1.0)"), size=1, count=1)
    with pytest.raises(UserError, match=r"holds another search") as error:
        make_study(tmp_path, *arguments, **options)
    assert line in str(error.value)


def test_a_mistake_found_before_any_trial_is_over_can_be_mended(tmp_path: Path) -> None:
    make_study(tmp_path, "xx=interval(0.0,1.0)").next_batch(2)
    study = make_study(tmp_path, "x=interval(0.0,1.0)")
    assert study.trials() == []
    run_batches(study, size=3)
    assert load_study(tmp_path / "study" / "journal.log").best_value == study.study.best_value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_trials": 0}, "hydra.sweeper.n_trials must be an integer of at least 1, got 0"),
        ({"n_jobs": 0}, "n_jobs must be an integer of at least 1 or null, got 0"),
        ({"max_failure_rate": 1.5}, r"max_failure_rate must be a number in \[0, 1\], got 1.5"),
        ({"direction": "up"}, "direction must be maximize or minimize, got up"),
        ({"sampler": None}, "hydra/sweeper=grid"),
        ({"sampler": {"seed": -1}}, "hydra.sweeper.sampler: .*non-negative"),
        ({"sampler": {"n_startup": 3}}, "hydra.sweeper.sampler: .*'n_startup'"),
        ({"sampler": {"group": True, "multivariate": False}}, "hydra.sweeper.sampler: .*group"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    if isinstance(options.get("sampler"), dict):
        tpe = OmegaConf.to_container(sampler_options("tpe"))
        assert isinstance(tpe, dict)
        options = {"sampler": OmegaConf.create({**tpe, **options["sampler"]})}
    with pytest.raises(UserError, match=message):
        make_study(tmp_path, **options)


def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "research.launchers.search")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'research-lightning\[optuna\]'"):
        OptunaSweeper(sampler=None).sweep([])


def test_a_value_reaches_the_job_as_it_was_typed(tmp_path: Path) -> None:
    study = make_study(tmp_path, "z=null,null", "dims=[64,64],[64,64]", "note='a, b'", "+k=null")
    assert sorted(study.next_batch(1)[0].user_attrs["overrides"]) == [
        "+k=null",
        "dims=[64,64]",
        "note='a, b'",
        "z=null",
    ]


def test_the_trainer_says_whether_more_is_better() -> None:
    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
        for mode in ("max", "min"):
            overrides = ["hydra/sweeper=optuna", f"trainer.score.mode={mode}"]
            cfg = compose("config", overrides, return_hydra_config=True)
            assert cfg.hydra.sweeper.direction == mode


def test_the_stock_plugin_of_an_old_installation_does_not_count() -> None:
    for group, name in (("hydra/sweeper", "optuna"), ("hydra/sweeper/sampler", "tpe")):
        ConfigStore.instance().store(
            group=group, name=name, node={"_target_": "stock"}, provider="stock", **REPLACE
        )
    assert sampler_options("tpe")._target_ == "optuna.samplers.TPESampler"


def test_hydra_starts_without_optuna() -> None:
    program = "import sys; from hydra.core.plugins import Plugins; Plugins.instance(); "
    program += "sys.exit('optuna' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_params_of_a_file_are_searched(tmp_path: Path) -> None:
    study = make_study(tmp_path, "y=1", params={"x": "interval(0,1)", "z": "3"})
    assert study.space == {"x": FloatDistribution(0.0, 1.0)}
    assert study.fixed == {"z": "3", "y": "1"}


SMALL = {
    "tpe": {"n_startup_trials": 2},
    "cmaes": {"popsize": 4},
    "nsgaii": {"population_size": 2},
}


def finish(folder: Path, sampler: Any) -> tuple[Study, list[int]]:
    """Type the command until all is done; also which jobs ran, of which every other fails once."""
    ran = []
    while True:
        study = make_study(folder, "x=interval(0,1)", "z=a,b", sampler=sampler, n_trials=5)
        if states(study) == ["COMPLETE"] * 5:
            study.conclude()
            return study, ran
        while batch := study.next_batch(2):
            tries = Counter(trial.user_attrs["job"] for trial in study.trials())
            jobs = [trial.user_attrs["job"] for trial in batch]
            fail = [job % 2 == 1 and tries[job] == 1 for job in jobs]
            study.tell(batch, [quick_answer(*pair) for pair in zip(batch, fail, strict=True)])
            ran += jobs


def quick_answer(trial: FrozenTrial, fails: bool) -> JobReturn:
    status = JobStatus.FAILED if fails else JobStatus.COMPLETED
    value = ValueError("once") if fails else (trial.params["x"] - 0.3) ** 2
    return JobReturn(status=status, _return_value=value)


@pytest.mark.parametrize("sampler", SMALL)
def test_a_search_goes_on_from_any_byte_of_its_journal(tmp_path: Path, sampler: str) -> None:
    options = sampler_options(sampler)
    options.update(SMALL[sampler])
    whole, _ = finish(tmp_path / "whole", options)
    content = (tmp_path / "whole" / "study" / "journal.log").read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    within = [end - (1 if i % 2 else 40) for i, end in enumerate(ends)]
    for size in (0, *ends, *within):
        folder = tmp_path / str(size)
        (folder / "study").mkdir(parents=True)
        journal = folder / "study" / "journal.log"
        journal.write_bytes(content[:size])
        before = load_study(journal).trials if size > ends[0] else []
        done = {t.user_attrs["job"] for t in before if t.state.name == "COMPLETE"}
        failed = {t.user_attrs["job"] for t in before if "reason" in t.user_attrs}
        resumed, ran = finish(folder, options)
        assert parameters(resumed) == parameters(whole), size
        assert [t.values for t in resumed.jobs().values()] == [
            t.values for t in whole.jobs().values()
        ]
        assert not done & {*ran}, "no trial completes twice"
        assert all(ran.count(job) <= 1 for job in failed), "a failure counts"
        results = OmegaConf.load(folder / "optimization_results.yaml")
        assert results.best_value == whole.study.best_value


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    run_batches(make_study(tmp_path), size=1, count=1)
    journal = tmp_path / "study" / "journal.log"
    lines = journal.read_text().splitlines(keepends=True)
    for line in ("{", "{}\n", "5\n", '{"op_code": 99}\n'):
        journal.write_text("".join([*lines[:2], line, *lines[3:]]))
        with pytest.raises(UserError, match=r"journal.log does not hold a search"):
            make_study(tmp_path)


def test_a_lock_that_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    make_study(tmp_path).next_batch(1)
    (tmp_path / "study" / "journal.log.lock").symlink_to("nowhere")
    assert len(make_study(tmp_path).next_batch(1)) == 1


def test_others_may_write_to_the_journal_meanwhile(tmp_path: Path) -> None:
    study = make_study(tmp_path, sampler="random")
    other = load_study(tmp_path / "study" / "journal.log")
    other.enqueue_trial({"x": 0.5})
    stop, notes = threading.Event(), []

    def take_notes() -> None:
        while not stop.is_set():
            notes.append(str(len(notes)))
            other.set_user_attr(notes[-1], "x" * 10_000)

    thread = threading.Thread(target=take_notes)
    thread.start()
    run_batches(study, size=4)
    stop.set()
    thread.join()
    seen = load_study(tmp_path / "study" / "journal.log")
    assert {*notes} < {*seen.user_attrs}
    assert sum(trial.state.is_finished() for trial in seen.trials) == 12


def test_what_a_sampler_notes_for_itself_is_not_in_the_journal(tmp_path: Path) -> None:
    """CMA-ES unpickles its notes, which a file must not get it to do."""
    options = sampler_options("cmaes")
    options.update(SMALL["cmaes"])
    study, _ = finish(tmp_path, options)
    assert any(trial.system_attrs for trial in study.memory.trials)
    assert not any(trial.system_attrs for trial in study.study.trials)


def test_the_journal_counts_where_the_sampler_would_choose_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = sampler_options("random")
    before = make_study(tmp_path, "x=interval(0,1)", sampler=options, n_trials=6)
    batch = before.next_batch(2)
    before.tell(batch, [quick_answer(trial, False) for trial in batch])
    before.next_batch(2)
    other = optuna.samplers.RandomSampler(seed=77)
    monkeypatch.setattr("research.launchers.search.make_sampler", lambda *_: other)
    after = make_study(tmp_path, "x=interval(0,1)", sampler=options, n_trials=6)
    assert parameters(after) == parameters(before)
    assert [trial.params for trial in after.memory.trials] == parameters(before)
    assert [trial.state.name for trial in after.memory.trials] == states(before)
    assert after.next_batch(2)[0].user_attrs["job"] == 2
