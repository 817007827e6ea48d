"""device.zombies: who is left unreaped by pid 1."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.checks.device_zombies import stat
from probe.model import Finding, Status
from tests.checks.asking import ask


def processes(zombies: int, *, others: int = 3, listed: bool = True) -> Mapping[str, str]:
    """One init, its zombies from pid 100 on, its other children, and a zombie of somebody else's."""
    files = {"/proc/1/stat": "1 (python train.py) S 0 1 1 0"}
    files |= {f"/proc/{100 + n}/stat": f"{100 + n} (a) b (c) Z 1 7 7 0" for n in range(zombies)}
    files |= {f"/proc/{500 + n}/stat": f"{500 + n} (worker) S 1 7 7 0" for n in range(others)}
    children = " ".join(name.split("/")[2] for name in files if name != "/proc/1/stat")
    files |= {"/proc/900/stat": "900 (x) Z 500 7 7 0", "/proc/901/stat": "garbage", "/proc/meminfo": "x"}
    return files | ({"/proc/1/task/1/children": children} if listed else {})


def zombies(files: Mapping[str, str], **thresholds: int) -> Finding:
    return ask("device.zombies", files=files, thresholds=thresholds)


@pytest.mark.parametrize("listed", [True, False])
def test_many_zombies_are_a_warning_that_names_pid_1(listed: bool) -> None:
    """With the kernel's own list of children, and without one (CONFIG_PROC_CHILDREN)."""
    finding = zombies(processes(11, listed=listed))
    assert (Status.WARN, 11) == (finding.status, finding.data["found"])
    assert "pid 1 (python train.py) has 11 zombies, over 10: it does not reap" == finding.summary


@pytest.mark.parametrize("listed", [True, False])
def test_a_few_are_on_their_way(listed: bool) -> None:
    finding = zombies(processes(10, listed=listed))
    assert (Status.PASS, 10) == (finding.status, finding.data["found"])


def test_the_threshold_can_be_set() -> None:
    assert Status.WARN is zombies(processes(1), max_zombies=0).status


def test_one_that_goes_meanwhile_is_none() -> None:
    files = {**processes(2), "/proc/1/task/1/children": "100 101 102 103"}
    assert 2 == zombies(files).data["found"]


def test_a_machine_that_shows_no_processes_is_not_judged() -> None:
    assert Status.SKIP is zombies({}).status


def test_the_name_of_pid_1_is_fit_to_be_shown() -> None:
    """A process may call itself anything."""
    files = {**processes(11), "/proc/1/stat": "1 (\x1b[2J) x\n) S 0 1 1 0"}
    assert "?[2J) x?" == zombies(files).data["pid1"]


@given(st.text())
def test_whatever_stat_says_is_read(text: str) -> None:
    state, parent = stat(text)
    assert isinstance(state, str)
    assert parent >= 0


@given(st.text(max_size=20), st.sampled_from("RSDZTX"), st.integers(0, 4194304))
def test_a_name_cannot_forge_state_and_parent(name: str, state: str, parent: int) -> None:
    assert (state, parent) == stat(f"7 ({name}) {state} {parent} 7 7 0 -1")
