"""Whether a service is to run in this container, for a check on ``auto``: it is installed, and was told to run.

::

    installed   told to: by a listener, pid 1, a supervisor, or having been seen    the check
    yes         yes                                                                 goes on
    yes         no                                                                  skip: installed, not started
    no          having been seen, which proves it wrong                             goes on
    no          whatever else                                                       skip: not installed

A service's own sign, its runtime or pid file, is read by its check. ``ENABLE_<CHECK>_CHECK=true`` makes a failure of
either skip, which is the engine's work.
"""

import re
import socket
import struct

from msgspec import Struct

from probe.context import Context, Host
from probe.model import Finding, Job, skipped

LISTENING = "0A"
"""TCP_LISTEN, as /proc/net/tcp has it."""
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not bound to
LOOPBACK = ("127.0.0.1", "::1")


class Signs(Struct, frozen=True):
    """What there is of a service on this machine."""

    installed: bool
    by: str
    """Who told it to run; empty: nobody."""
    command: str
    """As it was told, where it was told by a command."""

    def skip(self) -> Finding | None:
        """Why it need not run here; None: it must."""
        if not self.installed:
            return skipped("not installed")
        return None if self.by else skipped("installed, not started")


async def signs(context: Context, job: Job, command: re.Pattern[str], own: str = "") -> Signs:
    """By its programs, the commands that start it, and its check's own sign of being told to."""
    service = job.id.rpartition(".")[2]
    installed = bool((await context.answer("files", f"which:{service}")).data.get("path"))
    told = (await context.answer("files", "told:/")).data.get("commands", [])
    found = next(((who, words) for who, words in told if command.search(words)), ("", ""))
    seen = "an earlier run, which saw it" if job.id in context.seen_services else ""
    return Signs(installed or bool(seen), own or found[0] or seen, found[1])


def listening(host: Host, port: int) -> tuple[str, ...]:
    """By which of this machine's own addresses somebody who listens on that port is reached, loopback first."""
    found = set()
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in host.text(name).splitlines()[1:]:
            fields = line.split()
            if len(fields) > 3 and fields[3] == LISTENING and (at := _address(fields[1])) and at[1] == port:
                found.add(ANY.get(at[0], at[0]))
    return tuple(sorted(found, key=lambda address: (address not in LOOPBACK, address)))


def _address(text: str) -> tuple[str, int] | None:
    """``0100007F:0016`` is 127.0.0.1, port 22: words of 32 bits, each as this machine's processor stores it."""
    words, _, port = text.partition(":")
    if len(words) not in (8, 32):
        return None
    try:
        data = b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
        plain = data.removeprefix(bytes(10) + b"\xff\xff")  # an IPv4 address on an IPv6 socket
        return socket.inet_ntop(socket.AF_INET if len(plain) == 4 else socket.AF_INET6, plain), int(port, 16)
    except (ValueError, struct.error):
        return None
