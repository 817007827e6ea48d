"""`probe bench` as people run it: whole, cut short, compared, refused; and nothing is left behind."""

import json
import os
import pty
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from probe.measure.model import SCHEMA
from tests.fakes.scenario import Scenario
from tests.system.command import ARGV, LATE_S, Command, Ran, fake_torch, finish, validator

HOSTS = Path(__file__).parents[1] / "hosts"
TIME_S = 16.0
QUICK = ("--only", "memory", "--time", "12s")


def argv(probe: Command, *args: str, device: str = "cpu") -> list[str]:
    return [*ARGV, "bench", "--device", device, "--state", str(probe.state), *args]


def bench(probe: Command, *args: str, **options: Any) -> Ran:
    return probe.run(argv(probe, *args), **options)


def result(path: Path) -> dict[str, Any]:
    """What a run wrote, which fits the published schema."""
    found: dict[str, Any] = json.loads(path.read_bytes())
    validator(SCHEMA).validate(found)
    return found


def program(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(dict(one) for one in found["programs"] if one["program"] == name)


def test_a_whole_run_on_the_cpu(probe: Command, tmp_path: Path) -> None:
    """Every program that a CPU can do is there and within the time, and all that has words has the right ones."""
    ran = bench(probe, "--time", f"{TIME_S:g}s", "--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html"))
    found = result(tmp_path / "a.json")
    assert (ran.code, found["exit_code"], found["partial"]) == (0, 0, False), ran
    assert ran.err == ""
    assert ran.elapsed_s <= TIME_S + LATE_S
    status = {one["program"]: one["status"] for one in found["programs"]}
    assert status.pop("host") == "skip"
    assert status.keys() == {"startup", "checks", "matmul", "memory", "peer", "collective"}
    reasons = {one["reason"] for one in found["programs"] if one["program"] != "host"}
    assert reasons <= {"", "no time"}, found["programs"]  # a loaded machine of 2 cores does not get round to all
    assert status["startup"] == "done"
    assert {True} == {one["verified"] for one in found["results"] if one["program"] not in ("startup", "checks")}
    assert {None} == {one["limit"] for one in found["results"]}
    assert all(one["p5"] <= one["median"] <= one["p95"] for one in found["results"])
    assert ran.out.startswith("probe bench: ")
    assert "plot-startup" in (tmp_path / "a.html").read_text()
    assert sorted(path.name for path in tmp_path.glob("a.*")) == ["a.html", "a.json"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline of this machine."""
    folder = tmp_path_factory.mktemp("base")
    ran = bench(Command(folder / "state"), *QUICK, "--save", str(folder / "base.json"))
    assert ran.code == 0, ran
    assert program(result(folder / "base.json"), "memory")["status"] == "done"
    return folder / "base.json"


@pytest.fixture
def saved(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(base, tmp_path))


def doctored(saved: Path, factor: float, **provenance: object) -> Path:
    """The same with other rates, without scatter."""
    found = json.loads(saved.read_bytes())
    for one in found["results"]:
        one["median"] *= factor
        one["blocks"] = [one["median"]] * len(one["blocks"])
    found["provenance"] |= provenance
    path = saved.with_name("doctored.json")
    path.write_text(json.dumps(found))
    return path


def test_collectives_over_gloo_are_all_verified(probe: Command, tmp_path: Path) -> None:
    """The five operations, by three workers; algbw and busbw stand in the ratio of nccl-tests."""
    path = tmp_path / "a.json"
    args = ("--only", "collective", "--only", "peer", "--time", "12s", "--json", str(path))
    ran = probe.run([*ARGV, "bench", "--device", "cpu:3", "--state", str(probe.state), *args])
    found = result(path)
    assert ran.code == 0, ran
    small = [one for one in found["results"] if one["data"].get("size_bytes", 0) < 2048]
    assert {one["data"]["op"] for one in small} == {
        "all_reduce",
        "all_gather",
        "reduce_scatter",
        "all_to_all",
        "broadcast",
    }
    assert {True} == {one["verified"] for one in found["results"]}
    factors = {one["data"]["op"]: one["median"] / one["data"]["algbw_gbps"] for one in small}
    assert factors["all_reduce"] == pytest.approx(4 / 3, rel=1e-3)
    assert factors["all_gather"] == pytest.approx(2 / 3, rel=1e-3)
    assert {one["data"]["ranks"] for one in small} == {3}


@pytest.mark.parametrize(
    ("name", "device", "cases"),
    [
        ("peer", "cpu:3", {"0 to 1", "0 to 2", "1 to 0", "1 to 2", "2 to 0", "2 to 1"}),
        ("matmul", "cpu", {"fp32 256", "fp32 512"}),
    ],
)
def test_a_program_with_time_enough_is_done(
    probe: Command, tmp_path: Path, name: str, device: str, cases: set[str]
) -> None:
    """In a whole run a loaded machine may have no time for it, and the run is right all the same."""
    path = tmp_path / "a.json"
    ran = probe.run(argv(probe, "--only", name, "--time", "15s", "--json", str(path), device=device))
    found = result(path)
    assert (ran.code, program(found, name)["status"]) == (0, "done"), found["programs"]
    assert cases <= {one["case"] for one in found["results"]}, found["programs"]
    assert {True} == {one["verified"] for one in found["results"]}


def test_a_regression_exits_1_and_is_named(probe: Command, saved: Path) -> None:
    ran = bench(probe, *QUICK, "--compare", str(doctored(saved, 1000.0)), "--tolerance", "20%")
    assert ran.code == 1, ran
    assert "regression: memory copy" in ran.out


def test_a_gain_exits_0(probe: Command, saved: Path) -> None:
    ran = bench(probe, *QUICK, "--compare", str(doctored(saved, 0.001)))
    assert ran.code == 0, ran
    assert "better: memory copy" in ran.out


def test_other_hardware_is_refused_before_anything_is_measured(probe: Command, saved: Path) -> None:
    ran = bench(probe, *QUICK, "--compare", str(doctored(saved, 1.0, cpu="Another CPU")))
    assert ran.code == 2
    assert "other hardware: CPU was Another CPU" in ran.err
    assert ran.out == ""
    assert ran.elapsed_s < 5


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--time", "soon"), "no duration"),
        (("--time", "100ms"), "no duration from 1s"),
        (("--only", "matmull"), "no program"),
        (("--tolerance", "lots"), "no percentage"),
        (("--json", "/no/such/folder/a.json"), "there is no folder"),
        (("--compare", "/no/such/file"), "cannot be read"),
        (("--skip", "*"), "nothing is left"),
        (("--save", "-"), "'-' is no file"),
        (("--html", "-"), "'-' is no file"),
        (("--compare", ""), "'' is no file"),
        (("--json", ""), "'' is no file"),
        (("--json", "x.out", "--html", "./x.out"), "is the file of --json too"),
        (("--budget", "9s"), "No such option"),
    ],
)
def test_what_is_wrong_with_the_flags_is_said_at_once(probe: Command, args: tuple[str, ...], words: str) -> None:
    ran = bench(probe, *args)
    assert ran.code == 2
    assert words in ran.err


def test_programs_without_time_are_skipped_and_that_is_no_failure(probe: Command, tmp_path: Path) -> None:
    ran = bench(probe, "--time", "1s", "--json", str(tmp_path / "a.json"))
    found = result(tmp_path / "a.json")
    assert ran.code == 0, ran
    assert program(found, "startup")["reason"] == "no time"
    assert ran.elapsed_s <= 1.0 + LATE_S


def test_a_config_with_declared_checks_is_heeded_and_handed_to_the_checks(probe: Command, tmp_path: Path) -> None:
    """What `probe check` runs with it is what the checks cost here."""
    config = tmp_path / "probe.toml"
    config.write_text('[[command]]\nname = "touch"\nargv = ["/bin/true"]\n')
    path = tmp_path / "a.json"
    words = argv(probe, "--only", "checks", "--time", "10s", "--config", config.name, "--json", str(path))
    ran = probe.run(words, cwd=tmp_path)
    assert ran.code == 0, ran
    assert "service.command.touch" in {one["case"] for one in result(path)["results"]}


def test_a_start_that_our_own_clock_ends_had_no_time_and_is_no_failure(probe: Command, tmp_path: Path) -> None:
    path = fake_torch(tmp_path / "fake", "import time\ntime.sleep(600)\n")
    words = ("--only", "startup", "--time", "3s", "--json", str(tmp_path / "a.json"))
    ran = bench(probe, *words, env={"PYTHONPATH": path})
    assert ran.code == 0, ran
    startup = program(result(tmp_path / "a.json"), "startup")
    assert startup["status"] == "skip"
    assert startup["reason"].startswith("no time: torch gave no answer within")


def test_the_result_alone_goes_to_stdout_where_asked(probe: Command) -> None:
    ran = bench(probe, "--only", "checks", "--time", "6s", "--json", "-")
    assert json.loads(ran.out)["schema"] == SCHEMA
    assert ran.code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_cut_short_keeps_what_is_done(probe: Command, tmp_path: Path, number: int, code: int) -> None:
    """Once a program's cases are known the signal comes; the file is whole, marked, and holds them."""
    path = tmp_path / "a.json"
    words = argv(probe, "--only", "startup", "--only", "collective", "--time", "25s", "--json", str(path))
    terminal, its_end = pty.openpty()
    with probe.started(words, start_new_session=True, stderr=its_end) as process:
        os.close(its_end)
        wait_for(terminal, b"collective")
        os.kill(process.pid, number)
        ran = finish(process)
    os.close(terminal)
    found = result(path)
    assert (ran.code, found["exit_code"], found["partial"]) == (code, code, True)
    assert program(found, "startup")["status"] == "done"
    assert program(found, "collective")["status"] == "fail"
    assert {"startup"} <= {one["program"] for one in found["results"]}
    assert [path] == list(tmp_path.glob("a.*"))


def wait_for(terminal: int, words: bytes) -> None:
    seen = b""
    while words not in seen:
        piece = os.read(terminal, 4096)
        assert piece
        seen += piece


def test_an_import_that_hangs_costs_the_time_and_no_more(probe: Command, tmp_path: Path) -> None:
    path = fake_torch(tmp_path / "fake", "import time\ntime.sleep(600)\n")
    json_path = tmp_path / "a.json"
    args = ("--time", "14s", "--only", "memory", "--only", "matmul", "--json", str(json_path))
    ran = bench(probe, *args, env={"PYTHONPATH": path})
    assert ran.code == 3, ran
    assert ran.elapsed_s <= 14.0 + LATE_S
    assert program(result(json_path), "matmul")["reason"].startswith("torch cannot be imported: torch gave no answer")
    follows = program(result(json_path), "memory")
    assert (follows["status"], follows["reason"]) == ("skip", "no time")


def test_a_program_that_crashes_is_named_and_the_others_go_on(probe: Command, tmp_path: Path) -> None:
    """A child of ours that is killed by another is `fail`, exit code 3, and the run goes on to its end."""
    crash = "import os, signal\n__version__ = '2.9'\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    path = fake_torch(tmp_path / "fake", crash)
    json_path = tmp_path / "a.json"
    args = ("--time", "8s", "--only", "checks", "--only", "memory", "--json", str(json_path))
    ran = bench(probe, *args, env={"PYTHONPATH": path})
    found = result(json_path)
    assert (ran.code, program(found, "checks")["status"], program(found, "memory")["status"]) == (3, "done", "fail")
    assert "SIGSEGV" in ran.out


def test_without_torch_nothing_is_measured_by_it(probe: Command, tmp_path: Path) -> None:
    empty = tmp_path / "python3"
    empty.symlink_to("/usr/bin/python3")
    ran = bench(probe, "--time", "6s", "--only", "memory", "--python", str(empty))
    if ran.code == 0:
        pytest.skip("the system's own Python has torch")
    assert ran.code == 3
    assert "torch not installed" in ran.out


def test_a_terminal_that_is_held_holds_nothing_up(probe: Command) -> None:
    """Progress that nobody reads (Ctrl-S) is dropped, with rich and its bars too."""
    terminal, its_end = pty.openpty()
    os.set_blocking(its_end, False)
    with suppress(BlockingIOError):
        while True:
            os.write(its_end, b"x" * 512)
    os.set_blocking(its_end, True)
    with probe.started(argv(probe, *QUICK), env={"TERM": "xterm", "COLUMNS": "120"}, stderr=its_end) as process:
        os.close(its_end)
        assert finish(process).code == 0
    os.close(terminal)


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "plain"])
def test_progress_is_shown_on_a_terminal_with_and_without_rich(probe: Command, tmp_path: Path, *, rich: bool) -> None:
    """Rich is optional: where it cannot be imported each program has a line."""
    env = {"TERM": "xterm", "COLUMNS": "120"}
    if not rich:
        (tmp_path / "rich.py").write_text("raise ImportError('not here')\n")
        env["PYTHONPATH"] = str(tmp_path)
    terminal, its_end = pty.openpty()
    with probe.started(argv(probe, "--only", "checks", "--time", "5s"), env=env, stderr=its_end) as process:
        os.close(its_end)
        wait_for(terminal, b"checks: what each check" if rich else b"checks: ")
        assert finish(process).code in (0, 3)
    os.close(terminal)


