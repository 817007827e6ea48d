"""What the cgroup of this container, or of this job, allows, and what it has done.

Page cache that can be dropped is no use of memory: a job that reads its data fills the limit with it, and nothing is
wrong. What is compared is the working set, as kubelet has it: usage without inactive files. Limits of the cgroups above
this one count as well, as far as they are shown here: Slurm sets them for the job, not for its steps.
"""

from collections.abc import Mapping

from msgspec import Struct

from probe.context import Context, Host
from probe.model import Finding, Job, Scalar, Threshold, passed, skipped, warned
from probe.registry import check

ROOT = "/sys/fs/cgroup"
UNLIMITED_BYTES = 1 << 60
"""Version 1 says "no limit" by a number of pages close to 2^63 bytes."""
GIB = 1 << 30
OF_KUBELET = "kubelet's working set; https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/"

LIMITS = {
    "max_memory_percent": Threshold(90, f"a rule of probe, of {OF_KUBELET}"),
    "max_oom_kills": Threshold(0, "https://docs.kernel.org/admin-guide/cgroup-v2.html, memory.events"),
    "max_pids_percent": Threshold(80, "gpud warns at 80 % of the limit of processes"),
    "min_cpus_per_gpu": Threshold(1.0, "a rule of probe: each GPU's process needs a core to launch its kernels from"),
}


class Group(Struct, frozen=True):
    """One cgroup; None is what it does not limit, or does not tell."""

    memory_limit_bytes: int | None = None
    memory_used_bytes: int | None = None
    oom_kills: int = 0
    cpus: float | None = None
    """The quota, as a number of CPUs."""
    pids_limit: int | None = None
    pids: int | None = None


class Usage(Struct, frozen=True):
    """The tightest of each limit, from this cgroup up to the topmost that is shown."""

    groups: tuple[Group, ...]
    own: int = 1
    """How many of them, from this one up, are this container's own."""

    @property
    def memory(self) -> tuple[int, int] | None:
        """Used and allowed, in bytes, where least is left."""
        found = [
            (group.memory_used_bytes, group.memory_limit_bytes)
            for group in self.groups
            if group.memory_used_bytes is not None and group.memory_limit_bytes
        ]
        return max(found, key=lambda pair: pair[0] / pair[1], default=None)

    @property
    def pids(self) -> tuple[int, int] | None:
        found = [(group.pids, group.pids_limit) for group in self.groups if group.pids is not None and group.pids_limit]
        return max(found, key=lambda pair: pair[0] / pair[1], default=None)

    @property
    def cpus(self) -> float | None:
        return min((group.cpus for group in self.groups if group.cpus is not None), default=None)

    @property
    def oom_kills(self) -> int:
        return max((group.oom_kills for group in self.groups[: self.own]), default=0)


@check("device.cgroup", severity="advisory", profiles="RN", thresholds=LIMITS)
async def cgroup(context: Context, job: Job) -> Finding:
    """Does this container's cgroup leave room for training, and has it killed for memory?"""
    usage = look(context.host, in_container=context.facts.in_container)
    if usage is None:
        return skipped("no cgroup is shown here")
    gpus = sum(name.removeprefix("nvidia").isdigit() for name in context.facts.nodes)
    data = _data(usage)
    problems = _problems(usage, gpus, job.thresholds)
    if problems:
        first = next(iter(problems))
        return warned("; ".join(problems.values()), reason=first, **data)
    return passed(_room(usage), **data)


def _problems(usage: Usage, gpus: int, limits: Mapping[str, float]) -> dict[str, str]:
    """By reason, in the order in which they hurt."""
    found = {}
    if usage.oom_kills > limits["max_oom_kills"]:
        found["oom_kill"] = f"{usage.oom_kills} processes killed for memory since this cgroup began"
    if (memory := usage.memory) and 100 * memory[0] > limits["max_memory_percent"] * memory[1]:
        most = f"over {limits['max_memory_percent']:g} %"
        found["memory_high"] = f"{memory[0] / GIB:.1f} of {memory[1] / GIB:.1f} GiB memory used, {most}"
    if (pids := usage.pids) and 100 * pids[0] > limits["max_pids_percent"] * pids[1]:
        found["pids_high"] = f"{pids[0]} of {pids[1]} processes and threads, over {limits['max_pids_percent']:g} %"
    if (cpus := usage.cpus) is not None and cpus < gpus * limits["min_cpus_per_gpu"]:
        least = f"{limits['min_cpus_per_gpu']:g} per GPU wanted"
        found["cpus_few"] = f"a quota of {cpus:g} CPUs for {gpus} GPUs, at least {least}"
    return found


def _data(usage: Usage) -> dict[str, Scalar]:
    used, limit = usage.memory or (None, None)
    pids, most_pids = usage.pids or (None, None)
    found: dict[str, Scalar] = {
        "memory_used_bytes": used,
        "memory_limit_bytes": limit,
        "oom_kills": usage.oom_kills,
        "cpus": usage.cpus,
        "pids": pids,
        "pids_limit": most_pids,
    }
    return {name: value for name, value in found.items() if value is not None}


