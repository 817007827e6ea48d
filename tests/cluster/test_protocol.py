"""The lines between controller and agent: both sides agree on every field, and refuse whatever else."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.cluster import protocol
from probe.cluster.protocol import Command, ProtocolError, decode, encode
from probe.rank import agent

WORK: dict[str, Any] = {
    "job": 1,
    "backend": "gloo",
    "ifname": "eth0",
    "nproc": 2,
    "seed": 7,
    "timeout_s": 6.0,
    "limit_s": 60.0,
}
TESTING = {**WORK, "sizes_bytes": (4104, 8), "rates_bytes": (4096,)}
PLACE: dict[str, Any] = {
    "first_rank": 0,
    "ranks": 4,
    "first_local": 0,
    "locals": 1,
    "address": "10.0.0.1",
    "port": 0,
}
COMMANDS: list[Command] = [
    protocol.Hello(deadline_s=120.0, ifname="eth0"),
    protocol.Tick(n=3),
    protocol.Warm(),
    protocol.Node(job=1, budget_s=60.0),
    protocol.Listen(job=1, address="10.0.0.1", port=0),
    protocol.Connect(job=1, address="fe80::1", port=29500, timeout_s=3.0),
    protocol.World(
        **TESTING,
        run_id="0a1b",
        nodes=2,
        address="10.0.0.1",
        port=29500,
        is_host=True,
        local_address="10.0.0.2",
        join_timeout_s=15,
    ),
    protocol.Round(**TESTING, **PLACE),
    protocol.Measure(**WORK, **PLACE, share_s=40.0),
    protocol.Cancel(job=1),
    protocol.Stop(),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_the_agent_understands_what_the_controller_says(command: Command) -> None:
    parsed = agent.parse(encode(command))
    assert parsed["verb"] == type(command).__name__.lower()


def test_every_verb_of_the_agent_is_a_command_of_the_controller() -> None:
    assert set(agent.VERBS) == {type(command).__name__.lower() for command in COMMANDS}


WRONG = [
    b"",
    b"[]",
    b'"stop"',
    b"{",
    b'{"verb":"run","argv":["true"]}',
    b'{"verb":"exec"}',
    b'{"verb":"tick"}',
    b'{"verb":"tick","n":"1"}',
    b'{"verb":"tick","n":true}',
    b'{"verb":"tick","n":-1}',
    b'{"verb":"stop","now":1}',
    b'{"verb":"hello","deadline_s":60,"ifname":"eth0; reboot"}',
    b'{"verb":"hello","deadline_s":1e9,"ifname":""}',
    b'{"verb":"measure","job":1,"program":"startup"}',
    b'{"verb":"connect","job":1,"address":"example.org","port":80,"timeout_s":1}',
    b'{"verb":"listen","job":1,"address":"10.0.0.1","port":99999}',
]


@pytest.mark.parametrize("line", WRONG)
def test_the_agent_refuses_what_is_no_command(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        agent.parse(line)


@pytest.mark.parametrize(
    ("verb", "field"), [(verb, field) for verb in ("world", "round", "measure") for field in agent.VERBS[verb]]
)
def test_no_field_of_what_ranks_do_takes_a_list_of_words(verb: str, field: str) -> None:
    """Nothing that could become an argument or a program."""
    (plain,) = [found for command in COMMANDS if (found := json.loads(encode(command)))["verb"] == verb]
    with pytest.raises(ValueError, match=field):
        agent.parse(json.dumps({**plain, field: ["/bin/sh", "-c", "true"]}).encode())


SAID = [
    b'{"say":"ready","version":"1","protocol":1,"name":"a","pid":1}',
    b'{"say":"tock","n":1,"clock_s":1.5}',
    b'{"say":"record","job":1,"process":"0","record":{"key":"done","data":{"rank":0}}}',
    b'{"say":"end","job":1,"process":"0","text":"","signal":9,"status":null,"killed":false,"tail":""}',
    b'{"say":"state","job":1,"process":"0","pid":7,"state":"T","wchan":""}',
    b'{"say":"bye","why":"stop","left":[]}',
]


@pytest.mark.parametrize("line", SAID)
def test_the_controller_understands_what_an_agent_says(line: bytes) -> None:
    assert isinstance(decode(line), protocol.Message)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b'{"say":"nothing"}',
        b'{"say":"tock","n":1}',
        b'{"say":"tock","n":1,"clock_s":1,"more":2}',
        b'{"say":"tock","n":"1","clock_s":1}',
        b"[" * 100_000,
        b'{"say":"bye","why":"' + b"x" * protocol.MAX_LINE_BYTES + b'","left":[]}',
    ],
)
def test_the_controller_refuses_what_is_no_message(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(line)


RECORDS: dict[str, dict[str, Any]] = {
    "store": {"rank": 0, "address": "10.0.0.1", "port": 29500},
    "cases": {
        "rank": 0,
        "bytes": 8,
        "verified": 6,
        "wrong": [{"dtype": "fp32", "kind": "dense", "words": 1, "first": 0, "owners": []}],
        "slowest_s": 0.1,
    },
    "gathered": {"rank": 0, "count": 1, "wrong": [1]},
    "rate": {"rank": 0, "bytes": 8, "goes": 1, "algbw_gbps": 1, "busbw_gbps": 0.5},
    "done": {"rank": 0},
    "torchrun": {},
}
SPOILT = [
    *(
        (key, {name: RECORDS[key][name] for name in RECORDS[key] if name != missing})
        for key, missing in [("store", "port"), ("cases", "wrong"), ("gathered", "wrong"), ("rate", "busbw_gbps")]
    ),
    *(
        (key, {**RECORDS[key], name: value})
        for key, name, value in [
            ("done", "rank", "x"),
            ("done", "rank", -1),
            ("done", "rank", None),
            ("torchrun", "rank", [0]),
            ("store", "port", 0),
            ("store", "port", 65536),
            ("store", "port", "29500"),
            ("cases", "verified", None),
            ("cases", "wrong", [1]),
            ("cases", "wrong", [{"kind": "dense", "words": "many", "owners": []}]),
            ("gathered", "wrong", [[1]]),
            ("gathered", "wrong", 1),
            ("rate", "algbw_gbps", "fast"),
            ("rate", "bytes", -8),
        ]
    ),
]


def heard(key: str, data: dict[str, Any]) -> bytes:
    return json.dumps({"say": "record", "job": 1, "process": "0", "record": {"key": key, "data": data}}).encode()


@pytest.mark.parametrize("key", RECORDS)
def test_the_controller_takes_what_ranks_say(key: str) -> None:
    """With all that they say beside what is needed of it."""
    assert isinstance(decode(heard(key, RECORDS[key])), protocol.Heard)


@pytest.mark.parametrize(("key", "data"), SPOILT)
def test_a_record_without_what_is_needed_of_it_is_no_line_of_the_protocol(key: str, data: dict[str, Any]) -> None:
    """So that the host that says it is lost, and not the gate."""
    with pytest.raises(ProtocolError):
        decode(heard(key, data))


@given(st.binary(max_size=200))
def test_no_line_does_more_than_be_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(line)
    with pytest.raises(ValueError, match=r".*"):
        agent.parse(line)


def test_a_command_is_one_line() -> None:
    assert all(encode(command).count(b"\n") == 1 for command in COMMANDS)
    assert msgspec.json.decode(encode(COMMANDS[0]))["verb"] == "hello"
