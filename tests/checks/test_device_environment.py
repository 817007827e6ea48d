"""device.environment: which variables are dangerous, and that nothing else is ever shown."""

import re

import pytest

from probe.checks.device_environment import TABLE, nccl_misses
from probe.model import Facts, Finding, Record, Status
from probe.worker.launch import compat_libraries
from tests.checks.asking import ask

GPU = Facts(nodes=("nvidia0",))


def environment(*records: tuple[str, Record], **env: str) -> Finding:
    asked = {"exists": tuple(record.key.removeprefix("exists:") for _, record in records)}
    return ask("device.environment", *records, facts=GPU, env=env, asked=asked)


DANGEROUS = [
    ("CUDA_LAUNCH_BLOCKING", "1", "CUDA_LAUNCH_BLOCKING=1"),
    ("CUDA_INJECTION64_PATH", "/opt/libcupti.so", "CUDA_INJECTION64_PATH"),
    ("NVTX_INJECTION64_PATH", "/opt/x.so", "NVTX_INJECTION64_PATH"),
    ("CUDA_ENABLE_COREDUMP_ON_EXCEPTION", "1", "CUDA_ENABLE_COREDUMP_ON_EXCEPTION"),
    ("CUDA_DEVICE_WAITS_ON_EXCEPTION", "1", "CUDA_DEVICE_WAITS_ON_EXCEPTION"),
    ("COMPUTE_PROFILE", "1", "COMPUTE_PROFILE"),
    ("NVIDIA_TF32_OVERRIDE", "0", "NVIDIA_TF32_OVERRIDE=0"),
    ("PYTORCH_NO_CUDA_MEMORY_CACHING", "1", "PYTORCH_NO_CUDA_MEMORY_CACHING"),
    ("NCCL_DEBUG", "TRACE", "NCCL_DEBUG=TRACE"),
    ("CUDA_MODULE_LOADING", "EAGER", "CUDA_MODULE_LOADING=EAGER"),
    ("LD_PRELOAD", "/opt/nvidia/nsight-systems/libToolsInjectionProxy64.so", "LD_PRELOAD"),
]


@pytest.mark.parametrize(("name", "value", "named"), DANGEROUS, ids=[name for name, _, _ in DANGEROUS])
def test_a_dangerous_variable_is_named_with_what_it_does(name: str, value: str, named: str) -> None:
    finding = environment(**{name: value})
    assert (Status.WARN, named) == (finding.status, finding.data["variables"])
    assert re.fullmatch(rf"{re.escape(named)}: \w.{{20,}}", finding.summary)


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"CUDA_LAUNCH_BLOCKING": "0", "NCCL_DEBUG": "INFO", "CUDA_MODULE_LOADING": "LAZY", "COMPUTE_PROFILE": "0"},
        {"CUDA_INJECTION64_PATH": "", "LD_PRELOAD": "/usr/lib/libjemalloc.so.2"},
    ],
)
def test_what_is_empty_off_or_harmless_passes(env: dict[str, str]) -> None:
    assert Status.PASS is environment(**env).status


def test_several_are_all_named_and_two_explained() -> None:
    env = {name: value for name, value, _ in DANGEROUS[:4]}
    finding = environment(**env)
    assert 4 == finding.data["found"]
    assert all(name in finding.summary for name in env)
    assert finding.summary.endswith("; and NVTX_INJECTION64_PATH, CUDA_ENABLE_COREDUMP_ON_EXCEPTION")


def test_no_value_is_shown_but_those_that_the_table_allows() -> None:
    """Paths and whatever else stands in the environment may be secrets."""
    planted = {name: "hunter2" for name, _, _ in DANGEROUS} | {"HF_TOKEN": "hunter2", "LD_PRELOAD": "/nsys/hunter2.so"}
    finding = environment(**planted)
    assert finding.status is Status.WARN
    assert "hunter2" not in finding.summary + repr(finding.data)


COMPAT = "/usr/local/cuda/compat/lib/libcuda.so.1"


@pytest.mark.parametrize(("code", "status"), [(0, Status.WARN), (2, Status.PASS)])
def test_a_compat_folder_counts_only_where_it_holds_a_libcuda(code: int, status: Status) -> None:
    """NVIDIA's images always have the folder on the path, and fill it only where it is needed."""
    assert status is environment(("files", Record(f"exists:{COMPAT}", code=code))).status


def test_the_pipe_of_mps_is_no_library() -> None:
    assert Status.PASS is environment(("files", Record("exists:/tmp/nvidia-mps/control", code=0))).status


def test_compat_folders_are_found_on_the_library_path() -> None:
    path = "/usr/local/cuda/compat/lib:/usr/lib/compatible:relative/compat::/usr/local/cuda-12.4/compat"
    expected = [COMPAT, "/usr/local/cuda-12.4/compat/libcuda.so.1"]
    assert expected == compat_libraries({"LD_LIBRARY_PATH": path})


def test_every_row_says_what_it_does_and_who_says_so() -> None:
    for danger in TABLE:
        assert danger.does
        assert danger.source.startswith("https://")
        re.compile(danger.values)


@pytest.mark.parametrize(
    ("chosen", "wrong"),
    [
        ("", ""),
        ("eth", ""),
        ("=eth0", ""),
        ("=eth", "means no interface"),
        ("ib0,eth0", ""),
        ("ens5", "means no interface"),
        ("^docker,lo,eth", "means no interface"),
        ("^lo,eth", "docker0, which no other host reaches"),
        ("^=lo", ""),
        ("docker0", "which no other host reaches"),
    ],
)
def test_nccls_choice_of_an_interface_is_held_against_this_hosts(chosen: str, wrong: str) -> None:
    """Its forms are NCCL's own: prefixes, ``=`` for exact names, ``^`` for all but these."""
    found = nccl_misses(chosen, ["docker0", "eth0", "lo"])
    assert (wrong in found) if wrong else found == ""


def test_an_interface_that_is_not_there_warns() -> None:
    """NCCL would fail at its first collective, or hang."""
    files = {"/sys/class/net/eth0/mtu": "1500", "/sys/class/net/lo/mtu": "65536"}
    found = ask("device.environment", env={"NCCL_SOCKET_IFNAME": "ib0"}, files=files)
    assert (found.status, found.data["reason"]) == (Status.WARN, "nccl_interface")
