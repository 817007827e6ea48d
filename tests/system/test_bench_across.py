"""`probe bench` across hosts, by gloo: simulated ones on this machine, and real sshds in namespaces."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from probe.measure.model import SCHEMA
from tests.system.command import ARGV, BOUND_S, LATE_S, Command, Ran, finish, validator
from tests.system.lab import FAULTY, LEFT_S, Lab, LabHost, needed, wait_for

OPS = {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"}
SOME_CASES = 6
AT_WORK = 3
"""Processes on a host: agent, importer, rank."""
ENOUGH = "45s"
"""For three passes over most sizes."""
STARTING_S = 60.0
"""Until ranks are at work on a loaded machine."""


def result(path: Path) -> dict[str, Any]:
    """What a run wrote, which fits the published schema."""
    found: dict[str, Any] = json.loads(path.read_bytes())
    validator(SCHEMA).validate(found)
    return found


def outcome(found: dict[str, Any]) -> tuple[str, str]:
    """How the one program that runs across hosts ended, and why."""
    (program,) = found["programs"]
    assert program["program"] == "collective"
    return program["status"], program["reason"]


# ---- simulated hosts -------------------------------------------------------------------------------------------------


def local(probe: Command, *args: str, count: int = 2, time: str = "30s") -> Ran:
    words = [*ARGV, "bench", "--local", str(count), "--time", time, "--state", str(probe.state), *args]
    with probe.started(words) as process:
        return finish(process, 3 * BOUND_S)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    """One run over two simulated hosts, with all that it can write."""
    folder = tmp_path_factory.mktemp("across")
    files = [word for name in ("json", "html", "save") for word in (f"--{name}", str(folder / f"a.{name}"))]
    return local(Command(folder / "state"), "--device", "cpu", *files, time=ENOUGH), folder


def test_collectives_over_simulated_hosts_are_measured_and_verified(whole: tuple[Ran, Path]) -> None:
    ran, folder = whole
    found = result(folder / "a.json")
    assert (0, 0, False, "") == (ran.code, found["exit_code"], found["partial"], ran.err), ran
    assert ("done", "") == outcome(found)
    assert {one["data"]["op"] for one in found["results"]} == OPS
    assert {True} == {one["verified"] for one in found["results"]}
    assert {2} == {one["data"]["ranks"] for one in found["results"]}
    assert ran.elapsed_s <= float(ENOUGH[:-1]) + LATE_S


def test_the_hosts_are_in_the_provenance_and_no_limit_is_guessed(whole: tuple[Ran, Path]) -> None:
    ran, folder = whole
    found = result(folder / "a.json")
    where = found["provenance"]
    assert ("local", "gloo", 2) == (where["launcher"], where["backend"], where["workers"])
    assert [("local-1", 1, "lo"), ("local-2", 1, "lo")] == [
        (host["host"], host["ranks"], host["interface"]) for host in where["hosts"]
    ]
    assert all(host["cpu"] and host["torch"] and host["kernel"] for host in where["hosts"])
    assert {(None, "unknown: the hosts are simulated, and share this machine")} == {
        (one["limit"], one["limit_source"]) for one in found["results"]
    }
    assert "limit unknown: the hosts are simulated" in ran.out
    assert ran.out.splitlines()[1].startswith("hosts: local-")


def test_bandwidths_stand_in_the_ratio_of_nccl_tests(whole: tuple[Ran, Path]) -> None:
    found = result(whole[1] / "a.json")
    small = [one for one in found["results"] if one["data"]["size_bytes"] == 1024]
    factors = {one["data"]["op"]: one["median"] / one["data"]["algbw_gbps"] for one in small}
    expected = {"all_reduce": 1.0, "all_gather": 0.5, "reduce_scatter": 0.5, "all_to_all": 0.5, "broadcast": 1.0}
    assert factors == pytest.approx(expected, rel=1e-3)


def test_the_page_has_the_curves_and_the_hosts(whole: tuple[Ran, Path]) -> None:
    page = (whole[1] / "a.html").read_text()
    assert {"plot-collective", "plot-latency"} <= {word for word in page.split('"') if word.startswith("plot-")}
    assert "<h2>Hosts</h2>" in page
    assert "local-2" in page


def test_a_run_is_compared_with_one_of_the_same_hosts(probe: Command, whole: tuple[Ran, Path]) -> None:
    """Its own figures a thousandfold, of as many passes as are asked for."""
    path = Path(shutil.copy(whole[1] / "a.save", probe.state.parent))
    found = json.loads(path.read_bytes())
    for one in found["results"]:
        one["median"] *= 1000
        one["blocks"] = [one["median"]] * len(one["blocks"])
    path.write_text(json.dumps(found))
    ran = local(probe, "--device", "cpu", "--compare", str(path), time=ENOUGH)
    assert ran.code == 1, ran
    assert "regression: collective all_reduce 1 KiB" in ran.out


def test_of_one_pass_nobody_knows_the_next_and_that_is_said(probe: Command, whole: tuple[Ran, Path]) -> None:
    path = Path(shutil.copy(whole[1] / "a.save", probe.state.parent))
    found = json.loads(path.read_bytes())
    for one in found["results"]:
        one["passes"] = 1
    path.write_text(json.dumps(found))
    ran = local(probe, "--device", "cpu", "--compare", str(path), time="12s")
    assert ran.code == 3, ran
    assert "nothing could be compared" in ran.out


def test_a_baseline_of_other_hosts_is_refused_before_any_is_reached(probe: Command, whole: tuple[Ran, Path]) -> None:
    base = str(whole[1] / "a.save")
    for ran in (
        local(probe, "--compare", base, count=3),
        probe.run([*ARGV, "bench", "--device", "cpu", "--state", str(probe.state), "--compare", base]),
    ):
        assert (2, "") == (ran.code, ran.out)
        assert "was made on other hosts: on local-1,local-2" in ran.err
        assert ran.elapsed_s < 5


def test_a_baseline_of_other_hardware_is_refused_before_anything_is_measured(
    probe: Command, whole: tuple[Ran, Path]
) -> None:
    path = Path(shutil.copy(whole[1] / "a.save", probe.state.parent))
    found = json.loads(path.read_bytes())
    for host in found["provenance"]["hosts"]:
        host["cpu"] = "Another CPU"
    path.write_text(json.dumps(found))
    ran = local(probe, "--compare", str(path))
    assert (2, "") == (ran.code, ran.out)
    assert "other hardware: CPU was Another CPU" in ran.err


def test_one_rank_is_no_collective_and_no_failure(probe: Command, tmp_path: Path) -> None:
    ran = local(probe, "--json", str(tmp_path / "a.json"), count=1)
    assert (0, ("skip", "needs two ranks")) == (ran.code, outcome(result(tmp_path / "a.json")))


def test_several_processes_on_each_host_are_a_rank_each(probe: Command, tmp_path: Path) -> None:
    ran = local(probe, "--device", "cpu:2", "--json", str(tmp_path / "a.json"))
    found = result(tmp_path / "a.json")
    assert (0, [2, 2]) == (ran.code, [host["ranks"] for host in found["provenance"]["hosts"]]), ran
    assert {4} == {one["data"]["ranks"] for one in found["results"]}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--local", "2", "--only", "matmul"), "'matmul' does not run across hosts"),
        (("--local", "2", "--skip", "coll*"), "nothing is left"),
        (("--local", "2", "--hosts", "a"), "--local and --hosts together"),
        (("--local", "2", "--time", "3s"), "too little for several hosts"),
        (("--local", "2", "--ifname", "eth0; reboot"), "is no interface"),
        (("--local", "2", "--gpus-expect", "8"), "--gpus-expect: is about one machine"),
        (("--hosts", "127.0.0.8,127.0.0.9", "--python", "/usr/bin/python3"), "allowed: PROBE_PYTHON"),
        (("--hosts", "no such host"), "no such host"),
        (("--hostfile", "/nowhere/hosts"), "/nowhere/hosts"),
        (("--ssh-user", "root"), "--ssh-user: means something only with several hosts"),
    ],
)
def test_what_is_wrong_with_the_flags_is_said_at_once(probe: Command, args: tuple[str, ...], words: str) -> None:
    ran = probe.run([*ARGV, "bench", *args])
    assert (2, "") == (ran.code, ran.out)
    assert words in ran.err


# ---- hosts with an sshd of their own ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    needed()
    lab = Lab(tmp_path_factory.mktemp("lab"), hosts=3)
    try:
        lab.make()
        yield lab
    finally:
        lab.remove()


@pytest.fixture
def lab(built: Lab) -> Iterator[Lab]:
    """All hosts well; and after the test nothing of the bench is left on any."""
    yield built
    wait_for(lambda: not built.left(), LEFT_S, f"processes left: {built.left()}")
    built.mend()


def argv(lab: Lab, path: Path, *args: str) -> list[str]:
    return lab.over("bench", "--time", "30s", "--json", str(path), *args)


def spoil(host: LabHost, fault: str, after: int) -> None:
    """Make the ranks of one host faulty once so many cases are done."""
    path = f"{FAULTY}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    host.start(PYTHONPATH=path, LAB_FAULT=fault, LAB_AFTER=str(after))


def stopped(host: LabHost) -> bool:
    """Whether one of its processes is."""
    states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in host.processes()]
    return "T" in states


@pytest.mark.system
def test_collectives_over_ssh_are_measured_and_verified(lab: Lab, tmp_path: Path) -> None:
    ran = lab.run(argv(lab, tmp_path / "a.json"))
    found = result(tmp_path / "a.json")
    assert (0, ("done", "")) == (ran.code, outcome(found)), ran
    assert {one["data"]["op"] for one in found["results"]} == OPS
    assert {(True, 3)} == {(one["verified"], one["data"]["ranks"]) for one in found["results"]}
    assert [("h1", "eth0"), ("h2", "eth0"), ("h3", "eth0")] == [
        (host["host"], host["interface"]) for host in found["provenance"]["hosts"]
    ]
    assert {"unknown: gloo goes by TCP, over a way that nobody tells"} == {
        one["limit_source"] for one in found["results"]
    }


@pytest.mark.system
def test_hosts_that_cannot_take_part_are_named_each_with_its_reason(lab: Lab, tmp_path: Path) -> None:
    lab[1].stop()
    lab[3].start(keys="/dev/null")
    ran = lab.run(argv(lab, tmp_path / "a.json"))
    status, reason = outcome(result(tmp_path / "a.json"))
    assert (3, "fail") == (ran.code, status)
    assert "h1: refuses the connection" in reason
    assert "h3: " in reason
    assert "h2" not in reason
    assert f"fail: collective: {reason}" in ran.out


@pytest.mark.system
def test_a_host_without_torch_is_named(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "python3").symlink_to("/usr/bin/python3")
    lab[2].start(PROBE_PYTHON=str(tmp_path / "python3"))
    ran = lab.run(argv(lab, tmp_path / "a.json"))
    status, reason = outcome(result(tmp_path / "a.json"))
    assert (3, "fail") == (ran.code, status)
    assert reason.startswith("h2: torch cannot be imported there: no torch")


@pytest.mark.system
def test_a_rank_that_is_killed_in_the_middle_is_named_and_what_is_done_is_kept(lab: Lab, tmp_path: Path) -> None:
    spoil(lab[3], "kill", SOME_CASES)
    ran = lab.run(argv(lab, tmp_path / "a.json"))
    found = result(tmp_path / "a.json")
    assert (3, True) == (ran.code, found["partial"])
    assert ("fail", "h3: its rank was ended by SIGKILL") == outcome(found)
    assert found["results"]
    assert {True} == {one["verified"] for one in found["results"]}
    assert "(partial)" in ran.out


@pytest.mark.system
def test_a_host_that_is_lost_in_the_middle_is_named_and_what_is_done_is_kept(lab: Lab, tmp_path: Path) -> None:
    """Its rank stands still after some cases, by which the others wait; then its agent is killed."""
    spoil(lab[2], "stop", SOME_CASES)
    with lab.start(argv(lab, tmp_path / "a.json")) as process:
        wait_for(lambda: stopped(lab[2]), STARTING_S, "no rank of h2 came that far")
        agent = min(pid for pid, words in lab[2].processes().items() if "probe" in words and "sshd" not in words)
        os.kill(agent, signal.SIGKILL)
        ran = lab.finish(process)
    found = result(tmp_path / "a.json")
    status, reason = outcome(found)
    assert (3, True, "fail") == (ran.code, found["partial"], status)
    assert reason.startswith("h2: its agent was lost")
    assert "h1" not in reason
    assert found["results"]


@pytest.mark.system
def test_wrong_words_are_found_and_their_host_is_named(lab: Lab, tmp_path: Path) -> None:
    spoil(lab[2], "wrong", 0)
    ran = lab.run(argv(lab, tmp_path / "a.json"))
    found = result(tmp_path / "a.json")
    status, reason = outcome(found)
    assert (3, "fail") == (ran.code, status)
    assert "1 words differ on rank 1 (h2)" in reason
    wrong = {one["data"]["op"] for one in found["results"] if not one["verified"]}
    assert wrong == {"all_reduce"}
    assert " WRONG" in ran.out


@pytest.mark.system
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_cut_short_keeps_what_is_done_and_leaves_nothing(
    lab: Lab, tmp_path: Path, number: int, code: int
) -> None:
    path = tmp_path / "a.json"
    spoil(lab[3], "stop", SOME_CASES)
    with lab.start(argv(lab, path)) as process:
        wait_for(lambda: stopped(lab[3]), STARTING_S, "no rank of h3 came that far")
        process.send_signal(number)
        ran = lab.finish(process)
    found = result(path)
    assert (code, code, True) == (ran.code, found["exit_code"], found["partial"])
    assert outcome(found) == ("fail", {130: "interrupted", 143: "terminated"}[code])
    assert found["results"]
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.system
def test_killed_it_leaves_nothing_on_any_host(lab: Lab, tmp_path: Path) -> None:
    with lab.start(argv(lab, tmp_path / "a.json")) as process:
        wait_for(lambda: all(len(host.processes()) >= AT_WORK for host in lab.hosts), STARTING_S, "they did not start")
        process.kill()
        process.wait(5)
    wait_for(lambda: not lab.left(), LEFT_S, f"left: {lab.left()}")


def test_a_signal_ends_simulated_hosts_too(probe: Command, tmp_path: Path) -> None:
    words = [*ARGV, "bench", "--local", "2", "--state", str(probe.state), "--json", str(tmp_path / "a.json")]
    with probe.started(words) as process:
        wait_for(lambda: len(probe.left()) > 4, STARTING_S, "its agents did not start")
        process.send_signal(signal.SIGINT)
        ran = finish(process)
    assert (130, True) == (ran.code, result(tmp_path / "a.json")["partial"])
    wait_for(lambda: not probe.left(), 5, f"left: {probe.left()}")
