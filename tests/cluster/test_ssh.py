"""The ssh launcher's own decisions: what is refused before anything starts, and what sshd is asked to run."""

import asyncio
import errno
import os
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import asyncssh
import pytest

from probe.cluster import ssh
from probe.cluster.hosts import Host
from probe.cluster.launch import FLOOD, Closed, NotReached
from probe.config import UsageError
from probe.worker.parent import MAX_REPLY_BYTES

H1 = Host("h1", target="h1")


@pytest.fixture(autouse=True)
def _no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def prepare(*hosts: Host, **changed: Any) -> ssh.Ssh:
    given: dict[str, Any] = {"user": "", "port": 0, "identities": (), "known_hosts": "", "config": "none", "python": ""}
    return ssh.prepare(hosts or (Host("127.0.0.1", target="127.0.0.1"),), **{**given, **changed})


def key(path: Path, passphrase: str | None = None) -> str:
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(path, "pkcs8-pem", passphrase)
    return str(path)


def test_known_hosts_are_never_none(tmp_path: Path) -> None:
    """Not without a file, not with an empty one: then no host is trusted, instead of every one."""
    assert ssh.options(prepare(), H1).known_hosts is not None
    empty = tmp_path / "known"
    empty.write_text("")
    assert ssh.options(prepare(known_hosts=str(empty)), H1).known_hosts is not None


@pytest.mark.parametrize("where", ["Host *", "Host h1", "Match host h1"])
def test_a_config_that_turns_verification_off_is_refused(tmp_path: Path, where: str) -> None:
    config = tmp_path / "config"
    config.write_text(f"{where}\n  UserKnownHostsFile none\n")
    with pytest.raises(UsageError, match="verification of host keys off"):
        ssh.options(prepare(config=str(config)), H1)


