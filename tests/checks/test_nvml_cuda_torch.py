"""The checks of rungs 2 to 4 that came first, with recorded values."""

from typing import Any

import pytest

from probe.checks.cuda_counts import odd_one_out
from probe.checks.torch_arch import fits
from probe.expect import expect
from probe.model import Facts, Finding, Record, Status
from tests.checks.asking import GPU, ask

EIGHT = Facts(gpus_expect=8)


def nvml(key: str, code: int | None = 0, text: str = "", **data: Any) -> tuple[str, Record]:
    return ("nvml", Record(key, code=code, text=text, data=data))


def cuda(key: str, code: int | None = 0, text: str = "", **data: Any) -> tuple[str, Record]:
    return ("cuda", Record(key, code=code, text=text, data=data))


def torch(key: str, code: int | None = 0, text: str = "", **data: Any) -> tuple[str, Record]:
    return ("torch", Record(key, code=code, text=text, data=data))


def listed(count: int, **more: Any) -> list[tuple[str, Record]]:
    gpus = [{"index": n, "uuid": f"GPU-{n}", "name": "NVIDIA H100 80GB HBM3", "mig": []} for n in range(count)]
    return [
        nvml("count", count=count),
        *(nvml(f"attached:{n}") for n in range(count)),
        nvml("gpus", gpus=gpus, pending=[], **more),
    ]


def test_nvml_that_starts_says_its_versions() -> None:
    """The driver's version, and CUDA's as people write it."""
    finding = ask("nvml.reach", nvml("init", driver_version="580.159.04", driver_cuda=13000))
    assert finding.status is Status.PASS
    assert "driver 580.159.04, CUDA 13.0" in finding.summary


@pytest.mark.parametrize("code", [4, 9, 15, 999])
def test_nvmls_own_code_is_in_the_summary_and_in_the_data(code: int) -> None:
    """Whoever reads the first line can look it up."""
    finding = ask("nvml.reach", nvml("init", code, "words of NVML"))
    assert (finding.status, finding.data["nvml_code"]) == (Status.FAIL, code)
    assert finding.summary == f"NVML {code}: words of NVML"


