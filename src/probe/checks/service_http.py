"""A web service of the user's own, ``[[http]]``: it answers, with the status and the content that it should.

httpx is imported when such a check runs. Redirects are not followed, proxies and ``.netrc`` of the environment are left
alone: a health check asks the very server that it names. The body is read only as far as it is needed.
"""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from probe.checks.reaching import resolve, shown, why
from probe.context import Context
from probe.model import Finding, Job, failed, passed, unknown
from probe.options import A_URL, one_of, one_or_several, option, path, scalar, text, url, whole, words
from probe.registry import TARGETS, check

if TYPE_CHECKING:
    import ssl

    import httpx

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
MOST_BYTES = 1 << 20
MOST_MEMBERS = 64
MOST_PATH = 256
ANY_2XX = range(200, 300)
STEPS = {
    "connection.connect_tcp.started": "connecting to",
    "connection.start_tls.started": "agreeing on TLS with",
    "http11.send_request_headers.started": "sending to",
    "http11.receive_response_headers.started": "waiting for the answer of",
    "http11.receive_response_body.started": "reading the body of",
}
"""What httpcore is about to do (its "trace" extension), and how that stands in a timeout."""


class Address(Struct, frozen=True):
    """A URL in parts: where to, what may be shown of it, and the credentials that it held."""

    request: str
    shown: str
    host: str
    port: int
    credentials: tuple[str, ...] = ()

    @property
    def https(self) -> bool:
        return self.request.startswith("https:")

    @classmethod
    def of(cls, given: str) -> "Address":
        from urllib.parse import unquote, urlsplit, urlunsplit

        parts = urlsplit(given)
        netloc = parts.netloc.rpartition("@")[2]
        seen = f"{parts.scheme}://{netloc}{parts.path}" + ("?..." if parts.query else "")
        credentials = tuple(unquote(part or "") for part in (parts.username, parts.password))
        return cls(
            request=urlunsplit((parts.scheme, netloc, parts.path, parts.query, "")),
            shown=seen,
            host=parts.hostname or "",
            port=parts.port or (443 if parts.scheme == "https" else 80),
            credentials=credentials if parts.username is not None else (),
        )


def _headers(value: object) -> Mapping[str, str]:
    """What HTTP can carry: names that are tokens, values without a line's end."""
    if not isinstance(value, dict) or len(value) > MOST_MEMBERS:
        raise ValueError(value)
    for name, content in value.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not re.fullmatch(r"[\t -~]*", text(content)):
            raise ValueError(value)
    return {name: content.strip() for name, content in value.items()}


def _members(value: object) -> Mapping[str, Any]:
    """Dotted paths and the values there; tables in the table, as TOML makes of dotted keys, are paths too."""
    found: dict[str, Any] = {}

    def walk(table: Mapping[str, Any], before: str) -> None:
        for name, item in table.items():
            if isinstance(item, dict) and item:
                walk(item, f"{before}{words(name)}.")
            else:
                found[before + words(name)] = scalar(item)

    if not isinstance(value, dict) or not value:
        raise ValueError(value)
    walk(value, "")
    if len(found) > MOST_MEMBERS or max(map(len, found)) > MOST_PATH:
        raise ValueError(value)
    return found


def _verify(value: object) -> bool | str:
    return value if isinstance(value, bool) else path(value)


def complaint(options: Mapping[str, Any]) -> str:
    given = Address.of(options["url"])
    if options["method"] == "HEAD" and (options["contains"] or options["json"]):
        return "an answer to HEAD has no body for contains or json to look at"
    if given.credentials and any(name.lower() == "authorization" for name in options["headers"]):
        return "it has a user in its url and an Authorization among its headers"
    if isinstance(options["verify"], str) and not given.https:
        return "verify names a file of CAs, and an http:// URL has no certificate"
    return ""


@check(
    "service.http",
    profiles="RS",
    into=TARGETS,
    options={
        "url": option(url, A_URL, "what is asked; a user and password in it are sent, and never shown", required=True),
        "method": option(one_of(*METHODS), ", ".join(METHODS), "how it is asked, without a body", "GET"),
        "headers": option(_headers, "a table of text", "sent along; never shown", {}, secret=True),
        "status": option(
            one_or_several(whole(100, 599)),
            "a code from 100 to 599, or a list",
            "the codes that are right; without it any 2xx",
            (),
        ),
        "contains": option(words, "text", "what the body must hold in its first 1 MiB", ""),
        "json": option(
            _members, "a table of dotted paths and values", 'what the body must be, such as {"data.0.up" = true}', {}
        ),
        "verify": option(
            _verify,
            "true, false, or the absolute path of a PEM file",
            "whom to trust: the CAs that come with certifi, anybody, or the CAs of a file",
            True,
            read=True,
        ),
    },
    complaint=complaint,
)
async def http(context: Context, job: Job) -> Finding:
    """Does this URL answer with the status and the content that it should?"""
    asked = Address.of(job.options["url"])
    what = f"{job.options['method']} {asked.shown}"
    try:
        verify = await _trusted(context, job, asked)
    except (OSError, ValueError) as error:  # ValueError: a CA file without a certificate in it
        return unknown(f"the CAs in {job.options['verify']} cannot be read: {shown(str(error))}", reason="ca_file")

    import httpx

    async def trace(event: str, about: Mapping[str, Any]) -> None:
        if event in STEPS:
            context.step(job, f"{STEPS[event]} {asked.shown}")

    headers = {"User-Agent": "probe", "Accept-Encoding": "identity", **job.options["headers"]}
    auth = httpx.BasicAuth(*asked.credentials) if asked.credentials else None
    try:
        await resolve(context, job, asked.host, asked.port)
        async with (
            httpx.AsyncClient(
                verify=verify,
                trust_env=False,
                timeout=None,  # noqa: S113 - the engine's
                headers=headers,
                auth=auth,
            ) as client,
            client.stream(job.options["method"], asked.request, extensions={"trace": trace}) as response,
        ):
            return await _judged(job, response, what)
    except httpx.ProtocolError as error:
        if "disconnected" in str(error) or "closed connection" in str(error):
            return failed(f"{what}: the server closed the connection before its answer was whole", reason="closed")
        return failed(f"{what}: what came is no HTTP ({_said(job, str(error))})", reason="garbage")
    except (OSError, httpx.TransportError) as error:
        reason, said = why(error)
        return failed(f"{what}: {said}", reason=reason)


