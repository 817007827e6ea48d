"""``[[http]]``, asked of real servers, good, bad and worse."""

import base64
import gc
import ssl
import warnings
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.checks.service_http import ABSENT, Address, complaint, member
from probe.model import Outcome, Record, Status
from probe.options import url as parse_url
from probe.registry import TARGETS
from tests.checks.serving import HOST, SHORT_S, Asked, Behaviour, ask, authority, deaf, free_port, hang, serving

UP = b'{"status": "up", "parts": [{"id": 1, "ready": true}], "a.b": null, "load": 0.5}'


def answer(behave: Behaviour, path: str = "/health", **options: Any) -> Outcome:
    with serving(behave) as port:
        return ask("http", url=f"http://{HOST}:{port}{path}", **options)


def ended(outcome: Outcome) -> tuple[Status, object]:
    return outcome.status, outcome.data.get("reason")


def up(asked: Asked) -> None:
    asked.request()
    asked.answer(UP)


# --- what is right --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"status": 200},
        {"status": [500, 200]},
        {"contains": '"status": "up"'},
        {"json": {"status": "up", "parts": {"0": {"ready": True}}, "load": 0.5}},
        {"json": {"parts.0.id": 1}, "contains": "ready", "method": "POST"},
    ],
)
def test_an_answer_that_is_as_it_should_be(options: dict[str, Any]) -> None:
    """By status, by text, by JSON; the sentence says what was asked and what came."""
    outcome = answer(up, **options)
    assert outcome.status is Status.PASS, outcome.summary
    assert outcome.data == {"http_status": 200}
    assert outcome.summary.startswith(f"{options.get('method', 'GET')} http://{HOST}:")
    assert "/health: 200" in outcome.summary


def test_a_status_that_the_user_calls_right_is() -> None:
    """404, or a redirect, that is listed."""

    def gone(asked: Asked) -> None:
        asked.request()
        asked.answer(b"", "302 Found", "Location: /login")

    assert answer(gone, status=[302, 404]).status is Status.PASS


def test_the_request_is_the_users_own() -> None:
    """Method, path, query and headers; no compression, since the body is looked at as it comes; HEAD has none."""
    seen: list[bytes] = []

    def remember(asked: Asked) -> None:
        seen.append(asked.request())
        asked.answer()

    outcome = answer(remember, "/a%20b?x=1&key=k#fragment", method="HEAD", headers={"X-Mine": "yes", "Host": "other"})
    assert outcome.status is Status.PASS
    line, *headers = seen[0].decode().rstrip().split("\r\n")
    assert line == "HEAD /a%20b?x=1&key=k HTTP/1.1"
    assert {"X-Mine: yes", "Host: other", "Accept-Encoding: identity", "User-Agent: probe"} <= set(headers)
    assert "key=k" not in outcome.summary


