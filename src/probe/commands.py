"""The commands: each turns its flags into values, calls what does the work, and prints. Nothing is decided here."""

import os
from collections.abc import Mapping
from typing import Any, NoReturn

import click
from msgspec.structs import replace

from probe import config as settings
from probe import exits, plan
from probe.attempt import CURRENT
from probe.checks import load as load_checks
from probe.clock import parse_duration
from probe.config import SETTINGS, Loaded, UsageError
from probe.model import Check, Profile
from probe.registry import TARGETS, Registry, declared, switch
from probe.report.formats import FORMATS

Flags = dict[str, Any]


def with_settings(command: Any) -> Any:
    """Give a command a flag for every scalar setting, ``--config`` and ``--set``."""
    for setting in reversed(SETTINGS):
        extra: Flags = (
            {"is_flag": True, "default": None} if setting.name == "strict" else {"metavar": _metavar(setting)}
        )
        command = click.option(setting.flag, setting.name, help=setting.help, **extra)(command)
    command = click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="any setting of a config file")(
        command
    )
    return click.option("--config", "config_path", metavar="FILE", help="instead of /etc/probe/config.toml")(command)


def _metavar(setting: settings.Setting) -> str:
    return "|".join(setting.words) if setting.words else "VALUE"


def _load(flags: Flags, registry: Registry) -> Loaded:
    given = {
        setting.name: "true" if value is True else value
        for setting in SETTINGS
        if (value := flags.get(setting.name)) is not None
    }
    return settings.load(given, os.environ, registry, flags["sets"], flags["config_path"], TARGETS)


@click.command()
@with_settings
@click.option("--only", multiple=True, metavar="CHECK", help="an id, a rung or a glob; its needs run unreported")
@click.option("--skip", multiple=True, metavar="CHECK", help="an id, a rung or a glob")
@click.option("--format", "format_", type=click.Choice(FORMATS), default="text", help="of stdout, or of --output")
@click.option("--output", metavar="FILE", help="put the report there (by a rename), and text on stdout")
@click.option("--wait", "wait_for", metavar="TIME", help="try again until healthy or until the time is up, e.g. 5m")
@click.option("--debug", is_flag=True, help="show the traceback of a check that raised, after the verdict")
def check(
    only: tuple[str, ...],
    skip: tuple[str, ...],
    format_: str,
    output: str | None,
    wait_for: str | None,
    debug: bool,
    **flags: Any,
) -> int:
    """Can this container or node do its work now?

    Prints the verdict first, then what is wrong and who can mend it, then every check. Exit code 0: it can; 1: it
    cannot; 2: the settings are wrong; 3: it could not be told (see --exit-codes for the callers' own codes).
    """
    registry = load_checks()
    loaded = _load(flags, registry)
    for flag, patterns in (("--only", only), ("--skip", skip)):
        _must_select(flag, patterns, loaded.checks, loaded.config.profile)

    from probe.run import Request
    from probe.run import check as run

    if output == "":
        raise UsageError("'' is no file", "--output", "a file's path, or no --output")
    file = "" if output is None else os.path.abspath(output)  # children run elsewhere
    request = Request(loaded, only, skip, format_, debug, file)
    if wait_for is None:
        run(request)

    from probe.waiting import Waiter

    def attempt(budget_s: float, verdict_fd: int) -> NoReturn:
        config = replace(loaded.config, budget_s=budget_s)
        run(replace(request, loaded=replace(loaded, config=config), verdict_fd=verdict_fd))

    try:
        wait_s = parse_duration(wait_for)
    except ValueError:
        raise UsageError(f"{wait_for!r} is no duration", "--wait", settings.A_TIMEOUT) from None
    return Waiter(loaded.config.budget_s, attempt).wait(wait_s)


