r"""What srun is asked, and what it says: pure, so that the launcher beside it is only pipes and waiting.

::

    the agent writes     STX {"say": ...} ETX \n
    srun's stdout has    3: STX {"say"\n  0: ...\n  3: : ...} ETX\n        cut, labelled and ended anywhere
    Joined gives         {"say": ...}

Seen of srun (22.05, three slurmd on one machine), and why lines are framed so:

- slurmstepd sends a task's output on in messages of at most 1024 bytes: whole lines, as many as fit, but a longer line
  in pieces, and whatever is there at the end of the output wherever it breaks.
- srun writes each piece as a line of its own, with the task's number before it **and a line end behind it, also where
  there was none**: what was one line cannot be told from several any more. Pieces of one task keep their order; between
  them stand those of others. Nothing is lost, doubled or changed.
- The number is there with a single task too. It is padded with blanks to the width of the largest (`` 3: ``).
- A line without its end waits at the node until that comes. ``--unbuffered`` gives the tasks a terminal, which would
  echo and change what they read: it is not used.
- What is written to srun before all tasks run is kept for them. Each gets all of it; its end reaches all.
- srun's own words go to its stderr, beside the tasks' (labelled too): who ended how ("srun: error: n2: task 1:
  Killed"; equal ends in one line, "n[1-2]: tasks 0-1:"), which node could not be told to start ("Task launch for
  StepId=4.0 failed on node n2: ..."). The two may come before or after a task's last words.

So line ends mean nothing here: a message is what stands between two bytes that JSON never holds, however it was cut.
"""

import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from probe.cluster.launch import BOOT
from probe.cluster.protocol import MAX_LINE_BYTES

START, END = b"\x02", b"\x03"
"""As `probe.rank.agent.FRAMED` has them."""
LABEL = re.compile(rb" *(\d{1,7}): ?")
OWN = re.compile(r"^(SLURM|SLURMD|SRUN|PMI|PMIX)_")
KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JOB_ID", "SLURM_JWT", "SLURM_WORKING_CLUSTER"})
OPTIONS = (
    "--ntasks-per-node=1",
    "--distribution=block",  # task n on the n-th node, whatever the batch script's own tasks have
    "--label",
    "--overlap",  # beside the batch script's step, and whatever else runs in the allocation
    "--kill-on-bad-exit=0",  # an agent that dies must not end the others,
    "--wait=0",  # nor may one that has left,
    "--no-kill",  # nor a node that fails
    "--mem=0",  # all that the job has there
    "--cpu-bind=none",
    "--mpi=none",
    "--export=ALL",
    "--chdir=/",
    "--job-name=probe-gate",
)
"""No option for GPUs: without one a step gets all that the job has on each node, and every task sees them all."""
MOST_WORDS = 300
NO_STEPS = frozenset({"down", "fail", "unknown", "future", "powered_down", "powering_down", "powering_up", "reboot"})


def argv(program: str, job: str, nodes: Sequence[str], python: str) -> list[str]:
    """One step over `nodes`, in their order: a task on each, which becomes the agent."""
    count = f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", f"--nodelist={','.join(nodes)}"
    return [program, f"--jobid={job}", *count, *OPTIONS, "/bin/sh", "-c", command(python)]


def command(python: str) -> str:
    """What a task runs. Its node's name is known there only: slurmd sets it.

    Without ``--remote-python`` the path of our own interpreter, which a shared file system or the same image has
    there too, else python3.
    """
    candidates = [python] if python else [sys.executable, "python3"]
    agent = f"-c {shlex.quote(f'exec({BOOT!r})')} \"$SLURMD_NODENAME\" '' framed"
    tries = [f"command -v {q} >/dev/null 2>&1 && exec {q} {agent}; " for q in map(shlex.quote, candidates)]
    missing = f"no {candidates[0]}" if python else f"no {candidates[0]} and no python3"
    return f"{''.join(tries)}echo {shlex.quote(missing)} >&2; exit 127"


def environment(given: Mapping[str, str]) -> dict[str, str | None]:
    """What is taken out of srun's own: every setting that the job's script or salloc left for *its* steps.

    One task of eight with a GPU each (``SLURM_GPUS_PER_TASK``) would be the agent's otherwise, or its output a file.
    """
    return {name: None for name in given if OWN.match(name) and name not in KEPT}


