"""Runs a command on a GPU host that is not there.

::

    python tests/fakes/host.py tests/hosts/nvml-18.toml -- probe check
        |  a mount namespace of its own; exec: no process stays between, and the command keeps this one's pid
        |    /dev                a tmpfs: the usual nodes, the scenario's nodes, and .fake/ with all else that is faked
        |    /proc/driver        a tmpfs: nvidia/version, nvidia/gpus/<bus id>/information
        |    /sys/module         a tmpfs: nvidia, nvidia_uvm, ...
        |    /proc/devices, /proc/modules    bound over (the latter only where the kernel has it)
        |  where a node hangs: a server for it, aside, an orphan that ends with the command
        |  LD_LIBRARY_PATH and FAKE_GPU_HOST point into /dev/.fake
        v
    probe check

Root only. What is mounted goes with the last process in the namespace. How a node comes to its state:

========  ==============================================================================================================
ok        the numbers of /dev/null, 1:3, so that it opens (the numbers are not NVIDIA's)
hang      a FUSE file whose open is never answered, however it is opened; SIGKILL ends who waits. A regular file: no
          kernel has a character device that anybody can make hang
stuck     the same, but who waits is in state D and outlives SIGKILL, until the command has ended
eperm     195:n, and a device program on a cgroup that the command is moved into: what happens in the field after
          ``systemctl daemon-reload``. Needs cgroup 2 and bpf(2)
enxio     a major that no driver has
eacces    bound from a mount with ``nodev``
========  ==============================================================================================================
"""

import argparse
import ctypes
import os
import platform
import shutil
import stat
import struct
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":  # started as a file: the repository is what it imports from
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.fakes import fuse_hang
from tests.fakes.build import BuildError
from tests.fakes.scenario import Scenario, ScenarioError

CANNOT = 125
"""The exit status when there was no host to run the command on, as docker's and env's is."""
FAKE = Path("/dev/.fake")
NVIDIA_MAJOR = 195
UNUSED_MAJORS = range(234, 255)  # Documentation/admin-guide/devices.txt: dynamic or local use
CLONE_NEWNS, MS_NODEV, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 0x20000, 4, 4096, 8192, 16384, 1 << 18

libc = ctypes.CDLL(None, use_errno=True)


def default_cache() -> Path:
    return Path(tempfile.gettempdir()) / f"probe-fakes-{os.getuid()}"


def command(scenario: Scenario, argv: Sequence[str], cache: Path | None = None) -> list[str]:
    """The argv that runs `argv` on the scenario's host.

    `cache` keeps what was compiled. The launcher's own start, about 0.1 s, counts against a budget that is counted
    from the start of the process, since exec keeps that.
    """
    options = ["--cache", str(cache)] if cache else []
    return [sys.executable, "-S", "-E", __file__, *options, str(scenario.path), "--", *argv]


def enter(scenario: Scenario, cache: Path) -> dict[str, str]:
    """Become a process of the scenario's host and return the environment to go on with. No way back."""
    stage = cache / "stage"
    stage.mkdir(parents=True, exist_ok=True)
    _call("unshare", CLONE_NEWNS)
    _mount("none", "/", flags=MS_REC | MS_PRIVATE)
    _mount("tmpfs", stage, "tmpfs", data="mode=0755")
    fake = stage / FAKE.name
    fake.mkdir()
    env = scenario.install(fake, cache, seen_as=FAKE)
    _usual_nodes(stage)
    _nvidia_nodes(scenario, stage)
    servers = _hanging_nodes(scenario, stage)
    _proc_driver(scenario)
    _modules(scenario.files.modules)
    (fake / "devices").write_text(devices_text(scenario))
    (fake / "modules").write_text(modules_text(scenario.files.modules))
    for path, content in scenario.files.contents.items():
        _write(path, content, stage)
    _mount(stage, "/dev", flags=MS_MOVE)
    for name in ("devices", "modules"):
        if (real := Path("/proc", name)).exists():
            _mount(FAKE / name, real, flags=MS_BIND)
    if "eperm" in scenario.files.nodes.values():
        _deny_nvidia()
    if servers:
        _serve_aside(servers)
    env["LD_LIBRARY_PATH"] = ":".join(filter(None, (env["LD_LIBRARY_PATH"], os.environ.get("LD_LIBRARY_PATH"))))
    return {**os.environ, **env}


# ---- what the files say ----------------------------------------------------------------------------------------------