async def _trusted(context: Context, job: Job, asked: Address) -> "ssl.SSLContext | bool":
    """What httpx is to verify with: nothing is loaded for http, since certifi's CAs alone take 100 ms."""
    verify = job.options["verify"]
    if not isinstance(verify, str) or not asked.https:
        return bool(verify and asked.https)
    import ssl

    context.step(job, f"reading {verify}")
    record = await context.answer("files", f"text:{verify}")
    if record.code:
        raise OSError(record.code, record.text)
    if not (content := str(record.data["content"])):
        raise ValueError("it is empty")  # told of no CA, ssl would trust all of this system's
    return ssl.create_default_context(cadata=content)


async def _judged(job: Job, response: "httpx.Response", what: str) -> Finding:
    code, right = response.status_code, job.options["status"] or ANY_2XX
    said = f"{what}: {code}"
    if code not in right:
        expected = "expected " + ("2xx" if right == ANY_2XX else " or ".join(map(str, right)))
        if response.is_redirect:
            to = _said(job, response.headers["location"])
            return failed(
                f"{said} to {to}, which is not followed; {expected}", reason="redirect", http_status=code, location=to
            )
        return failed(f"{said}, {expected}", reason="status", http_status=code)
    if job.options["contains"] or job.options["json"]:
        return await _content(job, response, said)
    return passed(said, http_status=code)


async def _content(job: Job, response: "httpx.Response", said: str) -> Finding:
    """Read as far as it takes to tell."""
    contains, members, code = job.options["contains"], job.options["json"], response.status_code
    needle = contains.encode()
    body, found = b"", not needle
    async for part in response.aiter_raw():
        found = found or needle in body[-len(needle) :] + part
        body += part
        if (found and not members) or len(body) > MOST_BYTES:
            break
    if not found:
        where = "the first 1 MiB of its body" if len(body) > MOST_BYTES else "its body"
        reason = "too_large" if len(body) > MOST_BYTES else "content"
        words_ = f'{said}, and "{shown(contains)}" is not in {where}, which begins with "{_said(job, body[:1024])}"'
        return failed(words_, reason=reason, http_status=code)
    if members and len(body) > MOST_BYTES:
        return failed(f"{said}, and its body is over 1 MiB, too large for JSON", reason="too_large", http_status=code)
    if wrong := _differing(job, body):
        return failed(f"{said}, {wrong}", reason="content", http_status=code)
    return passed(f"{said} with what is expected in its body", http_status=code)


def _differing(job: Job, body: bytes) -> str:
    """In words, where the body is not the JSON that it should be; empty where it is."""
    members = job.options["json"]
    if not members:
        return ""
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        return f'and its body is no JSON: "{_said(job, body[:1024])}"'
    wrong = []
    for dotted, expected in members.items():
        seen = member(tree, dotted)
        if seen != expected or (type(seen) is bool) is not (type(expected) is bool):  # to Python true is 1
            there = "not there" if seen is ABSENT else _said(job, json.dumps(seen)[:4096], 60)
            wrong.append(f"{dotted} is {there}, expected {json.dumps(expected)}")
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return ", ".join(wrong[:3]) + more


ABSENT = object()


def member(tree: object, dotted: str) -> object:
    """What is at ``a.b.0.c``, lists by number; a key that holds dots itself is found too. `ABSENT` where nothing is."""
    if isinstance(tree, dict) and dotted in tree:
        found: object = tree[dotted]
        return found
    head, dot, rest = dotted.partition(".")
    if isinstance(tree, list) and head.isdecimal() and len(head) < 8 and int(head) < len(tree):
        return member(tree[int(head)], rest) if dot else tree[int(head)]
    if dot and isinstance(tree, dict) and head in tree:
        return member(tree[head], rest)
    return ABSENT


def _said(job: Job, seen: str | bytes, most: int = 120) -> str:
    """The server's own words; it may repeat the credentials that it was sent."""
    from urllib.parse import parse_qsl, urlsplit

    query = urlsplit(job.options["url"]).query
    secrets = [*Address.of(job.options["url"]).credentials, query, *(value for _, value in parse_qsl(query))]
    secrets += [part.partition("=")[2] for part in query.split("&")]
    for value in job.options["headers"].values():
        secrets += [value, value.rpartition(" ")[2]]
    return shown(seen if isinstance(seen, str) else seen.decode("utf-8", "replace"), secrets, most)
