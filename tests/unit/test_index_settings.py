"""Index and git settings: read from the caller's environment, for the fetch phase alone."""

import base64
from pathlib import Path
from typing import Any

import pytest


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_nothing_set_gives_nothing(runner_module: Any) -> None:
    found = runner_module.index_settings({"HOME": "/nonexistent", "PATH": "/bin", "AWS_SECRET": "x"})
    assert found == runner_module.IndexSettings({}, {}, [], [], [], [])


@pytest.mark.parametrize("name", ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"])
def test_the_default_index(runner_module: Any, name: str) -> None:
    found = runner_module.index_settings({name: "https://i.example/simple"})
    assert found.public == ["https://i.example/simple"]
    assert found.credentials == {"UV_DEFAULT_INDEX": "https://i.example/simple"}


@pytest.mark.parametrize("name", ["UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"])
def test_more_indexes(runner_module: Any, name: str) -> None:
    found = runner_module.index_settings({name: "https://a.example/s https://b.example/s"})
    assert found.credentials == {"UV_INDEX": "https://a.example/s https://b.example/s"}
    assert found.public == ["https://a.example/s", "https://b.example/s"]


def test_uv_comes_before_pip(runner_module: Any) -> None:
    environment = {"UV_DEFAULT_INDEX": "https://uv.example/s", "PIP_INDEX_URL": "https://pip.example/s"}
    assert runner_module.index_settings(environment).public == ["https://uv.example/s"]


def test_credentials_of_a_url_are_a_header_and_a_secret_and_never_public(runner_module: Any) -> None:
    found = runner_module.index_settings({"UV_DEFAULT_INDEX": "https://me:hunter%402@i.example:8443/simple"})
    assert found.authorization == {"i.example:8443": basic("me", "hunter@2")}
    assert found.public == ["https://i.example:8443/simple"]
    assert "hunter@2" in found.secrets


def test_credentials_of_a_named_index(runner_module: Any) -> None:
    environment = {
        "UV_INDEX": "corp=https://i.example/simple",
        "UV_INDEX_CORP_USERNAME": "me",
        "UV_INDEX_CORP_PASSWORD": "hunter2",
    }
    found = runner_module.index_settings(environment)
    assert found.authorization == {"i.example": basic("me", "hunter2")}
    assert "hunter2" in found.secrets and found.public == ["https://i.example/simple"]


def test_credentials_of_one_named_index_do_not_go_to_another(runner_module: Any) -> None:
    environment = {
        "UV_INDEX": "corp=https://i.example/simple other=https://o.example/simple",
        "UV_INDEX_CORP_USERNAME": "me",
        "UV_INDEX_CORP_PASSWORD": "hunter2",
        "PIP_INDEX_URL": "https://public.example/simple",
    }
    assert set(runner_module.index_settings(environment).authorization) == {"i.example"}


def test_credentials_of_netrc(runner_module: Any, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine i.example login me password hunter2\n")
    (tmp_path / ".netrc").chmod(0o600)
    found = runner_module.index_settings({"HOME": str(tmp_path), "UV_DEFAULT_INDEX": "https://i.example/simple"})
    assert found.authorization == {"i.example": basic("me", "hunter2")}
    assert "hunter2" in found.secrets


@pytest.mark.parametrize("content", [b"machine\x00 ???", b"machine h login a password \xff\n"])
def test_a_netrc_that_is_none_is_ignored(runner_module: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "netrc").write_bytes(content)
    environment = {"NETRC": str(tmp_path / "netrc"), "UV_DEFAULT_INDEX": "https://i.example/simple"}
    assert runner_module.index_settings(environment).authorization == {}


@pytest.mark.parametrize("url", ["https://h:port/simple", "https://[::1/simple", "https://me:hun/ter2@h/simple"])
def test_what_is_no_url_is_the_callers_mistake_and_not_repeated(runner_module: Any, url: str) -> None:
    with pytest.raises(runner_module.Failure) as caught:
        runner_module.index_settings({"UV_INDEX": url})
    assert caught.value.type == "usage" and "hun" not in caught.value.error


@pytest.mark.parametrize("name", ["GITHUB_TOKEN", "GH_TOKEN"])
def test_a_github_token_goes_to_github_alone(runner_module: Any, name: str) -> None:
    environment = {name: "ghp_secret", "HOME": "/nonexistent"}
    found = runner_module.git_credentials(environment, "https://github.com/o/r")
    assert found["GIT_CONFIG_VALUE_0"] == f"Authorization: {basic('x-access-token', 'ghp_secret')}"
    assert found["GIT_CONFIG_KEY_0"] == "http.https://github.com/.extraheader"
    for url in (
        "https://github.com.evil.example/o/r",
        "https://evil.example/github.com",
        "https://api.github.com/",
    ):
        assert runner_module.git_credentials(environment, url) == {}


def test_secrets_are_taken_out_of_texts(runner_module: Any) -> None:
    assert runner_module.redact("a hunter2 b hunter2", ["hunter2"]) == "a **** b ****"


NAMES = [
    ("Zope.Interface", "zope-interface"),
    ("a__b--c", "a-b-c"),
    ("six>=1", "six"),
    ("x @ https://h/y", "x"),
    ("x[a]", "x"),
]


@pytest.mark.parametrize(("line", "name"), NAMES)
def test_names_are_normalised(runner_module: Any, line: str, name: str) -> None:
    assert runner_module.canonical_name(line) == name


TAGS = [
    "py3-none-any",
    "cp311-cp311-manylinux_2_17_x86_64",
    "cp38-abi3-manylinux_2_17_x86_64",
    "py3-none-manylinux_2_17_x86_64",
]


def test_the_most_specific_wheel_is_taken(runner_module: Any) -> None:
    urls = [f"https://h.example/x-1-{tag}.whl" for tag in TAGS]
    order = sorted(urls, key=runner_module.wheel_preference, reverse=True)
    assert [url.rpartition("x-1-")[2][:-4] for url in order] == [TAGS[1], TAGS[2], TAGS[3], TAGS[0]]
