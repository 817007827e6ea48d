"""The values of ``probe bench``, all frozen; the published JSON Schema ``probe.bench/1`` is made from them.

A field here is a promise to callers: whoever saved a baseline reads it again next year.
"""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct

from probe.model import Scalar

SCHEMA = "probe.bench/1"


class Done(StrEnum):
    """How one program ended."""

    DONE = "done"
    SKIP = "skip"
    """Does not apply here, or had no time: the reason says which."""
    FAIL = "fail"
    """Could not run, or computed wrongly."""


class Result(Struct, frozen=True):
    """One case of one program on one target: (program, case, target) is unique.

    Rates count whole units a second; for seconds less is better. `blocks` are medians in the order of the samples,
    whose scatter a comparison asks: of each pass where there were three or more, else of consecutive parts.
    """

    program: str
    case: str
    target: str
    unit: str
    median: float
    p5: float
    p95: float
    n: int
    limit: float | None
    """What the hardware could do at most, in the same unit; None: not known."""
    limit_source: str
    """How the limit was reckoned, or why there is none."""
    verified: bool | None
    """Whether what was timed was also right; None where there is nothing to be right or wrong."""
    blocks: tuple[float, ...] = ()
    passes: int = 0
    """How often it was measured anew: other buffers, or another process; 0: by a version that did not say."""
    data: Mapping[str, Scalar] = {}


class Condition(Struct, frozen=True):
    """One GPU around and during one program; None is what NVML did not say."""

    target: str
    sm_mhz_before: float | None = None
    sm_mhz_during: float | None = None
    """The median of the readings."""
    sm_mhz_after: float | None = None
    memory_mhz_during: float | None = None
    celsius_before: float | None = None
    celsius_after: float | None = None
    watts_during: float | None = None
    """The highest reading."""
    throttle_reasons_before: int | None = None
    throttle_reasons_during: int | None = None
    """All that were seen, as NVML's mask."""
    throttle_reasons_after: int | None = None


class Program(Struct, frozen=True):
    """One program: how it ended, and under which conditions."""

    program: str
    status: Done
    reason: str
    share_s: float
    elapsed_s: float
    left_out: tuple[str, ...] = ()
    """Cases that were not measured, each with its reason."""
    conditions: tuple[Condition, ...] = ()


class Gpu(Struct, frozen=True):
    """One GPU as NVML and torch describe it; None is what they did not say."""

    uuid: str
    name: str
    bus_id: str = ""
    sms: int | None = None
    capability: str = ""
    memory_bytes: int | None = None
    max_sm_mhz: float | None = None
    max_memory_mhz: float | None = None
    memory_bus_bits: int | None = None
    power_limit_watts: float | None = None
    pcie_generation: int | None = None
    """The highest that was seen: an idle link rests at a lower one."""
    pcie_width: int | None = None
    nvlinks: int | None = None
    nvlink_gbps: float | None = None
    """Of one link in one direction, in GB/s."""
    nvlink_remotes: tuple[str, ...] = ()
    c2c: bool = False
    """Joined to its host by NVLink-C2C and not by PCIe."""

    @property
    def target(self) -> str:
        return f"gpu:{self.uuid}"


class Host(Struct, frozen=True):
    """One of several hosts, as its agent and its ranks describe it; what they did not say is empty or None."""

    host: str
    ranks: int
    """One for each GPU, or processes on its CPU."""
    gpu: str = ""
    gpu_memory_bytes: int | None = None
    cpu: str = ""
    cores: int = 0
    kernel: str = ""
    driver: str = ""
    torch: str = ""
    torch_cuda: str = ""
    nccl: str = ""
    interface: str = ""
    """Of the address by which the others know it; NCCL may choose its own."""
    links_gbps: float | None = None
    """What its InfiniBand or RoCE ports carry in one direction, in GB/s, of its fastest ports one for each rank."""
    links_add: bool = False
    """They are InfiniBand, whose switches may add on the way (SHARP)."""


class Provenance(Struct, frozen=True):
    """On what, with what."""

    device: str
    """"cuda" or "cpu"."""
    machine: str
    """In words: ``8 x NVIDIA H100 80GB HBM3``."""
    cpu: str
    cores: int
    kernel: str
    python: str
    """The interpreter that has torch."""
    torch: str
    torch_cuda: str
    driver: str
    driver_cuda: str
    gpus: tuple[Gpu, ...] = ()
    workers: int = 0
    """CPU processes that stood for GPUs."""
    launcher: str = ""
    """What started ranks on `hosts`: "local" (simulated hosts on this machine), "ssh"; empty: on this host alone."""
    backend: str = ""
    """Across hosts: "nccl" or "gloo"."""
    hosts: tuple[Host, ...] = ()
    """Where the ranks were, if not on this host alone; then `cpu`, `cores`, `torch` and so on are the first one's."""

    def place(self, target: str) -> str:
        """The number of a GPU as NVML lists it; what is no GPU of ours as it is called."""
        return next((str(at) for at, gpu in enumerate(self.gpus) if gpu.target == target), target)


class Change(Struct, frozen=True):
    """One case against the baseline. `change`, `noise` and `allowed` are fractions; a positive change is better."""

    program: str
    case: str
    target: str
    unit: str
    baseline: float | None
    current: float | None
    change: float | None
    noise: float | None
    """How much of a change chance alone may show, in one of a hundred whole reports."""
    allowed: float | None
    verdict: str
    """"same", "regression", "better", "unjudged" (too few passes), "new", "gone"."""


class Comparison(Struct, frozen=True):
    """Against one baseline."""

    baseline: str
    """The file."""
    baseline_started_at: str
    tolerance: float
    statistic: str
    differences: tuple[str, ...]
    """What else is not as it was: driver, torch, power limit."""
    regressions: int
    changes: tuple[Change, ...]

    @property
    def judged(self) -> int:
        """How many cases could be compared."""
        return sum(change.verdict in {"same", "better", "regression"} for change in self.changes)


class Bench(Struct, frozen=True):
    """One run of ``probe bench``, as ``--json`` and ``--save`` write it."""

    schema: str
    probe_version: str
    host: str
    started_at: str
    time_s: float
    elapsed_s: float
    exit_code: int
    partial: bool
    """It was interrupted, ran out of its time, or one of its programs could not run to its end: results are missing."""
    notes: tuple[str, ...]
    provenance: Provenance
    programs: tuple[Program, ...]
    results: tuple[Result, ...]
    comparison: Comparison | None = None
