"""A run needs nobody who reads what it prints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from research.console import Printed
from tests.test_app import ROOT, SMALL


@pytest.mark.parametrize(
    ("streams", "said"),
    [
        ("2>&-", b""),
        (">&- 2>&- <&-", b""),
        ("| head -1", b""),
        ("2>&1 | head -1", b""),
        (
            "alg=sac network.log_std_bounds=[2,-5] 2>&1 >&- | cat >&2",
            b"train.py: network: log_std_bounds must rise, got [2, -5]\n",
        ),
    ],
)
def test_a_stream_without_reader_ends_no_run_and_is_not_talked_of(
    tmp_path: Path, streams: str, said: bytes
) -> None:
    command = [sys.executable, "train.py", f"hydra.run.dir={tmp_path}", "trainer.total_steps=60"]
    line = f"{' '.join([*command, *SMALL])} {streams}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True)
    assert done.stderr == said
    assert done.returncode == (1 if said else 0)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == ("failed" if said else "completed")
    assert ("Traceback" if said else "step 60/60") in (tmp_path / "train.log").read_text()


def test_a_part_may_print_into_a_pipe_that_nobody_reads() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        printed = Printed(pipe)
        for _ in range(3):
            print("x" * 2**20, file=printed, flush=True)  # type: ignore[call-overload]
        assert printed.writable()
