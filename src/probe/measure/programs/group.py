"""One rank's place in a process group: NCCL between GPUs, gloo between CPUs, on this host's loopback.

The ranks meet through a file of the run's own folder, so that nobody listens for them; what NCCL and gloo open
themselves is bound to the loopback interface. Under another launcher (``RANK``, ``MASTER_ADDR`` and the like are set,
and the job says ``"store": "env"``) they meet as that launcher says. Standard library and torch only, Python >= 3.9.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


class Group:
    """The group, and words that its ranks leave for each other in its store."""

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self._store = store
        self.rank = rank
        self.world = world

    def agree(self, key: str, choose: Callable[[], int]) -> int:
        """What rank 0 chooses; every rank must do the same number of calls."""
        if self.rank == 0:
            self._store.set(key, str(choose()))
        return int(self._store.get(key))

    def tell(self, key: str, word: str) -> None:
        self._store.set(key, word)

    def told(self, key: str) -> str:
        """Waits until somebody has told it."""
        return str(self._store.get(key).decode())

    wait = told

    def leave(self) -> None:
        """Once all are done: a rank that leaves early takes its connections with it."""
        self._store.set(f"done {self.rank}", "1")
        for rank in range(self.world):
            self._store.get(f"done {rank}")


def join(child: Any, job: dict[str, Any]) -> Group:
    """Meet the other ranks; within `job["limit_s"]`, or it raises."""
    limit = timedelta(seconds=job["limit_s"])
    rank, world = int(job["rank"]), int(job["world"])
    child.step("init_process_group", job.get("target", ""))
    options: dict[str, Any] = {"rank": rank, "world_size": world, "timeout": limit}
    if job["store"] == "env":
        dist.init_process_group("nccl" if job["device"] == "cuda" else "gloo", init_method="env://", timeout=limit)
        store = dist.distributed_c10d._get_default_store()  # noqa: SLF001 - there is no public way to it
        return Group(dist.PrefixStore("probe", store), dist.get_rank(), dist.get_world_size())
    os.environ.update(LOOPBACK)
    store = dist.FileStore(job["store"], world)
    store.set_timeout(limit)
    if job["device"] == "cuda":
        options["device_id"] = torch.device("cuda", int(job.get("index", 0)))
    backend = "nccl" if job["device"] == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore("torch", store), **options)
    return Group(dist.PrefixStore("probe", store), rank, world)
