"""XIDs in the kernel log: real lines, every code of the table, and whatever else a log may hold."""

import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe import xids
from probe.xids import ACTIONS, Address, Seen, Severity, address, clock, read, severity, shown, table, weight, xid

A, B = Address(0, 0x1B, 0), Address(0, 0x5D, 0)
FIRST_LOAD = "6,10,1000000,-;nvidia-nvlink: Nvlink Core is being initialized, major device number 237"
LOADED = "4,12,1200000,-;NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build"


def line(sequence: int, text: str, priority: int = 4) -> str:
    return f"{priority},{sequence},{sequence * 1000000},-;{text}"


def found(*lines: str) -> list[tuple[Address | None, int]]:
    return [(seen.address, seen.code) for seen in read(lines).xids]


# ---------------------------------------------------------------------------------------------------------- real lines


def test_what_a_device_side_assert_leaves_in_the_log() -> None:
    """Seen on an H100 host (facts, measured.md)."""
    (seen,) = read(
        ["4,871,193000123,-;NVRM: Xid (PCI:0000:00:06): 43, pid=1131, name=python3, channel 0x0000000a"]
    ).xids
    assert Seen(871, 193.000123, Address(0, 0, 6), 43, "pid=1131, name=python3, channel 0x0000000a") == seen


REAL = [
    "NVRM: Xid (PCI:0000:1b:00): 31, pid=1175, name=python3, channel 0x00000008, intr 00000000. MMU Fault: ENGINE CE",
    "NVRM: Xid (PCI:0000:1b:00.0): 31, pid=1175",
    "NVRM: Xid (0000:1b:00): 31, Ch 00000008, engmask 00000101, intr 10000000",
    "NVRM: Xid (PCI:0000:1b:00 GPU-I:05): 31, pid=7194, name=python3, MMU Fault",
    "NVRM: Xid (PCI:00000000:1B:00): 31, pid='<unknown>', name=<unknown>",
    "NVRM: Xid (PCI:0000:1b:00): 31",
]


@pytest.mark.parametrize("text", REAL)
def test_the_ways_in_which_drivers_write_an_xid(text: str) -> None:
    """With and without PCI:, function and MIG instance; older drivers have no process in it."""
    assert [(A, 31)] == found(line(20, text))


FALLEN = [
    ["NVRM: GPU 0000:1b:00.0: GPU has fallen off the bus."],
    ["NVRM: GPU at PCI:0000:1b:00 has fallen off the bus."],
    ["NVRM: The NVIDIA GPU 0000:1b:00.0\\x0aNVRM: (PCI ID: 10de:26b5) installed in this\\x0aNVRM: fallen off the bus"],
    [
        "NVRM: The NVIDIA GPU 0000:1b:00.0",
        "NVRM: (PCI ID: 10de:26b5) installed in this system has",
        "docker0: port 1(veth0) entered disabled state",
        "NVRM: fallen off the bus and is not responding to commands.",
    ],
    ["NVRM: The NVIDIA GPU 0000:1b:00.0 (PCI ID: 10de:1e07) installed in this", "NVRM: system has fallen off the bus"],
    [
        "NVRM: Xid (PCI:0000:1b:00): 79, pid=0, GPU has fallen off the bus.",
        "NVRM: GPU 0000:1b:00.0: GPU has fallen off the bus.",
    ],
]


@pytest.mark.parametrize("texts", FALLEN, ids=range(len(FALLEN)))
def test_fallen_off_the_bus_counts_as_79_with_and_without_a_code(texts: list[str]) -> None:
    """In one record, in several with others' between them (NVSentinel#155), and once where both are said."""
    assert [(A, 79)] == found(*(line(20 + number, text) for number, text in enumerate(texts)))


def test_a_gpu_that_fell_off_the_bus_unnamed_is_still_one() -> None:
    """No address: it may be any GPU of this machine."""
    assert [(None, 79)] == found(line(20, "NVRM: fallen off the bus and is not responding to commands."))


HEALTHY = [
    "NVRM: GPU at PCI:0000:1b:00: GPU-b850f46d-d5ea-c752-ddf3-c6d0de6ab3e5",
    "NVRM: Persistence mode is deprecated and will be removed in a future release. Please use nvidia-persistenced",
    "NVRM: nvAssertFailedNoLog: Assertion failed: 0 @ osapi.c:1939",
    "NVRM: Xid (PCI:0000:1b:00)",
    "NVRM: Xid (PCI:0000:1b:00): , pid=7",
    "NVRM: Xid (PCI:0000:1b:00): 99999, pid=7",
    "nvidia 0000:1b:00.0: enabling device (0140 -> 0142)",
    "usb 1-1: NVRM: Xid (PCI:0000:1b:00): 79, a device may call itself so",
]


@pytest.mark.parametrize("text", HEALTHY)
def test_a_healthy_hosts_lines_hold_no_xid(text: str) -> None:
    assert [] == found(line(20, text))


