"""All that a check may touch: what workers answered, which GPUs there are, this machine's harmless files, the past.

A check awaits answers and never starts, kills or times anything. An answer that will not come raises
`probe.model.NoAnswer` with the finding that says why, which the engine makes the check's own outcome.
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Generic, TypeVar

import anyio

from probe.model import Expectation, Facts, Finding, Job, NoAnswer, Record, Status, failed, skipped, unknown
from probe.state import Leaving

T = TypeVar("T")

NVML_NO_PERMISSION = 4
NVML_NOT_SUPPORTED = (3, 22)
"""22: ECC on a vGPU."""
NVML_DRIVER_TOO_OLD = (13, 25, 26)
"""Function not found, argument version mismatch, deprecated: the driver and nvidia-ml-py are of different times."""


class Later(Generic[T]):
    """A value that comes once, or never and then with the reason."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._value: T | None = None
        self._finding: Finding | None = None

    @property
    def settled(self) -> bool:
        return self._event.is_set()

    @property
    def now(self) -> T | None:
        """The value, None while it has not come."""
        return self._value

    def set(self, value: T) -> None:
        if not self.settled:
            self._value = value
            self._event.set()

    def fail(self, finding: Finding) -> None:
        if not self.settled:
            self._finding = finding
            self._event.set()

    async def get(self) -> T:
        """Raise NoAnswer when it will never come."""
        await self._event.wait()
        if self._finding is not None:
            raise NoAnswer(self._finding)
        return self._value  # type: ignore[return-value]  # set by set(), or the line above raised


class Target:
    """What a per-GPU check is asked of: ``gpu:GPU-...``, ``gpu:MIG-...`` or ``cpu:<n>``."""

    def __init__(self, name: str, *, product: str = "", skip: str | None = "") -> None:
        self.name = name
        self.product = product
        """The GPU's name, where known."""
        self.skip: Later[str] = Later()
        """Why it is not to be touched; empty: it may be. None at first: that is still to be found out."""
        if skip is not None:
            self.skip.set(skip)


Ending = Callable[[str], Finding]
"""What a worker's end means to one who waits for it; told the last step it announced."""


class Answers:
    """What the workers said, and who is still waiting for what."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str, str], Record] = {}
        self._endings: dict[tuple[str, str], Ending] = {}
        self._steps: dict[tuple[str, str], str] = {}
        self._separate: set[tuple[str, str]] = set()
        self._waiting: dict[tuple[str, str, str], anyio.Event] = {}
        self._given_up: Finding | None = None
        self.wanted: Callable[[str, str], None] = lambda worker, target: None
        """Called before each wait; starts the workers that are started on demand."""
        self.unwanted: Callable[[str, str], None] = lambda worker, target: None
        """Called when a wait was cancelled; ends the workers that were started for it."""

    def put(self, worker: str, target: str, record: Record) -> None:
        """File one record of the worker for `target`; a record's own target goes before that."""
        target = record.target or target
        if record.key == "step":
            self._steps[worker, target] = record.text
            return
        self._records[worker, target, record.key] = record
        if event := self._waiting.pop((worker, target, record.key), None):
            event.set()

    def separate(self, worker: str, target: str) -> None:
        """The worker answers for `target` from a process of its own: its end is that process's."""
        self._separate.add((worker, target))

    def end(self, worker: str, target: str, ending: Ending) -> None:
        """No more records of that worker; with no target, of it for any target without a process of its own."""
        self._endings.setdefault((worker, target), ending)
        for key in [key for key in self._waiting if key[0] == worker and target in ("", key[1])]:
            self._waiting.pop(key).set()

    def refuse(self, worker: str, target: str, finding: Finding) -> None:
        """Nobody will be asked, for this reason."""
        self.end(worker, target, lambda step: finding)

    def give_up(self, finding: Finding) -> None:
        """Nobody will be heard any more: everybody who waits, or ever will, is told so."""
        self._given_up = finding
        for key in list(self._waiting):
            self._waiting.pop(key).set()

    def peek(self, worker: str, key: str, target: str = "") -> Record | None:
        return self._records.get((worker, target, key))

    def step(self, worker: str, target: str) -> str:
        """What it announced to do last, of all the workers with that name and target."""
        return self._steps.get((worker, target)) or self._steps.get((worker, ""), "")

    async def get(self, worker: str, key: str, target: str = "") -> Record:
        """The record, when it comes; raise NoAnswer when its worker ended without it."""
        self.wanted(worker, target)
        while (record := self._records.get((worker, target, key))) is None:
            if self._given_up is not None:
                raise NoAnswer(self._given_up)
            ending = self._endings.get((worker, target))
            if ending is None and (worker, target) not in self._separate:
                ending = self._endings.get((worker, ""))
            if ending is not None:
                raise NoAnswer(ending(self.step(worker, target or key)))
            try:
                await self._waiting.setdefault((worker, target, key), anyio.Event()).wait()
            except anyio.get_cancelled_exc_class():
                self.unwanted(worker, target)
                raise
        return record


