"""XIDs that an application causes appear in the kernel log of a real host, and condemn nothing.

Reading /dev/kmsg takes root, or a kernel that lets everybody.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from probe.worker import cuda
from tests.gpu.test_gpu import by_target, probe

pytestmark = pytest.mark.gpu

ASSERT = """
import torch
x = torch.zeros(4, device="cuda")
x[torch.tensor([99], device="cuda")] = 1
torch.cuda.synchronize()
"""

ILLEGAL_ADDRESS = f"""
import ctypes, importlib.util
spec = importlib.util.spec_from_file_location("cuda", {cuda.__file__!r})
cuda = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cuda)
driver = cuda.Driver(lambda call: None)
cuda.initialise(driver, {{}})
cuda.context(driver, {{}})
try:
    cuda.launch(driver, ctypes.c_uint64(0x10), 1)
    driver.call("cuCtxSynchronize")
except cuda.Failure as failure:
    print(failure.code)
"""


def xids_of_the_log() -> str:
    return subprocess.run(["dmesg"], capture_output=True, text=True, timeout=30, check=False).stdout


@pytest.mark.parametrize(("code", "xid"), [(ASSERT, 43), (ILLEGAL_ADDRESS, 31)])
def test_an_application_s_xid_is_seen_and_does_not_condemn(code: str, xid: int, state: Path) -> None:
    """A device-side assert is XID 43, a store to address 0x10 is XID 31: the program's fault, not the GPU's."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    print(done.stdout.strip(), done.stderr.strip()[-200:])
    assert os.geteuid() == 0
    assert f"): {xid}," in xids_of_the_log()
    report = probe(state)
    found = by_target(report, "device.xid")[""]
    print(found["summary"])
    assert found["status"] == "pass"
    assert report["verdict"] in ("healthy", "degraded")
