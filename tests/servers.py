"""A package index and a git server on https, and plain listeners, all on 127.0.0.1, for tests.

    with LocalServer() as server:
        server.add(*wheel("dep", "1.0", {"dep.py": "x = 1"}))
        repository = server.git("lib", {"pyproject.toml": ..., "lib.py": ...})  # an https URL
        run(bundle, env=server.environment())  # the runner uses this index
        assert "/simple/dep/" in server.paths()

`wheel` and `sdist` give a file's name and bytes. A server misbehaves where it is told to:
`server.behave("/files/dep-1.0", drip)` answers requests below that path with one of the functions at the
end (drip, hang, redirect(url), status(code), huge(bytes), plain(bytes)), or any of your own.
Direct URLs and git need a profile with `dependencies.private_addresses = true`: see `local_profile`.
The certificate's CA is made once in a process; nothing is left behind but a folder that goes with it.
"""

import atexit
import base64
import contextlib
import hashlib
import html
import http.server
import io
import json
import os
import select
import shutil
import socket
import ssl
import subprocess
import tarfile
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

Content = Mapping[str, str | bytes]


class Request(NamedTuple):
    method: str
    path: str  # with its query
    headers: dict[str, str]


# Addresses of documentation (RFC 5737), which are no private ones: whom a `Proxy` leads to this machine.
PUBLIC = ("192.0.2.1", "198.51.100.1")


class Authority(NamedTuple):
    """A CA of this process. `bundle` is a PEM file that any uid can read."""

    bundle: str
    context: ssl.SSLContext
    ca: Any  # trustme's, for certificates of other servers


