"""A registry that lies. Every lie is told as an error, nothing of it is kept, and nothing is written anywhere else."""

import base64
import email.utils
import io
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

import pytest
from servers import Behaviour, LocalServer, authority, drip, hang, plain, redirect, status

from modelops.adapters.bundle import BundleError, oci
from modelops.adapters.bundle.artifact import Blob, sha256_of, write_index, write_manifest
from modelops.adapters.bundle.distribution import RegistryClient
from modelops.adapters.bundle.oci import OciBundleRepository
from modelops.adapters.bundle.references import parse_place
from modelops.adapters.bundle.transport import Patience

QUICK = Patience(attempts=3, first_wait=0.01, longest_wait=3)
IMPATIENT = QUICK._replace(idle=2, grace=5, slowest=1 << 20)  # for servers that are slow on purpose
SECRET = "s3cr3t-of-the-user"
FILES = {"pyproject.toml": b"[project]\n", "src/model.py": b"x = 1\n" * 100}
TOOL = {"name": "modelops-bundle", "version": "0.1.0"}


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer(tls=False) as made:
        yield made


class Artifact:
    """A bundle of some files, whose manifest and index a test changes before it is served."""

    def __init__(self, files: Mapping[str, bytes] = FILES) -> None:
        blobs = {path: Blob(sha256_of(data), len(data)) for path, data in files.items()}
        self.contents = {blob.digest: files[path] for path, blob in blobs.items()}
        self.index: Any = json.loads(write_index(blobs, "2026-01-01T00:00:00Z", TOOL))
        self.manifest: Any = json.loads(write_manifest(Blob("0" * 64, 0), blobs))

    def serve(self, server: LocalServer, index: bytes | None = None, manifest: bytes | None = None) -> str:
        """Serve it, with other bytes for the index or the manifest where they are given; its digest."""
        data = json.dumps(self.index).encode() if index is None else index
        self.manifest["config"] |= {"digest": f"sha256:{sha256_of(data)}"}
        if not self.manifest["config"]["size"]:
            self.manifest["config"]["size"] = len(data)
        body = json.dumps(self.manifest).encode() if manifest is None else manifest
        for digest, content in {**self.contents, sha256_of(data): data}.items():
            server.content[f"/v2/org/x/blobs/sha256:{digest}"] = content
        digest = f"sha256:{sha256_of(body)}"
        server.content[f"/v2/org/x/manifests/{digest}"] = body
        return digest

    @property
    def victim(self) -> str:
        """The address of a file's blob."""
        return f"/v2/org/x/blobs/sha256:{sha256_of(FILES['src/model.py'])}"


def repository(server: LocalServer, tmp_path: Path, patience: Patience = QUICK, **environ: str) -> OciBundleRepository:
    given = {"DOCKER_CONFIG": str(tmp_path / "docker"), **environ}
    where = f"{server.host}/org/x"
    return OciBundleRepository(where, tmp_path / "cache", insecure=not server.tls, environ=given, patience=patience)


def refused(
    server: LocalServer, tmp_path: Path, digest: str, patience: Patience = QUICK, **environ: str
) -> BundleError:
    """The error that a bundle's lie is told as."""
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    with pytest.raises(BundleError) as error:
        repository(server, tmp_path, patience, **environ).ensure_local(digest)
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before, "written outside"
    assert not list((tmp_path / "cache" / "oci" / "bundles").iterdir()), "half a bundle"
    assert not list((tmp_path / "cache" / "oci").glob(".working-*"))
    assert len(str(error.value)) < 1000 and str(error.value).isprintable()
    return error.value


def test_the_truth(server: LocalServer, tmp_path: Path) -> None:
    _, folder = repository(server, tmp_path).ensure_local(Artifact().serve(server))
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES


# --- what a manifest and an index say


def layer(artifact: Artifact, **changes: Any) -> None:
    artifact.manifest["layers"][1].update(changes)


def entry(artifact: Artifact, **changes: Any) -> None:
    artifact.index["files"]["src/model.py"].update(changes)


IMAGE, LIST = "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.index.v1+json"
NOWHERE = "sha256:" + "0" * 64
MORE = {"path": "more", "digest": NOWHERE, "size": 1, "storage": "oci"}
BLOB = {"storage": "blob", "blobRef": {"uri": "azure://c/k", "etag": None}}

