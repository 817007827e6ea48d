"""``probe bench``: its flags become a `Request`; nothing is measured or decided here."""

import os
from typing import Any

import click

from probe import config as settings
from probe.checks import load as load_checks
from probe.clock import SMALLEST_BUDGET_S, parse_duration
from probe.config import SETTINGS, UsageError
from probe.measure import shares

USED = ("device", "busy", "python", "state", "gpus_expect", "exit_codes")
"""The settings of probe that a bench heeds."""
DEFAULT_TIME = "90s"


def with_settings(command: Any) -> Any:
    for setting in reversed([setting for setting in SETTINGS if setting.name in USED]):
        metavar = "|".join(setting.words) if setting.words else "VALUE"
        command = click.option(setting.flag, setting.name, help=setting.help, metavar=metavar)(command)
    return click.option("--config", "config_path", metavar="FILE", help="instead of /etc/probe/config.toml")(command)


@click.command()
@click.option("--time", "time_", metavar="TIME", default=DEFAULT_TIME, show_default=True, help="for all of it")
@click.option("--only", multiple=True, metavar="PROGRAM", help="a program or a glob: " + ", ".join(shares.BY_NAME))
@click.option("--skip", multiple=True, metavar="PROGRAM", help="a program or a glob")
@click.option("--json", "json_", metavar="FILE", default="", help="the result, by its published schema; -: stdout")
@click.option("--html", metavar="FILE", default="", help="one page with plots, which opens offline")
@click.option("--save", metavar="FILE", default="", help="keep the result as a baseline")
@click.option("--compare", metavar="FILE", default="", help="compare with a baseline; exit code 1: a regression")
@click.option("--tolerance", metavar="PERCENT", default="5%", show_default=True, help="what may be lost")
@with_settings
def bench(  # noqa: PLR0913, PLR0917 - a flag each, as click calls it
    time_: str,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    json_: str,
    html: str,
    save: str,
    compare: str,
    tolerance: str,
    config_path: str | None,
    **flags: Any,
) -> int:
    """How fast is this machine, beside what its hardware could do?

    Exit code 0: measured; 1: a regression against the baseline; 2: the settings are wrong, or the baseline is of other
    hardware; 3: something could not be measured. Ctrl-C keeps what is done.
    """
    loaded = settings.load(
        {name: value for name, value in flags.items() if value is not None}, os.environ, load_checks(), (), config_path
    )
    from probe.measure import baseline, files
    from probe.measure.session import Request, Session

    for flag, path in (("--json", json_), ("--html", html), ("--save", save)):
        if path:
            files.check_writable(path, flag)
    request = Request(
        loaded,
        time_s=_time_s(time_),
        entries=_entries(only, skip),
        json=json_,
        html=html,
        save=save,
        compare=compare,
        baseline=baseline.read(compare) if compare else None,
        tolerance=_tolerance(tolerance),
    )
    Session(request).go()


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
