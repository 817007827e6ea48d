"""What docker/slurm has for Slurm's own hooks and for a job's script, in a real Slurm.

A node is sick here when its probe is told to expect eight GPUs: what the check says then, it says of itself.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.docker.image import REPOSITORY
from tests.system.command import ARGV, BOUND_S
from tests.system.lab import FAULTY, wait_for
from tests.system.slurm import NODES, READY_S, Slurm, free_ports, slurm

pytestmark = pytest.mark.system
SCRIPTS = REPOSITORY / "docker/slurm"
NAMED = "PROBE=/usr/local/bin/probe"
UNUSUAL = "export PATH # and SLURM_CONF=..., where slurm.conf is not in its usual place\n"
WITHIN_S = 3 * BOUND_S
"""For a health check, which comes every two seconds and takes one, on a loaded machine."""


class Hooked:
    """A Slurm whose hooks are ours, and what the check finds on each node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.probe = folder / "probe"
        self.probe.write_text(
            f'#!/bin/sh\n. "{folder}/$SLURMD_NODENAME"\n'
            f"export PYTHONPATH={shlex.quote(os.environ.get('PYTHONPATH', ''))} PROBE_LOG=off\n"
            f'export PROBE_STATE="{folder}/state-$SLURMD_NODENAME"\n'
            f'exec {shlex.join(ARGV)} "$@"\n'
        )
        self.probe.chmod(0o755)
        for node in NODES:
            self.set(node)

    def set(self, node: str, lines: str = "") -> None:
        """Lines of shell that run before probe does on that node."""
        path = self.folder / f".{node}"
        path.write_text(lines)
        path.rename(self.folder / node)

    def sicken(self, node: str) -> None:
        self.set(node, "export PROBE_GPUS_EXPECT=8\n")

    def script(self, name: str) -> str:
        """The one that is delivered, but for where probe and slurm.conf are."""
        text = (SCRIPTS / name).read_text()
        assert text.count(NAMED) == 1
        path = self.folder / name
        assert text.count(UNUSUAL) == 1
        conf = f"export PATH SLURM_CONF={self.folder.parent}/slurm/slurm.conf\n"
        path.write_text(text.replace(NAMED, f"PROBE={self.probe}").replace(UNUSUAL, conf))
        path.chmod(0o755)
        return str(path)


@pytest.fixture
def hooked(tmp_path: Path) -> Hooked:
    folder = tmp_path / "hooks"
    folder.mkdir()
    return Hooked(folder)


@pytest.fixture
def with_health(hooked: Hooked, tmp_path: Path) -> Iterator[Slurm]:
    (tmp_path / "slurm").mkdir()
    program = hooked.script("health.sh")
    with slurm(tmp_path / "slurm", HealthCheckProgram=program, HealthCheckInterval="2") as made:
        yield made


@pytest.fixture
def with_prolog(hooked: Hooked, tmp_path: Path) -> Iterator[Slurm]:
    (tmp_path / "slurm").mkdir()
    program = hooked.script("prolog.sh")
    with slurm(
        tmp_path / "slurm", Prolog=program, PrologFlags="Alloc", SchedulerParameters="nohold_on_prolog_fail"
    ) as made:
        yield made


def drained_by_us(lab: Slurm, node: str) -> bool:
    state, reason = lab.state(node)
    return "drain" in state and reason.startswith("probe: unhealthy: ")


def test_a_sick_node_is_drained_with_probe_s_words_and_resumed_when_it_is_well(
    hooked: Hooked, with_health: Slurm
) -> None:
    hooked.sicken("n2")
    wait_for(lambda: drained_by_us(with_health, "n2"), WITHIN_S, f"n2 is drained: {with_health.state('n2')}")
    assert "8" in with_health.state("n2")[1]
    assert ("idle", "") == with_health.state("n1")
    hooked.set("n2")
    wait_for(lambda: with_health.state("n2") == ("idle", ""), WITHIN_S, "n2 is resumed")


def let_checks_run(hooked: Hooked, lines: Mapping[str, str]) -> None:
    """Let three health checks of each node begin with these lines: then two have ended."""
    for _ in range(3):
        marks = {node: hooked.folder / f"seen-{node}" for node in lines}
        for node, mark in marks.items():
            mark.unlink(missing_ok=True)
            hooked.set(node, f": > {shlex.quote(str(mark))}\n{lines[node]}")
        wait_for(lambda marks=marks: all(mark.exists() for mark in marks.values()), WITHIN_S, "health checks")


