"""service.jupyter against real servers: Jupyter Lab and Jupyter Server, however they are told to listen."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from probe.report.formats import FORMATS
from tests.system.command import BOUND_S, LATE_S, Command, Ran, finish, missing

ONLY = ("--only", "service.jupyter")
BUDGET_S = 3.0
SHORT = (*ONLY, "--budget", f"{BUDGET_S:g}s")
TOKEN = "planted-5c4e1f0aa9"
OTHER_TOKEN = "planted-0b77d3e2c1"
IN_CONTAINER = {"container": "docker"}


class Home:
    """A user's home, with the runtime folder of the servers that are started from there."""

    def __init__(self, folder: Path, pid: int = 0) -> None:
        self.folder = folder
        self.pid = pid
        """Of a process that is called like a server, for files that are planted."""
        self.runtime = folder / ".local/share/jupyter/runtime"
        self.env = {"HOME": str(folder), "JUPYTER_RUNTIME_DIR": None, "PATH": f"{Path(sys.executable).parent}:/usr/bin"}
        folder.mkdir()
        (folder / ".jupyter").mkdir()
        off = dict.fromkeys(("jupyterlab", "jupyter_lsp", "jupyter_server_terminals", "notebook_shim"), False)
        config = {"ServerApp": {"jpserver_extensions": off}}  # they double the time that a server takes to start
        (folder / ".jupyter/jupyter_server_config.json").write_text(json.dumps(config))

    def files(self) -> list[Path]:
        return sorted(self.runtime.glob("*server-*.json"))


class Server:
    """One that runs; `info` is what its runtime file says."""

    def __init__(self, process: "subprocess.Popen[bytes]", file: Path) -> None:
        self.process = process
        self.file = file
        self.info: dict[str, Any] = json.loads(file.read_text())


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as one:
        return int(one.getsockname()[1])


@contextmanager
def running(home: Home, *args: str, app: str = "server", token: str = TOKEN) -> Iterator[Server]:
    """A server that answers; its token comes to it by its environment, so that no argv holds it."""
    argv = [str(Path(sys.executable).with_name(f"jupyter-{app}")), "--no-browser", "--allow-root", *args]
    if not any("sock" in arg for arg in args):
        argv += [f"--ServerApp.port={free_port()}", "--ServerApp.port_retries=0"]
    clean = {name: value for name, value in os.environ.items() if "JUPYTER" not in name}
    log = (home.folder / "log").open("ab")
    process = subprocess.Popen(
        argv,
        env={**clean, "HOME": str(home.folder), "JUPYTER_TOKEN": token},
        cwd=home.folder,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    file = home.runtime / f"jpserver-{process.pid}.json"
    try:
        until = time.monotonic() + BOUND_S
        while not (file.exists() and file.read_text()):
            assert process.poll() is None, (home.folder / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.02)
        yield Server(process, file)
    finally:
        log.close()
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait(10)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with subprocess.Popen(["sh", "-c", "read x; : jupyter"], stdin=subprocess.PIPE) as process:
        yield Home(tmp_path / "home", process.pid)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, Server]]:
    """Jupyter Lab, for the tests that leave it as it is."""
    home = Home(tmp_path_factory.mktemp("lab") / "home")
    with running(home, app="lab") as server:
        yield home, server


def option(**options: object) -> list[str]:
    return [
        word for name, value in options.items() for word in ("--set", f"checks.\"service.jupyter\".{name}='{value}'")
    ]


def passed(ran: Ran) -> dict[str, Any]:
    found = ran.outcome("service.jupyter")
    assert (0, "pass") == (ran.code, found["status"]), ran
    assert TOKEN not in ran.out + ran.err
    data: dict[str, Any] = found["data"]
    return data


# ---------------------------------------------------------------------------------------------------- one that answers


def test_lab_answers_with_its_kernels_and_its_idle_time_is_left_alone(probe: Command, lab: tuple[Home, Server]) -> None:
    import httpx

    home, server = lab

    def last_activity() -> str:
        url = f"http://127.0.0.1:{server.info['port']}/api/status"
        with httpx.Client(trust_env=False) as client:
            return str(client.get(url, headers={"Authorization": f"token {TOKEN}"}).json()["last_activity"])

    before = last_activity()
    data = passed(probe.check(*ONLY, env=home.env))
    assert (0, 0) == (data["kernels"], data["connections"])
    assert f"http://127.0.0.1:{server.info['port']}/" == data["url"]
    assert server.process.pid == data["pid"]
    assert data["version"] == server.info["version"]
    assert before == last_activity()


