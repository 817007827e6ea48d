"""Who is told to run, and who listens where."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.checks.told import listening
from tests.checks.asking import Files

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def line(local: str, state: str = "0A") -> str:
    return f"   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 1 1 0\n"


def machine(tcp: str = "", tcp6: str = "") -> Files:
    return Files({"/proc/net/tcp": HEAD + tcp, "/proc/net/tcp6": HEAD + tcp6})


LISTENERS = [
    ("everywhere", line("00000000:0016"), "", ("127.0.0.1",)),
    ("loopback", line("0100007F:0016"), "", ("127.0.0.1",)),
    ("everywhere, both", line("00000000:0016"), line(f"{'0' * 32}:0016"), ("127.0.0.1", "::1")),
    ("IPv6 loopback", "", line("00000000000000000000000001000000:0016"), ("::1",)),
    ("one address", line("050011AC:0016"), "", ("172.17.0.5",)),
    ("one address, and loopback", line("050011AC:0016") + line("0100007F:0016"), "", ("127.0.0.1", "172.17.0.5")),
    ("IPv4 on IPv6", "", line("0000000000000000FFFF00000100007F:0016"), ("127.0.0.1",)),
    ("another port", line("00000000:0017"), "", ()),
    ("a connection", line("0100007F:0016", "01"), "", ()),
    ("nonsense", "x\n1 2 0A 0A\n0: zz:0016 x 0A\n0: 00:0016 x 0A\n", "", ()),
]


@pytest.mark.parametrize(("tcp", "tcp6", "expected"), [one[1:] for one in LISTENERS], ids=[one[0] for one in LISTENERS])
def test_who_listens_is_reached_by_loopback_where_that_is_so(tcp: str, tcp6: str, expected: tuple[str, ...]) -> None:
    assert expected == listening(machine(tcp, tcp6), 22)


def test_a_machine_that_shows_no_listeners_has_none() -> None:
    assert () == listening(Files(), 22)


@given(st.text())
def test_whatever_the_kernel_says_it_is_read(said: str) -> None:
    assert isinstance(listening(Files({"/proc/net/tcp": said}), 22), tuple)
