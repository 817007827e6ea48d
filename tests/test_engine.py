"""The engine, on trio's MockClock: its time is exact and its tests take none."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import pytest
from trio.testing import MockClock

from probe import engine
from probe.context import Context, Target
from probe.expect import expect
from probe.model import (
    EVERY_GPU,
    Check,
    Facts,
    Finding,
    Job,
    NoAnswer,
    Outcome,
    Plan,
    Profile,
    Record,
    Severity,
    Status,
    passed,
    skipped,
    unknown,
    warned,
)

Body = Callable[[Context, Job], Awaitable[Finding]]


def job(check_id: str, body: Body, *, needs: tuple[str, ...] = (), per_gpu: bool = False, **fields: Any) -> Job:
    check = Check(
        id=check_id,
        run=body,
        question="?",
        severity=Severity.CRITICAL,
        profiles=frozenset(Profile),
        needs=needs,
        uses=fields.pop("uses", ()),
        per_gpu=per_gpu,
    )
    return Job(check, EVERY_GPU if per_gpu else "", Severity.CRITICAL, needs, **fields)


def run(*jobs: Job, context: Callable[[Context], None] | None = None, **options: Any) -> tuple[list[Outcome], float]:
    """The outcomes of a run with a budget of 9 s (killed at 8.2, ended at 8.7), and when it was over."""
    outcomes: list[Outcome] = []

    async def main() -> float:
        facts = Facts()
        made = Context(expected=expect(facts), facts=facts)
        if context is not None:
            context(made)
        began = anyio.current_time()
        times = engine.Times(already_s=options.pop("already_s", 0.0), kill_s=8.2, end_s=8.7)
        bound = {name: (lambda f=value: f(made)) if name == "stop" else value for name, value in options.items()}
        await engine.run(Plan(Profile.READINESS, jobs), made, outcomes.append, times, **bound)
        return anyio.current_time() - began

    clock = MockClock(autojump_threshold=0)
    return outcomes, anyio.run(main, backend="trio", backend_options={"clock": clock})


def after(seconds: float, finding: Finding) -> Body:
    async def body(context: Context, job: Job) -> Finding:
        await anyio.sleep(seconds)
        return finding

    return body


async def hang(context: Context, job: Job) -> Finding:
    await anyio.sleep_forever()
    raise AssertionError


def test_jobs_run_at_once_and_outcomes_stream_in_the_order_they_end() -> None:
    """Three checks of 1, 2 and 3 s take 3 s together."""
    outcomes, took_s = run(*(job(f"a.{n}", after(n, passed("ok"))) for n in (3, 1, 2)))
    assert [(outcome.id, outcome.elapsed_s) for outcome in outcomes] == [("a.1", 1.0), ("a.2", 2.0), ("a.3", 3.0)]
    assert took_s == 3.0


def test_a_check_that_raises_is_unknown_and_its_traceback_goes_to_on_error() -> None:
    """An exception is probe's own defect: unknown with the reason internal, never a traceback in the outcome."""

    async def raises(context: Context, job: Job) -> Finding:
        raise ZeroDivisionError("of all things")

    errors: list[str] = []
    (outcome,), _ = run(job("a.b", raises), on_error=errors.append)
    assert (outcome.status, outcome.data) == (Status.UNKNOWN, {"reason": "internal"})
    assert outcome.summary == "a.b raised ZeroDivisionError: of all things"
    assert "Traceback" in errors[0]


def test_a_check_ends_at_its_own_limit() -> None:
    """`timeout = 2s` for one check makes it a timeout at 2 s."""
    (outcome,), took_s = run(job("a.b", hang, timeout_s=2.0))
    assert (outcome.status, outcome.elapsed_s, took_s) == (Status.TIMEOUT, 2.0, 2.0)
    assert outcome.summary == "no answer within 2.0 s"


def test_without_a_limit_of_its_own_it_ends_with_the_budget() -> None:
    """Nothing ends earlier unless configured: what still hangs at 8.7 s of 9 is cancelled and reported."""
    outcomes, took_s = run(job("a.b", hang), job("a.c", after(1, passed("ok"))))
    assert [(o.id, o.status, o.elapsed_s) for o in outcomes] == [
        ("a.c", Status.PASS, 1.0),
        ("a.b", Status.TIMEOUT, 8.7),
    ]
    assert took_s == 8.7


