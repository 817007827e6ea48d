"""Stands in for a child: keeps its records and steps."""

from typing import Any

from probe.worker.child import Stopwatch


class Listener:
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.steps: list[str] = []

    def say(
        self, key: str, target: str = "", code: int | None = None, text: str = "", elapsed_s: float = 0.0, **data: Any
    ) -> None:
        self.records.append({"key": key, "target": target, "code": code, "text": text, **data})

    def step(self, name: str, target: str = "") -> None:
        self.steps.append(name)

    def timed(self) -> Stopwatch:
        return Stopwatch()
