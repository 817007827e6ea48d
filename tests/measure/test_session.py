"""What a session hands on and how it ends, as far as that needs no machine."""

import os
import subprocess
import sys

import pytest

from probe import config
from probe.checks import load as load_checks
from probe.measure import shares
from probe.measure.model import Done
from probe.measure.request import Request
from probe.measure.session import Failed, NoTime, Session, argv_of_check
from probe.model import Record
from probe.worker.parent import Process
from tests.measure import samples


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


WRITTEN = """
import threading, time
from probe.measure.ending import Ending
ending = Ending()
def clear_up():
    threading.Thread(target=ending.leave, args=("late", None, lambda: None)).start()
    time.sleep(60)
ending.leave("", lambda: 1, clear_up)
"""


def test_an_end_that_is_held_up_after_all_is_written_has_the_code_of_the_run() -> None:
    ran = subprocess.run([sys.executable, "-c", WRITTEN], capture_output=True, text=True, timeout=30, check=False)
    assert (1, "", "") == (ran.returncode, ran.stdout, ran.stderr)


def test_one_gpu_s_failure_leaves_the_others_to_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies with the host are of one GPU after another; wrong words are told beside what had no time."""
    session = of_two_gpus()
    ends: dict[str, Exception | str] = {"0": NoTime("GPU 0: no answer"), "1": "GPU 1: 3 words differ"}

    def take(program: str, processes: list[str], limit_s: float) -> str:
        end = ends[processes[0]]
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(session, "_fork", lambda program, job, uuids, limit_s: str(int(job["target"][8:16], 16)))
    monkeypatch.setattr(session, "_take_from", take)
    with pytest.raises(Failed, match="GPU 0: no answer; GPU 1: 3 words differ") as raised:
        session._host(10.0)
    assert type(raised.value) is Failed
    ends["1"] = ""
    with pytest.raises(NoTime):
        session._host(10.0)


def of_two_gpus() -> Session:
    session = Session(Request(config.load({}, {}, load_checks()), time_s=3600.0, entries=()))
    session.gpus = [samples.h100(0), samples.h100(1)]
    return session


def child(session: Session, at: int, script: str) -> Process:
    return session.talk.start_foreign(["sh", "-c", script], worker="torch", target=samples.h100(at).target)


def test_one_gpu_that_fails_takes_no_other_along_and_is_named() -> None:
    """The second ends well, and later: those who measure alone are waited for."""
    session = of_two_gpus()
    both = [child(session, 0, "exit 3"), child(session, 1, "sleep 1")]
    with pytest.raises(Failed, match=r"^GPU 0: torch: no answer, ended with status 3$"):
        session._take_from("matmul", both, 30.0, together=False)
    ends = [session.talk.heard[process].exit for process in both]
    assert [3, 0] == [end.status if end else None for end in ends]


def test_all_gpus_that_fail_on_their_own_are_named() -> None:
    session = of_two_gpus()
    both = [child(session, 0, "exit 3"), child(session, 1, "exit 4")]
    with pytest.raises(Failed, match=r"(?=.*GPU 0: )(?=.*GPU 1: )"):
        session._take_from("matmul", both, 30.0, together=False)


def test_a_group_ends_with_its_first_that_fails() -> None:
    session = of_two_gpus()
    both = [child(session, 0, "sleep 600"), child(session, 1, "exit 3")]
    with pytest.raises(Failed, match=r"^GPU 1: torch: no answer, ended with status 3$"):
        session._take_from("collective", both, 30.0)


def test_whom_our_own_clock_ends_at_once_had_no_time_and_who_had_enough_failed() -> None:
    session = of_two_gpus()
    for fair_s, expected in ((60.0, NoTime), (0.0, Failed)):
        process = child(session, 0, "sleep 600")
        session.talk.end([process], 10.0)
        assert type(session._failure([process], fair_s)) is expected


def test_whom_our_own_clock_ends_while_it_gets_on_had_no_time_and_who_fell_silent_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = of_two_gpus()
    for grace_s, expected in ((60.0, NoTime), (0.0, Failed)):
        monkeypatch.setattr(shares, "GRACE_S", grace_s)
        process = child(session, 0, "sleep 600")
        session.talk._take(process, session.talk.heard[process], b'{"key": "step", "text": "bf16 2048"}')
        session.talk.end([process], 10.0)
        assert type(session._failure([process], 0.0)) is expected


@pytest.mark.parametrize("measured", [True, False])
def test_a_program_that_was_cut_short_is_done_and_the_run_no_baseline(
    monkeypatch: pytest.MonkeyPatch, measured: bool
) -> None:
    """What it had no time to leave out by name is missing; a program that got none at all is skipped, as always."""
    session = of_two_gpus()

    def cut(share_s: float) -> str:
        if measured:
            session.results = [one for one in samples.run(1).results if one.program == "startup"]
        raise NoTime("torch gave no answer")

    monkeypatch.setattr(session, "_steps", lambda: {"startup": cut})
    session._run(shares.BY_NAME["startup"], [])
    (program,) = session.programs
    assert program.status is (Done.DONE if measured else Done.SKIP)
    assert program.reason == "no time: torch gave no answer"
    assert session.report("").partial is measured


def test_what_is_filed_is_no_longer_current() -> None:
    """Both at once: whoever is interrupted between files a program's results neither twice nor never."""
    session = of_two_gpus()
    process = session.talk.start_foreign(["sh", "-c", "exit 0"], worker="torch", target=samples.h100(1).target)
    session.talk.heard[process].records.append(
        Record("left", target=samples.h100(1).target, text="no time", data={"case": "bf16 8192"})
    )
    session._take_from("matmul", [process], 30.0, together=False)
    assert ([], ["GPU 1: bf16 8192: no time"]) == (session._current, session._left_out)
