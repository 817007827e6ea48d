"""The children of one run, from their first word to their last: who is started when, and what their ends mean.

::

    launched before the loop:   zygote     nvml      cuda (list)      files
                                  |          |           |              |
    arrange():                    |    which GPUs? ------+--------------+   (1.5 s for NVML, then /proc, then CUDA)
                                  |    which are busy?                      (once, under the GPU test's lock)
                                  |          +--> cuda gpu:A   cuda gpu:B ...
    on demand of a check:         +--> torch gpu:A   torch gpu:B ...

`pump` is the one task that hears them all. Every end is filed with `Answers`, so nobody waits for a dead child.
Over 300 lines because who is started when, and what every end means to whom, must be read together to be believed.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import msgspec
from msgspec import Struct

from probe.busy import NOTHING_SEEN, Evidence, busy
from probe.clock import Budget
from probe.context import TIMEOUT_BEFORE_GPUS, Context, Target, nvml_refusal
from probe.model import Finding, NoAnswer, Plan, Record, Scalar, Status, skipped, unknown
from probe.state import StateFolder
from probe.worker.ending import CRASHES, ending
from probe.worker.launch import FORKED, GPU_FOLDER, Launch
from probe.worker.parent import Children, End, Event, Line, Process

NVML_LIST_S = 1.5
LOCK_WAIT_S = 1.0
LOCK_POLL_S = 0.05
MAX_OUTPUT_BYTES = 65536
OF_A_USER = ("HOME", "LOGNAME", "USER")
"""Not the caller's for a program that runs as another user: `worker/exec.py` sets them anew, unless they are given."""


WORKERS = ("files", "nvml", "cuda", "torch", "smi")
"""Those that are started before the loop, if at all."""


class Setup(Struct, frozen=True):
    """What the rig needs to know of the plan and the settings."""

    plan: Plan
    computing: bool
    """Some rung will make a context on a GPU."""
    cpu_workers: int
    """Rung 4 runs on this many CPU workers instead; 0: on GPUs."""
    test_busy: bool
    mps_pipe: str
    visible: str | None
    """CUDA_VISIBLE_DEVICES as the user set it, if not empty."""


class Gpu(Struct, frozen=True):
    """One GPU as NVML or the kernel module lists it."""

    uuid: str
    name: str = ""
    mig: tuple[str, ...] = ()
    """The UUIDs of its MIG instances, when MIG is on."""

    @property
    def target(self) -> str:
        return f"gpu:{self.uuid}"


