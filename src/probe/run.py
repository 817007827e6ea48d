"""One run of ``probe check``, from its settings to its exit.

::

    prepare   the machine's signs, the past, torch found by file -> expectation -> plan
    launch    the children that can start at once        (only then is anyio imported)
    engine    the jobs
    finish    kill and reap -> report -> stdout -> log, by a child -> state -> stderr -> os._exit, inside the event loop

Whoever ends the run - the engine, a net, a signal - ends it through `Run.leave`: the same report of what is known. Over
300 lines because all that may happen between the settings and the exit is one sequence, and stands here in its order.
"""

import os
import re
import socket
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import NoReturn

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from probe import __version__, exits, expect, memory, plan, torchfile
from probe.attempt import CURRENT, INTERRUPTS, LAST_WORDS_S
from probe.clock import Budget
from probe.config import Loaded
from probe.model import (
    EVERY_GPU,
    Cause,
    Facts,
    Finding,
    Job,
    Outcome,
    Plan,
    Profile,
    Record,
    Report,
    Status,
    Verdict,
    unknown,
)
from probe.output import instead_of_report, write
from probe.report import formats
from probe.state import StateFolder, default_path, log_path
from probe.worker import launch
from probe.worker.parent import Children, End, Line, Process, Survivor

JUDGED_NODE = re.compile(r"nvidia(ctl|-uvm|\d+)")
"""The nodes that checks judge: no other is opened, since each of them can hang."""
TEARDOWN_S = 0.5
"""A killed CUDA process takes 0.2 s to go with 42 GB allocated (measured on an H100); not gone after this is noted."""
MAX_STDERR_BYTES = 512
LEAVE_S = 0.25
"""For a line in the log after the verdict: on a local disk it takes 2 ms."""
DEEDS = {"append": "log", "replace": "output"}
"""What the writing child is told to do (``worker/leave.py``), and what people call it."""


class Request(Struct, frozen=True):
    """What the command line asks of one run, beside the settings."""

    loaded: Loaded
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    format: str = "text"
    debug: bool = False
    output: str = ""
    """The file that gets the report in `format`; stdout then has it as text."""
    verdict_fd: int = -1
    """Where to put the verdict's word too, for ``--wait``."""


