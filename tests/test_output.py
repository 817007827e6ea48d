"""Writing without waiting for a reader that does not read."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from probe.output import asked_format, instead_of_report, write


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    for fd in (reader, writer):
        os.close(fd)


def soon() -> float:
    return time.monotonic() + 0.05


def in_time() -> float:
    return time.monotonic() + 10


def test_what_fits_is_written_at_once(pipe: tuple[int, int]) -> None:
    """All of it, and the descriptor stays as blocking as it was: others share it."""
    reader, writer = pipe
    assert write(writer, b"verdict\n", in_time())
    assert os.read(reader, 100) == b"verdict\n"
    assert os.get_blocking(writer)


def test_a_full_pipe_is_given_up_at_the_deadline(pipe: tuple[int, int]) -> None:
    """Nobody reads: False, and it returns."""
    _, writer = pipe
    assert not write(writer, b"x" * 100_000, soon())
    assert not write(writer, b"y", soon())


def test_a_deadline_that_has_passed_writes_nothing(pipe: tuple[int, int]) -> None:
    """Late is late, even where there is room."""
    reader, writer = pipe
    assert not write(writer, b"x", time.monotonic() - 1)
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)


def test_a_slow_reader_gets_all_of_it(pipe: tuple[int, int]) -> None:
    """More than the pipe holds, read piece by piece."""
    reader, writer = pipe
    data = os.urandom(100_000)
    heard = bytearray()

    def read() -> None:
        while len(heard) < len(data):
            heard.extend(os.read(reader, 777))

    thread = threading.Thread(target=read)
    thread.start()
    assert write(writer, data, in_time())
    thread.join(10)
    assert bytes(heard) == data


def test_a_reader_that_has_gone_is_no_error() -> None:
    """There is no one to tell."""
    reader, writer = os.pipe()
    os.close(reader)
    assert not write(writer, b"x", in_time())
    os.close(writer)
    assert not write(writer, b"x", in_time())


def test_a_file_takes_it_whole(tmp_path: Path) -> None:
    """Also after the deadline: a file does not wait."""
    path = tmp_path / "out"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    assert write(fd, b"x" * 100_000, time.monotonic() - 1)
    os.close(fd)
    assert path.stat().st_size == 100_000


def test_a_full_device_is_no_error() -> None:
    """/dev/full: False."""
    fd = os.open("/dev/full", os.O_WRONLY)
    assert not write(fd, b"x", in_time())
    os.close(fd)


@pytest.mark.parametrize(
    ("words", "form"),
    [
        ("check", "text"),
        ("check --format json", "json"),
        ("check --format=nagios", "nagios"),
        ("check --format json --format npd", "npd"),
        ("check --format junit --output x.xml", "text"),
        ("check --format", "text"),
    ],
)
def test_the_format_is_known_before_the_command_line_is_parsed(words: str, form: str) -> None:
    """The last flag wins, as in the parser; a format for a file says nothing of stdout."""
    assert asked_format(words.split()) == form


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("text", b"a | b\n"),
        ("nagios", b"PROBE UNKNOWN - a / b\n"),
        ("npd", b"a | b\n"),
        ("prometheus", b""),
        ("junit", b""),
    ],
)
def test_a_caller_without_a_report_gets_a_line_of_its_format(form: str, said: bytes) -> None:
    """Or nothing, where a line would break the format."""
    assert instead_of_report(form, "a | b") == said
    assert len(instead_of_report("npd", "x" * 500)) == 80
