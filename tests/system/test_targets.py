"""``[[http]]``, ``[[tcp]]`` and ``[[command]]`` in whole runs: each ends in time, is named, leaves nothing."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.checks.serving import Asked, authority, hang, serving
from tests.system.command import LATE_S, Command, Ran, missing

BUDGET_S = 3.0
BUDGET = ("--budget", f"{BUDGET_S:g}s")
EARLY_S = 1.0
ONLY = ("--only", "service.*.*")
TIMEOUT_S = 0.5


@pytest.fixture
def ask(probe: Command, tmp_path: Path) -> "Ask":
    return Ask(probe, tmp_path)


class Ask:
    """A run of `probe check` with a config file."""

    def __init__(self, probe: Command, folder: Path) -> None:
        self.probe = probe
        self.path = folder / "targets.toml"

    def __call__(self, text: str, *args: str, argv: tuple[str, ...] = ()) -> Ran:
        self.path.write_text(text)
        self.path.chmod(0o600)
        words = self.probe.check_argv("--format", "json", *ONLY, "--config", str(self.path), *args)
        return self.probe.run([*argv, *words])


def toml(value: object) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {toml(item)}' for key, item in value.items())} }}"
    return json.dumps(value)


def target(kind: str, **options: object) -> str:
    return "\n".join([f"[[{kind}]]", 'name = "it"', *(f"{key} = {toml(value)}" for key, value in options.items())])


def command(shell: str, **more: object) -> str:
    return target("command", shell=shell, **more)


# --- all of it together ---------------------------------------------------------------------------------------------


def test_three_targets_of_one_file(ask: Ask, tmp_path: Path) -> None:
    """They pass; each is an outcome of its own name."""

    def up(asked: Asked) -> None:
        asked.request()
        asked.answer(b'{"up": true}')

    ca, tls = authority(tmp_path)
    with serving(up, tls) as https, serving(hang) as tcp:
        ran = ask(
            f"""
            [[http]]
            name = "api"
            url = "https://user:planted@127.0.0.1:{https}/"
            headers = {{ X-Token = "planted" }}
            json = {{ up = true }}
            verify = "{ca}"
            [[tcp]]
            name = "db"
            host = "127.0.0.1"
            port = {tcp}
            [[command]]
            name = "root"
            argv = ["df", "/"]
            match = "Filesystem"
            [checks."service.tcp.db"]
            severity = "advisory"
            """
        )
    assert (ran.code, ran.report["verdict"]) == (0, "healthy"), ran
    found = {item["id"]: (item["status"], item["severity"]) for item in ran.report["checks"]}
    assert found == {
        "service.http.api": ("pass", "critical"),
        "service.tcp.db": ("pass", "advisory"),
        "service.command.root": ("pass", "critical"),
    }
    assert "planted" not in ran.out + ran.err


def test_a_target_can_be_switched_off_and_left_out(ask: Ask) -> None:
    """By its own switch and by --skip, as any check."""
    text = target("tcp", host="127.0.0.1", port=9) + '\n[[command]]\nname = "other"\nargv = ["true"]'
    ran = ask(text, "--skip", "service.tcp.it")
    assert {item["id"]: item["status"] for item in ran.report["checks"]} == {
        "service.tcp.it": "skip",
        "service.command.other": "pass",
    }
    assert ask.probe.check(*ONLY, "--config", str(ask.path), env={"ENABLE_IT_CHECK": "0"}).status("service.tcp.it") == (
        "skip"
    )


def test_several_that_fail_are_a_cause_each(ask: Ask) -> None:
    """Two that refuse are two causes, and the verdict is unhealthy."""
    text = target("tcp", host="127.0.0.1", port=1) + "\n" + target("http", url="http://127.0.0.1:1/").replace("it", "x")
    ran = ask(text)
    assert (ran.code, ran.codes) == (1, ["TARGET_REFUSED", "TARGET_REFUSED"])


# --- what hangs -----------------------------------------------------------------------------------------------------


@contextmanager
def silent_name_server(folder: Path) -> Iterator[tuple[str, ...]]:
    """The words that run a command where the only name server is one that never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        try:
            server.bind(("127.0.0.153", 53))
        except OSError as error:
            missing(f"port 53 of loopback: {error}")
        resolv = folder / "resolv.conf"
        resolv.write_text("nameserver 127.0.0.153\n")
        script = f'mount --bind {resolv} /etc/resolv.conf && exec "$@"'
        yield ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")