def test_a_process_cannot_name_itself_an_xid() -> None:
    """Only the start of a line is the driver's word: further on stand names that anybody can choose."""
    assert [(A, 31)] == found(line(20, "NVRM: Xid (PCI:0000:1b:00): 31, name=NVRM: Xid (PCI:0000:5d:00): 79, "))


def test_what_a_program_writes_into_the_log_is_no_xid() -> None:
    """The kernel gives it a facility of its own (priority 8 and above), so that a line cannot be forged."""
    assert [] == found(line(20, "NVRM: Xid (PCI:0000:1b:00): 79, pid=0", priority=12))


def test_what_stands_indented_below_a_record_is_none() -> None:
    assert [] == found(" 4,20,1,-;NVRM: Xid (PCI:0000:1b:00): 79", "\t4,20,1,-;NVRM: Xid (PCI:0000:1b:00): 79")


# ------------------------------------------------------------------------------------------------- since when it counts

OFF = "NVRM: Xid (PCI:0000:1b:00): 79, pid=0, GPU has fallen off the bus."


def test_a_load_of_the_driver_ends_what_was_before() -> None:
    assert [] == found(line(5, OFF), LOADED)
    assert [] == found(line(5, OFF), FIRST_LOAD, LOADED)
    assert [(A, 79)] == found(FIRST_LOAD, LOADED, line(20, OFF))


def test_what_is_said_while_the_driver_loads_belongs_to_that_load() -> None:
    """GPUs are attached before the line "loading NVIDIA UNIX": one that is off the bus then is off the bus now."""
    assert [(A, 79)] == found(FIRST_LOAD, line(11, OFF), LOADED)


def test_a_load_that_ended_in_nothing_is_the_newest_all_the_same() -> None:
    """Where no GPU could be attached the line "loading NVIDIA UNIX" never comes."""
    assert [(B, 79)] == found(LOADED, line(20, OFF), FIRST_LOAD, line(30, OFF.replace("1b", "5d")))


CHANGED = "NVRM: Xid (PCI:0000:1b:00): 154, pid=0, GPU recovery action changed from {} to {}"


def test_a_gpu_whose_recovery_action_became_none_was_reset() -> None:
    """Of this GPU what was before does not count any more, of others it does."""
    back = CHANGED.format("0x1 (GPU Reset Required)", "0x0 (None)")
    other = OFF.replace("1b", "5d")
    assert [(B, 79)] == found(line(20, OFF), line(21, other), line(22, back))
    assert [(B, 79), (A, 79)] == found(line(21, other), line(22, back), line(23, OFF))


def test_a_recovery_action_that_became_some_is_no_reset() -> None:
    to = CHANGED.format("0x0 (None)", "0x2 (Node Reboot Required)")
    assert [(A, 79), (A, 154)] == found(line(20, OFF), line(21, to))


# ------------------------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize("code", sorted(table()))
def test_every_xid_of_the_table_is_read(code: int) -> None:
    assert [(A, code)] == found(line(20, f"NVRM: Xid (PCI:0000:1b:00): {code}, pid=1, name=x"))


def test_the_table_has_every_code_that_nvidia_lists() -> None:
    """1 to 172, as of October 2025."""
    assert set(range(1, 173)) == set(table())


@pytest.mark.parametrize("code", [8, 13, 31, 43, 45, 68, 69, 94, 109, 144])
def test_an_xid_of_applications_never_condemns(code: int) -> None:
    assert xid(code).severity in (Severity.APPLICATION, Severity.WARN)


@pytest.mark.parametrize("code", [48, 64, 74, 79, 95, 119, 120, 140])
def test_what_all_agree_on_condemns(code: int) -> None:
    """Both DCGM's and NVIDIA's lists have them as fatal."""
    assert xid(code).severity is Severity.FATAL


def test_every_entry_says_what_it_means_what_mends_it_and_who_says_so() -> None:
    for entry in table().values():
        assert entry.meaning
        assert entry.action in ACTIONS
        assert "nvidia: " in entry.source


def test_sources_are_named_once() -> None:
    """Whoever an entry refers to stands with its address at the top."""
    tables = tomllib.loads((Path(xids.__file__).parent / "xids.toml").read_text())
    names = set(tables["source"]) | {"all others"}
    for entry in tables["xid"]:
        for part in entry["source"].split("; "):
            says = part.split(": ")[0]
            assert ": " not in part or set(says.split(", ")) <= names, part


def test_a_code_that_stands_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry: dict[str, Any] = {"meaning": "m", "severity": "fatal", "action": "ignore", "source": "s"}
    monkeypatch.setattr(tomllib, "load", lambda file: {"xid": [{"codes": [7], **entry}, {"codes": [7], **entry}]})
    with pytest.raises(ValueError, match="7 stands there twice"):
        table.__wrapped__()


def test_a_code_that_the_table_does_not_have_warns() -> None:
    """A newer driver's code may be anything: it is told, and condemns nothing."""
    assert Severity.WARN is xid(4711).severity


