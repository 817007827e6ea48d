"""The worker protocol from the parent's side: whatever arrives on the reply pipes, no exception and no false pass."""

import json
from collections.abc import Iterable
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from probe import engine, plan
from probe.checks import load as load_checks
from probe.clock import Budget
from probe.context import Context
from probe.expect import expect
from probe.model import Config, Facts, Outcome, Record, Status
from probe.rig import Rig, Setup
from probe.state import StateFolder
from probe.worker.launch import Launch
from probe.worker.parent import Children, End, Exit, Line, Process

NODES = ("nvidiactl", "nvidia0", "nvidia1", "nvidia-uvm")
WORKERS = tuple(sorted({"busy", *(use.partition(".")[0] for check in load_checks().values() for use in check.uses)}))
READ_BY_PROBE_ITSELF = {"torch.build", "device.environment"}
"""Pass without a worker's word: torch/version.py and our own environment say enough."""
KEYS = ("step", "error", "import", "init", "gpus", "devices", "memory", "processes", "utilization", "compute_mode",
        "context", "kernel", "count", "tensor", "arch", "open:/dev/nvidia0", "statvfs:/dev/shm",
        "text:/proc/driver/nvidia/version", "gpus:/proc/driver/nvidia/gpus")  # fmt: skip


class NoChildren(Children):
    """Starts nobody: what they would say is handed in."""

    def start(self, program: str, job: Any, **options: Any) -> Process:
        return Process(options["worker"], options.get("target", ""))

    def fork(self, zygote: Process, job: Any, **options: Any) -> Process:
        return Process(options["worker"], options["target"], zygote)


def heard(lines: Iterable[tuple[str, bytes]], *, gpus: bool) -> list[Outcome]:
    """The outcomes of all checks of a run whose workers say `lines`, then end with status 0."""
    outcomes: list[Outcome] = []

    async def main() -> None:
        facts = Facts(nodes=NODES if gpus else (), torch_cuda="12.8" if gpus else None)
        expected = expect(facts)
        made = plan.make(Config(), expected, load_checks())
        torch = {"version": "2.9.0", "cuda": facts.torch_cuda, "git_version": "abc"}
        context = Context(expected=expected, facts=facts, torch=torch)
        launch = Launch(NoChildren(), Budget(0.0, 1e9))
        processes = {worker: Process(worker, "") for worker in WORKERS}
        launch.processes.update({worker: process for worker, process in processes.items() if worker != "busy"})
        setup = Setup(
            plan=made, computing=gpus, cpu_workers=0 if gpus else 1, test_busy=False, mps_pipe="/no", visible=None
        )
        rig = Rig(setup, launch, context, StateFolder("/nonexistent/state"))

        async def hear() -> None:
            for worker, line in lines:
                rig.dispatch([Line(processes[worker], line)])
            await anyio.sleep(1)
            rig.dispatch([End(process, Exit(status=0)) for process in processes.values()])

        rig._pump = hear  # type: ignore[method-assign]
        times = engine.Times(already_s=0.0, kill_s=8.0, end_s=8.7)
        await engine.run(made, context, outcomes.append, times, background=rig.run)

    anyio.run(main, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})
    return outcomes


def answered(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those of checks that rest on what a worker says, and not on what this process reads itself."""
    checks = load_checks()
    return [outcome for outcome in outcomes if checks[outcome.id].uses and outcome.id not in READ_BY_PROBE_ITSELF]


def is_record(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
NAMES = ("gpus", "pending", "uuid", "uuids", "names", "name", "mig", "total_bytes", "used_bytes", "free_bytes", "count",
         "percent", "exclusive", "size_bytes", "major", "minor", "content", "version", "file", "driver_cuda", "missing",
         "words", "dtypes", "arch_list", "capability", "threads", "wrong", "elapsed_s")  # fmt: skip
GPU = "gpu:GPU-00000000-0000-0000-0000-000000000001"
data = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=10), anything, max_size=6)
near_records = st.fixed_dictionaries(
    {"key": st.sampled_from(KEYS)},
    optional={
        "target": st.sampled_from(["", GPU, "cpu:0", "gpu:*"]) | anything,
        "code": st.sampled_from([0, 1, 3, 18, 999]) | anything,
        "text": st.text(max_size=20) | anything,
        "elapsed_s": anything,
        "data": data | anything,
    },
).map(lambda record: json.dumps(record).encode())
records = st.builds(
    Record,
    key=st.sampled_from(KEYS),
    target=st.sampled_from(["", GPU, "cpu:0"]),
    code=st.none() | st.sampled_from([0, 1, 3, 18, 999, -1]),
    text=st.text(max_size=20),
    elapsed_s=st.floats(0, 10),
    data=data,
).map(msgspec.json.encode)
workers = st.sampled_from(WORKERS)
garbage = (st.binary(max_size=200) | near_records | anything.map(lambda value: json.dumps(value).encode())).filter(
    lambda line: not is_record(line)
)


@pytest.mark.parametrize("gpus", [True, False], ids=["gpus", "cpu"])
@settings(max_examples=60)
@given(lines=st.lists(st.tuples(workers, garbage), max_size=8))
def test_garbage_is_no_answer(gpus: bool, lines: list[tuple[str, bytes]]) -> None:
    """Random bytes, other JSON, records with a wrong type in them: nothing that rests on a worker passes."""
    outcomes = heard(lines, gpus=gpus)
    assert {outcome.id for outcome in answered(outcomes) if outcome.status in (Status.PASS, Status.WARN)} == set()


@pytest.mark.parametrize("gpus", [True, False], ids=["gpus", "cpu"])
@settings(max_examples=60)
@given(lines=st.lists(st.tuples(workers, records | near_records), max_size=8))
def test_no_record_makes_an_exception(gpus: bool, lines: list[tuple[str, bytes]]) -> None:
    """Records of the right shape with anything in them: every planned check has its outcome, each target once."""
    outcomes = heard(lines, gpus=gpus)
    assert {outcome.id for outcome in outcomes} == {
        name for name, check in load_checks().items() if "readiness" in check.profiles
    }
    assert len({(outcome.id, outcome.target) for outcome in outcomes}) == len(outcomes)


def test_silence_is_no_health() -> None:
    """Every worker ends with status 0 and not a word: nothing that was asked has passed."""
    for gpus in (True, False):
        asked = answered(heard([], gpus=gpus))
        assert {outcome.status for outcome in asked} <= {Status.UNKNOWN, Status.SKIP}
        assert any(outcome.status is Status.UNKNOWN for outcome in asked)
