"""service.ssh against Debian's sshd, and against whatever else may sit on a port: each run connects once.

The real server lives in a box: a network, a /run and an /etc/ssh of its own.
"""

import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.system.command import BOUND_S, LATE_S, Command, Ran, missing
from tests.system.test_user import NEEDED, opened

BUDGET_S = 2.0
ONLY = ("--only", "service.ssh")
SHORT = (*ONLY, "--budget", f"{BUDGET_S:g}s")
BANNER = b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"
SECRET = "correct-horse-battery-staple"


def settings(**options: Any) -> list[str]:
    """As ``--set`` arguments."""
    return [
        word
        for name, value in options.items()
        for word in ("--set", f'checks."service.ssh".{name}={value if isinstance(value, int) else repr(str(value))}')
    ]


# ------------------------------------------------------------------------------------------- whoever else is on a port

Held = list[socket.socket]


@contextmanager
def listener(say: bytes, then: Callable[[socket.socket, Held], None]) -> Iterator[tuple[int, list[bytes]]]:
    """Somebody on a port of loopback; yields it, and the address of each who came."""
    came: list[bytes] = []
    held: Held = []
    with closing(socket.create_server(("127.0.0.1", 0))) as server, ExitStack() as stack:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    one, _ = server.accept()
                    came.append(b"")
                    if say:
                        one.sendall(say)
                    then(one, held)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        stack.callback(thread.join, 5)
        stack.callback(server.shutdown, socket.SHUT_RDWR)
        yield server.getsockname()[1], came
    for one in held:
        one.close()


def hold(one: socket.socket, held: Held) -> None:
    held.append(one)


def close(one: socket.socket, held: Held) -> None:
    """Says that there is no more to come, and hears the other out: a plain close of unread bytes is a reset."""
    one.shutdown(socket.SHUT_WR)
    held.append(one)


def reset(one: socket.socket, held: Held) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


def heard_then_reset(one: socket.socket, held: Held) -> None:
    one.recv(65536)
    reset(one, held)


STRANGERS = [
    ("closes", b"", close, "closed", "without a word"),
    ("resets", b"", reset, "reset", "reset the connection"),
    ("another protocol", b"220 mail.example ESMTP\r\n", hold, "banner", "220 mail.example ESMTP"),
    ("half a line", b"SSH-2.0-Ope", hold, "banner", "SSH-2.0-Ope"),
    ("the old protocol", b"SSH-1.5-1.2.27\n", hold, "banner", "SSH-1.5"),
    ("control characters", b"\x1b[2J\x00\xff\xfe garbage\n", hold, "banner", "garbage"),
    ("a flood", b"x" * 100_000, close, "banner", "xxx"),
    ("a penalty", b"Not allowed at this time\r\n", close, "penalty", "penalises this address"),
    ("too many", b"Exceeded MaxStartups\r\n", close, "full", "too many log in"),
    ("reset in the key exchange", BANNER, heard_then_reset, "kex", "broke off the key exchange"),
    ("garbage in the key exchange", BANNER + b"\xff" * 64, hold, "kex", "no key exchange"),
    ("a notice first", b"keep out\r\n" + BANNER, close, "kex", "broke off the key exchange"),
]


@pytest.mark.parametrize(
    ("say", "then", "reason", "words"), [one[1:] for one in STRANGERS], ids=[o[0] for o in STRANGERS]
)
def test_a_stranger_is_told_from_an_ssh_server_and_asked_once(
    probe: Command, say: bytes, then: Callable[[socket.socket, Held], None], reason: str, words: str
) -> None:
    with listener(say, then) as (port, came):
        ran = probe.check(*ONLY, *settings(host="127.0.0.1", port=port))
    found = ran.outcome("service.ssh")
    assert (1, "fail", reason) == (ran.code, found["status"], found["data"]["reason"]), ran
    assert words in found["summary"]
    assert "\x1b" not in ran.out
    assert 1 == len(came)


@pytest.mark.parametrize(
    ("say", "step"),
    [(b"", "waiting for the first line"), (BANNER, "exchanging keys")],
    ids=["silent", "after-its-line"],
)
def test_a_server_that_accepts_and_then_hangs_is_a_timeout_that_says_where(
    probe: Command, say: bytes, step: str
) -> None:
    with listener(say, hold) as (port, came):
        ran = probe.check(*SHORT, *settings(host="127.0.0.1", port=port))
    assert (1, "SSH_HANGS") == (ran.code, ran.codes[0])
    assert step in ran.outcome("service.ssh")["summary"]
    assert ran.elapsed_s <= BUDGET_S + LATE_S
    assert 1 == len(came)


