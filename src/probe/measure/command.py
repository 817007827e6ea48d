"""``probe bench``: its flags become a `Request`; nothing is measured or decided here."""

import os
from typing import Any

import click

from probe import config as settings
from probe.checks import load as load_checks
from probe.clock import SMALLEST_BUDGET_S, parse_duration
from probe.cluster import targets
from probe.config import SETTINGS, UsageError
from probe.measure import shares
from probe.registry import TARGETS

USED = ("device", "busy", "python", "state", "gpus_expect", "exit_codes")
"""The settings of probe that a bench heeds."""
DEFAULT_TIME = "90s"
OF_EACH_HOST = {"python": "PROBE_PYTHON", "state": "PROBE_STATE", "gpus_expect": "PROBE_GPUS_EXPECT"}
"""Flags that are about one machine, and the variable that says it on each of several."""
OF_SIMULATED_HOSTS = ("python", "state")
"""Those of them that agents on this machine are given."""
ACROSS = "collective"
"""The program that runs across hosts."""


def with_settings(command: Any) -> Any:
    for setting in reversed([setting for setting in SETTINGS if setting.name in USED]):
        metavar = "|".join(setting.words) if setting.words else "VALUE"
        command = click.option(setting.flag, setting.name, help=setting.help, metavar=metavar)(command)
    return click.option("--config", "config_path", metavar="FILE", help="instead of /etc/probe/config.toml")(command)


@click.command()
@click.option("--time", "time_", metavar="TIME", default=DEFAULT_TIME, show_default=True, help="for all of it")
@click.option("--only", multiple=True, metavar="PROGRAM", help="a program or a glob: " + ", ".join(shares.BY_NAME))
@click.option("--skip", multiple=True, metavar="PROGRAM", help="a program or a glob")
@click.option("--json", "json_", metavar="FILE", help="the result, by its published schema; -: stdout")
@click.option("--html", metavar="FILE", help="one page with plots, which opens offline")
@click.option("--save", metavar="FILE", help="keep the result as a baseline")
@click.option("--compare", metavar="FILE", help="compare with a baseline; exit code 1: a regression")
@click.option("--tolerance", metavar="PERCENT", default="5%", show_default=True, help="what may be lost")
@with_settings
@targets.flags
def bench(  # noqa: PLR0913, PLR0917 - a flag each, as click calls it
    time_: str,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    json_: str | None,
    html: str | None,
    save: str | None,
    compare: str | None,
    tolerance: str,
    config_path: str | None,
    **flags: Any,
) -> int:
    """How fast is this machine, beside what its hardware could do?

    With --hosts, --hostfile or --local N: how fast are collectives over all ranks of several hosts?

    Exit code 0: measured; 1: a regression against the baseline; 2: the settings are wrong, or the baseline is of other
    hardware; 3: something could not be measured or compared. Ctrl-C keeps what is done.
    """
    hosts_flags = {name: flags.pop(name) for name in targets.NAMES}
    given = {name: value for name, value in flags.items() if value is not None}
    loaded = settings.load(given, os.environ, load_checks(), (), config_path, TARGETS)
    named = _named(hosts_flags, given, _time_s(time_))
    from probe.measure import baseline, files
    from probe.measure.request import Request

    files.check({"--json": json_, "--html": html, "--save": save}, compare)
    request = Request(
        loaded,
        time_s=_time_s(time_),
        entries=_across(only, skip) if named else _entries(only, skip),
        json=json_ or "",
        html=html or "",
        save=save or "",
        compare=compare or "",
        baseline=baseline.read(compare) if compare else None,
        tolerance=_tolerance(tolerance),
    )
    if request.baseline is not None:
        baseline.refuse_other_hosts(
            request.baseline, [host.name for host in named.hosts] if named else (), request.compare
        )
    if named is None:
        from probe.measure.session import Session

        Session(request).go()
    from probe.measure import across

    if request.time_s < across.SMALLEST_S:
        raise UsageError(f"{time_!r} is too little for several hosts", "--time", f"from {across.SMALLEST_S:g}s on")
    wanted = across.settings(loaded.config, named, targets.ifname(hosts_flags), hosts_flags["port"] or 0)
    across.AcrossRun(request, named, wanted).go()


def _named(flags: dict[str, Any], given: dict[str, Any], time_s: float) -> targets.Named | None:
    """The hosts, where there are several to measure; raises UsageError for what does not go with that."""
    if not targets.any_given(flags):
        if stray := [name for name in targets.NAMES if flags[name]]:
            where = f"--{stray[0].replace('_', '-')}"
            raise UsageError("means something only with several hosts", where, "with --hosts, --hostfile or --local")
        return None
    named = targets.prepared(targets.named(flags, "probe bench"), flags, time_s)
    for name, variable in OF_EACH_HOST.items():
        if name in given and not (named.launcher == "local" and name in OF_SIMULATED_HOSTS):
            raise UsageError("is about one machine, not about several hosts", f"--{name.replace('_', '-')}", variable)
    return named


def _across(only: tuple[str, ...], skip: tuple[str, ...]) -> tuple[shares.Entry, ...]:
    _entries((), skip)  # for its complaints
    for pattern in only:
        if not shares.named(ACROSS, (pattern,)):
            raise UsageError(f"{pattern!r} does not run across hosts", "--only", ACROSS)
    if shares.named(ACROSS, skip):
        raise UsageError("nothing is left to measure across hosts", "--skip", f"anything but {ACROSS}")
    return (shares.BY_NAME[ACROSS],)


def _time_s(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = 0.0
    if seconds < SMALLEST_BUDGET_S:
        raise UsageError(f"{text!r} is no duration from 1s to 24h", "--time", 'such as "90s" or "5m"')
    return seconds


def _tolerance(text: str) -> float:
    """``5%`` or ``5`` as 0.05."""
    number = text.strip().removesuffix("%").strip()
    try:
        percent = float(number)
    except ValueError:
        percent = -1.0
    if not 0 <= percent < 100:
        raise UsageError(f"{text!r} is no percentage from 0 to 99", "--tolerance", "such as 5%")
    return percent / 100


def _entries(only: tuple[str, ...], skip: tuple[str, ...]) -> tuple[shares.Entry, ...]:
    for flag, patterns in (("--only", only), ("--skip", skip)):
        for pattern in patterns:
            if not any(shares.named(name, (pattern,)) for name in shares.BY_NAME):
                raise UsageError(f"{pattern!r} is no program", flag, ", ".join(shares.BY_NAME))
    found = shares.chosen(only, skip)
    if not found:
        raise UsageError("nothing is left to measure", "--skip", ", ".join(shares.BY_NAME))
    return found