def test_time_spent_before_the_engine_counts() -> None:
    """A second spent on starting leaves a second less."""
    (outcome,), took_s = run(job("a.b", hang), already_s=1.0)
    assert outcome.started_s == 1.0
    assert took_s == pytest.approx(7.7)


def test_at_the_kill_time_waiters_hear_why() -> None:
    """`stop` ends the workers; a check that waits for one of them ends with the worker's own story."""

    async def asks(context: Context, job: Job) -> Finding:
        await context.answer("nvml", "init")
        raise AssertionError

    async def stop(context: Context) -> None:
        context.answers.end("nvml", "", lambda step: Finding(Status.TIMEOUT, f"killed in {step}"))

    def step(context: Context) -> None:
        context.answers.put("nvml", "", Record("step", text="nvmlInit"))

    (outcome,), took_s = run(job("a.b", asks), context=step, stop=stop)
    assert (outcome.status, outcome.summary, took_s) == (Status.TIMEOUT, "killed in nvmlInit", 8.2)


def test_a_timeout_names_what_its_worker_was_doing() -> None:
    """The step that the worker announced last is where it hangs."""

    def step(context: Context) -> None:
        context.answers.put("cuda", "", Record("step", text="cuInit"))

    (outcome,), _ = run(job("a.b", hang, uses=("cuda",), timeout_s=1.0), context=step)
    assert (outcome.summary, outcome.data) == ("no answer within 1.0 s, in cuInit", {"step": "cuInit"})


@pytest.mark.parametrize(
    ("finding", "status"),
    [
        (passed("ok"), Status.PASS),
        (warned("hm"), Status.PASS),
        (skipped("no"), Status.SKIP),
        (unknown("?"), Status.SKIP),
    ],
)
def test_a_check_runs_only_when_its_need_passed(finding: Finding, status: Status) -> None:
    """Pass and warn are good enough; a skipped, failed or unknown need makes its dependants skip, and is named."""
    outcomes, _ = run(job("b.b", after(0, passed("ok")), needs=("a.a",)), job("a.a", after(1, finding)))
    found = {outcome.id: outcome for outcome in outcomes}["b.b"]
    assert found.status is status
    assert found.summary == ("ok" if status is Status.PASS else "needs a.a")


def test_one_that_hangs_is_a_timeout_and_its_dependants_skip() -> None:
    """The cause is the one that hangs; what waited for it says so and is no second cause."""
    outcomes, _ = run(
        job("a.a", hang, timeout_s=3.0), job("b.b", hang, needs=("a.a",)), job("c.c", hang, needs=("b.b",))
    )
    assert [(o.id, o.status, o.summary) for o in outcomes] == [
        ("a.a", Status.TIMEOUT, "no answer within 3.0 s"),
        ("b.b", Status.SKIP, "needs a.a"),
        ("c.c", Status.SKIP, "needs b.b"),
    ]


def test_a_per_gpu_check_has_one_outcome_per_target() -> None:
    """The targets come while the run is on; one that is not to be touched is skipped with its reason."""

    def targets(context: Context) -> None:
        context.testable.set((Target("gpu:GPU-a"), Target("gpu:GPU-b", skip="busy (62 MiB used)")))

    outcomes, _ = run(job("torch.tensor", after(1, passed("exact")), per_gpu=True), context=targets)
    assert sorted((o.target, o.status, o.summary) for o in outcomes) == [
        ("gpu:GPU-a", Status.PASS, "exact"),
        ("gpu:GPU-b", Status.SKIP, "busy (62 MiB used)"),
    ]


def test_a_need_of_a_gpu_is_that_gpus_own() -> None:
    """One GPU's failing context does not keep the other's kernel from running."""

    async def context_of(context: Context, job: Job) -> Finding:
        return passed("ok") if job.target == "gpu:GPU-a" else unknown("no")

    def targets(context: Context) -> None:
        context.testable.set((Target("gpu:GPU-a"), Target("gpu:GPU-b")))

    outcomes, _ = run(
        job("cuda.kernel", after(0, passed("exact")), needs=("cuda.context",), per_gpu=True),
        job("cuda.context", context_of, per_gpu=True),
        context=targets,
    )
    kernels = {o.target: o.summary for o in outcomes if o.id == "cuda.kernel"}
    assert kernels == {"gpu:GPU-a": "exact", "gpu:GPU-b": "needs cuda.context"}


