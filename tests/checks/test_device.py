"""The device checks of the first rung, with recorded values."""

import errno
import os
import resource
import time

import pytest

from probe.model import Facts, Finding, Record, Status
from probe.state import Leaving
from probe.worker.parent import process_stat
from tests.checks.asking import ask

NODES = ("nvidia0", "nvidia1", "nvidia-uvm", "nvidiactl")
TWO = Facts(nodes=NODES, gpus_expect=2)


def opened(path: str, code: int = 0, text: str = "", **data: object) -> tuple[str, Record]:
    return ("files", Record(f"open:{path}", code=code, text=text, data=dict(data)))


def all_open() -> list[tuple[str, Record]]:
    return [opened(f"/dev/{name}") for name in ("nvidiactl", "nvidia0", "nvidia1")]


def test_nodes_pass_when_all_open() -> None:
    """The control node and one node per expected GPU open."""
    finding = ask("device.nodes", *all_open(), facts=TWO)
    assert (finding.status, finding.data["found"]) == (Status.PASS, 2)


def test_no_node_where_gpus_are_expected_is_a_failure_that_says_who_expects() -> None:
    """Absence is never a skip."""
    finding = ask("device.nodes", facts=Facts(nvidia_visible="all"))
    assert (finding.status, finding.data["reason"]) == (Status.FAIL, "expected_absent")
    assert "NVIDIA_VISIBLE_DEVICES=all" in finding.summary


@pytest.mark.parametrize(
    ("code", "reason"), [(errno.EPERM, "eperm"), (errno.EACCES, "eperm"), (errno.ENXIO, "enxio"), (errno.EIO, "enxio")]
)
def test_a_node_that_does_not_open_is_named_with_its_error(code: int, reason: str) -> None:
    """A lost permission is told from a node with nothing behind it."""
    records = [opened("/dev/nvidiactl"), opened("/dev/nvidia0", code, os.strerror(code))]
    finding = ask("device.nodes", *records, facts=TWO)
    assert (finding.status, finding.data["reason"], finding.data["node"]) == (Status.FAIL, reason, "/dev/nvidia0")
    assert errno.errorcode[code] in finding.summary


def test_fewer_nodes_than_expected_are_a_failure() -> None:
    """Two of three, and by whose word three."""
    finding = ask("device.nodes", *all_open(), facts=Facts(nodes=NODES, gpus_expect=3))
    assert (finding.status, finding.data["expected"], finding.data["found"]) == (Status.FAIL, 3, 2)


def test_a_missing_control_node_is_a_failure() -> None:
    """GPU nodes alone are not enough."""
    finding = ask("device.nodes", facts=Facts(nodes=("nvidia0",)))
    assert (finding.status, finding.data["reason"]) == (Status.FAIL, "missing")


DEVICES = "Character devices:\n195 nvidia\n511 nvidia-uvm\n"


@pytest.mark.parametrize(
    ("facts", "records", "devices", "status", "reason"),
    [
        (TWO, [opened("/dev/nvidia-uvm", major=511)], DEVICES, Status.PASS, None),
        (TWO, [opened("/dev/nvidia-uvm", major=510)], DEVICES, Status.FAIL, "stale_major"),
        (TWO, [opened("/dev/nvidia-uvm", errno.EPERM, "Operation not permitted")], DEVICES, Status.FAIL, "eperm"),
        (Facts(nodes=("nvidia0", "nvidiactl"), in_container=True), [], DEVICES, Status.FAIL, "missing"),
        (TWO, [opened("/dev/nvidia-uvm", major=511)], "Character devices:\n195 nvidia\n", Status.PASS, None),
    ],
)
def test_uvm(facts: Facts, records: list[tuple[str, Record]], devices: str, status: Status, reason: str | None) -> None:
    """There, open, and of the major number that this life of the module has."""
    finding = ask("device.uvm", *records, facts=facts, files={"/proc/devices": devices})
    assert (finding.status, finding.data.get("reason")) == (status, reason)


def test_a_missing_uvm_node_that_the_helper_makes_is_a_warning_outside_containers() -> None:
    """nvidia-modprobe makes it at CUDA's first use; in a container nobody does."""
    files = {"/proc/devices": DEVICES, "/usr/bin/nvidia-modprobe": ""}
    finding = ask("device.uvm", facts=Facts(nodes=("nvidia0", "nvidiactl")), files=files)
    assert finding.status is Status.WARN


VERSION = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (nixbld@)\nGCC version:\n"
)
LOADED = {"/proc/version": "Linux version 6.1", "/proc/modules": "nouveau 1 0 - Live 0x0\n"}


