"""Asks one check, with recorded values: no GPU, process, clock or command line."""

from collections.abc import Mapping
from typing import Any

import anyio
from trio.testing import MockClock

from probe.checks import load
from probe.context import Answers, Context, Host, Target
from probe.expect import expect
from probe.model import EVERY_GPU, Expectation, Facts, Finding, Job, NoAnswer, Record
from probe.registry import TARGETS
from probe.state import Leaving

GPU = "gpu:GPU-1f3d5b79-0000-0000-0000-000000000000"


class Files(Host):
    """A machine whose files are a dict; a folder's names are those of the paths below it."""

    def __init__(self, files: Mapping[str, str] | None = None, env: Mapping[str, str] | None = None) -> None:
        super().__init__(env or {})
        self._files = dict(files or {})

    def read(self, path: str) -> str:
        if path not in self._files:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self._files[path]

    def names(self, path: str) -> list[str]:
        below = path.rstrip("/") + "/"
        return sorted({name[len(below) :].split("/")[0] for name in self._files if name.startswith(below)})


def ask(  # noqa: PLR0913 - one keyword for each thing that a check can see
    check_id: str,
    *records: tuple[str, Record],
    target: str = "",
    facts: Facts | None = None,
    expected: Expectation | None = None,
    files: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    stuck: tuple[Leaving, ...] = (),
    known_gpus: tuple[str, ...] = (),
    torch: Mapping[str, str | None] | None = None,
    products: tuple[str, ...] = ("",),
    thresholds: Mapping[str, Any] | None = None,
    asked: Mapping[str, tuple[str, ...]] | None = None,
    kernel_log: int = -1,
    workers: tuple[str, ...] = (),
    testable: tuple[Target, ...] | None = None,
    options: Mapping[str, Any] | None = None,
    seen_services: tuple[str, ...] = (),
    **job: Any,
) -> Finding:
    """The finding of a check whose workers said `records`, each as (worker, record), and ended then.

    A kind of target that a user declares is asked by the kind's own id; `options` are laid over its defaults.

    What a worker was not made to say is answered by "it ended"; the finding of a `NoAnswer` is returned as the
    engine would make it the outcome.
    """
    check = {**load(), **TARGETS}[check_id]
    facts = facts or Facts()

    async def main() -> Finding:
        answers = Answers()
        for worker, record in records:
            answers.put(worker, target, record)
        context = Context(
            expected=expected or expect(facts),
            facts=facts,
            host=Files(files, env),
            answers=answers,
            stuck=stuck,
            known_gpus=known_gpus,
            kernel_log=kernel_log,
            asked=asked,
            torch=torch,
            workers=workers,
            seen_services=seen_services,
            torch_missing="torch not installed (looked in /usr/bin/python3)",
        )
        others = (f"{GPU}-{number}" for number in range(1, len(products)))
        context.gpus.set(tuple(Target(gpu, product=name) for gpu, name in zip((GPU, *others), products, strict=True)))
        context.testable.set((Target(GPU),) if testable is None else testable)
        for worker in ("files", "nvml", "cuda", "torch", "smi", "nccl", "model", "command", "services"):
            answers.refuse(worker, "", ENDED)
        limits = {name: limit.default for name, limit in check.thresholds.items()} | dict(thresholds or {})
        whom = target or (EVERY_GPU if check.per_gpu else "")
        try:
            numbers = {name: limit for name, limit in limits.items() if not isinstance(limit, tuple)}
            lists = {name: limit for name, limit in limits.items() if isinstance(limit, tuple)}
            chosen = {name: option.default for name, option in check.options.items()} | dict(options or {})
            planned = Job(check, whom, check.severity, thresholds=numbers, lists=lists, options=chosen, **job)
            return await check.run(context, planned)
        except NoAnswer as reason:
            return reason.finding

    return anyio.run(main, backend="trio", backend_options={"clock": MockClock(autojump_threshold=0)})


ENDED = Finding("unknown", "its worker ended", {"reason": "silent"})  # type: ignore[arg-type]  # a StrEnum's own word
