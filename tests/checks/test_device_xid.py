"""device.xid: which XIDs condemn, of which GPUs, and what it says where it cannot know."""

import errno
import os
from typing import Any

import pytest

from probe.model import Facts, Finding, Record, Scalar, Status
from tests.checks.asking import ask

UUIDS = ("GPU-0000000a", "GPU-0000000b")
BUSES = ("00000000:1B:00.0", "00000000:5D:00.0")
TWO = Facts(nodes=("nvidia0", "nvidia1", "nvidiactl"), gpus_expect=2)
BOOT_S = 1_700_000_000.0
OFF = "4,900,3600000000,-;NVRM: Xid (PCI:0000:1b:00): 79, pid=0, name=x, GPU has fallen off the bus."
RECOVERED = ("nvml", Record("recovery", f"gpu:{UUIDS[0]}", 0, data={"action": 0}))

Said = tuple[str, Record]


def log(*lines: str, first: int = 0, complete: bool = True) -> Said:
    data: dict[str, Any] = {"lines": list(lines), "first": first, "first_s": 1800.0, "last": 1000, "complete": complete}
    return ("files", Record("kmsg:/dev/kmsg", code=0, data={**data, "booted_at": BOOT_S, "now": BOOT_S + 7200}))


def listed(*refused: int, pending: tuple[int, ...] = ()) -> Said:
    rows = [
        {"index": n, "uuid": "", "code": 15, "text": "GPU is lost"}
        if n in refused
        else {"index": n, "uuid": UUIDS[n], "name": "H100", "bus_id": BUSES[n], "mig": []}
        for n in range(2)
        if n not in pending
    ]
    return ("nvml", Record("gpus", code=0, data={"gpus": rows, "pending": list(pending)}))


def module(*indices: int) -> Said:
    rows = [{"bus_id": BUSES[n][4:].lower(), "uuid": UUIDS[n], "name": "H100"} for n in indices]
    return ("files", Record("gpus:/proc/driver/nvidia/gpus", code=0, data={"gpus": rows}))


def asks_for(action: int, gpu: int = 0, code: int = 0) -> Said:
    return ("nvml", Record("recovery", f"gpu:{UUIDS[gpu]}", code, data={} if code else {"action": action}))


def xid(*records: Said, **more: Any) -> Finding:
    return ask("device.xid", *records, facts=TWO, **more)


def test_a_log_without_xids_passes_and_nobody_waits_for_nvml() -> None:
    finding = xid(log("6,1,2,-;usb 1-1: new device"))
    assert (Status.PASS, "no XID that condemns a GPU") == (finding.status, finding.summary)
    assert 1000 == finding.data["last_sequence"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES, errno.ENOENT])
def test_who_may_not_read_the_log_is_told_so_and_nothing_is_wrong(code: int) -> None:
    finding = xid(("files", Record("kmsg:/dev/kmsg", code=code, text=os.strerror(code))))
    assert finding.status is Status.SKIP
    assert finding.summary.startswith("not permitted to read the kernel log (")


def test_a_log_that_cannot_be_read_for_another_reason_is_unknown() -> None:
    """Absence is never a pass."""
    finding = xid(("files", Record("kmsg:/dev/kmsg", code=errno.EIO, text="Input/output error")))
    assert (Status.UNKNOWN, "log_unreadable") == (finding.status, finding.data["reason"])


def test_a_log_that_was_not_read_to_its_end_is_unknown_unless_it_condemns() -> None:
    assert Status.UNKNOWN is xid(log(complete=False)).status
    assert Status.FAIL is xid(log(OFF, complete=False), listed(), asks_for(2)).status


@pytest.mark.parametrize(
    ("recovery", "wants"),
    [([asks_for(2)], "2"), ([asks_for(0, code=3)], "unknown"), ([asks_for(0, code=15)], "unknown"), ([], "unknown")],
)
def test_a_fatal_xid_condemns_while_the_driver_asks_for_repair_or_does_not_say(
    recovery: list[Said], wants: str
) -> None:
    """Not supported (3, a driver before 570), lost (15), no answer: it cannot be had."""
    finding = xid(log(OFF), listed(), *recovery)
    assert (Status.FAIL, 79, f"gpu:{UUIDS[0]}") == (finding.status, finding.data["xid"], finding.data["gpu"])
    assert finding.summary.startswith("XID 79 at ")
    assert finding.summary.endswith(f"on GPU 0000:1b:00: GPU has fallen off the bus; recovery action {wants}")


def test_a_gpu_that_has_recovered_is_a_warning_with_the_time() -> None:
    finding = xid(log(OFF), listed(), asks_for(0))
    assert (Status.WARN, "recovered") == (finding.status, finding.data["reason"])
    assert finding.summary.startswith("had XID 79 at ")
    assert finding.summary.endswith(", recovered")