Lie = tuple[Callable[[Artifact], object], str, str]
OF_THE_MANIFEST: dict[str, Lie] = {
    "no layers": (lambda a: a.manifest.update(layers=[]), "artifact_invalid", "no layers"),
    "no title": (lambda a: layer(a, annotations={}), "artifact_invalid", "has no name"),
    "a file twice": (lambda a: a.manifest["layers"].append(a.manifest["layers"][0]), "unsafe_file", "twice"),
    "an image": (lambda a: a.manifest["config"].update(mediaType=IMAGE), "not_a_bundle", IMAGE),
    "a list": (lambda a: a.manifest.update(manifests=[]), "artifact_invalid", "manifest"),
    "another type": (lambda a: a.manifest.update(mediaType=LIST), "artifact_invalid", LIST),
    "schema 1": (lambda a: a.manifest.update(schemaVersion=1), "artifact_invalid", "schemaVersion"),
    "a weak digest": (lambda a: layer(a, digest="md5:" + "0" * 32), "artifact_invalid", "md5"),
    "a path": (lambda a: layer(a, digest="sha256:../../../etc/passwd"), "artifact_invalid", "sha256:.."),
    "a negative size": (lambda a: layer(a, size=-1), "artifact_invalid", "-1"),
    "a size that is none": (lambda a: layer(a, size=True), "artifact_invalid", "True"),
    "a size of 2^60": (lambda a: layer(a, size=1 << 60), "bundle_too_large", "the limit is"),
    "a large index": (lambda a: a.manifest["config"].update(size=1 << 30), "bundle_too_large", "index"),
    "a small index": (lambda a: a.manifest["config"].update(size=3), "registry_response_invalid", "bytes"),
}
OF_THE_INDEX: dict[str, Lie] = {
    "version 2": (lambda a: a.index.update(version="2.0"), "artifact_invalid", "version"),
    "no files": (lambda a: a.index.update(files=[]), "artifact_invalid", "no files"),
    "one less": (lambda a: a.index["files"].pop("src/model.py"), "artifact_invalid", "does not have 'src/model.py'"),
    "one more": (lambda a: a.index["files"].update(more=MORE), "artifact_invalid", "'more'"),
    "another digest": (lambda a: entry(a, digest=NOWHERE), "artifact_invalid", "not what the manifest"),
    "another size": (lambda a: entry(a, size=7), "artifact_invalid", "not what the manifest"),
    "another path": (lambda a: entry(a, path="../evil"), "artifact_invalid", "not one of that path"),
    "other storage": (lambda a: entry(a, storage="ftp"), "artifact_invalid", "'ftp'"),
    "blob storage": (lambda a: entry(a, **BLOB), "blob_storage", "ModelOpsBundleRepository"),
}


@pytest.mark.parametrize("lie", [*OF_THE_MANIFEST, *OF_THE_INDEX])
def test_what_it_says(server: LocalServer, tmp_path: Path, lie: str) -> None:
    change, kind, words = {**OF_THE_MANIFEST, **OF_THE_INDEX}[lie]
    artifact = Artifact()
    change(artifact)
    error = refused(server, tmp_path, artifact.serve(server))
    assert (error.type, error.retryable) == (kind, False) and words in str(error)
    if lie in OF_THE_MANIFEST:
        assert len(server.log) <= 2, "it was known from the manifest"


