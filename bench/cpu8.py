"""A host with eight workers, rehearsed on the CPU, over one bare torch test: import once, then fork, costs no more."""

from bench.measure import Bench, Figure, ratio, rounds, timed
from bench.measure import passed as targets_passed

BAR = 1.25
WORKERS = 8
TEST = "import torch; a = torch.randn(256, 256); assert torch.isfinite((a @ a).sum()).item()"


def measure(bench: Bench) -> Figure:
    """All of ``probe check --device cpu:8`` against one bare import of torch and one product in it.

    The bare test is run twice a round: ended as programs end, and by ``os._exit`` as probe's own processes do (leaving
    a process that holds torch costs 0.5 s).
    """
    samples = rounds(
        bench.rounds,
        {
            "probe": lambda: timed(bench.check("--device", f"cpu:{WORKERS}"), eight_passed),
            "bare": lambda: timed(bench.bare(TEST)),
            "bare, os._exit": lambda: timed(bench.bare(f"{TEST}; import os; os._exit(0)")),
        },
    )
    values = (ratio(samples, "probe", "bare", BAR), ratio(samples, "probe", "bare, os._exit"))
    return Figure("cpu8", "probe check --device cpu:8, over one import of torch and matmul", values, samples)


def eight_passed(stdout: str) -> None:
    assert sorted(targets_passed(stdout, "torch.tensor")) == [f"cpu:{n}" for n in range(WORKERS)], stdout
