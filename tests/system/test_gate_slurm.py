"""The gate inside a real Slurm's allocation of three nodes: srun carries its agents.

All three nodes are this machine, so each report warns of that, and nothing else unless a test breaks something.
"""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from probe.cluster import srun
from tests.system.command import ARGV, BOUND_S, Command, Ran, finish
from tests.system.lab import FAULTY, LEFT_S, wait_for
from tests.system.saying import causes, clean, said, states
from tests.system.slurm import NODES, Slurm, marked, slurm

pytestmark = pytest.mark.system
LAUNCH_S = 4 * BOUND_S


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@pytest.fixture
def lab(built: Slurm, probe: Command) -> Iterator[Slurm]:
    """All nodes well; after the test nothing of the gate is left, no process and no step."""
    yield built
    wait_for(lambda: not marked(probe.mark), LEFT_S, f"left: {marked(probe.mark)}")
    built.well()


class Gate:
    """`probe gate --slurm` in an allocation."""

    def __init__(self, lab: Slurm, probe: Command) -> None:
        self.lab = lab
        self.probe = probe
        self.env = {**lab.client_env, "PROBE_STATE": str(probe.state)}

    def argv(self, *args: str, nodes: str = "n1,n2,n3") -> list[str]:
        count = str(nodes.count(",") + 1)
        alloc = ["salloc", "-Q", "--no-kill", "-N", count, f"--nodelist={nodes}"]
        return [*alloc, *ARGV, "gate", "--slurm", "--format", "json", *args]

    def __call__(self, *args: str, nodes: str = "n1,n2,n3") -> Ran:
        with self.started(*args, nodes=nodes) as process:
            return finish(process, LAUNCH_S)

    @contextmanager
    def started(self, *args: str, nodes: str = "n1,n2,n3") -> "Iterator[subprocess.Popen[str]]":
        with self.probe.started(self.argv(*args, nodes=nodes), env=self.env) as process:
            yield process

    def batch(self, script: str, folder: Path, *options: str) -> Ran:
        """The same inside of a shell script that salloc runs."""
        path = folder / "script.sh"
        path.write_text(script)
        argv = ["salloc", "-Q", "--no-kill", "-N3", *options, "bash", str(path)]
        with self.probe.started(argv, env=self.env) as process:
            return finish(process, LAUNCH_S)

    def agents(self) -> dict[str, int]:
        """By node: the pid of its agent."""
        found = {}
        for pid, words in marked(self.probe.mark).items():
            if words.rstrip().endswith("framed") and "-c exec(" in words and "/bin/sh" not in words:
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                found[next(e for e in environment if e.startswith(b"SLURMD_NODENAME=")).decode()[16:]] = pid
        return found

    def controller(self) -> int:
        return next(
            pid for pid, words in marked(self.probe.mark).items() if " gate --slurm" in words and "salloc" not in words
        )


@pytest.fixture
def gate(lab: Slurm, probe: Command) -> Gate:
    return Gate(lab, probe)


def named(ran: Ran) -> dict[str, list[str]]:
    """The causes, but that the nodes are one machine."""
    return {code: hosts for code, hosts in causes(ran).items() if code != "SAME_MACHINE"}


def test_an_allocation_is_ready_through_all_phases(gate: Gate) -> None:
    ran = gate()
    assert (0, "ready", "slurm", "world") == (ran.code, *(said(ran)[key] for key in ("verdict", "launcher", "phase")))
    assert (list(NODES), {}) == (clean(ran), named(ran))
    assert (3, 3, "gloo") == tuple(said(ran)["world"][key] for key in ("hosts", "ranks", "backend"))


def test_an_allocation_of_one_node_is_spoken_with_alike(gate: Gate) -> None:
    ran = gate("--skip-node", "--until", "node", nodes="n2")
    assert (0, "ready", {"n2": "ready"}) == (ran.code, said(ran)["verdict"], states(ran)), ran


