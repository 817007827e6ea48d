"""ssh: the server says who it is, exchanges keys with the host key it had before and, if asked to, lets a user in.

::

    connecting -> its first line -> key exchange, which shows its host key -> login -> command
    refused       silent, closed,   kex, reset                                auth     command        (the reason of a
    unreachable   banner, penalty                                             host_key                 failure)

One connection a run, whatever it is for: OpenSSH 9.8 and later count those that come to nothing against their source
(PerSourcePenalties). The first line is looked at before asyncssh reads it, which would pass over whatever else is said
there, a refusal too. asyncssh gets all that it would look for in the caller's home, or in the user database: both may
be on a mount or a server that hangs. A login is made only to a server whose host key is known.

Over 300 lines because one connection serves every question, so that its steps and their ends belong together.
"""

import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from msgspec import Struct

from probe.checks.reaching import address, resolve, shown, why
from probe.checks.told import LOOPBACK, Signs, listening, signs
from probe.context import Context
from probe.model import Finding, Job, NoAnswer, Scalar, failed, passed, unknown, warned
from probe.options import A_HOST, A_PATH, A_PORT, host, option, path, port, user, words
from probe.registry import check

if TYPE_CHECKING:
    import asyncssh

COMMAND = re.compile(
    r"""(?x) (?:^|[\s/'"=;&|(])
    (?: (?<!service[ ]) sshd (?:$|[\s'";&|)])
      | service[ ]+sshd?[ ]+(?:re)?start
      | init\.d/sshd?[ ]+(?:re)?start
      | systemctl[ ]start[ ]sshd?\.(?:service|socket) )"""
)
PORT_IN_COMMAND = re.compile(r"\bsshd\b[^;&|]*?\s-(?:p\s*|o\s*Port[= ]\s*)(\d{1,5})\b")
DEFAULT_PORT = 22
REST_S = 1.0
"""For the rest of a first line, and for the one that counts after others: RFC 4253 (4.2) lets a server say more."""
POLL_S = 0.02
MOST_BYTES = 8192
PENALTY = b"Not allowed at this time"
FULL = b"Exceeded MaxStartups"
"""What OpenSSH says to whom it drops before its own first line (drop_connection in sshd.c)."""
CLOSE_S = 0.3
ALGORITHMS = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"),
}
"""Types of host keys, and the signatures that can be asked of each."""


class Pid(Struct, frozen=True):
    file: str
    pid: int
    alive: bool
    of_this_life: bool


class Sshd(Struct, frozen=True):
    """What this machine's own server would do, by its configuration and its pid file."""

    ports: tuple[int, ...] = ()
    host_keys: tuple[str, ...] = ()
    pids: tuple[Pid, ...] = ()


class Server(Struct, frozen=True):
    """Whom to ask."""

    host: str
    port: int

    @property
    def address(self) -> str:
        return address(self.host, self.port)


def complaint(options: Mapping[str, Any]) -> str:
    if bool(options["user"]) != bool(options["key_file"]):
        return "user and key_file go together"
    if options["command"] and not options["user"]:
        return "a command needs a user and a key_file"
    if options["user"] and options["host"] not in ("", "localhost", *LOOPBACK) and not options["known_hosts"]:
        return "a login to another host needs known_hosts"
    return ""


@check(
    "service.ssh",
    profiles="R",
    uses=("files.ssh",),
    options={
        "host": option(host, A_HOST, "who is asked; without it this machine, where its port is listened on", ""),
        "port": option(port, A_PORT, "without it the one in sshd_config, else 22"),
        "user": option(user, "a user's name", "who logs in, with a key; without it nobody does", ""),
        "key_file": option(path, A_PATH, "the private key for the login, without a passphrase", read=True),
        "command": option(words, "text", "what the user's shell runs after the login, and must end in 0", ""),
        "known_hosts": option(
            path,
            A_PATH,
            "the host keys that are right; without it the one that an earlier run saw and, for a login to this"
            " machine, the server's own files",
            read=True,
        ),
    },
    complaint=complaint,
)
async def ssh(context: Context, job: Job) -> Finding:
    """Does the ssh server exchange keys, with the host key that it had before?"""
    (config,) = context.asked["sshd"]
    sshd = msgspec.convert((await context.answer("files", f"sshd:{config}")).data, Sshd)
    found = await _told(context, job, sshd)
    if not (job.options["host"] or job.options["user"]) and (skip := found.skip()):
        return skip
    server = _server(context, job, sshd, found)

    import asyncssh  # 0.2 s, and only where there is a server to ask

    trusted = await _trusted(context, job, server, sshd)
    key = await _private_key(context, job)
    data: dict[str, Scalar] = {"address": server.address}
    try:
        await resolve(context, job, server.host, server.port)
        context.step(job, f"connecting to {server.address}")
        sock = await _connected(server)
        try:
            context.step(job, f"waiting for the first line of {server.address}")
            data["banner"] = await _banner(sock, server)
            talk = _Talk(context, job, server, trusted, key)
            seen = await talk.run(sock)
        finally:
            sock.close()
    except (asyncssh.Error, OSError) as error:
        return _refused(server, found.by, error, data)
    return _judged(context, job, server, trusted, seen, data)


