"""Variables that make CUDA programs slow, wrong or stop: left over from debugging, or set for another image.

The list is DCGM's (DCGM_FR_BAD_CUDA_ENV, which gpud copies), and what PyTorch's and NVIDIA's own pages warn of. Only
variables of this table are ever shown, and of their values what stands in the table. And NCCL_SOCKET_IFNAME, where it
means no interface of this host: NCCL then fails or hangs at its first collective (pytorch#29482, horovod#310).
"""

import re
from collections.abc import Sequence

from msgspec import Struct

from probe.context import Context
from probe.model import Finding, Job, passed, warned
from probe.registry import check

DCGM = "https://github.com/NVIDIA/DCGM/blob/master/nvvs/plugin_src/software/Software.cpp"
CUDA = "https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#cuda-environment-variables"
TORCH = "https://docs.pytorch.org/docs/stable/cuda_environment_variables.html"
NCCL = "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html#nccl-debug"
NSIGHT = "https://docs.nvidia.com/nsight-systems/UserGuide/index.html"
COMPAT = "https://docs.nvidia.com/deploy/cuda-compatibility/forward-compatibility.html"

SET = r"(?s).+"
ON = r"(?i)\s*(?:1|true|yes|on|y)\s*"


class Danger(Struct, frozen=True):
    """A variable, the values of it that do harm (a regex of the whole), and what they do."""

    name: str
    values: str
    does: str
    source: str

    def in_(self, value: str | None) -> bool:
        return bool(value) and re.fullmatch(self.values, value or "") is not None


TABLE = (
    Danger("CUDA_DEVICE_WAITS_ON_EXCEPTION", ON, "a kernel that fails waits for a debugger, for ever", DCGM),
    Danger("CUDA_LAUNCH_BLOCKING", r"\s*[1-9]\d*\s*", "each kernel launch waits for its end: much slower", CUDA),
    Danger("PYTORCH_NO_CUDA_MEMORY_CACHING", SET, "each tensor is allocated by the driver: many times slower", TORCH),
    Danger("CUDA_INJECTION64_PATH", SET, "loads a library into every CUDA program (a profiler)", DCGM),
    Danger("CUDA_INJECTION32_PATH", SET, "loads a library into every CUDA program (a profiler)", DCGM),
    Danger("NVTX_INJECTION64_PATH", SET, "loads a library into every program that marks ranges (a profiler)", NSIGHT),
    Danger("NVTX_INJECTION32_PATH", SET, "loads a library into every program that marks ranges (a profiler)", NSIGHT),
    Danger(
        "LD_PRELOAD",
        r"(?is).*(?:ToolsInjection|TreeLauncher|nsys|nsight|cupti|libsanitizer|cuda[-_]?inject).*",
        "loads a profiler or a debugger of CUDA into every program",
        NSIGHT,
    ),
    Danger("NSIGHT_CUDA_DEBUGGER", ON, "keeps a debugger resident: slower", DCGM),
    Danger("COMPUTE_PROFILE", ON, "the driver profiles every program, and writes files", DCGM),
    Danger("CUDA_PROFILE", ON, "the driver profiles every program, and writes files", DCGM),
    Danger("OPENCL_PROFILE", ON, "the driver profiles every program, and writes files", DCGM),
    Danger("CUDA_ENABLE_COREDUMP_ON_EXCEPTION", ON, "a kernel that fails writes the GPU's memory to disk", DCGM),
    Danger("CUDA_AUTO_BOOST", SET, "overrides how the GPU chooses its clocks", DCGM),
    Danger("CUDA_FORCE_PTX_JIT", ON, "every kernel is compiled at start; what has no PTX fails", CUDA),
    Danger("CUDA_DISABLE_PTX_JIT", ON, "kernels without machine code for this GPU fail", CUDA),
    Danger("CUDA_MODULE_LOADING", r"(?i)\s*EAGER\s*", "all kernels are loaded at start: seconds, and GPU memory", CUDA),
    Danger("NVIDIA_TF32_OVERRIDE", r"\s*[01]\s*", "TF32 is not as the program asks: slower, or less exact", TORCH),
    Danger("NCCL_DEBUG", r"(?i)\s*TRACE\s*", "NCCL writes a line for every call: slower, and disks fill", NCCL),
)
LOCAL_BRIDGES = ("docker", "veth", "virbr", "br-")
SHOWN = {"CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "NVIDIA_TF32_OVERRIDE", "NCCL_DEBUG"}
"""Those whose value says something, and can be nothing else than what `TABLE` allows."""


@check("device.environment", severity="advisory", profiles="RN", uses=("files.compat",), gpu_only=True)
async def environment(context: Context, job: Job) -> Finding:
    """Is a variable set that makes CUDA programs slow, wrong or stop?"""
    env = context.host.env
    found = [danger for danger in TABLE if danger.in_(env.get(danger.name))]
    names = [_named(danger, env.get(danger.name, "")) for danger in found]
    words = [f"{name}: {danger.does}" for name, danger in zip(names, found, strict=True)]
    for path in context.asked.get("exists", ()):
        if path.endswith("/libcuda.so.1") and (await context.answer("files", f"exists:{path}")).code == 0:
            names.append("LD_LIBRARY_PATH")
            words.append("LD_LIBRARY_PATH: a libcuda of cuda-compat comes before the driver's own")
            break
    if not words:
        if missed := nccl_misses(env.get("NCCL_SOCKET_IFNAME", ""), context.host.names("/sys/class/net")):
            return warned(missed, reason="nccl_interface")
        return passed(f"none of {len({danger.name for danger in TABLE}) + 2} dangerous variables is set")
    more = f"; and {', '.join(names[2:])}" if len(names) > 2 else ""
    return warned("; ".join(words[:2]) + more, variables=", ".join(names), found=len(names))


def nccl_misses(chosen: str, interfaces: Sequence[str]) -> str:
    """What is wrong with NCCL_SOCKET_IFNAME here: no interface that it means, or only one of a bridge; else empty.

    NCCL's own forms: a list of prefixes; ``=`` before it, exact names; ``^`` before it, all but these.
    """
    exact, but = chosen.startswith(("=", "^=")), chosen.startswith("^")
    names = [name for name in chosen.lstrip("^=").split(",") if name]
    if not names or not interfaces:
        return ""

    def named(interface: str) -> bool:
        return interface in names if exact else interface.startswith(tuple(names))

    left = [interface for interface in interfaces if named(interface) is not but]
    here = ", ".join(interfaces)
    if not left:
        return f"NCCL_SOCKET_IFNAME={chosen[:40]} means no interface of this host ({here[:120]})"
    if all(interface.startswith(LOCAL_BRIDGES) for interface in left):
        return f"NCCL_SOCKET_IFNAME={chosen[:40]} means {', '.join(left)[:60]}, which no other host reaches"
    return ""


def _named(danger: Danger, value: str) -> str:
    return f"{danger.name}={value.strip()[:16]}" if danger.name in SHOWN else danger.name
