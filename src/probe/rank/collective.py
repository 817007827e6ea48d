"""One rank of a world: all-reduce and all-gather whose every word is verified, then their rate.

::

    world      torchrun (torchrun.py) -> this, task "worker": rank, size and store come from torchrun's environment
    a round    the warm importer forks -> this, task "rank": the first rank opens a store on a port of its own, says
               where, and the others are started with that

    store -> init -> all-reduce: sizes x fp32/bf16/int64 x routed/dense -> all-gather -> rate -> done

Every step is said before it is done, so that a hang has a name; nothing here waits for a host that may never come
without `timeout_s`, and where a library does all the same (gloo's mesh), the agent kills. Records: ``step``, ``store``,
``cases``, ``gathered``, ``rate``, ``done``, ``skipped`` (a size that
would take too long on this network), and ``failed`` with what torch raised.

Standard library, torch and the files beside this one; Python >= 3.9.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

FOLDER = os.path.dirname(os.path.abspath(__file__))
CHUNK = 1 << 22
"""Words made and compared at a time: the pattern's 64-bit indices take 32 MiB, not 8 bytes for each word of a case."""
DTYPES = ("fp32", "bf16", "int64")
KINDS = ("routed", "dense")
SHOWN_OWNERS = 8
GATHER_WORDS = 1024
GATHER_WORDS_MANY = 64
"""From 512 ranks on: the gathered words stay under some MiB."""
RATE_S = 0.3
"""About how long the rate is measured; a size whose one go would take longer than `SLOWEST_S` is left out."""
SLOWEST_S = 3.0
TELLING_BYTES = 1 << 17
"""Below this latency is most of what is measured, and says nothing about larger sizes."""
MAX_GOES = 20


def main(child: Any, job: dict[str, Any]) -> None:
    """Run the task that `job` names; the other tasks are files beside this one."""
    if job["task"] == "torchrun":
        child.load(os.path.join(FOLDER, "torchrun.py")).main(child, job)
        return
    rank = Rank(child, job)
    try:
        rank.run()
    except Exception as error:  # noqa: BLE001 - whatever torch raises is the finding itself
        text = str(error).strip().replace("\n", " ") or type(error).__name__
        rank.say("failed", text[:1000], kind=type(error).__name__)
        os._exit(1)  # so that torchrun takes it for a failure, as it would a job's