@cache
def authority() -> Authority:
    import trustme

    folder = tempfile.mkdtemp(prefix="cold-runner-ca-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.chmod(folder, 0o755)
    ca = trustme.CA()
    bundle = os.path.join(folder, "ca.pem")
    Path(bundle).write_bytes(ca.cert_pem.bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1", "localhost", *PUBLIC).configure_cert(context)
    return Authority(bundle, context, ca)


_ONE_AUTHORITY = threading.Lock()


class LocalServer:
    """`/simple/` is an index of what `add` was given, `/files/` its files, `/git/` the repositories.

    `tls=False` serves plain http, for redirects that should never be followed. `json_index` serves the simple
    API as JSON (PEP 691) instead of HTML. `name` is how its URLs call it: one of PUBLIC is reached by a `Proxy` alone.
    `log` has every request in order.
    """

    def __init__(self, *, tls: bool = True, json_index: bool = False, name: str = "localhost") -> None:
        with _ONE_AUTHORITY:  # a cache alone lets two threads make one each
            authority()
        self.tls, self.json_index, self.name = tls, json_index, name
        self.files: dict[str, dict[str, dict[str, str]]] = {}  # project to file name to url and hash
        self.content: dict[str, bytes] = {}
        self.behaviours: dict[str, Behaviour] = {}
        self.log: list[Request] = []
        self.stopping = threading.Event()  # behaviours that wait, wait for this
        self.folder = tempfile.mkdtemp(prefix="cold-runner-git-")

    def __enter__(self) -> "LocalServer":
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.owner = self
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def host(self) -> str:
        return f"{self.name}:{self.port}"

    def url(self, path: str = "/simple/", credentials: str = "") -> str:
        """`credentials` is user:password."""
        return f"http{'s' * self.tls}://{credentials}{'@' * bool(credentials)}{self.host}{path}"

    def environment(self, **more: str) -> dict[str, str]:
        """What makes the runner use this index and trust its certificate."""
        return {"UV_DEFAULT_INDEX": self.url(), "SSL_CERT_FILE": authority().bundle, **more}

    def add(self, name: str, data: bytes, *, sha256: str | None = None, url: str | None = None) -> str:
        """Serve a file and list it, under another `sha256` or `url` if given. Returns its true URL."""
        path = f"/files/{name}"
        self.content[path] = data
        project = canonical(name.split("-")[0])
        digest = hashlib.sha256(data).hexdigest() if sha256 is None else sha256
        self.files.setdefault(project, {})[name] = {"url": url or self.url(path), "sha256": digest}
        return self.url(path)

    def git(self, name: str, files: Content, *, branch: str = "main") -> str:
        """Make a repository with one commit of `files`; returns its https URL, without git+."""
        work, bare = os.path.join(self.folder, name), os.path.join(self.folder, f"{name}.git")
        write_tree(Path(work), files)
        identity = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t"}
        environment = {**_GIT, **identity, "GIT_COMMITTER_EMAIL": "t@t"}
        for command in (
            ["init", "-q", "-b", branch],
            ["add", "-A", "-f"],
            ["commit", "-q", "-m", "x"],
            ["clone", "-q", "--bare", work, bare],
        ):
            subprocess.run(["git", *command], cwd=work, env=environment, check=True)
        return self.url(f"/git/{name}.git")

    def behave(self, prefix: str, behaviour: "Behaviour") -> None:
        self.behaviours[prefix] = behaviour

    def paths(self) -> list[str]:
        return [urlsplit(request.path).path for request in self.log]

    def saw(self, text: str) -> bool:
        """Whether any request had this text in its path or headers, also in base64."""
        encoded = base64.b64encode(text.encode()).decode().rstrip("=")
        words = [part for request in self.log for part in (request.path, *request.headers.values())]
        plain = [_decoded(word) for word in words]
        return any(needle in word for word in [*words, *plain] for needle in (text, encoded))


def _decoded(header: str) -> str:
    if not header.lower().startswith("basic "):
        return ""
    with contextlib.suppress(ValueError):
        return base64.b64decode(header[6:]).decode("utf-8", "replace")
    return ""


_GIT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "HOME": "/nonexistent",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    owner: LocalServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up, or does not like the certificate, is no news."""

    def finish_request(self, request: Any, client_address: Any) -> None:
        """The handshake is made in the request's own thread, so that a silent client stops nobody."""
        if self.owner.tls:
            request.settimeout(30)
            request = authority().context.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        owner = self.server.owner
        owner.log.append(Request(self.command, self.path, dict(self.headers.items())))
        path = urlsplit(self.path).path
        behaviour = next((do for prefix, do in owner.behaviours.items() if path.startswith(prefix)), None)
        if behaviour is not None:
            self.close_connection = True
            behaviour(self)
        elif path.startswith("/git/"):
            self.git_backend(path)
        elif path in owner.content:
            self.answer_file(owner.content[path])
        elif path.startswith("/simple/"):
            self.answer_project(canonical(path.split("/")[2]))
        else:
            self.answer(404, "text/plain", b"")

    do_HEAD = do_POST = do_GET

    def answer(self, code: int, kind: str, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        if self.close_connection:
            self.send_header("Connection", "close")  # or a client asks again on it, and it breaks in between
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_file(self, data: bytes) -> None:
        """With ranges, as uv reads a wheel's metadata."""
        wanted = self.headers.get("Range", "")
        if not wanted.startswith("bytes=") or "," in wanted:
            return self.answer(200, "application/octet-stream", data, Accept_Ranges="bytes")
        first, _, last = wanted[6:].partition("-")
        begin = int(first) if first else max(0, len(data) - int(last))
        end = min(len(data) - 1, int(last) if first and last else len(data) - 1)
        span = f"bytes {begin}-{end}/{len(data)}"
        self.answer(206, "application/octet-stream", data[begin : end + 1], Content_Range=span)

    def answer_project(self, project: str) -> None:
        files = self.server.owner.files.get(project)
        if files is None:
            return self.answer(404, "text/plain", b"")
        if self.server.owner.json_index:
            listed = [
                {"filename": name, "url": file["url"], "hashes": {k: file[k] for k in ("sha256",) if file[k]}}
                for name, file in files.items()
            ]
            body = {"meta": {"api-version": "1.0"}, "name": project, "files": listed}
            return self.answer(200, "application/vnd.pypi.simple.v1+json", json.dumps(body).encode())
        links = "".join(
            f'<a href="{html.escape(file["url"])}#sha256={file["sha256"]}">{name}</a>\n' for name, file in files.items()
        ).replace('#sha256="', '"')
        self.answer(200, "text/html", f"<!DOCTYPE html><html><body>{links}</body></html>".encode())

    def git_backend(self, path: str) -> None:
        """git-http-backend(1) as a CGI."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        variables = {
            "GIT_PROJECT_ROOT": self.server.owner.folder,
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path[len("/git") :],
            "QUERY_STRING": urlsplit(self.path).query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        environment = {**_GIT, **variables}
        done = subprocess.run(["git", "http-backend"], input=body, capture_output=True, env=environment)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
        code = int(fields.pop("Status", "200").split()[0])
        kind = fields.pop("Content-Type", "text/plain")
        self.answer(code, kind, content, **{name.replace("-", "_"): value for name, value in fields.items()})

    def log_message(self, *_: object) -> None:
        pass


Behaviour = Callable[[_Handler], None]


# --- behaviours


def drip(handler: _Handler) -> None:
    """A body that comes one byte a second, without end."""
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.server.owner.stopping.wait(1):
        handler.wfile.write(b"<")
        handler.wfile.flush()


def hang(handler: _Handler) -> None:
    """Never answers."""
    handler.server.owner.stopping.wait()


def late(seconds: float, body: bytes) -> Behaviour:
    """A file that begins to come after a while."""

    def behaviour(handler: _Handler) -> None:
        handler.server.owner.stopping.wait(seconds)
        handler.answer(200, "application/octet-stream", body)

    return behaviour


def redirect(url: str, code: int = 302) -> Behaviour:
    return lambda handler: handler.answer(code, "text/plain", b"", Location=url)


def status(code: int, reason: str = "", body: bytes = b"") -> Behaviour:
    """An error. `{authorization}` in the reason is what the client sent: a server that gives secrets back."""

    def behaviour(handler: _Handler) -> None:
        sent = handler.headers.get("Authorization", "")
        handler.send_response(code, reason.replace("{authorization}", sent))
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return behaviour


def huge(size: int) -> Behaviour:
    """A file of `size` zero bytes, which it says beforehand."""

    def behaviour(handler: _Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(size))
        handler.end_headers()
        block = bytes(1 << 20)
        for start in range(0, size, len(block)):
            handler.wfile.write(block[: size - start])

    return behaviour


def plain(body: bytes, kind: str = "text/html") -> Behaviour:
    return lambda handler: handler.answer(200, kind, body)


def protected(credentials: str, *, realm: str = "index") -> Callable[[LocalServer], Behaviour]:
    """Ask for user:password, then serve as usual: `server.behave("/", protected("u:p")(server))`."""
    expected = "Basic " + base64.b64encode(credentials.encode()).decode()

    def bind(server: LocalServer) -> Behaviour:
        def behaviour(handler: _Handler) -> None:
            if handler.headers.get("Authorization") != expected:
                question = f'Basic realm="{realm}"'
                return handler.answer(401, "text/plain", b"", WWW_Authenticate=question)
            path = urlsplit(handler.path).path
            if path.startswith("/git/"):
                handler.git_backend(path)
            elif path in server.content:
                handler.answer_file(server.content[path])
            else:
                handler.answer_project(canonical(path.split("/")[2]))

        return behaviour

    return bind


# --- distributions


def canonical(name: str) -> str:
    return name.replace("_", "-").replace(".", "-").lower()


def wheel(
    name: str,
    version: str,
    files: Content,
    *,
    requires: list[str] | None = None,
    entry_points: Mapping[str, Mapping[str, str]] | None = None,
    record: str | None = None,
    members: list[tuple[zipfile.ZipInfo | str, bytes]] | None = None,
    tag: str = "py3-none-any",
) -> tuple[str, bytes]:
    """File name and bytes of a wheel. `record` replaces RECORD; `members` come after the files, and are not
    in RECORD, as they are: other names, other flags, names twice."""
    info = f"{name}-{version}.dist-info"
    lines = "".join(f"Requires-Dist: {line}\n" for line in requires or [])
    points = "".join(
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
        for group, entries in (entry_points or {}).items()
    )
    inside: dict[str, bytes] = {path: encoded(content) for path, content in files.items()}
    inside[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{lines}".encode()
    inside[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode()
    if points:
        inside[f"{info}/entry_points.txt"] = points.encode()
    rows = "".join(f"{path},{record_hash(data)},{len(data)}\n" for path, data in inside.items())
    inside[f"{info}/RECORD"] = encoded(rows + f"{info}/RECORD,,\n" if record is None else record)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in inside.items():
            archive.writestr(zipfile.ZipInfo(path), data, zipfile.ZIP_DEFLATED)
        warnings.simplefilter("ignore", UserWarning)  # a member may be there twice
        for member, data in members or []:
            archive.writestr(member, data, zipfile.ZIP_DEFLATED)
    return f"{name}-{version}-{tag}.whl", buffer.getvalue()


def sdist(
    name: str, version: str, files: Content, *, members: list[tuple[tarfile.TarInfo, bytes]] | None = None
) -> tuple[str, bytes]:
    """File name and bytes of a .tar.gz. `members` are added as they are, with the names they have."""
    top = f"{name}-{version}"
    inside = {"PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", **files}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for path, content in inside.items():
            member = tarfile.TarInfo(f"{top}/{path}")
            member.size = len(encoded(content))
            archive.addfile(member, io.BytesIO(encoded(content)))
        for member, data in members or []:
            archive.addfile(member, io.BytesIO(data))
    return f"{top}.tar.gz", buffer.getvalue()


def record_hash(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def encoded(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def write_tree(folder: Path, files: Content) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(content))


def local_profile(folder: Path, name: str = "local", *, extends: str = "default", more: str = "") -> Path:
    """A profile file under which direct URLs and git may name this machine. `more` is TOML added to it."""
    path = folder / f"{name}.toml"
    head = f'description = "for tests"\nextends = "{extends}"\n'
    path.write_text(f"{head}[dependencies]\nprivate_addresses = true\n{more}\n")
    return path


# --- listeners


class Proxy:
    """The caller's own proxy, on the host's loopback: tunnels to the addresses of PUBLIC, which are this machine here,
    and to `more`; `asked` is what it was asked for. With `login` (user:password) it asks for that."""

    def __init__(self, login: str = "", more: tuple[str, ...] = ()) -> None:
        self.hosts, self.asked = (*PUBLIC, *more), list[str]()
        self.login = login
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_CONNECT(self) -> None:
                owner.asked.append(self.path)
                expected = "Basic " + base64.b64encode(owner.login.encode()).decode()
                host, _, port = self.path.rpartition(":")
                self.close_connection = True
                if owner.login and self.headers.get("Proxy-Authorization") != expected:
                    return self.send_error(407)
                if host not in owner.hosts:
                    return self.send_error(502)
                with socket.create_connection(("127.0.0.1", int(port))) as server:
                    self.send_response(200)
                    self.end_headers()
                    _pass_on(self.connection, server)

            def do_GET(self) -> None:
                owner.asked.append(self.path)
                self.send_error(502)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "Proxy":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def url(self) -> str:
        return f"http://{self.login}{'@' * bool(self.login)}127.0.0.1:{self.server.server_address[1]}"


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    while True:
        ready, _, _ = select.select([one, other], [], [], 60)
        for side in ready:
            data = side.recv(1 << 16)
            if not data:
                return
            (other if side is one else one).sendall(data)
        if not ready:
            return


class Listener:
    """A TCP socket on the host's loopback that counts who comes: `with listening() as listener`."""

    def __init__(self, family: socket.AddressFamily = socket.AF_INET) -> None:
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        self.socket.listen(64)
        self.port = int(self.socket.getsockname()[1])
        self.heard: list[bytes] = []
        self.called = threading.Event()
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self.socket.accept()
                peer.settimeout(0.5)
                with peer, contextlib.suppress(OSError):
                    self.heard.append(b"")
                    self.called.set()
                    self.heard[-1] = peer.recv(4096)
                    peer.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join()


@contextlib.contextmanager
def listening(family: socket.AddressFamily = socket.AF_INET) -> Iterator[Listener]:
    listener = Listener(family)
    try:
        yield listener
    finally:
        listener.close()
