"""A world of one rank: exact or not, what it needs, and what is left as the user set it."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from probe.worker import nccl
from probe.worker.parent import bootstrap
from tests.worker.listener import Listener

TARGET = "cpu:0"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Variables of gloo and NCCL are this test's own, and no world is left."""
    for name in {name for names in nccl.WHERE_UNSET.values() for name in names}:
        monkeypatch.setenv(name, "")  # what the program sets is taken back after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NCCL_CONF_FILE", raising=False)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def run(device: str = "cpu") -> Listener:
    child = Listener()
    nccl.main(child, {"target": TARGET, "device": device})
    return child


def test_a_world_of_one_rank_is_exact_on_the_cpu() -> None:
    """gloo: a sum and a gather of each dtype, every word as it was sent, and the world ends."""
    child = run()
    (record,) = child.records
    assert (record["key"], record["target"], record["code"], record["backend"]) == ("world", TARGET, 0, "gloo")
    assert (record["wrong_words"], record["words"]) == (0, 6 * nccl.COUNT)
    assert (record["destroyed"], dist.is_initialized()) == (True, False)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    calls = [f"{call} {dtype}" for dtype in ("fp32", "bf16", "int64") for call in ("all-reduce", "all-gather")]
    assert child.steps == ["gloo init", *calls, "destroy"]


@pytest.mark.parametrize("call", ["all_reduce", "all_gather"])
@pytest.mark.parametrize("name", nccl.DTYPES)
def test_one_wrong_word_of_any_collective_is_found(monkeypatch: pytest.MonkeyPatch, call: str, name: str) -> None:
    """One bit of the last word of one dtype, and the record says in which call it was first."""
    whole = getattr(dist, call)

    def spoiling(got: Any, *args: Any, **options: Any) -> None:
        whole(got, *args, **options)
        held = got if call == "all_reduce" else got[0]
        dtype, word = nccl.DTYPES[name]
        if held.dtype == dtype:
            held.view(word)[-1] ^= 1

    monkeypatch.setattr(dist, call, spoiling)
    (record,) = run().records
    assert (record["code"], record["wrong_words"]) == (0, 1)
    assert record["first_wrong"] == f"{call.replace('_', '-')} {name}"


@pytest.mark.parametrize("name", nccl.DTYPES)
def test_the_words_differ_each_time_and_survive_a_product_with_one(name: str) -> None:
    """NCCL's average multiplies by 1: no word is one that rounding, flushing or NaN rules could change."""
    dtype, word = nccl.DTYPES[name]
    first, second = nccl.fresh(dtype), nccl.fresh(dtype)
    assert nccl.wrong_words(first, second, word) > nccl.COUNT // 2
    assert nccl.wrong_words(first * 1, first, word) == 0
    if dtype.is_floating_point:
        assert float(first.abs().min()) >= 2.0**-8 > torch.finfo(dtype).tiny


def test_averages_are_for_nccl_and_floats() -> None:
    """Only NCCL has them; of integers NCCL makes no kernel's work for one rank."""
    assert [call for call, _ in nccl.collectives("fp32", "nccl")] == ["all-reduce", "average", "all-gather"]
    assert [call for call, _ in nccl.collectives("int64", "nccl")] == ["all-reduce", "all-gather"]
    assert [call for call, _ in nccl.collectives("bf16", "gloo")] == ["all-reduce", "all-gather"]


def test_an_interface_that_is_not_there_is_said_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user set is what is tested."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    (record,) = run().records
    assert (record["code"], record["reason"], record["call"]) == (nccl.FAILED, "raised", "gloo init")
    assert "Unable to find address for: nosuch0" in record["text"]


def test_only_what_nobody_set_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the environment nor NCCL's own file is overruled: the environment would win over the file."""
    environment: dict[str, str] = {"HOME": str(tmp_path), "NCCL_SOCKET_IFNAME": "eth7"}
    monkeypatch.setattr(os, "environ", environment)
    (tmp_path / ".nccl.conf").write_text("#NCCL_DEBUG=INFO\nNCCL_RAS_ENABLE=1\n")
    nccl.set_where_unset(nccl.WHERE_UNSET["nccl"])
    assert environment == {"HOME": str(tmp_path), "NCCL_SOCKET_IFNAME": "eth7", "NCCL_DEBUG": "WARN"}


