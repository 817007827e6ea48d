"""Secrets and control characters end at the report's edge."""

import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from probe.redact import clean, is_secret, redact

PLACES = [
    "GET https://user:{}@example.org/path failed",
    "GET https://{}@example.org/path",
    "redis://:{}@10.0.0.1:6379/0 refused",
    "GET http://127.0.0.1:8888/api?token={} returned 403",
    "GET http://127.0.0.1:8888/api?a=b&access_token={}&x=y",
    "Authorization: Bearer {}",
    "Authorization: token {}",
    "authorization: Basic {}",
    "Proxy-Authorization: Digest username={}",
    "curl -H 'Authorization: Bearer {}' http://x timed out",
    'curl -H "Authorization: token {}" http://x timed out',
    '{{"Authorization": "Bearer {}", "x": 1}}',
    "{{'authorization': 'Bearer {}'}}",
    "sent bearer {} to it",
    "HF_TOKEN={} python train.py",
    "export AWS_SECRET_ACCESS_KEY={}",
    "api_key={}",
    "apikey: {}",
    'API_KEY="{}"',
    "DB_PASSWORD='{}' and more",
    "MY_SECRET = {}",
    "X-Api-Key: {}",
    '"token": "{}"',
    "tool --token {} run",
    "tool --db-password={} run",
    "tool --hf-token {}",
    "Cookie: session={}",
    "MYSQL_PASSWD={}",
    "url is http%3A%2F%2Fx%3Ftoken%3D{}",
    "-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----",
]
SECRET = "s3cr3t-Pl4nted"
secrets = st.text(st.characters(codec="ascii", categories=("L", "N"), include_characters="-_.~+%!$*"), min_size=8).map(
    lambda text: "q" + text
)


@pytest.mark.parametrize("place", PLACES)
def test_a_planted_secret_vanishes(place: str) -> None:
    assert SECRET not in redact(place.format(SECRET))


@given(st.sampled_from(PLACES), secrets, st.text(max_size=30), st.text(max_size=30))
def test_any_secret_vanishes_in_any_surroundings(place: str, secret: str, before: str, after: str) -> None:
    assume(secret not in before + after + place)
    assert secret not in redact(f"{before}\n{place.format(secret)}\n{after}")


@given(st.text())
def test_redact_takes_any_text_and_is_stable(text: str) -> None:
    once = redact(text)
    assert once == redact(once)


@pytest.mark.parametrize(
    "text",
    [
        "NVML 18: driver/library version mismatch (kernel 580.159, library 570.86)",
        "8 x NVIDIA H100 80GB HBM3 computed exactly; 18 checks passed in 4.1 s",
        "torch not installed (looked in /usr/bin/python3, $VIRTUAL_ENV)",
        "ssh: key exchange done with 127.0.0.1:22, host key ssh-ed25519",
        "GET http://127.0.0.1:8888/lab/api returned 200 in 0.01 s",
        "max_tokens=5, tokenizer: fast, monkey=3",
        "mail admin@example.org",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert text == redact(text)


HOSTILE = [
    "://" * 100_000,
    "://a" * 75_000,
    "a" * 300_000,
    "token=" * 50_000,
    'token="' * 43_000,
    "authorization: " * 20_000,
    '"authorization' * 21_000,
    "--a-" * 75_000,
    "bearer " * 43_000,
    "-----BEGIN PRIVATE KEY-----" * 11_000,
    "-----BEGIN " + "A " * 150_000,
    "\x1b]" * 150_000,
    "\x1b[" + "0" * 300_000,
    "\x1b[0;" * 75_000,
    "token" + " " * 300_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_takes_linear_time(text: str) -> None:
    """300 kB in well under 2 s of CPU; one quadratic pattern would take minutes."""
    began = time.process_time()
    redact(clean(text))
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [("token", True), ("HF_TOKEN", True), ("api_key", True), ("db_password", True), ("key", False), ("tokens", False)],
)
def test_a_name_tells_whether_its_value_is_a_secret(name: str, expected: bool) -> None:
    assert expected is is_secret(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jgone", "gone"),
        ("a\r\nhealthy: b\tc", "a healthy: b c"),
        ("a\u2028b", "a b"),
        ("\u202egnorw\u202c \u2066x\u2069", "gnorw x"),
        ("bell\x07 null\x00 del\x7f", "bell null del"),
        ("undecodable \udcff", "undecodable ?"),
        ("naïve 温度 41 °C", "naïve 温度 41 °C"),
    ],
)
def test_clean_leaves_one_line_that_moves_no_cursor(text: str, expected: str) -> None:
    assert expected == clean(text)


@given(st.text(st.characters(codec=None, categories=None)))
def test_cleaned_text_is_encodable_and_holds_no_control_character(text: str) -> None:
    cleaned = clean(text)
    assert not [character for character in cleaned if ord(character) < 32 or 0x7F <= ord(character) < 0xA0]
    assert cleaned == cleaned.encode().decode()


def test_a_secret_cut_by_an_escape_is_hidden_once_cleaned() -> None:
    assert SECRET not in redact(clean(f"HF_TO\x1b[0mKEN={SECRET}"))