def test_settings_outweigh_the_table_and_the_worst_of_them_wins() -> None:
    assert Severity.FATAL is severity(31, {"fatal": (31,)})
    assert Severity.WARN is severity(79, {"warn": (79,)})
    assert Severity.INFO is severity(79, {"ignore": (79,)})
    assert Severity.FATAL is severity(79, {"ignore": (79,), "fatal": (79,)})
    assert Severity.FATAL is severity(79, {"ignore": (63,)})


def test_of_several_xids_the_one_that_says_what_mends_it_weighs_most() -> None:
    """119 came first, but a GPU that is off the bus is not mended by a reset; of equals the first in time."""
    first, later, off = (Seen(n, 1.0, A, code, "") for n, code in ((1, 119), (2, 95), (3, 79)))
    assert [off, first, later] == sorted([later, off, first], key=weight)


# ------------------------------------------------------------------------------------------------ places, times, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00000000:1B:00.0", A),
        ("0000:1b:00.0", A),
        ("0000:1b:00", A),
        ("10000:e1:00.0", Address(0x10000, 0xE1, 0)),
        ("", None),
        ("1b:00.0", None),
        ("0000:1b:00.0\n", None),
    ],
)
def test_nvml_and_the_kernel_mean_the_same_place(text: str, expected: Address | None) -> None:
    assert expected == address(text)


def test_an_address_is_written_as_the_kernel_does() -> None:
    assert "0000:1b:00" == str(A)


def test_a_time_of_the_last_day_is_a_clock_time_and_an_older_one_has_its_date() -> None:
    at = datetime(2026, 11, 22, 3, 12, tzinfo=UTC)
    local = at.astimezone()
    assert f"at {local:%H:%M}" == clock(at.timestamp(), at.timestamp() + 3600)
    assert f"on {local:%Y-%m-%d} at {local:%H:%M}" == clock(at.timestamp(), at.timestamp() + 3 * 86400)


def test_words_are_fit_to_be_shown() -> None:
    assert "name=?[31mred? ???, pid=7" == shown("name=\x1b[31mred\x7f  \ufffdäß, pid=7")
    assert len(shown("x" * 10_000)) == 160


def test_a_run_without_an_xid_never_reads_the_table() -> None:
    """The reader of TOML alone is 6 ms."""
    program = "import sys; from probe import xids; xids.read(['6,1,2,-;x']); sys.exit('tomllib' in sys.modules)"
    path = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    assert 0 == subprocess.run([sys.executable, "-S", "-c", program], check=False, env=path).returncode


# ------------------------------------------------------------------------------------------------- whatever is in a log

pieces = st.sampled_from(
    [
        "4,1,2,-;",
        "NVRM: Xid (PCI:0000:1b:00): ",
        "79",
        ", ",
        "NVRM: The NVIDIA GPU 0000:1b:00.0",
        "fallen off the bus",
        "NVRM: loading NVIDIA UNIX ",
        "154, GPU recovery action changed from x to 0x0",
        "\\x1b",
        "\x1b[2J",
        "\ufffd",
        "9" * 40,
        "(" * 200,
    ]
)
hostile = st.one_of(st.text(max_size=200), st.lists(pieces, max_size=12).map("".join))
places = st.builds(Address, st.integers(0, 0xFFFFFFFF), st.integers(0, 255), st.integers(0, 31))
noise = st.sampled_from(
    [
        "docker0: port 1(veth0) entered disabled state",
        "NVRM: Xid (PCI:0000:ff:1f): 31, pid=1",
        "NVRM: GPU at PCI:0000:1b:00: GPU-b850f46d",
        "NVRM: The NVIDIA GPU",
        "\\x1b[2J\\xff",
        "",
    ]
)


@given(st.lists(hostile, max_size=20))
def test_whatever_a_log_holds_is_read_and_what_comes_of_it_can_be_shown(lines: list[str]) -> None:
    """No line raises; words are printable, codes have at most four digits."""
    for seen in read(lines).xids:
        assert seen.words.isascii()
        assert seen.words.isprintable() or seen.words == ""
        assert 0 <= seen.code <= 9999


@given(places, st.integers(1, 9999), st.integers(0, 2**40), st.integers(0, 2**50), st.text(max_size=80))
def test_an_xid_is_found_whatever_stands_behind_it(
    place: Address, code: int, sequence: int, us: int, rest: str
) -> None:
    words = rest.replace("\n", " ")
    (seen,) = read([f"4,{sequence},{us},-,caller=T7;NVRM: Xid (PCI:{place}): {code}, {words}"]).xids or (None,)
    if seen is None:  # the one thing that may stand there and takes it away
        assert code == 154
    else:
        assert (sequence, us / 1e6, place, code) == (seen.sequence, seen.boot_s, seen.address, seen.code)


@given(st.lists(noise, max_size=8), st.lists(noise, max_size=8))
def test_lines_of_others_around_an_xid_change_nothing(before: list[str], after: list[str]) -> None:
    texts = [*before, OFF, *after]
    log = read(line(number, text) for number, text in enumerate(texts))
    assert [len(before)] == [seen.sequence for seen in log.xids if seen.address == A]
