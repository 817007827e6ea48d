"""``probe gate``: its flags, turned into one request. Nothing is decided here but what the user meant."""

import os
from typing import Any

import click

from probe import exits
from probe.clock import parse_duration
from probe.cluster import hosts as naming
from probe.cluster.gate import Settings
from probe.cluster.hosts import Host, Hostfile
from probe.config import UsageError, shown
from probe.rank.facts import visible_gpus

A_BUDGET = 'a duration from "5s" to "24h", such as "120s" or "5m"'
SMALLEST_S = 5.0
MOST_SIMULATED = 64


@click.command(short_help="Is this cluster ready to train?")
@click.option("--local", type=click.IntRange(1, MOST_SIMULATED), metavar="N", help="N simulated hosts on this machine")
@click.option("--hosts", metavar="SET", help="by ssh, such as 'gpu[01-16,20]'; localhost alone needs no sshd")
@click.option("--hostfile", metavar="FILE", help="one host a line: host, host slots=N, user@host:port, # comments")
@click.option("--slurm", is_flag=True, help="the nodes of the Slurm allocation that this is run in, by srun")
@click.option("--until", type=click.Choice(["reach", "node", "world"]), help="stop after this phase")
@click.option("--budget", metavar="TIME", default="120s", show_default=True, help="the answer is there within it")
@click.option("--min-hosts", type=click.IntRange(1), metavar="N", help="so many are enough to start with")
@click.option(
    "--nproc-per-node", type=click.IntRange(1, 64), metavar="N", help="ranks on each host; else its GPUs, or 1"
)
@click.option("--backend", type=click.Choice(["auto", "nccl", "gloo"]), default="auto", show_default=True)
@click.option("--ifname", default="", metavar="NAME", help="the interface that the job will use, on every host")
@click.option(
    "--port", type=click.IntRange(1, 65535), metavar="PORT", help="of the rendezvous; else a free one each time"
)
@click.option("--min-busbw", type=click.FloatRange(min=0, min_open=True), metavar="GB/s", help="slower is not ready")
@click.option("--strategy", type=click.Choice(["thorough", "fast"]), default="thorough", show_default=True)
@click.option("--repeat", type=click.IntRange(1, 10), default=1, metavar="N", help="of every test; all must pass")
@click.option("--skip-node", is_flag=True, help="without the hosts' own checks: a prolog has run them already")
@click.option(
    "--clean-hostfile", default="", metavar="FILE", help="write the confirmed hosts, in the hostfile's format"
)
@click.option("--ssh-user", default="", metavar="NAME")
@click.option("--ssh-port", type=click.IntRange(1, 65535), metavar="PORT")
@click.option("--identity", multiple=True, metavar="FILE", help="a private key; else ssh-agent and the usual ones")
@click.option("--known-hosts", default="", metavar="FILE", help="instead of ~/.ssh/known_hosts")
@click.option(
    "--ssh-config", default="", metavar="FILE|none", help="else ~/.ssh/config, whose ProxyCommand and Match exec run"
)
@click.option(
    "--remote-python", default="", metavar="PATH", help="the Python there that has probe; else this one's path, python3"
)
@click.option("--dry-run", is_flag=True, help="print what would be done, and do nothing")
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
    launcher, hosts, hostfile = _targets(flags)
    settings = _settings(flags, hosts)
    if flags["dry_run"]:
        from probe.cluster.gate import describe

        click.echo(describe(settings, launcher, budget_s), nl=False)
        return 0
    from probe.cluster.run import Request
    from probe.cluster.run import gate as run

    request = Request(
        settings=settings,
        launcher=launcher,
        budget_s=budget_s,
        format=flags["format_"],
        strict=flags["strict"],
        hostfile=hostfile,
        clean_hostfile=_writable(flags["clean_hostfile"]),
        ssh=_ssh(flags, hosts) if launcher == "ssh" else None,
        slurm=_slurm(flags) if launcher == "slurm" else None,
        gpus=tuple(visible_gpus()) if launcher == "local" else (),
    )
    return run(request)


def _settings(flags: dict[str, Any], hosts: tuple[Host, ...]) -> Settings:
    return Settings(
        hosts=hosts,
        until=flags["until"] or "",
        backend=flags["backend"],
        ifname=_ifname(flags["ifname"]),
        port=flags["port"] or 0,
        nproc=flags["nproc_per_node"] or 0,
        min_hosts=_min_hosts(flags["min_hosts"], hosts),
        min_busbw_gbps=flags["min_busbw"],
        strategy=flags["strategy"],
        repeat=flags["repeat"],
        skip_node=flags["skip_node"],
        concurrency=min(256, 32 * (os.cpu_count() or 1)),
    )


def _ssh(flags: dict[str, Any], hosts: tuple[Host, ...]) -> Any:
    """What the ssh launcher needs, with all that can be wrong with it found out now."""
    from probe.cluster.ssh import prepare

    return prepare(
        hosts,
        user=flags["ssh_user"],
        port=flags["ssh_port"] or 0,
        identities=flags["identity"],
        known_hosts=flags["known_hosts"],
        config=flags["ssh_config"],
        python=flags["remote_python"],
    )


def _slurm(flags: dict[str, Any]) -> Any:
    """What the slurm launcher needs."""
    from probe.cluster.slurm import prepare

    return prepare(flags["remote_python"])


def _targets(flags: dict[str, Any]) -> tuple[str, tuple[Host, ...], Hostfile | None]:
    """The launcher, the hosts, and the hostfile if they came from one."""
    given = [flag for flag in ("local", "hosts", "hostfile", "slurm") if flags[flag]]
    if len(given) != 1:
        message = f"{' and '.join(f'--{flag}' for flag in given)} together" if given else "no hosts are given"
        raise UsageError(message, "probe gate", "one of --local N, --hosts SET, --hostfile FILE, --slurm")
    if flags["local"]:
        return "local", naming.simulated(flags["local"]), None
    if flags["slurm"]:
        from probe.cluster.slurm import hosts as allocated

        return "slurm", allocated(), None
    hosts, hostfile = (naming.from_set(flags["hosts"]), None) if flags["hosts"] else naming.from_file(flags["hostfile"])
    if len(hosts) == 1 and hosts[0].target in naming.LOCALHOST and not (hosts[0].user or hosts[0].port):
        return "local", hosts, hostfile
    return "ssh", hosts, hostfile


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


def _ifname(name: str) -> str:
    import re

    if not re.fullmatch(r"[\w.:@-]{0,15}", name):
        raise UsageError(f"{shown(name)} is no interface", "--ifname", "a name as in `ip link`, such as eth0")
    return name


def _writable(path: str) -> str:
    """The path, which may not exist yet in a folder that does: found out before two minutes are spent."""
    folder = os.path.dirname(path) or "."
    if path and (os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK)):
        raise UsageError(
            f"{shown(path)} cannot be written", "--clean-hostfile", "a file in a folder that can be written"
        )
    return os.path.abspath(path) if path else ""
