"""What every test gets: no process left behind, no settings of the developer's own, a state folder of its own.

Tests that this machine cannot run are left out by name of what they need, and the last line of the run says so. In CI
only a GPU may be missing: any other missing part fails.
"""

import os
import select
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import settings


def said(name: str) -> bool:
    return os.environ.get(name, "").lower() not in {"", "0", "false", "no"}


settings.register_profile("probe", deadline=None)  # a slow moment of a 2-core machine is no failure
settings.load_profile("ci" if said("CI") else "probe")


def has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "cc", "gcc", "clang"))


def left_out(item: pytest.Item) -> str | None:
    """Why this machine does not run `item`, as ``need (how to run it)``; None: it does."""
    if item.get_closest_marker("gpu") and not Path("/dev/nvidiactl").exists():
        return "need a GPU"
    if said("CI"):
        return None
    if item.get_closest_marker("system") and not said("SYSTEM"):
        return "need root and Debian packages (make test SYSTEM=1)"
    if item.get_closest_marker("cc") and not has_compiler():
        return "need a C compiler (apt-get install gcc libc6-dev)"
    return None


LEFT_OUT = pytest.StashKey[Counter[str]]()


@pytest.hookimpl(trylast=True)  # after -k and -m: only what was asked for is counted
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {item: left_out(item) for item in items}
    out = [item for item, reason in reasons.items() if reason]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item, reason in reasons.items() if not reason]
    config.stash[LEFT_OUT] = Counter(reason for reason in reasons.values() if reason)


@pytest.hookimpl(trylast=True)  # after the summary of pytest itself
def pytest_unconfigure(config: pytest.Config) -> None:
    if counts := config.stash.get(LEFT_OUT, None):
        parts = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        total = counts.total()
        config.get_terminal_writer().line(f"{total} {'test' if total == 1 else 'tests'} left out: {parts}")


def children() -> dict[int, str]:
    """The pids of the children of this process, zombies too, each with its state and command line."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            for pid in map(int, (task / "children").read_text().split()):
                with suppress(FileNotFoundError, ProcessLookupError):
                    name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[pid] = f"{rest.split()[0]} {words.strip() or name.partition('(')[2]}"
    return found


def end(pid: int) -> None:
    """Kill and reap one child, waiting 2 s at most: what one test left must not fail the next."""
    with suppress(ProcessLookupError, ChildProcessError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], 2)
            os.waitpid(pid, os.WNOHANG)
        finally:
            os.close(pidfd)


@contextmanager
def nothing_left() -> Iterator[None]:
    before = children()
    yield
    left = {pid: words for pid, words in children().items() if pid not in before}
    for pid in left:
        end(pid)
    if left:
        pytest.fail("left behind: " + "; ".join(f"pid {pid}: {words}" for pid, words in left.items()), pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def _no_child_left_by_the_session() -> Iterator[None]:
    """What a fixture wider than one test started is gone when the session ends."""
    with nothing_left():
        yield


@pytest.fixture(autouse=True)
def _no_child_left() -> Iterator[None]:
    """A test leaves no child process behind, zombies included."""
    with nothing_left():
        yield


@pytest.fixture(autouse=True)
def _settings_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of whoever runs the tests reaches probe."""
    for name in list(os.environ):
        if name.startswith(("PROBE_", "ENABLE_")):
            monkeypatch.delenv(name)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A path for ``--state`` that is this test's own; nothing is there yet."""
    return tmp_path / "state"
