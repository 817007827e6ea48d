"""Hosts by ssh: one held connection each, through asyncssh, and the agent as one command on it.

::

    prepare    keys and known hosts read once, the config named, names resolved     (UsageError: exit 2)
    open       connect (10 s) -> host key verified, always -> login (15 s) -> the agent's lines

The config of OpenSSH is honoured as far as asyncssh knows it; ProxyCommand and ``Match exec`` in it are commands that
run on this machine, as they do for ssh itself: ``--ssh-config none`` reads none. The agent of ssh is asked for keys and
never forwarded; no password is ever asked for. What runs there is ``exec /bin/sh -c 'exec python ...'``: sshd hands it
to the user's shell, which sees constants and quoted names only. Over 300 lines because this is the only file that may
know asyncssh, and most of them say which of its errors is which finding.
"""

import asyncio
import logging
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import anyio
import asyncssh
from msgspec import Struct
from msgspec.structs import replace

from probe.cluster.hosts import Host, fold, named
from probe.cluster.launch import BOOT, FLOOD, Channel, Closed, NotReached
from probe.cluster.protocol import MAX_LINE_BYTES
from probe.config import UsageError, shown
from probe.worker.parent import MAX_REPLY_BYTES

CONNECT_S = 10.0
LOGIN_S = 15.0
KEEPALIVE_S = 5.0
KEEPALIVES = 3
"""A host that goes silent in the middle is noticed after 15 s; its agent leaves after 10 s without a tick."""
CONFIG_S = 10.0
"""For what the config runs for one host (``Match exec``)."""
CLOSE_S = 1.0
RESOLVE_S = 5.0
RESOLVE_ALL_S = 10.0
"""For all names together, and what the config runs for each (``Match exec``); what is left is left to `open`."""
SEND_S = 5.0
RETRY_S = 1.0
"""After sshd dropped a connection: MaxStartups refuses at random while many log in at once."""
TAIL_BYTES = 4096
CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
"""Before the others: AEADs like asyncssh's first choice, but one call of OpenSSL for a packet, where ChaCha20-Poly1305
is six: a third less CPU for each host (200 of them, a slow core)."""
USUAL_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
USUAL_HOSTS = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")
NONE = "none"
DEFAULT_PORT = 22
Way = tuple[Host, ...]
"""Jump hosts, in the order in which they are connected to."""


class Ssh(Struct, frozen=True):
    """All that is alike for every host, read once: a key read by its path costs 140 ms for each connection."""

    user: str
    port: int
    named_keys: bool
    """By ``--identity``: no others are tried."""
    keys: tuple[Any, ...] | None
    """None: what the config says for each host."""
    known_hosts: Any
    """None: what the config says, else the usual file."""
    ciphers: str
    """Empty: what the config says for each host."""
    config: tuple[str, ...] | None
    """None: no config is read."""
    python: str


def prepare(
    hosts: Sequence[Host],
    *,
    user: str,
    port: int,
    identities: Sequence[str],
    known_hosts: str,
    config: str,
    python: str,
    within_s: float = RESOLVE_ALL_S,
) -> Ssh:
    """Read keys, known hosts and config. Raises UsageError for what is missing or wrong, and for unknown names.

    `within_s`: for names; one that is not resolved by then is the run's to name.
    """
    logging.getLogger("asyncssh").addHandler(logging.NullHandler())
    logging.getLogger("asyncssh").propagate = False
    if python and not python.startswith("/") and "/" in python:
        raise UsageError(f"{shown(python)} is relative", "--remote-python", "an absolute path, or a name on the PATH")
    paths = _config(config)
    words = _words_of(paths)
    found = Ssh(
        user=user,
        port=port,
        named_keys=bool(identities),
        keys=tuple(map(_key, identities)) if identities else None if "identityfile" in words else _usual_keys(),
        known_hosts=_known_hosts(known_hosts, by_config="knownhostsfile" in words),
        ciphers="" if "ciphers" in words else CIPHERS,
        config=paths,
        python=python,
    )
    _resolve(hosts, found, within_s)
    return found


