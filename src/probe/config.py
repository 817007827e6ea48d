"""Settings: defaults < TOML < environment < ``--set`` < flags, and where each one came from.

::

    file, environment, --set, flags -> a layer each: parsed values by key -> merged -> Config, origins, warnings

    UsageError   a mistake of the caller's, in one line: where it stands, what was given, what is allowed

`SETTINGS` names every scalar once: TOML key, variable, flag and `describe` all come from it. ``[checks."<id>"]`` is
read by what the check itself declares.

Over 300 lines because it holds every complaint about settings, which are many, and all of one kind. On the path of a
100 ms check: `tomllib` is imported when there is TOML, `difflib` when there is something to complain of.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from probe import exits, options
from probe.clock import digits
from probe.model import NO_LOG, Check, CheckSettings, Config, Gpus, Limit, Profile, Severity
from probe.registry import Registry, declared, kind, switch

ETC = "/etc/probe/config.toml"
MOST_BYTES = 1 << 20
MOST_NESTING = 32  # far over what any setting needs (3), far under where tomllib's own recursion ends (about 300)
MOST_GPUS = 1024
MOST_THRESHOLD = 2**63 - 1  # what other JSON readers can hold
MOST_CODES = 1000
MOST_TARGETS = 64
HIDDEN = '"***"'
A_NAME = "name = with at most 32 lower-case letters, digits, - and _"
DEFAULT = "default"
SET = "--set"
FILE = "--config"
FILE_VARIABLE = "PROBE_CONFIG"


class UsageError(Exception):
    """The caller's mistake. `where` names the file, variable or flag; `allowed` says what would have been right.

    All three are one line each, free of control characters, whatever was given.
    """

    def __init__(self, message: str, where: str = "", allowed: str = "") -> None:
        self.message, self.where, self.allowed = plain(message), plain(where), plain(allowed)
        super().__init__(self.message, self.where, self.allowed)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} (allowed: {self.allowed})" if self.allowed else text


BUDGETS_S = {Profile.STARTUP: 60.0, Profile.NODE: 60.0}


class Loaded(Struct, frozen=True):
    config: Config
    origins: Mapping[str, str]
    """By key (``budget``, ``checks.nvml.ecc.timeout``): `DEFAULT`, a file, a variable, a flag. Holds all scalars."""
    warnings: tuple[str, ...] = ()
    """Lines for stderr."""
    path: str | None = None
    """The file that was read."""
    checks: Mapping[str, Check] = {}
    """All there are: the declared ones, and those that a config file declares by name."""


# --- what a value may be: each takes what TOML holds, and raises ValueError -----------------------------------------


def format_duration(seconds: float) -> str:
    """What `parse_duration` reads back as the same number."""
    number, unit = (seconds * 1000, "ms") if seconds < 1 else (seconds, "s")
    return f"{number:.6f}".rstrip("0").rstrip(".") + unit


def _budget(value: object) -> float:
    seconds = options.duration(value)
    if seconds < 1:
        raise ValueError(value)
    return seconds


def _profile(value: object) -> Profile:
    return Profile(options.text(value))


def _severity(value: object) -> Severity:
    return Severity(options.text(value))


def _device(value: object) -> str:
    word = options.text(value)
    if word in ("auto", "cuda", "cpu"):
        return word
    count = word.removeprefix("cpu:")
    if count == word or not digits(count) or count != str(int(count)) or not 1 <= int(count) <= 256:
        raise ValueError(value)
    return word


def _path_or_auto(value: object) -> str:
    return "auto" if value == "auto" else options.path(value)


def _state(value: object) -> str | None:
    return None if value == "auto" else options.path(value)


def _log(value: object) -> str | None:
    return None if value == "auto" else NO_LOG if value == NO_LOG else options.path(value)


def _every(value: object) -> float:
    return 0.0 if value == "off" else options.duration(value)


def _gpus(value: object) -> Gpus:
    if value == "auto":
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_GPUS:
        return value
    uuids = value.split(",") if isinstance(value, str) else value
    if not isinstance(uuids, list) or not uuids or not all(_is_uuid(uuid) for uuid in uuids):
        raise ValueError(value)
    if len(set(uuids)) != len(uuids):
        raise ValueError(value)
    return tuple(uuids)


def _is_uuid(value: object) -> bool:
    """``GPU-<uuid>``, ``MIG-<uuid>``, or the older ``MIG-GPU-<uuid>/<instance>/<instance>``."""
    if not isinstance(value, str) or not value.startswith(("GPU-", "MIG-")) or not 4 < len(value) <= 80:
        return False
    return value.isascii() and value.replace("-", "").replace("/", "").isalnum()


def _enabled(value: object) -> bool | None:
    return None if value == "auto" else options.flag(value)


def _threshold(default: Limit) -> Callable[[object], Limit]:
    """A finite number of at least 0; whole where the default is whole; where that is a list, a list of whole ones."""
    if isinstance(default, tuple):
        return _codes
    kinds = (int,) if isinstance(default, int) else (int, float)

    def parse(value: object) -> int | float:
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value <= MOST_THRESHOLD:
            raise ValueError(value)
        return value

    return parse


def _codes(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MOST_CODES:
        raise ValueError(value)
    if not all(isinstance(code, int) and not isinstance(code, bool) and 0 <= code <= MOST_THRESHOLD for code in value):
        raise ValueError(value)
    return tuple(value)


# --- text of variables and flags, as TOML would hold it -------------------------------------------------------------


YES = ("1", "true", "yes", "on")
NO = ("0", "false", "no", "off")


def _same(text: str) -> object:
    return text


def _number(text: str) -> object:
    return int(text) if digits(text) else text


def _truth(text: str) -> object:
    word = text.strip().lower()
    return True if word in YES else False if word in NO else text


# --- the table ------------------------------------------------------------------------------------------------------


class Setting(Struct, frozen=True):
    """One scalar setting."""

    key: str
    """In TOML, and what people call it."""
    field: str
    """In `Config`."""
    parse: Callable[[object], Any]
    allowed: str
    help: str
    from_text: Callable[[str], object] = _same
    words: tuple[str, ...] = ()
    """All that is allowed, where that is a few words."""

    @property
    def name(self) -> str:
        """As a flag's parameter: ``gpus_expect``."""
        return self.key.replace(".", "_")

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "PROBE_" + self.name.upper()


