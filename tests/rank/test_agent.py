"""The agent as a process: it obeys its verbs and no others, and leaves with all that it started, whatever ends it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from probe.rank.agent import SILENT_S

ROUND = {
    "verb": "round",
    "job": 7,
    "backend": "gloo",
    "ifname": "",
    "nproc": 2,
    "seed": 1,
    "sizes_bytes": [4104],
    "rates_bytes": [4096],
    "timeout_s": 20,
    "limit_s": 40,
    "first_rank": 0,
    "ranks": 2,
    "first_local": 0,
    "locals": 1,
    "address": "127.0.0.1",
    "port": 0,
}
PATIENCE_S = 60.0


class Agent:
    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process

    def tell(self, **command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, say: str, **wanted: Any) -> dict[str, Any]:
        """The next message of that kind; the test's own bound is pytest's patience with a pipe."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said: dict[str, Any] = json.loads(line)
            flat = {**said, **said.get("record", {})}
            if said["say"] == say and wanted.items() <= flat.items():
                return said
        raise AssertionError(f"it left without saying {say}")

    def descendants(self) -> set[int]:
        found: set[int] = set()
        edge = [self.process.pid]
        while edge:
            for task in Path(f"/proc/{edge.pop()}/task").glob("*/children"):
                with suppress(OSError):
                    fresh = set(map(int, task.read_text().split())) - found
                    found |= fresh
                    edge += fresh
        return found


@contextmanager
def agent(**environment: str) -> Iterator[Agent]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "probe.rank.agent", "here"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    try:
        yield Agent(process)
    finally:
        process.kill()
        process.wait(10)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def gone(pids: set[int], within_s: float = 5.0) -> bool:
    until = time.monotonic() + within_s
    while left := {pid for pid in pids if alive(pid)}:
        if time.monotonic() > until:
            raise AssertionError(f"still there: {left}")
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    return state(pid) not in ("", "Z")