NAMES = [
    *("../evil", "a/../../evil", "/etc/evil", "//evil", "./a", "a//b", "a/", "..", ".", "", "a\0b", "a\nb", "\x1b[2J"),
    *("a\\b", "..\\evil", "C:/evil", "c:evil", "NUL", "nul.txt", "dir/Com1.log", "aux .txt", "con.", ".git/config"),
    *("src/.GIT/hooks/x", "x" * 256, "a/" * 600 + "b", "\ud800"),
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names(server: LocalServer, tmp_path: Path, name: str) -> None:
    artifact = Artifact({"a.txt": b"1", "b.txt": b"2"})
    artifact.manifest["layers"][1]["annotations"]["org.opencontainers.image.title"] = name
    artifact.index["files"][name] = {**artifact.index["files"].pop("b.txt"), "path": name}
    assert refused(server, tmp_path, artifact.serve(server)).type == "unsafe_file"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A.py", "a.py"),
        ("src/a.py", "SRC/b.py"),
        ("\u00e9", "e\u0301"),
        ("stra\u00dfe", "strasse"),
        ("a", "a/b"),
        ("a.", "a"),
        ("a/b", "a /b"),
    ],
    ids=ascii,
)
def test_names_of_which_a_file_system_may_have_one(server: LocalServer, tmp_path: Path, one: str, other: str) -> None:
    error = refused(server, tmp_path, Artifact({one: b"1", other: b"2"}).serve(server))
    assert error.type == "unsafe_file"


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b"\xff", b"null", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 100_000, b"9" * 5000, b'"\\ud800"'],
    ids=lambda body: ascii(body[:20]),
)
def test_what_is_no_json(server: LocalServer, tmp_path: Path, body: bytes) -> None:
    assert refused(server, tmp_path, Artifact().serve(server, manifest=body)).type == "artifact_invalid"
    server.log.clear()
    if body:
        assert refused(server, tmp_path, Artifact().serve(server, index=body)).type == "artifact_invalid"


def test_a_file_twice_in_the_index(server: LocalServer, tmp_path: Path) -> None:
    artifact = Artifact()
    twice = json.dumps(artifact.index).replace('"files": {', '"files": {"pyproject.toml": {}, ')
    assert "twice" in str(refused(server, tmp_path, artifact.serve(server, index=twice.encode())))


# --- what it sends


def sized(size: int, body: bytes) -> Behaviour:
    """A body, and the size that is said of it."""

    def behaviour(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(size))
        handler.end_headers()
        handler.wfile.write(body)

    return behaviour


def endless(handler: Any) -> None:
    """A body without a size and without an end."""
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.owner.stopping.is_set():
        handler.wfile.write(bytes(1 << 16))


def endless_headers(handler: Any) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not handler.server.owner.stopping.wait(0.3):
        handler.wfile.write(b"X-Filler: 1\r\n")


def endless_continue(handler: Any) -> None:
    while not handler.server.owner.stopping.wait(0.1):
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def slow_body(handler: Any) -> None:
    """The right size, a byte every 0.3 seconds: no read ever takes long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "600")
    handler.end_headers()
    while not handler.server.owner.stopping.wait(0.3):
        handler.wfile.write(b"x")


def huge_header(handler: Any) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Filler: " + b"x" * 300_000 + b"\r\n\r\n")


def garbage(handler: Any) -> None:
    handler.wfile.write(b"\x00\xff not http at all\r\n\r\n")


CONTENT = FILES["src/model.py"]


@pytest.mark.parametrize(
    ("behaviour", "kind", "requests"),
    [
        (plain(b"y" * len(CONTENT)), "registry_response_invalid", 1),
        (plain(CONTENT + b"more"), "registry_response_invalid", 1),
        (plain(CONTENT[:-1]), "registry_response_invalid", 1),
        (endless, "registry_response_invalid", 1),
        (sized(len(CONTENT), CONTENT[:-1]), "registry_unavailable", 3),
        (sized(-1, CONTENT), "registry_unavailable", 3),
        (drip, "registry_response_invalid", 1),
        (huge_header, "registry_unavailable", 3),
        (garbage, "registry_unavailable", 3),
        (status(404), "bundle_not_found", 1),
        (status(403), "registry_denied", 1),
        (status(400), "registry_response_invalid", 1),
        (status(418), "registry_response_invalid", 1),
        (status(501), "registry_response_invalid", 1),
        (status(206, body=CONTENT), "registry_response_invalid", 1),
        (status(500), "registry_unavailable", 3),
        (status(503), "registry_unavailable", 3),
        (status(429), "registry_unavailable", 3),
    ],
)  # fmt: skip
def test_what_it_sends(server: LocalServer, tmp_path: Path, behaviour: Behaviour, kind: str, requests: int) -> None:
    artifact = Artifact()
    server.behave(artifact.victim, behaviour)
    error = refused(server, tmp_path, artifact.serve(server))
    assert (error.type, error.retryable) == (kind, kind == "registry_unavailable"), error
    assert server.paths().count(artifact.victim) == requests


@pytest.mark.full("waits for what is slow on purpose")
@pytest.mark.parametrize("behaviour", [slow_body, hang, endless_headers, endless_continue])
def test_what_it_sends_slowly(server: LocalServer, tmp_path: Path, behaviour: Behaviour) -> None:
    artifact = Artifact()
    server.behave(artifact.victim, behaviour)
    error = refused(server, tmp_path, artifact.serve(server), IMPATIENT)
    assert error.type == "registry_unavailable" and error.retryable
    # What goes on for too long is not begun again; what is silent may have been an accident.
    assert server.paths().count(artifact.victim) == (3 if behaviour is hang else 1)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("by", ["another layer", "a signal"])
def test_a_silent_layer_is_not_waited_for_once_it_is_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, tls: bool
) -> None:
    """Its silence would be borne for an hour."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority().bundle))
    silent, patience = threading.Event(), QUICK._replace(idle=3600, grace=3600)

    def say_nothing(handler: Any) -> None:
        silent.set()
        hang(handler)

    def fail(handler: Any) -> None:
        silent.wait(60)
        if by == "another layer":
            status(404)(handler)
        else:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            hang(handler)

    with LocalServer(tls=tls) as server:
        artifact = Artifact()
        server.behave(artifact.victim, say_nothing)
        server.behave(f"/v2/org/x/blobs/sha256:{sha256_of(FILES['pyproject.toml'])}", fail)
        digest = artifact.serve(server)
        if by == "another layer":
            assert refused(server, tmp_path, digest, patience).type == "bundle_not_found"
        else:
            before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
            with pytest.raises(KeyboardInterrupt):
                repository(server, tmp_path, patience).ensure_local(digest)
            signal.signal(signal.SIGINT, before)
    assert not list((tmp_path / "cache" / "oci").glob(".working-*"))


