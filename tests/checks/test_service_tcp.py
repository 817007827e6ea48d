"""``[[tcp]]``, asked of real sockets."""

import signal
import socket
from typing import Any

import pytest

from probe.checks import service_tcp
from probe.checks.service_tcp import says
from probe.model import NoAnswer, Outcome, Status
from probe.registry import TARGETS
from tests.checks.serving import HOST, SHORT_S, Asked, Behaviour, ask, deaf, free_port, hang, serving


def answer(behave: Behaviour, **options: Any) -> Outcome:
    with serving(behave) as port:
        return ask("tcp", host=HOST, port=port, **options)


def ended(outcome: Outcome) -> tuple[Status, object]:
    return outcome.status, outcome.data.get("reason")


def pong(asked: Asked) -> None:
    if asked.socket.recv(100) == b"PING\r\n":
        asked.socket.sendall(b"+PO")
        asked.over.wait(0.05)
        asked.socket.sendall(b"NG\r\n")
    hang(asked)


def banner(asked: Asked) -> None:
    asked.socket.sendall(b"220 mail ESMTP\r\n")
    hang(asked)


def test_a_port_that_accepts() -> None:
    """That is all that is asked for by default."""
    outcome = answer(hang)
    assert outcome.status is Status.PASS
    assert outcome.summary == f"{outcome.data['address']} accepts connections"


@pytest.mark.parametrize(
    ("behave", "options"),
    [
        (pong, {"send": "PING\r\n", "expect": "+PONG"}),
        (banner, {"expect": "220 "}),
        (banner, {"expect": r"/^2\d\d .*SMTP/"}),
    ],
)
def test_an_answer_that_is_as_it_should_be(behave: Behaviour, options: dict[str, object]) -> None:
    """Text or a regular expression, in one piece or several; it ends with the first fit and waits for no end."""
    outcome = answer(behave, **options)
    assert outcome.status is Status.PASS, outcome.summary
    assert outcome.summary.endswith(f" says {options['expect']}".rstrip())


def test_ipv6() -> None:
    """An address is written as in URLs."""
    outcome = ask("tcp", host="::1", port=free_port())
    assert outcome.summary.startswith("[::1]:")
    assert ended(outcome) in [(Status.FAIL, "refused"), (Status.FAIL, "unreachable")]


def test_nobody_listens() -> None:
    """refused, with the address."""
    port = free_port()
    outcome = ask("tcp", host=HOST, port=port)
    assert ended(outcome) == (Status.FAIL, "refused")
    assert outcome.summary == f"{HOST}:{port}: connection refused: nothing listens there"


def test_a_name_without_an_address() -> None:
    outcome = ask("tcp", host="nobody.invalid", port=1)
    assert ended(outcome) == (Status.FAIL, "unresolved")


def test_an_address_that_no_route_leads_to() -> None:
    """Only a directly connected host may be asked of a multicast address: the kernel says so at once."""
    outcome = ask("tcp", host="255.255.255.255", port=1)
    assert ended(outcome) == (Status.FAIL, "unreachable")
    assert "cannot be reached (E" in outcome.summary


def test_another_answer() -> None:
    """What came and what was expected; what was sent is hidden where it comes back."""

    def echo(asked: Asked) -> None:
        asked.socket.sendall(b"-ERR unknown " + asked.socket.recv(100))

    outcome = answer(echo, send="AUTH planted\r\n", expect="+OK")
    assert ended(outcome) == (Status.FAIL, "content")
    assert 'said "-ERR unknown ***" and closed the connection, expected +OK' in outcome.summary


def test_what_comes_after_64_kib_is_not_looked_at() -> None:
    """A flood ends the check, with the beginning of it."""

    def flood(asked: Asked) -> None:
        while not asked.over.is_set():
            asked.socket.sendall(b"\x1b[31m" + b"x" * 65536)

    outcome = answer(flood, expect="never")
    assert ended(outcome) == (Status.FAIL, "content")
    assert "xxx..." in outcome.summary
    assert "in its first 64 KiB" in outcome.summary
    assert len(outcome.summary) < 300
    assert outcome.summary.isprintable()


