"""The state file as the whole command sees it: damaged, foreign, unwritable; children that never went."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from probe.state import Head
from probe.worker.parent import process_stat
from tests.system.command import Command

FAST = ("--only", "device.stuck")


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process of somebody's, for the whole test; it must outlive every run."""
    process = subprocess.Popen(["sleep", "600"])
    yield process.pid
    alive = process.poll() is None
    process.kill()
    process.wait()
    assert alive, "probe has signalled a process that is not its own"


def write_state(folder: Path, **fields: Any) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    file = folder / "state.json"
    file.write_text(json.dumps({"head": msgspec.to_builtins(Head.here()), **fields}))
    return file


def left(pid: int, worker: str = "nvml", target: str = "", *, ago_s: float = 60, ticks: int = 0) -> dict[str, Any]:
    """An entry for a child that was killed `ago_s` ago and has not gone; `ticks` makes its pid another's by now."""
    found = process_stat(pid)
    assert found is not None
    return {
        "pid": pid,
        "start_ticks": found.start_ticks + ticks,
        "worker": worker,
        "target": target,
        "killed_boottime_s": time.clock_gettime(time.CLOCK_BOOTTIME) - ago_s,
    }


def test_a_child_that_was_killed_a_minute_ago_and_is_there_is_stuck(probe: Command, stranger: int) -> None:
    """device.stuck fails with state and age, it is the first cause, and the state keeps the entry."""
    file = write_state(probe.state, leaving=[left(stranger)])
    ran = probe.check("--skip", "torch")
    assert (ran.code, ran.codes[0]) == (1, "GPU_DRIVER_STUCK")
    assert f"pid {stranger} (state " in ran.outcome("device.stuck")["summary"]
    assert [entry["pid"] for entry in json.loads(file.read_text())["leaving"]] == [stranger]


@pytest.mark.parametrize(("worker", "refused"), [("files", "device.shm"), ("torch", "torch.import")])
def test_nothing_is_started_into_the_same_hole(probe: Command, stranger: int, worker: str, refused: str) -> None:
    """What that child would have answered is skip and names the pid; no other check suffers."""
    write_state(probe.state, leaving=[left(stranger, worker)])
    ran = probe.check()
    assert (ran.code, ran.codes) == (1, ["GPU_DRIVER_STUCK"])
    assert ran.status(refused) == "skip"
    assert f"pid {stranger}" in ran.outcome(refused)["summary"]
    others = {"device.shm", "torch.tensor"} - {refused, "torch.tensor" if worker == "torch" else ""}
    assert {ran.status(other) for other in others} == {"pass"}


def test_one_that_was_killed_just_now_is_leaving(probe: Command, stranger: int) -> None:
    """Up to 10 s after the kill it is teardown: no failure, and it stays noted."""
    file = write_state(probe.state, leaving=[left(stranger, "files", ago_s=2)])
    ran = probe.check("--skip", "torch")
    assert (ran.code, ran.codes) == (0, [])
    assert ran.status("device.shm") == "pass"
    assert [entry["pid"] for entry in json.loads(file.read_text())["leaving"]] == [stranger]


def test_a_pid_that_is_somebody_elses_by_now_is_no_child(probe: Command, stranger: int) -> None:
    """Another start time: no failure, and the entry is dropped."""
    file = write_state(probe.state, leaving=[left(stranger, ticks=1)])
    ran = probe.check(*FAST)
    assert (ran.code, ran.status("device.stuck")) == (0, "pass")
    assert json.loads(file.read_text()).get("leaving", []) == []


@pytest.mark.parametrize(
    ("field", "value"), [("boot_id", "another"), ("pid_namespace", 1), ("pid1_start_ticks", 999999999)]
)
def test_a_file_of_another_life_is_void(probe: Command, stranger: int, field: str, value: object) -> None:
    """Another boot, pid namespace or pid 1: the pids in it are nobody we know, and nothing is said of it."""
    head = {**msgspec.to_builtins(Head.here()), field: value}
    write_state(probe.state, head=head, leaving=[left(stranger)])
    ran = probe.check(*FAST)
    assert (ran.code, ran.status("device.stuck"), ran.err) == (0, "pass", "")


def test_liveness_tells_of_a_stuck_child_and_asks_for_no_restart(probe: Command, stranger: int) -> None:
    """It is advisory there: a restart of the container mends nothing."""
    write_state(probe.state, leaving=[left(stranger)])
    ran = probe.check("--profile", "liveness")
    assert (ran.code, ran.codes[0]) == (0, "GPU_DRIVER_STUCK")


