"""The catalogue, and how outcomes become causes."""

import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe import faults
from probe.faults import catalogue, diagnose, explain, listing
from probe.model import PROBLEMS, Outcome, Profile, Reference, Severity, Status, Who
from tests.report.samples import GPUS, OF_THE_NODE, PER_GPU, healthy, outcome

A, B, C = GPUS[:3]
SIGNALS = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE")


def codes(*outcomes: Outcome, profile: Profile = Profile.READINESS) -> list[str]:
    return [cause.code for cause in diagnose(outcomes, profile)]


# ---------------------------------------------------------------------------------------------------- each by itself

EVIDENCE: list[tuple[str, Outcome]] = [
    ("GPU_DRIVER_STUCK", outcome("device.stuck", reason="stuck")),
    ("GPU_DRIVER_STUCK", outcome("device.stuck")),
    ("DEVICE_NODE_EPERM", outcome("device.nodes", reason="eperm")),
    ("DEVICE_NODE_EPERM", outcome("device.uvm", reason="eperm")),
    ("DEVICE_NODE_ENXIO", outcome("device.nodes", reason="enxio")),
    ("TORCH_IMPORT_STARTS_CUDA", outcome("torch.import", reason="cuda_initialised")),
    ("TORCH_PTX_ONLY", outcome("torch.arch", "warn", target=A, reason="ptx_only")),
    ("GPU_MEMORY_OWNERLESS", outcome("nvml.memory", "warn", target=A, reason="ownerless")),
    ("GPU_PROCESS_GONE", outcome("nvml.processes", "warn", target=A, reason="gone")),
    ("NCCL_WRONG_INTERFACE", outcome("device.environment", "warn", reason="nccl_interface")),
    ("UVM_NODE_NOT_YET", outcome("device.uvm", "warn", reason="not_yet")),
    *[(f"NVML_GPU_CRASHED_{s}", outcome("nvml.memory", target=A, signal=s)) for s in SIGNALS],
    ("REQUIRED_ABSENT", outcome("nvml.ecc", reason="required")),
    ("BUDGET_TOO_SHORT", outcome("cuda.context", "timeout", target=A, short=True)),
    ("INTERRUPTED", outcome("cuda.context", "unknown", target=A, reason="interrupted")),
    ("CANNOT_START", outcome("nvml.reach", "unknown", reason="cannot_start")),
    ("TORCH_VENDOR_REPLACED", outcome("torch.build", "warn", reason="vendor_replaced")),
    ("TORCH_TWO_CUDA_MAJORS", outcome("torch.build", "warn", reason="two_cuda_majors")),
    ("TORCH_BUILD_UNCHECKED", outcome("torch.build", "warn")),
    ("DEVICE_OPEN_HANGS", outcome("device.nodes", "timeout", step="open /dev/nvidia0")),
    ("DEVICE_OPEN_HANGS", outcome("device.module", "timeout")),
    ("GPU_EXPECTED_ABSENT", outcome("device.nodes", reason="expected_absent")),
    ("GPU_EXPECTED_ABSENT", outcome("nvml.count", reason="expected_absent", expected=1, found=0)),
    ("GPU_EXPECTED_ABSENT", outcome("nvml.reach", reason="expected_absent")),
    ("DEVICE_NODES_MISSING", outcome("device.nodes", reason="missing")),
    ("DEVICE_NODES_MISSING", outcome("device.nodes")),
    ("DEVICE_MODULE_MISSING", outcome("device.module", reason="missing")),
    ("DEVICE_UVM_MISSING", outcome("device.uvm", reason="missing")),
    ("DEVICE_UVM_STALE", outcome("device.uvm", reason="stale_major")),
    ("SHM_SMALL", outcome("device.shm", "warn", reason="small")),
    ("SHM_SMALL", outcome("device.shm")),
    ("LIMIT_NOFILE", outcome("device.limits", "warn", limit="nofile", reason="small")),
    ("LIMIT_MEMLOCK", outcome("device.limits", "warn", limit="memlock", reason="small")),
    ("OOM_KILLED_HERE", outcome("device.cgroup", "warn", reason="oom_kill")),
    ("CGROUP_MEMORY_HIGH", outcome("device.cgroup", "warn", reason="memory_high")),
    ("CGROUP_PIDS_HIGH", outcome("device.cgroup", "warn", reason="pids_high")),
    ("CGROUP_CPUS_FEW", outcome("device.cgroup", "warn", reason="cpus_few")),
    ("DISK_FULL", outcome("device.disk", "warn", reason="full")),
    ("DISK_FULL", outcome("device.disk", "warn", reason="inodes")),
    ("DISK_READ_ONLY", outcome("device.disk", "warn", reason="read_only")),
    ("DISK_READ_ONLY", outcome("device.disk", "warn", reason="unreadable")),
    ("DISK_HANGS", outcome("device.disk", "timeout", step="disk /mnt/gone")),
    ("ZOMBIES", outcome("device.zombies", "warn", found=12)),
    ("CUDA_VARIABLE", outcome("device.environment", "warn", variables="CUDA_LAUNCH_BLOCKING=1")),
    ("SMI_FAILS", outcome("device.smi", reason="status", smi_status=9)),
    ("SMI_FAILS", outcome("device.smi", signal="SIGSEGV")),
    ("SMI_GARBAGE", outcome("device.smi", reason="garbage", smi_status=0)),
    ("SMI_HANGS", outcome("device.smi", "timeout")),
    ("SMI_MISSING", outcome("device.smi", "warn", reason="absent")),
    ("SMI_INFOROM", outcome("device.smi", "warn", reason="inforom", smi_status=14)),
    ("XID_31", outcome("device.xid", xid=31)),
    ("XID_RECOVERED", outcome("device.xid", "warn", reason="recovered", xid=95)),
    ("XID_TOLD", outcome("device.xid", "warn", reason="told", xid=94)),
    ("NVML_DRIVER_MISMATCH", outcome("nvml.reach", nvml_code=18)),
    ("NVML_DRIVER_NOT_LOADED", outcome("nvml.reach", nvml_code=9)),
    ("NVML_GPU_LOST_15", outcome("nvml.recovery", target=A, nvml_code=15)),
    ("NVML_RESET_REQUIRED_16", outcome("nvml.recovery", target=A, nvml_code=16)),
    ("NVML_UNKNOWN_999", outcome("nvml.reach", nvml_code=999)),
    ("NVML_NO_PERMISSION", outcome("nvml.reach", nvml_code=4)),
    ("NVML_NO_PERMISSION", outcome("nvml.mode", "unknown", target=A, nvml_code=4)),
    ("NVML_IRQ_ISSUE_11", outcome("nvml.reach", nvml_code=11)),
    ("NVML_INSUFFICIENT_POWER_8", outcome("nvml.ecc", target=A, nvml_code=8)),
    ("NVML_CORRUPTED_INFOROM_14", outcome("nvml.ecc", target=A, nvml_code=14)),
    ("NVML_CODE_10", outcome("nvml.reach", nvml_code=10)),
    ("NVML_LIBRARY_MISSING", outcome("nvml.reach", reason="library_missing")),
    ("NVML_LIBRARY_MISSING", outcome("nvml.reach", nvml_code=12)),
    ("NVML_LIBRARY_MISSING", outcome("nvml.reach", nvml_code=12, reason="library_missing")),
    ("NVML_HANGS", outcome("nvml.reach", "timeout", step="nvmlInit")),
    ("NVML_GPU_HANGS", outcome("nvml.ecc", "timeout", target=A, step="nvmlDeviceGetHandleByIndex(0)")),
    ("NVML_HANGS", outcome("nvml.ecc", "timeout", target="gpu:*")),
    ("NVML_COUNT_ZERO", outcome("nvml.count", expected=2, found=0)),
    ("NVML_COUNT_LOW", outcome("nvml.count", expected=8, found=7)),
    ("NVML_COUNT_HIGH", outcome("nvml.count", "warn", expected=1, found=8)),
    ("NVML_RECOVERY_9", outcome("nvml.recovery", "unknown", target=A, recovery_action=9)),
    ("ECC_UNCORRECTED", outcome("nvml.ecc", target=A, volatile_uncorrected_errors=2)),
    ("REMAP_FAILED", outcome("nvml.remap", target=A, remap_failed=True, remap_pending=True)),
    ("REMAP_PENDING", outcome("nvml.remap", "warn", target=A, remap_failed=False, remap_pending=True)),
    ("REMAP_MANY", outcome("nvml.remap", "warn", target=A, remap_failed=False, remap_pending=False)),
    ("SRAM_THRESHOLD", outcome("nvml.sram", target=A, sram_threshold_exceeded=True)),
    ("FABRIC_NOT_READY", outcome("nvml.fabric", target=A, fabric_state=2, reason="not_joined")),
    ("FABRIC_UNHEALTHY", outcome("nvml.fabric", target=A, fabric_state=3)),
    ("FABRIC_DEGRADED", outcome("nvml.fabric", "warn", target=A, fabric_state=3)),
    ("NVLINK_DOWN", outcome("nvml.nvlink", target=A, nvlinks_inactive=1, reason="down")),
    ("NVLINK_DOWN", outcome("nvml.nvlink", "warn", target=A, nvlinks_inactive=12, reason="none_up")),
    ("THERMAL_SLOWDOWN", outcome("nvml.throttle", target=A, reason="thermal")),
    ("POWER_BRAKE", outcome("nvml.throttle", target=A, reason="power_brake")),
    ("HW_SLOWDOWN", outcome("nvml.throttle", target=A, reason="hardware")),
    ("TOO_HOT", outcome("nvml.temperature", target=A, reason="slowdown")),
    ("TOO_HOT", outcome("nvml.temperature", "warn", target=A, reason="memory_max")),
    ("PCIE_NARROW", outcome("nvml.pcie", target=A, reason="narrow")),
    ("PCIE_SLOW", outcome("nvml.pcie", "warn", target=A, reason="slow")),
    ("PAGES_MANY", outcome("nvml.pages", target=A, reason="many")),
    ("PAGES_PENDING", outcome("nvml.pages", "warn", target=A, reason="pending")),
    ("PERSISTENCE_OFF", outcome("nvml.persistence", "warn", target=A, persistence_mode=0)),
    ("MIG_PENDING", outcome("nvml.mig", "warn", target=A, mig_mode=0, mig_pending_mode=1)),
    ("COMPUTE_PROHIBITED", outcome("nvml.mode", "warn", target=A, compute_mode=2)),
    ("NVML_ABSURD", outcome("nvml.temperature", "unknown", "NVML's temperature makes no sense: 255 °C", target=A)),
    ("CUDA_INIT_HANGS", outcome("cuda.init", "timeout", step="cuInit")),
    ("CUDA_LIBRARY_MISSING", outcome("cuda.init", reason="library_missing")),
    ("CUDA_CONTEXT_FAILS", outcome("cuda.context", target=A)),
    ("CUDA_CONTEXT_2", outcome("cuda.context", target=A, cuda_code=2)),
    ("CUDA_CONTEXT_HANGS", outcome("cuda.context", "timeout", target=A)),
    ("CUDA_WRONG_RESULT", outcome("cuda.kernel", target=A, reason="wrong_words")),
    ("CUDA_KERNEL_FAILS", outcome("cuda.kernel", target=A)),
    ("CUDA_KERNEL_700", outcome("cuda.kernel", target=A, cuda_code=700)),
    ("CUDA_KERNEL_HANGS", outcome("cuda.kernel", "timeout", target=A)),
    ("CUDA_CODE_719", outcome("torch.tensor", target=A, cuda_code=719)),
    ("CUDA_INIT_304", outcome("cuda.init", cuda_code=304)),
    ("CUDA_COUNT_DIFFERS", outcome("cuda.counts", expected=8, found=7)),
    ("TORCH_MISSING", outcome("torch.import", reason="torch_missing")),
    ("TORCH_IMPORT_FAILS", outcome("torch.import", reason="import_error")),
    ("TORCH_IMPORT_FAILS", outcome("torch.import")),
    ("TORCH_ABI_MISMATCH", outcome("torch.import", "fail", "x.so: undefined symbol: _Z3", reason="import_error")),
    ("TORCH_IMPORT_HANGS", outcome("torch.import", "timeout", step="import torch")),
    ("TORCH_CPU_BUILD", outcome("torch.build", reason="cpu_build")),
    ("TORCH_CUDA_TOO_NEW", outcome("torch.build", reason="cuda_too_new")),
    ("TORCH_ARCH_MISSING", outcome("torch.arch", target=A, reason="arch_missing")),
    ("TORCH_ARCH_MISSING", outcome("torch.tensor", target=A, cuda_code=209)),
    ("TORCH_WRONG_RESULT", outcome("torch.tensor", target=A, reason="wrong_words")),
    ("TORCH_TENSOR_FAILS", outcome("torch.tensor", target=A)),
    ("TORCH_TENSOR_HANGS", outcome("torch.tensor", "timeout", target=A)),
    ("TORCH_NCCL_FAILS", outcome("torch.nccl")),
    ("TORCH_NCCL_HANGS", outcome("torch.nccl", "timeout")),
    *[
        ("TORCH_NCCL_INTERFACE", outcome("torch.nccl", "fail", f"{said} nosuch0", target=A, reason="raised"))
        for said in (
            "NCCL, nccl init: ncclInvalidUsage: Bootstrap : no socket interface found",
            "Unable to find address",
        )
    ],
    ("TORCH_NCCL_FAILS", outcome("torch.nccl", target=A, reason="raised", nccl_error="ncclSystemError")),
    ("TORCH_NCCL_WRONG_RESULT", outcome("torch.nccl", target=A, reason="wrong_words", wrong_words=1)),
    ("TORCH_NCCL_NEVER_ENDS", outcome("torch.nccl", "warn", target=A, reason="destroy_hangs")),
    ("TORCH_WITHOUT_NCCL", outcome("torch.nccl", "warn", target=A, reason="no_nccl")),
    ("TORCH_WITHOUT_NCCL", outcome("torch.nccl", "warn", target=A, reason="no_distributed")),
    *[
        (f"MODEL_{code}", outcome("service.model.bert", reason=reason))
        for code, reason in (
            ("NOT_FOUND", "not_found"),
            ("UNTRUSTED", "untrusted"),
            ("NOT_LOADABLE", "not_loadable"),
            ("KEYS", "keys"),
            ("SHAPE", "shape"),
            ("NOT_FINITE", "not_finite"),
            ("OUT_OF_MEMORY", "out_of_memory"),
            ("RAISES", "raised"),
        )
    ],
    ("MODEL_OUT_OF_MEMORY", outcome("service.model.bert", "unknown", reason="oom_killed", worker="model")),
    ("MODEL_ENDS", outcome("service.model.bert", "unknown", reason="silent", worker="model")),
    ("MODEL_HANGS", outcome("service.model.bert", "timeout", step="forward")),
    *[(f"MODEL_CRASHED_{s}", outcome("service.model.bert", worker="model", signal=s)) for s in SIGNALS],
    ("TORCH_MISSING", outcome("service.model.bert", reason="torch_missing")),
    ("TORCH_IMPORT_FAILS", outcome("service.model.bert", reason="import_error")),
    ("GPU_LIST_LATE", outcome("torch.tensor", "timeout", target="gpu:*", step="enumeration")),
    ("PROBE_INTERNAL", outcome("nvml.reach", "unknown", reason="internal")),
    ("CHILD_OOM_KILLED", outcome("torch.import", "unknown", reason="oom_killed")),
    ("CHILD_KILLED", outcome("torch.import", "unknown", reason="killed")),
    ("CHILD_FLOODED", outcome("nvml.reach", "unknown", reason="flooded")),
    ("CHILD_SILENT", outcome("nvml.reach", "unknown", reason="silent")),
    ("TARGET_REFUSED", outcome("service.http.web", reason="refused")),
    ("TARGET_REFUSED", outcome("service.tcp.db", reason="refused")),
    ("TARGET_UNRESOLVED", outcome("service.tcp.db", reason="unresolved")),
    ("TARGET_DNS_HANGS", outcome("service.http.web", "timeout", step="resolving db")),
    ("TARGET_UNREACHABLE", outcome("service.tcp.db", reason="unreachable")),
    ("TARGET_UNREACHABLE", outcome("service.tcp.db", "timeout", step="connecting to db:1")),
    ("TARGET_SILENT", outcome("service.tcp.db", "timeout", step="waiting for PONG from db:1")),
    ("TARGET_SILENT", outcome("service.http.web", "timeout", step="reading the body of http://db/")),
    ("TARGET_HANGS_UP", outcome("service.http.web", reason="closed")),
    ("TARGET_HANGS_UP", outcome("service.tcp.db", reason="reset")),
    ("TARGET_CONTENT", outcome("service.tcp.db", reason="content")),
    ("HTTP_STATUS", outcome("service.http.web", reason="status", http_status=503)),
    ("HTTP_REDIRECT", outcome("service.http.web", reason="redirect", http_status=302)),
    ("HTTP_TLS", outcome("service.http.web", reason="tls")),
    ("HTTP_CA_FILE", outcome("service.http.web", "unknown", reason="ca_file")),
    ("HTTP_GARBAGE", outcome("service.http.web", reason="garbage")),
    ("HTTP_TOO_LARGE", outcome("service.http.web", reason="too_large")),
    ("COMMAND_STATUS", outcome("service.command.df", reason="status", exit_status=1)),
    ("COMMAND_OUTPUT", outcome("service.command.df", reason="content", exit_status=0)),
    ("COMMAND_NOT_STARTED", outcome("service.command.df", reason="not_started", exit_status=127)),
    *[(f"COMMAND_CRASHED_{s}", outcome("service.command.df", signal=s)) for s in SIGNALS],
    ("COMMAND_HANGS", outcome("service.command.df", "timeout", step="df", worker="command")),
    ("COMMAND_FLOODED", outcome("service.command.df", "unknown", reason="flooded", worker="command")),
    ("COMMAND_STUCK", outcome("device.stuck", reason="stuck", worker="command")),
    ("CHECK_FAILED", outcome("service.http.web")),
    ("CHECK_TIMEOUT", outcome("service.http.web", "timeout")),
    ("CHECK_UNKNOWN", outcome("service.http.web", "unknown")),
    ("CHECK_WARNED", outcome("device.disk", "warn")),
]
EVIDENCE += [
    ("JUPYTER_DOWN", outcome("service.jupyter", reason="gone")),
    ("JUPYTER_DOWN", outcome("service.jupyter", reason="not_running")),
    ("JUPYTER_DOWN", outcome("service.jupyter", reason="refused")),
    ("JUPYTER_HANGS", outcome("service.jupyter", "timeout", step="GET http://127.0.0.1:8888/api")),
    ("JUPYTER_WRONG_ANSWER", outcome("service.jupyter", reason="not_jupyter")),
    ("JUPYTER_WRONG_ANSWER", outcome("service.jupyter", reason="status", http_status=502)),
    ("JUPYTER_TOKEN", outcome("service.jupyter", "warn", reason="token")),
    ("SSH_DOWN", outcome("service.ssh", reason="refused")),
    ("SSH_HANGS", outcome("service.ssh", "timeout", step="exchanging keys with 127.0.0.1:22")),
    ("SSH_PENALTY", outcome("service.ssh", reason="penalty")),
    ("SSH_PENALTY", outcome("service.ssh", reason="full")),
    ("SSH_WRONG_ANSWER", outcome("service.ssh", reason="banner")),
    ("SSH_WRONG_ANSWER", outcome("service.ssh", reason="kex")),
    ("SSH_HOST_KEY", outcome("service.ssh", "warn", reason="host_key")),
    ("SSH_HOST_KEY", outcome("service.ssh", reason="host_key")),
    ("SSH_LOGIN_FAILS", outcome("service.ssh", reason="auth")),
    ("SSH_COMMAND_FAILS", outcome("service.ssh", reason="command")),
    ("SSH_COMMAND_FAILS", outcome("service.ssh", "timeout", step="running the command as ann")),
    ("SERVICE_FILE_UNREAD", outcome("service.ssh", "unknown", reason="key_file")),
    ("SERVICE_FILE_UNREAD", outcome("service.jupyter", "unknown", reason="unread")),
]
EVIDENCE += [
    (code, outcome(check, status, reason=reason))
    for check, status, reasons in (
        (
            "gate.reach",
            "fail",
            (
                "not_tried:REACH_CUT_SHORT cut_short:REACH_CUT_SHORT "
                "unreachable:HOST_UNREACHABLE name:HOST_NAME_FAILS refused:SSH_REFUSED login_slow:SSH_LOGIN_SLOW "
                "auth:SSH_AUTH_FAILED host_key_unknown:SSH_HOST_KEY_UNKNOWN host_key_changed:SSH_HOST_KEY_CHANGED "
                "dropped:SSH_DROPPED ssh:SSH_FAILED no_python:AGENT_NO_PYTHON agent_not_started:AGENT_NO_PYTHON "
                "old_python:AGENT_OLD_PYTHON no_probe:AGENT_NO_PROBE other_version:AGENT_OTHER_VERSION "
                "agent_failed:AGENT_FAILED lost:AGENT_LOST no_address:NO_ADDRESS "
                "jump_unreachable:JUMP_HOST_DOWN jump_refused:JUMP_HOST_DOWN jump_name:JUMP_HOST_DOWN "
                "jump_dropped:JUMP_HOST_DOWN jump_login_slow:JUMP_HOST_DOWN jump_ssh:JUMP_HOST_DOWN "
                "jump_host_key_unknown:JUMP_HOST_KEY jump_host_key_changed:JUMP_HOST_KEY "
                "jump_auth:JUMP_HOST_LOGIN jump_forbids:JUMP_HOST_LOGIN slurm_down:SLURM_NODE_DOWN "
                "slurm_launch:SLURM_LAUNCH_FAILED slurm:SLURM_FAILED "
                "slurm_ended:SLURM_STEP_ENDED"
            ),
        ),
        ("gate.reach", "warn", "same_machine:SAME_MACHINE"),
        (
            "gate.node",
            "fail",
            (
                "busy:NODE_BUSY node:NODE_UNTOLD node_late:NODE_LATE node_hurried:NODE_HURRIED no_torch:NODE_NO_TORCH "
                "import_failed:NODE_TORCH_FAILS fewer_gpus:NODE_FEWER_GPUS"
            ),
        ),
        (
            "gate.world",
            "fail",
            (
                "agent_lost:AGENT_LOST rank_killed:RANK_KILLED rank_crashed:RANK_CRASHED rank_stopped:RANK_STOPPED "
                "rank_failed:RANK_FAILED absent:HOST_ABSENT wrong_data:HOST_WRONG_DATA host_bad:HOST_BAD "
                "fails_alone:HOST_FAILS_ALONE nccl_interface:NCCL_WRONG_INTERFACE world_slow:WORLD_SLOW "
                "world_failed:WORLD_FAILED port_taken:PORT_TAKEN"
            ),
        ),
        ("gate.world", "warn", "host_slow:HOST_SLOW rendezvous:RENDEZVOUS_UNREACHABLE"),
        ("gate.world", "unknown", "host_undetermined:HOST_UNDECIDED"),
        ("gate.link", "fail", "link_bad:LINK_BAD pair:PAIR_FAILS"),
        ("gate.link", "warn", "link_slow:LINK_SLOW"),
        ("gate.partition", "fail", "partition:PARTITION"),
        ("gate.skew", "warn", "skew:HOSTS_DIFFER clock:CLOCK_OFF"),
        ("gate.end", "warn", "left_behind:LEFT_BEHIND"),
    )
    for reason, code in (pair.split(":") for pair in reasons.split())
]
EVIDENCE += [(f"NVML_RECOVERY_{n}", outcome("nvml.recovery", target=A, recovery_action=n)) for n in range(1, 8)]
EVIDENCE += [
    (f"XID_{code}", outcome("device.xid", xid=code))
    for code in (46, 48, 54, 62, 64, 74, 78, 79, 95, 110, 119, 120, 136, 140, 143, 151, 155, 156, 158, 167)
]
CUDA_CODES = (3, 34, 46, 100, 101, 200, 209, 214, 218, 219, 221, 222, 500, 802, 803, 804, *range(805, 811), 999)
EVIDENCE += [(f"CUDA_INIT_{code}", outcome("cuda.init", cuda_code=code)) for code in CUDA_CODES]
EVIDENCE += [
    (f"{rung.upper()}_CRASHED_{signal}", outcome(check, target=target, signal=signal))
    for rung, check, target in (("nvml", "nvml.reach", ""), ("cuda", "cuda.init", ""), ("torch", "torch.tensor", A))
    for signal in SIGNALS
]


