"""What a setting may be. Each parser takes what TOML holds and returns the value, or says no with ValueError.

A check declares its own settings with `Option`, as it declares its numbers with `probe.model.Threshold`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from probe.clock import parse_duration
from probe.model import Option

MOST_ENTRIES = 64
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}\$?")
NO_UID = 2**32 - 1
"""The kernel takes this one as "leave it as it is"."""


def text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(value)  # noqa: TRY004 - every parser here says no in one way
    return value


def words(value: object) -> str:
    """Text that is not empty and holds no NUL, which no argument or file name can."""
    if not (found := text(value)) or "\0" in found:
        raise ValueError(value)
    return found


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)  # noqa: TRY004 - as in `text`
    return value


def duration(value: object) -> float:
    return parse_duration(text(value))


def path(value: object) -> str:
    found = text(value)
    if not found.startswith("/") or "\0" in found or len(found) > 4095:  # PATH_MAX, less its end
        raise ValueError(value)
    return found


def name(value: object) -> str:
    if not NAME.fullmatch(text(value)):
        raise ValueError(value)
    return str(value)


def port(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
        raise ValueError(value)
    return value


def host(value: object) -> str:
    """A name or an address, without a port."""
    found = text(value)
    if not 0 < len(found) <= 255 or not found.isascii() or not found.isprintable() or set(found) & set(" /@[]"):
        raise ValueError(value)
    if ":" not in found and not all(0 < len(label) <= 63 for label in found.removesuffix(".").split(".")):
        raise ValueError(value)  # socket.getaddrinfo would raise UnicodeError, which is no OSError
    return found


def user(value: object) -> str:
    """A user's name, or the number of one that need not have a name."""
    found = text(value)
    if found.isdigit() and not (found.isascii() and int(found[:11]) < NO_UID):
        raise ValueError(value)
    if not USER.fullmatch(found):
        raise ValueError(value)
    return found


def url(value: object) -> str:
    """An http or https URL with a host, and perhaps a port, user and password."""
    from urllib.parse import urlsplit  # only for who has such a setting

    found = text(value)
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not found.isprintable() or " " in found or len(found) > 4096:
        raise ValueError(value)
    if "%" in host(parts.hostname or "") or parts.port == 0:  # asking for a port that is none raises ValueError too
        raise ValueError(value)
    return found


def one_of(*allowed: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in allowed:
            raise ValueError(value)
        return str(value)

    return parse


def whole(least: int, most: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(value)
        return value

    return parse


def pattern(value: object) -> str:
    """A regular expression of Python's `re`."""
    try:
        re.compile(found := text(value))
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(value) from error
    return found


def slashed(value: object) -> str:
    """Text as it is or, between slashes, a regular expression."""
    found = words(value)
    if len(found) > 2 and found[0] == found[-1] == "/":
        pattern(found[1:-1])
    return found


def several(parse: Callable[[object], Any], *, least: int = 1) -> Callable[[object], tuple[Any, ...]]:
    """A list of such values."""

    def parse_all(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list) or not least <= len(value) <= MOST_ENTRIES:
            raise ValueError(value)
        return tuple(parse(item) for item in value)

    return parse_all


def one_or_several(parse: Callable[[object], Any]) -> Callable[[object], tuple[Any, ...]]:
    """Such a value, or a list of them."""
    of_list = several(parse)

    def parse_any(value: object) -> tuple[Any, ...]:
        return of_list(value) if isinstance(value, list) else (parse(value),)

    return parse_any


def table(parse: Callable[[object], Any]) -> Callable[[object], Mapping[str, Any]]:
    """A table of such values, by any key."""

    def parse_all(value: object) -> Mapping[str, Any]:
        if not isinstance(value, dict) or len(value) > MOST_ENTRIES:
            raise ValueError(value)
        return {words(key): parse(item) for key, item in value.items()}

    return parse_all


def scalar(value: object) -> str | int | float | bool:
    if not isinstance(value, str | int | float):
        raise ValueError(value)  # noqa: TRY004 - as in `text`
    return value


A_PATH = "an absolute path"
A_PORT = "a port from 1 to 65535"
A_HOST = "a host name or address"
A_URL = "an http:// or https:// URL"


def option(parse: Callable[[object], Any], allowed: str, meaning: str, default: Any = None, **more: bool) -> Option:
    """An `Option`; `more` is `required`, `secret` or `read`."""
    return Option(parse, allowed, meaning, default, **more)
