"""Settings: which value wins, where it came from, and how every mistake is said."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe import config
from probe.clock import parse_duration
from probe.config import (
    Loaded,
    UsageError,
    check_file,
    describe,
    format_duration,
    load,
    nesting,
    parse_toml,
    shown,
    unsafe,
)
from probe.context import Context
from probe.model import Check, CheckSettings, Config, Finding, Job, Limit, Profile, Severity, Threshold, passed
from probe.options import one_of, option, port, table, text, words


async def run(context: Context, job: Job) -> Finding:
    return passed("fine")


def declared(check_id: str, **thresholds: Limit) -> Check:
    of_check = {name: Threshold(default, "a test") for name, default in thresholds.items()}
    return Check(check_id, run, "?", Severity.CRITICAL, frozenset(Profile), thresholds=of_check)


CHECKS: Mapping[str, Check] = {
    check.id: check
    for check in (
        declared("nvml.ecc", max_errors=0, max_rate_hz=0.5),
        declared("nvml.reach"),
        declared("device.shm", min_free_bytes=1 << 26),
        declared("device.xid", fatal=(), ignore=(63,)),
        declared("service.jupyter"),
    )
}
GPU = "GPU-8a1f1d2e-0000-1111-2222-333344445555"
MIG = "MIG-8a1f1d2e-0000-1111-2222-333344445555"
Write = Callable[[str | bytes], str]


@pytest.fixture(autouse=True)
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where /etc/probe/config.toml is in these tests; nothing is there yet."""
    path = tmp_path / "etc" / "config.toml"
    path.parent.mkdir(mode=0o755)
    monkeypatch.setattr(config, "ETC", str(path))
    return path


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a config file and gives its path."""

    def put(text: str | bytes) -> str:
        path = tmp_path / "probe.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(0o644)
        return str(path)

    return put


Words = Mapping[str, str]


def loaded(
    *sets: str, flags: Words | None = None, path: str | None = None, env: Words | None = None, **more: str
) -> Loaded:
    return load(flags or {}, {**(env or {}), **more}, CHECKS, sets, path)


def complaint(
    *sets: str, flags: Words | None = None, path: str | None = None, env: Words | None = None, **more: str
) -> UsageError:
    with pytest.raises(UsageError) as caught:
        loaded(*sets, flags=flags, path=path, env=env, **more)
    assert str(caught.value).isprintable()
    return caught.value


# --- defaults, layers, origins --------------------------------------------------------------------------------------


def test_defaults() -> None:
    """With nothing set, every scalar has its default and says so, and no check has settings."""
    result = loaded()
    assert Config() == result.config
    assert {setting.key: "default" for setting in config.SETTINGS} == result.origins
    assert result.warnings == ()
    assert result.path is None
    assert CheckSettings() == result.config.check("nvml.ecc")


@pytest.mark.parametrize(
    ("profile", "budget_s"), [("readiness", 9.0), ("liveness", 9.0), ("startup", 60.0), ("node", 60.0)]
)
def test_the_budget_follows_the_profile_unless_set(profile: str, budget_s: float) -> None:
    """Startup and node have 60 s; whoever sets a budget has that one."""
    assert budget_s == loaded(PROBE_PROFILE=profile).config.budget_s
    assert loaded(PROBE_PROFILE=profile, PROBE_BUDGET="5s").config.budget_s == 5.0


def test_flag_over_set_over_environment_over_file_over_default(write: Write) -> None:
    """Each layer outweighs the ones before it, and the origin names the one that won."""
    path = write('budget = "2s"')
    layers: list[tuple[dict[str, Any], float, str]] = [
        ({}, 9.0, "default"),
        ({"path": path}, 2.0, path),
        ({"env": {"PROBE_BUDGET": "3s"}}, 3.0, "PROBE_BUDGET"),
        ({"sets": ["budget=4s"]}, 4.0, "--set"),
        ({"flags": {"budget": "5s"}}, 5.0, "--budget"),
    ]
    given_so_far: dict[str, Any] = {}
    for layer, budget_s, origin in layers:
        given_so_far |= layer
        sets = given_so_far.get("sets", [])
        result = loaded(*sets, **{name: value for name, value in given_so_far.items() if name != "sets"})
        assert (budget_s, origin) == (result.config.budget_s, result.origins["budget"])


ALL_SCALARS = f"""
budget = "1500ms"
profile = "node"
device = "cpu:4"
exit_codes = "k8s"
busy = "test"
state = "/run/x"
python = "/opt/conda/bin/python"
log = "/srv/health.log"
torch_every = "10m"
strict = true
[gpus]
expect = ["{GPU}", "{MIG}"]
"""


def test_every_scalar_from_toml(write: Write) -> None:
    """All scalars can be set in a file."""
    result = loaded(path=write(ALL_SCALARS))
    expected = Config(
        budget_s=1.5,
        profile=Profile.NODE,
        device="cpu:4",
        exit_codes="k8s",
        busy="test",
        state="/run/x",
        python="/opt/conda/bin/python",
        gpus_expect=(GPU, MIG),
        strict=True,
        log="/srv/health.log",
        torch_every_s=600.0,
    )
    assert expected == result.config
    assert {result.path} == set(result.origins.values())


VARIABLES = {
    "PROBE_BUDGET": "1500ms",
    "PROBE_PROFILE": "node",
    "PROBE_DEVICE": "cpu:4",
    "PROBE_EXIT_CODES": "k8s",
    "PROBE_BUSY": "test",
    "PROBE_STATE": "/run/x",
    "PROBE_PYTHON": "/opt/conda/bin/python",
    "PROBE_STRICT": "1",
    "PROBE_GPUS_EXPECT": f"{GPU},{MIG}",
    "PROBE_LOG": "/srv/health.log",
    "PROBE_TORCH_EVERY": "10m",
}


def test_every_scalar_from_variables_and_flags_as_from_toml(write: Write) -> None:
    """A file, the environment and flags mean the same by the same words."""
    expected = loaded(path=write(ALL_SCALARS)).config
    assert expected == loaded(env=VARIABLES).config
    flags = {name.removeprefix("PROBE_").lower(): value for name, value in VARIABLES.items()}
    assert expected == loaded(flags=flags).config
    assert expected == loaded(flags={"--" + name.replace("_", "-"): value for name, value in flags.items()}).config
    assert set(VARIABLES) == {setting.variable for setting in config.SETTINGS}


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("8", 8), ("auto", None), (GPU, (GPU,)), ("MIG-GPU-a1/1/0", ("MIG-GPU-a1/1/0",))]
)
def test_gpus_expected(text: str, value: object) -> None:
    """A number, UUIDs, or auto."""
    assert value == loaded(PROBE_GPUS_EXPECT=text).config.gpus_expect


def test_auto_takes_back_what_a_lower_layer_set(write: Write) -> None:
    """Where a file names a state folder, a count and a switch, a flag can say auto."""
    path = write('state = "/x"\ngpus.expect = 8\nchecks."nvml.ecc".enabled = false')
    result = loaded('checks."nvml.ecc".enabled=auto', flags={"state": "auto", "gpus_expect": "auto"}, path=path)
    assert (None, None) == (result.config.state, result.config.gpus_expect)
    assert result.config.check("nvml.ecc").enabled is None


def test_empty_variables_are_unset() -> None:
    """Compose and Kubernetes pass on a variable that has no value as an empty one."""
    names = [*VARIABLES, "PROBE_CONFIG", "ENABLE_ECC_CHECK", "PROBE_WHAT"]
    assert loaded() == loaded(env=dict.fromkeys(names, ""))


# --- checks ---------------------------------------------------------------------------------------------------------

OF_ECC = """
[checks.{}]
enabled = true
severity = "advisory"
timeout = "2s"
max_errors = 3
max_rate_hz = 2
"""


@pytest.mark.parametrize("name", ['"nvml.ecc"', "nvml.ecc", 'nvml."ecc"'])
def test_settings_of_a_check(write: Write, name: str) -> None:
    """[checks."nvml.ecc"] and [checks.nvml.ecc] mean the same."""
    result = loaded(path=write(OF_ECC.format(name)))
    expected = CheckSettings(
        enabled=True, severity=Severity.ADVISORY, timeout_s=2.0, thresholds={"max_errors": 3, "max_rate_hz": 2}
    )
    assert expected == result.config.check("nvml.ecc")
    assert result.path == result.origins["checks.nvml.ecc.timeout"] == result.origins["checks.nvml.ecc.max_errors"]


@pytest.mark.parametrize(
    ("text", "enabled"),
    [("1", True), ("true", True), ("YES", True), (" on ", True), ("0", False), ("False", False), ("no", False)],
)
def test_enable_switches_outweigh_the_file(write: Write, text: str, enabled: bool) -> None:
    """ENABLE_ECC_CHECK is the switch of nvml.ecc, and outweighs the file."""
    path = write(f'[checks."nvml.ecc"]\nenabled = {str(not enabled).lower()}')
    result = loaded(path=path, ENABLE_ECC_CHECK=text)
    assert enabled == result.config.check("nvml.ecc").enabled
    assert result.origins["checks.nvml.ecc.enabled"] == "ENABLE_ECC_CHECK"
    assert result.warnings == ()


def test_a_switch_that_says_auto(write: Write) -> None:
    """`auto` undoes what the file says, without a warning."""
    result = loaded(path=write('[checks."nvml.ecc"]\nenabled = false'), ENABLE_ECC_CHECK="auto")
    assert result.config.check("nvml.ecc").enabled is None
    assert result.warnings == ()


def test_set_outweighs_a_switch() -> None:
    """The command line outweighs the environment for switches too."""
    assert loaded('checks."nvml.ecc".enabled=false', ENABLE_ECC_CHECK="1").config.check("nvml.ecc").enabled is False


def test_nonsense_in_a_switch_warns_and_counts_as_auto() -> None:
    """A container is not failed for it: one line for all of them, and auto."""
    result = loaded(ENABLE_ECC_CHECK="maybe\x1b[1m", ENABLE_JUPYTER_CHECK="2")
    assert len(result.warnings) == 1
    assert "ENABLE_ECC_CHECK='maybe\\x1b[1m', ENABLE_JUPYTER_CHECK='2'" in result.warnings[0]
    assert "true" in result.warnings[0]
    assert result.config.check("nvml.ecc").enabled is None


def test_unknown_switches_are_ignored() -> None:
    """ENABLE_* is not ours alone."""
    assert loaded() == loaded(ENABLE_SSL_CHECK="1", ENABLE_X="y")


# --- unknown variables ----------------------------------------------------------------------------------------------


def test_unknown_variables_are_one_line_at_most() -> None:
    """One short line names a few of them, with the nearest setting; it is no error."""
    names = {f"PROBE_X{number}": "1" for number in range(50)}
    (line,) = loaded(PROBE_BUGDET="3s", env=names).warnings
    assert "PROBE_BUGDET (did you mean PROBE_BUDGET?)" in line
    assert line.endswith("and 47 more")
    assert "\n" not in line
    assert len(line) < 400


@pytest.mark.parametrize(
    "name",
    [
        "PROBE_PORT",
        "PROBE_PORT_80_TCP",
        "PROBE_PORT_80_TCP_ADDR",
        "PROBE_SERVICE_HOST",
        "PROBE_SERVICE_PORT_HTTP",
        "PROBE_GPUS_SERVICE_HOST",
        "NOT_PROBE_X",
        "probe_budget",
    ],
)
def test_what_kubernetes_injects_is_not_mentioned(name: str) -> None:
    """A Service named probe, or probe-gpus, puts variables into every pod of its namespace."""
    assert loaded(env={name: "tcp://10.0.0.1:80"}).warnings == ()


def test_control_characters_in_names_of_variables_are_escaped() -> None:
    """Warnings go to a terminal."""
    (line,) = loaded(env={"PROBE_\x1b[31m": "1"}).warnings
    assert line.isprintable()


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        # budget
        ("budget = true", "budget is true"),
        ("budget = 9", "budget is 9"),
        ("budget = nan", "budget is nan"),
        ("budget = inf", "budget is inf"),
        ('budget = "9"', "budget is '9'"),
        ('budget = "-9s"', "budget is '-9s'"),
        ('budget = "0s"', "budget is '0s'"),
        ('budget = "999ms"', "budget is '999ms'"),
        ('budget = "25h"', "budget is '25h'"),
        ('budget = "86401s"', "budget is '86401s'"),
        ('budget = "nans"', "budget is 'nans'"),
        ('budget = "infs"', "budget is 'infs'"),
        ('budget = "1e1s"', "budget is '1e1s'"),
        ('budget = "9 s"', "budget is '9 s'"),
        ('budget = ""', "budget is ''"),
        ("budget = []", "budget is []"),
        ("budget = 1979-05-27", "budget is datetime.date(1979, 5, 27)"),
        ("[budget]\nx = 1", "budget is {'x': 1}"),
        # words
        ('profile = "READINESS"', "profile is 'READINESS'"),
        ('profile = "rediness"', "profile is 'rediness' (did you mean readiness?)"),
        ("profile = 1", "profile is 1"),
        ('exit_codes = "kubernetes"', "exit_codes is 'kubernetes'"),
        ("exit_codes = {}", "exit_codes is {}"),
        ('busy = "yes"', "busy is 'yes'"),
        ("strict = 1", "strict is 1"),
        ('strict = "true"', "strict is 'true'"),
        # device
        ('device = "gpu"', "device is 'gpu'"),
        ('device = "cpu:0"', "device is 'cpu:0'"),
        ('device = "cpu:257"', "device is 'cpu:257'"),
        ('device = "cpu:04"', "device is 'cpu:04'"),
        ('device = "cpu:"', "device is 'cpu:'"),
        ('device = "cpu:²"', "device is 'cpu:²'"),
        ("device = 0", "device is 0"),
        # paths
        ('state = "here"', "state is 'here'"),
        ('state = ""', "state is ''"),
        ('state = "/a\\u0000b"', "state is '/a\\x00b'"),
        ("state = 1", "state is 1"),
        ('python = "python3"', "python is 'python3'"),
        ("python = false", "python is false"),
        # gpus
        ("gpus = 8", "gpus is 8"),
        ("gpus.expect = -1", "gpus.expect is -1"),
        ("gpus.expect = 1025", "gpus.expect is 1025"),
        ("gpus.expect = true", "gpus.expect is true"),
        ("gpus.expect = 8.0", "gpus.expect is 8.0"),
        ('gpus.expect = "8"', "gpus.expect is '8'"),
        ("gpus.expect = []", "gpus.expect is []"),
        ("gpus.expect = [0, 1]", "gpus.expect is [0, 1]"),
        ('gpus.expect = ["GPU-"]', "gpus.expect is ['GPU-']"),
        ('gpus.expect = ["GPU-a", "GPU-a"]', "gpus.expect is ['GPU-a', 'GPU-a']"),
        ('gpus.expect = ["GPU-a b"]', "gpus.expect is ['GPU-a b']"),
        # unknown keys
        ('bugdet = "9s"', "no key is called 'bugdet' (did you mean budget?)"),
        ("gpus.expects = 8", "no key is called 'gpus.expects' (did you mean gpus.expect?)"),
        ("gpus-expect = 8", "no key is called 'gpus-expect' (did you mean gpus.expect?)"),
        ('log = "x"', "log is 'x'"),
        ('"\\u001b[1m" = 1', "no key is called '\\x1b[1m'"),
        ("[check]\nx = 1", "no key is called 'check' (did you mean checks?)"),
        # checks
        ("checks = 1", "checks is 1"),
        ('checks."nvml.ecc" = 1', 'checks."nvml.ecc" is 1'),
        ('[checks."nvml.ec"]', "no check is called 'nvml.ec' (did you mean nvml.ecc?)"),
        ("[checks.nvml.ec]", "no check is called 'nvml.ec' (did you mean nvml.ecc?)"),
        ("checks.nvml = 1", "no check is called 'nvml'"),
        ('[checks.nvml]\ntimeout = "1s"', "no check is called 'nvml.timeout'"),
        ('[checks."what.ever"]', "no check is called 'what.ever'"),
        ("[[checks]]\nx = 1", "checks is [{'x': 1}]"),
        ('[checks."nvml.ecc"]\nenabled = 1', 'checks."nvml.ecc".enabled is 1'),
        ('[checks."nvml.ecc"]\nenabled = "yes"', "checks.\"nvml.ecc\".enabled is 'yes'"),
        ('[checks."nvml.ecc"]\nseverity = "minor"', "checks.\"nvml.ecc\".severity is 'minor'"),
        ('[checks."nvml.ecc"]\ntimeout = 2', 'checks."nvml.ecc".timeout is 2'),
        ('[checks."nvml.ecc"]\ntimeout = "0ms"', "checks.\"nvml.ecc\".timeout is '0ms'"),
        ('[checks."nvml.ecc"]\nmax_errors = true', 'checks."nvml.ecc".max_errors is true'),
        ('[checks."nvml.ecc"]\nmax_errors = 1.5', 'checks."nvml.ecc".max_errors is 1.5'),
        ('[checks."nvml.ecc"]\nmax_errors = -1', 'checks."nvml.ecc".max_errors is -1'),
        ('[checks."nvml.ecc"]\nmax_errors = "1"', "checks.\"nvml.ecc\".max_errors is '1'"),
        ('[checks."nvml.ecc"]\nmax_rate_hz = nan', 'checks."nvml.ecc".max_rate_hz is nan'),
        ('[checks."nvml.ecc"]\nmax_rate_hz = inf', 'checks."nvml.ecc".max_rate_hz is inf'),
        ('[checks."nvml.ecc"]\nmax_rate_hz = -0.1', 'checks."nvml.ecc".max_rate_hz is -0.1'),
        (
            '[checks."nvml.ecc"]\nmax_error = 1',
            "no setting of checks.\"nvml.ecc\" is called 'max_error' (did you mean max_errors?)",
        ),
        (
            '[checks."nvml.reach"]\nmax_errors = 1',
            "no setting of checks.\"nvml.reach\" is called 'max_errors'",
        ),
        (
            '[checks."nvml.ecc"]\ntimeout = "1s"\n[checks.nvml.ecc]\ntimeout = "2s"',
            'checks."nvml.ecc".timeout is set twice',
        ),
        # TOML itself: its own words, with the line
        ("budget = 9s", "is not TOML: Expected newline or end of document after a statement (at line 1, column 11)"),
        ('budget = "1s"\nbudget = "2s"', "is not TOML: Cannot overwrite a value (at line 2, column 14)"),
        ("a = 1\n[a]\n", "is not TOML: Cannot overwrite a value (at line 2, column 3)"),
        ("x = " + "9" * 5000, "is not TOML: Exceeds the limit (4300 digits)"),
        ("x = " + "[" * 33 + "]" * 33, "is nested too deep"),
        ("x = " + "[" * 500_000, "is nested too deep"),
        ("[" + "a." * 400_000 + "a]", "is nested too deep"),
        ("gpus.expect = 0x" + "f" * 5000, "gpus.expect is a huge int"),
        ("gpus.expect = [0x" + "f" * 5000 + "]", "gpus.expect is a huge list"),
    ],
)
def test_mistakes_in_a_file(write: Write, toml: str, message: str) -> None:
    """Each is one line that begins with the file, names the key, shows the value, and is no other exception."""
    path = write(toml)
    error = complaint(path=path)
    assert path == error.where
    assert error.message.startswith(message)
    assert str(error).startswith(f"{path}: {message}")
    assert len(str(error)) < len(path) + 400


@pytest.mark.parametrize(
    ("toml", "allowed"),
    [
        ('budget = "0s"', 'a duration from "1s" to "24h", such as "9s", "1500ms" or "2m"'),
        ('profile = "x"', "readiness, liveness, startup, node"),
        ('exit_codes = "x"', "shell, docker, k8s, nagios, npd, slurm"),
        ('[checks."nvml.ecc"]\nx = 1', "enabled, severity, timeout, max_errors, max_rate_hz"),
        ('[checks."nvml.ecc"]\nmax_errors = -1', "a whole number of at least 0; by default 0"),
        ('[checks."nvml.ecc"]\nmax_rate_hz = -1', "a number of at least 0; by default 0.5"),
        ('[checks."device.xid"]\nignore = 79', "a list of whole numbers of at least 0; by default [63]"),
        ('[checks."device.xid"]\nignore = [79, -1]', "a list of whole numbers of at least 0; by default [63]"),
        ('[checks."device.xid"]\nfatal = ["79"]', "a list of whole numbers of at least 0; by default []"),
        ('[checks."device.xid"]\nfatal = [true]', "a list of whole numbers of at least 0; by default []"),
        ('[checks."nvml.ecc"]\nmax_errors = [1]', "a whole number of at least 0; by default 0"),
        ('[checks."nvml.x"]', '[checks."<id>"] with one of nvml.ecc, nvml.reach'),
        ('[checks."x"]', '[checks."<id>"] with one of device.*, nvml.*, service.*'),
    ],
)
def test_mistakes_say_what_is_allowed(write: Write, toml: str, allowed: str) -> None:
    """`allowed` is what would have been right there."""
    error = complaint(path=write(toml))
    assert allowed == error.allowed
    assert str(error).endswith(f"(allowed: {allowed})")


def test_long_values_are_cut_and_cleaned(write: Write) -> None:
    """A value of a megabyte, or with an escape sequence, makes a short printable line."""
    path = write(f'budget = "{"x" * 1_000_000}"')
    assert len(str(complaint(path=path))) < len(path) + 300
    assert "\\x1b[31mred" in str(complaint(PROBE_DEVICE="\x1b[31mred\n"))
    assert "\\udcff" in str(complaint(PROBE_DEVICE="\udcff"))


@pytest.mark.parametrize(
    ("name", "value"), [("PROBE_BUDGET", "0s"), ("PROBE_GPUS_EXPECT", "eight"), ("PROBE_STRICT", "?")]
)
def test_mistakes_in_variables(name: str, value: str) -> None:
    """The variable is named, and its value shown."""
    error = complaint(env={name: value})
    assert name == error.where
    assert error.message.endswith(f" is '{value}'")


def test_mistakes_in_flags() -> None:
    """The flag is named, an unknown one with the nearest, and an empty one is a mistake."""
    assert str(complaint(flags={"gpus_expect": "x"})).startswith("--gpus-expect: gpus.expect is 'x' (allowed: ")
    assert complaint(flags={"budget": ""}).where == "--budget"
    assert "did you mean --budget?" in str(complaint(flags={"--bugdet": "9s"}))


# --- --set ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("budget=2s", "budget_s", 2.0),
        ('budget="2s"', "budget_s", 2.0),
        (" budget = 2s ", "budget_s", 2.0),
        ("gpus.expect=4", "gpus_expect", 4),
        (f"gpus.expect={GPU}", "gpus_expect", (GPU,)),
        (f'gpus.expect=["{GPU}"]', "gpus_expect", (GPU,)),
        ("gpus={expect=2}", "gpus_expect", 2),
        ("device=cpu:2", "device", "cpu:2"),
        ("state=/tmp/a=b", "state", "/tmp/a=b"),
        ("strict=true", "strict", True),
        ("exit_codes=k8s", "exit_codes", "k8s"),
    ],
)
def test_set_scalars(text: str, key: str, value: object) -> None:
    """The value is TOML or, failing that, a bare string."""
    assert value == getattr(loaded(text).config, key)


def test_a_threshold_may_be_a_list_of_codes() -> None:
    """Set as TOML sets lists, and shown as --set takes them."""
    result = loaded('checks."device.xid".fatal=[79, 95]', 'checks."device.xid".ignore=[]')
    assert {"fatal": (79, 95), "ignore": ()} == result.config.check("device.xid").thresholds
    shown_rows = [row for row in describe(result) if "xid" in row[0]]
    assert [
        ('checks."device.xid".fatal', "[79, 95]", "--set"),
        ('checks."device.xid".ignore', "[]", "--set"),
    ] == shown_rows


def test_set_of_checks() -> None:
    """Keys are TOML keys, dotted and quoted; several add up, the last of the same wins."""
    result = loaded(
        'checks."nvml.ecc".timeout=2s', "checks.nvml.ecc.max_errors=5", 'checks."nvml.ecc".timeout=3s', "budget=1s"
    )
    assert CheckSettings(timeout_s=3.0, thresholds={"max_errors": 5}) == result.config.check("nvml.ecc")
    assert result.origins["checks.nvml.ecc.timeout"] == "--set"
    assert result.origins["budget"] == "--set"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=",
        "budget",
        "budget=",
        "=2s",
        "budget = ",
        "[budget]=1",
        "budget=2s\nstrict=true",
        "budget=2s\rstrict=true",
        "a.=1",
        '"a=1',
        "bugdet=1s",
        "checks=1",
        "checks.nvml.ecc=1",
        "gpus.expect=[GPU-a]",
        "budget=true",
        "x=" + "[" * 5000,
        "=" * 5000,
        "budget=" + "9" * 9000,
        'checks."nvml=ecc".timeout=1s',
    ],
)
def test_mistakes_in_set(text: str) -> None:
    """--set is named, and what was wrong with it said."""
    assert complaint(text).where == "--set"


# --- files ----------------------------------------------------------------------------------------------------------


def test_which_file_is_read(tmp_path: Path, etc: Path, write: Write) -> None:
    """--config, else PROBE_CONFIG, else /etc, else $XDG_CONFIG_HOME, else ~/.config; one only, never two."""
    home = tmp_path / "home/.config/probe/config.toml"
    xdg = tmp_path / "xdg/probe/config.toml"
    for path in (home, xdg):
        path.parent.mkdir(parents=True, mode=0o755)
    env = {"HOME": str(tmp_path / "home")}
    assert loaded(env=env).path is None
    home.write_text('busy = "test"')
    assert str(home) == loaded(env=env).path
    env["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
    assert loaded(env=env).path is None
    xdg.write_text("")
    assert str(xdg) == loaded(env=env).path
    etc.write_text("")
    assert str(etc) == loaded(env=env).path
    named = tmp_path / "named.toml"
    named.write_text("strict = true")
    env["PROBE_CONFIG"] = str(named)
    assert str(named) == loaded(env=env).path
    assert loaded(env=env).warnings == ()
    on_the_line = write("")
    assert on_the_line == loaded(path=on_the_line, env=env).path


def test_nothing_comes_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by a name nor through a relative XDG_CONFIG_HOME or HOME."""
    for path in ("config.toml", "probe.toml", "probe/config.toml", ".config/probe/config.toml"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("strict = true")
    monkeypatch.chdir(tmp_path)
    assert loaded(XDG_CONFIG_HOME=".", HOME=".").path is None


@pytest.mark.parametrize("by", ["--config", "PROBE_CONFIG"])
def test_a_named_file_that_is_missing(tmp_path: Path, by: str) -> None:
    """It is an error that names the file and who named it."""
    path = str(tmp_path / "none.toml")
    error = complaint(path=path) if by == "--config" else complaint(PROBE_CONFIG=path)
    assert str(error) == f"{path}: cannot be read (named by {by}): No such file or directory"


def test_a_usual_file_that_cannot_be_read(etc: Path) -> None:
    """It is there, so it was meant: a broken link is an error, not an absence."""
    etc.symlink_to("gone.toml")
    assert "No such file" in str(complaint())


@pytest.mark.parametrize(
    ("make", "kind"),
    [(os.mkfifo, "a FIFO"), (os.mkdir, "a folder"), (lambda path: path.symlink_to("/dev/zero"), "a device")],
)
def test_only_regular_files_are_read(tmp_path: Path, make: Callable[[Path], None], kind: str) -> None:
    """A FIFO does not block, and /dev/zero is not read to its end."""
    path = tmp_path / "odd"
    make(path)
    assert f"is {kind}" in str(complaint(path=str(path)))


def test_a_file_of_over_a_mebibyte_is_refused(write: Write) -> None:
    """The limit is on bytes, and a file of just that size is read."""
    assert loaded(path=write(b"#" * (1 << 20))).config == Config()
    assert "is over 1048576 bytes" in str(complaint(path=write(b"#" * ((1 << 20) + 1))))


def test_bytes_that_are_not_utf8(write: Write) -> None:
    """The line is named."""
    assert "byte 0xff in line 2 is not UTF-8" in str(complaint(path=write(b'budget = "2s"\n# \xff')))


def test_a_byte_order_mark_and_dos_line_ends_are_read(write: Write) -> None:
    """Editors on Windows write both."""
    assert loaded(path=write(b'\xef\xbb\xbfbudget = "2s"\r\nstrict = true\r\n')).config.budget_s == 2.0


def test_paths_with_odd_characters_are_escaped() -> None:
    """A path that no file can have is a mistake like any other."""
    assert complaint(path="/nowhere/\x1b[31m").where == "/nowhere/\\x1b[31m"
    assert complaint(path="/nowhere/\0").where == "/nowhere/\\x00"
    assert complaint(path="").message.startswith("cannot be read (named by --config)")


# --- who can write the file -----------------------------------------------------------------------------------------


def of(mode: int, uid: int = 0) -> os.stat_result:
    return os.stat_result((mode, 1, 1, 1, uid, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("info", "why"),
    [
        (of(0o100644), None),
        (of(0o100600), None),
        (of(0o040755), None),
        (of(0o100664), "has mode 0664: others can write it"),
        (of(0o100646), "has mode 0646: others can write it"),
        (of(0o041777), "has mode 1777: others can write it"),
        (of(0o100644, 1000), "belongs to uid 1000"),
    ],
)
def test_what_root_does_not_trust(info: os.stat_result, why: str | None) -> None:
    """Write bits of group or others, sticky or not, and any owner but root."""
    found = unsafe(info)
    assert why == (found.why if found else None)


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root to probe; tests that need root's files too are left out elsewhere."""
    if os.geteuid() != 0:
        pytest.skip("files of root's need root")


@pytest.mark.usefixtures("as_root")
def test_root_refuses_what_others_can_write(tmp_path: Path) -> None:
    """File, folder and the folder behind a link, each named with its mode; nobody else is that strict."""
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    path = folder / "config.toml"
    path.write_text("")
    path.chmod(0o644)
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    assert loaded(path=str(path)).path
    path.chmod(0o666)
    assert f"{path}: has mode 0666: others can write it" in str(complaint(path=str(path)))
    path.chmod(0o644)
    for mode in (0o777, 0o1777, 0o775):
        folder.chmod(mode)
        for name in (path, link):
            assert f"its folder '{folder}' has mode {mode:04o}" in str(complaint(path=str(name)))
    folder.chmod(0o755)
    os.chown(path, 12345, 0)
    assert "belongs to uid 12345" in str(complaint(path=str(path)))


@pytest.mark.usefixtures("as_root")
def test_a_read_only_volume_is_trusted_with_any_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kubelet mounts a ConfigMap's folder with mode 0777, read-only: nobody in the pod can write it."""
    folder = tmp_path / "volume"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "config.toml").write_text("strict = true")
    (folder / "config.toml").chmod(0o644)
    path = str(folder / "config.toml")
    assert "has mode 0777" in str(complaint(path=path))
    real = os.statvfs(folder)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((*real[:8], os.ST_RDONLY, real[9])))
    assert loaded(path=path).config.strict


