"""The promises of the project's own files: what is in the wheel, what it asks for, and who may import what."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import probe

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/probe"
FILES = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}

# ---------------------------------------------------------------------------------------------- who may import what
# Patterns are of paths below src/probe; `*` crosses folders. The design's paragraph "Imports", as tables.

ONLY_IN = {
    "asyncssh": ("cluster/ssh.py", "checks/service_ssh.py"),
    "httpx": ("checks/service_http.py", "checks/service_jupyter.py"),
    "pynvml": ("worker/nvml.py",),
    "ClusterShell": ("cluster/hosts.py",),
    "rich": ("cluster/progress.py", "measure/progress.py"),
    "torch": (
        "worker/zygote.py",
        "worker/tensor.py",
        "worker/nccl.py",
        "worker/model.py",
        "rank/*",
        "measure/programs/*",
    ),
}
"""Heavy libraries, and the only files that import them."""

IO = ("anyio", "asyncio", "os", "socket", "subprocess", "threading", "time")

NEVER_IN = {
    "engine.py": ("asyncio",),  # its time is tested on trio's MockClock
    **dict.fromkeys(("cluster/evidence.py", "cluster/localise.py", "cluster/pairing.py"), IO),  # pure, by design
}

OF_PROBE = {
    "checks/__init__.py": ("checks", "registry"),  # the list of checks
    "checks/device_xid.py": ("model", "registry", "context", "xids"),  # the table of XIDs, and how a log is read
    "checks/service_*": ("model", "registry", "context", "options", "checks"),  # a kind of target declares its settings
    "checks/reaching.py": ("model", "context", "redact"),  # others' words are cut, which must not cut a secret in two
    "checks/*": ("model", "registry", "context"),
    "cluster/evidence.py": (),
    "cluster/localise.py": ("cluster",),  # the planner: evidence and pairing, both as pure as itself
    "cluster/pairing.py": ("cluster",),
    "engine.py": ("model", "context"),
    "plan.py": ("model",),
    "verdict.py": ("model",),
    "report/gate.py": ("report", "cluster"),  # the gate's own report is made of the gate's own types
    "report/*": ("model", "report", "redact", "exits", "faults"),
}
"""What of probe a file may import; the first pattern that fits counts, and a file that none fits is free."""

STANDALONE = {
    "worker/child.py": (),
    "worker/exec.py": (),
    "worker/files.py": (),
    "worker/leave.py": (),
    "worker/services.py": (),
    "worker/cuda.py": (),
    "worker/zygote.py": ("torch",),
    "worker/tensor.py": ("torch",),
    "worker/nccl.py": ("torch",),
    "worker/model.py": ("torch",),
    "rank/*": ("torch",),
    "rank/agent.py": ("probe",),  # runs where probe is; tests/rank/test_agent.py sees to it that it loads nothing else
    "rank/__init__.py": (),
    "measure/programs/*": ("torch",),
}
"""Programs that may run in another interpreter than probe's, of Python 3.9 or newer: what they import beside the
standard library."""

SINCE_39 = {"annotationlib", "compression", "tomllib"}
STANDARD_LIBRARY = sys.stdlib_module_names - SINCE_39


def _resolve(node: ast.ImportFrom, path: str) -> Iterator[str]:
    """The modules that one `from` statement reads: ``from probe import model`` reads probe.model."""
    base = node.module or ""
    if node.level:
        package = ["probe", *path.split("/")[:-1]]
        base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
    for alias in node.names:
        below = SOURCE.joinpath(*base.split(".")[1:], alias.name)
        is_module = base.partition(".")[0] == "probe" and (below.is_dir() or below.with_suffix(".py").exists())
        yield f"{base}.{alias.name}" if is_module else base


@cache
def imports(path: str) -> tuple[tuple[str, int], ...]:
    """Every module that a file imports, with the line: at its top, in a function, for types, or by a literal name."""
    return tuple(_imports(ast.parse(FILES[path].read_text(), path), path))


def _imports(tree: ast.AST, path: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from ((alias.name, node.lineno) for alias in node.names)
            case ast.ImportFrom():
                yield from ((name, node.lineno) for name in _resolve(node, path))
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name, node.lineno


def found(path: str, names: tuple[str, ...]) -> list[str]:
    """Where `path` imports one of `names` or a part of it, as ``file:line name``."""
    return [f"{path}:{line} {name}" for name, line in imports(path) if name.partition(".")[0] in names]


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_heavy_library_is_imported_only_where_the_design_says(library: str) -> None:
    elsewhere = [path for path in FILES if not any(fnmatch(path, pattern) for pattern in ONLY_IN[library])]
    assert [] == [hit for path in elsewhere for hit in found(path, (library,))]


@pytest.mark.parametrize("path", sorted(FILES.keys() & NEVER_IN))
def test_a_file_does_not_import_what_would_tie_it_down(path: str) -> None:
    assert [] == found(path, NEVER_IN[path])


@pytest.mark.parametrize("path", FILES)
def test_a_file_imports_of_probe_only_what_its_part_may_know(path: str) -> None:
    allowed = next((names for pattern, names in OF_PROBE.items() if fnmatch(path, pattern)), None)
    if allowed is None:
        return
    parts = [(name, name.split(".")[1:2], line) for name, line in imports(path) if name.partition(".")[0] == "probe"]
    assert [] == [f"{path}:{line} {name}" for name, part, line in parts if not set(part) & set(allowed)]


def _standalone() -> dict[str, tuple[str, ...]]:
    """The programs of `STANDALONE` that exist, and whatever else imports torch."""
    named = {path: libraries for path in FILES for key, libraries in STANDALONE.items() if fnmatch(path, key)}
    return {path: ("torch",) for path in FILES if found(path, ("torch",))} | named


@pytest.mark.parametrize(("path", "libraries"), _standalone().items(), ids=_standalone())
def test_a_standalone_program_imports_only_the_standard_library_and_torch(
    path: str, libraries: tuple[str, ...]
) -> None:
    allowed = STANDARD_LIBRARY | set(libraries)
    assert [] == [f"{path}:{line} {name}" for name, line in imports(path) if name.partition(".")[0] not in allowed]


@pytest.mark.parametrize("path", _standalone())
def test_a_standalone_program_is_python_3_9(path: str) -> None:
    ast.parse(FILES[path].read_text(), path, feature_version=(3, 9))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn as nn", {"torch.nn"}),
        ("def f():\n    from torch import cuda", {"torch"}),
        ("from probe import model, __version__", {"probe.model", "probe"}),
        ("from ..model import Status", {"probe.model"}),
        ("from . import child", {"probe.worker.child"}),
        ("import importlib\nimportlib.import_module('torch')", {"importlib", "torch"}),
        ("__import__('torch')", {"torch"}),
    ],
)
def test_no_way_of_writing_an_import_escapes_the_rules(source: str, expected: set[str]) -> None:
    assert expected == {name for name, _ in _imports(ast.parse(source), "worker/parent.py")}


# --------------------------------------------------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of this checkout by the backend itself: no network, no environment of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def requirements(metadata: Message) -> list[Requirement]:
    return [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("probe/")}
    files = [path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {f"probe/{path.relative_to(SOURCE).as_posix()}" for path in files} == held


def test_the_wheel_holds_the_catalogue_the_schemas_and_the_mark_of_being_typed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = archive.namelist()
    missing = {
        pattern
        for pattern in ("probe/faults.toml", "probe/xids.toml", "probe/*schema/*.json", "probe/py.typed")
        if not any(fnmatch(name, pattern) for name in held)
    }
    assert set() == missing


def test_the_wheel_says_what_it_is(metadata: Message) -> None:
    head = {key: metadata[key] for key in ("Name", "Version", "License-Expression", "Requires-Python")}
    expected = {
        "Name": "gpu-probe",
        "Version": probe.__version__,
        "License-Expression": "Apache-2.0",
        "Requires-Python": ">=3.11",
    }
    assert expected == head


def test_installing_probe_never_brings_or_replaces_torch(requirements: list[Requirement]) -> None:
    hard = {requirement.name for requirement in requirements if requirement.marker is None}
    assert {"anyio", "asyncssh", "click", "httpx", "msgspec", "nvidia-ml-py"} == hard


@pytest.mark.parametrize("version", ["2.4.0a0+07cecf4168.nv24.5", "2.4.0", "2.13.0+cpu", "2.13.0+cu130"])
def test_the_torch_extra_is_satisfied_by_vendor_builds(requirements: list[Requirement], version: str) -> None:
    (torch,) = [requirement for requirement in requirements if requirement.name == "torch"]
    assert torch.marker is not None
    assert torch.marker.evaluate({"extra": "torch"})
    assert torch.specifier.contains(version, prereleases=True)


# --------------------------------------------------------------------------------------------------- the constraints


def _asked_for() -> set[str]:
    given: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = given["project"]
    lists = [
        given["build-system"]["requires"],
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *given["dependency-groups"].values(),
    ]
    return {canonicalize_name(Requirement(line).name) for names in lists for line in names}


def test_constraints_name_one_version_of_whatever_is_asked_for() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(match[1]) for line in lines if (match := re.fullmatch(r"([\w.-]+)==[\w.]+", line))}
    assert set() == _asked_for() - pinned
