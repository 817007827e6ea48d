"""XIDs in the kernel log: what NVIDIA's driver says of a GPU when something went wrong. Pure.

::

    records of /dev/kmsg -> read() -> Log: each XID with its GPU and time, since the driver was loaded
                            xids.toml -> table(): what a code means, how bad it is, what mends it, who says so

A record is ``<priority>,<sequence>,<microseconds since boot>,<flags>;<text>``. Only the kernel's own count (priority
below 8): what a program writes into /dev/kmsg never has its facility. An XID stands at the very start of the text,
since further on are the names of processes, which anybody can choose.

A load of the driver begins with the line of nvidia-nvlink; "loading NVIDIA UNIX" comes after the GPUs were attached, so
what is said of them in between belongs to this load. A GPU whose recovery action changed to none was reset.
"""

import os.path
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import NamedTuple

from msgspec import Struct, convert

OFF_THE_BUS = 79
RECOVERY_ACTION_CHANGED = 154
KERNEL_PRIORITIES = 8
MOST_WORDS = 160


class Severity(StrEnum):
    FATAL = "fatal"
    WARN = "warn"
    APPLICATION = "application"
    INFO = "info"


ACTIONS = (
    "restart_machine",
    "check_power",
    "restart_vm",
    "update_software",
    "check_nvlink",
    "reset_gpu",
    "contact_support",
    "restart_app",
    "ignore",
)
"""The heaviest first: of several XIDs of one GPU it is the one that says what mends it."""


class Xid(Struct, frozen=True):
    """An entry of the table."""

    code: int
    meaning: str
    severity: Severity
    action: str
    source: str


class Address(NamedTuple):
    """Where a GPU sits. Its function is always 0, and not every line has it."""

    domain: int
    bus: int
    device: int

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}"


class Seen(Struct, frozen=True):
    """One XID in the log."""

    sequence: int
    boot_s: float
    """Seconds since boot, by the log's own clock."""
    address: Address | None
    """None where the line does not say which GPU it is about."""
    code: int
    words: str
    """What the driver says beside the code, fit to be shown."""


class Log(Struct, frozen=True):
    """What the kernel log says of GPUs since the driver was loaded, in its order."""

    xids: tuple[Seen, ...] = ()


_RECORD = re.compile(r"(\d{1,5}),(\d{1,19}),(\d{1,19}),[^;\n]{0,80};(.*)", re.DOTALL)
_ADDRESS = r"([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.[0-7])?"
_XID = re.compile(rf"NVRM: Xid \((?:PCI:)?{_ADDRESS}(?: [^)]{{0,60}})?\): (\d{{1,4}})(?!\d)(.*)", re.DOTALL)
_PLACE = re.compile(rf"(?<![0-9a-fA-F]){_ADDRESS}(?![0-9a-fA-F:])")
_TO_NONE = re.compile(r"recovery action changed from .{1,60} to (?:0x0\b|None\b)")
_FALLEN = "fallen off the bus"
_WHICH = "NVRM: The NVIDIA GPU "
_LOAD = "NVRM: loading NVIDIA UNIX "
_LOAD_BEGINS = "nvidia-nvlink: Nvlink Core is being init"


def read(lines: Iterable[str]) -> Log:
    """All XIDs since the newest load of the driver and, of each GPU, since its newest reset. Takes whatever comes."""
    found: list[Seen] = []
    loading = False
    named: Address | None = None
    for sequence, boot_s, text in _records(lines):
        if text.startswith(_LOAD_BEGINS):
            found, loading = [], True
        elif text.startswith(_LOAD):
            found, loading = (found if loading else []), False
        elif (xid := _XID.match(text)) is not None:
            address = _address(xid[1], xid[2], xid[3])
            code = int(xid[4])
            if code == RECOVERY_ACTION_CHANGED and _TO_NONE.search(xid[5]):
                found = [seen for seen in found if seen.address != address]
            else:
                found.append(Seen(sequence, boot_s, address, code, shown(xid[5].lstrip(", "))))
        elif text.startswith("NVRM:") and not text.startswith("NVRM: Xid"):
            place = _PLACE.search(text)
            here = _address(place[1], place[2], place[3]) if place else None
            if _FALLEN in text:
                where = here or named
                if not any(seen.code == OFF_THE_BUS and seen.address == where for seen in found):
                    found.append(Seen(sequence, boot_s, where, OFF_THE_BUS, "GPU has fallen off the bus"))
            named = here if text.startswith(_WHICH) else None if _FALLEN in text else named
    return Log(tuple(found))


def _records(lines: Iterable[str]) -> Iterable[tuple[int, float, str]]:
    """Sequence, time and text of the kernel's own records; what belongs to a record stands below it, indented."""
    for line in lines:
        record = _RECORD.fullmatch(line)
        if record is not None and int(record[1]) < KERNEL_PRIORITIES:
            yield int(record[2]), int(record[3]) / 1e6, record[4].replace("\\x0a", "\n")


def _address(domain: str, bus: str, device: str) -> Address:
    return Address(int(domain, 16), int(bus, 16), int(device, 16))


def address(bus_id: str) -> Address | None:
    """Of NVML's ``00000000:1B:00.0`` or the kernel's ``0000:1b:00.0``; None for whatever else."""
    found = re.fullmatch(_ADDRESS, bus_id)
    return _address(found[1], found[2], found[3]) if found else None


def shown(text: str) -> str:
    """At most 160 characters on one line, printable ASCII: a log holds whatever a process was called."""
    plain = "".join(char if " " <= char <= "~" else " " if char in "\t\n" else "?" for char in text[: 2 * MOST_WORDS])
    return " ".join(plain.split())[:MOST_WORDS]


def clock(at_s: float, now_s: float) -> str:
    """``at 03:12`` here, of the last 24 hours, else ``on 2026-11-22 at 03:12``; both in seconds since 1970."""
    local = datetime.fromtimestamp(at_s, UTC).astimezone()
    return f"{local:at %H:%M}" if abs(now_s - at_s) < 24 * 3600 else f"{local:on %Y-%m-%d at %H:%M}"


@cache
def table() -> Mapping[int, Xid]:
    """All of ``xids.toml``, by code. Raises ValueError where a code stands there twice."""
    import tomllib  # 6 ms that a run pays only when the log holds an XID

    with open(os.path.join(os.path.dirname(__file__), "xids.toml"), "rb") as file:
        entries = tomllib.load(file)["xid"]
    found: dict[int, Xid] = {}
    for entry in entries:
        for code in entry.pop("codes"):
            if code in found:
                raise ValueError(f"xids.toml: {code} stands there twice")
            found[code] = convert({"code": code, **entry}, Xid)
    return found


def xid(code: int) -> Xid:
    """The table's entry; a code that is not in it is a newer driver's, and may be anything."""
    unknown = Xid(code, "a code that probe's table does not have", Severity.WARN, "contact_support", "a rule of probe")
    return table().get(code, unknown)


def severity(code: int, overrides: Mapping[str, Iterable[int]]) -> Severity:
    """The table's word, unless a list of `overrides` (``fatal``, ``warn``, ``ignore``) has the code; the worst wins."""
    for name, level in (("fatal", Severity.FATAL), ("warn", Severity.WARN), ("ignore", Severity.INFO)):
        if code in overrides.get(name, ()):
            return level
    return xid(code).severity


def weight(seen: Seen) -> tuple[int, int]:
    """The order of blame: by what mends it, the first in time before what follows from it."""
    action = xid(seen.code).action
    return ACTIONS.index(action) if action in ACTIONS else len(ACTIONS), seen.sequence
