"""What a program that uses torch waits for, in a fresh process: one record for each phase, in their order.

::

    interpreter   until this file's first line, measured by the parent      import torch
    cuInit        torch.cuda.init                                          context and first memory
    first kernel  an addition, checked                                     first product (cuBLAS), checked

On a CPU the three of CUDA are not there. Standard library and torch only, Python >= 3.9; not forked: the import is
what is measured.
"""

from __future__ import annotations

from typing import Any


def main(child: Any, job: dict[str, Any]) -> None:
    child.say("begun")
    on_gpu = job["device"] == "cuda"
    elapsed = child.timed()
    child.step("import torch")
    import torch

    phase(child, "import torch", elapsed(), verified=True)
    device = torch.device("cuda" if on_gpu else "cpu")
    if on_gpu:
        elapsed = child.timed()
        child.step("cuInit")
        torch.cuda.init()
        phase(child, "cuInit", elapsed(), verified=True)
        elapsed = child.timed()
        child.step("context")
        torch.empty(1, device=device)
        torch.cuda.synchronize()
        phase(child, "context", elapsed(), verified=True)
    elapsed = child.timed()
    child.step("first kernel")
    right = (torch.ones(256, 256, device=device) + 1).sum().item() == 2 * 256 * 256
    phase(child, "first kernel", elapsed(), verified=right)
    elapsed = child.timed()
    child.step("first product")
    matrix = torch.ones(256, 256, device=device)
    right = (matrix @ matrix).sum().item() == 256**3
    phase(child, "first product", elapsed(), verified=right)
    child.say("done")


def phase(child: Any, name: str, elapsed_s: float, *, verified: bool) -> None:
    child.say("phase", text=name, elapsed_s=elapsed_s, verified=verified)
