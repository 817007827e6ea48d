"""Jupyter: every server that was told to run here answers as one, by the content of its answers.

::

    url, or runtime files  ->  live servers  ->  GET api: a version  ->  GET api/status, with the token: its kernels
                               none: whoever was told to run, and does not

Both paths leave a server's idle time alone. A runtime file names a server's port and its token; where it listens says
the kernel, since the ``url`` in the file holds a host name that a proxy may stand before. On this machine itself its
certificate is not verified: they are self-signed, and for a host name that is not asked. A runtime file's token goes,
in a header, to the server of that file; the one of ``token_file`` to the server of ``url``, or to those with files in
``runtime_dir``. One of the two must be set with it: any user can leave a runtime file where Jupyter has them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from probe.checks.reaching import address, shown, why
from probe.checks.told import LOOPBACK, listening, signs
from probe.context import Context, Host
from probe.model import Finding, Job, NoAnswer, Scalar, Status, failed, passed, unknown, warned
from probe.options import A_PATH, A_URL, option, path, url
from probe.registry import check

if TYPE_CHECKING:
    import httpx

COMMAND = re.compile(
    r"""(?x) (?:^|[\s/'"=;&|(])
    (?: jupyter[ -](?:lab|labhub|notebook|server|nbclassic)
      | jupyterhub-singleuser
      | start-(?:notebook|singleuser)(?:\.py|\.sh)?
      | -m[ ]?(?:jupyter|jupyterlab|jupyter_server|notebook|nbclassic)
      | systemctl[ ]start[ ]jupyter[\w@-]*\.service ) (?:$|[\s'";&|)])"""
)
MOST_BYTES = 65536
A_TOKEN = re.compile(r"[!-~]{1,4096}")
ABSENT = (2, 20)
"""ENOENT and ENOTDIR."""


class Server(Struct, frozen=True):
    """One server, as its runtime file has it."""

    file: str = ""
    pid: int = 0
    port: int = 0
    sock: str = ""
    secure: bool = False
    base_url: str = "/"
    token: str = ""
    alive: bool = True
    of_this_life: bool = False
    """Its file was written in this container, since its pid 1 started."""


class Place(Struct, frozen=True):
    """Where one server is asked."""

    url: str
    """With a slash at its end, and nothing secret in it."""
    sock: str = ""
    token: str = ""
    verify: bool = False

    @property
    def shown(self) -> str:
        return f"{self.url} ({self.sock})" if self.sock else self.url


class Api(Struct):
    version: str


class Activity(Struct):
    kernels: int
    connections: int


def plain(value: object) -> str:
    """A URL without what has no place in it: a user, a token, a fragment."""
    if set(found := url(value)) & set("@?#"):
        raise ValueError(value)
    return found


def complaint(options: Mapping[str, Any]) -> str:
    if options["token_file"] and not (options["url"] or options["runtime_dir"]):
        return "a token_file needs the url or the runtime_dir of the server that gets it"
    return ""


@check(
    "service.jupyter",
    profiles="R",
    uses=("files.jupyter",),
    options={
        "url": option(
            plain,
            f"{A_URL} without user or query",
            "the one server to ask, its certificate verified by this system's CAs unless it is on loopback; without it"
            " those with runtime files, whose certificates are not",
            "",
        ),
        "token_file": option(
            path,
            A_PATH,
            "a file with the token, where it is not the one in the runtime file; with url or runtime_dir",
            read=True,
        ),
        "runtime_dir": option(path, A_PATH, "the folder of runtime files; without it the places that Jupyter has"),
    },
    complaint=complaint,
)
async def jupyter(context: Context, job: Job) -> Finding:
    """Does every Jupyter server that was told to run here answer as one?"""
    if job.options["url"]:
        return await _ask(context, job, _named(job.options["url"], await _token(context, job)))
    servers, unread = await _servers(context)
    live = [server for server in servers if server.alive]
    if not live:
        return await _absent(context, job, servers, unread)
    token = await _token(context, job)
    findings = [await _ask(context, job, _place(context.host, server, token), server) for server in live]
    worst = max(findings, key=lambda finding: (Status.PASS, Status.WARN, Status.FAIL).index(finding.status))
    if len(live) == 1:
        return worst
    words = f"{len(live)} servers answer" if worst.status is Status.PASS else f"of {len(live)} servers, {worst.summary}"
    return replace(worst, summary=words, data={**worst.data, "servers": len(live)})


async def _token(context: Context, job: Job) -> str:
    """The one that was given in a file; empty: none was."""
    if not (file := job.options["token_file"]):
        return ""
    record = await context.answer("files", f"text:{file}")
    if record.code:
        raise NoAnswer(unknown(f"token_file {file} cannot be read: {record.text}", reason="token_file"))
    return str(record.data["content"]).strip()


# ------------------------------------------------------------------------------------------------------------ where


async def _servers(context: Context) -> tuple[list[Server], str]:
    """Those with runtime files, and a folder that could not be looked into."""
    found: dict[str, Server] = {}
    unread = ""
    for kind in ("jupyter", "homes"):
        for folder in context.asked.get(kind, ()):
            record = await context.answer("files", f"{kind}:{folder}")
            if record.code and record.code not in ABSENT:
                unread = f"{folder}: {record.text}"
            for server in msgspec.convert(record.data.get("servers", []), list[Server]):
                found[server.file] = server
    return list(found.values()), unread


async def _absent(context: Context, job: Job, servers: Sequence[Server], unread: str) -> Finding:
    """No server lives: one has gone, or one never came, or none is to be here."""
    lost = [server for server in servers if server.of_this_life]
    if lost and context.facts.in_container:
        pid, file = lost[0].pid, lost[0].file
        return failed(
            f"the Jupyter server of pid {pid} has gone without a word: {file} is left", reason="gone", pid=pid
        )
    found = await signs(context, job, COMMAND)
    if skip := found.skip():
        return skip
    if unread:
        return unknown(f"told to run by {found.by}; not known whether it does: {unread}", reason="unread")
    return failed(f"told to run by {found.by}, and no server with a runtime file lives", reason="not_running")


def _named(given: str, token: str) -> Place:
    from urllib.parse import urlsplit

    host = urlsplit(given).hostname or ""
    local = host == "localhost" or host in LOOPBACK
    return Place(given.rstrip("/") + "/", token=token, verify=given.startswith("https:") and not local)


def _place(machine: Host, server: Server, token: str) -> Place:
    from urllib.parse import quote

    base = quote(f"/{server.base_url.strip('/')}/".replace("//", "/"), safe="/%~@:!$&'()*+,;=")
    token = token or server.token
    if server.sock:
        return Place(f"http://localhost{base}", server.sock, token)
    scheme = "https" if server.secure else "http"
    host = next(iter(listening(machine, server.port)), LOOPBACK[0])
    return Place(f"{scheme}://{address(host, server.port)}{base}", token=token)


# ----------------------------------------------------------------------------------------------------------- asking


async def _ask(context: Context, job: Job, place: Place, server: Server | None = None) -> Finding:
    """What the server makes of it; `server`: as its runtime file has it."""
    import httpx  # 0.1 s, and only where there is a server to ask

    data: dict[str, Scalar] = {"url": place.url, **({"pid": server.pid} if server and server.pid else {})}
    try:
        async with _client(place) as client:
            context.step(job, f"GET {place.shown}api")
            status, body = await _get(client, f"{place.url}api", {})
            if wrong := _no_api(status, body):
                return failed(f"{place.shown}api {wrong[1]}", reason=wrong[0], http_status=status, **data)
            version = shown(_decoded(body, Api).version, most=32)
            if not place.token:
                return passed(f"Jupyter {version} answers at {place.shown}", version=version, **data)
            if not A_TOKEN.fullmatch(place.token):
                return warned(f"the token for {place.shown} is none that fits in a header", reason="token", **data)
            context.step(job, f"GET {place.shown}api/status")
            status, body = await _get(client, f"{place.url}api/status", {"Authorization": f"token {place.token}"})
    except httpx.ProtocolError as error:
        closed = "disconnected" in str(error) or "closed connection" in str(error)
        words = "closed the connection before its answer was whole" if closed else "says what is no HTTP"
        return failed(f"{place.shown} {words}", reason="closed" if closed else "garbage", **data)
    except (OSError, httpx.TransportError) as error:
        reason, words = why(error)
        return failed(f"{place.shown}: {words}", reason=reason, **data)
    return _active(place, version, status, body, data)


def _client(place: Place) -> "httpx.AsyncClient":
    """No proxy, no redirect, no certificates loaded that nobody looks at, and the engine's limit instead of its own."""
    import httpx

    verify: Any = False
    if place.verify:
        import ssl

        verify = ssl.create_default_context()
    transport = httpx.AsyncHTTPTransport(verify=verify, trust_env=False, uds=place.sock or None)
    headers = {"User-Agent": "probe", "Accept-Encoding": "identity"}
    return httpx.AsyncClient(transport=transport, trust_env=False, timeout=None, headers=headers)  # noqa: S113 - above


async def _get(client: "httpx.AsyncClient", what: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """Status and body, of which no more than `MOST_BYTES` and a part are read: who says more is no Jupyter."""
    body = b""
    async with client.stream("GET", what, headers=headers) as response:
        async for part in response.aiter_raw():
            body += part
            if len(body) > MOST_BYTES:
                break
        return response.status_code, body


def _no_api(status: int, body: bytes) -> tuple[str, str] | None:
    """(reason, words), where this is not what Jupyter says."""
    if status != 200:
        return "status", f"answers with {status}, expected 200"
    if len(body) > MOST_BYTES:
        return "not_jupyter", f"is no Jupyter: over {MOST_BYTES >> 10} KiB instead of a version"
    if _decoded(body, Api) is None:
        return "not_jupyter", f'is no Jupyter: "{shown(body[:1024].decode("utf-8", "replace"), most=60)}"'
    return None


def _active(place: Place, version: str, status: int, body: bytes, data: Mapping[str, Scalar]) -> Finding:
    where = f"Jupyter {version} at {place.shown}"
    known = {**data, "version": version}
    if status in (401, 403):
        return warned(f"{where} does not take the token ({status} to api/status)", reason="token", **known)
    found = _decoded(body, Activity) if status == 200 else None
    if found is None:
        return failed(f"{where} answers api/status with {status} and no numbers", reason="status", **known)
    words = f"Jupyter {version} answers at {place.shown}: {found.kernels} kernels, {found.connections} connections"
    return passed(words, kernels=found.kernels, connections=found.connections, **known)


def _decoded(body: bytes, type_: Any) -> Any:
    """The JSON in it, of that type; None: it is something else."""
    try:
        return msgspec.json.decode(body, type=type_)
    except (msgspec.MsgspecError, RecursionError):
        return None
