"""What simulated hosts get of one machine."""

import pytest

from probe.cluster.hosts import Host, simulated
from probe.cluster.run import environments


def test_gpus_are_divided_and_each_host_is_another_one_to_nccl() -> None:
    found = environments(simulated(2), ["0", "1", "2", "3", "4"])
    assert ["0,1", "2,3"] == [each["CUDA_VISIBLE_DEVICES"] for each in found.values()]
    assert 2 == len({each["NCCL_HOSTID"] for each in found.values()})
    assert {"lo"} == {each["NCCL_SOCKET_IFNAME"] for each in found.values()}


@pytest.mark.parametrize("gpus", [[], ["0"]])
def test_with_fewer_gpus_than_hosts_nobody_gets_any(gpus: list[str]) -> None:
    found = environments(simulated(2), gpus)
    assert {"" if gpus else None} == {each.get("CUDA_VISIBLE_DEVICES") for each in found.values()}
    assert not any("NCCL_HOSTID" in each for each in found.values())


def test_each_has_a_state_folder_of_its_own() -> None:
    assert 3 == len({each["PROBE_STATE"] for each in environments(simulated(3), []).values()})


def test_localhost_is_as_it_is() -> None:
    localhost = [Host("localhost", target="localhost")]
    assert {} == environments(localhost, ["0", "1"])
    assert {"localhost": {"PROBE_STATE": "/a"}} == environments(localhost, ["0", "1"], "/a")