def test_others_may_read_files_of_any_mode(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for root is it a way up."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    path = write("strict = true")
    Path(path).chmod(0o666)
    assert loaded(path=path).config.strict


# --- check_file, describe -------------------------------------------------------------------------------------------


def test_check_file(write: Write) -> None:
    """Says of a file what a run would."""
    check_file(write(ALL_SCALARS + OF_ECC.format('"nvml.ecc"')), CHECKS)
    path = write("bugdet = 1")
    with pytest.raises(UsageError, match="did you mean budget"):
        check_file(path, CHECKS)
    with pytest.raises(UsageError, match="cannot be read"):
        check_file(path + ".none", CHECKS)


def test_describe_shows_every_scalar_and_what_was_set_of_checks(write: Write) -> None:
    """Sorted by key, each as --set takes it, with its origin."""
    path = write('[checks."device.shm"]\nmin_free_bytes = 5\n[checks."nvml.ecc"]\ntimeout = "250ms"\nenabled = false')
    rows = describe(loaded(f"gpus.expect={GPU}", path=path, PROBE_PROFILE="node", ENABLE_REACH_CHECK="auto"))
    assert rows == [
        ("budget", '"60s"', "default"),
        ("busy", '"passive"', "default"),
        ('checks."device.shm".min_free_bytes', "5", path),
        ('checks."nvml.ecc".enabled', "false", path),
        ('checks."nvml.ecc".timeout', '"250ms"', path),
        ('checks."nvml.reach".enabled', '"auto"', "ENABLE_REACH_CHECK"),
        ("device", '"auto"', "default"),
        ("exit_codes", '"shell"', "default"),
        ("gpus.expect", f'["{GPU}"]', "--set"),
        ("log", '"auto"', "default"),
        ("profile", '"node"', "PROBE_PROFILE"),
        ("python", '"auto"', "default"),
        ("state", '"auto"', "default"),
        ("strict", "false", "default"),
        ("torch_every", '"off"', "default"),
    ]


# --- targets that a file declares ------------------------------------------------------------------------------------


def _http_complaint(values: Mapping[str, Any]) -> str:
    return "HEAD has no body" if values["method"] == "HEAD" and values["contains"] else ""


TARGETS: Mapping[str, Check] = {
    "service.http": Check(
        "service.http",
        run,
        "?",
        Severity.CRITICAL,
        frozenset(Profile),
        thresholds={"max_bytes": Threshold(1 << 20, "a test")},
        options={
            "url": option(words, "a URL", "asked", required=True),
            "method": option(one_of("GET", "HEAD"), "GET or HEAD", "how", "GET"),
            "contains": option(words, "text", "in the body", ""),
            "headers": option(table(text), "a table of text", "sent", {}, secret=True),
        },
        complaint=_http_complaint,
    ),
    "service.tcp": Check(
        "service.tcp",
        run,
        "?",
        Severity.CRITICAL,
        frozenset(Profile),
        options={"port": option(port, "a port", "where", required=True)},
    ),
}


def targeted(*sets: str, path: str | None = None, env: Words | None = None) -> Loaded:
    return load({}, env or {}, CHECKS, sets, path, TARGETS)


def target_complaint(*sets: str, path: str | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        targeted(*sets, path=path)
    assert str(caught.value).isprintable()
    if path is not None:
        with pytest.raises(UsageError) as checked:
            check_file(path, CHECKS, TARGETS)
        assert str(caught.value) == str(checked.value)
    return str(caught.value)


API = '[[http]]\nname = "api"\nurl = "http://h/"\n'


def test_an_entry_declares_a_check(write: Write) -> None:
    """By kind and name, with its options, thresholds and what every check has; all else as the kind has it."""
    path = write(API + 'timeout = "2s"\nseverity = "advisory"\nmax_bytes = 5\n[[tcp]]\nname = "db-1"\nport = 5432')
    result = targeted(path=path)
    assert list(result.checks) == [*CHECKS, "service.http.api", "service.tcp.db-1"]
    assert list(TARGETS) == ["service.http", "service.tcp"]
    api = result.config.check("service.http.api")
    assert api == CheckSettings(
        severity=Severity.ADVISORY, timeout_s=2.0, thresholds={"max_bytes": 5}, options={"url": "http://h/"}
    )
    assert result.config.check("service.tcp.db-1").options == {"port": 5432}
    assert result.checks["service.http.api"].run is run
    assert result.origins["checks.service.http.api.url"] == path


def test_no_target_is_left_for_the_next_load(write: Write) -> None:
    """A load adds nothing to what it was given."""
    targeted(path=write(API))
    assert "service.http.api" not in CHECKS
    assert "service.http.api" not in targeted().checks


def test_a_target_has_the_switch_of_its_name(write: Write) -> None:
    """ENABLE_API_CHECK, as for any check; a dash becomes an underscore."""
    path = write(API + '[[tcp]]\nname = "db-1"\nport = 1')
    env = {"ENABLE_API_CHECK": "false", "ENABLE_DB_1_CHECK": "true"}
    config_ = targeted(path=path, env=env).config
    assert config_.check("service.http.api").enabled is False
    assert config_.check("service.tcp.db-1").enabled is True


@pytest.mark.parametrize("table_", ['[checks."service.http.api"]', "[checks.service.http.api]"])
def test_a_declared_target_is_a_check_to_all_other_settings(write: Write, table_: str) -> None:
    """[checks."service.http.api"], before or after [[http]] in the file, and --set."""
    more = f'{table_}\ntimeout = "3s"\nmethod = "HEAD"\n'
    for content in (API + more, more + API):
        path = write(content)
        api = targeted('checks."service.http.api".severity=advisory', path=path).config.check("service.http.api")
        assert (api.timeout_s, api.options["method"], api.severity) == (3.0, "HEAD", Severity.ADVISORY)


def test_set_declares_targets_and_sets_declared_ones_anew(write: Write) -> None:
    """The last --set of a key wins, over the file; what it does not name stays."""
    path = write(API + 'method = "HEAD"')
    again = 'http=[{name="api", url="http://other/"}]'
    api = targeted('http=[{name="api", url="http://x/"}]', again, path=path).config.check("service.http.api")
    assert api.options == {"url": "http://other/", "method": "HEAD"}
    result = targeted('http=[{name="a", url="http://a/"}, {name="b", url="http://b/"}]', 'tcp=[{name="c", port=1}]')
    assert list(result.checks)[-3:] == ["service.http.a", "service.http.b", "service.tcp.c"]
    assert result.origins["checks.service.http.a.url"] == "--set"


def test_an_empty_list_declares_nothing(write: Write) -> None:
    assert targeted("http=[]").checks.keys() == CHECKS.keys()


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('[[http]]\nurl = "http://h/"', "an entry of [[http]] has no name"),
        ("[[http]]\nname = 1", "an entry of [[http]] has the name 1"),
        ('[[http]]\nname = ""', "an entry of [[http]] has the name ''"),
        ('[[http]]\nname = "API"', "an entry of [[http]] has the name 'API'"),
        ('[[http]]\nname = "a.b"', "an entry of [[http]] has the name 'a.b'"),
        ('[[http]]\nname = "-a"', "an entry of [[http]] has the name '-a'"),
        (f'[[http]]\nname = "{"a" * 33}"', "an entry of [[http]] has the name 'aaaa"),
        (API + API, "[[http]] api is declared twice"),
        (
            API + '[[tcp]]\nname = "api"\nport = 1',
            "[[tcp]] api and service.http.api would have one switch, ENABLE_API_CHECK",
        ),
        (
            API.replace("api", "my-api") + API.replace("api", "my_api"),
            "[[http]] my_api and service.http.my-api would have one switch, ENABLE_MY_API_CHECK",
        ),
        (API.replace("api", "ecc"), "[[http]] ecc and nvml.ecc would have one switch, ENABLE_ECC_CHECK"),
        (API.replace("api", "jupyter"), "[[http]] jupyter and service.jupyter would have one switch"),
        ('[[http]]\nname = "api"', "service.http.api has no url (allowed: a URL)"),
        ('[[http]]\nname = "api"\nenabled = false', "service.http.api has no url"),
        (API + 'ulr = "x"', "no setting of checks.\"service.http.api\" is called 'ulr' (did you mean url?)"),
        (API + "url_ = 1", "no setting of checks.\"service.http.api\" is called 'url_'"),
        (API + 'method = "PUT"', "checks.\"service.http.api\".method is 'PUT' (allowed: GET or HEAD)"),
        (API + 'method = "HEAD"\ncontains = "x"', "service.http.api: HEAD has no body"),
        (API + '[checks."service.http.api"]\nurl = "x"', 'checks."service.http.api".url is set twice'),
        ('[checks."service.http.api"]\ntimeout = "1s"', "no check is called 'service.http.api'"),
        ('[http]\nname = "api"', "http is one table (allowed: at most 64 tables [[http]])"),
        ("http = 1", "http is no list of tables"),
        ("http = [1]", "http is no list of tables"),
        (API * 65, "http is a list of 65"),
        ("[[htp]]\nx = 1", "no key is called 'htp' (did you mean http?)"),
        ("[[tcp]]\nname = 'x'\nport = 70000", 'checks."service.tcp.x".port is 70000 (allowed: a port)'),
    ],
)
def test_mistakes_in_targets(write: Write, toml: str, message: str) -> None:
    """Each is one line that names the file, the entry and what is allowed; `probe config --check` says the same."""
    path = write(toml)
    assert target_complaint(path=path).startswith(f"{path}: {message}")


