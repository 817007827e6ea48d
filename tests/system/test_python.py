"""Which torch is tested, in which interpreter, beside what else: never one from the working directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.command import ARGV, Command

SITE = Path(os.__file__).parent / "site-packages"
TORCH_ONLY = ("torch", "functorch", "torchgen", "numpy", "nvidia", "triton")
PROBE_ONLY = ("probe", "gpu_probe", "_editable", "anyio", "msgspec", "click", "httpx", "asyncssh", "pynvml")


def site_of(python: Path) -> Path:
    return next((python.parents[1] / "lib").glob("python3*")) / "site-packages"


def venv_with(folder: Path, without: tuple[str, ...]) -> Path:
    """A virtual environment that has what this one has, but for packages whose names begin with one of `without`."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    for item in site_of(Path(sys.executable)).iterdir():
        if not item.name.startswith((*without, "pip", "__pycache__")):
            (site_of(python) / item.name).symlink_to(item)
    return python


@pytest.fixture(scope="session")
def with_probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has probe and no torch."""
    return venv_with(tmp_path_factory.mktemp("venvs") / "probe's own", TORCH_ONLY)


@pytest.fixture(scope="session")
def with_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has torch and neither probe nor anything that probe is made of."""
    return venv_with(tmp_path_factory.mktemp("venvs") / "torch's own", PROBE_ONLY)


@pytest.fixture(scope="session")
def no_torch_on_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which no python3 is."""
    return str(tmp_path_factory.mktemp("bin"))


def test_the_two_environments_are_apart(with_probe: Path, with_torch: Path) -> None:
    """What the tests below rest on."""
    for python, module in ((with_probe, "torch"), (with_torch, "probe"), (with_torch, "msgspec")):
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is not None)"
        assert subprocess.run([python, "-P", "-c", code], check=False, cwd="/").returncode == 0


def test_torch_in_the_interpreter_that_is_named(
    probe: Command, with_probe: Path, with_torch: Path, no_torch_on_path: str
) -> None:
    """``--python``: rung 4 runs there, with its torch."""
    argv = [str(with_probe), "-P", "-m", "probe"]
    args = probe.check_argv("--format", "json", "--python", str(with_torch), probe=argv)
    ran = probe.run(args, env={"PATH": no_torch_on_path})
    assert (ran.code, ran.status("torch.tensor"), ran.err) == (0, "pass", "")
    assert ran.outcome("torch.import")["data"]["file"].startswith(str(with_torch.parents[1]))


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX", "PATH"])
def test_torch_is_found_where_the_user_would(
    probe: Command, with_probe: Path, with_torch: Path, no_torch_on_path: str, variable: str
) -> None:
    """Not in our own interpreter: in the active environment's, else in the first python3 on PATH that has it."""
    value = f"{no_torch_on_path}:{with_torch.parent}" if variable == "PATH" else str(with_torch.parents[1])
    args = probe.check_argv("--format", "json", probe=[str(with_probe), "-P", "-m", "probe"])
    ran = probe.run(args, env={"PATH": no_torch_on_path, variable: value})
    assert (ran.code, ran.status("torch.tensor"), ran.err) == (0, "pass", "")
    assert ran.outcome("torch.import")["data"]["file"].startswith(str(with_torch.parents[1]))


def test_no_torch_anywhere_is_said_in_the_first_line(probe: Command, with_probe: Path, no_torch_on_path: str) -> None:
    """Healthy, rung 4 skipped, and the first line says that nothing was computed, and where it was looked for."""
    args = probe.check_argv(probe=[str(with_probe), "-P", "-m", "probe"])
    ran = probe.run(args, env={"PATH": no_torch_on_path})
    assert ran.code == 0
    assert ran.first_line.startswith("healthy: ")
    assert "torch not installed" in ran.first_line
    assert str(with_probe) in ran.out


@pytest.mark.parametrize(
    "env",
    [{"ENABLE_IMPORT_CHECK": "true"}, {"PYTORCH_VERSION": "2.9.0"}, {"NVIDIA_PYTORCH_VERSION": "25.09"}],
    ids=lambda env: next(iter(env)),
)
def test_no_torch_where_it_was_promised_is_a_failure(
    probe: Command, with_probe: Path, no_torch_on_path: str, env: dict[str, str]
) -> None:
    """Demanded by the user or by the image's own word."""
    args = probe.check_argv("--format", "json", probe=[str(with_probe), "-P", "-m", "probe"])
    ran = probe.run(args, env={"PATH": no_torch_on_path, **env})
    assert (ran.code, ran.codes[0], ran.status("torch.import")) == (1, "TORCH_MISSING", "fail")