def test_agent_forwarding_and_passwords_are_off_whatever_the_config_says(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host *\n  ForwardAgent yes\n  PasswordAuthentication yes\n")
    made = ssh.options(prepare(config=str(config)), H1)
    assert (None, False) == (made.agent_forward_path, made.password_auth)


def test_limits_are_set_where_asyncssh_has_none() -> None:
    made = ssh.options(prepare(), H1)
    assert (10, 15, 5, 3) == (
        made.connect_timeout,
        made.login_timeout,
        made.keepalive_interval,
        made.keepalive_count_max,
    )


def test_the_config_names_the_real_host_its_user_and_port(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host h1\n  HostName 127.0.0.9\n  User me\n  Port 2222\n")
    made = ssh.options(prepare(config=str(config)), H1)
    assert ("127.0.0.9", "me", 2222) == (made.host, made.username, made.port)
    made = ssh.options(prepare(config=str(config), user="you", port=2200), H1)
    assert ("you", 2200) == (made.username, made.port)


def test_the_quickest_cipher_comes_first_unless_the_config_names_others(tmp_path: Path) -> None:
    first, *others = ssh.options(prepare(), H1).encryption_algs
    assert (b"aes128-gcm@openssh.com", True) == (first, b"chacha20-poly1305@openssh.com" in others)
    config = tmp_path / "config"
    config.write_text("Host h1\n  Ciphers aes256-ctr\n")
    assert [b"aes256-ctr"] == ssh.options(prepare(config=str(config)), H1).encryption_algs


def test_a_key_is_read_once_and_handed_over_as_an_object(tmp_path: Path) -> None:
    found = prepare(identities=(key(tmp_path / "key"),))
    assert found.keys is not None
    assert not isinstance(found.keys[0], str)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"identities": ("nowhere",)}, "nowhere"),
        ({"known_hosts": "nowhere"}, "nowhere"),
        ({"config": "nowhere"}, "nowhere"),
        ({"python": "bin/python"}, "bin/python"),
    ],
)
def test_what_is_missing_is_named(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        prepare(**changed)


def test_a_key_with_a_passphrase_is_the_agents(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="passphrase"):
        prepare(identities=(key(tmp_path / "key", "secret"),))


def test_all_names_that_do_not_exist_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose lookup only fails just now is no mistake of the user's."""
    errors = {"a1": socket.EAI_NONAME, "a2": socket.EAI_NONAME, "busy": socket.EAI_AGAIN}

    def resolve(name: str, *_: Any, **__: Any) -> list[Any]:
        if name in errors:
            raise socket.gaierror(errors[name], "x")
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(UsageError, match=r"no such host: a\[1-2\]$|no such host: a\[1-2\] "):
        prepare(*(Host(name, target=name) for name in ("a1", "ok", "busy", "a2")))


WELL_BEFORE_S = 10.0
"""Of what these would take without a bound: 20 s, or as long as nobody lets go."""


@contextmanager
def let_go(release: Callable[[], Any]) -> Iterator[None]:
    """Whoever was given up on ends, too, when `release` is called: at the end, or where nothing else ends the test."""
    before = set(threading.enumerate())
    timer = threading.Timer(2 * WELL_BEFORE_S, release)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        release()
        for thread in set(threading.enumerate()) - before:
            thread.join(2 * WELL_BEFORE_S)
            assert not thread.is_alive()


def test_names_that_nobody_resolves_are_left_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred of them, three times what is asked for at once: the run names them, with time to do so."""
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(60))
    with let_go(released.set):
        began = time.monotonic()
        prepare(*(Host(f"a{n}", target=f"a{n}") for n in range(200)), within_s=0.3)
        assert time.monotonic() - began < WELL_BEFORE_S


def test_a_config_that_runs_what_hangs_is_left_to_the_run(tmp_path: Path) -> None:
    config, held = tmp_path / "config", tmp_path / "held"
    os.mkfifo(held)
    config.write_text(f'Match exec "read x < {held}"\n  User me\n')
    writer = os.open(held, os.O_RDWR)
    try:
        with let_go(lambda: os.write(writer, b"go\n")):
            began = time.monotonic()
            prepare(H1, config=str(config), within_s=0.3)
            assert time.monotonic() - began < WELL_BEFORE_S
    finally:
        os.close(writer)


def test_hosts_for_which_the_config_hangs_take_no_thread_from_others() -> None:
    """More of them than threads that anyio lends by default."""
    released = threading.Event()

    async def main() -> str:
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(ssh._by_config, lambda: released.wait(60))
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(WELL_BEFORE_S / 2):
                found = str(await ssh._by_config(lambda: "read"))
            tasks.cancel_scope.cancel()
        return found

    with let_go(released.set):
        assert anyio.run(main) == "read"


def behind(tmp_path: Path, text: str) -> ssh.Ssh:
    config = tmp_path / "config"
    config.write_text(text)
    return prepare(config=str(config), user="me", port=2222)


def way(found: ssh.Ssh) -> list[tuple[str, str, int]]:
    return [(hop.name, hop.user, hop.port) for hop in ssh.jumps(found, ssh.options(found, H1))]


def test_a_jump_host_s_own_jump_host_comes_before_it(tmp_path: Path) -> None:
    """As ssh has it; and the user and port that are given for the hosts are not those of the jump hosts."""
    found = behind(tmp_path, "Host h1\n  ProxyJump you@j2:22,j3\nHost j2\n  ProxyJump j1\n")
    assert [("j1", "", 0), ("j2", "you", 22), ("j3", "", 0)] == way(found)
    assert way(behind(tmp_path, "Host h1\n  ProxyJump none\n")) == []


@pytest.mark.parametrize(
    ("config", "named"), [("Host *\n  ProxyJump j1\n", "j1 is behind itself"), ("Host h1\n  ProxyJump j1:x\n", "j1:x")]
)
def test_a_way_that_is_none_is_refused(tmp_path: Path, config: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        way(behind(tmp_path, config))


def test_a_jump_host_that_does_not_exist_is_named_and_those_behind_it_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(name: str, *_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, name)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    config = tmp_path / "config"
    config.write_text("Host h1 h2\n  ProxyJump nowhere\n")
    with pytest.raises(UsageError, match="no such host: nowhere "):
        prepare(H1, Host("h2", target="h2"), config=str(config))


def test_a_jump_host_that_fails_is_tried_once_for_all_behind_it(tmp_path: Path) -> None:
    """One that closes every connection: a hundred hosts hear of its one attempt, and of the second that sshd is due."""
    made = 0

    async def drop(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal made
        made += 1
        writer.close()

    async def reach_all() -> set[str]:
        server = await asyncio.start_server(drop, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        config = tmp_path / "config"
        config.write_text(f"Host h*\n  ProxyJump 127.0.0.1:{port}\n")
        found = await asyncio.to_thread(prepare, config=str(config))
        async with server, ssh.SshLauncher(found) as launcher:
            names = [Host(f"h{n}", target=f"h{n}") for n in range(100)]
            ends = await asyncio.gather(*map(launcher.open, names), return_exceptions=True)
        assert all(isinstance(end, NotReached) for end in ends)
        return {end.reason for end in ends if isinstance(end, NotReached)}

    assert (asyncio.run(reach_all()), made) == ({"jump_dropped"}, 2)


def test_who_no_longer_waits_for_a_jump_host_leaves_it_to_the_others(tmp_path: Path) -> None:
    async def reach() -> str:
        heard = asyncio.Event()

        async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.set()
            await gone.wait()
            writer.close()

        gone = asyncio.Event()
        server = await asyncio.start_server(hold, "127.0.0.1", 0)
        config = tmp_path / "config"
        config.write_text(f"Host h*\n  ProxyJump 127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
        found = await asyncio.to_thread(prepare, config=str(config))
        async with server, ssh.SshLauncher(found) as launcher:
            first, second = (asyncio.ensure_future(launcher.open(Host(n, target=n))) for n in ("h1", "h2"))
            await heard.wait()
            first.cancel()
            await asyncio.wait([first])
            gone.set()
            with pytest.raises(NotReached) as caught:
                await second
        return caught.value.reason

    assert asyncio.run(reach()) == "jump_dropped"


def test_an_error_of_the_network_is_told_in_its_own_words() -> None:
    """Asyncio's name the address only."""
    found = ssh._why(OSError(errno.EHOSTUNREACH, "Connect call failed ('10.0.0.1', 22)"), ssh.options(prepare(), H1))
    assert ("unreachable", "No route to host (h1 port 22)") == (found.reason, found.summary)


def test_what_sshd_runs_is_quoted_through_two_shells(tmp_path: Path) -> None:
    """A path with a quote and a space in it stays one word, and reaches the program as it was."""
    program = tmp_path / "it's a python"
    program.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", ssh.command(str(program), Host("h1", address="10.0.0.1"))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ["h1", "10.0.0.1"] == done.stdout.splitlines()[-2:]
    assert done.stdout.splitlines()[0] == "-c"


def test_the_command_is_one_line() -> None:
    """Csh and its like quote no line ends."""
    assert "\n" not in ssh.command("", H1)
    assert shlex.split(ssh.command("", H1))[:3] == ["exec", "/bin/sh", "-c"]


def test_a_python_that_is_not_there_leaves_with_127() -> None:
    argv = ["/bin/sh", "-c", ssh.command("/nowhere/python", H1)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (127, "no /nowhere/python") == (done.returncode, done.stderr.strip())


class Stuck:
    """A connection on which no command ever starts, as on a host whose login shell hangs."""

    aborted = False

    async def create_process(self, *_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_connection_on_which_no_command_starts_is_ended(monkeypatch: pytest.MonkeyPatch, cancelled: bool) -> None:
    """At its own limit, with words, and where the time for all hosts is over before that."""
    connection = Stuck()

    async def connect(*_: Any) -> Stuck:
        return connection

    made = prepare()  # which runs a loop of its own

    async def main() -> None:
        launcher = ssh.SshLauncher(made)
        with anyio.move_on_after(0.01 if cancelled else None):
            await launcher.open(H1)

    monkeypatch.setattr(ssh, "LOGIN_S", 60.0 if cancelled else 0.01)
    monkeypatch.setattr(ssh.SshLauncher, "_connect", connect)
    if cancelled:
        anyio.run(main)
    else:
        with pytest.raises(NotReached, match="no command was started there within"):
            anyio.run(main)
    assert connection.aborted


class Talker:
    """A command on a host that never ceases to say lines, each well within bounds."""

    def __init__(self) -> None:
        self.stdout = self.stderr = self

    async def readuntil(self, end: bytes) -> bytes:
        return b"x" * 1_000_000 + end

    async def read(self, _: int) -> bytes:
        return b""


def test_an_agent_that_never_ceases_is_no_agent_any_more() -> None:
    async def hear() -> None:
        channel = ssh.SshChannel(cast(Any, None), Talker())
        for _ in range(MAX_REPLY_BYTES // 1_000_001):
            await channel.receive()
        with pytest.raises(Closed, match=FLOOD):
            await channel.receive()

    anyio.run(hear)
