"""The wrapper of foreign programs: who they are, what they inherit, and that they go with their parent."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from probe.worker.exec import become
from probe.worker.parent import Children, End, Process

NOBODY = 65534
SHOW = """
import ctypes, json, os, signal
def death_signal():
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(number))
    return number.value
print(json.dumps({
    "ids": [*os.getresuid(), *os.getresgid()], "groups": os.getgroups(), "death_signal": death_signal(),
    "env": dict(os.environ), "cwd": os.getcwd(), "capabilities": [line.split()[1] for line in open("/proc/self/status")
    if line.startswith(("CapPrm", "CapEff"))], "fds": sorted(os.listdir("/proc/self/fd")),
}))
"""


def run(*argv: str, **options: Any) -> tuple[Process, End]:
    children = Children()
    process = children.start_foreign(argv, worker="command", **options)
    events = []
    while process in children.alive:
        events += children.poll(10)
    (end,) = (event for event in events if isinstance(event, End))
    return process, end


def shown(user: str = "", environment: Mapping[str, str | None] | None = None) -> dict[str, Any]:
    """What a program finds out about itself; under the system's own Python, which everybody may run."""
    process, end = run("/usr/bin/python3", "-c", SHOW, user=user, environment=environment)
    assert end.exit.status == 0, bytes(process.tail)
    found: dict[str, Any] = json.loads(bytes(process.output))
    return found


pytestmark = pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs /usr/bin/python3")


def test_a_program_inherits_the_death_signal() -> None:
    """It goes with probe."""
    assert shown()["death_signal"] == signal.SIGKILL


def test_a_program_inherits_no_ignored_signal() -> None:
    """Python ignores SIGPIPE, and what it starts would too: `yes | head -1` in a shell would then complain."""
    process, _ = run("grep", "SigIgn", "/proc/self/status")
    ignored = int(process.output.split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1))


def test_a_program_has_no_descriptor_but_its_three() -> None:
    """Fd 1 is the reply pipe, which it has under no second number; the fourth here is the listing itself."""
    assert shown()["fds"][:3] == ["0", "1", "2"]
    assert len(shown()["fds"]) == 4


@pytest.mark.system
@pytest.mark.parametrize("user", ["nobody", str(NOBODY)])
def test_another_user_has_nothing_of_the_callers(user: str) -> None:
    """As root: ids, groups and capabilities are the user's, the death signal is set again after the change."""
    found = shown(user, {"HOME": None, "USER": None, "LOGNAME": None})
    assert found["ids"] == [NOBODY] * 6
    assert found["groups"] == [NOBODY]
    assert {int(word, 16) for word in found["capabilities"]} == {0}
    assert found["death_signal"] == signal.SIGKILL
    assert (found["env"]["USER"], found["env"]["HOME"]) == ("nobody", "/nonexistent")


@pytest.mark.system
def test_a_number_need_not_have_a_name() -> None:
    """As in most images: no groups, HOME is the root folder."""
    found = shown("54321", {"HOME": None, "USER": None})
    assert (found["ids"], found["groups"]) == ([54321] * 6, [])
    assert found["env"]["HOME"] == "/"
    assert "USER" not in found["env"]


@pytest.mark.system
def test_what_is_given_stays() -> None:
    """A HOME of the caller's choice."""
    assert shown("nobody", {"HOME": "/given"})["env"]["HOME"] == "/given"


def test_who_one_is_already_takes_no_rights() -> None:
    """Without root too."""
    assert shown(str(os.geteuid()))["ids"][0] == os.geteuid()


@pytest.mark.parametrize(
    ("argv", "options", "status", "words"),
    [
        (["/no/such"], {}, 127, "/no/such: No such file or directory"),
        (["no-such-program"], {}, 127, "no-such-program: No such file or directory"),
        (["/etc/passwd"], {}, 126, "/etc/passwd: Permission denied"),
        (["/"], {}, 126, "/: Permission denied"),
        (["true"], {"cwd": "/no/such"}, 126, "/no/such: No such file or directory"),
        (["true"], {"user": "no-such-user"}, 126, "user no-such-user: there is no such user"),
    ],
)
def test_what_keeps_a_program_from_being_run(argv: list[str], options: dict[str, Any], status: int, words: str) -> None:
    """A shell's statuses, and which of program, folder and user it was."""
    process, end = run(*argv, **options)
    assert (end.exit.status, bytes(process.tail).decode().strip()) == (status, words)


@pytest.mark.system
def test_a_user_that_one_may_not_become() -> None:
    """Without root it is an error, and nothing has changed."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            become("root")
        except PermissionError:
            os._exit(0 if os.getresuid() == (NOBODY,) * 3 else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.system
def test_a_file_that_the_user_may_not_run(tmp_path: Path) -> None:
    """The working directory and the program are reached as the user."""
    tmp_path.chmod(0o700)
    process, end = run("true", user="nobody", cwd=str(tmp_path))
    assert (end.exit.status, bytes(process.tail).decode()) == (126, f"{tmp_path}: Permission denied\n")
