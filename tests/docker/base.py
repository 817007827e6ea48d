"""A small base image made of this machine's own files: two seconds, no network, no package manager.

::

    programs, sshd, the Python that runs the tests -> those files and the libraries that they load -> a tar
    tar -> docker import -> an image with a shell, a Python >= 3.11 and no torch

torch and what else lies in the tests' virtual environment is mounted into containers, at its own path.
"""

import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

PROGRAMS = ("cat", "env", "id", "install", "kill", "ls", "mkdir", "mv", "rm", "sh", "sleep", "touch")
SSHD = ("/usr/sbin/sshd", "/usr/bin/ssh-keygen")
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
FOLDERS = ("dev", "etc", "proc", "run", "run/sshd", "sys", "usr/bin", "usr/lib", "usr/lib64", "usr/sbin", "var/log")
FILES = {
    "etc/passwd": "root:x:0:0::/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/bin/false\n"
    "nobody:x:65534:65534::/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/os-release": 'ID=probe-test\nPRETTY_NAME="made of the files of the machine under test"\n',
    "etc/ssh/sshd_config": "Port 22\nListenAddress 127.0.0.1\nHostKey /etc/ssh/ssh_host_ed25519_key\n",
}
ENSUREPIP_OF_DEBIAN = Path("/usr/share/python-wheels")
NOT_OF_THE_LIBRARY = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "tkinter", "turtledemo"}
)


def write(tar_path: Path) -> None:
    """Make the tar of the image's root folder."""
    with tarfile.open(tar_path, "w") as tar:
        for name in FOLDERS:
            _add_folder(tar, name)
        _add_folder(tar, "tmp", mode=0o1777)
        for name, target in LINKS.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for name, content in FILES.items():
            _add_text(tar, name, content)
        for path in sorted(_files()):
            tar.add(os.path.realpath(path), _place(path), recursive=False)


def _files() -> set[Path]:
    """All that the programs and Python need, by the path at which it is looked for."""
    found = {Path(path) for name in PROGRAMS if (path := shutil.which(name))} | {Path(name) for name in SSHD}
    found |= set(_python()) | set(ENSUREPIP_OF_DEBIAN.glob("*.whl"))
    torch = Path(sysconfig.get_path("platlib"), "torch")
    binaries = [path for path in found if path.suffix == ".so" or os.access(path, os.X_OK)]
    return found | libraries([*binaries, *torch.glob("lib/lib*.so"), *torch.glob("_C*.so")])


def _python() -> Iterator[Path]:
    """The interpreter under the tests' environment, its library, and the name python3."""
    real = Path(os.path.realpath(sys.executable))
    yield real
    yield real.with_name("python3")
    for folder, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = sorted(set(folders) - NOT_OF_THE_LIBRARY)
        yield from (Path(folder, name) for name in names)


def libraries(binaries: Iterable[Path]) -> set[Path]:
    """The shared libraries that the binaries load, the loader too, but for what is mounted with the environment."""
    argv = ["ldd", *map(str, binaries)]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)  # scripts among them make it end with 1
    names = re.findall(r"(?:=> |\t)(/\S+) \(0x", ran.stdout)
    return {path for name in names if not (path := Path(name)).is_relative_to(sys.prefix)}


def _place(path: Path) -> str:
    """Where it goes: /lib and its like are links."""
    first, *rest = path.parts[1:]
    return str(Path(LINKS.get(first, first), *rest))


def _add_folder(tar: tarfile.TarFile, name: str, mode: int = 0o755) -> None:
    folder = tarfile.TarInfo(name)
    folder.type, folder.mode = tarfile.DIRTYPE, mode
    tar.addfile(folder)


def _add_text(tar: tarfile.TarFile, name: str, content: str) -> None:
    file = tarfile.TarInfo(name)
    file.size, file.mode = len(content.encode()), 0o644
    tar.addfile(file, io.BytesIO(content.encode()))