def test_a_batch_script_s_own_settings_for_its_steps_do_not_reach_the_gate_s(gate: Gate, tmp_path: Path) -> None:
    """What sbatch leaves in the environment for `srun train` would take its output, its tasks or its order away."""
    settings = {
        "SLURM_NTASKS": "6",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_DISTRIBUTION": "cyclic",
        "SLURM_STDOUTMODE": str(tmp_path / "out-%t"),
        "SLURM_STDINMODE": "none",
        "SLURM_KILL_BAD_EXIT": "1",
        "SLURM_UNBUFFEREDIO": "1",
        "SLURM_GPUS_PER_TASK": "1",
        "SLURM_EXPORT_ENV": "NONE",
        "SLURM_CPUS_PER_TASK": "2",
    }
    exports = "".join(f"export {name}={value}\n" for name, value in settings.items())
    command = shlex.join((*ARGV, "gate", "--slurm", "--skip-node", "--format", "json"))
    ran = gate.batch(f"srun --overlap sleep 60 &\n{exports}{command}\ncode=$?\nkill %1\nexit $code\n", tmp_path)
    found = json.loads(ran.out)
    assert (0, "ready", list(NODES)) == (ran.code, found["verdict"], found["clean_hosts"])


def test_a_rank_that_is_killed_on_one_node_names_that_node_and_no_other(gate: Gate, lab: Slurm) -> None:
    path = f"{FAULTY}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    lab.give("n2", PYTHONPATH=path, LAB_FAULT="kill", LAB_FROM="2")
    ran = gate("--skip-node")
    assert (1, "ready_without", ["n1", "n3"]) == (ran.code, said(ran)["verdict"], clean(ran))
    assert {"RANK_KILLED": ["n2"]} == named(ran)


def test_an_agent_that_is_killed_is_lost_alone(gate: Gate) -> None:
    """Whatever happens to one task, the step goes on for the others."""
    with gate.started("--min-hosts", "2") as process:
        wait_for(lambda: importing(gate, "n3"), LAUNCH_S, "n3 is past its greeting")
        os.kill(gate.agents()["n3"], signal.SIGKILL)
        ran = finish(process, LAUNCH_S)
    assert (0, "ready_without", ["n1", "n2"]) == (ran.code, said(ran)["verdict"], clean(ran))
    assert {"AGENT_LOST": ["n3"]} == named(ran)
    assert {"n1": "ready", "n2": "ready", "n3": "absent"} == states(ran)
    assert "SIGKILL" in next(host["reason"] for host in said(ran)["hosts"] if host["host"] == "n3")


def importing(gate: Gate, node: str) -> bool:
    """Whether the agent of a node has been told something: it has children."""
    agent = gate.agents().get(node)
    return agent is not None and bool(Path(f"/proc/{agent}/task/{agent}/children").read_text().split())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_nothing_is_left_on_any_node_when_the_controller_is_ended(gate: Gate, lab: Slurm, number: int) -> None:
    with gate.started() as process:
        wait_for(lambda: all(importing(gate, node) for node in NODES), LAUNCH_S, "agents at work")
        os.kill(gate.controller(), number)
        ended_at = time.monotonic()
        wait_for(lambda: not marked(gate.probe.mark), LEFT_S, "the gate's processes have ended")
        assert time.monotonic() - ended_at < LEFT_S
        wait_for(lambda: lab.run("squeue", "-h", "-s") == "", LEFT_S, "its step has ended")
        process.communicate(timeout=BOUND_S)


def test_a_node_that_slurm_has_given_up_is_named_with_slurm_s_reason(gate: Gate, lab: Slurm, tmp_path: Path) -> None:
    """A step that names it would wait for it for ever."""
    command = shlex.join((*ARGV, "gate", "--slurm", "--skip-node", "--format", "json"))
    ran = gate.batch(f'scontrol update NodeName=n2 State=DOWN Reason="it burns"\n{command}\n', tmp_path)
    found = json.loads(ran.out)
    assert (1, "ready_without", ["n1", "n3"]) == (ran.code, found["verdict"], found["clean_hosts"])
    assert ("unreachable", "Slurm has it as down (it burns)") == _of(found, "n2")
    assert "SLURM_NODE_DOWN" in {cause["code"] for cause in found["causes"]}


def _of(found: dict[str, list[dict[str, str]]], node: str) -> tuple[str, str]:
    return next((host["state"], host["reason"]) for host in found["hosts"] if host["host"] == node)