def _worded(key: str, words: Iterable[str], help_text: str, parse: Callable[[object], Any] | None = None) -> Setting:
    words = tuple(words)
    return Setting(key, key, parse or options.one_of(*words), ", ".join(words), help_text, words=words)


SETTINGS = (
    Setting(
        "budget",
        "budget_s",
        _budget,
        'a duration from "1s" to "24h", such as "9s", "1500ms" or "2m"',
        "the answer is there within this time (9s; 60s for the profiles startup and node)",
    ),
    _worded("profile", (str(profile) for profile in Profile), "which checks are run, and what they may cost", _profile),
    Setting(
        "device",
        "device",
        _device,
        "auto, cuda, cpu, or cpu:<n> with n from 1 to 256",
        "what to test; cpu: no GPU is expected; cpu:<n>: on n worker processes",
        words=("auto", "cuda", "cpu"),
    ),
    _worded("exit_codes", exits.COLUMNS, "whose exit codes to use"),
    _worded("busy", ("passive", "test"), "GPUs at work are only looked at (passive), or tested all the same (test)"),
    Setting(
        "state", "state", _state, "the absolute path of a folder, or auto", "where a run leaves notes for the next"
    ),
    Setting(
        "log",
        "log",
        _log,
        f"the absolute path of a file, auto, or {NO_LOG}",
        "one line a run (/var/log/health.log for root)",
        words=("auto", NO_LOG),
    ),
    Setting("python", "python", _path_or_auto, "the absolute path of a Python, or auto", "the Python that has torch"),
    Setting(
        "gpus.expect",
        "gpus_expect",
        _gpus,
        f"a number from 0 to {MOST_GPUS}, different UUIDs that begin with GPU- or MIG-, or auto",
        "how many GPUs must be here, or which",
        from_text=_number,
    ),
    Setting(
        "torch_every",
        "torch_every_s",
        _every,
        'a duration such as "10m", or off',
        "a pass of the torch checks that is younger than this stands, unless something critical failed since",
    ),
    Setting("strict", "strict", options.flag, "true or false", "degraded ends with 1", from_text=_truth),
)
_BY_KEY = {setting.key: setting for setting in SETTINGS}
_BY_NAME = {setting.name: setting for setting in SETTINGS}
_TABLES = frozenset(key.partition(".")[0] for key in _BY_KEY if "." in key)

