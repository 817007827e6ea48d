"""Everything hung, in turn and together: is there a verdict, on time, that names it, with nothing left behind?

A run breaks a rule when it ends too early or too late for its budget, leaves a process, has another exit code than
what hangs deserves, does not say ``timeout`` of it or does not name it as the first cause, or prints a traceback.
"""

import json
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench import stage
from bench.measure import ROOT, Bench, Figure, Value, gpus

BUDGET_S = 3.0
EARLIEST_S = -1.0
LATEST_S = 0.25
"""Of a run's end, from the end of its budget."""

HOSTS = ROOT / "tests" / "hosts"
EVERYTHING = """
[nvml]
init = "hang"
[cuda]
init = "hang"
[files]
driver = "hang"
[files.nodes]
"*" = "hang"

[expect]
verdict = "unhealthy"
exit_code = 1
blames = []
"""
DRIVER = ("nvml.reach", "cuda.init", "device.nodes", "device.module", "device.shm")
NO_TORCH = ("--skip", "torch")
"""Where an exit code of 0 is to be seen: a healthy import of torch can take longer than this budget (4.7 s on an H100
host, and under another's load on 2 cores)."""


@dataclass(frozen=True)
class Case:
    """One way to hang. Without a host, mount or torch of its own it is this machine that probe runs on."""

    name: str
    hung: tuple[str, ...]
    """The checks that must be timeouts; the first cause must be one of them. Empty: nobody reads the report."""
    exit_code: int = 1
    host: str = ""
    """A scenario of tests/hosts, or ``everything``."""
    dead_mount: bool = False
    torch: str = ""
    arguments: tuple[str, ...] = ()

    @property
    def root(self) -> bool:
        return bool(self.host or self.dead_mount)


CASES = (
    Case("nvmlInit", ("nvml.reach",), host="nvml-hangs"),
    Case("NVML, of one GPU", ("nvml.memory",), host="nvml-hang-one"),
    Case("cuInit", ("cuda.init",), host="cuda-init-hangs"),
    Case("CUDA context, of one GPU", ("cuda.context",), host="cuda-context-hangs-one"),
    Case("open of a device node", ("device.nodes",), host="node-open-hangs"),
    Case("a mount never answers", ("device.shm",), exit_code=0, dead_mount=True, arguments=NO_TORCH),
    Case("all together", (*DRIVER, "torch.import"), host="everything", dead_mount=True, torch="holds the GIL"),
    Case("all, and nobody reads", (), host="everything", dead_mount=True, torch="holds the GIL"),
    Case("import torch sleeps", ("torch.import",), torch="sleeps"),
    Case("import torch holds the GIL", ("torch.import",), torch="holds the GIL"),
    Case("import torch spins", ("torch.import",), torch="spins"),
    Case("nobody reads stdout", (), exit_code=0, arguments=NO_TORCH),
    Case("torch, and nobody reads", (), torch="spins"),
)


@dataclass(frozen=True)
class End:
    """How one run ended."""

    case: str
    after_budget_s: float
    wrong: tuple[str, ...]
    """Every rule it broke, in words."""


def measure(bench: Bench) -> Figure:
    """`bench.hung_runs` runs of ``probe check --budget 3s``, the cases in turn, one at a time."""
    reason = stage.no_fakes() if bench.fakes else "--rootless"
    cases = [case for case in CASES if not (case.root and reason)]
    stage.become_subreaper()
    with tempfile.TemporaryDirectory(prefix="probe-bench-") as folder:
        ends = [one(bench, cases[n % len(cases)], Path(folder, f"run-{n}")) for n in range(bench.hung_runs)]
    relative_s = [end.after_budget_s for end in ends]
    values = (
        Value("runs that broke a rule", sum(bool(end.wrong) for end in ends), "", 0),
        Value("earliest end - budget", min(relative_s), "s", EARLIEST_S, at_least=True),
        Value("median end - budget", median(relative_s), "s"),
        Value("latest end - budget", max(relative_s), "s", LATEST_S),
    )
    notes = [distribution(case.name, ends) for case in cases if any(end.case == case.name for end in ends)]
    notes += [f"left out: {case.name} ({reason})" for case in CASES if case not in cases]
    samples = {case.name: [asdict(end) for end in ends if end.case == case.name] for case in cases}
    return Figure("hung", f"{len(ends)} runs with --budget 3s, from outside", values, samples, tuple(notes))


def distribution(name: str, ends: Sequence[End]) -> str:
    """One case: how many runs; the first, median and last end; what went wrong, with how often."""
    times_s = sorted(end.after_budget_s for end in ends if end.case == name)
    wrong = [words for end in ends if end.case == name for words in end.wrong]
    row = f"{name:26} {len(times_s):3} runs   {times_s[0]:+.3f} {median(times_s):+.3f} {times_s[-1]:+.3f} s"
    return "\n      ! ".join([row, *(f"{wrong.count(words)} x {words}" for words in dict.fromkeys(wrong))])


def one(bench: Bench, case: Case, folder: Path) -> End:
    folder.mkdir()
    scenario = HOSTS / f"{case.host}.toml"
    if case.host == "everything":
        scenario = folder / "everything.toml"
        scenario.write_text(EVERYTHING)
    launchers = [*(stage.on_host(scenario) if case.host else ()), *(stage.on_dead_mount() if case.dead_mount else ())]
    probe = [*bench.probe, "check", "--budget", f"{BUDGET_S:g}s", "--format", "json", "--state", str(folder / "state")]
    probe += ["--log", str(folder / "health.log"), *case.arguments]
    cuda = bool(case.host or gpus())
    torch = stage.hanging_torch(case.torch, folder / "path", cuda=cuda) if case.torch else ""
    run = stage.run(launchers, probe, folder, unread=not case.hung, python_path=torch)
    expected = tomllib.loads(scenario.read_text()).get("expect", {}).get("cause", "") if case.host else ""
    return End(case.name, round(run.took_s - BUDGET_S, 4), tuple(broken_rules(case, run, expected)))


def broken_rules(case: Case, run: stage.Run, expected_cause: str) -> list[str]:
    wrong = [f"left behind: {words}" for words in run.left]
    if not EARLIEST_S <= run.took_s - BUDGET_S <= LATEST_S:
        wrong.append("not in time")
    if run.exit_code != case.exit_code:
        wrong.append(f"exit code {run.exit_code}, not {case.exit_code}")
    if "Traceback" in run.stderr or "internal error" in run.stderr:
        wrong.append(f"on stderr: {run.stderr.strip()[-300:]}")
    if case.hung:
        wrong += misnamed(case, run.report, expected_cause)
    return wrong


def misnamed(case: Case, report: bytes, expected_cause: str) -> list[str]:
    """What the report does not say of what hung."""
    try:
        said: dict[str, Any] = json.loads(report)
    except ValueError:
        return [f"no report, but {report[:200]!r}"]
    timeouts = {found["id"] for found in said["checks"] if found["status"] == "timeout"}
    wrong = [f"{check} is no timeout" for check in case.hung if check not in timeouts]
    first: dict[str, Any] = said["causes"][0] if said["causes"] else {"code": "none", "checks": []}
    named = {found["id"] for found in first["checks"]} & set(case.hung)
    if not named or (expected_cause and first["code"] != expected_cause):
        wrong.append(f"the first cause is {first['code']}: {first.get('summary', '')}")
    return wrong
