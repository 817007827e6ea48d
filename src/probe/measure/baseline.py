"""A run against an earlier one: what may be compared, and what is a regression. Pure but for reading the file.

The statistic. Of every case both runs hold the median of each pass. With d the logarithm of how much slower the new
run is, by the means of the logarithms of these medians, and s the standard error of d (Welch: each run has its own
scatter)::

    regression  <=>  d > -ln(1 - allowed) + t * s    for rates
                     d >  ln(1 + allowed) + t * s    for seconds

where `allowed` is the tolerance and t is the quantile of Student's distribution, one-sided, at 1 % over the number of
cases compared (Bonferroni): the whole report, not each case, raises an alarm in at most one of a hundred comparisons of
a machine that is no more than the tolerance slower. Passes rather than samples, because neighbours in time, on the same
buffers, are alike and promise what the next run does not keep; logarithms, because noise in timings is a factor; a
bound of the change rather than two conditions, because "worse than 5 %" is what is asserted.

What differs from run to run and not within one (where memory lies, the page cache, another's load) no scatter of a run
can show. It was measured, and stands in `SPREADS`: where it is larger than the tolerance it takes its place. A case of
fewer than three passes in either run is judged only where it stands there, by consecutive parts of its samples; else
nobody knows what its next run would be, and it is `unjudged`.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from statistics import fmean, variance

import msgspec

from probe.config import UsageError
from probe.measure.model import SCHEMA, Bench, Change, Comparison, Done, Provenance, Result
from probe.measure.summary import FEWEST_PASSES

ALARMS = 0.01
"""Of whole reports without any change."""
MOST_BYTES = 64 << 20
LEAST, MOST = 1e-12, 1e15
"""Of figures in the units of a result: what lies outside came from no clock."""
FEWEST_BLOCKS = 3
STATISTIC = (
    "one-sided Welch t on logarithms of pass medians, 1 % over all cases (Bonferroni), beyond the tolerance; "
    "or beyond what the case differs by from run to run, where that is more"
)
SPREADS: Mapping[str, float] = {"startup": 0.50, "checks": 0.50, "host": 0.10, "host both at once": 0.30, "peer": 0.03}
"""How much the median of a healthy machine's run may be off that of its next, by program, or program and way.
`import torch` took 3.0 to 4.7 s from run to run on one H100 host. Of host copies the medians of three runs on an H100,
each of eight passes, fell up to 7.5 % (to host 16 MiB) and 22 % (both at once 16 MiB: 96.4, 75.1 GB/s): figure
`bench_gpu` of bench/results/2026-11-23-1-x-nvidia-h100-80gb-hbm3.json, which three runs do not exhaust. Of products and
copies within a device they differed by 1.7 % and less: the tolerance alone. Copies between two H200 by 0.05 %: figure
`bench_gpu` of bench/results/2026-11-28-2-x-nvidia-h200.json."""
COLLECTIVE_SPREADS = ((4 << 20, 0.60), (16 << 20, 0.20), (64 << 20, 0.10), (1 << 62, 0.03))
"""Of collectives within a host of GPUs, up to so many bytes: small ones are mostly latency, which differs with the
place of every process. In three runs on two H200 medians fell by up to 39, 11, 4.2 and 1.0 % (the same figure). Across
hosts nothing was measured: there it is allowed beside what their passes say, never in place of it."""
CPU_SPREAD = 0.50
"""On CPUs, whose cores and memory somebody else has too: in four runs on a busy machine of 2 cores medians of products
fell up to 25 %, of copies between workers 38 %, of copies in memory 47 %. Those of collectives fell by up to 97 %, each
of one pass: of them it is allowed beside what their passes say, never in place of it."""


def read(path: str) -> Bench:
    """The baseline in a file; raise UsageError where it is none."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", path) from None
    try:
        found = msgspec.json.decode(content, type=Bench)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(
            f"is no result of probe bench: {error}", path, f"what --save or --json wrote ({SCHEMA})"
        ) from None
    if found.schema != SCHEMA:
        raise UsageError(f"is of schema {found.schema!r}", path, SCHEMA)
    for one in found.results:
        if not all(value == 0 or LEAST <= value <= MOST for value in (one.median, *one.blocks)):
            raise UsageError(f"{one.program} {one.case} has figures that nobody measures", path, f"{LEAST} to {MOST}")
    if why := unfit(found):
        raise UsageError(f"cannot be compared with: {why}", path, "a run in which everything was measured, and right")
    return found


