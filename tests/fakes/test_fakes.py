"""The fakes are what they claim: each fact is asked of them through the real pynvml or ctypes, in its own process.

What hangs is killed when it has hung for `HANGS_S`; everything else ends by itself.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import host
from tests.fakes.build import LIBRARIES, BuildError, build, built, compiler, exported
from tests.fakes.scenario import UNJUDGED, Scenario, ScenarioError, uuid_of

HOSTS = sorted((Path(__file__).parents[1] / "hosts").glob("*.toml"))
FUSE_HANG = Path(__file__).with_name("fuse_hang.py")
HANGS_S = 0.7  # an answer takes 0.15 s on a loaded 2-core machine, most of it importing pynvml

NVML = """
import json, sys
from pynvml import *
def call(function, *arguments):
    try:
        return function(*arguments)
    except NVMLError as error:
        return error.value
def at(index):
    return nvmlDeviceGetHandleByIndex(index)
def show(*values):
    print(json.dumps(values)); sys.stdout.flush()
"""
CUDA = """
import ctypes, json, sys
cuda = ctypes.CDLL("libcuda.so.1")
def number(function, *arguments):
    out = ctypes.c_int(-1)
    code = getattr(cuda, function)(ctypes.byref(out), *arguments)
    return out.value if code == 0 else -code
def uuids():
    found = []
    for ordinal in range(number("cuDeviceGetCount")):
        raw = ctypes.create_string_buffer(16)
        cuda.cuDeviceGetUuid_v2(raw, ordinal)
        found.append(raw.raw.hex())
    return found
def context(ordinal):
    made = ctypes.c_void_p()
    code = cuda.cuDevicePrimaryCtxRetain(ctypes.byref(made), ordinal)
    return code or cuda.cuCtxSetCurrent(made)
def show(*values):
    print(json.dumps(values)); sys.stdout.flush()
"""
KERNEL = """
ptx = b".version 7.0\\n.target sm_70\\n.visible .entry fill(.param .u64 out, .param .u32 n, .param .u32 seed) {}"
def words(n, seed):
    module, function, out = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64()
    codes = [cuda.cuModuleLoadData(ctypes.byref(module), ptx),
             cuda.cuModuleGetFunction(ctypes.byref(function), module, b"fill"),
             cuda.cuMemAlloc_v2(ctypes.byref(out), ctypes.c_size_t(4 * n)),
             cuda.cuMemsetD32_v2(out, 0xdeadbeef, ctypes.c_size_t(n))]
    kept = out, ctypes.c_uint32(n), ctypes.c_uint32(seed)
    parameters = (ctypes.c_void_p * 3)(*(ctypes.addressof(one) for one in kept))
    codes.append(cuda.cuLaunchKernel(function, 1, 1, 1, 256, 1, 1, 0, None, parameters, None))
    codes.append(cuda.cuCtxSynchronize())
    host = (ctypes.c_uint32 * n)()
    codes += [cuda.cuMemcpyDtoH_v2(host, out, ctypes.c_size_t(4 * n)), cuda.cuMemFree_v2(out),
              cuda.cuModuleUnload(module)]
    assert not any(codes), codes
    return list(host)
