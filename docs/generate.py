"""Writes the generated pages of this folder: the checks, the settings, the faults and the hosts that the tests fake.

``python docs/generate.py`` writes them anew, ``--check`` only says whether they are current (exit code 1 if not).
"""

import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from probe.checks import load
from probe.commands import severity
from probe.config import SETTINGS, shown_value
from probe.faults import catalogue
from probe.model import Check, Config, Profile
from probe.registry import TARGETS, kind, switch

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


EXAMPLES = {
    "http": """
[[http]]
name = "api"
url = "https://127.0.0.1:8443/health"
headers = { Authorization = "Bearer ..." }   # never shown
status = [200, 204]                          # by default any 2xx
json = { "workers.0.state" = "up" }
verify = "/etc/ssl/api-ca.pem"
timeout = "2s"
""",
    "tcp": """
[[tcp]]
name = "redis"
host = "127.0.0.1"
port = 6379
send = "PING\\r\\n"                          # never shown
expect = "+PONG"
""",
    "command": """
[[command]]
name = "dataset"
argv = ["test", "-r", "/data/train/index"]   # or shell = "..." for /bin/sh -c
user = "trainer"
timeout = "3s"
""",
    "model": """
[[model]]
name = "encoder"
kind = "safetensors"
path = "/models/encoder.safetensors"
factory = "my_package.encoder:build"
input = [[1, 128]]
output_shape = [1, 768]
""",
}
"""One entry of each kind, right as it stands."""

ABOUT_SETTINGS = """A setting is taken from the first of: a flag, `--set KEY=VALUE`, the environment, the config file,
the default. `probe config` shows what is in force and who set it; `probe config --check FILE` says whether a file is
right.

The config file is TOML: `--config FILE` or `PROBE_CONFIG`, else `/etc/probe/config.toml`, else
`$XDG_CONFIG_HOME/probe/config.toml`. As root, one that others can write is refused. An unknown key ends with exit code
2.
"""
ABOUT_CHECKS = """A table `[checks."<check>"]`, or `--set 'checks."nvml.ecc".timeout=2s'`. Thresholds are in
[checks.md](checks.md). `ENABLE_<CHECK>_CHECK` in the environment sets `enabled`, and goes before a file.
"""
ABOUT_TARGETS = """Any number of each kind, up to 64, each with a `name` of its own: at most 32 lower-case letters,
digits, `-` and `_`. Each is a check, critical, in the profiles readiness and startup, with the id
`service.<kind>.<name>` and the switch `ENABLE_<NAME>_CHECK`: so a name is taken once over all kinds. An entry takes
what every check takes (`enabled`, `severity`, `timeout`) and the keys below. Without a `timeout` it ends with the
budget.
"""
ABOUT_KINDS = {
    "http": """Redirects are not followed, and the proxies and the `.netrc` of the environment are ignored: the very
server that is named is asked. Without `contains` and `json` the body is not read; with them as far as it takes, at most
1 MiB.""",
    "tcp": "Without `expect` it is enough that the connection is accepted.",
    "command": """The program has probe's environment and no stdin. It is killed at its `timeout` with its process
group, and whatever it has left in the background when the run ends.""",
    "model": "It is loaded in a process of its own, which ends at its `timeout`; a GPU that is at work is not touched.",
}
OF_EVERY_CHECK = (
    ("`enabled`", "true, false, auto", "true: required and critical; false: skipped"),
    ("`severity`", "critical, advisory", "what its failure makes of the verdict: unhealthy, or degraded"),
    ("`timeout`", "a duration", "its own limit, from its own start"),
)


def configuration() -> str:
    """Every setting, the options of the checks that have some, and the kinds of targets that a user declares."""
    defaults = Config()
    settings = [
        [
            f"`{s.key}`",
            f"`{s.flag}`, `{s.variable}`",
            s.help,
            s.allowed,
            f"`{shown_value(getattr(defaults, s.field), duration=s.field.endswith('_s'))}`",
        ]
        for s in SETTINGS
    ]
    with_options = [check for check in load().values() if check.options]
    return (
        f"# Configuration\n\n{NOTE}{ABOUT_SETTINGS}\n"
        + table(["key", "flag and variable", "meaning", "allowed", "default"], settings)
        + f"\n## Settings of a check\n\n{ABOUT_CHECKS}\n"
        + table(["key", "allowed", "meaning"], OF_EVERY_CHECK)
        + "".join(f"\n### {check.id}\n\n{check.question}\n\n{options(check)}" for check in with_options)
        + f"\n## Targets of your own\n\n{ABOUT_TARGETS}"
        + "".join(target(template) for template in TARGETS.values())
    )


def target(template: Check) -> str:
    name = kind(template)
    about = f"{template.question} {ABOUT_KINDS[name]}"
    return f"\n### [[{name}]]\n\n{about}\n\n```toml{EXAMPLES[name]}```\n\n{options(template)}"


def options(check: Check) -> str:
    rows = [
        [
            f"`{name}`",
            option.meaning,
            option.allowed,
            "required" if option.required else f"`{shown_value(option.default)}`" if option.default else "",
        ]
        for name, option in check.options.items()
    ]
    return table(["key", "meaning", "allowed", "default"], rows)


PAGES = {"configuration.md": configuration, "checks.md": checks, "faults.md": faults, "hosts.md": hosts}


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