def test_a_file_that_is_named_takes_the_place_of_the_home_s() -> None:
    assert nccl.nccl_files({"NCCL_CONF_FILE": "/a", "HOME": "/h"}) == ("/a", "/etc/nccl.conf")
    assert nccl.nccl_files({"HOME": "/h"}) == ("/h/.nccl.conf", "/etc/nccl.conf")


@pytest.mark.parametrize(
    ("missing", "device", "reason"),
    [
        ("is_available", "cpu", "no_distributed"),
        ("is_nccl_available", "cuda", "no_nccl"),
        ("is_gloo_available", "cpu", "no_gloo"),
    ],
)
def test_a_build_without_it_says_so(monkeypatch: pytest.MonkeyPatch, missing: str, device: str, reason: str) -> None:
    """Nothing is tried, and nothing passes."""
    monkeypatch.setattr(dist, missing, lambda: False)
    child = run(device)
    assert (child.records[0]["code"], child.records[0]["reason"], child.steps) == (nccl.FAILED, reason, [])


def test_a_destroy_that_never_returns_is_not_waited_for() -> None:
    never = threading.Event()
    assert not nccl.destroyed(never.wait, 0.01)
    never.set()
    assert nccl.destroyed(lambda: None, 5.0)


@pytest.mark.parametrize(
    ("version", "takes"),
    [
        ("2.2.2", False),
        ("2.3.0+cu121", True),
        ("2.6.0a0+git", True),
        ("2.6.1", False),
        ("2.7.0+cu128", False),
        ("2.7.1", True),
        ("2.10.0.dev20251001+cu130", True),
        ("2.13.0", True),
    ],
)
def test_the_device_is_told_to_those_that_do_not_hang_with_it(version: str, takes: bool) -> None:
    assert nccl.takes_device_id(version) is takes


WARNING = (
    "Error while creating shared memory segment /dev/shm/nccl-x (size 9637888), error: No space left on device (28)"
)
SYSTEM_ERROR = f"""NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled system error \
(run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5
ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
Last error:
{WARNING}"""


@pytest.mark.parametrize(
    ("raised", "text", "word"),
    [
        (
            SYSTEM_ERROR,
            f"ncclSystemError: {WARNING}",
            "ncclSystemError",
        ),
        ("NCCL error in: a.cpp:1\nncclInvalidUsage: a word", "ncclInvalidUsage: a word", "ncclInvalidUsage"),
        ("NCCL error in: a.cpp:1\nncclUnhandledCudaError: b", "ncclUnhandledCudaError: b", "ncclUnhandledCudaError"),
        ("[enforce fail at device.cc:84] no\nmore", "[enforce fail at device.cc:84] no", ""),
        ("", "", ""),
    ],
)
def test_nccls_own_word_and_warning_are_taken_from_what_torch_says(raised: str, text: str, word: str) -> None:
    assert nccl.in_words(raised) == (text, word)


def test_out_of_memory_is_known_by_its_own_code() -> None:
    """The check makes it a skip: somebody else may hold the memory."""
    error = nccl.WorldError(
        "nccl init", RuntimeError("ncclUnhandledCudaError: x\nLast error:\nCuda failure 2 'out of memory'")
    )
    assert error.code == nccl.CUDA_ERROR_OUT_OF_MEMORY


PORTS = """
import importlib.util, os, sys, torch, torch.distributed as dist
spec = importlib.util.spec_from_file_location("nccl", sys.argv[1])
nccl = importlib.util.module_from_spec(spec)
spec.loader.exec_module(nccl)
nccl.set_where_unset(nccl.WHERE_UNSET["gloo"])
nccl.form("gloo", "cpu")
links = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.lexists(entry.path)]
own = {int(link[len("socket:[") : -1]) for link in links if link.startswith("socket:[")}
LISTENS = "0A"
for name in ("tcp", "tcp6"):
    for line in open(f"/proc/net/{name}").read().splitlines()[1:]:
        fields = line.split()
        if fields[3] == LISTENS and int(fields[9]) in own:
            print(fields[1].partition(":")[0], flush=True)
os._exit(0)
"""


def test_whoever_listens_does_so_on_loopback() -> None:
    """Even one rank of gloo opens a port: by default it would be on the host's first address."""
    argv = [sys.executable, "-c", PORTS, bootstrap("nccl", (3, 11))[-1]]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True, cwd="/").stdout.split()
    assert set(said) == {"0100007F"}