def test_no_torch_in_the_interpreter_that_is_named_is_a_failure(probe: Command, with_probe: Path) -> None:
    """Whoever names an interpreter wants its torch, not another's."""
    ran = probe.check("--python", str(with_probe))
    assert (ran.code, ran.codes[0]) == (1, "TORCH_MISSING")


@pytest.mark.parametrize("python", ["/no/such/python", "/etc/passwd", "/"])
def test_an_interpreter_that_is_none(probe: Command, python: str) -> None:
    """Named and not to be run: a failure with its name, in no column a traceback."""
    ran = probe.check("--python", python)
    assert (ran.code, ran.codes[0]) == (1, "TORCH_MISSING")
    assert python in ran.outcome("torch.import")["summary"]


def test_torch_without_numpy(probe: Command, tmp_path: Path) -> None:
    """Torch warns on stderr where numpy is missing: healthy, and not a word of it."""
    asked = tmp_path / "asked"
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class NoNumpy:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'numpy':\n"
        f"            open({str(asked)!r}, 'a').close()\n"
        "            raise ModuleNotFoundError(\"No module named 'numpy'\", name='numpy')\n"
        "sys.meta_path.insert(0, NoNumpy())\n"
    )
    ran = probe.text(env={"PYTHONPATH": str(tmp_path)})
    assert asked.exists()
    assert ran.code == 0
    assert ran.first_line.startswith("healthy: CPU computed exactly")
    assert ran.err == ""


HOSTILE = ("torch", "numpy", "json", "msgspec", "anyio", "tensor", "child", "sitecustomize_", "probe")


def trap(folder: Path, names: tuple[str, ...]) -> Path:
    """Modules in `folder` that leave a trace when they are imported."""
    folder.mkdir()
    for name in names:
        (folder / f"{name}.py").write_text(
            f"open({str(folder / 'sprung')!r}, 'a').write({name!r})\nraise SystemExit(7)\n"
        )
    return folder / "sprung"


@pytest.mark.parametrize("start", ["script", "module -P"])
def test_hostile_files_in_the_working_directory_are_not_imported(probe: Command, tmp_path: Path, start: str) -> None:
    """A `torch.py`, `json.py` or `probe.py` where the caller happens to stand is nobody's, least of all root's."""
    sprung = trap(tmp_path / "here", HOSTILE)
    script = Path(sys.executable).with_name("probe")
    argv = [str(script)] if start == "script" else [sys.executable, "-P", "-m", "probe"]
    ran = probe.run(probe.check_argv("--format", "json", probe=argv), cwd=tmp_path / "here")
    assert not sprung.exists(), sprung.read_text()
    assert (ran.code, ran.status("torch.tensor")) == (0, "pass")


def test_a_hostile_torch_beside_python_m(probe: Command, tmp_path: Path) -> None:
    """``python -m probe`` has the working directory on its path: our children, which import torch, have not."""
    sprung = trap(tmp_path / "here", ("torch", "numpy", "tensor", "child"))
    ran = probe.run(probe.check_argv("--format", "json", probe=ARGV), cwd=tmp_path / "here")
    assert not sprung.exists(), sprung.read_text()
    assert (ran.code, ran.status("torch.tensor")) == (0, "pass")


@pytest.mark.parametrize("path", [":", "", ":/nonexistent", "/nonexistent:", "."])
def test_a_hostile_torch_and_an_empty_entry_in_pythonpath(probe: Command, tmp_path: Path, path: str) -> None:
    """An empty or relative entry means the working directory; that of the children that import torch is the root."""
    sprung = trap(tmp_path / "here", ("torch", "numpy", "tensor", "child"))
    (tmp_path / "here" / "torch").mkdir()
    (tmp_path / "here" / "torch" / "version.py").write_text("__version__ = '6.6.6'\ncuda = None\n")
    argv = [str(Path(sys.executable).with_name("probe"))]
    ran = probe.run(probe.check_argv("--format", "json", probe=argv), cwd=tmp_path / "here", env={"PYTHONPATH": path})
    assert not sprung.exists(), sprung.read_text()
    assert (ran.code, ran.status("torch.tensor")) == (0, "pass")
    assert "6.6.6" not in ran.out


@pytest.mark.parametrize("name", ["json", "click"])
def test_a_hostile_module_of_ours_and_an_empty_entry_in_pythonpath(probe: Command, tmp_path: Path, name: str) -> None:
    """Probe's own process takes the working directory off its path before it imports what is not probe."""
    sprung = trap(tmp_path / "here", (name,))
    argv = [str(Path(sys.executable).with_name("probe"))]
    ran = probe.run(probe.check_argv("--format", "json", probe=argv), cwd=tmp_path / "here", env={"PYTHONPATH": ":"})
    assert not sprung.exists(), sprung.read_text()
    assert ran.code == 0