def state(pid: int) -> str:
    """As in /proc/<pid>/stat; empty: it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def warm(one: Agent) -> None:
    one.hear("ready")
    one.tell(verb="hello", deadline_s=PATIENCE_S, ifname="")
    one.tell(verb="warm")
    one.hear("record", key="import")


def test_two_ranks_on_one_host_do_a_round() -> None:
    """The first opens the store and says where; the second is told, and both are done."""
    with agent() as one:
        warm(one)
        one.tell(**ROUND)
        port = one.hear("record", key="store")["record"]["data"]["port"]
        one.tell(**{**ROUND, "job": 8, "first_local": 1, "port": port})
        ended = [one.hear("end"), one.hear("end")]
        assert [(7, 0), (8, 0)] == sorted((each["job"], each["status"]) for each in ended)


def test_it_imports_nothing_that_a_host_may_lack() -> None:
    program = (
        "import sys, probe.rank.agent, probe.torchfile;"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    )
    env = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True, env={**os.environ, **env}
    )
    assert {"__main__", "probe"} >= set(done.stdout.split())


@pytest.mark.parametrize("line", [b'{"verb":"run","argv":["true"]}\n', b"rubbish\n"])
def test_what_is_no_verb_is_refused(line: bytes) -> None:
    with agent() as one:
        one.hear("ready")
        assert one.process.stdin is not None
        one.process.stdin.write(line)
        one.process.stdin.flush()
        one.hear("refused")


def test_a_command_for_another_host_is_not_obeyed() -> None:
    """Where one input is broadcast to all, as srun does."""
    with agent() as one:
        one.hear("ready")
        one.tell(verb="stop", to=["there"])
        one.tell(verb="tick", n=1, to=["here", "there"])
        assert one.hear("tock")["n"] == 1


@pytest.mark.parametrize("how", ["end of input", "stop", "SIGTERM", "SIGKILL", "SIGHUP"])
def test_whatever_ends_it_all_that_it_started_is_gone(how: str) -> None:
    with agent() as one:
        warm(one)
        one.tell(**ROUND)  # waits for a second rank that never comes
        one.hear("record", key="store")
        started = one.descendants()
        assert len(started) >= 2
        if how == "end of input":
            assert one.process.stdin is not None
            one.process.stdin.close()
        elif how == "stop":
            one.tell(verb="stop")
            assert one.hear("bye")["left"] == []
        else:
            one.process.send_signal(getattr(signal, how))
        one.process.wait(10)
        assert gone(started)


def test_its_deadline_ends_it_though_ticks_come() -> None:
    with agent() as one:
        one.hear("ready")
        one.tell(verb="hello", deadline_s=0.5, ifname="")
        assert one.hear("bye")["why"] == "deadline"


def test_a_controller_that_says_nothing_any_more_ends_it() -> None:
    """Its pipe is open and silent: what a host that cannot be reached any more looks like from the other side."""
    with agent() as one:
        one.hear("ready")
        began = time.monotonic()
        assert one.hear("bye")["why"] == "no tick"
        assert time.monotonic() - began < SILENT_S + 3


def test_a_job_ends_at_its_limit_and_says_how() -> None:
    with agent() as one:
        warm(one)
        one.tell(**{**ROUND, "limit_s": 1.0})
        ended = one.hear("end", job=7)
        assert ended["killed"] or ended["status"] == 1


def test_a_stopped_rank_is_seen_to_be_stopped() -> None:
    with agent() as one:
        warm(one)
        before = one.descendants()
        one.tell(**ROUND)
        one.hear("record", key="store")
        (rank,) = one.descendants() - before
        os.kill(rank, signal.SIGSTOP)
        until = time.monotonic() + PATIENCE_S
        while state(rank) != "T":  # a busy machine takes its time to stop it
            assert time.monotonic() < until
            time.sleep(0.01)
        one.tell(verb="cancel", job=7)
        assert (one.hear("state")["state"], one.hear("end", job=7)["killed"]) == ("T", True)


def test_a_port_is_held_and_can_be_reached() -> None:
    with agent() as one:
        one.hear("ready")
        one.tell(verb="listen", job=1, address="127.0.0.1", port=0)
        port = one.hear("reached")["port"]
        one.tell(verb="connect", job=2, address="127.0.0.1", port=port, timeout_s=3)
        assert one.hear("reached", job=2)["port"] == port
        one.tell(verb="connect", job=3, address="127.0.0.1", port=1, timeout_s=3)
        refused = one.hear("reached", job=3)
        assert (0, "Connection refused") == (refused["port"], refused["text"])


def test_a_port_that_is_held_is_free_again_when_its_job_is_cancelled() -> None:
    """Else the next world, or a round on the port that the user has chosen, would find it taken by ourselves."""
    with agent() as one:
        one.hear("ready")
        one.tell(verb="listen", job=1, address="127.0.0.1", port=0)
        port = one.hear("reached")["port"]
        one.tell(verb="listen", job=2, address="127.0.0.1", port=port)
        assert "Address already in use" == one.hear("reached", job=2)["text"]
        one.tell(verb="cancel", job=1)
        one.tell(verb="listen", job=3, address="127.0.0.1", port=port)
        assert port == one.hear("reached", job=3)["port"]


@pytest.mark.parametrize(
    ("address", "words"), [("224.0.0.1", "unreachable"), ("fe80::1%nowhere", "")], ids=["no route", "no interface"]
)
def test_a_connect_that_fails_at_once_is_no_end_of_the_agent(address: str, words: str) -> None:
    """The kernel refuses a TCP connection to a multicast address without a packet, as it does without a route."""
    with agent() as one:
        one.hear("ready")
        one.tell(verb="connect", job=1, address=address, port=80, timeout_s=3)
        said = one.hear("reached", job=1)
        assert (0, True) == (said["port"], bool(said["text"]))
        assert words in said["text"]
        one.tell(verb="tick", n=1)
        one.hear("tock")


def test_an_address_that_is_not_this_host_s_cannot_be_held() -> None:
    with agent() as one:
        one.hear("ready")
        one.tell(verb="listen", job=1, address="fe80::1%nowhere", port=0)
        assert one.hear("reached", job=1)["port"] == 0