@pytest.mark.system
@pytest.mark.parametrize("text", [target("tcp", host="db.example", port=1), target("http", url="http://db.example/")])
def test_a_name_server_that_is_silent(ask: Ask, tmp_path: Path, text: str) -> None:
    """Ends with its own timeout, or with the budget, says that it was resolving, and blames DNS."""
    with silent_name_server(tmp_path) as entering:
        short = ask(f'{text}\ntimeout = "{TIMEOUT_S}s"', argv=entering)
        whole = ask(text, *BUDGET, argv=entering)
    for ran in (short, whole):
        assert (ran.code, ran.codes) == (1, ["TARGET_DNS_HANGS"]), ran
        (outcome,) = ran.report["checks"]
        assert (outcome["status"], outcome["data"]["step"]) == ("timeout", "resolving db.example")
    assert short.elapsed_s < BUDGET_S
    assert BUDGET_S - EARLY_S <= whole.elapsed_s <= BUDGET_S + LATE_S


@pytest.mark.parametrize("kind", ["tcp", "http"])
def test_a_service_that_is_silent_ends_with_the_budget(ask: Ask, kind: str) -> None:
    """Without a timeout of its own; the outcome and the cause name it."""
    with serving(hang) as port:
        options = {"url": f"http://127.0.0.1:{port}/"} if kind == "http" else {"host": "127.0.0.1", "port": port}
        ran = ask(target(kind, **options, **({} if kind == "http" else {"expect": "x"})), *BUDGET)
    assert BUDGET_S - EARLY_S <= ran.elapsed_s <= BUDGET_S + LATE_S
    assert (ran.code, ran.codes) == (1, ["TARGET_SILENT"]), ran
    assert f"127.0.0.1:{port}" in ran.report["causes"][0]["summary"]


@pytest.mark.parametrize("timeout", ["", f'timeout = "{TIMEOUT_S}s"'], ids=["by the budget", "by its timeout"])
@pytest.mark.parametrize(
    "shell",
    [
        "sleep 600",
        "trap '' TERM INT HUP; sleep 600",
        "exec >&- 2>&- <&-; exec sleep 600",
        "setsid sleep 600 & sleep 600",
        "while :; do :; done",
    ],
)
def test_a_program_that_hangs_is_killed_with_all_it_started(ask: Ask, shell: str, timeout: str) -> None:
    """By its own timeout or the budget, deaf to signals, with its pipes closed, with a child in another session."""
    ran = ask(f"{command(shell)}\n{timeout}", *BUDGET)
    assert (ran.code, ran.codes) == (1, ["COMMAND_HANGS"]), ran
    assert ran.status("service.command.it") == "timeout"
    assert ran.outcome("service.command.it")["data"]["step"] == "/bin/sh"
    assert ran.elapsed_s < (BUDGET_S - EARLY_S if timeout else BUDGET_S + LATE_S)


def test_a_program_is_killed_when_its_own_time_is_up(ask: Ask, tmp_path: Path) -> None:
    """Not only when the run ends: another check that takes longer finds it gone."""
    pid = tmp_path / "pid"
    waiting = (
        "i=0; while [ $i -lt 20 ]; do [ -s {0} ] && ! [ -d /proc/$(cat {0}) ] && exit 0; sleep 0.1; i=$((i+1)); done"
    )
    text = command(f"echo $$ > {pid}; exec sleep 600", timeout=f"{TIMEOUT_S}s")
    text += "\n" + command(f"{waiting.format(pid)}; exit 1").replace('"it"', '"watch"')
    ran = ask(text)
    assert (ran.status("service.command.it"), ran.status("service.command.watch")) == ("timeout", "pass"), ran


