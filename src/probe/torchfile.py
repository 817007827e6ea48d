"""Which interpreter has torch, and which torch: found by file, so that nobody waits for an import.

::

    our own sys.path, $VIRTUAL_ENV, $CONDA_PREFIX, each python3 on PATH -> interpreter
    interpreter -> pyvenv.cfg, prefix -> site folders -> torch/version.py -> TorchSite

Nothing that is found is run: ``torch/version.py`` is read line by line as literals. Not followed are ``.pth`` files
and import hooks of other interpreters (editable installs); naming our own or setting PYTHONPATH finds those.
Standard library only, and little of it. Children run in ``/`` with ``-P``, so the working directory is no place.
"""

import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

AUTO = "auto"
USUAL_PATH = "/usr/local/bin:/usr/bin:/bin"  # a Slurm prolog has no PATH at all
MOST_BYTES = 1 << 16  # version.py has 300 bytes, pyvenv.cfg 200
ELF = b"\x7fELF"


class TorchSite(NamedTuple):
    """A torch and the interpreter that has it. What version.py does not say, or says oddly, is None or ""."""

    python: str
    python_version: tuple[int, int] | None
    root: str
    """The folder that holds the folder torch."""
    version: str
    cuda: str | None
    hip: str | None
    git_version: str | None
    debug: bool | None


class Search(NamedTuple):
    site: TorchSite | None
    looked: tuple[str, ...]
    """The interpreters that were looked at, in order, each with what was wrong with it, if anything."""


class Interpreter(NamedTuple):
    version: str
    """The name of its library folder: ``python3.11``, ``python3.13t``; "" where nothing tells."""
    sites: tuple[str, ...]
    """Where it looks for packages, first found first; not all of them exist."""


def find(
    python: str,
    env: Mapping[str, str],
    *,
    executable: str = sys.executable,
    own_path: Sequence[str] | None = None,
) -> Search:
    """The first interpreter that has torch.

    `python` is a path, which is then the only one looked at, or "auto": our own, ``$VIRTUAL_ENV``,
    ``$CONDA_PREFIX``, then each python3 on PATH. `executable` and `own_path` (None: ``sys.path``) are our own.
    """
    looked: list[str] = []
    for path in dict.fromkeys(_candidates(python, env, executable)):
        site, wrong = None, ""
        if path == executable:
            site = _site(path, _name_of(sys.version_info[:2]), importable(own_path, env))
        elif not (wrong := unusable(path, explicit=python != AUTO)):
            interpreter = inspect(path, env)
            site = _site(path, interpreter.version, interpreter.sites)
        looked.append(f"{path} ({wrong})" if wrong else path)
        if site:
            return Search(site, tuple(looked))
    return Search(None, tuple(looked))


def _candidates(python: str, env: Mapping[str, str], executable: str) -> Iterator[str]:
    if python != AUTO:
        yield python
        return
    if executable:  # "" where Python is embedded
        yield executable
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if (prefix := env.get(name, "")).startswith("/"):
            yield f"{prefix.rstrip('/')}/bin/python"
    for folder in env.get("PATH", USUAL_PATH).split(":"):
        path = f"{folder.rstrip('/')}/python3"
        if folder.startswith("/") and os.path.exists(path):
            yield path


def importable(own_path: Sequence[str] | None, env: Mapping[str, str]) -> list[str]:
    """Of our own ``sys.path``, what a child of ours would have too: not the working directory, nor what is relative."""
    folders = list(sys.path if own_path is None else own_path)
    if folders and folders[0] not in env.get("PYTHONPATH", "").split(":"):
        try:
            here = os.getcwd()
        except OSError:  # it was removed
            here = ""
        folders = folders[1:] if folders[0] == here else folders
    return [folder for folder in folders if folder.startswith("/")]


def unusable(path: str, *, explicit: bool) -> str:
    """Why this is no interpreter to look at, or "". Shims (pyenv, asdf) are scripts, in a prefix without packages."""
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode) or not os.access(path, os.X_OK):
            return "not a program"
        if explicit:
            return ""
        with open(path, "rb") as file:
            return "" if file.read(4) == ELF else "a script"
    except FileNotFoundError:
        return "not there"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)


# --- where an interpreter looks for packages ------------------------------------------------------------------------


def inspect(python: str, env: Mapping[str, str]) -> Interpreter:
    """The version and the package folders of the interpreter at `python`, from the files around it."""
    prefix = os.path.dirname(os.path.dirname(python))
    venv = _read_venv(prefix)
    if venv is None:
        # CPython takes the prefix from where the links end: ~/bin/python3 may be a link into /opt/conda.
        real = os.path.realpath(python)
        base = os.path.dirname(os.path.dirname(real))
        version = _library_name(os.path.basename(real)) or _only_library(base)
        folders = [*_user_folders(version, env), *_prefix_folders(base, version)]
    else:
        version = _venv_version(venv) or _only_library(prefix)
        folders = _prefix_folders(prefix, version)
        if venv.get("include-system-site-packages", "").lower() == "true":
            folders += [*_user_folders(version, env), *_prefix_folders(_home_prefix(venv, version), version)]
    python_path = [folder for folder in env.get("PYTHONPATH", "").split(":") if folder.startswith("/")]
    return Interpreter(version, tuple(dict.fromkeys(python_path + folders)))