def on_terminal(probe: Command, words: list[str], **env: str) -> Ran:
    """With a terminal for stderr that somebody reads."""
    terminal, its_end = pty.openpty()
    with probe.started(words, env={"TERM": "xterm", **env}, stderr=its_end) as process:
        os.close(its_end)
        reader = threading.Thread(target=drain, args=(terminal,))
        reader.start()
        ran = finish(process)
    reader.join(5)
    os.close(terminal)
    return ran


def drain(terminal: int) -> None:
    with suppress(OSError):  # what a terminal says whose other end is closed
        while os.read(terminal, 4096):
            pass


def test_a_defect_in_the_middle_keeps_what_is_measured_and_leaves_nothing(probe: Command, tmp_path: Path) -> None:
    """Here of the bars: whatever raises, the results are written, and the folder of the run goes."""
    rich = tmp_path / "fake" / "rich"
    rich.mkdir(parents=True)
    (rich / "__init__.py").touch()
    (rich / "console.py").write_text("Console = dict\n")
    (rich / "progress.py").write_text(BROKEN_BARS)
    path, scratch = tmp_path / "a.json", tmp_path / "tmp"
    scratch.mkdir()
    words = argv(probe, "--only", "startup", "--only", "memory", "--time", "12s", "--json", str(path))
    ran = on_terminal(probe, words, PYTHONPATH=str(tmp_path / "fake"), TMPDIR=str(scratch))
    found = result(path)
    assert (ran.code, found["exit_code"], found["partial"]) == (3, 3, True)
    assert "broken off (ValueError: no such task" in found["notes"][0]
    assert {"startup"} == {one["program"] for one in found["results"]}
    assert [] == list(scratch.iterdir())