def test_proxies_and_netrc_of_the_environment_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A health check asks the server that it names, as nobody else."""
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {HOST} login planted password planted\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{HOST}:{free_port()}")
    seen: list[bytes] = []

    def remember(asked: Asked) -> None:
        seen.append(asked.request())
        asked.answer()

    assert answer(remember).status is Status.PASS
    assert b"Authorization" not in seen[0]


def test_a_body_is_not_read_where_nobody_asks_what_is_in_it() -> None:
    """A status page that streams for ever has answered with its head."""

    def endless(asked: Asked) -> None:
        asked.request()
        asked.socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
        hang(asked)

    assert answer(endless).status is Status.PASS


def test_a_body_is_read_only_until_the_text_is_found() -> None:
    """Also where the text is cut in two by the network."""

    def endless(asked: Asked) -> None:
        asked.request()
        asked.socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\nhel")
        asked.socket.recv(1) if asked.over.wait(0.05) else None
        asked.socket.sendall(b"lo")
        hang(asked)

    assert answer(endless, contains="hello").status is Status.PASS


# --- what is wrong --------------------------------------------------------------------------------------------------


def test_another_status() -> None:
    """The code and what was expected."""

    def sick(asked: Asked) -> None:
        asked.request()
        asked.answer(b"", "503 Service Unavailable")

    outcome = answer(sick)
    assert ended(outcome) == (Status.FAIL, "status")
    assert outcome.data["http_status"] == 503
    assert outcome.summary.endswith("/health: 503, expected 2xx")
    assert answer(sick, status=[200, 204]).summary.endswith("503, expected 200 or 204")


def test_a_redirect_is_not_followed_and_says_where_to() -> None:
    """A login page that answers 200 is no health; the credentials in the location are hidden."""
    paths: list[bytes] = []

    def elsewhere(asked: Asked) -> None:
        paths.append(asked.request().split()[1])
        asked.answer(b"", "302 Found", "Location: http://u:planted@there/login?token=planted")

    outcome = answer(elsewhere)
    assert ended(outcome) == (Status.FAIL, "redirect")
    assert "302 to http://***@there/login?token=***, which is not followed; expected 2xx" in outcome.summary
    assert paths == [b"/health"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"contains": "down"}, '"down" is not in its body, which begins with "{"status": "up", "parts": '),
        ({"json": {"status": "down"}}, 'status is "up", expected "down"'),
        ({"json": {"parts.1.id": 1}}, "parts.1.id is not there, expected 1"),
        ({"json": {"parts": 1}}, 'parts is [{"id": 1, "ready": true}], expected 1'),
        ({"json": {"parts.0.ready": 1}}, "parts.0.ready is true, expected 1"),
        ({"json": {"parts.0.id": True}}, "parts.0.id is 1, expected true"),
        ({"json": {"a.b": "x"}}, 'a.b is null, expected "x"'),
        ({"json": {"a": 1, "b": 2, "c": 3, "d": 4}}, "c is not there, expected 3 and 1 more"),
    ],
)
def test_another_content(options: dict[str, Any], words: str) -> None:
    """What was expected, and what is there; true is not 1."""
    outcome = answer(up, **options)
    assert ended(outcome) == (Status.FAIL, "content")
    assert words in outcome.summary


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b'{"a": '])
def test_a_body_that_is_no_json(body: bytes) -> None:
    """Whatever it is."""

    def page(asked: Asked) -> None:
        asked.request()
        asked.answer(body)

    outcome = answer(page, json={"a": 1})
    assert ended(outcome) == (Status.FAIL, "content")
    assert "its body is no JSON" in outcome.summary
    assert outcome.summary.isprintable()


@pytest.mark.parametrize("options", [{"contains": "never"}, {"json": {"a": 1}}])
def test_an_endless_body_is_read_up_to_a_mebibyte(options: dict[str, Any]) -> None:
    """Then it is too large, and probe hangs up."""

    def endless(asked: Asked) -> None:
        asked.request()
        asked.socket.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not asked.over.is_set():
            asked.socket.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")

    outcome = answer(endless, **options)
    assert ended(outcome) == (Status.FAIL, "too_large")
    assert "1 MiB" in outcome.summary


def test_a_compressed_bomb_is_not_unpacked() -> None:
    """It was asked for as it is, and what comes packed all the same is looked at as it comes."""

    def bomb(asked: Asked) -> None:
        asked.request()
        asked.answer(b"\x1f\x8b\x08\x00" + b"\0" * 1000, "200 OK", "Content-Encoding: gzip")

    assert ended(answer(bomb, contains="x" * 10)) == (Status.FAIL, "content")


def test_nobody_listens() -> None:
    """refused, with the address."""
    port = free_port()
    outcome = ask("http", url=f"http://{HOST}:{port}/")
    assert ended(outcome) == (Status.FAIL, "refused")
    assert outcome.summary == f"GET http://{HOST}:{port}/: connection refused: nothing listens there"


def test_a_name_without_an_address() -> None:
    """RFC 6761: nothing is ever called so."""
    outcome = ask("http", url="http://nobody.invalid/")
    assert ended(outcome) == (Status.FAIL, "unresolved")
    assert "nobody.invalid/: its name has no address (" in outcome.summary


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
def test_a_server_that_hangs_up(data: bytes) -> None:
    """Before its answer, or in the middle of it."""

    def hang_up(asked: Asked) -> None:
        asked.request()
        asked.socket.sendall(data)

    outcome = answer(hang_up, contains="never")
    assert ended(outcome) == (Status.FAIL, "closed")
    assert "the server closed the connection before its answer was whole" in outcome.summary


def test_a_server_that_resets() -> None:
    """RST instead of an answer."""

    def reset(asked: Asked) -> None:
        asked.request()
        asked.reset()

    outcome = answer(reset)
    assert ended(outcome) == (Status.FAIL, "reset")
    assert "it reset the connection" in outcome.summary


@pytest.mark.parametrize(
    "data",
    [
        b"220 mail.example ESMTP\r\n\r\n",
        b"\x00\xff\x1b[31m\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000,
    ],
)
def test_what_is_no_http(data: bytes) -> None:
    """Another protocol, binary, broken heads, a header of 300 kB: garbage, in printable words."""

    def talk(asked: Asked) -> None:
        asked.socket.sendall(data)
        hang(asked)

    outcome = answer(talk, contains="never")
    assert ended(outcome) == (Status.FAIL, "garbage")
    assert "what came is no HTTP (" in outcome.summary
    assert outcome.summary.isprintable()
    assert len(outcome.summary) < 300


def test_ten_thousand_headers() -> None:
    """They are read, or refused, in bounded memory; never a defect of ours."""

    def many(asked: Asked) -> None:
        asked.request()
        asked.answer(b"", "200 OK", *(f"X-{number}: {number}" for number in range(10_000)))

    assert ended(answer(many)) in [(Status.PASS, None), (Status.FAIL, "garbage")]


# --- what hangs: each ends by its own timeout and says where --------------------------------------------------------


def silent(asked: Asked) -> None:
    asked.request()
    hang(asked)


def trickle(asked: Asked) -> None:
    asked.request()
    asked.socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
    while not asked.over.wait(0.02):
        asked.socket.sendall(b"x")


def trickle_headers(asked: Asked) -> None:
    asked.request()
    asked.socket.sendall(b"HTTP/1.1 200 OK\r\n")
    while not asked.over.wait(0.02):
        asked.socket.sendall(b"X: y\r\n")


def not_yet(asked: Asked) -> None:
    asked.request()
    while not asked.over.wait(0.001):
        asked.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


@pytest.mark.parametrize(
    ("behave", "step"),
    [
        (silent, "waiting for the answer of"),
        (trickle, "reading the body of"),
        (trickle_headers, "waiting for the answer of"),
        (not_yet, "waiting for the answer of"),
    ],
)
def test_a_server_that_never_comes_to_an_end(behave: Behaviour, step: str) -> None:
    """Silent, a byte at a time, a header at a time, 100 Continue for ever: timeout, with the URL and where."""
    outcome = answer(behave, contains="never", timeout_s=SHORT_S)
    assert outcome.status is Status.TIMEOUT
    assert str(outcome.data["step"]).startswith(f"{step} http://{HOST}:")
    assert f", in {step} http://{HOST}:" in outcome.summary


def test_a_port_that_drops_who_connects() -> None:
    """As behind a packet filter: timeout, in connecting."""
    with deaf() as port:
        outcome = ask("http", url=f"http://{HOST}:{port}/", timeout_s=SHORT_S)
    assert (outcome.status, outcome.data["step"]) == (Status.TIMEOUT, f"connecting to http://{HOST}:{port}/")


# --- https ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    return authority(tmp_path_factory.mktemp("authority"))


def text_of(path: Path) -> tuple[str, Record]:
    """The file as the files child gives it."""
    return "files", Record(f"text:{path}", code=0, data={"content": path.read_text()})


@pytest.mark.parametrize("verify", ["its CA", False])
def test_https_with_a_certificate_of_ones_own(certified: tuple[Path, ssl.SSLContext], verify: object) -> None:
    """Trusted by its CA's file, or unseen with verify = false."""
    ca, tls = certified
    with serving(up, tls) as port:
        given = str(ca) if verify == "its CA" else verify
        outcome = ask("http", text_of(ca), url=f"https://{HOST}:{port}/", verify=given, json={"status": "up"})
    assert outcome.status is Status.PASS, outcome.summary