def _room(usage: Usage) -> str:
    memory = usage.memory
    parts = [
        f"{memory[0] / GIB:.1f} of {memory[1] / GIB:.1f} GiB memory used" if memory else "no memory limit",
        f"{usage.cpus:g} CPUs" if usage.cpus is not None else "no CPU quota",
        f"{usage.pids[0]} of {usage.pids[1]} processes" if usage.pids else "no limit of processes",
    ]
    return ", ".join(parts)


# ---- where it is, and what it says -----------------------------------------------------------------------------------


def look(host: Host, *, in_container: bool) -> Usage | None:
    """What the cgroups of this process say, of version 2 or of each controller of version 1; None where none is."""
    paths = paths_of(_read(host, "/proc/self/cgroup"))
    groups: list[Group] = []
    if "" in paths and _read(host, f"{ROOT}/cgroup.controllers"):
        groups = [group_v2(host, folder) for folder in folders(ROOT, paths[""])]
    elif paths:
        mounts = {name: folders(f"{ROOT}/{name}", path) for name, path in paths.items() if name in CONTROLLERS}
        depth = max((len(found) for found in mounts.values()), default=0)
        groups = [
            group_v1(host, {name: found[min(at, len(found) - 1)] for name, found in mounts.items()})
            for at in range(depth)
        ]
    return Usage(tuple(groups), own=len(groups) if in_container else 1) if groups else None


CPU = ("cpu", "cpu,cpuacct")
"""The controller's folder: its own, the one it shares with cpuacct, or both, one being a link."""
CONTROLLERS = ("memory", "pids", *CPU)


def paths_of(text: str) -> dict[str, str]:
    """``/proc/self/cgroup``: the path of each controller of version 1, and of version 2 under the empty name."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        hierarchy, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if hierarchy.isdigit() and path.startswith("/"):
            found |= dict.fromkeys({names, *names.split(",")}, path)
    return found


def folders(mount: str, path: str) -> list[str]:
    """From the cgroup at `path` up to the mount; a container that sees only its own finds it at the mount itself."""
    parts = [part for part in path.split("/") if part not in ("", "..", ".")]
    return ["/".join([mount, *parts[:end]]) for end in range(len(parts), -1, -1)]


def group_v2(host: Host, folder: str) -> Group:
    stat = numbers(_read(host, f"{folder}/memory.stat"))
    quota = _read(host, f"{folder}/cpu.max").split()
    current = number(_read(host, f"{folder}/memory.current"))
    return Group(
        memory_limit_bytes=number(_read(host, f"{folder}/memory.max")),
        memory_used_bytes=None if current is None else max(0, current - stat.get("inactive_file", 0)),
        oom_kills=numbers(_read(host, f"{folder}/memory.events")).get("oom_kill", 0),
        cpus=ratio(*quota) if len(quota) == 2 else None,
        pids_limit=number(_read(host, f"{folder}/pids.max")),
        pids=number(_read(host, f"{folder}/pids.current")),
    )


def group_v1(host: Host, folders: Mapping[str, str]) -> Group:
    memory, pids = folders.get("memory", ""), folders.get("pids", "")
    quota, period = (
        next((text for name in CPU if (text := _read(host, f"{folders.get(name, '')}/cpu.cfs_{what}_us"))), "")
        for what in ("quota", "period")
    )
    limit = number(_read(host, f"{memory}/memory.limit_in_bytes"))
    current = number(_read(host, f"{memory}/memory.usage_in_bytes"))
    stat = numbers(_read(host, f"{memory}/memory.stat"))
    return Group(
        memory_limit_bytes=None if limit is None or limit >= UNLIMITED_BYTES else limit,
        memory_used_bytes=None if current is None else max(0, current - stat.get("total_inactive_file", 0)),
        oom_kills=numbers(_read(host, f"{memory}/memory.oom_control")).get("oom_kill", 0),
        cpus=ratio(quota, period),
        pids_limit=number(_read(host, f"{pids}/pids.max")),
        pids=number(_read(host, f"{pids}/pids.current")),
    )


def number(text: str) -> int | None:
    """A count; None for ``max``, for nothing, and for whatever else is no number of at most 19 digits."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 19 else None


def numbers(text: str) -> dict[str, int]:
    """Lines of a name and a number; any other line is left out."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: found for pair in pairs if len(pair) == 2 and (found := number(pair[1])) is not None}


def ratio(quota: str, period: str) -> float | None:
    """A CPU quota as a number of CPUs; None for none (``max`` or -1)."""
    share, whole = number(quota), number(period)
    return share / whole if share and whole else None


def _read(host: Host, path: str) -> str:
    """Empty where it is not there: the root has no limits, and not every controller is switched on."""
    try:
        return host.read(path)
    except OSError:
        return ""