def addressed(line: bytes, names: Sequence[str]) -> bytes:
    """A command with the names of those that shall obey it: srun hands every line to all. No names: all shall."""
    if not names:
        return line
    return b'{"to":[' + b",".join(b'"%s"' % name.encode() for name in names) + b"]," + line[1:]


class Broken(Exception):
    """What came of a task is no sequence of framed messages."""


class Joined:
    """The messages of one task, out of the pieces that srun made of them."""

    def __init__(self) -> None:
        self._held: bytearray | None = None
        """Of a message that has begun; None: between two."""

    def take(self, piece: bytes) -> list[bytes]:
        """The messages that are whole now. Raises `Broken` where one is cut short or too long.

        What stands between messages is dropped: a TaskProlog's words, the line ends.
        """
        found = []
        while piece:
            if self._held is None:
                _, start, piece = piece.partition(START)
                self._held = bytearray() if start else None
                continue
            text, end, piece = piece.partition(END)
            if START in text:
                raise Broken("it sent a line that is cut short")
            self._held += text
            if len(self._held) > MAX_LINE_BYTES:
                raise Broken("it sent a line that is too long")
            if end:
                found.append(bytes(self._held))
                self._held = None
        return found


def labelled(line: bytes) -> tuple[int, bytes] | None:
    """The task and the piece of one line of srun's; None: no task's."""
    label = LABEL.match(line)
    return (int(label[1]), line[label.end() :]) if label else None


class TaskWords(Struct, frozen=True):
    """A line that a task wrote to its stderr."""

    task: int
    text: str


class TaskEnd(Struct, frozen=True):
    """Tasks that are over, and not as they should be."""

    tasks: tuple[int, ...]
    how: str


class NotLaunched(Struct, frozen=True):
    """A node whose slurmd could not be told to start its task; srun ends the whole step then."""

    node: str
    why: str


class OwnWords(Struct, frozen=True):
    """Anything else that srun says."""

    text: str


Said = TaskWords | TaskEnd | NotLaunched | OwnWords
ENDED = re.compile(r"srun: error: \S+: tasks? ([\d,-]{1,4000}): (.+)")
FAILED = re.compile(r"Task launch for \S+ failed on node (\S+): (.+)")
HOW: Mapping[str, str] = {
    r"Exited with exit code (\d+)": r"the agent ended with status \1",
    r"Killed.*": "the agent was ended by SIGKILL",
    r"Terminated.*": "the agent was ended by SIGTERM",
    r"Segmentation fault.*": "the agent was ended by SIGSEGV",
}


def said(line: bytes) -> Said:
    """What one line of srun's stderr says."""
    if (found := labelled(line)) is not None:
        return TaskWords(found[0], _words(found[1]))
    text = line.decode("utf-8", "replace").strip()
    if failed := FAILED.search(text):
        return NotLaunched(failed[1], failed[2][:MOST_WORDS])
    if ended := ENDED.search(text):
        return TaskEnd(tuple(numbers(ended[1])), how(ended[2][:MOST_WORDS]))
    return OwnWords(text[:MOST_WORDS])


def _words(line: bytes) -> str:
    return line.decode("utf-8", "replace").strip()[:MOST_WORDS]


def how(words: str) -> str:
    """An end in the words of the other launchers, by which `member.no_agent` knows what was missing."""
    for pattern, ours in HOW.items():
        if found := re.fullmatch(pattern, words):
            return found.expand(ours)
    return f"the agent ended: {words}"


def numbers(text: str) -> Iterable[int]:
    """``0,2-4``: 0, 2, 3, 4; what is no range is nothing."""
    for part in text.split(","):
        low, _, high = part.partition("-")
        if low.isdigit() and (high or low).isdigit() and int(high or low) < 1 << 16:
            yield from range(int(low), int(high or low) + 1)


def states(output: str) -> dict[str, tuple[str, str]]:
    """Of ``sinfo -h -N -o '%N|%T|%E'``: each node's state and its reason ("" for none)."""
    found = {}
    for line in filter(None, output.splitlines()):
        name, state, reason = (*line.split("|", 2), "", "")[:3]
        found[name] = (state.strip(), "" if reason.strip() in ("", "none") else reason.strip()[:200])
    return found


def cannot_start(state: str) -> bool:
    """Whether Slurm starts no step on a node in this state.

    ``*``: it does not respond. A drained or draining node of an allocation that it is part of still takes steps.
    """
    return state.endswith("*") or state.rstrip("~#!%$@^-+") in NO_STEPS