class Rig:
    def __init__(self, setup: Setup, launch: Launch, context: Context, state: StateFolder) -> None:
        self._setup = setup
        self._launch = launch
        self._children: Children = launch.children
        self._budget: Budget = launch.budget
        self._context = context
        self._answers = context.answers
        self._state = state
        self._errors: dict[Process, str] = {}
        self._wanted: set[tuple[str, str]] = set()
        self._commands: dict[str, Process] = {}
        """By the check that runs it."""
        self._targets: tuple[Target, ...] = ()
        self._holes = {child.target for child in context.stuck if child.target}
        """Targets in which a child of an earlier run is stuck: no second one is started there."""
        self._stopped = False
        self._oom_kills = self._count_oom_kills()
        self._answers.wanted, self._answers.unwanted = self._want, self._unwant
        for worker, error in launch.failures.items():
            self._answers.refuse(worker, "", _cannot_start(worker, error))
        for child in context.stuck:
            self._refuse_stuck(child.worker, child.target, child.pid)
        for worker in WORKERS:  # one that nobody had started answers nobody
            if worker not in launch.processes:
                self._answers.refuse(worker, "", unknown(f"{worker}: was not asked", reason="silent"))
        for worker in FORKED:
            if "torch" not in launch.processes:
                self._answers.refuse(worker, "", unknown(f"{worker}: nothing to fork it from", reason="silent"))

    def _refuse_stuck(self, worker: str, target: str, pid: int) -> None:
        """No child is started into the hole that an earlier one never came out of."""
        finding = skipped(f"not started: pid {pid} of an earlier run is stuck there (device.stuck)")
        for name in ("cuda", "torch") if target.startswith(("gpu:", "cpu:")) else (worker,):
            self._answers.refuse(name, target, finding)

    async def run(self) -> None:
        """Hear the children and decide what they are for, until cancelled; a defect in here ends every wait."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._pump)
                tasks.start_soon(self._arrange)
        except Exception as error:  # noqa: BLE001 - told to everybody who waits, instead of a run without a verdict
            finding = unknown(f"probe's own rig failed: {error!r}", reason="internal")
            self._answers.give_up(finding)
            self._context.gpus.fail(finding)
            self._context.testable.fail(finding)

    # -- hearing ------------------------------------------------------------------------------------------------------

    async def _pump(self) -> None:
        while True:
            await anyio.wait_readable(self._children.fd)
            self.dispatch(self._children.poll())

    def dispatch(self, events: list[Event]) -> None:
        """File what children said and which of them ended."""
        for event in events:
            if isinstance(event, Line):
                self._heard(event)
            else:
                self._ended(event)

    def _heard(self, event: Line) -> None:
        process = event.process
        try:
            record = msgspec.json.decode(event.line, type=Record)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return  # not ours: a library printed on the reply pipe; the answer that is missing will be missed
        if record.key == "error":
            self._errors[process] = record.text
        else:
            self._answers.put(process.worker, process.target, record)

    def _ended(self, event: End) -> None:
        process = event.process
        elapsed_s = time.monotonic() - process.started_at
        before, after = self._oom_kills, self._count_oom_kills()
        oom_kills = None if before is None or after is None else after - before

        def describe(step: str) -> Finding:
            return ending(
                process.worker,
                event.exit,
                step=step,
                elapsed_s=elapsed_s,
                killed=process.killed,
                flooded=process.flooded,
                error=self._errors.get(process, ""),
                tail=bytes(process.tail),
                oom_kills=oom_kills,
            )

        if process.worker == "nvml" and not process.target and event.exit.signal in CRASHES:
            self._ask_one_by_one()
        if process.raw and event.exit.status is not None and not (process.killed or process.flooded):
            self._answers.put(process.worker, process.target, _output(process, event.exit.status))
        self._answers.end(process.worker, process.target, describe)

    def _ask_one_by_one(self) -> None:
        """NVML crashed on one GPU and took the others' answers with it: ask each in a process of its own."""
        getters = self._launch.nvml_getters(self._setup.plan.uses, computing=self._setup.computing)
        listed = self._answers.peek("nvml", "gpus")
        for row in listed.data["gpus"] if listed and not self._stopped else ():
            target = f"gpu:{row['uuid']}"
            left = [getter for getter in getters if row["uuid"] and not self._answers.peek("nvml", getter, target)]
            if left:
                self._answers.separate("nvml", target)
                self._start("nvml", {"getters": left, "only": row["uuid"]}, target, {"CUDA_VISIBLE_DEVICES": None})

    def _count_oom_kills(self) -> int | None:
        """The oom_kill count of this container's cgroup; None where there is none to read."""
        for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
            try:
                fields = dict(line.split() for line in self._context.host.read(path).splitlines())
                return int(fields.get("oom_kill", 0))
            except (OSError, ValueError):
                continue
        return None

    # -- which GPUs ---------------------------------------------------------------------------------------------------

    async def _arrange(self) -> None:
        context, setup = self._context, self._setup
        if setup.cpu_workers:
            context.testable.set(tuple(Target(f"cpu:{n}") for n in range(setup.cpu_workers)))
        try:
            gpus = await self._find_gpus()
        except NoAnswer as reason:
            context.gpus.fail(reason.finding)
            context.testable.fail(reason.finding)
            return
        context.gpus.set(tuple(Target(gpu.target, product=gpu.name) for gpu in gpus))
        if setup.cpu_workers or not setup.computing:
            context.testable.set(())
            return
        targets = self._targets = await self._visible(gpus)
        for target in targets:
            self._answers.separate("cuda", target.name)
        context.testable.set(targets)
        await self._judge(targets)

    async def _find_gpus(self) -> tuple[Gpu, ...]:
        """Ask NVML, the kernel module and CUDA, in this order; raise NoAnswer with the last one's reason."""
        gpus: list[Gpu] = []
        refused: list[dict[str, Any]] = []
        pending = True
        with anyio.move_on_after(self._budget.left_s(NVML_LIST_S)):
            try:
                listed = await self._answers.get("nvml", "gpus")
                rows = listed.data["gpus"]
                gpus += [Gpu(row["uuid"], row["name"], tuple(row["mig"])) for row in rows if row["uuid"]]
                refused = [row for row in rows if not row["uuid"]]
                pending = bool(listed.data["pending"])
            except NoAnswer:
                pass
        if pending or refused:
            known = {gpu.uuid for gpu in gpus}
            others = [gpu for gpu in await self._gpus_of_the_module() if gpu.uuid not in known]
            if not pending and len(others) == len(refused):  # so these are the ones that NVML did not attach
                for gpu, row in zip(others, refused, strict=True):
                    record = Record("handle", code=row["code"], text=row["text"])
                    self._answers.refuse("nvml", gpu.target, nvml_refusal("handle", record))
            gpus += others
        if gpus or not pending:
            return tuple(gpus)
        listed = await self._answers.get("cuda", "devices")
        names = zip(listed.data["uuids"], listed.data["names"], strict=True)
        return tuple(Gpu(uuid, name) for uuid, name in names)

    async def _gpus_of_the_module(self) -> list[Gpu]:
        try:
            with anyio.move_on_after(0.5):
                listed = await self._answers.get("files", f"gpus:{GPU_FOLDER}")
                return [Gpu(row["uuid"], row["name"]) for row in listed.data.get("gpus", ()) if row["uuid"]]
        except NoAnswer:
            pass
        return []

    async def _visible(self, gpus: tuple[Gpu, ...]) -> tuple[Target, ...]:
        """What rungs 3 and 4 would compute on: MIG instances before their GPU, and only what the user lets CUDA see."""
        targets = [
            Target(f"gpu:{uuid}", product=gpu.name, skip=None) for gpu in gpus for uuid in gpu.mig or (gpu.uuid,)
        ]
        if self._setup.visible is None:
            return tuple(targets)
        try:
            named = {_bare(uuid) for uuid in (await self._answers.get("cuda", "devices")).data["uuids"]}
        except NoAnswer:
            named = set()
        for target in targets:
            if not named:
                target.skip.set("needs cuda.init")
            elif _bare(target.name) not in named:
                target.skip.set("hidden by CUDA_VISIBLE_DEVICES")
        return tuple(targets)

    # -- which are busy -----------------------------------------------------------------------------------------------

    async def _judge(self, targets: tuple[Target, ...]) -> None:
        """Take the GPU test's lock, then say of each target whether it may be touched, as soon as that is known.

        Decided once, before any context of ours exists on that GPU; one that NVML hangs on holds up no other.
        """
        undecided = [target for target in targets if not target.skip.settled]
        worker = "nvml"
        if undecided and not self._state.try_gpu_lock():
            if not await self._wait_for_lock():
                for target in undecided:
                    target.skip.set("another probe is testing")
                return
            worker = "busy"  # what NVML said before we held the lock was the other probe's work: ask it anew
            self._launch.nvml((), computing=True, worker=worker)
            if error := self._launch.failures.get(worker):
                self._answers.refuse(worker, "", _cannot_start(worker, error))
        async with anyio.create_task_group() as tasks:
            for target in undecided:
                tasks.start_soon(self._judge_one, target, worker)
        reasons = [reason for target in targets if (reason := await _reason(target)) is not None]
        if targets and all(reasons) and len(reasons) == len(targets):
            self._nothing_to_compute_on(reasons[0])

    async def _judge_one(self, target: Target, worker: str) -> None:
        if not target.skip.settled:
            try:
                signs = "" if self._setup.test_busy else busy(await self._evidence(worker, target.name))
            except NoAnswer as reason:
                target.skip.fail(reason.finding)
                return
            said = f"not known whether busy ({signs})" if signs == NOTHING_SEEN else f"busy ({signs})"
            target.skip.set(said if signs else "")
        if not await target.skip.get():
            self._start_cuda(target)

    async def _wait_for_lock(self) -> bool:
        with anyio.move_on_after(LOCK_WAIT_S):
            while not self._state.try_gpu_lock():  # noqa: ASYNC110 - another process holds it: there is no event
                await anyio.sleep(LOCK_POLL_S)
            return True
        return False

    async def _mps(self) -> bool:
        try:
            return (await self._answers.get("files", f"exists:{self._setup.mps_pipe}")).code == 0
        except NoAnswer:
            return False

    async def _evidence(self, worker: str, target: str) -> Evidence:
        """What NVML says of one GPU; raise NoAnswer when it hangs or crashes on this one alone: no sign of a job."""
        seen: dict[str, Mapping[str, object]] = {}
        for getter in ("memory", "processes", "utilization", "compute_mode"):
            try:
                record = await self._answers.get(worker, getter, target)
            except NoAnswer as reason:
                if reason.finding.status is Status.TIMEOUT and self._answers.peek(worker, "init"):
                    raise NoAnswer(self._unobserved(target)) from None
                if reason.finding.status is Status.FAIL and self._answers.peek(worker, "gpus"):
                    raise
                continue
            if record.code == 0:
                seen[getter] = record.data
        memory = seen.get("memory", {})
        return msgspec.convert(
            {
                "processes": seen.get("processes", {}).get("count"),
                "used_bytes": memory.get("used_bytes"),
                "free_bytes": memory.get("free_bytes"),
                "utilization_percent": seen.get("utilization", {}).get("percent"),
                "exclusive": seen.get("compute_mode", {}).get("exclusive"),
                "mps": await self._mps(),
            },
            Evidence,
        )

    # -- computing ----------------------------------------------------------------------------------------------------

    def _nothing_to_compute_on(self, reason: str) -> None:
        """No use for torch: its import is heavy, and the job on the GPUs wants the CPU too."""
        if "model" in self._setup.plan.workers:  # it may be one for the CPU
            return
        for worker in ("torch", "nccl"):
            self._answers.refuse(worker, "", skipped(f"no GPU to compute on: {reason}"))
        if zygote := self._launch.processes.get("torch"):
            zygote.kill()

    def _start_cuda(self, target: Target) -> None:
        """Rung 3 of one GPU, in a process that sees no other."""
        if "cuda" not in self._setup.plan.workers or self._stopped or target.name in self._holes:
            return
        environment = {"CUDA_VISIBLE_DEVICES": target.name.partition(":")[2], "CUDA_CACHE_DISABLE": "1"}
        self._start("cuda", {"task": "test", "target": target.name}, target.name, environment)

    def _start(self, worker: str, job: Mapping[str, Any], target: str, environment: Mapping[str, str | None]) -> None:
        """Start the worker for one GPU; where it cannot be started, that is its answer."""
        try:
            self._children.start(
                worker, job, worker=worker, target=target, limit_s=self._launch.limit_s(), environment=environment
            )
        except OSError as error:
            self._answers.refuse(worker, target, _cannot_start(worker, error))

    def _want(self, worker: str, target: str) -> None:
        """A check waits for this worker: start it now, once, if it is one that is started on demand."""
        if not target or (worker, target) in self._wanted or self._stopped or target in self._holes:
            return
        if worker in FORKED and (zygote := self._launch.processes.get("torch")) is not None:
            self._wanted.add((worker, target))
            self._fork(zygote, worker, target)
        elif worker == "command":
            self._wanted.add((worker, target))
            self._command(target)

    def _unwant(self, worker: str, target: str) -> None:
        """The check's own time is up: a program of the user's has no limit inside, and is killed here."""
        if worker == "command" and target in self._commands:
            self._commands[target].kill()

    def _fork(self, zygote: Process, worker: str, target: str) -> None:
        self._answers.separate(worker, target)
        about, _, gpu = target.rpartition("@")
        kind, _, uuid = gpu.partition(":")
        job = {"target": target, "device": {"gpu": "cuda", "cpu": "cpu"}.get(kind, kind), **self._options(about)}
        self._children.fork(
            zygote,
            job,
            worker=worker,
            target=target,
            limit_s=min(self._launch.limit_s(), self._limit_s(about)),
            environment={"CUDA_VISIBLE_DEVICES": uuid} if kind == "gpu" else {},
        )

    def _command(self, check_id: str) -> None:
        """A program that the user named, as the user named it."""
        options = self._options(check_id)
        argv = options["argv"] or ("/bin/sh", "-c", options["shell"])
        of_the_caller = dict.fromkeys(OF_A_USER) if options["user"] else {}
        self._answers.put("command", check_id, Record("step", text=argv[0]))
        try:
            self._commands[check_id] = self._children.start_foreign(
                argv,
                worker="command",
                target=check_id,
                cwd=options["cwd"],
                environment={**of_the_caller, **options["env"]},
                user=options["user"],
            )
        except (OSError, ValueError) as error:  # ValueError: what no argument can hold
            self._answers.refuse("command", check_id, _cannot_start("command", error))

    def _options(self, check_id: str) -> Mapping[str, Any]:
        return next((job.options for job in self._setup.plan.jobs if job.id == check_id), {})

    def _limit_s(self, check_id: str) -> float:
        """Of a child, so that it can say where it hung before its check's own time is up."""
        limits = [job.timeout_s for job in self._setup.plan.jobs if job.id == check_id]
        return 0.9 * limits[0] if limits and limits[0] else math.inf

    # -- ending -------------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """The time is up: kill all children, hear their ends, and say of the rest that they did not go."""
        self._stopped = True
        self._children.kill()
        await anyio.sleep(max(0.0, self._budget.left_s(self._budget.reaped_s) - 0.02))
        for process in self._children.alive:
            self._answers.end(process.worker, process.target, self._not_gone(process))
        self._context.gpus.fail(TIMEOUT_BEFORE_GPUS)
        self._context.testable.fail(TIMEOUT_BEFORE_GPUS)
        for target in self._targets:
            target.skip.fail(self._unobserved(target.name))

    def _unobserved(self, target: str) -> Finding:
        """Not skipped as busy: a GPU that NVML hangs on was not seen to be fit, and that is the finding."""
        step = self._answers.step("nvml", target)
        summary = f"NVML did not say in time whether this GPU is busy{f', in {step}' if step else ''}"
        return Finding(Status.TIMEOUT, summary, {"step": step, "worker": "nvml", "reason": "unobserved"})

    def _not_gone(self, process: Process) -> Callable[[str], Finding]:
        """One that is still to write something was not killed."""
        elapsed_s = time.monotonic() - process.started_at
        leaving = process.inbox < 0

        def describe(step: str) -> Finding:
            summary = f"no answer within {elapsed_s:.1f} s{f', in {step}' if step else ''}"
            if leaving:
                summary += f"; its process {process.pid} was killed and has not gone"
            data: dict[str, Scalar] = {"step": step, "worker": process.worker}
            return Finding(Status.TIMEOUT, summary, data | ({"leaving": True} if leaving else {}))

        return describe


def _output(process: Process, status: int) -> Record:
    """What a foreign program printed, as its one answer; the code is its exit status."""
    printed = bytes(process.output[:MAX_OUTPUT_BYTES]).decode("utf-8", "replace")
    stderr = bytes(process.tail).decode("utf-8", "replace")
    elapsed_s = time.monotonic() - process.started_at
    return Record("output", code=status, text=printed, elapsed_s=elapsed_s, data={"stderr": stderr})


async def _reason(target: Target) -> str | None:
    """Why it is not touched, empty if it is; None where that could not be told."""
    try:
        return await target.skip.get()
    except NoAnswer:
        return None


def _cannot_start(worker: str, error: Exception) -> Finding:
    return unknown(f"{worker}: its process cannot be started: {error}", reason="cannot_start")


def _bare(uuid: str) -> str:
    """A UUID without the prefixes by which NVML, CUDA and our targets tell GPUs from MIG instances."""
    return uuid.removeprefix("gpu:").removeprefix("GPU-").removeprefix("MIG-")
