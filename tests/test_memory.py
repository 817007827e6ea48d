"""What a run remembers: the services it saw, and when rung 4 last passed as a whole."""

import time

import pytest
from msgspec.structs import replace

from probe import memory
from probe.memory import Run, changes, rested
from probe.model import Config, Facts, Outcome
from probe.state import Head, State, TorchPass
from probe.torchfile import TorchSite
from tests.report.samples import outcome

HERE = Head("boot", 1, 2)
FRESH = State(HERE)
GOOD = (
    outcome("torch.import", "pass"),
    outcome("torch.tensor", "pass", target="gpu:GPU-1"),
    outcome("torch.tensor", "pass", target="gpu:GPU-2"),
    outcome("device.shm", "fail", severity="advisory"),
)


def after(*outcomes: Outcome, past: State = FRESH, whole: bool = True) -> TorchPass | None:
    """The pass on record after a run with these outcomes."""
    new = changes(past, Run(outcomes, (), lambda gpus: "here", whole))
    found = new.get("torch_pass", past.torch_pass)
    assert found is None or isinstance(found, TorchPass)
    return found


def recorded(ago_s: float = 0.0) -> State:
    at_s = int(time.clock_gettime(time.CLOCK_BOOTTIME) - ago_s)
    return replace(FRESH, torch_pass=TorchPass(at_s, ("torch.import", "torch.tensor"), "here"))


def test_a_whole_pass_is_recorded() -> None:
    """With the checks that passed on every GPU; an advisory failure elsewhere does not matter."""
    found = after(*GOOD)
    assert found is not None
    assert (found.checks, found.about) == (("torch.import", "torch.tensor"), "here")
    assert found.age_s() < 60


@pytest.mark.parametrize("status", ["skip", "warn"])
def test_a_part_of_a_pass_is_none(status: str) -> None:
    """One GPU of two was busy, or warned: what was on record stays."""
    outcomes = (*GOOD, outcome("torch.tensor", status, target="gpu:GPU-3"))
    assert after(*outcomes) is None
    past = recorded(ago_s=60)
    assert after(*outcomes, past=past) == past.torch_pass


def test_the_first_good_run_is_a_pass_of_the_gpus_that_it_counted() -> None:
    """Those that the next run knows from it: so that one rests on the first."""
    counted = outcome("nvml.count", "pass", uuids="GPU-1, GPU-2")
    first = changes(FRESH, Run((*GOOD, counted), (), repr, whole=True))
    assert isinstance(first["torch_pass"], TorchPass)
    assert first["torch_pass"].about == repr(first["gpus"]) == "('GPU-1', 'GPU-2')"


def test_a_run_of_chosen_checks_records_nothing() -> None:
    assert after(*GOOD, whole=False) is None


@pytest.mark.parametrize("status", ["fail", "timeout", "unknown"])
def test_any_other_rung_that_fails_voids_it(status: str) -> None:
    """Also in a run that did not ask torch, and in one of chosen checks."""
    bad = outcome("nvml.ecc", status, target="gpu:GPU-1")
    assert after(*GOOD, bad) is None
    assert after(bad, past=recorded()) is None
    assert after(bad, past=recorded(), whole=False) is None


def test_an_advisory_failure_voids_nothing() -> None:
    past = recorded()
    assert after(outcome("device.shm", "fail", severity="advisory"), past=past) == past.torch_pass


@pytest.mark.parametrize(
    ("ago_s", "every_s", "words"),
    [
        (0, 600, "passed 0 s ago"),
        (45, 600, "passed 45 s ago"),
        (250, 600, "passed 4 min ago"),
        (598, 600, "passed 10 min ago"),
    ],
)
def test_a_young_pass_stands(ago_s: float, every_s: float, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "clock_gettime", lambda clock: 100_000.0)
    assert rested(recorded(ago_s), every_s, "here") == dict.fromkeys(("torch.import", "torch.tensor"), words)


@pytest.mark.parametrize(
    ("past", "every_s", "about"),
    [
        (recorded(601), 600, "here"),
        (recorded(1), 0, "here"),
        (recorded(1), 600, "elsewhere"),
        (recorded(-5000), 600, "here"),
        (FRESH, 600, "here"),
    ],
    ids=["too old", "off", "of something else", "from the future", "none"],
)
def test_no_other_does(past: State, every_s: float, about: str) -> None:
    assert rested(past, every_s, about) == {}


SITE = TorchSite("/usr/bin/python3", (3, 12), "/usr/lib", "2.9.0", "13.0", None, "abc", debug=False)


@pytest.mark.parametrize(
    "other",
    [
        memory.about(Config(device="cpu"), Facts(), SITE, ("0000:01:00.0",), {}),
        memory.about(Config(), Facts(nodes=("nvidia0",)), SITE, ("0000:01:00.0",), {}),
        memory.about(Config(), Facts(), SITE._replace(version="2.9.1"), ("0000:01:00.0",), {}),
        memory.about(Config(), Facts(), None, ("0000:01:00.0",), {}),
        memory.about(Config(), Facts(), SITE, ("0000:01:00.0", "0000:02:00.0"), {}),
        memory.about(Config(), Facts(), SITE, ("0000:01:00.0",), {"CUDA_VISIBLE_DEVICES": "1"}),
        memory.about(Config(), Facts(), SITE, ("0000:01:00.0",), {"NVIDIA_VISIBLE_DEVICES": "all"}),
    ],
    ids=["device", "nodes", "version", "no torch", "gpus", "cuda", "nvidia"],
)
def test_a_pass_is_of_one_machine_as_it_was(other: str) -> None:
    """Another device, node, torch, GPU or choice of GPUs is another machine."""
    here = memory.about(Config(), Facts(), SITE, ("0000:01:00.0",), {"PATH": "/bin"})
    assert here == memory.about(Config(), Facts(), SITE, ("0000:01:00.0",), {})
    assert here != other


def test_services_that_answered_are_remembered() -> None:
    """Each once, in whatever run; one that failed is not."""
    seen = (outcome("service.ssh", "pass"), outcome("service.jupyter", "fail"), outcome("service.http.api", "warn"))
    new = changes(replace(FRESH, services=("service.old",)), Run(seen, (), str, whole=False))
    assert new["services"] == ("service.old", "service.http.api", "service.ssh")
    again = changes(replace(FRESH, services=("service.ssh",)), Run(seen[:1], (), str, whole=False))
    assert "services" not in again


@pytest.mark.parametrize(("more", "kept"), [({}, True), ({"reason": "host_key"}, False), ({"reason": "auth"}, True)])
def test_a_host_key_is_remembered_unless_it_was_the_wrong_one(more: dict[str, str], kept: bool) -> None:
    """What known_hosts refuses is not what a later run, without known_hosts, is to trust."""
    key = {"address": "h:22", "host_key_type": "ssh-ed25519", "host_key_sha256": "abc"}
    new = changes(FRESH, Run((outcome("service.ssh", "warn", **key, **more),), (), str, whole=False))
    assert kept == ("ssh-ed25519 SHA256:abc" in repr(new))