def test_what_is_wrong_together_may_come_from_two_places(write: Write) -> None:
    """A complaint about options taken together is made of what is in force."""
    path = write(API + 'contains = "x"')
    with pytest.raises(UsageError, match=r"service\.http\.api: HEAD has no body"):
        targeted('checks."service.http.api".method=HEAD', path=path)


@pytest.mark.parametrize(
    "toml",
    [
        API + 'headers = { X = "planted" }\nmethod = "PUT"',
        API + 'headers = { X = "planted", Y = 1 }',
        API + 'headers = "planted"',
        '[http]\nname = "api"\nheaders = { X = "planted" }',
        'http = ["planted"]',
        'http = "planted"',
        '[[tcp]]\nname = "x"\nport = "http://u:planted@h/"',
        '[[tcp]]\nname = "x"\nport = "http://u:' + "planted" * 20 + '@h/"',
        '[[tcp]]\nname = "http://u:' + "planted" * 20 + '@h/"',
    ],
)
def test_no_complaint_shows_a_secret(write: Write, toml: str) -> None:
    """Not a header's value, not the password of a URL, wherever it was written by mistake."""
    assert "planted" not in target_complaint(path=write(toml))


def test_describe_hides_the_secrets_of_targets(write: Write) -> None:
    """Secret options whole, and of URLs the user."""
    path = write(
        '[[http]]\nname = "api"\nurl = "http://u:planted@h/x?token=planted"\nheaders = { X = "planted" }\nmax_bytes = 5'
    )
    rows = {key: value for key, value, origin in describe(targeted(path=path)) if origin == path}
    assert rows == {
        'checks."service.http.api".headers': '"***"',
        'checks."service.http.api".max_bytes': "5",
        'checks."service.http.api".url': '"http://***@h/x?token=***"',
    }


