"""Models of the user's own in whole runs: the good, the wrong and the ugly ones, beside each other."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.system.command import Command

UGLY = """
import ctypes, os, signal, sys, time
import torch

def linear(): return torch.nn.Linear(4, 3)
def segfault(): ctypes.string_at(0)
def abort(): os.abort()
def leave(): os._exit(0)
def exit(): sys.exit(4)
def raise_(): raise ValueError("ugly on purpose")
def forked():
    if not (copy := os.fork()):
        raise ValueError("nobody is to hear the copy")
    os.waitpid(copy, 0)
    return linear()
def forked_and_stays():
    if os.fork() == 0:
        signal.pause()
    return linear()
def threaded():
    import threading
    threading.Thread(target=signal.pause, daemon=True).start()
    return linear()
def loud():
    for _ in range(200):
        os.write(1, b"x" * 65535 + b"\\n")
        print("on stdout"), print("on stderr", file=sys.stderr)
    return linear()
def greedy(): return torch.empty(1 << 46)
def closes():
    os.closerange(0, 256)
    return linear()
def hang_holding_the_gil(): ctypes.PyDLL(None).pause()
def hang(): time.sleep(1000)
def late():
    def forward(x): time.sleep(1000)
    return forward
def crashes_later(): return lambda x: ctypes.string_at(0)
def where():
    with open("/proc/self/oom_score_adj") as file:
        adjust = file.read().strip()
    raise RuntimeError(f"{adjust} {os.environ['CUDA_VISIBLE_DEVICES']!r} {os.getcwd()} {os.environ['OMP_NUM_THREADS']}")
"""

WELL = ("linear", "forked", "forked_and_stays", "threaded", "loud")
TIMEOUT_S = 1.5
NAMES = [line.partition("(")[0].removeprefix("def ") for line in UGLY.splitlines() if line.startswith("def ")]


@pytest.fixture
def ugly(tmp_path: Path) -> Path:
    """A file of factories, in a folder that only its owner can write."""
    tmp_path.chmod(0o755)
    path = tmp_path / "ugly.py"
    path.write_text(UGLY)
    return path


def toml(**entries: dict[str, Any]) -> str:
    """[[model]] tables by name."""
    tables = [
        f"[[model]]\nname = {json.dumps(name.rstrip('_'))}\n"
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items())
        for name, entry in entries.items()
    ]
    return "\n".join(tables)


def of(path: Path, name: str, **more: Any) -> dict[str, Any]:
    return {"kind": "factory", "factory": f"{path}:{name}", "trust": True, "input": [[2, 4]], **more}


def check(probe: Command, tmp_path: Path, *args: str, models: str, **options: Any) -> Any:
    config = tmp_path / "probe.toml"
    config.write_text(models)
    return probe.check("--config", str(config), "--log", "off", "--device", "cpu", *args, **options)


def test_each_ugly_model_is_told_and_harms_no_other(probe: Command, tmp_path: Path, ugly: Path) -> None:
    """All at once, in one run: each ends as it should, torch's own checks pass, and nobody is left behind."""
    entries = {name: of(ugly, name, timeout=f"{TIMEOUT_S}s" if name in LATE else "20s") for name in NAMES}
    ran = check(probe, tmp_path, "--budget", "25s", "--only", "torch", "--only", "service", models=toml(**entries))
    seen = {item["id"].removeprefix("service.model."): item for item in ran.report["checks"]}
    assert {seen[name]["status"] for name in ("torch.import", "torch.tensor")} == {"pass"}
    assert {name: seen[name.rstrip("_")]["status"] for name in NAMES} == EXPECTED, ran
    assert [seen[name]["data"]["signal"] for name in ("segfault", "abort", "crashes_later")] == [
        "SIGSEGV",
        "SIGABRT",
        "SIGSEGV",
    ]
    assert seen["segfault"]["summary"] == "the model crashed with SIGSEGV, in load"
    assert seen["crashes_later"]["summary"] == "the model crashed with SIGSEGV, in forward"
    assert seen["exit"]["summary"] == "factory: SystemExit: 4"
    assert seen["greedy"]["data"]["reason"] == "out_of_memory"
    assert seen["hang"]["data"]["step"] == seen["hang_holding_the_gil"]["data"]["step"] == "load"
    assert seen["late"]["data"]["step"] == "forward"
    assert {"MODEL_CRASHED_SIGSEGV", "MODEL_RAISES", "MODEL_HANGS", "MODEL_ENDS"} <= set(ran.codes)
    assert ran.err == ""


LATE = ("hang", "hang_holding_the_gil", "late")
EXPECTED = {
    **dict.fromkeys(WELL, "pass"),
    **dict.fromkeys(LATE, "timeout"),
    **dict.fromkeys(("segfault", "abort", "crashes_later", "exit", "raise_", "greedy", "where"), "fail"),
    **dict.fromkeys(("leave", "closes"), "unknown"),
}