def test_slots_that_are_never_filled_give_one_outcome() -> None:
    """No GPU found: one outcome for gpu:*; enumeration failed: its reason; or the need that is behind it."""

    def none(context: Context) -> None:
        context.testable.set(())

    def lost(context: Context) -> None:
        context.testable.fail(unknown("NVML says nothing"))

    (outcome,), _ = run(job("torch.tensor", hang, per_gpu=True), context=none)
    assert (outcome.target, outcome.status, outcome.summary) == (EVERY_GPU, Status.SKIP, "no GPU found")
    (outcome,), _ = run(job("torch.tensor", hang, per_gpu=True), context=lost)
    assert (outcome.target, outcome.status, outcome.summary) == (EVERY_GPU, Status.UNKNOWN, "NVML says nothing")
    outcomes, _ = run(
        job("torch.tensor", hang, needs=("torch.import",), per_gpu=True),
        job("torch.import", after(0, unknown("no"))),
        context=lost,
    )
    assert [(o.id, o.summary) for o in outcomes] == [("torch.import", "no"), ("torch.tensor", "needs torch.import")]


def test_a_job_planned_as_skipped_is_reported_and_not_run() -> None:
    """Every check of the profile is in the report, skips too."""
    (outcome,), _ = run(job("a.b", hang, skip="switched off"))
    assert (outcome.status, outcome.summary) == (Status.SKIP, "switched off")


def test_a_need_that_only_pulled_in_runs_unreported() -> None:
    """`--only b.b` runs a.a for it and says nothing of a.a."""
    outcomes, _ = run(
        job("a.a", after(1, passed("ok")), reported=False), job("b.b", after(1, passed("ok")), needs=("a.a",))
    )
    assert [(outcome.id, outcome.started_s) for outcome in outcomes] == [("b.b", 1.0)]


def test_a_finding_can_be_raised_as_an_answer_that_will_not_come() -> None:
    """NoAnswer carries the finding from whoever knows why to the outcome."""

    async def raises(context: Context, job: Job) -> Finding:
        raise NoAnswer(skipped("not supported on this GPU"))

    (outcome,), _ = run(job("a.b", raises))
    assert (outcome.status, outcome.summary) == (Status.SKIP, "not supported on this GPU")


def test_every_job_has_exactly_one_outcome_when_everything_hangs() -> None:
    """At the end of the budget nothing is missing and nothing is there twice."""
    outcomes, _ = run(*(job(f"a.{n}", hang, needs=("a.0",) if n else ()) for n in range(50)))
    assert sorted(outcome.id for outcome in outcomes) == sorted(f"a.{n}" for n in range(50))
    assert {outcome.status for outcome in outcomes} == {Status.TIMEOUT}


def test_background_is_cancelled_after_the_last_job() -> None:
    """The task that hears the workers ends with the run, and does not hold it."""

    async def background() -> None:
        await anyio.sleep_forever()

    _, took_s = run(job("a.b", after(1, passed("ok"))), background=background)
    assert took_s == 1.0


Main = Callable[[], Coroutine[Any, Any, float]]


def test_a_required_check_that_would_be_skipped_fails() -> None:
    """`ENABLE_ECC_CHECK=true` and there is nothing to check: said, with the reason. Out of memory stays a skip."""
    (outcome,), _ = run(job("a.b", hang, skip="no GPU expected", required=True))
    assert (outcome.status, outcome.summary) == (Status.FAIL, "required, and no GPU expected")
    (outcome,), _ = run(job("a.b", after(0, skipped("not supported")), required=True))
    assert (outcome.status, outcome.data["reason"]) == (Status.FAIL, "required")
    (outcome,), _ = run(job("a.b", after(0, skipped("out of memory", cuda_code=2)), required=True))
    assert outcome.status is Status.SKIP


def test_a_need_that_only_pulled_in_and_that_fails_is_reported() -> None:
    """It is the cause: without it the verdict would rest on the skips that follow from it."""
    outcomes, _ = run(
        job("a.a", after(1, unknown("no")), reported=False), job("b.b", after(1, passed("ok")), needs=("a.a",))
    )
    assert [(outcome.id, outcome.status) for outcome in outcomes] == [("a.a", Status.UNKNOWN), ("b.b", Status.SKIP)]


def test_less_than_a_second_is_too_short_to_blame_anybody() -> None:
    """Unless the check's own limit was set so."""
    (outcome,), _ = run(job("a.b", hang), already_s=8.0)
    assert (outcome.status, outcome.data["short"]) == (Status.TIMEOUT, True)
    (outcome,), _ = run(job("a.b", hang, timeout_s=0.5))
    assert "short" not in outcome.data
