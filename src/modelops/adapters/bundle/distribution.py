"""One repository of a registry, by the OCI distribution specification. Nothing that it answers is taken on trust.

What may succeed later is tried again, with growing waits, or after what Retry-After says: 429, errors of the server,
connections that break. What can't is not: an unknown host or certificate, a refusal, content that is not its digest's.
"""

import email.utils
import hashlib
import io
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore

from .artifact import MANIFEST_TYPE, MAX_MANIFEST_BYTES, Blob, sha256_of
from .authorization import MAX_TOKEN_BYTES, Authorization
from .credentials import Credentials
from .errors import BundleError
from .references import Place
from .transport import Answer, BadProxy, Body, Overdue, Patience, Transport

MAX_REDIRECTS = 5
_CHUNK = 1 << 20
_DOCKER_HUB = {"docker.io": "registry-1.docker.io"}
_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_PAGES = ("text/html", "application/xhtml+xml")
# A bundle's, and what else may have its name: only what is accepted is told from what is not there.
_MANIFEST_TYPES = ", ".join(
    [
        MANIFEST_TYPE,
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ]
)
_NEVER_BETTER = (501, 505)  # of the server's errors
_BROKEN = (httpcore.NetworkError, httpcore.ProtocolError)
T = TypeVar("T")


class _Again(Exception):
    """What failed may succeed later. `wait` is what the server asks for, in seconds."""

    def __init__(self, problem: str, wait: float | None = None) -> None:
        super().__init__(problem)
        self.wait = wait


class _Upload(NamedTuple):
    """Content that is sent: opened anew for each attempt."""

    open: Callable[[], BinaryIO]
    size: int


