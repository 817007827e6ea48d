"""Ctrl-C and SIGTERM, at any time: the right exit code, no traceback, nothing left."""

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fakes import host
from tests.fakes.build import build
from tests.fakes.scenario import Scenario
from tests.system.command import BOUND_S, LATE_S, Command, Ran, fake_torch, finish

RANDOM = random.Random(2)  # noqa: S311 - moments, not secrets
MOMENTS_S = [round(RANDOM.uniform(0.05, 1.5), 3) for _ in range(20)]
SIDE_BY_SIDE = 2
Send = Callable[[int, int], None]


def cut_short(probe: Command, moment_s: float, number: int, send: Send, *args: str, **options: object) -> Ran:
    """A run of all checks on the CPU that gets a signal `moment_s` after its start."""
    argv = probe.check_argv("--format", "json", *args)
    with probe.started(argv, start_new_session=True, **options) as process:  # type: ignore[arg-type]
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment_s)
        if process.poll() is None:
            send(process.pid, number)
        return finish(process, BOUND_S)


def cut_all_short(probe: Command, number: int, send: Send, moments: list[float]) -> dict[float, Ran]:
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        return dict(zip(moments, pool.map(lambda at: cut_short(probe, at, number, send), moments), strict=True))


@pytest.mark.parametrize(
    ("send", "moments"),
    [(os.kill, MOMENTS_S[::2]), (os.killpg, MOMENTS_S[1::2])],
    ids=["process", "group"],
)
def test_ctrl_c_at_random_times(probe: Command, send: Send, moments: list[float]) -> None:
    """130, or 0 where the run was over first; no traceback; soon; at most one report, whole. Nothing is left."""
    ran = cut_all_short(probe, signal.SIGINT, send, moments)
    assert {} == {moment: one for moment, one in ran.items() if one.code not in (0, 130)}
    assert {} == {moment: one for moment, one in ran.items() if one.err}
    assert any(one.code == 130 for one in ran.values())
    for moment, one in ran.items():
        assert one.elapsed_s < moment + 1.5, one
        assert one.out.count("\n") <= 1, one


def test_what_an_interrupted_run_prints_is_json_where_json_was_asked_for(probe: Command) -> None:
    """Also before its first check has started: nothing at all, or one report that a program can read."""
    ran = cut_all_short(probe, signal.SIGINT, os.kill, [0.06, 0.08, 0.1, 0.12, 0.6, 0.9])
    for one in ran.values():
        assert one.out == "" or json.loads(one.out), one


def test_an_interrupted_run_reports_what_it_knows(probe: Command, tmp_path: Path) -> None:
    """In the middle of a hung import: undetermined, what had finished is told, the rest is said to be interrupted."""
    fifo = tmp_path / "reached"
    os.mkfifo(fifo)
    init = f"open({str(fifo)!r}, 'w').close()\nimport threading\nthreading.Event().wait()\n"
    env = {"PYTHONPATH": fake_torch(tmp_path / "fake", init)}
    with probe.started(probe.check_argv("--format", "json"), env=env) as process:
        fifo.read_text()  # the import is in it
        process.send_signal(signal.SIGINT)
        ran = finish(process)
    assert (ran.code, ran.report["verdict"]) == (130, "undetermined")
    assert "interrupted" in ran.outcome("torch.import")["summary"]
    assert ran.err == ""


@pytest.mark.parametrize(
    ("number", "args", "code"),
    [
        (signal.SIGTERM, (), 143),
        (signal.SIGTERM, ("--exit-codes", "docker"), 1),
        (signal.SIGINT, ("--exit-codes", "docker"), 1),
        (signal.SIGINT, ("--exit-codes", "nagios"), 3),
        (signal.SIGINT, ("--exit-codes", "slurm"), 0),
    ],
)
def test_each_signal_has_its_code_in_each_column(
    probe: Command, tmp_path: Path, number: int, args: tuple[str, ...], code: int
) -> None:
    """While an import hangs, so that no run is over first."""
    fifo = tmp_path / "reached"
    os.mkfifo(fifo)
    init = f"open({str(fifo)!r}, 'w').close()\nimport ctypes\nctypes.PyDLL(None).pause()\n"
    env = {"PYTHONPATH": fake_torch(tmp_path / "fake", init)}
    with probe.started(probe.check_argv(*args), env=env) as process:
        fifo.read_text()
        process.send_signal(number)
        ran = finish(process)
    assert ran.code == code
    assert "Traceback" not in ran.err


def test_slurm_says_loudly_on_stderr_that_nothing_was_told(probe: Command, tmp_path: Path) -> None:
    """Its exit code is 0 also where the run was cut short: the words on stderr are all there is."""
    fifo = tmp_path / "reached"
    os.mkfifo(fifo)
    init = f"open({str(fifo)!r}, 'w').close()\nimport threading\nthreading.Event().wait()\n"
    env = {"PYTHONPATH": fake_torch(tmp_path / "fake", init)}
    with probe.started(probe.check_argv("--exit-codes", "slurm"), env=env) as process:
        fifo.read_text()
        process.send_signal(signal.SIGTERM)
        ran = finish(process)
    assert ran.code == 0
    assert "terminated" in ran.err


def test_sigterm_at_random_times(probe: Command) -> None:
    """143 or 0, as a container's stop has it."""
    ran = cut_all_short(probe, signal.SIGTERM, os.kill, MOMENTS_S[:6])
    assert {} == {moment: one for moment, one in ran.items() if one.code not in (0, 143)}
    assert {} == {moment: one for moment, one in ran.items() if one.err}


@pytest.mark.parametrize("again", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_cut_the_clean_up_short(probe: Command, tmp_path: Path, again: int) -> None:
    """Impatience leaves nothing behind, and the code is the first one's."""
    fifo = tmp_path / "reached"
    os.mkfifo(fifo)
    init = f"open({str(fifo)!r}, 'w').close()\nimport ctypes\nctypes.PyDLL(None).pause()\n"
    env = {"PYTHONPATH": fake_torch(tmp_path / "fake", init)}
    with probe.started(probe.check_argv("--format", "json"), env=env) as process:
        fifo.read_text()
        process.send_signal(signal.SIGINT)
        for _ in range(50):
            process.send_signal(again)
        ran = finish(process)
    assert ran.code == 130
    assert ran.out == "" or json.loads(ran.out)
    assert ran.err == ""


@pytest.mark.system
@pytest.mark.cc
@pytest.mark.parametrize("moment_s", [0.7, 1.2, 2.0])
def test_ctrl_c_while_a_driver_call_hangs(probe: Command, fakes: Path, moment_s: float) -> None:
    """On a fake host whose NVML hangs: as soon, and as clean."""
    build(fakes)  # not while the clock runs
    played = Scenario.load(Path(__file__).parents[1] / "hosts" / "nvml-hangs.toml")
    argv = host.command(played, probe.check_argv("--format", "json", "--budget", "4s"), fakes)
    with probe.started(argv) as process:
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment_s)
        process.send_signal(signal.SIGINT)
        ran = finish(process)
    assert ran.code == 130, ran
    assert ran.err == ""
    assert ran.elapsed_s < moment_s + 1 + LATE_S