@pytest.mark.parametrize(
    "behaviour", [endless, plain(bytes(5 << 20)), plain(b"{}")], ids=["endless", "large", "another"]
)
def test_a_manifest_that_is_not_its_digests(server: LocalServer, tmp_path: Path, behaviour: Behaviour) -> None:
    digest = Artifact().serve(server)
    server.behave(f"/v2/org/x/manifests/{digest}", behaviour)
    assert refused(server, tmp_path, digest).type == "registry_response_invalid"


def test_nobody_is_there(server: LocalServer, tmp_path: Path) -> None:
    digest = "sha256:" + "0" * 64
    for host, kind in (("localhost:1", "registry_unavailable"), ("no-such-host.invalid", "registry_unavailable")):
        found = OciBundleRepository(f"{host}/org/x", tmp_path / "cache", insecure=True, environ={}, patience=QUICK)
        with pytest.raises(BundleError) as error:
            found.ensure_local(digest)
        assert error.value.type == kind and host in str(error.value)
        assert error.value.retryable is (host == "localhost:1")


# --- what is tried again


def flaky(times: int, bad: Behaviour, good: bytes) -> Behaviour:
    left = iter(range(times))
    return lambda handler: bad(handler) if next(left, None) is not None else plain(good)(handler)


def busy(retry_after: str) -> Behaviour:
    return lambda handler: handler.answer(429, "text/plain", b"", Retry_After=retry_after)


def hang_up(handler: Any) -> None:
    """An end before an answer."""


@pytest.mark.parametrize("bad", [status(500), status(503), busy("0"), hang_up, sized(600, b"x")])
def test_what_passes_is_tried_again(server: LocalServer, tmp_path: Path, bad: Behaviour) -> None:
    artifact = Artifact()
    server.behave(artifact.victim, flaky(2, bad, CONTENT))
    _, folder = repository(server, tmp_path).ensure_local(artifact.serve(server))
    assert (folder / "src" / "model.py").read_bytes() == CONTENT
    assert server.paths().count(artifact.victim) == 3 and server.paths().count("/v2/org/x/blobs") == 0


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(server: LocalServer, tmp_path: Path, form: str) -> None:
    artifact = Artifact()
    text = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    server.behave(artifact.victim, flaky(1, busy(text), CONTENT))
    begun = time.monotonic()
    repository(server, tmp_path).ensure_local(artifact.serve(server))
    assert time.monotonic() - begun >= 0.9


