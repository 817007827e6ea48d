"""The hosts of a gate: from ``--hosts`` or a hostfile, and back into a clean hostfile of the same format.

::

    gpu[01-16,20],login1        ClusterShell's NodeSet, where there are brackets or groups
    gpu01                       a hostfile, a host a line: plain,
    gpu02 slots=8                   as MPI and DeepSpeed have it,
    root@gpu03:2222 # spare         with user and port, comments kept,
    gpu[04-16] slots=8              folded

Pure but for reading the file and, where names are folded, ClusterShell's own configuration of groups.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from math import prod

from msgspec import Struct
from msgspec.structs import replace

from probe.config import UsageError, shown

MOST_BYTES = 8 << 20
MOST_HOSTS = 1 << 16
LOCALHOST = ("localhost", "127.0.0.1", "::1")
NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?|[0-9A-Fa-f:]{2,39}")
"""A host name, or an IPv4 or IPv6 address: nothing that a shell, ssh or a terminal could take for something else."""
USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@\\-]{0,63}")
FOLDED = re.compile(r"\[[\d,/ -]+\]|^@|[!&^]")
"""What NodeSet is asked for: ranges, groups and set operators. An IPv6 address in brackets is none of it."""
HOSTFILE = "--hostfile"
HOSTS = "--hosts"


class Host(Struct, frozen=True):
    """One host as the user named it."""

    name: str
    """What it is called here: its own name, with the port where two differ in nothing else."""
    user: str = ""
    port: int = 0
    """0: ssh's own choice."""
    target: str = ""
    """The name without a port, for ssh."""
    address: str = ""
    """Which of its addresses it is to use; empty: it chooses."""
    environment: tuple[tuple[str, str], ...] = ()
    """Laid over the agent's own, for simulated hosts."""


class Hostfile(Struct, frozen=True):
    """A hostfile's lines, each with the hosts that it names: a word of the file's own for each, and its name here."""

    lines: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]

    def clean(self, names: Iterable[str]) -> str:
        """The file without the hosts that are not in `names`; what is left stands as it stood.

        A folded line that loses a host becomes a line for each that is left: what reads the file may not unfold.
        """
        kept = set(names)
        return "".join(f"{line}\n" for whole, hosts in self.lines for line in _without(whole, hosts, kept))


def _without(line: str, hosts: Sequence[tuple[str, str]], kept: set[str]) -> list[str]:
    left = [word for word, name in hosts if name in kept]
    if len(left) == len(hosts):
        return [line]
    folded = line.partition("#")[0].split()[0]
    return [line.replace(folded, word, 1) for word in left]


def simulated(number: int) -> tuple[Host, ...]:
    """Hosts on this machine, each with a loopback address of its own (127.0.0.1 is left to the machine itself)."""
    return tuple(Host(f"local-{n + 1}", address=f"127.0.{(n + 2) // 256}.{(n + 2) % 256}") for n in range(number))


def from_set(text: str) -> tuple[Host, ...]:
    """The hosts of ``--hosts``: names between commas, folded or not. Raises UsageError."""
    names: list[str] = []
    for part in _parts(text):
        names += _words(part, HOSTS)
        _refuse_too_many(len(names), HOSTS)
    return _checked(_told_apart(named(name, HOSTS) for name in names), HOSTS)


def _words(part: str, where: str) -> list[str]:
    """One word for each host of a part that may be folded, each with the part's user."""
    user, at, rest = part.rpartition("@")
    folded = rest if user else part
    prefix = f"{user}{at}" if user else ""
    return [f"{prefix}{name}" for name in _unfolded(folded, where)] if FOLDED.search(folded) else [part]


def _parts(text: str) -> list[str]:
    """Split at the commas that stand outside of brackets."""
    parts = re.split(r",(?![^\[]*\])|\s+", text.strip())
    return [part for part in parts if part]


def _unfolded(part: str, where: str) -> list[str]:
    try:
        from ClusterShell.NodeSet import NodeSet, NodeSetException
    except ImportError:
        raise UsageError(
            f"{shown(part)} is folded, and ClusterShell, which unfolds names, is not installed",
            where,
            "plain names, or: pip install 'gpu-probe[gate]'",
        ) from None
    if _count(part) > MOST_HOSTS:  # not found out by NodeSet: it makes them all first
        raise UsageError(f"{shown(part)} is more than {MOST_HOSTS} hosts", where, f"at most {MOST_HOSTS}")
    try:
        return list(NodeSet(part))
    except NodeSetException as error:
        raise UsageError(f"{shown(part)} is no set of hosts: {error}", where, "such as 'gpu[01-16,20]'") from None


def _count(part: str) -> int:
    """How many hosts a folded part names at most, by the numbers in its brackets."""
    return sum(prod(map(_width, re.findall(r"\[([^\]]*)", piece))) for piece in re.split(r"[!&^]", part))


