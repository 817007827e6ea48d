"""Three machines, their reports, and what each format makes of them: the files of `golden`.

``python -m tests.report.machines`` writes the files anew.
"""

from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from probe.exits import code
from probe.model import Cause, Outcome, Reference, Report, Scalar, Who
from probe.report.formats import encode
from tests.report.samples import GPUS, OF_THE_NODE, PER_GPU, outcome, report

GOLDEN = Path(__file__).parent / "golden"
NAMES = {"junit": "xml", "nagios": "txt", "npd": "txt", "prometheus": "prom"}
HEAT: Mapping[str, Scalar] = {"gpu_celsius": 41, "memory_celsius": 47, "slowdown_celsius": 89, "margin_celsius": 46}
MEMORY: Mapping[str, Scalar] = {"gpu_name": "NVIDIA H100 80GB HBM3", "total_bytes": 85520809984, "used_bytes": 0}
EVIL = "GET http://u:s3cr3t@h?token=s3cr3t said \"]]> | 'x'=1;2 \x1b[2J\udcff\x00\ufffe\r\n# EOF \\n <a&b>"


REMEDY = "Reset this GPU, or reboot. Look for its XIDs in the kernel log."
CAUSES = (  # not the catalogue's own: its words may change, these files should not
    Cause("CUDA_KERNEL_HANGS", "GPU 3: no answer", REMEDY, Who.HOST_ADMIN, (Reference("cuda.kernel", GPUS[3]),)),
    Cause("ECC_ERRORS", "GPU 5: 7 errors", REMEDY, Who.HARDWARE, (Reference("nvml.ecc", GPUS[5]),)),
    Cause("NVML_ABSURD", "GPU 5: 255", REMEDY, Who.HOST_ADMIN, (Reference("nvml.pcie", GPUS[5]),)),
    Cause("SHM_SMALL", "/dev/shm is 64 MiB", "Give it more.", Who.USER, (Reference("device.shm", ""),)),
    Cause("CHECK_FAILED", EVIL, "Mend it: \"]]> | 'x'=1", Who.USER, (Reference("service.http.web", ""),)),
)


def healthy_h100() -> Report:
    """One GPU, all well, an advisory skip."""
    smi = outcome("device.smi", "skip", "no nvidia-smi in this image", severity="advisory")
    return _made(*_node({"device.smi": smi}), *_gpu(GPUS[0]))


def sick_8_gpus() -> Report:
    """GPU 3 hangs in a kernel, GPU 5 has ECC errors, /dev/shm is small, and a service answers what breaks parsers."""
    hung = "no answer in 6.2 s; it hung in cuLaunchKernel"
    sick = {
        ("cuda.kernel", GPUS[3]): outcome("cuda.kernel", "timeout", hung, target=GPUS[3], reason="hung"),
        ("torch.tensor", GPUS[3]): outcome("torch.tensor", "skip", "needs cuda.kernel", target=GPUS[3]),
        ("nvml.ecc", GPUS[5]): outcome("nvml.ecc", "fail", "7 uncorrected errors, at most 0", target=GPUS[5], dram=7),
        ("nvml.pcie", GPUS[5]): outcome("nvml.pcie", "unknown", "makes no sense: 255", target=GPUS[5], lanes_s=255),
    }
    shm = outcome(
        "device.shm", "warn", "/dev/shm is 64 MiB, at least 1 GiB wanted", severity="advisory", reason="small"
    )
    web = outcome("service.http.web", "fail", EVIL, severity="advisory", url=EVIL)
    each = [sick.get((seen.id, seen.target), seen) for gpu in GPUS for seen in _gpu(gpu)]
    return _made(*_node({"device.shm": shm}), *each, web, causes=CAUSES)


def no_gpu() -> Report:
    """A machine without any: rung 4 on its two cores."""
    reason = "no GPU is expected here"
    shared = [name for name in OF_THE_NODE if name.startswith(("nvml.", "cuda."))]
    node = _node({name: outcome(name, "skip", reason) for name in shared})
    tensors = [outcome("torch.tensor", "pass", "18 products exact", target=f"cpu:{core}") for core in range(2)]
    skipped = [outcome(name, "skip", reason, target="gpu:*") for name in PER_GPU if name != "torch.tensor"]
    return _made(*node, *skipped, *tensors, notes=(reason,))


def _node(others: dict[str, Outcome]) -> list[Outcome]:
    return [others.get(name) or outcome(name, "pass", "as it should be") for name in OF_THE_NODE]


def _gpu(gpu: str) -> list[Outcome]:
    data: dict[str, Mapping[str, Scalar]] = {
        "nvml.temperature": HEAT,
        "nvml.memory": MEMORY,
        "nvml.pcie": {"load_percent": 12},
    }
    return [replace(outcome(name, "pass", "as it should be", target=gpu), data=data.get(name, {})) for name in PER_GPU]


def _made(*outcomes: Outcome, causes: tuple[Cause, ...] = (), notes: tuple[str, ...] = ()) -> Report:
    made = report(*outcomes, causes=causes, notes=notes)
    return replace(made, exit_code=code("shell", made.verdict.value))


MACHINES = {"healthy_h100": healthy_h100, "sick_8_gpus": sick_8_gpus, "no_gpu": no_gpu}


def golden(machine: str, format_: str) -> Path:
    return GOLDEN / f"{machine}.{format_}.{NAMES[format_]}"


def write() -> None:
    for machine, make in MACHINES.items():
        for format_ in NAMES:
            golden(machine, format_).write_bytes(encode(format_, make()))


if __name__ == "__main__":
    write()
