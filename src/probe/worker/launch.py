"""Which children start at once, before anything slow is imported: what the plan asks of them is known by then.

::

    zygote   some check uses what is forked from it, and an interpreter has torch    (imports it: first of all)
    nvml     some check uses NVML, or GPUs will be computed on      (their list; whether they are busy)
    cuda     some check uses the CUDA driver, or the user chose GPUs by CUDA_VISIBLE_DEVICES
    files    some check asks a file that can block, or something is to be written there when all is done
    smi      some check runs nvidia-smi

The per-GPU children follow when the GPUs are known (`probe.rig`). Standard library only, like `parent`.
"""

import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from probe.clock import Budget
from probe.worker.parent import FOLDER, Children, Process

FORKED = {"torch": "tensor.py", "nccl": "nccl.py", "model": "model.py"}
"""The workers that are forked from the zygote, and their programs."""
BUSY_GETTERS = ("memory", "processes", "utilization", "compute_mode")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
GPU_FOLDER = "/proc/driver/nvidia/gpus"
SMI = ("nvidia-smi", "--query-gpu=count", "--format=csv,noheader")
"""One line per GPU, each with the number of all of them."""
SSHD_CONFIG = "/etc/ssh/sshd_config"


class Launch:
    """The first children of a run, and why one of them could not be started."""

    def __init__(self, children: Children, budget: Budget) -> None:
        self.children = children
        self.budget = budget
        self.processes: dict[str, Process] = {}
        self.failures: dict[str, OSError] = {}
        self.asked: Mapping[str, Collection[str]] = {}
        """What the files child is asked, by kind."""

    def limit_s(self) -> float:
        """What is left for a child that starts now."""
        return self.budget.left_s(self.budget.child_limit_s)

    def zygote(self, workers: Collection[str], python: str, version: tuple[int, int]) -> None:
        job = {"programs": {name: os.path.join(FOLDER, FORKED[name]) for name in FORKED if name in workers}}
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

    def files(self, *, writes: bool = False) -> None:
        """It `writes`: stays when it has answered, for what is then written to its inbox."""
        job: dict[str, Any] = {kind: sorted(paths) for kind, paths in self.asked.items() if paths}
        limit_s = self.budget.left_s(self.budget.net_s) if writes else self.limit_s()
        self._start("files", "files", job, inbox=writes, limit_s=limit_s)

    def smi(self) -> None:
        """nvidia-smi, as anybody would run it; on PATH it is looked for in the child, since a folder there may hang."""
        try:
            self.processes["smi"] = self.children.start_foreign(SMI, worker="smi")
        except OSError as error:
            self.failures["smi"] = error

    def _start(self, worker: str, program: str, job: Mapping[str, Any], **options: Any) -> None:
        start: Callable[..., Process] = self.children.start
        try:
            self.processes[worker] = start(program, job, worker=worker, **{"limit_s": self.limit_s(), **options})
        except OSError as error:
            self.failures[worker] = error


def questions(
    uses: Collection[str], nodes: Collection[str], env: Mapping[str, str], *, computing: bool, mps_pipe: str
) -> dict[str, list[str]]:
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
    if "files.kmsg" in uses:
        asked["kmsg"] = ["/dev/kmsg"]
    if "files.disk" in uses:
        asked["disk"] = folders_torch_writes_to(env)
    asked["exists"] = compat_libraries(env) if "files.compat" in uses else []
    if computing:
        asked["exists"] += [mps_pipe]
    return asked


def of_services(
    uses: Collection[str], options: Mapping[str, Mapping[str, Any]], env: Mapping[str, str], *, in_container: bool
) -> dict[str, list[str]]:
    """What the files child is asked for the checks of Jupyter and ssh, by the options of each."""
    asked: dict[str, list[str]] = {}
    if "files.jupyter" in uses and not options["service.jupyter"]["url"]:
        given = options["service.jupyter"]["runtime_dir"]
        asked["jupyter"] = [given] if given else runtime_folders(env)
        if in_container and not given:  # on a host the servers of its users are their own affair
            asked["homes"] = ["/home"]
        asked["which"] = ["jupyter"]
    if "files.ssh" in uses:
        asked["sshd"] = [SSHD_CONFIG]
        asked["which"] = [*asked.get("which", ()), "ssh"]
    return {**asked, "told": ["/"]} if "which" in asked else asked


def runtime_folders(env: Mapping[str, str]) -> list[str]:
    """Where Jupyter keeps its runtime files by its own rules (jupyter_core.paths), for this user and for NB_USER."""
    homes = [env.get("HOME", ""), f"/home/{env['NB_USER']}" if env.get("NB_USER") else ""]
    data = f"{env['XDG_DATA_HOME']}/jupyter" if env.get("XDG_DATA_HOME") else ""
    wanted = [
        env.get("JUPYTER_RUNTIME_DIR", ""),
        *(f"{folder}/runtime" for folder in (env.get("JUPYTER_DATA_DIR"), data) if folder),
        *(f"{home}/.local/share/jupyter/runtime" for home in homes if home),
    ]
    return list(dict.fromkeys(folder for folder in wanted if folder.startswith("/")))


def folders_torch_writes_to(env: Mapping[str, str]) -> list[str]:
    """Temporary files and the caches of torch.hub, Triton, Inductor and the CUDA driver, by their own defaults.

    A home comes from HOME alone: asking the user database can wait for a directory server for ever. Inductor's default
    is below the temporary folder. The CUDA driver keeps nothing where CUDA_CACHE_DISABLE is 1.
    """
    home = env.get("HOME", "")
    caches = env.get("XDG_CACHE_HOME") or f"{home}/.cache"
    wanted = [
        env.get("TMPDIR") or "/tmp",  # noqa: S108 - asked about, not written to
        env.get("TORCH_HOME") or f"{caches}/torch",
        env.get("TRITON_CACHE_DIR") or f"{home}/.triton/cache",
        env.get("TORCHINDUCTOR_CACHE_DIR", ""),
        "" if env.get("CUDA_CACHE_DISABLE") == "1" else env.get("CUDA_CACHE_PATH") or f"{home}/.nv/ComputeCache",
    ]
    without_home = ("/.cache/", "/.triton/", "/.nv/") if not home.startswith("/") else ()
    return list(dict.fromkeys(path for path in wanted if path.startswith("/") and not path.startswith(without_home)))


def mps_pipe(env: Mapping[str, str]) -> str:
    """Where a CUDA program would look for an MPS server (NVIDIA MPS documentation)."""
    return os.path.join(env.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps", "control")  # noqa: S108


def compat_libraries(env: Mapping[str, str]) -> list[str]:
    """Where LD_LIBRARY_PATH would find another libcuda than the driver's: NVIDIA's cuda-compat packages."""
    folders = env.get("LD_LIBRARY_PATH", "").split(":")
    return [f"{folder}/libcuda.so.1" for folder in folders if folder.startswith("/") and "compat" in folder.split("/")]