@pytest.mark.parametrize("text", ["3600", "999999999", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_registry_that_asks_for_too_long_is_not_waited_for(server: LocalServer, tmp_path: Path, text: str) -> None:
    artifact = Artifact()
    server.behave(artifact.victim, busy(text))
    error = refused(server, tmp_path, artifact.serve(server))
    assert error.type == "registry_unavailable" and error.retryable and "seconds" in str(error)
    assert server.paths().count(artifact.victim) == 1


@pytest.mark.parametrize("text", ["-1", "soon", "", "1e9", "nan"])
def test_a_retry_after_that_says_nothing(server: LocalServer, tmp_path: Path, text: str) -> None:
    artifact = Artifact()
    server.behave(artifact.victim, flaky(2, busy(text), CONTENT))
    repository(server, tmp_path).ensure_local(artifact.serve(server))


# --- redirects and credentials

OWN = {"REGISTRY_USERNAME": "user", "REGISTRY_PASSWORD": SECRET}


def protected(server: LocalServer, challenge: str, expected: str) -> None:
    """All of the registry asks for the header `expected`."""
    contents = {path: body for path, body in server.content.items() if path.startswith("/v2/")}

    def behaviour(handler: Any) -> None:
        if handler.headers.get("Authorization") != expected:
            handler.answer(401, "text/plain", b"", WWW_Authenticate=challenge)
        else:
            body = contents.get(urlsplit(handler.path).path)
            handler.answer(404 if body is None else 200, "application/json", body or b"")

    server.behave("/v2/", behaviour)


def basic(user: str = "user", password: str = SECRET) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_a_redirect_learns_no_secret(server: LocalServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    artifact = Artifact()
    digest = artifact.serve(server)
    protected(server, 'Basic realm="x"', basic())
    with LocalServer(tls=False) as other:
        other.content["/stored"] = CONTENT
        server.behaviours = {
            artifact.victim: redirect(other.url("/stored?signature=of-the-redirect")),
            **server.behaviours,
        }
        _, folder = repository(server, tmp_path, **OWN).ensure_local(digest)
        assert (folder / "src" / "model.py").read_bytes() == CONTENT
        assert len(other.log) == 1 and "Authorization" not in other.log[0].headers
        assert not other.saw(SECRET) and server.saw(SECRET)
    assert SECRET not in caplog.text and "of-the-redirect" not in caplog.text and basic()[6:] not in caplog.text


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://localhost/x",
        "gopher://localhost/x",
        "http://user:pw@localhost/x",
        "http://",
        "",
        "http://[",
        "http://localhost:0/x",
        "javascript:1",
        "/a b",
        "http://x\x7f/",
    ],
)
def test_redirects_to_nowhere(server: LocalServer, tmp_path: Path, location: str) -> None:
    artifact = Artifact()
    server.behave(artifact.victim, redirect(location))
    assert refused(server, tmp_path, artifact.serve(server)).type == "registry_response_invalid"


def test_redirects_without_end(server: LocalServer, tmp_path: Path) -> None:
    artifact = Artifact()
    server.behave(artifact.victim, redirect(artifact.victim))
    assert "redirects more than" in str(refused(server, tmp_path, artifact.serve(server)))


def test_no_redirect_leads_from_tls_to_plain_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", authority().bundle)
    artifact = Artifact()
    with LocalServer() as server, LocalServer(tls=False) as other:
        other.content["/stored"] = CONTENT
        server.behave(artifact.victim, redirect(other.url("/stored")))
        error = refused(server, tmp_path, artifact.serve(server))
        assert error.type == "registry_untrusted" and not other.log


@pytest.mark.parametrize("code", [401, 403, 500, 404])
def test_a_registry_that_gives_secrets_back(server: LocalServer, tmp_path: Path, code: int) -> None:
    artifact = Artifact()
    digest = artifact.serve(server)
    protected(server, 'Basic realm="x"', basic())
    echo = json.dumps({"errors": [{"code": "DENIED", "message": f"you said {SECRET} {basic()}"}]}).encode()
    server.behaviours = {artifact.victim: status(code, "You sent {authorization}", echo), **server.behaviours}
    error = refused(server, tmp_path, digest, **OWN)
    assert SECRET not in str(error) and basic()[6:] not in str(error)


class TokenService:
    """Gives `token` to whoever has the credentials, or to anybody."""

    def __init__(self, server: LocalServer, token: str = "a.b-c_d", answer: Behaviour | None = None) -> None:
        self.server = server
        body = json.dumps({"access_token": token, "expires_in": 300}).encode()
        server.behave("/token", answer or plain(body, "application/json"))

    def asked(self) -> list[dict[str, list[str]]]:
        return [parse_qs(urlsplit(item.path).query) for item in self.server.log if item.path.startswith("/token")]


def bearer(realm: str) -> str:
    return f'Bearer realm="{realm}",service="registry.test",scope="repository:org/x:pull"'


def test_a_token_as_the_specification_has_it(server: LocalServer, tmp_path: Path) -> None:
    digest = Artifact().serve(server)
    with LocalServer(tls=False) as service:
        tokens = TokenService(service)
        protected(server, bearer(service.url("/token")), "Bearer a.b-c_d")
        assert repository(server, tmp_path, **OWN).ensure_local(digest)[0] == digest
        (asked,) = tokens.asked()
        assert asked["service"] == ["registry.test"] and asked["scope"] == ["repository:org/x:pull"]
        assert service.log[0].headers["Authorization"] == basic()
    assert not server.saw(SECRET), "the registry itself gets the token alone"


def test_an_identity_token(server: LocalServer, tmp_path: Path) -> None:
    digest = Artifact().serve(server)
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {server.host: {"identitytoken": SECRET}}}))
    forms: list[dict[str, list[str]]] = []

    def answer(handler: Any) -> None:
        forms.append(parse_qs(handler.rfile.read(int(handler.headers["Content-Length"])).decode()))
        plain(b'{"access_token": "t0ken"}', "application/json")(handler)

    with LocalServer(tls=False) as service:
        TokenService(service, answer=answer)
        protected(server, bearer(service.url("/token")), "Bearer t0ken")
        assert repository(server, tmp_path).ensure_local(digest)[0] == digest
    (form,) = forms
    assert form["grant_type"] == ["refresh_token"] and form["refresh_token"] == [SECRET]
    assert form["service"] == ["registry.test"] and form["scope"] == ["repository:org/x:pull"]