def test_https_that_nobody_vouches_for(certified: tuple[Path, ssl.SSLContext]) -> None:
    """By default it is verified, and the sentence says what is wrong."""
    with serving(up, certified[1]) as port:
        outcome = ask("http", url=f"https://{HOST}:{port}/")
    assert ended(outcome) == (Status.FAIL, "tls")
    assert "its certificate is not trusted (unable to get local issuer certificate)" in outcome.summary


def test_https_for_another_name(certified: tuple[Path, ssl.SSLContext]) -> None:
    """A certificate for 127.0.0.1, from the right CA, is none for localhost."""
    ca, tls = certified
    with serving(up, tls) as port:
        outcome = ask("http", text_of(ca), url=f"https://localhost:{port}/", verify=str(ca))
    assert ended(outcome) == (Status.FAIL, "tls")
    assert "certificate is not valid for 'localhost'" in outcome.summary


def test_https_to_a_server_of_http() -> None:
    """The port speaks plain HTTP."""

    def plain(asked: Asked) -> None:
        asked.socket.recv(65536)
        asked.answer(b"", "400 Bad Request")

    with serving(plain) as port:
        outcome = ask("http", url=f"https://{HOST}:{port}/", verify=False)
    assert ended(outcome) == (Status.FAIL, "tls")
    assert "no TLS with it (wrong version number)" in outcome.summary