class Rank:
    def __init__(self, child: Any, job: dict[str, Any]) -> None:
        self.child = child
        self.job = job
        self.rank = int(job["rank"] if job["task"] == "rank" else os.environ["RANK"])
        self.ranks = int(job["ranks"] if job["task"] == "rank" else os.environ["WORLD_SIZE"])
        self.local = int(job["local"] if job["task"] == "rank" else os.environ["LOCAL_RANK"])
        self.cuda = job["backend"] == "nccl"
        self.iteration = int(job["seed"])

    def say(self, key: str, text: str = "", **data: Any) -> None:
        self.child.say(key, text=text, rank=self.rank, **data)

    def step(self, name: str) -> None:
        self.say("step", name)

    def run(self) -> None:
        self.step("import torch")
        import torch
        import torch.distributed as dist

        self.torch, self.dist = torch, dist
        self.pattern = self.child.load(os.path.join(FOLDER, "pattern.py"))
        self.device = torch.device("cpu")
        if self.cuda:
            self.step("device")
            self.device = torch.device("cuda", self.local)
            torch.cuda.set_device(self.device)
        self._join()
        # the smallest first: a link on which nothing passes is found before anything large waits on it
        took_s, done_bytes = 0.0, 0
        for size_bytes in self.job["sizes_bytes"]:
            if done_bytes >= TELLING_BYTES and took_s * size_bytes / done_bytes > SLOWEST_S:
                self.say("skipped", bytes=size_bytes, expected_s=round(took_s * size_bytes / done_bytes, 1))
                break
            took_s, done_bytes = self._cases(size_bytes), size_bytes
        self._gather()
        self._rates()
        self.dist.barrier()
        self.say("done")
        if self.cuda:  # NCCL's own threads may still be sending what the GPU has handed them, and a peer waits for it
            self.dist.destroy_process_group()

    # -- joining ------------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        timeout = timedelta(seconds=self.job["timeout_s"])
        options: dict[str, Any] = {"backend": self.job["backend"], "timeout": timeout}
        if self.cuda:
            options["device_id"] = self.device
        self.step("store")
        if self.job["task"] == "rank":
            store = self.child.load(os.path.join(FOLDER, "store.py")).meet(self.say, self.job, timeout)
            options.update(store=self.dist.PrefixStore("round", store), rank=self.rank, world_size=self.ranks)
        self.step("init")
        self.dist.init_process_group(**options)

    # -- what is verified ---------------------------------------------------------------------------------------------

    def _cases(self, size_bytes: int) -> float:
        """An all-reduce of each dtype and kind of data, every word of whose result is compared; the slowest's time."""
        self.step(f"all-reduce of {size_bytes} bytes")
        began = time.perf_counter()
        wrong = []
        for name in DTYPES:
            for kind in KINDS:
                self.iteration += 1
                if found := self._case(self.pattern.FORMATS[name], kind, size_bytes):
                    wrong.append({"dtype": name, "kind": kind, **found})
        elapsed_s = self._agreed(time.perf_counter() - began)
        self.say(
            "cases", bytes=size_bytes, verified=len(DTYPES) * len(KINDS), wrong=wrong, slowest_s=round(elapsed_s, 6)
        )
        return elapsed_s

    def _case(self, form: Any, kind: str, size_bytes: int) -> dict[str, Any] | None:
        words = max(1, size_bytes // form.dtype.itemsize)
        buffer = self.torch.empty(words, dtype=form.dtype, device=self.device)
        for start in range(0, words, CHUNK):
            index = self._index(start, words)
            buffer[start : start + len(index)] = self.pattern.sent(
                kind, form, index, self.rank, self.ranks, self.iteration
            )
        self.dist.all_reduce(buffer)
        self._wait()
        return self._compare(kind, form, buffer)

    def _index(self, start: int, words: int) -> Any:
        return self.torch.arange(start, min(start + CHUNK, words), dtype=self.torch.int64, device=self.device)

    def _compare(self, kind: str, form: Any, buffer: Any) -> dict[str, Any] | None:
        """How many words are wrong, where the first is, and which ranks own the wrong ones of routed data."""
        wrong, first = 0, -1
        owners: set[int] = set()
        for start in range(0, len(buffer), CHUNK):
            index = self._index(start, len(buffer))
            expected = self.pattern.expected(kind, form, index, self.ranks, self.iteration)
            differs = buffer[start : start + len(index)].view(form.word) != expected.view(form.word)
            count = int(differs.sum())
            if not count:
                continue
            where = index[differs]
            wrong += count
            first = int(where[0]) if first < 0 else first
            if kind == "routed":
                owners.update(self.pattern.owners(where, self.ranks, self.iteration).unique().tolist())
        if not wrong:
            return None
        return {"words": wrong, "first": first, "owners": sorted(owners)[: SHOWN_OWNERS + 1]}

    def _gather(self) -> None:
        """All-gather of what each rank is known by: whose bytes arrive wrong here."""
        self.step("all-gather of signatures")
        self.iteration += 1
        words = GATHER_WORDS if self.ranks < 512 else GATHER_WORDS_MANY
        mine = self.pattern.signature(self.rank, words, self.iteration, self.device)
        everyone = [self.torch.empty_like(mine) for _ in range(self.ranks)]
        self.dist.all_gather(everyone, mine)
        self._wait()
        wrong = [
            rank
            for rank in range(self.ranks)
            if not self.torch.equal(everyone[rank], self.pattern.signature(rank, words, self.iteration, self.device))
        ]
        self.say("gathered", count=len(wrong), wrong=wrong[: SHOWN_OWNERS + 1])

    # -- how fast -----------------------------------------------------------------------------------------------------

    def _rates(self) -> None:
        """The rate of all-reduce in fp32 by size, from small to large while one go is quick enough."""
        predicted_s = 0.0
        done_bytes = 0
        for size_bytes in self.job["rates_bytes"]:
            if done_bytes >= TELLING_BYTES and predicted_s * size_bytes / done_bytes > SLOWEST_S:
                return
            self.step(f"rate of {size_bytes} bytes")
            predicted_s, done_bytes = self._rate(size_bytes), size_bytes

    def _rate(self, size_bytes: int) -> float:
        """Seconds that one all-reduce takes. The sum of zeros: its words were verified above, here only time counts."""
        buffer = self.torch.zeros(size_bytes // 4, dtype=self.torch.float32, device=self.device)
        once_s = self._agreed(self._time(buffer, 1))
        goes = max(1, min(MAX_GOES, int(RATE_S / max(once_s, 1e-6))))
        each_s = self._agreed(self._time(buffer, goes)) / goes
        algbw_gbps = size_bytes / each_s / 1e9
        # https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md: all-reduce moves 2 (n - 1) / n as much
        busbw_gbps = algbw_gbps * 2 * (self.ranks - 1) / self.ranks
        self.say("rate", bytes=size_bytes, goes=goes, algbw_gbps=round(algbw_gbps, 4), busbw_gbps=round(busbw_gbps, 4))
        return each_s

    def _time(self, buffer: Any, goes: int) -> float:
        began = time.perf_counter()
        for _ in range(goes):
            self.dist.all_reduce(buffer)
        self._wait()
        return time.perf_counter() - began

    def _agreed(self, seconds: float) -> float:
        """The slowest rank's: all must decide alike how often to go, or they hang."""
        slowest = self.torch.tensor([seconds], dtype=self.torch.float64, device=self.device)
        self.dist.all_reduce(slowest, op=self.dist.ReduceOp.MAX)
        return max(float(slowest), 1e-9)

    def _wait(self) -> None:
        if self.cuda:
            self.torch.cuda.synchronize(self.device)