def _read_venv(prefix: str) -> dict[str, str] | None:
    """pyvenv.cfg by key; None: no virtual environment."""
    text = _read(f"{prefix}/pyvenv.cfg")
    if text is None:
        return None
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip().lower(): value.strip() for key, equals, value in pairs if equals}


def _venv_version(venv: Mapping[str, str]) -> str:
    """``version`` is venv's word, ``version_info`` virtualenv's and uv's."""
    parts = (venv.get("version") or venv.get("version_info", "")).split(".")
    return _library_name(f"python{'.'.join(parts[:2])}")


def _home_prefix(venv: Mapping[str, str], version: str) -> str:
    """The prefix that a virtual environment was made from, through the links of its python."""
    home = venv.get("home", "")
    for name in (version, "python3", "python"):
        if name and os.path.exists(f"{home}/{name}"):
            return os.path.dirname(os.path.dirname(os.path.realpath(f"{home}/{name}")))
    return os.path.dirname(home)


def _prefix_folders(prefix: str, version: str) -> list[str]:
    """The package folders under `prefix` of one version, or of all that are there when it is not known.

    Debian's own Python reads dist-packages, in its prefix and under local; there site-packages under local belong to
    another Python, one built into /usr/local. Fedora's reads site-packages in both, under lib64 too.
    """
    names = [version] if version else _libraries(prefix)
    signs = [f"{prefix}/lib/python3", *(f"{prefix}/local/lib/{name}" for name in names)]
    debian = any(os.path.isdir(f"{sign}/dist-packages") for sign in signs)
    kind = "dist-packages" if debian else "site-packages"
    folders = []
    for name in names:
        for base in (f"{prefix}/local", prefix):
            folders += [f"{base}/{library}/{name}/{kind}" for library in ("lib", "lib64")]
    return [*folders, f"{prefix}/lib/python3/dist-packages"] if debian else folders


def _user_folders(version: str, env: Mapping[str, str]) -> list[str]:
    if env.get("PYTHONNOUSERSITE") or not version:
        return []
    base = env.get("PYTHONUSERBASE") or (f"{env['HOME']}/.local" if env.get("HOME") else "")
    return [f"{base}/lib/{version}/site-packages"] if base.startswith("/") else []


def _only_library(prefix: str) -> str:
    libraries = _libraries(prefix)
    return libraries[0] if len(libraries) == 1 else ""


def _libraries(prefix: str) -> list[str]:
    """``python3.*`` under lib, newest first."""
    try:
        names = [name for name in os.listdir(f"{prefix}/lib") if name == _library_name(name)]
    except (OSError, ValueError):
        return []
    return sorted(names, key=lambda name: (_version_of(name) or (0, 0), name), reverse=True)


def _library_name(name: str) -> str:
    """``python3.11`` of ``python3.11`` and ``python3.11d``, ``python3.13t`` of itself (no GIL); "" of all else."""
    number = name.removeprefix("python3.")
    minor = number.rstrip("td")
    if number == name or not _is_number(minor):
        return ""
    return f"python3.{minor}{'t' if 't' in number else ''}"


def _name_of(version: tuple[int, ...]) -> str:
    return f"python{version[0]}.{version[1]}"


def _version_of(library: str) -> tuple[int, int] | None:
    number = library.removeprefix("python3.").rstrip("t")
    return (3, int(number)) if _is_number(number) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 3


# --- torch in it ----------------------------------------------------------------------------------------------------


def _site(python: str, version: str, folders: Iterable[str]) -> TorchSite | None:
    """The first torch in `folders`. One without version.py is broken, and still what would be imported."""
    for folder in folders:
        text = _read(f"{folder}/torch/version.py")
        if text is None and not os.path.isfile(f"{folder}/torch/__init__.py"):
            continue
        said = parse_version_py(text or "")
        parent = os.path.basename(os.path.dirname(folder))
        return TorchSite(
            python=python,
            python_version=_version_of(version) or _version_of(_library_name(parent)),
            root=folder,
            version=_word(said.get("__version__")) or "",
            cuda=_word(said.get("cuda")),
            hip=_word(said.get("hip")),
            git_version=_word(said.get("git_version")),
            debug=debug if isinstance(debug := said.get("debug"), bool) else None,
        )
    return None


def parse_version_py(text: str) -> dict[str, str | bool | None]:
    """The top-level lines ``name = literal`` and ``name: type = literal``, the literal a string, a bool or None."""
    found: dict[str, str | bool | None] = {}
    for line in text.splitlines():
        name, equals, rest = line.partition("=")
        name = name.partition(":")[0].rstrip()
        if equals and name.isidentifier():
            found.update(_literal(name, rest.strip()))
    return found


def _literal(name: str, text: str) -> dict[str, str | bool | None]:
    """{name: value}, or nothing where this is no literal that we read."""
    quote = text[:1]
    if quote in ("'", '"'):
        word, closed, rest = text[1:].partition(quote)
        plain = closed and "\\" not in word and rest.strip()[:1] in ("", "#")
        return {name: word} if plain else {}
    words: dict[str, bool | None] = {"None": None, "True": True, "False": False}
    word = text.partition("#")[0].strip()
    return {name: words[word]} if word in words else {}


def _word(value: str | bool | None) -> str | None:
    """A version, which is one short printable word; it is printed, and compared with."""
    return value if isinstance(value, str) and 0 < len(value) <= 80 and value.isprintable() else None


def _read(path: str) -> str | None:
    """The text of a small regular file; None where there is none that can be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would not let go of us
            return None
        with open(path, "rb") as file:
            return file.read(MOST_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return None