async def _told(context: Context, job: Job, sshd: Sshd) -> Signs:
    pid = next((pid for pid in sshd.pids if pid.alive or (pid.of_this_life and context.facts.in_container)), None)
    number = job.options["port"] or next(iter(sshd.ports), DEFAULT_PORT)
    if pid is not None:
        own = f"its pid file {pid.file}"
    else:
        own = f"a listener on port {number}" if listening(context.host, number) else ""
    found = await signs(context, job, COMMAND, own)
    if job.required and own:  # whoever listens there is what must answer, an sshd or not
        return msgspec.structs.replace(found, installed=True)
    return found


def _server(context: Context, job: Job, sshd: Sshd, found: Signs) -> Server:
    given = PORT_IN_COMMAND.search(found.command)
    told = [int(given[1])] if given and 0 < int(given[1]) < 65536 else []
    number = job.options["port"] or next(iter([*told, *sshd.ports]), DEFAULT_PORT)
    return Server(job.options["host"] or next(iter(listening(context.host, number)), LOOPBACK[0]), number)


# ------------------------------------------------------------------------------------------------- up to the first line


async def _connected(server: Server) -> socket.socket:
    """A connection to the first of the host's addresses that takes one; raise OSError where none does."""
    error: OSError = ConnectionRefusedError()
    for family, kind, protocol, _, where in await anyio.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            await _connect(sock, where)
        except OSError as refusal:
            sock.close()
            error = refusal
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise error


async def _connect(sock: socket.socket, where: Any) -> None:
    try:
        sock.connect(where)
    except BlockingIOError:
        await anyio.wait_writable(sock)
        if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code)) from None


async def _banner(sock: socket.socket, server: Server) -> str:
    """The line by which it names itself, which is left for asyncssh to read; raise NoAnswer where there is none."""
    await anyio.wait_readable(sock)
    heard = b""
    with anyio.move_on_after(REST_S):
        while not (said := identification(heard := sock.recv(MOST_BYTES, socket.MSG_PEEK))):
            if not heard or len(heard) == MOST_BYTES or heard.startswith((PENALTY, FULL)):
                break
            await anyio.sleep(POLL_S)  # what was peeked at is still there: the socket stays readable
        if said.startswith(("SSH-2.0-", "SSH-1.99-")):
            return shown(said, most=80)
    raise NoAnswer(_no_banner(heard, server))


def identification(heard: bytes) -> str:
    """The first whole line that names a protocol of ssh; empty: there is none yet."""
    lines = heard.split(b"\n")[:-1]
    return next((line.decode("utf-8", "replace").strip() for line in lines if line.startswith(b"SSH-")), "")


def _no_banner(heard: bytes, server: Server) -> Finding:
    where = server.address
    if not heard:
        return failed(f"{where} closed the connection without a word", reason="closed", address=where)
    words = shown(heard[:1024].decode("utf-8", "replace"), most=60)
    if heard.startswith(PENALTY):
        return failed(f'{where} says "{words}": it penalises this address', reason="penalty", address=where)
    if heard.startswith(FULL):
        return failed(f'{where} says "{words}": too many log in at once', reason="full", address=where)
    return failed(f'{where} is no ssh server: it says "{words}"', reason="banner", address=where)


# ---------------------------------------------------------------------------------------------------------- host keys


class Trusted(Struct, frozen=True):
    """The host keys that are right, and by whose word."""

    keys: "tuple[asyncssh.SSHKey, ...]" = ()
    types: tuple[str, ...] = ()
    """To be asked for first, so that the same key is seen each time."""
    source: str = ""
    """Empty: nobody has said which is right."""


