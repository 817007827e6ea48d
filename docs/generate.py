"""Writes the generated pages of this folder: the checks, the faults and the hosts that the tests fake.

``python docs/generate.py`` writes them anew, ``--check`` only says whether they are current (exit code 1 if not).
"""

import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from probe.checks import load
from probe.commands import severity
from probe.faults import catalogue
from probe.model import Check, Profile
from probe.registry import switch

DOCS = Path(__file__).parent
HOSTS = DOCS.parent / "tests" / "hosts"
NOTE = "<!-- made by docs/generate.py: edit the code it comes from -->\n\n"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; what would break a cell is escaped."""
    lines = [list(header), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cell(text) for text in line) + " |" for line in lines) + "\n"


def cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def checks() -> str:
    """Every check: its question, where it counts, its thresholds with their sources."""
    found = list(load().values())
    rows = [[f"`{c.id}`", c.question, severity(c), letters(c), f"`{switch(c.id)}`"] for c in found]
    limits = [
        [f"`{c.id}`", f"`{name}`", f"{limit.default}", limit.source]
        for c in found
        for name, limit in c.thresholds.items()
    ]
    return (
        f"# The checks\n\n{NOTE}"
        "Profiles: R readiness (the default), L liveness, S startup, N node. A critical check that fails makes the "
        "verdict `unhealthy`, an advisory one `degraded`. In liveness only what a restart of the container mends is "
        "critical.\n\n"
        + table(["check", "asks", "severity", "profiles", "switch"], rows)
        + '\n## Thresholds\n\nSet with `[checks."<check>"]` in a config file or with `--set`.\n\n'
        + table(["check", "threshold", "default", "source"], limits)
    )


def letters(check: Check) -> str:
    return "".join(profile.value[0].upper() for profile in Profile if profile in check.profiles)


def faults() -> str:
    """The catalogue, the first to be named at the top."""
    found = sorted(catalogue(), key=lambda fault: (-fault.priority, fault.code))
    rows = [[f"`{f.code}`", f.title, f.remedy, str(f.who), f.source] for f in found]
    return (
        f"# The faults\n\n{NOTE}"
        f"{len(found)} faults, those that are named as the cause before others first. "
        "`probe explain CODE` says the same, and by what a fault is recognised.\n\n"
        + table(["code", "what it is", "remedy", "who", "source"], rows)
    )


def hosts() -> str:
    """The hosts that the tests run probe on, and what it must say there."""
    rows = []
    for path in sorted(HOSTS.glob("*.toml")):
        text = path.read_text()
        said = tomllib.loads(text).get("expect", {})
        about = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
        blames = ", ".join(said.get("blames", ())) or "no GPU"
        rows.append(
            [path.stem, about, said.get("verdict", ""), f"`{said['cause']}`" if "cause" in said else "", blames]
        )
    return (
        f"# The faked hosts\n\n{NOTE}"
        f"{len(rows)} hosts, healthy and broken: the driver's libraries are tiny C libraries that answer as on such a "
        "host, loaded by the code that loads the real ones. `tests/system/test_hosts.py` runs `probe check` on each "
        "and asserts this table.\n\n" + table(["host", "what it is like", "verdict", "first cause", "blamed"], rows)
    )


PAGES = {"checks.md": checks, "faults.md": faults, "hosts.md": hosts}


def main() -> int:
    stale = [name for name, make in PAGES.items() if not (DOCS / name).exists() or (DOCS / name).read_text() != make()]
    if "--check" in sys.argv:
        sys.stdout.write("".join(f"docs/{name} is not current: python docs/generate.py\n" for name in stale))
        return bool(stale)
    for name in stale:
        (DOCS / name).write_text(PAGES[name]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
