"""`probe gate` on this machine alone, as people and programs call it: simulated hosts, and what it refuses."""

import json
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.system.command import ARGV, Command, finish
from tests.system.lab import wait_for
from tests.system.saying import causes, clean, said


def test_two_simulated_hosts_are_ready_and_nothing_is_left(probe: Command) -> None:
    """With all phases: their own checks, the local round, a torchrun world."""
    ran = probe("gate", "--local", "2", "--format", "json")
    found = said(ran)
    assert (0, "ready", "local", "world") == (ran.code, found["verdict"], found["launcher"], found["phase"])
    assert ["local-1", "local-2"] == clean(ran)
    assert ["local", "world"] == [one["kind"] for one in found["rounds"]]
    assert {} == causes(ran)
    assert [] == probe.left()


def test_localhost_needs_no_sshd(probe: Command) -> None:
    ran = probe("gate", "--hosts", "localhost", "--format", "json", "--skip-node")
    assert (0, ["localhost"], 1) == (ran.code, clean(ran), said(ran)["world"]["ranks"])


def test_several_ranks_on_a_host_are_measured_within_it(probe: Command) -> None:
    ran = probe("gate", "--local", "1", "--nproc-per-node", "2", "--skip-node", "--format", "json")
    assert ran.code == 0
    assert said(ran)["hosts"][0]["facts"]["within_busbw_gbps"] > 0


def test_a_port_that_is_taken_is_the_setting_s_fault_and_no_link_s(probe: Command) -> None:
    """Of two hosts, no third could say which is bad; and neither is."""
    with socket.create_server(("", 0)) as holder:
        port = str(holder.getsockname()[1])
        ran = probe("gate", "--local", "2", "--skip-node", "--port", port, "--format", "json")
    assert (3, "undetermined", []) == (ran.code, said(ran)["verdict"], said(ran)["links"])
    assert ["local", "world"] == [one["kind"] for one in said(ran)["rounds"]]
    first = said(ran)["causes"][0]
    assert ("PORT_TAKEN", "user") == (first["code"], first["who"])
    assert f"port {port} cannot be had on local-[1-2] (Address already in use)" == first["summary"]


def test_people_get_the_verdict_first(probe: Command) -> None:
    ran = probe("gate", "--local", "2", "--until", "reach")
    assert (0, "") == (ran.code, ran.err)
    assert ran.out.splitlines()[0].startswith("ready: 2 hosts answered in ")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ((), "no hosts are given"),
        (("--local", "2", "--hosts", "a"), "--local and --hosts together"),
        (("--local", "0"), "0"),
        (("--hosts", "a,a"), "a: named more than once"),
        (("--hosts", ""), "no hosts are given"),
        (("--hosts", "a[1-"), "a[1-"),
        (("--hostfile", "/nowhere/hosts"), "/nowhere/hosts"),
        (("--local", "2", "--budget", "soon"), "'soon' is no budget"),
        (("--local", "2", "--budget", "1s"), "'1s' is no budget"),
        (("--local", "2", "--min-hosts", "3"), "3 of 2 hosts"),
        (("--local", "2", "--backend", "mpi"), "mpi"),
        (("--local", "2", "--ifname", "eth0;x"), "eth0;x"),
        (("--local", "2", "--clean-hostfile", "/nowhere/x"), "/nowhere/x"),
        (("--hosts", "127.0.0.9", "--identity", "/nowhere/key"), "/nowhere/key"),
        (("--hosts", "127.0.0.9", "--known-hosts", "/nowhere/known"), "/nowhere/known"),
        (("--hosts", "127.0.0.9", "--ssh-config", "/nowhere/config"), "/nowhere/config"),
    ],
)
def test_what_is_wrong_with_the_input_is_named(probe: Command, args: tuple[str, ...], named: str) -> None:
    """Exit code 2, before anything is started; as JSON where JSON was asked for."""
    ran = probe("gate", *args, "--format", "json")
    assert ran.code == 2
    assert named in json.loads(ran.out)["message"]
    assert named in ran.err


def test_a_dry_run_says_what_would_be_done_and_does_nothing(probe: Command) -> None:
    ran = probe("gate", "--hosts", "gpu[01-16]", "--dry-run", "--strategy", "fast", "--backend", "nccl")
    assert (0, "") == (ran.code, ran.err)
    assert "16 hosts by ssh: gpu[01-16]" in ran.out
    assert "strategy fast" in ran.out
    assert ran.elapsed_s < 5


def test_a_clean_hostfile_of_simulated_hosts_has_a_line_for_each(probe: Command, tmp_path: Path) -> None:
    path = tmp_path / "clean"
    assert probe("gate", "--local", "2", "--until", "reach", "--clean-hostfile", str(path)).code == 0
    assert path.read_text() == "local-1\nlocal-2\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_what_is_known_and_nothing_left(probe: Command, number: int, code: int) -> None:
    with probe.started([*ARGV, "gate", "--local", "2", "--format", "json"]) as process:
        wait_for(lambda: len(probe.left()) > 4, 30, "its agents did not start")
        process.send_signal(number)
        ran = finish(process)
    assert (code, "undetermined") == (ran.code, said(ran)["verdict"])
    wait_for(lambda: not probe.left(), 5, f"left: {probe.left()}")


def test_killed_it_takes_its_agents_along(probe: Command) -> None:
    with probe.started([*ARGV, "gate", "--local", "2"]) as process:
        wait_for(lambda: len(probe.left()) > 4, 30, "its agents did not start")
        process.kill()
        process.wait(5)
    wait_for(lambda: not probe.left(), 5, f"left: {probe.left()}")


def test_help_and_dry_run_import_neither_asyncio_nor_torch(probe: Command) -> None:
    program = (
        "import sys; sys.argv[1:] = ['gate', '--help']; from probe import cli; cli.main('shell');"
        "print(sorted({'asyncssh', 'torch', 'asyncio', 'rich', 'ClusterShell'} & sys.modules.keys()), file=sys.stderr)"
    )
    import sys

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=probe.env({})
    )
    assert "[]" in done.stderr
