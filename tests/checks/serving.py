"""Real sockets that behave as badly as wanted, and a check of the user's own asked of them in real time."""

import datetime as dt
import ipaddress
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from probe import engine
from probe.checks import load
from probe.context import Answers, Context
from probe.expect import expect
from probe.model import Facts, Job, Outcome, Plan, Profile, Record, Severity
from probe.registry import TARGETS, declared

HOST = "127.0.0.1"
SHORT_S = 0.3
"""The timeout of a target that is to end by it."""
BUDGET_S = 20.0


class Asked:
    """What one client has sent, and the way to answer it."""

    def __init__(self, connection: socket.socket, over: threading.Event) -> None:
        self.socket = connection
        self.over = over
        """Set when the test is: what hangs or goes on for ever waits for it."""

    def request(self) -> bytes:
        """The head of its HTTP request."""
        head = b""
        while b"\r\n\r\n" not in head and (part := self.socket.recv(65536)):
            head += part
        return head

    def answer(self, body: bytes = b"", status: str = "200 OK", *headers: str) -> None:
        """A whole HTTP answer to it."""
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
        self.socket.sendall("\r\n".join(lines).encode() + body)

    def reset(self) -> None:
        """RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


Behaviour = Callable[[Asked], None]


@contextmanager
def serving(behave: Behaviour, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Give each client to `behave`, in a thread of its own; yields the port."""
    over = threading.Event()
    threads: list[threading.Thread] = []

    def client(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            inner = tls.wrap_socket(connection, server_side=True) if tls else connection
            with inner:
                behave(Asked(inner, over))

    def accept() -> None:
        while not over.is_set():
            with suppress(OSError):
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=client, args=(connection,)))
                threads[-1].start()

    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(0.05)
        threads.append(threading.Thread(target=accept))
        threads[0].start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            for thread in threads:
                thread.join(10)


@contextmanager
def deaf() -> Iterator[int]:
    """A port whose queue is full: the kernel drops whoever wants to connect, as a packet filter does."""
    with socket.create_server((HOST, 0), backlog=0) as listener, socket.socket() as first, socket.socket() as second:
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def hang(asked: Asked) -> None:
    asked.over.wait(30)


def ask(kind: str, *records: tuple[str, Record], timeout_s: float | None = None, **given: Any) -> Outcome:
    """The outcome of ``[[kind]] name = "it"`` with these options, run by the engine on the event loop of real runs."""
    load()
    check = declared(TARGETS[f"service.{kind}"], "it")
    options = {name: option.default for name, option in check.options.items()}
    options |= {name: check.options[name].parse(value) for name, value in given.items()}
    assert not check.complaint or not check.complaint(options)
    job = Job(check, "", Severity.CRITICAL, timeout_s=timeout_s, options=options)
    outcomes: list[Outcome] = []

    async def main() -> None:
        answers = Answers()
        for worker, record in records:
            answers.put(worker, check.id if worker == "command" else "", record)
        context = Context(expected=expect(Facts()), facts=Facts(), answers=answers)
        times = engine.Times(already_s=0.0, kill_s=BUDGET_S, end_s=BUDGET_S)
        await engine.run(Plan(Profile.READINESS, (job,)), context, outcomes.append, times, on_error=print)

    anyio.run(main)
    (outcome,) = outcomes
    return outcome


def authority(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A CA's certificate as a PEM file, and the TLS of a server on 127.0.0.1 with a certificate from it."""
    ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority of the test's own")])
    constraints = x509.BasicConstraints(ca=True, path_length=None)
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    ca = _certificate(ca_name, ca_name, ca_key, ca_key, constraints, usage)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server")])
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))])
    server = _certificate(name, ca_name, server_key, ca_key, here)
    paths = {part: folder / f"{part}.pem" for part in ("ca", "server", "key")}
    paths["ca"].write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    paths["server"].write_bytes(server.public_bytes(serialization.Encoding.PEM))
    paths["key"].write_bytes(
        server_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths["server"], paths["key"])
    return paths["ca"], context


def _certificate(
    name: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    *extensions: x509.ExtensionType,
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - dt.timedelta(days=1),
        not_valid_after=now + dt.timedelta(days=1),
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=not isinstance(extension, x509.SubjectAlternativeName))
    for identity in (
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
    ):
        builder = builder.add_extension(identity, critical=False)
    return builder.sign(signer, hashes.SHA256())
