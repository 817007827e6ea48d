"""Exit codes of every column, usage errors, and the commands beside `check`."""

import json
from pathlib import Path

import pytest

from probe.exits import COLUMNS, TABLE
from probe.report import json as report_json
from tests.system.command import Command, fake_torch, validator

FAST = ("--only", "device.stuck")
SMALL_SHM = ("--only", "device.shm", "--set", 'checks."device.shm".min_bytes=1000000000000000000')
BROKEN_TORCH = "raise ImportError('libcudart.so.12: cannot open shared object file: No such file or directory')\n"


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_has_its_codes(probe: Command, tmp_path: Path, column: str) -> None:
    """The same four ends of a run, by flag and by variable, as each caller wants to hear them."""
    broken = {"PYTHONPATH": fake_torch(tmp_path / "broken", BROKEN_TORCH)}
    ends = {
        "healthy": probe.text(*FAST, "--exit-codes", column),
        "degraded": probe.text(*SMALL_SHM, f"--exit-codes={column}"),
        "unhealthy": probe.text("--only", "torch.import", env={**broken, "PROBE_EXIT_CODES": column}),
        "undetermined": probe.text("--only", "nvml", "--exit-codes", column),
        "usage": probe.text("--only", "nonsense", env={"PROBE_EXIT_CODES": column}),
    }
    at = COLUMNS.index(column)
    assert {what: TABLE[what][at] for what in ends} == {what: ran.code for what, ran in ends.items()}
    for verdict in ("healthy", "degraded", "unhealthy", "undetermined"):
        assert ends[verdict].first_line.startswith(f"{verdict}: ")


def test_undetermined_is_loud_on_stderr_for_slurm(probe: Command) -> None:
    """Its code is 0, which lets the job start: whoever reads the log must see that nothing was told."""
    ran = probe.text("--only", "nvml", "--exit-codes", "slurm")
    assert ran.code == 0
    assert "undetermined" in ran.err


def test_strict_makes_degraded_a_failure_but_for_docker(probe: Command) -> None:
    """Docker has no third state."""
    assert probe.text(*SMALL_SHM, "--strict").code == 1
    assert probe.text(*SMALL_SHM, env={"PROBE_STRICT": "true"}).code == 1
    assert probe.text(*SMALL_SHM, "--strict", "--exit-codes", "docker").code == 0
    assert probe.text(*FAST, "--strict").code == 0


def test_an_import_error_of_torch_is_the_first_cause_in_its_own_words(probe: Command, tmp_path: Path) -> None:
    """With what the linker said, since that is what the user searches for."""
    ran = probe.check(env={"PYTHONPATH": fake_torch(tmp_path / "broken", BROKEN_TORCH)})
    assert (ran.code, ran.codes[0], ran.err) == (1, "TORCH_ABI_MISMATCH", "")
    assert "libcudart.so.12" in ran.report["causes"][0]["summary"]
    assert ran.outcome("torch.tensor")["summary"] == "needs torch.import"


def test_undetermined_when_nothing_was_seen(probe: Command) -> None:
    """Everything skipped is not healthy."""
    ran = probe.check("--only", "nvml")
    assert (ran.code, ran.report["verdict"]) == (3, "undetermined")


USAGE = {
    "an unknown flag": ("check", "--nonsense"),
    "an unknown command": ("nonsense",),
    "an unknown check": ("check", "--only", "device.stuk"),
    "an unknown check to skip": ("check", "--skip", "nonsense*"),
    "a check of another profile": ("check", "--profile", "liveness", "--only", "torch.tensor"),
    "no duration": ("check", "--budget", "soon"),
    "a budget under a second": ("check", "--budget", "200ms"),
    "no number of GPUs": ("check", "--gpus-expect", "many"),
    "no device": ("check", "--device", "tpu"),
    "no profile": ("check", "--profile", "nonsense"),
    "no column": ("check", "--exit-codes", "nonsense"),
    "no format": ("check", "--format", "xml"),
    "no key": ("check", "--set", "nonsense=1"),
    "no value": ("check", "--set", 'checks."device.shm".min_bytes="many"'),
    "a file that is not there": ("check", "--config", "/nonexistent/config.toml"),
    "a value without its flag": ("check", "extra"),
    "a flag without its value": ("check", "--budget"),
    "no fault": ("explain", "NONSENSE"),
    "no file to check": ("config", "--check", "/nonexistent"),
}


