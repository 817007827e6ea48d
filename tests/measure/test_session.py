"""What a session hands on and how it ends, as far as that needs no machine."""

import os
import subprocess
import sys

import pytest

from probe import config
from probe.checks import load as load_checks
from probe.measure import shares
from probe.measure.progress import SHOWN
from probe.measure.session import argv_of_check


@pytest.mark.parametrize("given", ["auto", "0", "8", "GPU-a,GPU-b"])
def test_the_expected_gpus_are_handed_to_the_checks_as_they_were_given(given: str) -> None:
    loaded = config.load({"gpus_expect": given}, {}, load_checks())
    argv = argv_of_check(loaded, 9.0, os.devnull)
    assert argv[argv.index("--gpus-expect") + 1] == given
    assert "--config" not in argv


HELD = """
import sys, threading, time
from probe.measure.ending import Ending
ending = Ending()
ending.doing = "/mnt/a.json"
def write_all():
    threading.Thread(target=ending.leave, args=("late", None, lambda: None)).start()
    time.sleep(60)
ending.leave("", write_all, lambda: None)
"""


def test_an_end_that_is_held_up_is_no_success_and_says_by_what() -> None:
    """A disk that hangs while results are written: the net leaves, and not with the code of what was measured."""
    ran = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, timeout=30, check=False)
    assert (3, "") == (ran.returncode, ran.stdout)
    assert "held up by /mnt/a.json" in ran.stderr


def test_what_progress_shows_fits_its_line() -> None:
    assert [] == [entry.name for entry in shares.ENTRIES if len(f"{entry.name}: {entry.what}") > SHOWN]
