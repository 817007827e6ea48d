"""Who is started, and who is not: the rig with children that only note that they were asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from probe.checks import load
from probe.clock import Budget
from probe.context import Context, Target
from probe.expect import expect
from probe.model import Config, Facts, NoAnswer
from probe.plan import make
from probe.rig import Rig, Setup
from probe.state import Leaving, StateFolder
from probe.worker.launch import Launch

pytestmark = pytest.mark.anyio
A, B = "gpu:GPU-a", "gpu:GPU-b"


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


class Noted:
    """Stands in for `Children`."""

    alive: tuple[Any, ...] = ()

    def __init__(self) -> None:
        self.started: list[tuple[str, str]] = []
        self.killed = False

    def kill(self) -> None:
        self.killed = True

    def start(self, program: str, job: Mapping[str, Any], *, worker: str, target: str = "", **options: Any) -> None:
        self.started.append((worker, target))

    def fork(self, zygote: Any, job: Mapping[str, Any], *, worker: str, target: str, **options: Any) -> None:
        self.started.append((worker, target))


def rig(children: Any, state: Path, *stuck: Leaving, budget_s: float = 1e9) -> Rig:
    launch = Launch(children, Budget(0.0, budget_s))
    launch.processes["torch"] = object()  # type: ignore[assignment]  # a zygote, of which nothing is asked here
    expected = expect(Facts(gpus_expect=2))
    plan = make(Config(), expected, load(), only=(), skip=(), torch_missing="")
    setup = Setup(plan, computing=True, cpu_workers=0, test_busy=False, mps_pipe="", visible=None)
    context = Context(expected=expected, facts=Facts(), stuck=stuck)
    return Rig(setup, launch, context, StateFolder(str(state)))


async def test_no_child_is_started_where_one_of_an_earlier_run_is_stuck(state: Path) -> None:
    """Neither of the CUDA rung nor of torch; the other GPU's are."""
    children = Noted()
    made = rig(children, state, Leaving(17, 1, "cuda", A, 0.0))
    for target in (A, B):
        made._start_cuda(Target(target))
        made._want("torch", target)
    assert [("cuda", B), ("torch", B)] == children.started


async def test_stopped_when_its_budget_is_over_already_it_kills_and_says_so(state: Path) -> None:
    """A machine so busy that the time for reaping had gone before it was told to stop."""
    children = Noted()
    made = rig(children, state, budget_s=1.0)
    await made.stop()
    assert children.killed
    with pytest.raises(NoAnswer):
        await made._context.gpus.get()
