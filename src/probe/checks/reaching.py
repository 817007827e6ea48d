"""Reaching somebody over the network: what hangs is named, and an error says what it means. For checks that connect.

::

    resolving <host>  ->  connecting to <host:port>  ->  what the check itself waits for       (the step of a timeout)
    unresolved            refused, unreachable           reset, closed, tls                    (the reason of a failure)
"""

import errno
import socket
from collections.abc import Iterable, Iterator

import anyio

from probe.context import Context
from probe.model import Job, NoAnswer, unknown
from probe.redact import HIDDEN, redact

SEARCH_S = 0.2
SHORTEST_SECRET = 4
"""A shorter one would black out half of an innocent text, such as every 1 of it."""
KINDS: tuple[tuple[type[OSError], str, str], ...] = (
    (ConnectionRefusedError, "refused", "connection refused: nothing listens there"),
    (ConnectionResetError, "reset", "it reset the connection"),
    (BrokenPipeError, "reset", "it reset the connection"),
)


def address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def resolve(context: Context, job: Job, host: str, port: int) -> None:
    """Find that the name has an address; raise OSError where it has none.

    Connecting resolves it again. That costs a healthy host a millisecond, and a sick one is told apart: a name server
    that is silent from a firewall that is.
    """
    if _is_literal(host):
        return
    context.step(job, f"resolving {host}")
    await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _is_literal(host: str) -> bool:
    import ipaddress

    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def why(error: BaseException) -> tuple[str, str]:
    """(reason, words) of a connection that failed, from whatever lies deepest under `error`."""
    found = list(_under(error))
    for one in found:
        if said := _by_a_library(one):
            return said
    for kind, reason, words in KINDS:
        if any(isinstance(one, kind) for one in found):
            return reason, words
    for one in found:
        if isinstance(one, OSError) and one.errno:
            return "unreachable", f"cannot be reached ({errno.errorcode.get(one.errno, one.errno)}: {one.strerror})"
    return "closed", "it closed the connection"


def _by_a_library(error: BaseException) -> tuple[str, str] | None:
    """Of the resolver's and OpenSSL's errors, which are no numbers of the kernel's."""
    import ssl

    if isinstance(error, socket.gaierror):
        return "unresolved", f"its name has no address ({error.strerror})"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "tls", f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return "tls", f"no TLS with it ({(error.reason or str(error)).replace('_', ' ').lower()})"
    return None


def _under(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and the members of groups, the outermost first."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        one = queue.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        queue += [*(one.exceptions if isinstance(one, BaseExceptionGroup) else ()), one.__cause__, one.__context__]


def found(pattern: str, said: str) -> bool:
    """`re.search` with a bound: of some patterns it takes for ever, and holds the loop, the nets and the GIL meanwhile.

    The engine of `re` looks for signals as it goes; raise NoAnswer where it is not done in time.
    """
    import re
    import signal

    def over(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, SEARCH_S)
    try:
        return re.search(pattern, said) is not None
    except TimeoutError:
        words = f"/{shown(pattern)}/ takes over {SEARCH_S} s to be looked for: make it simpler"
        raise NoAnswer(unknown(words, reason="pattern")) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def shown(text: str, secrets: Iterable[str] = (), most: int = 120) -> str:
    """Others' words in a sentence of ours: one line, without secrets, and these taken out before it is cut."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, HIDDEN)
    words = " ".join("".join(char if char.isprintable() else " " for char in redact(text)).split())
    return words if len(words) <= most else words[: most - 3] + "..."
