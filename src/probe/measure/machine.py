"""What there is to measure on: GPUs by NVML, which of them may be touched, or the CPU."""

import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from probe.busy import NOTHING_SEEN, Evidence, busy
from probe.measure.limits import link_gbps
from probe.measure.model import Gpu, Provenance
from probe.model import Record
from probe.rank.facts import cpu_model
from probe.torchfile import TorchSite
from probe.worker.launch import BUSY_GETTERS

GETTERS = (*BUSY_GETTERS, "pcie", "ceilings", "links")

Answers = Mapping[tuple[str, str], Record]
"""By (key, target)."""


def gpus_of(answers: Answers) -> list[Gpu]:
    """The GPUs that NVML lists and answers for, by its index; a GPU with MIG on stands for its instances."""
    listed = answers.get(("gpus", ""))
    found = []
    for row in listed.data["gpus"] if listed else ():
        if not row["uuid"]:
            continue
        for uuid in row["mig"] or (row["uuid"],):
            described = _described(uuid, row, answers)
            found.append(
                described if uuid == row["uuid"] else replace(described, max_sm_mhz=None, memory_bus_bits=None)
            )
    return found


def _described(uuid: str, row: Mapping[str, Any], answers: Answers) -> Gpu:
    parent = f"gpu:{row['uuid']}"
    memory = _data(answers, "memory", f"gpu:{uuid}")
    ceilings, pcie, links = (_data(answers, key, parent) for key in ("ceilings", "pcie", "links"))
    active = links.get("active") or 0
    return Gpu(
        uuid=uuid,
        name=row["name"],
        bus_id=row["bus_id"],
        memory_bytes=memory.get("total_bytes"),
        max_sm_mhz=ceilings.get("sm_mhz"),
        max_memory_mhz=ceilings.get("memory_mhz"),
        memory_bus_bits=ceilings.get("memory_bus_bits"),
        power_limit_watts=ceilings.get("watts"),
        pcie_generation=pcie.get("generation"),
        pcie_width=pcie.get("width"),
        nvlinks=active if links else None,
        nvlink_gbps=link_gbps(links.get("version"), links.get("mbps")) if active else None,
        nvlink_remotes=tuple(links.get("remotes", ())),
        c2c=bool(links.get("c2c")),
    )


def _data(answers: Answers, key: str, target: str) -> Mapping[str, Any]:
    record = answers.get((key, target))
    return record.data if record is not None and record.code == 0 else {}


def signs_of_work(gpu: Gpu, answers: Answers, *, mps: bool) -> str:
    """Why this GPU is left alone, by the rule of `probe.busy`; empty: it is idle."""
    memory = _data(answers, "memory", gpu.target)
    evidence = {
        "processes": _data(answers, "processes", gpu.target).get("count"),
        "used_bytes": memory.get("used_bytes"),
        "free_bytes": memory.get("free_bytes"),
        "utilization_percent": _data(answers, "utilization", gpu.target).get("percent"),
        "exclusive": _data(answers, "compute_mode", gpu.target).get("exclusive"),
        "mps": mps,
    }
    signs = busy(msgspec.convert(evidence, Evidence))
    return f"not known whether busy ({signs})" if signs == NOTHING_SEEN else signs


def visible(gpus: Iterable[Gpu], uuids: Iterable[str] | None) -> list[Gpu]:
    """Those that the user lets CUDA see, in NVML's order; None: all."""
    if uuids is None:
        return list(gpus)
    named = {_bare(uuid) for uuid in uuids}
    return [gpu for gpu in gpus if _bare(gpu.uuid) in named]


def _bare(uuid: str) -> str:
    return uuid.removeprefix("GPU-").removeprefix("MIG-")


def provenance(
    gpus: Iterable[Gpu], *, workers: int, answers: Answers, site: TorchSite | None, version: str
) -> Provenance:
    gpus = tuple(gpus)
    init = _data(answers, "init", "")
    driver_cuda = init.get("driver_cuda")
    return Provenance(
        device="cuda" if gpus else "cpu",
        machine=_machine(gpus),
        cpu=cpu_model(),
        cores=cores(),
        kernel=platform.release(),
        python=f"{site.python_version[0]}.{site.python_version[1]}" if site and site.python_version else "",
        torch=version or (site.version if site else ""),
        torch_cuda=(site.cuda or "") if site else "",
        driver=str(init.get("driver_version", "")),
        driver_cuda=f"{driver_cuda // 1000}.{driver_cuda % 1000 // 10}" if driver_cuda else "",
        gpus=gpus,
        workers=workers,
    )


def _machine(gpus: tuple[Gpu, ...]) -> str:
    names = list(dict.fromkeys(gpu.name for gpu in gpus))
    if not names:
        return f"{cpu_model()}, {cores()} cores"
    return ", ".join(f"{sum(gpu.name == name for gpu in gpus)} x {name}" for name in names)


def cores() -> int:
    """How many threads can run at once: more would share the container's quota, and stand still in turn."""
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), cpu_quota())))


def cpu_quota(groups: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> float:
    """CPUs that the container may use at once, by its cgroup and those above it; infinite where none bounds it."""
    found = [math.inf]
    for line in _read(own).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for end in range(len(parts) + 1):
            folder = "/".join([groups, *parts[:end]])
            if not controllers:
                found.append(_ratio(_read(f"{folder}/cpu.max").split()))
            elif "cpu" in controllers.split(","):
                folder = "/".join([groups, "cpu", *parts[:end]])
                found.append(_ratio([_read(f"{folder}/cpu.cfs_{name}_us").strip() for name in ("quota", "period")]))
    return min(found)


def _ratio(words: Sequence[str]) -> float:
    """Infinite where there is none: `max 100000`, or a quota of -1."""
    if len(words) == 2 and all(word.isdigit() and int(word) for word in words):
        return int(words[0]) / int(words[1])
    return math.inf


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
