"""Which services are to run here, and how they are reached, by what they and their supervisors have written to files.

Loaded by ``files.py`` where one of these questions is asked: ``jupyter:<runtime folder>``, ``homes:<folder of homes>``
(the runtime folder of every home in it), ``sshd:<sshd_config>``, ``which:<service>`` and ``told:<root folder>``.

A runtime file holds its server's token: what is said here of it goes to the check and from there nowhere but to that
server. Of what supervisors are told only the commands are passed on. Over 300 lines because every supervisor
has a convention of its own; each is a few.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress

TYPE_CHECKING = False  # as in child.py: typing is 2 ms
if TYPE_CHECKING:
    from typing import Any, Callable

MAX_BYTES = 65536
MOST_FILES = 64
MOST_SERVERS = 16
SLACK_S = 2.0
"""The kernel counts a process's start in hundredths of a second, and file systems stamp by the last tick."""

RUNTIME_FILE = re.compile(r"(?:jp|nb)server-\d+\.json")
JUPYTERS = ("jupyter", "notebook", "nbclassic")
"""What a server's process is called, or has been started as (`python -m notebook`)."""
HOMES = "/home/"
RUNTIME_FOLDER = ".local/share/jupyter/runtime"


def read(path: str, most: int = MAX_BYTES) -> str:
    """The text of a plain file; raise OSError for all else, so that no pipe or device holds up whoever asks."""
    return _opened(path, most)[0]


def _opened(path: str, most: int) -> tuple[str, os.stat_result]:
    """As `read`, with what is known of the very file that was read."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.EINVAL, "not a plain file")
        return file.read(most).decode("utf-8", "replace"), info


# ------------------------------------------------------------------------------------------------------- processes


def _started(pid: int) -> tuple[float, str] | None:
    """When a living process was started, as a wall clock's value, and what it is called; None: it is not there."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            head, _, rest = file.read().rpartition(b")")
    except OSError:
        return None
    fields = rest.split()
    if fields[0] in (b"Z", b"X"):
        return None
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s, head.partition(b"(")[2].decode("utf-8", "replace")


def _alive(pid: int, written: float, names: tuple[str, ...], perhaps: tuple[str, ...] = ()) -> bool:
    """Whether the process that wrote a file still runs, and not another one that has got its pid meanwhile.

    It bears one of its `names`, or one that it may `perhaps` have and is older than its file. Its age alone says
    nothing: the file may be another container's, whose pid is somebody else's here.
    """
    found = _started(pid)
    if found is None:
        return False
    called = f"{found[1]} {_command(pid)}"
    older = found[0] <= written + SLACK_S  # of one that bears the name, somebody may have set the clock forward
    return any(name in called for name in names) or (older and any(name in called for name in perhaps))


