"""The generated pages of docs/ are what the code says now."""

import subprocess
import sys
from pathlib import Path

GENERATE = Path(__file__).parents[1] / "docs" / "generate.py"


def test_the_generated_pages_are_current() -> None:
    """The checks, the faults and the faked hosts: `python docs/generate.py` would change nothing."""
    done = subprocess.run([sys.executable, GENERATE, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
