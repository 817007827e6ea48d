"""What one run leaves for the next: one small JSON file in a folder of ours, replaced by rename.

Boot id, pid-namespace inode and the start time of pid 1 stand in its head: any differs, and the file is void (another
boot, another container). Two locks, both flock and so gone with their process: the file's, never waited for; the GPU
test's, for which `probe.rig` waits at most a second.
"""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from probe.model import NO_LOG
from probe.worker.parent import Lingering, lingering, process_stat

MAX_BYTES = 1 << 20
STUCK_AFTER_S = 10.0
"""After a SIGKILL, CUDA's teardown takes 0.2 s with 42 GB allocated (measured); ten seconds is no teardown."""


class Leaving(Struct, frozen=True):
    """A child that was killed and had not gone when its probe had to leave. Only ever reported, never signalled."""

    pid: int
    start_ticks: int
    worker: str
    target: str
    killed_boottime_s: float

    def there(self) -> bool:
        """Whether it has still not gone; its pid may be somebody else's by now."""
        return self._now() is not None

    def stuck(self) -> str:
        """How it is stuck, in words; empty when it has gone or is just leaving."""
        now = self._now()
        for_s = time.clock_gettime(time.CLOCK_BOOTTIME) - self.killed_boottime_s
        if now is None or for_s <= STUCK_AFTER_S:
            return ""
        asleep = f", in {now.wchan}" if now.wchan else ""
        return f"pid {self.pid} (state {now.state}{asleep}), killed {for_s:.0f} s ago"

    def _now(self) -> Lingering | None:
        now = lingering(self.pid)
        return now if now and now.start_ticks == self.start_ticks else None


class TorchPass(Struct, frozen=True):
    """A run in which every check of rung 4 that it had passed, on every GPU it had."""

    at_boottime_s: int
    checks: tuple[str, ...]
    about: str
    """What it was a pass of: the GPUs that were to be seen, the interpreter and the torch that it has."""

    def age_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.at_boottime_s


class Head(Struct, frozen=True):
    """Which life of which machine or container this is."""

    boot_id: str
    pid_namespace: int
    pid1_start_ticks: int

    @classmethod
    def here(cls) -> "Head":
        try:
            with open("/proc/sys/kernel/random/boot_id") as file:
                boot_id = file.read().strip()
        except OSError:
            boot_id = ""
        pid1 = process_stat(1)
        return cls(boot_id, os.stat("/proc/self/ns/pid").st_ino, pid1.start_ticks if pid1 else 0)


class State(Struct, frozen=True):
    """The file's content."""

    head: Head
    leaving: tuple[Leaving, ...] = ()
    gpus: tuple[str, ...] = ()
    """NVML's UUIDs of the first good run in this life."""
    kernel_log: int = -1
    """The sequence number of the last kernel-log record that a run has read; -1: none."""
    services: tuple[str, ...] = ()
    """The checks of services that passed in this life: these have been running here."""
    torch_pass: TorchPass | None = None
    host_keys: Mapping[str, str] = {}
    """By address, the type and fingerprint of the first ssh host key that was seen there in this life."""


class StateFolder:
    """The state's folder; every method says in `problem` what it could not do, and goes on without."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.problem = ""
        self.damaged = False
        self._gpu_lock = -1
        try:
            self._folder = _open_folder(path)
        except OSError as error:
            self._folder = -1
            self.problem = f"state not kept: {path}: {error.strerror}"

    def load(self) -> State:
        """What the last run left; nothing of it when that was in another life, or is damaged."""
        fresh = State(Head.here())
        if self._folder < 0:
            return fresh
        try:
            fd = os.open("state.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._folder)
            with open(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    return fresh
                found = msgspec.json.decode(file.read(MAX_BYTES), type=State)
        except FileNotFoundError:
            return fresh
        except (OSError, msgspec.MsgspecError) as error:
            self.problem = f"state not read: {self.path}/state.json: {error}"
            self.damaged = True
            return fresh
        return found if found.head == fresh.head else fresh

    def save(self, **changes: object) -> None:
        """Replace the named fields in the file as it is now."""
        if self._folder < 0:
            return
        try:
            lock = self._lock("lock")
        except BlockingIOError:
            self.problem = self.problem or f"state not kept: another probe is writing {self.path}"
            return
        if lock < 0:
            return
        try:
            self._replace(msgspec.json.encode(replace(self.load(), **changes)))
        except OSError as error:
            self.problem = f"state not kept: {self.path}: {error.strerror}"
        finally:
            os.close(lock)

    def _replace(self, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open("state.json.new", flags, 0o600, dir_fd=self._folder)  # one name: a killed run leaves one file
        with open(fd, "wb") as file:
            file.write(content)
        os.rename("state.json.new", "state.json", src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def try_gpu_lock(self) -> bool:
        """Take the lock that only one probe's GPU test holds; it goes with this process. True where none can be had."""
        if self._folder < 0 or self._gpu_lock >= 0:
            return True
        try:
            self._gpu_lock = self._lock("gpu.lock")
        except BlockingIOError:
            return False
        return True

    def _lock(self, name: str) -> int:
        """A descriptor that holds the lock, negative where none can be made; raise BlockingIOError where it is held."""
        try:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._folder)
        except OSError as error:
            self.problem = f"state not kept: {self.path}/{name}: {error.strerror}"
            return -1
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise
        return fd

    def forget(self) -> bool:
        """Remove the file; False when there was none. Raise OSError where it cannot be removed."""
        if self._folder < 0:
            raise OSError(errno.ENOENT, self.problem)
        try:
            os.unlink("state.json", dir_fd=self._folder)
        except FileNotFoundError:
            return False
        return True


def default_path(env: Mapping[str, str]) -> str:
    """Where the state is kept unless told otherwise."""
    if os.geteuid() == 0:
        return "/run/probe"
    if runtime := env.get("XDG_RUNTIME_DIR"):
        return os.path.join(runtime, "probe")
    return f"/tmp/probe-{os.geteuid()}"  # noqa: S108 - made 0700 and checked to be a real folder of ours


def log_path(wanted: str | None, state: str, env: Mapping[str, str]) -> str:
    """Where the log is: as set, else root's place, else the user's; empty: there is none."""
    if wanted is not None:
        return "" if wanted == NO_LOG else wanted
    if os.geteuid() == 0:
        return "/var/log/health.log"
    home = env.get("HOME", "")
    folder = env.get("XDG_STATE_HOME") or (f"{home}/.local/state" if home.startswith("/") else "")
    return os.path.join(folder, "probe/health.log") if folder.startswith("/") else os.path.join(state, "health.log")


def _open_folder(path: str) -> int:
    """Open the folder, made if need be; raise OSError unless it is a real folder of ours that others cannot write."""
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        os.close(fd)
        raise OSError(errno.EPERM, "not a folder of this user that only this user can write")
    return fd
