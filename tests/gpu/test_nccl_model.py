"""NCCL's world of one rank and models of the user's own, on real GPUs that nothing else uses.

What is measured is printed (``pytest -s``).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.test_gpu import FULL, WORK, by_target, job, probe, uuids, wait_until_idle

pytestmark = pytest.mark.gpu

MODELS = """
import torch
def linear(): return torch.nn.Linear(64, 8).bfloat16()
def big(gib): return lambda x: torch.empty(gib << 30, dtype=torch.uint8, device=x.device)
def asserts(): return lambda x: torch.zeros(2, device=x.device)[torch.full((1,), 9, device=x.device)]
def sees():
    raise RuntimeError(f"sees {torch.cuda.device_count()} GPUs")
def hangs():
    def forward(x):
        torch.cuda._sleep(10**12)
        return x
    return forward
"""
ROW = {"shape": [4, 64], "dtype": "bfloat16"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path


def of(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    return {"kind": "factory", "factory": f"{folder}/models.py:{name}", "trust": True, "input": [ROW], **more}


def run(state: Path, folder: Path, *args: str, **entries: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What became of each model, by name."""
    lines = []
    for name, entry in entries.items():
        lines += ["[[model]]", f'name = "{name}"', *(f"{key} = {inline(value)}" for key, value in entry.items())]
    (folder / "probe.toml").write_text("\n".join(lines) + "\n")
    report = probe(state, "--config", str(folder / "probe.toml"), *args)
    found = {
        check["id"].rpartition(".")[2]: check for check in report["checks"] if check["id"].startswith("service.model.")
    }
    for name, check in found.items():
        print(name, check["status"], check["summary"], json.dumps(check["data"]))
    return found


def inline(value: Any) -> str:
    """As TOML has it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {inline(item)}" for key, item in value.items()) + " }"
    return "[" + ", ".join(map(inline, value)) + "]" if isinstance(value, list) else json.dumps(value)


def first() -> str:
    return f"gpu:{uuids()[0]}"


def test_nccl_forms_a_world_on_every_gpu(state: Path) -> None:
    """Exact in every call, the average by a kernel of NCCL's own, with the version that is loaded."""
    wait_until_idle()
    found = by_target(probe(state, "--profile", "node", "--only", "torch.nccl"), "torch.nccl")
    for check in found.values():
        print(check["status"], check["summary"], check["elapsed_s"], json.dumps(check["data"]))
    assert set(found) == {f"gpu:{uuid}" for uuid in uuids()}
    assert {check["status"] for check in found.values()} == {"pass"}
    loaded = ".".join(map(str, torch.cuda.nccl.version()))
    assert {check["data"]["nccl_version"] for check in found.values()} == {loaded}
    assert {check["data"]["words"] for check in found.values()} == {8 << 18}  # eight calls: two averages more than gloo


def test_nccl_without_an_interface_is_told_in_its_own_words(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user set is what is tested."""
    wait_until_idle()
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "=nosuch0")
    report = probe(state, "--profile", "node", "--only", "torch.nccl")
    check = by_target(report, "torch.nccl")[first()]
    print(check["summary"], json.dumps(check["data"]))
    assert (check["status"], check["data"]["reason"]) == ("fail", "raised")
    assert check["data"]["nccl_error"].startswith("nccl")
    assert report["causes"][0]["code"] == "TORCH_NCCL_INTERFACE"


def test_models_of_every_kind_run_on_a_gpu(state: Path, models: Path) -> None:
    """Moved there, run there, and the report says on which; also where CUDA itself is not checked."""
    wait_until_idle()
    make = (
        "import sys, torch; net = torch.nn.Linear(64, 8).eval(); x = torch.randn(4, 64);"
        "torch.export.save(torch.export.export(net, (x,)), sys.argv[1] + '/m.pt2');"
        "torch.jit.trace(net, x).save(sys.argv[1] + '/m.pt')"
    )
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-W", "ignore", "-c", make, str(models)], env=env, check=True, timeout=180)
    header = json.dumps({"weight": {"dtype": "BF16", "shape": [8, 64], "data_offsets": [0, 1024]}}).encode()
    (models / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(1024))
    entry = {"input": [[4, 64]], "output_shape": [4, 8]}
    found = run(
        state,
        models,
        "--only",
        "service",
        factory=of(models, "linear", output_shape=[-1, 8]),
        export={"kind": "export", "path": f"{models}/m.pt2", "trust": True, **entry},
        script={"kind": "torchscript", "path": f"{models}/m.pt", "trust": True, **entry},
        tensors={
            "kind": "safetensors",
            "path": f"{models}/m.safetensors",
            "factory": "torch.nn:Linear",
            "args": {"in_features": 64, "out_features": 8, "bias": False},
            **entry,
        },
    )
    assert {check["status"] for check in found.values()} == {"pass"}
    assert {check["data"]["gpu"] for check in found.values()} == {first()}
    assert all(check["data"]["peak_memory_bytes"] < 1 << 30 for check in found.values())


def test_what_goes_wrong_on_a_gpu_is_told(state: Path, models: Path) -> None:
    """Out of memory is a skip; an assertion on the device is the model's own; a kernel that spins is named."""
    wait_until_idle()
    found = run(
        state,
        models,
        big=of(models, "big", args={"gib": 400}),
        asserts=of(models, "asserts"),
        hangs=of(models, "hangs", timeout="6s"),
        cpu=of(models, "sees", device="cpu"),
        one=of(models, "sees"),
    )
    assert (found["big"]["status"], found["big"]["data"]["cuda_code"]) == ("skip", 2)
    assert (found["asserts"]["status"], found["asserts"]["data"]["reason"]) == ("fail", "raised")
    assert "device-side assert" in found["asserts"]["summary"]
    assert (found["hangs"]["status"], found["hangs"]["data"]["step"]) == ("timeout", "forward")
    assert found["cpu"]["summary"] == "factory: RuntimeError: sees 0 GPUs"
    assert found["one"]["summary"] == "factory: RuntimeError: sees 1 GPUs"


def test_no_model_and_no_world_beside_a_job(state: Path, models: Path) -> None:
    """Skipped as busy where there is no other GPU, else run on another; the job goes on."""
    others = {f"gpu:{uuid}" for uuid in uuids()[1:]}
    for code in (WORK, FULL):
        wait_until_idle()
        with job(code) as running:
            (check,) = run(state, models, x=of(models, "linear")).values()
            world = by_target(probe(state, "--profile", "node", "--only", "torch.nccl"), "torch.nccl")[first()]
            assert running.poll() is None
        assert (world["status"], world["summary"][:6]) == ("skip", "busy (")
        if others:
            assert (check["status"], check["data"]["gpu"] in others) == ("pass", True)
        else:
            assert (check["status"], check["summary"][:6]) == ("skip", "busy (")