def test_https_to_a_server_that_says_nothing() -> None:
    """Timeout, in the handshake."""
    with serving(hang) as port, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # httpcore 1.0 leaves the socket of a cancelled handshake open
        outcome = ask("http", url=f"https://{HOST}:{port}/", verify=False, timeout_s=SHORT_S)
        gc.collect()
    assert (outcome.status, outcome.data["step"]) == (Status.TIMEOUT, f"agreeing on TLS with https://{HOST}:{port}/")


@pytest.mark.parametrize(
    "record",
    [
        Record("text:/ca.pem", code=2, text="No such file or directory"),
        Record("text:/ca.pem", code=0, data={"content": "no certificate"}),
        Record("text:/ca.pem", code=0, data={"content": ""}),
    ],
)
def test_a_ca_file_that_is_none(record: Record) -> None:
    """Missing, or without a certificate: nothing was observed of the server."""
    outcome = ask("http", ("files", record), url="https://127.0.0.1:9/", verify="/ca.pem")
    assert ended(outcome) == (Status.UNKNOWN, "ca_file")
    assert outcome.summary.startswith("the CAs in /ca.pem cannot be read: ")


# --- secrets --------------------------------------------------------------------------------------------------------


def test_a_user_in_the_url_is_sent_as_basic_auth_and_never_shown() -> None:
    """Percent-encoded as URLs have it; also where the server repeats it."""
    seen: list[bytes] = []

    def echo(asked: Asked) -> None:
        seen.append(asked.request())
        asked.answer(b"you are planted-user, with p:lanted/pw")

    with serving(echo) as port:
        outcome = ask("http", url=f"http://planted-user:p%3Alanted%2Fpw@{HOST}:{port}/", contains="never")
    encoded = base64.b64encode(b"planted-user:p:lanted/pw")
    assert b"Authorization: Basic " + encoded in seen[0]
    assert "lanted" not in outcome.summary
    assert "you are ***, with ***" in outcome.summary


