"""What one run leaves for the next: the folder, the file, the locks, and what counts as stuck."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.state import STUCK_AFTER_S, Head, Leaving, State, StateFolder, default_path
from probe.worker.parent import process_stat

CHILD = Leaving(pid=1, start_ticks=2, worker="nvml", target="gpu:GPU-1", killed_boottime_s=3.5)


def boottime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def test_what_is_saved_is_loaded(state: Path) -> None:
    """By another run: each field that was named, the others as they were."""
    StateFolder(str(state)).save(gpus=("GPU-1", "GPU-2"))
    StateFolder(str(state)).save(leaving=(CHILD,))
    folder = StateFolder(str(state))
    assert folder.load() == State(Head.here(), (CHILD,), ("GPU-1", "GPU-2"))
    assert folder.problem == ""


def test_the_folder_and_its_files_are_ours_alone(state: Path) -> None:
    """0700 and 0600, whatever the umask; nothing half-written stays."""
    before = os.umask(0)
    try:
        StateFolder(str(state)).save(gpus=("GPU-1",))
    finally:
        os.umask(before)
    assert state.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in state.iterdir()} == {"state.json": 0o600, "lock": 0o600}


def test_nothing_is_there_at_first(state: Path) -> None:
    """And that is no problem."""
    folder = StateFolder(str(state))
    assert (folder.load(), folder.problem) == (State(Head.here()), "")


@pytest.mark.parametrize("field", Head.__struct_fields__)
def test_any_difference_in_the_head_voids_the_file(state: Path, field: str) -> None:
    """Another boot, container or pid 1; silently, since that is no defect."""
    folder = StateFolder(str(state))
    folder.save(gpus=("GPU-1",), leaving=(CHILD,))
    kept = json.loads((state / "state.json").read_text())
    kept["head"][field] = "another" if field == "boot_id" else 7
    (state / "state.json").write_text(json.dumps(kept))
    assert folder.load() == State(Head.here())
    assert folder.problem == ""
    folder.save(gpus=("GPU-2",))
    assert folder.load() == State(Head.here(), (), ("GPU-2",))


@given(
    st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_no_content_is_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever stands in the file: nothing of it, and a line that names it."""
    state = tmp_path_factory.mktemp("state", numbered=True)
    state.chmod(0o700)
    (state / "state.json").write_bytes(content)
    folder = StateFolder(str(state))
    assert folder.load() == State(Head.here())
    assert "\n" not in folder.problem
    assert str(state) in folder.problem


@pytest.mark.parametrize("what", ["link", "dangling link", "file", "group-writable", "world-writable", "no parent"])
def test_a_folder_that_is_not_ours_alone_is_not_used(state: Path, what: str) -> None:
    """Everything goes on without: nothing is read, nothing written, locks are had, and `problem` says why."""
    real = state.parent / "real"
    real.mkdir(mode=0o700)
    path = state
    if what == "link":
        state.symlink_to(real)
    elif what == "dangling link":
        state.symlink_to(state.parent / "nothing")
    elif what == "file":
        state.write_text("")
    elif what == "no parent":
        path = state / "deeper"
    else:
        state.mkdir()
        state.chmod(0o720 if what == "group-writable" else 0o702)
    folder = StateFolder(str(path))
    assert folder.problem.startswith(f"state not kept: {path}: ")
    folder.save(gpus=("GPU-1",))
    assert folder.load() == State(Head.here())
    assert folder.try_gpu_lock()
    assert list(real.iterdir()) == []
    with pytest.raises(OSError, match="state not kept"):
        folder.forget()


@pytest.mark.parametrize("name", ["state.json", "state.json.new", "lock", "gpu.lock"])
def test_a_link_in_the_folder_is_not_followed(state: Path, name: str) -> None:
    """What it points to is neither read nor written."""
    victim = state.parent / "victim"
    victim.write_text("precious")
    state.mkdir(mode=0o700)
    (state / name).symlink_to(victim)
    folder = StateFolder(str(state))
    folder.load()
    folder.save(gpus=("GPU-1",))
    folder.try_gpu_lock()
    assert victim.read_text() == "precious"
    assert not victim.is_symlink()


