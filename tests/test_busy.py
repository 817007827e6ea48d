"""When a GPU is busy: any one sign is enough, and nothing observable is a sign too."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.busy import IDLE_USED_BYTES, MIB, ROOM_BYTES, Evidence, busy

IDLE = {"processes": 0, "used_bytes": 0, "free_bytes": 80 << 30, "utilization_percent": 0, "exclusive": False}


def idle(**changes: object) -> Evidence:
    return Evidence(**{**IDLE, **changes})  # type: ignore[arg-type]


def test_an_idle_gpu_is_not_busy() -> None:
    """All signs observed, none of a job."""
    assert busy(idle()) == ""


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        ({"processes": 1}, "1 compute process"),
        ({"processes": 3}, "3 compute processes"),
        ({"used_bytes": 513 * MIB}, "513 MiB used"),
        ({"utilization_percent": 1}, "utilisation 1 %"),
        ({"exclusive": True, "used_bytes": 1}, "exclusive compute mode, in use"),
        ({"mps": True}, "an MPS pipe exists"),
        ({"free_bytes": ROOM_BYTES - 1}, "only 1536 MiB free"),
    ],
)
def test_each_sign_alone_makes_it_busy_and_is_said(sign: dict[str, object], words: str) -> None:
    """With its number: the words stand in the skip's reason."""
    assert busy(idle(**sign)) == words


@pytest.mark.parametrize(
    "no_sign",
    [
        {"used_bytes": IDLE_USED_BYTES},
        {"free_bytes": ROOM_BYTES},
        {"exclusive": True},
        {"exclusive": None},
        {"processes": None},
        {"utilization_percent": None},
        {"used_bytes": None, "free_bytes": None},
    ],
)
def test_what_is_no_sign(no_sign: dict[str, object]) -> None:
    """The limits themselves, exclusive mode with nobody in it, and one sign that could not be observed."""
    assert busy(idle(**no_sign)) == ""


def test_several_signs_are_all_said() -> None:
    """The reader wants to know how sure that is."""
    assert busy(idle(processes=1, used_bytes=30 << 30, utilization_percent=97)) == (
        "1 compute process, 30720 MiB used, utilisation 97 %"
    )


def test_nothing_observed_counts_as_busy() -> None:
    """A job that cannot be seen must not be slowed either."""
    assert busy(Evidence()) == "nothing of it could be observed"
    assert busy(Evidence(exclusive=False, free_bytes=80 << 30)) == "nothing of it could be observed"


numbers = st.none() | st.integers(0, 1 << 40)


@given(
    st.builds(
        Evidence,
        processes=numbers,
        used_bytes=numbers,
        free_bytes=numbers,
        utilization_percent=st.none() | st.integers(0, 100),
        exclusive=st.none() | st.booleans(),
        mps=st.booleans(),
    )
)
def test_only_a_gpu_that_was_seen_to_be_idle_is_not_busy(evidence: Evidence) -> None:
    """Whatever was observed: not busy means no process, little memory, no utilisation, room, and something seen."""
    if busy(evidence) == "":
        assert not evidence.processes
        assert not evidence.mps
        assert not evidence.utilization_percent
        assert (evidence.used_bytes or 0) <= IDLE_USED_BYTES
        assert evidence.free_bytes is None or evidence.free_bytes >= ROOM_BYTES
        seen = (evidence.processes, evidence.used_bytes, evidence.utilization_percent)
        assert any(value is not None for value in seen)