def _must_select(flag: str, patterns: tuple[str, ...], registry: Mapping[str, Check], profile: Profile) -> None:
    """Raise UsageError for a pattern that means no check, or none of the profile."""
    here = [name for name, check in registry.items() if profile in check.profiles]
    for pattern in patterns:
        if any(plan.selects([pattern], name) for name in here):
            continue
        if elsewhere := [name for name in registry if plan.selects([pattern], name)]:
            profiles = ", ".join(sorted(registry[elsewhere[0]].profiles))
            raise UsageError(f"{elsewhere[0]} is not in the profile {profile}", flag, f"--profile {profiles}")
        import difflib

        near = difflib.get_close_matches(pattern, [*registry, *{c.rung for c in registry.values()}], 1)
        hint = f"; {near[0]}?" if near else ""
        raise UsageError(f"{pattern!r} is no check{hint}", flag, "an id, a rung or a glob (probe list)")


@click.command()
@click.option("--profile", type=click.Choice([str(profile) for profile in Profile]), help="only those of this profile")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="any setting of a config file")
@click.option("--config", "config_path", metavar="FILE", help="instead of /etc/probe/config.toml")
def list_(profile: str | None, sets: tuple[str, ...], config_path: str | None) -> int:
    """The checks, and in which profiles they run: those of the config file too, and the kinds that it may declare."""
    checks = _load({"sets": sets, "config_path": config_path}, load_checks()).checks
    known = [*checks.values(), *(declared(target, "<name>") for target in TARGETS.values())]
    found = [check for check in known if profile is None or profile in check.profiles]
    letters = ", ".join(f"{profile.value[0].upper()} {profile}" for profile in Profile)
    rows = [("check", "runs in", "severity", "switch", f"asks (runs in: {letters})"), *map(_described, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for *cells, last in rows:
        click.echo("  ".join([f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)] + [last]))
    return 0


def _described(found: Check) -> tuple[str, str, str, str, str]:
    letters = "".join(profile.value[0].upper() if profile in found.profiles else "-" for profile in Profile)
    return found.id, letters, severity(found), switch(found.id), found.question


def severity(check: Check) -> str:
    """As declared, with the profiles in which it weighs more."""
    more = [profile for profile in Profile if check.severity_in(profile) is not check.severity]
    return f"{check.severity}, critical in {', '.join(more)}" if more else str(check.severity)


@click.command()
@click.argument("code", required=False)
def explain(code: str | None) -> int:
    """What the fault CODE means, how it is recognised, its remedy and who can mend it; without CODE, all codes."""
    from probe import faults

    try:
        click.echo(faults.explain(code) if code else faults.listing())
    except faults.UnknownFault as error:
        raise UsageError(str(error), "explain", "a code that `probe explain` lists") from None
    return 0


@click.command()
@with_settings
@click.option("--check", "file", metavar="FILE", help="only say whether FILE is right; exit code 2 if it is not")
def config(file: str | None, **flags: Any) -> int:
    """The settings in force, and who set them."""
    registry = load_checks()
    if file is not None:
        settings.check_file(file, registry, TARGETS)
        click.echo(f"{file}: right")
        return 0
    loaded = _load(flags, registry)
    for key, value, origin in settings.describe(loaded):
        click.echo(f"{key:32} {value:20} {origin}")
    for warning in loaded.warnings:
        click.echo(f"probe: {warning}", err=True)
    return 0


@click.command()
@with_settings
@click.option("--forget", is_flag=True, help="remove it")
def state(forget: bool, **flags: Any) -> int:
    """What the last run left for the next: stuck children, the GPUs of the first good run."""
    from probe.state import StateFolder, default_path

    loaded = _load(flags, load_checks())
    folder = StateFolder(loaded.config.state or default_path(os.environ))
    if folder.problem:
        click.echo(f"probe: {folder.problem}", err=True)
        return exits.code(CURRENT.column, "undetermined")
    if forget:
        click.echo(f"{folder.path}: {'forgotten' if folder.forget() else 'there was nothing'}")
        return 0
    found = folder.load()
    if folder.problem:
        click.echo(f"probe: {folder.problem}", err=True)
    click.echo(f"{folder.path}")
    for child in found.leaving:
        click.echo(f"leaving: {child.worker} {child.target} pid {child.pid} {child.stuck() or 'not stuck'}")
    click.echo(f"GPUs of the first good run: {', '.join(found.gpus) or 'not known yet'}")
    return 0