@pytest.mark.parametrize(("code", "seen"), EVIDENCE, ids=[f"{code}-{seen.id}" for code, seen in EVIDENCE])
def test_each_fault_is_recognised_by_its_evidence(code: str, seen: Outcome) -> None:
    (cause,) = diagnose([seen])
    assert (code, seen.summary, (Reference(seen.id, seen.target),)) == (cause.code, cause.summary, cause.checks)


def test_no_fault_is_out_of_reach() -> None:
    reached = {code for code, _ in EVIDENCE}
    shapes = {fault.code: re.sub(r"\{\w+\}", r"\\w+", fault.code) for fault in catalogue()}
    assert [] == [code for code, shape in shapes.items() if not any(re.fullmatch(shape, one) for one in reached)]


@pytest.mark.parametrize("fault", catalogue(), ids=lambda fault: str(fault.code))
def test_a_remedy_begins_with_a_sentence_short_enough_for_the_first_line(fault: faults.Fault) -> None:
    first = re.split(r"(?<=\.) ", fault.remedy)[0]
    assert len(first) <= 90
    assert first.endswith(".")
    assert first[0].isupper()
    assert fault.source


def test_two_faults_of_the_same_code_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fault: dict[str, Any] = {"title": "t", "priority": 1, "remedy": "r.", "who": "user", "source": "s", "when": [{}]}
    twice = {"group": {}, "fault": [{"code": "SAME", **fault}, {"code": "SAME", **fault}]}
    monkeypatch.setattr(tomllib, "load", lambda file: twice)
    with pytest.raises(ValueError, match="more than one fault is called SAME"):
        catalogue.__wrapped__()


