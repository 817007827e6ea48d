"""What the records of one group prove: who is absent, whose data was wrong, and when nobody may be named."""

import signal
from typing import Any

import pytest

from probe.cluster.protocol import AnyMessage, Ended, State
from probe.cluster.trial import Trial, brief, read
from tests.cluster.hearing import healthy, record, trial


def well(count: int) -> dict[int, list[AnyMessage | None]]:
    return {index: [*healthy(index)] for index in range(count)}


def ended(number: int | None = None, status: int | None = None, *, killed: bool = False) -> Ended:
    return Ended(job=1, process="0", signal=number, status=status, killed=killed)


def test_all_done_and_nothing_wrong_passes_with_the_median_rate() -> None:
    said: dict[int, list[AnyMessage | None]] = {i: [*healthy(i, gbps)] for i, gbps in enumerate((1.0, 2.0, 9.0))}
    result = read(trial(said))
    assert (True, (), (), 2.0) == (result.ok, result.absent, result.wrong, result.busbw_gbps)


def test_one_rank_alone_has_no_rate() -> None:
    result = read(trial(well(1)))
    assert (True, None) == (result.ok, result.busbw_gbps)


def test_a_rank_that_is_not_done_fails_the_group_and_names_nobody() -> None:
    said = well(3)
    said[1] = said[1][:2]
    result = read(trial(said, stalled=True))
    assert (False, (), ()) == (result.ok, result.absent, result.wrong)
    assert "no progress" in result.note


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (ended(signal.SIGKILL), "rank_killed"),
        (ended(signal.SIGSEGV), "rank_crashed"),
        (ended(status=3), "rank_failed"),
        (None, "agent_lost"),
        (State(job=1, process="0", pid=7, state="T", wchan=""), "rank_stopped"),
        (record("torchrun", "OSError: no space left on device", code=1), "rank_failed"),
        (record("torchrun", "local rank 0 ended with exit code -9", code=1), "rank_killed"),
        (record("torchrun", "local rank 0 ended with exit code -11", code=1), "rank_crashed"),
        (record("error", "Traceback\nRuntimeError: x"), "rank_failed"),
    ],
    ids=str,
)
def test_what_happens_on_one_host_speaks_against_it_alone(last: AnyMessage | None, reason: str) -> None:
    said = well(3)
    said[1] = [record("step", "all-reduce of 4104 bytes", rank=1), last]
    said[0] = [record("step", "init", rank=0), record("failed", "Connection reset by peer", rank=0)]
    found = trial(said)
    assert (False, (1,)) == (read(found).ok, read(found).absent)
    assert found.heard[1].reason == reason


@pytest.mark.parametrize(
    "last",
    [
        ended(signal.SIGKILL, killed=True),
        ended(signal.SIGABRT),
        State(job=1, process="0", pid=7, state="S", wchan=""),
        record("failed", "Connection reset by peer", rank=1),
        record("torchrun", "RendezvousTimeoutError: ...", code=1),
        record("torchrun", "local rank 0 ended with exit code 1", code=1),
        record("torchrun", "local rank 0 ended with exit code -6", code=1),
        record("torchrun", "local rank 0 ended with no code", code=1),
    ],
    ids=str,
)
def test_what_may_be_anybodys_fault_is_nobodys(last: AnyMessage) -> None:
    """Killed by us, aborted by NCCL's watchdog, or failed in what it did with others: the planner finds out."""
    said = well(3)
    said[1] = [record("step", "all-reduce of 4104 bytes", rank=1), last]
    result = read(trial(said))
    assert (False, (), ()) == (result.ok, result.absent, result.wrong)


def test_a_rank_that_fails_before_it_meets_others_speaks_against_its_host() -> None:
    said = well(2)
    said[0] = [record("step", "device", rank=0), record("failed", "CUDA error: out of memory", rank=0)]
    assert (0,) == read(trial(said)).absent


def test_a_rank_that_imports_torch_is_known_until_it_says_the_next_step() -> None:
    said = well(2)
    said[1] = [record("step", "import torch", rank=1)]
    assert trial(said).importing
    said[1] += [record("step", "store", rank=1)]
    assert not trial(said).importing


def test_a_host_that_never_said_anything_is_absent() -> None:
    said = well(3)
    said[2] = []
    result = read(trial(said, stalled=True))
    assert ((2,), "its ranks never started") == (result.absent, result.note)


def wrong(kind: str, words: int, *owners: int) -> dict[str, Any]:
    return {"dtype": "fp32", "kind": kind, "words": words, "first": 0, "owners": list(owners)}


def with_wrong(
    count: int, *, sums: dict[int, list[dict[str, Any]]] | None = None, slots: dict[int, list[int]] | None = None
) -> Trial:
    said: dict[int, list[AnyMessage | None]] = {}
    for rank in range(count):
        found, seen = (sums or {}).get(rank, []), (slots or {}).get(rank, [])
        said[rank] = [
            record("cases", rank=rank, bytes=4104, verified=6, wrong=found),
            record("gathered", rank=rank, count=len(seen), wrong=seen),
            record("done", rank=rank),
            Ended(job=1, process="0", status=0),
        ]
    return trial(said)


@pytest.mark.parametrize(
    ("found", "named"),
    [
        (with_wrong(4, slots={0: [2], 1: [2], 3: [2]}), (2,)),
        (with_wrong(4, slots={0: [2], 1: [2], 2: [2], 3: [2]}), (2,)),
        (with_wrong(4, slots={1: [0, 2, 3]}), (1,)),
        (with_wrong(4, slots={0: [2], 1: [2]}), ()),
        (with_wrong(4, sums={2: [wrong("dense", 8)]}), (2,)),
        (with_wrong(4, sums={rank: [wrong("routed", 8, 3)] for rank in range(4)}), (3,)),
        (with_wrong(4, sums={rank: [wrong("routed", 8, 1, 3)] for rank in range(4)}), ()),
        (with_wrong(4, sums={rank: [wrong("dense", 8)] for rank in range(4)}), ()),
        (with_wrong(2, slots={0: [1]}), ()),
    ],
    ids=[
        "all others saw one sender's slot wrong",
        "and it itself too",
        "one saw everybody's wrong",
        "some saw it wrong, not all",
        "one result is wrong",
        "all results, words of one owner",
        "all results, words of two",
        "all results, no owner",
        "of two either may be the one",
    ],
)
def test_whose_data_was_wrong(found: Trial, named: tuple[int, ...]) -> None:
    result = read(found)
    assert (False, named) == (result.ok, result.wrong)


def test_an_error_of_nccl_is_told_in_its_own_last_words() -> None:
    text = (
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3135, invalid usage (run with "
        "NCCL_DEBUG=WARN for details), NCCL version 2.28.9 ncclInvalidUsage: This usually reflects invalid usage of "
        "NCCL library. Last error: Bootstrap : no socket interface found"
    )
    assert "ncclInvalidUsage: Bootstrap : no socket interface found" == brief(text)
    assert "Connection reset by peer" == brief("Connection reset by peer")