class Host:
    """This machine's procfs, sysfs, cgroup and environment; a test hands in its own."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self.env: Mapping[str, str] = os.environ if env is None else env

    def read(self, path: str) -> str:
        """The file's text, at most 1 MiB of it; raise OSError where it cannot be read."""
        with open(path, "rb") as file:
            return file.read(1 << 20).decode("utf-8", "replace")

    def text(self, path: str) -> str:
        """The file's text, empty where there is no such file or it cannot be read."""
        try:
            return self.read(path)
        except OSError:
            return ""

    def names(self, path: str) -> list[str]:
        """The names in a folder, sorted; none where it cannot be listed."""
        try:
            return sorted(os.listdir(path))
        except OSError:
            return []


class Context:
    """One run, as its checks see it."""

    def __init__(  # noqa: PLR0913 - one keyword for each thing that a check can see
        self,
        *,
        expected: Expectation,
        facts: Facts,
        host: Host | None = None,
        answers: Answers | None = None,
        stuck: Iterable[Leaving] = (),
        known_gpus: Iterable[str] = (),
        kernel_log: int = -1,
        asked: Mapping[str, Collection[str]] | None = None,
        torch: Mapping[str, str | None] | None = None,
        torch_missing: str = "",
        workers: Collection[str] = (),
        seen_services: Collection[str] = (),
        host_keys: Mapping[str, str] | None = None,
    ) -> None:
        self.expected = expected
        self.facts = facts
        self.host = host or Host()
        self.answers = answers or Answers()
        self.gpus: Later[tuple[Target, ...]] = Later()
        """The GPUs of this host or container, for NVML."""
        self.testable: Later[tuple[Target, ...]] = Later()
        """What rungs 3 and 4 compute on: GPUs, MIG instances or CPU workers."""
        self.stuck = tuple(stuck)
        """Children of earlier runs that were killed and never went."""
        self.known_gpus = tuple(known_gpus)
        """NVML's UUIDs of the first good run since boot."""
        self.kernel_log = kernel_log
        """The sequence number of the last kernel-log record that an earlier run has read; -1: none."""
        self.asked = asked or {}
        """Of which paths the worker "files" is asked, by kind of question."""
        self.torch_missing = torch_missing
        self.workers = frozenset(workers)
        """Those that run anyway, for an answer that is welcome and not needed."""
        self.seen_services = frozenset(seen_services)
        """The checks of services that passed in an earlier run of this container."""
        self.host_keys = host_keys or {}
        """By address, the type and fingerprint of the ssh host key that an earlier run of this container saw there."""
        self.torch = torch
        """torch/version.py of the interpreter that has torch; None where there is none."""

    def step(self, job: Job, name: str) -> None:
        """Say what the check itself is about to wait for, so that a hang in it has a name."""
        self.answers.put(job.id, job.target, Record("step", text=name))

    async def answer(self, worker: str, key: str, target: str = "") -> Record:
        """What a worker says under `key`, whatever its code; raise NoAnswer when it ended without it."""
        return await self.answers.get(worker, key, target)

    async def nvml(self, getter: str, target: str) -> Record:
        """A GPU's answer by NVML; raise NoAnswer where the driver gave a code instead of a value."""
        record = await self.answers.get("nvml", getter, target)
        if record.code:
            raise NoAnswer(nvml_refusal(getter, record, self.product(target), mig=self.mig_on(target)))
        return record

    def product(self, target: str) -> str:
        """The GPU's name, "this GPU" where it is not known."""
        return next((gpu.product for gpu in self.gpus.now or () if gpu.name == target and gpu.product), "this GPU")

    def mig_on(self, target: str) -> bool:
        """Whether the GPU is known to be cut into MIG instances: NVML is asked that before what this matters for."""
        asked = self.answers.peek("nvml", "mig", target)
        return asked is not None and asked.data.get("current") == 1


def nvml_refusal(getter: str, record: Record, product: str = "this GPU", *, mig: bool = False) -> Finding:
    """What it means that NVML answered with an error: not supported is no fault of a GPU, a lost GPU is."""
    code = record.code or 0
    where = f"{product} with MIG on" if mig else product
    if code in NVML_NOT_SUPPORTED:
        return skipped(f"not supported on {where} (NVML {code}, {getter})")
    if code in NVML_DRIVER_TOO_OLD:
        return skipped(f"not known to this driver (NVML {code}, {getter})")
    if code == NVML_NO_PERMISSION and mig:  # a container that was given an instance may not ask its GPU
        return skipped(f"not permitted on {where} (NVML {code}, {getter})")
    if code == NVML_NO_PERMISSION:
        return unknown(f"not permitted (NVML {code}, {getter})", nvml_code=code)
    return failed(f"NVML {code}: {record.text} ({getter})", nvml_code=code)


TIMEOUT_BEFORE_GPUS = Finding(Status.TIMEOUT, "which GPUs there are was not known in time", {"step": "enumeration"})