def test_a_run_without_problems_never_reads_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "catalogue", lambda: pytest.fail("read"))
    assert () == diagnose(healthy())


@pytest.mark.parametrize("library", ["tomllib", "difflib", "pathlib"])
def test_importing_faults_does_not_import_what_only_a_problem_needs(library: str) -> None:
    program = f"import sys, probe.faults; sys.exit({library!r} in sys.modules)"
    assert 0 == subprocess.run([sys.executable, "-S", "-c", program], check=False, env=_path()).returncode


def _path() -> dict[str, str]:
    """``-S``: no .pth file of an environment imports anything first."""
    return {"PYTHONPATH": ":".join(filter(None, sys.path))}


# ------------------------------------------------------------------------------------------------------- their order

NO_GPU_PASSED = [
    outcome("device.nodes", summary="no /dev/nvidia0", reason="expected_absent"),
    outcome("device.uvm", "skip", "needs device.nodes"),
    outcome("nvml.reach", summary="libnvidia-ml.so.1 is not found", reason="library_missing", nvml_code=12),
    outcome("nvml.count", "skip", "needs nvml.reach"),
    outcome("nvml.ecc", "skip", "needs nvml.reach", target="gpu:*"),
    outcome("cuda.init", summary="libcuda.so.1 is not found", reason="library_missing"),
    outcome("cuda.kernel", "skip", "needs cuda.init", target="gpu:*"),
    outcome("torch.tensor", "skip", "needs cuda.kernel", target="gpu:*"),
]