def test_a_node_whose_slurmd_is_gone_is_named_and_the_others_are_started_again(
    gate: Gate, lab: Slurm, tmp_path: Path
) -> None:
    """With one node that it gives up srun ends the whole step: the gate's second is without that node."""
    command = shlex.join((*ARGV, "gate", "--slurm", "--skip-node", "--format", "json"))
    ran = gate.batch(f"kill -9 {lab.pid('n2')}\n{command}\n", tmp_path)
    found = json.loads(ran.out)
    assert (1, "ready_without", ["n1", "n3"]) == (ran.code, found["verdict"], found["clean_hosts"])
    assert _of(found, "n2")[0] == "unreachable"
    assert "Slurm cannot start a task there" in _of(found, "n2")[1]
    assert "SLURM_LAUNCH_FAILED" in {cause["code"] for cause in found["causes"]}


def test_a_node_whose_task_hangs_before_its_first_line_is_named(gate: Gate, lab: Slurm) -> None:
    """A prolog or a file system may hang, and srun says nothing of it: the others are started again without it."""
    lab.hang("n3")
    ran = gate("--skip-node", "--budget", "60s", "--until", "node")
    assert (1, ["n1", "n2"]) == (ran.code, clean(ran))
    assert {"SLURM_LAUNCH_FAILED": ["n3"]} == named(ran)


def test_an_agent_that_does_not_answer_any_more_is_lost_and_ended(gate: Gate, lab: Slurm) -> None:
    """As when its node loses its power: no word of srun's tells."""
    with gate.started("--skip-node", "--min-hosts", "2") as process:
        wait_for(lambda: importing(gate, "n3"), LAUNCH_S, "n3 is past its greeting")
        os.kill(gate.agents()["n3"], signal.SIGSTOP)
        ran = finish(process, LAUNCH_S)
    assert (0, "ready_without", ["n1", "n2"]) == (ran.code, said(ran)["verdict"], clean(ran))
    assert "n3" in named(ran).pop("AGENT_LOST", [])
    wait_for(lambda: not marked(gate.probe.mark), LEFT_S, "the stopped agent is ended too")
    wait_for(lambda: lab.run("squeue", "-h", "-s") == "", LEFT_S, "its step has ended")


def test_a_task_has_all_gpus_that_the_job_has_on_its_node(gate: Gate, tmp_path: Path) -> None:
    """Slurm says which by CUDA_VISIBLE_DEVICES. The script's own steps get one for each task, and one of them runs."""
    names = ("SLURM_GPUS_PER_TASK", "SLURM_NTASKS")
    taken = shlex.join(["env", *(f"-u{name}" for name in srun.environment(dict.fromkeys(names, "1")))])
    step = shlex.join(["srun", "-N3", "--ntasks=3", *srun.OPTIONS, "/bin/sh", "-c", "echo $CUDA_VISIBLE_DEVICES"])
    own = "export SLURM_GPUS_PER_TASK=1 SLURM_NTASKS=3\nsrun --overlap sleep 60 &\n"
    ran = gate.batch(f"{own}{step}\necho\n{taken} {step}\nkill %1\n", tmp_path, "--gres=gpu:2")
    settings, without = ran.out.strip().split("\n\n")
    assert ["0: 0", "1: 0", "2: 0"] == sorted(settings.splitlines())
    assert ["0: 0,1", "1: 0,1", "2: 0,1"] == sorted(without.splitlines())


TALKER = """
import hashlib, os, random, sys
from probe.rank.agent import FRAMED
line = sys.stdin.buffer.readline()
mine = random.Random(os.environ["SLURM_PROCID"])
for size in [0, 1, 1021, 1022, 1023, 1024, 1025, 2047, 2048, 900_000] + [mine.randrange(200_000) for _ in range(20)]:
    text = bytes(mine.choices(b'0123456789abcdef: ", ', k=size))
    os.write(1, b"noise")
    data = FRAMED[0] + hashlib.sha256(text).hexdigest().encode() + text + FRAMED[1]
    while data:
        data = data[os.write(1, data[: mine.randrange(1, 70_000)]):]
data = FRAMED[0] + b"%d " % len(line) + hashlib.sha256(line).hexdigest().encode() + FRAMED[1]
os.write(1, data)
os._exit(0)
"""


