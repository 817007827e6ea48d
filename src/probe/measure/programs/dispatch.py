"""What the forked process runs: one program of this folder, given the common method.

``main(child, job)``: `job["program"]` names a file here; its ``main(child, job, method)`` is called. So one import of
torch serves them all. Standard library only, Python >= 3.9.
"""

from __future__ import annotations

import os
from typing import Any

FOLDER = os.path.dirname(os.path.abspath(__file__))


def main(child: Any, job: dict[str, Any]) -> None:
    method = child.load(os.path.join(FOLDER, "method.py"))
    program = child.load(os.path.join(FOLDER, job["program"] + ".py"))
    program.main(child, job, method)
    child.say("done", job.get("target", ""))
