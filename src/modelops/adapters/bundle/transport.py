"""HTTP for a client that trusts no server: one request, one answer, everything bounded.

On httpcore, the part of httpx below its conveniences. Those would have to be switched off one by one: redirects
that are followed, cookies, netrc, decoded bodies (a digest is of the bytes as they came), addresses in the log.
What it lacks is a limit for a whole exchange: its time-outs are for one read, and a server may send a byte a second.
"""

import logging
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit
from weakref import WeakSet

import httpcore

# At DEBUG it tells the headers of answers, and the address of a redirect may be all that one needs to read a blob.
logging.getLogger("httpcore").setLevel(logging.WARNING)

Body = bytes | Iterator[bytes]


class Overdue(Exception):
    """An exchange that went on, and took too long in all."""


class BadProxy(Exception):
    """The proxy that the environment names is no address of one that speaks HTTP. It may have a password in it."""


class Patience(NamedTuple):
    """How long a server may take, in seconds, and how often it is asked."""

    attempts: int = 5
    first_wait: float = 0.5  # before the second attempt; doubled before each further one
    longest_wait: float = 60.0  # that a Retry-After may ask for
    connect: float = 10.0
    idle: float = 30.0  # without a byte
    grace: float = 60.0  # for an answer that has no size
    slowest: int = 16 << 10  # bytes a second, on top of the grace


class Answer(NamedTuple):
    """Status, headers by their lower-case names, and the body, which can be read once."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]


class Transport:
    """A pool of connections. Any number of threads may use one object at once."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.given_up = threading.Event()
        self._backend = _Backend()
        self._pools: dict[tuple[str, str], httpcore.ConnectionPool] = {}
        self._lock = threading.Lock()

    @contextmanager
    def exchange(
        self, method: str, url: str, headers: dict[str, str], body: Body = b"", size: int = 0
    ) -> Iterator[Answer]:
        """Send a request; within the block, its answer. `size` is what travels at most, either way, in bytes."""
        patience = self.patience
        timeout = {"connect": patience.connect, "read": patience.idle, "write": patience.idle, "pool": None}
        _clock.deadline = time.monotonic() + patience.grace + size / patience.slowest
        try:
            pool = self._pool(urlsplit(url))
            given = [("User-Agent", "modelops"), ("Accept-Encoding", "identity"), *headers.items()]
            with pool.stream(method, url, headers=given, content=body, extensions={"timeout": timeout}) as response:
                yield Answer(response.status, _headers(response.headers), response.iter_stream())
        finally:
            _clock.deadline = None

    def give_up(self) -> None:
        """End all that goes on, in other threads too: what they wait for does not come."""
        self.given_up.set()
        self._backend.hang_up()

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()

    def _pool(self, url: SplitResult) -> httpcore.ConnectionPool:
        """The pool for an address: through the proxy that the environment names for it, where it names one."""
        host = url.hostname or ""
        bypass = urllib.request.proxy_bypass(host)
        proxy = "" if bypass else urllib.request.getproxies().get(url.scheme, "")
        key = url.scheme, proxy
        with self._lock:
            if key not in self._pools:
                self._pools[key] = self._make_pool(*key)
            return self._pools[key]

    def _make_pool(self, scheme: str, proxy: str) -> httpcore.ConnectionPool:
        # The system's certificates, which take long to read; OpenSSL reads SSL_CERT_FILE and SSL_CERT_DIR.
        context = ssl.create_default_context() if scheme == "https" else None
        if not proxy:
            return httpcore.ConnectionPool(ssl_context=context, max_connections=16, network_backend=self._backend)
        parts = _proxy_address(proxy)
        login = None
        if parts.username is not None:
            login = (unquote(parts.username), unquote(parts.password or ""))
        return httpcore.HTTPProxy(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",
            proxy_auth=login,
            ssl_context=context,
            max_connections=16,
            network_backend=self._backend,
        )


def _proxy_address(text: str) -> SplitResult:
    """As curl and others read it: without a scheme it is one that speaks HTTP."""
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise BadProxy
    return parts


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """By lower-case name; those that come more than once are joined, as HTTP has it."""
    headers: dict[str, str] = {}
    for name, value in raw:
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


class _Clock(threading.local):
    """When the exchange of this thread has to be over. httpcore reads and writes in the caller's thread."""

    deadline: float | None = None

    @contextmanager
    def limit(self, timeout: float | None) -> Iterator[float | None]:
        """Within the block, one wait, and the seconds that it may take. Overdue where the whole takes too long."""
        if self.deadline is None:
            yield timeout
            return
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Overdue
        try:
            yield left if timeout is None else min(timeout, left)
        except httpcore.TimeoutException:
            if time.monotonic() >= self.deadline:
                raise Overdue from None
            raise


_clock = _Clock()


class _Backend(httpcore.NetworkBackend):
    """httpcore's own, whose streams keep to the clock."""

    def __init__(self) -> None:
        self._inner = httpcore.SyncBackend()
        self._streams: WeakSet[_Stream] = WeakSet()
        self._is_broken = False
        self._lock = threading.Lock()

    def hang_up(self) -> None:
        """Break every connection. A thread that waits for a byte would not see that its socket is closed."""
        with self._lock:
            self._is_broken = True
            for stream in self._streams:
                stream.hang_up()

    def watch(self, inner: httpcore.NetworkStream) -> "_Stream":
        """A stream that keeps to the clock, and that `hang_up` breaks."""
        stream = _Stream(inner, self)
        with self._lock:
            self._streams.add(stream)
            if self._is_broken:
                stream.hang_up()
        return stream

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        with _clock.limit(timeout) as limit:
            return self.watch(self._inner.connect_tcp(host, port, limit, local_address, socket_options))


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, backend: _Backend) -> None:
        self._inner, self._backend = inner, backend

    def hang_up(self) -> None:
        """Let nothing come any more, nor be sent."""
        found = self.get_extra_info("socket")
        if isinstance(found, socket.socket):
            with suppress(OSError):
                socket.socket.shutdown(found, socket.SHUT_RDWR)  # below TLS, which would say goodbye first

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _clock.limit(timeout) as limit:
            return self._inner.read(max_bytes, limit)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _clock.limit(timeout) as limit:
            self._inner.write(buffer, limit)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        with _clock.limit(timeout) as limit:
            return self._backend.watch(self._inner.start_tls(ssl_context, server_hostname, limit))

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)
