"""The CPUs a launcher may use are those this process may use."""

import os
from pathlib import Path
from typing import Any

import pytest

from research.errors import UserError
from research.machine.cpus import cpu_quota, usable_cpus
from tests.machine.machines import Machine


@pytest.mark.usefixtures("eight_cpus")
def test_threads_of_a_core_and_cores_of_a_socket_are_neighbours(here: Machine) -> None:
    for cpu in range(8):  # two sockets, in turns; CPUs 4 to 7 are the second threads of 0 to 3
        folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
        here.write(f"{folder}/physical_package_id", f"{cpu % 2}\n")
        here.write(f"{folder}/core_id", f"{cpu % 4 // 2}\n")
    assert usable_cpus("auto", root=here.root) == [0, 4, 2, 6, 1, 5, 3, 7]
    assert usable_cpus(3, root=here.root) == [0, 4, 2]
    assert usable_cpus([7, 0], root=here.root) == [7, 0]


@pytest.mark.usefixtures("eight_cpus")
def test_cpus_without_the_kernels_files_keep_their_order(here: Machine) -> None:
    assert usable_cpus("auto", root=here.root) == list(range(8))


def test_cpus_of_this_machine_are_those_of_its_affinity() -> None:
    assert set(usable_cpus("auto")) <= os.sched_getaffinity(0)
    assert usable_cpus([min(os.sched_getaffinity(0))]) == [min(os.sched_getaffinity(0))]


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("auot", "got 'auot'; did you mean 'auto'"),
        (0, "=0: allowed is a number from 1 to 8"),
        (9, "=9: allowed is a number from 1 to 8"),
        ([0, 8], r"=\[0, 8\]: .* named once and be one of those this process may use: 0, 1, 2"),
        ([1, 1], "must be named once"),
        ([], "must be named once"),
    ],
)
def test_cpus_that_cannot_be_had_are_refused(here: Machine, choice: Any, said: str) -> None:
    with pytest.raises(UserError, match=rf"^hydra\.launcher\.cpus.*{said}"):
        usable_cpus(choice, root=here.root)


V1 = "31 23 0:28 {source} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "41 31 0:38 {source} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(
    ("mount", "source", "group", "files", "quota"),
    [
        (V2, "/", "0::/a/b", {"a/b/cpu.max": "max 100000"}, None),
        (V2, "/", "0::/a/b", {"a/b/cpu.max": "350000 100000"}, 3.5),
        (V2, "/", "0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2),
        (V2, "/", "0::/a/b", {"cpu.max": "300000 100000", "a/cpu.max": "400000 100000"}, 3),
        (V2, "/", "0::/", {"cpu.max": "50000 100000"}, 0.5),
        (V2, "/", "0::/../c", {"cpu.max": "200000 100000", "c/cpu.max": "100000 100000"}, 2),
        (V2, "/pod/c1", "0::/pod/c1", {"cpu.max": "200000 100000"}, 2),
        (V1, "/", "3:cpuacct,cpu:/a", {"a/cpu.cfs_quota_us": "-1"}, None),
        (V1, "/", "3:cpuacct,cpu:/a", {"a/cpu.cfs_quota_us": "150000"}, 1.5),
        (V1, "/docker/c1", "3:cpu,cpuacct:/docker/c1", {"cpu.cfs_quota_us": "400000"}, 4),
        (V1, "/", "3:cpuset:/a", {"a/cpu.cfs_quota_us": "150000"}, None),
    ],
)
def test_quota_is_the_tightest_of_the_groups_around_this_process(
    here: Machine, mount: str, source: str, group: str, files: dict[str, str], quota: float | None
) -> None:
    here.write(
        "proc/self/mountinfo", mount.format(source=source) + "22 27 0:21 / /proc rw - proc p rw"
    )
    here.write("proc/self/cgroup", group + "\n")
    for name, text in files.items():
        folder = "sys/fs/cgroup" + ("/cpu,cpuacct" if mount == V1 else "")
        here.write(f"{folder}/{name}", text + "\n")
        here.write(f"{folder}/{Path(name).parent}/cpu.cfs_period_us", "100000\n")
    assert cpu_quota(root=here.root) == quota


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(("quota", "cpus"), [(250000, 2), (50000, 1), (9900000, 8)])
def test_quota_caps_the_cpus_but_not_a_list(here: Machine, quota: int, cpus: int) -> None:
    here.write("proc/self/mountinfo", V2.format(source="/"))
    here.write("proc/self/cgroup", "0::/\n")
    here.write("sys/fs/cgroup/cpu.max", f"{quota} 100000\n")
    assert usable_cpus("auto", root=here.root) == list(range(cpus))
    assert usable_cpus([6, 7], root=here.root) == [6, 7]
