"""The formats of ``--format`` by name; what one of them needs is imported when a report is made in it."""

from importlib import import_module

from probe.model import Report

FORMATS = ("text", "json", "junit", "nagios", "npd", "prometheus")


def encode(name: str, report: Report, *, colour: bool = False, width: int | None = None) -> bytes:
    """`report` in the format `name`; a terminal's `colour` and `width` are for text alone."""
    if name == "text":
        from probe.report import text

        return text.render(report, colour=colour, width=width).encode("utf-8", "replace")
    made: bytes = import_module(f"probe.report.{name}").encode(report)
    return made