def test_a_realm_elsewhere_learns_no_secret(server: LocalServer, tmp_path: Path) -> None:
    """The registry is `localhost`, the realm 127.0.0.1: for names, another host."""
    digest = Artifact().serve(server)
    with LocalServer(tls=False) as service:
        tokens = TokenService(service)
        elsewhere = f"http://127.0.0.1:{service.port}/token"
        protected(server, bearer(elsewhere), "Bearer another")
        error = refused(server, tmp_path, digest, **OWN)
        assert error.type == "registry_denied" and "MODELOPS_BUNDLE_TOKEN_HOST=127.0.0.1" in str(error)
        assert tokens.asked() and not service.saw(SECRET)
        protected(server, bearer(elsewhere), "Bearer a.b-c_d")
        assert repository(server, tmp_path, **OWN).ensure_local(digest)[0] == digest, "what everybody gets"
        assert not service.saw(SECRET)
        allowed = repository(server, tmp_path / "again", **OWN, MODELOPS_BUNDLE_TOKEN_HOST="127.0.0.1")
        assert allowed.ensure_local(digest)[0] == digest and service.saw(SECRET)
    assert not server.saw(SECRET)


def test_a_realm_over_plain_http_learns_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", authority().bundle)
    with LocalServer() as server, LocalServer(tls=False) as service:
        digest = Artifact().serve(server)
        TokenService(service)
        protected(server, bearer(service.url("/token")), "Bearer a.b-c_d")
        error = refused(server, tmp_path, digest, **OWN)
        assert error.type == "registry_untrusted" and "plain HTTP" in str(error) and not service.log


