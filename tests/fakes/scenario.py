"""A GPU host in a TOML file of `tests/hosts`: what it says, and what that makes of the fakes.

::

    [host]                        gpus, driver, ... : values of the host
    [nvml]  [cuda]                init = 18         : what calls return; or "hang", "segv", "abort", "kill", "exit"
                                  library = false   : not installed;   missing = ["symbol", ...]: an older driver's
    [gpu.3]  [gpu."*"]            memory.used = 1   : values of one GPU, of all others
    [gpu.3.nvml]  [gpu.3.cuda]    handle = 15       : calls on it
    [gpu.0.mig.1]                                   : one MIG instance
    [files]                       driver = true | false | "hang" : /proc/driver/nvidia, and the lines of /proc/devices
                                  kernel_driver, uvm_major, modules, "/absolute/path" = "content"
    [files.nodes]                 nvidia0 = "ok", "absent", "hang", "stuck", "eperm", "enxio", "eacces"; "*": all others
    [smi]                         present, output, status, hangs: nvidia-smi, where it does not do as NVML does
    [env]                         what the command finds in its environment
    argv = [...]                  what a test adds to its command
    [expect]                      verdict, exit_code, blames = ["gpu:3"], all three; cause; internal = ["check"]

Which keys there are stands in `scenario.h`, `nvml.c`, `nvml_health.c` and `cuda.c`; any other is refused.
"""

import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes.build import built, known_keys

LIBRARY_OF = {"nvml": "libnvidia-ml.so.1", "cuda": "libcuda.so.1"}
NODE_STATES = frozenset({"ok", "absent", "hang", "stuck", "eperm", "enxio", "eacces"})
UNJUDGED = '\n[expect]\nverdict = "unjudged"\nexit_code = 0\nblames = []\n'
"""Ends the file of a host on which a test asks the fakes only, and no verdict is made."""
DRIVER = "580.159.04"
BUSES = (0x19, 0x3B, 0x4C, 0x5D, 0x9B, 0xBB, 0xCB, 0xDB, 0x1A, 0x3C, 0x4D, 0x5E, 0x9C, 0xBC, 0xCC, 0xDC)


class ScenarioError(Exception):
    """A scenario file says what the fakes do not know."""


def uuid_of(gpu: int, mig: int | None = None) -> str:
    """The UUID that the fakes give a GPU, or one of its MIG instances, unless the scenario names another."""
    first = (gpu + 1) * 0x1F3D5B79 & 0xFFFFFFFF
    return f"GPU-{first:08x}-6e1c-4b2a-9f0d-{gpu:012x}" if mig is None else f"MIG-{first:08x}-7d2e-5c3b-8a1f-{mig:012x}"


@dataclass(frozen=True)
class Expect:
    """What probe is to say of the host. Only the cause may be left open."""

    verdict: str
    exit_code: int
    blames: tuple[str, ...]
    """Targets, ``gpu:3`` written out as ``gpu:GPU-...``."""
    cause: str | None = None
    internal: tuple[str, ...] = ()
    """The checks that are to say that probe itself failed."""


@dataclass(frozen=True)
class Files:
    """The files by which a host shows its GPUs."""

    driver: bool | str = True
    kernel_driver: str = DRIVER
    uvm_major: int = 1
    """What /proc/devices says of nvidia-uvm; the node itself has 1 (as /dev/null has), so that it opens."""
    modules: tuple[str, ...] = ("nvidia", "nvidia_uvm", "nvidia_modeset")
    nodes: Mapping[str, str] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Smi:
    """nvidia-smi, where a scenario says more of it than follows from NVML."""

    present: bool = True
    output: str | None = None
    status: int = 0
    hangs: bool = False


@dataclass(frozen=True)
class Scenario:
    """One host."""

    path: Path
    gpus: int
    values: Mapping[str, str]
    """What the fake libraries read, flat."""
    missing: Mapping[str, tuple[str, ...]]
    """The libraries that are installed, each with the functions it lacks."""
    files: Files
    smi: Smi
    env: Mapping[str, str]
    argv: tuple[str, ...]
    expect: Expect

    @property
    def name(self) -> str:
        return self.path.stem

    @classmethod
    def load(cls, path: Path) -> "Scenario":
        """Read and check one file. Raises `ScenarioError`, naming it."""
        try:
            return _read(path, tomllib.loads(path.read_text()))
        except (ScenarioError, tomllib.TOMLDecodeError, TypeError) as error:
            raise ScenarioError(f"{path}: {error}") from error

    def value(self, gpu: int, key: str, otherwise: str) -> str:
        """A value of one GPU, as the fake libraries would find it."""
        return self.values.get(f"gpu.{gpu}.{key}", self.values.get(f"gpu.*.{key}", otherwise))

    def uuid(self, gpu: int) -> str:
        return self.value(gpu, "uuid", uuid_of(gpu))

    def bus_id(self, gpu: int) -> str:
        """As the kernel writes it: ``0000:19:00.0``."""
        return f"0000:{int(self.value(gpu, 'bus', str(BUSES[gpu])), 0):02x}:00.0"

    def install(self, folder: Path, cache: Path, seen_as: Path | None = None) -> dict[str, str]:
        """Put libraries and values into `folder` and return the variables that make a process use them.

        `seen_as` is the path under which that process will find the folder. No root needed; device nodes and procfs
        stay this machine's own: `tests.fakes.host.command` fakes those too.
        """
        for library, missing in self.missing.items():
            shutil.copy(built(library, cache, missing), folder / library)
        (folder / "values").write_text("".join(f"{key} = {value}\n" for key, value in self.values.items()))
        (folder / "bin").mkdir(exist_ok=True)
        if self.smi.present and LIBRARY_OF["nvml"] in self.missing:
            smi = folder / "bin" / "nvidia-smi"
            smi.write_text(f"#!/bin/sh\n{_smi(self)}\n")
            smi.chmod(0o755)
        seen = seen_as or folder
        path = f"{seen / 'bin'}:{os.environ.get('PATH', os.defpath)}"
        return {"PATH": path, **self.env, "LD_LIBRARY_PATH": str(seen), "FAKE_GPU_HOST": str(seen / "values")}