@pytest.mark.parametrize("args", USAGE.values(), ids=USAGE)
def test_a_usage_error_is_one_line_and_2(probe: Command, args: tuple[str, ...]) -> None:
    """On stderr, with what was given; no traceback, nothing on stdout, soon."""
    ran = probe(*args)
    assert ran.code == 2
    assert (ran.out, ran.err.count("\n")) == ("", 1)
    assert ran.err.startswith("probe: ")
    assert "Traceback" not in ran.err
    assert len(ran.err) <= 512


@pytest.mark.parametrize("args", [args for args in USAGE.values() if args[0] == "check" and "--format" not in args])
@pytest.mark.parametrize("form", [("--format", "json"), ("--format=json",)], ids=["two words", "one"])
def test_a_usage_error_is_json_where_json_was_asked_for(
    probe: Command, args: tuple[str, ...], form: tuple[str, ...]
) -> None:
    """On stdout, by its published schema; still exit code 2 and the line on stderr."""
    ran = probe("check", *form, *args[1:])
    assert (ran.code, ran.out.count("\n"), ran.err.count("\n")) == (2, 1, 1)
    said = json.loads(ran.out)
    validator(report_json.ERROR).validate(said)
    assert said["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROBE_BUDGET", "soon"),
        ("PROBE_PROFILE", "nonsense"),
        ("PROBE_EXIT_CODES", "nonsense"),
        ("PROBE_DEVICE", "tpu"),
        ("PROBE_GPUS_EXPECT", "-1"),
        ("PROBE_CONFIG", "/nonexistent"),
    ],
)
def test_nonsense_in_a_variable_is_a_usage_error_that_names_it(probe: Command, name: str, value: str) -> None:
    """With what was given."""
    ran = probe.text(env={name: value})
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert value in ran.err


def test_an_unknown_variable_is_a_line_and_no_error(probe: Command) -> None:
    """A Kubernetes Service named `probe` injects PROBE_PORT and its like."""
    ran = probe.check(*FAST, env={"PROBE_PORT": "tcp://10.0.0.1:80", "PROBE_SERVICE_HOST": "10.0.0.1"})
    assert ran.code == 0
    assert ran.err.count("\n") <= 1


@pytest.mark.parametrize(("value", "status"), [("false", "skip"), ("true", "pass"), ("auto", "pass")])
def test_a_check_has_a_switch(probe: Command, value: str, status: str) -> None:
    """``ENABLE_SHM_CHECK``: false is skip."""
    ran = probe.check("--only", "device", env={"ENABLE_SHM_CHECK": value})
    assert (ran.code, ran.status("device.shm")) == (0, status)
    assert ran.outcome("device.shm")["severity"] == ("critical" if value == "true" else "advisory")


def test_nonsense_in_a_switch_warns_and_counts_as_auto(probe: Command) -> None:
    """A line on stderr that names it; the run goes on."""
    ran = probe.check("--only", "device", env={"ENABLE_SHM_CHECK": "perhaps", "ENABLE_NOTHING_CHECK": "true"})
    assert (ran.code, ran.status("device.shm"), ran.err.count("\n")) == (0, "pass", 1)
    assert "ENABLE_SHM_CHECK" in ran.err
    assert "ENABLE_NOTHING_CHECK" not in ran.err


def test_torch_switched_off_is_not_imported(probe: Command, tmp_path: Path) -> None:
    """``ENABLE_IMPORT_CHECK=false`` with a torch that cannot be imported: skip, and what needs it does not fail."""
    env = {"PYTHONPATH": fake_torch(tmp_path / "broken", BROKEN_TORCH), "ENABLE_IMPORT_CHECK": "false"}
    ran = probe.check("--only", "torch.import", "--only", "device.stuck", env=env)
    assert (ran.code, ran.status("torch.import")) == (0, "skip")


def test_eight_workers_on_the_cpu(probe: Command) -> None:
    """``--device cpu:8`` rehearses a host with eight GPUs: eight passes of torch.tensor, each of its own target."""
    ran = probe.check("--device", "cpu:8", "--skip", "device")
    assert ran.code == 0
    tested = [(item["target"], item["status"]) for item in ran.report["checks"] if item["id"] == "torch.tensor"]
    assert sorted(tested) == [(f"cpu:{number}", "pass") for number in range(8)]


@pytest.mark.parametrize("profile", ["readiness", "liveness", "startup", "node"])
def test_each_profile_holds_its_checks(probe: Command, profile: str) -> None:
    """`checks` holds every check of the profile, skips too, each once; as `probe list` has them."""
    listed = probe("list", "--profile", profile)
    assert (listed.code, listed.err) == (0, "")
    names = [line.split()[0] for line in listed.out.splitlines()[1:] if "<name>" not in line]
    ran = probe.check("--profile", profile)
    assert ran.code == 0
    found = [(item["id"], item["target"]) for item in ran.report["checks"]]
    assert sorted(set(found)) == sorted(found)
    assert {name for name, _ in found} == set(names)


