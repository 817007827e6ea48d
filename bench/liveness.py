"""``probe check --profile liveness`` over ``python -c pass``: what a Kubernetes liveness probe costs each time."""

from bench.measure import Bench, Figure, ratio, rounds, timed

BAR = 12.0


def measure(bench: Bench) -> Figure:
    """The whole command against an interpreter that does nothing; both by the same interpreter."""
    samples = rounds(
        max(15, bench.rounds),
        {
            "probe": lambda: timed(bench.check("--profile", "liveness")),
            "pass": lambda: timed(bench.bare("pass")),
        },
    )
    what = "probe check --profile liveness, over python -c pass"
    return Figure("liveness", what, (ratio(samples, "probe", "pass", BAR),), samples)
