"""Rung 4: does a world of one rank form, and do its collectives compute exactly? Forked from whoever imported torch.

::

    HashStore in this process --> init: NCCL on a GPU, gloo on the CPU --> collectives --> destroy
                                                                               |
                            per dtype (fp32, bf16, int64), fresh words:   all-reduce, all-gather
                            read back and compared on the host, word by word, with ==

One rank sends nothing, but all that NCCL needs before it can is done: its library is found, its bootstrap has an
interface, its memory is registered. For one rank NCCL's sum in place launches nothing and its gather is a copy; the
average of floats is what runs a kernel of NCCL's own, multiplying by 1 (``ncclLaunchOneRank`` in its enqueue.cc).

The user's NCCL and gloo variables stay, since they are what is tested; `WHERE_UNSET` is for what they leave open.

One record, ``world``: code 0 means that it formed and ended and `wrong_words` says the rest. Standard library and
torch only, Python >= 3.9.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch

COUNT = 1 << 18
"""1 MiB of fp32: over every block of NCCL's one-rank kernel, and 1 ms on a CPU core."""
DTYPES = {
    "fp32": (torch.float32, torch.int32),
    "bf16": (torch.bfloat16, torch.int16),
    "int64": (torch.int64, torch.int64),
}
"""Each with the integer type of its width: words are compared as bits, never as numbers."""
WORLD_TIMEOUT = timedelta(minutes=30)
"""Longer than a run: the child's own limit comes first and says where it hung; NCCL's watchdog would only abort."""
DESTROY_S = 5.0
"""It takes 10 ms; a destroy that waits for ever is a known defect and must not hide that the world worked."""
CUDA_ERROR_OUT_OF_MEMORY = 2
FAILED = -1
WHERE_UNSET = {
    "nccl": {
        "NCCL_SOCKET_IFNAME": "lo",  # one rank needs no other, and no port of ours is to be seen from outside
        "NCCL_RAS_ENABLE": "0",  # it listens on port 28028, where the RAS of a job beside us should
        "NCCL_DEBUG": "WARN",  # its own words for what is wrong
    },
    "gloo": {"GLOO_SOCKET_IFNAME": "lo"},
}
NCCL_WORD = re.compile(r"\bnccl(?:[A-Z][a-z]+)*(?:Error|Invalid[A-Z][a-z]+)\b")
"""``ncclSystemError``, ``ncclInvalidUsage``: how NCCL's codes are called."""
NO_DEVICE_ID = ((2, 6, 1), (2, 7, 0))
"""From and to: these hang where they are told the device (pytorch#153960)."""


class WorldError(Exception):
    """What torch raised, and in which call."""

    def __init__(self, call: str, error: Exception) -> None:
        self.call = call
        self.text, self.nccl_error = in_words(str(error))
        memory = "out of memory" in str(error) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)
        self.code = CUDA_ERROR_OUT_OF_MEMORY if memory else FAILED
        super().__init__(f"{call}: {self.text}")


def main(child: Any, job: dict[str, Any]) -> None:
    """Form one world on one device; `job` is ``{"target", "device": "cuda" or "cpu"}``."""
    target, on_gpu = job["target"], job["device"] == "cuda"
    backend = "nccl" if on_gpu else "gloo"
    if missing := lacking(backend):
        child.say("world", target, code=FAILED, reason=missing, backend=backend)
        return
    set_where_unset(WHERE_UNSET[backend])
    elapsed = child.timed()
    data: dict[str, Any] = {"backend": backend}
    try:
        data.update(test(child, target, backend, "cuda" if on_gpu else "cpu"))
    except WorldError as error:
        data.update(call=error.call, nccl_error=error.nccl_error, reason="raised")
        child.say("world", target, code=error.code, text=error.text, elapsed_s=elapsed(), **version(backend), **data)
        return
    child.say("world", target, code=0, elapsed_s=elapsed(), **version(backend), **data)


def lacking(backend: str) -> str:
    """What this build of torch lacks for a world of that kind; empty: nothing."""
    import torch.distributed as dist

    if not dist.is_available():
        return "no_distributed"
    there = dist.is_nccl_available() if backend == "nccl" else dist.is_gloo_available()
    return "" if there else f"no_{backend}"


def version(backend: str) -> dict[str, str]:
    """NCCL's, of the library that is loaded; asked in this fork, which it makes unfit for more."""
    if backend != "nccl":
        return {}
    import torch.cuda.nccl

    found = torch.cuda.nccl.version()
    return {"nccl_version": ".".join(map(str, found)) if isinstance(found, tuple) else str(found)}


def set_where_unset(variables: Mapping[str, str]) -> None:
    """Set what neither the environment nor NCCL's own files say: NCCL lets the environment win over its files."""
    said = {*os.environ, *names_in(*nccl_files(os.environ))}
    os.environ.update({name: value for name, value in variables.items() if name not in said})


def nccl_files(env: Mapping[str, str]) -> tuple[str, str]:
    """NCCL's user guide, "Environment variables": the user's file, by default in the home, and the system's."""
    return env.get("NCCL_CONF_FILE") or f"{env.get('HOME', '')}/.nccl.conf", "/etc/nccl.conf"


