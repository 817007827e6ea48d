"""service.ssh: whether a server is to run here, and what its first words mean; the servers are in tests/system."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.checks.service_ssh import COMMAND, PORT_IN_COMMAND, _no_banner, complaint, identification
from probe.checks.service_ssh import Server as Asked
from probe.model import Facts, Finding, Record, Status
from tests.checks.asking import ask

CONFIG = "/etc/ssh/sshd_config"
PID = {"file": "/run/sshd.pid", "pid": 7, "alive": False, "of_this_life": False}


def ssh(*pids: dict[str, Any], path: str = "/usr/sbin/sshd", pid1: str = "sleep infinity", **more: Any) -> Finding:
    """With these pid files, sshd at `path` and this command as pid 1."""
    said = [
        Record(f"sshd:{CONFIG}", code=0, data={"ports": [], "host_keys": [], "pids": list(pids)}),
        Record("which:ssh", code=0, data={"path": path}),
        Record("told:/", code=0, data={"commands": [["pid 1's command", pid1]]}),
    ]
    return ask("service.ssh", *(("files", record) for record in said), asked={"sshd": (CONFIG,)}, **more)


@pytest.mark.parametrize(
    ("path", "pids", "facts", "words"),
    [
        ("", (), Facts(), "not installed"),
        ("/usr/sbin/sshd", (), Facts(), "installed, not started"),
        ("/usr/sbin/sshd", (PID,), Facts(in_container=True), "installed, not started"),
        ("/usr/sbin/sshd", ({**PID, "of_this_life": True},), Facts(), "installed, not started"),
    ],
    ids=["not installed", "told by nobody", "a pid file of the image", "a pid file on a host"],
)
def test_what_was_not_told_to_run_need_not(
    path: str, pids: tuple[dict[str, Any], ...], facts: Facts, words: str
) -> None:
    finding = ssh(*pids, path=path, facts=facts)
    assert (Status.SKIP, words) == (finding.status, finding.summary)


def test_a_listener_is_no_ssh_server_where_none_is_installed() -> None:
    listening = "head\n 0: 00000000:0016 00000000:0000 0A\n"
    assert ssh(path="", files={"/proc/net/tcp": listening}).summary == "not installed"


TOLD = [
    "/usr/sbin/sshd -D",
    "sshd",
    'sh -c "service ssh start && sleep infinity"',
    "bash -c /etc/init.d/ssh start; exec train",
    "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups",
    "systemctl start ssh.service",
]
NOT_TOLD = ["sleep infinity", "ssh host", "apt-get install openssh-server", "service sshd stop", "cat sshd_config"]


@pytest.mark.parametrize(("command", "told"), [*((one, True) for one in TOLD), *((one, False) for one in NOT_TOLD)])
def test_a_command_that_starts_a_server_is_known(command: str, told: bool) -> None:
    assert told == (COMMAND.search(command) is not None)


@pytest.mark.parametrize(
    ("command", "port"),
    [
        ("/usr/sbin/sshd -D -p 2222", "2222"),
        ("/usr/sbin/sshd -p2222 -D", "2222"),
        ("/usr/sbin/sshd -D -o Port=2022", "2022"),
        ("/usr/sbin/sshd -D", None),
        ("/usr/sbin/sshd; nginx -p 80", None),
    ],
)
def test_a_port_in_the_command_goes_before_the_configuration(command: str, port: str | None) -> None:
    found = PORT_IN_COMMAND.search(command)
    assert port == (found and found[1])


HEARD = [
    (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0-OpenSSH_9.2"),
    (b"SSH-2.0-OpenSSH_9.2", ""),
    (b"welcome\r\nSSH-2.0-x\n\x00\x00", "SSH-2.0-x"),
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", ""),
    (b"", ""),
]


@pytest.mark.parametrize(("heard", "expected"), HEARD)
def test_a_server_names_itself_in_a_whole_line(heard: bytes, expected: str) -> None:
    assert expected == identification(heard)


@given(st.binary(max_size=300))
def test_whatever_a_stranger_says_becomes_one_clean_line(heard: bytes) -> None:
    finding = _no_banner(heard, Asked("::1", 22))
    assert Status.FAIL is finding.status
    assert finding.summary.isprintable()
    assert finding.summary.startswith("[::1]:22 ")


FITTING: list[tuple[dict[str, str], bool]] = [
    ({}, True),
    ({"user": "u", "key_file": "/k"}, True),
    ({"user": "u", "key_file": "/k", "command": "true"}, True),
    ({"user": "u", "key_file": "/k", "host": "h", "known_hosts": "/kh"}, True),
    ({"host": "h"}, True),
    ({"user": "u"}, False),
    ({"key_file": "/k"}, False),
    ({"command": "true"}, False),
    ({"user": "u", "key_file": "/k", "host": "h"}, False),
]


@pytest.mark.parametrize(("given_", "fits"), FITTING)
def test_options_that_do_not_fit_together_are_named(given_: dict[str, str], fits: bool) -> None:
    options = {**dict.fromkeys(("host", "user", "command"), ""), "key_file": None, "known_hosts": None, **given_}
    assert fits == (complaint(options) == "")
