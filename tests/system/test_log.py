"""The log and ``--output`` as the whole command leaves them: after the verdict, and never in its way."""

import json
import os
from pathlib import Path

import pytest

from tests.fakes.scenario import Scenario
from tests.system.command import Command
from tests.system.test_hangs import BUDGET, ended_in_time, hung_mount
from tests.system.test_user import as_nobody

NO_TORCH = ("--skip", "torch")


def lines(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_line_a_run(probe: Command, tmp_path: Path) -> None:
    """Each with the verdict of its run, also of one that liveness made; stderr stays silent."""
    log = tmp_path / "health.log"
    ran = [probe.check(*NO_TORCH, "--log", str(log)), probe.check("--profile", "liveness", "--log", str(log))]
    assert [(said["verdict"], said["profile"], said["at"]) for said in lines(log)] == [
        (run.report["verdict"], run.report["profile"], run.report["started_at"]) for run in ran
    ]
    assert [run.err for run in ran] == ["", ""]


def test_off_means_no_file_and_no_word(probe: Command, tmp_path: Path) -> None:
    ran = probe.check("--only", "device.stuck", "--log", "off", env={"HOME": str(tmp_path), "XDG_STATE_HOME": None})
    assert (ran.code, ran.err, list(tmp_path.glob("**/health.log*"))) == (0, "", [])


@pytest.mark.parametrize("way", ["folder is missing", "fifo", "symlink", "full", "folder"])
def test_a_log_that_cannot_be_written_changes_nothing_but_stderr(way: str, probe: Command, tmp_path: Path) -> None:
    """One line there names the file and the reason; the verdict and its exit code are the same."""
    log = tmp_path / "health.log"
    if way == "folder is missing":
        log = tmp_path / "none" / "health.log"
    elif way == "fifo":
        os.mkfifo(log)
    elif way == "symlink":
        log.symlink_to(tmp_path / "elsewhere")
    elif way == "full":
        log = Path("/dev/full")
    else:
        log.mkdir()
    ran = probe.check("--only", "device.stuck", "--log", str(log))
    assert (ran.code, ran.report["verdict"]) == (0, "healthy")
    assert ran.err.startswith(f"probe: log not written: {log}: ")
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.system
def test_root_logs_to_var_log_and_a_user_to_a_folder_of_theirs(probe: Command, tmp_path: Path) -> None:
    """/var/log/health.log; $XDG_STATE_HOME, else $HOME/.local/state, made if need be; else the state folder."""
    unset: dict[str, str | None] = {"PROBE_LOG": None, "XDG_STATE_HOME": None}
    script = 'mount -t tmpfs none /var/log && "$@" >/dev/null && cat /var/log/health.log'
    argv = probe.check_argv("--only", "device.stuck")
    as_root = probe.run(["unshare", "--mount", "sh", "-c", script, "sh", *argv], env=unset)
    assert json.loads(as_root.out)["verdict"] == "healthy", as_root
    home, state = tmp_path / "home", tmp_path / "users-state"
    for folder in (home, state):
        folder.mkdir(mode=0o700)
        os.chown(folder, 65534, 65534)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    argv = [*argv[:5], str(state), *argv[6:]]
    places: list[tuple[dict[str, str | None], Path | None]] = [
        ({"HOME": str(home)}, home / ".local/state/probe/health.log"),
        ({"XDG_STATE_HOME": str(home / "xdg")}, home / "xdg/probe/health.log"),
        ({"HOME": "/nonexistent"}, None),
        ({"HOME": ""}, state / "health.log"),
    ]
    for number, (extra, log) in enumerate(places):
        ran = probe.run(as_nobody(argv, tmp_path / f"stage-{number}"), env={**unset, **extra}, cwd="/")
        assert ran.code == 0, ran
        assert (ran.err == "") is (log is not None), ran
        if log is not None:
            assert lines(log)[-1]["verdict"] == "healthy"
            assert log.stat().st_mode & 0o007 == 0


@pytest.mark.system
def test_a_log_that_hangs_does_not_hold_the_verdict(probe: Command, tmp_path: Path) -> None:
    """On a dead mount: the report is out, the child that hangs is killed, and stderr says what was not written."""
    folder = tmp_path / "dead"
    folder.mkdir()
    with hung_mount(folder) as entering:
        argv = probe.check_argv("--format", "json", *NO_TORCH, "--log", str(folder / "health.log"))
        ran = probe.run([*entering, *argv])
    assert (ran.code, ran.report["verdict"]) == (0, "healthy")
    assert "log not written" in ran.err
    assert "no answer in time" in ran.err


@pytest.mark.system
@pytest.mark.cc
def test_the_log_is_written_beside_a_device_that_hangs(probe: Command, fakes: Path, tmp_path: Path) -> None:
    """The child that hangs in a device node is the one that writes: it is spared until it has."""
    log = tmp_path / "health.log"
    played = Scenario.load(Path(__file__).parents[1] / "hosts" / "node-open-hangs.toml")
    argv = probe.check_argv("--format", "json", *BUDGET, *NO_TORCH, "--log", str(log))
    ran = probe.on(played, argv, fakes)
    ended_in_time(ran)
    assert (ran.code, ran.codes[0], ran.err) == (1, "DEVICE_OPEN_HANGS", "")
    assert [cause["code"] for cause in lines(log)[0]["causes"]] == ran.codes  # type: ignore[attr-defined]


def test_output_gets_the_format_and_stdout_the_text(probe: Command, tmp_path: Path) -> None:
    """A collector's file appears whole beside what people read; the exit code is the verdict's."""
    file = tmp_path / "report.json"
    ran = probe.text("--only", "device.stuck", "--format", "json", "--output", str(file))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("healthy: ")
    assert json.loads(file.read_text())["verdict"] == "healthy"
    assert list(tmp_path.glob("report*")) == [file]
    missing = probe.text("--only", "device.stuck", "--format", "json", "--output", str(tmp_path / "none" / "x"))
    assert (missing.code, missing.out.startswith("healthy: ")) == (0, True)
    assert missing.err.startswith("probe: output not written: ")
    empty = probe.text("--only", "device.stuck", "--output", "")
    assert (empty.code, empty.out) == (2, "")
    assert "--output" in empty.err
