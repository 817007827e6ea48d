"""Which interpreter has torch: found in made-up trees of virtual environments, conda, Debian, Fedora and shims."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.torchfile import Search, TorchSite, find, parse_version_py

VERSION_PY = """\
from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip', 'rocm', 'xpu']
__version__ = '2.11.0+cu130'
debug = False
cuda: Optional[str] = '13.0'
git_version = '70d99e998b4955e0049d13a98d77ae1b14db1f45'
hip: Optional[str] = None
"""

Make = Callable[..., str]


@pytest.fixture
def python(tmp_path: Path) -> Make:
    """Makes an interpreter, as far as anyone can tell from its first bytes, and gives its path."""

    def make(path: str, content: bytes = b"\x7fELF\2\1\1") -> str:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(0o755)
        return str(file)

    return make


@pytest.fixture
def torch(tmp_path: Path) -> Make:
    """Puts a torch into a folder under the test's own, and gives that folder."""

    def make(site: str, text: str = VERSION_PY) -> str:
        folder = tmp_path / site / "torch"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "version.py").write_text(text)
        return str(tmp_path / site)

    return make


def link(path: Path, to: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)
    return str(path)


def look(python: str = "auto", **env: str) -> Search:
    """A search by an interpreter that has no torch itself, with nothing but `env` in the environment."""
    return find(python, {"PATH": "", **env}, executable="/own/python", own_path=[])


def found(search: Search) -> tuple[str, str]:
    assert search.site is not None, search.looked
    return search.site.python, search.site.root


# --- our own --------------------------------------------------------------------------------------------------------


def test_our_own_interpreter_comes_first(tmp_path: Path, torch: Make, python: Make) -> None:
    """Torch on our own sys.path is taken whatever else there is, with our own version and all that version.py says."""
    site = torch("own")
    torch("venv/lib/python3.12/site-packages")
    python("venv/bin/python")
    env = {"VIRTUAL_ENV": f"{tmp_path}/venv"}
    search = find("auto", env, executable="/own/python", own_path=["/nothing", site])
    git = "70d99e998b4955e0049d13a98d77ae1b14db1f45"
    here = sys.version_info
    assert TorchSite("/own/python", (here[0], here[1]), site, "2.11.0+cu130", "13.0", None, git, False) == search.site
    assert search.looked == ("/own/python",)


def test_own_path_excludes_the_working_directory(tmp_path: Path, torch: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch in the working directory is none: children run elsewhere. PYTHONPATH can name that folder."""
    site = torch("here")
    monkeypatch.chdir(site)
    assert find("auto", {"PATH": ""}, executable="/own", own_path=[site]).site is None
    assert find("auto", {"PATH": ""}, executable="/own", own_path=["", "."]).site is None
    assert find("auto", {"PATH": "", "PYTHONPATH": site}, executable="/own", own_path=[site]).site


def test_a_removed_working_directory_is_no_error(tmp_path: Path, torch: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search works where getcwd() does not."""
    site = torch("own")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert find("auto", {}, executable="/own", own_path=[site]).site


def test_the_real_interpreter_is_looked_at() -> None:
    """Without arguments it is sys.executable and sys.path; nothing is imported for it."""
    before = set(sys.modules)
    search = find("auto", {"PATH": ""})
    assert search.looked[0] == sys.executable
    assert before == set(sys.modules)


# --- others ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cfg", "version"),
    [
        ("version = 3.12.4\n", (3, 12)),
        ("version_info = 3.12.4.final.0\n", (3, 12)),
        ("version_info = 3.12\nhome=/nowhere\n", (3, 12)),
        ("Version = 3.12.0rc1\n", (3, 12)),
        ("no sense at all", (3, 12)),
        ("", (3, 12)),
    ],
)
def test_virtual_environment(tmp_path: Path, python: Make, torch: Make, cfg: str, version: tuple[int, int]) -> None:
    """$VIRTUAL_ENV has its packages beside its own pyvenv.cfg, though its python is a link elsewhere."""
    link(tmp_path / "venv/bin/python", python("usr/bin/python3.12"))
    (tmp_path / "venv/pyvenv.cfg").write_text(cfg)
    site = torch("venv/lib/python3.12/site-packages")
    search = look(VIRTUAL_ENV=str(tmp_path / "venv"))
    assert (str(tmp_path / "venv/bin/python"), site) == found(search)
    assert search.site is not None
    assert version == search.site.python_version


