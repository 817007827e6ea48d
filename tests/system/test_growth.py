"""Nothing grows: a health check runs every minute of a container's life."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.command import BOUND_S

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from pathlib import Path
from bench.growth import measure
from bench.measure import Bench
probe = (sys.executable, "-m", "probe")
figure = measure(Bench(sys.executable, probe, Path(sys.argv[1]), 1, 1, fakes=False), liveness=100, readiness=5)
print(json.dumps({value.name: [value.value, value.bar] for value in figure.values}))
"""


@pytest.mark.system
def test_after_the_first_runs_nothing_grows(tmp_path: Path) -> None:
    """100 liveness and 5 readiness runs: processes, descriptors, files and bytes stay as they are after the tenth."""
    own = 'mount -t tmpfs none /dev/shm && exec "$@"'  # others' shared memory is not counted
    argv = ["unshare", "--mount", "sh", "-c", own, "sh", sys.executable, "-c", PROGRAM, str(tmp_path / "state")]
    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=8 * BOUND_S, check=False)
    assert ran.returncode == 0, ran.stderr
    values = json.loads(ran.stdout)
    assert len(values) == 9
    assert {name: value for name, (value, bar) in values.items() if value > bar} == {}