@pytest.mark.parametrize(
    "realm",
    ["", "token", "file:///etc/passwd", "http://", "http://u:p@localhost/", "http://[", "http://a b/", "ftp://x/"],
)
def test_a_realm_that_is_none(server: LocalServer, tmp_path: Path, realm: str) -> None:
    digest = Artifact().serve(server)
    protected(server, bearer(realm), "Bearer x")
    assert refused(server, tmp_path, digest, **OWN).type == "registry_response_invalid"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (plain(b"no json"), "registry_response_invalid"),
        (plain(b"{}"), "registry_response_invalid"),
        (plain(b"[" * 50_000), "registry_response_invalid"),
        (plain(b'{"token": "a\\r\\nX-Evil: 1"}'), "registry_response_invalid"),
        (plain(b'{"token": 7}'), "registry_response_invalid"),
        (plain(b" " * 200_000), "registry_response_invalid"),
        (redirect("http://localhost/x"), "registry_response_invalid"),
        (endless, "registry_response_invalid"),
        (status(401), "registry_denied"),
        (status(503), "registry_unavailable"),
    ],
)
def test_a_token_service_that_lies(server: LocalServer, tmp_path: Path, answer: Behaviour, kind: str) -> None:
    digest = Artifact().serve(server)
    TokenService(server, answer=answer)
    protected(server, bearer(server.url("/token")), "Bearer x")
    server.behaviours = dict(sorted(server.behaviours.items()))
    assert refused(server, tmp_path, digest, **OWN).type == kind


def test_a_token_that_expires_in_the_middle(server: LocalServer, tmp_path: Path) -> None:
    """Each token is good for two answers: another one is asked for, by one of the threads, and nothing is lost."""
    artifact = Artifact({f"data/{number}": f"{number}".encode() for number in range(20)})
    digest = artifact.serve(server)
    contents, lock = dict(server.content), threading.Lock()
    given, left = 0, 0

    def token(handler: Any) -> None:
        nonlocal given, left
        with lock:
            given, left = given + 1, 2
            body = json.dumps({"token": f"number-{given}"}).encode()
        plain(body, "application/json")(handler)

    def registry(handler: Any) -> None:
        nonlocal left
        with lock:
            good = left > 0 and handler.headers.get("Authorization") == f"Bearer number-{given}"
            left -= good
        if good:
            plain(contents[urlsplit(handler.path).path], "application/json")(handler)
        else:
            handler.answer(401, "text/plain", b"", WWW_Authenticate=bearer(server.url("/token")))

    server.behave("/token", token)
    server.behave("/v2/", registry)
    with patch.object(oci, "PARALLEL", 1):
        _, folder = repository(server, tmp_path, **OWN).ensure_local(digest)
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 20
    assert given == 11, "22 answers"


PAGE = plain(b"<html>Welcome! Please log in to the network.</html>", "text/html; charset=utf-8")


@pytest.mark.parametrize("where", ["manifest", "tag", "index", "layer", "token", "upload"])
def test_a_login_page_in_between(server: LocalServer, tmp_path: Path, where: str) -> None:
    artifact = Artifact()
    digest = artifact.serve(server)
    index = artifact.manifest["config"]["digest"]
    places = {"manifest": f"/v2/org/x/manifests/{digest}", "tag": "/v2/org/x/manifests/v1", "layer": artifact.victim}
    places |= {"token": "/token", "index": f"/v2/org/x/blobs/{index}", "upload": "/v2/org/x/blobs/uploads/"}
    if where == "token":
        protected(server, bearer(server.url("/token")), "Bearer x")
    with LocalServer(tls=False) as portal:
        portal.behave("/login", PAGE)
        follows = where in ("manifest", "layer")  # a network's portal may also send on to its page
        server.behaviours = {
            places[where]: redirect(portal.url("/login")) if follows else PAGE,
            **server.behaviours,
        }
        found = repository(server, tmp_path)
        (tmp_path / "source").mkdir()
        (tmp_path / "source" / "model.py").write_text("x")
        with pytest.raises(BundleError) as error:
            if where == "upload":
                found.push(tmp_path / "source", "v1")
            elif where == "tag":
                found.resolve("v1")
            else:
                found.ensure_local(digest)
    assert error.value.type == "registry_response_invalid" and not error.value.retryable
    assert "web page" in str(error.value) and "login" in str(error.value)
    assert server.paths().count(places[where]) == 1, "asked again"


