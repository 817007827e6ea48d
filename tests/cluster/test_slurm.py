"""Starting steps again without the nodes that end them, and who is blamed when that goes on."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import anyio

from probe.cluster.hosts import Host
from probe.cluster.launch import NotReached
from probe.cluster.slurm import MOST_LAUNCHES, SlurmLauncher, Step


class Ending(SlurmLauncher):
    """Whose every step is ended, by its first node."""

    async def _that_slurm_has(self) -> list[str]:
        return self._names

    def _start(self, names: Sequence[str]) -> Step:
        step = Step(
            cast(Any, None), -1, cast(Any, [SimpleNamespace(name=name, spoke=True, ending=False) for name in names])
        )
        step.over = True
        return step

    def _cannot_start(self, step: Step) -> dict[str, NotReached]:
        return {step.channels[0].name: NotReached("slurm_launch", "Slurm cannot start a task there")}


def test_nodes_that_others_kept_from_being_started_are_not_what_failed() -> None:
    async def main() -> dict[str, str]:
        hosts = [Host(f"n{number}") for number in range(1, MOST_LAUNCHES + 3)]
        made = Ending(cast(Any, None), cast(Any, None), hosts)
        await made._launch()
        return {name: found.reason for name, found in made._not_reached.items()}

    failed = dict.fromkeys(("n1", "n2", "n3"), "slurm_launch")
    assert {**failed, "n4": "slurm_ended", "n5": "slurm_ended"} == anyio.run(main)
