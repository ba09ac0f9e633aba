"""A port on which a pilot's server tells Prometheus its public numbers.

It is closed unless the operator opens it, and then listens on this machine alone unless
told otherwise: there is no password and no TLS. It answers one path and takes nothing
in.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from threading import BoundedSemaphore, Lock, Thread
from typing import Any

from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.home import Home
from fgrpo_secure.pilot.exposition import CONTENT_TYPE, Runs, expose

PATH = "/metrics"
_HERE = "127.0.0.1"
_MOST_PORT = 65535
# A client that is slow or many must not hold threads for long.
_TIMEOUT_SECONDS = 5.0
_MOST_CLIENTS = 8
# However often it is asked, files are looked at so often.
_LEAST_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    @property
    def is_here(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def read_address(text: str) -> Address:
    """Read `PORT` or `HOST:PORT`; without a host it is this machine's own.

    Raises:
        ConfigurationError: it is neither.
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    is_port = port.isascii() and port.isdigit() and 0 < int(port) <= _MOST_PORT
    if not is_port or text.startswith(":"):
        raise ConfigurationError(
            f"--metrics {text!r} is no port to listen on.",
            "Give PORT, for this machine alone, or HOST:PORT.",
        )
    return Address(host or _HERE, int(port))


@contextmanager
def exposed(
    home: Home, address: Address | None, say: Callable[[str], None]
) -> Iterator[None]:
    """Answer on a port while the block runs; without an address nothing is opened.

    Args:
        home: the server's.
        address: where to listen.
        say: is told where, and what is unsafe about it.

    Raises:
        ConfigurationError: nobody can listen there.
    """
    if address is None:
        yield
        return
    if address.port in {home.port, home.admin_port}:
        raise ConfigurationError(
            f"Port {address.port} is the server's own.", "Give --metrics another one."
        )
    try:
        server = _Server(address, _Text(Runs(home)))
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {address.host}, port {address.port}: {error.strerror}.",
            "Give --metrics another port, or an address that this machine has.",
        ) from None
    say(f"{home.party}: metrics on http://{address.host}:{address.port}{PATH}")
    if not address.is_here:
        say(
            f"{home.party}: they are told to whoever reaches that address, without a "
            "password and without TLS"
        )
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _Text:
    """What is told, made anew at most once a second."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._lock = Lock()
        self._made = float("-inf")
        self._text = b""

    def now(self) -> bytes:
        """The text."""
        with self._lock:
            if time.monotonic() - self._made >= _LEAST_SECONDS:
                self._text = expose(self._runs.now()).encode("utf-8")
                self._made = time.monotonic()
            return self._text


class _Handler(BaseHTTPRequestHandler):
    """Answers one path, with nothing about the machine in its headers."""

    timeout = _TIMEOUT_SECONDS
    server: _Server

    def do_GET(self) -> None:
        """Answer."""
        if self.path.partition("?")[0] != PATH:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        body = self.server.text.now()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """Neither the version of Python nor ours."""
        return "fgrpo"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Nothing: what a stranger asks for is no line of a log here."""


class _Server(ThreadingHTTPServer):
    """Answers so many at once, and lets the rest go."""

    daemon_threads = True

    def __init__(self, address: Address, text: _Text) -> None:
        if ":" in address.host:
            self.address_family = socket.AF_INET6
        self.text = text
        self._slots = BoundedSemaphore(_MOST_CLIENTS)
        super().__init__((address.host, address.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Take a connection where a place is free."""
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(
        self,
        request: Any,  # noqa: ANN401
        client_address: Any,  # noqa: ANN401
    ) -> None:
        """Answer it, and free its place."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """A connection that breaks is told to nobody."""