def _words_of(paths: Sequence[str] | None) -> str:
    """The config in lower case, to see what it names: that is read for each host then."""
    text = ""
    for path in paths or ():
        try:
            with open(path, errors="replace") as file:
                text += file.read(1 << 20).lower()
        except OSError as error:
            raise UsageError(f"{shown(path)}: {error.strerror}", "--ssh-config", "a file, or none") from None
    return text + ("identityfile knownhostsfile ciphers" if "include" in text else "")


def _usual_keys() -> tuple[Any, ...]:
    """The keys that ssh would try, but for those with a passphrase: ssh-agent has these."""
    found = []
    for name in USUAL_KEYS:
        try:
            found.append(asyncssh.read_private_key(os.path.expanduser(f"~/.ssh/{name}")))
        except (OSError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError):
            continue
    return tuple(found)


def _key(path: str) -> Any:
    try:
        return asyncssh.read_private_key(os.path.expanduser(path))
    except (OSError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError) as error:
        if "passphrase" in str(error).lower():
            allowed = "a key without one, or ssh-agent"
            raise UsageError(f"{shown(path)} has a passphrase", "--identity", allowed) from None
        words = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{shown(path)}: {words}", "--identity", "the file of a private key") from None


def _known_hosts(path: str, *, by_config: bool) -> Any:
    """Read once; None where the config names other files for some hosts."""
    if not path and by_config:
        return None
    paths = [path] if path else [usual for usual in map(os.path.expanduser, USUAL_HOSTS) if os.path.isfile(usual)]
    try:
        return asyncssh.read_known_hosts([os.path.expanduser(each) for each in paths])
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{shown(path)}: {words}", "--known-hosts", "a file as ~/.ssh/known_hosts") from None


def _config(path: str) -> tuple[str, ...] | None:
    if path == NONE:
        return None
    if path:
        if not os.path.isfile(path):
            raise UsageError(f"{shown(path)} is not there", "--ssh-config", "a file, or none")
        return (path,)
    usual = os.path.expanduser("~/.ssh/config")
    return (usual,) if os.path.isfile(usual) else None


def options(ssh: Ssh, host: Host) -> asyncssh.SSHClientConnectionOptions:
    """Asyncssh's options for one host. Raises UsageError where the config is wrong or turns verification off."""
    given: dict[str, Any] = {
        "host": host.target or host.name,
        "config": list(ssh.config) if ssh.config else None,
        "agent_forwarding": False,
        "password_auth": False,
        "kbdint_auth": False,
        "connect_timeout": CONNECT_S,
        "login_timeout": LOGIN_S,
        "keepalive_interval": KEEPALIVE_S,
        "keepalive_count_max": KEEPALIVES,
    }
    if host.user or ssh.user:
        given["username"] = host.user or ssh.user
    if host.port or ssh.port:
        given["port"] = host.port or ssh.port
    if ssh.keys is not None:
        given["client_keys"] = list(ssh.keys)
    if ssh.named_keys:
        given["agent_path"] = None
    if ssh.ciphers:
        given["encryption_algs"] = ssh.ciphers
    if ssh.known_hosts is not None:
        given["known_hosts"] = ssh.known_hosts
    try:
        made = asyncssh.SSHClientConnectionOptions(**given)
    except (asyncssh.ConfigParseError, ValueError, OSError) as error:
        where = "--ssh-config" if ssh.config else "ssh"
        raise UsageError(str(error), where, "a config that asyncssh can read, or --ssh-config none") from None
    if made.known_hosts is None:  # "UserKnownHostsFile none": asyncssh then verifies nothing
        words = "the ssh config turns the verification of host keys off (UserKnownHostsFile none)"
        raise UsageError(words, "--known-hosts", "a file with the hosts' keys")
    return made