def test_virtual_environment_without_system_packages(tmp_path: Path, python: Make, torch: Make) -> None:
    """A virtual environment does not see what its base, or the user's own folder, has."""
    link(tmp_path / "venv/bin/python", python("usr/bin/python3.12"))
    (tmp_path / "venv/pyvenv.cfg").write_text(f"home = {tmp_path}/usr/bin\nversion = 3.12.1\n")
    torch("usr/lib/python3.12/site-packages")
    torch("home/.local/lib/python3.12/site-packages")
    assert look(VIRTUAL_ENV=str(tmp_path / "venv"), HOME=str(tmp_path / "home")).site is None


def test_virtual_environment_with_system_packages(tmp_path: Path, python: Make, torch: Make) -> None:
    """With include-system-site-packages it sees its base's too, found through the links of home's python."""
    base = python("opt/py/bin/python3.12")
    link(tmp_path / "usr/bin/python3", base)
    link(tmp_path / "venv/bin/python", base)
    (tmp_path / "venv/pyvenv.cfg").write_text(
        f"home = {tmp_path}/usr/bin\ninclude-system-site-packages = True\nversion = 3.12.1\n"
    )
    site = torch("opt/py/lib/python3.12/site-packages")
    assert (str(tmp_path / "venv/bin/python"), site) == found(look(VIRTUAL_ENV=str(tmp_path / "venv")))


def test_order_of_places(tmp_path: Path, python: Make, torch: Make) -> None:
    """$VIRTUAL_ENV, then $CONDA_PREFIX, then PATH in its order; all that were looked at are named."""
    for name in ("venv", "conda", "one", "two"):
        python(f"{name}/bin/python3.11")
        for alias in ("python", "python3"):
            link(tmp_path / name / "bin" / alias, "python3.11")
    env = {
        "VIRTUAL_ENV": f"{tmp_path}/venv",
        "CONDA_PREFIX": f"{tmp_path}/conda/",
        "PATH": f"{tmp_path}/one/bin:{tmp_path}/none:{tmp_path}/two/bin",
    }
    order = ["venv/bin/python", "conda/bin/python", "one/bin/python3", "two/bin/python3"]
    assert ("/own/python", *(f"{tmp_path}/{path}" for path in order)) == look(**env).looked
    for path in reversed(order):
        site = torch(f"{path.partition('/')[0]}/lib/python3.11/site-packages")
        assert (f"{tmp_path}/{path}", site) == found(look(**env))


def test_shims_are_passed_over(tmp_path: Path, python: Make, torch: Make) -> None:
    """A shell script named python3 (pyenv, asdf) is said to be one, and the next on PATH is looked at."""
    shim = python("shims/python3", b"#!/usr/bin/env bash\n")
    real = python("usr/bin/python3")
    site = torch("usr/lib/python3.10/site-packages")
    search = look(PATH=f"{tmp_path}/shims:{tmp_path}/usr/bin")
    assert (real, site) == found(search)
    assert ("/own/python", f"{shim} (a script)", real) == search.looked