def _smi(scenario: Scenario) -> str:
    """A shell's program that does as nvidia-smi would on this host when it is asked for the count."""
    handles = [scenario.value(gpu, "nvml.handle", "0") for gpu in range(scenario.gpus)]
    init = scenario.values.get("nvml.init", "0")
    count = int(scenario.values.get("nvml.gpus", scenario.gpus))
    if scenario.smi.output is not None:
        return _printed(scenario.smi.output, scenario.smi.status)
    if scenario.smi.hangs or "hang" in (init, *handles):
        return "exec sleep 1000"
    if not init.isdigit():
        return "kill -s SEGV $$"
    if init != "0":
        return _printed("Failed to initialize NVML: it is a fake\n", int(init) & 255)
    for gpu, handle in enumerate(handles):
        if handle != "0":
            where = f"Unable to determine the device handle for GPU{scenario.bus_id(gpu)}: it is a fake\n"
            return _printed(where, int(handle) & 255 if handle.isdigit() else 255)
    return _printed(f"{count}\n" * count, 0) if count else _printed("No devices were found\n", 6)


def _printed(text: str, status: int) -> str:
    return f"printf %s {shlex.quote(text)}\nexit {status}"


def _read(path: Path, tables: dict[str, Any]) -> Scenario:
    expect, env = dict(tables.pop("expect", {})), tables.pop("env", {})
    files, argv, smi = dict(tables.pop("files", {})), tuple(tables.pop("argv", ())), Smi(**tables.pop("smi", {}))
    missing: dict[str, tuple[str, ...]] = {}
    for table, library in LIBRARY_OF.items():
        lacks = tuple(tables.get(table, {}).pop("missing", ()))
        if tables.get(table, {}).pop("library", True):
            missing[library] = lacks
    values = dict(_flat({**tables.pop("host", {}), **tables}))
    _refuse_unknown(values)
    gpus = int(values.get("gpus", "8"))

    def target(blamed: str) -> str:
        index = blamed.removeprefix("gpu:")
        return "gpu:" + values.get(f"gpu.{index}.uuid", uuid_of(int(index))) if index.isdigit() else blamed

    if missed := {"verdict", "exit_code", "blames"} - set(expect):
        raise ScenarioError(f"[expect] lacks {', '.join(sorted(missed))}")
    expect["blames"] = tuple(map(target, expect["blames"]))
    expect["internal"] = tuple(expect.get("internal", ()))
    return Scenario(
        path.resolve(), gpus, values, missing, _files(files, gpus, values), smi, env, argv, Expect(**expect)
    )


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, said in table.items():
        value = {str(index): item for index, item in enumerate(said)} if isinstance(said, list) else said
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(int(value)) if isinstance(value, bool) else str(value)


def _refuse_unknown(values: Mapping[str, str]) -> None:
    forms = [key for key in known_keys() if not key.startswith("gpu.")]
    known = re.compile("|".join(re.sub("%[ud]", "[0-9]+", re.escape(form)).replace("%s", "[a-z]+") for form in forms))
    for key in values:
        said = re.sub(r"^gpu\.(\d+|\*)\.(mig\.\d+\.)?", "", key)
        if not known.fullmatch(re.sub(r"^(ecc\..*)\.(dram|sram)$", r"\1", said)):
            raise ScenarioError(f"no fake knows {key!r}")


def _files(table: dict[str, Any], gpus: int, values: Mapping[str, str]) -> Files:
    contents = {key: table.pop(key) for key in list(table) if key.startswith("/")}
    said = table.pop("nodes", {})
    names = ["nvidiactl", *(f"nvidia{gpu}" for gpu in range(gpus)), "nvidia-uvm", "nvidia-uvm-tools"]
    if unknown := set(said) - {*names, "*"}:
        raise ScenarioError(f"no such device node: {sorted(unknown)}")
    nodes = {name: said.get(name, said.get("*", "ok")) for name in names}
    if unknown := set(nodes.values()) - NODE_STATES:
        raise ScenarioError(f"no such state of a node: {sorted(unknown)}")
    table.setdefault("kernel_driver", values.get("driver", DRIVER))
    table["modules"] = tuple(table.get("modules", Files.modules if table.get("driver", True) else ()))
    return Files(**table, nodes=nodes, contents=contents)
