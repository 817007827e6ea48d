"""The values that flow through probe, all frozen.

::

    argv, env, TOML -> Config -> Plan -> engine -> Outcome stream -> Verdict -> Report -> exit code

A check returns a `Finding`; the engine adds who, when and how long and makes an `Outcome` of it. Only the engine
makes outcomes, only `probe.verdict` makes verdicts and exit codes. The published JSON Schema of a report is made
from the types in this file, so a field here is a promise to callers. Over 300 lines because these types name each
other, and whoever reads one needs the others; there is hardly any code among them.
"""

from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from probe.clock import DEFAULT_BUDGET_S

if TYPE_CHECKING:
    from probe.context import Context

Scalar = str | int | float | bool | None
Gpus = int | tuple[str, ...] | None
Limit = int | float | tuple[int, ...]
"""What a check compares with: a number, or a list of codes."""


class Status(StrEnum):
    """How one check of one target ended. Absence is never `PASS`."""

    PASS = "pass"
    SKIP = "skip"
    """Does not apply here; the summary says why."""
    WARN = "warn"
    FAIL = "fail"
    """Observed, and bad."""
    UNKNOWN = "unknown"
    """Could not be observed."""
    TIMEOUT = "timeout"
    """No answer in time."""


PROBLEMS = frozenset({Status.WARN, Status.FAIL, Status.UNKNOWN, Status.TIMEOUT})
BAD = PROBLEMS - {Status.WARN}


class Severity(StrEnum):
    CRITICAL = "critical"
    ADVISORY = "advisory"


class Profile(StrEnum):
    READINESS = "readiness"
    LIVENESS = "liveness"
    STARTUP = "startup"
    NODE = "node"


