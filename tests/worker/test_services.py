"""What files say about services, in a machine that is a folder."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from probe.worker import services
from probe.worker.services import QUESTIONS, RUNTIME_FOLDER

GONE = 4194304 + 1
"""More than any pid can be."""


def write(path: Path, content: str = "", mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)
    return path


def ask(kind: str, path: object) -> dict[str, Any]:
    return QUESTIONS[kind](str(path))


# ------------------------------------------------------------------------------------------------------------- told


def machine(root: Path, pid1: str = "sleep infinity", *names: str) -> Path:
    """A machine whose first process has that command, and that has processes of those names."""
    write(root / "proc/1/cmdline", pid1.replace(" ", "\0"))
    for number, name in enumerate(("init", *names), 1):
        write(root / f"proc/{number}/stat", f"{number} ({name}) S 0 1 1 0\n")
    return root


def commands(root: Path) -> dict[str, str]:
    return dict(ask("told", root)["commands"])


def test_pid_1_is_told_by_its_command(tmp_path: Path) -> None:
    assert {"pid 1's command": "tini -- jupyter lab"} == commands(machine(tmp_path, "tini -- jupyter lab"))


def test_a_supervisors_file_counts_where_that_supervisor_runs(tmp_path: Path) -> None:
    """Debian's openssh-server brings a service for runit, which nearly no container has."""
    write(tmp_path / "etc/runit/runsvdir/default/ssh/run", "#!/bin/sh\n# as a service\nexec /usr/sbin/sshd -D\n")
    write(tmp_path / "etc/sv/other/run", "exec other")
    write(tmp_path / "etc/systemd/system/multi-user.target.wants/ssh.service")
    assert ["pid 1's command"] == list(commands(machine(tmp_path)))
    found = commands(machine(tmp_path, "runsvdir /etc/service", "runsvdir"))
    assert "exec /usr/sbin/sshd -D" == found["/etc/runit/runsvdir/default/ssh/run"]
    assert 2 == len(found)
    write(tmp_path / "etc/runit/runsvdir/default/ssh/down")
    assert 1 == len(commands(tmp_path))
    found = commands(machine(tmp_path, "/sbin/init", "systemd"))
    assert "systemctl start ssh.service" == found["/etc/systemd/system/multi-user.target.wants/ssh.service"]


SUPERVISED = """
[supervisord]
nodaemon = true
[program:notebook]
command = jupyter lab --port %(ENV_PORT)s ; where the platform says
[program:later]
command = sshd -D
autostart = false
"""


def test_supervisord_is_told_by_the_programs_that_start_by_themselves(tmp_path: Path) -> None:
    conf = write(tmp_path / "etc/supervisor/conf.d/all.conf", SUPERVISED)
    write(tmp_path / "etc/supervisord.conf", "no section\n")
    found = commands(machine(tmp_path, "python supervisord -n"))
    assert "jupyter lab --port %(ENV_PORT)s" == found["/etc/supervisor/conf.d/all.conf"]
    assert "sshd -D" not in found.values()
    conf.rename(tmp_path / "own.conf")
    assert "/own.conf" in commands(machine(tmp_path, "supervisord -c /own.conf"))


def test_s6_is_told_by_its_bundle(tmp_path: Path) -> None:
    rc = tmp_path / "etc/s6-overlay/s6-rc.d"
    write(rc / "sshd/run", "#!/bin/sh\nexec sshd -D")
    write(rc / "unused/run", "#!/bin/sh\nexec jupyter lab")
    write(rc / "user/contents.d/sshd")
    write(tmp_path / "etc/services.d/nb/run", "exec jupyter notebook")
    found = commands(machine(tmp_path, "/package/admin/s6/command/s6-svscan -d4"))
    assert {"pid 1's command", "/etc/s6-overlay/s6-rc.d/sshd/run", "/etc/services.d/nb/run"} == set(found)


# -------------------------------------------------------------------------------------------------------------- ssh


def test_sshd_is_read_as_it_reads_itself(tmp_path: Path) -> None:
    write(tmp_path / "sshd_config.d/10.conf", 'Port=2201\n"quoted"\n')
    write(tmp_path / "key.pub", "ssh-ed25519 AAAA root@h\nmore\n")
    config = write(
        tmp_path / "sshd_config",
        f"# Port 1\n  port 2202 # second\nInclude sshd_config.d/*.conf\nHostKey {tmp_path}/key\n"
        f"PidFile {tmp_path}/sshd.pid\nListenAddress [::1]:2203\nListenAddress 127.0.0.1\nListenAddress ::\n"
        "Match User x\nPort 3\n",
    )
    with subprocess.Popen(["sh", "-c", "read x; : sshd"], stdin=subprocess.PIPE) as sshd:
        write(tmp_path / "sshd.pid", f"{sshd.pid}\n")
        found = ask("sshd", config)
    assert [2203, 2202, 2201] == found["ports"]
    assert ["ssh-ed25519 AAAA root@h"] == found["host_keys"]
    (pid,) = found["pids"]
    assert (sshd.pid, True) == (pid["pid"], pid["alive"])