def test_another_s_reason_is_left_alone_whether_the_node_is_sick_or_well(hooked: Hooked, with_health: Slurm) -> None:
    with_health.update("n2", "DRAIN", "a fan is being changed")
    for lines in ("", "export PROBE_GPUS_EXPECT=8\n"):
        let_checks_run(hooked, {"n2": lines})
        assert ("drained", "a fan is being changed") == with_health.state("n2")


@pytest.mark.parametrize(
    "lines",
    ["export PROBE_BUDGET=nonsense\n", "set -- check --no-such-flag\n", "exit 127\n", "kill -9 $$\n"],
    ids=["settings", "usage", "absent", "killed"],
)
def test_probe_s_own_errors_drain_nothing_and_resume_nothing(hooked: Hooked, with_health: Slurm, lines: str) -> None:
    let_checks_run(hooked, {"n2": lines, "n3": lines})
    with_health.update("n3", "DRAIN", "probe: unhealthy: earlier")
    let_checks_run(hooked, {"n2": lines, "n3": lines})
    assert [("idle", ""), ("drained", "probe: unhealthy: earlier")] == [with_health.state(n) for n in ("n2", "n3")]


def test_a_job_never_starts_on_a_sick_node_and_runs_on_a_well_one(
    hooked: Hooked, with_prolog: Slurm, tmp_path: Path
) -> None:
    """The node is drained with probe's words, the job goes back to the queue, and starts where the node is well."""
    hooked.sicken("n1")
    out = tmp_path / "out"
    submitted = with_prolog.run("sbatch", "-N1", "-o", str(out), "--wrap", "echo ran on $SLURMD_NODENAME")
    assert "Submitted" in submitted

    def ran() -> bool:
        with_prolog.run("scontrol", "update", "JobId=1", "StartTime=now")  # Slurm itself waits for two minutes
        return out.exists() and "ran on" in out.read_text()

    wait_for(lambda: "drain" in with_prolog.state("n1")[0], WITHIN_S, "n1 is drained")
    wait_for(ran, WITHIN_S, "the job ran elsewhere")
    assert "ran on n1" not in out.read_text()
    assert "drain" in with_prolog.state("n1")[0]
    assert with_prolog.state("n1")[1].startswith("probe: unhealthy: ")


def test_a_prolog_s_own_errors_let_the_job_run(hooked: Hooked, with_prolog: Slurm, tmp_path: Path) -> None:
    for node, lines in zip(NODES, ("export PROBE_BUDGET=nonsense\n", "exit 127\n", "kill -9 $$\n"), strict=True):
        hooked.set(node, lines)
    out = with_prolog.run("srun", "-N3", "--ntasks-per-node=1", "--label", "/bin/sh", "-c", "echo ran")
    assert ["0: ran", "1: ran", "2: ran"] == sorted(out.splitlines())
    assert {("idle", "")} >= {
        (state.replace("allocated", "idle").replace("completing", "idle"), why)
        for state, why in map(with_prolog.state, NODES)
    }


HOSTILE = 'unhealthy: $(touch {0}) `touch {0}`; touch {0} "Reason=x" State=IDLE \\\' \x1b[31m\x07 ' + "x" * 500


def with_fakes(folder: Path, name: str, sinfo: str) -> subprocess.CompletedProcess[bytes]:
    """One script run with programs in place of probe's and Slurm's: probe says `said`; scontrol writes `argv`.

    With no PATH and no environment but the node's name, as Slurm calls it.
    """
    fakes = {
        "probe": f'cat "{folder}/said"; exit 1',
        "scontrol": f'printf "%s\\n" "$#" "$@" > "{folder}/argv"',
        "sinfo": sinfo,
    }
    text = (SCRIPTS / name).read_text()
    for fake, body in fakes.items():
        path = folder / fake
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        text = text.replace(f"/usr/local/bin/{fake}\n", f"{path}\n").replace(f"/usr/bin/{fake}\n", f"{path}\n")
    script = folder / name
    script.write_text(text)
    argv = ["/bin/sh", str(script)]
    return subprocess.run(argv, env={"SLURMD_NODENAME": "n2"}, capture_output=True, check=False)


HOOKS = {"prolog.sh": 1, "health.sh": 0}
"""With the exit code where the node is sick."""


