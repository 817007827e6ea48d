"""What a machine should have, from every kind of word and sign, and where those are read."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.expect import expect, gather, hides_all, listed
from probe.model import Expectation, Facts, Kind

GPU = "GPU-8a1f1d2e-0000-1111-2222-333344445555"
MIG = "MIG-8a1f1d2e-0000-1111-2222-333344445555"
NODES = ("nvidia-uvm", "nvidia0", "nvidiactl")
GONE: dict[str, Any] = {"nodes": (), "driver_loaded": False, "torch_cuda": None}


def says(**facts: Any) -> tuple[str, int, str]:
    """Kind, count and what more is, of these facts."""
    expected = expect(Facts(**facts))
    return str(expected.kind), expected.count, expected.more_is


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        # settings
        ({"device": "cpu", "gpus_expect": 8, "nodes": NODES}, ("none", 0, "ok")),
        ({"device": "cpu:4", "nvidia_visible": "all"}, ("none", 0, "ok")),
        ({"gpus_expect": 8, "nvidia_visible": "none"}, ("exactly", 8, "warn")),
        ({"gpus_expect": 0, "nodes": NODES, "torch_cuda": "13.0"}, ("none", 0, "ok")),
        ({"gpus_expect": (GPU, MIG), "cuda_visible": ""}, ("list", 2, "warn")),
        # variables that hide all
        ({"nvidia_visible": "none", "nodes": NODES}, ("none", 0, "ok")),
        ({"cuda_visible": "", "nodes": NODES}, ("none", 0, "ok")),
        ({"cuda_visible": "-1", "nvidia_visible": "all"}, ("none", 0, "ok")),
        ({"cuda_visible": "NoDevFiles", "nvidia_visible": "0,1"}, ("none", 0, "ok")),
        # a list
        ({"nvidia_visible": "0"}, ("exactly", 1, "warn")),
        ({"nvidia_visible": "0,1", "cuda_visible": "0"}, ("exactly", 2, "warn")),
        ({"nvidia_visible": "0-3"}, ("exactly", 4, "warn")),
        ({"nvidia_visible": f"{GPU},GPU-2"}, ("exactly", 2, "warn")),
        ({"nvidia_visible": "0:0,0:1"}, ("exactly", 2, "warn")),
        # anything else
        ({"nvidia_visible": "all"}, ("at_least", 1, "ok")),
        ({"nvidia_visible": "/dev/null/path"}, ("at_least", 1, "ok")),
        ({"nvidia_visible": "/var/run/nvidia-container-devices"}, ("at_least", 1, "ok")),
        ({"nvidia_visible": "nvidia.com/gpu=all"}, ("at_least", 1, "ok")),
        ({"nvidia_visible": "0,what"}, ("at_least", 1, "ok")),
        # void and empty say nothing
        ({"nvidia_visible": "void"}, ("none", 0, "ok")),
        ({"nvidia_visible": ""}, ("none", 0, "ok")),
        ({"nvidia_visible": "void", "nodes": NODES}, ("at_least", 1, "ok")),
        ({"nvidia_visible": "", "torch_cuda": "12.8"}, ("at_least", 1, "ok")),
        # signs
        ({"nodes": NODES, "in_container": True}, ("at_least", 1, "ok")),
        ({"nodes": ("nvidiactl",)}, ("at_least", 1, "ok")),
        ({"nodes": ("nvidia-caps", "nvidia-nvswitch0", "nvidia-nvswitchctl")}, ("none", 0, "ok")),
        ({"driver_loaded": True}, ("at_least", 1, "ok")),
        ({"driver_loaded": True, "in_container": True}, ("none", 0, "ok")),
        ({"torch_cuda": "13.0", "in_container": True}, ("at_least", 1, "ok")),
        ({"torch_hip": "6.4"}, ("none", 0, "ok")),
        ({}, ("none", 0, "ok")),
        # a GPU hidden by its user's own list is still this container's
        ({"cuda_visible": "0", "nodes": NODES}, ("at_least", 1, "ok")),
        # asked for by name: at least one
        ({"device": "cuda"}, ("at_least", 1, "ok")),
        ({"device": "cuda", "nvidia_visible": "none"}, ("at_least", 1, "ok")),
        ({"device": "cuda", "cuda_visible": "-1"}, ("at_least", 1, "ok")),
        ({"device": "cuda", "nvidia_visible": "0,1"}, ("exactly", 2, "warn")),
        ({"device": "cuda", "gpus_expect": 4}, ("exactly", 4, "warn")),
        ({"device": "cuda", "gpus_expect": 0}, ("none", 0, "ok")),
    ],
)
def test_first_rule_that_matches_decides(facts: dict[str, Any], expected: tuple[str, int, str]) -> None:
    """The first word or sign, in the order of the design, decides the kind, the count and what more is."""
    assert expected == says(**facts)


@pytest.mark.parametrize(
    ("facts", "reason", "otherwise"),
    [
        ({"device": "cpu:2"}, "device=cpu:2", "--device cuda"),
        ({"gpus_expect": 8}, "gpus.expect=8", "--gpus-expect <n>"),
        ({"gpus_expect": 0}, "gpus.expect=0", "--gpus-expect <n>"),
        ({"gpus_expect": ("GPU-1", "GPU-2")}, "gpus.expect=GPU-1,GPU-2", "--gpus-expect <n>"),
        ({"nvidia_visible": "0,1"}, "NVIDIA_VISIBLE_DEVICES=0,1", "--gpus-expect <n>"),
        ({"nvidia_visible": "all"}, "NVIDIA_VISIBLE_DEVICES=all", "--gpus-expect 0"),
        ({"nvidia_visible": "a\nb"}, r"NVIDIA_VISIBLE_DEVICES='a\nb'", "--gpus-expect 0"),
        ({"cuda_visible": ""}, "CUDA_VISIBLE_DEVICES=(set to nothing)", "--gpus-expect <n>"),
        ({"cuda_visible": "NoDevFiles"}, "CUDA_VISIBLE_DEVICES=NoDevFiles", "--gpus-expect <n>"),
        ({"nodes": NODES}, "/dev/nvidia0", "--gpus-expect 0"),
        ({"driver_loaded": True}, "nvidia in /proc/devices", "--gpus-expect 0"),
        ({"torch_cuda": "13.0"}, "torch's build for CUDA 13.0", "--gpus-expect 0 or --device cpu"),
        ({"device": "cuda"}, "device=cuda", "--device cpu"),
        ({}, "no sign of a GPU", "--gpus-expect <n> or --device cuda"),
    ],
)
def test_names_its_reason_and_the_way_out(facts: dict[str, Any], reason: str, otherwise: str) -> None:
    """An expectation says by whose word it is, in printable characters, and how to say otherwise."""
    expected = expect(Facts(**facts))
    assert (reason, otherwise) == (expected.reason, expected.how_to_say_otherwise)


def test_long_values_are_cut_in_reasons() -> None:
    """A reason stays a clause, whatever the variable holds."""
    assert len(expect(Facts(nvidia_visible="x" * 5000)).reason) < 80


@pytest.mark.parametrize(
    ("facts", "workers"),
    [({"device": "cpu"}, 1), ({"device": "cpu:16"}, 16), ({}, 1), ({"gpus_expect": 0}, 1), ({"nodes": NODES}, 0)],
)
def test_cpu_workers_where_no_gpu_is_expected(facts: dict[str, Any], workers: int) -> None:
    """Without GPUs rung 4 runs on the CPU, on as many workers as were asked for; with GPUs on none."""
    assert workers == expect(Facts(**facts)).cpu_workers


def test_rocm_and_wsl2_are_said_beside_the_expectation() -> None:
    """A ROCm build and /dev/dxg change no count; other parts skip by them."""
    assert expect(Facts(torch_hip="6.4")).rocm
    assert expect(Facts(dxg=True, torch_cuda="12.8")).wsl2
    assert says(dxg=True, torch_cuda="12.8") == ("at_least", 1, "ok")
    assert not expect(Facts(torch_cuda="12.8")).rocm


@pytest.mark.parametrize(
    ("facts", "mig"),
    [
        ({"nvidia_visible": "0:0,0:1"}, True),
        ({"nvidia_visible": MIG}, True),
        ({"nvidia_visible": "0,1"}, False),
        ({"gpus_expect": (MIG,)}, True),
        ({"gpus_expect": (GPU,)}, False),
    ],
)
def test_mig_instances_are_marked(facts: dict[str, Any], mig: bool) -> None:
    """A count that includes MIG instances says so: two of them can be of one GPU."""
    assert mig == expect(Facts(**facts)).mig


def test_a_lost_gpu_does_not_make_itself_unexpected() -> None:
    """What NVIDIA_VISIBLE_DEVICES or a CUDA build of torch promises stays expected with every other sign gone."""
    assert expect(Facts(nvidia_visible="0,1", **GONE)).count == 2
    assert expect(Facts(nvidia_visible="all", **GONE)).gpus


@pytest.mark.parametrize(
    ("value", "hides"),
    [
        ("", True),
        ("  ", True),
        ("-1", True),
        ("-1,0", True),
        (",0", True),
        ("NoDevFiles", True),
        ("none", True),
        ("0", False),
        ("0,-1", False),
        (" 1", False),
        (GPU, False),
        (MIG, False),
        ("GPU-8a", False),
        ("MIG-GPU-8a/1/0", False),
    ],
)
def test_cuda_visible_devices_that_hides_all(value: str, hides: bool) -> None:
    """CUDA stops at the first entry that names no device, so the first alone decides whether any is left."""
    assert hides == hides_all(value)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("0", {"0"}),
        ("0,1,1", {"0", "1"}),
        (" 0 , 1 ", {"0", "1"}),
        ("0,1,", {"0", "1"}),
        ("0-3", {"0", "1", "2", "3"}),
        ("0-2,2-3", {"0", "1", "2", "3"}),
        ("0,00", {"0"}),
        ("0:0,0:1", {"0:0", "0:1"}),
        ("GPU-aa,GPU-bb", {"GPU-aa", "GPU-bb"}),
        ("MIG-GPU-aa/1/0", {"MIG-GPU-aa/1/0"}),
        ("3-0", set()),
        ("0-999999", set()),
        ("0-", set()),
        ("-1", set()),
        ("GPU-", set()),
        ("gpu-aa", set()),
        ("0,all", set()),
        ("0:", set()),
        ("٣", set()),
        (",", set()),
        ("", set()),
    ],
)
def test_lists_of_nvidia_visible_devices(value: str, names: set[str]) -> None:
    """Indices, ranges, MIG instances and UUIDs make a list; one odd word and it is none."""
    assert names == listed(value)


@given(
    st.builds(
        Facts,
        device=st.sampled_from(["auto", "cuda", "cpu", "cpu:8"]),
        gpus_expect=st.none() | st.integers(0, 16) | st.lists(st.just(GPU), min_size=1).map(tuple),
        nvidia_visible=st.none() | st.text() | st.from_regex(r"[0-9,:-]{0,12}", fullmatch=True),
        cuda_visible=st.none() | st.text(),
        nodes=st.lists(st.text()).map(tuple),
        driver_loaded=st.booleans(),
        torch_cuda=st.none() | st.text(),
    )
)
def test_every_machine_has_an_expectation_with_a_reason(facts: Facts) -> None:
    """Whatever the variables hold, the answer is consistent: GPUs and a count, or CPU workers; and one line of why."""
    expected: Expectation = expect(facts)
    assert expected.gpus == (expected.count > 0) == (expected.cpu_workers == 0)
    assert expected.reason.isprintable()
    assert expected.reason
    assert expected.how_to_say_otherwise.startswith("--")
    assert (expected.kind is Kind.LIST) == bool(expected.uuids)


# --- gather ---------------------------------------------------------------------------------------------------------

PROC_DEVICES = """\
Character devices:
  1 mem
