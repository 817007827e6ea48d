"""`probe gate` on this machine alone, as people and programs call it: simulated hosts, and what it refuses."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.command import ARGV, Command, finish
from tests.system.lab import wait_for
from tests.system.saying import causes, clean, said
from tests.system.slurm import free_ports


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
        (("--local", "2", "--clean-hostfile", "/nowhere/x"), "there is no folder /nowhere"),
        (("--local", "2", "--clean-hostfile", "/"), "/ is a folder"),
        (("--local", "2", "--clean-hostfile", ""), "'' is no file"),
        (("--local", "2", "--clean-hostfile", "-"), "'-' is no file"),
        (("--hosts", "localhost", "--identity", "/nowhere/key"), "localhost is reached without ssh"),
        (("--hosts", "localhost", "--remote-python", "/nowhere/python"), "localhost is reached without ssh"),
        (("--local", "2", "--ssh-user", "x"), "local-[1-2] is reached without ssh"),
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


def test_a_dry_run_says_what_would_be_done_and_does_nothing(probe: Command, tmp_path: Path) -> None:
    path = tmp_path / "clean"
    argv = ("--strategy", "fast", "--backend", "nccl", "--min-hosts", "14", "--clean-hostfile", str(path))
    ran = probe("gate", "--hosts", "127.0.7.[1-16]", "--ssh-config", "none", "--dry-run", *argv)
    assert (0, "") == (ran.code, ran.err)
    assert "16 hosts by ssh: 127.0.7.[1-16]" in ran.out
    assert "strategy fast" in ran.out
    assert "enough    14 of 16" in ran.out
    assert f"clean     {path}, where" in ran.out
    assert not path.exists()
    assert ran.elapsed_s < 5
    assert "1 host by local: local-1\n" in probe("gate", "--local", "1", "--dry-run").out


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--hosts", "127.0.0.9", "--identity", "/nowhere/key"), "/nowhere/key"),
        (("--local", "2", "--clean-hostfile", "/nowhere/x"), "/nowhere"),
        (("--local", "2", "--ssh-user", "x"), "--ssh-user"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(probe: Command, args: tuple[str, ...], named: str) -> None:
    ran = probe("gate", "--dry-run", *args)
    assert (2, "") == (ran.code, ran.out)
    assert named in ran.err


def test_a_clean_hostfile_of_simulated_hosts_has_a_line_for_each(probe: Command, tmp_path: Path) -> None:
    path = tmp_path / "clean"
    assert probe("gate", "--local", "2", "--until", "reach", "--clean-hostfile", str(path)).code == 0
    assert path.read_text() == "local-1\nlocal-2\n"


def test_a_clean_hostfile_goes_to_the_file_that_a_link_names(probe: Command, tmp_path: Path) -> None:
    path, link = tmp_path / "clean", tmp_path / "link"
    path.write_text("old\n")
    link.symlink_to(path)
    assert probe("gate", "--local", "1", "--until", "reach", "--clean-hostfile", str(link)).code == 0
    assert link.is_symlink()
    assert path.read_text() == "local-1\n"
    assert [path] == list(tmp_path.glob("clean*"))


def test_a_clean_hostfile_that_is_a_pipe_stays_one(probe: Command, tmp_path: Path) -> None:
    """So does a device: as root, /dev/null would be lost to the whole machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert probe("gate", "--local", "1", "--until", "reach", "--clean-hostfile", str(pipe)).code == 0
        assert os.read(reader, 100) == b"local-1\n"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.system
@pytest.mark.parametrize(("column", "code"), [("shell", 3), ("slurm", 3), ("k8s", 1)])
def test_a_clean_hostfile_that_cannot_be_written_is_no_success(
    probe: Command, tmp_path: Path, column: str, code: int
) -> None:
    """Whoever goes on with `&&` would take an old one, or none. A node of our own: a defect would replace it."""
    full = tmp_path / "full"
    os.mknod(full, stat.S_IFCHR | 0o666, Path("/dev/full").stat().st_rdev)
    argv = ("--exit-codes", column, "--format", "json", "--clean-hostfile", str(full))
    ran = probe("gate", "--local", "1", "--until", "reach", *argv)
    assert (code, code, "ready") == (ran.code, json.loads(ran.out)["exit_code"], json.loads(ran.out)["verdict"])
    assert f"--clean-hostfile: {full} was not written" in ran.err
    assert full.is_char_device()


def test_an_older_clean_hostfile_stays_and_is_said_to_be_older(probe: Command, tmp_path: Path) -> None:
    path = tmp_path / "clean"
    path.write_text("old\n")
    argv = ("--ssh-config", "none", "--until", "reach", "--clean-hostfile", str(path))
    ran = probe("gate", "--hosts", f"127.0.0.9:{free_ports(1)[0]}", *argv)
    assert (1, "old\n") == (ran.code, path.read_text())
    assert f"{path} is not written, no set of hosts was confirmed, and what is in it is older" in ran.err


@pytest.mark.parametrize(("column", "code"), [("shell", 3), ("slurm", 3)])
def test_a_report_that_cannot_be_written_is_no_success(probe: Command, column: str, code: int) -> None:
    with Path("/dev/full").open("wb") as full:
        argv = [*ARGV, "gate", "--local", "1", "--until", "reach", "--exit-codes", column]
        with probe.started(argv, stdout=full) as process:
            _, err = process.communicate(timeout=60)
    assert (code, "probe: the report could not be written to stdout\n") == (process.returncode, err)


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


@pytest.mark.parametrize("words", [["gate", "--help"], ["gate", "--dry-run", "--local", "2"]], ids=["help", "dry run"])
def test_help_and_dry_run_import_neither_asyncio_nor_torch(probe: Command, words: list[str]) -> None:
    """ClusterShell only a dry run does: it folds names."""
    slow = {"asyncssh", "torch", "asyncio", "rich"} | ({"ClusterShell"} if "--help" in words else set())
    program = (
        f"import sys; sys.argv[1:] = {words}; from probe import cli; code = cli.main('shell');"
        f"print(code, sorted({slow} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=probe.env({})
    )
    assert "0 []\n" == done.stderr
