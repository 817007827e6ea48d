"""What the hardware could do at most, beside each figure: from what the device reports, by a small table of rates.

::

    matmul       SMs x highest SM clock x FLOP per SM and clock (limits.toml, by compute capability and dtype)
    memory       memory bus width x highest memory clock x 2 (both edges) / 8
    host         PCIe lanes x rate of a lane of that generation; twice that for both ways at once
    peer         NVLinks between the two x rate of a link; without NVLink the slower PCIe link of the two
    collective   what one GPU's links carry in one direction: nccl-tests' busbw is made to be compared with it;
                 across hosts what one host's links carry, by what must cross them

Hardware that the table does not know has no limit here, and says so. Pure.
"""

import os
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from msgspec.structs import replace

from probe.measure.model import Gpu, Host, Provenance, Result
from probe.model import Scalar

FILE = os.path.join(os.path.dirname(__file__), "limits.toml")
MULTICAST_CAPABILITY = (9, 0)
"""From here on switches can add on the way (NVLink SHARP): busbw then comes to more than the links carry."""


class Limit(NamedTuple):
    """In the unit of the result; None: not known, for the reason in `source`."""

    value: float | None
    source: str


def none(why: str) -> Limit:
    return Limit(None, why)


NO_LIMIT = none("no physical limit")
CPU = none("unknown: no table of CPUs")
MIG = none("unknown: a MIG instance has a part of its GPU, and NVML does not say which rates")


@cache
def table() -> dict[str, Any]:
    with open(FILE, "rb") as file:
        return tomllib.load(file)


def with_limits(results: Sequence[Result], provenance: Provenance) -> tuple[Result, ...]:
    """The results with what the hardware of `provenance` could do beside each."""
    gpus = {gpu.target: gpu for gpu in provenance.gpus}
    made = []
    for result in results:
        limit = limit_of(result, gpus, provenance)
        value = None if limit.value is None else float(f"{limit.value:.6g}")
        made.append(replace(result, limit=value, limit_source=limit.source))
    return tuple(made)


def limit_of(  # noqa: PLR0911 - a program each
    result: Result, gpus: Mapping[str, Gpu], provenance: Provenance
) -> Limit:
    if result.program in ("startup", "checks"):
        return NO_LIMIT
    if provenance.hosts:
        return across(provenance, str(result.data.get("op")))
    if provenance.device == "cpu":
        return CPU
    if any(uuid.startswith("gpu:MIG-") for uuid in ([result.target] if result.target else gpus)):
        return MIG
    if result.program == "peer":
        a, b = (_gpu_at(provenance, result.data.get(end)) for end in ("from", "to"))
        return between(a, b, provenance.gpus)
    if result.program == "collective":
        return of_group(provenance.gpus, str(result.data.get("op")))
    gpu = gpus.get(result.target)
    if gpu is None:
        return none("unknown: NVML did not describe this GPU")
    if result.program == "matmul":
        return of_product(gpu, str(result.data.get("dtype")))
    if result.program == "memory":
        return of_memory(gpu)
    return of_host_link(gpu, ways=2 if result.data.get("way") == "both at once" else 1)


def _gpu_at(provenance: Provenance, place: Scalar) -> Gpu | None:
    return provenance.gpus[place] if isinstance(place, int) and 0 <= place < len(provenance.gpus) else None


# ---- one GPU ---------------------------------------------------------------------------------------------------------


def of_product(gpu: Gpu, dtype: str) -> Limit:
    """TFLOP/s of dense products."""
    rate = rate_of(gpu.capability, gpu.name, dtype)
    if rate is None:
        return none(f"unknown: no rate of {dtype} for compute capability {gpu.capability or '?'} in the table")
    if not gpu.sms or not gpu.max_sm_mhz:
        return none("unknown: the SMs or their highest clock are not reported")
    value = gpu.sms * gpu.max_sm_mhz * 1e6 * rate / 1e12
    return Limit(value, f"{gpu.sms} SMs x {gpu.max_sm_mhz:.0f} MHz x {rate} FLOP/clock{datasheet(gpu, dtype)}")


