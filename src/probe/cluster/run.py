"""One run of ``probe gate`` in this process: from its settings to its exit.

::

    launcher, ledger -> gate (anyio on asyncio) -> all stopped -> report -> stdout -> os._exit, inside the event loop

Whoever ends the run - the gate, a net, a signal - ends it through `GateRun.leave`: the same report of what is known.
Agents that are not told to leave any more see the end of their input, kill all that they started, and leave.
"""

import os
import resource
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NoReturn

import anyio
from msgspec import Struct
from msgspec.structs import replace

from probe import exits
from probe.attempt import CURRENT, LAST_WORDS_S
from probe.clock import Budget
from probe.cluster import judge
from probe.cluster.gate import Gate
from probe.cluster.hosts import LOCALHOST, Host
from probe.cluster.launch import Launcher
from probe.cluster.ledger import Ledger
from probe.cluster.model import GateReport, GateVerdict
from probe.cluster.muster import REACH_SHARE, Settings
from probe.cluster.targets import Named
from probe.measure import files
from probe.output import write
from probe.state import default_path
from probe.worker.parent import Children

LAUNCH_SHARE = 0.6 * REACH_SHARE
"""Of the budget, for the first start of a step: the second, without the nodes that gave no answer, must fit too."""


class Request(Struct, frozen=True):
    """What the command line asks of one gate."""

    settings: Settings
    named: Named
    budget_s: float
    format: str = "text"
    strict: bool = False
    clean_hostfile: str = ""


class GateRun:
    def __init__(self, request: Request) -> None:
        self.request = request
        self.budget = Budget(CURRENT.budget.began_at, request.budget_s)
        self.children = Children()
        self.ledger = Ledger(request.settings.hosts, request.named.launcher)
        self.progress: object = None
        self._leaving = False
        self._unwritten = False
        """The clean hostfile is being written, or could not be."""
        self._code = exits.code(CURRENT.column, "internal")

    def go(self) -> NoReturn:
        CURRENT.leave = self.leave
        CURRENT.watch(self.budget)
        allow_connections()

        async def main() -> None:
            if os.isatty(2) and os.environ.get("TERM") != "dumb":
                from probe.cluster.progress import Progress

                self.progress = Progress(self.ledger, self.budget)
            agents = launcher(self.request.named, self.children, self.request.budget_s)
            await Gate(self.request.settings, agents, self.budget, self.ledger).run()
            self.leave("")

        anyio.run(main)
        raise AssertionError("unreachable: the run leaves inside its event loop")

    # -- leaving ------------------------------------------------------------------------------------------------------

    def leave(self, why: str) -> None:
        """Report what is known and leave. `why`: "" at the regular end, else "late", "interrupted", "terminated"."""
        if self._leaving and why != "late":
            return
        self._leaving = True
        try:
            self._report(why)
        except Exception as error:
            text = f"undetermined: probe could not make its report: {type(error).__name__}: {error}"[:300]
            if self.request.format == "json":
                from probe.report import json

                write(1, json.error(text, "probe gate"), time.monotonic() + LAST_WORDS_S)
            else:
                write(1, f"{text}\n".encode("utf-8", "replace"), time.monotonic() + LAST_WORDS_S)
            if os.environ.get("PROBE_DEBUG"):
                raise
        finally:
            self.children.kill()
            os._exit(self._code)

    def _report(self, why: str) -> None:
        if self.progress is not None:
            self.progress.close()  # type: ignore[attr-defined]
        if why != "late":
            self.children.reap(min(1.0, max(self.budget.left_s(self.budget.reaped_s), 0.05)))
        began = datetime.now(UTC).astimezone() - timedelta(seconds=self.budget.elapsed_s())
        head = judge.Head(
            host=socket.gethostname(),
            column=CURRENT.column,
            strict=self.request.strict,
            budget_s=self.request.budget_s,
            elapsed_s=self.budget.elapsed_s(),
            started_at=began.isoformat(timespec="milliseconds"),
            ended=why,
        )
        settings = self.request.settings
        report = judge.report(self.ledger, head, judge.Wants(settings.until, settings.min_hosts))
        self._code = report.exit_code
        until = self.budget.began_at + max(self.budget.write_s, self.budget.elapsed_s() + 0.5)
        complaints = self._write_clean_hostfile(report, until)
        if self._unwritten:
            report = replace(report, exit_code=exits.unwritten(CURRENT.column, report.exit_code))
            self._code = report.exit_code
        if not write(1, self._rendered(report), until):
            self._code = exits.unwritten(CURRENT.column, report.exit_code)
            complaints.append("the report could not be written to stdout")
        for complaint in complaints:
            write(2, f"probe: {complaint}\n".encode("utf-8", "replace"), time.monotonic() + LAST_WORDS_S)

    def _rendered(self, report: GateReport) -> bytes:
        from probe.report import gate

        if self.request.format == "json":
            return gate.encode(report)
        from probe.report.text import use_colour

        return gate.render(report, colour=use_colour(os.isatty(1), os.environ)).encode("utf-8", "replace")

    def _write_clean_hostfile(self, report: GateReport, until: float) -> list[str]:
        """Write it where a set of hosts was confirmed; returns what is to be said where it is not written."""
        path = self.request.clean_hostfile
        if not path:
            return []
        if self._unwritten:  # the net's own report, while the first one still waits for this file's disk
            return [f"--clean-hostfile: {path} was not written in time"]
        self._unwritten = True
        if report.verdict not in (GateVerdict.READY, GateVerdict.READY_WITHOUT):
            older = ", and what is in it is older" if os.path.isfile(path) else ""
            self._unwritten = False
            return [f"--clean-hostfile: {path} is not written, no set of hosts was confirmed{older}"]
        names = report.clean_hosts
        hostfile = self.request.named.hostfile
        text = hostfile.clean(names) if hostfile else "".join(f"{name}\n" for name in names)
        try:
            files.replace(path, text.encode(), until)
        except OSError as error:
            return [f"--clean-hostfile: {path} was not written: {error.strerror or error}"]
        self._unwritten = False
        return []


