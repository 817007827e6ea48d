"""The report of one ``probe check`` -> what each check cost, and what there is to say of it. Pure."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from probe.clock import Budget

NEAR_S = 0.2
"""A report whose run took all of its budget but so much was cut off by it."""
NO_ANSWER = ("timeout", "unknown")


class Costs(Struct, frozen=True):
    seconds: dict[str, float]
    """By check; the slowest target stands for a check."""
    left_out: list[str]
    complaint: str
    """What it says of the machine, where that is not "healthy"."""


def read(report: Mapping[str, Any], budget_s: float) -> Costs:
    """A run that its budget - ours - cut off tells neither a cost nor anything of the machine."""
    asked = [check for check in report["checks"] if check["status"] != "skip"]
    silent = [check for check in asked if check["status"] in NO_ANSWER]
    if silent and report["elapsed_s"] >= Budget(0.0, budget_s).child_limit_s - NEAR_S:
        return Costs({}, ["whole run: no time"], "")
    seconds: dict[str, float] = {"whole run": report["elapsed_s"]}
    for check in asked:
        if check not in silent:
            seconds[check["id"]] = max(seconds.get(check["id"], 0.0), check["elapsed_s"])
    left_out = list(dict.fromkeys(f"{check['id']}: {check['summary']}" for check in silent))
    return Costs(seconds, left_out, _complaint(report["verdict"], asked))


def _complaint(verdict: str, asked: list[Mapping[str, Any]]) -> str:
    if verdict == "healthy":
        return ""
    ill = sorted((check for check in asked if check["status"] != "pass"), key=lambda check: check["status"] != "fail")
    why = f": {ill[0]['id']}: {ill[0]['summary']}" if ill else ""
    return f"probe check says {verdict}{why}"