def test_proxies_in_the_environment_are_not_asked(probe: Command, lab: tuple[Home, Server]) -> None:
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"), "http://127.0.0.1:9/")
    passed(probe.check(*ONLY, env={**lab[0].env, **proxies}))


def test_the_runtime_folder_is_found_by_each_of_its_names(probe: Command, lab: tuple[Home, Server]) -> None:
    home, _ = lab
    nowhere = {"HOME": "/nonexistent", "PATH": "/usr/bin"}
    for env in (
        {"JUPYTER_RUNTIME_DIR": str(home.runtime)},
        {"JUPYTER_DATA_DIR": str(home.runtime.parent)},
        {"XDG_DATA_HOME": str(home.folder / ".local/share")},
    ):
        passed(probe.check(*ONLY, env={**nowhere, **env}))
    passed(probe.check(*ONLY, *option(runtime_dir=home.runtime), env=nowhere))


def test_a_fixed_url_is_asked_whatever_the_runtime_files_say(probe: Command, lab: tuple[Home, Server]) -> None:
    _, server = lab
    elsewhere = {"HOME": "/nonexistent"}
    for slash in ("", "/"):
        url = f"http://127.0.0.1:{server.info['port']}{slash}"
        assert "kernels" not in passed(probe.check(*ONLY, *option(url=url), env=elsewhere))
    ran = probe.check(*ONLY, *option(url=f"http://127.0.0.1:{free_port()}"), env=lab[0].env)
    assert (1, "JUPYTER_DOWN", "refused") == (ran.code, ran.codes[0], ran.outcome("service.jupyter")["data"]["reason"])
    for bad in ("http://h/?token=abc", "http://user:abc@h/", "ftp://h/"):
        ran = probe("check", *option(url=bad))
        assert 2 == ran.code
        assert "abc" not in ran.out + ran.err


def test_a_token_that_the_server_does_not_take_is_a_warning_of_its_own(
    probe: Command, lab: tuple[Home, Server], tmp_path: Path
) -> None:
    home, _ = lab
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    passed(probe.check(*ONLY, *option(token_file=file, runtime_dir=home.runtime), env=home.env))
    for wrong in (OTHER_TOKEN, f"{OTHER_TOKEN}\r\nX-Header: 1", f"{OTHER_TOKEN}\N{SNOWMAN}"):
        file.write_text(wrong)
        ran = probe.check(*ONLY, "--debug", *option(token_file=file, runtime_dir=home.runtime), env=home.env)
        assert (0, "degraded", "JUPYTER_TOKEN") == (ran.code, ran.report["verdict"], ran.codes[0])
        assert OTHER_TOKEN not in ran.out + ran.err
    file.unlink()
    ran = probe.check(*ONLY, *option(token_file=file, runtime_dir=home.runtime), env=home.env)
    assert (3, "SERVICE_FILE_UNREAD") == (ran.code, ran.codes[0])


@pytest.mark.parametrize("format_", FORMATS)
def test_a_token_is_in_no_format_no_log_and_no_state(
    probe: Command, lab: tuple[Home, Server], tmp_path: Path, format_: str
) -> None:
    """Neither the server's own, which it takes, nor one from a file, which it refuses."""
    file = tmp_path / "token"
    file.write_text(OTHER_TOKEN)
    log = tmp_path / "health.log"
    seen = ""
    for args in ([], option(token_file=file, runtime_dir=lab[0].runtime)):
        argv = probe.check_argv("--format", format_, "--log", str(log), "--debug", *ONLY, *args)
        ran = probe.run(argv, env=lab[0].env)
        assert 0 == ran.code
        seen += ran.out + ran.err
    seen += log.read_text() + (probe.state / "state.json").read_text()
    assert "service" in seen
    assert TOKEN not in seen
    assert OTHER_TOKEN not in seen


def test_a_base_url_without_a_slash_on_ipv6_alone(probe: Command, home: Home) -> None:
    with running(home, "--ServerApp.base_url=/test", "--ServerApp.ip=::1") as server:
        assert f"http://[::1]:{server.info['port']}/test/" == passed(probe.check(*ONLY, env=home.env))["url"]