def test_an_absent_gpu_is_the_one_cause_of_all_that_is_missing_without_it() -> None:
    (cause,) = diagnose(NO_GPU_PASSED)
    assert ("GPU_EXPECTED_ABSENT", "no /dev/nvidia0") == (cause.code, cause.summary)
    assert {(seen.id, seen.target) for seen in NO_GPU_PASSED} == {(one.id, one.target) for one in cause.checks}


CODED: list[tuple[str, dict[str, Any]]] = [
    ("nvml.reach", {"nvml_code": code}) for code in (4, 8, 9, 10, 11, 15, 16, 18, 999)
]
CODED += [("cuda.init", {"cuda_code": code}) for code in CUDA_CODES]
SIGNALLED: list[tuple[str, dict[str, Any]]] = [
    (check, {"signal": signal}) for check in ("nvml.reach", "cuda.init") for signal in SIGNALS
]
MISSING = [
    outcome("device.nodes", reason="missing"),
    outcome("device.nodes", reason="expected_absent"),
    outcome("device.uvm", reason="missing"),
    outcome("device.module", reason="missing"),
    outcome("nvml.count", expected=8, found=7),
    outcome("nvml.count", expected=8, found=0),
    outcome("torch.build", reason="cpu_build"),
]


@pytest.mark.parametrize("missing", MISSING, ids=lambda seen: f"{seen.id}-{seen.data.get('reason', 'count')}")
@pytest.mark.parametrize(("check", "data"), CODED + SIGNALLED, ids=str)
def test_a_code_or_a_signal_stands_before_whatever_is_merely_missing(
    check: str, data: dict[str, Any], missing: Outcome
) -> None:
    said = next(iter(data.values()))
    summary = f"the driver ended in {said}"
    cause = diagnose([missing, outcome(check, summary=summary, **data)])[0]
    assert Reference(check, "") == cause.checks[0]
    assert str(said) in cause.summary


