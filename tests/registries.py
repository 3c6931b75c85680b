"""A real registry, Debian's docker-registry, on a port of 127.0.0.1, with its storage in a folder of the test.

    with Registry(tmp_path) as registry:
        registry.load(LAYOUT, "org/sir")  # an OCI image layout, byte for byte
        OciBundleRepository(f"{registry.host}/org/sir", tmp_path / "cache", insecure=True)

With `users` it asks for one of them (htpasswd), with `tls` it has a certificate of `servers.authority`, with `tokens`
it wants those of a `TokenService`, as the registries of the large hosts do.
"""

import base64
import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme
from servers import LocalServer, authority

LAYOUT = Path(__file__).resolve().parent / "registry" / "oci"
PROGRAM = shutil.which("docker-registry", path=f"{os.environ.get('PATH', os.defpath)}:/usr/bin:/usr/sbin")
HTPASSWD = shutil.which("htpasswd")

needs_registry = pytest.mark.skipif(PROGRAM is None, reason="docker-registry is not installed (tools/setup.sh hosts)")
needs_htpasswd = pytest.mark.skipif(HTPASSWD is None, reason="htpasswd is not installed (tools/setup.sh hosts)")


class Registry:
    """See the module. Its process ends with the block."""

    def __init__(
        self,
        folder: Path,
        *,
        users: Mapping[str, str] | None = None,
        tls: bool = False,
        tokens: "TokenService | None" = None,
    ) -> None:
        self.folder, self.users, self.tls = folder / "docker-registry", dict(users or {}), tls
        self.tokens = tokens
        self.storage = self.folder / "storage"
        self.folder.mkdir(parents=True)

    def __enter__(self) -> "Registry":
        assert PROGRAM is not None
        for _ in range(5):  # the port is free when it is chosen, and perhaps not when it is used
            self.port = free_port()
            config = self.folder / "config.json"  # JSON is YAML too
            config.write_text(json.dumps(self._config()))
            with (self.folder / "log").open("wb") as log:
                self.process = subprocess.Popen([PROGRAM, "serve", str(config)], stdout=log, stderr=log)
            if self._is_up():
                return self
            self.process.wait()
        raise AssertionError((self.folder / "log").read_text())

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"

    def _config(self) -> dict[str, object]:
        http: dict[str, object] = {"addr": f"127.0.0.1:{self.port}"}
        if self.tls:
            http["tls"] = self._certificate()
        config: dict[str, object] = {
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}, "delete": {"enabled": True}},
            "http": http,
        }
        if self.users:
            path = self.folder / "htpasswd"
            for number, (user, password) in enumerate(self.users.items()):
                mode = "-Bbc" if number == 0 else "-Bb"
                subprocess.run(["htpasswd", mode, str(path), user, password], check=True, capture_output=True)
            config["auth"] = {"htpasswd": {"realm": "tests", "path": str(path)}}
        if self.tokens is not None:
            config["auth"] = {"token": self.tokens.settings(self.folder)}
        return config

    def _certificate(self) -> dict[str, str]:
        authority()  # the CA that tests trust
        certificate: trustme.LeafCert = authority().ca.issue_cert("127.0.0.1", "localhost")
        chain, key = self.folder / "cert.pem", self.folder / "key.pem"
        chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        key.write_bytes(certificate.private_key_pem.bytes())
        return {"certificate": str(chain), "key": str(key)}

    def _is_up(self) -> bool:
        deadline = time.monotonic() + 60
        while self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return True
            except OSError:
                assert time.monotonic() < deadline, "the registry does not come up"
                time.sleep(0.02)
        return False

    # --- by the standard library alone: nothing here is what is tested

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        url = path if "://" in path else f"http{'s' * self.tls}://{self.host}{path}"
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        for user, password in list(self.users.items())[:1]:
            given["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        request = urllib.request.Request(url, body, given, method=method)
        context = ssl.create_default_context(cafile=authority().bundle) if self.tls else None
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(request) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def put_blob(self, repository: str, data: bytes) -> None:
        _, headers, _ = self.request("POST", f"/v2/{repository}/blobs/uploads/", b"")
        location = headers["Location"]
        digest = hashlib.sha256(data).hexdigest()
        status, _, _ = self.request(
            "PUT", f"{location}&digest=sha256:{digest}", data, Content_Type="application/octet-stream"
        )
        assert status == 201, status

    def load(self, layout: Path, repository: str, tag: str = "latest") -> str:
        """Put the artifact of an image layout into the registry; the digest of its manifest."""
        entry = json.loads((layout / "index.json").read_text())["manifests"][0]
        blobs = layout / "blobs" / "sha256"
        name = entry["digest"].removeprefix("sha256:")
        for blob in blobs.iterdir():
            if blob.name != name:
                self.put_blob(repository, blob.read_bytes())
        status, headers, _ = self.request(
            "PUT", f"/v2/{repository}/manifests/{tag}", (blobs / name).read_bytes(), Content_Type=entry["mediaType"]
        )
        assert status == 201 and headers["Docker-Content-Digest"] == entry["digest"]
        return str(entry["digest"])

    def manifest(self, repository: str, reference: str) -> bytes:
        status, _, body = self.request(
            "GET", f"/v2/{repository}/manifests/{reference}", Accept="application/vnd.oci.image.manifest.v1+json"
        )
        assert status == 200, body
        return body


class TokenService:
    """Gives signed tokens (JWT) for what is asked to one user, by the specification of docker's token server."""

    ISSUER, SERVICE = "tests", "registry.tests"

    def __init__(self, server: LocalServer, user: str, password: str) -> None:
        self.server, self.login = server, "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.scopes: list[str] = []
        self.ca = trustme.CA()
        self.certificate = self.ca.issue_cert("tokens.test", key_type=trustme.KeyType.RSA)
        server.behave("/token", self.answer)

    def settings(self, folder: Path) -> dict[str, str]:
        """A registry's `auth.token`."""
        bundle = folder / "tokens.pem"
        bundle.write_bytes(self.ca.cert_pem.bytes())
        realm = {"realm": self.server.url("/token"), "rootcertbundle": str(bundle)}
        return {**realm, "service": self.SERVICE, "issuer": self.ISSUER}

    def answer(self, handler: Any) -> None:
        query = parse_qs(urlsplit(handler.path).query)
        if handler.headers.get("Authorization") != self.login or query.get("service") != [self.SERVICE]:
            return handler.answer(401, "application/json", b"{}")
        self.scopes += query.get("scope", [])
        kinds = [scope.split(":") for scope in query.get("scope", [])]
        access = [{"type": kind, "name": name, "actions": actions.split(",")} for kind, name, actions in kinds]
        handler.answer(200, "application/json", json.dumps({"token": self.sign(access)}).encode())

    def sign(self, access: list[dict[str, Any]]) -> str:
        """A token for `access`, by RS256; the certificate of its key comes with it."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import padding

        key = serialization.load_pem_private_key(self.certificate.private_key_pem.bytes(), None)
        chain = [x509.load_pem_x509_certificate(blob.bytes()) for blob in self.certificate.cert_chain_pems]
        der = [base64.b64encode(item.public_bytes(serialization.Encoding.DER)).decode() for item in chain]
        now = int(time.time())
        times = {"nbf": now - 60, "iat": now, "exp": now + 300, "jti": os.urandom(8).hex()}
        claims = {"iss": self.ISSUER, "sub": "user", "aud": self.SERVICE, "access": access, **times}
        parts = [_base64url(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "RS256", "x5c": der}, claims)]
        signature = key.sign(".".join(parts).encode(), padding.PKCS1v15(), hashes.SHA256())  # type: ignore[union-attr, call-arg, arg-type]
        return ".".join([*parts, _base64url(signature)])


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
