"""The kernel log and the folders that torch writes to, as the child reads them: plain files stand for the device."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.worker import files

XID = "NVRM: Xid (PCI:0000:{:02x}:00): {}, pid={}, name=python3"


def kmsg(path: Path, *lines: str) -> dict[str, Any]:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    return files._kmsg(str(path))


def line(sequence: int, text: str) -> str:
    return f"4,{sequence},{sequence * 1000},-;{text}"


def test_only_what_tells_of_gpus_is_kept(tmp_path: Path) -> None:
    """And which records there were: the first, its time, and the last."""
    lines = [line(7, "usb 1-1: x"), line(8, XID.format(1, 79, 0)), " SUBSYSTEM=pci", line(9, "docker0: NVRM of x")]
    found = kmsg(tmp_path / "kmsg", *lines)
    head = {name: found[name] for name in ("lines", "first", "first_s", "last", "complete")}
    assert {"lines": [lines[1]], "first": 7, "first_s": 0.007, "last": 9, "complete": True} == head
    assert found["now"] >= found["booted_at"] > 0


def test_an_empty_log_has_no_records(tmp_path: Path) -> None:
    found = kmsg(tmp_path / "kmsg")
    assert ([], -1, -1, True) == (found["lines"], found["first"], found["last"], found["complete"])


def test_a_flood_of_one_kind_does_not_push_out_the_one_that_matters(tmp_path: Path) -> None:
    """Of one GPU's one XID the last few are kept, in the log's order."""
    flood = [line(n, XID.format(2, 31, n)) for n in range(10, 20_000)]
    found = kmsg(tmp_path / "kmsg", line(9, XID.format(1, 79, 0)), *flood)
    assert [line(9, XID.format(1, 79, 0)), *flood[-4:]] == found["lines"]
    assert (9, 19_999) == (found["first"], found["last"])


def test_what_is_too_much_is_dropped_from_the_beginning_and_said(tmp_path: Path) -> None:
    """As if the log had been overwritten so far."""
    found = kmsg(tmp_path / "kmsg", *(line(n, f"{XID.format(n & 255, n, n)} {'x' * 2000}") for n in range(1000)))
    assert sum(map(len, found["lines"])) <= files.KEPT_BYTES
    assert found["lines"][-1].startswith("4,999,")
    assert found["lines"][0].startswith(f"4,{found['first']},")
    assert found["first"] > 800


def test_bytes_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_bytes(
        b"4,1,2,-;NVRM: Xid (PCI:0000:1b:00): 79, name=\xff\xfe\x00\x1b[2J\n\xff,\xff,\xff;NVRM: Xid \n\n,,,\n"
    )
    assert ["4,1,2,-;NVRM: Xid (PCI:0000:1b:00): 79, name=\ufffd\ufffd\x00\x1b[2J"] == files._kmsg(str(path))["lines"]


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/proc"])
def test_what_is_not_the_kernel_log_is_not_read(path: str) -> None:
    """LXC and kind link it to the console, Podman binds /dev/null over it: reading those says nothing, or blocks."""
    with pytest.raises(FileNotFoundError):
        files._kmsg(path)


def test_the_device_is_known_by_its_numbers() -> None:
    def found(kind: int, *numbers: int) -> os.stat_result:
        return os.stat_result((kind, *[0] * 9), {"st_rdev": os.makedev(*numbers)})

    assert files._is_kernel_log(found(stat.S_IFCHR, 1, 11))
    assert not files._is_kernel_log(found(stat.S_IFCHR, 5, 1))
    assert files._is_kernel_log(found(stat.S_IFREG, 0, 0))


@pytest.fixture
def device() -> Iterator[tuple[int, socket.socket]]:
    """A descriptor that gives one record a read and then would block, as the device does."""
    end, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end.setblocking(False)
    with end, ours:
        yield end.fileno(), ours


def test_a_log_that_would_block_is_at_its_end(device: tuple[int, socket.socket]) -> None:
    fd, kernel = device
    for sequence in (4, 5):
        kernel.send(f"{line(sequence, XID.format(1, 79, 0))}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:01:00.0\n".encode())
    reader = files._Kmsg(fd)
    assert [4, 5] == [sequence for sequence, _ in reader.records()]
    assert reader.complete


def test_records_that_are_overwritten_meanwhile_are_passed_over(
    monkeypatch: pytest.MonkeyPatch, device: tuple[int, socket.socket]
) -> None:
    """The kernel answers EPIPE once and goes on with the oldest that is left."""
    answers: Iterator[OSError | bytes] = iter(
        [BrokenPipeError(errno.EPIPE, "Broken pipe"), f"{line(90, XID.format(1, 79, 0))}\n".encode(), b""]
    )

    def read(fd: int, size: int) -> bytes:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(os, "read", read)
    reader = files._Kmsg(device[0])
    assert [90] == [sequence for sequence, _ in reader.records()]
    assert (90, True) == (reader.first, reader.complete)


@pytest.mark.parametrize(("name", "most"), [("KMSG_S", 0.0), ("KMSG_BYTES", 0)])
def test_a_log_without_end_is_given_up_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, most: float
) -> None:
    monkeypatch.setattr(files, name, most)
    assert not kmsg(tmp_path / "kmsg", line(1, "x"))["complete"]


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_whatever_a_log_holds_is_read(chunks: list[bytes]) -> None:
    """Also where the reads cut a line in two."""

    class Replayed(files._Kmsg):
        def _reads(self) -> Iterator[bytes]:
            return iter(chunks)

    reader = Replayed(-1)
    for sequence, kept in reader.records():
        assert sequence >= 0
        assert any(mark in kept for mark in files.MARKS)


def test_a_folder_that_is_not_there_is_looked_at_where_it_would_be_made(tmp_path: Path) -> None:
    found = files._disk(str(tmp_path / "not" / "yet"))
    assert (str(tmp_path), True, False) == (found["at"], found["writable"], found["read_only"])
    assert 0 <= found["free_bytes"] <= found["size_bytes"]
    assert found["device"] == tmp_path.stat().st_dev


def test_a_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = files._disk(str(tmp_path / "file" / "cache"))
    assert (str(tmp_path / "file"), False) == (found["at"], found["writable"])
