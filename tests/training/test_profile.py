"""Profiles: a table and a trace of what takes the time, which change no number."""

import gzip
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType  # type: ignore[reportPrivateImportUsage]

from research.training.profile import tabulate
from tests.training.test_trainer import logged, make_online, make_supervised, off_policy


def shares(folder: Path) -> dict[str, float]:
    """The share of the time, in percent, by phase."""
    text = (folder / "profile" / "phases.md").read_text()
    return {
        name: float(share) for name, share in re.findall(r"^\| (\w+) \| ([\d.]+) %", text, re.M)
    }


def test_a_profile_shows_the_phases_and_changes_no_number(tmp_path: Path) -> None:
    for name, profile in (("with", True), ("without", False)):
        options: dict[str, Any] = {"total_steps": 270, "eval_every": 100, "log_every": 10}
        make_online(tmp_path / name, pace=off_policy(), profile=profile, **options).train()
    assert logged(tmp_path / "with") == logged(tmp_path / "without")
    assert not (tmp_path / "without" / "profile").exists()
    found = shares(tmp_path / "with")
    phases = {"environment", "act", "sample", "update", "evaluate", "checkpoint", "log", "other"}
    assert set(found) == phases
    assert all(share > 0 for share in found.values())
    assert sum(found.values()) == pytest.approx(100, abs=1)
    text = (tmp_path / "with" / "profile" / "phases.md").read_text()
    assert text.startswith("# 200 steps and 200 updates, from step 24\n")
    assert "aten::" in text


def test_the_trace_names_phases_and_operators(tmp_path: Path) -> None:
    make_supervised(tmp_path, total_steps=300, profile=True, eval_every=300).train()
    with gzip.open(tmp_path / "profile" / "trace.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("update") == 200
    assert "aten::linear" in names
    assert set(shares(tmp_path)) >= {"sample", "update", "other"}


@pytest.mark.parametrize(
    ("total_steps", "told"), [(20, "no profile: 20 updates were made"), (50, "shows where")]
)
def test_a_run_too_short_writes_what_it_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, total_steps: int, told: str
) -> None:
    with caplog.at_level(logging.INFO):
        make_supervised(tmp_path, total_steps=total_steps, profile=True).train()
    assert told in caplog.text
    assert (tmp_path / "profile" / "phases.md").exists() == (total_steps > 21)


def event(name: str, parent: Any, total: float, own: float) -> Any:
    return SimpleNamespace(
        name=name,
        cpu_parent=parent,
        cpu_time_total=total,
        self_cpu_time_total=own,
        device_type=DeviceType.CPU,
    )


def test_time_is_counted_once_to_the_innermost_phase() -> None:
    step = event("environment", None, total=1000.0, own=300.0)
    act = event("act", step, total=700.0, own=200.0)
    read = event("aten::item", act, total=500.0, own=100.0)
    wait = event("cudaStreamSynchronize", read, total=400.0, own=400.0)
    kernel = SimpleNamespace(name="act", device_type=DeviceType.CUDA)
    update = event("update", None, total=500.0, own=0.0)
    events = [step, act, read, wait, kernel, update, update]
    lines = list(tabulate(events, {"environment", "act", "update", "log"}, seconds=0.004))
    assert lines[2:] == [
        "| update | 25.0 % | 0.0 % | 0.0 % | 2 | 500 |",
        "| act | 17.5 % | 5.0 % | 10.0 % | 1 | 700 |",
        "| environment | 7.5 % | 7.5 % | 0.0 % | 1 | 300 |",
        "| other | 50.0 % | | | | |",
    ]