def test_nobody_on_the_port_is_refused(probe: Command) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    ran = probe.check(*ONLY, *settings(host="127.0.0.1", port=port))
    assert (1, "SSH_DOWN", "refused") == (ran.code, ran.codes[0], ran.outcome("service.ssh")["data"]["reason"])


@pytest.mark.parametrize(
    "options",
    [
        {"user": "root"},
        {"command": "true"},
        {"host": "192.0.2.1", "user": "root", "key_file": "/nowhere"},
    ],
    ids=["no key", "no user", "another host without known_hosts"],
)
def test_settings_that_do_not_fit_together_are_a_usage_error(probe: Command, options: dict[str, str]) -> None:
    assert 2 == probe("check", *settings(**options)).code


# --------------------------------------------------------------------------------------------------------- a real sshd


class Box:
    """A network, a /run and an /etc/ssh of their own, with what it takes to run Debian's sshd in there."""

    def __init__(self, folder: Path, probe: Command) -> None:
        self.folder = folder
        self.etc = folder / "etc-ssh"
        self.log = folder / "sshd.log"
        self.probe = probe
        self.pid = 0
        self.sshd: subprocess.Popen[bytes] | None = None
        self.etc.mkdir()
        self.key("ssh_host_ed25519_key")
        self.config()

    def key(self, name: str) -> Path:
        """A new key pair in /etc/ssh, instead of the one that was there."""
        path = self.etc / name
        for old in (path, path.with_suffix(".pub")):
            old.unlink(missing_ok=True)
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
        subprocess.run(argv, check=True, timeout=30, stdin=subprocess.DEVNULL)
        return path

    def config(self, more: str = "") -> None:
        (self.etc / "sshd_config").write_text(
            f"{more}\nPidFile /run/sshd.pid\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nLogLevel VERBOSE\n"
            f"AuthorizedKeysFile {self.folder}/authorized\n"
        )

    def start(self) -> None:
        argv = [*self.entering, "/usr/sbin/sshd", "-D", "-E", str(self.log)]
        self.sshd = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        pid_file = Path(f"/proc/{self.pid}/root/run/sshd.pid")
        until = time.monotonic() + BOUND_S
        while not (pid_file.exists() and pid_file.read_text().strip() == str(self.sshd.pid)):
            assert self.sshd.poll() is None, self.log.read_text()
            assert time.monotonic() < until
            time.sleep(0.01)

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.sshd is not None:
            self.sshd.send_signal(how)
            self.sshd.wait(10)
            self.sshd = None

    @property
    def entering(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", f"--mount=/proc/{self.pid}/ns/mnt", "--"]

    def check(self, *args: str, env: dict[str, str] | None = None) -> Ran:
        """``probe check --only service.ssh`` in the box, as in a container."""
        argv = [*self.entering, *self.probe.check_argv("--format", "json", *ONLY, *args)]
        return self.probe.run(argv, env={"container": "docker", **(env or {})})

    def connections(self) -> int:
        return self.log.read_text().count("Connection from ")


ENTER = """ip link set lo up && mount -t tmpfs tmpfs /run && mkdir /run/sshd && mount --bind "$1" /etc/ssh \
&& echo ready && exec cat"""


@pytest.fixture
def box(probe: Command, tmp_path: Path) -> Iterator[Box]:
    if not os.path.exists("/usr/sbin/sshd") or not shutil.which("ip"):  # noqa: PTH110 - as a word
        missing("no sshd, or no iproute2 (apt-get install openssh-server iproute2)")
    made = Box(tmp_path, probe)
    argv = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh", str(made.etc)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            if holder.stdout.readline() != "ready\n":
                missing("no namespaces")
            made.pid = holder.pid
            yield made
        finally:
            if made.sshd is not None:
                made.sshd.send_signal(signal.SIGCONT)
            made.end()
            assert holder.stdin is not None
            holder.stdin.close()
            holder.wait(10)


@pytest.mark.system
def test_a_server_that_runs_passes_and_is_told_by_name_and_key(box: Box) -> None:
    box.start()
    ran = box.check()
    found = ran.outcome("service.ssh")
    assert (0, "pass") == (ran.code, found["status"]), ran
    keygen = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(box.etc / "ssh_host_ed25519_key.pub")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"SHA256:{found['data']['host_key_sha256']}" == keygen.stdout.split()[1]
    assert found["data"]["host_key_type"] == "ssh-ed25519"
    assert found["data"]["banner"].startswith("SSH-2.0-OpenSSH")
    assert 1 == box.connections()
    said = box.log.read_text()
    assert "Unable to negotiate" not in said
    assert "identification" not in said


@pytest.mark.system
def test_installed_and_not_started_is_a_skip_and_a_failure_where_it_is_required(box: Box) -> None:
    ran = box.check()
    assert ("skip", "installed, not started") == (ran.status("service.ssh"), ran.outcome("service.ssh")["summary"])
    ran = box.check(env={"ENABLE_SSH_CHECK": "true"})
    assert (1, "REQUIRED_ABSENT") == (ran.code, ran.codes[0])


@pytest.mark.system
def test_a_server_that_was_stopped_is_missed_after_a_run_that_saw_it(box: Box) -> None:
    box.start()
    assert 0 == box.check().code
    box.end()
    ran = box.check()
    assert (1, "SSH_DOWN") == (ran.code, ran.codes[0])
    assert "an earlier run, which saw it" in ran.outcome("service.ssh")["summary"]
    box.start()
    assert 0 == box.check().code


@pytest.mark.system
def test_a_server_that_was_killed_is_missed_by_the_pid_file_that_it_left(box: Box) -> None:
    box.start()
    box.end(signal.SIGKILL)
    ran = box.check()
    assert (1, "SSH_DOWN") == (ran.code, ran.codes[0])
    assert "/run/sshd.pid" in ran.outcome("service.ssh")["summary"]


@pytest.mark.system
def test_a_server_that_is_stopped_in_its_tracks_hangs(box: Box) -> None:
    box.start()
    assert box.sshd is not None
    box.sshd.send_signal(signal.SIGSTOP)
    ran = box.check("--budget", f"{BUDGET_S:g}s")
    assert (1, "SSH_HANGS") == (ran.code, ran.codes[0])
    assert "waiting for the first line" in ran.outcome("service.ssh")["summary"]
    assert ran.elapsed_s <= BUDGET_S + LATE_S


@pytest.mark.system
def test_a_host_key_that_changed_warns_until_the_state_is_forgotten(box: Box) -> None:
    box.start()
    before = box.check().outcome("service.ssh")["data"]["host_key_sha256"]
    box.end()
    box.key("ssh_host_ed25519_key")
    box.start()
    for _ in range(2):
        ran = box.check()
        found = ran.outcome("service.ssh")
        assert (0, "degraded", "SSH_HOST_KEY") == (ran.code, ran.report["verdict"], ran.codes[0])
        assert before in found["summary"]
        assert before != found["data"]["host_key_sha256"]
    box.probe("state", "--forget", "--state", str(box.probe.state))
    assert "pass" == box.check().status("service.ssh")


@pytest.mark.system
def test_a_new_key_of_another_type_is_no_change_of_the_one_that_was_seen(box: Box) -> None:
    """The type that was seen before is asked for first."""
    argv = ["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(box.etc / "ssh_host_ecdsa_key")]
    subprocess.run(argv, check=True, timeout=30, stdin=subprocess.DEVNULL)
    box.config("HostKey /etc/ssh/ssh_host_ecdsa_key")
    box.start()
    assert "ecdsa-sha2-nistp256" == box.check().outcome("service.ssh")["data"]["host_key_type"]
    box.end()
    box.config("HostKey /etc/ssh/ssh_host_ecdsa_key\nHostKey /etc/ssh/ssh_host_ed25519_key")
    box.start()
    found = box.check().outcome("service.ssh")
    assert ("pass", "ecdsa-sha2-nistp256") == (found["status"], found["data"]["host_key_type"])


@pytest.mark.system
@pytest.mark.parametrize(
    ("config", "where"),
    [
        ("Port 2222", "127.0.0.1:2222"),
        ("Include /etc/ssh/sshd_config.d/*.conf", "127.0.0.1:2022"),
        ("ListenAddress ::1", "[::1]:22"),
    ],
    ids=["port", "include", "ipv6"],
)
def test_it_is_found_where_its_configuration_has_it(box: Box, config: str, where: str) -> None:
    (box.etc / "sshd_config.d").mkdir()
    (box.etc / "sshd_config.d/a.conf").write_text("Port 2022\n")
    box.config(config)
    box.start()
    found = box.check().outcome("service.ssh")
    assert ("pass", where) == (found["status"], found["data"]["address"])


@pytest.mark.system
def test_a_login_with_a_key_and_a_command_is_one_connection(box: Box, tmp_path: Path) -> None:
    key = box.key("user_key")
    shutil.copy(key.with_suffix(".pub"), tmp_path / "authorized")
    box.start()
    login = settings(user="root", key_file=key)
    ran = box.check(*login, *settings(command=f"touch {tmp_path}/was-here; echo {SECRET}"))
    assert (0, "pass") == (ran.code, ran.status("service.ssh")), ran
    assert (tmp_path / "was-here").exists()
    assert SECRET not in ran.out + ran.err
    assert 1 == box.connections()

    ran = box.check(*login, *settings(command="exit 3"))
    assert (1, "SSH_COMMAND_FAILS") == (ran.code, ran.codes[0])
    assert "status 3" in ran.outcome("service.ssh")["summary"]


@pytest.mark.system
def test_a_command_that_does_not_end_is_ended_over_there(box: Box, tmp_path: Path) -> None:
    """It would run on, one more at each check; and the server is not to blame. Root's sshd passes no signal on."""
    (tmp_path / "passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nsshd:x:101:65534::/:/bin/false\nann:*:7777:7777::/:/bin/sh\n"
    )
    bind = ["mount", "--bind", str(tmp_path / "passwd"), "/etc/passwd"]
    subprocess.run([*box.entering, *bind], check=True, timeout=30)
    key = box.key("user_key")
    shutil.copy(key.with_suffix(".pub"), box.etc / "authorized")  # where ann may look
    box.config("AuthorizedKeysFile /etc/ssh/authorized")
    box.start()
    seconds = str(100_000 + os.getpid())
    ran = box.check("--budget", f"{BUDGET_S:g}s", *settings(user="ann", key_file=key, command=f"sleep {seconds}; true"))
    found = ran.outcome("service.ssh")
    assert (1, "SSH_COMMAND_FAILS", "timeout") == (ran.code, ran.codes[0], found["status"]), ran
    assert "running the command" in found["summary"]
    assert ran.elapsed_s <= BUDGET_S + LATE_S
    until = time.monotonic() + BOUND_S
    while any(seconds in words for words in commands()):
        assert time.monotonic() < until
        time.sleep(0.01)


def commands() -> list[str]:
    """Of every process, in whatever namespace."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.mark.system
def test_a_login_with_a_wrong_key_fails(box: Box, tmp_path: Path) -> None:
    (tmp_path / "authorized").write_text("")
    box.start()
    ran = box.check(*settings(user="root", key_file=box.key("user_key")))
    assert (1, "SSH_LOGIN_FAILS", "auth") == (ran.code, ran.codes[0], ran.outcome("service.ssh")["data"]["reason"])
    assert 1 == box.connections()


@pytest.mark.system
def test_nobody_logs_in_where_the_host_key_is_not_the_one_in_the_files(box: Box, tmp_path: Path) -> None:
    key = box.key("user_key")
    shutil.copy(key.with_suffix(".pub"), tmp_path / "authorized")
    box.start()
    shutil.copy(box.key("other_key").with_suffix(".pub"), box.etc / "ssh_host_ed25519_key.pub")
    ran = box.check(*settings(user="root", key_file=key))
    assert (1, "SSH_HOST_KEY", "host_key") == (ran.code, ran.codes[0], ran.outcome("service.ssh")["data"]["reason"])
    assert "Accepted" not in box.log.read_text()


@pytest.mark.system
def test_known_hosts_has_the_last_word(box: Box, tmp_path: Path) -> None:
    public = (box.etc / "ssh_host_ed25519_key.pub").read_text()
    other = box.key("other_key").with_suffix(".pub").read_text()
    known = tmp_path / "known_hosts"
    box.start()
    for content, status in [(public, "pass"), (other, "warn"), ("", "warn")]:
        known.write_text(f"127.0.0.1 {content}" if content else "")
        assert status == box.check(*settings(known_hosts=known)).status("service.ssh")
    known.write_text(f"127.0.0.1 {other}")
    key = box.key("user_key")
    shutil.copy(key.with_suffix(".pub"), tmp_path / "authorized")
    ran = box.check(*settings(known_hosts=known, user="root", key_file=key))
    assert (1, "host_key") == (ran.code, ran.outcome("service.ssh")["data"]["reason"])


@pytest.mark.system
def test_a_key_file_that_cannot_be_used_is_unknown_and_shows_nothing_of_itself(box: Box, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n-----END OPENSSH PRIVATE KEY-----\n")
    box.start()
    for file in (key, tmp_path / "nowhere"):
        ran = box.check("--debug", *settings(user="root", key_file=file))
        assert (3, "unknown") == (ran.code, ran.status("service.ssh"))
        assert SECRET not in ran.out + ran.err


@pytest.mark.system
def test_a_user_without_a_name_or_a_home_can_ask(box: Box) -> None:
    """As a container's numbered user: in no user database, and nothing in the environment says who that is."""
    box.start()
    script = (
        f'{opened(sorted(NEEDED), box.folder / "stage")} exec setpriv --reuid 54321 --regid 54321 --clear-groups "$@"'
    )
    argv = [*box.entering, "sh", "-c", script, "sh", *box.probe.check_argv("--format", "json", *ONLY)]
    ran = box.probe.run(argv, env=dict.fromkeys(("HOME", "USER", "LOGNAME", "LNAME", "USERNAME")))
    assert (0, "pass") == (ran.code, ran.status("service.ssh")), ran