A_TIMEOUT = 'a duration from "1ms" to "24h", such as "2s" or "250ms"'
_OF_EVERY_CHECK: dict[str, tuple[Callable[[object], Any], str]] = {
    "enabled": (_enabled, "true, false or auto"),
    "severity": (_severity, "critical or advisory"),
    "timeout": (options.duration, A_TIMEOUT),
}


class Known:
    """The checks that settings may name: those declared in code, and by what a file declares ever more."""

    def __init__(self, checks: Mapping[str, Check], targets: Mapping[str, Check]) -> None:
        self.checks = Registry(checks)
        self.kinds = {kind(target): target for target in targets.values()}
        self.named: dict[str, str] = {}
        """Who declared which: a file or a flag by the check's id."""

    def declare(self, kind_: str, name: object, where: str) -> Check:
        """The check that an entry of ``[[kind]]`` declares, or sets anew; raise UsageError where its name cannot be."""
        try:
            check = declared(self.kinds[kind_], options.name(name))
        except ValueError:
            said = "has no name" if name is None else f"has the name {shown(name)}"
            raise UsageError(f"an entry of [[{kind_}]] {said}", where, A_NAME) from None
        if check.id not in self.named:
            try:
                self.checks.add(check)
            except ValueError:
                other = next(known for known in self.checks if switch(known) == switch(check.id))
                message = f"[[{kind_}]] {name} and {other} would have one switch, {switch(check.id)}"
                raise UsageError(message, where, "a name that no other check has") from None
        self.named[check.id] = where
        return check


class Given(NamedTuple):
    """A parsed value and who gave it."""

    value: Any
    origin: str


Key = tuple[str, str]
"""(check id, its setting); ("", the TOML key) for a scalar."""
Layer = dict[Key, Given]


def _dotted(key: Key) -> str:
    return f"checks.{key[0]}.{key[1]}" if key[0] else key[1]


def _quoted(key: Key) -> str:
    """As ``--set`` takes it."""
    return f'checks."{key[0]}".{key[1]}' if key[0] else key[1]


# --- loading --------------------------------------------------------------------------------------------------------


def load(
    flags: Mapping[str, str],
    env: Mapping[str, str],
    checks: Mapping[str, Check],
    sets: Sequence[str] = (),
    config_path: str | None = None,
    targets: Mapping[str, Check] | None = None,
) -> Loaded:
    """All settings of a run. `flags` by `Setting.name` or as typed; `sets` and `config_path`: ``--set``, ``--config``.

    `targets` are the kinds of checks that a file may declare by name. Raises `UsageError` for whatever is wrong in any
    of them, and nothing else.
    """
    known = Known(checks, targets or {})
    path, merged = _from_usual_file(env, known, config_path)
    of_sets = _from_sets(sets, known)
    switches, warnings = _from_switches(env, known.checks)
    merged |= _from_env(env) | switches | of_sets | _from_flags(flags)
    _refuse_incomplete(merged, known)
    origins = {setting.key: DEFAULT for setting in SETTINGS}
    origins |= {_dotted(key): given.origin for key, given in merged.items()}
    return Loaded(_config(merged, known.checks), origins, tuple(warnings + _unknown_variables(env)), path, known.checks)