@pytest.mark.parametrize("name", HOOKS)
def test_a_summary_is_one_bounded_argument_whatever_is_in_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "said").write_text(HOSTILE.format(tmp_path / "owned") + "\nsecond line\n")
    done = with_fakes(tmp_path, name, "echo 'idle|none'")
    assert HOOKS[name] == done.returncode
    count, *argv = (tmp_path / "argv").read_text().splitlines()
    assert ("4", ["update", "NodeName=n2", "State=DRAIN"]) == (count, argv[:3])
    assert argv[3].startswith("Reason=probe: unhealthy: $(touch ")
    assert len(argv[3]) <= len("Reason=probe: ") + 200
    assert argv[3].isprintable()
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("sinfo", ["exit 1", "echo 'drained|switch port 7 is broken'"])
def test_a_reason_that_somebody_else_gave_or_may_have_given_stays(tmp_path: Path, name: str, sinfo: str) -> None:
    (tmp_path / "said").write_text("unhealthy: 7 of 8 GPUs\n")
    done = with_fakes(tmp_path, name, sinfo)
    assert (HOOKS[name], False) == (done.returncode, (tmp_path / "argv").exists())
    assert (sinfo == "exit 1") == (b"Slurm does not say how it has n2" in done.stderr)


@pytest.mark.parametrize("name", ["prolog.sh", "health.sh", "train.sbatch"])
def test_the_scripts_are_shell(name: str) -> None:
    shell = "bash" if name.endswith("sbatch") else "sh"
    assert 0 == subprocess.run([shell, "-n", str(SCRIPTS / name)], check=False).returncode


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Slurm]:
    (tmp_path / "slurm").mkdir()
    with slurm(tmp_path / "slurm") as made:
        yield made


TRAIN = """
import os, socket, sys
import torch.distributed as dist
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[1]}",
                        rank=int(os.environ["SLURM_NODEID"]), world_size=int(os.environ["PET_NNODES"]))
import torch
one = torch.ones(1)
dist.all_reduce(one)
print("trained on", os.environ["SLURMD_NODENAME"], "with", int(one), "around", os.environ["MASTER_ADDR"], flush=True)
"""


def test_the_batch_script_trains_on_the_clean_nodes_only(plain: Slurm, tmp_path: Path) -> None:
    plain.give(
        "n2", PYTHONPATH=f"{FAULTY}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"), LAB_FAULT="kill", LAB_FROM="2"
    )
    probe, train, out = tmp_path / "probe", tmp_path / "train.py", tmp_path / "out"
    probe.write_text(f'#!/bin/sh\nexec {shlex.join(ARGV)} "$@" --skip-node\n')
    probe.chmod(0o755)
    train.write_text(TRAIN)
    plain.env |= {"ENOUGH": "2", "PROBE": str(probe), "PROBE_STATE": str(tmp_path / "state")}
    script = tmp_path / "train.sbatch"
    script.write_text((SCRIPTS / "train.sbatch").read_text().replace("--gpus-per-node=8", "--no-kill"))
    port = str(free_ports(1)[0])
    said = plain.run("sbatch", "--nodes=3", "-o", str(out), str(script), sys.executable, str(train), port)
    assert "Submitted" in said, said
    wait_for(
        lambda: plain.run("squeue", "-h") == "",
        6 * BOUND_S,
        f"the job ends: {out.read_text() if out.exists() else said}",
    )
    lines = sorted(line for line in out.read_text().splitlines() if line.startswith("trained"))
    assert [f"trained on {node} with 2 around n1" for node in ("n1", "n3")] == lines, out.read_text()


def test_the_batch_script_ends_where_too_few_are_left(plain: Slurm, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = tmp_path / "train.sbatch"
    script.write_text((SCRIPTS / "train.sbatch").read_text().replace("--gpus-per-node=8", "--no-kill"))
    plain.env |= {"ENOUGH": "3", "PROBE": "/bin/false"}
    said = plain.run("sbatch", "--nodes=3", "-o", str(out), str(script), "echo", "trained")
    assert "Submitted" in said, said
    wait_for(lambda: plain.run("squeue", "-h") == "", READY_S, "the job ends")
    assert "trained" not in out.read_text()


def test_the_batch_script_ends_where_the_gate_could_not_tell(tmp_path: Path) -> None:
    """Whatever exit codes the environment asks for; here the gate has no allocation, which Slurm's column calls 0."""
    env = {**os.environ, "PROBE_EXIT_CODES": "slurm", "PROBE": str(tmp_path / "probe"), "TMPDIR": str(tmp_path)}
    probe = tmp_path / "probe"
    probe.write_text(f'#!/bin/sh\nexec {shlex.join(ARGV)} "$@"\n')
    probe.chmod(0o755)
    argv = ["bash", str(SCRIPTS / "train.sbatch"), "echo", "trained"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert (2, "") == (done.returncode, done.stdout)
    assert "no Slurm allocation" in done.stderr
