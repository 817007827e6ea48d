"""What a gate's report says, as a test asks it."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from probe.report import gate
from probe.report import json as report_json
from tests.system.command import Ran


@cache
def validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(Path(report_json.file_of(gate.REPORT)).read_text()))


def said(ran: Ran) -> dict[str, Any]:
    """The one report of a run, which fits the published schema."""
    assert ran.out.count("\n") == 1, ran
    found: dict[str, Any] = json.loads(ran.out)
    validator().validate(found)
    assert found["exit_code"] == ran.code, ran
    assert ran.err == "", ran
    return found


def states(ran: Ran) -> dict[str, str]:
    return {host["host"]: host["state"] for host in said(ran)["hosts"]}


def clean(ran: Ran) -> list[str]:
    return list(said(ran)["clean_hosts"])


def causes(ran: Ran) -> dict[str, list[str]]:
    """By code: the hosts that it names."""
    found: dict[str, list[str]] = {}
    for cause in said(ran)["causes"]:
        found.setdefault(cause["code"], []).extend(check["target"].removeprefix("host:") for check in cause["checks"])
    return found
