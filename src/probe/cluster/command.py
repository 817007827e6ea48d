"""``probe gate``: its flags, turned into one request. Nothing is decided here but what the user meant."""

import os
from typing import Any

import click

from probe import exits
from probe.clock import parse_duration
from probe.cluster import targets
from probe.cluster.hosts import Host
from probe.cluster.muster import Settings
from probe.config import UsageError, shown
from probe.measure import files

A_BUDGET = 'a duration from "5s" to "24h", such as "120s" or "5m"'
SMALLEST_S = 5.0


@click.command(short_help="Is this cluster ready to train?")
@targets.flags
@click.option("--until", type=click.Choice(["reach", "node", "world"]), help="stop after this phase")
@click.option("--budget", metavar="TIME", default="120s", show_default=True, help="the answer is there within it")
@click.option("--min-hosts", type=click.IntRange(1), metavar="N", help="so many are enough to start with")
@click.option(
    "--nproc-per-node", type=click.IntRange(1, 64), metavar="N", help="ranks on each host; else its GPUs, or 1"
)
@click.option("--backend", type=click.Choice(["auto", "nccl", "gloo"]), default="auto", show_default=True)
@click.option("--min-busbw", type=click.FloatRange(min=0, min_open=True), metavar="GB/s", help="slower is not ready")
@click.option("--strategy", type=click.Choice(["thorough", "fast"]), default="thorough", show_default=True)
@click.option("--repeat", type=click.IntRange(1, 10), default=1, metavar="N", help="of every test; all must pass")
@click.option("--skip-node", is_flag=True, help="without the hosts' own checks: a prolog has run them already")
@click.option("--clean-hostfile", metavar="FILE", help="write the confirmed hosts, in the hostfile's format")
@click.option("--dry-run", is_flag=True, help="look at the flags, print what would be done, reach no host")
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text")
@click.option("--exit-codes", type=click.Choice(exits.COLUMNS), help="whose exit codes to use")
@click.option("--debug", is_flag=True, help="show the traceback where probe itself fails")
@click.option("--strict", is_flag=True, help="enough hosts, but not all, ends with 1")
def gate(**flags: Any) -> int:
    """Can these hosts run a collective job together? If not: which host, link or group of them is to blame?

    Exit code 0: all can, or as many as --min-hosts; 1: not all can, or none; 2: the settings are wrong; 3: it could
    not be told.
    """
    budget_s = _budget(flags["budget"])
    named = targets.named(flags, "probe gate")
    settings = _settings(flags, named.hosts)
    from probe.cluster.run import Request
    from probe.cluster.run import gate as run

    request = Request(
        settings=settings,
        named=targets.prepared(named, flags, budget_s),
        budget_s=budget_s,
        format=flags["format_"],
        strict=flags["strict"],
        clean_hostfile=_writable(flags["clean_hostfile"]),
    )
    if flags["dry_run"]:
        from probe.cluster.gate import describe

        click.echo(describe(settings, named.launcher, budget_s, request.clean_hostfile), nl=False)
        return 0
    return run(request)


def _settings(flags: dict[str, Any], hosts: tuple[Host, ...]) -> Settings:
    return Settings(
        hosts=hosts,
        until=flags["until"] or "",
        backend=flags["backend"],
        ifname=targets.ifname(flags),
        port=flags["port"] or 0,
        nproc=flags["nproc_per_node"] or 0,
        min_hosts=_min_hosts(flags["min_hosts"], hosts),
        min_busbw_gbps=flags["min_busbw"],
        strategy=flags["strategy"],
        repeat=flags["repeat"],
        skip_node=flags["skip_node"],
        concurrency=targets.CONCURRENCY,
    )


def _budget(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = 0.0
    if seconds < SMALLEST_S:
        raise UsageError(f"{shown(text)} is no budget for a gate", "--budget", A_BUDGET)
    return seconds


def _min_hosts(wanted: int | None, hosts: tuple[Host, ...]) -> int:
    if wanted and wanted > len(hosts):
        raise UsageError(f"{wanted} of {len(hosts)} hosts", "--min-hosts", f"1 to {len(hosts)}")
    return wanted or 0


def _writable(path: str | None) -> str:
    """The path, which may not exist yet in a folder that does: found out before two minutes are spent."""
    files.check({"--clean-hostfile": path}, None)
    return os.path.abspath(path) if path else ""
