"""Runs `probe` as its users do: another process, a state folder of its own, and afterwards nobody left behind.

Whoever comes of a run carries a mark in its environment, so that what is left can be found anywhere on the machine,
also when it has moved to another session or parent.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from probe import torchfile
from probe.model import Report
from probe.report import json as report_json
from tests.fakes import host
from tests.fakes.scenario import Scenario

ARGV = (sys.executable, "-m", "probe")
LATE_S = 0.25
"""How long after its budget a run may end, measured from outside."""
BOUND_S = 30.0
FAKES_END_S = 2.0
OURS = re.compile(r"PROBE_|ENABLE_|CUDA_|NVIDIA_|PYTHON|VIRTUAL_ENV|CONDA_|NO_COLOR|FORCE_COLOR|PYTORCH_|COLUMNS")


class Ran:
    """A run that is over."""

    def __init__(self, code: int, out: str, err: str, elapsed_s: float) -> None:
        self.code = code
        self.out = out
        self.err = err
        self.elapsed_s = elapsed_s

    def __repr__(self) -> str:
        return f"<exit {self.code} after {self.elapsed_s:.2f} s\nstdout: {self.out}\nstderr: {self.err}>"

    @property
    def report(self) -> dict[str, Any]:
        """Its one report, which fits the published schema."""
        assert self.out.count("\n") == 1, self
        found: dict[str, Any] = json.loads(self.out)
        validator(report_json.REPORT).validate(found)
        assert found["exit_code"] == self.code, self
        return found

    @property
    def decoded(self) -> Report:
        return msgspec.json.decode(self.out, type=Report)

    def outcome(self, check: str, target: str | None = None) -> dict[str, Any]:
        """The one outcome of `check`, of `target` where there are several."""
        found = [item for item in self.report["checks"] if item["id"] == check and target in (None, item["target"])]
        assert len(found) == 1, self
        return dict(found[0])

    def status(self, check: str, target: str | None = None) -> str:
        return str(self.outcome(check, target)["status"])

    @property
    def codes(self) -> list[str]:
        return [cause["code"] for cause in self.report["causes"]]

    @property
    def first_line(self) -> str:
        return self.out.partition("\n")[0]


@cache
def validator(name: str) -> Draft202012Validator:
    """Of a schema as it is published, which is the file."""
    return Draft202012Validator(json.loads(Path(report_json.file_of(name)).read_text()))


class Command:
    """`probe` as a call."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.mark = f"MARK_{uuid.uuid4().hex}"

    def env(self, extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
        """The environment of a run: the developer's without any setting of probe's, or of a GPU's."""
        plain = {name: value for name, value in os.environ.items() if not OURS.match(name)}
        merged = {**plain, self.mark: "1", "PROBE_LOG": "off", **(extra or {})}
        return {name: value for name, value in merged.items() if value is not None}

    def check_argv(self, *args: str, probe: Sequence[str] = ARGV) -> list[str]:
        return [*probe, "check", "--state", str(self.state), *args]

    def check(self, *args: str, **options: Any) -> Ran:
        """``probe check --format json`` with a state folder of the test's own."""
        return self.run(self.check_argv("--format", "json", *args), **options)

    def text(self, *args: str, **options: Any) -> Ran:
        """``probe check``, for people."""
        return self.run(self.check_argv(*args), **options)

    def __call__(self, *args: str, **options: Any) -> Ran:
        """Any other command."""
        return self.run([*ARGV, *args], **options)

    def on(self, scenario: Scenario, argv: Sequence[str], cache: Path, **options: Any) -> Ran:
        """A command on a GPU host that is not there."""
        ran = self.run(host.command(scenario, argv, cache), **{**options, "env": options.get("env", {})})
        if ran.code == host.CANNOT:
            missing(ran.err)
        return ran

    def run(self, argv: Sequence[str], **options: Any) -> Ran:
        """Any command, until it has ended and nobody holds its stdout and stderr."""
        with self.started(argv, **options) as process:
            return finish(process)

    @contextmanager
    def started(
        self, argv: Sequence[str], *, env: Mapping[str, str | None] | None = None, **options: Any
    ) -> "Iterator[subprocess.Popen[str]]":
        """Any command, just started; killed if it is still there at the end."""
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        began = time.monotonic()
        process = subprocess.Popen(argv, env=self.env(env), text=True, **{**pipes, **options})
        process.began = began  # type: ignore[attr-defined]
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(5)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def left(self) -> list[str]:
        """Every process of this machine that has the mark, as ``pid: command line``.

        The server of a fake host ends when its command has: for that one this waits.
        """
        found = []
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):  # noqa: PTH208 - names, many
            with suppress(OSError):  # not ours to look at, or gone meanwhile
                if self.mark.encode() not in Path(f"/proc/{pid}/environ").read_bytes():
                    continue
                words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if "fakes/host.py" in words and ends(pid, FAKES_END_S):
                    continue
                found.append(f"{pid}: {words}")
        return found


def finish(process: "subprocess.Popen[str]", bound_s: float = BOUND_S) -> Ran:
    """What a started command has said when it is over."""
    out, err = process.communicate(timeout=bound_s)
    return Ran(process.returncode, out or "", err or "", time.monotonic() - process.began)  # type: ignore[attr-defined]


def ends(pid: int, within_s: float) -> bool:
    """Whether a process, any, is gone or a zombie before that."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], within_s)[0])
    finally:
        os.close(pidfd)


def end(pid: int) -> None:
    """Kill one process that a test started and that is no child of ours; wait until it has gone."""
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], 5)
        finally:
            os.close(pidfd)


def missing(what: str) -> None:
    """This machine cannot play that: in CI a failure, elsewhere a skip."""
    if os.environ.get("CI"):
        pytest.fail(f"missing in CI: {what}")
    pytest.skip(what.strip())


def cpu_build() -> bool:
    """Whether the torch that the tests have is one without CUDA."""
    site = torchfile.find("auto", os.environ).site
    return site is not None and site.cuda is None


def fake_torch(folder: Path, init: str, *, version: str = "2.9.0+cpu", more: Mapping[str, str] | None = None) -> str:
    """A package `torch` under `folder` whose import runs `init`; returns what PYTHONPATH has to be."""
    package = folder / "torch"
    package.mkdir(parents=True)
    said = {"version.py": f"__version__ = {version!r}\ncuda = None\nhip = None\n", "__init__.py": init, **(more or {})}
    for name, content in said.items():
        (package / name).write_text(content)
    return str(folder)
