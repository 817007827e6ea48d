"""What is planned, and with which limits: pure."""

from collections.abc import Collection
from typing import Any

import pytest

from probe.checks import load
from probe.expect import expect
from probe.model import CheckSettings, Config, Expectation, Facts, Job, Plan, Profile, Severity, Threshold
from probe.plan import make, selects
from probe.registry import TARGETS, Registry, check, declared, switch

CHECKS = load()
GPUS = expect(Facts(gpus_expect=8))
NO_GPU = expect(Facts())


def planned(
    config: Config | None = None,
    expected: Expectation = GPUS,
    *,
    only: Collection[str] = (),
    skip: Collection[str] = (),
    torch_missing: str = "",
) -> dict[str, Job]:
    plan = make(config or Config(), expected, CHECKS, only=only, skip=skip, torch_missing=torch_missing)
    return {job.id: job for job in plan.jobs}


def settings(check_id: str, **values: Any) -> Config:
    return Config(checks={check_id: CheckSettings(**values)})


@pytest.mark.parametrize("profile", Profile)
def test_every_check_of_the_profile_is_planned_and_no_other(profile: Profile) -> None:
    """Skips too: the report holds every check of the profile."""
    expected = {name for name, declared in CHECKS.items() if profile in declared.profiles}
    assert set(planned(Config(profile=profile))) == expected


def test_liveness_never_touches_cuda_or_torch() -> None:
    """Neither by a check nor by a worker."""
    plan = make(Config(profile=Profile.LIVENESS), GPUS, CHECKS)
    assert plan.workers <= {"files", "nvml"}


def test_where_no_gpu_is_expected_its_checks_do_not_apply_and_nobody_is_started_for_them() -> None:
    """And the reason is said; rung 4 computes on the CPU."""
    jobs = planned(expected=NO_GPU)
    assert jobs["nvml.reach"].skip == "no GPU expected (no sign of a GPU)"
    assert jobs["torch.tensor"].skip == ""
    assert not Plan(Profile.READINESS, tuple(jobs.values())).workers & {"nvml", "cuda"}


def test_a_need_that_does_not_apply_is_no_need() -> None:
    """On the CPU the tensor test waits for torch alone."""
    assert planned(expected=NO_GPU)["torch.tensor"].needs == ("torch.import", "torch.build")
    assert "cuda.context" in planned()["torch.tensor"].needs
    assert "cuda.context" not in planned(skip=["cuda"])["torch.tensor"].needs


@pytest.mark.parametrize(
    ("pattern", "check_id", "means"),
    [
        ("nvml.reach", "nvml.reach", True),
        ("nvml", "nvml.reach", True),
        ("nvml.*", "nvml.reach", True),
        ("*.re*", "nvml.reach", True),
        ("reach", "nvml.reach", False),
        ("nvm", "nvml.reach", False),
    ],
)
def test_an_id_a_rung_or_a_glob(pattern: str, check_id: str, means: bool) -> None:
    """And nothing else."""
    assert selects([pattern], check_id) is means


def test_only_pulls_in_needs_unreported() -> None:
    """`--only torch.tensor` imports torch and makes a context, and reports the tensor test."""
    jobs = planned(only=["torch.tensor"])
    assert {name for name, job in jobs.items() if job.reported} == {"torch.tensor"}
    assert {"torch.import", "torch.build", "cuda.context", "cuda.init"} <= set(jobs)


def test_skip_keeps_the_check_in_the_report() -> None:
    """With the reason."""
    assert planned(skip=["device"])["device.shm"].skip == "skipped by --skip"


def test_a_check_that_is_switched_on_is_required_and_critical_and_off_is_skipped() -> None:
    """Also where it does not apply: the engine makes a failure of that, with the reason."""
    job = planned(settings("nvml.reach", enabled=True), NO_GPU)["nvml.reach"]
    assert (job.required, job.severity) == (True, Severity.CRITICAL)
    assert job.skip == "no GPU expected (no sign of a GPU)"
    assert planned(settings("nvml.reach", enabled=False))["nvml.reach"].skip == "switched off"