@pytest.mark.parametrize("library", ["nvml.reach", "cuda.init"])
def test_a_code_stands_before_a_missing_library_of_the_other_rung(library: str) -> None:
    other: tuple[str, dict[str, Any]] = {
        "nvml.reach": ("cuda.init", {"cuda_code": 802}),
        "cuda.init": ("nvml.reach", {"nvml_code": 18}),
    }[library]
    causes = diagnose([outcome(library, reason="library_missing"), outcome(other[0], **other[1])])
    assert Reference(other[0], "") == causes[0].checks[0]


@pytest.mark.parametrize(
    ("expected", "outcomes"),
    [
        (
            ["NVML_DRIVER_MISMATCH"],
            [outcome("nvml.reach", nvml_code=18), outcome("cuda.init", cuda_code=803)],
        ),
        (
            ["DEVICE_NODE_EPERM"],
            [
                outcome("nvml.reach", nvml_code=999),
                outcome("cuda.init", cuda_code=100),
                outcome("device.nodes", reason="eperm"),
            ],
        ),
        (["CUDA_INIT_802"], [outcome("cuda.init", cuda_code=802), outcome("torch.tensor", target=A)]),
        (["CUDA_INIT_999"], [outcome("device.uvm", reason="missing"), outcome("cuda.init", cuda_code=999)]),
        (
            ["CUDA_INIT_802", "NVML_UNKNOWN_999"],
            [outcome("nvml.reach", nvml_code=999), outcome("cuda.init", cuda_code=802)],
        ),
        (
            ["NVML_GPU_LOST_15"],
            [
                outcome("nvml.count", expected=8, found=7),
                outcome("nvml.recovery", target=A, nvml_code=15),
                outcome("torch.tensor", target=A),
            ],
        ),
        (
            ["NVML_GPU_LOST_15", "TORCH_TENSOR_FAILS"],
            [outcome("nvml.recovery", target=A, nvml_code=15), outcome("torch.tensor", target=B)],
        ),
        (["NVML_HANGS"], [outcome("nvml.reach", "timeout"), outcome("cuda.init", "timeout")]),
        (
            ["GPU_DRIVER_STUCK"],
            [outcome("nvml.reach", nvml_code=18), outcome("device.stuck", reason="stuck")],
        ),
        (
            ["GPU_EXPECTED_ABSENT", "TORCH_IMPORT_HANGS"],
            [outcome("torch.import", "timeout"), outcome("device.nodes", reason="expected_absent")],
        ),
        (
            ["TORCH_IMPORT_HANGS", "TORCH_CPU_BUILD"],
            [outcome("torch.import", "timeout"), outcome("torch.build", reason="cpu_build")],
        ),
        (["TORCH_CUDA_TOO_NEW"], [outcome("torch.build", reason="cuda_too_new"), outcome("torch.tensor", target=A)]),
        (
            ["CUDA_WRONG_RESULT", "NVML_DRIVER_MISMATCH"],
            [outcome("nvml.reach", nvml_code=18), outcome("cuda.kernel", target=A, reason="wrong_words")],
        ),
        (
            ["CUDA_WRONG_RESULT"],
            [
                outcome("torch.tensor", target=A, reason="wrong_words"),
                outcome("cuda.kernel", target=A, reason="wrong_words"),
            ],
        ),
        (
            ["CHECK_FAILED", "CHECK_FAILED"],
            [outcome("service.http.a"), outcome("service.http.b")],
        ),
        (
            ["NVML_HANGS", "CHECK_TIMEOUT"],
            [outcome("service.http.a", "timeout"), outcome("nvml.reach", "timeout")],
        ),
        (
            ["TORCH_TENSOR_FAILS", "SHM_SMALL"],
            [outcome("device.shm", "warn", severity="advisory"), outcome("torch.tensor", target=A)],
        ),
        (
            ["CHECK_FAILED", "PROBE_INTERNAL"],
            [outcome("nvml.ecc", "unknown", reason="internal"), outcome("service.ssh")],
        ),
        (
            ["TORCH_TENSOR_HANGS", "NVML_NO_PERMISSION"],
            [outcome("nvml.mode", "unknown", target=A, nvml_code=4), outcome("torch.tensor", "timeout", target=A)],
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value[0], str) else "",
)
def test_the_cause_stands_first_and_no_innocent_beside_it(expected: list[str], outcomes: list[Outcome]) -> None:
    assert expected == codes(*outcomes)
    assert expected == codes(*reversed(outcomes))


def test_a_rung_breaks_a_tie() -> None:
    outcomes = outcome("cuda.init", cuda_code=802), outcome("nvml.reach", nvml_code=14)
    assert ["NVML_CORRUPTED_INFOROM_14", "CUDA_INIT_802"] == codes(*outcomes)


def test_advisory_problems_come_last_whatever_their_priority() -> None:
    lost = outcome("nvml.temperature", target=A, severity="advisory", nvml_code=15)
    assert ["CHECK_FAILED", "NVML_GPU_LOST_15"] == codes(lost, outcome("service.ssh"))


def test_a_lost_permission_stands_first_in_liveness() -> None:
    outcomes = outcome("nvml.reach", nvml_code=18), outcome("device.uvm", reason="stale_major")
    assert ["DEVICE_UVM_STALE", "NVML_DRIVER_MISMATCH"] == codes(*outcomes, profile=Profile.LIVENESS)
    assert ["NVML_DRIVER_MISMATCH"] == codes(*outcomes)


# ----------------------------------------------------------------------------------------------------- several GPUs


def test_one_fault_on_some_gpus_is_one_cause_that_names_them() -> None:
    outcomes = [outcome("cuda.kernel", "pass", target=gpu) for gpu in GPUS[3:]]
    outcomes += [outcome("cuda.kernel", "fail", "3 words differ.", target=g, reason="wrong_words") for g in (A, B, C)]
    (cause,) = diagnose(outcomes)
    names = ", ".join(gpu.removeprefix("gpu:") for gpu in (A, B, C))
    assert f"{names} (3 of 8 GPUs): 3 words differ." == cause.summary
    assert tuple(Reference("cuda.kernel", gpu) for gpu in (A, B, C)) == cause.checks


def test_one_fault_on_all_gpus_names_none() -> None:
    (cause,) = diagnose([outcome("torch.tensor", "timeout", "no answer", target=gpu) for gpu in GPUS])
    assert "8 of 8 GPUs: no answer" == cause.summary


def test_the_only_gpu_needs_no_name() -> None:
    (cause,) = diagnose([outcome("torch.tensor", "timeout", "no answer", target=A)])
    assert "no answer" == cause.summary


def test_an_xid_explains_what_follows_on_the_gpu_that_it_names_and_on_no_other() -> None:
    """device.xid is one outcome of the whole node; whose XID it is stands in its data."""
    xid = outcome("device.xid", "fail", "XID 79", xid=79, gpu=A)
    follows = [outcome("nvml.memory", target=A, nvml_code=15), outcome("nvml.count", expected=8, found=7)]
    other = outcome("torch.tensor", target=B)
    by_code = {cause.code: cause.checks for cause in diagnose([*follows, other, xid])}
    first = (Reference("device.xid", ""), *(Reference(seen.id, seen.target) for seen in follows))
    assert {"XID_79": set(first), "TORCH_TENSOR_FAILS": {Reference("torch.tensor", B)}} == {
        code: set(checks) for code, checks in by_code.items()
    }


def test_what_the_driver_asks_for_explains_that_gpus_xid_only() -> None:
    """NVML's recovery action of one GPU does not make another GPU's XID its consequence."""
    asks = outcome("nvml.recovery", target=A, recovery_action=2)
    assert ["NVML_RECOVERY_2"] == codes(asks, outcome("device.xid", xid=79, gpu=A))
    assert ["NVML_RECOVERY_2", "XID_79"] == codes(asks, outcome("device.xid", xid=79, gpu=B))


def test_a_fault_of_the_node_explains_every_gpu() -> None:
    outcomes = [outcome("torch.tensor", target=gpu) for gpu in GPUS] + [outcome("cuda.init", cuda_code=802)]
    assert ["CUDA_INIT_802"] == codes(*outcomes)


def test_a_skip_follows_the_need_of_its_own_gpu() -> None:
    outcomes = [
        outcome("cuda.kernel", target=A, reason="wrong_words"),
        outcome("cuda.kernel", "timeout", target=B),
        outcome("torch.tensor", "skip", "needs cuda.kernel", target=A),
        outcome("torch.tensor", "skip", "needs cuda.kernel", target=B),
    ]
    by_code = {cause.code: cause.checks[1:] for cause in diagnose(outcomes)}
    assert {
        "CUDA_WRONG_RESULT": (Reference("torch.tensor", A),),
        "CUDA_KERNEL_HANGS": (Reference("torch.tensor", B),),
    } == by_code


def test_a_skip_for_another_reason_follows_nothing() -> None:
    outcomes = [outcome("nvml.reach", nvml_code=18), outcome("nvml.ecc", "skip", "not supported on this GPU")]
    assert [(Reference("nvml.reach", ""),)] == [cause.checks for cause in diagnose(outcomes)]


def test_what_was_not_started_for_a_stuck_child_follows_it() -> None:
    reason = "not started: pid 7 of an earlier run is stuck there (device.stuck)"
    (cause,) = diagnose([outcome("device.stuck", reason="stuck"), outcome("nvml.reach", "skip", reason)])
    assert (Reference("device.stuck", ""), Reference("nvml.reach", "")) == cause.checks


# ------------------------------------------------------------------------------------------------- whatever comes in

reasons = st.sampled_from(
    [
        "expected_absent",
        "library_missing",
        "eperm",
        "enxio",
        "missing",
        "stale_major",
        "cpu_build",
        "cuda_too_new",
        "arch_missing",
        "wrong_words",
        "import_error",
        "torch_missing",
        "stuck",
        "internal",
        "small",
        "oom_killed",
        "killed",
        "flooded",
        "silent",
    ]
)
data = st.dictionaries(
    st.sampled_from(["reason", "nvml_code", "cuda_code", "signal", "step", "found"]), st.none()
).flatmap(
    lambda keys: st.fixed_dictionaries(
        {
            key: {
                "reason": reasons,
                "nvml_code": st.sampled_from([4, 9, 12, 15, 16, 18, 77, 999]),
                "cuda_code": st.sampled_from([*CUDA_CODES, 2, 700]),
                "signal": st.sampled_from(SIGNALS),
                "step": st.just("cuInit"),
                "found": st.integers(0, 8),
            }[key]
            for key in keys
        }
    )
)
outcomes_ = st.lists(
    st.builds(
        lambda place, status, severity, data: Outcome(
            place[0], place[1], status, severity, "needs cuda.init" if status is Status.SKIP else "said", 0, 0, data
        ),
        st.one_of(
            st.tuples(st.sampled_from([*OF_THE_NODE, "service.ssh"]), st.just("")),
            st.tuples(st.sampled_from(PER_GPU), st.sampled_from([*GPUS[:3], "gpu:*", "cpu:0"])),
        ),
        st.sampled_from(Status),
        st.sampled_from(Severity),
        data,
    ),
    unique_by=lambda outcome: (outcome.id, outcome.target),
    max_size=25,
)


@given(outcomes_)
def test_every_problem_is_in_exactly_one_cause_and_nothing_that_passed_in_any(outcomes: list[Outcome]) -> None:
    named = [(one.id, one.target) for cause in diagnose(outcomes) for one in cause.checks]
    status = {(seen.id, seen.target): seen.status for seen in outcomes}
    assert len(named) == len(set(named))
    assert {name for name in status if status[name] in PROBLEMS} <= set(named)
    assert {status[name] for name in named} <= PROBLEMS | {Status.SKIP}


@given(outcomes_)
def test_the_first_cause_is_of_a_critical_failure_where_there_is_one(outcomes: list[Outcome]) -> None:
    def critical(seen: Outcome) -> bool:
        return seen.severity is Severity.CRITICAL and seen.status in (Status.FAIL, Status.TIMEOUT)

    by_name = {Reference(seen.id, seen.target): seen for seen in outcomes}
    causes = diagnose(outcomes)
    if any(map(critical, outcomes)):
        assert critical(by_name[causes[0].checks[0]])


# ---------------------------------------------------------------------------------------------------- probe explain


@pytest.mark.parametrize("fault", catalogue(), ids=lambda fault: str(fault.code))
def test_explain_says_what_a_code_means_and_who_mends_it(fault: faults.Fault) -> None:
    text = explain(fault.code)
    assert text.startswith(f"{fault.code}: {fault.title}\n")
    assert fault.remedy in text
    assert fault.who.value in text
    assert fault.source in text


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("CUDA_INIT_304", "CUDA 304 from cuInit"),
        ("NVML_CODE_10", "NVML 10: a code"),
        ("CUDA_INIT_802", "the NVSwitch fabric is not initialised"),
        ("NVML_CRASHED_SIGBUS", "SIGBUS inside libnvidia-ml"),
    ],
)
def test_explain_knows_every_code_that_a_report_can_hold(code: str, says: str) -> None:
    assert says in explain(code)


