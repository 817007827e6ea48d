"""One run of ``probe bench``, from its settings to its exit.

::

    look        NVML: which GPUs, busy?    torch by file      the baseline is of this hardware?
    startup     a fresh process each time, and the CUDA driver alone beside it
    checks      probe check --format json, as anybody would run it
    zygote      imports torch once --fork--> matmul, memory: every GPU at once, a process each
                                             host:         one GPU after another
                                             peer:         one process that sees all GPUs; on CPUs a rank each
                                             collective:   a rank for each GPU
    meter       all the while: clocks, throttle reasons, temperature, watts of each GPU
    leave       kill and reap -> limits, comparison -> files by rename -> table -> os._exit

Whoever ends the run - its end, a net, a signal - ends it through `Session.leave`, with what is known. Over 300 lines
because all that may happen between the settings and the exit is one sequence, and stands here in its order.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from msgspec.structs import replace

from probe import expect, torchfile
from probe.attempt import CURRENT
from probe.clock import SMALLEST_BUDGET_S, Budget
from probe.config import Loaded, UsageError
from probe.measure import baseline, costs, delivery, filing, machine, shares
from probe.measure.conditions import Meter
from probe.measure.ending import Ending, defect, reason_of
from probe.measure.model import Bench, Done, Gpu, Program, Provenance, Result
from probe.measure.progress import Progress
from probe.measure.request import Request
from probe.measure.talk import Talk
from probe.model import Expectation, Gpus, Record, Status
from probe.output import write
from probe.state import Leaving, StateFolder, default_path
from probe.worker.launch import ONE_THREAD, mps_pipe
from probe.worker.parent import Children, Process

PROGRAMS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs")
LOOK_S = 10.0
"""NVML attaches GPUs without persistence mode at 1 to 3 s each."""
SETTLE_S = 1.2
"""NVML's utilisation is of a sampling period up to a second long (nvmlUtilization_t): our own last run shows in it."""
SETTLES = 3
START_FAIR_S = 10.0
"""Who starts, with torch or the driver, and had less is not blamed: an import took 4.7 s on an H100 host, alone."""
IMPORT_S = 60.0
"""The slowest import of torch that anybody waits for: from a cold network disk it took 20 s."""
CHECK_ENDS_S = 0.5
"""After its budget, until `probe check` is gone, on a busy machine."""
TEARDOWN_S = 2.0
LOCK_WAIT_S, LOCK_POLL_S = 1.0, 0.05
"""As long as `probe check` waits for it."""
MOST_REPEATS = 5
CPU_RANKS = 2


class Refused(Exception):
    """There is nothing to measure on, or nothing that may be touched."""


class Failed(Exception):
    """A program could not run."""


def argv_of_check(loaded: Loaded, budget_s: float, state: str) -> list[str]:
    """The checks as anybody would run them with these settings; what comes of the environment is inherited."""
    config = loaded.config
    argv = [sys.executable, "-P", "-m", "probe", "check", "--format", "json", "--exit-codes", "shell"]
    argv += ["--busy", "test", "--budget", f"{budget_s:.1f}s", "--state", state, "--log", "off"]
    argv += ["--device", config.device, "--python", config.python, "--gpus-expect", _said(config.gpus_expect)]
    return argv + (["--config", os.path.abspath(loaded.path)] if loaded.path else [])  # it runs in another folder


def _said(gpus: Gpus) -> str:
    """As `--gpus-expect` takes it."""
    return "auto" if gpus is None else str(gpus) if isinstance(gpus, int) else ",".join(gpus)


class NoTime(Failed):
    """A program was ended by our own clock, before anybody may be blamed for not being done."""