def test_what_describe_shows_can_be_set(write: Write) -> None:
    """Its rows, given to --set or put into a file, make the same settings again."""
    first = loaded('checks."nvml.ecc".max_rate_hz=0.25', r'state="/a\\b \" \u0007é"', path=write(ALL_SCALARS))
    rows = [f"{key} = {value}" for key, value, _ in describe(first)]
    assert first.config == loaded(*rows).config
    assert first.config == loaded(path=write("\n".join(rows))).config


# --- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("9s", 9.0),
        ("250ms", 0.25),
        ("1.5ms", 0.0015),
        ("2m", 120.0),
        ("1.5m", 90.0),
        ("1h", 3600.0),
        ("24h", 86400.0),
        ("1ms", 0.001),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """Units are ms, s, m and h; fractions are allowed."""
    assert seconds == parse_duration(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "9",
        "-1s",
        "+1s",
        "0s",
        "0.9ms",
        "1.s",
        ".5s",
        "1..5s",
        "24.01h",
        "1d",
        "1S",
        "1_0s",
        "٣s",
        "1s1s",
        " 1s",
    ],
)
def test_no_durations(text: str) -> None:
    """Nothing but digits, one point and a unit; from 1 ms to a day."""
    with pytest.raises(ValueError, match=r"^"):
        parse_duration(text)