def check_file(path: str, checks: Mapping[str, Check], targets: Mapping[str, Check] | None = None) -> None:
    """Raise `UsageError` where a run with ``--config path`` would."""
    known = Known(checks, targets or {})
    _refuse_incomplete(_layer_of_file(path, FILE, known), known)


def _refuse_incomplete(merged: Layer, known: "Known") -> None:
    """Raise where options that must be there are not, or do not go together."""
    by_check: dict[str, dict[str, Given]] = {check_id: {} for check_id in known.named}
    for (check_id, name), given in merged.items():
        if check_id and name in known.checks[check_id].options:
            by_check.setdefault(check_id, {})[name] = given
    for check_id, given_options in by_check.items():
        check = known.checks[check_id]
        where = known.named.get(check_id) or next(iter(given_options.values())).origin
        for name, option in check.options.items():
            if option.required and name not in given_options:
                raise UsageError(f"{check_id} has no {name}", where, option.allowed)
        values = {name: option.default for name, option in check.options.items()}
        values |= {name: given.value for name, given in given_options.items()}
        if check.complaint and (wrong := check.complaint(values)):
            raise UsageError(f"{check_id}: {wrong}", where)


def describe(loaded: Loaded) -> list[tuple[str, str, str]]:
    """(key, value, origin) of every scalar and of all that was set for a check, by key; each as ``--set`` takes it."""
    scalars = [
        (setting.key, _toml_value(getattr(loaded.config, setting.field), duration=setting.field.endswith("_s")))
        for setting in SETTINGS
    ]
    rows = [(key, value, loaded.origins[key]) for key, value in scalars]
    for check_id, settings in loaded.config.checks.items():
        declared_options = loaded.checks[check_id].options if check_id in loaded.checks else {}
        values = {"enabled": settings.enabled, "severity": settings.severity, **settings.thresholds}
        values |= {"timeout": settings.timeout_s, **settings.options}
        for name, value in values.items():
            key = (check_id, name)
            if (origin := loaded.origins.get(_dotted(key))) is not None:
                hidden = name in declared_options and declared_options[name].secret
                rows.append(
                    (_quoted(key), HIDDEN if hidden else shown_value(value, duration=name == "timeout"), origin)
                )
    return sorted(rows)


def shown_value(value: object, *, duration: bool = False) -> str:
    """As TOML, without the secrets that a URL or a command line can hold; in a text they end where it ends."""
    if isinstance(value, str):
        return _toml_value(_redacted(value))
    return _redacted(_toml_value(value, duration=duration))


def _config(merged: Layer, checks: Mapping[str, Check]) -> Config:
    fields = {_BY_KEY[name].field: given.value for (check_id, name), given in merged.items() if not check_id}
    fields.setdefault("budget_s", BUDGETS_S.get(fields.get("profile", Profile.READINESS), Config().budget_s))
    of_checks: dict[str, dict[str, Any]] = {}
    for (check_id, name), given in merged.items():
        if check_id:
            of_checks.setdefault(check_id, {})[name] = given.value
    return Config(
        **fields,
        checks={check_id: _check_settings(values, checks[check_id]) for check_id, values in of_checks.items()},
    )


def _check_settings(values: Mapping[str, Any], check: Check) -> CheckSettings:
    return CheckSettings(
        enabled=values.get("enabled"),
        severity=values.get("severity"),
        timeout_s=values.get("timeout"),
        thresholds={name: value for name, value in values.items() if name in check.thresholds},
        options={name: value for name, value in values.items() if name in check.options},
    )


# --- the environment and the command line ---------------------------------------------------------------------------


def _from_env(env: Mapping[str, str]) -> Layer:
    """The ``PROBE_*`` variables of settings; an empty one counts as unset, as Compose and Kubernetes write it."""
    layer: Layer = {}
    for setting in SETTINGS:
        if text := env.get(setting.variable, ""):
            layer["", setting.key] = _given_text(setting, text, setting.variable)
    return layer


