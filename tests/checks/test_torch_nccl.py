"""torch.nccl, with recorded worlds."""

from typing import Any

import pytest

from probe.checks import load
from probe.model import Finding, Profile, Record, Severity, Status
from tests.checks.asking import GPU, ask

WORLD = {
    "backend": "nccl",
    "nccl_version": "2.27.5",
    "dtypes": "fp32 bf16 int64",
    "words": 2097152,
    "wrong_words": 0,
    "init_s": 0.25,
    "collectives_s": 0.01,
    "destroyed": True,
}


def world(code: int = 0, text: str = "", **data: Any) -> Finding:
    record = Record("world", target=GPU, code=code, text=text, data={**WORLD, **data})
    return ask("torch.nccl", ("nccl", record), target=GPU)


def test_it_is_for_a_nodes_own_profile() -> None:
    """A second of CPU that a container's check each minute need not pay."""
    check = load()["torch.nccl"]
    assert (check.profiles, check.severity) == (frozenset({Profile.NODE}), Severity.CRITICAL)
    assert check.needs == load()["torch.tensor"].needs


def test_a_world_that_computes_exactly_passes_with_nccls_version() -> None:
    finding = world()
    assert finding.status is Status.PASS
    assert finding.summary == "NCCL 2.27.5: a world of one rank in 0.25 s, exact in fp32 bf16 int64"
    assert finding.data["nccl_version"] == "2.27.5"


def test_gloo_has_no_version() -> None:
    record = Record(
        "world", code=0, data={**{k: v for k, v in WORLD.items() if k != "nccl_version"}, "backend": "gloo"}
    )
    finding = ask("torch.nccl", ("nccl", record), target="cpu:0")
    assert (finding.status, finding.summary[:22]) == (Status.PASS, "gloo: a world of one r")
    assert "nccl_version" not in finding.data


def test_a_wrong_word_fails_and_names_the_call() -> None:
    finding = world(wrong_words=3, first_wrong="average bf16")
    assert (finding.status, finding.data["reason"]) == (Status.FAIL, "wrong_words")
    assert finding.summary == "NCCL 2.27.5: 3 of 2097152 words are wrong, first in average bf16"


def test_nccls_own_word_is_in_the_summary_and_in_the_data() -> None:
    said = {"reason": "raised", "call": "nccl init", "nccl_error": "ncclSystemError"}
    finding = world(-1, "ncclSystemError: Bootstrap : no socket interface found", **said)
    assert (finding.status, finding.data["nccl_error"]) == (Status.FAIL, "ncclSystemError")
    assert finding.summary == "NCCL 2.27.5, nccl init: ncclSystemError: Bootstrap : no socket interface found"


def test_out_of_memory_is_no_fault_of_nccl() -> None:
    finding = world(2, "Cuda failure 2 'out of memory'", reason="raised", call="nccl init", nccl_error="")
    assert (finding.status, finding.data["cuda_code"]) == (Status.SKIP, 2)


def test_a_world_that_does_not_end_warns() -> None:
    finding = world(destroyed=False)
    assert (finding.status, finding.data["reason"]) == (Status.WARN, "destroy_hangs")


@pytest.mark.parametrize(
    ("backend", "reason", "status", "summary"),
    [
        ("nccl", "no_nccl", Status.WARN, "torch is built without NCCL: it cannot use several GPUs together"),
        (
            "nccl",
            "no_distributed",
            Status.WARN,
            "torch is built without torch.distributed: it cannot use several GPUs together",
        ),
        ("gloo", "no_gloo", Status.SKIP, "torch is built without gloo"),
        ("gloo", "no_distributed", Status.SKIP, "torch is built without torch.distributed"),
    ],
)
def test_a_build_without_it(backend: str, reason: str, status: Status, summary: str) -> None:
    """A GPU alone needs no NCCL, so that it fails nothing; several do."""
    record = Record("world", target=GPU, code=-1, data={"backend": backend, "reason": reason})
    finding = ask("torch.nccl", ("nccl", record), target=GPU)
    assert (finding.status, finding.summary) == (status, summary)