def test_relative_places_are_none(tmp_path: Path, python: Make, torch: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative PATH, PYTHONPATH and prefixes mean the working directory, where no child runs."""
    python("bin/python3")
    python("bin/python")
    torch("lib/python3.11/site-packages")
    monkeypatch.chdir(tmp_path)
    assert look(PATH="bin::.", VIRTUAL_ENV=".", CONDA_PREFIX="", PYTHONPATH=".").looked == ("/own/python",)


def test_the_prefix_is_where_links_end(tmp_path: Path, python: Make, torch: Make) -> None:
    """~/bin/python3, a link into a conda, has conda's packages."""
    path = link(tmp_path / "home/bin/python3", python("conda/bin/python3.11"))
    site = torch("conda/lib/python3.11/site-packages")
    assert (path, site) == found(look(PATH=f"{tmp_path}/home/bin"))


@pytest.mark.parametrize(
    "site",
    [
        "usr/lib/python3.11/site-packages",
        "usr/lib64/python3.11/site-packages",
        "usr/local/lib/python3.11/site-packages",
        "usr/local/lib64/python3.11/site-packages",
        "usr/local/lib/python3.11/dist-packages",
        "usr/lib/python3/dist-packages",
        "home/.local/lib/python3.11/site-packages",
        "anywhere",
    ],
)
def test_package_folders_of_a_system_python(tmp_path: Path, python: Make, torch: Make, site: str) -> None:
    """Debian's and Fedora's folders, the user's own and PYTHONPATH are all looked at, for the right version."""
    link(tmp_path / "usr/bin/python3", python("usr/bin/python3.11"))
    torch("usr/lib/python3.9/site-packages")
    root = torch(site)
    search = look(PATH=f"{tmp_path}/usr/bin", HOME=f"{tmp_path}/home", PYTHONPATH=f"{tmp_path}/anywhere")
    assert (f"{tmp_path}/usr/bin/python3", root) == found(search)
    assert search.site is not None
    assert search.site.python_version == (3, 11)


def test_debian_python_does_not_read_the_packages_of_another(tmp_path: Path, python: Make, torch: Make) -> None:
    """Torch of the Python built into /usr/local (Docker's python images) is not that of Debian's own."""
    link(tmp_path / "usr/bin/python3", python("usr/bin/python3.11"))
    (tmp_path / "usr/lib/python3/dist-packages").mkdir(parents=True)
    torch("usr/local/lib/python3.11/site-packages")
    assert look(PATH=f"{tmp_path}/usr/bin").site is None


def test_the_users_own_packages_can_be_off(tmp_path: Path, python: Make, torch: Make) -> None:
    """PYTHONNOUSERSITE hides them, PYTHONUSERBASE moves them."""
    path = python("usr/bin/python3.11")
    torch("base/lib/python3.11/site-packages")
    assert look(path, PYTHONUSERBASE=f"{tmp_path}/base").site
    assert look(path, PYTHONUSERBASE=f"{tmp_path}/base", PYTHONNOUSERSITE="1").site is None


def test_an_unknown_version_is_read_from_the_folder(tmp_path: Path, python: Make, torch: Make) -> None:
    """A python whose name tells nothing: every library folder is looked at, the newest first."""
    path = python("opt/bin/python")
    torch("opt/lib/python3.9/site-packages")
    root = torch("opt/lib/python3.13t/site-packages")
    torch("opt/lib/python3.10/site-packages")
    search = look(path)
    assert (path, root) == found(search)
    assert search.site is not None
    assert search.site.python_version == (3, 13)


def test_an_explicit_path_is_the_only_one(tmp_path: Path, python: Make, torch: Make) -> None:
    """`python = "/path"` looks nowhere else, and says what is wrong with that path."""
    named = python("named/bin/python3.11")
    python("usr/bin/python3")
    torch("usr/lib/python3.11/site-packages")
    env = {"PATH": f"{tmp_path}/usr/bin", "VIRTUAL_ENV": f"{tmp_path}/usr"}
    assert Search(None, (named,)) == find(named, env, executable="/own", own_path=[])
    root = torch("named/lib/python3.11/site-packages")
    assert (named, root) == found(find(named, env, executable="/own", own_path=[]))
    missing = f"{tmp_path}/missing"
    assert (f"{missing} (not there)",) == look(missing).looked
    assert (f"{tmp_path} (not a program)",) == look(str(tmp_path)).looked


def test_an_explicit_path_that_is_ours_is_looked_at_as_ours(tmp_path: Path, torch: Make) -> None:
    """Naming our own interpreter finds what our own sys.path holds."""
    site = torch("own")
    assert found(find("/own", {}, executable="/own", own_path=[site])) == ("/own", site)


def test_without_path_the_usual_folders_are_looked_at() -> None:
    """A Slurm prolog has no PATH: /usr/bin is looked at all the same."""
    search = find("auto", {}, executable="", own_path=[])
    assert all(entry.startswith(("/usr/local/bin/", "/usr/bin/", "/bin/")) for entry in search.looked)


# --- version.py -----------------------------------------------------------------------------------------------------


def test_version_py_is_read_as_literals() -> None:
    """Strings, bools and None at the top level, annotated or not; nothing else."""
    text = VERSION_PY + "x = f()\ny = 'a' + 'b'\n  cuda = '9'\nz = 'ab\\n'\nq == 'r'\nw = \"v\"  # why\nn = None # x\n"
    assert parse_version_py(text) == {
        "__version__": "2.11.0+cu130",
        "debug": False,
        "cuda": "13.0",
        "git_version": "70d99e998b4955e0049d13a98d77ae1b14db1f45",
        "hip": None,
        "w": "v",
        "n": None,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__version__ = '2.6.0+cpu'\ncuda = None\n", ("2.6.0+cpu", None, None)),
        (
            "__version__ = '2.5.0a0+gitabc.nv24.8'\ncuda: Optional[str] = '12.6'\n",
            ("2.5.0a0+gitabc.nv24.8", "12.6", None),
        ),
        ("__version__ = '2.6.0'\nhip: Optional[str] = '6.2.41133'\n", ("2.6.0", None, "6.2.41133")),
        ("", ("", None, None)),
        ("\0\xff{{{", ("", None, None)),
        ("__version__ = 'a\x1b[31m'\ncuda = True\n", ("", None, None)),
        (f"__version__ = '{'9' * 5000}'\n", ("", None, None)),
    ],
)
def test_odd_version_py(tmp_path: Path, torch: Make, text: str, expected: tuple[str, str | None, str | None]) -> None:
    """What version.py does not say, or not in one short printable word, stays unknown; torch is found all the same."""
    site = find("auto", {}, executable="/own", own_path=[torch("own", text)]).site
    assert site is not None
    assert expected == (site.version, site.cuda, site.hip)


