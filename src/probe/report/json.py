"""The report for programs: `Report` -> one line of JSON, and the published JSON Schema from the same types.

``python -m probe.report.json`` writes the schemas beside this file anew.
"""

import math
import os.path
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from probe.model import Report
from probe.redact import HIDDEN, encodable, is_secret, redact

REPORT = "probe.report/1"
ERROR = "probe.error/1"
SCHEMAS = os.path.join(os.path.dirname(__file__), "schema")


class ErrorReport(msgspec.Struct, frozen=True):
    """What ``--format json`` prints where the settings are wrong (exit code 2)."""

    schema: str
    message: str
    where: str
    """The flag, variable or file that is wrong."""
    allowed: tuple[str, ...] = ()
    """What could stand there."""


def encode(report: Report) -> bytes:
    """One line, ended by a newline: secrets hidden, NaN and infinities as strings, `rungs` only where there are any."""
    plain = msgspec.to_builtins(report)
    for check in plain["checks"]:
        if not check["rungs"]:
            del check["rungs"]
    return line(plain)


def error(message: str, where: str, allowed: Sequence[str] = ()) -> bytes:
    """The one line for a usage or config error."""
    return line(msgspec.to_builtins(ErrorReport(ERROR, message, where, tuple(allowed))))


def line(plain: Any) -> bytes:
    """One line of JSON, ended by a newline."""
    return msgspec.json.encode(fit(plain)) + b"\n"


def fit(value: Any) -> Any:
    """`value` with all that JSON cannot say, or must not, made into strings."""
    if isinstance(value, str):
        return redact(encodable(value))
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)
    if isinstance(value, Mapping):
        return {redact(encodable(key)): HIDDEN if _hides(key, item) else fit(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [fit(item) for item in value]
    return value


def _hides(key: str, item: Any) -> bool:
    return isinstance(item, str) and bool(item) and is_secret(key)


def schema() -> dict[str, Any]:
    """The JSON Schema of `encode`'s output."""
    published = schema_of(Report, REPORT, "What `probe check --format json` prints.")
    always = published["$defs"]["Outcome"]["properties"].keys() - {"rungs"}
    published["$defs"]["Outcome"]["required"] = sorted(always)
    return published


def error_schema() -> dict[str, Any]:
    """The JSON Schema of `error`'s output."""
    return schema_of(ErrorReport, ERROR, "What `--format json` prints on exit code 2.")


def schema_of(of: type[msgspec.Struct], name: str, description: str) -> dict[str, Any]:
    """The JSON Schema of a struct all of whose fields are always there; `name` is what its `schema` says."""
    made = msgspec.json.schema(of)
    top = dict(made["$defs"].pop(of.__name__))
    top["properties"] = {**top["properties"], "schema": {"const": name}}
    top["required"] = list(top["properties"])
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{name.replace('/', ':')}",
        **top,
        "title": name,
        "description": description,
        "$defs": made["$defs"],
    }
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(whole))  # tuples become lists, as in the file
    return plain


def file_of(name: str) -> str:
    """Where the schema of ``probe.report/1`` is published: ``schema/probe.report-1.json``."""
    return os.path.join(SCHEMAS, f"{name.replace('/', '-')}.json")


def write_schemas() -> None:
    """Publish all schemas anew."""
    from probe.report import gate, log

    for made, name in (
        (schema(), REPORT),
        (error_schema(), ERROR),
        (log.schema(), log.LOG),
        (gate.schema(), gate.REPORT),
    ):
        pretty = msgspec.json.format(msgspec.json.encode(made, order="deterministic"), indent=2)
        with open(file_of(name), "wb") as file:
            file.write(pretty + b"\n")


if __name__ == "__main__":
    write_schemas()
