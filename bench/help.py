"""``probe --help`` over ``python -c pass``: nothing heavy is imported before it is needed."""

from bench.measure import Bench, Figure, ratio, rounds, timed

BAR = 5.0


def measure(bench: Bench) -> Figure:
    """The whole command against an interpreter that does nothing; both by the same interpreter."""
    samples = rounds(
        max(15, bench.rounds),
        {
            "probe": lambda: timed([*bench.probe, "--help"]),
            "pass": lambda: timed(bench.bare("pass")),
        },
    )
    return Figure("help", "probe --help, over python -c pass", (ratio(samples, "probe", "pass", BAR),), samples)