def _width(ranges: str) -> int:
    """Of ``01-16,20`` 17, of ``0-100/10`` 11."""
    count = 0
    for each in ranges.split(","):
        limits = re.fullmatch(r"(-?\d{1,18})-(-?\d{1,18})(?:/(\d{1,18}))?", each)
        if limits:
            count += max(0, int(limits[2]) - int(limits[1])) // max(1, int(limits[3] or 1)) + 1
        else:
            count += MOST_HOSTS + 1 if "-" in each and len(each) > 18 else 1
    return count


def fold(names: Iterable[str]) -> str:
    """``gpu[01-16,20]`` where ClusterShell is there, else the names between commas."""
    names = list(names)
    if len(names) > 1:
        try:
            from ClusterShell.NodeSet import NodeSet, NodeSetException

            try:
                return str(NodeSet.fromlist(names))
            except NodeSetException:
                pass
        except ImportError:
            pass
    return ",".join(names)


def from_names(names: Iterable[str], where: str) -> tuple[Host, ...]:
    """The hosts that somebody else has listed, in that order. Raises UsageError."""
    return _checked([named(name, where) for name in names], where)


def from_file(path: str) -> tuple[tuple[Host, ...], Hostfile]:
    """The hosts of a hostfile, in its order, and the file itself. Raises UsageError."""
    lines = _read(path).removesuffix("\n").split("\n")  # what else splitlines() splits at may stand in a comment
    found: list[list[tuple[str, Host]]] = []
    count = 0
    for number, line in enumerate(lines, start=1):
        found.append(_named_in(line, f"{path}:{number}"))
        count += len(found[-1])
        _refuse_too_many(count, path)
    hosts = _checked(_told_apart(host for each in found for _, host in each), path)
    names = iter(hosts)
    return hosts, Hostfile(
        tuple(
            (line, tuple((word, next(names).name) for word, _ in each)) for line, each in zip(lines, found, strict=True)
        )
    )


def _named_in(line: str, where: str) -> list[tuple[str, Host]]:
    """The hosts of one line of a hostfile, each with the word that names it and no other."""
    first, *rest = line.partition("#")[0].split() or [""]
    if wrong := [word for word in rest if not re.fullmatch(r"(max[_-])?slots=\d{1,6}", word)]:
        raise UsageError(f"{shown(wrong[0])} is not understood", where, "host, or host slots=N")
    return [(word, named(word, where)) for word in (_words(first, where) if first else ())]


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_size > MOST_BYTES:
                raise UsageError("is no regular file, or too large", path, f"a text file of at most {MOST_BYTES} bytes")
            return os.read(fd, MOST_BYTES).decode("utf-8-sig")  # some editors begin a file with a mark
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot be read: {words}", path, f"{HOSTFILE} with the path of a text file") from None


def named(word: str, where: str) -> Host:
    """The host of ``[user@]name[:port]``, an IPv6 address with a port in brackets. Raises UsageError."""
    user, at, rest = word.rpartition("@")
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:]+)\](?::(\d{1,5}))?", rest)
    if bracketed:
        name, port = bracketed[1], bracketed[2] or ""
    elif rest.count(":") == 1:
        name, _, port = rest.partition(":")
    else:
        name, port = rest, ""
    wrong = (at and not USER.fullmatch(user)) or not NAME.fullmatch(name)
    if wrong or (":" in rest and rest.count(":") == 1 and not port):
        raise UsageError(f"{shown(word)} is no host", where, "name, user@name, name:port or [IPv6]:port")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UsageError(f"{shown(word)}: no such port", where, "1 to 65535")
    return Host(name, user, int(port or 0), target=name)


def _told_apart(hosts: Iterable[Host]) -> list[Host]:
    """Two containers behind one address are two hosts: there the port belongs to the name."""
    hosts = list(hosts)
    ports: dict[str, set[int]] = {}
    for host in hosts:
        ports.setdefault(host.name, set()).add(host.port)
    return [replace(host, name=f"{host.name}:{host.port}") if len(ports[host.name]) > 1 else host for host in hosts]


def _checked(hosts: Sequence[Host], where: str) -> tuple[Host, ...]:
    if not hosts:
        raise UsageError("names no host", where, "one host at least")
    if twice := [name for name, count in Counter(host.name for host in hosts).items() if count > 1]:
        raise UsageError(f"{fold(twice)}: named more than once", where, "each host once")
    _refuse_too_many(len(hosts), where)
    return tuple(hosts)


def _refuse_too_many(count: int, where: str) -> None:
    if count > MOST_HOSTS:
        raise UsageError(f"names {count} hosts", where, f"at most {MOST_HOSTS}")