def unfit(run: Bench) -> str:
    """Why a run is no baseline; empty: it is one."""
    if failed := [f"{one.program}: {one.reason}" for one in run.programs if one.status is Done.FAIL]:
        return failed[0]
    if wrong := [f"{one.program} {one.case}" for one in run.results if one.verified is False]:
        return f"{wrong[0]} was computed wrongly"
    return "it is partial" if run.partial else ""


def refuse_other_hardware(baseline: Bench, now: Provenance, path: str) -> None:
    """Raise UsageError where the two were not made on hardware of the same kind, as far as it is known of both."""
    before = hardware(baseline.provenance)
    for (what, was), (_, is_) in zip(before, hardware(now), strict=True):
        if was != is_ and was and is_:
            raise UsageError(f"was made on other hardware: {what} was {was}, is {is_}", path, "a run of this hardware")


def refuse_other_hosts(baseline: Bench, names: Iterable[str], path: str) -> None:
    """Raise UsageError where the baseline is not of the hosts of these names (none: of one host), in any order."""
    was, is_ = (",".join(sorted(each)) for each in ([host.host for host in baseline.provenance.hosts], names))
    if was != is_:
        words = f"was made on other hosts: on {was or 'one host alone'}, and not on {is_ or 'one host alone'}"
        raise UsageError(words, path, "a run of the same hosts")


def hardware(of: Provenance) -> tuple[tuple[str, str], ...]:
    """What must be the same, in words; empty: not known. Not UUIDs: a sister machine's baseline is a good one."""
    gpus = ", ".join(f"{gpu.name} ({(gpu.memory_bytes or 0) >> 30} GiB)" for gpu in of.gpus) or "none"
    if of.hosts:
        gpus = ", ".join(dict.fromkeys(host.gpu for host in of.hosts))
    cpus = ", ".join(dict.fromkeys(host.cpu for host in of.hosts)) or of.cpu
    cores = str(of.cores) if of.device == "cpu" else "any"
    return (
        ("device", of.device),
        ("GPUs", gpus),
        ("CPU", cpus),
        ("cores", cores),
        ("workers", str(of.workers)),
        ("ranks on each host", ", ".join(dict.fromkeys(str(host.ranks) for host in of.hosts))),
    )


def differences(before: Provenance, now: Provenance) -> tuple[str, ...]:
    """What else may explain a change."""
    names = () if now.hosts else ("driver", "driver_cuda", "torch", "torch_cuda", "kernel", "python")
    pairs = [(name, str(getattr(before, name)), str(getattr(now, name))) for name in names]
    pairs += [
        (f"GPU {at} {name}", str(getattr(old, name)), str(getattr(new, name)))
        for at, (old, new) in enumerate(zip(before.gpus, now.gpus, strict=False))
        for name in ("power_limit_watts", "max_sm_mhz", "max_memory_mhz", "pcie_generation", "pcie_width", "nvlinks")
    ]
    hosts = {host.host: host for host in before.hosts}
    pairs += [
        (f"{host.host} {name}", str(getattr(hosts[host.host], name)), str(getattr(host, name)))
        for host in now.hosts
        if host.host in hosts
        for name in ("driver", "torch", "torch_cuda", "nccl", "kernel", "interface", "links_gbps")
    ]
    return tuple(f"{name.replace('_', ' ')}: {old} -> {new}" for name, old, new in pairs if old != new)


def compare(baseline: Bench, now: Bench, path: str, tolerance: float) -> Comparison:
    """Every case of either run, regressions first."""
    before, after = _by_place(baseline), _by_place(now)
    device = "hosts" if now.provenance.hosts else now.provenance.device
    judged = sum(1 for key in after if key in before and judgeable(before[key], after[key], device))
    changes = []
    for key in dict.fromkeys([*after, *before]):
        if key not in before:
            changes.append(_lone(after[key], "new"))
        elif key not in after:
            changes.append(_lone(before[key], "gone"))
        else:
            changes.append(judge(before[key], after[key], tolerance, device, judged))
    order = {"regression": 0, "better": 1, "same": 2, "unjudged": 3, "new": 4, "gone": 5}
    changes.sort(key=lambda change: (order[change.verdict], change.change or 0.0))
    return Comparison(
        baseline=os.path.basename(path),
        baseline_started_at=baseline.started_at,
        tolerance=tolerance,
        statistic=STATISTIC,
        differences=differences(baseline.provenance, now.provenance),
        regressions=sum(change.verdict == "regression" for change in changes),
        changes=tuple(changes),
    )


def _by_place(run: Bench) -> dict[tuple[str, str, str], Result]:
    """By program, case and the GPU's place: a GPU that was exchanged has another UUID and the same place."""
    places = {gpu.target: f"gpu {at}" for at, gpu in enumerate(run.provenance.gpus)}
    return {(one.program, one.case, places.get(one.target, one.target)): one for one in run.results}