async def _trusted(context: Context, job: Job, server: Server, sshd: Sshd) -> Trusted:
    import asyncssh

    if file := job.options["known_hosts"]:
        text = await _read(context, "known_hosts", file)
        number = None if server.port == DEFAULT_PORT else server.port
        try:
            keys, _, revoked, *_ = asyncssh.match_known_hosts(text.encode(), server.host, "", number)
        except ValueError as error:
            raise NoAnswer(unknown(f"known_hosts {file}: {shown(str(error))}", reason="known_hosts")) from None
        good = [key for key in keys if key not in revoked]
        return Trusted(tuple(good), tuple(_type(key) for key in good), file)
    if job.options["user"]:
        own = list(_public_keys(sshd.host_keys))
        return Trusted(tuple(own), tuple(_type(key) for key in own), "the server's own key files")
    before = context.host_keys.get(server.address, "")
    return Trusted(types=(before.partition(" ")[0],) if before else ())


def _public_keys(lines: Sequence[str]) -> "Iterator[asyncssh.SSHKey]":
    import asyncssh

    for line in lines:
        try:
            yield asyncssh.import_public_key(line)
        except asyncssh.KeyImportError:
            continue


def _type(key: "asyncssh.SSHKey") -> str:
    return key.get_algorithm()


async def _private_key(context: Context, job: Job) -> "asyncssh.SSHKey | None":
    import asyncssh

    if not (file := job.options["key_file"]):
        return None
    text = await _read(context, "key_file", file)
    try:
        return asyncssh.import_private_key(text)
    except asyncssh.KeyEncryptionError:
        raise NoAnswer(unknown(f"key_file {file} has a passphrase", reason="key_file")) from None
    except (asyncssh.KeyImportError, ValueError):
        raise NoAnswer(unknown(f"key_file {file} holds no private key", reason="key_file")) from None


async def _read(context: Context, option_: str, file: str) -> str:
    record = await context.answer("files", f"text:{file}")
    if record.code:
        raise NoAnswer(unknown(f"{option_} {file} cannot be read: {record.text}", reason=option_))
    return str(record.data["content"])


# ----------------------------------------------------------------------------------------------------------- the talk


class Seen(Struct, frozen=True):
    """What came of it."""

    key: "asyncssh.SSHKey"
    problem: Finding | None = None


class _Talk:
    """Key exchange, and what follows it, over a connection whose first line is an ssh server's."""

    def __init__(
        self, context: Context, job: Job, server: Server, trusted: Trusted, key: "asyncssh.SSHKey | None"
    ) -> None:
        self._context = context
        self._job = job
        self._server = server
        self._trusted = trusted
        self._key = key

    async def run(self, sock: socket.socket) -> Seen:
        """Raise asyncssh.Error or OSError where it ends before the login, if there is one, is done."""
        import asyncssh

        order = dict.fromkeys((*self._trusted.types, *ALGORITHMS))
        algorithms = [name for type_ in order for name in ALGORITHMS.get(type_, ())]
        self._context.step(self._job, f"exchanging keys with {self._server.address}")
        with _somebody():
            if self._key is not None:
                return await self._login(sock, algorithms)
            options = asyncssh.SSHClientConnectionOptions(**self._options(), client_keys=None)
            found = await asyncssh.get_server_host_key(
                sock=sock, config=None, options=options, server_host_key_algs=algorithms, client_version="probe"
            )
        if found is None:
            raise asyncssh.KeyExchangeFailed("no host key was shown")
        return Seen(found)

    async def _login(self, sock: socket.socket, algorithms: list[str]) -> Seen:
        import asyncssh

        talk = self

        class Client(asyncssh.SSHClient):
            def validate_host_public_key(self, *asked: Any) -> bool:
                talk._context.step(talk._job, f"logging in as {talk._job.options['user']}")
                return asked[-1] in talk._trusted.keys

        connection = await asyncssh.connect(
            sock=sock,
            config=None,
            client_factory=Client,
            known_hosts=([], [], []),  # no key passes but by the client above; None would let any pass
            server_host_key_algs=algorithms,
            username=self._job.options["user"],
            client_keys=[self._key],
            preferred_auth="publickey",
            client_version="probe",
            **self._options(),
        )
        try:
            problem = await self._command(connection)
            seen = connection.get_server_host_key()
        finally:
            connection.close()
            with anyio.move_on_after(CLOSE_S):
                await connection.wait_closed()
        if seen is None:
            raise asyncssh.KeyExchangeFailed("no host key was shown")
        return Seen(seen, problem)

    async def _command(self, connection: "asyncssh.SSHClientConnection") -> Finding | None:
        """Run the command, if there is one; its output is nobody's business and may be anything."""
        import asyncssh

        if not (command := self._job.options["command"]):
            return None
        self._context.step(self._job, f"running the command as {self._job.options['user']}")
        nowhere = asyncssh.DEVNULL
        process = await connection.create_process(
            command, stdin=nowhere, stdout=nowhere, stderr=nowhere, request_pty=False
        )
        try:
            ended = await process.wait()
        except BaseException:
            await _killed(process)
            raise
        if ended.exit_status == 0:
            return None
        how = f"status {ended.exit_status}" if ended.exit_signal is None else f"SIG{ended.exit_signal[0]}"
        return failed(f"the command ended with {how} at {self._server.address}", reason="command")

    @staticmethod
    def _options() -> dict[str, Any]:
        """Whatever asyncssh would otherwise look for in a home, an agent or a ticket cache."""
        return {
            "agent_path": None,
            "gss_host": None,
            "x509_trusted_certs": None,
            "x509_trusted_cert_paths": None,
            "connect_timeout": None,
            "login_timeout": 0,
        }