class Run:
    def __init__(self, request: Request) -> None:
        config = request.loaded.config
        self.request = request
        self.config = config
        self.budget = Budget(CURRENT.budget.began_at, config.budget_s)
        self.children = Children()
        self.outcomes: list[Outcome] = []
        self.errors: list[str] = []
        self.plan = Plan(config.profile, ())
        self.state = StateFolder(config.state or default_path(os.environ))
        self.log = log_path(config.log, self.state.path, os.environ)
        self.problems: list[str] = []
        """What a person should know beside the verdict."""
        self._about: Callable[[Sequence[str]], str] = lambda gpus: ""
        """What a pass of rung 4 is a pass of, told the GPUs that NVML is known to have listed."""
        self._writer: Process | None = None
        self._leaving = False
        self._reported = False
        self._code = exits.code(CURRENT.column, "internal", liveness=config.profile is Profile.LIVENESS)
        self._survivors: list[Survivor] = []

    def go(self) -> NoReturn:
        """Run, report and leave the process."""
        CURRENT.leave = self.leave
        CURRENT.watch(self.budget)
        past = self.state.load()
        stuck = tuple(child for child in past.leaving if child.stuck())

        found = torchfile.find(self.config.python, os.environ)
        site = found.site
        facts = expect.gather(
            os.environ,
            device=self.config.device,
            gpus_expect=self.config.gpus_expect,
            torch_cuda=site.cuda if site else None,
            torch_hip=site.hip if site else None,
        )
        expected = expect.expect(facts)
        missing = ", ".join(found.looked) if site is None else ""
        demanded = self.config.python != "auto" or self._image_promises_torch()
        bound = expect.bound_gpus()
        self._about = lambda gpus: memory.about(self.config, facts, site, (*bound, *gpus), os.environ)
        self.plan = plan.make(
            self.config,
            expected,
            self.request.loaded.checks,
            only=self.request.only,
            skip=self.request.skip,
            torch_missing="" if demanded else missing,
            rested={} if self.request.only else memory.rested(past, self.config.torch_every_s, self._about(past.gpus)),
        )
        computing = expected.gpus and any(_computes_on_gpus(job) for job in self.plan.jobs)
        starting = self._launch(site, facts, {(child.worker, child.target) for child in stuck}, computing=computing)

        import anyio  # only now: the children above are importing and initialising meanwhile

        from probe import engine
        from probe.context import Context
        from probe.rig import Rig, Setup

        setup = Setup(
            plan=self.plan,
            computing=computing,
            cpu_workers=expected.cpu_workers,
            test_busy=self.config.busy == "test",
            mps_pipe=launch.mps_pipe(os.environ),
            visible=facts.cuda_visible or None,
        )

        async def main() -> None:
            context = Context(
                expected=expected,
                facts=facts,
                stuck=stuck,
                known_gpus=past.gpus,
                kernel_log=past.kernel_log,
                asked=starting.asked,
                torch=site and {"version": site.version, "cuda": site.cuda, "git_version": site.git_version},
                workers=self.plan.workers,
                torch_missing=f"{plan.NOT_INSTALLED} (looked in {missing})",
                seen_services=past.services,
                host_keys=past.host_keys,
            )
            rig = Rig(setup, starting, context, self.state)
            times = engine.Times(
                already_s=self.budget.elapsed_s(), kill_s=self.budget.kill_s, end_s=self.budget.reaped_s
            )
            await engine.run(
                self.plan,
                context,
                self._sink,
                times,
                stop=rig.stop,
                background=rig.run,
                on_error=self.errors.append,
            )
            self.leave("")

        anyio.run(main)
        raise AssertionError("unreachable: the run leaves inside its event loop")

    def _image_promises_torch(self) -> bool:
        required = self.config.check("torch.import").enabled
        return bool(required or os.environ.get("PYTORCH_VERSION") or os.environ.get("NVIDIA_PYTORCH_VERSION"))

    def _launch(
        self,
        site: torchfile.TorchSite | None,
        facts: Facts,
        stuck: set[tuple[str, str]],
        *,
        computing: bool,
    ) -> launch.Launch:
        starting = launch.Launch(self.children, self.budget)
        workers = self.plan.workers
        by_cuda = bool(computing and facts.cuda_visible)
        if workers & launch.FORKED.keys() and site is not None and ("torch", "") not in stuck:
            starting.zygote(workers, site.python, site.python_version or (3, 9))
        if computing:
            self.state.try_gpu_lock()  # before NVML is asked who is busy; held by another probe: the rig waits for it
        if ("nvml" in workers or computing) and ("nvml", "") not in stuck:
            starting.nvml(self.plan.uses, computing=computing)
        if ("cuda" in workers or by_cuda) and ("cuda", "") not in stuck:
            starting.cuda()
        nodes = [name for name in facts.nodes if JUDGED_NODE.fullmatch(name)]
        mps_pipe = launch.mps_pipe(os.environ)
        asked = launch.questions(self.plan.uses, nodes, os.environ, computing=computing, mps_pipe=mps_pipe)
        options = {job.id: job.options for job in self.plan.jobs}
        asked |= launch.of_services(self.plan.uses, options, os.environ, in_container=facts.in_container)
        starting.asked = {**asked, "text": sorted({*asked.get("text", ()), *self.plan.files})}
        writes = bool(self.log or self.request.output)
        if (writes or any(starting.asked.values())) and ("files", "") not in stuck:
            starting.files(writes=writes)
            self._writer = starting.processes.get("files")
        if "smi" in workers and ("smi", "") not in stuck:
            starting.smi()
        return starting

    def _sink(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if PROGRESS is not None:
            PROGRESS.show(outcome)

    # -- leaving ------------------------------------------------------------------------------------------------------

    def leave(self, why: str) -> None:
        """Report what is known and leave. `why`: "" at the regular end, else "late", "interrupted", "terminated".

        Returns only to a signal that came during a regular end, which is bounded and goes on.
        """
        if self._leaving and why != "late":
            return
        self._leaving = True
        try:
            if not self._reported:
                self._report_and_tidy(why)
        except Exception as error:  # noqa: BLE001 - a defect in the report itself must not end in silence
            self._last_words(error)
        finally:
            if self._writer is not None:
                self._writer.close_inbox()
            self.children.kill()
            os._exit(self._code)

    def _last_words(self, error: Exception) -> None:
        """Say that there is no report, and why; of a defect after the report only what it was, on stderr."""
        if self._reported:
            write(2, f"probe: after the verdict: {error!r}\n".encode("utf-8", "replace"), time.monotonic() + 0.05)
            return
        text = f"undetermined: probe could not make its report: {type(error).__name__}: {error}"[:190]
        form = "text" if self.request.output else self.request.format
        said = instead_of_report(form, text)
        if form == "json":
            from probe.report import json

            said = json.error(text, "probe check")
        write(1, said, time.monotonic() + LAST_WORDS_S)
        if self.request.debug:
            import traceback

            write(2, traceback.format_exc().encode(), time.monotonic() + LAST_WORDS_S)

    def _report_and_tidy(self, why: str) -> None:
        if why == "late":
            self.children.kill()
        else:
            bound_s = min(TEARDOWN_S, max(self.budget.left_s(self.budget.reaped_s), 0.05))
            self.children.reap(bound_s)
            self._survivors = self.children.survivors()
        report = self.report(why)
        rendered = self._rendered(report, "text" if self.request.output else self.request.format)
        self._code = report.exit_code
        self._reported = True
        if PROGRESS is not None:
            PROGRESS.clear()
        write(1, rendered, self.budget.began_at + max(self.budget.write_s, self.budget.elapsed_s() + 0.05))
        if self.request.verdict_fd >= 0:
            os.write(self.request.verdict_fd, report.verdict.value.encode())
        self._leave_in_files(report)
        self._remember()
        self._say_the_rest(report)

    def _leave_in_files(self, report: Report) -> None:
        """Have a child write the log's line and the report that was asked for in a file: either may hang."""
        wanted: dict[str, dict[str, object]] = {}
        if self.log:
            from probe.report import log

            wanted["append"] = {"path": self.log, "line": log.line(report), "make_folder": self.config.log is None}
        if self.request.output:
            content = self._rendered(report, self.request.format).decode()
            wanted["replace"] = {"path": self.request.output, "content": content}
        if not wanted:
            return
        until = self.budget.began_at + min(self.budget.elapsed_s() + LEAVE_S, self.budget.net_s - 0.03)
        answers = self._hand_over(msgspec.json.encode(wanted), wanted, until)
        for key, name in DEEDS.items():
            if key in wanted and (answer := answers.get(key, "no answer in time")):
                self.problems.append(f"{name} not written: {wanted[key]['path']}: {answer}")
        self._survivors = self.children.survivors()

    def _hand_over(self, said: bytes, wanted: Collection[str], until: float) -> dict[str, str]:
        """Tell the writing child what to write and hear it out; by deed, what went wrong, empty where nothing did."""
        answers: dict[str, str] = {}
        writer = self._writer
        if writer is None or writer.gone:
            return dict.fromkeys(DEEDS, "its child could not be started, or ended")
        write(writer.inbox, said, until)
        writer.close_inbox()
        while time.monotonic() < until:
            events = self.children.poll(max(0.0, until - time.monotonic()))
            for event in events:
                if isinstance(event, Line) and event.process is writer:
                    record = msgspec.json.decode(event.line, type=Record)
                    answers[record.key] = record.text if record.code else ""
            if any(isinstance(event, End) and event.process is writer for event in events):
                break
            if set(wanted) <= answers.keys():
                break
        self.children.reap(min(TEARDOWN_S, self.budget.left_s(self.budget.net_s)))
        return answers

    def report(self, why: str) -> Report:
        """All that is known, with what is not said so."""
        outcomes = self._complete(why)
        causes: tuple[Cause, ...] = ()
        if why not in INTERRUPTS.values() and any(o.status not in (Status.PASS, Status.SKIP) for o in outcomes):
            from probe import faults  # and with it the catalogue: only where something is wrong

            causes = faults.diagnose(outcomes, self.plan.profile)
        from probe.verdict import verdict

        result = verdict(outcomes, self.plan.profile, causes)
        what = why if why in ("interrupted", "terminated") else result.value
        if what != result.value:
            result = Verdict.UNDETERMINED
        began = datetime.now(UTC).astimezone() - timedelta(seconds=self.budget.elapsed_s())
        return Report(
            schema="probe.report/1",
            probe_version=__version__,
            host=socket.gethostname(),
            profile=self.plan.profile,
            verdict=result,
            exit_code=exits.code(
                CURRENT.column, what, strict=self.config.strict, liveness=self.plan.profile is Profile.LIVENESS
            ),
            budget_s=self.config.budget_s,
            elapsed_s=round(self.budget.elapsed_s(), 3),
            started_at=began.isoformat(timespec="milliseconds"),
            causes=causes,
            checks=outcomes,
            notes=tuple(([f"{why} after {self.budget.elapsed_s():.1f} s"] if what == why else []) + notes(outcomes)),
        )

    def _complete(self, why: str) -> tuple[Outcome, ...]:
        """The outcomes so far, in the order of the plan, and one for each job that has none."""
        order = {job.id: at for at, job in enumerate(self.plan.jobs)}
        have = {outcome.id for outcome in self.outcomes}
        elapsed_s = round(self.budget.elapsed_s(), 4)
        found = [self._with_survivor(outcome) for outcome in self.outcomes]
        missing = [job for job in self.plan.jobs if job.reported and job.id not in have]
        found += [_unfinished(job, why, elapsed_s) for job in missing]
        return tuple(sorted(found, key=lambda outcome: (order[outcome.id], len(outcome.target), outcome.target)))

    def _with_survivor(self, outcome: Outcome) -> Outcome:
        """Say of a GPU's test whose process has not gone that it has not."""
        for survivor in self._survivors:
            if survivor.worker == outcome.id.partition(".")[0] and survivor.target == outcome.target != "":
                words = f"{outcome.summary}; its process {survivor.pid} is still leaving (state {survivor.state})"
                return replace(outcome, summary=words, data={**outcome.data, "leaving": True})
        return outcome

    def _rendered(self, report: Report, form: str) -> bytes:
        if form != "text":
            return formats.encode(form, report)
        from probe.report import text

        colour = text.use_colour(os.isatty(1), os.environ)
        return formats.encode(form, report, colour=colour, width=_terminal_width() if os.isatty(1) else None)

    def _remember(self) -> None:
        """Leave for the next run who has not gone and, after the first good one, which GPUs there were."""
        past = self.state.load()
        whole = not (self.request.only or self.request.skip)
        changes = memory.changes(past, memory.Run(self.outcomes, self._survivors, self._about, whole))
        if changes or self.state.damaged:
            self.state.save(**changes)

    def _say_the_rest(self, report: Report) -> None:
        """What a person should know beside the verdict, on stderr and after it."""
        if self.request.debug:
            write(2, "".join(self.errors).encode(), time.monotonic() + 0.1)
        lines = [*self.request.loaded.warnings, *self.problems, *([self.state.problem] if self.state.problem else [])]
        if CURRENT.column == "slurm" and report.verdict is Verdict.UNDETERMINED:
            from probe.report import text

            lines.insert(0, text.render(report).partition("\n")[0])  # the 0 that does not drain a node is no health
        data = "".join(f"probe: {line}\n" for line in lines).encode("utf-8", "replace")
        if len(data) > MAX_STDERR_BYTES:
            data = data[: MAX_STDERR_BYTES - 4] + b"...\n"
        write(2, data, time.monotonic() + 0.05)


def _computes_on_gpus(job: Job) -> bool:
    """It makes a context, or has one made: on each GPU, or on one for a model that is not for the CPU alone."""
    if job.skip:
        return False
    if "model" in job.check.uses:
        return bool(job.options["device"] != "cpu")
    return job.check.per_gpu and job.check.rung in ("cuda", "torch")


def _unfinished(job: Job, why: str, elapsed_s: float) -> Outcome:
    """What stands in the report for a job that the engine has not finished."""
    if why in ("interrupted", "terminated"):
        finding = unknown(f"{why} before it was done", reason="interrupted")
    else:
        finding = Finding(Status.TIMEOUT, "probe's own loop was held up: no outcome in time", {"reason": "held_up"})
    return Outcome(
        id=job.id,
        target=job.target,
        status=finding.status,
        severity=job.severity,
        summary=finding.summary,
        started_s=elapsed_s,
        elapsed_s=0.0,
        data=finding.data,
    )


def notes(outcomes: Sequence[Outcome]) -> list[str]:
    """What was not computed on, and why: it belongs beside every verdict."""
    reasons: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.status is Status.SKIP and outcome.summary.startswith(plan.NO_GPU):
            reasons.setdefault(outcome.summary, [])
        if outcome.id not in ("torch.tensor", "cuda.kernel") or outcome.status is not Status.SKIP:
            continue
        if outcome.summary.startswith("passed "):
            reasons.setdefault(f"torch {outcome.summary}", [])
        elif not outcome.summary.startswith(("needs ", plan.NO_GPU, "skipped by", "switched off")):
            targets = reasons.setdefault(outcome.summary, [])
            if outcome.target not in (*targets, EVERY_GPU, ""):
                targets.append(outcome.target)
    return [
        f"not computed on {_named(targets)}: {reason}" if targets else reason for reason, targets in reasons.items()
    ]


def _named(targets: Sequence[str]) -> str:
    return targets[0] if len(targets) == 1 else f"{len(targets)} GPUs"


def _terminal_width() -> int:
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80


class Progress:
    """Each check as it finishes, on a terminal's stderr; taken back when the report comes to the same terminal."""

    def __init__(self) -> None:
        self._shown = 0

    def show(self, outcome: Outcome) -> None:
        if outcome.status is Status.SKIP:
            return  # nothing was waited for
        from probe.report import text

        line = text.progress_line(outcome, text.use_colour(True, os.environ))
        self._shown += 1
        write(2, f"{line}\n".encode("utf-8", "replace"), time.monotonic() + 0.05)

    def clear(self) -> None:
        try:
            height = os.get_terminal_size(2).lines
        except OSError:
            return
        if self._shown and os.isatty(1) and self._shown < height:
            write(2, f"\x1b[{self._shown}A\x1b[J".encode(), time.monotonic() + 0.05)


PROGRESS = Progress() if os.isatty(2) and os.environ.get("TERM") != "dumb" else None


def check(request: Request) -> NoReturn:
    """Run ``probe check`` in this process, which ends with it."""
    Run(request).go()
