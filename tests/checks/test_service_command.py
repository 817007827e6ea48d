"""``[[command]]``, with recorded output; real programs are run in tests/system/test_targets.py."""

from typing import Any

import pytest

from probe.checks.service_command import complaint
from probe.model import Outcome, Record, Status
from probe.registry import TARGETS
from tests.checks.serving import ask


def output(status: int = 0, text: str = "", stderr: str = "", **options: Any) -> Outcome:
    record = Record("output", code=status, text=text, data={"stderr": stderr})
    return ask("command", ("command", record), argv=["x"], **options)


def ended(outcome: Outcome) -> tuple[Status, object]:
    return outcome.status, outcome.data.get("reason")


@pytest.mark.parametrize(
    ("status", "text", "options"),
    [
        (0, "", {}),
        (3, "", {"exit": 3}),
        (3, "", {"exit": [0, 3]}),
        (0, "load 0.5\nready\n", {"match": r"load [01]\."}),
        (0, "load 0.5\nready\n", {"match": r"(?m)^ready$"}),
    ],
)
def test_a_program_that_is_content(status: int, text: str, options: dict[str, Any]) -> None:
    outcome = output(status, text, **options)
    assert outcome.status is Status.PASS
    assert outcome.summary.startswith(f"it ended with {status}")


def test_another_status() -> None:
    """Both, and the last line of what it said: of stderr, else of stdout."""
    outcome = output(1, "out\n", "first\nlast word\n\n", exit=[0, 3])
    assert ended(outcome) == (Status.FAIL, "status")
    assert outcome.summary == 'it ended with 1, expected 0 or 3; it said "last word"'
    assert output(1, "out\n").summary == 'it ended with 1, expected 0; it said "out"'
    assert output(1).summary == "it ended with 1, expected 0"


@pytest.mark.parametrize(("status", "words"), [(127, "it was not found"), (126, "it could not be executed")])
def test_a_program_that_cannot_be_run(status: int, words: str) -> None:
    """By a shell's words for it, and ours."""
    outcome = output(status, "", "x: No such file or directory\n")
    assert ended(outcome) == (Status.FAIL, "not_started")
    assert f'({words}), expected 0; it said "x: No such file' in outcome.summary
    assert output(status, exit=status).status is Status.PASS


def test_another_output() -> None:
    outcome = output(0, "starting\n", match="^ready")
    assert ended(outcome) == (Status.FAIL, "content")
    assert outcome.summary == 'it ended with 0, and its stdout does not match /^ready/; it said "starting"'
    assert output(0, match="ready").summary.endswith("; it printed nothing")


@pytest.mark.parametrize(
    "said",
    [
        "\x1b[31mred\x07 \u202eline\n",
        "x" * 100_000,
        "postgres://app:planted@db/x",
        "p" * 100 + " postgres://app:" + "planted" * 20 + "@db/x",
        "login with PGPASSWORD=planted",
        "the key is planted-in-env",
    ],
)
def test_what_it_said_is_cut_cleaned_and_redacted(said: str) -> None:
    """One printable line of its output, and no secret in it, also where the cut would go through one."""
    outcome = output(1, "", said, env={"KEY": "planted-in-env"})
    assert outcome.summary.isprintable()
    assert len(outcome.summary) < 200
    assert "planted" not in outcome.summary


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"argv": ("x",), "shell": ""}, False),
        ({"argv": (), "shell": "x"}, False),
        ({"argv": (), "shell": ""}, True),
        ({"argv": ("x",), "shell": "x"}, True),
    ],
)
def test_it_takes_one_of_argv_and_shell(options: dict[str, Any], wrong: bool) -> None:
    assert bool(complaint(options)) is wrong


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("argv", []),
        ("argv", "ls"),
        ("argv", ["a\0b"]),
        ("argv", ["a", ""]),
        ("shell", ""),
        ("shell", "a\0b"),
        ("exit", 256),
        ("exit", -1),
        ("exit", "0"),
        ("match", "("),
        ("env", {"A=B": "c"}),
        ("env", {"A": "b\0c"}),
        ("env", {"A": 1}),
        ("cwd", "here"),
        ("user", ""),
        ("user", "a b"),
        ("user", "-1"),
        ("user", "4294967295"),
        ("user", "٣"),
        ("user", 0),
    ],
)
def test_what_may_not_be_set(name: str, value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the parsers' one way to say no
        TARGETS["service.command"].options[name].parse(value)
