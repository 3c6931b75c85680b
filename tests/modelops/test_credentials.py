"""Credentials of a registry: the environment's, and docker's own file with its helpers."""

import base64
import json
import sys
from pathlib import Path

import pytest

from modelops.adapters.bundle import BundleError
from modelops.adapters.bundle.credentials import Credentials, find_credentials

HOST, SECRET = "registry.test:5000", "pa:ss\u00e9-w0rd"
AUTH = base64.b64encode(f"user:{SECRET}".encode()).decode()
FOUND = Credentials("user", SECRET)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    return {"DOCKER_CONFIG": str(tmp_path), "PATH": str(tmp_path / "bin")}


def configure(environ: dict[str, str], configuration: object) -> None:
    text = configuration if isinstance(configuration, str) else json.dumps(configuration)
    (Path(environ["DOCKER_CONFIG"]) / "config.json").write_text(text)


def helper(environ: dict[str, str], code: str, name: str = "test") -> None:
    path = Path(environ["PATH"]) / f"docker-credential-{name}"
    path.write_text(f"#!{sys.executable}\nimport sys\nserver = sys.stdin.read()\n{code}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    "configuration",
    [
        {"auths": {HOST: {"auth": AUTH}}},
        {"auths": {f"https://{HOST}": {"auth": AUTH}}},
        {"auths": {f"https://{HOST}/v2/": {"auth": AUTH}}},
        {"auths": {f"https://{HOST}/v1/": {"auth": AUTH}}},
        {"auths": {f"http://{HOST}": {"auth": AUTH}}},
        {"auths": {HOST: {"username": "user", "password": SECRET}}},
        {"auths": {HOST: {"auth": AUTH}, "other.test": {"auth": "eDp5"}}, "credHelpers": {"other.test": "absent"}},
    ],
)
def test_what_is_written(environ: dict[str, str], configuration: object) -> None:
    configure(environ, configuration)
    assert find_credentials(HOST, None, environ) == FOUND


@pytest.mark.parametrize(
    "configuration",
    [
        *({}, {"auths": {}}, {"auths": {HOST: {}}}, {"auths": []}, {"auths": {HOST: 1}}),
        *({"auths": {f"https://x.{HOST}": {"auth": AUTH}}}, {"auths": {f"https://evil.test/{HOST}": {"auth": AUTH}}}),
    ],
)
def test_none(environ: dict[str, str], configuration: object) -> None:
    assert find_credentials(HOST, None, environ) is None
    configure(environ, configuration)
    assert find_credentials(HOST, None, environ) is None


def test_an_identity_token(environ: dict[str, str]) -> None:
    configure(environ, {"auths": {HOST: {"auth": AUTH, "identitytoken": "t0ken"}}})
    assert find_credentials(HOST, None, environ) == Credentials("", "t0ken", is_identity_token=True)
    helper(environ, 'print(\'{"Username": "<token>", "Secret": "t0ken"}\')')
    configure(environ, {"credsStore": "test"})
    assert find_credentials(HOST, None, environ) == Credentials("", "t0ken", is_identity_token=True)


def test_docker_hub_has_a_name_of_its_own(environ: dict[str, str]) -> None:
    configure(environ, {"auths": {"https://index.docker.io/v1/": {"auth": AUTH}}})
    assert find_credentials("docker.io", None, environ) == FOUND
    assert find_credentials(HOST, None, environ) is None


def test_helpers(environ: dict[str, str]) -> None:
    answer = json.dumps({"ServerURL": HOST, "Username": "user", "Secret": SECRET})
    helper(environ, f"assert sys.argv[1:] == ['get'] and server == {HOST!r}; print({answer!r})")
    helper(environ, "print('credentials not found in native keychain'); sys.exit(1)", "empty")
    for configuration in (
        {"credHelpers": {HOST: "test"}, "credsStore": "absent"},
        {"credsStore": "test"},
        {"credHelpers": {HOST: "empty"}, "credsStore": "test"},
        {"credsStore": "empty", "auths": {HOST: {"auth": AUTH}}},
    ):
        configure(environ, configuration)
        assert find_credentials(HOST, None, environ) == FOUND, configuration
    configure(environ, {"credsStore": "empty"})
    assert find_credentials(HOST, None, environ) is None


@pytest.mark.parametrize(
    ("configuration", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("[" * 50_000, "not JSON"),
        ({"auths": {HOST: {"auth": "!!!" + SECRET}}}, "base64"),
        ({"auths": {HOST: {"auth": base64.b64encode(b"no colon").decode()}}}, "base64"),
        ({"credsStore": "absent"}, "docker-credential-absent is not installed"),
        ({"credsStore": "../../bin/sh"}, "no valid name"),
        ({"credHelpers": {HOST: 7}}, "no valid name"),
        ({"credsStore": "fails"}, "status 3"),
        ({"credsStore": "odd"}, "Username and Secret"),
    ],
)
def test_what_is_wrong_is_said_without_the_secret(environ: dict[str, str], configuration: object, words: str) -> None:
    helper(environ, f"print({SECRET!r}); print({SECRET!r}, file=sys.stderr); sys.exit(3)", "fails")
    helper(environ, f"print({SECRET!r})", "odd")
    configure(environ, configuration)
    with pytest.raises(BundleError) as error:
        find_credentials(HOST, None, environ)
    assert error.value.type == "credentials_invalid" and words in str(error.value)
    assert SECRET not in str(error.value)


def test_those_of_the_environment_are_for_their_registry_alone(environ: dict[str, str]) -> None:
    own = {**environ, "REGISTRY_USERNAME": "user", "REGISTRY_PASSWORD": SECRET}
    assert find_credentials(HOST, None, own) == FOUND == find_credentials(HOST, HOST, own)
    assert find_credentials("other.test", HOST, own) is None
    configure(environ, {"auths": {HOST: {"auth": base64.b64encode(b"of:docker").decode()}}})
    assert find_credentials(HOST, HOST, own) == FOUND
    for name in ("REGISTRY_USERNAME", "REGISTRY_PASSWORD"):
        with pytest.raises(BundleError, match="is not set"):
            find_credentials(HOST, None, {**environ, name: SECRET})


def test_they_are_never_shown() -> None:
    assert SECRET not in repr(FOUND) and "user" not in repr(FOUND)