def test_a_model_is_a_guest(probe: Command, tmp_path: Path, ugly: Path) -> None:
    """First to be killed for memory, no GPU to be seen, the root folder, one thread."""
    ran = check(probe, tmp_path, "--only", "service.model.x", models=toml(x=of(ugly, "where")))
    assert ran.outcome("service.model.x")["summary"] == "factory: RuntimeError: 1000 '' / 1"


def test_a_safetensors_file_is_data_and_needs_no_trust(probe: Command, tmp_path: Path) -> None:
    """Of one tensor each, into a module of torch's own; cut short, it says so, and nothing else is wrong."""
    weights = torch.ones(3, 4, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes() + bytes(12)
    header = json.dumps(
        {
            "weight": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]},
            "bias": {"dtype": "F32", "shape": [3], "data_offsets": [24, 36]},
        }
    ).encode()
    whole = len(header).to_bytes(8, "little") + header + weights
    entry = {"kind": "safetensors", "factory": "torch.nn:Linear", "input": [[2, 4]], "output_shape": [2, 3]}
    (tmp_path / "whole").write_bytes(whole)
    (tmp_path / "short").write_bytes(whole[:-1])
    (tmp_path / "whole").chmod(0o666)
    lines = [
        toml(**{name: {**entry, "path": str(tmp_path / name)}}) + "args = { in_features = 4, out_features = 3 }\n"
        for name in ("whole", "short")
    ]
    ran = check(probe, tmp_path, "--only", "service", models="\n".join(lines))
    assert (ran.status("service.model.whole"), ran.status("service.model.short")) == ("pass", "fail")
    assert ran.outcome("service.model.whole")["data"]["output_shapes"] == "2x3"
    assert ran.codes == ["MODEL_NOT_LOADABLE"]
    assert "truncated: bias ends at byte 36 of 35" in ran.outcome("service.model.short")["summary"]


def test_no_model_comes_from_the_working_directory(probe: Command, tmp_path: Path) -> None:
    """Least of all for root."""
    (tmp_path / "mine.py").write_text(UGLY)
    entry = {"kind": "factory", "factory": "mine:linear", "input": [[2, 4]]}
    ran = check(probe, tmp_path, "--only", "service", models=toml(x=entry), cwd=tmp_path)
    assert ran.codes == ["MODEL_NOT_FOUND"]
    ran = check(probe, tmp_path, "--only", "service", models=toml(x=entry), env={"PYTHONPATH": str(tmp_path)})
    assert ran.status("service.model.x") == "pass"


@pytest.mark.skipif(os.geteuid() != 0, reason="root's rule")
def test_root_runs_no_factory_that_others_can_change(probe: Command, tmp_path: Path, ugly: Path) -> None:
    ugly.chmod(0o666)
    ran = check(probe, tmp_path, "--only", "service", models=toml(x=of(ugly, "linear")))
    assert (ran.code, ran.codes) == (1, ["MODEL_UNTRUSTED"])


def test_code_without_trust_is_a_mistake_of_the_caller(probe: Command, tmp_path: Path) -> None:
    """Nothing is started for it."""
    entry = {"kind": "torchscript", "path": str(tmp_path / "m.pt"), "input": []}
    ran = check(probe, tmp_path, models=toml(x=entry))
    assert (ran.code, json.loads(ran.out)["schema"]) == (2, "probe.error/1")
    assert "carries code: say trust = true" in ran.out


def test_a_model_runs_where_torch_itself_is_not_checked(probe: Command, tmp_path: Path, ugly: Path) -> None:
    """``--skip torch``: the need is not checked, and the model brings torch with it."""
    ran = check(probe, tmp_path, "--skip", "torch", models=toml(x=of(ugly, "linear", output_shape=[2, 3])))
    assert ran.status("service.model.x") == "pass"


def test_a_model_is_no_part_of_liveness_and_can_be_switched_off(probe: Command, tmp_path: Path, ugly: Path) -> None:
    ran = check(probe, tmp_path, "--profile", "liveness", models=toml(x=of(ugly, "segfault")))
    assert "service.model.x" not in [item["id"] for item in ran.report["checks"]]
    env = {"ENABLE_X_CHECK": "false"}
    ran = check(probe, tmp_path, "--only", "service", models=toml(x=of(ugly, "segfault")), env=env)
    assert ran.status("service.model.x") == "skip"


def test_a_world_of_one_rank_in_the_profile_of_a_node(probe: Command) -> None:
    """On the CPU gloo; an interface that is not there is the cause, by its own words."""
    args = ("--profile", "node", "--device", "cpu", "--log", "off", "--only", "torch.nccl")
    ran = probe.check(*args)
    assert (ran.code, ran.status("torch.nccl")) == (0, "pass")
    ran = probe.check(*args, env={"GLOO_SOCKET_IFNAME": "nosuch0"})
    assert (ran.code, ran.codes) == (1, ["TORCH_NCCL_INTERFACE"])
    assert "nosuch0" in ran.outcome("torch.nccl")["summary"]