def test_without_nvml_and_the_module_every_line_counts() -> None:
    """No list of GPUs can be had: better somebody else's XID than none."""
    finding = xid(log(OFF))
    assert (Status.FAIL, "gpu:0000:1b:00") == (finding.status, finding.data["gpu"])


def test_an_xid_of_a_gpu_that_is_not_here_is_others_business() -> None:
    """In a container the log is the whole node's."""
    finding = xid(log(OFF.replace("1b", "9b")), listed())
    assert (Status.PASS, 0) == (finding.status, finding.data["fatal"])


def test_the_kernel_module_says_which_gpus_are_here_where_nvml_does_not() -> None:
    assert Status.FAIL is xid(log(OFF), module(0)).status
    assert Status.PASS is xid(log(OFF), module(1)).status


@pytest.mark.parametrize("nvml", [listed(0), listed(pending=(0,))])
def test_a_gpu_that_nvml_cannot_attach_is_known_by_the_kernel_module(nvml: Said) -> None:
    """It is the very one that fell off the bus, and NVML's list has no address of it."""
    assert Status.FAIL is xid(log(OFF), nvml, module(0, 1)).status


def test_a_gpu_that_was_here_at_the_first_good_run_is_still_ours() -> None:
    """NVML no longer counts it, nor do we expect two."""
    one = ("nvml", Record("gpus", code=0, data={"gpus": [listed()[1].data["gpus"][1]], "pending": []}))
    facts = Facts(nodes=("nvidia0",), gpus_expect=1)
    assert Status.PASS is ask("device.xid", log(OFF), one, module(0, 1), facts=facts).status
    assert Status.FAIL is ask("device.xid", log(OFF), one, module(0, 1), facts=facts, known_gpus=UUIDS).status


def test_a_gpu_off_the_bus_that_the_driver_does_not_name_is_one_of_ours() -> None:
    finding = xid(log("4,900,1,-;NVRM: fallen off the bus and is not responding to commands."), listed())
    assert (Status.FAIL, 79) == (finding.status, finding.data["xid"])
    assert "on GPU (not named)" in finding.summary


APPLICATION = (13, 31, 43, 45, 68, 109)


@pytest.mark.parametrize("code", APPLICATION)
def test_an_xid_of_applications_passes_whatever_the_driver_asks_for(code: int) -> None:
    """What the driver asks for is nvml.recovery's to say."""
    finding = xid(log(OFF.replace(" 79,", f" {code},")), listed(), asks_for(1))
    assert (Status.PASS, 1) == (finding.status, finding.data["application"])
    assert "1 of applications" in finding.summary


def test_an_xid_that_is_in_dispute_is_told() -> None:
    finding = xid(log(OFF.replace(" 79,", " 94,")), listed())
    assert (Status.WARN, "told", 94) == (finding.status, finding.data["reason"], finding.data["xid"])


def test_the_settings_decide_otherwise() -> None:
    def thresholds(**lists: tuple[int, ...]) -> Any:
        return {"thresholds": lists}

    assert Status.PASS is xid(log(OFF), listed(), asks_for(2), **thresholds(ignore=(79,))).status
    assert Status.WARN is xid(log(OFF), listed(), asks_for(2), **thresholds(warn=(79,))).status
    assert Status.FAIL is xid(log(OFF.replace(" 79,", " 31,")), listed(), **thresholds(fatal=(31,))).status


def test_a_gpu_that_has_not_recovered_stands_before_one_that_has() -> None:
    lines = log(OFF, OFF.replace("1b", "5d").replace(" 79,", " 95,"))
    finding = xid(lines, listed(), asks_for(0, gpu=0), asks_for(1, gpu=1))
    assert (Status.FAIL, 95, f"gpu:{UUIDS[1]}") == (finding.status, finding.data["xid"], finding.data["gpu"])
    assert "more GPU" not in finding.summary


def test_several_gpus_are_counted() -> None:
    finding = xid(log(OFF, OFF.replace("1b", "5d")), listed(), asks_for(2, gpu=0), asks_for(2, gpu=1))
    assert "and 1 more" in finding.summary
    assert 2 == finding.data["fatal"]


@pytest.mark.parametrize("records", [[log(first=500)], [log(OFF, first=500), listed(), asks_for(0)]])
def test_a_log_whose_beginning_is_overwritten_says_since_when_it_knows(records: list[Said]) -> None:
    finding = xid(*records)
    assert "(the kernel log begins at " in finding.summary
    assert 500 == finding.data["first_sequence"]


def test_lines_that_no_run_has_read_are_counted() -> None:
    """An earlier run of this boot has read up to 300; the log now begins with 500."""

    def unread(kernel_log: int) -> Scalar:
        return xid(log(first=500), kernel_log=kernel_log).data["unread"]

    assert (199, 0, 0, 500) == (unread(300), unread(499), unread(700), unread(-1))