def test_settings_of_a_check_reach_its_job() -> None:
    """Severity, limit and thresholds; what is not set is as declared."""
    config = settings("device.shm", severity=Severity.CRITICAL, timeout_s=2.0, thresholds={"min_bytes": 7})
    job = planned(config)["device.shm"]
    assert (job.severity, job.timeout_s, job.thresholds["min_bytes"]) == (Severity.CRITICAL, 2.0, 7)
    assert job.thresholds["min_many_gpus_bytes"] == 8 << 30


def test_torch_that_is_nowhere_skips_its_rung_and_says_where_it_was_looked_for() -> None:
    """A check that is demanded is required, and so a failure."""
    jobs = planned(torch_missing="/usr/bin/python3")
    assert {jobs[name].skip for name in jobs if name.startswith("torch.")} == {
        "torch not installed (looked in /usr/bin/python3)"
    }
    demanded = planned(settings("torch.import", enabled=True), torch_missing="/usr/bin/python3")
    assert demanded["torch.import"].required


def test_a_rocm_build_is_not_supported_yet() -> None:
    """Said, and not tested."""
    jobs = planned(expected=expect(Facts(torch_hip="6.4", gpus_expect=1)))
    assert jobs["torch.tensor"].skip == "a ROCm build of torch: not supported yet"


def test_wsl2_has_no_nodes() -> None:
    """NVML and CUDA decide there."""
    jobs = planned(expected=expect(Facts(dxg=True, gpus_expect=1)))
    assert jobs["device.nodes"].skip.startswith("WSL2")
    assert jobs["nvml.reach"].skip == ""


def test_two_checks_of_one_name_or_switch_clash_and_both_are_named() -> None:
    """At once, when they are declared."""
    registry = Registry()
    check("a.same", profiles="R", into=registry)(CHECKS["nvml.reach"].run)
    for clashing in ("a.same", "b.same"):
        with pytest.raises(ValueError, match=rf"'{clashing}' in .* clashes with 'a.same' in "):
            check(clashing, profiles="R", into=registry)(CHECKS["nvml.reach"].run)


def test_every_check_says_what_it_asks_and_every_threshold_where_it_comes_from() -> None:
    """Its docstring is a question, its switch its own, its thresholds have sources and units."""
    assert len({switch(name) for name in CHECKS}) == len(CHECKS)
    for one in CHECKS.values():
        assert one.question.endswith("?"), one.id
        for limit in one.thresholds.values():
            assert isinstance(limit, Threshold)
            assert limit.source
        assert set(one.needs) <= set(CHECKS), one.id


def test_limits_that_are_lists_are_handed_over_as_lists() -> None:
    """Numbers and lists of codes are set in the same way, and a check compares with each as what it is."""
    config = settings("device.xid", thresholds={"fatal": (79,)})
    job = planned(config)["device.xid"]
    assert job.lists == {"fatal": (79,), "warn": (), "ignore": ()}
    assert job.thresholds == {}
    assert planned()["device.shm"].lists == {}


def test_torch_rests_only_where_nothing_else_imports_it() -> None:
    """A model does, and would else pay for it from its own time."""
    registry = Registry({**CHECKS, "service.model.x": declared(TARGETS["service.model"], "x")})
    resting = {name: "passed 5 s ago" for name in CHECKS if name.startswith("torch.")}

    def skips(config: Config, checks: Registry = registry) -> dict[str, str]:
        plan = make(config, NO_GPU, checks, rested=resting)
        return {job.id: job.skip for job in plan.jobs}

    assert skips(Config(), CHECKS)["torch.import"] == "passed 5 s ago"
    found = skips(Config())
    assert (found["torch.import"], found["torch.tensor"]) == ("", "passed 5 s ago")
    assert skips(settings("service.model.x", enabled=False))["torch.import"] == "passed 5 s ago"