class Verdict(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNDETERMINED = "undetermined"


class Who(StrEnum):
    """Whose job the remedy is."""

    USER = "user"
    IMAGE = "image"
    CONTAINER_RESTART = "container_restart"
    HOST_ADMIN = "host_admin"
    CLUSTER_ADMIN = "cluster_admin"
    HARDWARE = "hardware"


class Rung(Struct, frozen=True):
    """One step inside a check: where its time went, and where it stopped."""

    rung: str
    status: Status
    elapsed_s: float


class Finding(Struct, frozen=True):
    """What a check found: one sentence with the number, the threshold and the unit, and flat data."""

    status: Status
    summary: str
    data: Mapping[str, Scalar] = {}
    rungs: tuple[Rung, ...] = ()


def passed(summary: str, **data: Scalar) -> Finding:
    return Finding(Status.PASS, summary, data)


def skipped(reason: str, **data: Scalar) -> Finding:
    return Finding(Status.SKIP, reason, data)


def warned(summary: str, **data: Scalar) -> Finding:
    return Finding(Status.WARN, summary, data)


def failed(summary: str, **data: Scalar) -> Finding:
    return Finding(Status.FAIL, summary, data)


def unknown(summary: str, **data: Scalar) -> Finding:
    return Finding(Status.UNKNOWN, summary, data)


class NoAnswer(Exception):
    """The answer a check waits for will not come; `finding` says why, and becomes the check's own."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.summary)
        self.finding = finding


class CheckSettings(Struct, frozen=True):
    """What was set for one check; None and absent thresholds: as the check declares."""

    enabled: bool | None = None
    severity: Severity | None = None
    timeout_s: float | None = None
    thresholds: Mapping[str, Limit] = {}
    options: Mapping[str, Any] = {}


class Config(Struct, frozen=True):
    """Every setting, with its default where nobody set it."""

    budget_s: float = DEFAULT_BUDGET_S
    profile: Profile = Profile.READINESS
    device: str = "auto"
    exit_codes: str = "shell"
    busy: str = "passive"
    state: str | None = None
    """A folder; None: the first of the usual places."""
    python: str = "auto"
    gpus_expect: Gpus = None
    """How many, or which UUIDs; None: as the machine says."""
    strict: bool = False
    log: str | None = None
    """A file, `NO_LOG`; None: the usual place."""
    torch_every_s: float = 0.0
    """How long a pass of rung 4 need not be repeated; 0: it is repeated by every run."""
    checks: Mapping[str, CheckSettings] = {}

    def check(self, check_id: str) -> CheckSettings:
        return self.checks.get(check_id, UNSET)


UNSET = CheckSettings()
NO_LOG = "off"


class Kind(StrEnum):
    """What kind of number is expected."""

    NONE = "none"
    AT_LEAST = "at_least"
    EXACTLY = "exactly"
    LIST = "list"


class Facts(Struct, frozen=True):
    """All that the expectation rests on."""

    device: str = "auto"
    gpus_expect: int | tuple[str, ...] | None = None
    nvidia_visible: str | None = None
    """NVIDIA_VISIBLE_DEVICES; None: not set."""
    cuda_visible: str | None = None
    """CUDA_VISIBLE_DEVICES; None: not set, which is not the same as set to nothing."""
    nodes: tuple[str, ...] = ()
    """Names in /dev that begin with nvidia."""
    driver_loaded: bool = False
    """nvidia is in /proc/devices, which in a container is the host's."""
    in_container: bool = False
    torch_cuda: str | None = None
    torch_hip: str | None = None
    dxg: bool = False
    """/dev/dxg is here: WSL2."""


class Expectation(Struct, frozen=True):
    """What this machine should have, and by whose word."""

    kind: Kind
    count: int = 0
    """How many GPUs: exactly, at least, or the length of `uuids`."""
    uuids: tuple[str, ...] = ()
    more_is: str = "ok"
    """"ok" or "warn": what it is when more are there. Fewer is always a failure."""
    mig: bool = False
    """`count` includes MIG instances, several of which can be of one GPU."""
    reason: str = ""
    """Whose word this is, to follow "because of"."""
    how_to_say_otherwise: str = ""
    cpu_workers: int = 0
    """On how many CPU workers rung 4 computes: 0 where GPUs are expected."""
    rocm: bool = False
    """torch is built for ROCm, which is not supported yet."""
    wsl2: bool = False
    """No device nodes are to be expected; NVML and CUDA decide."""

    @property
    def gpus(self) -> bool:
        """Whether any GPU should be here."""
        return self.kind is not Kind.NONE


class Threshold(Struct, frozen=True):
    """A number a check compares with, or a list of codes; settable as ``[checks."<id>"] <name> = ...``.

    A number's unit is the last word of its name (``min_free_bytes``); `source` says where the default comes from.
    """

    default: Limit
    source: str


class Option(Struct, frozen=True):
    """A setting of a check that is no number to compare with: ``[checks."<id>"] <name> = ...``."""

    parse: Callable[[object], Any]
    """From what TOML holds; raises ValueError."""
    allowed: str
    """In words, what `parse` takes."""
    meaning: str
    default: Any = None
    required: bool = False
    secret: bool = False
    """Its value is never shown."""
    read: bool = False
    """Where its value is text, that is a file's path, and the files child reads it: ``text:<path>``."""


CheckFunction = Callable[["Context", "Job"], Awaitable[Finding]]


class Check(Struct, frozen=True):
    """One question, as `probe.registry.check` declares it."""

    id: str
    run: CheckFunction
    question: str
    severity: Severity
    profiles: frozenset[Profile]
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    """The workers whose answers it reads, and of them what: ``nvml.memory``. Only what some check uses is asked."""
    per_gpu: bool = False
    gpu_only: bool = False
    """Asks about a GPU: does not apply where none is expected."""
    thresholds: Mapping[str, Threshold] = {}
    critical_in: frozenset[Profile] = frozenset()
    """The profiles in which it is critical, whatever its severity elsewhere."""
    options: Mapping[str, Option] = {}
    complaint: Callable[[Mapping[str, Any]], str] | None = None
    """What is wrong with its options taken together, in words; empty: nothing."""

    @property
    def rung(self) -> str:
        return self.id.partition(".")[0]

    def severity_in(self, profile: Profile) -> Severity:
        return Severity.CRITICAL if profile in self.critical_in else self.severity


EVERY_GPU = "gpu:*"


class Job(Struct, frozen=True):
    """A check, planned: with its target, its severity here and its thresholds as configured.

    A per-GPU job is planned once with the target `EVERY_GPU`; the engine makes one of it for each GPU that is
    found, and reports it as it stands when none is.
    """

    check: Check
    target: str
    severity: Severity
    needs: tuple[str, ...] = ()
    """Those of the check's needs that are run: one that was skipped by request, or does not apply, is no need."""
    timeout_s: float | None = None
    """Its own limit from its own start; None: until children are killed."""
    required: bool = False
    """`ENABLE_<CHECK>_CHECK=true` or ``enabled = true``: what it looks for must be there."""
    skip: str = ""
    """Not to be run, for this reason."""
    reported: bool = True
    """False for a need that ``--only`` pulled in."""
    thresholds: Mapping[str, int | float] = {}
    lists: Mapping[str, tuple[int, ...]] = {}
    """Those of its thresholds that are lists of codes."""
    options: Mapping[str, Any] = {}
    """Every option of the check: as configured, else its default."""

    @property
    def id(self) -> str:
        return self.check.id


class Plan(Struct, frozen=True):
    """What one run will do."""

    profile: Profile
    jobs: tuple[Job, ...]

    @property
    def uses(self) -> frozenset[str]:
        """What some job will ask of some worker."""
        return frozenset(name for job in self.jobs if not job.skip for name in job.check.uses)

    @property
    def files(self) -> frozenset[str]:
        """The files that some job was told of: each of them may lie on a mount that hangs."""
        return frozenset(
            job.options[name]
            for job in self.jobs
            if not job.skip
            for name, option in job.check.options.items()
            if option.read and isinstance(job.options[name], str)
        )

    @property
    def workers(self) -> frozenset[str]:
        """The workers some job reads from."""
        return frozenset(name.partition(".")[0] for name in self.uses)


class Outcome(Struct, frozen=True):
    """How one check of one target ended, and when. Times are seconds since the run's start."""

    id: str
    target: str
    status: Status
    severity: Severity
    summary: str
    started_s: float
    elapsed_s: float
    data: Mapping[str, Scalar] = {}
    rungs: tuple[Rung, ...] = ()


class Reference(Struct, frozen=True):
    """Names one outcome."""

    id: str
    target: str


class Cause(Struct, frozen=True):
    """One thing that is wrong, who can mend it, and the outcomes it explains (the first is its evidence)."""

    code: str
    summary: str
    remedy: str
    who: Who
    checks: tuple[Reference, ...]


class Report(Struct, frozen=True):
    """One run of ``probe check``, as ``--format json`` prints it."""

    schema: str
    probe_version: str
    host: str
    profile: Profile
    verdict: Verdict
    exit_code: int
    budget_s: float
    elapsed_s: float
    started_at: str
    causes: tuple[Cause, ...]
    checks: tuple[Outcome, ...]
    notes: tuple[str, ...] = field(default=())
    """What a reader must know beside the verdict: what was not tested, and why."""


class Record(Struct, frozen=True):
    """One line from a worker. `data` is the worker's own; a check puts what it needs of it into its `Finding`."""

    key: str
    target: str = ""
    code: int | None = None
    """The driver's own return code, where there is one; 0 is success."""
    text: str = ""
    elapsed_s: float = 0.0
    data: dict[str, Any] = {}
