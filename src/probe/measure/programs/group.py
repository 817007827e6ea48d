"""One rank's place in a process group: NCCL between GPUs, gloo between CPUs.

On one host the ranks meet through a file of the run's own folder, so that nobody listens for them, and what NCCL and
gloo open themselves is bound to the loopback interface. Across hosts they meet in the store that `job["meet"]`, a file
of the gate's, opens, and the agents have chosen the interface. Standard library and torch only, Python >= 3.9.
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
        """Once all are done: a rank that leaves early takes its connections with it, the first one the store too."""
        if self.rank:
            self._store.set(f"done {self.rank}", "1")
            self._store.get("all done")
            self._store.set(f"left {self.rank}", "1")
            return
        self._heard("done")
        self._store.set("all done", "1")
        self._heard("left")

    def _heard(self, word: str) -> None:
        for rank in range(1, self.world):
            self._store.get(f"{word} {rank}")


def join(child: Any, job: dict[str, Any]) -> Group:
    """Meet the other ranks; within `job["limit_s"]`, or it raises."""
    limit = timedelta(seconds=job["limit_s"])
    rank, world = int(job["rank"]), int(job["world"])
    child.step("init_process_group", job.get("target", ""))
    store = _store(child, job, limit)
    options: dict[str, Any] = {"rank": rank, "world_size": world, "timeout": limit}
    if job["device"] == "cuda":
        options["device_id"] = torch.device("cuda", int(job.get("index", 0)))
    backend = "nccl" if job["device"] == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore("torch", store), **options)
    return Group(dist.PrefixStore("probe", store), rank, world)


def _store(child: Any, job: dict[str, Any], limit: timedelta) -> Any:
    if "meet" in job:
        return child.load(job["meet"]).meet(child.say, job, limit)
    os.environ.update(LOOPBACK)
    store = dist.FileStore(job["store"], int(job["world"]))
    store.set_timeout(limit)
    return store