def _uid(pid: int) -> int:
    """Whose files it writes; -1: it is not there. The owner of its folder in /proc is root where it may not dump."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            found = re.search(rb"^Uid:(?:\s+\d+){3}\s+(\d+)", file.read(), re.MULTILINE)
    except OSError:
        return -1
    return int(found[1]) if found else -1


def _command(pid: int, root: str = "/") -> str:
    try:
        with open(os.path.join(root, "proc", str(pid), "cmdline"), "rb") as file:
            return file.read(MAX_BYTES).replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _of_this_life(written: float) -> bool:
    """Whether a file was written since pid 1 started: an image, or a container started again, may hold older ones."""
    first = _started(1)
    return first is None or written >= first[0] - SLACK_S


# --------------------------------------------------------------------------------------------------------- Jupyter


def _jupyter(folder: str, *, strict: bool = False) -> dict[str, Any]:
    """The servers that have a runtime file in the folder, the newest first.

    Below `HOMES` whoever has a home writes what they like: a file there speaks for its owner's processes alone.
    """
    files = [os.path.join(folder, name) for name in os.listdir(folder) if RUNTIME_FILE.fullmatch(name)]
    files = sorted(files, key=_written, reverse=True)[:MOST_SERVERS]
    own = os.stat(folder).st_dev == os.stat("/").st_dev
    strict = strict or os.path.realpath(folder).startswith(HOMES)
    return {"servers": [server for path in files for server in _server(path, own=own, strict=strict)]}


def _homes(folder: str) -> dict[str, Any]:
    """The servers of every user whose home is in the folder and can be read."""
    servers: list[dict[str, Any]] = []
    for name in sorted(os.listdir(folder))[:MOST_FILES]:
        with suppress(OSError):
            servers += _jupyter(os.path.join(folder, name, RUNTIME_FOLDER), strict=True)["servers"]
    return {"servers": servers[:MOST_SERVERS]}


def _written(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _owner(path: str) -> int:
    try:
        return os.stat(path).st_uid
    except (OSError, ValueError):
        return -1


def _server(path: str, *, own: bool, strict: bool) -> Iterator[dict[str, Any]]:
    """One server, where its file is whole: it is not while it is being written.

    `own`: the file is on this container's own file system; `strict`: it counts only if its owner's process wrote it.
    """
    try:
        content, info = _opened(path, MAX_BYTES)
        written, found = info.st_mtime, json.loads(content)
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(found, dict):
        return
    kinds: dict[str, type] = {"pid": int, "port": int, "sock": str, "secure": bool, "base_url": str, "token": str}
    server = {key: found.get(key, kind()) for key, kind in kinds.items()}
    if not all(isinstance(server[key], kind) for key, kind in kinds.items()):
        return
    pid, owner = server["pid"], info.st_uid
    if server["sock"]:  # asked here, so that a dead mount below it holds up this thread and not the engine
        listener = _owner(server["sock"])
        if strict and listener not in (-1, owner):
            return
    if strict and _uid(pid) not in (-1, owner):
        return
    # an own program that starts the server has any name; a file on a shared mount may be another container's
    alive = pid > 0 and _alive(pid, written, JUPYTERS, ("python",) if own else ())
    yield {**server, "file": path, "alive": alive, "of_this_life": own and _of_this_life(written)}


# ------------------------------------------------------------------------------------------------------------- ssh

PID_FILES = ("/run/sshd.pid", "/var/run/sshd.pid")
HOST_KEYS = "/etc/ssh/ssh_host_*_key.pub"
INCLUDES = 4
"""How deep: sshd itself stops at 16."""


def _sshd(path: str) -> dict[str, Any]:
    """What an sshd with this configuration would do; where it cannot be read, what one without any would."""
    settings = list(_settings(path, INCLUDES))
    said = {key: [value for name, value in settings if name == key] for key, _ in settings}
    ports = [port for value in said.get("listenaddress", ()) for port in re.findall(r"(?:^[^:]+|\]):(\d+)$", value)]
    pid_files = [value for value in said.get("pidfile", ())[:1] if value != "none"]
    pid_files = pid_files or ([] if "pidfile" in said else list(PID_FILES))
    keys = [f"{value}.pub" for value in said.get("hostkey", ())] or sorted(glob.glob(HOST_KEYS))
    return {
        "ports": [int(port) for port in [*ports, *said.get("port", ())] if port.isdigit() and len(port) < 6],
        "host_keys": [line for name in keys[:MOST_FILES] for line in _first_line(name)],
        "pids": [found for name in pid_files for found in _pid(name)][:1],
    }


def _settings(path: str, deeper: int) -> Iterator[tuple[str, str]]:
    """The settings outside of any Match, in the order in which sshd reads them."""
    try:
        lines = read(path).splitlines()
    except OSError:
        return
    for line in lines:
        found = re.match(r"\s*(\w+)(?:\s*=\s*|\s+)(\S.*)$", line)
        if not found:
            continue
        name, value = found[1].lower(), found[2].split(" #")[0].strip().strip('"')
        if name == "match":
            return
        if name == "include" and deeper:
            for pattern in value.split():
                for inner in sorted(glob.glob(os.path.join(os.path.dirname(path), pattern)))[:MOST_FILES]:
                    yield from _settings(inner, deeper - 1)
        elif name != "include":
            yield name, value


def _first_line(path: str) -> Iterator[str]:
    try:
        yield read(path, 8192).partition("\n")[0]
    except OSError:
        return


def _pid(path: str) -> Iterator[dict[str, Any]]:
    try:
        text, written = read(path, 32).strip(), os.stat(path).st_mtime
    except OSError:
        return
    if text.isdigit() and 0 < len(text) < 10:
        alive = _alive(int(text), written, ("sshd",))
        yield {"file": path, "pid": int(text), "alive": alive, "of_this_life": _of_this_life(written)}


# ---------------------------------------------------------------------------------------- what is installed, and told


PROGRAMS = {
    "jupyter": ("jupyter", "jupyter-lab", "jupyter-server", "jupyter-notebook", "jupyterhub-singleuser"),
    "ssh": ("sshd",),
}


def _which(service: str) -> dict[str, Any]:
    """Where the first of its programs is that is installed: on PATH, or where administrators' programs are."""
    folders = [*os.environ.get("PATH", "").split(":"), "/usr/local/sbin", "/usr/sbin", "/sbin"]
    for name in PROGRAMS[service]:
        for folder in folders:
            path = os.path.join(folder, name)
            if folder.startswith("/") and os.path.isfile(path) and os.access(path, os.X_OK):
                return {"path": path}
    return {"path": ""}