def names_in(*paths: str) -> Iterator[str]:
    """The variables that files of lines ``NAME=value`` set."""
    for path in paths:
        with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            yield from (line.partition("=")[0].strip() for line in file if "=" in line and line[0] != "#")


def test(child: Any, target: str, backend: str, device: str) -> dict[str, Any]:
    """What it took to make a world, use it and end it, and how many words were wrong."""
    import torch.distributed as dist

    elapsed = child.timed()
    if device == "cuda":
        with calling(child, target, "context"):
            torch.empty(1, device="cuda")
            torch.cuda.synchronize()
    with calling(child, target, f"{backend} init"):
        form(backend, device)
    init_s, elapsed = elapsed(), child.timed()
    wrong: dict[str, int] = {}
    for name in DTYPES:
        for call, words in collectives(name, backend):
            with calling(child, target, f"{call} {name}"):
                wrong[f"{call} {name}"] = words(dist, device)
    collectives_s = elapsed()
    child.step("destroy", target)
    first = next((call for call, words in wrong.items() if words), None)
    return {
        "dtypes": " ".join(DTYPES),
        "words": COUNT * len(wrong),
        "wrong_words": sum(wrong.values()),
        **({"first_wrong": first} if first else {}),
        "init_s": round(init_s, 6),
        "collectives_s": round(collectives_s, 6),
        "destroyed": destroyed(dist.destroy_process_group, DESTROY_S),
    }


def form(backend: str, device: str) -> None:
    """A world of this process alone, whose store is a table in its memory: no port, no file, no thread."""
    import torch.distributed as dist

    options: dict[str, Any] = {}
    if device == "cuda":
        torch.cuda.set_device(0)
        if takes_device_id(torch.__version__):
            options["device_id"] = torch.device("cuda", 0)  # so that NCCL starts now, and not at the first collective
    store = dist.HashStore()
    dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=WORLD_TIMEOUT, **options)


def takes_device_id(torch_version: str) -> bool:
    """Since 2.3, but for those that hang with it."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", torch_version.partition("+")[0])[:3])
    least, most = NO_DEVICE_ID
    return numbers >= (2, 3) and not least <= numbers <= most


def collectives(name: str, backend: str) -> Iterator[tuple[str, Any]]:
    """The calls of one dtype: each takes torch.distributed and a device and returns how many words came back wrong."""
    dtype, word = DTYPES[name]

    def reduce(dist: Any, device: str, average: bool = False) -> int:
        sent = fresh(dtype)
        held = sent.to(device, copy=True)
        dist.all_reduce(held, op=dist.ReduceOp.AVG if average else dist.ReduceOp.SUM)
        return wrong_words(held, sent, word)

    def gather(dist: Any, device: str) -> int:
        sent = fresh(dtype)
        got = torch.zeros(COUNT, dtype=dtype, device=device)
        dist.all_gather([got], sent.to(device, copy=True))
        return wrong_words(got, sent, word)

    yield "all-reduce", reduce
    if backend == "nccl" and dtype.is_floating_point:
        yield "average", lambda dist, device: reduce(dist, device, average=True)
    yield "all-gather", gather


def fresh(dtype: torch.dtype) -> torch.Tensor:
    """New words for every call: no answer that was left in memory by an earlier one can pass for this one's.

    Floats of both signs over 14 exponents, none of which a product with 1 may change.
    """
    generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "little"))
    if not dtype.is_floating_point:
        return torch.randint(-(1 << 62), 1 << 62, (COUNT,), generator=generator, dtype=dtype)
    exponents = torch.randint(-7, 7, (COUNT,), generator=generator)
    mantissas = 1 + torch.rand(COUNT, generator=generator)
    signs = 1 - 2 * torch.randint(0, 2, (COUNT,), generator=generator)
    return (torch.ldexp(mantissas, exponents) * signs).to(dtype)


def wrong_words(got: torch.Tensor, sent: torch.Tensor, word: torch.dtype) -> int:
    """How many words differ; reading them back waits for the device."""
    return int(torch.count_nonzero(got.cpu().view(word) != sent.view(word)))


def destroyed(destroy: Any, within_s: float) -> bool:
    """Whether the world ended in time; if not, its thread ends with this process."""
    ending = threading.Thread(target=destroy, daemon=True)
    ending.start()
    ending.join(within_s)
    return not ending.is_alive()


@contextmanager
def calling(child: Any, target: str, call: str) -> Iterator[None]:
    """Announce one call and make what torch raises in it a `WorldError`."""
    child.step(call, target)
    try:
        yield
    except (RuntimeError, ValueError, torch.cuda.DeferredCudaCallError) as error:
        raise WorldError(call, error) from error


def in_words(text: str) -> tuple[str, str]:
    """One line of what torch says about NCCL, and NCCL's own word for it.

    Torch's lines are: where, its version; the word and what that may mean; ``Last error:``; NCCL's own warning.
    """
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()] or [""]
    found = NCCL_WORD.search(text)
    word = found.group() if found else ""
    own = lines[lines.index("Last error:") + 1 :] if "Last error:" in lines else []
    if not word:
        return lines[0][:300], ""
    return f"{word}: {own[0]}"[:300] if own else next(line for line in lines if word in line)[:300], word
