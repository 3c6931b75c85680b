"""Credentials of registries: REGISTRY_USERNAME and REGISTRY_PASSWORD, else docker's own configuration.

Docker's file is `$DOCKER_CONFIG/config.json`, by default `~/.docker/config.json`. In it, in docker's order: the
host's helper in `credHelpers`, `credsStore`, and what is written in `auths`.
"""

import base64
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import BundleError

HELPER_SECONDS = 30
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NOT_FOUND = "credentials not found"  # how a helper says that it has none
_DOCKER_HUB = "https://index.docker.io/v1/"
_MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class Credentials:
    """What a registry gets to know us by. With `is_identity_token`, the secret is one for its token service."""

    username: str = field(repr=False)
    secret: str = field(repr=False)
    is_identity_token: bool = False

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.secret}".encode()).decode()


def find_credentials(host: str, registry_host: str | None, environ: Mapping[str, str]) -> Credentials | None:
    """The credentials of `host`. Those of the environment are for `registry_host` alone, where there is one."""
    username, password = environ.get("REGISTRY_USERNAME"), environ.get("REGISTRY_PASSWORD")
    if bool(username) != bool(password):
        missing = "REGISTRY_PASSWORD" if username else "REGISTRY_USERNAME"
        problem = f"{missing} is not set: a registry's credentials are REGISTRY_USERNAME and REGISTRY_PASSWORD"
        raise BundleError("credentials_invalid", problem)
    if username and password and registry_host in (None, host):
        return Credentials(username, password)
    return _of_docker(host, environ)


def _of_docker(host: str, environ: Mapping[str, str]) -> Credentials | None:
    folder = environ.get("DOCKER_CONFIG") or os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".docker")
    path = Path(folder) / "config.json"
    config = _read(path)
    for helper in (_table(config, "credHelpers").get(host), config.get("credsStore")):
        if helper:
            found = _ask_helper(helper, host, path, environ)
            if found is not None:
                return found
    auths = _table(config, "auths")
    named = [name for name in auths if name not in (_server(host), host) and _host_of(name) == host]
    for name in (_server(host), host, *named):
        if isinstance(entry := auths.get(name), dict):
            found = _written(entry, host, path)
            if found is not None:
                return found
    return None


def _host_of(name: str) -> str:
    """The host in a name of `auths`, which may be an address: `https://host/v1/`. Docker looks at no more of it."""
    return re.sub(r"^https?://", "", name).partition("/")[0].lower()


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(_MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise _invalid(path, f"it can't be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise _invalid(path, "it is not JSON") from None
    if not isinstance(config, dict):
        raise _invalid(path, "it is not a JSON object")
    return config


def _table(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _server(host: str) -> str:
    """The name under which docker keeps a host."""
    return _DOCKER_HUB if host in ("docker.io", "registry-1.docker.io") else host


def _written(entry: Mapping[str, Any], host: str, path: Path) -> Credentials | None:
    if token := entry.get("identitytoken"):
        return Credentials("", str(token), is_identity_token=True)
    if not entry.get("auth"):
        user, password = entry.get("username"), entry.get("password")  # as it is written by hand
        return Credentials(str(user), str(password)) if user and password else None
    try:
        username, colon, secret = base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
    except ValueError:  # of base64, or of UTF-8
        colon = ""
    if not colon:
        raise _invalid(path, f"the entry of {host} in auths is not user:password in base64")
    return Credentials(username, secret.rstrip("\0"))


def _ask_helper(helper: object, host: str, path: Path, environ: Mapping[str, str]) -> Credentials | None:
    """Docker's protocol of helpers: the server on standard input, a JSON object on standard output."""
    if not isinstance(helper, str) or not _HELPER.fullmatch(helper):
        raise _invalid(path, f"the credential helper of {host} has no valid name")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"],
            input=_server(host).encode(),
            capture_output=True,
            timeout=HELPER_SECONDS,
            env=dict(environ),
        )
    except FileNotFoundError:
        raise _invalid(path, f"{program} is not installed, and {host} needs it") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _invalid(path, f"{program} did not answer: {type(error).__name__}") from None
    # What it wrote may hold a secret: none of it goes into a message.
    if done.returncode != 0:
        if _NOT_FOUND in done.stdout.decode(errors="replace").lower():
            return None
        raise _invalid(path, f"{program} failed with status {done.returncode} when asked for {host}")
    try:
        answer = json.loads(done.stdout)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError):
        raise _invalid(path, f"{program} did not answer with a JSON object of Username and Secret") from None
    if username == "<token>":
        return Credentials("", str(secret), is_identity_token=True)
    return Credentials(str(username), str(secret)) if secret else None


def _invalid(path: Path, problem: str) -> BundleError:
    return BundleError("credentials_invalid", f"docker's configuration {str(path)!r}: {problem}")
