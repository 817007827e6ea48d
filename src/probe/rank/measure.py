"""One rank of the bench across hosts: the collectives of ``probe bench``, in the words of a gate's round.

::

    the warm importer forks -> this -> measure/programs: dispatch -> collective, group

Each record says whose it is, and a failure is said as a rank of a round says it: what it proves is `cluster/trial`'s to
tell. What is run stands here and is in no command. Standard library, torch and `measure/programs`; Python >= 3.9.
"""

from __future__ import annotations

import os
from typing import Any

FOLDER = os.path.dirname(os.path.abspath(__file__))
PROGRAMS = os.path.join(os.path.dirname(FOLDER), "measure", "programs")


def main(child: Any, job: dict[str, Any]) -> None:
    rank = Rank(child, job["rank"])
    try:
        child.load(os.path.join(PROGRAMS, "dispatch.py")).main(rank, task(job))
    except Exception as error:  # noqa: BLE001 - whatever torch raises is the finding itself
        text = str(error).strip().replace("\n", " ") or type(error).__name__
        rank.say("failed", text=text[:1000], kind=type(error).__name__)
        os._exit(1)


def task(job: dict[str, Any]) -> dict[str, Any]:
    """What the measuring program wants to know."""
    return {
        "program": "collective",
        "device": "cuda" if job["backend"] == "nccl" else "cpu",
        "index": job["local"],
        "rank": job["rank"],
        "world": job["ranks"],
        "share_s": job["share_s"],
        "limit_s": job["timeout_s"],
        "threads": 1,  # gloo adds in one thread, and simulated hosts share their cores
        "group": os.path.join(PROGRAMS, "group.py"),
        "meet": os.path.join(FOLDER, "store.py"),
        "ranks": job["ranks"],
        "address": job["address"],
        "port": job["port"],
    }


class Rank:
    """The child's words, with the rank in each."""

    def __init__(self, child: Any, rank: int) -> None:
        self._child = child
        self._rank = rank
        self.load = child.load

    def say(self, key: str, target: str = "", **fields: Any) -> None:
        self._child.say(key, target, rank=self._rank, **fields)

    def step(self, name: str, target: str = "") -> None:
        self.say("step", target, text=name)