BROKEN_BARS = """
class Progress:
    def __init__(self, *columns, **options): pass
    def start(self): pass
    def add_task(self, *args, **options): return 0
    def refresh(self): pass
    def update(self, *args, **options): raise ValueError("no such task")
    def stop(self): pass

def BarColumn(*args, **options): pass

TextColumn = TimeElapsedColumn = BarColumn
"""


def test_a_file_that_nobody_takes_is_named_and_is_no_success(probe: Command, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    ran = bench(probe, "--only", "host", "--time", "6s", "--json", str(pipe))
    assert ran.code == 3, ran
    assert f"{pipe} was not written: nobody reads it" in ran.err
    assert ran.out.startswith("probe bench: ")


@pytest.mark.parametrize("to", [(), ("--json", "-")], ids=["table", "json"])
def test_a_result_that_stdout_does_not_take_is_no_success(probe: Command, to: tuple[str, ...]) -> None:
    words = argv(probe, "--only", "host", "--time", "6s", *to)
    with Path("/dev/full").open("wb") as full, probe.started(words, stdout=full) as process:
        _, err = process.communicate(timeout=60)
    assert (3, "probe: the result could not be written to stdout\n") == (process.returncode, err)


def test_a_run_that_failed_takes_no_baseline_s_place(probe: Command, saved: Path, tmp_path: Path) -> None:
    fake = fake_torch(tmp_path / "fake", "raise ImportError('gone')\n")
    before, other = saved.read_bytes(), tmp_path / "other.json"
    for path in (saved, other):
        ran = bench(probe, "--only", "memory", "--time", "6s", "--save", str(path), env={"PYTHONPATH": fake})
        assert ran.code == 3, ran
        assert str(path) in ran.err
    assert saved.read_bytes() == before
    assert (3, True) == ((found := result(other))["exit_code"], found["partial"])
    ran = bench(probe, *QUICK, "--compare", str(other))
    assert (2, "") == (ran.code, ran.out)
    assert "cannot be compared with: memory: torch cannot be imported" in ran.err


def test_where_nothing_could_be_compared_that_is_said_and_is_no_success(probe: Command, saved: Path) -> None:
    ran = bench(probe, "--only", "checks", "--time", "6s", "--compare", str(saved))
    assert ran.code == 3, ran
    assert "nothing could be compared" in ran.out


def test_a_baseline_of_another_s_making_costs_no_measurement(probe: Command, saved: Path, tmp_path: Path) -> None:
    """Its figures are those of a clock, and what they differ by is beyond any exponential."""
    found = json.loads(saved.read_bytes())
    for one in found["results"]:
        one["blocks"] = [1e-12, 1e15, 1e15]
    (wild := tmp_path / "wild.json").write_text(json.dumps(found))
    path = tmp_path / "a.json"
    ran = bench(probe, *QUICK, "--compare", str(wild), "--json", str(path))
    assert result(path)["results"], ran
    assert "memory" in ran.out


# ---- GPU hosts that are not here -------------------------------------------------------------------------------------


@pytest.mark.system
@pytest.mark.cc
@pytest.mark.parametrize("host", ["busy-process", "busy-memory"])
def test_a_busy_gpu_is_refused_with_the_evidence(probe: Command, fakes: Path, tmp_path: Path, host: str) -> None:
    path = tmp_path / "a.json"
    path.write_text("of yesterday")
    words = argv(probe, "--time", "30s", "--json", str(path), device="auto")
    ran = probe.on(Scenario.load(HOSTS / f"{host}.toml"), words, fakes)
    found = result(path)
    assert (3, 3, True, []) == (ran.code, found["exit_code"], found["partial"], found["results"])
    assert "is busy: " in ran.err
    assert "nothing measured: " in found["notes"][1]
    assert "--busy test" in ran.err


@pytest.mark.system
@pytest.mark.cc
def test_a_gpu_that_nvml_does_not_give_is_no_cpu_run(probe: Command, fakes: Path) -> None:
    """Where GPUs are expected their absence is never measured around."""
    ran = probe.on(Scenario.load(HOSTS / "nvml-18.toml"), argv(probe, "--time", "30s", device="auto"), fakes)
    assert ran.code == 3
    assert "NVML says 18" in ran.err


@pytest.mark.system
@pytest.mark.cc
def test_the_limits_of_a_gpu_host_are_known_before_torch_is(probe: Command, fakes: Path, tmp_path: Path) -> None:
    """NVML's part of the provenance, by the real worker; the fake GPU computes nothing, and that is said."""
    words = argv(probe, "--time", "12s", "--only", "checks", "--json", str(tmp_path / "a.json"), device="auto")
    ran = probe.on(Scenario.load(HOSTS / "h100x2.toml"), words, fakes)
    found = result(tmp_path / "a.json")
    assert ran.code == 0, ran
    (first, _) = found["provenance"]["gpus"]
    assert (first["name"], first["pcie_generation"], first["pcie_width"], first["nvlinks"]) == (
        "NVIDIA H100 80GB HBM3",
        5,
        16,
        18,
    )
    (condition, _) = program(found, "checks")["conditions"]
    assert condition["throttle_reasons_before"] is not None
