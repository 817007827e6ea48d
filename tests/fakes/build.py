"""Compiles the fake driver libraries, once per folder.

Objects are made once and linked once for every set of functions that a driver is said not to have: a linker version
script makes those local, so that looking them up fails as it does with an older driver.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

SOURCES = Path(__file__).parent
LIBRARIES = {
    "libnvidia-ml.so.1": ("nvml.c", "nvml_health.c", "scenario.c"),
    "libcuda.so.1": ("cuda.c", "scenario.c"),
}
FLAGS = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden")


class BuildError(Exception):
    """The compiler refused; its words."""


def compiler() -> str | None:
    """The C compiler of this machine, or None."""
    return shutil.which(os.environ.get("CC", "cc"))


def build(cache: Path) -> Path:
    """Build both libraries, whole, under `cache` unless they are there, and return the folder that holds them."""
    (folder,) = {built(library, cache).parent for library in LIBRARIES}
    return folder


def built(library: str, cache: Path, missing: Iterable[str] = ()) -> Path:
    """The path under `cache` of `library` without the functions `missing`, compiled if it is not there yet."""
    hidden = sorted(missing)
    if unknown := set(hidden) - exported(library):
        raise BuildError(f"{library} has no {', '.join(sorted(unknown))}")
    path = cache / _state_of_sources(hidden) / library
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            made = _compile(library, hidden, Path(scratch))
            made.replace(path)  # two builds at once: both are whole
    return path


def exported(library: str) -> frozenset[str]:
    """The functions that `library` has when nothing is missing."""
    code = "\n".join((SOURCES / name).read_text() for name in LIBRARIES[library])
    return frozenset(re.findall(r"^(?:EXPORT .*?|GETTER\()\b((?:nvml|cu)[A-Z]\w+)[(,]", code, re.MULTILINE))


def known_keys() -> frozenset[str]:
    """The keys that a scenario may hold, ``field.%u`` and the like as patterns: every string literal of that form."""
    code = "\n".join(path.read_text() for path in SOURCES.glob("*.c"))
    return frozenset(re.findall(r'"([a-z][a-z0-9_]*(?:\.[a-z0-9_%]+)*)"', code))


def _state_of_sources(hidden: list[str]) -> str:
    """A name that is another when a source, a flag or what is missing is."""
    state = hashlib.sha256("\0".join((*FLAGS, *hidden)).encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        state.update(path.read_bytes())
    return state.hexdigest()[:16]


def _compile(library: str, hidden: list[str], scratch: Path) -> Path:
    made, script = scratch / library, scratch / "exports"
    script.write_text("{ global: *; local: " + "".join(f"{name}; " for name in hidden or ["none"]) + "};")
    sources = [str(SOURCES / name) for name in LIBRARIES[library]]
    argv = [compiler() or "cc", *FLAGS, f"-Wl,--version-script={script}", f"-Wl,-soname,{library}"]
    ran = subprocess.run([*argv, "-o", str(made), *sources], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise BuildError(ran.stderr)
    return made
