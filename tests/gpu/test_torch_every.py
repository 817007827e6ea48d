"""A pass of rung 4 that stands, on real GPUs: rungs 1 to 3 are climbed all the same."""

from pathlib import Path

import pytest

from tests.gpu.test_gpu import by_target, probe, uuids, wait_until_idle

pytestmark = pytest.mark.gpu


def test_a_pass_stands_and_cuda_is_tested_all_the_same(state: Path) -> None:
    """The second run computes by the driver on every GPU and imports no torch."""
    wait_until_idle()
    first = probe(state, "--torch-every", "10m")
    assert {check["status"] for check in by_target(first, "torch.tensor").values()} == {"pass"}
    wait_until_idle()
    second = probe(state, "--torch-every", "10m")
    print(f"first {first['elapsed_s']} s, second {second['elapsed_s']} s: {second['notes']}")
    computed = {target: check["status"] for target, check in by_target(second, "cuda.kernel").items()}
    assert computed == {f"gpu:{uuid}": "pass" for uuid in uuids()}
    torch = [check for check in second["checks"] if check["id"] == "torch.tensor"]
    assert [(check["status"], check["summary"][:7]) for check in torch] == [("skip", "passed ")]
    assert second["verdict"] == first["verdict"]