def _resolve(hosts: Sequence[Host], ssh: Ssh, within_s: float) -> None:
    """Raise UsageError naming all hosts whose names do not exist; what only fails just now is left to `open`."""
    wrong: list[str] = []

    async def one(name: str, made: Any, limiter: anyio.CapacityLimiter) -> None:
        async with limiter:
            with anyio.move_on_after(RESOLVE_S):
                if await anyio.to_thread.run_sync(_unknown, made.host, abandon_on_cancel=True):
                    wrong.append(name)

    async def all_of_them() -> None:
        with anyio.move_on_after(within_s):
            # In a thread: what the config runs may hang
            here = await anyio.to_thread.run_sync(_from_here, hosts, ssh, abandon_on_cancel=True)
            limiter = anyio.CapacityLimiter(64)
            async with anyio.create_task_group() as tasks:
                for name, made in here.items():
                    if not (made.proxy_command or _is_address(made.host)):  # else resolved elsewhere, or not at all
                        tasks.start_soon(one, name, made, limiter)

    try:
        anyio.run(all_of_them)
    except ExceptionGroup as group:
        raise next(iter(_flat(group))) from None
    if wrong:
        raise UsageError(f"no such host: {fold(wrong)}", "the hosts", "names that this machine can resolve")


def _from_here(hosts: Sequence[Host], ssh: Ssh) -> dict[str, Any]:
    """By name, the options of whom this machine itself connects to: hosts, and the first jump host of others."""
    found: dict[str, Any] = {}
    for host in hosts:
        made = options(ssh, host)
        first = jumps(ssh, made)[:1]
        found |= {hop.name: options(_as_jump(ssh), hop) for hop in first} or {host.name: made}
    return found


