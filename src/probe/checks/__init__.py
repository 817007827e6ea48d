"""One file per question. This list is the whole of the registration: a new check is its file and its name here."""

from importlib import import_module

from probe.registry import CHECKS, TARGETS, Registry

NAMES = (
    "device_nodes",
    "device_uvm",
    "device_module",
    "device_stuck",
    "device_shm",
    "device_limits",
    "device_cgroup",
    "device_disk",
    "device_zombies",
    "device_environment",
    "device_smi",
    "device_xid",
    "nvml_reach",
    "nvml_count",
    "nvml_recovery",
    "nvml_ecc",
    "nvml_remap",
    "nvml_sram",
    "nvml_fabric",
    "nvml_throttle",
    "nvml_temperature",
    "nvml_pcie",
    "nvml_pages",
    "nvml_nvlink",
    "nvml_persistence",
    "nvml_mode",
    "nvml_mig",
    "nvml_memory",
    "nvml_processes",
    "cuda_init",
    "cuda_context",
    "cuda_kernel",
    "cuda_counts",
    "torch_import",
    "torch_build",
    "torch_arch",
    "torch_tensor",
    "torch_nccl",
    "service_jupyter",
    "service_ssh",
    "service_http",
    "service_tcp",
    "service_command",
    "service_model",
)


def load() -> Registry:
    """Import every check and return the registry, in the order of the ladder whoever imported one of them before."""
    for name in NAMES:
        import_module(f"{__name__}.{name}")
    for registry in (CHECKS, TARGETS):
        ordered = sorted(registry.items(), key=lambda item: NAMES.index(item[1].run.__module__.rpartition(".")[2]))
        registry.clear()
        registry.update(ordered)
    return CHECKS