@given(st.integers(1, 86_400_000))
def test_durations_survive_being_written(milliseconds: int) -> None:
    """What format_duration writes, parse_duration reads as the same number."""
    seconds = milliseconds / 1000
    assert seconds == parse_duration(format_duration(seconds))


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("", 0),
        ("a = 1", 0),
        ("[a.b.c]", 2),
        ("a.b.c.d = 1", 3),
        ("[[a]]", 2),
        ("a = [[1, 2], [3]]", 2),
        ("a = {b = {c = 1}}", 2),
        ("a = [1.5, 1.5, 1.5, 1.5]", 1),
        ('a = "[[[[" # [[[[', 0),
        ("a = '[[[['", 0),
        ('a = "\\"[[[["', 0),
        ("a = '\\'\nb = [[1]]", 2),
        ('a = """[\n"[[ ""\n[[["""\nb = [1]', 1),
        ("a = '''[[\n[[''' \n", 0),
        ('a = ["""x"""", [[1]]]', 3),
        ('a = ["""x""""", [[1]]]', 3),
        ("# '\n[a]", 1),
        ('a = "unfinished [\nb = [[1]]', 2),
        ('"[[[.[[[".b = 1', 1),
        ("a = '''[", 0),
        ('a = "\\', 0),
    ],
)
def test_nesting(text: str, depth: int) -> None:
    """Brackets open at once or dots in a row; what strings and comments hold is none."""
    assert depth == nesting(text)