async def _killed(process: "asyncssh.SSHClientProcess[Any]") -> None:
    """End what runs over there: without a terminal it would not even hear that nobody waits for it any more.

    OpenSSH passes a signal on to the whole group of the user's shell, but for root's (it wants privilege separation).
    """
    with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_S), suppress(OSError):
        process.kill()
        await process.wait_closed()


@contextmanager
def _somebody() -> Iterator[None]:
    """Without a name and a home in the environment asyncssh asks the user database, and fails where that has none.

    That can hang, and an image's numbered user is in none. LNAME is the one name for it that no program sets.
    """
    wanted = {"HOME": "/"}
    if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        wanted["LNAME"] = "probe"
    added = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


# ------------------------------------------------------------------------------------------------------------- judging


def _refused(server: Server, by: str, error: Exception, data: Mapping[str, Scalar]) -> Finding:
    """What it means that the talk broke off; `by`: who had told it to run."""
    import asyncssh

    where = server.address
    if isinstance(error, asyncssh.PermissionDenied):
        return failed(f"{where} lets the user in by no key of key_file", reason="auth", **data)
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return failed(f"{where} has another host key than it should: nobody logged in", reason="host_key", **data)
    if isinstance(error, asyncssh.ChannelOpenError):
        return failed(f"{where} runs no command: {shown(str(error), most=80)}", reason="command", **data)
    if "banner" not in data:
        reason, words_ = why(error)
        return failed(f"{where}: {words_}{f'; told to run by {by}' if by else ''}", reason=reason, **data)
    if isinstance(error, OSError | asyncssh.ConnectionLost):
        return failed(f"{where} broke off the key exchange", reason="kex", **data)
    return failed(f"{where}: no key exchange: {shown(str(error), most=80)}", reason="kex", **data)


def _judged(
    context: Context, job: Job, server: Server, trusted: Trusted, seen: Seen, data: Mapping[str, Scalar]
) -> Finding:
    type_, fingerprint = _type(seen.key), seen.key.get_fingerprint()
    known = {**data, "host_key_type": type_, "host_key_sha256": fingerprint.removeprefix("SHA256:")}
    if seen.problem is not None:
        return failed(seen.problem.summary, reason="command", **known)
    now, before = f"{type_} {fingerprint}", context.host_keys.get(server.address, "")
    if trusted.source and seen.key not in trusted.keys:
        had = "has another" if trusted.keys else "has none"
        return warned(f"{server.address} shows host key {now}; {trusted.source} {had}", reason="host_key", **known)
    if not job.options["known_hosts"] and before not in ("", now):
        return warned(f"{server.address} shows host key {now}; before it was {before}", reason="host_key", **known)
    done = f"; {job.options['user']} logged in" if job.options["user"] else ""
    done += " and ran the command" if job.options["command"] else ""
    return passed(f"{data['banner']} at {server.address}, host key {now}{done}", **known)