195 nvidia
195 nvidiactl
511 nvidia-uvm

Block devices:
  7 loop
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of three folders, with nothing of NVIDIA's in it."""
    for folder in ("dev", "proc/1", "run"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/devices").write_text("Character devices:\n  1 mem\n")
    (tmp_path / "proc/1/cgroup").write_text("0::/init.scope\n")
    return tmp_path


def test_a_bare_machine_has_no_signs(root: Path) -> None:
    """Nothing there, nothing gathered."""
    assert Facts() == gather({}, root=str(root))


def test_an_empty_root_is_no_error(tmp_path: Path) -> None:
    """Without /dev and /proc there are no signs, and no exception."""
    assert Facts() == gather({}, root=str(tmp_path))


def test_settings_and_variables_are_passed_on(root: Path) -> None:
    """CUDA_VISIBLE_DEVICES set to nothing is not the same as not set."""
    env = {"NVIDIA_VISIBLE_DEVICES": "all", "CUDA_VISIBLE_DEVICES": ""}
    facts = gather(env, device="cuda", gpus_expect=2, torch_cuda="13.0", torch_hip="6", root=str(root))
    expected = Facts("cuda", 2, "all", "", torch_cuda="13.0", torch_hip="6")
    assert expected == facts


def test_nodes_and_driver_are_read_by_name(root: Path) -> None:
    """Nodes are listed and never opened: a FIFO in their place does not block."""
    for name in ("nvidia0", "nvidiactl", "null", "dxg"):
        os.mkfifo(root / "dev" / name)
    (root / "proc/devices").write_text(PROC_DEVICES)
    facts = gather({}, root=str(root))
    assert ("nvidia0", "nvidiactl") == facts.nodes
    assert facts.driver_loaded
    assert facts.dxg
    assert not facts.in_container


@pytest.mark.parametrize("line", ["195 nvidia-frontend", "195 nvidia"])
def test_drivers_of_all_ages_are_known(root: Path, line: str) -> None:
    """Older drivers call themselves nvidia-frontend in /proc/devices."""
    (root / "proc/devices").write_text(f"Character devices:\n{line}\n")
    assert gather({}, root=str(root)).driver_loaded


@pytest.mark.parametrize("path", [".dockerenv", "run/.containerenv"])
def test_container_by_file(root: Path, path: str) -> None:
    """Docker and Podman each leave a file."""
    (root / path).touch()
    assert gather({}, root=str(root)).in_container


@pytest.mark.parametrize("name", ["container", "KUBERNETES_SERVICE_HOST", "APPTAINER_CONTAINER"])
def test_container_by_variable(root: Path, name: str) -> None:
    """Systemd's and Podman's `container`, Kubernetes' service and Apptainer's image say it; empty ones do not."""
    assert gather({name: "x"}, root=str(root)).in_container
    assert not gather({name: ""}, root=str(root)).in_container


@pytest.mark.parametrize(
    "line",
    [
        "12:devices:/docker/0123456789ab",
        "0::/kubepods.slice/kubepods-burstable.slice/cri-containerd-01.scope",
        "0::/machine.slice/libpod-01.scope",
        "4:cpu:/ecs/task/01",
        "1:name=systemd:/lxc/web",
    ],
)
def test_container_by_cgroup(root: Path, line: str) -> None:
    """The path of pid 1's cgroup names the container engine, where the cgroup namespace is the host's."""
    (root / "proc/1/cgroup").write_text(line + "\n")
    assert gather({}, root=str(root)).in_container


def test_this_machine_is_readable() -> None:
    """The real /dev and /proc give facts too."""
    assert isinstance(expect(gather({})), Expectation)