HOLD = """
import sys
from probe.state import StateFolder
folder = StateFolder(sys.argv[1])
held = folder._lock(sys.argv[2]) if sys.argv[2] == "lock" else folder.try_gpu_lock()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(state: Path, request: pytest.FixtureRequest) -> "Iterator[subprocess.Popen[str]]":
    """Another process that holds the lock that the test names."""
    argv = [sys.executable, "-c", HOLD, str(state), request.param]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("holder", ["gpu.lock"], indirect=True)
def test_the_gpu_lock_is_one_probes(state: Path, holder: "subprocess.Popen[str]") -> None:
    """Held elsewhere: False; its holder is killed: True. It goes with its process, and the file's lock is another."""
    folder = StateFolder(str(state))
    assert not folder.try_gpu_lock()
    folder.save(gpus=("GPU-1",))
    assert folder.load().gpus == ("GPU-1",)
    holder.kill()
    holder.wait()
    assert folder.try_gpu_lock()
    assert folder.try_gpu_lock()
    assert not StateFolder(str(state)).try_gpu_lock()


@pytest.mark.parametrize("holder", ["lock"], indirect=True)
def test_a_file_that_is_being_written_is_not_waited_for(state: Path, holder: "subprocess.Popen[str]") -> None:
    """Nothing is written, `problem` says so; reading needs no lock."""
    folder = StateFolder(str(state))
    folder.save(gpus=("GPU-1",))
    assert "another probe is writing" in folder.problem
    assert folder.load() == State(Head.here())


def test_forgetting_removes_the_file(state: Path) -> None:
    """True when there was one."""
    folder = StateFolder(str(state))
    assert not folder.forget()
    folder.save(gpus=("GPU-1",))
    assert folder.forget()
    assert folder.load() == State(Head.here())


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


def child(pid: int, *, ago_s: float, ticks: int = 0) -> Leaving:
    found = process_stat(pid)
    assert found is not None
    return Leaving(pid, found.start_ticks + ticks, "nvml", "", boottime_s() - ago_s)


def test_who_is_there_long_after_the_kill_is_stuck(sleeper: int) -> None:
    """In words: pid, state and for how long."""
    words = child(sleeper, ago_s=60).stuck()
    assert re.fullmatch(rf"pid {sleeper} \(state [A-Z](, in \w+)?\), killed 60 s ago", words)


def test_who_is_leaving_or_gone_or_another_is_not(sleeper: int) -> None:
    """Within 10 s of the kill; another start time; no such process."""
    assert child(sleeper, ago_s=STUCK_AFTER_S - 1).there()
    assert child(sleeper, ago_s=STUCK_AFTER_S - 1).stuck() == ""
    assert not child(sleeper, ago_s=60, ticks=1).there()
    assert child(sleeper, ago_s=60, ticks=1).stuck() == ""
    gone = Leaving(1 << 22, 5, "nvml", "", 0.0)
    assert (gone.there(), gone.stuck()) == (False, "")


def test_a_zombie_is_gone() -> None:
    """It holds nothing any more: its parent has just not asked yet."""
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not child(process.pid, ago_s=60).there()
    process.wait()


def test_a_process_whose_first_thread_has_ended_is_there(tmp_path: Path) -> None:
    """Killed while another thread hangs in the kernel, its leader is a zombie; the process is not gone for that."""
    code = (
        "import ctypes, sys, threading\n"
        "threading.Thread(target=lambda: (print('ready', flush=True), sys.stdin.read())).start()\n"
        "ctypes.CDLL(None).syscall(60 if sys.maxsize else 0, 0)\n"  # exit of this thread alone (x86-64)
    )
    if os.uname().machine != "x86_64":
        pytest.skip("the number of exit(2) is x86-64's")
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        stat = process_stat(process.pid)
        while stat is not None and stat.state != "Z":  # it is about to make its last call
            stat = process_stat(process.pid)
        there, stuck = child(process.pid, ago_s=60).there(), child(process.pid, ago_s=60).stuck()
        process.kill()
    assert there
    assert stuck


def test_where_the_state_is_kept_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root: /run/probe; else the user's runtime folder; else one in /tmp with the uid in its name."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_path({"XDG_RUNTIME_DIR": "/run/user/0"}) == "/run/probe"
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    assert default_path({"XDG_RUNTIME_DIR": "/run/user/65534"}) == "/run/user/65534/probe"
    assert default_path({}) == "/tmp/probe-65534"


def test_a_file_that_is_too_large_is_no_state(state: Path) -> None:
    """At most 1 MiB is read."""
    folder = StateFolder(str(state))
    folder.save(gpus=("GPU-1",))
    content = msgspec.json.decode((state / "state.json").read_bytes())
    (state / "state.json").write_bytes(msgspec.json.encode({**content, "more": "x" * (1 << 20)}))
    assert folder.load() == State(Head.here())