def _from_flags(flags: Mapping[str, str]) -> Layer:
    layer: Layer = {}
    for flag, text in flags.items():
        setting = _BY_NAME.get(flag.removeprefix("--").replace("-", "_").replace(".", "_"))
        if setting is None:
            raise _unknown("flag", flag, [known.flag for known in SETTINGS], "")
        layer["", setting.key] = _given_text(setting, text, setting.flag)
    return layer


def _from_switches(env: Mapping[str, str], checks: Iterable[str]) -> tuple[Layer, list[str]]:
    """``ENABLE_<CHECK>_CHECK`` of every known check. Nonsense counts as auto: it must not fail a container."""
    layer: Layer = {}
    nonsense = []
    for check_id in checks:
        variable = switch(check_id)
        if not (word := env.get(variable, "").strip().lower()):
            continue
        value = True if word in YES else False if word in NO else None
        if value is None and word != "auto":
            nonsense.append(f"{variable}={shown(env[variable], 24)}")
        layer[check_id, "enabled"] = Given(value, variable)
    if not nonsense:
        return layer, []
    return layer, [f"counts as auto: {_some(nonsense)} (allowed: {', '.join((*YES, *NO, 'auto'))})"]


def _unknown_variables(env: Mapping[str, str]) -> list[str]:
    """At most one line. What Kubernetes injects for a Service named probe or probe-* is nobody's mistake."""
    known = {setting.variable for setting in SETTINGS} | {FILE_VARIABLE}
    names = sorted(
        name
        for name, value in env.items()
        if name.startswith("PROBE_") and value and name not in known and "_PORT" not in name and "_SERVICE_" not in name
    )
    if not names:
        return []
    shorts = [f"{plain(name[:40])}{_nearest(name, known)}" for name in names[:4]] + names[4:]
    return [f"ignored, no such setting: {_some(shorts)}"]


def _some(names: Sequence[str], most: int = 4) -> str:
    """Stderr is 512 bytes in all: a few names, then a count."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _from_sets(sets: Iterable[str], known: Known) -> Layer:
    """``--set key=value``, the last one of a key wins."""
    layer: Layer = {}
    for text in sets:
        layer |= _layer(_set_tree(text), known, SET)
    return layer


def _set_tree(text: str) -> dict[str, Any]:
    """The tree of ``key=value``: a TOML key, and a TOML value or, failing that, a bare string (``timeout=2s``)."""
    allowed = """key=value, such as 'checks."nvml.ecc".timeout=2s'"""
    if len(text) > 8192 or "\n" in text or "\r" in text:  # a line end would let one --set set several
        raise UsageError(f"{shown(text)} is more than one short line", SET, allowed)
    for at in [at for at, char in enumerate(text) if char == "="][:8]:  # a quoted key may hold "="
        try:
            tree = parse_toml(f"{text[:at]} = 0", SET)
        except UsageError:
            continue
        if not (value := text[at + 1 :].strip()):
            break
        try:
            return parse_toml(f"{text[:at]} = {value}", SET)
        except UsageError:
            return _with_leaf(tree, value)
    raise UsageError(f"{shown(text)} is no setting", SET, allowed)


def _with_leaf(tree: dict[str, Any], leaf: str) -> dict[str, Any]:
    """`tree`, a chain of tables of one entry each, with its one value exchanged."""
    table = tree
    while isinstance(inner := next(iter(table.values())), dict):
        table = inner
    table[next(iter(table))] = leaf
    return tree


# --- the file -------------------------------------------------------------------------------------------------------


def _from_usual_file(env: Mapping[str, str], known: Known, config_path: str | None) -> tuple[str | None, Layer]:
    """The file that was named, else the first of the usual ones that is there. Never the working directory's."""
    if config_path is not None:
        return config_path, _layer_of_file(config_path, FILE, known)
    if named := env.get(FILE_VARIABLE):
        return named, _layer_of_file(named, FILE_VARIABLE, known)
    for path in _usual_files(env):
        if os.path.lexists(path):
            return path, _layer_of_file(path, "", known)
    return None, {}


