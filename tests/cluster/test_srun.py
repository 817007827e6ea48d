"""srun's streams: whatever it does to lines, a message comes out whole or not at all."""

import random
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.cluster import srun
from probe.cluster.protocol import MAX_LINE_BYTES, Stop, Tick, encode
from probe.rank import agent

MESSAGES = st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=4000), max_size=8)
NOISE = st.lists(st.binary(max_size=200).map(lambda noise: noise.translate(None, b"\x02\x03")), max_size=4)


def framed(text: str) -> bytes:
    start, end = agent.FRAMED
    return start + text.encode() + end


def cut(data: bytes, sizes: random.Random) -> list[bytes]:
    """Pieces as slurmstepd makes them: anywhere, a line end never inside of one."""
    pieces = []
    while data:
        size = sizes.randint(1, 1024)
        pieces += data[:size].split(b"\n")
        data = data[size:]
    return pieces


def test_the_agent_and_the_launcher_frame_alike() -> None:
    assert agent.FRAMED == (srun.START, srun.END + b"\n")


@given(MESSAGES, NOISE, st.randoms(use_true_random=False))
def test_messages_come_out_as_they_went_in_wherever_they_were_cut(
    messages: list[str], noise: list[bytes], sizes: random.Random
) -> None:
    data = b"".join([*noise, *(framed(text) + b"".join(noise) for text in messages)])
    joined = srun.Joined()
    found = [message for piece in cut(data, sizes) for message in joined.take(piece)]
    assert [text.encode() for text in messages] == found


@given(st.lists(st.binary(max_size=3000), max_size=20))
def test_whatever_comes_is_joined_or_refused(pieces: list[bytes]) -> None:
    """Nothing else is raised, nothing is kept without bound, and no message holds a mark."""
    joined = srun.Joined()
    try:
        found = [message for piece in pieces for message in joined.take(piece)]
    except srun.Broken:
        return
    assert not any(set(message) & {2, 3} for message in found)


def test_a_message_without_an_end_is_refused_at_the_limit() -> None:
    joined = srun.Joined()
    joined.take(srun.START)
    for _ in range(MAX_LINE_BYTES // 1024):
        joined.take(b"x" * 1024)
    with pytest.raises(srun.Broken, match="too long"):
        joined.take(b"x")


def test_a_message_that_is_cut_short_is_never_joined_with_the_next() -> None:
    joined = srun.Joined()
    joined.take(srun.START + b'{"say"')
    with pytest.raises(srun.Broken, match="cut short"):
        joined.take(framed("{}"))


def test_a_limit_holds_for_each_message_not_for_all() -> None:
    joined = srun.Joined()
    for _ in range(5):
        assert [] == joined.take(srun.START + b"x" * (MAX_LINE_BYTES // 2))
        assert [MAX_LINE_BYTES // 2] == [len(message) for message in joined.take(srun.END)]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"0: \x02{}\x03", (0, b"\x02{}\x03")),
        (b"03: x", (3, b"x")),
        (b" 3: x", (3, b"x")),
        (b"0: 1: x", (0, b"1: x")),
        (b"12: ", (12, b"")),
        (b"12:", (12, b"")),
        (b"srun: error: x", None),
        (b"", None),
        (b"99999999: x", None),
        (b"-1: x", None),
    ],
)
def test_a_label_is_srun_s_first_word_and_nothing_else(line: bytes, found: tuple[int, bytes] | None) -> None:
    assert found == srun.labelled(line)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("srun: error: n2: task 1: Killed", srun.TaskEnd((1,), "the agent was ended by SIGKILL")),
        (
            "srun: error: n[1-2]: tasks 0-1,5: Exited with exit code 127",
            srun.TaskEnd((0, 1, 5), "the agent ended with status 127"),
        ),
        ("srun: error: n1: task 0: Out Of Memory", srun.TaskEnd((0,), "the agent ended: Out Of Memory")),
        (
            "srun: error: Task launch for StepId=4.0 failed on node n2: Communication connection failure",
            srun.NotLaunched("n2", "Communication connection failure"),
        ),
        ("2: srun: error: n1: task 0: Killed", srun.TaskWords(2, "srun: error: n1: task 0: Killed")),
        ("srun: Force Terminated StepId=3.0", srun.OwnWords("srun: Force Terminated StepId=3.0")),
        ("srun: error: n1: task 0-: Killed", srun.TaskEnd((0,), "the agent was ended by SIGKILL")),
        ("srun: error: n1: task 1-99999999999: Killed", srun.TaskEnd((), "the agent was ended by SIGKILL")),
    ],
)
def test_what_srun_says_of_its_tasks_is_understood_and_a_task_cannot_say_it(line: str, found: srun.Said) -> None:
    assert found == srun.said(line.encode())


@given(st.binary(max_size=2000))
def test_any_line_of_srun_s_is_something(line: bytes) -> None:
    srun.said(line)
    srun.labelled(line)


def test_a_command_for_some_names_them_and_the_agent_understands_it() -> None:
    line = srun.addressed(encode(Tick(n=7)), ["n1", "n[2"])
    assert {"verb": "tick", "n": 7, "to": ["n1", "n[2"]} == agent.parse(line)
    assert encode(Stop()) == srun.addressed(encode(Stop()), [])


def test_settings_for_the_job_s_own_steps_are_taken_out() -> None:
    given_ = {"SLURM_GPUS_PER_TASK": "1", "SLURM_STDOUTMODE": "x", "SRUN_EXPORT_ENV": "NONE", "SLURM_JOB_ID": "7"}
    taken = srun.environment({**given_, "SLURM_CONF": "/x", "PATH": "/bin", "PROBE_STATE": "/y"})
    assert dict.fromkeys(("SLURM_GPUS_PER_TASK", "SLURM_STDOUTMODE", "SRUN_EXPORT_ENV")) == taken


def test_no_option_hides_a_gpu() -> None:
    words = srun.argv("/usr/bin/srun", "7", ["n1", "n2"], "")
    assert not [word for word in words if "gpu" in word or "gres" in word]
    assert ["/usr/bin/srun", "--jobid=7", "--nodes=2", "--ntasks=2", "--nodelist=n1,n2"] == words[:5]


def test_a_task_takes_the_first_python_that_is_there_and_its_node_s_name(tmp_path: Path) -> None:
    fake = tmp_path / "py'thon"
    fake.write_text('#!/bin/sh\nshift 2\nprintf "%s|" "$@"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", srun.command(str(fake))],
        env={"SLURMD_NODENAME": "n2; x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "n2; x||framed|" == done.stdout
    assert shlex.quote(sys.executable) in srun.command("")


def test_a_python_that_is_nowhere_ends_like_a_shell_s(tmp_path: Path) -> None:
    argv = ["/bin/sh", "-c", srun.command(str(tmp_path / "none"))]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (127, f"no {tmp_path / 'none'}\n") == (done.returncode, done.stderr)


def test_states_are_read_and_judged() -> None:
    found = srun.states("n1|mixed-|none\nn2|down*|it | burns\nn3|draining|soon\n\n")
    assert {"n1": ("mixed-", ""), "n2": ("down*", "it | burns"), "n3": ("draining", "soon")} == found
    assert [False, True, False] == [srun.cannot_start(found[name][0]) for name in ("n1", "n2", "n3")]
    assert srun.cannot_start("idle*")
    assert not srun.cannot_start("")