def test_lines_of_any_length_survive_a_real_srun(gate: Gate, tmp_path: Path) -> None:
    """Both ways, from three tasks at once, each of which ends with its last byte; nothing is lost, doubled or mixed."""
    talker, sent = tmp_path / "talker.py", tmp_path / "sent"
    talker.write_text(TALKER)
    sent.write_bytes(b"x" * 300_000 + b"\n")
    argv = ["srun", "-N3", "--ntasks=3", *srun.OPTIONS, sys.executable, str(talker)]
    ran = gate.batch(f"exec {shlex.join(argv)} < {shlex.quote(str(sent))}\n", tmp_path)
    assert 0 == ran.code, ran.err
    tasks = {number: srun.Joined() for number in range(3)}
    found: dict[int, list[bytes]] = {number: [] for number in tasks}
    for line in ran.out.encode().split(b"\n"):
        if (piece := srun.labelled(line)) is not None:
            found[piece[0]] += tasks[piece[0]].take(piece[1])
    for number, messages in found.items():
        *texts, last = messages
        assert 30 == len(texts), number
        assert [hashlib.sha256(text[64:]).hexdigest().encode() for text in texts] == [text[:64] for text in texts]
        assert b"300001 " + hashlib.sha256(sent.read_bytes()).hexdigest().encode() == last


def test_labels_are_padded_and_there_with_every_number_of_tasks(gate: Gate, tmp_path: Path) -> None:
    """What the launcher's way of reading rests on."""
    options = shlex.join(option for option in srun.OPTIONS if not option.startswith("--ntasks-per-node"))
    ran = gate.batch(f"for n in 1 12; do srun --overcommit -N1 -n$n {options} echo x; done\n", tmp_path)
    assert sorted(["0: x", *(f"{n:2}: x" for n in range(12))]) == sorted(ran.out.splitlines())
    assert [0, *range(12)] == sorted(
        piece[0] for line in ran.out.splitlines() if (piece := srun.labelled(line.encode()))
    )


def test_a_draining_node_takes_part(gate: Gate, tmp_path: Path) -> None:
    """The allocation has it, and Slurm starts steps there."""
    command = shlex.join((*ARGV, "gate", "--slurm", "--skip-node", "--format", "json"))
    ran = gate.batch(f'scontrol update NodeName=n2 State=DRAIN Reason="soon"\n{command}\n', tmp_path)
    assert (0, list(NODES)) == (ran.code, json.loads(ran.out)["clean_hosts"])


def test_a_python_that_is_nowhere_is_one_cause(gate: Gate) -> None:
    ran = gate("--skip-node", "--remote-python", "/nowhere/python")
    assert (1, "not_ready", {"AGENT_NO_PYTHON": list(NODES)}) == (ran.code, said(ran)["verdict"], named(ran))


def test_outside_of_an_allocation_it_says_how_to_get_one(probe: Command) -> None:
    ran = probe("gate", "--slurm")
    assert (2, "") == (ran.code, ran.out)
    assert "salloc" in ran.err
    assert "sbatch" in ran.err


def test_without_slurm_s_programs_it_says_so(probe: Command, tmp_path: Path) -> None:
    env = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-3]", "PATH": str(tmp_path)}
    ran = probe("gate", "--slurm", env=env)
    assert (2, "") == (ran.code, ran.out)
    assert "is not on the PATH" in ran.err


def test_a_dry_run_names_the_allocation_s_nodes_and_starts_nothing(gate: Gate, lab: Slurm) -> None:
    argv = ["salloc", "-Q", "-N3", *ARGV, "gate", "--slurm", "--dry-run"]
    ran = gate.probe.run(argv, env=gate.env)
    assert (0, "3 hosts by slurm: n[1-3]") == (ran.code, ran.first_line)


def test_it_excludes_other_targets(probe: Command) -> None:
    ran = probe("gate", "--slurm", "--local", "2")
    assert (2, True) == (ran.code, "--local and --slurm together" in ran.err)