def allow_connections() -> None:
    """As many descriptors as this process may have: one for each host."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def launcher(
    named: Named,
    children: Children,
    budget_s: float,
    *,
    environment: Mapping[str, str] | None = None,
    state: str = "",
) -> Launcher:
    """What starts agents on these hosts, in a run that has `budget_s`.

    `environment` is laid over that of agents on this machine; `state`: where simulated hosts have their state folders.
    """
    if named.launcher == "ssh":
        from probe.cluster.ssh import Ssh, SshLauncher

        assert isinstance(named.ssh, Ssh)
        return SshLauncher(named.ssh)
    if named.launcher == "slurm":
        from probe.cluster.slurm import LAUNCH_S, Slurm, SlurmLauncher

        assert isinstance(named.slurm, Slurm)
        return SlurmLauncher(children, named.slurm, named.hosts, min(LAUNCH_S, LAUNCH_SHARE * budget_s))
    from probe.cluster.local import LocalLauncher

    own = environments(named.hosts, named.gpus, state)
    return LocalLauncher(
        children, {host.name: {**(environment or {}), **own.get(host.name, {})} for host in named.hosts}
    )


def environments(hosts: Sequence[Host], gpus: Sequence[str], state: str = "") -> dict[str, dict[str, str]]:
    """What each simulated host's agent gets: a state folder and, where there are GPUs, a share and a name for NCCL.

    With another NCCL_HOSTID for each, NCCL takes them for different hosts and uses sockets, as between real ones. It
    refuses two ranks on one GPU: with fewer GPUs than hosts nobody gets any, and gloo it is.
    """
    if len(hosts) == 1 and hosts[0].name in LOCALHOST:
        return {hosts[0].name: {"PROBE_STATE": state}} if state else {}
    share = len(gpus) // len(hosts)
    found: dict[str, dict[str, str]] = {}
    for number, host in enumerate(hosts):
        mine = {"PROBE_STATE": f"{state or default_path(os.environ)}-{host.name}"}
        if gpus:
            mine["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[number * share : (number + 1) * share])
        if share:
            mine |= {"NCCL_HOSTID": f"probe-{host.name}", "NCCL_SOCKET_IFNAME": "lo"}
        found[host.name] = mine
    return found


def gate(request: Request) -> NoReturn:
    """Run ``probe gate`` in this process, which ends with it."""
    GateRun(request).go()
