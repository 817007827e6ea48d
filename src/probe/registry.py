"""`@check`: the one way a check comes into being.

A check is one decorated async function in one file under ``probe/checks``, and its file's name in the list there.
Registering fails at once, naming both culprits. What a user may declare by name in a config file (``[[http]]``) is a
check too, of a kind in `TARGETS`; a run's own registry holds both.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from probe.model import Check, CheckFunction, Option, Profile, Severity, Threshold

_LETTERS = {"R": Profile.READINESS, "L": Profile.LIVENESS, "S": Profile.STARTUP, "N": Profile.NODE}


class Registry(dict[str, Check]):
    """The checks by id, in the order they were declared."""

    def add(self, check: Check) -> None:
        """Raise ValueError, naming both, where the id or its ``ENABLE_<CHECK>_CHECK`` switch is taken."""
        for other in self.values():
            if other.id == check.id or switch(other.id) == switch(check.id):
                raise ValueError(
                    f"check {check.id!r} in {check.run.__module__} clashes with {other.id!r} in {other.run.__module__}"
                )
        self[check.id] = check


def switch(check_id: str) -> str:
    """The environment variable that turns a check on or off: ``ENABLE_ECC_CHECK`` for ``nvml.ecc``."""
    return f"ENABLE_{check_id.rpartition('.')[2].upper().replace('-', '_')}_CHECK"


CHECKS = Registry()
TARGETS = Registry()
"""Kinds of checks of which a config file declares any number, each by its name: ``[[http]]`` is ``service.http``."""


def kind(template: Check) -> str:
    """What its array of tables is called in a config file."""
    return template.id.rpartition(".")[2]


def declared(template: Check, name: str) -> Check:
    """The check that one entry of ``[[kind]]`` declares."""
    return replace(template, id=f"{template.id}.{name}")


def check(  # noqa: PLR0913 - one keyword for each thing that a check declares
    check_id: str,
    *,
    severity: str = "critical",
    profiles: str,
    needs: Iterable[str] = (),
    uses: Iterable[str] = (),
    per_gpu: bool = False,
    gpu_only: bool = False,
    thresholds: Mapping[str, Threshold] | None = None,
    critical_in: str = "",
    options: Mapping[str, Option] | None = None,
    complaint: Callable[[Mapping[str, Any]], str] | None = None,
    into: Registry = CHECKS,
) -> Callable[[CheckFunction], CheckFunction]:
    """Declare a check. `profiles` is letters, as is `critical_in`: R readiness, L liveness, S startup, N node."""

    def declare(run: CheckFunction) -> CheckFunction:
        into.add(
            Check(
                id=check_id,
                run=run,
                question=(run.__doc__ or "").strip().partition("\n")[0],
                severity=Severity(severity),
                profiles=frozenset(_LETTERS[letter] for letter in profiles),
                needs=tuple(needs),
                uses=tuple(uses),
                per_gpu=per_gpu,
                gpu_only=gpu_only,
                thresholds=thresholds or {},
                critical_in=frozenset(_LETTERS[letter] for letter in critical_in),
                options=options or {},
                complaint=complaint,
            )
        )
        return run

    return declare