def signed_by_itself(path: Path) -> Path:
    """A key, and a certificate of it that names nobody."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    plain = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(key.private_bytes(*plain) + made.sign(key, SHA256()).public_bytes(Encoding.PEM))
    return path


def test_a_base_url_with_a_slash_and_a_certificate_that_it_signed_itself(probe: Command, home: Home) -> None:
    file = signed_by_itself(home.folder / "cert.pem")
    tls = (f"--ServerApp.certfile={file}", f"--ServerApp.keyfile={file}")
    with running(home, "--ServerApp.base_url=/a/b%20c/", *tls) as server:
        assert f"https://127.0.0.1:{server.info['port']}/a/b%20c/" == passed(probe.check(*ONLY, env=home.env))["url"]


def test_a_unix_socket(probe: Command, home: Home) -> None:
    path = home.folder / "jupyter.sock"
    with running(home, f"--ServerApp.sock={path}"):
        ran = probe.check(*ONLY, env=home.env)
        assert passed(ran)["kernels"] == 0
        assert str(path) in ran.outcome("service.jupyter")["summary"]


def test_one_without_a_token_is_asked_for_its_version_alone(probe: Command, home: Home) -> None:
    with running(home, "--IdentityProvider.token=", token=""):
        assert "kernels" not in passed(probe.check(*ONLY, env=home.env))


# ------------------------------------------------------------------------------------------------- one that does not


def test_of_two_servers_each_must_answer_until_both_have_gone(probe: Command, home: Home) -> None:
    """One hangs, and no process of the run shows a token meanwhile; one is killed, which the other makes good; both."""
    if os.stat(home.folder).st_dev != os.stat("/").st_dev:  # noqa: PTH116 - a device, twice
        missing("the tests' folder is on another file system than /")
    env = {**home.env, **IN_CONTAINER}
    with running(home) as first, running(home, "--ServerApp.base_url=/second") as second:
        assert 2 == passed(probe.check(*ONLY, env=env))["servers"]

        second.process.send_signal(signal.SIGSTOP)
        with probe.started(probe.check_argv("--format", "json", *SHORT), env=env) as process:
            shown = []
            while process.poll() is None:
                shown += [words for words in of_the_run(probe) if TOKEN in words]
            ran = finish(process)
        assert [] == shown
        assert (1, "JUPYTER_HANGS") == (ran.code, ran.codes[0]), ran
        assert f"GET http://127.0.0.1:{second.info['port']}/second/api" in ran.outcome("service.jupyter")["summary"]
        assert ran.elapsed_s <= BUDGET_S + LATE_S
        assert TOKEN not in ran.out + ran.err

        second.process.kill()
        second.process.wait(10)
        assert first.process.pid == passed(probe.check(*ONLY, env=env))["pid"]

        first.process.kill()
        first.process.wait(10)
        ran = probe.check(*ONLY, env=env)
        found = ran.outcome("service.jupyter")
        assert (1, "JUPYTER_DOWN", "gone") == (ran.code, ran.codes[0], found["data"]["reason"])
        assert found["data"]["pid"] in (first.process.pid, second.process.pid)

        for server in (first, second):
            server.file.unlink()
        ran = probe.check(*ONLY, env=env)
        assert (1, "JUPYTER_DOWN") == (ran.code, ran.codes[0])
        assert "an earlier run, which saw it" in ran.outcome("service.jupyter")["summary"]


def of_the_run(probe: Command) -> list[str]:
    """The argv and the environment of every process of a run."""
    found = probe.left()
    for line in list(found):
        with suppress(OSError):
            found.append(Path(f"/proc/{line.partition(':')[0]}/environ").read_text(errors="replace"))
    return found


def test_a_file_of_an_earlier_life_tells_nobody_to_run(probe: Command, home: Home) -> None:
    """An image, or a container that was stopped and started again, holds such files."""
    home.runtime.mkdir(parents=True)
    file = home.runtime / "jpserver-4194000.json"
    file.write_text(json.dumps({"pid": 4194000, "port": 8888, "token": TOKEN, "base_url": "/", "secure": False}))
    os.utime(file, (0, 0))
    ran = probe.check(*ONLY, env={**home.env, **IN_CONTAINER})
    found = ran.outcome("service.jupyter")
    assert ("skip", "installed, not started") == (found["status"], found["summary"])
    ran = probe.check(*ONLY, env={**home.env, "ENABLE_JUPYTER_CHECK": "true"})
    assert (1, "REQUIRED_ABSENT") == (ran.code, ran.codes[0])


def test_where_jupyter_is_not_installed_nothing_is_asked_of_it(probe: Command, tmp_path: Path) -> None:
    ran = probe.check(*ONLY, env={"HOME": str(tmp_path), "PATH": "/nowhere"})
    assert ("skip", "not installed") == (ran.status("service.jupyter"), ran.outcome("service.jupyter")["summary"])


# ------------------------------------------------------------------------------------------- somebody else in its place


@contextmanager
def impostor(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Iterator[tuple[int, list[str]]]:
    """A web server that says that to everybody; yields its port, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers}")
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *said: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server, ExitStack() as stack:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        stack.callback(thread.join, 5)
        stack.callback(server.shutdown)
        yield server.server_address[1], asked


