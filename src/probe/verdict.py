"""Outcomes -> verdict. Pure; the exit code of a verdict is in `probe.exits`.

First match wins::

    a critical fail or timeout                             unhealthy
    a critical unknown, or nothing ended in pass or warn   undetermined
    any warn, or an advisory fail, timeout or unknown      degraded
                                                           healthy
"""

from collections.abc import Iterable

from msgspec.structs import replace

from probe.model import PROBLEMS, Cause, Outcome, Profile, Severity, Status, Verdict, Who


def verdict(outcomes: Iterable[Outcome], profile: Profile, causes: Iterable[Cause]) -> Verdict:
    """What the outcomes of one run amount to."""
    weighed = weigh(outcomes, profile, causes)
    critical = {outcome.status for outcome in weighed if outcome.severity is Severity.CRITICAL}
    seen = {outcome.status for outcome in weighed}
    if critical & {Status.FAIL, Status.TIMEOUT}:
        return Verdict.UNHEALTHY
    if Status.UNKNOWN in critical or not seen & {Status.PASS, Status.WARN}:
        return Verdict.UNDETERMINED
    if seen & PROBLEMS:
        return Verdict.DEGRADED
    return Verdict.HEALTHY


def weigh(outcomes: Iterable[Outcome], profile: Profile, causes: Iterable[Cause]) -> tuple[Outcome, ...]:
    """The outcomes with the severity at which they count in this profile.

    In liveness only what a restart of the container mends stays critical: a hung driver does not get better by
    killing the job.
    """
    if profile is not Profile.LIVENESS:
        return tuple(outcomes)
    mended = {
        (reference.id, reference.target)
        for cause in causes
        if cause.who is Who.CONTAINER_RESTART
        for reference in cause.checks
    }
    return tuple(
        outcome if (outcome.id, outcome.target) in mended else replace(outcome, severity=Severity.ADVISORY)
        for outcome in outcomes
    )