"""


class Machine:
    """Plays scenarios without root: only the libraries are fake."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache

    def run(self, toml: str, program: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `program` on the host that `toml` describes. Raises `subprocess.TimeoutExpired` when it hangs."""
        file = self.folder / "host.toml"
        file.write_text(toml + UNJUDGED)
        ours = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
        libraries = self.folder / "libraries"
        libraries.mkdir(exist_ok=True)
        env = {**ours, **Scenario.load(file).install(libraries, self.cache), **env}
        argv = [sys.executable, "-c", program]
        timeout_s = HANGS_S if "hang" in toml else 30
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)

    def ask(self, toml: str, program: str, **env: str) -> list[Any]:
        """What the program `show`s."""
        ran = self.run(toml, program, **env)
        assert ran.returncode == 0, ran.stderr
        shown: list[Any] = json.loads(ran.stdout)
        return shown

    def nvml(self, toml: str, program: str) -> list[Any]:
        return self.ask(toml, f"{NVML}\nnvmlInit()\n{program}")

    def cuda(self, toml: str, program: str, **env: str) -> list[Any]:
        return self.ask(toml, f"{CUDA}{KERNEL}\n{program}", **env)

    def visible(self, toml: str = "", **env: str) -> list[Any]:
        """CuInit's code, then the UUIDs it lets see."""
        return self.cuda(toml, "code = cuda.cuInit(0); show(code, *uuids())", **env)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None and not os.environ.get("CI"):
        pytest.skip("no C compiler")
    return tmp_path_factory.mktemp("fakes")


@pytest.fixture
def machine(tmp_path: Path, cache: Path) -> Machine:
    return Machine(tmp_path, cache)


def raw(gpu: int, mig: int | None = None) -> str:
    """A UUID as CUDA has it: 16 bytes."""
    return uuid_of(gpu, mig)[4:].replace("-", "")


# ---- scenarios -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", HOSTS, ids=lambda path: path.stem)
def test_every_scenario_can_be_read(path: Path) -> None:
    assert Scenario.load(path).name == path.stem


@pytest.mark.parametrize(
    "toml",
    [
        f"[nvml]\nintit = 18\n{UNJUDGED}",
        f"[gpu.3]\nmemory.usde = 1\n{UNJUDGED}",
        f"[files.nodes]\nnvidia9 = 'hang'\n{UNJUDGED}",
        f"{UNJUDGED}verdit = 'x'",
    ],
)
def test_a_word_that_no_fake_knows_is_refused(tmp_path: Path, toml: str) -> None:
    """Otherwise a slip of the pen would make a healthy host."""
    (tmp_path / "slip.toml").write_text(toml)
    with pytest.raises(ScenarioError, match=r"slip\.toml.*(intit|usde|nvidia9|verdit)"):
        Scenario.load(tmp_path / "slip.toml")


@pytest.mark.parametrize("lacking", ["verdict", "exit_code", "blames"])
def test_a_host_that_does_not_say_what_to_expect_is_refused(tmp_path: Path, lacking: str) -> None:
    """Otherwise its test would pass whatever probe says."""
    kept = [line for line in UNJUDGED.splitlines() if not line.startswith(lacking)]
    (tmp_path / "silent.toml").write_text("\n".join(kept))
    with pytest.raises(ScenarioError, match=rf"silent\.toml.* lacks {lacking}$"):
        Scenario.load(tmp_path / "silent.toml")


def test_blamed_gpus_are_named_by_their_uuid() -> None:
    blamed = Scenario.load(HOSTS[0].with_name("nvml-15-handle.toml")).expect.blames
    assert blamed == (f"gpu:{uuid_of(3)}",)


# ---- the build -------------------------------------------------------------------------------------------------------


@pytest.mark.cc
def test_a_library_is_compiled_once(cache: Path) -> None:
    folder = build(cache)
    made = {library: (folder / library).stat().st_mtime_ns for library in LIBRARIES}
    assert build(cache) == folder
    assert made == {library: (folder / library).stat().st_mtime_ns for library in LIBRARIES}


@pytest.mark.cc
def test_a_missing_function_is_not_found_and_the_others_are(cache: Path) -> None:
    whole = ctypes.CDLL(str(build(cache) / "libcuda.so.1"))
    assert all(hasattr(whole, name) for name in exported("libcuda.so.1"))
    old = ctypes.CDLL(str(built("libcuda.so.1", cache, ["cuDeviceGetUuid_v2"])))
    assert [hasattr(old, name) for name in ("cuDeviceGetUuid_v2", "cuDeviceGet")] == [False, True]


@pytest.mark.cc
def test_a_function_that_never_was_cannot_be_missing(cache: Path) -> None:
    with pytest.raises(BuildError, match="cuNever"):
        built("libcuda.so.1", cache, ["cuNever"])


@pytest.mark.cc
def test_the_compilers_words_are_in_the_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fakes.build.FLAGS", ("-shared", "-fno-such-flag"))
    with pytest.raises(BuildError, match="no-such-flag"):
        build(cache)


# ---- NVML ------------------------------------------------------------------------------------------------------------


@pytest.mark.cc
def test_a_healthy_gpu_has_the_values_of_a_real_one(machine: Machine) -> None:
    """Those of facts/nvml-h100.json, where they stand there."""
    shown = machine.nvml(
        "",
        """
gpu = at(0)
memory, memory2 = nvmlDeviceGetMemoryInfo(gpu), nvmlDeviceGetMemoryInfo(gpu, version=nvmlMemory_v2)
show(nvmlSystemGetDriverVersion(), nvmlSystemGetCudaDriverVersion_v2(), nvmlDeviceGetCount(), nvmlDeviceGetName(gpu),
     [memory.total, memory.free, memory.used], [memory2.used, memory2.reserved],
     nvmlDeviceGetCudaComputeCapability(gpu), nvmlDeviceGetRemappedRows(gpu), nvmlDeviceGetEccMode(gpu),
     call(nvmlDeviceGetRetiredPagesPendingStatus, gpu), nvmlDeviceGetMarginTemperature(gpu),
     nvmlDeviceGetComputeRunningProcesses(gpu), nvmlDeviceGetCurrentClocksEventReasons(gpu),
     [call(nvmlDeviceGetNvLinkState, gpu, link) for link in (0, 17, 18)],
     [(value.nvmlReturn, value.valueType, value.value.siVal)
      for value in nvmlDeviceGetFieldValues(gpu, [230, 193, 208])])""",
    )
    assert shown == [
        "580.159.04",
        13000,
        8,
        "NVIDIA H100 80GB HBM3",
        [85520809984, 85017493504, 503316480],
        [0, 503316480],
        [9, 0],
        [0, 0, 0, 0],
        [1, 1],
        3,
        46,
        [],
        1,
        [1, 1, 2],
        [[0, 1, 0], [0, 5, -8], [3, 3, 0]],
    ]


@pytest.mark.cc
def test_structs_with_a_version_are_filled_as_pynvml_reads_them(machine: Machine) -> None:
    program = """
sram, fabric, fabric3 = c_nvmlEccSramErrorStatus_v1_t(), c_nvmlGpuFabricInfo_v2_t(), c_nvmlGpuFabricInfo_v3_t()
codes = nvmlDeviceGetSramEccErrorStatus(at(1), byref(sram)), nvmlDeviceGetGpuFabricInfoV(at(1), byref(fabric))
nvmlDeviceGetGpuFabricInfoV(at(1), byref(fabric3))
pci, rates = nvmlDeviceGetPciInfo(at(1)), nvmlDeviceGetUtilizationRates(at(1))
(process,) = nvmlDeviceGetComputeRunningProcesses(at(1))
fabric.version = 7
show(sram.bThresholdExceeded, sram.aggregateUncBucketSm, fabric.state, fabric.healthMask, fabric3.healthSummary,
     pci.busId, hex(pci.pciDeviceId), rates.gpu, process.pid, process.usedGpuMemory,
     call(nvmlDeviceGetGpuFabricInfoV, at(1), byref(fabric)))"""
    toml = """
[gpu.1]
sram = { threshold_exceeded = 1, bucket_sm = 9 }
fabric = { state = 2, health_summary = 2 }
utilization.gpu = 97
process = [{ pid = 4242, memory = 1024 }]"""
    assert machine.nvml(toml, f"from ctypes import byref\n{program}") == [
        1, 9, 2, 0x1AA, 2, "00000000:3B:00.0", "0x233010de", 97, 4242, 1024, 25,
    ]  # fmt: skip


@pytest.mark.cc
def test_uuids_are_those_that_python_expects_and_find_their_gpu(machine: Machine) -> None:
    program = "u = [nvmlDeviceGetUUID(at(i)) for i in range(8)]\n"
    program += "show(u, [nvmlDeviceGetIndex(nvmlDeviceGetHandleByUUID(one.encode())) for one in u])"
    assert machine.nvml("", program) == [[uuid_of(gpu) for gpu in range(8)], list(range(8))]


@pytest.mark.cc
@pytest.mark.parametrize("code", [9, 18, 999])
def test_a_code_of_init_is_what_pynvml_raises(machine: Machine, code: int) -> None:
    assert machine.ask(f"[nvml]\ninit = {code}", f"{NVML}\nshow(call(nvmlInit))") == [code]


@pytest.mark.cc
def test_nothing_works_before_init(machine: Machine) -> None:
    program = f"{NVML}\ntry: nvmlDeviceGetCount()\nexcept NVMLError as error: show(error.value)"
    assert machine.ask("", program) == [1]


@pytest.mark.cc
def test_no_attach_sees_no_gpu(machine: Machine) -> None:
    """As on a real host: facts/measured.md."""
    program = f"{NVML}\nnvmlInitWithFlags(NVML_INIT_FLAG_NO_ATTACH); show(nvmlDeviceGetCount())"
    assert machine.ask("", program) == [0]


@pytest.mark.cc
def test_a_code_of_one_gpu_leaves_the_others_alone(machine: Machine) -> None:
    shown = machine.nvml(
        '[gpu.3.nvml]\nhandle = 15\n[gpu."*".nvml]\nname = 16\n[gpu.1.nvml]\nname = 0',
        "names = [call(nvmlDeviceGetName, at(i)) for i in (1, 2)]\n"
        "show([type(call(at, i)) is int for i in (2, 3)], call(at, 3), names)",
    )
    assert shown == [[False, True], 15, ["NVIDIA H100 80GB HBM3", 16]]


@pytest.mark.cc
def test_a_field_may_have_a_value_or_a_code_of_its_own(machine: Machine) -> None:
    toml = "[gpu.0]\nfield.230 = 2\nfield.999 = 5\n[gpu.0.nvml]\nfield.193 = 3"
    program = "show([(v.nvmlReturn, v.value.ullVal) for v in nvmlDeviceGetFieldValues(at(0), [230, 999, 193])])"
    assert machine.nvml(toml, program) == [[[0, 2], [0, 5], [3, 0xFFFFFFF8]]]


@pytest.mark.cc
def test_mig_instances_are_devices_of_their_own(machine: Machine) -> None:
    shown = machine.nvml(
        "[gpu.0.mig]\ninstances = 2\n[gpu.0.mig.1]\nmemory.used = 7",
        """
migs = [nvmlDeviceGetMigDeviceHandleByIndex(at(0), i) for i in range(2)]
show(nvmlDeviceGetMigMode(at(0)), nvmlDeviceGetMaxMigDeviceCount(at(0)), nvmlDeviceGetMaxMigDeviceCount(at(1)),
     [nvmlDeviceGetUUID(mig) for mig in migs], call(nvmlDeviceGetMigDeviceHandleByIndex, at(0), 2),
     nvmlDeviceGetMemoryInfo(migs[1]).used, call(nvmlDeviceGetUtilizationRates, at(0)))""",
    )
    assert shown == [[1, 1], 7, 0, [uuid_of(0, 0), uuid_of(0, 1)], 6, 7, 3]


@pytest.mark.cc
def test_a_library_that_is_not_installed_is_not_found(machine: Machine) -> None:
    assert machine.ask("[nvml]\nlibrary = false", f"{NVML}\nshow(call(nvmlInit))") == [12]


@pytest.mark.cc
def test_pynvml_says_which_function_an_old_driver_lacks(machine: Machine) -> None:
    toml = '[nvml]\nmissing = ["nvmlDeviceGetMarginTemperature"]'
    assert machine.nvml(toml, "show(call(nvmlDeviceGetMarginTemperature, at(0)), nvmlDeviceGetCount())") == [13, 8]


@pytest.mark.cc
@pytest.mark.parametrize(
    ("toml", "program"),
    [
        ("[nvml]\ninit = 'hang'", NVML + "nvmlInit()"),
        ("[gpu.3.nvml]\nmemory = 'hang'", NVML + "nvmlInit(); nvmlDeviceGetMemoryInfo(at(3))"),
        ("[cuda]\ninit = 'hang'", CUDA + "cuda.cuInit(0)"),
        ("[gpu.2.cuda]\ncontext = 'hang'", CUDA + "cuda.cuInit(0); context(2)"),
    ],
)
def test_a_call_that_hangs_never_returns_to_python(machine: Machine, toml: str, program: str) -> None:
    """SIGTERM with a handler in Python does not end it either: the interpreter never gets to run it."""
    deaf = "import signal; signal.signal(signal.SIGTERM, lambda *_: print('never'))\nprint('there', flush=True)\n"
    with pytest.raises(subprocess.TimeoutExpired) as hung:
        machine.run(toml, deaf + program)
    assert hung.value.stdout == b"there\n"


@pytest.mark.cc
def test_what_hangs_on_one_gpu_answers_on_another(machine: Machine) -> None:
    assert machine.nvml("[gpu.3.nvml]\nmemory = 'hang'", "show(nvmlDeviceGetMemoryInfo(at(2)).used)") == [503316480]


@pytest.mark.cc
@pytest.mark.parametrize(
    ("word", "number"), [("segv", signal.SIGSEGV), ("abort", signal.SIGABRT), ("kill", signal.SIGKILL)]
)
def test_a_call_may_end_the_process_by_a_signal(machine: Machine, word: str, number: int) -> None:
    assert machine.run(f"[nvml]\ninit = '{word}'", f"{NVML}\nnvmlInit()").returncode == -number


@pytest.mark.cc
def test_a_call_may_end_the_process_without_a_word(machine: Machine) -> None:
    ran = machine.run("[cuda]\ninit = 'exit'", f"{CUDA}\ncuda.cuInit(0); show(1)")
    assert (ran.returncode, ran.stdout) == (0, "")


# ---- CUDA ------------------------------------------------------------------------------------------------------------


@pytest.mark.cc
@pytest.mark.parametrize(
    ("variable", "gpus"),
    [
        ("2,0", [2, 0]),
        ("1,99,0", [1]),
        ("1, 3", [1, 3]),
        ("0,-1,1", [0]),
        ("3gpu,1", [3, 1]),
        (uuid_of(5), [5]),
        (f"{uuid_of(5)[:12]},{uuid_of(1)[:8]}", [5, 1]),
        (f"{uuid_of(2)},GPU-ffffffff,0", [2]),
    ],
)
def test_cuda_visible_devices_chooses(machine: Machine, variable: str, gpus: list[int]) -> None:
    assert machine.visible(CUDA_VISIBLE_DEVICES=variable) == [0, *map(raw, gpus)]


@pytest.mark.cc
@pytest.mark.parametrize("variable", ["", "-1", "NoDevFiles", "99", "GPU-", "GPU-ffffffff", "0,0"])
def test_cuda_visible_devices_may_hide_all(machine: Machine, variable: str) -> None:
    assert machine.visible(CUDA_VISIBLE_DEVICES=variable) == [100]


@pytest.mark.cc
def test_without_the_variable_all_are_visible(machine: Machine) -> None:
    assert machine.visible() == [0, *map(raw, range(8))]


@pytest.mark.cc
def test_cudas_order_may_not_be_the_buses(machine: Machine) -> None:
    toml = "[host]\ngpus = 2\n[cuda]\nreversed = true"
    assert machine.visible(toml, CUDA_VISIBLE_DEVICES="0") == [0, raw(1)]
    assert machine.visible(toml, CUDA_VISIBLE_DEVICES="0", CUDA_DEVICE_ORDER="PCI_BUS_ID") == [0, raw(0)]


@pytest.mark.cc
def test_a_process_sees_one_mig_instance(machine: Machine) -> None:
    toml = "[host]\ngpus = 1\n[gpu.0.mig]\ninstances = 2"
    assert machine.visible(toml) == [0, raw(0, 0)]
    assert machine.visible(toml, CUDA_VISIBLE_DEVICES=uuid_of(0, 1)) == [0, raw(0, 1)]


@pytest.mark.cc
def test_counting_before_cuinit_says_not_initialized(machine: Machine) -> None:
    assert machine.cuda("", "show(number('cuDeviceGetCount'), number('cuDriverGetVersion'))") == [-3, 13000]


@pytest.mark.cc
def test_cuda_does_not_survive_a_fork(machine: Machine) -> None:
    program = "import os\ncuda.cuInit(0)\npid = os.fork()\nif not pid: os._exit(-number('cuDeviceGetCount'))\n"
    assert machine.cuda("", program + "show(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))") == [3]


@pytest.mark.cc
@pytest.mark.parametrize(
    ("toml", "name"),
    [("[cuda]\ninit = 802", "CUDA_ERROR_SYSTEM_NOT_READY"), ("[gpu.4.cuda]\ninit = 999", "CUDA_ERROR_UNKNOWN")],
)
def test_a_code_of_cuinit_has_its_name(machine: Machine, toml: str, name: str) -> None:
    program = "name = ctypes.c_char_p(); cuda.cuGetErrorName(cuda.cuInit(0), ctypes.byref(name))\n"
    assert machine.cuda(toml, program + "show(name.value.decode())") == [name]


@pytest.mark.cc
def test_a_gpu_out_of_sight_does_not_spoil_cuinit(machine: Machine) -> None:
    assert machine.visible("[gpu.4.cuda]\ninit = 999", CUDA_VISIBLE_DEVICES="3") == [0, raw(3)]


@pytest.mark.cc
def test_the_kernel_writes_its_closed_form(machine: Machine) -> None:
    def word(i: int, seed: int) -> int:
        x = (i * 2654435761 + seed) & 0xFFFFFFFF
        x = (x ^ x >> 15) * 2246822519 & 0xFFFFFFFF
        return x ^ x >> 13

    assert machine.cuda("", "cuda.cuInit(0); context(0); show(*words(1000, 7))") == [word(i, 7) for i in range(1000)]


@pytest.mark.cc
def test_a_wrong_word_is_wrong_by_one_bit_on_one_gpu(machine: Machine) -> None:
    program = "cuda.cuInit(0)\ndef on(gpu): context(gpu); return words(64, 7)\n"
    program += "show(*[(i, a ^ b) for i, (a, b) in enumerate(zip(on(5), on(4))) if a != b])"
    assert machine.cuda("[gpu.5.cuda]\nkernel.wrong_word = 17\nkernel.wrong_bit = 3", program) == [[17, 8]]


@pytest.mark.cc
@pytest.mark.parametrize(("free_mib", "code"), [(898, 0), (298, 2)])
def test_a_context_needs_room(machine: Machine, free_mib: int, code: int) -> None:
    """With the limits measured on an H100."""
    used = 85520809984 - 503316480 - (free_mib << 20)
    assert machine.cuda(f"[gpu.0]\nmemory.used = {used}", "cuda.cuInit(0); show(context(0))") == [code]


@pytest.mark.cc
def test_memory_is_not_lent_beyond_what_is_there(machine: Machine) -> None:
    program = """
def ask(gib): return cuda.cuMemAlloc_v2(ctypes.byref(ctypes.c_uint64()), ctypes.c_size_t(gib << 30))
cuda.cuInit(0); before = ask(1); context(0); show(before, ask(200))"""
    assert machine.cuda("", program) == [201, 2]


@pytest.mark.cc
def test_a_code_of_a_context_is_its_gpus_own(machine: Machine) -> None:
    toml = "[gpu.2.cuda]\ncontext = 999\n[gpu.3.cuda]\nsynchronize = 700"
    program = "cuda.cuInit(0); show([context(i) for i in (1, 2, 3)], cuda.cuCtxSynchronize())"
    assert machine.cuda(toml, program) == [[0, 999, 0], 700]


# ---- the whole host --------------------------------------------------------------------------------------------------


def on(scenario: Path, cache: Path, *argv: str) -> str:
    argv_there = host.command(Scenario.load(scenario), argv, cache)
    ran = subprocess.run(argv_there, capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def written(folder: Path, toml: str) -> Path:
    (folder / "host.toml").write_text(toml + UNJUDGED)
    return folder / "host.toml"


@pytest.mark.system
@pytest.mark.cc
def test_a_gpu_host_shows_its_nodes_procfs_and_libraries(cache: Path) -> None:
    shown = on(
        HOSTS[0].with_name("h100x2.toml"),
        cache,
        sys.executable,
        "-c",
        """if True:
            import ctypes, os
            from pathlib import Path
            for node in sorted(Path("/dev").glob("nvidia*")):
                os.close(os.open(node, os.O_RDWR)); print(node.name)
            print(Path("/proc/driver/nvidia/version").read_text().split("  ")[1])
            for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
                print(file.parent.name, file.read_text().split("UUID:")[1].split()[0])
            print("  1 nvidia-uvm" in Path("/proc/devices").read_text().splitlines())
            print(*sorted(os.listdir("/sys/module")))
            print(ctypes.CDLL("libnvidia-ml.so.1").nvmlInit_v2(), ctypes.CDLL("libcuda.so.1").cuInit(0))
            Path("/dev/null").write_text("x"); print(len(os.urandom(1)), os.listdir("/dev/shm") is not None)""",
    )
    assert shown.splitlines() == [
        "nvidia-uvm", "nvidia-uvm-tools", "nvidia0", "nvidia1", "nvidiactl", "580.159.04",
        f"0000:19:00.0 {uuid_of(0)}", f"0000:3b:00.0 {uuid_of(1)}",
        "True", "nvidia nvidia_modeset nvidia_uvm", "0 0", "1 True",
    ]  # fmt: skip


@pytest.mark.system
@pytest.mark.cc
@pytest.mark.parametrize(
    ("state", "error"), [("absent", "ENOENT"), ("eperm", "EPERM"), ("enxio", "ENXIO"), ("eacces", "EACCES")]
)
def test_a_node_fails_as_it_is_told(tmp_path: Path, cache: Path, state: str, error: str) -> None:
    program = "import errno, os\ntry: os.open('/dev/nvidia0', os.O_RDONLY)\n"
    program += "except OSError as e: print(errno.errorcode[e.errno])\nos.open('/dev/nvidia1', os.O_RDWR)"
    scenario = written(tmp_path, f"[files.nodes]\nnvidia0 = '{state}'")
    assert on(scenario, cache, sys.executable, "-c", program) == f"{error}\n"


OPEN = "import os, sys; print(os.stat(sys.argv[1]).st_size, flush=True); os.open(sys.argv[1], eval(sys.argv[2]))"


@pytest.mark.system
@pytest.mark.cc
@pytest.mark.parametrize("flags", ["os.O_RDWR", "os.O_RDONLY | os.O_NONBLOCK"])
def test_opening_a_node_may_hang_until_it_is_killed(tmp_path: Path, cache: Path, flags: str) -> None:
    scenario = Scenario.load(written(tmp_path, "[files.nodes]\nnvidia0 = 'hang'"))
    argv = host.command(scenario, [sys.executable, "-c", OPEN, "/dev/nvidia0", flags], cache)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(HANGS_S)
        process.kill()
        assert process.wait(5) == -signal.SIGKILL


@pytest.mark.system
@pytest.mark.cc
def test_opening_a_node_may_outlive_sigkill_until_the_command_has_ended(tmp_path: Path, cache: Path) -> None:
    program = f"OPEN = {OPEN!r}\n"
    program += """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", OPEN, "/dev/nvidia0", "os.O_RDWR"], stdout=subprocess.PIPE)
child.stdout.readline()
for ask in (lambda: None, child.kill):
    ask()
    try: child.wait(0.5); print("gone")
    except subprocess.TimeoutExpired: print(open(f"/proc/{child.pid}/stat").read().split()[2])
sys.stdout.flush(); os._exit(0)"""
    assert on(written(tmp_path, "[files.nodes]\nnvidia0 = 'stuck'"), cache, sys.executable, "-c", program) == "S\nD\n"


@pytest.mark.system
@pytest.mark.cc
def test_reading_under_proc_driver_may_hang(tmp_path: Path, cache: Path) -> None:
    scenario = Scenario.load(written(tmp_path, "[files]\ndriver = 'hang'"))
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(
            host.command(scenario, ["cat", "/proc/driver/nvidia/version"], cache), timeout=HANGS_S, check=False
        )


@pytest.mark.system
@pytest.mark.cc
def test_a_scenario_may_write_files_of_its_own(tmp_path: Path, cache: Path) -> None:
    toml = '[files]\n"/dev/kmsg" = "xid\\n"\n"/etc/hostname" = "node7\\n"\n"/proc/driver/nvidia/params" = "p\\n"\n'
    toml += '[env]\nNVIDIA_VISIBLE_DEVICES = "all"'
    there = ["sh", "-c", "cat /dev/kmsg /etc/hostname /proc/driver/nvidia/params; echo $NVIDIA_VISIBLE_DEVICES"]
    assert on(written(tmp_path, toml), cache, *there) == "xid\nnode7\np\nall\n"


@pytest.mark.system
@pytest.mark.cc
def test_the_command_is_the_launchers_own_process_and_this_machine_is_untouched(cache: Path) -> None:
    before = Path("/proc/self/mounts").read_text()
    argv = host.command(Scenario.load(HOSTS[0].with_name("h100x1.toml")), ["sh", "-c", "echo $$; exit 7"], cache)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.read()) == process.pid
    assert process.returncode == 7
    assert Path("/proc/self/mounts").read_text() == before
    assert not Path("/dev/.fake").exists()


# ---- a mount that never answers --------------------------------------------------------------------------------------


@pytest.fixture
def deaf_mount(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    folder = tmp_path / "deaf"
    folder.mkdir()
    argv = [sys.executable, str(FUSE_HANG), str(folder), *request.param]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield folder, server
        server.terminate()
    assert server.returncode == 0


@pytest.mark.system
@pytest.mark.parametrize(("deaf_mount", "dies"), [([], True), (["--unkillable"], False)], indirect=["deaf_mount"])
def test_who_touches_a_deaf_mount_waits_until_it_is_gone(
    deaf_mount: tuple[Path, subprocess.Popen[str]], dies: bool
) -> None:
    folder, server = deaf_mount
    with subprocess.Popen(["stat", str(folder / "file")], stderr=subprocess.DEVNULL) as stuck:
        with pytest.raises(subprocess.TimeoutExpired):
            stuck.wait(HANGS_S)
        stuck.kill()
        if dies:
            stuck.wait(5)
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                stuck.wait(HANGS_S)
            assert Path(f"/proc/{stuck.pid}/stat").read_text().split()[2] == "D"
        server.terminate()
        stuck.wait(5)
    server.wait(5)
    assert os.fspath(folder) not in Path("/proc/self/mounts").read_text()
