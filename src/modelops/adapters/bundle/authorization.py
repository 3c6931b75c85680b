"""Who we are to a registry: Basic, or bearer tokens as the distribution specification has them.

A registry that wants a token names the service that gives it, the *realm*. Credentials go there only where it is the
registry's own host, one of the same domain (`registry-1.docker.io` and `auth.docker.io`), or the one that
MODELOPS_BUNDLE_TOKEN_HOST names; any other realm is asked for the token that everybody gets.
"""

import json
import re
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol
from urllib.parse import SplitResult, urlencode, urlsplit

from .credentials import Credentials
from .errors import BundleError

CLIENT_ID = "modelops"
MAX_TOKEN_BYTES = 64 << 10
_CHALLENGE = re.compile(
    r'(?:^|,)\s*([A-Za-z]+)\s+(?=[A-Za-z_]+\s*=)|([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))'
)
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


class Ask(Protocol):
    """How a token service is asked: the status and the body of its answer. It follows no redirect."""

    def __call__(self, method: str, url: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]: ...


class Challenge(NamedTuple):
    """One of the ways that a WWW-Authenticate header offers; the scheme and the names are in lower case."""

    scheme: str
    parameters: Mapping[str, str]


class Authorization:
    """The Authorization header of one repository's requests; it changes as the registry asks for another."""

    def __init__(
        self,
        host: str,
        credentials: Callable[[], Credentials | None],
        ask: Ask,
        *,
        insecure: bool,
        token_host: str | None,
    ) -> None:
        self.header: str | None = None
        self.withheld_from: str | None = None  # the realm that was not given the credentials
        self._host, self._find, self._ask = host, credentials, ask
        self._insecure, self._token_host = insecure, token_host
        self._lock = threading.Lock()

    def answer(self, challenge: str, sent: str | None) -> bool:
        """Meet a challenge to a request that had the header `sent`; whether there is another header now."""
        with self._lock:
            if self.header != sent:
                return True  # another thread has met it
            offered = {item.scheme: item.parameters for item in read_challenges(challenge)}
            credentials = self._find()
            if "bearer" in offered:
                self.header = "Bearer " + self._token(offered["bearer"], credentials)
            elif "basic" in offered and credentials is not None and not credentials.is_identity_token:
                self.header = credentials.basic
            return self.header != sent

    def _token(self, parameters: Mapping[str, str], credentials: Credentials | None) -> str:
        realm = self._realm(parameters.get("realm", ""))
        host = (realm.hostname or "").lower()
        if credentials is not None and not self._may_know(host):
            self.withheld_from, credentials = host, None
        wanted = [("service", parameters["service"])] if "service" in parameters else []
        wanted += [("scope", scope) for scope in parameters.get("scope", "").split()]
        if credentials is not None and credentials.is_identity_token:
            form = [("grant_type", "refresh_token"), ("client_id", CLIENT_ID), ("refresh_token", credentials.secret)]
            # OAuth2 has one scope, with spaces in it.
            form += [("service", parameters.get("service", "")), ("scope", parameters.get("scope", ""))]
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            return _read_token(host, *self._ask("POST", realm.geturl(), kind, urlencode(form).encode()))
        query = "&".join(filter(None, [realm.query, urlencode([*wanted, ("client_id", CLIENT_ID)])]))
        login = {} if credentials is None else {"Authorization": credentials.basic}
        return _read_token(host, *self._ask("GET", realm._replace(query=query).geturl(), login, b""))

    def _realm(self, text: str) -> SplitResult:
        try:
            realm = urlsplit(text)
            valid = bool(realm.hostname) and realm.username is None and (realm.port is None or realm.port > 0)
        except ValueError:
            valid = False
        if not valid or realm.scheme not in ("https", "http") or re.search(r"[^\x21-\x7e]", text):
            raise BundleError(
                "registry_response_invalid", f"the registry {self._host} names no valid address for a token"
            )
        if realm.scheme == "http" and not self._insecure:
            problem = f"the registry {self._host} asks for a token over plain HTTP, from {realm.hostname}; it gets none"
            raise BundleError("registry_untrusted", problem)
        return realm._replace(fragment="")

    def _may_know(self, realm: str) -> bool:
        own = (urlsplit(f"//{self._host}").hostname or "").lower()
        return realm in (own, self._token_host) or (_domain(own) is not None and _domain(own) == _domain(realm))


def read_challenges(header: str) -> list[Challenge]:
    """The challenges of a WWW-Authenticate header, in order."""
    found: list[Challenge] = []
    for match in _CHALLENGE.finditer(header[:16384]):
        scheme, name, quoted, plain = match.groups()
        if scheme:
            found.append(Challenge(scheme.lower(), {}))
        elif found:
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found[-1] = Challenge(found[-1].scheme, {**found[-1].parameters, name.lower(): value})
    return found


def _domain(host: str) -> str | None:
    """The last two labels of a name; None where it has fewer, or is an address."""
    labels = host.split(".")
    if len(labels) < 2 or labels[-1].isdigit() or ":" in host:
        return None
    return ".".join(labels[-2:])


def _read_token(host: str, status: int, body: bytes) -> str:
    if status in (400, 401, 403):
        raise BundleError("registry_denied", f"the token service {host} gave no token: status {status}")
    try:
        answer = json.loads(body) if status == 200 else None
        token = answer.get("token") or answer.get("access_token") if isinstance(answer, dict) else None
    except (ValueError, RecursionError):
        token = None
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise BundleError(
            "registry_response_invalid", f"the token service {host} answered with status {status} and no token"
        )
    return token
