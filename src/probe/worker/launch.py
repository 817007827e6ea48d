"""Which children start at once, before anything slow is imported: what the plan asks of them is known by then.

::

    zygote   some check uses torch, and an interpreter has it       (imports torch meanwhile: first of all)
    nvml     some check uses NVML, or GPUs will be computed on      (their list; whether they are busy)
    cuda     some check uses the CUDA driver, or the user chose GPUs by CUDA_VISIBLE_DEVICES
    files    some check asks a file that can block

The per-GPU children follow when the GPUs are known (`probe.rig`). Standard library only, like `parent`.
"""

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from probe.clock import Budget
from probe.worker.parent import FOLDER, Children, Process

BUSY_GETTERS = ("memory", "processes", "utilization", "compute_mode")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
GPU_FOLDER = "/proc/driver/nvidia/gpus"


class Launch:
    """The first children of a run, and why one of them could not be started."""

    def __init__(self, children: Children, budget: Budget) -> None:
        self.children = children
        self.budget = budget
        self.processes: dict[str, Process] = {}
        self.failures: dict[str, OSError] = {}

    def limit_s(self) -> float:
        """What is left for a child that starts now."""
        return self.budget.left_s(self.budget.child_limit_s)

    def zygote(self, python: str, version: tuple[int, int]) -> None:
        job = {"program": os.path.join(FOLDER, "tensor.py")}
        environment = {**ONE_THREAD, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "CUDA_CACHE_DISABLE": "1"}
        self._start("torch", "zygote", job, environment=environment, python=python, version=version)

    def nvml(self, uses: Collection[str], *, computing: bool, worker: str = "nvml") -> None:
        job = {"getters": self.nvml_getters(uses, computing=computing)}
        self._start(worker, "nvml", job, environment={"CUDA_VISIBLE_DEVICES": None})

    @staticmethod
    def nvml_getters(uses: Collection[str], *, computing: bool) -> list[str]:
        """What NVML is asked of each GPU: what some check uses, and whether it is busy."""
        planned = {name.partition(".")[2] for name in uses if name.startswith("nvml.")}
        return sorted(planned | (set(BUSY_GETTERS) if computing else set()))

    def cuda(self) -> None:
        self._start("cuda", "cuda", {"task": "list", "target": ""}, environment={"CUDA_CACHE_DISABLE": "1"})

    def files(self, questions: Mapping[str, Collection[str]]) -> None:
        self._start("files", "files", {kind: sorted(paths) for kind, paths in questions.items() if paths})

    def _start(self, worker: str, program: str, job: Mapping[str, Any], **options: Any) -> None:
        start: Callable[..., Process] = self.children.start
        try:
            self.processes[worker] = start(program, job, worker=worker, limit_s=self.limit_s(), **options)
        except OSError as error:
            self.failures[worker] = error


def questions(uses: Collection[str], nodes: Collection[str], *, computing: bool, mps_pipe: str) -> dict[str, list[str]]:
    """What the files child is asked: for each kind, of which paths."""
    asked: dict[str, list[str]] = {}
    if "files.nodes" in uses:
        asked["open"] = [f"/dev/{name}" for name in nodes]
    if "files.module" in uses:
        asked["text"] = ["/proc/driver/nvidia/version"]
    if "files.shm" in uses:
        asked["statvfs"] = ["/dev/shm"]  # noqa: S108 - asked about, not written to
    if computing or any(name.startswith("nvml.") for name in uses):
        asked["gpus"] = [GPU_FOLDER]
    if computing:
        asked["exists"] = [mps_pipe]
    return asked