def rate_of(capability: str, name: str, dtype: str) -> int | None:
    """FLOP per SM and clock; a row with a name is for products that have it in theirs, and goes before one without."""
    rows = [row for row in table()["architecture"] if row["capability"] == capability and row.get("name", "") in name]
    best = max(rows, key=lambda row: len(row.get("name", "")), default=None)
    rate = best.get(dtype) if best else None
    return int(rate) if rate is not None else None


def datasheet(gpu: Gpu, dtype: str) -> str:
    """``; datasheet: 989.4 TFLOP/s at 1830 MHz`` where the product is known."""
    for product in table()["product"]:
        if product["name"] == gpu.name and dtype in product["tflops"]:
            return f"; datasheet: {product['tflops'][dtype]} TFLOP/s at {product['boost_mhz']} MHz"
    return ""


def of_memory(gpu: Gpu) -> Limit:
    """GB/s, read and written together."""
    if not gpu.memory_bus_bits or not gpu.max_memory_mhz:
        return none("unknown: the memory's bus width or clock is not reported")
    value = gpu.memory_bus_bits * gpu.max_memory_mhz * 1e6 * 2 / 8 / 1e9
    return Limit(value, f"{gpu.memory_bus_bits} bits x {gpu.max_memory_mhz:.0f} MHz x 2 / 8")


def of_host_link(gpu: Gpu, ways: int = 1) -> Limit:
    if gpu.c2c:
        return none("unknown: joined to its host by NVLink-C2C, whose rate NVML does not tell")
    value = lanes_gbps(gpu)
    if value is None:
        return none("unknown: the PCIe generation or width is not reported or not in the table")
    both = " x 2 ways" if ways == 2 else ""
    return Limit(ways * value, f"PCIe {gpu.pcie_generation}.0 x{gpu.pcie_width}{both}, before packet headers")


def lanes_gbps(gpu: Gpu) -> float | None:
    rates = table()["pcie"]["gbps_per_lane"]
    if not gpu.pcie_generation or not gpu.pcie_width or not 1 <= gpu.pcie_generation <= len(rates):
        return None
    return float(rates[gpu.pcie_generation - 1] * gpu.pcie_width)


# ---- between GPUs ----------------------------------------------------------------------------------------------------


def link_gbps(version: int | None, reported_mbps: int | None) -> float | None:
    """GB/s of data of one link in one direction; None where neither its version nor its speed is known."""
    of_version = table()["nvlink"]["gbps_per_link"].get(str(version))
    reported = reported_mbps / 1e3 if reported_mbps else None
    known = [rate for rate in (of_version, reported) if rate]
    return min(known) if known else None


def between(a: Gpu | None, b: Gpu | None, gpus: Sequence[Gpu]) -> Limit:
    """One direction, from a to b, both of `gpus`."""
    if a is None or b is None:
        return none("unknown: NVML did not describe these GPUs")
    if not a.nvlinks and not b.nvlinks:
        return over_pcie((a, b))
    links = min(links_towards(a, b, gpus), links_towards(b, a, gpus))
    if not links:
        return none("unknown: no NVLink leads from one to the other directly")
    if not a.nvlink_gbps or not b.nvlink_gbps:
        return none("unknown: the rate of these NVLinks is not reported and not in the table")
    rate = min(a.nvlink_gbps, b.nvlink_gbps)
    return Limit(links * rate, f"{links} NVLinks x {rate:g} GB/s")


def links_towards(a: Gpu, b: Gpu, gpus: Sequence[Gpu]) -> int:
    """Those of a's links that end at b; else those that end at no GPU: at a switch, or a virtual machine hides it."""
    ends = [_bus(remote) for remote in a.nvlink_remotes]
    others = {_bus(gpu.bus_id) for gpu in gpus}
    return ends.count(_bus(b.bus_id)) or sum(end not in others for end in ends)