def test_headers_are_never_shown() -> None:
    """Not where the server repeats them either."""

    def echo(asked: Asked) -> None:
        asked.answer(asked.request())

    outcome = answer(echo, headers={"Authorization": "Bearer planted-1", "X-Key": "planted-2"}, contains="never")
    assert outcome.status is Status.FAIL
    assert "planted" not in outcome.summary
    assert "planted" not in str(dict(outcome.data))


@pytest.mark.parametrize("behave", ["body", "redirect"])
def test_a_query_is_never_shown(behave: str) -> None:
    """It may be a key; also where the server repeats it, whole or in parts, encoded or not."""

    def echo(asked: Asked) -> None:
        asked.request()
        if behave == "body":
            asked.answer(b"no planted+key for you, planted key; key=planted+key&x=1")
        else:
            asked.answer(b"", "302 Found", "Location: /login?key=planted+key&x=1")

    outcome = answer(echo, "/health?key=planted+key&x=1", contains="never")
    assert outcome.status is Status.FAIL
    assert "planted" not in f"{outcome.summary} {dict(outcome.data)}"


# --- what may be set ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("url", "ftp://h/"),
        ("url", "h/"),
        ("url", "http://"),
        ("url", "http://h:0/"),
        ("url", "http://h:65536/"),
        ("url", "http://h:x/"),
        ("url", "http://[::1/"),
        ("url", "http://a b/"),
        ("url", "http://a..b/"),
        ("url", "http://" + "a" * 64 + "/"),
        ("url", "http://h/\x1b"),
        ("url", 1),
        ("method", "get"),
        ("headers", {"a b": "c"}),
        ("headers", {"": "c"}),
        ("headers", {"a": "b\r\nc: d"}),
        ("headers", {"a": 1}),
        ("headers", ["a: b"]),
        ("status", 99),
        ("status", []),
        ("status", "200"),
        ("json", {}),
        ("json", {"a": [1]}),
        ("json", {"a": {}}),
        ("json", {"": 1}),
        ("verify", "ca.pem"),
        ("verify", 1),
    ],
)
def test_what_may_not_be_set(name: str, value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the parsers' one way to say no
        TARGETS["service.http"].options[name].parse(value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "HEAD", "contains": "x"}, "no body"),
        ({"method": "HEAD", "json": {"a": 1}}, "no body"),
        ({"url": "http://u:p@h/", "headers": {"authorization": "x"}}, "Authorization"),
        ({"verify": "/ca.pem"}, "http:// URL has no certificate"),
        ({"verify": "/ca.pem", "url": "https://h/"}, ""),
        ({"url": "http://u:p@h/"}, ""),
        ({"method": "HEAD"}, ""),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], words: str) -> None:
    plain = {"url": "http://h/", "method": "GET", "headers": {}, "contains": "", "json": {}, "verify": True}
    found = complaint({**plain, **options})
    assert words in found
    assert bool(found) == bool(words)


@given(st.from_regex(r"https?://[^ ]{0,20}(/[^ ]*)?", fullmatch=True) | st.text().map(lambda text: "http://" + text))
def test_every_url_that_is_taken_can_be_asked(text: str) -> None:
    """Whatever the config takes, httpx knows what to do with."""
    try:
        given_url = parse_url(text)
    except ValueError:
        return
    asked = Address.of(given_url)
    assert httpx.URL(asked.request).host
    assert asked.shown.isprintable()


def test_members_by_path() -> None:
    """Keys, numbers in lists, and keys that hold dots themselves."""
    tree = {"a": [{"b.c": 1}], "d.e": {"f": 2}, "": 3}
    assert [member(tree, path) for path in ("a.0.b.c", "d.e", "a.1", "a.x", "a.0.b", "a.-1")] == [
        1,
        {"f": 2},
        *[ABSENT] * 4,
    ]