@pytest.mark.parametrize(
    ("code", "near"),
    [
        ("GPU_EXPECTED_ABSENTS", "GPU_EXPECTED_ABSENT"),
        ("shm_smal", "SHM_SMALL"),
        ("", "GPU_"),
        ("CUDA_INIT_ZZZ", "CUDA_INIT_"),
        ("CUDA_INIT_SIGSEGV", "CUDA_INIT_"),
        ("NVML_CRASHED_SIGSEG", "NVML_CRASHED_SIGSEGV"),
        ("NVML_CRASHED_11", "NVML_CRASHED_"),
    ],
)
def test_an_unknown_code_is_answered_with_the_nearest(code: str, near: str) -> None:
    with pytest.raises(KeyError) as caught:
        explain(code)
    assert near in str(caught.value)


@pytest.mark.parametrize("code", ["nvml_hangs", "Nvml_Hangs", "cuda_init_304", "nvml_crashed_sigbus"])
def test_explain_takes_a_code_in_any_case(code: str) -> None:
    assert explain(code.upper()) == explain(code)


def test_every_code_is_in_capitals_and_its_holes_are_numbers() -> None:
    """By which `explain` finds it; a hole that is a signal has each of its values listed."""
    for fault in catalogue():
        assert re.fullmatch(r"[A-Z0-9_]+({xid}|{nvml_code}|{cuda_code}|{recovery_action})?", fault.code)


