"""XIDs in the kernel log that condemn a GPU of this machine. What each means stands in ``xids.toml``.

An XID is history: the log keeps it when the GPU was mended long ago. So only what was said since the driver was loaded
counts, and where NVML says that nothing is to be done with the GPU (recovery action 0, driver 570 and later) it is a
warning. Lines of GPUs that are not of this container are others' business: in a container the log is the whole node's.
"""

from typing import Any

from msgspec import Struct

from probe.context import Context
from probe.model import Finding, Job, NoAnswer, Record, Scalar, Threshold, failed, passed, skipped, unknown, warned
from probe.registry import check
from probe.xids import Address, Seen, Severity, address, clock, read, severity, weight, xid

KMSG = "/dev/kmsg"
DENIED = (1, 13)
"""EPERM, EACCES: without CAP_SYSLOG where kernel.dmesg_restrict is 1."""
ABSENT = 2
"""ENOENT: Docker and Kubernetes give a container no /dev/kmsg unless told to."""
UNASKED = -1

LISTS = {
    "fatal": Threshold((), "xids.toml, by NVIDIA's catalogue and NVSentinel"),
    "warn": Threshold((), "xids.toml, where those who watch GPUs disagree"),
    "ignore": Threshold((), "xids.toml: application and info"),
}


class Gpu(Struct, frozen=True):
    """A GPU of this machine: its UUID, where it is known."""

    uuid: str = ""

    @property
    def target(self) -> str:
        return f"gpu:{self.uuid}" if self.uuid else ""


class Suspect(Struct, frozen=True):
    """A GPU of this machine with a fatal XID, and what its driver wants to be done."""

    seen: Seen
    gpu: Gpu
    action: int
    """NVML's recovery action; -1: it could not be had."""


@check("device.xid", profiles="RN", uses=("files.kmsg", "nvml.recovery"), gpu_only=True, thresholds=LISTS)
async def xids(context: Context, job: Job) -> Finding:
    """Does the kernel log hold an XID that condemns a GPU of this machine?"""
    record = await context.answer("files", f"kmsg:{KMSG}")
    if record.code:
        return _unreadable(record)
    log = read(record.data["lines"])
    gpus = await _gpus(context) if log.xids else {}
    mine = [seen for seen in log.xids if not gpus or seen.address is None or seen.address in gpus]
    data = _counted(mine, record, context.kernel_log, job)
    fatal = sorted((seen for seen in mine if severity(seen.code, job.lists) is Severity.FATAL), key=weight)
    suspects = await _suspects(context, fatal, gpus)
    if suspects:
        return _judged(suspects, record, data)
    if not record.data["complete"]:
        return unknown("the kernel log could not be read to its end in time", reason="log_too_long", **data)
    told = [seen for seen in mine if severity(seen.code, job.lists) is Severity.WARN]
    since = _since(record)
    if told:
        return warned(f"had {_said(told[-1], record)}{since}", reason="told", xid=told[-1].code, **data)
    others = f"; {len(mine)} of applications" if mine else ""
    return passed(f"no XID that condemns a GPU{others}{since}", **data)


def _unreadable(record: Record) -> Finding:
    if record.code in DENIED:
        return skipped(f"not permitted to read the kernel log ({KMSG}: {record.text})", errno=record.code)
    if record.code == ABSENT:
        return skipped(f"not permitted to read the kernel log (no {KMSG} here)", errno=record.code)
    return unknown(f"the kernel log cannot be read ({KMSG}: {record.text})", reason="log_unreadable", errno=record.code)


async def _gpus(context: Context) -> dict[Address, Gpu]:
    """The GPUs of this machine by address; empty where no list can be had: then every line counts.

    NVML's list is the container's own, but a GPU that fell off the bus is not in it: where one is missing, what the
    kernel module lists counts too.
    """
    rows: list[dict[str, Any]] = []
    whole = False
    try:
        listed = (await context.answer("nvml", "gpus")).data
        rows = [row for row in listed["gpus"] if row["uuid"]]
        lost = set(context.known_gpus) - {row["uuid"] for row in rows}
        enough = context.expected.mig or len(rows) >= context.expected.count
        whole = enough and len(rows) == len(listed["gpus"]) and not listed["pending"] and not lost
    except NoAnswer:
        pass
    if not whole:
        rows += await _of_the_module(context)
    found = ((address(str(row.get("bus_id", ""))), str(row["uuid"])) for row in reversed(rows))
    return {where: Gpu(uuid) for where, uuid in found if where is not None}


async def _of_the_module(context: Context) -> list[dict[str, Any]]:
    try:
        return list((await context.answer("files", "gpus:/proc/driver/nvidia/gpus")).data.get("gpus", ()))
    except NoAnswer:
        return []


async def _suspects(context: Context, fatal: list[Seen], gpus: dict[Address, Gpu]) -> list[Suspect]:
    """For each GPU with a fatal XID the heaviest of them; those first that have not recovered."""
    heaviest = {seen.address: seen for seen in reversed(fatal)}
    found = []
    for seen in sorted(heaviest.values(), key=weight):
        gpu = gpus.get(seen.address, Gpu()) if seen.address else Gpu()
        found.append(Suspect(seen, gpu, await _recovery_action(context, gpu)))
    return sorted(found, key=lambda suspect: suspect.action == 0)


async def _recovery_action(context: Context, gpu: Gpu) -> int:
    if not gpu.uuid:
        return UNASKED
    try:
        answer = await context.answer("nvml", "recovery", gpu.target)
    except NoAnswer:
        return UNASKED
    return UNASKED if answer.code else int(answer.data["action"])


def _judged(suspects: list[Suspect], record: Record, data: dict[str, Scalar]) -> Finding:
    first = suspects[0]
    alike = sum((suspect.action == 0) == (first.action == 0) for suspect in suspects)
    more = f" and {alike - 1} more GPUs" if alike > 1 else ""
    data |= {"xid": first.seen.code, "gpu": first.gpu.target or f"gpu:{first.seen.address or '?'}"}
    data |= {"recovery_action": first.action} if first.action != UNASKED else {}
    said = _said(first.seen, record)
    if first.action == 0:
        return warned(f"had {said}{more}, recovered{_since(record)}", reason="recovered", **data)
    wants = "unknown" if first.action == UNASKED else str(first.action)
    return failed(f"{said}{more}; recovery action {wants}", **data)


def _said(seen: Seen, record: Record) -> str:
    at = clock(record.data["booted_at"] + seen.boot_s, record.data["now"])
    return f"XID {seen.code} {at} on GPU {seen.address or '(not named)'}: {xid(seen.code).meaning}"


def _since(record: Record) -> str:
    """Where the log's beginning was overwritten: since when it is known."""
    if record.data["first"] <= 0:
        return ""
    return f" (the kernel log begins {clock(record.data['booted_at'] + record.data['first_s'], record.data['now'])})"


def _counted(mine: list[Seen], record: Record, read_before: int, job: Job) -> dict[str, Scalar]:
    """How many of which kind, up to where the log was read, and how many lines no run has ever read."""
    kinds = [severity(seen.code, job.lists) for seen in mine]
    first, last = record.data["first"], record.data["last"]
    codes = ", ".join(str(code) for code in sorted({seen.code for seen in mine}))
    return {
        **{level.value: kinds.count(level) for level in Severity},
        "codes": codes,
        "first_sequence": first,
        "last_sequence": last,
        "unread": max(0, first - read_before - 1),
    }