def test_no_configuration_is_one_of_defaults(tmp_path: Path) -> None:
    assert [] == ask("sshd", tmp_path / "nothing")["ports"]
    config = write(tmp_path / "sshd_config", "PidFile none\nInclude sshd_config\nPort 99999999\n")
    assert ([], []) == (ask("sshd", config)["pids"], ask("sshd", config)["ports"])


@pytest.mark.parametrize("content", ["", "x", "-1", "99999999999", str(GONE)])
def test_a_pid_file_of_nobody_is_of_no_process_that_lives(tmp_path: Path, content: str) -> None:
    write(tmp_path / "pid", content)
    config = write(tmp_path / "sshd_config", f"PidFile {tmp_path}/pid\n")
    assert [] == [pid for pid in ask("sshd", config)["pids"] if pid["alive"]]


# ---------------------------------------------------------------------------------------------------------- Jupyter


def runtime(folder: Path, pid: int, **more: object) -> Path:
    info = {"pid": pid, "port": 8888, "base_url": "/", "secure": False, "token": "t", **more}
    return write(folder / f"jpserver-{pid}.json", json.dumps(info))


def test_a_server_lives_while_its_process_does(tmp_path: Path) -> None:
    runtime(tmp_path, os.getpid())
    runtime(tmp_path, GONE)
    write(tmp_path / "kernel-1.json", "{}")
    write(tmp_path / "jpserver-1-open.html")
    found = {server["pid"]: server["alive"] for server in ask("jupyter", tmp_path)["servers"]}
    assert {os.getpid(): True, GONE: False} == found


def test_a_pid_that_is_another_process_by_now_is_no_server(tmp_path: Path) -> None:
    """It is younger than that file, and is called something else."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        os.utime(runtime(tmp_path, other.pid), (1, 1))
        (server,) = ask("jupyter", tmp_path)["servers"]
    assert (False, False) == (server["alive"], server["of_this_life"])


def test_a_clock_that_was_set_forward_ends_no_server(tmp_path: Path) -> None:
    with subprocess.Popen(["sh", "-c", "read x; : jupyter"], stdin=subprocess.PIPE) as other:
        os.utime(runtime(tmp_path, other.pid), (1, 1))
        (server,) = ask("jupyter", tmp_path)["servers"]
    assert server["alive"]


def test_a_process_of_another_name_is_no_server_however_old_it_is(tmp_path: Path) -> None:
    """In a home that containers share, the pid in another one's file is somebody else's here."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        path = runtime(tmp_path, other.pid)
        (server,) = ask("jupyter", tmp_path)["servers"]
        assert not server["alive"]
        path.unlink()
    with subprocess.Popen(["sh", "-c", "read x; : python"], stdin=subprocess.PIPE) as other:
        path = runtime(tmp_path, other.pid)
        own, strange = (list(services._server(str(path), own=own, strict=False)) for own in (True, False))
    assert (True, False) == (own[0]["alive"], strange[0]["alive"])


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's file is needed")
def test_a_file_in_a_home_speaks_for_its_owners_processes_alone(tmp_path: Path) -> None:
    """Whoever has a home can forge one that names root's process, or root's socket, and a port of their own."""
    forged = runtime(tmp_path / "eve" / RUNTIME_FOLDER, os.getpid())
    os.chown(forged, 65534, 65534)
    assert [] == ask("homes", tmp_path)["servers"]
    os.chown(forged, 0, 0)
    assert [os.getpid()] == [server["pid"] for server in ask("homes", tmp_path)["servers"]]
    of_root = write(tmp_path / "docker.sock")
    with subprocess.Popen(["sh", "-c", "read x; : jupyter"], stdin=subprocess.PIPE, user=65534) as own:
        forged.unlink()
        os.chown(runtime(forged.parent, own.pid, sock=str(of_root)), 65534, 65534)
        assert [] == ask("homes", tmp_path)["servers"]
        os.chown(of_root, 65534, 65534)
        assert [own.pid] == [server["pid"] for server in ask("homes", tmp_path)["servers"]]


def test_the_older_kind_of_runtime_file_is_known_too(tmp_path: Path) -> None:
    runtime(tmp_path, os.getpid()).rename(tmp_path / "nbserver-5.json")
    assert [os.getpid()] == [server["pid"] for server in ask("jupyter", tmp_path)["servers"]]


def test_every_home_that_can_be_read_is_looked_into(tmp_path: Path) -> None:
    runtime(tmp_path / "ann" / RUNTIME_FOLDER, os.getpid())
    write(tmp_path / "bob")
    (tmp_path / "cyn").mkdir()
    assert [os.getpid()] == [server["pid"] for server in ask("homes", tmp_path)["servers"]]


# ------------------------------------------------------------------------------------------------------------ which


def test_a_program_is_installed_where_it_can_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a/jupyter", mode=0o644)
    (tmp_path / "b/jupyter").mkdir(parents=True)
    good = write(tmp_path / "c/jupyter-lab", mode=0o755)
    monkeypatch.setenv("PATH", f".::{tmp_path}/a:{tmp_path}/b:{tmp_path}/c")
    assert str(good) == ask("which", "jupyter")["path"]
    monkeypatch.setenv("PATH", "")
    assert "" == ask("which", "jupyter")["path"]
