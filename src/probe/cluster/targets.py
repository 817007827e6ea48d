"""Which hosts, and how they are reached: the flags that every command over several hosts has, and what they mean."""

import os
import re
from collections.abc import Mapping
from typing import Any

import click
from msgspec import Struct
from msgspec.structs import replace

from probe.cluster import hosts as naming
from probe.cluster.hosts import Host, Hostfile
from probe.config import UsageError, shown
from probe.rank.facts import visible_gpus

MOST_SIMULATED = 64
CONCURRENCY = min(256, 32 * (os.cpu_count() or 1))
"""How many hosts are connected to at a time: each costs this machine 6 ms of a core."""
RESOLVE_SHARE = 0.1
"""Of the budget, for the names of all hosts."""
GIVEN = ("local", "hosts", "hostfile", "slurm")
"""The flags that name hosts, of which one is wanted."""

FLAGS = (
    click.option("--local", type=click.IntRange(1, MOST_SIMULATED), metavar="N", help="N simulated hosts here"),
    click.option("--hosts", metavar="SET", help="by ssh, such as 'gpu[01-16,20]'; localhost alone needs no sshd"),
    click.option(
        "--hostfile", metavar="FILE", help="a host a line: host, gpu[01-16], host slots=N, user@host:port, # comments"
    ),
    click.option("--slurm", is_flag=True, help="the nodes of the Slurm allocation that this is run in, by srun"),
    click.option("--ifname", default="", metavar="NAME", help="the interface that the job will use, on every host"),
    click.option(
        "--port", type=click.IntRange(1, 65535), metavar="PORT", help="of the rendezvous; else a free one each time"
    ),
    click.option("--ssh-user", default="", metavar="NAME"),
    click.option("--ssh-port", type=click.IntRange(1, 65535), metavar="PORT"),
    click.option("--identity", multiple=True, metavar="FILE", help="a private key; else ssh-agent and the usual ones"),
    click.option("--known-hosts", default="", metavar="FILE", help="instead of ~/.ssh/known_hosts"),
    click.option(
        "--ssh-config",
        default="",
        metavar="FILE|none",
        help="else ~/.ssh/config, whose ProxyCommand and Match exec run",
    ),
    click.option(
        "--remote-python", default="", metavar="PATH", help="the Python there that has probe; else this one's, python3"
    ),
)
NAMES = (*GIVEN, "ifname", "port", "ssh_user", "ssh_port", "identity", "known_hosts", "ssh_config", "remote_python")


def flags(command: Any) -> Any:
    """Give `command` all of `FLAGS`, in their order."""
    for option in reversed(FLAGS):
        command = option(command)
    return command


class Named(Struct, frozen=True):
    """The hosts of one run, and what starts agents on them."""

    launcher: str
    """local, ssh or slurm."""
    hosts: tuple[Host, ...]
    hostfile: Hostfile | None = None
    ssh: object = None
    """What `probe.cluster.ssh` needs; that file is imported only when ssh is used."""
    slurm: object = None
    """The same for `probe.cluster.slurm`."""
    gpus: tuple[str, ...] = ()
    """Of this machine, to be divided among simulated hosts."""


SSH_FLAGS = ("ssh_user", "ssh_port", "identity", "known_hosts", "ssh_config")
WITHOUT = {"local": (*SSH_FLAGS, "remote_python"), "slurm": SSH_FLAGS}
"""By launcher: the flags that mean nothing to it."""


def any_given(given: Mapping[str, Any]) -> bool:
    return any(given[name] for name in GIVEN)


def named(given: Mapping[str, Any], command: str) -> Named:
    """What the flags of `command` name; raises UsageError."""
    launcher, hosts, hostfile = _hosts(given, command)
    return Named(launcher, hosts, hostfile, gpus=tuple(visible_gpus()) if launcher == "local" else ())


def prepared(found: Named, given: Mapping[str, Any], budget_s: float) -> Named:
    """With what its launcher needs, and all that can be wrong with that found out now: raises UsageError.

    A resolver that does not answer takes no more than a share of the run's budget: only the run can name its hosts.
    """
    _refuse_stray(found, given)
    if found.launcher == "ssh":
        return replace(found, ssh=_ssh(given, found.hosts, RESOLVE_SHARE * budget_s))
    return replace(found, slurm=_slurm(given)) if found.launcher == "slurm" else found


def _refuse_stray(found: Named, given: Mapping[str, Any]) -> None:
    """Raise UsageError for a flag that would be ignored: another user, key or Python than asked for would be tested."""
    for name in WITHOUT.get(found.launcher, ()):
        if given[name]:
            how = "by Slurm" if found.launcher == "slurm" else "without ssh, on this machine"
            message = f"means nothing here: {naming.fold(host.name for host in found.hosts)} is reached {how}"
            allowed = "--hosts or --hostfile; for this machine by ssh: user@localhost or localhost:PORT"
            raise UsageError(message, f"--{name.replace('_', '-')}", allowed)


def _hosts(given: Mapping[str, Any], command: str) -> tuple[str, tuple[Host, ...], Hostfile | None]:
    """The launcher, the hosts, and the hostfile if they came from one."""
    words = [name for name in GIVEN if given[name]]
    if len(words) != 1:
        message = f"{' and '.join(f'--{word}' for word in words)} together" if words else "no hosts are given"
        raise UsageError(message, command, "one of --local N, --hosts SET, --hostfile FILE, --slurm")
    if given["local"]:
        return "local", naming.simulated(given["local"]), None
    if given["slurm"]:
        from probe.cluster.slurm import hosts as allocated

        return "slurm", allocated(), None
    hosts, hostfile = (naming.from_set(given["hosts"]), None) if given["hosts"] else naming.from_file(given["hostfile"])
    if len(hosts) == 1 and hosts[0].target in naming.LOCALHOST and not (hosts[0].user or hosts[0].port):
        return "local", hosts, hostfile
    return "ssh", hosts, hostfile


def _ssh(given: Mapping[str, Any], hosts: tuple[Host, ...], within_s: float) -> Any:
    from probe.cluster.ssh import RESOLVE_ALL_S, prepare

    return prepare(
        hosts,
        user=given["ssh_user"],
        port=given["ssh_port"] or 0,
        identities=given["identity"],
        known_hosts=given["known_hosts"],
        config=given["ssh_config"],
        python=given["remote_python"],
        within_s=min(RESOLVE_ALL_S, within_s),
    )


def _slurm(given: Mapping[str, Any]) -> Any:
    from probe.cluster.slurm import prepare

    return prepare(given["remote_python"])


def ifname(given: Mapping[str, Any]) -> str:
    name: str = given["ifname"]
    if not re.fullmatch(r"[\w.:@-]{0,15}", name):
        raise UsageError(f"{shown(name)} is no interface", "--ifname", "a name as in `ip link`, such as eth0")
    return name