class Session:
    def __init__(self, request: Request) -> None:
        self.request = request
        self.config = request.loaded.config
        self.budget = Budget(CURRENT.budget.began_at, request.time_s)
        self.talk = Talk(Children())
        self.meter = Meter()
        self.talk.on_record = self.meter.take
        self.progress = Progress(request.entries)
        self.state = StateFolder(self.config.state or default_path(os.environ))
        self.folder = ""
        self.answers: dict[tuple[str, str], Record] = {}
        self.site = torchfile.find(self.config.python, os.environ).site
        self.gpus: list[Gpu] = []
        self.workers = 0
        self.zygote: Process | None = None
        self.torch = ""
        """Its version, as it says itself."""
        self.results: list[Result] = []
        self.programs: list[Program] = []
        self.notes: list[str] = []
        self._broken_off = False
        """A program could not run to its end."""
        self._running: tuple[shares.Entry, float, float] | None = None
        self._spans: dict[str, tuple[float, float]] = {}
        self._left_out: list[str] = []
        self._current: list[Process] = []
        """Those of the running program whose results are not filed yet."""
        self._samples: dict[str, list[float]] = {}
        """Of the running program, where each process gives one sample of each case."""
        self._seed = int.from_bytes(os.urandom(4), "little")
        """Of the words that are copied: the ranks of one group know each other's."""
        self._ending = Ending()

    def go(self) -> NoReturn:
        """Measure, report and leave the process."""
        CURRENT.leave = self.leave
        CURRENT.watch(self.budget)
        self.talk.on_tick = self.progress.tick
        self.folder = tempfile.mkdtemp(prefix="probe-bench-")
        try:
            self._look()
            if self.request.baseline is not None:
                baseline.refuse_other_hosts(self.request.baseline, (), self.request.compare)
                baseline.refuse_other_hardware(self.request.baseline, self.provenance(), self.request.compare)
            self._measure()
        except (Refused, Failed) as reason:
            self._refuse(str(reason))
        except UsageError:
            self._tidy()
            raise
        except Exception as error:  # noqa: BLE001 - a defect of probe: what is measured is kept, and the defect said
            self.leave(f"broken off ({defect(error)})")
        self.leave("")
        raise AssertionError("unreachable: leave does not return")

    def _measure(self) -> None:
        self._start_meter()
        entries = self.request.entries
        for at, entry in enumerate(entries):
            self._run(entry, [other for other in entries[at + 1 :] if not self._does_not_apply(other)])
        if self.meter.readings:
            self.meter.wait_for_another(self.talk, self.budget.left_s(self.budget.kill_s))

    # -- what there is ------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        facts = expect.gather(
            os.environ,
            device=self.config.device,
            gpus_expect=self.config.gpus_expect,
            torch_cuda=self.site.cuda if self.site else None,
            torch_hip=self.site.hip if self.site else None,
        )
        expected = expect.expect(facts)
        if not expected.gpus:
            named = self.config.device.partition(":")[2]
            self.workers = int(named) if named else CPU_RANKS
            return
        self._take_lock()
        busy = self._busy(expected, facts.cuda_visible or None)
        for _ in range(SETTLES - 1):
            if not busy or self.config.busy == "test":
                return
            self.talk.until(lambda: False, time.monotonic() + SETTLE_S)
            busy = self._busy(expected, facts.cuda_visible or None)
        if busy and self.config.busy != "test":
            more = f" (and {len(busy) - 1} more)" if len(busy) > 1 else ""
            raise Refused(f"{busy[0]}{more}; --busy test measures all the same, beside the job")

    def _busy(self, expected: Expectation, visible: str | None) -> list[str]:
        """Ask NVML anew; which GPUs have a job on them, each with the signs of it."""
        self._ask_nvml(visible)
        self._must_be_there(expected)
        signs = {gpu.target: machine.signs_of_work(gpu, self.answers, mps=self._mps()) for gpu in self.gpus}
        return [f"{target} is busy: {sign}" for target, sign in signs.items() if sign]

    def _take_lock(self) -> None:
        """Of the GPU test: two probes would measure each other."""
        until = time.monotonic() + LOCK_WAIT_S
        while not self.state.try_gpu_lock():
            if time.monotonic() > until:
                raise Refused("another probe is testing the GPUs")
            self.talk.until(lambda: False, time.monotonic() + LOCK_POLL_S)

    def _ask_nvml(self, visible: str | None) -> None:
        nothing = {"CUDA_VISIBLE_DEVICES": None}
        nvml = self._start("nvml", {"getters": list(machine.GETTERS)}, worker="nvml", environment=nothing)
        asked = [nvml, self._start("files", {"exists": [mps_pipe(os.environ)]}, worker="files")]
        if visible is not None:
            asked.append(self._start("cuda", {"task": "list", "target": ""}, worker="cuda"))
        self.talk.ended(asked, time.monotonic() + self.budget.left_s(min(LOOK_S, self.budget.kill_s)))
        self.talk.end(asked, TEARDOWN_S)
        self.answers = {(one.key, one.target): one for each in asked for one in self.talk.heard[each].records}
        uuids = None
        if visible is not None:
            devices = self.answers.get(("devices", ""))
            uuids = devices.data["uuids"] if devices is not None and devices.code == 0 else []
        self.gpus = machine.visible(machine.gpus_of(self.answers), uuids)

    def _start(self, program: str, job: dict[str, Any], **options: Any) -> Process:
        try:
            return self.talk.start(program, job, limit_s=self._limit_s(), **options)
        except OSError as error:
            raise Failed(f"its process cannot be started: {error}") from error

    def _limit_s(self) -> float:
        return self.budget.left_s(self.budget.child_limit_s)

    def _mps(self) -> bool:
        found = self.answers.get((f"exists:{mps_pipe(os.environ)}", ""))
        return found is not None and found.code == 0

    def _must_be_there(self, expected: Expectation) -> None:
        if self.gpus:
            return
        init = self.answers.get(("init", ""))
        why = f"NVML says {init.code} ({init.text})" if init is not None and init.code else "NVML lists none to measure"
        raise Refused(
            f"no GPU: {why}, and one is expected because of {expected.reason}; {expected.how_to_say_otherwise}"
        )

    def _start_meter(self) -> None:
        if not self.gpus:
            return
        every_s = max(0.25, self.request.time_s / 500)
        job = {"watch": [gpu.uuid for gpu in self.gpus], "every_s": every_s}
        meter = self._start("nvml", job, worker="meter", environment={"CUDA_VISIBLE_DEVICES": None})
        self.meter.wait_for_another(self.talk, self._left_s(), lambda: self.talk.heard[meter].exit is not None)

    # -- one program --------------------------------------------------------------------------------------------------

    def _does_not_apply(self, entry: shares.Entry) -> str:
        """Why this program has nothing to do here; empty: it has."""
        if entry.gpu_only and not self.gpus:
            return "needs a GPU"
        if entry.together and max(len(self.gpus), self.workers) < 2:
            return "needs two GPUs" if self.gpus else "needs two workers (--device cpu:2)"
        if entry.together and any(gpu.uuid.startswith("MIG-") for gpu in self.gpus):
            return "MIG instances are not joined"
        return ""

    def _run(self, entry: shares.Entry, following: Sequence[shares.Entry]) -> None:
        self._left_out, self._current, self._samples = [], [], {}
        status, reason, share_s = Done.SKIP, self._does_not_apply(entry), 0.0
        began = time.monotonic()
        if not reason:
            self._running = (entry, began, share_s)
            self.progress.begin(entry.name)
            try:
                if entry.torch and shares.share_s(entry, following, self._left_s()):
                    self._zygote()  # in nobody's share: it serves all that follow
                began = time.monotonic()
                share_s = shares.share_s(entry, following, self._left_s())
                self._running = (entry, began, share_s)
                status, reason = self._result_of(entry, share_s)
            except NoTime as error:
                measured = any(one.program == entry.name for one in self.results)
                status, reason = Done.DONE if measured else Done.SKIP, f"no time: {error}"
                self._broken_off |= measured  # what it had no time to leave out by name is missing
            except Failed as error:
                status, reason, self._broken_off = Done.FAIL, str(error), True
        ended = time.monotonic()
        self._spans[entry.name] = (began, ended)
        done = self._program(entry, status, reason, share_s, ended - began)
        self.programs, self._running = [*self.programs, done], None  # at once, as in `_file_samples`
        self.progress.end(entry.name, status, reason, sum(one.program == entry.name for one in self.results))

    def _left_s(self) -> float:
        return shares.planned_s(self.budget.left_s(self.budget.kill_s))

    def _result_of(self, entry: shares.Entry, share_s: float) -> tuple[Done, str]:
        if not share_s:
            return Done.SKIP, "no time"
        wrong = self._steps()[entry.name](share_s)
        if wrong:
            return Done.FAIL, wrong
        if not any(one.program == entry.name for one in self.results):
            return Done.SKIP, "no time" if any("no time" in each for each in self._left_out) else "nothing measured"
        return Done.DONE, ""

    def _program(self, entry: shares.Entry, status: Done, reason: str, share_s: float, elapsed_s: float) -> Program:
        return Program(entry.name, status, reason, round(share_s, 3), round(elapsed_s, 3), tuple(self._left_out))

    def _steps(self) -> dict[str, Callable[[float], str]]:
        """By program: what runs it, given its share; it says what was wrong with the results, or ""."""
        return {
            "startup": self._startup,
            "checks": self._checks,
            "matmul": lambda share_s: self._on_each("matmul", share_s),
            "memory": lambda share_s: self._on_each("memory", share_s),
            "host": self._host,
            "peer": self._peer,
            "collective": lambda share_s: self._ranks("collective", share_s),
        }

    # -- programs of processes of their own ---------------------------------------------------------------------------

    def _startup(self, share_s: float) -> str:
        if self.site is None:
            raise Failed("torch not installed")
        until = time.monotonic() + share_s
        wrong: list[str] = []
        for _ in range(MOST_REPEATS):
            began = time.monotonic()
            try:
                wrong += self._one_startup(self.site, until + shares.GRACE_S)
            except NoTime:
                if not self._samples.get("import torch"):
                    raise
                break  # of the repetitions before there are samples
            if 2 * time.monotonic() - began > until:  # another would take as long
                break
        self._file_samples("startup")
        return ", ".join(f"{case} computed wrongly" for case in dict.fromkeys(wrong))

    def _file_samples(self, program: str) -> None:
        samples = self._samples.items()
        made = [filing.result(program, case, "", [[each] for each in seconds], 1.0, "s") for case, seconds in samples]
        self.results, self._samples = self.results + made, {}  # at once: a signal between would lose or double them

    def _one_startup(self, site: torchfile.TorchSite, until: float) -> list[str]:
        """One fresh process, and one of the driver alone; the phases that computed wrongly."""
        environment = {"CUDA_VISIBLE_DEVICES": self.gpus[0].uuid} if self.gpus else {}
        process = self._start(
            os.path.join(PROGRAMS, "startup"),
            {"device": "cuda" if self.gpus else "cpu"},
            worker="torch",
            python=site.python,
            version=site.python_version or (3, 9),
            environment=environment,
        )
        begun = self.meter.first_heard(process, "begun")
        self._finish([process], until)
        if (at := begun()) is not None:
            self._samples.setdefault("interpreter", []).append(at - process.started_at)
        phases = self.talk.heard[process].all("phase")
        for record in phases:
            self._samples.setdefault(record.text, []).append(record.elapsed_s)
        if self.gpus:
            self._driver_alone(until)
        return [record.text for record in phases if not record.data["verified"]]

    def _driver_alone(self, until: float) -> None:
        """The same without torch: what of the start-up is the driver's."""
        environment = {"CUDA_VISIBLE_DEVICES": self.gpus[0].uuid, "CUDA_CACHE_DISABLE": "1"}
        job = {"task": "test", "target": self.gpus[0].target}
        process = self._start("cuda", job, worker="cuda", environment=environment)
        self._finish([process], until)
        for record in self.talk.heard[process].records:
            if record.key in ("init", "context", "kernel") and record.code == 0:
                self._samples.setdefault(f"driver alone: {record.key}", []).append(record.elapsed_s)

    def _checks(self, share_s: float) -> str:
        """What each check costs, by its own report; the slowest target stands for a check."""
        until = time.monotonic() + share_s
        found = costs.Costs({}, [], "")
        for _ in range(MOST_REPEATS):
            began = time.monotonic()
            found = self._one_check(until)
            for name, seconds in found.seconds.items():
                self._samples.setdefault(name, []).append(seconds)
            if not found.seconds or 2 * time.monotonic() - began > until:
                break
        if found.complaint:
            self.notes.append(found.complaint)
        self._left_out += found.left_out
        self._file_samples("checks")
        return ""

    def _one_check(self, until: float) -> costs.Costs:
        budget_s = min(max(2.0, until - time.monotonic() + shares.GRACE_S), self._limit_s() - CHECK_ENDS_S)
        if budget_s < SMALLEST_BUDGET_S:
            raise NoTime("probe check needs a second")
        argv = argv_of_check(self.request.loaded, budget_s, os.path.join(self.folder, "state"))
        process = self.talk.start_foreign(argv, worker="checks")
        self._finish([process], time.monotonic() + budget_s + 1.0, must=False)
        try:
            report: dict[str, Any] = json.loads(bytes(process.output))
            return costs.read(report, budget_s)
        except (ValueError, KeyError, TypeError):
            if process.killed:
                raise NoTime(f"probe check was not done after {budget_s:.1f} s") from None
            said = bytes(process.tail).decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise Failed(f"probe check gave no report{f': {said[:200]}' if said else ''}") from None

    # -- programs forked from the process that has torch --------------------------------------------------------------

    def _zygote(self) -> Process:
        if self.zygote is not None and not self.zygote.gone:
            return self.zygote
        if self.site is None:
            raise Failed("torch not installed")
        if self.gpus and self.site.cuda is None:
            raise Failed(f"torch {self.site.version} is a CPU build")
        environment = {**ONE_THREAD, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "CUDA_CACHE_DISABLE": "1"}
        zygote = self._start(
            "zygote",
            {"programs": {"torch": os.path.join(PROGRAMS, "dispatch.py")}},
            worker="torch",
            python=self.site.python,
            version=self.site.python_version or (3, 9),
            environment=environment,
        )
        heard = self.talk.heard[zygote]
        until = time.monotonic() + min(IMPORT_S, self._limit_s())
        self.talk.until(lambda: heard.first("import") is not None or heard.exit is not None, until)
        imported = heard.first("import")
        if imported is None or imported.code:
            self.talk.end([zygote], TEARDOWN_S)
            if imported is not None:
                raise Failed(f"torch cannot be imported: {imported.text}")
            raise self._failure([zygote], START_FAIR_S, "torch cannot be imported: ")
        self.torch = str(imported.data.get("version", ""))
        self.zygote = zygote
        return zygote

    def _fork(self, program: str, job: dict[str, Any], uuids: Sequence[str], limit_s: float) -> Process:
        common = {"program": program, "device": "cuda" if self.gpus else "cpu", "seed": self._seed}
        target = str(job.get("target", ""))
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(uuids)} if uuids else {}
        return self.talk.fork(
            self._zygote(),
            {**common, **job},
            worker="torch",
            target=target,
            limit_s=min(limit_s, self._limit_s()),
            environment=environment,
        )

    def _on_each(self, program: str, share_s: float) -> str:
        """On every GPU at once, a process each; without GPUs in one process with all cores."""
        child_s, limit_s = shares.times(share_s)
        forked = []
        for gpu in self.gpus or (None,):
            job: dict[str, Any] = {"share_s": child_s, "target": gpu.target if gpu else "", "threads": machine.cores()}
            forked.append(self._fork(program, job, [gpu.uuid] if gpu else [], limit_s))
        return self._take_from(program, forked, limit_s, together=False)

    def _host(self, share_s: float) -> str:
        """One GPU after another: all at once they would share the memory of the host."""
        until = time.monotonic() + share_s
        wrong: list[str] = []
        failures: list[Failed] = []
        for at, gpu in enumerate(self.gpus):
            child_s, limit_s = shares.times((until - time.monotonic()) / (len(self.gpus) - at))
            job = {"share_s": child_s, "target": gpu.target, "bus_id": gpu.bus_id}
            try:
                wrong.append(self._take_from("host", [self._fork("host", job, [gpu.uuid], limit_s)], limit_s))
            except Failed as error:  # of this GPU; the next one is another
                failures.append(error)
        said = "; ".join(filter(None, [*map(str, failures), *wrong]))
        if failures:
            cut = all(isinstance(error, NoTime) for error in failures) and not any(wrong)
            raise (NoTime if cut else Failed)(said)
        return said

    def _peer(self, share_s: float) -> str:
        if not self.gpus:
            return self._ranks("peer", share_s)
        child_s, limit_s = shares.times(share_s)
        job = {"share_s": child_s, "world": len(self.gpus)}
        forked = [self._fork("peer", job, [gpu.uuid for gpu in self.gpus], limit_s)]
        return self._take_from("peer", forked, limit_s)

    def _ranks(self, program: str, share_s: float) -> str:
        """A rank for each GPU, or for each CPU worker; they meet in a file of ours."""
        child_s, limit_s = shares.times(share_s)
        world = len(self.gpus) or self.workers
        common = {
            "share_s": child_s,
            "world": world,
            "store": os.path.join(self.folder, f"{program}.store"),
            "group": os.path.join(PROGRAMS, "group.py"),
            "limit_s": limit_s,
            "threads": max(1, machine.cores() // world),
        }
        uuids = [gpu.uuid for gpu in self.gpus]
        forked = [self._fork(program, {**common, "rank": rank, "index": rank}, uuids, limit_s) for rank in range(world)]
        return self._take_from(program, forked, limit_s)

    def _finish(self, processes: Sequence[Process], until: float, *, must: bool = True) -> None:
        """Hear them out, until then or until their time is up; raise Failed unless each ended as it should."""
        until = min(until, time.monotonic() + self._limit_s())
        self.talk.ended(processes, until)
        self.talk.end(processes, TEARDOWN_S)
        if must and any(self.talk.problem(process) for process in processes):
            raise self._failure(processes, START_FAIR_S)

    def _failure(
        self, processes: Iterable[Process], fair_s: float, before: str = "", *, together: bool = True, after: str = ""
    ) -> Failed:
        """What to raise for those that did not end as they should; of a group that waits for each other the first.

        Whom our own clock ended within `fair_s`, or while it was still getting on, had no time: nobody's failure.
        """
        found = [(process, problem) for process in processes if (problem := self.talk.problem(process))]
        found.sort(key=lambda each: (each[0].killed, self.talk.heard[each[0]].ended_at))
        cut = [
            problem.status is Status.TIMEOUT
            and (self.talk.lived_s(process) < fair_s or self.talk.was_getting_on(process, shares.GRACE_S))
            for process, problem in found
        ]
        words = [f"{self._places().get(process.target, '')}{problem.summary}" for process, problem in found]
        said = before + "; ".join(filter(None, [*(words[:1] if together else words), after]))
        return NoTime(said) if all(cut) and not after else Failed(said)

    def _places(self) -> dict[str, str]:
        """What to put before words about one of several GPUs, by target."""
        return {gpu.target: f"GPU {at}: " for at, gpu in enumerate(self.gpus)} if len(self.gpus) > 1 else {}

    def _take_from(self, program: str, processes: Sequence[Process], limit_s: float, *, together: bool = True) -> str:
        """Results of processes that measured the same cases; what they say is kept even when one of them failed.

        `together`: they wait for each other, so that all are lost with one.
        """
        until = min(time.monotonic() + limit_s + 1.0, time.monotonic() + self._limit_s())
        self._current = list(processes)
        heard = [self.talk.heard[process] for process in processes]

        def over() -> bool:
            failed = any(each.exit is not None and each.exit.status != 0 for each in heard)
            return (together and failed) or all(each.exit is not None for each in heard)

        self.talk.until(over, until)
        self.talk.end(processes, TEARDOWN_S)
        wrong = "; ".join(self._keep(program, processes))
        if any(self.talk.problem(process) for process in processes):
            raise self._failure(processes, shares.GRACE_S, together=together, after=wrong)
        return wrong

    def _keep(self, program: str, processes: Iterable[Process]) -> list[str]:
        """File what was measured; what was wrong with it."""
        filed = filing.file(program, [self.talk.heard[process].records for process in processes], self._places())
        self.results, self._current = self.results + filed.results, []  # at once, as in `_file_samples`
        self._left_out += filed.left_out
        for record in filed.devices:
            self._describe(record)
        return filed.wrong

    def _describe(self, record: Record) -> None:
        """What torch says of a GPU, for its limits."""
        for at, gpu in enumerate(self.gpus):
            if gpu.target == record.target:
                data = record.data
                self.gpus[at] = replace(gpu, sms=data.get("sms"), capability=data.get("capability", ""))

    # -- leaving ------------------------------------------------------------------------------------------------------

    def leave(self, why: str) -> None:
        """Write what is known and leave; `why` as `Ending.leave` has it."""
        self._ending.leave(why, lambda: self._write(why), self._clear_up)

    def _clear_up(self) -> None:
        self.talk.children.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, why: str) -> int:
        """Everything that is known, as it was asked for; the exit code."""
        with suppress(Exception):  # a terminal that is gone, a defect of rich: neither is worth the results
            self.progress.stop()
        if why == "late":
            self.talk.children.kill()
        else:
            self.talk.children.reap(min(TEARDOWN_S, max(self.budget.left_s(self.budget.reaped_s), 0.05)))
        self._remember()
        if self._running is not None:
            entry, began, share_s = self._running
            self._file_samples(entry.name)
            self._keep(entry.name, self._current)
            reason = reason_of(why)
            self._spans[entry.name] = (began, time.monotonic())
            self.programs.append(self._program(entry, Done.FAIL, reason, share_s, time.monotonic() - began))
        have = {program.program for program in self.programs}
        self._left_out = []
        for entry in self.request.entries:
            if entry.name not in have:
                self.programs.append(self._program(entry, Done.SKIP, why or "no time", 0.0, 0.0))
        return delivery.write_all(self.request, self.report(why), self.budget, self._ending)

    def _remember(self) -> None:
        """Leave for the next run who has not gone."""
        survivors = self.talk.children.survivors()
        if survivors:
            now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
            leaving = tuple(Leaving(one.pid, one.start_ticks, one.worker, one.target, now_s) for one in survivors)
            self.state.save(leaving=self.state.load().leaving + leaving)

    def provenance(self) -> Provenance:
        gpus = [self.meter.with_link_seen(gpu) for gpu in self.gpus]
        return machine.provenance(gpus, workers=self.workers, answers=self.answers, site=self.site, version=self.torch)

    def report(self, why: str) -> Bench:
        """All that is known."""
        programs = [
            replace(program, conditions=self.meter.conditions(self.gpus, self._spans.get(program.program)))
            for program in self.programs
        ]
        known = delivery.Known(
            self.provenance(), tuple(programs), tuple(self.results), tuple(self.notes), self._broken_off
        )
        return delivery.report(self.request, known, self.budget, why)

    def _tidy(self) -> None:
        self.progress.stop()
        self._ending.begun = True
        self.talk.children.reap(TEARDOWN_S)
        self._remember()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _refuse(self, reason: str) -> NoReturn:
        """The report says so too: where it is to be, no older one must stay."""
        write(2, f"probe: nothing measured: {reason}\n".encode("utf-8", "replace"), time.monotonic() + 0.5)
        self.notes.append(f"nothing measured: {reason}")
        self.leave("refused")
        raise AssertionError("unreachable: leave does not return")