def test_list_shows_all_checks_with_their_switches(probe: Command) -> None:
    """A line each below one that names the columns: id, profiles, severity, switch, question; all in line."""
    ran = probe("list")
    assert ran.code == 0
    head, *lines = ran.out.splitlines()
    assert head.endswith("(runs in: R readiness, L liveness, S startup, N node)")
    for title in ("runs in", "severity", "switch", "asks"):
        at = head.index(title)
        assert {(line[at - 2 : at], line[at] == " ") for line in lines} == {("  ", False)}
    nvlink = next(line for line in lines if line.startswith("nvml.nvlink "))
    assert "  advisory, critical in node  " in nvlink
    line = next(line for line in ran.out.splitlines() if line.startswith("device.shm "))
    assert "ENABLE_SHM_CHECK" in line
    assert line.endswith("?")


def test_explain_says_what_a_fault_is_and_who_mends_it(probe: Command) -> None:
    """One by its code, all of them without."""
    one = probe("explain", "GPU_DRIVER_STUCK")
    assert (one.code, one.err) == (0, "")
    assert "host_admin" in one.out
    assert "reboot" in one.out
    every = probe("explain")
    assert every.code == 0
    assert {"GPU_DRIVER_STUCK", "TORCH_MISSING"} <= set(every.out.split())


def test_config_shows_each_setting_and_who_set_it(probe: Command, tmp_path: Path) -> None:
    """Defaults, file, environment, flag: the origin stands beside the value."""
    file = tmp_path / "probe.toml"
    file.write_text('budget = "5s"\nprofile = "node"\n')
    ran = probe("config", "--config", str(file), "--device", "cpu", env={"PROBE_PROFILE": "startup"})
    assert (ran.code, ran.err) == (0, "")
    lines = {line.split()[0]: line for line in ran.out.splitlines()}
    assert '"5s"' in lines["budget"]
    assert str(file) in lines["budget"]
    assert "PROBE_PROFILE" in lines["profile"]
    assert "--device" in lines["device"]
    assert "default" in lines["busy"]


def test_a_file_can_be_checked_before_it_is_used(probe: Command, tmp_path: Path) -> None:
    """Right: 0. Wrong: 2, with file, key, what was given, what is allowed and the nearest known key."""
    file = tmp_path / "probe.toml"
    file.write_text('budget = "5s"\n[checks."device.shm"]\nmin_bytes = 1\n')
    ran = probe("config", "--check", str(file))
    assert (ran.code, ran.out, ran.err) == (0, f"{file}: right\n", "")
    for wrong, words in (('buget = "5s"', ("buget", "budget")), ('profile = "nod"', ("nod", "node")), ("x = ", ())):
        file.write_text(wrong)
        ran = probe("config", "--check", str(file))
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
        assert all(word in ran.err for word in (str(file), *words)), ran.err


def test_a_file_is_in_force(probe: Command, tmp_path: Path) -> None:
    """Its threshold decides, and a flag goes before it."""
    file = tmp_path / "probe.toml"
    file.write_text('[checks."device.shm"]\nmin_bytes = 1000000000000000000\n')
    assert probe.check("--only", "device.shm", "--config", str(file)).status("device.shm") == "warn"
    argv = ("--only", "device.shm", "--config", str(file), "--set", 'checks."device.shm".min_bytes=1')
    assert probe.check(*argv).status("device.shm") == "pass"


@pytest.mark.parametrize("args", [("--version",), ("--help",), ("check", "--help"), ("config", "--help"), ("-h",)])
def test_version_and_help_go_to_stdout(probe: Command, args: tuple[str, ...]) -> None:
    """Exit code 0, nothing on stderr."""
    ran = probe(*args)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("probe 0." if args == ("--version",) else "Usage: probe")


def test_no_command_is_help_and_2(probe: Command) -> None:
    """On stderr, as a mistake."""
    ran = probe()
    assert (ran.code, ran.out) == (2, "")
    assert "Usage: probe" in ran.err


@pytest.mark.parametrize("budget_s", [1, 2])
def test_a_small_budget_is_kept(probe: Command, budget_s: int) -> None:
    """Whatever fits in it: the answer comes in time."""
    ran = probe.check("--budget", f"{budget_s}s")
    assert ran.elapsed_s <= budget_s + 0.25
    assert ran.code in (0, 1)