def _bus(bus_id: str) -> str:
    """NVML writes the domain with eight digits in one place and with four in another."""
    return bus_id.lower()[-12:]


def over_pcie(gpus: Sequence[Gpu]) -> Limit:
    rates = [lanes_gbps(gpu) for gpu in gpus]
    if not rates or None in rates:
        return none("unknown: the PCIe generation or width is not reported or not in the table")
    slowest = min(range(len(gpus)), key=lambda at: rates[at] or 0.0)
    gpu = gpus[slowest]
    return Limit(rates[slowest], f"PCIe {gpu.pcie_generation}.0 x{gpu.pcie_width} (no NVLink), before packet headers")


def of_group(gpus: Sequence[Gpu], op: str) -> Limit:
    """Bus bandwidth in GB/s of one operation over all GPUs."""
    if not all(gpu.nvlinks for gpu in gpus):
        return over_pcie(gpus)
    if not all(gpu.nvlink_gbps for gpu in gpus):
        return none("unknown: the rate of these NVLinks is not reported and not in the table")
    least = min(gpus, key=lambda gpu: (gpu.nvlinks or 0) * (gpu.nvlink_gbps or 0.0))
    value = (least.nvlinks or 0) * (least.nvlink_gbps or 0.0)
    words = f"{least.nvlinks} NVLinks x {least.nvlink_gbps:g} GB/s"
    n = len(gpus)
    if op == "all_reduce" and n > 2 and _multicast(least):
        return Limit(2 * (n - 1) / n * value, f"{words} x 2(n-1)/n: the switches can add (NVLink SHARP)")
    return Limit(value, words)


def _multicast(gpu: Gpu) -> bool:
    major, _, minor = gpu.capability.partition(".")
    return major.isdigit() and minor.isdigit() and (int(major), int(minor)) >= MULTICAST_CAPABILITY


# ---- between hosts ---------------------------------------------------------------------------------------------------


def across(provenance: Provenance, op: str) -> Limit:
    """Bus bandwidth in GB/s of one operation over all ranks of all hosts, by the links of the slowest host."""
    hosts = provenance.hosts
    if len(hosts) < 2:
        return none("unknown: on one host no link between hosts is used")
    if provenance.launcher == "local":
        return none("unknown: the hosts are simulated, and share this machine")
    if provenance.backend != "nccl":
        return none("unknown: gloo goes by TCP, over a way that nobody tells")
    if missing := next((host.host for host in hosts if not host.links_gbps), None):
        return none(f"unknown: {missing} has no InfiniBand or RoCE port that NCCL would use and whose rate is told")
    least = min(hosts, key=lambda host: host.links_gbps or 0.0)
    factor, words = _crossing(op, hosts, adds=all(host.links_add for host in hosts))
    return Limit((least.links_gbps or 0.0) * factor, f"the links of {least.host}, {least.links_gbps:g} GB/s{words}")


def _crossing(op: str, hosts: Sequence[Host], *, adds: bool) -> tuple[float, str]:
    """Busbw over the rate at which bytes cross the links of one host, at most, and in words.

    What is alike for all ranks of a host crosses once, or is added before it does: with n ranks on h hosts, m on each,
    an all-gather or reduce-scatter of S brings S (h-1)/h over them, an all-reduce twice that (or S, where switches
    add), an all-to-all m S (n-m)/n, a broadcast S. Each is divided into S times nccl-tests' factor.
    """
    h, m = len(hosts), min(host.ranks for host in hosts)
    n = h * m
    if op == "all_to_all":
        return (n - 1) / (m * (n - m)), f" x (n-1)/(m(n-m)), {m} ranks on each host"
    if op == "broadcast":
        return 1.0, ""
    if op == "all_reduce" and adds:
        return 2 * (n - 1) / n, " x 2(n-1)/n: the switches can add (SHARP)"
    return (n - 1) / n * h / (h - 1), " x (n-1)/n x h/(h-1)" if m > 1 else ""