def test_settings_of_32_levels_are_parsed(write: Write) -> None:
    """The limit itself is allowed by the parser; the key is unknown all the same."""
    assert parse_toml("x = " + "[" * 32 + "]" * 32, "here")
    assert parse_toml("x = " + "[[1.5, 2.5], [1.5, 2.5]]", "here")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (1, "1"),
        ("a", "'a'"),
        ("\n", "'\\n'"),
        ("x" * 99, "'" + "x" * 56 + "..."),
    ],
)
def test_values_as_complaints_show_them(value: object, text: str) -> None:
    """One short printable line, whatever it is."""
    assert text == shown(value)


def test_a_number_that_python_does_not_print() -> None:
    """Numbers of over 4300 digits have no repr, and are said by their kind."""
    assert shown(10**5000) == "a huge int"
    assert shown({"x": [10**5000]}) == "a huge dict"


def test_errors_have_their_parts() -> None:
    """Message, where and allowed are readable apart, and make one line together."""
    error = UsageError("a\nb", "file\x07", "x, y")
    assert (error.message, error.where, error.allowed) == ("a\\nb", "file\\x07", "x, y")
    assert str(error) == "file\\x07: a\\nb (allowed: x, y)"
    assert str(UsageError("only this")) == "only this"


def test_nothing_heavy_is_imported_without_a_file() -> None:
    """A liveness check pays for neither the TOML parser nor the speller."""
    program = (
        "import sys; import probe.config as c; c.ETC = '/nowhere'; "
        "c.load({'budget': '3s'}, {'PROBE_PORT': 'x', 'HOME': '/nowhere'}, {}); "
        "print(*{'tomllib', 'difflib', 'dataclasses', 'pathlib', 'json', 'logging'} & set(sys.modules))"
    )
    here = str(Path(config.__file__).parents[1])
    ran = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={"PYTHONPATH": os.pathsep.join([here, *sys.path[1:]])},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert ran.stdout.strip() == ""


