"""device.cgroup: recorded files of both versions, in a container and on a host."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.checks.device_cgroup import folders, number, numbers, paths_of, ratio
from probe.model import Facts, Finding, Status
from tests.checks.asking import ask

GIB = 1 << 30
TWO = Facts(nodes=("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"), in_container=True)
ROOT = "/sys/fs/cgroup"

V2 = {
    "/proc/self/cgroup": "0::/\n",
    f"{ROOT}/cgroup.controllers": "cpuset cpu io memory pids\n",
    f"{ROOT}/memory.max": f"{64 * GIB}\n",
    f"{ROOT}/memory.current": f"{60 * GIB}\n",
    f"{ROOT}/memory.stat": f"anon {10 * GIB}\nfile {50 * GIB}\ninactive_file {40 * GIB}\n",
    f"{ROOT}/memory.events": "low 0\nhigh 0\nmax 12\noom 0\noom_kill 0\n",
    f"{ROOT}/cpu.max": "1600000 100000\n",
    f"{ROOT}/pids.max": "4096\n",
    f"{ROOT}/pids.current": "100\n",
}
V1 = {
    "/proc/self/cgroup": "12:pids:/docker/0123\n5:cpu,cpuacct:/docker/0123\n4:memory:/docker/0123\n0::/docker/0123\n",
    f"{ROOT}/memory/memory.limit_in_bytes": f"{64 * GIB}\n",
    f"{ROOT}/memory/memory.usage_in_bytes": f"{60 * GIB}\n",
    f"{ROOT}/memory/memory.stat": f"cache 7\ntotal_inactive_file {40 * GIB}\n",
    f"{ROOT}/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
    f"{ROOT}/cpu,cpuacct/cpu.cfs_quota_us": "1600000\n",
    f"{ROOT}/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    f"{ROOT}/pids/pids.max": "4096\n",
    f"{ROOT}/pids/pids.current": "100\n",
}


def cgroup(files: Mapping[str, str], facts: Facts = TWO, **thresholds: float) -> Finding:
    return ask("device.cgroup", files=files, facts=facts, thresholds=thresholds)


@pytest.mark.parametrize("files", [V1, V2], ids=["v1", "v2"])
def test_both_versions_say_the_same(files: Mapping[str, str]) -> None:
    """In a container the limits lie at the mount itself, also where the path of version 1 is the host's."""
    finding = cgroup(files)
    assert (Status.PASS, "20.0 of 64.0 GiB memory used, 16 CPUs, 100 of 4096 processes") == (
        finding.status,
        finding.summary,
    )
    expected = {"memory_used_bytes": 20 * GIB, "memory_limit_bytes": 64 * GIB, "oom_kills": 0, "cpus": 16.0}
    assert expected | {"pids": 100, "pids_limit": 4096} == finding.data


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"memory.current": f"{99 * GIB}"}, "memory_high", "59.0 of 64.0 GiB memory used, over 90 %"),
        ({"memory.events": "oom_kill 3"}, "oom_kill", "3 processes killed for memory since this cgroup began"),
        ({"pids.current": "3500"}, "pids_high", "3500 of 4096 processes and threads, over 80 %"),
        ({"cpu.max": "150000 100000"}, "cpus_few", "a quota of 1.5 CPUs for 2 GPUs, at least 1 per GPU wanted"),
    ],
)
def test_what_is_short_is_a_warning_with_number_and_threshold(change: dict[str, str], reason: str, words: str) -> None:
    finding = cgroup(V2 | {f"{ROOT}/{name}": text for name, text in change.items()})
    assert (Status.WARN, reason, words) == (finding.status, finding.data["reason"], finding.summary)


def test_several_shortages_are_all_said_and_the_kill_stands_first() -> None:
    finding = cgroup(V2 | {f"{ROOT}/memory.events": "oom_kill 1", f"{ROOT}/pids.current": "4000"})
    assert "oom_kill" == finding.data["reason"]
    assert finding.summary.endswith("; 4000 of 4096 processes and threads, over 80 %")