def test_a_mismatch_names_both_versions() -> None:
    """Kernel module and library, by file, without asking NVML."""
    version = Record(
        "text:/proc/driver/nvidia/version",
        code=0,
        data={"content": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Thu\n"},
    )
    init = nvml("init", 18, "mismatch", library="/usr/lib/libnvidia-ml.so.580.159.04")
    finding = ask("nvml.reach", init, ("files", version))
    assert "kernel module 570.86.10, library libnvidia-ml.so.580.159.04" in finding.summary


def test_a_missing_library_is_said_plainly() -> None:
    """NVML 12 is pynvml's word for it."""
    finding = ask("nvml.reach", nvml("init", 12, "NVML Shared Library Not Found"))
    assert (finding.data["nvml_code"], finding.data["reason"]) == (12, "library_missing")


def test_the_count_that_is_expected_passes() -> None:
    """With the product's name for the first line."""
    finding = ask("nvml.count", *listed(8), facts=EIGHT)
    assert (finding.status, finding.summary) == (Status.PASS, "8 x NVIDIA H100 80GB HBM3")


def test_fewer_than_expected_fail_and_more_warn() -> None:
    """7 of 8 is a failure; 9 for 8 is worth a look."""
    assert ask("nvml.count", *listed(7), facts=EIGHT).status is Status.FAIL
    assert ask("nvml.count", *listed(9), facts=EIGHT).status is Status.WARN


def test_none_is_a_failure_that_says_zero() -> None:
    """NVML answers and knows no GPU."""
    finding = ask("nvml.count", nvml("count", count=0), facts=EIGHT)
    assert (finding.status, finding.data["found"]) == (Status.FAIL, 0)


def test_a_gpu_that_does_not_attach_is_named_with_its_code() -> None:
    """7 of 8 answer, and index 3 is lost."""
    records = [record for record in listed(8) if record[1].key != "attached:3"]
    finding = ask("nvml.count", nvml("attached:3", 15, "GPU is lost"), *records, facts=EIGHT)
    assert (finding.status, finding.data["nvml_code"], finding.data["index"]) == (Status.FAIL, 15, 3)


def test_a_gpu_that_was_here_at_the_first_good_run_is_missed() -> None:
    """Off the bus, NVML's own count has no trace of it."""
    finding = ask("nvml.count", *listed(7), known_gpus=tuple(f"GPU-{n}" for n in range(8)))
    assert (finding.status, finding.data["lost"]) == (Status.FAIL, "GPU-7")


def test_whoever_says_how_many_knows_better_than_an_earlier_run() -> None:
    """`--gpus-expect 7` after a change on purpose: seven are right."""
    finding = ask("nvml.count", *listed(7), known_gpus=tuple(f"GPU-{n}" for n in range(8)), facts=Facts(gpus_expect=7))
    assert finding.status is Status.PASS


def test_cuda_sees_as_many_as_are_expected_or_fails() -> None:
    """All agree on two, and sixteen are expected."""
    devices = cuda("devices", uuids=["GPU-0", "GPU-1"], names=["H100"] * 2)
    finding = ask("cuda.counts", devices, *listed(2), facts=Facts(gpus_expect=16))
    assert (finding.status, "16 expected" in finding.summary) == (Status.FAIL, True)


def test_an_expected_uuid_that_is_not_here_is_named() -> None:
    """A list of UUIDs is compared one by one."""
    facts = Facts(gpus_expect=("GPU-0", "GPU-9"))
    finding = ask("nvml.count", *listed(2), facts=facts, expected=expect(facts))
    assert (finding.status, "GPU-9" in finding.summary) == (Status.FAIL, True)


def memory(used: int, total: int = 80 << 30, processes: int = 0, **facts: Any) -> Finding:
    return ask(
        "nvml.memory",
        nvml("memory", total_bytes=total, used_bytes=used, free_bytes=max(total - used, 0), reserved_bytes=0),
        nvml("processes", count=processes, pids=[], used_bytes=used if processes else 0),
        target=GPU,
        facts=Facts(**facts),
    )


def test_memory_without_an_owner_warns_outside_containers_only() -> None:
    """Inside one, NVML's process list says nothing."""
    assert memory(4 << 30).status is Status.WARN
    assert memory(4 << 30, processes=1).status is Status.PASS
    assert memory(4 << 30, in_container=True).status is Status.PASS
    assert memory(0).status is Status.PASS


@pytest.mark.parametrize(("used", "total"), [(0, 0), (2 << 30, 1 << 30), (0, 1 << 60)])
def test_memory_figures_that_make_no_sense_are_unknown(used: int, total: int) -> None:
    """Broken GPUs answer with absurd numbers and no error code (gpu-fryer#10)."""
    assert memory(used, total).status is Status.UNKNOWN


def test_not_supported_is_a_skip_and_a_lost_gpu_is_not() -> None:
    """Whatever getter NVML refuses: its code decides what that means."""
    assert ask("nvml.memory", nvml("memory", 3, "Not Supported"), target=GPU).status is Status.SKIP
    assert ask("nvml.memory", nvml("memory", 13, "Function Not Found"), target=GPU).status is Status.SKIP
    assert ask("nvml.memory", nvml("memory", 4, "Insufficient Permissions"), target=GPU).status is Status.UNKNOWN
    assert ask("nvml.memory", nvml("memory", 15, "GPU is lost"), target=GPU).data["nvml_code"] == 15


def test_a_process_that_holds_a_gpu_and_is_gone_warns() -> None:
    """Its context can be freed by nobody."""
    held = nvml("processes", count=1, pids=[4242], used_bytes=1 << 30)
    assert ask("nvml.processes", held, target=GPU, files={"/proc/4242/stat": ""}).status is Status.PASS
    assert ask("nvml.processes", held, target=GPU).status is Status.WARN
    assert ask("nvml.processes", held, target=GPU, facts=Facts(in_container=True)).status is Status.PASS


@pytest.mark.parametrize("code", [100, 101, 802, 803, 804, 807, 999])
def test_cuinits_code_is_named(code: int) -> None:
    """The number and the name that CUDA gives it."""
    finding = ask("cuda.init", cuda("init", code, "CUDA_ERROR_X"))
    assert (finding.status, finding.data["cuda_code"]) == (Status.FAIL, code)
    assert f"cuInit gives {code}, CUDA_ERROR_X" in finding.summary


def test_a_libcuda_that_cannot_be_loaded_is_said() -> None:
    """With the loader's own words."""
    finding = ask("cuda.init", cuda("init", -1, "libcuda.so.1 cannot be loaded: no such file"))
    assert finding.data["reason"] == "library_missing"


def test_out_of_memory_is_never_the_gpus_fault() -> None:
    """In the context, in the kernel and in torch: skipped, and said."""
    started = cuda("init")
    assert ask("cuda.context", started, cuda("context", 2, "oom"), target=GPU).status is Status.SKIP
    assert ask("cuda.kernel", cuda("kernel", 2, "oom"), target=GPU).status is Status.SKIP
    assert ask("torch.tensor", torch("tensor:fp32", 2, "oom"), target=GPU).status is Status.SKIP


def test_a_context_that_fails_names_the_call_and_the_code() -> None:
    """And one that is made says how long it took."""
    broken = cuda("context", 719, "CUDA_ERROR_LAUNCH_FAILED", call="cuDevicePrimaryCtxRetain")
    finding = ask("cuda.context", cuda("init"), broken, target=GPU)
    assert finding.summary == "cuDevicePrimaryCtxRetain gives 719, CUDA_ERROR_LAUNCH_FAILED"
    made = cuda("context", name="H100", free_bytes=1, total_bytes=2)
    finding = ask("cuda.context", cuda("init"), made, target=GPU)
    assert (finding.status, [rung.rung for rung in finding.rungs]) == (Status.PASS, ["init", "context"])


def test_one_wrong_word_fails_the_kernel() -> None:
    """Of half a million."""
    finding = ask(
        "cuda.kernel",
        cuda("kernel", words=524288, wrong_words=1, copy_wrong_words=0, first_wrong_index=17),
        target=GPU,
    )
    assert (finding.status, finding.data["reason"]) == (Status.FAIL, "wrong_words")
    copied = cuda("kernel", words=524288, wrong_words=0, copy_wrong_words=2)
    assert ask("cuda.kernel", copied, target=GPU).status is Status.FAIL
    right = cuda("kernel", words=524288, wrong_words=0, copy_wrong_words=0)
    assert ask("cuda.kernel", right, target=GPU).status is Status.PASS


@pytest.mark.parametrize(
    ("seen", "counted", "facts", "status"),
    [
        (2, 2, Facts(), Status.PASS),
        (1, 2, Facts(), Status.FAIL),
        (1, 2, Facts(cuda_visible="0"), Status.PASS),
        (1, 2, Facts(cuda_visible="1,7"), Status.FAIL),  # measured: silently one device
        (2, 2, Facts(nodes=("nvidia0", "nvidia1", "nvidiactl")), Status.PASS),
        (2, 2, Facts(nodes=("nvidia0", "nvidia1", "nvidia2", "nvidiactl")), Status.FAIL),
    ],
)
def test_counts_agree_or_the_odd_one_is_named(seen: int, counted: int, facts: Facts, status: Status) -> None:
    """CUDA honours CUDA_VISIBLE_DEVICES, NVML does not."""
    devices = cuda("devices", uuids=[f"GPU-{n}" for n in range(seen)], names=["H100"] * seen)
    assert ask("cuda.counts", devices, *listed(counted), facts=facts).status is status


@pytest.mark.parametrize(
    ("compared", "words"),
    [
        ({"NVML": 8, "CUDA": 8}, ""),
        ({"NVML": 8, "CUDA": 7, "torch": 8}, "the counts of GPUs differ: CUDA 7, against NVML 8, torch 8"),
        ({"NVML": 8, "CUDA": 7}, "the counts of GPUs differ: CUDA 7, against NVML 8"),
        (
            {"NVML": 7, "CUDA": 7, "device nodes": 8},
            "the counts of GPUs differ: device nodes 8, against NVML 7, CUDA 7",
        ),
    ],
)
def test_the_odd_one_out_is_the_one_that_most_do_not_agree_with(compared: dict[str, int], words: str) -> None:
    """Of two that differ, the one that sees less."""
    assert odd_one_out(compared) == words


def test_torch_is_counted_only_where_it_is_imported_anyway() -> None:
    """`--only cuda` must not wait for it."""
    devices = cuda("devices", uuids=["GPU-0"], names=["H100"])
    counted = ("torch", Record("count", target="count", code=0, data={"count": 0}))
    assert ask("cuda.counts", devices, *listed(1), counted).status is Status.PASS
    here = {"version": "2.11.0+cu130", "cuda": "13.0"}
    found = ask("cuda.counts", devices, *listed(1), counted, workers=("torch",), torch=here)
    assert (found.status, found.summary) == (
        Status.FAIL,
        "the counts of GPUs differ: torch 0, against NVML 1, CUDA 1",
    )


def test_import_errors_are_the_finding() -> None:
    """In torch's own words; a torch that is not there has its own reason."""
    broken = torch("import", 1, "OSError: libcudart.so.13: cannot open", missing=False)
    here: dict[str, str | None] = {"version": "2.11.0"}
    finding = ask("torch.import", broken, torch=here)
    assert (finding.data["reason"], "libcudart.so.13" in finding.summary) == ("import_error", True)
    assert ask("torch.import").data["reason"] == "torch_missing"
    poisoned = ask("torch.import", torch("import", 2, "importing torch initialised CUDA"), torch=here)
    assert poisoned.data["reason"] == "cuda_initialised"


@pytest.mark.parametrize(
    ("version", "built_for", "driver", "status", "reason"),
    [
        ("2.11.0+cu130", "13.0", 13000, Status.PASS, None),
        ("2.11.0+cu128", "12.8", 12040, Status.PASS, None),  # minor versions are compatible within a major
        ("2.11.0+cu128", "12.8", 13000, Status.PASS, None),
        ("2.11.0+cu130", "13.0", 12080, Status.FAIL, "cuda_too_new"),
        ("2.13.0+cpu", None, 13000, Status.FAIL, "cpu_build"),
        ("2.11.0+cu130", "13.0", None, Status.WARN, None),
    ],
)
def test_builds(version: str, built_for: str | None, driver: int | None, status: Status, reason: str | None) -> None:
    """The build's CUDA against the driver's."""
    records = [] if driver is None else [cuda("init", driver_cuda=driver)]
    here = {"version": version, "cuda": built_for}
    found = ask("torch.build", *records, facts=EIGHT, torch=here, workers=("cuda",))
    assert (found.status, found.data.get("reason")) == (status, reason)


@pytest.mark.parametrize(
    ("version", "shipped", "majors", "reason"),
    [
        ("2.11.0+cu130", None, "13", None),
        ("2.11.0+cu130", "2.8.0a0+5228986c39.nv25.05", "13", "vendor_replaced"),
        ("2.8.0a0+5228986c39.nv25.5", "2.8.0a0+5228986c39", "", None),
        ("2.11.0+cu130", None, "12 13", "two_cuda_majors"),
    ],
)
def test_a_replaced_vendor_build_and_mixed_wheels_warn(
    version: str, shipped: str | None, majors: str, reason: str | None
) -> None:
    """They work until they do not; NCCL's and cuDNN's versions are reported."""
    found = ask(
        "torch.build",
        cuda("init", driver_cuda=13000),
        torch("import", nccl="2.28.9", cudnn="9.19.0.56", cuda_majors=majors),
        facts=EIGHT,
        torch={"version": version, "cuda": "13.0"},
        workers=("cuda",),
        env={"NVIDIA_PYTORCH_VERSION": shipped} if shipped else {},
    )
    assert (found.status, found.data.get("reason")) == (Status.WARN if reason else Status.PASS, reason)
    assert reason == "vendor_replaced" or found.data["nccl"] == "2.28.9"


@pytest.mark.parametrize(
    ("capability", "archs", "fit"),
    [
        ("9.0", ["sm_80", "sm_90"], "sass"),
        ("8.6", ["sm_80"], "sass"),  # a later minor of the same major runs it
        ("8.0", ["sm_86"], ""),
        ("12.0", ["sm_90", "compute_90"], "ptx"),
        ("10.0", ["sm_90a", "compute_90a"], ""),  # architecture-specific code runs on its own architecture alone
        ("9.0", ["sm_90a"], "sass"),
        ("12.0", ["sm_100", "sm_120"], "sass"),
        ("7.0", ["sm_75", "nonsense"], ""),
    ],
)
def test_architectures(capability: str, archs: list[str], fit: str) -> None:
    """SASS within a major, PTX upwards, nothing else."""
    assert fits(capability, archs) == fit


def test_a_wrong_word_or_input_fails_the_tensor_test() -> None:
    """In any dtype; and what raises is named with its dtype."""
    right = [
        torch(f"tensor:{dtype}", words=131072, wrong_words=0, wrong_inputs=0) for dtype in ("fp32", "bf16", "fp16")
    ]
    assert ask("torch.tensor", *right, target=GPU).status is Status.PASS
    wrong = torch("tensor:bf16", words=131072, wrong_words=3, wrong_inputs=0)
    assert ask("torch.tensor", right[0], wrong, target=GPU).summary == "bf16: 3 of 131072 output words are wrong"
    spoiled = torch("tensor:bf16", words=131072, wrong_words=0, wrong_inputs=1)
    assert ask("torch.tensor", right[0], spoiled, target=GPU).data["wrong_inputs"] == 1
    raised = torch("tensor:fp16", 719, "CUDA error: unspecified launch failure")
    assert ask("torch.tensor", right[0], right[1], raised, target=GPU).data["cuda_code"] == 719