class RegistryClient:
    """A client of the repository at `place`. Any number of threads may use one object at once."""

    def __init__(
        self,
        place: Place,
        credentials: Callable[[], Credentials | None],
        *,
        insecure: bool = False,
        token_host: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.place = place
        self._insecure = insecure
        self._base = f"http{'' if insecure else 's'}://{_DOCKER_HUB.get(place.host, place.host)}/v2/{place.repository}/"
        self._transport = Transport(patience or Patience())
        self._authorization = Authorization(
            place.host, credentials, self._ask_for_token, insecure=insecure, token_host=token_host
        )

    def close(self) -> None:
        """Close every connection."""
        self._transport.close()

    def give_up(self) -> None:
        """End what other threads are about, which is an error there, and begin nothing again."""
        self._transport.give_up()

    # --- reading

    def manifest(self, reference: str) -> bytes:
        """The manifest of a tag or of `sha256:<hex>`, which it is verified by."""

        def read() -> bytes:
            with self._request("GET", f"manifests/{reference}", {"Accept": _MANIFEST_TYPES}) as answer:
                self._require(answer, 200, f"bundle not found: {self.place} has no {reference}")
                self._refuse_page(answer)
                return self._all(answer, MAX_MANIFEST_BYTES, f"the manifest of {reference}")

        data = self._retrying(read)
        if reference.startswith("sha256:") and reference != f"sha256:{sha256_of(data)}":
            raise self._lie(f"the manifest of {reference} is that of sha256:{sha256_of(data)}")
        return data

    def has_manifest(self, reference: str) -> bool:
        """Whether the registry says that it has it."""
        has = self._has(f"manifests/{reference}", {"Accept": _MANIFEST_TYPES})
        if has is None:
            try:
                self.manifest(reference)
            except BundleError as error:
                if error.type != "bundle_not_found":
                    raise
                return False
        return has is not False

    def blob(self, blob: Blob) -> bytes:
        """A blob's content, verified. The caller has bounded its size."""
        content = bytearray()

        def start() -> Callable[[bytes], object]:
            content.clear()
            return content.extend

        self.fetch(blob, start)
        return bytes(content)

    def fetch(self, blob: Blob, start: Callable[[], Callable[[bytes], object]]) -> None:
        """Give a blob's content to a sink in pieces. `start` makes a new sink, for each attempt.

        It is verified when this returns; where it raises, what the sink got is worth nothing.
        """
        self._retrying(lambda: self._fetch(blob, start()))

    def _fetch(self, blob: Blob, sink: Callable[[bytes], object]) -> None:
        name = f"sha256:{blob.digest}"
        digest, size = hashlib.sha256(), 0
        with self._request("GET", f"blobs/{name}", {}, size=blob.size) as answer:
            self._require(answer, 200, f"bundle not found: {self.place} has no {name}, which its manifest names")
            announced = answer.headers.get("content-length", str(blob.size))
            if announced != str(blob.size):
                self._refuse_page(answer)  # only now: a blob may well be a page
                raise self._lie(f"the blob {name} has {announced[:40]} bytes, and the manifest says {blob.size}")
            for chunk in answer.chunks:
                size += len(chunk)
                if size > blob.size:
                    raise self._lie(f"the blob {name} is longer than the {blob.size} bytes of the manifest")
                digest.update(chunk)
                sink(chunk)
        if (digest.hexdigest(), size) != blob:
            raise self._lie(f"the {size} bytes of the blob {name} are those of sha256:{digest.hexdigest()}")

    # --- writing

    def upload(self, blob: Blob, open: Callable[[], BinaryIO]) -> None:
        """Send a blob, unless the registry has it."""
        name = f"sha256:{blob.digest}"
        if not self._has(f"blobs/{name}", {}):
            self._retrying(lambda: self._upload(name, _Upload(open, blob.size)))

    def _upload(self, name: str, content: _Upload) -> None:
        with self._request("POST", "blobs/uploads/", {"Content-Length": "0"}) as answer:
            self._require(answer, 202, f"there is no repository {self.place}")
            location = self._address(self._base, answer.headers.get("location", ""))
        if _origin(location) != _origin(urlsplit(self._base)):
            raise self._lie("it wants the upload at another host")
        query = "&".join(filter(None, [location.query, f"digest={name}"]))
        with self._request("PUT", location._replace(query=query).geturl(), _OCTETS, upload=content) as answer:
            if answer.status == 400:
                raise BundleError("bundle_changed", f"{self.place} did not take {name}; was a file changed meanwhile?")
            self._require(answer, 201, f"the upload to {self.place} was lost")

    def put_manifest(self, reference: str, data: bytes) -> None:
        """Send a manifest, whose blobs the registry has."""
        headers = {"Content-Type": MANIFEST_TYPE}
        name = f"sha256:{sha256_of(data)}"

        def put() -> None:
            with self._request("PUT", f"manifests/{reference}", headers, upload=_bytes(data)) as answer:
                self._require(answer, 201, f"there is no repository {self.place}")
                if answer.headers.get("docker-content-digest", name) != name:
                    raise self._lie(f"the manifest {name} was not taken as it is")

        self._retrying(put)

    # --- one exchange

    def _has(self, path: str, headers: dict[str, str]) -> bool | None:
        """Whether it is there; None where the registry does not answer such a question."""

        def look() -> bool | None:
            with self._request("HEAD", path, headers) as answer:
                if answer.status in (405, 501):
                    return None
                if answer.status != 404:
                    self._require(answer, 200, "")
                return answer.status == 200

        return self._retrying(look)

    @contextmanager
    def _request(
        self, method: str, path: str, headers: dict[str, str], *, size: int = 0, upload: _Upload | None = None
    ) -> Iterator[Answer]:
        """An answer to a request for something of this repository, after whatever the registry asks for first."""
        url = urljoin(self._base, path)
        for attempt in range(2):
            sent = self._authorization.header
            with self._follow(method, url, headers, sent, size, upload) as answer:
                challenge = answer.headers.get("www-authenticate", "")
                if answer.status != 401 or attempt == 1 or not challenge:
                    yield answer
                    return
            if not self._authorization.answer(challenge, sent):
                raise self._denied(401)

    @contextmanager
    def _follow(
        self, method: str, url: str, headers: dict[str, str], login: str | None, size: int, upload: _Upload | None
    ) -> Iterator[Answer]:
        """Send, and follow redirects of what is read. Only the registry itself learns who we are."""
        own = _origin(urlsplit(url))
        for _ in range(MAX_REDIRECTS + 1):
            given = dict(headers)
            if login is not None and _origin(urlsplit(url)) == own:
                given["Authorization"] = login
            with self._send(method, url, given, size, upload) as answer:
                if answer.status not in (301, 302, 303, 307, 308) or method not in ("GET", "HEAD"):
                    yield answer
                    return
                url = self._redirected(url, answer.headers.get("location", ""))
        raise self._lie(f"it redirects more than {MAX_REDIRECTS} times")

    @contextmanager
    def _send(
        self, method: str, url: str, headers: dict[str, str], size: int, upload: _Upload | None
    ) -> Iterator[Answer]:
        with self._told(), _opened(upload) as (body, length):
            given = headers if upload is None else {**headers, "Content-Length": str(length)}
            with self._transport.exchange(method, url, given, body, max(size, length)) as answer:
                yield answer

    def _address(self, base: str, location: str) -> SplitResult:
        """What a Location header names."""
        try:
            target = urlsplit(urljoin(base, location))
            valid = bool(target.hostname) and target.username is None and (target.port is None or target.port > 0)
        except ValueError:
            valid = False
        if not location or not valid or not _PRINTABLE.fullmatch(location) or target.scheme not in ("http", "https"):
            raise self._lie("it sends us to what is no address")
        return target

    def _redirected(self, url: str, location: str) -> str:
        target = self._address(url, location)
        if target.scheme == "http" and not self._insecure:
            problem = f"the registry {self.place.host} redirects to plain HTTP, at {target.hostname}"
            raise BundleError("registry_untrusted", problem)
        return target._replace(fragment="").geturl()

    def _ask_for_token(self, method: str, url: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        def ask() -> tuple[int, bytes]:
            with self._send(method, url, headers, 0, _bytes(body) if body else None) as answer:
                self._require_up(answer)
                if answer.status == 200:
                    self._refuse_page(answer)
                return answer.status, self._all(answer, MAX_TOKEN_BYTES, "a token")

        return self._retrying(ask)

    # --- what went wrong

    def _retrying(self, action: Callable[[], T]) -> T:
        patience, given_up = self._transport.patience, self._transport.given_up
        for attempt in range(1, patience.attempts + 1):
            if given_up.is_set():
                raise BundleError("registry_unavailable", "what was asked for is not wanted any more", retryable=True)
            try:
                return action()
            except _Again as again:
                wait = patience.first_wait * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
                if again.wait is not None:
                    wait = again.wait
                if attempt == patience.attempts or wait > patience.longest_wait:
                    asked = "" if again.wait is None else f"; it asks to be left alone for {again.wait:.0f} seconds"
                    problem = f"the registry {self.place.host} {again} (asked {attempt} times{asked})"
                    raise BundleError("registry_unavailable", problem, retryable=True) from None
            given_up.wait(wait)
        raise AssertionError("there is at least one attempt")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Within the block, what breaks is either to be tried again, or told as it is."""
        try:
            yield
        except httpcore.TimeoutException:
            raise _Again("takes too long to answer") from None
        except Overdue:
            slow = f"sends less than {self._transport.patience.slowest} bytes a second"
            problem = f"the registry {self.place.host} {slow}; another time may be better"
            raise BundleError("registry_unavailable", problem, retryable=True) from None
        except BadProxy:
            problem = "the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names is not http://host:port, or https"
            raise BundleError("registry_unavailable", problem) from None
        except httpcore.ProxyError as error:
            raise BundleError("registry_unavailable", f"the proxy of the environment refuses: {error}") from None
        except _BROKEN as error:
            self._require_hope(error)
            raise _Again(f"can't be reached, or broke the connection: {_reason(error)}") from None
        except httpcore.UnsupportedProtocol:
            raise self._lie("it names an address of another protocol") from None

    def _require_hope(self, error: Exception) -> None:
        """Raise what another attempt would meet again."""
        cause = _cause(error, OSError)
        if isinstance(cause, ssl.SSLCertVerificationError):
            problem = (
                f"the certificate of {self.place.host} can't be trusted: {cause.verify_message}; "
                "SSL_CERT_FILE names the certificates of a private authority"
            )
            raise BundleError("registry_untrusted", problem) from None
        if isinstance(cause, ssl.SSLError) and cause.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
            problem = f"{self.place.host} does not speak TLS; MODELOPS_BUNDLE_INSECURE=true allows plain HTTP"
            raise BundleError("registry_untrusted", problem) from None
        if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
            raise BundleError("registry_unavailable", f"there is no host {self.place.host}: {cause.strerror}") from None

    def _require(self, answer: Answer, status: int, missing: str) -> None:
        """Raise what an answer with another status means. Nothing of its text is told: it may give secrets back."""
        if answer.status == status:
            return
        self._require_up(answer)
        if answer.status in (401, 403):
            raise self._denied(answer.status)
        if answer.status == 404:
            raise BundleError("bundle_not_found", missing or f"{self.place} has no such thing")
        if answer.status < 300:
            self._refuse_page(answer)
        hint = "; does it speak TLS? then leave MODELOPS_BUNDLE_INSECURE out" if answer.status == 400 else ""
        problem = f"the registry {self.place.host} answered with status {answer.status}, and not {status}{hint}"
        raise BundleError("registry_response_invalid", problem)

    def _refuse_page(self, answer: Answer) -> None:
        if answer.headers.get("content-type", "").partition(";")[0].strip().lower() in _PAGES:
            problem = (
                f"a web page came in place of what the registry {self.place.host} has: is there a proxy or network "
                "that wants a login first, or is it no registry?"
            )
            raise BundleError("registry_response_invalid", problem)

    @staticmethod
    def _require_up(answer: Answer) -> None:
        if answer.status in (408, 429) or (answer.status >= 500 and answer.status not in _NEVER_BETTER):
            raise _Again(f"answered with status {answer.status}", _retry_after(answer.headers))

    def _all(self, answer: Answer, limit: int, what: str) -> bytes:
        content = bytearray()
        for chunk in answer.chunks:
            content += chunk
            if len(content) > limit:
                raise self._lie(f"{what} has more than {limit} bytes")
        return bytes(content)

    def _lie(self, problem: str) -> BundleError:
        return BundleError("registry_response_invalid", f"the registry {self.place.host} can't be believed: {problem}")

    def _denied(self, status: int) -> BundleError:
        withheld = self._authorization.withheld_from
        hint = "set REGISTRY_USERNAME and REGISTRY_PASSWORD, or use docker login"
        if withheld is not None:
            hint = (
                f"it wants tokens of {withheld}, which is of another domain and was not told the credentials; "
                f"MODELOPS_BUNDLE_TOKEN_HOST={withheld} allows it"
            )
        problem = f"the registry {self.place.host} denies access to {self.place.repository} (status {status}): {hint}"
        return BundleError("registry_denied", problem)


_OCTETS = {"Content-Type": "application/octet-stream"}


def _origin(url: SplitResult) -> tuple[str, str, int]:
    return url.scheme, (url.hostname or "").lower(), url.port or (443 if url.scheme == "https" else 80)


def _bytes(data: bytes) -> _Upload:
    return _Upload(lambda: io.BytesIO(data), len(data))


@contextmanager
def _opened(upload: _Upload | None) -> Iterator[tuple[Body, int]]:
    if upload is None:
        yield b"", 0
        return
    with upload.open() as file:
        yield iter(lambda: file.read(_CHUNK), b""), upload.size


def _cause(error: BaseException | None, kind: type[T]) -> T | None:
    """The first of an error and its causes that is of a kind: httpcore wraps those of sockets."""
    while error is not None:
        if isinstance(error, kind):
            return error
        error = error.__cause__ or error.__context__
    return None


def _reason(error: Exception) -> str:
    cause = _cause(error, OSError)
    return (cause.strerror if cause is not None else None) or type(error).__name__


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, of a Retry-After header in either of its forms."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time()) if text else None
    except (ValueError, TypeError, OverflowError):
        return None