def version_text(driver: str) -> str:
    return (
        f"NVRM version: NVIDIA UNIX Open Kernel Module for {platform.machine()}  {driver}  Release Build  "
        "(dvs-builder@U22-I3-AM02-24-3)  Tue Aug  4 02:11:37 UTC 2026\n"
        "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04.2)\n"
    )


def information_text(scenario: Scenario, gpu: int) -> str:
    return (
        f"Model: \t\t {scenario.value(gpu, 'name', 'NVIDIA H100 80GB HBM3')}\n"
        f"IRQ:   \t\t {41 + gpu}\n"
        f"GPU UUID: \t {scenario.uuid(gpu)}\n"
        "Video BIOS: \t 96.00.da.00.0c\n"
        "Bus Type: \t PCIe\n"
        "DMA Size: \t 52 bits\n"
        "DMA Mask: \t 0xfffffffffffff\n"
        f"Bus Location: \t {scenario.bus_id(gpu)}\n"
        f"Device Minor: \t {scenario.value(gpu, 'minor', str(gpu))}\n"
        f"GPU Firmware: \t {scenario.files.kernel_driver}\n"
        "GPU Excluded:\t No\n"
    )


def devices_text(scenario: Scenario) -> str:
    """/proc/devices: NVIDIA's lines as far as the modules that make them are loaded."""
    lines = [(1, "mem"), (4, "tty"), (5, "/dev/tty"), (5, "/dev/console"), (5, "/dev/ptmx"), (10, "misc"), (136, "pts")]
    if "nvidia" in scenario.files.modules:
        lines += [(NVIDIA_MAJOR, "nvidia"), (NVIDIA_MAJOR, "nvidiactl"), (240, "nvidia-caps")]
    if "nvidia_uvm" in scenario.files.modules:
        lines.append((scenario.files.uvm_major, "nvidia-uvm"))
    listed = "".join(f"{major:3} {name}\n" for major, name in sorted(lines))
    return f"Character devices:\n{listed}\nBlock devices:\n  7 loop\n259 blkext\n"


def modules_text(modules: Iterable[str]) -> str:
    return "".join(f"{name} 2166784 2 - Live 0x0000000000000000 (O)\n" for name in modules)


# ---- the mounts ------------------------------------------------------------------------------------------------------


def _usual_nodes(stage: Path) -> None:
    for name, minor in {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}.items():
        _node(stage / name, 1, minor)
    _node(stage / "tty", 5, 0)
    _node(stage / "ptmx", 5, 2)
    for name, target in {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}.items():
        (stage / name).symlink_to(f"/proc/self/fd{target}")
    for name in ("pts", "shm"):
        (stage / name).mkdir()
        if Path("/dev", name).is_dir():
            _mount(f"/dev/{name}", stage / name, flags=MS_BIND | MS_REC)


def _nvidia_nodes(scenario: Scenario, stage: Path) -> None:
    for number, (name, state) in enumerate(scenario.files.nodes.items()):
        path = stage / name
        match state:
            case "ok":
                _node(path, 1, 3)
            case "eperm":
                _node(path, NVIDIA_MAJOR, number)
            case "enxio":
                _node(path, _unused_major(), number)
            case "eacces":
                _node_without_dev(path, stage / FAKE.name)


def _hanging_nodes(scenario: Scenario, stage: Path) -> dict[int, bool]:
    """Mount them; returns the servers' ends, each with whether SIGKILL ends who waits."""
    servers = {}
    for name, state in scenario.files.nodes.items():
        if state in {"hang", "stuck"}:
            (stage / name).touch()
            servers[fuse_hang.mount(stage / name, fuse_hang.FILE)] = state == "hang"
    return servers


def _serve_aside(servers: Mapping[int, bool]) -> None:
    """Serve them from a process that is no child of the command, holds nothing of it, and ends with it."""
    command_ends = os.pidfd_open(os.getpid())
    if middle := os.fork():
        os.waitpid(middle, 0)
        for fd in (*servers, command_ends):
            os.close(fd)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    nothing = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    try:
        fuse_hang.serve_files_that_never_open(servers, until=command_ends)
    finally:
        os._exit(0)


def _node(path: Path, major: int, minor: int) -> None:
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(major, minor))
    path.chmod(0o666)  # whatever the umask


def _node_without_dev(path: Path, fake: Path) -> None:
    nodev = fake / f"nodev-{path.name}"
    nodev.mkdir()
    _mount("tmpfs", nodev, "tmpfs", flags=MS_NODEV)
    _node(nodev / path.name, 1, 3)
    path.touch()
    _mount(nodev / path.name, path, flags=MS_BIND)


