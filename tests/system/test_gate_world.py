"""The gate over real hosts that can be reached, with a fault in what they do together.

Each asserts who is named, who is not, and the exit code. The hosts' own checks are skipped where they have no part in
it: an import of torch on each of four hosts less.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.command import Ran
from tests.system.lab import FAULTY, LEFT_S, Lab, LabHost, needed, wait_for
from tests.system.saying import causes, clean, said, states

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    needed()
    lab = Lab(tmp_path_factory.mktemp("lab"), hosts=4)
    try:
        lab.make()
        yield lab
    finally:
        lab.remove()


@pytest.fixture
def lab(built: Lab) -> Iterator[Lab]:
    """All hosts well; and after the test nothing of the gate is left on any."""
    yield built
    wait_for(lambda: not built.left(), LEFT_S, f"processes left: {built.left()}")
    built.mend()


def world(lab: Lab, *args: str, hosts: list[LabHost] | None = None) -> Ran:
    return lab.gate("--skip-node", *args, hosts=hosts)


def spoil(host: LabHost, fault: str, from_ranks: int = 2) -> None:
    """Make the ranks of one host faulty, in worlds of so many ranks."""
    path = f"{FAULTY}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    host.start(PYTHONPATH=path, LAB_FAULT=fault, LAB_FROM=str(from_ranks))


def kinds(ran: Ran) -> list[str]:
    return [one["kind"] for one in said(ran)["rounds"]]


def test_healthy_hosts_pay_one_world_and_are_ready(lab: Lab) -> None:
    """With the hosts' own checks; a host's clock and interface are known, and every all-reduce was verified."""
    ran = lab.gate()
    assert (0, "ready", ["h1", "h2", "h3", "h4"]) == (ran.code, said(ran)["verdict"], clean(ran))
    assert ["local", "world"] == kinds(ran)
    assert {} == causes(ran)
    found = said(ran)["world"]
    assert (4, 4, "gloo") == (found["hosts"], found["ranks"], found["backend"])
    assert found["verified"] == 18
    assert found["busbw_gbps"] > 0


@pytest.mark.parametrize(
    ("fault", "code"), [("kill", "RANK_KILLED"), ("segv", "RANK_CRASHED"), ("stop", "RANK_STOPPED")]
)
def test_a_rank_that_ends_or_hangs_names_its_host_and_no_other(lab: Lab, fault: str, code: str) -> None:
    spoil(lab[3], fault)
    ran = world(lab)
    assert (1, "ready_without", ["h1", "h2", "h4"]) == (ran.code, said(ran)["verdict"], clean(ran))
    assert {code: ["h3"]} == causes(ran)
    assert {"h1": "ready", "h2": "ready", "h3": "bad", "h4": "ready"} == states(ran)


def test_wrong_data_is_its_sender_s(lab: Lab) -> None:
    spoil(lab[2], "wrong")
    ran = world(lab)
    assert (1, ["h1", "h3", "h4"]) == (ran.code, clean(ran))
    assert {"HOST_WRONG_DATA": ["h2"]} == causes(ran)


def test_two_faults_at_once_are_both_named(lab: Lab) -> None:
    spoil(lab[1], "kill")
    lab[4].stop()
    ran = world(lab, "--min-hosts", "2")
    assert (0, "ready_without", ["h2", "h3"]) == (ran.code, said(ran)["verdict"], clean(ran))
    assert {"RANK_KILLED": ["h1"], "SSH_REFUSED": ["h4"]} == causes(ran)


@pytest.mark.parametrize(("one", "other"), [(1, 2), (1, 3)], ids=["neighbours", "across the ring"])
def test_a_black_hole_between_two_hosts_is_their_link_s(lab: Lab, one: int, other: int) -> None:
    """Neither host is blamed; one end is left out, since a job cannot have both."""
    lab[one].black_hole(lab[other])
    ran = world(lab)
    a, b = f"h{one}", f"h{other}"
    assert (1, "ready_without") == (ran.code, said(ran)["verdict"])
    assert {"LINK_BAD": [a, b]} == causes(ran)
    assert set(states(ran).values()) == {"ready"}
    assert [(a, b, "bad")] == [(link["a"], link["b"], link["state"]) for link in said(ran)["links"]]
    assert len(clean(ran)) == 3
    assert len({a, b} & set(clean(ran))) == 1


def test_a_missing_route_between_two_hosts_is_their_link_s(lab: Lab) -> None:
    """The connect fails at once, with an error; the host on which it does is as innocent as behind a black hole."""
    lab[3].no_route(lab[1])
    ran = world(lab)
    assert (1, "ready_without") == (ran.code, said(ran)["verdict"])
    assert {"LINK_BAD": ["h1", "h3"]} == causes(ran)
    assert set(states(ran).values()) == {"ready"}
    assert "h3 cannot reach h1" in " ".join(said(ran)["notes"])
    assert "No route to host" in " ".join(said(ran)["notes"])


def test_a_partition_is_named_as_one_and_nobody_is_blamed(lab: Lab) -> None:
    for one in (lab[1], lab[2]):
        for other in (lab[3], lab[4]):
            one.black_hole(other)
    ran = world(lab)
    assert (1, [["h1", "h2"], ["h3", "h4"]]) == (ran.code, said(ran)["partitions"])
    assert ["PARTITION"] == list(causes(ran))
    assert set(states(ran).values()) == {"ready"}


def test_a_bad_rendezvous_host_is_found_and_another_one_taken(lab: Lab) -> None:
    """The first host, around which a world is usually formed, is cut off from all others."""
    for other in lab.hosts[1:]:
        lab[1].black_hole(other)
    ran = world(lab)
    assert (1, ["h2", "h3", "h4"]) == (ran.code, clean(ran))
    assert {"HOST_BAD": ["h1"]} == causes(ran)
    assert said(ran)["world"]["rendezvous"] != "h1"


def test_a_port_that_is_taken_on_one_host_only_moves_the_rendezvous(lab: Lab) -> None:
    holder = (
        "import socket, signal; s = socket.create_server(('0.0.0.0', 29555)); print('held', flush=True); signal.pause()"
    )
    argv = ["ip", "netns", "exec", lab[1].namespace, "python3", "-c", holder]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            ran = world(lab, "--port", "29555")
        finally:
            process.kill()
    assert (0, "ready") == (ran.code, said(ran)["verdict"])
    assert {"RENDEZVOUS_UNREACHABLE": ["h1"]} == causes(ran)
    assert said(ran)["world"]["rendezvous"] == "h2"


def test_two_hosts_that_fail_together_are_a_pair(lab: Lab) -> None:
    """No third host can say which of them it is, so none is blamed."""
    lab[1].black_hole(lab[2])
    ran = world(lab, hosts=[lab[1], lab[2]])
    assert (1, "not_ready", []) == (ran.code, said(ran)["verdict"], clean(ran))
    assert {"PAIR_FAILS": ["h1", "h2"]} == causes(ran)
    assert set(states(ran).values()) == {"undetermined"}


def test_a_slow_host_is_named_where_a_rate_is_asked_for(lab: Lab) -> None:
    lab[2].slow("50mbit")
    ran = world(lab, "--min-busbw", "0.03")
    assert (1, ["h1", "h3", "h4"]) == (ran.code, clean(ran))
    assert {"HOST_SLOW": ["h2"]} == causes(ran)
    assert states(ran)["h2"] == "slow"


def test_a_slow_link_is_named_and_neither_of_its_hosts(lab: Lab) -> None:
    """Both directions between two hosts are slow, and each of the two is fast with all others."""
    lab[1].slow("50mbit", lab[2])
    lab[2].slow("50mbit", lab[1])
    ran = world(lab, "--min-busbw", "0.03")
    assert (1, {"LINK_SLOW": ["h1", "h2"]}) == (ran.code, causes(ran))
    assert [("h1", "h2", "slow")] == [(link["a"], link["b"], link["state"]) for link in said(ran)["links"]]
    assert set(states(ran).values()) == {"ready"}
    assert len(clean(ran)) == 3


def test_packets_lost_now_and_then_stop_no_job(lab: Lab) -> None:
    """One in ten: TCP delivers all of them, late. Where no rate is asked for that is no fault; every word is right."""
    lab[3].loses(10)
    ran = world(lab)
    assert (0, "ready", {}) == (ran.code, said(ran)["verdict"], causes(ran))
    assert said(ran)["world"]["verified"] >= 12


def test_a_host_that_loses_most_packets_is_named_and_nobody_else(lab: Lab) -> None:
    """Four in five."""
    lab[3].loses(80)
    ran = world(lab)
    assert (1, ["h1", "h2", "h4"]) == (ran.code, clean(ran))
    assert [["h3"]] == list(causes(ran).values())


def test_an_agent_that_is_killed_in_the_middle_is_named(lab: Lab) -> None:
    with lab.started("--skip-node") as process:
        wait_for(lambda: len(lab[3].processes()) >= 2, 20, "no importer on h3")
        agent = min(pid for pid, words in lab[3].processes().items() if "probe" in words and "sshd" not in words)
        os.kill(agent, signal.SIGKILL)
        ran = lab.finish(process)
    assert (1, ["h1", "h2", "h4"]) == (ran.code, clean(ran))
    assert {"AGENT_LOST": ["h3"]} == causes(ran)
    assert states(ran)["h3"] == "absent"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("moment", ["importing", "in the world"])
def test_a_controller_that_ends_leaves_nothing_on_any_host(lab: Lab, number: int, moment: str) -> None:
    """Killed or interrupted, at any time; by process id, on every host, within 12 s."""
    many = {"importing": 2, "in the world": 4}[moment]
    with lab.started("--skip-node") as process:
        wait_for(lambda: all(len(host.processes()) >= many for host in lab.hosts), 30, "they did not start")
        process.send_signal(number)
        ran = lab.finish(process)
        began = time.monotonic()
    wait_for(lambda: not lab.left(), LEFT_S, f"left: {lab.left()}")
    assert time.monotonic() - began < LEFT_S
    assert ran.code == {signal.SIGKILL: -9, signal.SIGINT: 130}[signal.Signals(number)]
    if number == signal.SIGINT:
        assert said(ran)["verdict"] == "undetermined"


def test_a_budget_that_is_too_short_blames_nobody(lab: Lab) -> None:
    spoil(lab[2], "stop")
    ran = world(lab, "--budget", "8s")
    assert (3, "undetermined") == (ran.code, said(ran)["verdict"])
    assert [] == [name for name, state in states(ran).items() if state == "bad" and name != "h2"]
    assert ran.elapsed_s < 8.5


def test_the_clean_hostfile_is_the_hostfile_without_the_bad(lab: Lab, tmp_path: Path) -> None:
    hostfile, cleaned = tmp_path / "hosts", tmp_path / "clean"
    hostfile.write_text("# rack 1\nh1 slots=8\nroot@h2:22 slots=8  # spare\n\nh3\n")
    lab[3].stop()
    argv = lab.argv("--until", "reach", "--clean-hostfile", str(cleaned))
    at = argv.index("--hosts")
    argv[at : at + 2] = ["--hostfile", str(hostfile)]
    ran = lab.run(argv)
    assert (1, ["h1", "h2"]) == (ran.code, clean(ran))
    assert cleaned.read_text() == "# rack 1\nh1 slots=8\nroot@h2:22 slots=8  # spare\n\n"
