"""The result for programs: `Bench` -> JSON, and the published JSON Schema from the same types.

``python -m probe.measure.json`` writes the schema anew.
"""

from typing import Any

import msgspec

from probe.measure.model import SCHEMA, Bench
from probe.report import json as report_json


def encode(report: Bench) -> bytes:
    """Readable, since it is kept; `comparison` only where there is one; the rest as in every report of probe."""
    plain = msgspec.to_builtins(report)
    if plain["comparison"] is None:
        del plain["comparison"]
    return msgspec.json.format(report_json.line(plain), indent=1) + b"\n"


def schema() -> dict[str, Any]:
    """The JSON Schema of `encode`'s output."""
    published = report_json.schema_of(Bench, SCHEMA, "What `probe bench --json` and `--save` write.")
    published["required"] = [name for name in published["required"] if name != "comparison"]
    return published


def write_schema() -> None:
    pretty = msgspec.json.format(msgspec.json.encode(schema(), order="deterministic"), indent=2)
    with open(report_json.file_of(SCHEMA), "wb") as file:
        file.write(pretty + b"\n")


if __name__ == "__main__":
    write_schema()
