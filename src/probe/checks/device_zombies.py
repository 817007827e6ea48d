"""Zombies of pid 1: ended processes that nobody reaps, each of which keeps its place in the table of processes.

Whoever starts a program as pid 1 of a container without an init makes it the parent of all orphans; most programs do
not know. Once the limit of processes is reached nothing can be started, probe neither.
"""

from collections.abc import Iterable, Iterator

from probe.context import Context, Host
from probe.model import Finding, Job, Threshold, passed, skipped, warned
from probe.registry import check

MOST_PROCESSES = 5000
"""Where the kernel does not list a process's children every process is asked: 15 microseconds each, in the engine."""


@check(
    "device.zombies",
    severity="advisory",
    profiles="RN",
    thresholds={
        "max_zombies": Threshold(10, "a rule of probe: an init that reaps has none for long; healthagent: 50 per core")
    },
)
async def zombies(context: Context, job: Job) -> Finding:
    """Does pid 1 reap its children?"""
    pids = _children_of_pid_1(context.host)
    if pids is None:
        return skipped("the processes of this machine are not shown here")
    found = sum(stat(text) == ("Z", 1) for text in _stats(context.host, pids))
    most = job.thresholds["max_zombies"]
    if found > most:
        name = _name(context.host)
        return warned(f"pid 1 ({name}) has {found} zombies, over {most}: it does not reap", found=found, pid1=name)
    return passed(f"{found} zombies of pid 1, at most {most}", found=found)


def _children_of_pid_1(host: Host) -> list[str] | None:
    """The kernel's own list where there is one, else everybody; None where /proc is closed."""
    try:
        return host.read("/proc/1/task/1/children").split()
    except OSError:
        pids = [name for name in host.names("/proc") if name.isdigit()]
        return pids[:MOST_PROCESSES] if "1" in pids else None


def _stats(host: Host, pids: Iterable[str]) -> Iterator[str]:
    for pid in pids:
        try:
            yield host.read(f"/proc/{pid}/stat")
        except OSError:  # it has gone meanwhile
            continue


def stat(text: str) -> tuple[str, int]:
    """State and parent, by ``/proc/<pid>/stat``; ("", 0) for whatever else. A name may hold spaces and brackets."""
    fields = text.rpartition(")")[2].split()
    if len(fields) < 2 or not fields[1].isascii() or not fields[1].isdigit():
        return "", 0
    return fields[0], int(fields[1][:10])


def _name(host: Host) -> str:
    """What pid 1 is called; a process may call itself anything, so only what is printable is kept."""
    try:
        name = host.read("/proc/1/stat").partition("(")[2].rpartition(")")[0]
    except OSError:
        return "?"
    return "".join(char if " " <= char <= "~" else "?" for char in name)[:16]
