"""The private SLURM cluster does what the launcher's tests rely on, and leaves nothing behind."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launchers.cluster import Cluster, unavailable, wait_until

ROOT = Path(__file__).parents[3]


def processes_of(folder: str) -> list[str]:
    """The command lines of the processes that a cluster's configuration was handed to."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"SLURM_CONF={folder}/slurm.conf" in path.read_text(errors="replace"):
                found.append((path.parent / "cmdline").read_text())
        except (OSError, ProcessLookupError):
            continue
    return found


def test_two_nodes_wait_for_jobs(cluster: Cluster) -> None:
    assert sorted(cluster.run("sinfo", "-h", "-N", "-p", "main", "-o%N %T %G").splitlines()) == [
        "n1 idle gpu:2",
        "n2 idle gpu:2",
    ]


def test_jobs_on_a_node_see_different_gpus(cluster: Cluster, tmp_path: Path) -> None:
    script = f"echo $CUDA_VISIBLE_DEVICES >>{tmp_path}/seen; sleep 1"
    jobs = [cluster.submit(script, "--gres=gpu:1", "--nodelist=n1") for _ in range(2)]
    for job in jobs:
        cluster.wait_for(job, "COMPLETED")
    assert sorted((tmp_path / "seen").read_text().split()) == ["0", "1"]


def test_a_job_that_fails_shows_it(cluster: Cluster) -> None:
    job = cluster.submit("exit 3")
    cluster.wait_for(job, "FAILED")
    assert cluster.job(job)["ExitCode"] == "3:0"


def test_a_requeued_job_starts_again(cluster: Cluster, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    starts.touch()
    job = cluster.submit(f"echo ${{SLURM_RESTART_COUNT:-0}} >>{starts}; sleep 60")
    wait_until(lambda: starts.read_text() == "0\n")
    cluster.run("scontrol", "requeue", job)
    wait_until(lambda: starts.read_text() == "0\n1\n")
    cluster.run("scancel", job)
    cluster.wait_for(job, "CANCELLED")


def test_an_urgent_job_takes_the_place_of_another_which_starts_again(cluster: Cluster) -> None:
    job = cluster.submit("sleep 60", "--nodes=2", "--exclusive")
    cluster.wait_for(job, "RUNNING")
    urgent = cluster.submit("sleep 1", "--partition=urgent")
    cluster.wait_for(urgent, "COMPLETED")
    cluster.wait_for(job, "RUNNING")
    assert cluster.job(job)["Restarts"] == "1"
    cluster.run("scancel", job)
    cluster.wait_for(job, "CANCELLED")


@pytest.mark.slow
def test_a_step_is_told_before_its_time_is_over(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "step.sh").write_text('trap "exit 7" USR2; sleep 90 & wait')
    job = cluster.submit(f"srun bash {tmp_path}/step.sh", "--time=1", "--signal=USR2@50")
    cluster.wait_for(job, "FAILED", timeout_s=90)
    assert cluster.job(job)["ExitCode"] == "7:0"


def test_clusters_stand_beside_each_other(cluster: Cluster) -> None:
    with Cluster(ClusterName="second") as other:
        other.wait_for(other.submit("true", "--job-name=there"), "COMPLETED")
        assert "there" not in cluster.run("squeue", "--states=all", "--format=%j")


def test_a_cluster_that_cannot_start_says_why(cluster: Cluster) -> None:
    with pytest.raises(RuntimeError, match="select/absent"), Cluster(SelectType="select/absent"):
        pass


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_when_the_tests_are_stopped(number: signal.Signals) -> None:
    program = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from tests.launchers.cluster import Cluster
with Cluster() as cluster:
    cluster.wait_for(cluster.submit("setsid sleep 600 & sleep 600"), "RUNNING")
    print(cluster.folder, flush=True)
    time.sleep(600)
"""
    tests = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert tests.stdout is not None
    folder = tests.stdout.readline().strip()
    wait_until(lambda: any("sleep" in line for line in processes_of(folder)))
    tests.send_signal(number)
    tests.wait()
    wait_until(lambda: not processes_of(folder) and not Path(folder).exists(), timeout_s=60)
