"""The generated pages of docs/ are what the code says now, and what they show as an example is right."""

import re
import subprocess
import sys
from pathlib import Path

from probe.checks import load
from probe.config import check_file
from probe.registry import TARGETS, kind

DOCS = Path(__file__).parents[1] / "docs"
GENERATE = DOCS / "generate.py"


def test_the_generated_pages_are_current() -> None:
    """The checks, the faults and the faked hosts: `python docs/generate.py` would change nothing."""
    done = subprocess.run([sys.executable, GENERATE, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_each_kind_of_target_has_an_example_that_is_right(tmp_path: Path) -> None:
    """All examples of configuration.md together are one config file."""
    examples = re.findall(r"```toml\n(.*?)```", (DOCS / "configuration.md").read_text(), re.DOTALL)
    checks = load()
    assert [f"[[{kind(template)}]]" for template in TARGETS.values()] == [text.split()[0] for text in examples]
    path = tmp_path / "probe.toml"
    path.write_text("\n".join(examples))
    path.chmod(0o644)
    check_file(str(path), checks, TARGETS)