# ---- what is wrong with the folder or the file -----------------------------------------------------------------------

Spoil = Callable[[Path], None]


def damaged(folder: Path) -> None:
    write_state(folder).write_text('{"head": {"boot_id": "cut sh')


def not_text(folder: Path) -> None:
    write_state(folder).write_bytes(os.urandom(64))


def other_types(folder: Path) -> None:
    write_state(folder, leaving=[{"pid": "many"}])


def a_file_that_is_a_link(folder: Path) -> None:
    target = write_state(folder)
    target.rename(folder.parent / "elsewhere")
    target.symlink_to(folder.parent / "elsewhere")


def a_folder_that_is_a_link(folder: Path) -> None:
    real = folder.parent / "real"
    real.mkdir(mode=0o700)
    folder.symlink_to(real)


def a_folder_that_is_a_file(folder: Path) -> None:
    folder.write_text("")


def others_can_write(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def the_group_can_write(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o770)


SPOILED = (
    damaged,
    not_text,
    other_types,
    a_file_that_is_a_link,
    a_folder_that_is_a_link,
    a_folder_that_is_a_file,
    others_can_write,
    the_group_can_write,
)


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_a_state_that_is_no_use_costs_one_line(probe: Command, spoil: Spoil) -> None:
    """One line on stderr that names the path, after the verdict; verdict and exit code are unchanged."""
    spoil(probe.state)
    ran = probe.check(*FAST)
    assert (ran.code, ran.report["verdict"]) == (0, "healthy")
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("probe: state not ")
    assert str(probe.state) in ran.err
    assert len(ran.err) <= 512


def test_a_parent_that_is_not_there(probe: Command) -> None:
    """No folders are made on the way to it."""
    ran = probe.run([*probe.check_argv(*FAST), "--state", "/nonexistent/probe"])
    assert (ran.code, ran.err.count("\n")) == (0, 1)
    assert not Path("/nonexistent").exists()


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_a_state_that_is_no_file_is_not_waited_for(probe: Command, kind: str) -> None:
    """A FIFO in its place would hold whoever opens it."""
    probe.state.mkdir(mode=0o700)
    path = probe.state / "state.json"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    ran = probe.check(*FAST)
    assert (ran.code, ran.report["verdict"]) == (0, "healthy")
    assert ran.err.count("\n") <= 1


@pytest.mark.system
def test_a_folder_of_another_user_is_not_used(probe: Command, stranger: int) -> None:
    """Not even by root: what another user wrote there is not believed."""
    write_state(probe.state, leaving=[left(stranger)])
    os.chown(probe.state, 12345, 12345)
    ran = probe.check(*FAST)
    assert (ran.code, ran.status("device.stuck"), ran.err.count("\n")) == (0, "pass", 1)


def test_a_damaged_file_is_mended_by_the_next_thing_that_is_noted(probe: Command) -> None:
    """`probe state --forget` clears it too, and says whether there was anything."""
    damaged(probe.state)
    ran = probe("state", "--state", str(probe.state), "--forget")
    assert (ran.code, ran.out, ran.err) == (0, f"{probe.state}: forgotten\n", "")
    ran = probe("state", "--state", str(probe.state), "--forget")
    assert (ran.code, ran.out) == (0, f"{probe.state}: there was nothing\n")
    assert probe.check(*FAST).err == ""


def test_the_command_state_shows_what_is_kept(probe: Command, stranger: int) -> None:
    """Each child that is leaving, with how it is stuck, and the GPUs of the first good run."""
    write_state(probe.state, leaving=[left(stranger, "cuda", "gpu:GPU-1")], gpus=["GPU-1", "GPU-2"])
    ran = probe("state", "--state", str(probe.state))
    assert ran.code == 0
    assert f"leaving: cuda gpu:GPU-1 pid {stranger} pid {stranger} (state " in ran.out.replace("  ", " ")
    assert "GPUs of the first good run: GPU-1, GPU-2" in ran.out


def test_the_command_state_says_that_a_file_is_damaged(probe: Command) -> None:
    """Whoever looks at it is told, rather than shown an empty one."""
    damaged(probe.state)
    ran = probe("state", "--state", str(probe.state))
    assert "state not read" in ran.err
