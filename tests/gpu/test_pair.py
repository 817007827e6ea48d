"""The gate over two hosts by ssh, each with its share of this machine's GPUs: who is named, and how soon.

With one GPU or none they have none each, and gloo is between them. What was measured is printed (``pytest -s``).
"""

import os
import shutil
import time
from collections.abc import Iterator

import pytest

from probe.rank.facts import visible_gpus
from tests.gpu.pair import Pair, pair, used_mib
from tests.system.lab import FAULTY, LEFT_S, wait_for
from tests.system.saying import causes, clean, said, states

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not shutil.which("sshd"), reason="needs sshd")]

BACKEND = "nccl" if len(visible_gpus()) > 1 else "gloo"

ONE_MACHINE = {"SAME_MACHINE": ["h1"]}
"""What both hosts are, and the gate says."""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair(tmp_path_factory.mktemp("pair")) as made:
        yield made


@pytest.fixture(autouse=True)
def _as_before(hosts: Pair) -> Iterator[None]:
    """No process of a gate is left on either host, nothing on the GPUs, and the next test finds both well."""
    before_mib = used_mib()
    yield
    wait_for(lambda: not hosts.left(), LEFT_S, f"left: {hosts.left()}")
    wait_for(lambda: used_mib() <= before_mib + 100, LEFT_S, f"{used_mib()} MiB in use, {before_mib} before")
    hosts.mend()


def test_two_healthy_hosts_are_ready(hosts: Pair) -> None:
    ran = hosts.gate()
    print(f"healthy: {ran.elapsed_s:.1f} s\n{ran.out}")
    assert (0, "ready", ["h1", "h2"]) == (ran.code, said(ran)["verdict"], clean(ran))
    world = said(ran)["world"]
    ranks = max(2, len(visible_gpus()) // 2 * 2)
    assert (2, ranks, BACKEND) == (world["hosts"], world["ranks"], world["backend"])
    assert world["verified"] in (12, 18)  # loopback sockets may be too slow for the largest size
    assert world["busbw_gbps"] > 0


@pytest.mark.parametrize(("fault", "code"), [("kill", "RANK_KILLED"), ("stop", "RANK_STOPPED")])
def test_a_rank_that_ends_or_stops_names_its_host(hosts: Pair, fault: str, code: str) -> None:
    """By its own evidence, which needs no third host to tell."""
    spoil(hosts, fault)
    ran = hosts.gate("--skip-node")
    print(f"{fault}: named after {ran.elapsed_s:.1f} s\n{ran.out}")
    assert {code: ["h2"], **ONE_MACHINE} == causes(ran)
    assert ("ready", "bad") == (states(ran)["h1"], states(ran)["h2"])
    assert 1 == ran.code


def test_two_hosts_that_cannot_tell_are_a_pair(hosts: Pair) -> None:
    """A rank that hangs and shows no sign of why: the other one waits for it and looks no different."""
    spoil(hosts, "hang")
    ran = hosts.gate("--skip-node")
    print(f"hang: named after {ran.elapsed_s:.1f} s\n{ran.out}")
    assert {"PAIR_FAILS": ["h1", "h2"], **ONE_MACHINE} == causes(ran)
    assert {"undetermined"} == set(states(ran).values())
    assert [("h1", "h2")] == [(link["a"], link["b"]) for link in said(ran)["links"]]
    assert 1 == ran.code


@pytest.mark.skipif(BACKEND != "nccl", reason="needs two GPUs")
def test_a_wrong_interface_for_nccl_names_its_host(hosts: Pair) -> None:
    """It fails alone already, in the local round: no other host is in doubt, and nothing hangs."""
    hosts[2].start(NCCL_SOCKET_IFNAME="nothere0")
    argv = hosts.argv("--skip-node")
    at = argv.index("--ifname")
    ran = hosts.run(argv[:at] + argv[at + 2 :])
    print(f"wrong interface: named after {ran.elapsed_s:.1f} s\n{ran.out}")
    assert ("ready", "bad") == (states(ran)["h1"], states(ran)["h2"])
    assert ["h2"] == causes(ran)["NCCL_WRONG_INTERFACE"]
    assert "nothere0" in ran.out
    assert 1 == ran.code


def test_a_controller_that_is_killed_leaves_nothing_on_the_gpus(hosts: Pair) -> None:
    before_mib = used_mib()
    with hosts.started("--skip-node") as process:
        wait_for(lambda: used_mib() > before_mib + 300 or BACKEND == "gloo", 60, "no rank on the GPUs")
        process.kill()
        began = time.monotonic()
        hosts.finish(process)
    wait_for(lambda: not hosts.left(), LEFT_S, f"left: {hosts.left()}")
    print(f"killed: gone after {time.monotonic() - began:.1f} s")


def spoil(hosts: Pair, fault: str) -> None:
    path = f"{FAULTY}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    hosts[2].start(PYTHONPATH=path, LAB_FAULT=fault, LAB_FROM="2")