def _unused_major() -> int:
    used = {line.split()[0] for line in Path("/proc/devices").read_text().splitlines() if line[:3].strip().isdigit()}
    return next(major for major in UNUSED_MAJORS if str(major) not in used)


def _proc_driver(scenario: Scenario) -> None:
    _mount("tmpfs", "/proc/driver", "tmpfs", data="mode=0755")
    if not scenario.files.driver:
        return
    texts = {"version": version_text(scenario.files.kernel_driver)}
    for gpu in range(scenario.gpus):
        texts[f"gpus/{scenario.bus_id(gpu)}/information"] = information_text(scenario, gpu)
    for name, content in texts.items():
        path = Path("/proc/driver/nvidia", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if scenario.files.driver == "hang":
            os.mkfifo(path)
        else:
            path.write_text(content)


def _modules(modules: Iterable[str]) -> None:
    _mount("tmpfs", "/sys/module", "tmpfs", data="mode=0755")
    for name in modules:
        folder = Path("/sys/module", name)
        folder.mkdir()
        (folder / "initstate").write_text("live\n")


def _write(path: str, content: str, stage: Path) -> None:
    """A file of the scenario's own: made new under /dev and /proc/driver, bound over an existing one elsewhere."""
    if path.startswith("/dev/"):
        target = stage / path.removeprefix("/dev/")
    elif path.startswith("/proc/driver/"):
        target = Path(path)
    else:
        source = stage / FAKE.name / path.replace("/", "_")
        source.write_text(content)
        _mount(source, path, flags=MS_BIND)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content)


# ---- the cgroup ------------------------------------------------------------------------------------------------------


def _deny_nvidia() -> None:
    """Move this process into a cgroup whose device program denies NVIDIA's major."""
    root = _cgroup2()
    for old in root.glob("probe-fakes-*"):  # nobody stays behind to remove ours
        if not Path("/proc", old.name.rpartition("-")[2]).exists():
            old.rmdir()
    ours = root / f"probe-fakes-{os.getpid()}"
    ours.mkdir()
    attach, load, device_program, device_hook, allow_multi = 8, 5, 15, 6, 2
    program = b"".join(
        struct.pack("<BBhi", *instruction)
        for instruction in (
            (0x61, 0x12, 4, 0),  # r2 = context->major
            (0x15, 0x02, 2, NVIDIA_MAJOR),  # if r2 == 195 skip 2
            (0xB7, 0x00, 0, 1),  # r0 = 1: allowed
            (0x95, 0x00, 0, 0),  # return
            (0xB7, 0x00, 0, 0),  # r0 = 0: denied
            (0x95, 0x00, 0, 0),  # return
        )
    )
    code, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"GPL")
    words = (device_program, len(program) // 8, ctypes.addressof(code), ctypes.addressof(licence))
    loaded = _bpf(load, struct.pack("<IIQQ", *words))
    folder = os.open(ours, os.O_RDONLY | os.O_DIRECTORY)
    _bpf(attach, struct.pack("<IIII", folder, loaded, device_hook, allow_multi))
    os.close(folder)
    os.close(loaded)
    (ours / "cgroup.procs").write_text("0")


def _cgroup2() -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise OSError("no cgroup2 is mounted, so no open can be denied with EPERM")


def _bpf(operation: int, attributes: bytes) -> int:
    number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
    buffer = ctypes.create_string_buffer(attributes, 128)
    return _call("syscall", ctypes.c_long(number), operation, buffer, len(buffer))


# ---- the system calls ------------------------------------------------------------------------------------------------


def _call(name: str, *arguments: object) -> int:
    result: int = getattr(libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")
    return result


def _mount(source: Path | str, target: Path | str, kind: str = "", flags: int = 0, data: str = "") -> None:
    _call("mount", os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode())


def _run(argv: list[str], env: Mapping[str, str]) -> NoReturn:
    program = shutil.which(argv[0], path=env.get("PATH")) or argv[0]
    os.execve(program, argv, env)  # noqa: S606 - the command that this one was asked to run


def main() -> NoReturn:
    parser = argparse.ArgumentParser(description="Run a command on a GPU host that is not there.")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="keeps what was compiled")
    parser.add_argument("scenario", type=Path, help="a file of tests/hosts")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="after --")
    options = parser.parse_args()
    try:
        _run(options.command, enter(Scenario.load(options.scenario), options.cache))
    except (OSError, BuildError, ScenarioError) as error:
        sys.stderr.write(f"host.py: {error}\n")
        sys.exit(CANNOT)


if __name__ == "__main__":
    main()