def _usual_files(env: Mapping[str, str]) -> list[str]:
    """A home comes from HOME alone: asking the user database can wait for a directory server for ever."""
    xdg, home = env.get("XDG_CONFIG_HOME", ""), env.get("HOME", "")
    if not xdg.startswith("/"):  # the XDG specification: a relative one is to be ignored
        xdg = f"{home}/.config" if home.startswith("/") else ""
    return [ETC, f"{xdg}/probe/config.toml"] if xdg else [ETC]


def _layer_of_file(path: str, named_by: str, known: Known) -> Layer:
    return _layer(parse_toml(_read(path, named_by), path), known, path)


def _read(path: str, named_by: str) -> str:
    """The text of a regular file. A FIFO does not block, and nothing of unlimited size is read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise UsageError(f"is {_kind(info.st_mode)}", path, "a regular file")
            _refuse_unsafe(path, info)
            data = _read_at_most(fd, MOST_BYTES + 1)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL, or with what no file name can hold
        named = f" (named by {named_by})" if named_by else ""
        raise UsageError(f"cannot be read{named}: {getattr(error, 'strerror', None) or error}", path) from None
    if len(data) > MOST_BYTES:
        raise UsageError(f"is over {MOST_BYTES} bytes", path, f"at most {MOST_BYTES} bytes of TOML")
    try:
        return data.decode().removeprefix("\ufeff")  # some editors on Windows write that mark first
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"byte 0x{data[error.start]:02x} in line {line} is not UTF-8", path, "UTF-8 text") from None


def _read_at_most(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := os.read(fd, size - len(data))):
        data += part
    return data


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")


def _refuse_unsafe(path: str, info: os.stat_result) -> None:
    """As root: raise where another user could have written the file, or can put another one in its place."""
    if os.geteuid() != 0:
        return
    if wrong := unsafe(info):
        raise UsageError(wrong.why, path, wrong.allowed)
    for folder in dict.fromkeys((os.path.dirname(path) or ".", os.path.dirname(os.path.realpath(path)))):
        if (wrong := unsafe(os.stat(folder))) and not (wrong.by_mode and _read_only(folder)):
            raise UsageError(f"its folder {shown(folder, 4096)} {wrong.why}", path, wrong.allowed)


class Unsafe(NamedTuple):
    why: str
    allowed: str
    by_mode: bool


def unsafe(info: os.stat_result) -> Unsafe | None:
    """Why root must not trust this file or folder. A sticky folder counts: others can still add to it."""
    if info.st_uid != 0:
        return Unsafe(f"belongs to uid {info.st_uid}", "for root, what belongs to root: chown root", by_mode=False)
    if info.st_mode & 0o022:
        mode = stat.S_IMODE(info.st_mode)
        return Unsafe(
            f"has mode {mode:04o}: others can write it", "for root, what only root can write: chmod go-w", by_mode=True
        )
    return None


def _read_only(folder: str) -> bool:
    """Whether nobody can write here at all, whatever the mode says.

    kubelet gives every ConfigMap and Secret volume a folder of mode 0777 or 1777, which no field of a pod can change
    (kubernetes#125876, #136032), and mounts it read-only (kubernetes#60814).
    """
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The tree of a TOML text. Raises `UsageError` with tomllib's own words, which hold the line."""
    import tomllib

    if nesting(text) > MOST_NESTING:
        raise UsageError("is nested too deep", where, f"at most {MOST_NESTING} levels of tables and arrays")
    try:
        return tomllib.loads(text + "\n")  # else it says "at end of document" of a mistake in the last line
    except (ValueError, RecursionError) as error:  # ValueError: also a number of over 4300 digits
        raise UsageError(f"is not TOML: {str(error)[:200]}", where) from None


def nesting(text: str) -> int:
    """The most brackets open at once, or dots in a row of keys, whichever is more; strings and comments aside.

    Counted before parsing, because tomllib recurses at each bracket and is quadratic in dots.
    """
    deepest = depth = dots = at = 0
    while at < len(text):
        char = text[at]
        if char in "\"'":
            at = _after_string(text, at)
            continue
        if char == "#":
            at = text.find("\n", at)
            if at < 0:
                break
        elif char in "[{":
            depth, dots = depth + 1, 0
        elif char in "]}":
            depth, dots = max(0, depth - 1), 0
        elif char in "=,\n":
            dots = 0
        elif char == ".":
            dots += 1
        deepest = max(deepest, depth, dots)
        at += 1
    return deepest


def _after_string(text: str, at: int) -> int:
    """Where the string that begins at `at` is over; a line's end ends an unfinished one, as it ends the parsing."""
    quote = text[at]
    end = quote * 3 if text.startswith(quote * 3, at) else quote
    at += len(end)
    while at < len(text):
        if text[at] == "\\" and quote == '"':
            at += 2
        elif text.startswith(end, at):
            at += len(end)
            while len(end) == 3 and text.startswith(quote, at):  # the quotes before the closing three are content
                at += 1
            return at
        elif text[at] == "\n" and len(end) == 1:
            return at
        else:
            at += 1
    return at


# --- a tree of TOML, read key by key --------------------------------------------------------------------------------


def _layer(tree: Mapping[str, Any], known: Known, where: str) -> Layer:
    layer: Layer = {}
    for key, given in _read_tree(tree, known, where):
        if key in layer:  # checks."nvml.ecc" and checks.nvml.ecc, or an entry of [[http]], are two keys for TOML
            raise UsageError(f"{_quoted(key)} is set twice", where)
        layer[key] = given
    return layer


def _read_tree(tree: Mapping[str, Any], known: Known, where: str) -> Iterator[tuple[Key, Given]]:
    for name in sorted(tree, key=lambda name: name == "checks"):  # last: it may name what the others declare
        value = tree[name]
        if name == "checks":
            yield from _read_checks(_table(value, "checks", 'tables [checks."<id>"]', where), "", known.checks, where)
        elif name in known.kinds:
            yield from _read_targets(name, value, known, where)
        elif name in _TABLES:
            for inner, leaf in _table(value, name, "a table", where).items():
                yield _read_scalar(f"{name}.{inner}", leaf, where)
        else:
            yield _read_scalar(name, value, where, known.kinds)


def _read_targets(kind_: str, value: object, known: Known, where: str) -> Iterator[tuple[Key, Given]]:
    """``[[http]]``: each entry declares a check, and all but its name are that check's settings."""
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value) or len(value) > MOST_TARGETS:
        said = "one table" if isinstance(value, dict) else "no list of tables"
        if isinstance(value, list) and len(value) > MOST_TARGETS:
            said = f"a list of {len(value)}"
        raise UsageError(f"{kind_} is {said}", where, f"at most {MOST_TARGETS} tables [[{kind_}]]")
    names = set()
    for entry in value:
        fields = dict(entry)
        name = fields.pop("name", None)
        check = known.declare(kind_, name, where)
        if name in names:
            raise UsageError(f"[[{kind_}]] {name} is declared twice", where)
        names.add(name)
        yield from _read_check(check, fields, where)