# --- anything at all ------------------------------------------------------------------------------------------------

WORDS = (
    *(setting.key for setting in config.SETTINGS),
    *CHECKS,
    *('"' + check_id + '"' for check_id in CHECKS),
    *("checks", "gpus", "expect", "enabled", "severity", "timeout", "max_errors", "min_free_bytes", "auto", "true"),
    *("=", " = ", ".", "\n", "[", "]", "[[", "]]", "{", "}", '"', "'", '"""', "'''", "#", ",", "\\", "\r\n", "\0", "é"),
    *('"9s"', "9s", "9", "-1", "1.5", "nan", "inf", "1e999", "0x" + "f" * 5000, "1979-05-27T07:32:00Z", "07:32:00"),
    *("[" * 40, "a." * 40, "/", "/x", GPU, "cpu:4", "critical", "\x1b", "\ud800", "\ufeff"),
)
tomlish = st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=14).map("".join)
lines = st.lists(
    st.tuples(st.sampled_from(WORDS), st.sampled_from((" = ", "=", ".")), tomlish).map("".join), max_size=6
).map("\n".join)
environments = st.dictionaries(
    st.sampled_from([*VARIABLES, "ENABLE_ECC_CHECK", "ENABLE_SHM_CHECK", "XDG_CONFIG_HOME", "HOME", "PROBE_X"])
    | st.text(),
    tomlish,
    max_size=6,
)
anything = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check_usage_error(call: Callable[[], Loaded], where: str = "") -> None:
    """Fail on any exception but a usage error in one printable line that begins with `where`."""
    caught = None
    try:
        result = call()
        assert describe(result)
        assert len(result.warnings) <= 2
        assert all(line.isprintable() for line in result.warnings)
    except UsageError as error:
        caught = error
    if caught:
        assert str(caught).isprintable()
        assert str(caught).startswith(where)


@anything
@given(content=st.binary() | (tomlish | lines).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_file_raises_anything_else(write: Write, content: bytes) -> None:
    """Whatever a file holds, it is settings or a usage error that names the file."""
    path = write(content)
    check_usage_error(lambda: loaded(path=path), path)


@anything
@given(environments)
def test_no_environment_raises_anything_else(env: dict[str, str]) -> None:
    """Whatever the environment holds."""
    check_usage_error(lambda: loaded(env=env))


@anything
@given(st.lists(tomlish | lines, max_size=3), st.dictionaries(st.sampled_from([*VARIABLES, "x"]) | st.text(), tomlish))
def test_no_command_line_raises_anything_else(sets: list[str], flags: dict[str, str]) -> None:
    """Whatever --set and flags hold."""
    check_usage_error(lambda: loaded(*sets))
    check_usage_error(lambda: loaded(flags={name.removeprefix("PROBE_"): text for name, text in flags.items()}))


@anything
@given(st.text())
def test_no_path_raises_anything_else(path: str) -> None:
    """Whatever is named as a file."""
    check_usage_error(lambda: loaded(PROBE_CONFIG="/nowhere/" + path))