def test_a_file_that_is_a_page(server: LocalServer, tmp_path: Path) -> None:
    page = b"<html>of the bundle</html>"
    artifact = Artifact({"report.html": page})
    digest = artifact.serve(server)
    server.behave(f"/v2/org/x/blobs/sha256:{sha256_of(page)}", plain(page, "text/html"))
    assert (repository(server, tmp_path).ensure_local(digest)[1] / "report.html").read_bytes() == page


def test_a_registry_that_is_never_content(server: LocalServer, tmp_path: Path) -> None:
    digest = Artifact().serve(server)
    tokens = TokenService(server)
    protected(server, bearer(server.url("/token")), "Bearer never")
    assert refused(server, tmp_path, digest, **OWN).type == "registry_denied"
    assert len(tokens.asked()) == 1


# --- uploads


@pytest.mark.parametrize("location", ["http://127.0.0.1:1/steal", "//127.0.0.1:1/steal", "", "file:///x"])
def test_an_upload_goes_to_the_registry_alone(server: LocalServer, tmp_path: Path, location: str) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "model.py").write_text("x")
    server.behave("/v2/org/x/blobs/uploads/", lambda handler: handler.answer(202, "text/plain", b"", Location=location))
    with pytest.raises(BundleError) as error:
        repository(server, tmp_path).push(tmp_path / "source", "v1")
    assert error.value.type == "registry_response_invalid"


@pytest.mark.parametrize("code", [405, 501])
def test_a_registry_that_answers_no_head(server: LocalServer, tmp_path: Path, code: int) -> None:
    artifact = Artifact()
    digest = artifact.serve(server)

    def behave(prefix: str) -> None:
        def answer(handler: Any) -> None:
            body = server.content.get(handler.path)
            if handler.command == "HEAD":
                return handler.answer(code, "text/plain", b"")
            handler.answer(404 if body is None else 200, "application/json", body or b"")

        server.behave(prefix, answer)

    behave("/v2/org/x/manifests/")
    assert repository(server, tmp_path).exists(digest)
    assert not repository(server, tmp_path).exists(NOWHERE)
    assert repository(server, tmp_path).ensure_local(digest)[0] == digest
    with closing(
        RegistryClient(parse_place(f"{server.host}/org/x"), lambda: None, insecure=True, patience=QUICK)
    ) as client:
        sent: list[str] = []
        server.behave(
            "/v2/org/x/blobs/", lambda handler: (sent.append(handler.command), handler.answer(code, "x/y", b""))
        )
        with pytest.raises(BundleError, match=str(code)):
            client.upload(Blob(sha256_of(b"x"), 1), lambda: io.BytesIO(b"x"))
    assert sent == ["HEAD", "POST"], "what may not be there is sent"


# --- by way of a proxy


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_the_proxy_of_the_environment(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    digest = Artifact().serve(server)
    monkeypatch.setenv("http_proxy", f"{scheme}proxy:user@{server.host}")
    monkeypatch.setenv("no_proxy", "localhost")
    found = OciBundleRepository("registry.invalid/org/x", tmp_path / "cache", insecure=True, environ={}, patience=QUICK)
    assert found.ensure_local(digest)[0] == digest
    assert {item.path.partition("/v2/")[0] for item in server.log} == {"http://registry.invalid"}
    assert {item.headers["Proxy-Authorization"] for item in server.log} == {basic("proxy", "user")}


@pytest.mark.parametrize("proxy", ["http://u:s3cret@host:x", "socks5://s3cret@localhost:1", "http://", "http://h:0"])
def test_a_proxy_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "localhost")
    found = OciBundleRepository("registry.invalid/org/x", tmp_path / "cache", insecure=True, environ={}, patience=QUICK)
    with pytest.raises(BundleError, match="HTTP_PROXY") as error:
        found.ensure_local("sha256:" + "0" * 64)
    assert (error.value.type, error.value.retryable) == ("registry_unavailable", False)
    assert "s3cret" not in str(error.value)