SUPERVISORD = (
    "etc/supervisord.conf",
    "etc/supervisor/supervisord.conf",
    "etc/supervisor/conf.d/*.conf",
    "etc/supervisord.d/*.conf",
    "etc/supervisord.d/*.ini",
)
RUN_FOLDERS = ("etc/services.d", "etc/service", "var/service", "etc/runit/runsvdir/default")
"""Of s6-overlay 2 and of runit: a folder of services, each with a program ``run``."""
MOST_PROCESSES = 5000
S6_RC = "etc/s6-overlay/s6-rc.d"
SYSTEMD = ("etc/systemd/system/multi-user.target.wants", "etc/systemd/system/sockets.target.wants")


def _told(root: str) -> dict[str, Any]:
    """Whatever is to be run here, each as [who was told so, the command]: pid 1, and supervisors by their files."""
    first = _command(1, root)
    commands = [["pid 1's command", first]]
    running = set(_names(root))
    for supervisor, told in SUPERVISORS.items():
        if supervisor in running or supervisor in first:
            commands += told(root)
    return {"commands": commands[: 4 * MOST_FILES]}


def _names(root: str) -> Iterator[str]:
    """What the processes of this machine are called."""
    pids = [name for name in os.listdir(os.path.join(root, "proc")) if name.isdigit()]
    for pid in pids[:MOST_PROCESSES]:
        with suppress(OSError), open(os.path.join(root, "proc", pid, "stat"), "rb") as file:
            yield file.read(4096).rpartition(b")")[0].partition(b"(")[2].decode("utf-8", "replace")


def _supervisord(root: str) -> Iterator[list[str]]:
    given = re.findall(r"supervisord\b.*?\s(?:-c|--configuration)[\s=]*(/\S+)", _command(1, root))
    patterns = [os.path.join(root, pattern.lstrip("/")) for pattern in (*given, *SUPERVISORD)]
    for path in [path for pattern in patterns for path in sorted(glob.glob(pattern))][:MOST_FILES]:
        import configparser

        parser = configparser.RawConfigParser(strict=False, inline_comment_prefixes=(";",))
        try:
            parser.read_string(read(path))
        except (OSError, configparser.Error):
            continue
        for section in parser.sections():
            told = parser[section]
            if section.startswith("program:") and told.get("autostart", "true").lower() not in ("false", "no", "0"):
                yield [_shown(root, path), told.get("command", "")]


def _run_files(root: str) -> Iterator[list[str]]:
    for folder in RUN_FOLDERS:
        for path in sorted(glob.glob(os.path.join(root, folder, "*", "run")))[:MOST_FILES]:
            if not os.path.exists(os.path.join(os.path.dirname(path), "down")):
                yield from _script(root, path)


def _s6_rc(root: str) -> Iterator[list[str]]:
    """Of s6-overlay 3 only what its bundle names is run."""
    for path in sorted(glob.glob(os.path.join(root, S6_RC, "user*/contents.d/*")))[:MOST_FILES]:
        yield from _script(root, os.path.join(root, S6_RC, os.path.basename(path), "run"))


def _script(root: str, path: str) -> Iterator[list[str]]:
    try:
        lines = read(path, 8192).splitlines()
    except OSError:
        return
    yield [_shown(root, path), " ".join(line for line in lines if not line.lstrip().startswith("#"))]


def _systemd(root: str) -> Iterator[list[str]]:
    """The units that are enabled, by name."""
    for folder in SYSTEMD:
        for path in sorted(glob.glob(os.path.join(root, folder, "*")))[: 4 * MOST_FILES]:
            if fnmatch.fnmatch(path, "*/*ssh*") or fnmatch.fnmatch(path, "*/jupyter*"):
                yield [_shown(root, path), f"systemctl start {os.path.basename(path)}"]


SUPERVISORS: dict[str, Callable[[str], Iterator[list[str]]]] = {
    "supervisord": _supervisord,
    "runsvdir": _run_files,
    "s6-svscan": lambda root: (line for told in (_run_files, _s6_rc) for line in told(root)),
    "systemd": _systemd,
}
"""By the name of the process, which must be there: Debian's packages bring files for supervisors that are not."""


def _shown(root: str, path: str) -> str:
    return "/" + os.path.relpath(path, root)


QUESTIONS: dict[str, Callable[[str], dict[str, Any]]] = {
    "jupyter": _jupyter,
    "homes": _homes,
    "sshd": _sshd,
    "which": _which,
    "told": _told,
}