def test_every_threshold_can_be_set() -> None:
    assert "memory_high" == cgroup(V2, max_memory_percent=30).data["reason"]
    assert "pids_high" == cgroup(V2, max_pids_percent=1).data["reason"]
    assert "cpus_few" == cgroup(V2, min_cpus_per_gpu=9.0).data["reason"]
    assert Status.PASS is cgroup(V2 | {f"{ROOT}/memory.events": "oom_kill 3"}, max_oom_kills=3).status


def test_page_cache_is_no_use_of_memory() -> None:
    """A job that reads its data fills the limit with cache, and nothing is wrong."""
    full = {f"{ROOT}/memory.current": f"{64 * GIB}", f"{ROOT}/memory.stat": f"inactive_file {60 * GIB}"}
    assert Status.PASS is cgroup(V2 | full).status


def test_a_quota_is_no_matter_where_no_gpu_is() -> None:
    assert Status.PASS is cgroup(V2 | {f"{ROOT}/cpu.max": "50000 100000"}, Facts(in_container=True)).status


SLURM = {
    "/proc/self/cgroup": "0::/system.slice/slurmstepd.scope/job_7/step_0\n",
    f"{ROOT}/cgroup.controllers": "memory\n",
    f"{ROOT}/system.slice/slurmstepd.scope/job_7/memory.max": f"{10 * GIB}",
    f"{ROOT}/system.slice/slurmstepd.scope/job_7/memory.current": f"{9.5 * GIB:.0f}",
    f"{ROOT}/system.slice/slurmstepd.scope/job_7/memory.events": "oom_kill 5",
    f"{ROOT}/system.slice/slurmstepd.scope/job_7/step_0/memory.max": "max",
    f"{ROOT}/system.slice/slurmstepd.scope/job_7/step_0/memory.current": f"{1 * GIB}",
    f"{ROOT}/system.slice/slurmstepd.scope/job_7/step_0/memory.events": "oom_kill 0",
}


def test_the_limit_of_a_cgroup_above_counts_and_its_kills_do_not_on_a_host() -> None:
    """On a host the cgroups above hold others too; Slurm sets the job's limit on the job."""
    finding = cgroup(SLURM, Facts())
    assert ("memory_high", 0) == (finding.data["reason"], finding.data["oom_kills"])


def test_the_kills_of_a_whole_container_count() -> None:
    """A process in a cgroup below the container's own: systemd in it, or a step."""
    assert 5 == cgroup(SLURM, Facts(in_container=True)).data["oom_kills"]


def test_no_limit_is_no_number() -> None:
    files = V1 | {f"{ROOT}/memory/memory.limit_in_bytes": "9223372036854771712", f"{ROOT}/pids/pids.max": "max"}
    finding = cgroup(files | {f"{ROOT}/cpu,cpuacct/cpu.cfs_quota_us": "-1"})
    assert (Status.PASS, "no memory limit, no CPU quota, no limit of processes") == (finding.status, finding.summary)


def test_where_no_cgroup_is_shown_nothing_is_judged() -> None:
    assert Status.SKIP is cgroup({}).status
    assert Status.SKIP is cgroup({"/proc/self/cgroup": "0::/\n"}).status


@given(st.text())
def test_whatever_these_files_hold_is_read(text: str) -> None:
    """No parser raises, and a number is a number."""
    for value in (*numbers(text).values(), number(text)):
        assert value is None or value >= 0
    for path in paths_of(text).values():
        assert all(folder.startswith("/mount") for folder in folders("/mount", path))
    assert (ratio(text, text) or 1.0) > 0


def test_a_path_that_climbs_stays_below_the_mount() -> None:
    """A process outside of its cgroup namespace has a path with dots in it."""
    assert ["/m/a", "/m"] == folders("/m", "/../../a")