def test_the_modules_version_is_read() -> None:
    """As the kernel module prints it, open or closed."""
    record = ("files", Record("text:/proc/driver/nvidia/version", code=0, data={"content": VERSION}))
    finding = ask("device.module", record, files=LOADED)
    assert (finding.status, finding.data["version"]) == (Status.PASS, "580.159.04")


def test_no_module_is_a_failure_that_names_nouveau() -> None:
    """Its usual reason, where it is to be seen."""
    record = ("files", Record("text:/proc/driver/nvidia/version", code=2, text="No such file or directory"))
    finding = ask("device.module", record, files=LOADED)
    assert (finding.status, finding.data["reason"]) == (Status.FAIL, "missing")
    assert "nouveau" in finding.summary


def test_a_module_seen_in_proc_devices_alone_passes() -> None:
    """The version is not shown everywhere."""
    record = ("files", Record("text:/proc/driver/nvidia/version", code=2))
    assert ask("device.module", record, files=LOADED, facts=Facts(driver_loaded=True)).status is Status.PASS


def test_gvisor_shows_no_modules() -> None:
    """NVML and CUDA decide there."""
    assert ask("device.module", files={"/proc/version": "Linux version 4.4.0 gVisor"}).status is Status.SKIP


def leaving(*, killed_ago_s: float, ticks: int | None = None) -> Leaving:
    """This very process, as if it were a child killed some time ago."""
    stat = process_stat(os.getpid())
    assert stat is not None
    killed = time.clock_gettime(time.CLOCK_BOOTTIME) - killed_ago_s
    return Leaving(os.getpid(), stat.start_ticks if ticks is None else ticks, "cuda", "gpu:GPU-a", killed)


def test_a_child_that_is_still_there_after_a_minute_is_stuck() -> None:
    """Named with its pid, its state and for how long."""
    finding = ask("device.stuck", stuck=(leaving(killed_ago_s=60),))
    assert (finding.status, finding.data["reason"], finding.data["pid"]) == (Status.FAIL, "stuck", os.getpid())
    assert "killed 60 s ago" in finding.summary


def test_a_child_in_teardown_or_with_a_reused_pid_is_not_stuck() -> None:
    """Less than 10 s, or another start time: not ours any more."""
    children = (leaving(killed_ago_s=5), leaving(killed_ago_s=60, ticks=1))
    assert ask("device.stuck", stuck=children).status is Status.PASS


def shm(size: int, free: int) -> tuple[str, Record]:
    return ("files", Record("statvfs:/dev/shm", code=0, data={"size_bytes": size, "free_bytes": free}))


GIB = 1 << 30


@pytest.mark.parametrize(
    ("size", "free", "nodes", "status"),
    [
        (64 << 20, 64 << 20, (), Status.WARN),  # Docker's default
        (GIB, GIB, ("nvidia0",), Status.PASS),
        (GIB, GIB, ("nvidia0", "nvidia1"), Status.WARN),
        (8 * GIB, 8 * GIB, ("nvidia0", "nvidia1"), Status.PASS),
        (8 * GIB, GIB // 4, (), Status.WARN),
    ],
)
def test_shared_memory(size: int, free: int, nodes: tuple[str, ...], status: Status) -> None:
    """1 GiB, 8 GiB for several GPUs, and half of that free."""
    assert ask("device.shm", shm(size, free), facts=Facts(nodes=nodes)).status is status


def test_the_threshold_of_shared_memory_can_be_set() -> None:
    """A smaller wish is granted."""
    finding = ask("device.shm", shm(64 << 20, 64 << 20), thresholds={"min_bytes": 1 << 20})
    assert finding.status is Status.PASS


def limits_with(monkeypatch: pytest.MonkeyPatch, nofile: int, memlock: int, **options: object) -> Finding:
    found = {resource.RLIMIT_NOFILE: nofile, resource.RLIMIT_MEMLOCK: memlock}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (found[which], found[which]))
    return ask("device.limits", **options)  # type: ignore[arg-type]  # passed through as they are


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few open files warn; little locked memory warns with RDMA alone; unlimited passes."""
    assert limits_with(monkeypatch, 512, -1).data["limit"] == "nofile"
    assert limits_with(monkeypatch, 1024, 65536).status is Status.PASS
    rdma = {"/sys/class/infiniband/mlx5_0/x": ""}
    assert limits_with(monkeypatch, 1024, 65536, files=rdma).data["limit"] == "memlock"
    assert limits_with(monkeypatch, -1, -1, files=rdma).status is Status.PASS