def _flat(group: BaseExceptionGroup[BaseException]) -> Iterable[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _flat(error)
        else:
            yield error


def _is_address(name: str) -> bool:
    return ":" in name or name.replace(".", "").isdigit()


def _unknown(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
    return False


class SshChannel:
    def __init__(self, connection: asyncssh.SSHClientConnection, process: Any) -> None:
        self._connection = connection
        self._process = process
        self._heard_bytes = 0
        self._tail = bytearray()
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        """Read stderr always; its tail says what was missing."""
        try:
            while data := await self._process.stderr.read(TAIL_BYTES):
                self._tail += data
                del self._tail[:-TAIL_BYTES]
        except (OSError, asyncssh.Error):
            pass

    async def send(self, line: bytes) -> None:
        try:
            with anyio.fail_after(SEND_S):
                self._process.stdin.write(line)
                await self._process.stdin.drain()
        except (OSError, asyncssh.Error) as error:
            raise Closed(f"the connection failed: {_said(error)}") from None

    async def receive(self) -> bytes:
        try:
            line: bytes = await self._process.stdout.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            raise Closed(await self._ended()) from None
        except (OSError, asyncssh.Error, asyncio.LimitOverrunError) as error:
            raise Closed(f"the connection failed: {_said(error)}") from None
        if len(line) > MAX_LINE_BYTES:
            raise Closed("it sent a line that is too long")
        self._heard_bytes += len(line)
        if self._heard_bytes > MAX_REPLY_BYTES:
            raise Closed(FLOOD)
        return line[:-1]

    async def _ended(self) -> str:
        """How the agent ended, and its last words."""
        with anyio.move_on_after(CLOSE_S):
            await self._process.wait_closed()
            await self._draining
        tail = bytes(self._tail).decode("utf-8", "replace").strip().splitlines()
        last = f": {tail[-1][:300]}" if tail else ""
        if self._process.exit_signal:
            return f"the agent was ended by SIG{self._process.exit_signal[0]}{last}"
        if self._process.exit_status is not None:
            return f"the agent ended with status {self._process.exit_status}{last}"
        return f"the connection was closed{last}"

    async def close(self) -> None:
        self._connection.close()
        with anyio.move_on_after(CLOSE_S):
            await self._connection.wait_closed()
        self._connection.abort()
        self._draining.cancel()


class SshLauncher:
    name = "ssh"

    def __init__(self, ssh: Ssh) -> None:
        self._ssh = ssh
        self._jumps: dict[Way, asyncio.Task[asyncssh.SSHClientConnection]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Connections are closed with their channels; what a cancelled `open` left goes with this process."""
        for jump in self._jumps.values():
            if not jump.done():
                jump.cancel()
            elif not jump.cancelled() and jump.exception() is None:
                jump.result().abort()

    async def open(self, host: Host) -> Channel:
        connection = await self._connect(host)
        process = None
        try:
            with anyio.fail_after(LOGIN_S):
                process = await connection.create_process(command(self._ssh.python, host), encoding=None)
        except TimeoutError:
            raise NotReached("ssh", f"no command was started there within {LOGIN_S:.0f} s") from None
        except (asyncssh.Error, OSError) as error:
            raise NotReached("ssh", f"no command can be started there: {_said(error)}") from None
        finally:
            if process is None:  # also where nobody waits for it any more
                connection.abort()
        return SshChannel(connection, process)

    async def _connect(self, host: Host) -> asyncssh.SSHClientConnection:
        def read() -> tuple[Any, Way]:
            made = options(self._ssh, host)
            return made, jumps(self._ssh, made)

        made, way = await _by_config(read)
        return await _login(host, made, await self._jump(way))

    async def _jump(self, way: Way) -> asyncssh.SSHClientConnection | None:
        """The connection to the last of these hosts, for all that are behind it; None for no hosts.

        Each is tried once, however many wait for it: a jump host that does not answer costs all behind it one limit,
        and all hear why. One who no longer waits leaves it to the others.
        """
        if not way:
            return None
        if way not in self._jumps:
            self._jumps[way] = asyncio.ensure_future(self._hop(way))
        return await asyncio.shield(self._jumps[way])

    async def _hop(self, way: Way) -> asyncssh.SSHClientConnection:
        """Log in to a jump host, verified like any other."""
        *before, hop = way
        through = await self._jump(tuple(before))
        try:
            return await _login(hop, await _by_config(lambda: options(_as_jump(self._ssh), hop)), through)
        except NotReached as error:
            reason = f"jump_{error.reason.removeprefix('jump_')}"
            raise NotReached(reason, f"its jump host {hop.name}: {error.summary}") from None


async def _by_config(read: Callable[[], Any]) -> Any:
    """What the config says, read in a thread, since what it runs may hang. Raises NotReached."""
    try:
        with anyio.fail_after(CONFIG_S):
            own = anyio.CapacityLimiter(1)  # the usual one has 40 threads, which hosts that hang would keep from others
            return await anyio.to_thread.run_sync(read, abandon_on_cancel=True, limiter=own)
    except TimeoutError:
        words = f"what the ssh config runs for it (Match exec) was not done within {CONFIG_S:.0f} s"
        raise NotReached("ssh", words) from None
    except UsageError as error:
        raise NotReached("ssh", str(error)) from None


async def _login(host: Host, made: Any, through: Any) -> asyncssh.SSHClientConnection:
    """One connection, through that of a jump host where there is one. Raises NotReached."""
    for last in (False, True):
        try:
            return await asyncssh.connect(host.target, options=made, config=None, tunnel=through)
        except (asyncssh.ConnectionLost, ConnectionResetError) as error:
            if last:
                words = f"sshd closed the connection before the login: {error} ({made.host})"
                raise NotReached("dropped", words) from None
            await anyio.sleep(RETRY_S)
        except asyncssh.ChannelOpenError as error:
            raise _not_through(error, made) from None
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise _why(error, made) from None
    raise AssertionError("unreachable")


# -- jump hosts -------------------------------------------------------------------------------------------------------


def _as_jump(ssh: Ssh) -> Ssh:
    """``--ssh-user`` and ``--ssh-port`` are the hosts', not those of what lies before them."""
    return replace(ssh, user="", port=0)


def jumps(ssh: Ssh, made: Any) -> Way:
    """The jump hosts of ``ProxyJump``, the first to connect to first, those that one of them needs included.

    Raises UsageError for what is no host, and for jump hosts behind themselves.
    """
    way: list[Host] = []
    asked = made.tunnel
    while isinstance(asked, str):
        hops = [named(word.strip(), "ProxyJump") for word in asked.split(",")]
        if twice := {hop.name for hop in hops} & {hop.name for hop in way}:
            raise UsageError(f"{fold(sorted(twice))} is behind itself", "ProxyJump", "a way that ends")
        way = hops + way
        asked = options(_as_jump(ssh), way[0]).tunnel
    return tuple(way)


def _not_through(error: asyncssh.ChannelOpenError, made: Any) -> NotReached:
    """What the jump host's sshd says of the way on, in the words of connect(2)."""
    where = f"{made.host} port {made.port or DEFAULT_PORT}, from its jump host"
    if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
        return NotReached("jump_forbids", f"its jump host forwards no connections: {error.reason} ({where})")
    if "refused" in error.reason.lower():
        return NotReached("refused", f"refuses the connection ({where})")
    if "name" in error.reason.lower():
        return NotReached("name", f"its name is not resolved: {error.reason} ({where})")
    return NotReached("unreachable", f"{error.reason} ({where})")


def _why(error: BaseException, made: Any) -> NotReached:
    """Which finding an error of asyncssh is."""
    where = f"{made.host} port {made.port or DEFAULT_PORT}"
    if isinstance(error, asyncssh.HostKeyNotVerifiable) or "host key" in str(error).lower():
        return _host_key(error, made, where)
    if isinstance(error, TimeoutError) or "login timeout" in str(error).lower():
        if "login" in str(error).lower():
            return NotReached("login_slow", f"no login within {LOGIN_S:.0f} s ({where})")
        return NotReached("unreachable", f"no connection within {CONNECT_S:.0f} s ({where})")
    kinds: tuple[tuple[type[BaseException], str, str], ...] = (
        (asyncssh.PermissionDenied, "auth", f"does not accept the keys of {made.username} ({where})"),
        (ConnectionRefusedError, "refused", f"refuses the connection ({where})"),
        (socket.gaierror, "name", f"its name is not resolved: {error.args[-1] if error.args else error} ({made.host})"),
        (OSError, "unreachable", f"{_said(error)} ({where})"),
    )
    for kind, reason, words in kinds:
        if isinstance(error, kind):
            return NotReached(reason, words)
    return NotReached("ssh", f"{_said(error)} ({where})")


def _said(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)  # asyncio's own words name the address, and not what is wrong
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _host_key(error: BaseException, made: Any, where: str) -> NotReached:
    """Unknown, or another than the known one: the known hosts tell."""
    if "revoked" in str(error).lower():
        return NotReached("host_key_changed", f"its host key is revoked in the known hosts ({where})")
    port = made.port if made.port and made.port != DEFAULT_PORT else None
    try:
        trusted = asyncssh.match_known_hosts(_source(made), made.host, "", port)
        known = any(trusted[:2])
    except (OSError, ValueError):
        known = False
    if known:
        return NotReached("host_key_changed", f"shows another host key than the known one ({where})")
    return NotReached("host_key_unknown", f"its host key is not known ({where})")


def _source(made: Any) -> Any:
    """The known hosts as asyncssh would read them."""
    if made.known_hosts:
        return made.known_hosts
    usual = os.path.expanduser("~/.ssh/known_hosts")
    return usual if os.path.isfile(usual) else b""


def command(python: str, host: Host) -> str:
    """What sshd is asked to run: constants, and names that are quoted.

    Without ``--remote-python`` the path of our own interpreter, which a shared file system or the same image has
    there too, else python3.
    """
    agent = shlex.join(["-c", f"exec({BOOT!r})", host.name, host.address])  # no line end: csh quotes none
    candidates = [python] if python else [sys.executable, "python3"]
    tries = " ".join(
        f"command -v {shlex.quote(each)} >/dev/null 2>&1 && exec {shlex.quote(each)} {agent};" for each in candidates
    )
    missing = (
        f"echo {shlex.quote(f'no {candidates[0]} and no python3' if not python else f'no {python}')} >&2; exit 127"
    )
    return f"exec /bin/sh -c {shlex.quote(f'{tries} {missing}')}"