def _read_scalar(key: str, value: object, where: str, kinds: Iterable[str] = ()) -> tuple[Key, Given]:
    if (setting := _BY_KEY.get(key)) is None:
        raise _unknown("key", key, [*_BY_KEY, "checks", *kinds], where)
    return ("", key), _given(setting, value, where, value)


def _read_checks(
    table: Mapping[str, Any], prefix: str, checks: Mapping[str, Check], where: str
) -> Iterator[tuple[Key, Given]]:
    """``[checks."nvml.ecc"]``, and ``[checks.nvml.ecc]`` too, which TOML makes a table in a table."""
    for name, value in table.items():
        check_id = prefix + name
        if check_id in checks:
            yield from _read_check(checks[check_id], value, where)
        elif isinstance(value, dict) and any(known.startswith(check_id + ".") for known in checks):
            yield from _read_checks(value, check_id + ".", checks, where)
        else:
            raise _unknown_check(check_id, checks, where)


def _read_check(check: Check, value: object, where: str) -> Iterator[tuple[Key, Given]]:
    names = [*_OF_EVERY_CHECK, *check.thresholds, *check.options]
    for name, leaf in _table(value, f'checks."{check.id}"', f"a table of {', '.join(names)}", where).items():
        if name in _OF_EVERY_CHECK:
            parse, allowed = _OF_EVERY_CHECK[name]
        elif name in check.thresholds:
            default = check.thresholds[name].default
            parse, allowed = _threshold(default), f"{_kind_of_limit(default)}; by default {_toml_value(default)}"
        elif name in check.options:
            parse, allowed = check.options[name].parse, check.options[name].allowed
        else:
            raise _unknown(f'setting of checks."{check.id}"', name, names, where)
        key = (check.id, name)
        try:
            yield key, Given(parse(leaf), where)
        except ValueError:
            secret = name in check.options and check.options[name].secret
            said = "not what it must be" if secret else shown(leaf)
            raise UsageError(f"{_quoted(key)} is {said}", where, allowed) from None


