"""The files that a run leaves: one line appended whole, a report that appears at once, and nothing of others harmed."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from probe.worker import leave

LEAVE = Path(leave.__file__)


class Said:
    """What the program tells its parent."""

    def __init__(self) -> None:
        self.records: list[tuple[str, int, str]] = []

    def say(self, key: str, code: int = -1, text: str = "", **more: Any) -> None:
        self.records.append((key, code, text))


def told(**job: dict[str, str]) -> tuple[str, int, str]:
    said = Said()
    leave.main(said, job)
    assert len(said.records) == 1
    return said.records[0]


def append(path: Path, line: str = "{}") -> tuple[str, int, str]:
    return told(append={"path": str(path), "line": line})


def test_a_line_is_added_to_the_log(tmp_path: Path) -> None:
    """At the end, with its newline; the file is made, readable by its group and nobody else."""
    log = tmp_path / "health.log"
    assert [append(log, "one"), append(log, "two")] == [("append", 0, "")] * 2
    assert log.read_text() == "one\ntwo\n"
    assert log.stat().st_mode & 0o137 == 0


def test_the_log_and_the_one_before_it_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that would grow it over the bound begins a new one; never are there more than two files."""
    monkeypatch.setattr(leave, "MOST_BYTES", 100)
    log = tmp_path / "health.log"
    for number in range(50):
        append(log, f"line {number:02}")
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 200
    assert sorted(file.name for file in tmp_path.iterdir()) == ["health.log", "health.log.1"]
    assert log.read_text().splitlines()[-1] == "line 49"


def test_a_line_longer_than_the_bound_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the only one of its file: nothing is lost, and nothing turns in a circle."""
    monkeypatch.setattr(leave, "MOST_BYTES", 100)
    log = tmp_path / "health.log"
    for _ in range(3):
        assert append(log, "x" * 500)[1] == 0
    assert log.stat().st_size == 501


WRITER = """
import sys
sys.path.insert(0, {folder!r})
import leave
leave.MOST_BYTES = 40000
leave.LOCK_S = 30
sys.stdin.readline()
for number in range(300):
    leave.append({log!r}, "{{}} {{}} {{}}".format(sys.argv[1], number, "x" * 100))
"""


def test_two_writers_lose_and_break_no_line(tmp_path: Path) -> None:
    """Four processes append at once while the log rotates under them: every line in it is whole, and none twice."""
    log = tmp_path / "health.log"
    program = WRITER.format(folder=str(LEAVE.parent), log=str(log))
    writers = [
        subprocess.Popen([sys.executable, "-c", program, name], stdin=subprocess.PIPE, text=True) for name in "abcd"
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    lines = [line for file in (log.with_suffix(".log.1"), log) for line in file.read_text().splitlines()]
    assert {len(line.split()) for line in lines} == {3}
    assert {len(line.split()[2]) for line in lines} == {100}
    assert len(set(lines)) == len(lines)
    for name in "abcd":  # the end of each is there, in its order: what is missing was rotated away
        own = [int(line.split()[1]) for line in lines if line.startswith(name)]
        assert own == list(range(own[0], 300)) if own else True
    assert lines[-1].split()[1] == "299"


@pytest.mark.parametrize("way", ["fifo", "folder", "symlink", "hard link", "device", "full"])
def test_what_is_no_plain_file_is_refused(way: str, tmp_path: Path) -> None:
    """Nothing is written through it, and the parent hears why; a FIFO that nobody reads does not block."""
    other = tmp_path / "other"
    other.write_text("precious")
    log = tmp_path / "health.log"
    if way == "fifo":
        os.mkfifo(log)
    elif way == "folder":
        log.mkdir()
    elif way == "symlink":
        log.symlink_to(other)
    elif way == "hard link":
        log.hardlink_to(other)
    else:
        log = Path("/dev/null" if way == "device" else "/dev/full")
    key, code, text = append(log)
    assert (key, code > 0, bool(text)) == ("append", True, True)
    assert other.read_text() == "precious"


def test_one_who_holds_the_lock_too_long_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with a reason, and what is there stays as it is."""
    monkeypatch.setattr(leave, "LOCK_S", 0.01)
    log = tmp_path / "health.log"
    append(log, "one")
    with log.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert append(log, "two") == ("append", 11, "another writer holds it")
    assert log.read_text() == "one\n"


def test_a_report_appears_whole(tmp_path: Path) -> None:
    """In place of the one before, readable by all, and with no other file beside it."""
    file = tmp_path / "probe.prom"
    for content in ("one\n", "two\n"):
        assert told(replace={"path": str(file), "content": content}) == ("replace", 0, "")
        assert file.read_text() == content
    assert [file] == list(tmp_path.iterdir())
    assert file.stat().st_mode & 0o444 == 0o444


def test_a_report_that_cannot_be_put_there_leaves_nothing(tmp_path: Path) -> None:
    """A folder in its place stays, and no half of the report beside it."""
    file = tmp_path / "probe.prom"
    file.mkdir()
    assert told(replace={"path": str(file), "content": "x"})[1] > 0
    assert [file] == list(tmp_path.iterdir())


def test_what_a_killed_run_left_half_written_is_no_part_of_the_next_report(tmp_path: Path) -> None:
    """Its one file is used again, however long it is."""
    file = tmp_path / "probe.prom"
    (tmp_path / "probe.prom.new").write_text("half" * 1000)
    assert told(replace={"path": str(file), "content": "whole\n"})[1] == 0
    assert file.read_text() == "whole\n"
    assert [file] == list(tmp_path.iterdir())


REPORTER = """
import sys
sys.path.insert(0, {folder!r})
import leave
for number in range(200):
    leave.replace({path!r}, ({name!r} * 20000) + "\\n")
"""


def test_of_two_runs_at_once_one_report_is_there_and_whole(tmp_path: Path) -> None:
    """Whoever reads meanwhile sees one or the other, never a mixture, and no part is left."""
    file = tmp_path / "probe.prom"
    codes = [REPORTER.format(folder=str(LEAVE.parent), path=str(file), name=name) for name in "ab"]
    running = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]
    seen = set()
    while any(one.poll() is None for one in running):
        if file.exists():
            seen.add(file.read_text())
    assert [0, 0] == [one.wait() for one in running]
    assert seen <= {"a" * 20000 + "\n", "b" * 20000 + "\n"}
    assert [file] == list(tmp_path.iterdir())


def test_the_users_own_folder_is_made(tmp_path: Path) -> None:
    """Only where asked to: a mistyped path makes no folders."""
    log = tmp_path / "state" / "probe" / "health.log"
    assert append(log)[1] > 0
    assert told(append={"path": str(log), "line": json.dumps({}), "make_folder": "yes"})[1] == 0
    assert log.read_text() == "{}\n"
