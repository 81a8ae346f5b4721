"""NVIDIA's Multi-Process Service (MPS): jobs that share a GPU run on it at the same time."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from research.errors import UserError

PROGRAM = "nvidia-cuda-mps-control"

# It ignores signals, in a session of its own, so that Ctrl-C does not end it before the daemon.
START = f"""
trap : HUP INT TERM PIPE
mkdir "$1/pipe" "$1/log"
answers() {{ echo get_server_list | timeout 10 {PROGRAM} >/dev/null 2>>"$1/start.log"; }}
if timeout 60 {PROGRAM} -d </dev/null >"$1/start.log" 2>&1; then
  tries=0
  until answers "$1" || [ "$tries" -ge 10 ]; do tries=$((tries + 1)); sleep 0.2; done
  [ "$tries" -lt 10 ] && echo ready
fi
exec >/dev/null
cat
"""
"""Starts the daemon, prints ``ready`` if it answers, and waits until its standard input closes."""

QUIT = f"""
export CUDA_MPS_PIPE_DIRECTORY="$1/pipe" CUDA_MPS_LOG_DIRECTORY="$1/log"
pid=$(cat "$1/pipe/{PROGRAM}.pid")
lives() {{ [ -n "$pid" ] && grep -aqs {PROGRAM} "/proc/$pid/cmdline"; }}
[ ! -d "$1/pipe" ] || printf 'quit -t 5\\nquit\\n' | timeout 20 {PROGRAM}
tries=0
while lives && [ "$tries" -lt 10 ]; do tries=$((tries + 1)); sleep 0.1; done
if lives; then kill -KILL "-$pid" || kill -KILL "$pid"; fi
rm -rf -- "$1"
"""
"""Asks the daemon to end, its servers within 5 s; kills it if it does not; removes its folder."""


@contextmanager
def mps_daemon(gpus: Sequence[str] | None = None) -> Iterator[dict[str, str]]:
    """Run the daemon in a private directory; yields the variables by which jobs find it.

    It ends with the ``with`` block, or when this process dies, whatever kills it: a small shell
    process starts the daemon, waits until the pipe from here closes, and ends the daemon.

    Args:
        gpus: the UUIDs of the GPUs to serve, by which the jobs must name them, too. With None or
            indices, it serves all GPUs: a daemon that sees only some of them renumbers them, so
            that an index would mean one GPU to the daemon and another to a job.

    Raises:
        UserError: the program is missing, does not start, or would serve two MIG devices.

    """
    if shutil.which(PROGRAM) is None:
        raise UserError(
            f"hydra.launcher.mps=true needs {PROGRAM}, which comes with NVIDIA's driver and is not"
            " on PATH; try hydra.launcher.mps=false"
        )
    environment = daemon_environment(gpus or ())
    folder = private_folder()
    shell = ["sh", "-c", START + QUIT, "sh", str(folder)]
    with subprocess.Popen(
        shell,
        env=environment | mps_variables(folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as guard:
        assert guard.stdin is not None
        assert guard.stdout is not None
        try:
            if guard.stdout.readline() != b"ready\n":
                raise UserError(f"hydra.launcher.mps=true: {PROGRAM} -d {complaint(folder)}")
            yield mps_variables(folder)
        finally:
            guard.stdin.close()
            guard.wait()
            if folder.exists():  # somebody killed the shell
                subprocess.run(quit_command(folder), capture_output=True)


def quit_command(folder: Path) -> list[str]:
    """The command that ends the daemon of ``folder`` and removes the folder.

    It needs no environment variable but PATH, and may run twice.
    """
    return ["sh", "-c", QUIT, "sh", str(folder)]


def mps_variables(folder: Path) -> dict[str, str]:
    """The environment variables by which the daemon and the jobs find each other in ``folder``."""
    return {
        "CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe"),
        "CUDA_MPS_LOG_DIRECTORY": str(folder / "log"),
    }


def daemon_environment(gpus: Sequence[str]) -> dict[str, str]:
    """This process's environment, with the GPUs that the daemon may see."""
    environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if len([name for name in gpus if name.startswith("MIG-")]) > 1:
        raise UserError(
            f"hydra.launcher.mps=true serves one MIG device, got {', '.join(gpus)}; name one by"
            " hydra.launcher.gpus, or try hydra.launcher.mps=false"
        )
    if gpus and all(name.startswith(("GPU-", "MIG-")) for name in gpus):
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return environment


def private_folder() -> Path:
    """A new directory, not in a long TMPDIR: the path of a socket may have at most 107 bytes."""
    parent = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="mps-", dir=parent if len(parent) < 60 else "/tmp"))


def complaint(folder: Path) -> str:
    """Why the daemon did not start: the last line of its log."""
    try:
        lines = (folder / "start.log").read_text(errors="replace").split("\n")
    except OSError:
        lines = []
    said = [line.strip() for line in lines if line.strip()]
    return f"failed: {said[-1]}" if said else "does not answer"