def _kind_of_limit(default: Limit) -> str:
    if isinstance(default, tuple):
        return "a list of whole numbers of at least 0"
    return f"a {'whole ' if isinstance(default, int) else ''}number of at least 0"


def _table(value: object, key: str, allowed: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{key} is {shown(value)}", where, allowed)
    return value


def _given(setting: Setting, value: object, where: str, as_given: object) -> Given:
    try:
        return Given(setting.parse(value), where)
    except ValueError:
        hint = _nearest(as_given, setting.words) if isinstance(as_given, str) else ""
        raise UsageError(f"{setting.key} is {shown(as_given)}{hint}", where, setting.allowed) from None


def _given_text(setting: Setting, text: str, where: str) -> Given:
    return _given(setting, setting.from_text(text), where, text)


# --- saying it ------------------------------------------------------------------------------------------------------


def _unknown(what: str, name: str, known: Sequence[str], where: str) -> UsageError:
    return UsageError(f"no {what} is called {shown(name)}{_nearest(name, known)}", where, ", ".join(known))


def _unknown_check(check_id: str, checks: Iterable[str], where: str) -> UsageError:
    """`allowed` holds the ids of the same rung, else the rungs: all the ids would be a screenful."""
    rung = check_id.partition(".")[0] + "."
    of_rung = [known for known in checks if known.startswith(rung)]
    rungs = sorted({known.partition(".")[0] + ".*" for known in checks})
    message = f"no check is called {shown(check_id)}{_nearest(check_id, checks)}"
    return UsageError(message, where, f'[checks."<id>"] with one of {", ".join(of_rung or rungs)}')


def _nearest(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word[:80], list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def shown(value: object, most: int = 60) -> str:
    """A value as a complaint shows it: one short line without control characters."""
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        text = repr(value)
    except ValueError:  # a number of over 4300 digits has no repr
        return f"a huge {type(value).__name__}"
    text = _redacted(text)  # before it is cut, which could cut off what a secret is known by
    return text if len(text) <= most else text[: most - 3] + "..."


def _redacted(text: str) -> str:
    from probe.redact import redact

    return redact(text)


def plain(text: str) -> str:
    """`text` with whatever is not printable escaped: file names and variables are others' words."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _toml_value(value: object, *, duration: bool = False) -> str:
    if value is None:
        return '"auto"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return _toml_value(format_duration(value) if value else "off") if duration else repr(value)
    if isinstance(value, tuple):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_toml_value(key)} = {_toml_value(item)}' for key, item in value.items())} }}"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{plain_toml(escaped)}"'


def plain_toml(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)