def _lone(one: Result, verdict: str) -> Change:
    was, is_ = (one.median, None) if verdict == "gone" else (None, one.median)
    return Change(one.program, one.case, one.target, one.unit, was, is_, None, None, None, verdict)


def measured_spread(one: Result, device: str) -> float:
    """What is known of this case from run to run; 0: nothing."""
    if one.program == "collective":
        return _of_size(one) if device == "cuda" else 0.0
    if device == "cpu" and one.program not in ("startup", "checks"):
        return CPU_SPREAD
    return SPREADS.get(f"{one.program} {one.data.get('way')}", SPREADS.get(one.program, 0.0))


def spread(one: Result, device: str) -> float:
    """What is allowed of this case whatever the tolerance."""
    if one.program != "collective":
        return measured_spread(one, device)
    return CPU_SPREAD if device == "cpu" else _of_size(one)


def _of_size(one: Result) -> float:
    size = one.data.get("size_bytes")
    return next(spread for most, spread in COLLECTIVE_SPREADS if not isinstance(size, int) or size <= most)


def judgeable(before: Result, after: Result, device: str) -> bool:
    if min(len(before.blocks), len(after.blocks)) < FEWEST_BLOCKS or before.unit != after.unit:
        return False
    known = min(before.passes, after.passes) >= FEWEST_PASSES or measured_spread(after, device) > 0
    return known and min(*before.blocks, *after.blocks, before.median, after.median) > 0


def judge(before: Result, after: Result, tolerance: float, device: str, cases: int) -> Change:
    """One case of both runs; `cases` is how many are judged in this report."""
    made = (before.program, before.case, after.target, after.unit, before.median, after.median)
    allowed = max(tolerance, spread(after, device))
    if not judgeable(before, after, device):
        return Change(*made, _change(before, after), None, allowed, "unjudged")
    rate = after.unit != "s"
    noise = chance(before.blocks, after.blocks, cases)
    gained = (mean_log(after.blocks) - mean_log(before.blocks)) * (1 if rate else -1)
    worse = -math.log1p(-allowed) if rate else math.log1p(allowed)
    if -gained > worse + noise:
        verdict = "regression"
    elif gained > math.log1p(allowed) + noise:
        verdict = "better"
    else:
        verdict = "same"
    return Change(*made, _change(before, after), round(math.expm1(noise), 6), allowed, verdict)


def _change(before: Result, after: Result) -> float:
    """Of the medians of all samples, as a fraction of the baseline; positive is better: a rate that rose, say."""
    change = after.median / before.median - 1 if before.median else 0.0
    return round(change if after.unit != "s" else -change, 6)


def mean_log(blocks: Sequence[float]) -> float:
    return fmean(map(math.log, blocks))


def chance(before: Sequence[float], after: Sequence[float], cases: int) -> float:
    """How much two means of the blocks' logarithms may differ by chance, one-sided, at `ALARMS` over `cases`."""
    errors = [variance(list(map(math.log, blocks))) / len(blocks) for blocks in (before, after)]
    if not sum(errors):
        return 0.0
    freedoms = [error**2 / (len(blocks) - 1) for error, blocks in zip(errors, (before, after), strict=True)]
    freedom = max(1.0, sum(errors) ** 2 / sum(freedoms))
    return student(ALARMS / max(1, cases), freedom) * math.sqrt(sum(errors))


def student(tail: float, freedom: float) -> float:
    """The value that Student's t with so many degrees of freedom exceeds with probability `tail`.

    Between whole degrees its logarithm is taken as linear in 1/freedom, which it nearly is far out: there the tail is a
    power. Of three passes the next lower degree would ask for three times as much.
    """
    below = int(freedom)
    if below == freedom:
        return _student(tail, below)
    above_part = (1 / below - 1 / freedom) / (1 / below - 1 / (below + 1))
    return math.pow(_student(tail, below), 1 - above_part) * math.pow(_student(tail, below + 1), above_part)


@cache
def _student(tail: float, freedom: int) -> float:
    """For whole degrees, by bisection."""
    low, high = 0.0, 1.0
    while _beyond(high, freedom) > tail:
        low, high = high, high * 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _beyond(middle, freedom) > tail else (low, middle)
    return high


def _beyond(t: float, freedom: int) -> float:
    """P(T > t), by the finite sums for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    term, total = (cosine, 0.0) if freedom % 2 else (1.0, 1.0)
    if freedom % 2:
        total = term if freedom > 1 else 0.0
    for k in range(3 if freedom % 2 else 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    within = 2 / math.pi * (angle + sine * total) if freedom % 2 else sine * total
    return max(0.0, (1 - within) / 2)
