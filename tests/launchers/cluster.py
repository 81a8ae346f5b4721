"""A private SLURM cluster of two nodes with two pretend GPUs each, all on this machine."""

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

GUARD = Path(__file__).with_name("cluster_guard.py")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "squeue", "srun")
PACKAGES = "munge slurm-client slurmctld slurmd"
PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
NODES = ("n1", "n2")

SETTINGS: Mapping[str, str] = {
    "ClusterName": "tests",
    "SlurmUser": "root",
    "ReturnToService": "2",
    "GresTypes": "gpu",
    "MpiDefault": "none",
    "ProctrackType": "proctrack/pgid",
    "TaskPlugin": "task/none",
    "JobAcctGatherType": "jobacct_gather/none",
    "AccountingStorageType": "accounting_storage/none",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_Core",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "SchedulerParameters": "sched_interval=1,batch_sched_delay=0,bf_interval=1",
    "SlurmdParameters": "config_overrides",  # this machine may have less than the nodes claim
    "KillWait": "5",
}
"""What ``slurm.conf`` says, the addresses, the nodes and the partitions aside."""


def unavailable() -> str | None:
    """Why no cluster can run here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        return f"no {', '.join(missing)} here (Debian: apt-get install {PACKAGES})"
    if os.geteuid() != 0:
        return "a private SLURM cluster needs root"
    return None


class Cluster:
    """Nodes n1 and n2, 2 CPUs and 2 GPUs each; partitions ``main`` and, preempting it, ``urgent``.

    Args:
        settings: of ``slurm.conf``, instead of or besides those in ``SETTINGS``.

    """

    def __init__(self, **settings: str) -> None:
        self.settings = {**SETTINGS, **settings}

    def __enter__(self) -> "Cluster":
        log = ""
        for _ in range(3):  # another program may take a port that was free a moment ago
            self.start()
            if self.is_up():
                return self
            log = self.log()
            self.stop()
        raise RuntimeError(f"SLURM did not start:\n{log}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the daemons in a new folder."""
        # not pytest's folder: the path of a socket is limited to 107 bytes
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        write_config(self.folder, self.settings)
        outer = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        self.environ = {**outer, "PATH": PATH, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self.guard = subprocess.Popen(
            [sys.executable, "-I", str(GUARD), str(self.folder), str(os.getpid()), *NODES],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the tests
        )

    def is_up(self) -> bool:
        """Wait until all nodes are idle; False if that does not happen."""
        deadline = time.monotonic() + 30
        while self.guard.poll() is None and time.monotonic() < deadline:
            if self.node_states() == ["idle"] * len(NODES):
                return True
            time.sleep(0.1)
        return False

    def node_states(self) -> list[str]:
        """The state of each node, such as ``idle``; empty while the controller is not there."""
        with suppress(subprocess.SubprocessError):  # sinfo asks for 9 s before it gives up
            command = ("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T")
            return self.run(*command, timeout_s=1.0).split()
        return []

    def log(self) -> str:
        """The last lines of every daemon's log."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in logs)

    def stop(self) -> None:
        """Kill the daemons and all jobs, and remove the folder."""
        self.guard.terminate()
        self.guard.wait()
        shutil.rmtree(self.folder)

    def run(self, *command: str, timeout_s: float = 60.0) -> str:
        """What a command prints; raises ``CalledProcessError`` if it fails."""
        return subprocess.run(
            command,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=timeout_s,
        ).stdout

    def submit(self, script: str, *options: str) -> str:
        """Queue shell lines with options of ``sbatch``; returns the job's id."""
        wrapped = ("--parsable", "--output=/dev/null", *options, f"--wrap={script}")
        return self.run("sbatch", *wrapped).strip()

    def job(self, job_id: str) -> dict[str, str]:
        """What SLURM tells of a job: ``JobState``, ``Reason``, ``Restarts``, ``ExitCode`` ..."""
        line = self.run("scontrol", "show", "job", "--oneliner", job_id).splitlines()[0]
        return dict(field.split("=", 1) for field in line.split() if "=" in field)

    def wait_for(self, job_id: str, *states: str, timeout_s: float = 60.0) -> None:
        """Wait until a job is in one of the states."""
        wait_until(
            lambda: self.job(job_id)["JobState"] in states,
            timeout_s=timeout_s,
            told=lambda: f"not {' or '.join(states)}: {self.job(job_id)}",
        )


def write_config(folder: Path, settings: Mapping[str, str]) -> None:
    """Write ``slurm.conf``, ``gres.conf`` and the key of munged."""
    host = socket.gethostname().partition(".")[0]
    port, *node_ports = free_ports(1 + len(NODES))
    nodes = ",".join(NODES)
    lines = [
        *(f"{key}={value}" for key, value in settings.items()),
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={port}",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        f"StateSaveLocation={folder}",
        f"SlurmdPidFile={folder}/%n.pid",
        f"SlurmdLogFile={folder}/%n.log",
        f"SlurmdSpoolDir={folder}/%n",
        # cred_expire: how long a requeued job waits; less than 5 s counts as 120 s
        f"AuthInfo=socket={folder}/munge.socket,cred_expire=5",
        *(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port}"
            " CPUs=2 RealMemory=4000 Gres=gpu:2"
            for name, node_port in zip(NODES, node_ports, strict=True)
        ),
        f"PartitionName=main Nodes={nodes} Default=YES PriorityTier=1",
        f"PartitionName=urgent Nodes={nodes} PriorityTier=10",
    ]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    gpus = [f"NodeName={nodes} Name=gpu File={file}\n" for file in ("/dev/null", "/dev/zero")]
    (folder / "gres.conf").write_text("".join(gpus))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, below those that the kernel gives to clients."""
    ports: set[int] = set()
    while len(ports) < count:
        port = random.SystemRandom().randrange(10000, 30000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                ports.add(port)
    return sorted(ports)


def wait_until(
    holds: Callable[[], bool],
    *,
    timeout_s: float = 60.0,
    told: Callable[[], str] = lambda: "it did not happen",
) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it does not in time; ``told`` says what is so instead.

    """
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout_s:g} s: {told()}")
        time.sleep(0.1)
