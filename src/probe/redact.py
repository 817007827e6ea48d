"""What must not leave probe: secrets, and bytes that would act on a terminal. Used at the report's edge only.

Every pattern starts at a fixed word and has no two neighbours that could share a run of characters, so the time is
linear on hostile input. Where a secret ends is often unclear: then more is hidden, not less.
"""

import re

HIDDEN = "***"

_NAME = r"(?:token|password|passwd|passphrase|secret|credentials?|(?:[_-]|api|access|private)key)"
_VALUE = r"""(?:"[^"\r\n]*"?|'[^'\r\n]*'?|[^\s"'][^\s]*)"""

_SECRETS = (
    # a header in quotes ends at its quote; without quotes at the end of the line, since a Digest has quotes inside
    (
        re.compile(
            r"""(?ix) ( (?<=") (?:authorization|cookie) [ \t]{0,3} : ) [^"\r\n]+
                    | ( (?<=') (?:authorization|cookie) [ \t]{0,3} : ) [^'\r\n]+
                    | ( (?:authorization|cookie) ["'] [ \t]{0,3} : [ \t]{0,3} ["'] ) [^"'\r\n]+
                    | ( (?:authorization|cookie) ["']? [ \t]{0,3} [:=] ) [^\r\n]+"""
        ),
        lambda found: next(group for group in found.groups() if group) + " " + HIDDEN,
    ),
    (re.compile(r"(?i)\b(bearer|basic)[ \t]{1,3}[^\s\"']+"), lambda found: f"{found[1]} {HIDDEN}"),
    (re.compile(r"(?<=://)[^\s/?#]+@"), lambda found: HIDDEN + "@"),
    (
        re.compile(rf"""(?i)({_NAME}["']?(?:[ \t]{{0,3}}[=:][ \t]{{0,3}}|%3d)){_VALUE}"""),
        lambda found: found[1] + HIDDEN,
    ),
    (re.compile(rf"(?i)(--(?:[a-z0-9]{{1,20}}-){{0,3}}{_NAME}[ \t]{{1,3}}){_VALUE}"), lambda found: found[1] + HIDDEN),
    (
        re.compile(r"(?s)(-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----).*?(?:-----END|\Z)"),
        lambda found: f"{found[1]} {HIDDEN} ",
    ),
)


def redact(text: str) -> str:
    """`text` without the secrets in it: userinfo of URLs, credentials in headers, flags and assignments."""
    for pattern, hide in _SECRETS:
        text = pattern.sub(hide, text)
    return text


def is_secret(name: str) -> bool:
    """Whether a value of this name (a key of `data`, a variable) is to be hidden whole."""
    return re.search(rf"(?i)(?:{_NAME}|authorization|cookie)$", name) is not None


_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: colours, cursor
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # OSC and the like: titles, links
    r"|\x1b[ -/]*[0-~]?"
)
_BREAKS = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]+")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


def clean(text: str) -> str:
    """`text` on one line, fit for a terminal: no escape sequences, control characters or bidi overrides."""
    text = _BREAKS.sub(" ", _ESCAPES.sub("", text))
    return encodable(_CONTROLS.sub("", text))


def encodable(text: str) -> str:
    """`text` without lone surrogates, which undecodable bytes leave and UTF-8 has no code for."""
    return _SURROGATES.sub("?", text)