def test_the_listing_has_a_line_for_each_fault() -> None:
    assert sorted(fault.code for fault in catalogue()) == sorted(line.split()[0] for line in listing().splitlines())


def test_every_remedy_has_somebody_to_do_it() -> None:
    assert {fault.who for fault in catalogue()} <= set(Who)


# What breaks in the field, by what was gathered before the catalogue was written.
OF_THE_FIELD = {
    "the container lost its device permission": "DEVICE_NODE_EPERM",
    "driver and library do not match": "NVML_DRIVER_MISMATCH",
    "802: Fabric Manager does not run": "CUDA_INIT_802",
    "803: compat library and driver": "CUDA_INIT_803",
    "804: forward compatibility on this hardware": "CUDA_INIT_804",
    "NVML works and CUDA gives 999": "CUDA_INIT_999",
    "torch is too new for the driver": "TORCH_CUDA_TOO_NEW",
    "torch has no code for the GPU": "TORCH_ARCH_MISSING",
    "the GPU fell off the bus": "XID_79",
    "the driver asks for a reset": "NVML_RECOVERY_1",
    "a driver call is stuck in the kernel": "GPU_DRIVER_STUCK",
    "/dev/shm is too small": "SHM_SMALL",
    "NCCL picks the wrong interface": "NCCL_WRONG_INTERFACE",
    "MIG changes at the next reset": "MIG_PENDING",
    "memory that nobody holds": "GPU_MEMORY_OWNERLESS",
    "torch was replaced in a vendor's image": "TORCH_VENDOR_REPLACED",
    "the library was not mounted": "NVML_LIBRARY_MISSING",
    "persistence mode is off": "PERSISTENCE_OFF",
    "CUDA started before a fork": "TORCH_IMPORT_STARTS_CUDA",
    "exclusive mode, and in use": "CUDA_INIT_46",
    "MPS refuses": "CUDA_INIT_807",
    "zombies fill the process table": "ZOMBIES",
}


@pytest.mark.parametrize("code", OF_THE_FIELD.values(), ids=list(OF_THE_FIELD))
def test_what_breaks_in_the_field_has_a_fault_of_its_own(code: str) -> None:
    assert explain(code).startswith(f"{code}:")