IMPOSTORS = [
    ("not JSON", 200, b"<html>hello</html>", {}, "not_jupyter", "<html>hello</html>"),
    ("no version", 200, b'{"status": "ok"}', {}, "not_jupyter", "is no Jupyter"),
    ("a version that is no text", 200, b'{"version": 2}', {}, "not_jupyter", "is no Jupyter"),
    ("deep", 200, b"[" * 60_000, {}, "not_jupyter", "is no Jupyter"),
    ("a flood", 200, b"x" * 10_000_000, {}, "not_jupyter", "over 64 KiB"),
    ("an error", 503, b"{}", {}, "status", "answers with 503"),
    ("a redirect", 302, b"", {"Location": "http://127.0.0.1:9/login"}, "status", "answers with 302"),
    ("status without numbers", 200, b'{"version": "2.0"}', {}, "status", "no numbers"),
]


@pytest.mark.parametrize(
    ("status", "body", "headers", "reason", "words"), [one[1:] for one in IMPOSTORS], ids=[one[0] for one in IMPOSTORS]
)
def test_who_answers_otherwise_is_no_jupyter(
    probe: Command, home: Home, status: int, body: bytes, headers: dict[str, str], reason: str, words: str
) -> None:
    with impostor(status, body, headers) as (port, asked):
        plant(home, port=port)
        ran = probe.check(*ONLY, env=home.env)
    found = ran.outcome("service.jupyter")
    assert (1, "fail", reason) == (ran.code, found["status"], found["data"]["reason"]), ran
    assert words in found["summary"]
    assert TOKEN not in ran.out + ran.err
    assert TOKEN not in asked[0]


def test_garbage_and_hanging_up_are_told_apart(probe: Command, home: Home) -> None:
    for say, reason in ((b"SSH-2.0-x\r\n\r\n", "garbage"), (b"", "closed")):
        with closing(socket.create_server(("127.0.0.1", 0))) as server:

            def serve(server: socket.socket = server, say: bytes = say) -> None:
                with server.accept()[0] as one:
                    one.recv(65536)
                    one.sendall(say)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            plant(home, port=server.getsockname()[1])
            ran = probe.check(*ONLY, env=home.env)
            thread.join(5)
        assert (1, reason) == (ran.code, ran.outcome("service.jupyter")["data"]["reason"])


def test_https_against_a_server_of_http_is_no_tls(probe: Command, home: Home) -> None:
    with impostor(200, b"") as (port, _):
        plant(home, port=port, secure=True)
        ran = probe.check(*ONLY, env=home.env)
    assert (1, "tls") == (ran.code, ran.outcome("service.jupyter")["data"]["reason"])


NONSENSE = [b"", b"{", b"[]", b"null", b'{"pid": "1"}', b'{"pid": -1, "port": "x"}', b"[" * 50_000, b"\xff\xfe"]


def test_runtime_files_that_make_no_sense_are_no_servers(probe: Command, home: Home) -> None:
    home.runtime.mkdir(parents=True)
    for number, content in enumerate(NONSENSE):
        (home.runtime / f"jpserver-{number}.json").write_bytes(content)
    os.mkfifo(home.runtime / "jpserver-90.json")
    (home.runtime / "jpserver-91.json").symlink_to("/dev/zero")
    ran = probe.check(*ONLY, env={**home.env, **IN_CONTAINER})
    assert ("skip", "installed, not started") == (
        ran.status("service.jupyter"),
        ran.outcome("service.jupyter")["summary"],
    )


def plant(home: Home, **server: object) -> None:
    """A runtime file of a server that lives, by its name."""
    home.runtime.mkdir(parents=True, exist_ok=True)
    info = {"pid": home.pid, "port": 0, "token": TOKEN, "base_url": "/", "secure": False, "sock": "", **server}
    (home.runtime / f"jpserver-{home.pid}.json").write_text(json.dumps(info))