def test_version_py_is_never_run(tmp_path: Path, torch: Make) -> None:
    """Code in version.py stays text."""
    text = f"open({str(tmp_path / 'ran')!r}, 'w')\n__version__ = '1'\n"
    assert find("auto", {}, executable="/own", own_path=[torch("own", text)]).site
    assert not (tmp_path / "ran").exists()


def test_torch_without_version_py_is_found_as_broken(tmp_path: Path) -> None:
    """It is what an import would take, so it hides any later one; a folder that only bears the name does not."""
    (tmp_path / "empty/torch").mkdir(parents=True)
    (tmp_path / "broken/torch").mkdir(parents=True)
    (tmp_path / "broken/torch/__init__.py").touch()
    path = [str(tmp_path / "empty"), str(tmp_path / "broken")]
    site = find("auto", {}, executable="/own", own_path=path).site
    assert site is not None
    assert (site.root, site.version) == (path[1], "")


def test_a_fifo_in_place_of_a_file_does_not_block(tmp_path: Path, python: Make) -> None:
    """Neither as version.py, nor as pyvenv.cfg, nor as an interpreter."""
    (tmp_path / "site/torch").mkdir(parents=True)
    os.mkfifo(tmp_path / "site/torch/version.py")
    assert find("auto", {"PATH": ""}, executable="/own", own_path=[str(tmp_path / "site")]).site is None
    path = python("venv/bin/python3")
    os.mkfifo(tmp_path / "venv/pyvenv.cfg")
    assert look(path).site is None
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo/python3", 0o755)
    assert f"{tmp_path}/fifo/python3 (not a program)" in look(PATH=f"{tmp_path}/fifo").looked


@given(st.text())
def test_any_text_can_be_parsed(text: str) -> None:
    """No version.py makes the parser raise, and every value is of the three kinds."""
    assert all(value is None or isinstance(value, str | bool) for value in parse_version_py(text).values())


@given(st.text(), st.dictionaries(st.sampled_from(["PATH", "VIRTUAL_ENV", "HOME", "PYTHONPATH"]), st.text()))
def test_any_environment_can_be_searched(python: str, env: dict[str, str]) -> None:
    """No path and no environment makes the search raise."""
    assert find(python, env, executable="/own", own_path=[]).looked
