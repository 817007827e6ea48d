"""What it means that a child ended without the answer somebody waits for. Pure; the words of the report come from here.

====================================================  =======================================================
it ended                                              the check's status
====================================================  =======================================================
by SEGV, BUS, ILL, FPE, ABRT in a driver, in torch    fail, naming the signal and the call
or in the user's own command
by its own limit, or killed by us at one              timeout, with where it hung
by a SIGKILL that was not ours                        unknown, with the cgroup's oom_kill change
with an exception in probe's own code                 unknown (PROBE_INTERNAL)
in any other way                                      unknown
====================================================  =======================================================
"""

import re
import signal

from probe.model import Finding, Scalar, Status
from probe.worker.parent import Exit

CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}
SUBJECTS = {
    "nvml": "NVML",
    "cuda": "the CUDA driver",
    "torch": "torch",
    "nccl": "torch.distributed",
    "model": "the model",
    "files": "a file of this host",
    "smi": "nvidia-smi",
    "command": "the command",
}
CRASH_IS_A_FINDING = {"nvml", "busy", "cuda", "torch", "nccl", "smi", "command", "model"}
"""They drive a driver, or are the user's own program: what they crash with is what was asked for."""
LIMIT = b"Timeout ("
"""faulthandler's first word when a child's own limit fires, and `LIMIT_STATUS` what it exits with."""
LIMIT_STATUS = 1
SHORT_S = 1.0
"""Whoever had less time than this says nothing by not answering."""
FRAME = re.compile(rb'^  File "([^"]*)", line (\d+) in (\S+)', re.MULTILINE)
SHOWN_FRAMES = 6


def ending(  # noqa: PLR0911, PLR0913 - a row of the table above each, and what tells the rows apart
    worker: str,
    exit_: Exit,
    *,
    step: str = "",
    elapsed_s: float = 0.0,
    killed: bool = False,
    flooded: bool = False,
    error: str = "",
    tail: bytes = b"",
    oom_kills: int | None = 0,
) -> Finding:
    """The finding for one who waited; `step` is what the child announced to do last, `tail` its stderr's end."""
    subject = SUBJECTS.get(worker, worker)
    where = f", in {step}" if step else ""
    data: dict[str, Scalar] = {"worker": worker, **({"step": step} if step else {})}
    if flooded:
        return Finding(
            Status.UNKNOWN, f"{subject} flooded its reply pipe and was killed{where}", data | {"reason": "flooded"}
        )
    if exit_.signal is not None and exit_.signal in CRASHES and worker in CRASH_IS_A_FINDING:
        name = name_of(exit_.signal)
        return Finding(Status.FAIL, f"{subject} crashed with {name}{where}", data | {"signal": name} | said(tail))
    if killed or (exit_.status == LIMIT_STATUS and LIMIT in tail):
        if stack := frames(tail):
            data["stack"] = stack
        if elapsed_s < SHORT_S:
            data["short"] = True
        return Finding(Status.TIMEOUT, f"{subject} gave no answer within {elapsed_s:.1f} s{where}", data)
    if exit_.signal == signal.SIGKILL:
        if oom_kills:
            summary = (
                f"{subject}'s process was killed for memory ({oom_kills} oom_kill in this cgroup meanwhile){where}"
            )
            return Finding(Status.UNKNOWN, summary, data | {"reason": "oom_killed", "oom_kills": oom_kills})
        counted = "not known whether for memory" if oom_kills is None else "no oom_kill in this cgroup"
        summary = f"{subject}'s process was killed by somebody else (SIGKILL, {counted}){where}"
        return Finding(Status.UNKNOWN, summary, data | {"reason": "killed", "oom_kills": oom_kills})
    if error:
        last = error.strip().rpartition("\n")[2]
        return Finding(
            Status.UNKNOWN, f"probe's own {worker} worker failed: {last}{where}", data | {"reason": "internal"}
        )
    return Finding(
        Status.UNKNOWN, f"{subject}: no answer, {how(exit_)}{where}", data | {"reason": "silent"} | said(tail)
    )


def how(exit_: Exit) -> str:
    """In words, how a process ended."""
    if exit_.signal is not None:
        return f"ended by {name_of(exit_.signal)}"
    if exit_.status is not None:
        return f"ended with status {exit_.status}"
    return "ended, nobody knows how"


def name_of(number: int) -> str:
    """A signal's name; real-time signals have none in Python."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def frames(tail: bytes) -> str:
    """The innermost frames of a faulthandler dump, the innermost first: ``cuda.py:88 _call < cuda.py:140 main``."""
    found = [
        f"{path.decode('utf-8', 'replace').rpartition('/')[2]}:{line.decode()} {name.decode('utf-8', 'replace')}"
        for path, line, name in FRAME.findall(tail)
    ]
    return " < ".join(found[:SHOWN_FRAMES])


def said(tail: bytes) -> dict[str, Scalar]:
    """The last line that it printed to stderr, which is often the driver's own word."""
    lines = tail.decode("utf-8", "replace").strip().splitlines()
    return {"stderr": lines[-1][:300]} if lines else {}
