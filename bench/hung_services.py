"""Each service hung in turn: is there a verdict, on time, that names it, with nothing left behind? As in `bench.hung`.

The servers are real ones that were stopped (SIGSTOP), which accept connections and say nothing more.
"""

import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median

from bench import hung, services, stage
from bench.hung import BUDGET_S, EARLIEST_S, LATEST_S, Case, End
from bench.measure import Bench, Figure, Value

RUNS = 50
HANGS = "import threading\ndef net():\n    threading.Event().wait()\n"
Hang = Callable[[Path], AbstractContextManager[tuple[str, ...]]]
"""Given a folder, has something hang; yields the flags that have probe ask it."""


@contextmanager
def jupyter(folder: Path) -> Iterator[tuple[str, ...]]:
    with services.jupyter(folder / "jupyter", stopped=True) as runtime:
        yield (
            "--set",
            f'checks."service.jupyter".runtime_dir="{runtime}"',
            "--set",
            'checks."service.jupyter".enabled=true',
        )


@contextmanager
def sshd(folder: Path) -> Iterator[tuple[str, ...]]:
    with services.sshd(folder / "sshd", stopped=True) as port:
        yield ("--set", f'checks."service.ssh".port={port}', "--set", 'checks."service.ssh".enabled=true')


@contextmanager
def silent(kind: str) -> Iterator[tuple[str, ...]]:
    """A socket on which nobody ever accepts: the kernel does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        port = listener.getsockname()[1]
        target = f'url="http://127.0.0.1:{port}/"' if kind == "http" else f'host="127.0.0.1",port={port},expect="x"'
        yield ("--set", f'{kind}=[{{name="silent",{target}}}]')


@contextmanager
def command() -> Iterator[tuple[str, ...]]:
    yield ("--set", 'command=[{name="sleeps",argv=["sleep","3600"]}]')


@contextmanager
def model(folder: Path) -> Iterator[tuple[str, ...]]:
    (folder / "net.py").write_text(HANGS)
    factory = f'kind="factory",factory="{folder}/net.py:net",trust=true,input=[]'
    yield ("--device", "cpu", "--set", f'model=[{{name="waits",{factory}}}]')


CASES: dict[str, Hang] = {
    "service.jupyter": jupyter,
    "service.ssh": sshd,
    "service.http.silent": lambda folder: silent("http"),
    "service.tcp.silent": lambda folder: silent("tcp"),
    "service.command.sleeps": lambda folder: command(),
    "service.model.waits": model,
}


def measure(bench: Bench) -> Figure:
    """`RUNS` runs of ``probe check --budget 3s``, one service hung in each, in turn."""
    stage.become_subreaper()
    with tempfile.TemporaryDirectory(prefix="probe-bench-") as folder:
        Path(folder).chmod(0o700)
        names = [name for _, name in zip(range(RUNS), _forever(list(CASES)), strict=False)]
        ends = [one(bench, name, Path(folder, f"run-{number}")) for number, name in enumerate(names)]
    relative_s = [end.after_budget_s for end in ends]
    values = (
        Value("runs that broke a rule", sum(bool(end.wrong) for end in ends), "", 0),
        Value("earliest end - budget", min(relative_s), "s", EARLIEST_S, at_least=True),
        Value("median end - budget", median(relative_s), "s"),
        Value("latest end - budget", max(relative_s), "s", LATEST_S),
    )
    notes = tuple(hung.distribution(name, ends) for name in CASES)
    samples = {name: [asdict(end) for end in ends if end.case == name] for name in CASES}
    return Figure("hung_services", f"{len(ends)} runs with --budget 3s, a service hung in each", values, samples, notes)


def _forever(names: list[str]) -> Iterator[str]:
    while True:
        yield from names


def one(bench: Bench, name: str, folder: Path) -> End:
    folder.mkdir()
    arguments = ("--only", name) if name.startswith("service.model") else ("--skip", "torch")
    with CASES[name](folder) as flags:
        probe = [*bench.probe, "check", "--budget", f"{BUDGET_S:g}s", "--format", "json"]
        probe += ["--state", str(folder / "state"), "--log", str(folder / "health.log"), *flags, *arguments]
        run = stage.run((), probe, folder, unread=False, python_path="")
    case = Case(name, (name,))
    return End(name, round(run.took_s - BUDGET_S, 4), tuple(hung.broken_rules(case, run, "")))
