"""device.disk: room and rights where torch writes."""

from typing import Any

import pytest

from probe.model import Finding, Record, Status
from probe.worker.launch import folders_torch_writes_to
from tests.checks.asking import ask

GIB = 1 << 30
HOME = "/home/u/.cache/torch"


def place(folder: str = "/tmp", code: int = 0, text: str = "", **data: Any) -> tuple[str, Record]:
    found = {
        "at": "/",
        "device": 1,
        "size_bytes": 500 * GIB,
        "free_bytes": 200 * GIB,
        "inodes": 1000,
        "free_inodes": 900,
    }
    found |= {"read_only": False, "writable": True}
    return ("files", Record(f"disk:{folder}", code=code, text=text, data=found | data))


def disk(*records: tuple[str, Record], env: dict[str, str] | None = None, **thresholds: float) -> Finding:
    folders = tuple(record.key.removeprefix("disk:") for _, record in records)
    return ask("device.disk", *records, asked={"disk": folders}, env=env, thresholds=thresholds)


def test_room_everywhere_passes_and_names_the_least() -> None:
    finding = disk(place(), place(HOME, free_bytes=100 * GIB))
    assert (Status.PASS, f"at least 100.0 GiB free where torch writes ({HOME})") == (finding.status, finding.summary)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"free_bytes": GIB // 2}, "/tmp: 512 MiB free of 500.0 GiB, at least 1.0 GiB wanted"),
        ({"free_bytes": 20 * GIB}, "/tmp: 20.0 GiB free of 500.0 GiB, at least 5 % wanted"),
    ],
)
def test_little_room_is_a_warning(data: dict[str, Any], words: str) -> None:
    finding = disk(place(**data))
    assert (Status.WARN, "full", words) == (finding.status, finding.data["reason"], finding.summary)


def test_a_few_percent_of_a_large_disk_are_enough() -> None:
    """3 % of 10 TB are 300 GB."""
    assert Status.PASS is disk(place(size_bytes=10_000 * GIB, free_bytes=300 * GIB)).status


def test_a_disk_without_inodes_is_full_however_much_room_it_has() -> None:
    finding = disk(place(free_inodes=10))
    assert (Status.WARN, "inodes") == (finding.status, finding.data["reason"])
    assert "10 of 1000 inodes free, at least 5 % wanted" in finding.summary


def test_a_file_system_that_counts_no_inodes_has_enough() -> None:
    assert Status.PASS is disk(place(inodes=0, free_inodes=0)).status


@pytest.mark.parametrize("data", [{"read_only": True}, {"writable": False}])
def test_temporary_files_must_be_writable(data: dict[str, Any]) -> None:
    finding = disk(place(**data))
    assert (Status.WARN, "read_only") == (finding.status, finding.data["reason"])


@pytest.mark.parametrize("data", [{"read_only": True, "free_bytes": 0}, {"writable": False}])
def test_a_cache_in_a_home_that_cannot_be_written_is_not_missed_unless_somebody_chose_it(data: dict[str, Any]) -> None:
    """Containers with a read-only root and no home are hardened, not broken."""
    assert Status.PASS is disk(place(), place(HOME, **data)).status
    finding = disk(place(), place("/cache", **data), env={"TORCH_HOME": "/cache"})
    assert (Status.WARN, "read_only", "/cache") == (finding.status, finding.data["reason"], finding.data["folder"])


def test_a_folder_that_may_not_be_looked_at_is_named() -> None:
    finding = disk(place("/secret", 13, "Permission denied"))
    assert (Status.WARN, "/secret cannot be looked at: Permission denied") == (finding.status, finding.summary)


def test_thresholds_can_be_set() -> None:
    assert Status.WARN is disk(place(), min_free_bytes=300 * GIB).status
    assert Status.WARN is disk(place(), min_free_percent=50.0, enough_bytes=1000 * GIB).status
    assert Status.WARN is disk(place(), min_free_inodes_percent=95.0).status


def test_nowhere_to_look_is_no_pass() -> None:
    assert Status.SKIP is ask("device.disk").status


DEFAULTS = ["/tmp", "/home/u/.cache/torch", "/home/u/.triton/cache", "/home/u/.nv/ComputeCache"]


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"HOME": "/home/u"}, DEFAULTS),
        ({}, ["/tmp"]),
        ({"HOME": "relative", "TMPDIR": "relative"}, []),
        ({"TMPDIR": "/scratch", "XDG_CACHE_HOME": "/c", "CUDA_CACHE_DISABLE": "1"}, ["/scratch", "/c/torch"]),
        (
            {"TORCH_HOME": "/a", "TRITON_CACHE_DIR": "/b", "TORCHINDUCTOR_CACHE_DIR": "/c", "CUDA_CACHE_PATH": "/d"},
            ["/tmp", "/a", "/b", "/c", "/d"],
        ),
        ({"TORCH_HOME": "/tmp", "CUDA_CACHE_DISABLE": "1"}, ["/tmp"]),
    ],
)
def test_where_torch_writes_by_its_own_rules(env: dict[str, str], expected: list[str]) -> None:
    assert expected == folders_torch_writes_to(env)
