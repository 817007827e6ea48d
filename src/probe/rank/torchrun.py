"""torchrun, by its own API, in a process forked from the warm importer: one node of a real torchrun world.

::

    agent -> warm importer --fork--> this: elastic_launch(c10d, explicit host) --Popen--> child.py collective.py

Its workers get 0, 1 and 2 and nothing else from it, so the reply pipe becomes its stdin: they write their records
there. torchrun's own errors name no culprit (who is absent, the gate knows); what it says is passed on as it is.

Standard library and torch only, Python >= 3.9.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import Any

FOLDER = os.path.dirname(os.path.abspath(__file__))


def main(child: Any, job: dict[str, Any]) -> None:
    child.step("torchrun")
    os.dup2(child.reply_fd, 0)
    os.set_inheritable(0, True)
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    wanted = {
        "min_nodes": job["nodes"],
        "max_nodes": job["nodes"],
        "nproc_per_node": job["nproc"],
        "run_id": job["run_id"],
        "rdzv_backend": "c10d",
        "rdzv_endpoint": job["endpoint"],
        "rdzv_configs": {
            "join_timeout": job["join_timeout_s"],
            "timeout": job["join_timeout_s"],
            "read_timeout": job["join_timeout_s"],
            "close_timeout": 5,
            "is_host": "1" if job["is_host"] else "0",
        },
        "max_restarts": 0,
        "monitor_interval": 0.05,
        "local_addr": job["local_address"],
        "shutdown_timeout": 1,  # since torch 2.10: how long it waits for workers that it has told to end
    }
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "1"
    config = LaunchConfig(**{name: value for name, value in wanted.items() if name in known})
    program = [os.path.join(FOLDER, "collective.py"), "0", str(os.getpid()), str(job["limit_s"])]
    try:
        elastic_launch(config, sys.executable)(*job["bootstrap"], *program, json.dumps({**job, "task": "worker"}))
    except Exception as error:  # noqa: BLE001 - what torchrun says of its end is passed on
        child.say("torchrun", code=1, text=_words(error))
        return
    child.say("torchrun", code=0)


def _words(error: Exception) -> str:
    """One line: of a failed worker what torchrun recorded as the root cause, of all else the exception itself."""
    failures = getattr(error, "failures", None)
    if failures:
        first = min(failures.values(), key=lambda failure: failure.timestamp)
        return f"local rank {first.local_rank} ended with exit code {first.exitcode}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
