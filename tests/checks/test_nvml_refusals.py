"""What it means, for every check of one GPU's health, that NVML gives a code instead of a value."""

import pytest

from probe import plan
from probe.checks import load
from probe.expect import expect
from probe.model import Check, CheckSettings, Config, Facts, Profile, Record, Severity, Status
from tests.checks.asking import GPU, ask

HEALTH = {
    "nvml.recovery": "recovery",
    "nvml.ecc": "ecc",
    "nvml.remap": "remap",
    "nvml.sram": "sram",
    "nvml.fabric": "fabric",
    "nvml.throttle": "throttle",
    "nvml.temperature": "temperature",
    "nvml.pcie": "pcie",
    "nvml.pages": "pages",
    "nvml.nvlink": "nvlink",
    "nvml.persistence": "persistence",
    "nvml.mode": "compute_mode",
    "nvml.mig": "mig",
}
"""Each check with what it asks of NVML."""
CRITICAL = {"nvml.recovery", "nvml.ecc", "nvml.remap", "nvml.sram", "nvml.fabric"}
MIG_ON = ("nvml", Record("mig", code=0, data={"current": 1, "pending": 1}))


def refused(check: str, code: int, text: str = "words of NVML") -> tuple[str, Record]:
    return ("nvml", Record(HEALTH[check], code=code, text=text))


def declared(check: str) -> Check:
    return load()[check]


def planned(config: Config) -> Severity:
    jobs = plan.make(config, expect(Facts(gpus_expect=1)), load()).jobs
    return next(job.severity for job in jobs if job.id == "nvml.nvlink")


@pytest.mark.parametrize("check", HEALTH)
def test_each_is_asked_of_every_gpu_in_readiness_and_of_a_node(check: str) -> None:
    """The design's table: all in R and N, never in liveness or startup; five are critical."""
    found = declared(check)
    assert found.profiles == {Profile.READINESS, Profile.NODE}
    assert (found.per_gpu, found.gpu_only, found.needs) == (True, True, ("nvml.reach",))
    assert (found.severity is Severity.CRITICAL) == (check in CRITICAL)
    assert f"nvml.{HEALTH[check]}" in found.uses


def test_nvlink_is_critical_for_a_node_alone() -> None:
    """A job of one GPU never notices that a link is down; a node that is to join a cluster must have all."""
    assert planned(Config(profile=Profile.READINESS)) is Severity.ADVISORY
    assert planned(Config(profile=Profile.NODE)) is Severity.CRITICAL


def test_what_is_set_for_nvlink_counts_in_every_profile() -> None:
    settings = {"nvml.nvlink": CheckSettings(severity=Severity.ADVISORY)}
    assert planned(Config(profile=Profile.NODE, checks=settings)) is Severity.ADVISORY


@pytest.mark.parametrize("check", HEALTH)
@pytest.mark.parametrize("code", [3, 22])
def test_what_the_gpu_does_not_have_is_skipped_with_its_name(check: str, code: int) -> None:
    """NotSupported is no fault: a GeForce answers so to almost everything."""
    finding = ask(check, refused(check, code), target=GPU, products=("NVIDIA GeForce RTX 4090",))
    assert finding.status is Status.SKIP
    assert finding.summary == f"not supported on NVIDIA GeForce RTX 4090 (NVML {code}, {HEALTH[check]})"


@pytest.mark.parametrize("check", HEALTH)
@pytest.mark.parametrize("code", [13, 25, 26])
def test_what_the_driver_does_not_know_is_skipped(check: str, code: int) -> None:
    """An older driver lacks the function, or its version of the question."""
    finding = ask(check, refused(check, code), target=GPU)
    assert finding.status is Status.SKIP
    assert "not known to this driver" in finding.summary


@pytest.mark.parametrize("check", HEALTH)
def test_what_may_not_be_asked_is_unknown(check: str) -> None:
    """No permission is no skip: what was not seen may be bad."""
    finding = ask(check, refused(check, 4), target=GPU)
    assert (finding.status, finding.data["nvml_code"]) == (Status.UNKNOWN, 4)


@pytest.mark.parametrize("check", sorted(HEALTH.keys() - {"nvml.mig"}))
@pytest.mark.parametrize("code", [3, 4])
def test_with_mig_on_the_whole_gpu_may_be_out_of_reach(check: str, code: int) -> None:
    """A container that was given an instance is not shown its parent: that is how it should be."""
    finding = ask(check, MIG_ON, refused(check, code), target=GPU, products=("NVIDIA H100 80GB HBM3",))
    assert finding.status is Status.SKIP
    assert "on NVIDIA H100 80GB HBM3 with MIG on" in finding.summary


@pytest.mark.parametrize("check", HEALTH)
@pytest.mark.parametrize("code", [14, 15, 16, 999])
def test_any_other_code_fails_with_nvmls_own_words(check: str, code: int) -> None:
    """A lost GPU says so to every question."""
    finding = ask(check, refused(check, code, "GPU is lost"), target=GPU)
    assert (finding.status, finding.data["nvml_code"]) == (Status.FAIL, code)
    assert finding.summary == f"NVML {code}: GPU is lost ({HEALTH[check]})"


@pytest.mark.parametrize("check", HEALTH)
def test_no_answer_is_never_a_pass(check: str) -> None:
    """Nothing said, nothing passed: the worker's own end is the finding."""
    assert ask(check, target=GPU).status == Status.UNKNOWN


@pytest.mark.parametrize("check", HEALTH)
def test_every_threshold_has_a_source_and_a_unit(check: str) -> None:
    """The unit is the last word of a threshold's name."""
    for name, threshold in declared(check).thresholds.items():
        assert threshold.source
        assert name.rpartition("_")[2] in {"errors", "rows", "mask", "celsius", "lanes", "percent", "pages", "links"}
