"""A job on one GPU of several: how long its steps take while ``probe check`` runs every five seconds, over without.

::

    job on GPU 0:   step step step ...          one line for each block of steps, with its seconds
    windows:        without, with, without, with, ...      15 s each; in "with" a check begins every 5 s

Every check in a window must have left the job's GPU alone and tested the others: one that tested nothing costs nothing.
"""

import json
import subprocess
import time
from collections.abc import Sequence
from statistics import fmean, median
from threading import Thread

from bench.measure import TOO_LONG_S, Bench, Figure, Value, environment, gpus, output

BAR = 1.02
WINDOW_S = 15.0
EVERY_S = 5.0
WINDOWS = 4
"""Of each kind."""
JOB = """
import time, torch
torch.manual_seed(0)
layers = [torch.nn.Linear(4096, 4096, device="cuda", dtype=torch.bfloat16) for _ in range(8)]
model = torch.nn.Sequential(*layers)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
x = torch.randn(8192, 4096, device="cuda", dtype=torch.bfloat16)
def step():
    optimizer.zero_grad(set_to_none=True)
    model(x).square().mean().backward()
    optimizer.step()
for _ in range(20): step()
torch.cuda.synchronize()
while True:
    began = time.perf_counter()
    for _ in range(5): step()
    torch.cuda.synchronize()
    print((time.perf_counter() - began) / 5, flush=True)
"""
"""A training step of a small model, paced by the host: what it loses to a neighbour on CPU or GPU is in its time."""


def measure(bench: Bench) -> Figure:
    found = gpus()
    argv = bench.bare(JOB)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment(CUDA_VISIBLE_DEVICES="0")) as job:
        try:
            steps = Steps(job)
            steps.wait_for_the_first()
            samples, checks = in_turn(bench, steps)
        finally:
            job.kill()
    for check in checks:
        assert check == {"skip": 1, "pass": len(found) - 1}, checks
    values = (
        Value("mean step with / without", fmean(samples["with"]) / fmean(samples["without"]), "x", BAR),
        Value("median step with / without", median(samples["with"]) / median(samples["without"]), "x"),
        Value("checks beside it", len(checks), ""),
    )
    notes = (f"{len(found)} GPUs, the job on the first; a step {1e3 * median(samples['without']):.2f} ms",)
    what = "a training step beside probe check every 5 s, over without"
    return Figure("beside", what, values, samples, notes)


class Steps:
    """What the job says of its steps, as it comes."""

    def __init__(self, job: "subprocess.Popen[str]") -> None:
        self._job = job
        self._seconds: list[float] = []
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._job.stdout is not None
        for line in self._job.stdout:
            self._seconds.append(float(line))

    def wait_for_the_first(self) -> None:
        until = time.monotonic() + TOO_LONG_S
        while not self._seconds and time.monotonic() < until:
            time.sleep(0.1)

    def window(self, seconds: float) -> list[float]:
        """Those that ended within so long from now; the first may have begun before."""
        first = len(self._seconds)
        time.sleep(seconds)
        assert self._job.poll() is None, "the job ended"
        made = self._seconds[first + 1 :]
        assert made, "no step in a whole window"
        return made


def in_turn(bench: Bench, steps: Steps) -> tuple[dict[str, list[float]], Sequence[dict[str, int]]]:
    samples: dict[str, list[float]] = {"without": [], "with": []}
    checks: list[dict[str, int]] = []
    for _ in range(WINDOWS):
        samples["without"] += steps.window(WINDOW_S)
        checking = Thread(target=check_often, args=(bench, checks))
        checking.start()
        samples["with"] += steps.window(WINDOW_S)
        checking.join()
    return samples, checks


def check_often(bench: Bench, found: list[dict[str, int]]) -> None:
    """Three checks, one every five seconds; how many GPUs each of them left alone and tested."""
    began = time.monotonic()
    for turn in range(int(WINDOW_S / EVERY_S)):
        time.sleep(max(0.0, began + turn * EVERY_S - time.monotonic()))
        report = json.loads(output(bench.check()))
        tensors = [check["status"] for check in report["checks"] if check["id"] == "torch.tensor"]
        found.append({"skip": tensors.count("skip"), "pass": tensors.count("pass")})