# --- what misbehaves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shell", "status", "code"),
    [
        ("yes", "unknown", "COMMAND_FLOODED"),
        ("yes >&2", "timeout", "COMMAND_HANGS"),
        ("sleep 600 & exit 0", "pass", ""),
        ("(setsid sleep 600 &) ; (nohup sleep 600 >/dev/null 2>&1 &) ; exit 0", "pass", ""),
        ("yes & exit 0", "pass", ""),
        ("kill -SEGV $$", "fail", "COMMAND_CRASHED_SIGSEGV"),
        ("kill -KILL $$", "unknown", "CHILD_KILLED"),
        ("yes | head -1; exit 3", "fail", "COMMAND_STATUS"),
        ("no-such-program", "fail", "COMMAND_NOT_STARTED"),
        ("head -c 1000000 /dev/zero", "pass", ""),
        ("printf '\\033[31m\\377\\000'; exit 1", "fail", "COMMAND_STATUS"),
    ],
)
def test_a_program_that_misbehaves_leaves_nothing_behind(ask: Ask, shell: str, status: str, code: str) -> None:
    """Floods, daemons, crashes; that no process is left is what the fixture `probe` asserts."""
    ran = ask(command(shell), *BUDGET)
    if shell == "yes & exit 0" and ran.status("service.command.it") == "unknown":
        return  # it flooded before its parent ended
    assert ran.status("service.command.it") == status, ran
    assert ran.codes == ([code] if code else [])
    assert "\x1b" not in ran.out


def test_the_environment_and_the_folder_of_a_program(ask: Ask, tmp_path: Path) -> None:
    """`env` is laid over probe's own, `cwd` is / unless given; no shell takes part in argv."""
    given = command('[ "$A-$B" = "$(echo x)-" ] && [ "$PWD" = / ]', env={"A": "x"})
    assert ask(given).code == 0
    assert ask(command(f'[ "$(pwd)" = {tmp_path} ]', cwd=str(tmp_path))).code == 0
    text = '[[command]]\nname = "it"\nargv = ["sh", "-c", "test \\"$1\\" = \'$HOME;\'", "sh", "$HOME;"]'
    assert ask(text).code == 0


@pytest.mark.system
def test_a_program_runs_as_another_user(ask: Ask) -> None:
    """With that user's ids and home, and killed as that user too."""
    assert (
        ask(command('[ "$(id -u):$(id -g):$(id -G):$HOME" = 65534:65534:65534:/nonexistent ]', user="nobody")).code == 0
    )
    hung = ask(command("setsid sleep 600 & sleep 600", user="nobody", timeout=f"{TIMEOUT_S}s"))
    assert hung.codes == ["COMMAND_HANGS"]
    unknown = ask(command("true", user="no-such-user"))
    assert unknown.codes == ["COMMAND_NOT_STARTED"]
    assert "no-such-user: there is no such user" in unknown.report["causes"][0]["summary"]


@pytest.mark.parametrize(
    "secret", ["planted", "postgres://app:planted@db/x", "Authorization: Bearer planted", "PGPASSWORD=planted"]
)
def test_no_secret_of_a_program_is_in_a_report(ask: Ask, secret: str) -> None:
    """Neither what it is given nor what it prints."""
    text = command('echo "$S"; echo "$S" >&2; exit 1', env={"S": secret})
    for form in ("text", "json"):
        ran = ask(text, "--format", form)
        assert ran.code == 1
        assert "planted" not in ran.out + ran.err


# --- the config's own words -----------------------------------------------------------------------------------------


def test_config_and_list_show_targets(ask: Ask) -> None:
    """`probe config` with secrets hidden, `probe list` with its switch, and the kinds that there are."""
    ask.path.write_text(
        target("http", url="http://user:planted@h/", timeout="2s", status=[200, 204])
        + '\nheaders = { X = "planted" }\njson = { a.b = 1 }'
    )
    shown = ask.probe("config", "--config", str(ask.path))
    assert (shown.code, shown.err) == (0, "")
    rows = {line.split()[0]: " ".join(line.split()[1:-1]) for line in shown.out.splitlines()}
    prefix = 'checks."service.http.it".'
    assert {key.removeprefix(prefix): value for key, value in rows.items() if key.startswith(prefix)} == {
        "headers": '"***"',
        "json": '{ "a.b" = 1 }',
        "status": "[200, 204]",
        "timeout": '"2s"',
        "url": '"http://***@h/"',
    }
    listed = ask.probe("list", "--config", str(ask.path))
    names = {line.split()[0]: line for line in listed.out.splitlines()}
    assert "ENABLE_IT_CHECK" in names["service.http.it"]
    assert "ENABLE_<NAME>_CHECK" in names["service.http.<name>"]
    assert "planted" not in shown.out + listed.out
    assert ask.probe("config", "--check", str(ask.path)).code == 0


def test_a_target_by_set(probe: Command) -> None:
    """Without any file."""
    ran = probe.check(*ONLY, "--set", 'command=[{name="it", argv=["true"]}]')
    assert (ran.code, ran.status("service.command.it")) == (0, "pass")