def test_a_server_that_hangs_up() -> None:
    """Without a word: closed."""
    outcome = answer(lambda asked: None, expect="x")
    assert ended(outcome) == (Status.FAIL, "closed")
    assert "closed the connection without a word, expected x" in outcome.summary


def test_a_server_that_resets() -> None:
    """SO_LINGER 0: reset."""
    outcome = answer(Asked.reset, expect="x")
    assert ended(outcome) == (Status.FAIL, "reset")


def trickle(asked: Asked) -> None:
    while not asked.over.wait(0.02):
        asked.socket.sendall(b"x")


@pytest.mark.parametrize("behave", [hang, trickle])
def test_a_server_that_never_comes_to_an_end(behave: Behaviour) -> None:
    """Accepted and silent, or a byte at a time: timeout, with what it was waiting for, and from whom."""
    outcome = answer(behave, expect="PONG", timeout_s=SHORT_S)
    assert outcome.status is Status.TIMEOUT
    assert str(outcome.data["step"]).startswith(f"waiting for PONG from {HOST}:")


def test_a_server_that_does_not_read() -> None:
    """What is sent fits into no buffer: timeout, in sending."""
    outcome = answer(hang, send="x" * 20_000_000, timeout_s=SHORT_S)
    assert str(outcome.data["step"]).startswith(f"sending to {HOST}:")


def test_a_port_that_drops_who_connects() -> None:
    """As behind a packet filter: timeout, in connecting."""
    with deaf() as port:
        outcome = ask("tcp", host=HOST, port=port, timeout_s=SHORT_S)
    assert (outcome.status, outcome.data["step"]) == (Status.TIMEOUT, f"connecting to {HOST}:{port}")


@pytest.mark.parametrize(
    ("said", "expected", "fits"),
    [
        ("+PONG", "+PONG", True),
        ("+PONG", "PING", False),
        ("a/b", "/b", True),
        ("//", "//", True),
        ("abc", "/^b/", False),
        ("abc", "/b.$/", True),
    ],
)
def test_text_and_regular_expressions(said: str, expected: str, fits: bool) -> None:
    """Between slashes it is one."""
    assert says(said, expected) is fits


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", "a b"),
        ("host", ""),
        ("host", "a..b"),
        ("host", "a" * 64),
        ("host", "http://a"),
        ("port", 0),
        ("port", 65536),
        ("port", "80"),
        ("port", True),
        ("send", 1),
        ("expect", "/(/"),
        ("expect", "/a{99999999999999999999}/"),
        ("expect", f"/{'(' * 5000}{')' * 5000}/"),
        ("expect", ""),
    ],
)
def test_what_may_not_be_set(name: str, value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the parsers' one way to say no
        TARGETS["service.tcp"].options[name].parse(value)


def test_a_pattern_that_never_ends_ends() -> None:
    """It would hold the whole run, whose limits no longer come; what it is of is named."""
    with pytest.raises(NoAnswer) as raised:
        says("a" * 60 + "!", "/(a+)+$/")
    finding = raised.value.finding
    assert (finding.status, finding.data["reason"]) == (Status.UNKNOWN, "pattern")
    assert "(a+)+$" in finding.summary
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_byte_at_a_time_is_not_searched_at_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4,000 bytes, searched whole each time, that would be 8 million."""
    looked: list[int] = []

    def look(said: str, expected: str) -> bool:
        looked.append(len(said))
        return False

    monkeypatch.setattr(service_tcp, "says", look)

    def drip(asked: Asked) -> None:
        asked.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(4000):
            asked.socket.sendall(b"x")

    assert ended(answer(drip, expect="never")) == (Status.FAIL, "content")
    assert (looked[-1], len(looked) < 400) == (4000, True)
